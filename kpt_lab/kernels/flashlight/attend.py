"""Plain and causal attention through the library's kernels: cuDNN, FlashAttention-2 and -3, the memory-efficient one.

One function of (b, h, l, d) tensors with the kernel's name: torch's own scaled dot product attention inside a context that allows
one backend, or prefers it. Torch then keeps its checks, its padding, its grouped heads and its autograd, and AOTAutograd traces the
backend's operator itself, so that nothing is added to the kernel's time; an operator of our own around them would have to fix
one memory layout for outputs that the backends lay out differently. FlashAttention-3 is not in torch: it has an operator here, with
cuDNN's backward.
"""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kpt_lab.core import Unsupported
from kpt_lab.kernels.blockwise import cudnn_backward, fa3_launch

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
}  # fmt: skip
KERNELS = (*BACKENDS, "fa3", "sdpa")  # "sdpa": whatever torch picks
HALVES = (torch.float16, torch.bfloat16)


def attention(
    query: Tensor, key: Tensor, value: Tensor, kernel: str, causal: bool, scale: float, dropout: float = 0.0,
    others: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(scale · query · keyᵀ) · value of (b, h, l, d) tensors by one kernel of KERNELS; key and value may have fewer heads.

    causal: query i attends keys 0 to i. others: where torch refuses one of BACKENDS for these very inputs (cuDNN takes no single
    query, say), another of them takes them; none holds the scores. Raises RuntimeError where the kernel does not take them.
    """
    if kernel != "sdpa":  # all of them want adjacent elements of a row
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    if kernel == "fa3":
        _same_lengths(query, key, causal)
        return (fa3_launch if at_once(query, key, value) else fa3)(query, key, value, causal, scale)[0]
    if kernel == "efficient" and grouped:  # it has no grouped heads: a view of each key head for all of its queries
        groups = query.shape[1] // key.shape[1]
        key, value = (x.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2) for x in (key, value))
        grouped = False
    with _allowing(kernel, others):
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
        )


def _allowing(kernel: str, others: bool) -> AbstractContextManager[Any]:
    """A context in which torch takes `kernel` alone, or another one of BACKENDS where it refuses that."""
    if kernel not in BACKENDS:
        return nullcontext()
    if not others:
        return sdpa_kernel(BACKENDS[kernel])
    return sdpa_kernel([BACKENDS[kernel], *(b for name, b in BACKENDS.items() if name != kernel)], set_priority=True)


def refused(kernel: str, *, dtype: torch.dtype, width: int, value_width: int, dropout: float, device: torch.device) -> str:
    """Why a kernel can't take such inputs, as a clause; "" where nothing is known against it."""
    if kernel == "sdpa":
        return ""
    if device.type != "cuda":
        return f"{kernel} is a CUDA kernel"
    if kernel != "efficient" and dtype not in HALVES:
        return f"{kernel} takes float16 and bfloat16"
    if kernel == "fa3":
        if not has_fa3():
            return "fa3-fwd is not installed"
        if torch.cuda.get_device_capability(device)[0] != 9:
            return "FlashAttention-3 is for Hopper"
        if dropout:
            return "FlashAttention-3 has no dropout"
        if dtype is torch.float16 and fa3_lacks("FP16"):
            return "this build of FlashAttention-3 has no float16"
    if kernel in ("flash", "fa3") and (width > 256 or width != value_width):
        return f"{kernel} takes one head width of up to 256"
    if kernel == "cudnn" and (width % 8 or value_width % 8 or max(width, value_width) > 256):
        return "cuDNN takes head widths of up to 256 that divide by 8"
    return ""


# ---- FlashAttention-3


@functools.cache
def has_fa3() -> bool:
    """Whether a FlashAttention-3 that we know how to call is installed: the fa3-fwd wheel."""
    return importlib.util.find_spec("fa3_fwd_interface") is not None


def fa3_lacks(feature: str) -> bool:
    """Whether the installed FlashAttention-3 says that it was built without a feature: "FP16", "LOCAL" (windows), "SOFTCAP"."""
    try:
        from fa3_fwd_config import CONFIG  # type: ignore[import-not-found]
    except ImportError:  # a build that does not say so has all
        return False
    return bool(CONFIG.get("build_flags", {}).get(f"FLASHATTENTION_DISABLE_{feature}"))


@torch.library.custom_op("kpt_lab::fa3", mutates_args=())
def fa3(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """FlashAttention-3 of (b, h, l, d) tensors: the output, laid out (b, l, h, d) in memory, and float32 row sums (b, h, l).

    causal: only of equally many queries and keys, since this kernel aligns the mask to the last key. Raises Unsupported.
    """
    _same_lengths(query, key, causal)
    return fa3_launch(query, key, value, causal, scale)


def _same_lengths(query: Tensor, key: Tensor, causal: bool) -> None:
    if causal and query.shape[2] != key.shape[2]:
        raise Unsupported("FlashAttention-3 aligns its causal mask to the last key; pass equally many queries and keys")


def at_once(*tensors: Tensor) -> bool:
    """Whether a kernel may be launched on these as they are: nothing traces, and no gradient will be asked for.

    Otherwise it has to be called through an operator of PyTorch's, whose dispatch costs the host time.
    """
    return (
        all(type(x) in _PLAIN for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and _get_current_dispatch_mode() is None
        and not torch._C._are_functorch_transforms_active()
    )


_PLAIN = (Tensor, torch.nn.Parameter)  # not those of a trace


@fa3.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    b, h, l, _ = query.shape  # noqa: E741
    out = query.new_empty((b, l, h, value.shape[3])).transpose(1, 2)
    return out, query.new_empty((b, h, l), dtype=torch.float32)


@torch.library.custom_op("kpt_lab::fa3_backward", mutates_args=())
def fa3_backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by cuDNN's backward, which reads the same row sums (natural logarithm of the sum of exponentials).

    Each is laid out as torch.empty_like lays out what it belongs to: as cuDNN leaves it, so that nothing is copied.
    """
    found = cudnn_backward(upstream, query, key, value, out, sums, causal, scale)
    return tuple(map(_laid_out, found, (query, key, value)))  # type: ignore[return-value]


def _laid_out(gradient: Tensor, like: Tensor) -> Tensor:
    wanted = torch.empty_like(like, device="meta").stride()
    return gradient if gradient.stride() == wanted else torch.empty_like(like).copy_(gradient)


@fa3_backward.register_fake
def _(upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(map(torch.empty_like, (query, key, value)))  # type: ignore[return-value]


def _save(ctx, inputs, output) -> None:
    query, key, value, ctx.causal, ctx.scale = inputs
    out, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(query, key, value, out, sums)


def _backward(ctx, upstream: Tensor, _: Tensor):
    return (*fa3_backward(upstream, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None)


fa3.register_autograd(_backward, setup_context=_save)
