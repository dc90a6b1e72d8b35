"""Photonic products as a Technique: rounded as the converters round, checked against a plain definition, timed as a simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kpt_lab import baselines
from kpt_lab.core import Cost, Metric, Problem, Target, Technique, Unsupported, Workload, dtype_name
from kpt_lab.frontier.photonic.accelerator import OPTICAL_POWER, SYMBOL_RATE, PhotonicAccelerator
from kpt_lab.frontier.photonic.energy import Constants, Counts, EnergyReport
from kpt_lab.frontier.photonic.noise import Noise, Quantisation, checked_bits, quantised

CHANNELS = 64
MEMORY_BANDWIDTH = 3.35e12  # bytes/s that feed the modelled core: assumed to be an H100's HBM3


class PhotonicProduct:
    """a @ b on an accelerator; remembers what the latest call used."""

    def __init__(self, accelerator: PhotonicAccelerator) -> None:
        self.accelerator = accelerator
        self.counts = Counts()

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        result = self.accelerator.photonic_matmul(a, b)
        self.counts = self.accelerator.last
        return result


class PhotonicLinear(nn.Module):
    """A linear layer whose product is computed by `product`; it shares the weight and the bias of the layer it came from."""

    def __init__(self, linear: nn.Linear, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias, self.product = linear.weight, linear.bias, product

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x, self.weight.mT)
        return y if self.bias is None else y + self.bias


def product(a: Tensor, b: Tensor) -> Tensor:
    """The specification: a @ b."""
    return a @ b


def make(*, device: str, dtype: torch.dtype, seed: int, rows: int = 64, inner: int = 64, cols: int = 64) -> Problem:
    """Products of a, uniform on [0, 1], with b, uniform on [-1, 1]: (rows, inner) @ (inner, cols)."""
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in (rows, inner, cols)):
        raise ValueError(f"rows, inner and cols are {rows}, {inner}, {cols}; whole numbers of 1 or more are needed")
    generator = torch.Generator(device).manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    return Problem(product, [(uniform(rows, inner), uniform(inner, cols) * 2 - 1) for _ in range(3)])


def cost(*, dtype: str, rows: int, inner: int, cols: int) -> Cost:
    """A multiply and an addition for each product, operands and result moved once."""
    moved = (rows * inner + inner * cols + rows * cols) * getattr(torch, dtype_name(dtype)).itemsize
    return Cost({dtype_name(dtype): 2.0 * rows * inner * cols}, bytes=moved)


def _with(fn: Callable, new: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Callable:
    """`fn` with its product, or all its linear layers, computed by what `new` makes; Unsupported where it has neither."""
    if fn in (product, torch.matmul):
        return new()
    if isinstance(fn, nn.Linear):
        return PhotonicLinear(fn, new())
    found = []
    if isinstance(fn, nn.Module):
        found = [
            (part, name, child) for part in fn.modules() for name, child in part.named_children() if type(child) is nn.Linear
        ]
    if not found:
        raise Unsupported(
            f"photonic takes torch.matmul or a module with nn.Linear in it; {getattr(fn, '__name__', type(fn).__name__)} is neither"
        )
    for part, name, child in found:
        setattr(part, name, PhotonicLinear(child, new()))
    return fn


def apply(fn: Callable, args: tuple, bits: int = 6, channels: int = CHANNELS) -> Callable:
    """The products of `fn` through the meshes, inputs, weights and outputs rounded to `bits`; PrecisionWarning above the light's."""
    accelerator = PhotonicAccelerator(
        channels, checked_bits("bits", bits), noise=Noise(quantisation=Quantisation(bits, bits, bits))
    )
    return _with(fn, lambda: PhotonicProduct(accelerator))


def define(fn: Callable, args: tuple, bits: int = 6, channels: int = CHANNELS) -> Callable:
    """The same rounding, tile by tile, in plain products."""
    checked_bits("bits", bits)
    return _with(fn, lambda: lambda a, b: rounded_product(a, b, bits, channels))


def rounded_product(a: Tensor, b: Tensor, bits: int, channels: int = CHANNELS) -> Tensor:
    """a @ b with tiles of `channels`: inputs by row, weights by tile and readings by tile rounded to `bits`; (..., m, k) @ (k, n)."""
    exact = a @ b
    with torch.no_grad():
        columns = []
        for part in b.to(torch.float64).split(channels, -1):
            column = torch.zeros((), dtype=torch.float64, device=a.device)
            for x, w in zip(a.to(torch.float64).split(channels, -1), part.split(channels, -2), strict=True):
                column = column + _rounded_tile(x, w, bits)
            columns.append(column)
        offset = torch.cat(columns, -1).to(a.dtype) - exact
    return exact + offset


def _rounded_tile(x: Tensor, w: Tensor, bits: int) -> Tensor:
    top, size = w.abs().amax(), x.abs().amax(-1, keepdim=True)
    top, size = torch.where(top > 0, top, 1.0), torch.where(size > 0, size, 1.0)
    codes = quantised(w / top, bits, signed=True)
    span = torch.stack([codes.clamp(min=0).sum(-2), (-codes).clamp(min=0).sum(-2)]).max()
    span = torch.where(span > 0, span, 1.0)
    reading = torch.zeros((), dtype=torch.float64, device=x.device)
    for sign in (1, -1):
        given = quantised((sign * x / size).clamp(min=0), bits, signed=False)
        reading = reading + sign * quantised(given @ codes / span, bits, signed=True) * span
    return reading * size * top


def energies(candidate: Any) -> Mapping[str, Metric]:
    """Modelled energy of the candidate's latest call, all its layers together."""
    parts = [candidate]
    if isinstance(candidate, nn.Module):
        parts = [part.product for part in candidate.modules() if isinstance(part, PhotonicLinear)]
    counts = sum((part.counts for part in parts), Counts())
    return EnergyReport(counts, parts[0].accelerator.name).metrics if counts.products else {}


def as_light(work: Cost) -> Cost:
    """All arithmetic as "photonic", which only a photonic Target has a rate for."""
    return Cost({"photonic": sum(work.flops.values())}, work.bytes)


def core_target(bits: int = 6, channels: int = CHANNELS, constants: Constants | None = None) -> Target:
    """One core of `channels` at 1 mW a wavelength and 1 GHz as a Target, modelled: rate, energy of an operation, energy of a byte.

    Every core is full and its phases are pi on average; converters have `bits`. Memory is assumed, as its source says.
    """
    n, per_core = channels, channels**2
    counts = Counts(
        multiplies=per_core, products=1, bits=checked_bits("bits", bits), light=OPTICAL_POWER / SYMBOL_RATE * n,
        inputs=n, outputs=n, radian_seconds=4 * per_core * torch.pi / SYMBOL_RATE,
    )  # fmt: skip
    report = EnergyReport(counts, f"photonic-{n}, {bits} bits", constants or Constants())
    joules, memory = report.metrics["energy.compute"], report.constants.memory
    return Target(
        f"photonic-{n}-{bits}bit",
        peaks={"photonic": 2 * per_core * SYMBOL_RATE},
        bandwidth=MEMORY_BANDWIDTH,
        source={
            "photonic": f"modelled: {n} x {n} multiplies and additions at {SYMBOL_RATE:.0e} vectors/s, one core",
            "bandwidth": "assumed to be an H100's HBM3 (NVIDIA H100 data sheet)",
            "energy.photonic": joules.source,
            "energy.byte": memory.source,
        },
        energy={"photonic": joules.value / (2 * per_core), "byte": memory.value},
    )


forward = Workload("photonic.matmul", make, tolerance=64.0, cost=cost)
photonic = Technique(
    "photonic", apply, "device", replaces=frozenset({"matmul"}), contract="lossy", definition=define, report=energies,
    cost=as_light, simulates="photonic core",
)  # fmt: skip
techniques = (*baselines.ladder, photonic)
