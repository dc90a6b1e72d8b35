"""A loss budget: which pruned layers go back to their weights so that the loss rises no more than is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

from kpt_lab.sparsity.prune import LayerReport


def asked(quality: Callable[[nn.Module], float], model: nn.Module) -> float:
    """The loss that `quality` gives for a model, without gradients."""
    with torch.no_grad():
        return float(quality(model))


def loss_of(quality: Callable[[nn.Module], float], model: nn.Module, what: str) -> float:
    """The same, where a rise can be taken relative to it; ValueError otherwise."""
    loss = asked(quality, model)
    if not (math.isfinite(loss) and loss > 0):
        raise ValueError(
            f"quality gives {loss} for {what}; a positive finite loss is needed, for its rise is taken relative to it"
        )
    return loss


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}


def within(
    model: nn.Module,
    pruned: Sequence[LayerReport],
    originals: dict[str, torch.Tensor],
    quality: Callable[[nn.Module], float] | None,
    before: float | None,
    budget: float | None,
) -> dict[str, str]:
    """Put layers back until the loss holds, fewest by bisection over the most damaging; name to reason of those put back."""
    if budget is None or quality is None or before is None:
        return {}
    limit = before * (1 + budget)
    layers = {r.name: linears(model)[r.name] for r in pruned}
    weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}

    def loss_with(kept: Collection[str]) -> float:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(weights[name] if name in kept else originals[name])
        found = asked(quality, model)
        return found if math.isfinite(found) else math.inf

    if loss_with(layers) <= limit:
        return {}
    alone = {name: loss_with({name}) / before - 1 for name in layers}
    order = sorted(alone, key=alone.__getitem__, reverse=True)
    low, high = 0, len(order)  # putting `low` back is not enough, putting `high` back is: then the model is dense
    while high - low > 1:
        middle = (low + high) // 2
        if loss_with(order[middle:]) <= limit:
            high = middle
        else:
            low = middle
    loss_with(order[high:])
    return {name: f"put back for the loss budget: alone it changes the loss by {alone[name]:+.2%}" for name in order[:high]}
