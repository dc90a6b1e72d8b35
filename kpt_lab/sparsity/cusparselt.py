"""2:4 products through torch's cuSPARSELt operators: what they need, their plans, and one call.

    y (tokens, out) = x (tokens, in) @ W^T (in, out)        W (out, in) is 2:4 and compressed

cuSPARSELt takes the sparse matrix as the left factor, so the product runs as W @ x^T and is written in column order, which is y.
A call costs the host about a millisecond, whatever the size, because torch makes a new plan each time: this is for CUDA graphs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kpt_lab.core import Unsupported, dtype_name

FP8 = torch.float8_e4m3fn
CAPABILITY = {torch.bfloat16: (8, 0), torch.float16: (8, 0), FP8: (9, 0)}  # 8-bit floats: torch asks for Hopper or newer
ALIGN = {torch.bfloat16: 16, torch.float16: 16, FP8: 32}  # of a compressed weight's rows and columns, as torch checks them
TOKENS = 16  # dense columns come in multiples of 8, or of 16 for 8-bit floats


@dataclass(frozen=True)
class Plan:
    """Which algorithm computes a product: cuSPARSELt's id, and in how many parts and how the inner dimension is split."""

    algorithm: int = 0
    split_k: int = 1
    split_k_mode: int = -1  # 1: one kernel, 2: two kernels, -1: not set

    def __str__(self) -> str:
        parts = f", split_k {self.split_k} in mode {self.split_k_mode}" if self.split_k != 1 else ""
        return f"algorithm {self.algorithm}{parts}"


def version() -> str:
    """cuSPARSELt's version as torch reports it, "none" where torch was built without it."""
    backend: Any = getattr(torch.backends, "cusparselt", None)
    found = backend.version() if backend is not None and backend.is_available() else None
    return str(found) if found is not None else "none"


def shape_unsupported(in_features: int, out_features: int, dtype: torch.dtype) -> str:
    """Why a weight (out_features, in_features) has no 2:4 product in `dtype` on any device, or ""."""
    if dtype not in ALIGN:
        return f"2:4 products exist in {', '.join(map(dtype_name, ALIGN))}, not in {dtype_name(dtype)}"
    align = ALIGN[dtype]
    if in_features % align or out_features % align:
        return f"{out_features} x {in_features} is not divisible by {align} both ways, as 2:4 in {dtype_name(dtype)} needs"
    return ""


def unsupported(device: torch.device | str, dtype: torch.dtype) -> str:
    """Why 2:4 products in `dtype` can't run on `device`, or ""."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"2:4 products need an NVIDIA GPU, and this is {device.type}"
    if not torch.cuda.is_available():
        return "2:4 products need an NVIDIA GPU, and torch finds none here"
    if torch.version.hip is not None:
        return "2:4 products run through cuSPARSELt here; AMD's hipSPARSELt is not done yet"
    if version() == "none":
        return "this torch was built without cuSPARSELt"
    capability = torch.cuda.get_device_capability(device)
    if dtype not in CAPABILITY:
        return f"2:4 products exist in {', '.join(map(dtype_name, ALIGN))}, not in {dtype_name(dtype)}"
    if capability < CAPABILITY[dtype]:
        need = ".".join(map(str, CAPABILITY[dtype]))
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}; "
            f"2:4 in {dtype_name(dtype)} needs {need} or newer"
        )
    return ""


def compress(weight: Tensor) -> Tensor:
    """cuSPARSELt's own compressed form of a 2:4 weight (out, in); Unsupported with its reason where it refuses."""
    try:
        return torch._cslt_compress(weight.detach().contiguous())
    except RuntimeError as error:
        came = f"{tuple(weight.shape)} {dtype_name(weight.dtype)}"
        raise Unsupported(f"cuSPARSELt does not compress a weight of {came}: {_first(error)}") from error


def product(
    packed: Tensor,
    x: Tensor,
    plan: Plan,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x (tokens, in) times the compressed weight's transpose: (tokens, out), contiguous; tokens a multiple of TOKENS.

    bias: (out,). out_dtype: for 8-bit inputs. The result is not scaled: torch reads cuSPARSELt's factor for it on the host, which
    waits for the device and can't be captured, so scales must cancel. Raises RuntimeError as cuSPARSELt does where the plan does
    not fit.
    """
    options: dict[str, Any] = {} if out_dtype is None else {"out_dtype": out_dtype}
    together = bias is not None and adds_bias(x.device.index or 0, x.dtype, out_dtype)
    if together:
        options["bias"] = bias
    if plan.split_k != 1:  # only then: an older torch does not have these arguments
        options |= {"split_k": plan.split_k, "split_k_mode": plan.split_k_mode}
    y = torch._cslt_sparse_mm(packed, x.t(), transpose_result=True, alg_id=plan.algorithm, **options)
    return y + bias if bias is not None and not together else y


@functools.cache
def adds_bias(device: int, dtype: torch.dtype, out_dtype: torch.dtype | None) -> bool:
    """Whether this cuSPARSELt adds a bias itself in this dtype, and rightly, found out by trying on small numbers.

    Where it doesn't, `product` adds it afterwards: a pass over the output, which is timed with the rest.
    """
    where = f"cuda:{device}"
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0], device=where).repeat(64, 16).to(dtype)
    x = (torch.arange(64 * 64, device=where) % 5 - 2).reshape(64, 64).float().to(dtype)
    bias = torch.linspace(4, 16, 64, device=where).to(out_dtype or dtype)
    options: dict[str, Any] = {} if out_dtype is None else {"out_dtype": out_dtype}
    try:
        y = torch._cslt_sparse_mm(compress(weight), x.t(), bias=bias, transpose_result=True, **options)
    except (RuntimeError, Unsupported):
        return False
    wanted = x.double() @ weight.double().t() + bias.double()
    return bool(((y.double() - wanted).abs() <= 0.01 * (wanted.abs() + 10)).all())


def padded(x: Tensor) -> Tensor:
    """x (tokens, in) with rows of zeros up to a multiple of TOKENS."""
    missing = -x.shape[0] % TOKENS
    if not missing:
        return x
    # torch pads no 8-bit floats: their bytes are
    return F.pad(x.view(torch.uint8) if x.dtype == FP8 else x, (0, 0, 0, missing)).view(x.dtype)


def _first(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
