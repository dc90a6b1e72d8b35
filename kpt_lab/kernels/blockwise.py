"""Attention of some queries over one block of keys, with its log-sum-exp, so that blocks computed apart can be merged.

Every kernel here has one face. forward(q, k, v, causal, scale) gives (out, lse): out in q's dtype, lse the natural logarithm of
each row's sum of exponentials, float32 (float64 for float64), shape (batch, heads, queries). backward(dout, q, k, v, out, lse,
causal, scale) gives (dq, dk, dv) of this block alone, where `out` and `lse` are those of the whole row: with them each block's
share of the gradient is exact. q is (batch, heads, queries, width); k and v have as many heads or fewer (grouped queries);
causal means that query i sees keys 0 to i, for blocks with as many queries as keys.

`choose` takes the fastest kernel that has agreed with the plain one on a small block of the same kind on this device, so that
a build without a kernel, or one whose operator changed, is found before its first use and not by its version.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kpt_lab import kernels
from kpt_lab.kernels import jit, tl
from kpt_lab.testing import scaled_error

aten = torch.ops.aten
Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

SCORES = 2**26  # elements of scores that the plain kernel holds at a time
AGREEMENT = {torch.float16: 0.05, torch.bfloat16: 0.1}  # scaled error in `agrees`: tells another meaning, not another rounding
TRIAL = 128  # rows of the small block on which kernels are compared; the remainder of the real length is added


@dataclass(frozen=True)
class Kernel:
    """A way to compute one block; `backward` is None where it has none. Both raise where they can't take the inputs."""

    name: str
    forward: Callable[..., Pair]
    backward: Callable[..., Triple] | None


# ---- plain


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _scores(q: torch.Tensor, k: torch.Tensor, start: int, causal: bool, scale: float) -> torch.Tensor:
    """Scaled scores of grouped queries (batch, kv heads, group, rows, width), the first of which is query `start`."""
    scores = (q @ k.unsqueeze(2).transpose(-1, -2)).mul_(scale)
    if causal:
        rows = torch.arange(start, start + q.shape[-2], device=q.device)
        scores.masked_fill_(torch.arange(k.shape[-2], device=q.device) > rows[:, None], -torch.inf)
    return scores


def _grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    """(batch, heads, ...) as (batch, kv heads, group, ...) in the wide dtype."""
    return x.to(wide(x.dtype)).unflatten(1, (groups, -1))


def _chunks(q: torch.Tensor, k: torch.Tensor) -> range:
    """Where the chunks of queries start, so that their scores fit SCORES elements."""
    rows = max(1, SCORES // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    return range(0, q.shape[2], rows)


def plain_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float, first: int = 0) -> Pair:
    """The definition, in chunks of queries: any dtype, width and device; float32 inside (float64 for float64).

    Here, and in the backward, causal queries may start beside key `first` rather than key 0.
    """
    grouped, key, value = _grouped(q, k.shape[1]), k.to(wide(k.dtype)), v.to(wide(v.dtype))
    starts = _chunks(q, k)
    out, lse = [], []
    for start in starts:
        seen = slice(0, first + start + starts.step if causal else None)
        scores = _scores(grouped[..., start : start + starts.step, :], key[:, :, seen], first + start, causal, scale)
        lse.append(torch.logsumexp(scores, -1))
        out.append(scores.sub_(lse[-1].unsqueeze(-1)).exp_() @ value[:, :, seen].unsqueeze(2))
    return torch.cat(out, 3).flatten(1, 2).to(q.dtype), torch.cat(lse, 3).flatten(1, 2)


def plain_backward(
    dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    causal: bool, scale: float, first: int = 0,
) -> Triple:  # fmt: skip
    """The gradients by the definition, in chunks of queries."""
    groups, key, value = k.shape[1], k.to(wide(k.dtype)), v.to(wide(v.dtype))
    grouped, upstream, result, rows = (_grouped(x, groups) for x in (q, dout, out, lse))
    share = (upstream * result).sum(-1, keepdim=True)
    dq, dk, dv = torch.empty_like(grouped), torch.zeros_like(key), torch.zeros_like(value)
    starts = _chunks(q, k)
    for start in starts:
        part, seen = slice(start, start + starts.step), slice(0, first + start + starts.step if causal else None)
        some, some_values = key[:, :, seen], value[:, :, seen]
        p = _scores(grouped[..., part, :], some, first + start, causal, scale).sub_(rows[..., part].unsqueeze(-1)).exp_()
        dv[:, :, seen].add_((p.transpose(-1, -2) @ upstream[..., part, :]).sum(2))
        p *= (upstream[..., part, :] @ some_values.unsqueeze(2).transpose(-1, -2)).sub_(share[..., part, :]).mul_(scale)
        dq[..., part, :] = p @ some.unsqueeze(2)
        dk[:, :, seen].add_((p.transpose(-1, -2) @ grouped[..., part, :]).sum(2))
    return dq.flatten(1, 2).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


# ---- libraries


def _cpu_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float) -> Pair:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return out, lse.contiguous()


def _cpu_backward(dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float) -> Triple:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, out, lse, 0.0, causal, scale=scale)


def _flash_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float) -> Pair:
    return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)[:2]


def _cudnn_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float) -> Pair:
    out, lse = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False, scale=scale)[:2]
    return out, lse.squeeze(-1) if lse.dim() == 4 else lse


@functools.cache
def _leftovers(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, int]:
    """The random state that an operator's forward hands to its backward, unused without dropout, and the dimensions of its lse."""
    x = torch.zeros(1, 1, TRIAL, 64, device=device, dtype=dtype)
    if name == "flash":
        found = aten._scaled_dot_product_flash_attention(x, x, x, 0.0, False, False)
    else:
        found = aten._scaled_dot_product_cudnn_attention(x, x, x, None, True, 0.0, False, False)
    return found[6], found[7], found[1].dim()


def _flash_backward(dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float) -> Triple:
    seed, offset, _ = _leftovers("flash", q.device, q.dtype)
    return aten._scaled_dot_product_flash_attention_backward(
        dout, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, seed, offset, scale=scale
    )


def laid_out_like(out: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """`out` in the memory order in which cuDNN's own forward would have left it for such queries: itself, or a copy.

    Torch keeps cuDNN's backward graphs by the sizes and strides of q, k and v alone; the strides of `out` are those of the first
    call. An output of another kernel, laid out otherwise, would be read in the wrong order or beyond its end.
    """
    dims = sorted(range(4), key=q.stride().__getitem__, reverse=True)  # stable: as empty_like, from the outermost
    strides, step = [0] * 4, 1
    for dim in reversed(dims):
        strides[dim], step = step, step * out.shape[dim]
    if all(a == b or n == 1 for a, b, n in zip(out.stride(), strides, out.shape, strict=True)):
        return out
    return torch.empty_strided(out.shape, strides, dtype=out.dtype, device=out.device).copy_(out)


def cudnn_backward(dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float) -> Triple:
    """cuDNN's gradients, from the output and log-sum-exp of any kernel; of a single query or key by the definition.

    Torch refuses a single key, but only in front of its operator; cuDNN's planning itself ends the process for single ones.
    """
    if 1 in (q.shape[2], k.shape[2]):
        return plain_backward(dout, q, k, v, out, lse, causal, scale)
    seed, offset, dimensions = _leftovers("cudnn", q.device, q.dtype)
    lse = (lse.unsqueeze(-1) if dimensions == 4 else lse).contiguous()
    out = laid_out_like(out, q)
    return aten._scaled_dot_product_cudnn_attention_backward(
        dout, q, k, v, out, lse, seed, offset, None, None, None, q.shape[2], k.shape[2], 0.0, causal, scale=scale
    )


def fa3_launch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float, *, used: torch.Tensor | None = None,
    cap: float = 0.0, left: int = -1, right: int = -1,
) -> Pair:  # fmt: skip
    """FlashAttention-3's operator itself on (b, h, l, d) CUDA tensors whose last stride is 1; no gradient. Output and row sums.

    Its Python front end comes to the same call through more operators, whose dispatch costs the host time.
    used (b,), int32: how many keys of each batch row are attended; the kernel then splits the keys as it sees fit. cap, left, right:
    of its bent scores and its windows, as its front end takes them.
    """
    import fa3_fwd_interface  # type: ignore[import-not-found]  # noqa: F401 - registers the operator

    out, sums = torch.ops.fa3_fwd.fwd.default(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), seqused_k=used, softmax_scale=scale, is_causal=causal,
        window_size_left=left, window_size_right=right, softcap=cap, num_splits=1 if used is None else 0,
    )[:2]  # fmt: skip
    return out.transpose(1, 2), sums


def _fa3_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float) -> Pair:
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return fa3_launch(q, k, v, causal, scale)


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("fa3", _fa3_forward, None),
        Kernel("cudnn", _cudnn_forward, cudnn_backward),
        Kernel("flash", _flash_forward, _flash_backward),
        Kernel("cpu", _cpu_forward, _cpu_backward),
        Kernel("plain", plain_forward, plain_backward),
    )
}


# ---- which one


def order(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """Names of kernels from the fastest, as measured on an H100 in bfloat16; plain takes what the libraries don't."""
    if device.type == "cpu":
        return ("cpu", "plain")
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return ("plain",)
    hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    return ("fa3", "cudnn", "flash", "plain") if hopper else ("flash", "cudnn", "plain")


def choose(backward: bool, q: torch.Tensor, k: torch.Tensor, causal: bool, accepted: Sequence[str] | None = None) -> Kernel:
    """The first of the kernels in `order` (or of `accepted`) that agrees with the plain one on a small block like (q, k).

    ValueError where none of `accepted` does.
    """
    rows, columns = (n if n < TRIAL else TRIAL + n % TRIAL for n in (q.shape[2], k.shape[2]))
    names = tuple(accepted) if accepted else order(q.device, q.dtype)
    return _chosen(names, backward, q.device, q.dtype, (q.shape[1] // k.shape[1], rows, columns, q.shape[3]), causal)


@functools.cache
def _chosen(
    names: tuple[str, ...], backward: bool, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], causal: bool
) -> Kernel:
    said = []
    for name in names:
        if name not in KERNELS:
            raise ValueError(f"kernel is {name!r}; accepted are {', '.join(KERNELS)}")
        if not (reason := disagreement(KERNELS[name], backward, device, dtype, shape, causal)):
            return KERNELS[name]
        said.append(f"{name}: {reason}")
    raise ValueError(f"no kernel for {dtype} of width {shape[3]} on {device}: {'; '.join(said)}")


def disagreement(
    kernel: Kernel, backward: bool, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], causal: bool
) -> str:
    """Why a kernel can't be used for (queries per key, rows, columns, width) blocks, or "" where it agrees with the plain one."""
    if kernel.name == "plain":
        return ""
    group, rows, columns, width = shape
    generator = torch.Generator().manual_seed(0)
    sizes = (2 * group, rows), (2, columns), (2, columns), (2 * group, rows)
    q, k, v, dout = (
        torch.randn(1, heads, length, width, generator=generator).to(device=device, dtype=dtype) for heads, length in sizes
    )
    scale = width**-0.5
    out, lse = plain_forward(q, k, v, causal, scale)
    try:
        if not backward:
            pairs = list(zip(kernel.forward(q, k, v, causal, scale), (out, lse), strict=True))
        elif kernel.backward is None:
            return "has no backward"
        else:
            given = dout, q, k, v, out, lse, causal, scale
            pairs = list(zip(kernel.backward(*given), plain_backward(*given), strict=True))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except (RuntimeError, ImportError, TypeError, AttributeError, ValueError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    worst = max(scaled_error(mine.float(), exact.float()) for mine, exact in pairs)
    return "" if worst <= AGREEMENT.get(dtype, 1e-3) else f"differs from the plain kernel by {worst:.2g}"


# ---- merging


@jit
def _merge_rows(
    out_ptr, lse_ptr, block_ptr, block_lse_ptr, rows, heads, width,
    out_b, out_h, out_r, lse_b, lse_h, block_b, block_h, block_r, block_lse_b, block_lse_h,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out and lse of ROWS rows of one head become those of both blocks, in one read and one write."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = row < rows
    mask = inside[:, None] & (column < width)[None, :]
    lse_ptr += batch * lse_b + head * lse_h + row
    lse = tl.load(lse_ptr, mask=inside, other=0.0).to(WIDE)
    other = tl.load(block_lse_ptr + batch * block_lse_b + head * block_lse_h + row, mask=inside, other=0.0).to(WIDE)
    weight = 1.0 / (1.0 + tl.exp(lse - other))
    out_ptr += batch * out_b + head * out_h + row[:, None] * out_r + column[None, :]
    block_ptr += batch * block_b + head * block_h + row[:, None] * block_r + column[None, :]
    out = tl.load(out_ptr, mask=mask, other=0.0).to(WIDE)
    out += weight[:, None] * (tl.load(block_ptr, mask=mask, other=0.0).to(WIDE) - out)
    tl.store(out_ptr, out.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(lse_ptr, tl.maximum(lse, other) + tl.log(1.0 + tl.exp(-tl.abs(lse - other))), mask=inside)


def merge(out: torch.Tensor, lse: torch.Tensor, block: torch.Tensor, block_lse: torch.Tensor) -> None:
    """Write into `out` and `lse` what attention over both blocks of keys gives: in place, rounded to out's dtype once.

    out and block are (batch, heads, rows, width) with adjacent columns, of one or of two dtypes; lse and block_lse (batch,
    heads, rows) with adjacent rows. Every row must have a key in one of the blocks.
    """
    if out.is_cuda and kernels.triton is not None and not kernels.INTERPRETED:
        merge_on_gpu(out, lse, block, block_lse)
        return
    weight = torch.sigmoid(block_lse - lse).unsqueeze(-1)
    exact = out.to(wide(out.dtype))
    out.copy_(exact + weight * (block.to(exact.dtype) - exact))
    lse.copy_(torch.logaddexp(lse, block_lse))


def merge_on_gpu(out: torch.Tensor, lse: torch.Tensor, block: torch.Tensor, block_lse: torch.Tensor) -> None:
    """`merge` in one Triton kernel."""
    batch, heads, rows, width = out.shape
    if not out.numel():
        return
    columns = 1 << max(width - 1, 0).bit_length()
    size = max(1, 4096 // columns)
    strides = *out.stride()[:3], *lse.stride()[:2], *block.stride()[:3], *block_lse.stride()[:2]
    with kernels.on_device_of(out):
        _merge_rows[(-(-rows // size), batch * heads)](
            out, lse, block, block_lse, rows, heads, width, *strides, size, columns, kernels.accumulator(out.dtype), num_warps=4
        )
