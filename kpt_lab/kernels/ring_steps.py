"""The steps of ring attention: who needs which keys when, their transfers, and the merging of what the steps give.

`kpt_lab.kernels.ring` says what it does and checks the arguments; nothing here does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from kpt_lab.kernels import blockwise

PIECES = 4  # head groups of a backward's last step: all but the last one's gradients travel behind the next one's arithmetic
LONG = 8192  # local tokens from which a quarter of the heads still fills a GPU
HEAD_START = 0  # cycles for which a GPU's compute stream sleeps once a transfer has started, so that the transfer's blocks are
# resident before a kernel that never gives a multiprocessor back takes them all; 0 until a machine shows that it pays


class Ring(NamedTuple):
    """This rank's place: its number, how many there are, their group, the layout and whether later keys are masked."""

    rank: int
    size: int
    group: Any
    layout: str
    causal: bool
    scale: float
    kernels: tuple[str, ...] | None

    def needs(self, rank: int, source: int, length: int) -> tuple[slice, slice] | None:
        """Which of a rank's `length` queries need which of the source's keys; None where none does. Not for its own keys."""
        whole = slice(0, length)
        if not self.causal:
            return whole, whole
        if self.layout == "contiguous":
            return (whole, whole) if source < rank else None
        return (whole, slice(0, length // 2)) if source < rank else (slice(length // 2, length), whole)

    def before(self, step: int) -> int:
        """The rank whose keys this one uses in a step."""
        return (self.rank - step) % self.size

    def after(self, step: int) -> int:
        """The rank that uses this one's keys in a step."""
        return (self.rank + step) % self.size


# ---- transfers


class _Transfer:
    """Sends and receives under way; `wait` gives what was received, in order."""

    def __init__(
        self, ring: Ring, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> None:
        group: Any = ring.group if ring.group is not None else dist.group.WORLD
        self.received = [tensor for tensor, _ in receives]
        self.sent = [tensor for tensor, _ in sends]  # kept until they are through
        operations = [
            dist.P2POp(operation, tensor, dist.get_global_rank(group, peer), ring.group)
            for operation, listed in ((dist.isend, sends), (dist.irecv, receives))
            for tensor, peer in listed
        ]
        self.works = dist.batch_isend_irecv(operations) if operations else []
        if HEAD_START and operations and operations[0].tensor.is_cuda:
            torch.cuda._sleep(HEAD_START)

    def wait(self) -> list[torch.Tensor]:
        """The received tensors; on CUDA the current stream waits, not the host."""
        for work in self.works:
            work.wait()
        self.works, self.sent = [], []
        return self.received


def _fetch(ring: Ring, step: int, k: torch.Tensor, v: torch.Tensor) -> _Transfer:
    """Send k and v to the rank that needs them in `step`, and receive those that this one needs: none where none does."""
    if step >= ring.size:
        return _Transfer(ring, [], [])
    to, source, length = ring.after(step), ring.before(step), k.shape[2]
    sends = [(k, to), (v, to)] if ring.needs(to, ring.rank, length) else []
    receives = [(torch.empty_like(x), source) for x in (k, v)] if ring.needs(ring.rank, source, length) else []
    return _Transfer(ring, sends, receives)


def _give_back(ring: Ring, step: int, mine: Sequence[torch.Tensor], like: Sequence[torch.Tensor]) -> _Transfer:
    """Send a block's gradients (none where nothing was needed) to their owner, and receive what another rank has for our keys."""
    sends = [(x.contiguous(), ring.before(step)) for x in mine]
    return _Transfer(ring, sends, [(torch.empty(x.shape, dtype=x.dtype, device=x.device), ring.after(step)) for x in like])


# ---- forward and backward


def _forward(ring: Ring, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output in q's dtype and the log-sum-exp of every row over the keys of all ranks."""
    length = q.shape[2]
    run = _kernels_for(ring, False, q, k)
    coming = _fetch(ring, 1, k, v)
    out, lse = run(ring.causal, q, k, v, ring.scale)
    if ring.size > 2:  # rows are merged more than once: rounded once only, at the end
        out = out.to(blockwise.wide(out.dtype))
    for step in range(1, ring.size):
        received, coming = coming.wait(), _fetch(ring, step + 1, k, v)
        if not (needed := ring.needs(ring.rank, ring.before(step), length)):
            continue
        rows, columns = needed
        block = run(False, q[:, :, rows], *(x[:, :, columns] for x in received), ring.scale)
        blockwise.merge(out[:, :, rows], lse[:, :, rows], *block)
    return out.to(q.dtype), lse


def _kernels_for(ring: Ring, backward: bool, q: torch.Tensor, k: torch.Tensor) -> Callable[..., Any]:
    """A function (causal, q or the upstream gradient, ...) that runs the kernel chosen for each kind of block, in advance."""
    needed = [ring.needs(ring.rank, source, q.shape[2]) for source in range(ring.size) if source != ring.rank]
    blocks = {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in filter(None, needed)}
    accepted = tuple(ring.kernels) if ring.kernels else None
    if backward and accepted:  # a kernel without a backward is followed by the next one that has it
        accepted += tuple(name for name in blockwise.order(q.device, q.dtype) if name not in accepted)
    chosen = {(q.shape[2], k.shape[2], ring.causal): blockwise.choose(backward, q, k, ring.causal, accepted)}
    for rows, columns in blocks:
        chosen[rows, columns, False] = blockwise.choose(backward, q[:, :, :rows], k[:, :, :columns], False, accepted)

    def run(causal: bool, *tensors: Any) -> Any:
        *given, scale = tensors
        query, key = given[1:3] if backward else given[:2]
        kernel = chosen[query.shape[2], key.shape[2], causal]
        return (kernel.backward if backward else kernel.forward)(*given, causal, scale)  # type: ignore[misc]

    return run


def _backward(
    ring: Ring, dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> list[torch.Tensor]:
    """The gradients of q, k and v: each block's by its kernel from the whole rows' `out` and `lse`, added in float32.

    With two ranks each element gets at most one addition, which rounds once in any case.
    """
    length, run = q.shape[2], _kernels_for(ring, True, q, k)
    coming = _fetch(ring, 1, k, v)
    totals = list(run(ring.causal, dout, q, k, v, out, lse, ring.scale))
    if ring.size > 2:
        totals = [x.to(blockwise.wide(x.dtype)) for x in totals]
    returning: list[tuple[_Transfer, slice, slice]] = []
    for step in range(1, ring.size):
        received, coming = coming.wait(), _fetch(ring, step + 1, k, v)
        mine = ring.needs(ring.rank, ring.before(step), length)
        theirs = ring.needs(ring.after(step), ring.rank, length)
        for heads, keys in _pieces(q, k, last=step == ring.size - 1):
            gradients, like = [], []
            if mine:
                rows, columns = mine
                queries = [x[:, heads, rows] for x in (dout, q, out)]
                block = [x[:, keys, columns] for x in received]
                # the kernels want adjacent rows of lse
                given = queries[0], queries[1], *block, queries[2], lse[:, heads, rows].contiguous(), ring.scale
                dq, *gradients = run(False, *given)
                totals[0][:, heads, rows].add_(dq)  # not +=, which would also copy the view onto itself
            if theirs:
                like = [x[:, keys, theirs[1]] for x in (k, v)]
                transfer = _give_back(ring, step, gradients, like)
                returning.append((transfer, keys, theirs[1]))
            elif gradients:
                returning.append((_give_back(ring, step, gradients, []), keys, slice(0)))
        _add_arrived(totals, returning, keep=0 if step == ring.size - 1 else 1)
    return [total.to(x.dtype) for total, x in zip(totals, (q, k, v), strict=True)]


def _add_arrived(totals: list[torch.Tensor], returning: list[tuple[_Transfer, slice, slice]], keep: int) -> None:
    """Add what other ranks computed for our keys, in order, but for the `keep` transfers that were started last."""
    while len(returning) > keep:
        transfer, keys, columns = returning.pop(0)
        for total, part in zip(totals[1:], transfer.wait(), strict=False):  # nothing was received where we only sent
            total[:, keys, columns].add_(part)


def _pieces(q: torch.Tensor, k: torch.Tensor, last: bool) -> list[tuple[slice, slice]]:
    """Groups of query heads with their key heads: one group, or PIECES in the last step of a long sequence."""
    group = q.shape[1] // k.shape[1]
    count = PIECES if last and k.shape[1] % PIECES == 0 and q.shape[2] >= LONG else 1
    size = k.shape[1] // count
    starts = [i * size for i in range(count)]
    return [(slice(s * group, (s + size) * group), slice(s, s + size)) for s in starts]


class Attention(torch.autograd.Function):
    """Attention of the local queries over all ranks' keys: apply(q, k, v, ring)."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ring: Ring) -> torch.Tensor:
        q = q if q.stride(-1) == 1 else q.contiguous()
        k, v = k.contiguous(), v.contiguous()  # as they travel
        out, lse = _forward(ring, q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.ring = ring
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # the kernels' gradients would silently be constants
            raise RuntimeError("ring attention has no second derivative; take its gradient without create_graph=True")
        q, k, v, out, lse = ctx.saved_tensors
        if dout.stride() != out.stride():  # kernels want them alike, and an expanded gradient has no memory of its own
            dout = torch.empty_like(out).copy_(dout)
        return *_backward(ctx.ring, dout, q, k, v, out, lse), None
