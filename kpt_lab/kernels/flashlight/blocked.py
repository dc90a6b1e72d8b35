"""Attention with a score function and a mask, a block of queries at a time in plain PyTorch: what CPUs train with.

FlexAttention's C++ template has no backward, no float64, and can't compile captured tensors of symbolic sizes. This operator has
them, and holds one block of queries times all keys, never the whole matrix. It is not fast: it recomputes each block in the
backward and skips none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from kpt_lab.kernels.flashlight.functions import Function

ROWS, ELEMENTS = 128, 2**24  # queries in a block at most, and scores held at once
_FUNCTIONS: dict[str, tuple[fx.GraphModule, fx.GraphModule]] = {}


def register(score: Function, mask: Function) -> str:
    """The name under which the operator finds these functions; the same for equal ones, in every process."""
    text = f"{score.module.code}\n{len(score.buffers)}\n{mask.module.code}"
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    _FUNCTIONS[name] = score.module, mask.module
    return name


def _both(
    name: str, query: Tensor, key: Tensor, value: Tensor, buffers: Sequence[Any], split: int, scale: float, first: int
) -> tuple[Tensor, Tensor]:
    """The output and the logarithms of the row sums for a block of queries that begins at `first`."""
    score, mask = _FUNCTIONS[name]
    batch, heads, rows, width = query.shape
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    grouped = query.reshape(batch, key.shape[1], -1, rows, width).to(wide)
    scores = (grouped @ key.to(wide).unsqueeze(2).mT).reshape(batch, heads, rows, key.shape[2]) * scale
    sizes = batch, heads, rows, key.shape[2]
    at = [torch.arange(n, device=query.device).view([-1 if d == i else 1 for d in range(4)]) for i, n in enumerate(sizes)]
    at[2] = at[2] + first
    scores = score(scores, *at, *buffers[:split])
    scores = torch.where(mask(*at, *buffers[split:]), scores, -torch.inf)
    sums = torch.logsumexp(scores, -1, keepdim=True)
    # an empty row has no sum: its probabilities are 0, and so are their gradients
    empty = sums == -torch.inf
    # not exp(scores - sums): beside scores as large as a float32 the logarithm of the number of keys would be lost
    probabilities = torch.where(empty, 0.0, torch.softmax(torch.where(empty, 0.0, scores), -1))
    shaped = probabilities.reshape(batch, key.shape[1], -1, rows, key.shape[2])
    out = (shaped @ value.to(wide).unsqueeze(2)).reshape(batch, heads, rows, value.shape[3])
    return out.to(value.dtype), sums.squeeze(-1)


def _steps(query: Tensor, key: Tensor) -> Iterator[tuple[int, int]]:
    rows = max(1, min(ROWS, ELEMENTS // max(1, query.shape[0] * query.shape[1] * key.shape[2])))
    for first in range(0, query.shape[2], rows):
        yield first, min(first + rows, query.shape[2])


def _mixed(kinds: str, tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[Any]:
    """Buffers in their order: kinds has a t for each tensor and an n for each number."""
    ts, ns = iter(tensors), iter(numbers)
    return [next(ts) if kind == "t" else next(ns) for kind in kinds]


@torch.library.custom_op("kpt_lab::blocked_attention", mutates_args=())
def blocked_attention(
    name: str, query: Tensor, key: Tensor, value: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int], kinds: str,
    split: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output (b, h, l, d) and natural logarithms of the row sums (b, h, l), -inf for rows without keys.

    name: of `register`. kinds, tensors, numbers: the buffers of the score's function, `split` of them, then those of the mask's.
    """
    buffers = _mixed(kinds, tensors, numbers)
    parts = [
        _both(name, query[:, :, first:last], key, value, buffers, split, scale, first) for first, last in _steps(query, key)
    ]
    out, sums = (torch.cat(found, 2) for found in zip(*parts, strict=True))
    return out, sums


@blocked_attention.register_fake
def _(name, query, key, value, tensors, numbers, kinds, split, scale):
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty((*query.shape[:-1], value.shape[-1])), query.new_empty(query.shape[:-1], dtype=wide)


@torch.library.custom_op("kpt_lab::blocked_attention_backward", mutates_args=())
def blocked_attention_backward(
    name: str, upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int],
    kinds: str, split: int, scale: float,
) -> list[Tensor]:  # fmt: skip
    """Gradients of query, key, value and of each captured tensor; an empty tensor for one that has none."""
    total = [torch.zeros_like(x) for x in (query, key, value)]
    total += [torch.zeros_like(x) if x.is_floating_point() else x.new_empty(0) for x in tensors]
    with _differentiating():
        leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in (key, value, *tensors)]
        wanted = [i for i, x in enumerate(leaves) if x.requires_grad]
        buffers = _mixed(kinds, leaves[2:], numbers)
        for first, last in _steps(query, key):
            rows = query[:, :, first:last].detach().requires_grad_()
            out, _ = _both(name, rows, leaves[0], leaves[1], buffers, split, scale, first)
            of = [rows, *(leaves[i] for i in wanted)]
            found = torch.autograd.grad(out, of, upstream[:, :, first:last], allow_unused=True)
            total[0][:, :, first:last] = found[0]
            for i, gradient in zip(wanted, found[1:], strict=True):
                if gradient is not None:
                    total[i + 1] += gradient
    return total


@blocked_attention_backward.register_fake
def _(name, upstream, query, key, value, tensors, numbers, kinds, split, scale):
    gradients = [torch.empty_like(x) for x in (query, key, value)]
    return gradients + [torch.empty_like(x) if x.is_floating_point() else x.new_empty(0) for x in tensors]


@contextmanager
def _differentiating() -> Iterator[None]:
    """Autograd, which torch switches off inside an operator."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradCPU", "AutogradCUDA", "AutogradOther", "AutogradFunctionality", "ADInplaceOrView"):
        excluded = excluded - torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.name, query, key, value, tensors, ctx.numbers, ctx.kinds, ctx.split, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *tensors)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
    query, key, value, *tensors = ctx.saved_tensors
    settings = ctx.numbers, ctx.kinds, ctx.split, ctx.scale
    found = blocked_attention_backward(ctx.name, upstream, query, key, value, tensors, *settings)
    captured = [gradient if x.is_floating_point() else None for gradient, x in zip(found[3:], tensors, strict=True)]
    return None, *found[:3], captured, [None] * len(ctx.numbers), None, None, None


blocked_attention.register_autograd(_backward, setup_context=_save)
