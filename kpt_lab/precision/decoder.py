"""A stack of decoder blocks with an output head, forward and backward: what FP8 brings a training step of a language model.

Each block: RMSNorm, causal attention with four projections, RMSNorm, SwiGLU; all residual. The head stays in the layer's own
dtype, in ours and in the peer, as is usual. What it costs: nine tenths of the FLOPs are products of linear layers; attention,
norms, the head and the residual traffic stay as they are, which is why the whole gains less than a product does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kpt_lab import baselines
from kpt_lab.core import Cost, Problem, Recording, Technique, Unsupported, Workload, dtype_name, to_dtype
from kpt_lab.precision.linear import fp8

SEQUENCE = 2048  # tokens that attend to one another
VOCABULARY = 32000
HEAD = ("lm_head",)
_WIDTH_OF_A_HEAD = 128
_STANDARD_DEVIATION = 0.02  # of the weights, as in GPT-2
_PIECE = 2**26  # elements that are compared at a time
_UPSTREAM = 1e-3  # of the output gradient: a mean loss over tokens makes it small


class Block(nn.Module):
    """One pre-norm decoder block of width `d`, with `ff` hidden features in its SwiGLU; (batch, sequence, d) in and out."""

    def __init__(self, d: int, ff: int) -> None:
        super().__init__()
        self.heads = d // _WIDTH_OF_A_HEAD
        self.before_attention, self.before_mlp = nn.RMSNorm(d), nn.RMSNorm(d)
        self.query, self.key, self.value, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(d, ff, bias=False), nn.Linear(d, ff, bias=False), nn.Linear(ff, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, sequence, d = x.shape
        y = self.before_attention(x)
        q, k, v = (part(y).view(batch, sequence, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, sequence, d))
        y = self.before_mlp(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Stack(nn.Module):
    """Blocks, a last norm and the output head: (batch, sequence, d) to (batch, sequence, vocabulary)."""

    def __init__(self, d: int, ff: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(d, ff) for _ in range(layers))
        self.norm, self.lm_head = nn.RMSNorm(d), nn.Linear(d, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            # in float64, which only checks, attention keeps whole squares: made again in backward, one block's at a time
            x = checkpoint(block, x, use_reentrant=False) if x.dtype is torch.float64 else block(x)
        return self.lm_head(self.norm(x))


def _make(
    *, device: str, dtype: torch.dtype | str, seed: int, tokens: int, d: int, ff: int, layers: int, vocabulary: int = VOCABULARY
) -> Problem:
    """The stack with normal weights, and three sets of embeddings and an output gradient; tokens in sequences of SEQUENCE at most."""
    if d % _WIDTH_OF_A_HEAD or tokens % min(tokens, SEQUENCE):
        raise ValueError(
            f"d is {d} and tokens {tokens}; d must be a multiple of {_WIDTH_OF_A_HEAD}, tokens of {SEQUENCE} where more"
        )
    kind, generator = to_dtype(dtype), torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(kind)

    with torch.device("meta"):
        model = Stack(d, ff, layers, vocabulary)
    model = model.to(kind).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # as GPT-2 does it: what is added to the residual stream is smaller the more layers add to it
            size = _STANDARD_DEVIATION * ((2 * layers) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1)
            parameter.copy_(draw(*parameter.shape) * size if parameter.dim() > 1 else torch.ones_like(parameter))
    batch = (tokens // min(tokens, SEQUENCE), min(tokens, SEQUENCE))
    inputs = [(draw(*batch, d), draw(*batch, vocabulary) * _UPSTREAM) for _ in range(3)]
    return Problem(model, inputs, drive=functools.partial(_both_ways, model))


def _both_ways(model: nn.Module, candidate: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The step: (x, dy) -> (y, dx, gradients of the parameters), through autograd."""
    weights = list((candidate if isinstance(candidate, nn.Module) else model).parameters())

    def step(x: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
        if x.dtype is torch.float64:
            return _one_at_a_time(candidate, weights, x, upstream)
        x = x.detach().requires_grad_()
        y = candidate(x)
        return y.detach(), *torch.autograd.grad(y, (x, *weights), upstream)

    return step


def _one_at_a_time(
    candidate: Callable[..., Tensor], weights: list[nn.Parameter], x: Tensor, upstream: Tensor
) -> tuple[Tensor, ...]:
    """The same step, a sequence at a time: they meet only in the gradients' sums. Whole, it takes more memory than a GPU has in float64."""
    y, dx = torch.empty_like(upstream), torch.empty_like(x)
    for i in range(x.shape[0]):
        one = x[i : i + 1].detach().requires_grad_()
        output = candidate(one)
        y[i] = output.detach()[0]
        torch.autograd.backward(output, upstream[i : i + 1], inputs=(one, *weights))
        assert one.grad is not None
        dx[i] = one.grad[0]
    sums = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in weights]
    for weight in weights:
        weight.grad = None
    return y, dx, *sums


def _cost(*, dtype: torch.dtype | str, tokens: int, d: int, ff: int, layers: int, vocabulary: int = VOCABULARY) -> Cost:
    """Three products for each linear layer; causal attention at half its square, seven products of it; weights and ends moved once."""
    kind, sequence = dtype_name(dtype), min(tokens, SEQUENCE)
    weights = layers * (4 * d * d + 3 * d * ff) + d * vocabulary
    attention = layers * 7 * tokens * sequence * d
    moved = 2 * weights + 2 * tokens * d + 2 * tokens * vocabulary
    return Cost({kind: 6.0 * tokens * weights + attention}, float(moved * to_dtype(dtype).itemsize))


def _distance(output: Tensor, reference: Tensor) -> float:
    """|output - reference| / |reference|, both norms over the whole tensor.

    Not the largest of the elements' errors: between two ways of adding the same products a value in 8 bits here and there falls
    to its other neighbour, and what follows from that in four layers is large in single elements and small in the whole.
    """
    off = of = 0.0
    for got, wanted in zip(output.reshape(-1).split(_PIECE), reference.reshape(-1).split(_PIECE), strict=True):
        wide = wanted.to(device=got.device, dtype=torch.float64)
        off += float((got.double() - wide).square().sum())
        of += float(wide.square().sum())
    return math.sqrt(off / of) if of else off and math.inf


step = Workload(
    "decoder.step", _make, cost=_cost, tolerance=64.0, error=_distance, dtypes=("bfloat16", "float32", "float64")
)  # fmt: skip


# ---- techniques ---------------------------------------------------------------------------------------------------------------


def _torchao(fn: Any, args: tuple, *, keep: tuple[str, ...] = HEAD) -> Any:
    """torchao's float8 training, its recipe "tensorwise", for every linear layer that is not kept."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    if not isinstance(fn, nn.Module):
        raise Unsupported(f"torchao converts modules; it was given {getattr(fn, '__name__', type(fn).__name__)!r}")
    config = Float8LinearConfig.from_recipe_name("tensorwise")
    return convert_to_float8_training(fn, config=config, module_filter_fn=lambda _, name: name not in keep)


def _same_rounding(fn: Any, args: tuple, *, keep: tuple[str, ...] = HEAD) -> Any:
    assert fp8.definition is not None
    return fp8.definition(fn, args, keep=keep)


eager, compiled = baselines.eager, baselines.compiled
tensorwise = fp8(keep=HEAD) >> compiled
e4m3_gradients = fp8(gradient="e4m3fn", keep=HEAD) >> compiled
rowwise = fp8(
    forward="rowwise", input_gradient="rowwise", weight_gradient="bfloat16", gradient="e4m3fn", keep=HEAD
) >> compiled  # fmt: skip
torchao = Technique(
    "torchao", _torchao, stage="precision", replaces=frozenset({"linear"}), contract="lossy", definition=_same_rounding,
    cost=fp8.cost, requires=("cuda", "torchao"),
) >> compiled  # fmt: skip

techniques = (compiled, tensorwise, torchao)

record_grid = (
    Recording(
        step, {"tokens": [16384], "d": [4096], "ff": [14336], "layers": [4]}, "bfloat16", processes=6,
    ),
)  # fmt: skip
"""The stack that notes and peers use, in six processes; TENSORWISE, and torchao's own recipe of that name."""
