"""Dynamic scales: a tensor, or each of its rows, brought to the range of a format before it is rounded.

The definition, for an accepted tensor x (float32, float16 and bfloat16 are computed in float32, float64 in float64):

    amax     the largest finite |x| of the tensor ("tensorwise") or of each slice along `dim` ("rowwise")
    scale    max(amax, eps) / format.max, divided in float64, then rounded to float32 (float64 for a float64 x);
             with `powers_of_two` the next power of two that is not smaller, so that scaling itself rounds nothing
    inverse  1 / scale, divided in float64 and rounded likewise
    data     format.cast(x * inverse)
    dequantised  value of data * scale

So `scale` is what a scaled matmul multiplies by. A slice of zeros has the scale of `eps` and stays zeros. Values that are
not finite choose no scale: the others keep their accuracy, an infinity overflows and NaN becomes NaN. A scale that is
passed in (an older one, or another rank's) can be too small or too large: `Quantised.counts` tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kpt_lab.core import dtype_name
from kpt_lab.precision.formats import Counts, Format, Overflow, widened

Scaling = Literal["tensorwise", "rowwise"]

EPS = 1e-12
"""The smallest amax that a scale is made for, as in torchao's float8: keeps scales, and the product of two, normal in float32."""


@dataclass(frozen=True)
class Quantised:
    """A tensor in a format's torch dtype with the scale to multiply by, and what the cast did to it."""

    data: Tensor
    scale: Tensor
    format: Format
    counts: Counts

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values times their scale in `dtype`, the shape of `data`."""
        return dequantise(self.data, self.scale, self.format, dtype)


def scale_of(
    x: Tensor,
    format: Format,
    scaling: Scaling = "tensorwise",
    *,
    dim: int = -1,
    powers_of_two: bool = False,
    eps: float = EPS,
) -> Tensor:
    """The scale that brings `x` to the range of `format`: 0-d if tensorwise; if rowwise, the shape of `x` with 1 at `dim`.

    dim: for a matmul's operand, the dimension that is summed over. eps: a positive amax. Raises TypeError for a tensor of
    another dtype than `Format.round` takes, ValueError for an empty tensor, an unknown scaling, or a `dim` or eps out of range.
    """
    work = widened(x)
    if scaling not in ("tensorwise", "rowwise"):
        raise ValueError(f"scaling is {scaling!r}; accepted are 'tensorwise' and 'rowwise'")
    if not 1e-30 <= eps < math.inf:  # lower, and the inverse scale would leave float32
        raise ValueError(f"eps is {eps!r}; accepted are finite numbers from 1e-30 up")
    if work.numel() == 0:
        raise ValueError(f"x has the shape {tuple(work.shape)}; accepted are tensors with at least one element")
    if scaling == "rowwise" and not -work.ndim <= dim < work.ndim:
        raise ValueError(f"dim is {dim!r} for a tensor of {work.ndim} dimensions; accepted are dimensions that it has")
    magnitude = torch.where(work.isfinite(), work, 0.0).abs()
    amax = magnitude.amax() if scaling == "tensorwise" else magnitude.amax(dim, keepdim=True)
    scale = amax.double().clamp(min=eps) / format.max
    return (_next_power_of_two(scale) if powers_of_two else scale).to(work.dtype)


def quantise(
    x: Tensor,
    format: Format,
    scaling: Scaling = "tensorwise",
    *,
    dim: int = -1,
    powers_of_two: bool = False,
    eps: float = EPS,
    scale: Tensor | None = None,
    overflow: Overflow = "saturate",
) -> Quantised:
    """`x` divided by its scale and rounded to `format`, in the shape of `x`; no gradient passes.

    scale: one to use instead of that of `scale_of`, positive, of a shape that broadcasts to that of `x`. Raises as `scale_of`
    and `Format.cast` do; a `scale` that doesn't fit raises ValueError.
    """
    work = widened(x)
    if scale is None:
        scale = scale_of(x, format, scaling, dim=dim, powers_of_two=powers_of_two, eps=eps)
    elif not isinstance(scale, Tensor) or scale.dtype != work.dtype or not _fits(scale, work):
        is_tensor = isinstance(scale, Tensor)
        came = f"{dtype_name(scale.dtype)} of the shape {tuple(scale.shape)}" if is_tensor else f"a {type(scale).__name__}"
        wanted = f"a {dtype_name(work.dtype)} tensor that broadcasts to {tuple(work.shape)}"
        raise ValueError(f"scale is {came}; accepted is {wanted}")
    scaled = work * (1.0 / scale.double()).to(work.dtype)
    return Quantised(format.cast(scaled, overflow=overflow), scale, format, format.counts(work, scaled=scaled))


def dequantise(data: Tensor, scale: Tensor, format: Format, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of `data` (codes of `format`) times `scale`, computed in the wider dtype of `scale` and `dtype`, given as `dtype`."""
    wide = torch.promote_types(scale.dtype, dtype)
    return (format.decode(data, wide) * scale.to(wide)).to(dtype)


def sqnr(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantisation noise in dB, 10 log10(sum reference**2 / sum (reference - approximation)**2), in float64.

    Infinite where the two are equal, NaN where either holds a value that is not finite. Raises ValueError where the shapes differ.
    """
    if reference.shape != approximation.shape:
        raise ValueError(
            f"approximation has the shape {tuple(approximation.shape)}, reference {tuple(reference.shape)}; accepted are equal shapes"
        )
    exact, close = reference.detach().double(), approximation.detach().double()
    largest = float(torch.maximum(exact.abs(), close.abs()).amax()) if exact.numel() else 0.0
    if not math.isfinite(largest):
        return math.nan
    # a common power of two changes no ratio, and keeps the squares of tiny and huge values inside float64
    unit = 2.0 ** min(-math.frexp(largest)[1], 1000)
    signal = float((exact * unit).square().sum())
    noise = float((exact * unit - close * unit).square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def cast_sqnr(
    x: Tensor, format: Format, scaling: Scaling = "tensorwise", *, dim: int = -1, powers_of_two: bool = False
) -> float:
    """The SQNR in dB of `x` quantised and dequantised in float64, against `x`. Raises as `quantise` does."""
    return sqnr(x, quantise(x, format, scaling, dim=dim, powers_of_two=powers_of_two).dequantise(torch.float64))


def _fits(scale: Tensor, x: Tensor) -> bool:
    """Whether `scale` broadcasts to the shape of `x` without enlarging it."""
    padded = (1,) * (x.ndim - scale.ndim) + tuple(scale.shape)
    return len(padded) == x.ndim and all(size in (1, whole) for size, whole in zip(padded, x.shape, strict=True))


def _next_power_of_two(x: Tensor) -> Tensor:
    """The smallest power of two that is at least `x`, for positive normal float64: any mantissa bit carries into the exponent."""
    mantissa = (1 << 52) - 1
    return ((x.view(torch.int64) + mantissa) & ~mantissa).view(torch.float64)
