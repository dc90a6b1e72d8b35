"""A whole model made 2:4: weights pruned within a loss budget, layers run sparse where that is faster, each with its reason.

from kpt_lab.sparsity import SparsityPattern, StructuredSparse

made = StructuredSparse.convert(model=model, pattern=SparsityPattern.SPARSE_24, hardware_target="H100", calibration=batches)
print(made)
made.save("model.safetensors")
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import nn

from kpt_lab.core import Unsupported
from kpt_lab.sparsity import budget, machine, stored
from kpt_lab.sparsity.calibration import Calibration
from kpt_lab.sparsity.eight import balanced_scale
from kpt_lab.sparsity.linear import Arithmetic, SparseLinear
from kpt_lab.sparsity.machine import Machine
from kpt_lab.sparsity.patterns import SparsityPattern, as_pattern, magnitude_mask
from kpt_lab.sparsity.prune import AUTO, LayerReport, prune
from kpt_lab.sparsity.reconstruct import DAMPING

BEST = AUTO[-1]  # the criterion where there is calibration and none is asked for: benchmarks/recorded/sparsity_minilm.json
TOKENS = 4096  # per call, that layers are timed at unless told


@dataclass(frozen=True)
class Layer:
    """One layer's fate: what pruning did to its weight, and what it runs as and why.

    runs: "sparse" (a SparseLinear), "dense" (pruned, in a dense product) or "unpruned" (its weight as it was).
    """

    pruning: LayerReport
    runs: str
    why: str

    @property
    def name(self) -> str:
        return self.pruning.name

    def __str__(self) -> str:
        if self.runs == "unpruned":
            shape = " x ".join(map(str, self.pruning.shape))
            return f"{self.name} ({shape}): unpruned, {self.why}"
        return f"{self.pruning}; runs {self.runs}: {self.why}"


@dataclass(frozen=True)
class StructuredSparse:
    """A model whose linear layers are 2:4, and a report of each; made by `convert` or `load`.

    loss: what `quality` gave for the dense model and for this one, None where there was no quality function.
    """

    model: nn.Module
    pattern: SparsityPattern
    machine: Machine
    layers: tuple[Layer, ...]
    loss: tuple[float, float] | None = None
    note: str = ""

    @classmethod
    def convert(
        cls,
        model: nn.Module,
        pattern: SparsityPattern | str = SparsityPattern.SPARSE_24,
        hardware_target: str | None = None,
        calibration: Calibration | Iterable[Any] | None = None,
        loss_budget: float | None = None,
        *,
        criterion: str | None = None,
        quality: Callable[[nn.Module], float] | None = None,
        tokens: int | Sequence[int] = TOKENS,
        arithmetic: Arithmetic | None = None,
        keep_dense: bool = True,
        skip: Collection[str] = (),
        damping: float = DAMPING,
        inplace: bool = False,
    ) -> StructuredSparse:
        """Prune the linear layers of `model` to 2:4 and run those sparse that are faster so on the target, if it is this machine.

        pattern: SPARSE_24 prunes every layer that it fits; AUTO takes the criterion with the lower error per layer and leaves a
        layer unpruned where its sparse product is not faster (without a GPU here, time is unknown and error alone decides).
        hardware_target: a device's name ("H100", "h100-sxm", "NVIDIA A100-SXM4-80GB"); None is where the model is.
        calibration: a Calibration or batches for one; criterion: of `prune`, by default its best with calibration, else magnitude.
        loss_budget: 0 to 1, the rise of `quality(model)` (a loss, lower is better) relative to the dense model's that is allowed;
        layers are put back, those first that alone raise it most, until it holds. That takes one call a layer and a few more.
        tokens: per call, to time layers at. arithmetic: "float8_e4m3fn" runs sparse layers in 8 bits. keep_dense: also hold the
        dense weight, for token counts at which dense is faster. A Transformers Conv1D (GPT-2) becomes the equal nn.Linear.

        Raises TypeError or ValueError in one sentence for what can't be used, Unsupported for a target without 2:4.
        """
        pattern = _checked(model, pattern, loss_budget, quality)
        sizes = [tokens] if isinstance(tokens, int) else list(tokens)
        where = machine.find(hardware_target, model)
        work = stored.linearised(model if inplace else copy.deepcopy(model))
        known = _calibrated(work, calibration, pattern)
        chosen = criterion if criterion or pattern == SparsityPattern.AUTO else (BEST if known is not None else None)
        before = None if quality is None else budget.loss_of(quality, work, "the dense model")
        slow = _slow(work, where, sizes, arithmetic, skip) if pattern == SparsityPattern.AUTO and where.here else {}
        originals = (
            {name: part.weight.detach().clone() for name, part in budget.linears(work).items()}
            if loss_budget is not None
            else {}
        )
        found = prune(work, pattern, criterion=chosen, calibration=known, inplace=True, damping=damping, skip=[*skip, *slow])
        if not found.pruned and not slow:
            reasons = "; ".join(f"{name or 'the layer'}: {why}" for name, why in list(found.skipped.items())[:4])
            raise ValueError(f"model has no layer that {found.pattern} fits: {reasons}")
        back = budget.within(work, found.pruned, originals, quality, before, loss_budget)
        reports = [replace(r, skipped=slow.get(r.name, "") or back.get(r.name, "") or r.skipped) for r in found.layers]
        sizing = _Sizing(sizes, arithmetic, keep_dense, known)
        made, layers = _placed(work, reports, where, sizing)
        loss = None
        if quality is not None and before is not None:
            loss = before, budget.asked(quality, made)
            if loss_budget is not None and not loss[1] <= before * (1 + loss_budget):  # 8 bits, or another order of additions
                made, layers = _dense_again(made, layers, "as sparse products the loss was over the budget")
                loss = before, budget.asked(quality, made)
        return cls(made, found.pattern, where, layers, loss, _note(known, pattern, where))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model to a safetensors file with its 2:4 weights packed (`kpt_lab.sparsity.packed`); the rest as it is."""
        stored.save(self.model, [layer.pruning for layer in self.layers if layer.runs != "unpruned"], path)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        model: nn.Module,
        hardware_target: str | None = None,
        *,
        tokens: int | Sequence[int] = TOKENS,
        arithmetic: Arithmetic | None = None,
        keep_dense: bool = True,
    ) -> StructuredSparse:
        """Read a file of `save` into `model`, which is of the same architecture, and run its layers where that is fastest here."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is {type(model).__name__}; an nn.Module of the saved architecture is needed")
        where = machine.find(hardware_target, model)
        sizes = [tokens] if isinstance(tokens, int) else list(tokens)
        work, reports = stored.load(path, model)
        made, layers = _placed(work, reports, where, _Sizing(sizes, arithmetic, keep_dense))
        return cls(
            made, SparsityPattern.SPARSE_24, where, layers, note=_note(None, SparsityPattern.SPARSE_24, where, loaded=True)
        )

    def __str__(self) -> str:
        counts = [sum(layer.runs == kind for layer in self.layers) for kind in ("sparse", "dense", "unpruned")]
        lines = [
            f"{self.pattern} for {self.machine.name}: {counts[0]} layers run sparse, {counts[1]} pruned and dense, {counts[2]} unpruned"
        ]
        if self.loss is not None:
            lines.append(f"loss {self.loss[0]:.6g} dense, {self.loss[1]:.6g} as converted ({self.rise:+.2%})")
        return "\n".join([*lines, *([self.note] if self.note else []), *map(str, self.layers)])

    @property
    def rise(self) -> float:
        """The relative rise of the loss; NaN without a quality function."""
        return math.nan if self.loss is None else self.loss[1] / self.loss[0] - 1


# ---- checking -----------------------------------------------------------------------------------------------------------------


def _checked(model: Any, pattern: SparsityPattern | str, allowed: Any, quality: Any) -> SparsityPattern:
    """The pattern; a sentence for what can't be used, before any work."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; an nn.Module is needed")
    kinds = {p.dtype for p in model.parameters()} | {b.dtype for b in model.buffers()}
    if kinds and not any(kind.is_floating_point for kind in kinds):
        raise ValueError(
            f"model holds only {', '.join(sorted(str(k).removeprefix('torch.') for k in kinds))}; 2:4 prunes floating-point "
            "weights: convert before quantising to integers"
        )
    if isinstance(pattern, str) and pattern.lower() == "auto":
        pattern = SparsityPattern.AUTO
    if pattern != SparsityPattern.AUTO:
        pattern = as_pattern(pattern)
    if pattern not in (SparsityPattern.AUTO, SparsityPattern.SPARSE_24):
        raise ValueError(
            f"pattern is {pattern}, which no product here speeds up; accepted are 2:4 and AUTO (prune takes any n:m)"
        )
    if allowed is None:
        return pattern
    if isinstance(allowed, bool) or not isinstance(allowed, int | float) or not 0 <= allowed <= 1:
        raise ValueError(f"loss_budget is {allowed!r}; a number from 0 to 1 is accepted, the relative rise of the loss")
    if quality is None:
        raise ValueError("loss_budget needs quality, a function from the model to its loss (lower is better)")
    return pattern


def _calibrated(model: nn.Module, given: Any, pattern: SparsityPattern) -> Calibration | None:
    if given is None and pattern == SparsityPattern.AUTO:
        raise ValueError("calibration is None; SparsityPattern.AUTO compares errors and needs batches or a Calibration")
    return given if given is None or isinstance(given, Calibration) else Calibration.collect(model, given)


def _note(calibration: Calibration | None, pattern: SparsityPattern, where: Machine, loaded: bool = False) -> str:
    notes = [] if where.here else [where.why]
    if calibration is None and not loaded:
        notes.append("Without calibration the mask is by magnitude or as asked, and no error is known.")
    if pattern == SparsityPattern.AUTO and not where.here:
        notes.append("Time unknown here: the masks were chosen by error alone.")
    return " ".join(notes)


@dataclass(frozen=True)
class _Sizing:
    """What a sparse layer is made and timed with."""

    tokens: list[int]
    arithmetic: Arithmetic | None
    keep_dense: bool
    calibration: Calibration | None = None

    def layer(self, name: str, linear: Any) -> SparseLinear:
        """The tuned layer, with its dense weight; its 8-bit inputs are scaled by their size in calibration, where there is one."""
        scale = None
        if self.arithmetic == "float8_e4m3fn" and self.calibration is not None and name in self.calibration.grams:
            diagonal = self.calibration.gram(name).diagonal()
            rms = math.sqrt(float(diagonal.sum()) / (len(diagonal) * max(self.calibration.tokens[name], 1)))
            scale = balanced_scale(linear.weight.detach(), rms)
        return SparseLinear.from_linear(linear, arithmetic=self.arithmetic, input_scale=scale).tune(self.tokens)


# ---- sparse or dense ----------------------------------------------------------------------------------------------------------


def _slow(
    model: nn.Module, where: Machine, sizes: list[int], arithmetic: Arithmetic | None, skip: Collection[str]
) -> dict[str, str]:
    """The layers whose sparse product doesn't win at any of these token counts, or can't run: name to reason."""
    reasons = {}
    for name, part in budget.linears(model).items():
        if name in skip or part.weight.shape[1] % 4:
            continue
        try:
            layer = SparseLinear(torch.where(magnitude_mask(part.weight), part.weight.detach(), 0), arithmetic=arithmetic)
        except Unsupported as error:
            reasons[name] = str(error)
            continue
        if not _wins(layer.tune(sizes)):
            reasons[name] = f"dense is faster: {_times(layer)}"
    return reasons


def _placed(
    model: nn.Module,
    reports: Sequence[LayerReport],
    where: Machine,
    sizing: _Sizing,
) -> tuple[nn.Module, tuple[Layer, ...]]:
    """The model with SparseLinear where it wins, and each layer's fate."""
    layers = []
    for report in reports:
        if report.skipped:
            layers.append(Layer(report, "unpruned", report.skipped))
            continue
        if not where.here:
            layers.append(Layer(report, "dense", where.short))
            continue
        linear = model.get_submodule(report.name)
        try:
            sparse = sizing.layer(report.name, linear)
        except Unsupported as error:
            layers.append(Layer(report, "dense", str(error)))
            continue
        if not _wins(sparse):
            layers.append(Layer(report, "dense", f"dense is faster: {_times(sparse)}"))
            continue
        if not sizing.keep_dense:
            sparse.drop_dense()
        model = _replaced(model, report.name, sparse)
        layers.append(Layer(report, "sparse", _times(sparse)))
    return model, tuple(layers)


def _wins(layer: SparseLinear) -> bool:
    return any(choice.form == "sparse" for choice in layer.choices.values())


def _times(layer: SparseLinear) -> str:
    return "; ".join(str(choice) for _, choice in sorted(layer.choices.items())) or layer.dense_only


def _dense_again(model: nn.Module, layers: Sequence[Layer], why: str) -> tuple[nn.Module, tuple[Layer, ...]]:
    """Every sparse layer as the dense one over the same pruned weight."""
    found = []
    for layer in layers:
        if layer.runs == "sparse":
            sparse = model.get_submodule(layer.name)
            assert isinstance(sparse, SparseLinear)
            model = _replaced(model, layer.name, sparse.to_linear())
            layer = replace(layer, runs="dense", why=why)
        found.append(layer)
    return model, tuple(found)


def _replaced(model: nn.Module, name: str, part: nn.Module) -> nn.Module:
    if not name:
        return part
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, part)
    return model
