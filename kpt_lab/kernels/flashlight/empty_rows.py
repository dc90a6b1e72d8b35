"""What a query without any key gets, written into an attention's output in place: the mean of all values, or NaN, as eager has it.

A `where` over the whole output would read and write it once more and hold it twice, and would average all values though hardly
any row is empty. The operator here reads the row sums, and only where one is -inf does it read values and write. It has no
gradient: a lowering that trains keeps the `where`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kpt_lab import kernels
from kpt_lab.kernels import jit, tl
from kpt_lab.kernels.blockwise import wide

SCANNED = 1024  # rows of a program: it averages a head's values at most once for all of them
TILE = 4096  # elements that a program reads or writes at a time


@jit
def _fill(
    out_ptr, lse_ptr, value_ptr, rows, keys, heads, width, groups,
    out_b, out_h, out_r, out_c, lse_b, lse_h, lse_r, value_b, value_h, value_r, value_c,
    INFINITE: tl.constexpr, ROWS: tl.constexpr, TALL: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The empty ones of ROWS rows of one head, TALL rows of out or of the values at a time."""
    batch, head = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    first = tl.program_id(1).to(tl.int64) * ROWS
    lse_ptr += batch * lse_b + head * lse_h
    scanned = first + tl.arange(0, ROWS)
    lse = tl.load(lse_ptr + scanned * lse_r, mask=scanned < rows, other=0.0)
    if tl.max((lse == float("-inf")).to(tl.int32), 0) == 0:
        return
    column = tl.arange(0, WIDTH)[None, :]
    inside = column < width
    if INFINITE:
        filling = tl.full([WIDTH], float("nan"), WIDE)
    else:
        value_ptr += batch * value_b + (head // groups) * value_h
        key, total = tl.arange(0, TALL).to(tl.int64)[:, None], tl.zeros([TALL, WIDTH], WIDE)
        start = 0
        while start < keys:  # not a range: Triton 3.6's interpreter takes no tensor as its end
            at = start + key
            total += tl.load(value_ptr + at * value_r + column * value_c, mask=(at < keys) & inside, other=0.0).to(WIDE)
            start += TALL
        filling = tl.sum(total, 0) / keys
    filled = tl.broadcast_to(filling[None, :], [TALL, WIDTH]).to(out_ptr.dtype.element_ty)
    out_ptr += batch * out_b + head * out_h
    for begin in range(0, ROWS, TALL):
        row = first + begin + tl.arange(0, TALL)
        empty = tl.load(lse_ptr + row * lse_r, mask=row < rows, other=0.0) == float("-inf")
        tl.store(out_ptr + row[:, None] * out_r + column * out_c, filled, mask=empty[:, None] & inside)


def fill_on_gpu(out: Tensor, lse: Tensor, value: Tensor, groups: int, infinite: bool) -> None:
    """`fill_empty_rows` in one Triton kernel, for at least one key."""
    batch, heads, rows, width = out.shape
    if not out.numel():
        return
    columns = 1 << max(width - 1, 0).bit_length()
    tall = max(1, min(SCANNED, TILE // columns))
    with kernels.on_device_of(out):  # heads before rows: the grid's second extent ends at 65535
        _fill[(batch * heads, -(-rows // SCANNED))](
            out, lse, value, rows, value.shape[2], heads, width, groups, *out.stride(), *lse.stride(), *value.stride(),
            infinite, SCANNED, tall, columns, kernels.accumulator(out.dtype), num_warps=4,
        )  # fmt: skip


def _fill_plainly(out: Tensor, lse: Tensor, value: Tensor, groups: int, infinite: bool) -> None:
    empty = (lse == -torch.inf).unsqueeze(-1)
    if infinite:
        out.masked_fill_(empty, torch.nan)
    else:
        mean = value.mean(-2, keepdim=True, dtype=wide(value.dtype)).to(out.dtype)
        out.copy_(torch.where(empty, mean.repeat_interleave(groups, 1), out))


@torch.library.custom_op("kpt_lab::fill_empty_rows", mutates_args=("out",))
def fill_empty_rows(out: Tensor, lse: Tensor, value: Tensor, groups: int, infinite: bool) -> None:
    """Write into the rows of out (b, h, l, d) whose lse (b, h, l) is -inf: NaN if `infinite`, else the mean over value's keys.

    value is (b, h / groups, keys, d), and head h reads its head h // groups; any strides. Without any key there is nothing to
    average or to hide, and eager's sum over no keys is 0.
    """
    if not value.shape[2]:
        out.zero_()
    elif out.is_cuda and kernels.triton is not None and not kernels.INTERPRETED:
        fill_on_gpu(out, lse, value, groups, infinite)
    else:
        _fill_plainly(out, lse, value, groups, infinite)
