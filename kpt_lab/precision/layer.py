"""One linear layer, forward and backward: the work that FP8 speeds up or slows down, at a number of tokens.

    y = x @ w.T,  dx = dy @ w,  dw = dy.T @ x        x (tokens, in_features), w (out_features, in_features)

What it costs: three products of 2 * tokens * in_features * out_features FLOPs; x, dy and w are read, y, dx and dw written. FP8 halves
the products' time at best and adds a cast of each operand, so it wins where a token meets enough weights, and many tokens share them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kpt_lab import baselines
from kpt_lab.core import Cost, Problem, Recording, Technique, Workload, dtype_name, to_dtype
from kpt_lab.precision.linear import GEMMS, ROWWISE, ROWWISE_BF16_WEIGHT_GRADIENT, TENSORWISE, Choice, Recipe, fp8

TOKENS = (512, 2048, 8192, 32768)
WIDTHS = (512, 1024, 2048, 4096, 8192)


def _make(*, device: str, dtype: torch.dtype | str, seed: int, tokens: int, in_features: int, out_features: int) -> Problem:
    """A layer without bias and three sets of an input and an output gradient, all standard normal numbers (weights scaled)."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(to_dtype(dtype))

    with torch.device("meta"):
        linear = nn.Linear(in_features, out_features, bias=False)
    linear.weight = nn.Parameter(draw(out_features, in_features) * in_features**-0.5)
    return Problem(linear, [(draw(tokens, in_features), draw(tokens, out_features)) for _ in range(3)], drive=_both_ways)


def _both_ways(candidate: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The step: (x, dy) -> (y, dx, dw), through autograd."""

    def step(x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        weights = list(candidate.parameters())  # type: ignore[attr-defined]
        x = x.detach().requires_grad_()
        y = candidate(x)
        return y.detach(), *torch.autograd.grad(y, (x, *weights), dy)

    return step


def _cost(*, dtype: torch.dtype | str, tokens: int, in_features: int, out_features: int) -> Cost:
    moved = 2 * (tokens * in_features + tokens * out_features + in_features * out_features)
    return Cost({dtype_name(dtype): 6.0 * tokens * in_features * out_features}, float(moved * to_dtype(dtype).itemsize))


step = Workload("linear.step", _make, cost=_cost, dtypes=("bfloat16", "float16", "float32", "float64"))


def at(recipe: Recipe) -> Technique:
    """FP8 by one recipe, uncompiled: the products are the same, and a compiler that fuses the largest magnitudes only makes it faster."""
    knobs: dict[str, Any] = {name: getattr(recipe, name) for name in (*GEMMS, "gradient")}
    return fp8(**knobs)


eager, compiled, max_autotune = baselines.eager, baselines.compiled, baselines.max_autotune
_EITHER: tuple[Choice, ...] = ("tensorwise", "bfloat16")
mixtures = tuple(Recipe(*products) for products in itertools.product(_EITHER, _EITHER, _EITHER) if len(set(products)) > 1)
"""Every recipe that takes some products tensorwise and leaves others."""

RECIPES = (TENSORWISE, ROWWISE, ROWWISE_BF16_WEIGHT_GRADIENT, *mixtures)
techniques = (eager, compiled, *map(at, RECIPES))

record_grid = tuple(
    Recording(step, {"tokens": TOKENS, "in_features": [width], "out_features": [width]}, "bfloat16") for width in WIDTHS
)
"""Square layers, twenty cells: the grid was fixed before anything was measured on it."""
