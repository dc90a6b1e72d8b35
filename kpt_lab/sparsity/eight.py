"""Products in float8_e4m3fn whose two scales are reciprocal, so that the result needs none: scales, casts and the definition.

x W^T = (x / s) (s W)^T        s a power of two, known beforehand
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import kpt_lab.precision.casts  # noqa: F401  # registers kpt_lab::fp8_cast
from kpt_lab.core import Unsupported
from kpt_lab.precision.formats import e4m3fn

SMALLEST = 2.0**-5  # size of codes: of normal numbers that large, a third lies below the format's smallest normal one


def balanced_scale(weight: Tensor, input_rms: float = 1.0) -> float:
    """The power of two s that makes x / s and w * s about equally large, for inputs of that root mean square.

    It is never so large that a weight leaves the format; 1 for a weight of zeros. Unsupported where inputs and weights are so
    small together that their codes would be rounded coarsely.
    """
    nonzero = weight[weight != 0].float()
    if not nonzero.numel() or not input_rms > 0:
        return 1.0
    rms = float(nonzero.square().mean().sqrt())
    if math.sqrt(input_rms * rms) < SMALLEST:
        raise Unsupported(
            f"inputs of size {input_rms:.2g} and weights of size {rms:.2g} are too small together for 8 bits without a scale"
        )
    wanted = round(math.log2(input_rms / rms) / 2)
    return 2.0 ** min(wanted, math.floor(math.log2(e4m3fn.max / float(nonzero.abs().max()))))


def checked_scale(weight: Tensor, scale: float) -> float:
    """The scale itself; ValueError unless it is a power of two with which no weight leaves the format."""
    if not (isinstance(scale, int | float) and 0 < scale < math.inf and math.frexp(scale)[0] == 0.5):
        raise ValueError(f"input_scale is {scale!r}; a power of two is accepted")
    largest = float(weight.abs().max()) * scale
    if largest > e4m3fn.max:
        raise ValueError(f"input_scale is {scale}, with which the largest weight becomes {largest:.4g}, beyond {e4m3fn.max:g}")
    return float(scale)


def static_cast(rows: Tensor, largest: Tensor) -> Tensor:
    """x on a GPU in float8_e4m3fn so that `largest`, () float32, becomes the format's largest: one read, one write."""
    return torch.ops.kpt_lab.fp8_cast(rows.contiguous(), largest, largest, "rows", "e4m3fn", False)[0]


def scaled_mm(
    codes: Tensor, weight: Tensor, x_scale: Tensor, w_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The dense product in 8 bits on a GPU: codes (tokens, in) and weight (out, in) with a scale () each."""
    y = torch._scaled_mm(codes, weight.t(), scale_a=x_scale, scale_b=w_scale, out_dtype=dtype, use_fast_accum=True)
    return y if bias is None else y + bias


def fp8_product(codes: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The definition in 8 bits: codes (tokens, in) and weight (out, in), float8_e4m3fn, multiplied widely.

    Such numbers are exact in bfloat16, in which a GPU multiplies them, and their products in the float32 in which it adds.
    """
    wide = torch.bfloat16 if codes.is_cuda else torch.float32
    y = (codes.to(wide) @ weight.to(wide).t()).float()
    return (y if bias is None else y + bias.float()).to(dtype)
