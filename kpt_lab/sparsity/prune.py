"""Prune a model's linear layers to an n:m pattern, with a report of what it did to each and why it left the others."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from kpt_lab.sparsity.calibration import Calibration
from kpt_lab.sparsity.patterns import FLOATS, SparsityPattern, as_pattern, check_weight, magnitude_mask, wanda_mask
from kpt_lab.sparsity.reconstruct import DAMPING, check_gram, check_solvable, layer_error, least_squares, sparsegpt

CRITERIA = ("magnitude", "wanda", "sparsegpt", "least_squares", "sparsegpt+least_squares")
SOLVED = CRITERIA[2:]  # they change the weights that stay
AUTO = CRITERIA[3:]  # what SparsityPattern.AUTO chooses from, layer by layer: which is better differs by model


@dataclass(frozen=True)
class LayerReport:
    """What `prune` did to one layer, or why it left it.

    `error_before` is the relative output error (`layer_error`) with the mask alone, `error_after` with the weights written;
    both None without calibration. `kept` is the share of weights that may be nonzero, 1 where the layer was skipped; `skipped`
    is the reason for that, else empty.
    """

    name: str
    shape: tuple[int, ...]
    criterion: str = ""
    kept: float = 1.0
    error_before: float | None = None
    error_after: float | None = None
    skipped: str = ""

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        if self.skipped:
            return f"{self.name} ({shape}): skipped, {self.skipped}"
        errors = "error unknown without calibration"
        if self.error_before is not None and self.error_after is not None:
            errors = f"error {self.error_before:.4f} with the mask alone, {self.error_after:.4f} as written"
        return f"{self.name} ({shape}): {self.criterion}, {self.kept:.0%} kept, {errors}"


@dataclass(frozen=True)
class Pruning:
    """The pruned model and a report per layer, in the model's order; printing it prints one line a layer."""

    model: nn.Module
    pattern: SparsityPattern
    layers: tuple[LayerReport, ...]

    @property
    def pruned(self) -> tuple[LayerReport, ...]:
        """The layers whose weights changed."""
        return tuple(layer for layer in self.layers if not layer.skipped)

    @property
    def skipped(self) -> dict[str, str]:
        """The layers left as they were: name to reason."""
        return {layer.name: layer.skipped for layer in self.layers if layer.skipped}

    def __str__(self) -> str:
        head = f"{self.pattern}: {len(self.pruned)} layers pruned, {len(self.skipped)} skipped"
        return "\n".join([head, *map(str, self.layers)])


def prune(
    model: nn.Module,
    pattern: SparsityPattern | str = SparsityPattern.SPARSE_24,
    *,
    criterion: str | None = None,
    calibration: Calibration | None = None,
    inplace: bool = False,
    damping: float = DAMPING,
    skip: Collection[str] = (),
) -> Pruning:
    """Prune every nn.Linear of `model` that the pattern fits; the others and embeddings are reported with the reason.

    criterion: "magnitude" (the default); "wanda" (|w| times the input's norm); "sparsegpt" (mask and weights column by column);
    "least_squares" (Wanda's mask, then the exact optimum for it, so its error is never above Wanda's);
    "sparsegpt+least_squares" (SparseGPT's mask, then the exact optimum). All but magnitude need `calibration`, taken once from
    the model before pruning; with it, every criterion's errors are reported. `inplace=False` prunes a deep copy and leaves
    `model` alone. `damping` is the share of the Gram matrix's mean diagonal that the last three add to it. `skip` names layers
    to leave. A weight shared by several modules is left; biases never change.

    pattern SparsityPattern.AUTO: 2:4, and per layer whichever of the last two criteria gives the lower output error, so it takes
    no criterion and needs `calibration`. By error alone: `StructuredSparse.convert` asks for the time as well.

    Raises ValueError for an unknown criterion or name in `skip`, missing calibration or weights that are not finite, all before
    anything is written.
    """
    tried = _criteria(pattern, criterion)
    pattern = SparsityPattern.SPARSE_24 if pattern == SparsityPattern.AUTO else as_pattern(pattern)
    for each in tried:
        _check(model, each, calibration, damping, skip)
    found = _plan(model, pattern, tried[-1], calibration, damping, skip)
    if not inplace:
        model = copy.deepcopy(model)
    weights = {name: weight for name, _, weight in _matrices(model)}
    layers = [
        LayerReport(name, shape, skipped=reason)
        if reason
        else _prune_layer(name, weights[name], pattern, tried, calibration, damping)
        for name, shape, reason in found
    ]
    return Pruning(model, pattern, tuple(layers))


def _criteria(pattern: SparsityPattern | str, criterion: str | None) -> tuple[str, ...]:
    """The criteria to try on each layer."""
    if pattern != SparsityPattern.AUTO:
        return (criterion if criterion is not None else "magnitude",)
    if criterion is not None:
        raise ValueError(f"criterion is {criterion!r}; SparsityPattern.AUTO chooses it itself: leave it out")
    return AUTO


def _plan(
    model: nn.Module,
    pattern: SparsityPattern,
    criterion: str,
    calibration: Calibration | None,
    damping: float,
    skip: Collection[str],
) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and the reason to leave it ("" for none) of each matrix; raises where one to be pruned can't be.

    Taken from the model before it is copied: copying separates parameters that were made over one tensor.
    """
    owners = _owners(model)
    found = []
    for name, part, weight in _matrices(model):
        others = [owner for owner in owners.get(_place(weight), ()) if owner != name]
        reason = _reason(name, part, pattern, criterion, calibration, skip)
        if others and not reason:
            reason = f"its weight is shared with {', '.join(others)}"
        if not reason:
            _check_layer(name, weight, criterion, calibration, damping)
        found.append((name, tuple(weight.shape), reason))
    return found


def prune_weight(
    weight: torch.Tensor,
    pattern: SparsityPattern | str = SparsityPattern.SPARSE_24,
    *,
    criterion: str = "magnitude",
    gram: torch.Tensor | None = None,
    damping: float = DAMPING,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prune one weight (out_features, in_features) by a criterion of `prune`; returns (pruned, bool mask).

    gram: X^T X of the layer's inputs, (in_features, in_features), needed by all criteria but "magnitude".
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion is {criterion!r}; accepted are {', '.join(map(repr, CRITERIA))}")
    if criterion == "magnitude":
        mask = magnitude_mask(weight, pattern)
        return torch.where(mask, weight.detach(), 0), mask
    if gram is None:
        raise ValueError(f"gram is None; criterion {criterion!r} needs X^T X of the layer's inputs")
    if criterion.startswith("sparsegpt"):
        pruned, mask = sparsegpt(weight, gram, pattern, damping=damping)
    else:
        mask = wanda_mask(weight, gram.diagonal().sqrt(), pattern)
        pruned = torch.where(mask, weight.detach(), 0)
    if criterion.endswith("least_squares"):
        pruned = least_squares(weight, mask, gram, damping=damping)
    return pruned, mask


def _prune_layer(
    name: str,
    weight: torch.Tensor,
    pattern: SparsityPattern,
    criteria: tuple[str, ...],
    calibration: Calibration | None,
    damping: float,
) -> LayerReport:
    """Prune one weight in place by the criterion with the lowest error, the first of equal ones, and report."""
    gram = None
    if calibration is not None and name in calibration.grams:
        gram = calibration.gram(name).to(weight.device)
    best: tuple[LayerReport, torch.Tensor] | None = None
    for criterion in criteria:
        pruned, mask = prune_weight(weight, pattern, criterion=criterion, gram=gram, damping=damping)
        before = after = None
        if gram is not None:
            before = layer_error(weight, torch.where(mask, weight.detach(), 0), gram)
            after = layer_error(weight, pruned, gram)
        report = LayerReport(name, tuple(weight.shape), criterion, float(mask.double().mean()), before, after)
        if best is None or (after is not None and after < (best[0].error_after or 0.0)):
            best = report, pruned
    assert best is not None
    with torch.no_grad():
        weight.copy_(best[1])
    return best[0]


def _check(model: nn.Module, criterion: str, calibration: Calibration | None, damping: float, skip: Collection[str]) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; an nn.Module is needed")
    if criterion not in CRITERIA:
        raise ValueError(f"criterion is {criterion!r}; accepted are {', '.join(map(repr, CRITERIA))}")
    if calibration is None and criterion != "magnitude":
        raise ValueError(f"calibration is None; criterion {criterion!r} needs Calibration.collect(model, batches)")
    if calibration is not None and not isinstance(calibration, Calibration):
        raise TypeError(f"calibration is {type(calibration).__name__}; pass what Calibration.collect(model, batches) returns")
    if not 0 <= damping < float("inf"):
        raise ValueError(f"damping is {damping!r}; a finite number that is not negative is needed")
    if isinstance(skip, str):
        raise TypeError(f"skip is the string {skip!r}; a collection of names is needed: pass [{skip!r}]")
    parts = dict(model.named_modules())
    if not any(isinstance(part, nn.Linear) for part in parts.values()):
        raise ValueError(f"model ({type(model).__name__}) has no nn.Linear; there is nothing to prune")
    unknown = [name for name in skip if name not in parts]
    if unknown:
        raise ValueError(f"skip names {', '.join(map(repr, unknown))}, which model does not have")


def _check_layer(name: str, weight: torch.Tensor, criterion: str, calibration: Calibration | None, damping: float) -> None:
    """Raise a sentence naming the layer where its weight or its Gram matrix can't be used, before any weight is written."""
    check_weight(weight, name=f"the weight of {name or 'model'}")
    if calibration is None or name not in calibration.grams:
        return
    try:
        check_gram(weight, calibration.gram(name))
        if criterion in SOLVED:
            check_solvable(weight, calibration.gram(name), damping)
    except ValueError as error:
        raise ValueError(f"calibration for layer {name!r}: {error}") from error


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Every module with a weight of two or more dimensions: linear layers, embeddings, convolutions."""
    for name, part in model.named_modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() >= 2:
            yield name, part, weight


def _owners(model: nn.Module) -> dict[tuple, list[str]]:
    """The names of the modules that hold a parameter at each place in memory; a module under two names counts once."""
    owners: dict[tuple, list[str]] = {}
    for name, part in model.named_modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                owners.setdefault(_place(parameter), []).append(name)
    return owners


def _place(tensor: torch.Tensor) -> tuple:
    """Where a tensor's numbers begin; equal for tied parameters and for two parameters made over one tensor."""
    plain = type(tensor.detach()) is torch.Tensor  # others may have no memory of their own
    return tensor.device, (tensor.data_ptr() if plain else 0) or id(tensor)


def _reason(
    name: str,
    part: nn.Module,
    pattern: SparsityPattern,
    criterion: str,
    calibration: Calibration | None,
    skip: Collection[str],
) -> str:
    """Why this module's weight is left, or "" where it is pruned; sharing apart."""
    weight = part._parameters.get("weight")
    if name in skip:
        return "as asked"
    if isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
        return "an embedding, whose rows are looked up and not multiplied"
    if not isinstance(part, nn.Linear):
        return f"a {type(part).__name__}; only nn.Linear is pruned"
    if weight is None:
        return "its weight is computed (a parametrization), not stored"
    if type(weight.detach()) is not torch.Tensor:
        return f"its weight is a {type(weight.detach()).__name__}; plain tensors are pruned"
    if weight.dtype not in FLOATS:
        return f"its weight is {weight.dtype}; float16, bfloat16, float32 and float64 are pruned"
    if not weight.numel():
        return "its weight is empty"
    if weight.shape[1] % pattern.m:
        return f"{weight.shape[1]} input features are not divisible by {pattern.m}"
    if criterion != "magnitude" and calibration is not None:
        if name not in calibration.grams:
            return "it did not run in calibration"
        if not float(calibration.gram(name).diagonal().sum()):
            return "its inputs were all zero in calibration"
    return ""
