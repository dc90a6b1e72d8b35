"""Softmax over the last dimension: one read and one write per element, the row held in registers.

What it costs: softmax does about 5 FLOPs an element and moves 4 bytes (bfloat16), so memory sets its time. Eager PyTorch and
torch.compile read long rows two or three times. Rows of up to 128 KiB stay in one program's registers here, in their own
16-bit form where needed; longer ones are read twice, the second time from cache where it still holds them. On Hopper and later
each program asks L2 for a row that another will need soon, so that memory never waits for the arithmetic.
Where it loses: fewer rows than the device has multiprocessors (a row is never split), and sizes whose time is the launch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from kpt_lab import baselines, kernels
from kpt_lab.core import Cost, Problem, Recording, Technique, Workload, to_dtype
from kpt_lab.kernels import jit, tl

HELD = 128 * 1024  # bytes of row that one program keeps: half of a multiprocessor's 256 KiB of registers (H100, A100)
LONG_BLOCK = 8192  # columns at a time where a row is read twice
AHEAD = 16 * 1024  # bytes per multiprocessor that a program runs ahead of itself when it prefetches: loose fit, on an H100
PREFETCHED = range(2 * 1024, HELD + 1)  # bytes of row for which it was tried there


def softmax(x: torch.Tensor) -> torch.Tensor:
    """The specification: exp(x) / sum(exp(x)) over the last dimension; any shape, same dtype out."""
    return torch.softmax(x, dim=-1)


# ---- workloads


def _make_forward(*, device: str, dtype: torch.dtype | str, seed: int, rows: int, cols: int) -> Problem:
    """Three sets of one (rows, cols) tensor of standard normal numbers."""
    return Problem(softmax, kernels.normal(3, 1, rows, cols, device=device, dtype=dtype, seed=seed))


def _make_backward(*, device: str, dtype: torch.dtype | str, seed: int, rows: int, cols: int) -> Problem:
    """Three sets of an input and an upstream gradient, both (rows, cols); the step returns (output, input gradient)."""
    inputs = kernels.normal(3, 2, rows, cols, device=device, dtype=dtype, seed=seed)
    return Problem(softmax, inputs, drive=kernels.forward_and_backward)


def _cost_forward(*, dtype: torch.dtype | str, rows: int, cols: int) -> Cost:
    """x read once, y written once; 5 FLOPs an element (maximum, subtract, exponential, sum, scale)."""
    n = rows * cols
    return Cost({kernels.arithmetic(dtype): 5 * n}, 2 * n * to_dtype(dtype).itemsize)


def _cost_backward(*, dtype: torch.dtype | str, rows: int, cols: int) -> Cost:
    """x and dy read once, y and dx written once; 5 + 4 FLOPs an element.

    Two separate calls, as autograd makes them, read y back as well and so move 5/4 of this.
    """
    n = rows * cols
    return Cost({kernels.arithmetic(dtype): 9 * n}, 4 * n * to_dtype(dtype).itemsize)


forward = Workload("softmax.forward", _make_forward, cost=_cost_forward, dtypes=kernels.TIMED)
backward = Workload("softmax.backward", _make_backward, cost=_cost_backward, dtypes=kernels.TIMED)


# ---- kernels
#
# Counts and strides come in units of VEC elements, so that the compiler sees by what they divide. LOG2_E: exp(x) is
# computed as exp2(x * log2(e)), after the subtraction, since folding the factor into the maximum would round large rows.


@jit
def _forget(x, PACKED: tl.constexpr):
    # An opaque move: the float32 form of x can't be kept across it, so a row waits in registers in its 16-bit form
    if PACKED:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    return x


@jit
def _exp(x):
    return tl.exp2(x * 1.4426950408889634)


@jit
def _prefetch(pointer, size):
    # One thread asks for `size` bytes to come into L2. Both must be multiples of 16; nothing waits for it.
    tl.inline_asm_elementwise(
        """{
        .reg .pred first;
        .reg .u32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        @first cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r", [pointer.to(tl.int64), size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@jit
def _forward_rows(
    x_ptr, y_ptr, rows, groups, stride, ahead,
    VEC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr, PACKED: tl.constexpr,
    PREFETCH: tl.constexpr,
):  # fmt: skip
    """ROWS whole rows a program, held in registers between the one read and the one write.

    With PREFETCH (and ROWS 1) each program first asks for the row `ahead` of its own, so that memory has reads to do while
    the programs that are resident reduce and write.
    """
    if PREFETCH:
        later = tl.program_id(0).to(tl.int64) + ahead
        if later < rows:
            _prefetch(x_ptr + later * stride * VEC, groups * (VEC * x_ptr.dtype.element_ty.primitive_bitwidth // 8))
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < groups * VEC)
    x = tl.load(x_ptr + row * stride * VEC + column, mask=mask, other=-float("inf"))
    largest = tl.max(x.to(WIDE), axis=1, keep_dims=True)
    if PACKED:  # two exponentials an element cost less here than holding a row of float32
        x = _forget(x, PACKED)
        total = tl.sum(_exp(x.to(WIDE) - largest), axis=1, keep_dims=True)
        x = _forget(x, PACKED)
        y = _exp(x.to(WIDE) - largest) * (1.0 / total)
    else:
        y = _exp(x.to(WIDE) - largest)
        y = y * (1.0 / tl.sum(y, axis=1, keep_dims=True))
    tl.store(y_ptr + row * groups * VEC + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _forward_long(x_ptr, y_ptr, groups, stride, VEC: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """One row a program in two passes: a running maximum and sum in every lane, then the row again, backwards."""
    row = tl.program_id(0).to(tl.int64)
    cols = groups * VEC
    x_ptr += row * stride * VEC
    y_ptr += row * groups * VEC
    column = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], -float("inf"), WIDE)
    total = tl.zeros([BLOCK], WIDE)
    for start in range(0, cols, BLOCK):
        mask = start + column < cols
        x = tl.load(x_ptr + start + column, mask=mask, other=-float("inf"), eviction_policy="evict_last").to(WIDE)
        gap = tl.where(x == largest, 0.0, x - largest)  # two equal infinities have no gap
        shrink = _exp(-tl.abs(gap))
        total = tl.where(gap > 0, total * shrink + 1.0, total + shrink)
        largest = tl.maximum(largest, x)
    peak = tl.max(largest, axis=0)
    scale = 1.0 / tl.sum(total * _exp(largest - peak), axis=0)
    for back in range(0, cols, BLOCK):  # what was read last is the likeliest to be in cache
        start = (cols - 1) // BLOCK * BLOCK - back
        mask = start + column < cols
        x = tl.load(x_ptr + start + column, mask=mask, other=-float("inf"), eviction_policy="evict_first").to(WIDE)
        tl.store(y_ptr + start + column, (_exp(x - peak) * scale).to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _backward_rows(
    dy_ptr, y_ptr, dx_ptr, rows, groups, dy_stride, y_stride,
    VEC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dx = y * (dy - sum(y * dy)) for ROWS whole rows a program, each element read once."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < groups * VEC)
    dy = tl.load(dy_ptr + row * dy_stride * VEC + column, mask=mask, other=0.0, eviction_policy="evict_first")
    y = tl.load(y_ptr + row * y_stride * VEC + column, mask=mask, other=0.0, eviction_policy="evict_first")
    dot = tl.sum(y.to(WIDE) * dy.to(WIDE), axis=1, keep_dims=True)
    dy, y = _forget(dy, PACKED), _forget(y, PACKED)
    dx = y.to(WIDE) * (dy.to(WIDE) - dot)
    tl.store(dx_ptr + row * groups * VEC + column, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@jit
def _backward_long(
    dy_ptr, y_ptr, dx_ptr, groups, dy_stride, y_stride, VEC: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """One row a program in two passes over dy and y, the second backwards."""
    row = tl.program_id(0).to(tl.int64)
    cols = groups * VEC
    dy_ptr += row * dy_stride * VEC
    y_ptr += row * y_stride * VEC
    dx_ptr += row * groups * VEC
    column = tl.arange(0, BLOCK)
    dots = tl.zeros([BLOCK], WIDE)
    for start in range(0, cols, BLOCK):
        mask = start + column < cols
        dy = tl.load(dy_ptr + start + column, mask=mask, other=0.0, eviction_policy="evict_last").to(WIDE)
        dots += dy * tl.load(y_ptr + start + column, mask=mask, other=0.0, eviction_policy="evict_last").to(WIDE)
    dot = tl.sum(dots, axis=0)
    for back in range(0, cols, BLOCK):
        start = (cols - 1) // BLOCK * BLOCK - back
        mask = start + column < cols
        dy = tl.load(dy_ptr + start + column, mask=mask, other=0.0, eviction_policy="evict_first").to(WIDE)
        y = tl.load(y_ptr + start + column, mask=mask, other=0.0, eviction_policy="evict_first").to(WIDE)
        tl.store(dx_ptr + start + column, (y * (dy - dot)).to(dx_ptr.dtype.element_ty), mask=mask)


# ---- launches


class Launch(NamedTuple):
    """How a kernel is launched: `block` columns at a time, `rows` rows a program, `warps`; `packed` and `long` choose it."""

    block: int
    rows: int
    warps: int
    packed: bool
    long: bool


def launch_for(cols: int, itemsize: int, tensors: int = 1) -> Launch:
    """The launch for rows of `cols` elements of `itemsize` bytes, `tensors` of them held at once (2 in the backward).

    A program keeps up to 32 registers a thread of row: 128 KiB over 1024 threads. Above that a row is read twice.
    """
    block = 1 << max(cols - 1, 0).bit_length()
    held = block * itemsize * tensors
    if held > HELD:
        return Launch(LONG_BLOCK, 1, 16, packed=False, long=True)
    if held <= 2048:  # one warp a program; several rows where a row would leave lanes idle
        return Launch(block, max(1, 512 // block), 1, packed=False, long=False)
    warps = held // 2048 if held <= 8192 else 16 if held <= 65536 else 32
    return Launch(block, 1, warps, packed=itemsize == 2 and not kernels.INTERPRETED and held > 65536, long=False)


def _rows_of(x: torch.Tensor) -> torch.Tensor:
    """x as (rows, cols) with adjacent columns: a view where the leading dimensions collapse into one stride, else a copy."""
    x = x.reshape(-1, x.shape[-1] if x.dim() else 1)
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


@functools.cache
def _fetchers(device: int) -> int:
    """Multiprocessors of a CUDA device that can prefetch into L2 in bulk (compute capability 9.0 and up), else 0."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count if torch.version.cuda and properties.major >= 9 else 0


def rows_ahead(x: torch.Tensor) -> int:
    """How many rows ahead of its own a program prefetches of x (rows, cols): 0 where that isn't possible or wasn't faster."""
    size = x.shape[1] * x.element_size()
    if not x.is_cuda or kernels.INTERPRETED or size not in PREFETCHED:
        return 0
    if size % 16 or x.stride(0) * x.element_size() % 16 or x.data_ptr() % 16:
        return 0
    return _fetchers(x.device.index) * AHEAD // size


def run_forward(x: torch.Tensor, y: torch.Tensor, launch: Launch | None = None) -> None:
    """Write softmax(x) into y: x of shape (rows, cols) with adjacent columns, y contiguous."""
    rows, cols = x.shape
    launch = launch or launch_for(cols, x.element_size())
    vec, wide = kernels.vector(x, cols, x.stride(0)), kernels.accumulator(x.dtype)
    sizes = cols // vec, x.stride(0) // vec
    with kernels.on_device_of(x):
        if launch.long:
            _forward_long[(rows,)](x, y, *sizes, vec, launch.block, wide, num_warps=launch.warps)
        else:
            grid = (-(-rows // launch.rows),)
            ahead = rows_ahead(x) if launch.rows == 1 else 0
            constants = vec, launch.rows, launch.block, wide, launch.packed, ahead > 0
            _forward_rows[grid](x, y, rows, *sizes, ahead, *constants, num_warps=launch.warps)


def run_backward(dy: torch.Tensor, y: torch.Tensor, dx: torch.Tensor, launch: Launch | None = None) -> None:
    """Write the input gradient into dx: dy and y of shape (rows, cols) with adjacent columns, dx contiguous."""
    rows, cols = y.shape
    launch = launch or launch_for(cols, y.element_size(), tensors=2)
    vec, wide = kernels.vector(y, cols, dy.stride(0), y.stride(0)), kernels.accumulator(y.dtype)
    sizes = cols // vec, dy.stride(0) // vec, y.stride(0) // vec
    with kernels.on_device_of(y):
        if launch.long:
            _backward_long[(rows,)](dy, y, dx, *sizes, vec, launch.block, wide, num_warps=launch.warps)
        else:
            grid = (-(-rows // launch.rows),)
            _backward_rows[grid](
                dy, y, dx, rows, *sizes, vec, launch.rows, launch.block, wide, launch.packed, num_warps=launch.warps
            )


@torch.library.custom_op("kpt_lab::softmax", mutates_args=())
def triton_softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension in one read and one write; any shape, float16, bfloat16, float32 or float64.

    The output is contiguous. An input whose last dimension is not adjacent in memory, or whose leading dimensions do not
    collapse into one stride, is copied first. Raises Unsupported for other dtypes and devices. autograd, torch.compile and
    vmap work through it; second derivatives and torch.func.grad do not (a custom operator has no rule for them).
    """
    kernels.check("softmax", x)
    y = kernels.output_like(x)
    if y.numel():
        run_forward(_rows_of(x), y)
    return y.to(x.dtype)


@torch.library.custom_op("kpt_lab::softmax_backward", mutates_args=())
def triton_softmax_backward(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The input gradient of softmax from the upstream gradient dy and the output y, all of one shape and dtype."""
    kernels.check("softmax_backward", y)
    dx = kernels.output_like(y)
    if dx.numel():
        run_backward(_rows_of(dy), _rows_of(y), dx)
    return dx.to(y.dtype)


@triton_softmax.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


@triton_softmax_backward.register_fake
def _(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y.new_empty(y.shape)


triton_softmax.register_autograd(
    lambda ctx, dy: triton_softmax_backward(dy, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
)


@triton_softmax.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: torch.Tensor) -> tuple[torch.Tensor, int]:
    assert in_dims[0] is not None  # the only input, so it is the batched one
    x = x.movedim(in_dims[0], 0)
    # a batch of numbers is a batch of rows of one
    return (triton_softmax(x.unsqueeze(-1)).squeeze(-1) if x.dim() == 1 else triton_softmax(x)), 0


@triton_softmax_backward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], dy: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, int]:
    dy, y = kernels.batched(info, in_dims, dy, y)
    if y.dim() == 1:
        return triton_softmax_backward(dy.unsqueeze(-1), y.unsqueeze(-1)).squeeze(-1), 0
    return triton_softmax_backward(dy, y), 0


# ---- techniques


def _apply_triton(fn: Callable[..., Any], args: tuple) -> Callable[..., Any]:
    kernels.check_technique("kpt triton softmax", fn, (softmax,), args)
    return triton_softmax


def _apply_liger(fn: Callable[..., Any], args: tuple) -> Callable[..., Any]:
    kernels.check_technique("liger softmax", fn, (softmax,), args)
    from liger_kernel.ops.softmax import LigerSoftmaxFunction

    return LigerSoftmaxFunction.apply


eager, compiled, max_autotune = baselines.eager, baselines.compiled, baselines.max_autotune
triton = Technique(
    "kpt triton", _apply_triton, replaces=frozenset({"softmax"}), requires=("triton",), simulates=kernels.SIMULATES
)
liger = Technique("liger", _apply_liger, replaces=frozenset({"softmax"}), requires=("liger_kernel", "triton"))

techniques = (eager, compiled, max_autotune, triton, liger)

record_grid = (
    Recording(forward, {"rows": [16384], "cols": [4096, 8192, 32768]}, "bfloat16", processes=6),
    Recording(forward, {"rows": [8192], "cols": [1000, 16384, 65536]}, "bfloat16"),
    Recording(forward, {"rows": [64], "cols": [131072]}, "bfloat16"),
    Recording(forward, {"rows": [16384], "cols": [4096]}, "float32"),
    Recording(backward, {"rows": [8192], "cols": [4096, 8192, 32768]}, "bfloat16"),
)
"""Eleven cells: the headline ones in six processes; 64 rows are where a row that is never split should lose."""
