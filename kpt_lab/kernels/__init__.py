"""Fused kernels in Triton, one operation a module: the plain PyTorch specification first, then its techniques.

Every module has the same face: Workloads named by what is timed (`forward`, `backward`), each technique under its own
name, the tuple `techniques`, and `record_grid`. This file holds what the modules share. The modules import without triton;
their technique is then unavailable. On a CPU the kernels run only in Triton's interpreter, which is chosen when they are
decorated: set TRITON_INTERPRET=1 before the first import. That is slow and serves correctness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from kpt_lab.core import Unsupported, dtype_name, to_dtype
from kpt_lab.testing import is_interpreted

try:
    import triton
    import triton.language as tl
except ImportError:  # a technique that needs it says so through `requires`
    triton = tl = None

INTERPRETED = triton is not None and is_interpreted()
SIMULATES = "a GPU, by Triton's interpreter" if INTERPRETED else ""  # its clock is then no time of a kernel's
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ACCESS = 16  # bytes: the widest load or store of one thread


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or the function itself where triton is not installed."""
    return function if triton is None else triton.jit(function)


def check(operation: str, x: torch.Tensor) -> None:
    """Raise Unsupported with a sentence unless the Triton kernels of `operation` can run on a tensor such as `x`."""
    if triton is None:
        raise Unsupported(f"{operation}: triton is not installed; pip install triton (Linux)")
    if x.dtype not in DTYPES:
        accepted = ", ".join(map(dtype_name, DTYPES))
        raise Unsupported(f"{operation}: dtype is {dtype_name(x.dtype)}; accepted are {accepted}")
    if x.is_cuda and INTERPRETED:
        raise Unsupported(f"{operation}: the input is on {x.device}, but TRITON_INTERPRET=1 was set at import; unset it")
    if not x.is_cuda and not INTERPRETED:
        raise Unsupported(
            f"{operation}: the input is on {x.device}; it needs a CUDA device (or set TRITON_INTERPRET=1 before import to run "
            "it on a CPU, slowly, for correctness only)"
        )


def check_technique(operation: str, fn: Any, accepted: tuple[Any, ...], args: tuple) -> None:
    """Raise Unsupported unless `fn` is one of the `accepted` specifications and the first of `args` is a tensor we can take."""
    if fn not in accepted:
        names = " or ".join(f"{known.__module__}.{known.__qualname__}" for known in accepted)
        raise Unsupported(f"{operation} replaces {names} only; it was given {getattr(fn, '__qualname__', fn)!r}")
    for x in args:
        if isinstance(x, torch.Tensor):
            check(operation, x)


def accumulator(dtype: torch.dtype) -> Any:
    """The Triton dtype to compute in: float64 for float64, float32 for all others."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def output_like(x: torch.Tensor) -> torch.Tensor:
    """An uninitialised contiguous output for a kernel: of x's dtype, but float32 for bfloat16 under the interpreter.

    The interpreter truncates where it should round to bfloat16; there the caller casts with `.to(x.dtype)` in PyTorch.
    """
    wide = INTERPRETED and x.dtype == torch.bfloat16
    return torch.empty(x.shape, dtype=torch.float32 if wide else x.dtype, device=x.device)


def vector(x: torch.Tensor, *counts: int) -> int:
    """Elements per access: the largest power of two up to 16 bytes that divides every one of `counts`.

    Triton learns divisibility from arguments only when they divide by 16, and rows of 1000 would be read one element at a
    time; so kernels take counts in units of this constant.
    """
    return math.gcd(ACCESS // x.element_size(), *counts)


def on_device_of(x: torch.Tensor) -> AbstractContextManager:
    """A context in which kernels launch on x's device; free where that is the current one."""
    here = not x.is_cuda or x.device.index == torch.cuda.current_device()
    return nullcontext() if here else torch.cuda.device(x.device)


def batched(info: Any, in_dims: tuple[int | None, ...], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The inputs of a vmap rule with their batch dimension first, expanded where an input has none."""
    return tuple(
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, in_dims, strict=True)
    )


# ---- what the workloads share

TIMED = ("float16", "bfloat16", "float32")  # dtypes that are timed; float64 is accepted for tests


def arithmetic(dtype: torch.dtype | str) -> str:
    """The arithmetic type that the kernels and PyTorch compute in: float32 for 16-bit inputs too."""
    return "float64" if to_dtype(dtype) == torch.float64 else "float32"


def normal(
    sets: int, tensors: int, *shape: int, device: str, dtype: torch.dtype | str, seed: int
) -> list[tuple[torch.Tensor, ...]]:
    """`sets` tuples of `tensors` standard normal tensors of `shape`, all different, from one seed; ValueError on an empty shape."""
    if any(not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(f"the shape is {shape}; rows and cols must be whole numbers of 1 or more")
    generator = torch.Generator(device).manual_seed(seed)
    dtype = to_dtype(dtype)
    return [
        tuple(torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(tensors)) for _ in range(sets)
    ]


def forward_and_backward(candidate: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The step of a `backward` workload: (x, upstream gradient) -> (output, gradient of x), through autograd."""

    def step(x: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        y = candidate(x)
        (gradient,) = torch.autograd.grad(y, x, upstream)
        return y.detach(), gradient

    return step
