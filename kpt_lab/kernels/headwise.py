"""Attention in float64 for checking: one batch row and one head at a time, since all scores at once fill a GPU.

At 16,384 tokens and 16 heads the scores alone take 34 GB in float64, and autograd keeps three such tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

BY_HEAD, BY_ROW = ("alibi",), ("document", "padding")  # variants whose captured tensor is cut with heads, with the batch
Step = Callable[..., Any]


def pieces(
    variant: str, query: Tensor, key: Tensor, value: Tensor, *extra: Tensor, together: int = 1
) -> Iterator[tuple[Tensor, ...]]:
    """Query (1, l, together, d), key and value (1, l, 1, d) with what the variant captures, row by row and head by head.

    together: queries' heads in a piece; those that share a key where gradients of it are wanted.
    """
    groups = query.shape[2] // key.shape[2]
    for row in range(query.shape[0]):
        for first in range(0, query.shape[2], together):
            heads, head = slice(first, first + together), first // groups
            cut = (x[heads] if variant in BY_HEAD else x[row : row + 1] if variant in BY_ROW else x for x in extra)
            at = slice(row, row + 1), slice(None)
            yield query[(*at, heads)], *(x[(*at, slice(head, head + 1))] for x in (key, value)), *cut


def _opened(candidate: Step, extra: tuple[Tensor, ...]) -> tuple[Step, tuple[Tensor, ...]]:
    """A specification that holds what it captures, as the function and those tensors, which are cut like inputs."""
    if isinstance(candidate, functools.partial):
        return candidate.func, tuple(candidate.keywords.values())
    return candidate, extra


def joined(found: list[Tensor], rows: int) -> Tensor:
    """Pieces (1, l, heads, d) in the order of `pieces`, put together again."""
    each = len(found) // rows
    return torch.cat([torch.cat(found[i * each : (i + 1) * each], 2) for i in range(rows)])


def forward(candidate: Step, variant: str) -> Step:
    """The candidate itself, but on float64 inputs a piece at a time."""

    def step(query: Tensor, key: Tensor, value: Tensor, *extra: Tensor) -> Tensor:
        if query.dtype is not torch.float64:
            return candidate(query, key, value, *extra)
        fn, held = _opened(candidate, extra)
        return joined([fn(*piece) for piece in pieces(variant, query, key, value, *held)], query.shape[0])

    return step


def forward_and_backward(candidate: Step, upstream: Tensor, variant: str = "plain") -> Step:
    """(query, key, value, *captured) -> (output, three gradients), through autograd; float64 inputs a piece at a time."""

    def once(fn: Step, grad: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in given[:3]]
        out = fn(*leaves, *given[3:])
        return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))

    def step(query: Tensor, key: Tensor, value: Tensor, *extra: Tensor) -> tuple[Tensor, ...]:
        if query.dtype is not torch.float64:
            return once(candidate, upstream, query, key, value, *extra)
        fn, held = _opened(candidate, extra)
        groups = query.shape[2] // key.shape[2]
        grads = (grad for grad, *_ in pieces("plain", upstream, key, key, together=groups))
        cut = pieces(variant, query, key, value, *held, together=groups)
        found = [once(fn, grad, *piece) for grad, piece in zip(grads, cut, strict=True)]
        return tuple(joined(list(each), query.shape[0]) for each in zip(*found, strict=True))

    return step
