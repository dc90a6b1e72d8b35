"""A whole training step as a Workload: with the decided recipes, and without, each compiled; and what the layers' times predict."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kpt_lab import baselines
from kpt_lab.core import Ratio, Technique, Trials, Workload, dtype_name
from kpt_lab.measure import measure
from kpt_lab.models import workload
from kpt_lab.precision.decisions import Decisions
from kpt_lab.precision.linear import FP8Linear, Recipe, convert
from kpt_lab.precision.objective import Objective
from kpt_lab.ratios import best_baseline, speedup

NAME = "fp8 as decided"


def of(objective: Objective, batch: Any) -> Workload:
    """Forward, backward and update on one batch, of the model as it was before it was converted."""
    inputs = (batch,) if isinstance(batch, Mapping) else tuple(batch)
    plain = Objective(_plain(objective.model), objective.loss, objective.autocast)
    return workload(plain, *inputs, loss=_itself, name=f"{type(objective.model).__name__}.step")(mode="step")


def decided(decisions: Decisions) -> Technique:
    """The decided recipes on an Objective of that model."""
    recipes = {f"model.{name}".rstrip("."): recipe for name, recipe in decisions.recipes.items() if recipe.any_fp8}
    return Technique(
        NAME,
        functools.partial(_converted, recipes=recipes, emulate=False),
        stage="precision",
        replaces=frozenset({"linear"}),
        contract="lossy",
        definition=functools.partial(_converted, recipes=recipes, emulate=True),
        requires=("cuda",),
    )


def measured(objective: Objective, batch: Any, decisions: Decisions, *, budget: float, processes: int) -> Trials:
    """A step without FP8, eager and compiled, and one as decided, compiled, all in one cell."""
    device = next(p.device for p in objective.parameters())
    dtype = next(p.dtype for p in objective.parameters() if p.is_floating_point())
    techniques = (baselines.eager, baselines.compiled, decided(decisions) >> baselines.compiled)
    options: dict[str, Any] = {"device": device.type, "dtype": dtype_name(dtype), "budget": budget, "processes": processes}
    return measure(of(objective, batch), techniques, **options)


def ratios(trials: Trials, decisions: Decisions) -> tuple[Ratio, Ratio | None]:
    """The measured speedup of `measured`'s Trials, and what the layers' own times predict, where they were timed.

    Predicted: the best baseline's step, less for each call of a layer what its recipe saves there. Raises Incomparable where
    either side of the measured ratio has no time.
    """
    base = best_baseline(trials)
    found = speedup(trials.where(label=f"{NAME} >> torch.compile"), base, choices=2)
    saved = 0.0
    for layer in decisions.fp8:
        cell = decisions.trials.where(tokens=layer.tokens, in_features=layer.in_features, out_features=layer.out_features)
        mine = cell.where(label=layer.label)
        if not mine:
            return found, None
        saved += layer.calls * (best_baseline(cell)[0].time - mine[0].time)
    whole = base[0].time
    value = whole / max(whole - saved, 1e-3 * whole)
    return found, Ratio(value, value, value, "UNCLEAR", "modelled", note="the step's time less what each layer saves alone")


def _itself(output: torch.Tensor) -> torch.Tensor:
    return output


def _converted(fn: nn.Module, args: tuple, recipes: Mapping[str, Recipe], emulate: bool) -> nn.Module:
    return convert(fn, recipes, emulate=emulate, inplace=True)


def _plain(model: nn.Module) -> nn.Module:
    """A copy of the model with nn.Linear where it has FP8Linear."""
    model = copy.deepcopy(model)
    for name, part in list(model.named_modules()):
        if isinstance(part, FP8Linear):
            with torch.device("meta"):
                linear = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None)
            linear.weight, linear.bias = part.weight, part.bias
            if not name:
                return linear
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, linear)
    return model
