"""Rounding by comparison alone: tables of exact fractions written from each format's definition, and nothing of its code.

A value's code is found by counting the midpoints below it. Midpoints have a few bits more than the numbers, so float64 holds
them exactly (checked when the table is made), and comparing float64 with float64 rounds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Definition:
    """A format as its specification words it: the exponent field's width, its bias, and which codes are special."""

    exponent_bits: int
    bias: int
    infinities: frozenset[int]
    nans: frozenset[int]
    signed_zero: bool = True


DEFINITIONS = {
    "e4m3fn": Definition(4, 7, frozenset(), frozenset({0x7F, 0xFF})),
    "e5m2": Definition(5, 15, frozenset({0x7C, 0xFC}), frozenset({0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF})),
    "e4m3fnuz": Definition(4, 8, frozenset(), frozenset({0x80}), signed_zero=False),
    "e5m2fnuz": Definition(5, 16, frozenset(), frozenset({0x80}), signed_zero=False),
}


def magnitude(code: int, definition: Definition) -> Fraction:
    """The absolute value that the bits below the sign spell, special codes taken as ordinary ones."""
    bits = f"{code & 0x7F:07b}"
    exponent, digits = int(bits[: definition.exponent_bits], 2), bits[definition.exponent_bits :]
    fraction = sum(Fraction(int(digit), 2**place) for place, digit in enumerate(digits, start=1))
    if exponent == 0:
        return fraction * Fraction(2) ** (1 - definition.bias)
    return (1 + fraction) * Fraction(2) ** (exponent - definition.bias)


def table(name: str) -> list[Fraction | str]:
    """Every code's value: a fraction, "inf", "-inf" or "nan". Negative zero is the fraction 0."""
    if name == "int8":
        return [Fraction(code if code < 128 else code - 256) for code in range(256)]
    definition = DEFINITIONS[name]
    values: list[Fraction | str] = []
    for code in range(256):
        sign = "-" if code >= 128 else ""
        if code in definition.nans:
            values.append("nan")
        elif code in definition.infinities:
            values.append(f"{sign}inf")
        else:
            values.append(magnitude(code, definition) * (-1 if sign else 1))
    return values


def ladder(name: str) -> list[tuple[Fraction, bool]]:
    """The format's numbers from the lowest to the highest, with one more at each end: (value, whether its last bit is 0).

    The one more is what the next code would be if exponents went on: a value that rounds to it overflows.
    """
    if name == "int8":
        return [(Fraction(whole), whole % 2 == 0) for whole in range(-129, 129)]
    definition = DEFINITIONS[name]
    largest = max(code for code in range(128) if code not in definition.nans | definition.infinities)
    rungs = [(magnitude(code, definition), code % 2 == 0) for code in range(largest + 1)]
    step = rungs[-1][0] - rungs[-2][0]
    rungs.append((rungs[-1][0] + step, (largest + 1) % 2 == 0))
    return [(-value, even) for value, even in reversed(rungs[1:])] + rungs


def midpoints(name: str) -> np.ndarray:
    """The points halfway between neighbours of the ladder, exact in float64."""
    values = [value for value, _ in ladder(name)]
    halves = [(low + high) / 2 for low, high in pairwise(values)]
    assert all(Fraction(float(half)) == half for half in halves)
    return np.array([float(half) for half in halves])


def nearest(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64 `x` without NaN, rounded: the value, and whether it overflows (then the value is that of the ladder's end)."""
    rungs, halves = ladder(name), midpoints(name)
    even = np.array([flag for _, flag in rungs])
    low = np.searchsorted(halves, x, side="left")  # midpoints below x, so the rung that x or a tie leaves downwards
    high = np.searchsorted(halves, x, side="right")  # the rung that a tie leaves upwards
    index = np.where((low == high) | even[low], low, high)
    values = np.array([float(value) for value, _ in rungs])
    return values[index], (index == 0) | (index == len(rungs) - 1)


def expected(name: str, x: Tensor, overflow: str = "saturate") -> Tensor:
    """What rounding `x` must give, in float64 on the CPU, by the four rules of kpt_lab.precision.formats."""
    wide = x.double().cpu().numpy()
    value, beyond = nearest(name, np.where(np.isnan(wide), 0.0, wide))
    numbers = [float(value) for value in table(name) if isinstance(value, Fraction)]
    ends = {"saturate": (min(numbers), max(numbers)), "nan": (math.nan, math.nan), "inf": (-math.inf, math.inf)}[overflow]
    value = np.where(beyond, np.where(wide < 0, *ends), value)
    value = np.where(np.isnan(wide), 0.0 if name == "int8" else math.nan, value)
    signed = name != "int8" and DEFINITIONS[name].signed_zero
    return torch.from_numpy(np.where(value == 0, np.copysign(0.0, wide) if signed else 0.0, value))


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, value, sign of zero, and in where NaN is."""
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and bool(torch.where(a.isnan(), True, (a == b) & (a.signbit() == b.signbit())).all())
    )


def beside(points: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The points in `dtype` with the two numbers of `dtype` next to each, and 0, tiny, huge and non-finite values."""
    x = torch.from_numpy(points).to(dtype)
    info = torch.finfo(dtype)
    rest = [0.0, info.smallest_normal, info.smallest_normal * info.eps, 1.0, info.max, math.inf]
    special = torch.tensor([sign * value for value in rest for sign in (1, -1)] + [math.nan], dtype=torch.float64).to(dtype)
    up, down = torch.full_like(x, math.inf), torch.full_like(x, -math.inf)
    return torch.cat([x, torch.nextafter(x, up), torch.nextafter(x, down), special])
