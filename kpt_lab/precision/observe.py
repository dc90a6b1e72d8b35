"""What each linear layer of a model sees on one real batch, and what a recipe's rounding does to it.

A layer's error is that of its three products against float64, in dB, on the layer's own input, weight and output gradient. One
loud token can leave the error of a whole matrix looking fine while all other tokens are flushed to zero: so it is also taken for
each token by itself, and of those the lowest twentieth counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kpt_lab.precision.casts import FORMATS
from kpt_lab.precision.linear import GEMMS, Recipe, rounded
from kpt_lab.precision.objective import Objective, statistics_kept
from kpt_lab.precision.scaling import sqnr

LOW = 0.05
"""The share of tokens whose error may be worse than the figure for tokens: one loud token spoils nearly all others."""
_LOUDEST = 8  # tokens with the largest input, and with the largest gradient, that belong to every slice: they make the scale


@dataclass
class Seen:
    """One linear layer on one batch: its tokens at a call, when it was last called, and a slice of its tensors.

    x (slice, in_features), gradient (slice, out_features), in the dtype that the product is computed in; None where no
    gradient came.
    """

    tokens: int = 0
    calls: int = 0
    order: int = -1
    x: Tensor | None = None
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Errors:
    """A recipe's error in dB on what a layer saw: `whole` for each product, `tokens` for the lowest twentieth of the tokens.

    Products that stay out of FP8 have none. flushed: the largest share of a tensor that tensorwise scaling turns to zero.
    """

    whole: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)
    flushed: float = 0.0


def observe(objective: Objective, batch: Any, sample: int) -> tuple[float, dict[str, Seen]]:
    """Run the model once, forward and backward, and return its loss and what each nn.Linear saw, on at most `sample` tokens.

    Gradients, random states and running statistics stay as they are.
    """
    model = objective.model
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    found = {name: Seen() for name in layers}
    clock = iter(range(1 << 62))

    def hook(name: str) -> Any:
        def after(module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Tensor) -> None:
            seen, x = found[name], (args[0] if args else kwargs["input"]).detach()
            tokens = x.numel() // max(x.shape[-1], 1)
            seen.calls, seen.order = seen.calls + 1, next(clock)
            if tokens < seen.tokens:
                return
            seen.tokens, seen.x, seen.gradient = tokens, None, None
            if output.requires_grad:
                output.register_hook(lambda g: _keep(seen, x, g.detach(), sample, objective.autocast))

        return after

    handles = [part.register_forward_hook(hook(name), with_kwargs=True) for name, part in layers.items()]
    trained = [p for p in model.parameters() if p.requires_grad]
    devices = sorted({p.device.index or 0 for p in trained if p.is_cuda})
    try:
        with torch.random.fork_rng(devices), statistics_kept(model), torch.enable_grad():
            value = objective.of(batch)
            torch.autograd.grad(value, trained, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return float(value.detach()), found


def _keep(seen: Seen, x: Tensor, gradient: Tensor, sample: int, autocast: torch.dtype | None) -> None:
    x, gradient = (t.reshape(-1, t.shape[-1]) for t in (x, gradient))
    if x.shape[0] > sample:
        count = min(_LOUDEST, sample // 4)
        loud = [t.abs().amax(1).topk(count).indices for t in (x, gradient)]
        even = torch.linspace(0, x.shape[0] - 1, max(sample - 2 * count, 1), device=x.device).long()
        chosen = torch.cat([*loud, even]).unique()
        x, gradient = x[chosen], gradient[chosen]
    seen.x, seen.gradient = (t.to(autocast or t.dtype, copy=True) for t in (x, gradient))


def errors(seen: Seen, weight: Tensor, recipes: tuple[Recipe, ...]) -> list[Errors]:
    """Each recipe's error on what a layer saw, whose `weight` (out_features, in_features) is given; NaN where that isn't finite."""
    assert seen.x is not None
    assert seen.gradient is not None
    x, g, w = seen.x, seen.gradient, weight.detach().to(seen.x.dtype)
    operands = {
        "forward": (x, w, "e4m3fn"),
        "input_gradient": (g, w.t(), "gradient"),
        "weight_gradient": (g.t(), x.t(), "gradient"),
    }
    known: dict[tuple[str, str, str], tuple[float, float, float]] = {}
    for name, (a, b, kind) in operands.items():
        formats = {recipe.gradient if kind == "gradient" else kind for recipe in recipes}
        choices = {getattr(recipe, name) for recipe in recipes} - {"bfloat16"}
        exact = a.double() @ b.double().t()
        for choice, format in itertools.product(choices, formats):
            known[name, choice, format] = _product_error(exact, a, b, choice, format)
    return [_of(recipe, known) for recipe in recipes]


def _product_error(exact: Tensor, a: Tensor, b: Tensor, choice: str, format: str) -> tuple[float, float, float]:
    """dB of the whole product and of its low rows, and the larger share of an operand that is flushed."""
    one, two = rounded(a, choice, FORMATS[format], 1), rounded(b, choice, FORMATS["e4m3fn"], 1)
    flushed = max(float(((held == 0) & (t != 0)).double().mean()) for held, t in ((one, a), (two, b)))
    close = one.double() @ two.double().t()
    return sqnr(exact, close), _lowest(exact, close), flushed


def _of(recipe: Recipe, known: Mapping[tuple[str, str, str], tuple[float, float, float]]) -> Errors:
    """A recipe's errors, put together from its products'."""
    whole: dict[str, float] = {}
    tokens: dict[str, float] = {}
    flushed = 0.0
    for name in GEMMS:
        choice = getattr(recipe, name)
        if choice == "bfloat16":
            continue
        whole[name], low, share = known[name, choice, "e4m3fn" if name == "forward" else recipe.gradient]
        if name != "weight_gradient":  # whose rows are no tokens
            tokens[name] = low
        if choice == "tensorwise":
            flushed = max(flushed, share)
    return Errors(whole, tokens, flushed)


def _lowest(exact: Tensor, close: Tensor) -> float:
    """dB of the row at the low end; rows without signal, such as those of padding, have no error to speak of."""
    signal, noise = exact.square().sum(1), (exact - close).square().sum(1)
    rows = 10 * torch.log10(signal / noise)[signal > 0]
    if not bool(torch.isfinite(signal).all()):
        return math.nan
    return float(rows.quantile(LOW, interpolation="lower")) if rows.numel() else math.inf
