"""Neurons that turn a membrane into a train of spikes, and the two codes in which a train says a number.

A train is an int8 tensor (T, ...) of -1, 0 and 1. A negative spike stands for a pair of neurons of which only the negative
one fires, so that no neuron of the two ever fires for both signs. A train stands for the whole number `level`:

- count: as many spikes as the level, from an integrate-and-fire neuron that subtracts its threshold when it fires;
- first spike: at most one spike; at step t it says T - t, from a neuron whose threshold falls step by step and that fires once.

The threshold is 1 (a membrane is divided by its scale beforehand), and the neuron fires from half a threshold before the level,
so that a train says the nearest level. Subtracting 1 from a float64 is exact there, so stepping and rounding agree to the bit.
A half is `HALF`, a little less: membranes that lie halfway do occur (a mean of whole levels), and the last bit of a float64, which
depends on the order in which spikes came, must not decide them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Code = Literal["count", "first_spike"]
HALF = 0.5 - 2.0**-30
"""The part of a threshold from which a neuron fires: far more below one half than float64 sums are off by."""
CODES: tuple[Code, ...] = ("count", "first_spike")


@dataclass(frozen=True)
class Train:
    """Spikes (T, ...) with the value of one level (`scale`) and the code in which they are to be read."""

    spikes: Tensor
    scale: float
    code: Code

    @property
    def steps(self) -> int:
        """T, the steps of a window."""
        return self.spikes.shape[0]

    @property
    def shape(self) -> torch.Size:
        """The shape of what the train says, without time."""
        return self.spikes.shape[1:]

    @property
    def device(self) -> torch.device:
        """Where the spikes lie."""
        return self.spikes.device

    @property
    def dtype(self) -> torch.dtype:
        """float64, in which membranes are kept."""
        return torch.float64

    @property
    def ndim(self) -> int:
        """Dimensions without time."""
        return self.spikes.ndim - 1

    def dim(self) -> int:
        """Dimensions without time."""
        return self.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        """The shape without time, or one of its dimensions."""
        return self.shape if dim is None else self.shape[dim]

    def count(self) -> int:
        """How many spikes there are."""
        return int(self.spikes.count_nonzero())

    def levels(self) -> Tensor:
        """The whole numbers that the train says, in float64: its spikes weighted by what each step counts for."""
        total = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        for weight, now in zip(step_weights(self.code, self.steps), self.spikes, strict=True):
            total += weight * now
        return total


def step_weights(code: Code, steps: int) -> list[int]:
    """What a spike at each step counts for: 1 in the count code, T - t in the first-spike code (the steps it still acts)."""
    return [1] * steps if code == "count" else [steps - t for t in range(steps)]


def integrate_and_fire(membrane: Tensor, steps: int) -> Tensor:
    """Spikes (T, ...) int8 of neurons that fire while half a threshold (`HALF`) or more is left, subtracting 1 each time."""
    left = membrane.to(torch.float64).abs()
    sign = torch.where(membrane < 0, -1, 1).to(torch.int8)
    train = torch.empty((steps, *membrane.shape), dtype=torch.int8, device=membrane.device)
    for now in train:
        fires = left >= HALF
        left -= fires.to(torch.float64)
        now.copy_(fires * sign)
    return train


def first_spike(membrane: Tensor, steps: int) -> Tensor:
    """Spikes (T, ...) int8 of neurons that fire once, when the threshold, falling by 1 a step from half below T, meets them."""
    height = membrane.to(torch.float64).abs()
    sign = torch.where(membrane < 0, -1, 1).to(torch.int8)
    silent = torch.ones_like(membrane, dtype=torch.bool)
    train = torch.empty((steps, *membrane.shape), dtype=torch.int8, device=membrane.device)
    for step, now in enumerate(train):
        fires = silent & (height >= steps - step - 1 + HALF)
        silent &= ~fires
        now.copy_(fires * sign)
    return train


def fire(membrane: Tensor, scale: float, code: Code, steps: int) -> Train:
    """The train that neurons of threshold `scale` send from their membranes (...): the nearest of -T..T levels each."""
    neuron = integrate_and_fire if code == "count" else first_spike
    return Train(neuron(membrane.to(torch.float64) / scale, steps), scale, code)


def nearest_level(membrane: Tensor, scale: float, steps: int) -> Tensor:
    """The same levels by rounding, without time: a half (`HALF`) away from zero, within -T..T. This is the quantised network's rule."""
    height = (membrane.to(torch.float64) / scale).abs()
    below = height.floor()  # the difference to it is exact, which height + HALF would not be
    return (below + (height - below >= HALF)).clamp(max=steps).copysign(membrane)


def best_scale(values: Tensor, steps: int) -> float:
    """The scale of least squared rounding error over `values`, among 24 that clip at 0.25 to 1 times the largest; 1.0 for zeros."""
    values = values.detach().to(torch.float64)
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not largest:
        return 1.0
    tried = [largest * share / steps for share in torch.linspace(0.25, 1, 24, dtype=torch.float64).tolist()]
    return min(tried, key=lambda scale: float((nearest_level(values, scale, steps) * scale - values).square().mean()))
