"""Attentions beyond plain and causal that FlashAttention-3 itself has: bent scores, windows, and keys left out for all queries alike.

A mask over keys alone asks no key block of every query: the keys that it leaves in are moved together, in one pass over keys and
values, and the kernel stops behind them. The order of keys changes nothing in a softmax over all of them. Forward only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kpt_lab import kernels
from kpt_lab.kernels import jit, tl
from kpt_lab.kernels.blockwise import fa3_launch, wide
from kpt_lab.kernels.flashlight import attend, empty_rows, proofs
from kpt_lab.kernels.flashlight.arithmetic import arithmetic, at_least_zero
from kpt_lab.kernels.flashlight.atoms import ONE
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Coordinate, Expression, Part, Score
from kpt_lab.kernels.flashlight.logic import conjuncts
from kpt_lab.kernels.flashlight.polynomials import number, total

ROWS = 16  # keys that one program of the packing kernel moves
EVERY = -1  # of a window's side: no limit, as FlashAttention-3 says it


@dataclass(frozen=True)
class Form:
    """What is asked of the kernel: `cap` bends scores by cap · tanh(s / cap), 0 does not; a query sees `left` and `right` keys beside its own.

    lengths: how many keys of a batch row are attended, the first ones, as an expression over b; keep: which, over b and k.
    """

    causal: bool = False
    cap: float = 0.0
    left: int = EVERY
    right: int = EVERY
    lengths: Expression | None = None
    keep: Expression | None = None

    @property
    def over_keys(self) -> bool:
        """Whether keys are left out for all queries alike."""
        return self.lengths is not None or self.keep is not None

    @property
    def name(self) -> str:
        """What a measurement of it is remembered under."""
        if self.over_keys:
            seen = "lengths" if self.lengths is not None else "over keys"
        else:
            seen = "causal" if self.causal else "window" if (self.left, self.right) != (EVERY, EVERY) else "plain"
        return f"{'capped ' if self.cap else ''}{seen}"


def form(part: Part, queries: Any, keys: Any) -> Form | None:
    """The kernel's form of a part, None where it has none; plain and causal parts have forms too."""
    cap = capped(part.score)
    if cap is None or not isinstance(part.scale, (int, float)):
        return None
    if part.mask is None or proofs.attends_everywhere(part.mask, keys):
        return Form(cap=cap)
    if not places(part.mask) & {"q", "h"}:
        lengths = _lengths(part.mask)
        return Form(cap=cap, lengths=lengths, keep=part.mask if lengths is None else None)
    if not proofs.same_size(queries, keys):  # the kernel counts from the last key
        return None
    if proofs.is_causal(part.mask):
        return Form(causal=True, cap=cap)
    sides = [_side(condition) for condition in conjuncts(part.mask)]
    if any(side is None for side in sides):
        return None
    left, right = (
        min([reach for name, reach in filter(None, sides) if name == side], default=EVERY) for side in ("left", "right")
    )
    return Form(cap=cap, left=left, right=right)


def capped(score: Expression) -> float | None:
    """The cap of cap · tanh(s), 0 for the scores as they are, None for anything else."""
    match score:
        case Score():
            return 0.0
        case Apply("mul", (Apply("tanh", (Score(),)), Constant(cap))) | Apply(
            "mul", (Constant(cap), Apply("tanh", (Score(),)))
        ) if isinstance(cap, (int, float)) and cap > 0:
            return float(cap)
    return None


def places(expression: Expression) -> set[str]:
    """Which of b, h, q and k an expression depends on."""
    return {part.place for part in expression.walk() if isinstance(part, Coordinate)}


def _lengths(mask: Expression) -> Expression | None:
    """n where the mask says k < n and n is over the batch alone."""
    found = at_least_zero(mask)
    if found is None:
        return None
    rest = dict(found)
    if rest.pop((Coordinate("k"),), 0) != -1:
        return None
    limit = arithmetic("add", total(rest), ONE)
    return None if "k" in places(limit) else limit


def _side(condition: Expression) -> tuple[str, int] | None:
    """How many keys behind ("left") or ahead ("right") of its own a query sees by one condition."""
    found = at_least_zero(condition)
    if found is None:
        return None
    rest = dict(found)
    ahead, behind = rest.pop((Coordinate("q"),), 0), rest.pop((Coordinate("k"),), 0)
    reach = number(rest)
    if reach is None or reach < 0 or (ahead, behind) not in ((1, -1), (-1, 1)):
        return None
    return "right" if ahead == 1 else "left", reach


def lacking(form: Form) -> str:
    """What of a form the installed build of FlashAttention-3 was made without, "" where it has all."""
    if (form.left, form.right) != (EVERY, EVERY) and attend.fa3_lacks("LOCAL"):
        return "this build of FlashAttention-3 has no windows"
    if form.cap and attend.fa3_lacks("SOFTCAP"):
        return "this build of FlashAttention-3 bends no scores"
    return ""


# ---- keys moved together


@jit
def _pack(
    key_ptr, value_ptr, out_key_ptr, out_value_ptr, place_ptr, keep_ptr, keys, heads, width, value_width,
    key_b, key_h, key_l, value_b, value_h, value_l, place_b, keep_b,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """COUNT keys of one head, each to its place among those that are kept; behind them zeros, which the kernel may read."""
    batch, head = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    row = tl.program_id(1).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    there = row < keys
    kept = tl.load(keep_ptr + batch * keep_b + row, mask=there, other=0) != 0
    before = tl.load(place_ptr + batch * place_b + row, mask=there, other=0).to(tl.int64)  # kept ones up to and with this
    count = tl.load(place_ptr + batch * place_b + keys - 1).to(tl.int64)
    to = ((batch * keys + tl.where(kept, before - 1, count + row - before)) * heads + head)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = there[:, None] & (column < width)
    x = tl.load(key_ptr + batch * key_b + head * key_h + row[:, None] * key_l + column, mask=inside & kept[:, None], other=0.0)
    tl.store(out_key_ptr + to * width + column, x, mask=inside)
    column = tl.arange(0, VALUE_WIDTH)[None, :]
    inside = there[:, None] & (column < value_width)
    at = value_ptr + batch * value_b + head * value_h + row[:, None] * value_l + column
    tl.store(out_value_ptr + to * value_width + column, tl.load(at, mask=inside & kept[:, None], other=0.0), mask=inside)


def packed(key: Tensor, value: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (b, h, l, d) with the kept ones first, in their order, and how many there are (b,), int32.

    keep is (b, l), true or false. What lies behind the kept ones has no meaning, but is finite where they are. Laid out
    (b, l, h, d) in memory.
    """
    batch, heads, keys, width = key.shape
    place = keep.cumsum(-1, dtype=torch.int32)
    count = place[:, -1].contiguous() if keys else place.new_zeros(batch)
    out = [x.new_empty(batch, keys, heads, x.shape[3]).transpose(1, 2) for x in (key, value)]
    if kernels.triton is None or not (key.is_cuda or kernels.INTERPRETED):
        order = torch.argsort(keep.logical_not().to(torch.int8), dim=-1, stable=True)[:, None, :, None]
        for x, to in zip((key, value), out, strict=True):
            to.copy_(x.gather(2, order.expand_as(x)))
        return out[0], out[1], count
    keep = keep.contiguous()
    key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value))
    if key.numel():
        columns = [1 << max(x.shape[3] - 1, 0).bit_length() for x in (key, value)]
        with kernels.on_device_of(key):
            _pack[(batch * heads, -(-keys // ROWS))](
                key, value, *out, place, keep, keys, heads, width, value.shape[3], *key.stride()[:3], *value.stride()[:3],
                place.stride(0), keep.stride(0), ROWS, *columns, num_warps=4,
            )  # fmt: skip
    return out[0], out[1], count


# ---- the operator


@torch.library.custom_op("kpt_lab::fa3_native", mutates_args=())
def fa3_native(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, lengths: Tensor | None, scale: float, causal: bool,
    cap: float, left: int, right: int, fill: str,
) -> Tensor:  # fmt: skip
    """FlashAttention-3 of (b, h, l, d) tensors in one of its own forms, laid out (b, l, h, d) in memory; no gradient.

    keep (b or 1, keys) of truth values, or lengths (b or 1,) of integers, leave keys out; both None attend all. cap: scores become
    cap · tanh(scale · s / cap). fill: what a row without keys gives, "mean" (of all values), "nan" or "zero".
    """
    return _native(query, key, value, keep, lengths, scale, causal, cap, left, right, fill)


def attention(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, lengths: Tensor | None, scale: float, causal: bool,
    cap: float, left: int, right: int, fill: str,
) -> Tensor:  # fmt: skip
    """`fa3_native`, launched at once where nothing traces and no gradient is asked for."""
    given = (x for x in (query, key, value, keep, lengths) if x is not None)
    call = _native if attend.at_once(*given) else fa3_native
    return call(query, key, value, keep, lengths, scale, causal, cap, left, right, fill)


def _native(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, lengths: Tensor | None, scale: float, causal: bool,
    cap: float, left: int, right: int, fill: str,
) -> Tensor:  # fmt: skip
    values, kept = value, None
    if lengths is not None:
        kept = lengths.expand(query.shape[0]).clamp(0, key.shape[2]).to(torch.int32)
    if not query.is_cuda:
        return _plainly(query, key, value, keep, kept, scale, causal, cap, left, right, fill)
    if keep is not None:
        key, value, kept = packed(key, value, keep.expand(query.shape[0], -1))
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    used = None if kept is None else kept.contiguous()
    out, sums = fa3_launch(query, key, value, causal, scale, used=used, cap=cap, left=left, right=right)
    if kept is not None and fill != "zero":
        sums = sums.masked_fill((kept == 0)[:, None, None], -torch.inf)
        empty_rows.fill_empty_rows(out, sums, values, query.shape[1] // values.shape[1], fill == "nan")
    return out


@fa3_native.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    b, h, l, _d = query.shape  # noqa: E741
    return query.new_empty((b, l, h, value.shape[3])).transpose(1, 2)


def _plainly(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, kept: Tensor | None, scale: float, causal: bool, cap: float,
    left: int, right: int, fill: str,
) -> Tensor:  # fmt: skip
    """The definition, with the scores in memory: for a CPU, where the graph is checked."""
    groups = query.shape[1] // key.shape[1]
    exact = wide(query.dtype)
    scores = query.to(exact) @ key.repeat_interleave(groups, 1).to(exact).mT * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    q, k = torch.arange(query.shape[2], device=query.device)[:, None], torch.arange(key.shape[2], device=query.device)
    mask = (k <= q) if causal else torch.ones_like(k <= q)
    mask = mask & ((q - k <= left) | (left < 0)) & ((k - q <= right) | (right < 0))
    mask = mask.expand(query.shape[0], 1, -1, -1)
    if keep is not None:
        mask = mask & keep[:, None, None, :]
    if kept is not None:
        mask = mask & (k < kept[:, None, None, None])
    values = value.repeat_interleave(groups, 1).to(exact)
    out = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1) @ values
    filling = {"nan": torch.full_like(out, torch.nan), "zero": torch.zeros_like(out)}.get(fill, values.mean(-2, keepdim=True))
    return torch.where(mask.any(-1, keepdim=True), out, filling).to(query.dtype).transpose(1, 2).contiguous().transpose(1, 2)
