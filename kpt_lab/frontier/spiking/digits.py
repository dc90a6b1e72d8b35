"""A small transformer and the images that it is trained on: scikit-learn's digits, so that nothing is downloaded.

1797 images of 8 x 8 pixels: 1437 to train on and 360 to test on, drawn by a seed. The transformer reads each image as 16 patches of
2 x 2, with learned positions, pre-norm layers of width 32 and the mean of the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpt_lab.core import Unsupported

PATCHES, WIDTH, HEADS, TESTED = 16, 32, 4, 360


class Digits(nn.Module):
    """Images (batch, 16, 4), pixels from 0 to 1, to 10 logits."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.positions = nn.Parameter(0.1 * torch.randn(PATCHES, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        return self.head(self.norm(self.encoder(self.embed(x) + self.positions)).mean(1))


def data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training patches (1437, 16, 4) and labels, test patches (360, 16, 4) and labels, split by the seed; needs scikit-learn."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError:
        raise Unsupported("the digits come with scikit-learn, which is not installed: pip install 'kpt-lab[models]'") from None
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32) / 16
    patches = images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(images), PATCHES, 4)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    x, y = patches[order], torch.tensor(found.target)[order]
    return x[:-TESTED], y[:-TESTED], x[-TESTED:], y[-TESTED:]


def pictures(patches: Tensor) -> Tensor:
    """The images (batch, 8, 8) that patches (batch, 16, 4) were cut from."""
    return patches.reshape(-1, 4, 4, 2, 2).transpose(2, 3).reshape(-1, 8, 8)


def train(x: Tensor, y: Tensor, seed: int = 0, epochs: int = 40) -> Digits:
    """The transformer, trained by AdamW with a one-cycle rate, in evaluation mode."""
    torch.manual_seed(seed)
    model = Digits().train()
    steps = epochs * -(-len(x) // 64)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit (batch, 10) is their label's."""
    return float((logits.argmax(-1) == labels).double().mean())
