"""Classifiers of scikit-learn's digits with the same number of parameters: with a circuit, without its entangling gates, with a matrix.

1797 images of 8 x 8 pixels: 1150 to train on, 287 to choose the learning rate by, and 360 to test on, drawn by a seed. Each classifier
squeezes an image into six numbers, transforms them by 36 weights, and reads ten logits off: 496 parameters, whichever the middle is.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpt_lab.core import Unsupported
from kpt_lab.frontier.quantum.layer import QuantumLayer
from kpt_lab.frontier.quantum.simulators import z_of_each
from kpt_lab.frontier.quantum.sublayers import ansatz

PIXELS, CLASSES, TESTED, VALIDATED = 64, 10, 360, 287
QUBITS, DEPTH = 6, 3  # two weights a qubit and layer: as many as a matrix of QUBITS x QUBITS has
KINDS = ("hybrid", "no entanglement", "classical")
RATES = (1e-2, 3e-2, 1e-1)
BATCH = 64


class Split(NamedTuple):
    """Images (N, 64), pixels from 0 to 1, and labels (N,)."""

    x: Tensor
    y: Tensor


class Classifier(nn.Module):
    """Images (B, 64) -> logits (B, 10); kind is one of KINDS. ValueError for another."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; accepted are {', '.join(map(repr, KINDS))}")
        self.kind = kind
        self.encode, self.decode = nn.Linear(PIXELS, QUBITS), nn.Linear(QUBITS, CLASSES)
        self.middle = nn.Linear(QUBITS, QUBITS, bias=False) if kind == "classical" else _circuit(kind == "hybrid")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10)."""
        squeezed = torch.tanh(self.encode(x))
        if self.kind == "classical":
            return self.decode(torch.tanh(self.middle(squeezed)))
        return self.decode(self.middle(math.pi * squeezed))  # as angles


def _circuit(entangle: bool) -> QuantumLayer:
    circuit = ansatz(QUBITS, DEPTH, entangle=entangle)
    names = circuit.parameters
    return QuantumLayer(circuit, z_of_each(QUBITS), names[:QUBITS], names[QUBITS:], dtype=torch.complex64)


def data(seed: int = 0) -> tuple[Split, Split, Split]:
    """Images to train on, to choose by and to test on, split by the seed; Unsupported without scikit-learn."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError:
        raise Unsupported("the digits come with scikit-learn, which is not installed: pip install 'kpt-lab[models]'") from None
    found = load_digits()
    x, y = torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    sizes = [len(x) - VALIDATED - TESTED, VALIDATED, TESTED]
    return tuple(Split(a, b) for a, b in zip(x[order].split(sizes), y[order].split(sizes), strict=True))  # type: ignore[return-value]


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """The share of images that are classified right."""
    return float((model(split.x).argmax(-1) == split.y).double().mean())


def train(model: nn.Module, split: Split, rate: float, epochs: int, seed: int = 0) -> list[float]:
    """Train in place by Adam, batches drawn by the seed; returns the mean loss of each epoch."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    draw = torch.Generator().manual_seed(seed)
    history = []
    for _ in range(epochs):
        losses = []
        for batch in torch.randperm(len(split.x), generator=draw).split(BATCH):
            optimiser.zero_grad()
            loss = F.cross_entropy(model(split.x[batch]), split.y[batch])
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
    return history


def tuned(model: nn.Module, train_on: Split, choose_by: Split, epochs: int, seed: int = 0) -> tuple[nn.Module, float]:
    """Of copies trained with each of RATES, the one that is right most often on `choose_by`, and its rate."""
    found = []
    for rate in RATES:
        each = copy.deepcopy(model)
        train(each, train_on, rate, epochs, seed)
        found.append((accuracy(each, choose_by), rate, each))
    _, rate, best = max(found, key=lambda one: one[0])
    return best, rate
