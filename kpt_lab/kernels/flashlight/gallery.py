"""Variants of attention as their papers write them: plain PyTorch, no fused operator, each with its source.

Query, key and value are (batch, heads, length, width) unless a variant says otherwise; further arguments are what a model
would hold or be given: documents, lengths, learned tables. `VARIANTS` lists those that FlashLight fuses, `REFUSED` those
that it must leave alone. Nothing here knows of FlashLight.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kpt_lab.kernels.flashlight import gallery_refused as refused

WINDOW, SINKS, CHUNK, STEP, PREFIX, CAP = 200, 4, 256, 4, 300, 30.0
BUCKETS, FARTHEST = 32, 128  # T5's relative positions


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query attends every key."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, dim=-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A query attends itself and what is before it."""
    n = q.shape[-2]
    keep = torch.tril(torch.ones(n, n, dtype=torch.bool, device=q.device))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return torch.softmax(scores.masked_fill(~keep, float("-inf")), dim=-1) @ v


def sliding_window(q: Tensor, k: Tensor, v: Tensor, window: int = WINDOW) -> Tensor:
    """A query attends itself and the last tokens before it."""
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = torch.where((j <= i) & (i - j < window), scores, -1e9)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def prefix_lm(q: Tensor, k: Tensor, v: Tensor, prefix: int = PREFIX) -> Tensor:
    """All attend the prefix, and from there on what is before them."""
    n = q.shape[-2]
    keep = torch.ones(n, n, dtype=torch.bool).tril()
    keep[:, :prefix] = True
    scores = (q @ k.mT) / q.shape[-1] ** 0.5
    return scores.masked_fill(keep.logical_not(), -math.inf).softmax(-1) @ v


def packed_documents(q: Tensor, k: Tensor, v: Tensor, begins: Tensor) -> Tensor:
    """Several documents in one row, each for itself; `begins` is 1 at each first token."""
    document = begins.cumsum(-1)
    same = document[:, None, :, None] == document[:, None, None, :]
    i = torch.arange(q.shape[-2])
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return scores.masked_fill(~(same & (i[:, None] >= i)), -1e9).softmax(-1) @ v


def padding(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """Padding is not attended: a very negative number is added where `real` is False."""
    mask = (1.0 - real[:, None, None, :].to(q.dtype)) * torch.finfo(q.dtype).min
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1)) + mask
    return torch.nn.functional.softmax(scores, dim=-1) @ v


def dilated(q: Tensor, k: Tensor, v: Tensor, step: int = STEP) -> Tensor:
    """Of the tokens before it a query attends one in every `step`."""
    distance = torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])
    keep = (distance >= 0) & (distance % step == 0)
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~keep, -math.inf).softmax(-1) @ v


def chunked(q: Tensor, k: Tensor, v: Tensor, chunk: int = CHUNK) -> Tensor:
    """Causal inside chunks of a fixed length."""
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    keep = (i // chunk == j // chunk) & (i >= j)
    return torch.where(keep, q @ k.mT * q.shape[-1] ** -0.5, -math.inf).softmax(-1) @ v


def sinks_and_window(q: Tensor, k: Tensor, v: Tensor, sinks: int = SINKS, window: int = WINDOW) -> Tensor:
    """The first tokens stay in sight beside a window."""
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    keep = (j <= i) & ((i - j < window) | (j < sinks))
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~keep, -math.inf).softmax(-1) @ v


def alibi(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """Causal, and what is far away scores less, by a slope for each head."""
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    scores = q @ k.mT / q.shape[-1] ** 0.5 + slopes[:, None, None] * (j - i)
    return scores.masked_fill(j > i, -math.inf).softmax(-1) @ v


def softcap(q: Tensor, k: Tensor, v: Tensor, cap: float = CAP) -> Tensor:
    """Causal, with scores that can't leave an interval."""
    n = q.shape[-2]
    scores = cap * torch.tanh(q @ k.mT * q.shape[-1] ** -0.5 / cap)
    return scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).softmax(-1) @ v


def relative_buckets(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """A learned bias for each head and bucket of distances, (buckets, heads), and no scale."""
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    distance, exact = (j - i).abs(), BUCKETS // 4
    far = exact + (torch.log(distance.clamp(min=1) / exact) / math.log(FARTHEST / exact) * exact).long()
    bucket = (j > i) * (BUCKETS // 2) + torch.where(distance < exact, distance, far.clamp(max=BUCKETS // 2 - 1))
    return (q @ k.mT + table[bucket].permute(2, 0, 1)).softmax(-1) @ v


def window_table(q: Tensor, k: Tensor, v: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Patches of an image's window: a learned bias for each head and offset in two dimensions."""
    n = q.shape[-2]
    bias = table[index.view(-1)].view(n, n, -1).permute(2, 0, 1)
    return (q * q.shape[-1] ** -0.5 @ k.mT + bias.unsqueeze(0)).softmax(-1) @ v


def head_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """A learned bias for each head, query and key, (heads, query, key), as AlphaFold's pairs give it."""
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias, -1) @ v


def grouped_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal; several query heads share one head of keys and values."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    i = torch.arange(q.shape[-2])
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(i[:, None] < i, -math.inf).softmax(-1) @ v


def differential(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """The difference of two causal softmaxes, which cancels what both attend; q and k have twice the heads."""
    i = torch.arange(q.shape[-2])
    (q1, q2), (k1, k2) = q.chunk(2, dim=1), k.chunk(2, dim=1)
    first, second = ((a @ b.mT * a.shape[-1] ** -0.5).masked_fill(i[:, None] < i, -math.inf) for a, b in ((q1, k1), (q2, k2)))
    return (first.softmax(-1) - weight * second.softmax(-1)) @ v


def cosine(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Scores are cosines times a learned factor for each head."""
    q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    return (q @ k.mT * temperature.clamp(max=4.6).exp()).softmax(-1) @ v


def tree(q: Tensor, k: Tensor, v: Tensor, ancestor: Tensor) -> Tensor:
    """Drafted tokens form a tree; a token attends those that `ancestor`, (query, key), names."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bhkd->bhqd", scores.masked_fill(~ancestor, -1e30).softmax(-1), v)


def decode(q: Tensor, k: Tensor, v: Tensor, filled: Tensor) -> Tensor:
    """One new query against a cache, of which each row has filled another part."""
    keep = torch.arange(k.shape[-2]) < filled[:, None, None, None]
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~keep, -math.inf).softmax(-1) @ v


def chunk_of_prompt(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The last piece of a long prompt: causal, but the queries begin behind the keys that are cached."""
    offset = k.shape[-2] - q.shape[-2]
    i, j = torch.arange(q.shape[-2])[:, None] + offset, torch.arange(k.shape[-2])
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(i < j, -math.inf).softmax(-1) @ v


def cross(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    """Queries of one sequence, keys of another, which is padded."""
    keep = torch.arange(k.shape[-2]) < lengths[:, None]
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~keep[:, None, None], -1e9).softmax(-1) @ v


def neighbourhood(q: Tensor, k: Tensor, v: Tensor, side: int = 5) -> Tensor:
    """Pixels of a square image, row after row: a query attends a square around itself."""
    edge = math.isqrt(q.shape[-2])
    y, x = torch.arange(q.shape[-2]) // edge, torch.arange(q.shape[-2]) % edge
    near = ((y[:, None] - y).abs() <= side // 2) & ((x[:, None] - x).abs() <= side // 2)
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~near, -math.inf).softmax(-1) @ v


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The softmax itself written out, with its maximum subtracted."""
    scores = torch.baddbmm(q.new_zeros(1), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=q.shape[-1] ** -0.5)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return ((weights / weights.sum(-1, keepdim=True)) @ v.flatten(0, 1)).view(v.shape)


def no_dropout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, with a dropout that is switched off, as in every evaluation."""
    i = torch.arange(q.shape[-2])
    weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(i[:, None] < i, -math.inf).softmax(-1)
    return torch.nn.functional.dropout(weights, p=0.0, training=True) @ v


# ---- with what each is called


class Variant(NamedTuple):
    """A variant: its function, where it is from, and what makes its arguments.

    make: (length, batch, heads, width, generator) -> arguments, float32 on a CPU; q, k and v come first.
    """

    function: Callable[..., Any]
    origin: str
    make: Callable[[int, int, int, int, torch.Generator], tuple[Tensor, ...]]

    @property
    def name(self) -> str:
        """The function's name, in words."""
        return self.function.__name__.replace("_", " ")

    @property
    def description(self) -> str:
        """The first sentence of the function's docstring."""
        return inspect.cleandoc(self.function.__doc__ or "").splitlines()[0]

    def arguments(self, length: int = 64, batch: int = 2, heads: int = 2, width: int = 16, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of normal numbers, the same for the same seed; some variants fix a shape of their own."""
        return self.make(length, batch, heads, width, torch.Generator().manual_seed(seed))


def source(function: Callable[..., Any]) -> str:
    """The text of a function without decorators and docstring."""
    lines = inspect.getsource(function).rstrip().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("def "))
    return "\n".join(line for line in lines[begin:] if not line.lstrip().startswith('"""'))


Make = Callable[[int, int, int, int, torch.Generator], tuple[Tensor, ...]]


def _with(extra: Callable[[int, int, int, torch.Generator], tuple[Tensor, ...]] = lambda *_: ()) -> Make:
    def make(n: int, b: int, h: int, d: int, g: torch.Generator) -> tuple[Tensor, ...]:
        return (*(torch.randn(b, h, n, d, generator=g) for _ in "qkv"), *extra(n, b, h, g))

    return make


def _begins(n: int, b: int, h: int, g: torch.Generator) -> tuple[Tensor, ...]:
    return (((torch.arange(n) * 7 // n).diff(prepend=torch.tensor([-1])) > 0).long().expand(b, n).clone(),)


def _real(n: int, b: int, h: int, g: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.arange(n) < torch.linspace(0.6 * n, n, b)[:, None],)


def _slopes(n: int, b: int, h: int, g: torch.Generator) -> tuple[Tensor, ...]:
    return (2.0 ** (-8 * torch.arange(1, h + 1) / h),)


def _swin(n: int, b: int, h: int, d: int, g: torch.Generator) -> tuple[Tensor, ...]:
    edge = math.isqrt(n)
    y, x = torch.arange(edge * edge) // edge, torch.arange(edge * edge) % edge
    index = (y[:, None] - y + edge - 1) * (2 * edge - 1) + x[:, None] - x + edge - 1
    return (*_with()(edge * edge, b, h, d, g), torch.randn((2 * edge - 1) ** 2, h, generator=g), index)


def _grouped(n: int, b: int, h: int, d: int, g: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randn(b, 4 * h, n, d, generator=g), *(torch.randn(b, h, n, d, generator=g) for _ in "kv")


def _double(n: int, b: int, h: int, d: int, g: torch.Generator) -> tuple[Tensor, ...]:
    q, k = (torch.randn(b, 2 * h, n, d, generator=g) for _ in "qk")
    return q, k, torch.randn(b, h, n, d, generator=g), torch.tensor(0.4)


def _image(n: int, b: int, h: int, d: int, g: torch.Generator) -> tuple[Tensor, ...]:
    return _with()(math.isqrt(n) ** 2, b, h, d, g)


def _ancestors(n: int, b: int, h: int, g: torch.Generator) -> tuple[Tensor, ...]:
    keep, parent = torch.eye(n, dtype=torch.bool), [max((i - 1) // 2, 0) for i in range(n)]
    for i in range(1, n):
        keep[i] |= keep[parent[i]]
    return (keep,)


def _one_query(n: int, b: int, h: int, d: int, g: torch.Generator) -> tuple[Tensor, ...]:
    q, k, v = _with()(n, b, h, d, g)
    return q[:, :, :1].contiguous(), k, v, torch.linspace(0.4 * n, n, b).long()


def _fewer_queries(n: int, b: int, h: int, d: int, g: torch.Generator, count: int = 4) -> tuple[Tensor, ...]:
    q, k, v = _with()(n, b, h, d, g)
    return q[:, :, : n // count].contiguous(), k, v


def _crossed(n: int, b: int, h: int, d: int, g: torch.Generator) -> tuple[Tensor, ...]:
    return *_fewer_queries(n, b, h, d, g, 2), torch.linspace(0.7 * n, n, b).long()


VARIANTS: tuple[Variant, ...] = (
    Variant(plain, "Vaswani et al., arXiv:1706.03762", _with()),
    Variant(causal, "Vaswani et al., arXiv:1706.03762", _with()),
    Variant(sliding_window, "Mistral, arXiv:2310.06825", _with()),
    Variant(prefix_lm, "Raffel et al., arXiv:1910.10683", _with()),
    Variant(packed_documents, "Krell et al., arXiv:2107.02027", _with(_begins)),
    Variant(padding, "BERT in Transformers, arXiv:1810.04805", _with(_real)),
    Variant(dilated, "Child et al., arXiv:1904.10509", _with()),
    Variant(chunked, "Llama 4 in Transformers", _with()),
    Variant(sinks_and_window, "StreamingLLM, arXiv:2309.17453", _with()),
    Variant(alibi, "Press et al., arXiv:2108.12409", _with(_slopes)),
    Variant(softcap, "Gemma 2, arXiv:2408.00118", _with()),
    Variant(relative_buckets, "T5, arXiv:1910.10683", _with(lambda n, b, h, g: (torch.randn(BUCKETS, h, generator=g),))),
    Variant(window_table, "Swin, arXiv:2103.14030", _swin),
    Variant(head_bias, "AlphaFold 2, Nature 596", _with(lambda n, b, h, g: (torch.randn(h, n, n, generator=g),))),
    Variant(grouped_queries, "Ainslie et al., arXiv:2305.13245", _grouped),
    Variant(differential, "Ye et al., arXiv:2410.05258", _double),
    Variant(cosine, "Swin v2, arXiv:2111.09883", _with(lambda n, b, h, g: (torch.randn(h, 1, 1, generator=g),))),
    Variant(tree, "SpecInfer, arXiv:2305.09781", _with(_ancestors)),
    Variant(decode, "the usual step of a generation", _one_query),
    Variant(chunk_of_prompt, "SARATHI, arXiv:2308.16369", _fewer_queries),
    Variant(cross, "Vaswani et al., arXiv:1706.03762", _crossed),
    Variant(neighbourhood, "NATTEN, arXiv:2204.07143", _image),
    Variant(by_hand, "many repositories", _with()),
    Variant(no_dropout, "every model in evaluation", _with()),
)
REFUSED: tuple[Variant, ...] = tuple(
    Variant(function, origin, _with(extra or (lambda *_: ())))
    for function, origin, extra in (
        (refused.weights_returned, "every plot of attention weights", None),
        (refused.top_k, "Gupta et al., arXiv:2106.06899", None),
        (refused.talking_heads, "Shazeer et al., arXiv:2003.02436", lambda n, b, h, g: (torch.randn(h, h, generator=g),)),
        (refused.extra_sink, "GPT-OSS in Transformers", lambda n, b, h, g: (torch.randn(h, generator=g),)),
        (refused.dropout_and_mask, "every model in training", None),
        (refused.relative_keys, "Shaw et al., arXiv:1803.02155", lambda n, b, h, g: (torch.randn(n, n, 16, generator=g),)),
    )
)


@functools.cache
def by_name(name: str) -> Variant:
    """The variant whose function has that name; KeyError for none."""
    return {one.function.__name__: one for one in (*VARIANTS, *REFUSED)}[name]
