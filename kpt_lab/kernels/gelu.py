"""GELU, exact (erf) and tanh form: elementwise, 16-byte accesses, one read and one write per element.

What it costs: 2 bytes in and 2 out per element (bfloat16) and about 5 FLOPs with one erf, so memory sets its time; eager
PyTorch and torch.compile are already within a tenth of a copy, and the Triton technique can gain only that tenth.
Where it loses: sizes whose time is the launch. Liger has GEGLU but no plain GELU in its releases, so it is no peer here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from kpt_lab import baselines, kernels
from kpt_lab.core import Cost, Problem, Recording, Technique, Workload, to_dtype
from kpt_lab.kernels import jit, tl


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The specification: x * Phi(x) = x/2 * (1 + erf(x / sqrt(2))), elementwise; any shape, same dtype out."""
    return F.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """The specification of the tanh form: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x**3))) (arXiv:1606.08415)."""
    return F.gelu(x, approximate="tanh")


SPECIFICATIONS = {"none": gelu, "tanh": gelu_tanh}


# ---- workloads


def _specification(approximate: str) -> Callable[..., torch.Tensor]:
    if approximate not in SPECIFICATIONS:
        raise ValueError(f"approximate is {approximate!r}; accepted are {', '.join(map(repr, SPECIFICATIONS))}")
    return SPECIFICATIONS[approximate]


def _make_forward(
    *, device: str, dtype: torch.dtype | str, seed: int, rows: int, cols: int, approximate: str = "none"
) -> Problem:
    """Three sets of one (rows, cols) tensor of standard normal numbers; approximate is "none" (erf) or "tanh"."""
    return Problem(_specification(approximate), kernels.normal(3, 1, rows, cols, device=device, dtype=dtype, seed=seed))


def _make_backward(
    *, device: str, dtype: torch.dtype | str, seed: int, rows: int, cols: int, approximate: str = "none"
) -> Problem:
    """Three sets of an input and an upstream gradient, both (rows, cols); the step returns (output, input gradient)."""
    inputs = kernels.normal(3, 2, rows, cols, device=device, dtype=dtype, seed=seed)
    return Problem(_specification(approximate), inputs, drive=kernels.forward_and_backward)


def _cost_forward(*, dtype: torch.dtype | str, rows: int, cols: int, approximate: str = "none") -> Cost:
    """x read once, y written once; 5 FLOPs an element (erf and tanh counted as one; tanh form: 9)."""
    n = rows * cols
    return Cost({kernels.arithmetic(dtype): (5 if approximate == "none" else 9) * n}, 2 * n * to_dtype(dtype).itemsize)


def _cost_backward(*, dtype: torch.dtype | str, rows: int, cols: int, approximate: str = "none") -> Cost:
    """x and dy read once, y and dx written once; 5 + 7 FLOPs an element (tanh form: 9 + 12).

    Two separate calls, as autograd makes them, read x twice and so move 5/4 of this.
    """
    n = rows * cols
    return Cost({kernels.arithmetic(dtype): (12 if approximate == "none" else 21) * n}, 4 * n * to_dtype(dtype).itemsize)


forward = Workload("gelu.forward", _make_forward, cost=_cost_forward, dtypes=kernels.TIMED)
backward = Workload("gelu.backward", _make_backward, cost=_cost_backward, dtypes=kernels.TIMED)


# ---- kernels


@jit
def _bell_and_phi(x, SHORT: tl.constexpr):
    """exp(-x**2 / 2) and the normal distribution's Phi(x).

    SHORT, for 16-bit tensors: Phi from exp(-x**2 / 2) times a polynomial in 1 / (1 + p |x|), off by at most 7.5e-8
    (Abramowitz and Stegun 7.1.26; 3e-7 with float32's rounding), since erf's 36 instructions an element would take as
    long as the memory; this form's 25 do not.
    """
    bell = tl.exp2(-0.7213475204444817 * x * x)  # log2(e) / 2
    if SHORT:
        t = 1.0 / (1.0 + 0.2316419 * tl.abs(x))  # p = 0.3275911 / sqrt(2); the coefficients are halved
        tail = 0.5307027145 * t - 0.7265760135
        tail = tail * t + 0.7107068705
        tail = tail * t - 0.142248368
        tail = (tail * t + 0.127414796) * t * bell
        phi = tl.where(x > 0, 1.0 - tail, tail)
    else:
        phi = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))  # 1 / sqrt(2)
    return bell, phi


@jit
def _gelu(x, TANH: tl.constexpr, SHORT: tl.constexpr):
    if TANH:  # (1 + tanh(u)) / 2 is 1 / (1 + exp(-2u)); the constant is -2 sqrt(2/pi) log2(e), for exp2
        y = x / (1.0 + tl.exp2(-2.302208198144325 * (x + 0.044715 * x * x * x)))
    else:
        _, phi = _bell_and_phi(x, SHORT)
        y = x * phi
    return y


@jit
def _slope(x, TANH: tl.constexpr, SHORT: tl.constexpr):
    """The derivative of `_gelu`."""
    if TANH:
        e = tl.exp2(-2.302208198144325 * (x + 0.044715 * x * x * x))
        s = 1.0 / (1.0 + e)
        bell = e * s * s  # the logistic's own derivative; 0 or NaN where e leaves the range, and there the term vanishes
        rest = bell * x * 1.5957691216057308 * (1.0 + 0.134145 * x * x)  # 2 sqrt(2/pi), 3 * 0.044715
        y = s + tl.where(bell > 0, rest, 0.0 * x)
    else:  # Phi(x) + x phi(x)
        bell, phi = _bell_and_phi(x, SHORT)
        y = phi + x * bell * 0.3989422804014327  # 1 / sqrt(2 pi)
    return y


@jit
def _forward(x_ptr, y_ptr, n, TANH: tl.constexpr, SHORT: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """One block a program; all but the last are whole, and then need no mask, which would narrow their accesses."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        x = tl.load(x_ptr + at, eviction_policy="evict_first").to(WIDE)
        tl.store(y_ptr + at, _gelu(x, TANH, SHORT).to(y_ptr.dtype.element_ty))
    else:
        x = tl.load(x_ptr + at, mask=at < n, other=0.0).to(WIDE)
        tl.store(y_ptr + at, _gelu(x, TANH, SHORT).to(y_ptr.dtype.element_ty), mask=at < n)


@jit
def _backward(dy_ptr, x_ptr, dx_ptr, n, TANH: tl.constexpr, SHORT: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """dx = dy * slope(x), one block a program."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        dy = tl.load(dy_ptr + at, eviction_policy="evict_first").to(WIDE)
        x = tl.load(x_ptr + at, eviction_policy="evict_first").to(WIDE)
        tl.store(dx_ptr + at, (dy * _slope(x, TANH, SHORT)).to(dx_ptr.dtype.element_ty))
    else:
        dy = tl.load(dy_ptr + at, mask=at < n, other=0.0).to(WIDE)
        x = tl.load(x_ptr + at, mask=at < n, other=0.0).to(WIDE)
        tl.store(dx_ptr + at, (dy * _slope(x, TANH, SHORT)).to(dx_ptr.dtype.element_ty), mask=at < n)


# ---- launches


class Launch(NamedTuple):
    """How a kernel is launched: `block` elements a program, by `warps` warps."""

    block: int
    warps: int


FORWARD = Launch(512, 2)
BACKWARD = Launch(1024, 4)


def run_forward(x: torch.Tensor, y: torch.Tensor, tanh: bool, launch: Launch = FORWARD) -> None:
    """Write gelu(x) into y; both contiguous, of one shape."""
    n, wide = x.numel(), kernels.accumulator(x.dtype)
    with kernels.on_device_of(x):
        _forward[(-(-n // launch.block),)](x, y, n, tanh, x.element_size() == 2, launch.block, wide, num_warps=launch.warps)


def run_backward(dy: torch.Tensor, x: torch.Tensor, dx: torch.Tensor, tanh: bool, launch: Launch = BACKWARD) -> None:
    """Write dy * gelu'(x) into dx; all contiguous, of one shape."""
    n, wide = x.numel(), kernels.accumulator(x.dtype)
    with kernels.on_device_of(x):
        _backward[(-(-n // launch.block),)](
            dy, x, dx, n, tanh, x.element_size() == 2, launch.block, wide, num_warps=launch.warps
        )


@torch.library.custom_op("kpt_lab::gelu", mutates_args=())
def _gelu_op(x: torch.Tensor, tanh: bool) -> torch.Tensor:
    kernels.check("gelu", x)
    y = kernels.output_like(x)
    if y.numel():
        run_forward(x.contiguous(), y, tanh)
    return y.to(x.dtype)


@torch.library.custom_op("kpt_lab::gelu_backward", mutates_args=())
def _gelu_backward_op(dy: torch.Tensor, x: torch.Tensor, tanh: bool) -> torch.Tensor:
    kernels.check("gelu_backward", x)
    dx = kernels.output_like(x)
    if dx.numel():
        run_backward(dy.contiguous(), x.contiguous(), dx, tanh)
    return dx.to(x.dtype)


def triton_gelu(x: torch.Tensor) -> torch.Tensor:
    """Exact GELU in one read and one write; any shape, float16, bfloat16, float32 or float64.

    The output is contiguous; an input that is not contiguous is copied first. Raises Unsupported for other dtypes and
    devices. autograd, torch.compile and vmap work through it; second derivatives and torch.func.grad do not (a custom
    operator has no rule for them).
    """
    return _gelu_op(x, False)


def triton_gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU's tanh form in one read and one write; otherwise as `triton_gelu`."""
    return _gelu_op(x, True)


@_gelu_op.register_fake
def _(x: torch.Tensor, tanh: bool) -> torch.Tensor:
    return x.new_empty(x.shape)


@_gelu_backward_op.register_fake
def _(dy: torch.Tensor, x: torch.Tensor, tanh: bool) -> torch.Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[torch.Tensor, bool], output: torch.Tensor) -> None:
    x, ctx.tanh = inputs
    ctx.save_for_backward(x)


_gelu_op.register_autograd(
    lambda ctx, dy: (_gelu_backward_op(dy, *ctx.saved_tensors, ctx.tanh), None),
    setup_context=_save,
)


@_gelu_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: torch.Tensor, tanh: bool) -> tuple[torch.Tensor, int | None]:
    return _gelu_op(x, tanh), in_dims[0]


@_gelu_backward_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], dy: torch.Tensor, x: torch.Tensor, tanh: bool) -> tuple[torch.Tensor, int]:
    dy, x = kernels.batched(info, in_dims[:2], dy, x)
    return _gelu_backward_op(dy, x, tanh), 0


# ---- techniques


def _apply_triton(fn: Callable[..., Any], args: tuple) -> Callable[..., Any]:
    kernels.check_technique("kpt triton gelu", fn, (gelu, gelu_tanh), args)
    return triton_gelu if fn is gelu else triton_gelu_tanh


eager, compiled, max_autotune = baselines.eager, baselines.compiled, baselines.max_autotune
triton = Technique("kpt triton", _apply_triton, replaces=frozenset({"gelu"}), requires=("triton",), simulates=kernels.SIMULATES)

techniques = (eager, compiled, max_autotune, triton)

record_grid = (
    Recording(forward, {"rows": [16384], "cols": [8192]}, "bfloat16", processes=6),
    Recording(forward, {"rows": [1, 256, 4096], "cols": [4096]}, "bfloat16"),
    Recording(backward, {"rows": [8192], "cols": [8192], "approximate": ["none", "tanh"]}, "bfloat16"),
)
"""Six cells: the headline one in six processes; one row of 4096 is where the launch is the whole time."""
