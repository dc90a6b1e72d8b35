"""Ring attention: exact attention over a sequence whose tokens are spread over the ranks of a torch.distributed group.

Every rank keeps its own queries. In step i it computes them against the keys and values of the rank i places before it, while
those of the next step are on their way; what the steps give is merged by log-sum-exp in float32, always in the same order, so
that the forward is bitwise the same from run to run. A block travels from its owner straight to the rank that needs it (as many
bytes as a ring that hands it on, and no step waits for another), and in the backward each block's key and value gradients go
straight back as the kernel rounded them, to be added up by their owner.

Layouts: with "zigzag" rank i of n holds chunks i and 2n-1-i of 2n, so that under a causal mask all ranks have the same work and
every step computes only what is needed: all queries against the first half of the keys, or the second half of the queries
against all keys. With "contiguous" rank i holds chunk i of n; causal work then grows with the rank.

What it costs: per step one block's keys and values over the link, behind the arithmetic of a whole block; one merge that reads
and writes the output. Where it loses: sequences so short that a block's arithmetic doesn't hide its transfer.
All ranks must call it with the same shapes. torch.compile breaks its graph here; second derivatives are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from kpt_lab.core import Cost, Problem, Technique, Unsupported, Workload, dtype_name, to_dtype
from kpt_lab.kernels import TIMED, blockwise
from kpt_lab.kernels.ring_steps import Attention, Ring

Layout = Literal["zigzag", "contiguous"]
LAYOUTS = ("zigzag", "contiguous")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# ---- arguments


def _layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; accepted are {' and '.join(map(repr, LAYOUTS))}")


def _place(group: Any) -> tuple[int, int]:
    """This rank's number in the group and the number of ranks; ValueError where there is no group or it is not in it."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "group needs torch.distributed to be initialised; start with torchrun and call init_process_group first"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group does not hold this rank; call it on the group's own ranks only")
    return rank, dist.get_world_size(group)


def _checked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: str) -> None:
    """ValueError with one sentence where q, k and v are no shards that attention can take."""
    _layout(layout)
    if any(x.dim() != 4 for x in (q, k, v)):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v have shapes {shapes}; each must be (batch, heads, local tokens, width)")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"q is {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}; they must agree in all but q's number of heads"
        )
    if not q.numel() or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q has {q.shape[1]} heads and k {k.shape[1]} in shape {tuple(q.shape)}; q's must be a multiple, and nothing empty"
        )
    if layout == "zigzag" and q.shape[2] % 2:
        raise ValueError(f"a rank holds {q.shape[2]} tokens; layout 'zigzag' needs an even number, two chunks of one length")
    if len({(x.dtype, x.device) for x in (q, k, v)}) > 1 or q.dtype not in DTYPES:
        found = ", ".join(f"{dtype_name(x.dtype)} on {x.device}" for x in (q, k, v))
        accepted = ", ".join(map(dtype_name, DTYPES))
        raise ValueError(f"q, k and v are {found}; they must be of one dtype ({accepted}) on one device")


# ---- the public face


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group: Any = None,
    causal: bool = False,
    layout: Layout = "zigzag",
    scale: float | None = None,
    kernels: Sequence[str] | None = None,
) -> torch.Tensor:
    """Attention of this rank's queries over the keys of all ranks: (batch, heads, local tokens, width) in and out.

    k and v may have fewer heads, each shared by a group of q's. group: the ranks that share the sequence, None for all;
    every one of them must call this, with equal shapes. layout: how `shard` dealt out the tokens. scale: 1/sqrt(width) unless
    given. kernels: names from `blockwise.KERNELS` to choose from, the fastest that works unless given. Differentiable once.
    Raises ValueError, before anything is sent, where an argument can't be used.
    """
    _checked(q, k, v, layout)
    rank, count = _place(group)
    ring = Ring(
        rank, count, group, layout, bool(causal), float(q.shape[3] ** -0.5 if scale is None else scale),
        tuple(kernels) if kernels else None,
    )  # fmt: skip
    return Attention.apply(q, k, v, ring)


def shard(x: torch.Tensor, dim: int, group: Any = None, layout: Layout | str = "zigzag") -> torch.Tensor:
    """This rank's share of x along `dim`: 1/n of it, as a copy; ValueError where the length does not divide into the chunks."""
    _layout(layout)
    rank, count = _place(group)
    chunks = count if layout == "contiguous" else 2 * count
    if x.shape[dim] % chunks:
        raise ValueError(
            f"x has length {x.shape[dim]} along dim {dim}; layout {layout!r} on {count} ranks needs a multiple of {chunks}"
        )
    parts = x.chunk(chunks, dim) if x.shape[dim] else [x] * chunks
    return parts[rank].clone() if layout == "contiguous" else torch.cat([parts[rank], parts[chunks - 1 - rank]], dim)


def unshard(x: torch.Tensor, dim: int, group: Any = None, layout: Layout | str = "zigzag") -> torch.Tensor:
    """The whole of which every rank holds the share x, on every rank; the inverse of `shard`.

    Its gradient is the sum of all ranks' gradients of the whole: let the ranks' losses add up to the loss. ValueError where
    layout "zigzag" meets an odd length.
    """
    _layout(layout)
    _place(group)
    if layout == "zigzag" and x.shape[dim] % 2:
        raise ValueError(
            f"x has length {x.shape[dim]} along dim {dim}; layout 'zigzag' needs an even number, two chunks a rank"
        )
    return _Gather.apply(x, dim, group, layout)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, group: Any, layout: str) -> torch.Tensor:
        ctx.settings = dim, group, layout
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x, group=group)
        if layout == "contiguous":
            return torch.cat(parts, dim)
        firsts, seconds = zip(*(part.chunk(2, dim) for part in parts), strict=True)
        return torch.cat([*firsts, *reversed(seconds)], dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dim, group, layout = ctx.settings
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return shard(total, dim, group, layout), None, None, None


# ---- workloads

EXACT = 2**33  # scores of a rank from which the oracle is float32: 16k tokens on two ranks with 32 heads have 2**32


@dataclass(frozen=True)
class Specification:
    """Attention without a ring: gather all keys and values, then each chunk of tokens held here against those that it sees.

    16-bit tensors take PyTorch's own function; wider ones (the oracle) the definition in chunks of queries, since PyTorch would
    hold all scores at once, and ranks that run out of memory one by one would lose each other. On CUDA float64 is refused above
    EXACT scores a rank, so that measure takes a float32 oracle: it computes a dozen, and each would take many seconds.
    """

    causal: bool
    layout: str

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = q.shape[0] * q.shape[1] * q.shape[2] ** 2 * _place(None)[1]
        if q.is_cuda and q.dtype == torch.float64 and scores > EXACT:
            raise NotImplementedError(f"{scores:.2g} scores a rank are too many for a float64 oracle")
        keys, values = (unshard(x, 2, None, self.layout) for x in (k, v))
        rank, count = _place(None)
        places = [rank] if self.layout == "contiguous" else [rank, 2 * count - 1 - rank]
        chunks = q.chunk(len(places), 2) if self.causal else [q]
        outs = []
        for chunk, place in zip(chunks, places, strict=False):
            end = (place + 1) * chunk.shape[2] if self.causal else keys.shape[2]
            first = end - chunk.shape[2] if self.causal else -1
            one = _library if q.dtype in (torch.float16, torch.bfloat16) else _Definition.apply
            outs.append(one(chunk, keys[:, :, :end], values[:, :, :end], first))
        return torch.cat(outs, 2)


def _library(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: int) -> torch.Tensor:
    from torch.nn.attention.bias import causal_lower_right  # slow to import

    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    mask: Any = causal_lower_right(q.shape[2], k.shape[2]) if first >= 0 else None
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)


class _Definition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: int) -> torch.Tensor:
        ctx.settings = first >= 0, q.shape[3] ** -0.5, max(first, 0)
        out, lse = blockwise.plain_forward(q, k, v, *ctx.settings)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *blockwise.plain_backward(dout, *ctx.saved_tensors, *ctx.settings), None


def _inputs(
    device: str, dtype: Any, seed: int, batch: int, heads: int, groups: int, length: int, width: int, layout: str, extra: bool
) -> list[tuple[torch.Tensor, ...]]:
    """Three sets of this rank's shards of q, k, v (and an upstream gradient), standard normal, other on every rank."""
    _layout(layout)
    rank, count = _place(None)
    if groups < 1 or heads % groups:
        raise ValueError(f"heads is {heads} and groups is {groups}; groups, the number of key heads, must divide heads")
    if length % (2 * count):
        raise ValueError(f"length is {length}; {count} ranks need a multiple of {2 * count}, two chunks of tokens each")
    device = f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device
    generator = torch.Generator(device).manual_seed(seed * count + rank)
    counts = (heads, groups, groups, heads)[: 4 if extra else 3]
    return [
        tuple(
            torch.randn(batch, n, length // count, width, generator=generator, device=device, dtype=to_dtype(dtype))
            for n in counts
        )
        for _ in range(3)
    ]


def _make_forward(
    *, device: str, dtype: Any, seed: int, length: int, batch: int = 1, heads: int = 32, groups: int = 32, width: int = 128,
    causal: bool = True, layout: str = "zigzag",
) -> Problem:  # fmt: skip
    """Attention over `length` tokens on all ranks of the default group; groups is the number of key heads."""
    return Problem(
        Specification(causal, layout), _inputs(device, dtype, seed, batch, heads, groups, length, width, layout, False)
    )


def _make_backward(
    *, device: str, dtype: Any, seed: int, length: int, batch: int = 1, heads: int = 32, groups: int = 32, width: int = 128,
    causal: bool = True, layout: str = "zigzag",
) -> Problem:  # fmt: skip
    """The same with an upstream gradient; the step gives the output and the gradients of q, k and v."""
    inputs = _inputs(device, dtype, seed, batch, heads, groups, length, width, layout, True)
    return Problem(Specification(causal, layout), inputs, drive=forward_and_backward)


def forward_and_backward(candidate: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The step of the `backward` workload: (q, k, v, upstream gradient) -> (output, gradients of q, k and v)."""

    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = [x.detach().requires_grad_() for x in (q, k, v)]
        out = candidate(*given)
        return out.detach(), *torch.autograd.grad(out, given, upstream)

    return step


def _cost(products: int) -> Callable[..., Cost]:
    """Work of one rank: `products` matrix products over the pairs of tokens that see each other, and its own tensors once."""

    def cost(*, dtype: Any, length: int, batch: int, heads: int, groups: int, width: int, causal: bool, layout: str) -> Cost:
        count = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        pairs = length * (length + 1) / 2 if causal else length * length
        elements = batch * length * width * (heads + groups) / count
        tensors = 2 if products == 2 else 5  # q, k, v and out; then dout, dq, dk and dv as well, and out and q again
        return Cost(
            {dtype_name(to_dtype(dtype)): 2 * products * batch * heads * width * pairs / count},
            tensors * elements * to_dtype(dtype).itemsize,
        )

    return cost


forward = Workload("ring.forward", _make_forward, cost=_cost(2), dtypes=TIMED)
backward = Workload("ring.backward", _make_backward, cost=_cost(7), dtypes=TIMED)


# ---- techniques


def _specified(technique: str, fn: Any) -> Specification:
    if not isinstance(fn, Specification):
        raise Unsupported(f"{technique} replaces kpt_lab.kernels.ring's own workloads; it was given {fn!r}")
    return fn


def _apply_ring(fn: Any, args: tuple, kernel: str = "") -> Callable[..., torch.Tensor]:
    spec = _specified("ring", fn)
    chosen = (kernel,) if kernel else None
    return lambda q, k, v: attention(q, k, v, causal=spec.causal, layout=spec.layout, kernels=chosen)  # type: ignore[arg-type]


def _apply_context_parallel(
    fn: Any, args: tuple, rotate: str = "allgather", kernel: str = "cudnn", expand: bool = False
) -> Callable[..., torch.Tensor]:
    """What torch's context_parallel makes of SDPA, without its sharding of buffers in every call: the shards are there already.

    rotate: "allgather" or "alltoall". kernel: "cudnn", "flash", "efficient", or "" for SDPA's own choice. expand: give each
    query head its own copy of the keys first, where grouped ones aren't taken.
    """
    spec = _specified("context_parallel", fn)
    if args[0].device.type == "cpu":
        raise Unsupported("context_parallel: torch has no ring for its CPU attention; it needs CUDA")
    try:
        from torch.distributed.tensor.experimental import _attention as library

        options, enable, set_rotate = (
            library._cp_options,
            library._enable_context_parallel_dispatcher,
            library.set_rotate_method,
        )
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"context_parallel: this torch's has another shape ({error})") from error
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.nn.attention import SDPBackend, sdpa_kernel

    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    backends = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    if kernel and kernel not in backends:
        raise Unsupported(f"context_parallel: kernel is {kernel!r}; accepted are {', '.join(map(repr, backends))} and ''")
    enable()  # acts on DTensors alone

    def candidate(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        options.enable_load_balance = spec.causal and spec.layout == "zigzag"
        set_rotate(rotate)
        if expand:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        whole: list[Any] = [DTensor.from_local(x, mesh, [Shard(2)], run_check=False) for x in (q, k, v)]
        with sdpa_kernel(backends[kernel]) if kernel else nullcontext():
            query, key, value = whole
            grouped = q.shape[1] != k.shape[1]
            out: Any = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=spec.causal, enable_gqa=grouped
            )
        return out.to_local()

    return candidate


ring = Technique("ring", _apply_ring, stage="parallel", replaces=frozenset({"attention"}))
context_parallel = Technique(
    "context_parallel", _apply_context_parallel, stage="parallel", replaces=frozenset({"attention"}), baseline=True
)

techniques = (context_parallel, ring)

record_grid = ()
"""Nothing here can be recorded by one process: benchmarks/ring_attention.py records it under torchrun."""
