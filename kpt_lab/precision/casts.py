"""One read of a matrix, two casts written: to 8 bits as it lies, and transposed, as a scaled matmul on Hopper wants its operands.

The tensor cores take 8-bit operands only with the summed dimension innermost. A linear layer's three products sum over three
different dimensions, so its input, its weight and its output gradient are each needed in both orders. Cast and transposed one
after the other that moves 2 + 1 and 1 + 1 bytes an element; here it is 2 + 1 + 1 (and 2 before, for the largest magnitude).

The definition is `scaling.quantise`, with one difference: where a tensor (or a row) holds a value that is not finite, its
scale is NaN, and so is all that is computed from it. An infinity is never quietly clipped to the format's largest number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kpt_lab import kernels
from kpt_lab.core import Unsupported, dtype_name
from kpt_lab.kernels import jit, tl
from kpt_lab.precision.formats import Format, e4m3fn, e5m2
from kpt_lab.precision.scaling import EPS

FORMATS: dict[str, Format] = {"e4m3fn": e4m3fn, "e5m2": e5m2}
ALIGN = 16  # elements: the operands of a scaled matmul are whole multiples of it along the summed dimension
TILE = (128, 64)
WARPS = 4


class Cast(NamedTuple):
    """A matrix (rows, cols) in 8 bits, as it lies and transposed, each with the scale to multiply by; an empty tensor where not asked for.

    rows: (rows, cols), columns: (cols, rows rounded up to ALIGN, filled with zeros). The scales are of shape () where the side is
    scaled as a whole, else (rows, 1) and (cols, 1). counts: int32 (2,), values that are not finite and values flushed to zero
    (in `rows` where it was asked for, else in `columns`); empty unless counted.
    """

    rows: Tensor
    columns: Tensor
    rows_scale: Tensor
    columns_scale: Tensor
    counts: Tensor


@jit
def _scale(amax, MAX: tl.constexpr, EPSILON: tl.constexpr):
    """`scaling.scale_of` of a largest magnitude; NaN where that is not finite (NaN is not below EPSILON, and stays)."""
    amax = amax.to(tl.float64)
    scale = (tl.where(amax < EPSILON, EPSILON, amax) / MAX).to(tl.float32)
    return tl.where(amax == float("inf"), float("nan"), scale)


@jit
def _inverse(scale):
    return (1.0 / scale.to(tl.float64)).to(tl.float32)


@jit
def _coded(value, TYPE: tl.constexpr, MANTISSA: tl.constexpr, LOWEST: tl.constexpr):
    """The format's nearest number, ties to even, for Triton's interpreter: its own cast forgets carries and some subnormals."""
    exponent = ((value.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
    exponent = tl.where(exponent < LOWEST, LOWEST, exponent)
    inverse = ((MANTISSA - exponent + 127) << 23).to(tl.float32, bitcast=True)
    significand = (tl.abs(value) * inverse + 12582912.0) - 12582912.0  # 1.5 * 2**23: float32 has no bits left below 1
    code = ((exponent - LOWEST) << MANTISSA) + tl.where(value != value, 0.0, significand).to(tl.int32)
    code = tl.where(value != value, 0x7F, code | ((value.to(tl.int32, bitcast=True) >> 24) & 0x80))
    return code.to(tl.uint8).to(TYPE, bitcast=True)


@jit
def _cast_kernel(
    x, rows_amax, columns_amax, rows, columns, rows_scale, columns_scale, counts, n_rows, n_cols, padded, stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, WANT_ROWS: tl.constexpr, WANT_COLUMNS: tl.constexpr,
    ROW_SCALES: tl.constexpr, COLUMN_SCALES: tl.constexpr, COUNT: tl.constexpr,
    MAX: tl.constexpr, SMALLEST: tl.constexpr, EPSILON: tl.constexpr,
    MANTISSA: tl.constexpr, LOWEST: tl.constexpr, CODED: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(n_cols, BLOCK_COLS)
    program = tl.program_id(0)
    i = (program // blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    j = (program % blocks) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    inside = (i < n_rows)[:, None] & (j < n_cols)[None, :]
    value = tl.load(x + i[:, None] * stride + j[None, :], mask=inside, other=0.0).to(tl.float32)
    if WANT_ROWS:
        if ROW_SCALES:
            scale = _scale(tl.load(rows_amax + i, mask=i < n_rows, other=0.0), MAX, EPSILON)
            tl.store(rows_scale + i, scale, mask=(i < n_rows) & (program % blocks == 0))
            scaled = value * _inverse(scale)[:, None]
        else:
            scale = _scale(tl.load(rows_amax), MAX, EPSILON)
            if program == 0:
                tl.store(rows_scale, scale)
            scaled = value * _inverse(scale)
        # where, not clamp: min and max that propagate NaN miscompile beside a transposed store of 1 byte (triton-lang/triton#11111)
        held = tl.where(scaled > MAX, MAX, tl.where(scaled < -MAX, -MAX, scaled))
        tl.store(
            rows + i[:, None] * n_cols + j[None, :],
            _coded(held, rows.dtype.element_ty, MANTISSA, LOWEST) if CODED else held.to(rows.dtype.element_ty),
            mask=inside,
        )
        if COUNT:
            flushed = (value != 0.0) & (tl.abs(scaled) <= SMALLEST)
            tl.store(counts + 2 * program + 1, tl.sum(tl.sum(flushed.to(tl.int32), 1), 0))
    if WANT_COLUMNS:
        if COLUMN_SCALES:
            scale = _scale(tl.load(columns_amax + j, mask=j < n_cols, other=0.0), MAX, EPSILON)
            tl.store(columns_scale + j, scale, mask=(j < n_cols) & (program < blocks))
            scaled = value * _inverse(scale)[None, :]
        else:
            scale = _scale(tl.load(columns_amax), MAX, EPSILON)
            if program == 0:
                tl.store(columns_scale, scale)
            scaled = value * _inverse(scale)
        held = tl.where(scaled > MAX, MAX, tl.where(scaled < -MAX, -MAX, scaled))
        turned = tl.trans(
            _coded(held, columns.dtype.element_ty, MANTISSA, LOWEST) if CODED else held.to(columns.dtype.element_ty)
        )
        tl.store(
            columns + j.to(tl.int64)[:, None] * padded + i[None, :], turned, mask=(j < n_cols)[:, None] & (i < padded)[None, :]
        )
        if COUNT and not WANT_ROWS:
            flushed = (value != 0.0) & (tl.abs(scaled) <= SMALLEST)
            tl.store(counts + 2 * program + 1, tl.sum(tl.sum(flushed.to(tl.int32), 1), 0))
    if COUNT:
        # only a scale that is not a number says that something here is not finite; looking costs as much as casting
        vector: tl.constexpr = COLUMN_SCALES if WANT_COLUMNS else ROW_SCALES  # of the scale that came last
        spoiled = tl.sum((scale != scale).to(tl.int32), 0) if vector else (scale != scale).to(tl.int32)
        if spoiled > 0:
            broken = inside & ((value != value) | (tl.abs(value) == float("inf")))
            tl.store(counts + 2 * program, tl.sum(tl.sum(broken.to(tl.int32), 1), 0))
        else:
            tl.store(counts + 2 * program, 0)


def largest(x: Tensor, dim: int | None = None) -> Tensor:
    """The largest magnitude in float32 of a matrix, shape (), or along `dim`, that dimension gone; NaN where x holds NaN."""
    return torch.linalg.vector_norm(x, float("inf"), dim=dim, dtype=torch.float32)


def run_cast(x: Tensor, rows_amax: Tensor, columns_amax: Tensor, sides: str, format: str, counted: bool) -> Cast:
    """Cast a matrix with unit stride along its rows; the two largest magnitudes as `largest` gives them, of the sides asked for.

    sides: "rows", "columns" or "both". Raises Unsupported where the kernel can't run.
    """
    kernels.check("fp8 cast", x)
    n_rows, n_cols = x.shape
    if x.stride(1) != 1:
        raise Unsupported(f"fp8 cast: x has the strides {x.stride()}; the last must be 1")
    padded = -(-n_rows // ALIGN) * ALIGN
    kind, new = FORMATS[format], x.new_empty
    want_rows, want_columns = sides in ("rows", "both"), sides in ("columns", "both")
    programs = -(-padded // TILE[0]) * -(-n_cols // TILE[1])
    out = Cast(
        new((n_rows, n_cols) if want_rows else (0,), dtype=kind.dtype),
        new((n_cols, padded) if want_columns else (0,), dtype=kind.dtype),
        new(_scale_shape(want_rows, rows_amax, n_rows), dtype=torch.float32),
        new(_scale_shape(want_columns, columns_amax, n_cols), dtype=torch.float32),
        x.new_empty((programs, 2) if counted else (0,), dtype=torch.int32),
    )
    _cast_kernel[(programs,)](
        x, rows_amax, columns_amax, *out, n_rows, n_cols, padded, x.stride(0), *TILE, want_rows, want_columns,
        rows_amax.dim() > 0, columns_amax.dim() > 0, counted, kind.max, smallest(kind) / 2, EPS,
        kind.mantissa_bits, 1 - kind.bias, kernels.INTERPRETED, num_warps=WARPS,
    )  # fmt: skip
    # each program counts for itself: additions to one place by all of them took as long as the casts
    return out._replace(counts=out.counts.sum(0, dtype=torch.int32)) if counted else out


def smallest(format: Format) -> float:
    """The smallest positive number of a format."""
    return 2.0 ** (1 - format.bias - format.mantissa_bits)


def _scale_shape(wanted: bool, amax: Tensor, n: int) -> tuple[int, ...]:
    return (0,) if not wanted else (n, 1) if amax.dim() else ()


# An operator of its own, so that torch.compile takes it whole, orders it with the rest, and drops a second cast of the same tensor.
_library = torch.library.Library("kpt_lab", "FRAGMENT")
_library.define(
    "fp8_cast(Tensor x, Tensor rows_amax, Tensor columns_amax, str sides, str format, bool counted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _on_cuda(x: Tensor, rows_amax: Tensor, columns_amax: Tensor, sides: str, format: str, counted: bool) -> Any:
    return tuple(run_cast(x, rows_amax, columns_amax, sides, format, counted))


def _fake(x: Tensor, rows_amax: Tensor, columns_amax: Tensor, sides: str, format: str, counted: bool) -> Any:
    n_rows, n_cols = x.shape
    want_rows, want_columns = sides in ("rows", "both"), sides in ("columns", "both")
    dtype = FORMATS[format].dtype
    return (
        x.new_empty((n_rows, n_cols) if want_rows else (0,), dtype=dtype),
        x.new_empty((n_cols, -(-n_rows // ALIGN) * ALIGN) if want_columns else (0,), dtype=dtype),
        x.new_empty(_scale_shape(want_rows, rows_amax, n_rows), dtype=torch.float32),
        x.new_empty(_scale_shape(want_columns, columns_amax, n_cols), dtype=torch.float32),
        x.new_empty(2 if counted else 0, dtype=torch.int32),
    )


_library.impl("fp8_cast", _on_cuda, "CUDA")
torch.library.register_fake("kpt_lab::fp8_cast", _fake, lib=_library)


def cast(x: Tensor, rows: str, columns: str, format: str, counted: bool = False) -> Cast:
    """A CUDA matrix with unit stride along its rows, cast for the two sides: each "tensorwise", "rowwise" or "" for none.

    format: "e4m3fn" or "e5m2". Raises Unsupported for a dtype that the kernel doesn't take.
    """
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise Unsupported(f"fp8 cast: dtype is {dtype_name(x.dtype)}; accepted are bfloat16, float16 and float32")
    whole = largest(x) if "tensorwise" in (rows, columns) else x.new_empty(0, dtype=torch.float32)
    rows_amax = largest(x, 1) if rows == "rowwise" else whole
    columns_amax = largest(x, 0) if columns == "rowwise" else whole
    sides = "both" if rows and columns else "rows" if rows else "columns"
    return Cast(*torch.ops.kpt_lab.fp8_cast(x, rows_amax, columns_amax, sides, format, counted))
