"""A small language model on real text, for training in FP8 and beside it: bytes of Python's own help, a decoder with SwiGLU blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BYTES = 256


def text() -> tuple[Tensor, Tensor]:
    """Python's help topics as bytes (uint8): one to train on, and every tenth topic to validate on."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    parts = ([n for i, n in enumerate(names) if i % 10], [n for i, n in enumerate(names) if not i % 10])
    one, other = (bytearray("\n\n".join(topics[name] for name in part).encode()) for part in parts)
    return torch.frombuffer(one, dtype=torch.uint8), torch.frombuffer(other, dtype=torch.uint8)


def batches(data: Tensor, count: int, size: int, length: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` batches of random places in `data`: bytes, and the bytes that follow each, int64 (size, length)."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        starts = torch.randint(0, data.numel() - length - 1, (size, 1), generator=generator)
        piece = data[starts + torch.arange(length + 1)].long()
        yield piece[:, :-1].contiguous(), piece[:, 1:].contiguous()


def next_byte_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy in nats: logits (batch, length, BYTES), target (batch, length)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())


class Block(nn.Module):
    """Attention and a SwiGLU feed-forward block, each behind a norm and beside a residual."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Bytes (batch, length) to logits of the next byte (batch, length, BYTES), with learned positions."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4, hidden: int | None = None, length: int = 64) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(BYTES, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, hidden or 4 * width, heads) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, BYTES, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:  # what adds to the residual begins smaller, so that the sum keeps its size over depth
                depth = 2 * layers if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(parameter, std=0.02 * depth**-0.5)

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer, asked for as Transformers' models are."""
        return self.head

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@torch.no_grad()
def validation_loss(model: nn.Module, data: Tensor, *, size: int, length: int, count: int) -> float:
    """Mean loss on `count` fixed batches of `data`, on the model's device."""
    device = next(model.parameters()).device
    pairs = [(x.to(device), y.to(device)) for x, y in batches(data, count, size, length, seed=12345)]
    return float(torch.stack([next_byte_loss(model(x), y) for x, y in pairs]).mean())
