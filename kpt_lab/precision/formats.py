"""Number formats of 8 bits, exactly: rounding, codes and counts, equal on every device and every version of torch.

A value is rounded once, to the nearest number of the format, a tie to the one whose last mantissa bit is 0. Everything is
powers of two multiplied into float32 or float64, which is exact; torch's own cast is not used, because

- beyond the largest number, its float8_e4m3fn gives NaN in torch 2.11 and 448 in torch 2.13 (pytorch/pytorch#178817),
- it takes float64 by way of float32, so that a value just beside a tie is rounded twice.

Four rules hold for every format:

- **Overflow** is a rounded value beyond the largest: 464 lies halfway between 448 and 480 and still becomes 448 in e4m3fn.
  `overflow="saturate"` gives the largest number, "nan" gives NaN, "inf" gives infinity, each where the format has it.
- **Infinities** count as values too large: they become what an overflow becomes.
- **NaN** becomes the format's NaN, one code whatever its sign and payload; int8 has none and gives 0.
- **Zero** keeps its sign, also when a value is flushed to it; the FNUZ formats and int8 have one zero, without a sign.

After a saturating cast no NaN check sees what happened. `Format.counts` looks before the cast.

>>> x = torch.tensor([0.3, 464.0, 465.0, -math.inf])
>>> e4m3fn.round(x).tolist()
[0.3125, 448.0, 448.0, -448.0]
>>> e4m3fn.round(x, overflow="nan").tolist()
[0.3125, 448.0, nan, nan]
>>> e4m3fn.counts(x).as_dict()
{'elements': 4, 'overflowed': 1, 'flushed': 0, 'nonfinite': 1}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kpt_lab.core import dtype_name

Overflow = Literal["saturate", "nan", "inf"]

# what we compute in: the integer of that width, its mantissa bits, its bias, the mask of its exponent field
_WORK = {torch.float32: (torch.int32, 23, 127, 0xFF), torch.float64: (torch.int64, 52, 1023, 0x7FF)}
_ACCEPTED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2**exponent, exactly, for exponents (int32 or int64, as wide as `dtype`) of normal numbers of `dtype`."""
    _, mantissa_bits, bias, _ = _WORK[dtype]
    return ((exponent + bias) << mantissa_bits).view(dtype)


def _exponent(x: Tensor) -> Tensor:
    """The exponent of each element as an integer: floor(log2|x|) for normal numbers, lower than any for zero and subnormals."""
    integer, mantissa_bits, bias, mask = _WORK[x.dtype]
    return ((x.view(integer) >> mantissa_bits) & mask) - bias


def widened(x: Tensor, name: str = "x") -> Tensor:
    """`x` in the dtype that we compute in, without its gradient; TypeError for what is not a tensor of an accepted dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; accepted is a torch tensor")
    if x.dtype not in _ACCEPTED:
        raise TypeError(f"{name} holds {dtype_name(x.dtype)}; accepted are float64, float32, float16 and bfloat16")
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


class Fields(NamedTuple):
    """One code taken apart: its bit fields as numbers, what kind of number it is, and its value."""

    code: int
    sign: int
    exponent: int
    mantissa: int
    kind: Literal["zero", "subnormal", "normal", "integer", "infinity", "nan"]
    value: float


@dataclass(frozen=True)
class Counts:
    """What a cast does to a tensor: 0-d int64 tensors on its device, so that counting waits for nothing.

    overflowed: finite values that round beyond the largest number. flushed: values other than 0 that round to 0.
    nonfinite: NaN and infinities before the cast. The three never share an element. `+` adds two counts.
    """

    elements: int
    overflowed: Tensor
    flushed: Tensor
    nonfinite: Tensor

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.elements + other.elements,
            self.overflowed + other.overflowed,
            self.flushed + other.flushed,
            self.nonfinite + other.nonfinite,
        )

    def as_dict(self) -> dict[str, int]:
        """The four counts as Python integers; waits for the device."""
        overflowed, flushed, nonfinite = torch.stack((self.overflowed, self.flushed, self.nonfinite)).tolist()
        return {"elements": self.elements, "overflowed": overflowed, "flushed": flushed, "nonfinite": nonfinite}


@dataclass(frozen=True)
class Format:
    """A number format of 8 bits: sign, exponent and mantissa, or a two's complement integer (no exponent bits).

    finite: it has no infinities. fnuz: no infinities, no negative zero, and one NaN, at the code of negative zero.
    A value is mantissa * 2**(max(exponent, 1) - bias - mantissa_bits), the mantissa with its hidden bit where exponent > 0.
    int8 fits the same formula: an exponent of 0 everywhere and steps of 1.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    finite: bool
    fnuz: bool
    dtype: torch.dtype

    @property
    def is_integer(self) -> bool:
        return self.exponent_bits == 0

    @property
    def _top(self) -> int:
        """The code of the largest number. Infinity, where there is one, is the next code."""
        if self.finite:
            return 0x7F if self.fnuz or self.is_integer else 0x7E
        return (((1 << self.exponent_bits) - 1) << self.mantissa_bits) - 1

    @property
    def max(self) -> float:
        """The largest number."""
        exponent, mantissa = self._top >> self.mantissa_bits, self._top & ((1 << self.mantissa_bits) - 1)
        hidden = (exponent > 0) << self.mantissa_bits
        return math.ldexp(hidden + mantissa, max(exponent, 1) - self.bias - self.mantissa_bits)

    @property
    def min(self) -> float:
        """The lowest number: -max, except -128 for int8."""
        return -self.max - self.is_integer

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with all its mantissa bits; NaN for int8, which has no such distinction."""
        return math.nan if self.is_integer else math.ldexp(1.0, 1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number; it is also the distance between neighbours around zero."""
        return math.ldexp(1.0, 1 - self.bias - self.mantissa_bits)

    @property
    def unit_roundoff(self) -> float:
        """The largest relative error of rounding to a normal number; NaN for int8, whose error is half a step, absolutely."""
        return math.nan if self.is_integer else math.ldexp(1.0, -self.mantissa_bits - 1)

    @property
    def nan_code(self) -> int | None:
        """The code that NaN is given; None for int8. IEEE-like e5m2 decodes two more codes of each sign as NaN."""
        return None if self.is_integer else 0x80 if self.fnuz else 0x7F

    @property
    def overflows(self) -> tuple[Overflow, ...]:
        """What an overflow can become in this format."""
        if self.is_integer:
            return ("saturate",)
        return ("saturate", "nan") if self.finite else ("saturate", "nan", "inf")

    def round(self, x: Tensor, *, overflow: Overflow = "saturate") -> Tensor:
        """`x` rounded to numbers of this format, in the shape and dtype of `x`, which holds them all exactly.

        x: float64, float32, float16 or bfloat16, any shape and device. No gradient passes. Raises TypeError for another
        dtype, ValueError for an `overflow` that the format doesn't have.
        """
        return self._rounded(widened(x), overflow).to(x.dtype)

    def encode(self, x: Tensor, *, overflow: Overflow = "saturate") -> Tensor:
        """The codes of `x` rounded: uint8, the shape of `x`. Raises as `round` does."""
        value = self._rounded(widened(x), overflow)
        significand, exponent = self._nearest(torch.where(value.isfinite(), value, 0.0))
        # exact, as value is a number of the format; the code of the next binade follows by carrying into the exponent field
        magnitude = ((exponent - (1 - self.bias)) << self.mantissa_bits) + significand.abs().to(exponent.dtype)
        magnitude = torch.where(value.isinf(), self._top + 1, magnitude)
        negative = value.view(_WORK[value.dtype][0]) < 0  # compiled for a GPU, signbit of float64 misses -0.0
        code = torch.where(negative, 256 - magnitude if self.is_integer else 128 + magnitude, magnitude)
        code = code if self.nan_code is None else torch.where(value.isnan(), self.nan_code, code)
        return code.to(torch.uint8)

    def cast(self, x: Tensor, *, overflow: Overflow = "saturate") -> Tensor:
        """`x` rounded and stored in this format's torch dtype, the shape of `x`. Raises as `round` does."""
        return self.encode(x, overflow=overflow).view(self.dtype)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values of codes (uint8, or this format's torch dtype) in `dtype`, exactly; TypeError for other dtypes."""
        if not isinstance(codes, Tensor) or codes.dtype not in (torch.uint8, self.dtype):
            came = dtype_name(codes.dtype) if isinstance(codes, Tensor) else f"a {type(codes).__name__}"
            raise TypeError(f"codes are {came}; accepted for {self.name} are tensors of uint8 or {dtype_name(self.dtype)}")
        if dtype not in _ACCEPTED:
            raise TypeError(f"dtype is {dtype_name(dtype)}; accepted are float64, float32, float16 and bfloat16")
        if self.is_integer:
            return codes.view(torch.int8).to(dtype)
        code = codes.view(torch.uint8).to(torch.int32)
        exponent = (code >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        significand = (code & ((1 << self.mantissa_bits) - 1)) + ((exponent > 0).int() << self.mantissa_bits)
        value = significand.float() * _power_of_two(exponent.clamp(min=1) - self.bias - self.mantissa_bits, torch.float32)
        last = self._top + (not self.finite)  # the last magnitude that is no NaN
        value = value if self.finite else torch.where((code & 0x7F) == last, math.inf, value)
        value = value * torch.where(code >= 0x80, -1.0, 1.0)  # compiled for a GPU, -value is 0 - value and loses -0.0
        is_nan = (code == 0x80) if self.fnuz else (code & 0x7F) > last
        return torch.where(is_nan, math.nan, value).to(dtype)

    def values(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """The value of every code, 0 to 255, shape (256,)."""
        return self.decode(torch.arange(256, device=device).to(torch.uint8), dtype)

    def fields(self, code: int) -> Fields:
        """One code's sign, exponent and mantissa fields, kind and value; ValueError unless it lies in 0 to 255."""
        if not isinstance(code, int) or not 0 <= code < 256:
            raise ValueError(f"code is {code!r}; accepted are integers from 0 to 255")
        value = self.decode(torch.tensor(code, dtype=torch.uint8)).item()
        exponent = (code >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        mantissa = code & ((1 << self.mantissa_bits) - 1)
        if not math.isfinite(value):
            return Fields(code, code >> 7, exponent, mantissa, "nan" if math.isnan(value) else "infinity", value)
        kind = "zero" if value == 0 else "integer" if self.is_integer else "normal" if exponent else "subnormal"
        return Fields(code, code >> 7, exponent, mantissa, kind, value)  # type: ignore[arg-type]

    def counts(self, x: Tensor, *, scaled: Tensor | None = None) -> Counts:
        """How many elements of `x` overflow, are flushed to zero, or are not finite, before they are cast.

        scaled: what is really cast, where that is `x` times a factor: an overflow or a zero that the product itself makes
        is counted too. Raises TypeError as `round` does, ValueError where the shapes differ.
        """
        before = widened(x)
        work = before if scaled is None else widened(scaled, "scaled")
        if work.shape != before.shape:
            raise ValueError(f"scaled has the shape {tuple(work.shape)}, x {tuple(before.shape)}; accepted are equal shapes")
        finite, value = before.isfinite(), self._unbounded(work)
        beyond = (value > self.max) | (value < self.min)
        flushed = (value == 0) & (before != 0)
        return Counts(before.numel(), (finite & beyond).sum(), (finite & flushed).sum(), (~finite).sum())

    def _nearest(self, work: Tensor) -> tuple[Tensor, Tensor]:
        """Whole significands (in the dtype of `work`) and exponents: the value is significand * 2**(exponent - mantissa_bits)."""
        exponent = _exponent(work).clamp(min=1 - self.bias)
        # multiplied, never divided: compiled for a GPU, a float32 division is not correctly rounded
        return torch.round(work * _power_of_two(self.mantissa_bits - exponent, work.dtype)), exponent

    def _unbounded(self, work: Tensor) -> Tensor:
        """`work` rounded as if exponents went on for ever; NaN and infinities stay."""
        significand, exponent = self._nearest(work)
        return significand * _power_of_two(exponent - self.mantissa_bits, work.dtype)

    def _rounded(self, work: Tensor, overflow: Overflow) -> Tensor:
        if overflow not in self.overflows:
            raise ValueError(f"overflow is {overflow!r}; accepted for {self.name} are {', '.join(map(repr, self.overflows))}")
        value = self._unbounded(work)
        high = {"saturate": self.max, "nan": math.nan, "inf": math.inf}[overflow]
        low = {"saturate": self.min, "nan": math.nan, "inf": -math.inf}[overflow]
        # not clamp: a compiler may turn it into min and max that propagate NaN, which miscompile beside a store of 1 byte
        # (triton-lang/triton#11111)
        value = torch.where(value > self.max, high, torch.where(value < self.min, low, value))
        if self.fnuz or self.is_integer:
            value = torch.where(value == 0, 0.0, value)
        return torch.where(value.isnan(), 0.0, value) if self.is_integer else value


e4m3fn = Format("e4m3fn", 4, 3, bias=7, finite=True, fnuz=False, dtype=torch.float8_e4m3fn)
e5m2 = Format("e5m2", 5, 2, bias=15, finite=False, fnuz=False, dtype=torch.float8_e5m2)
e4m3fnuz = Format("e4m3fnuz", 4, 3, bias=8, finite=True, fnuz=True, dtype=torch.float8_e4m3fnuz)
e5m2fnuz = Format("e5m2fnuz", 5, 2, bias=16, finite=True, fnuz=True, dtype=torch.float8_e5m2fnuz)
int8 = Format("int8", 0, 7, bias=-6, finite=True, fnuz=False, dtype=torch.int8)

formats = (e4m3fn, e5m2, e4m3fnuz, e5m2fnuz, int8)
"""Every format: e4m3fn and e5m2 (arXiv 2209.05433), their FNUZ forms (arXiv 2206.02915; AMD MI300), and two's complement."""
