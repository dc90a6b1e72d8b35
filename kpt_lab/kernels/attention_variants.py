"""Nine attentions as one would write them from their papers, what they capture, and how many pairs they attend.

Inputs are query (batch, length, heads, width), key and value (batch, length, heads / groups, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

WINDOW, PREFIX, STEP, CAP = 256, 256, 2, 30.0
DOCUMENTS = 12  # in each row of a batch, of random lengths, as the FlashLight paper has them
VARIANTS = ("plain", "causal", "alibi", "softcap", "window", "prefix", "document", "dilated", "padding")


# ---- the specifications


def _scores(query: Tensor, key: Tensor) -> Tensor:
    groups = query.shape[2] // key.shape[2]
    return torch.einsum("bqhd,bkhd->bhqk", query, key.repeat_interleave(groups, 2)) / math.sqrt(query.shape[-1])


def _values(scores: Tensor, value: Tensor) -> Tensor:
    groups = scores.shape[1] // value.shape[2]
    wide = torch.promote_types(scores.dtype, torch.float32)
    probabilities = torch.softmax(scores.to(wide), -1).to(value.dtype)
    return torch.einsum("bhqk,bkhd->bqhd", probabilities, value.repeat_interleave(groups, 2))


def _masked(scores: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    return _values(scores.masked_fill(~mask, -math.inf), value)


def _places(query: Tensor) -> tuple[Tensor, Tensor]:
    index = torch.arange(query.shape[1], device=query.device)
    return index[:, None], index[None, :]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every query attends every key."""
    return _values(_scores(query, key), value)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A query attends itself and what is before it."""
    i, j = _places(query)
    return _masked(_scores(query, key), i >= j, value)


def alibi(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
    """Causal, with a penalty that grows with the distance: slopes (h,), float32."""
    i, j = _places(query)
    bias = slopes[:, None, None] * (j - i)
    return _masked(_scores(query, key) + bias, i >= j, value)


def softcap(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal, with scores bent to within 30 of zero by a tanh."""
    i, j = _places(query)
    return _masked(CAP * torch.tanh(_scores(query, key) / CAP), i >= j, value)


def window(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A query attends itself and the 255 before it."""
    i, j = _places(query)
    return _masked(_scores(query, key), (i >= j) & (i - j < WINDOW), value)


def prefix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal, but the first 256 keys are seen by all."""
    i, j = _places(query)
    return _masked(_scores(query, key), (i >= j) | (j < PREFIX), value)


def document(query: Tensor, key: Tensor, value: Tensor, documents: Tensor) -> Tensor:
    """Causal within a document: documents (b, l) holds each token's number."""
    i, j = _places(query)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return _masked(_scores(query, key), (i >= j) & same, value)


def dilated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal, every second key."""
    i, j = _places(query)
    return _masked(_scores(query, key), (i >= j) & ((i - j) % STEP == 0), value)


def padding(query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
    """Every query attends the keys that are no padding: real (b, l), true or false."""
    return _masked(_scores(query, key), real[:, None, None, :], value)


SPECIFICATIONS: dict[str, Callable[..., Tensor]] = {
    "plain": plain, "causal": causal, "alibi": alibi, "softcap": softcap, "window": window, "prefix": prefix,
    "document": document, "dilated": dilated, "padding": padding,
}  # fmt: skip
NAMES = {function: name for name, function in SPECIFICATIONS.items()}


# ---- what they read beside query, key and value, and how much they attend


def lengths_of(batch: int, length: int, seed: int = 0) -> Tensor:
    """How many tokens of each row are no padding: from half of them to all, (batch,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(max(1, length // 2), length + 1, (batch,), generator=generator)


def documents_of(batch: int, length: int, seed: int = 0) -> Tensor:
    """Each token's document, (batch, length): DOCUMENTS of them in random lengths, numbered from the left."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(batch, length, generator=generator).argsort(-1)[:, : min(DOCUMENTS, length) - 1]
    return torch.zeros(batch, length, dtype=torch.int64).scatter_(1, starts, 1).cumsum(1)


def captured(variant: str, *, batch: int, heads: int, length: int, device: str, seed: int = 0) -> tuple[Tensor, ...]:
    """The tensors that a variant's mask or bias reads beside query, key and value."""
    match variant:
        case "alibi":
            return ((2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)).to(device),)
        case "document":
            return (documents_of(batch, length, seed).to(device),)
        case "padding":
            return ((torch.arange(length) < lengths_of(batch, length, seed)[:, None]).to(device),)
    return ()


def pairs(variant: str, *, batch: int, length: int, seed: int = 0) -> int:
    """How many pairs of a query and a key are attended, over the batch, for one head."""
    half = length * (length + 1) // 2
    match variant:
        case "plain":
            return batch * length * length
        case "window":
            beyond = max(0, length - WINDOW)
            return batch * (half - beyond * (beyond + 1) // 2)
        case "prefix":
            ahead = min(PREFIX, length)
            return batch * (half + ahead * (ahead - 1) // 2)
        case "dilated":
            return batch * sum((i // STEP) + 1 for i in range(length))
        case "document":
            counts = torch.stack([row.bincount(minlength=DOCUMENTS) for row in documents_of(batch, length, seed)])
            return int((counts * (counts + 1) // 2).sum())
        case "padding":
            return int(lengths_of(batch, length, seed).sum()) * length
    return batch * half
