"""Near misses of attention, in plain PyTorch: what FlashLight must leave as it is. Shapes as in `gallery`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def weights_returned(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The weights are wanted themselves."""
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return weights @ v, weights


def top_k(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Only the largest scores of a row count."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    least = scores.topk(4, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < least, -math.inf).softmax(-1) @ v


def talking_heads(q: Tensor, k: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """Each head's weights are a mixture of all heads'."""
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhqk,hg->bgqk", weights, mix) @ v


def extra_sink(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """One more column of learned scores takes a share of the softmax, and is cut off again."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    column = sinks.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1] @ v


def dropout_and_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A sliding window whose weights are dropped in training."""
    i = torch.arange(q.shape[-2])
    keep = (i[:, None] >= i) & (i[:, None] - i < 8)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~keep, -math.inf).softmax(-1)
    return F.dropout(weights, p=0.1, training=True) @ v


def relative_keys(q: Tensor, k: Tensor, v: Tensor, relative: Tensor) -> Tensor:
    """A key of its own for each distance, so the bias depends on the query's content."""
    bias = torch.einsum("bhqd,qkd->bhqk", q, relative)
    return ((q @ k.mT + bias) / q.shape[-1] ** 0.5).softmax(-1) @ v
