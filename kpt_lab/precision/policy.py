"""Which layers of a model FP8 makes faster, and accurate enough: measured, never guessed.

A layer gets FP8 where a recipe keeps the error on a real batch and is faster, with the lower end of its interval above `gain`, than the best
of eager and torch.compile on that layer's shape and token count. Of several the fastest. Everything else stays in bfloat16, with
the reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from kpt_lab.core import Ratio, Trials, dtype_name
from kpt_lab.measure import measure
from kpt_lab.precision import layer
from kpt_lab.precision.decisions import Decision, Decisions, device_name
from kpt_lab.precision.linear import (
    BFLOAT16,
    GEMMS,
    FP8Linear,
    Recipe,
    shape_unsupported,
    unsupported,
)
from kpt_lab.precision.objective import Loss, Objective, check_batch, check_model, moved
from kpt_lab.precision.observe import Errors, Seen, errors, observe
from kpt_lab.ratios import speedups
from kpt_lab.tables import span

Shape = tuple[int, int, int]
UNKNOWN = "emulated: time unknown"
LEADERS = 2  # recipes that a first look leaves in the race


class NoFiniteLoss(ValueError):
    """The batch to decide on gives a loss that is not finite, `value`."""

    def __init__(self, value: float) -> None:
        super().__init__(f"the batch gives a loss of {value}; deciding needs one whose loss is finite")
        self.value = value


@dataclass(frozen=True)
class AutoMixedPrecision:
    """Decides each linear layer's recipe by measured time and by error on a real batch.

    recipes: the candidates, in the order in which emulation, which knows no time, prefers them. head: "bfloat16" keeps the output
    layer out. keep: names of more layers to keep out.
    forward: dB that the output must have against float64; e5m2, e4m3: dB of both gradients, by the format of the output
    gradient. tokens: dB that the lowest twentieth of the tokens must have: clean layers have 23 to 28, and below 10 is left to
    the others beside one token that is 1e5 times louder. flushed: the largest share of a tensor that tensorwise scaling may turn to zero.
    gain: what the lower end of the measured speedup must exceed. budget: seconds of timing for a first look at
    each shape, confirm: at most as many for its fastest recipes again. sample: tokens on which errors are taken.
    """

    recipes: tuple[Recipe, ...] = layer.RECIPES
    head: Literal["bfloat16", "auto"] = "bfloat16"
    keep: Collection[str] = ()
    forward: float = 23.0
    e5m2: float = 20.0
    e4m3: float = 23.0
    tokens: float = 15.0
    flushed: float = 0.01
    gain: float = 1.02
    budget: float = 2.0
    confirm: float = 15.0
    sample: int = 1024

    def __post_init__(self) -> None:
        if not self.recipes or not all(isinstance(r, Recipe) and r.any_fp8 for r in self.recipes):
            raise ValueError(
                "recipes must hold at least one Recipe with a product in FP8, such as kpt_lab.precision.TENSORWISE"
            )
        if self.head not in ("bfloat16", "auto"):
            raise ValueError(f"head is {self.head!r}; accepted are 'bfloat16' and 'auto'")
        if not self.gain >= 1:
            raise ValueError(
                f"gain is {self.gain!r}; accepted are numbers from 1 up: below, FP8 would be chosen where it is slower"
            )
        if not 0 <= self.flushed <= 1:
            raise ValueError(f"flushed is {self.flushed!r}; accepted are shares from 0 to 1")
        if not (self.budget > 0 and self.confirm > 0 and self.sample >= 16):
            raise ValueError(
                f"budget is {self.budget!r}, confirm {self.confirm!r} and sample {self.sample!r}; the first two must be above 0, "
                "sample 16 or more"
            )

    def decide(
        self,
        model: nn.Module,
        batch: Any,
        *,
        loss: Loss | None = None,
        emulate: bool = False,
        autocast: torch.dtype | None = None,
        only: Recipe | None = None,
    ) -> Decisions:
        """Run the model once on a real batch, time what could pay, and say for each nn.Linear what it should be computed in.

        batch: a mapping, of which the model returns its loss, or (inputs, target) with `loss(output, target)`. emulate: choose
        by error alone, on any device. autocast: the dtype in which the model's products run, where that is not its own.
        only: take this recipe wherever it can run, whatever its time and error; both are then as the table says.
        The model, its gradients and random states stay as they are. NoFiniteLoss, a ValueError, where the batch's loss is not finite.
        """
        check_model(model)
        check_batch(batch, loss)
        parts = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        if unknown := [name for name in self.keep if name not in parts]:
            raise ValueError(f"keep names {unknown[0]!r}, which is no nn.Linear of model; it has {', '.join(parts) or 'none'}")
        device = next(p.device for p in model.parameters())
        value, seen = observe(Objective(model, loss, autocast), moved(batch, device), self.sample)
        if not math.isfinite(value):
            raise NoFiniteLoss(value)
        recipes = (only,) if only else self.recipes
        refused = {name: self._refused(name, part, seen, emulate) for name, part in parts.items()}
        if self.head == "bfloat16" and (head := _head(model, parts, seen)):
            refused[head] = refused[head] or "the output layer stays in bfloat16"
        found = {
            name: list(zip(recipes, errors(seen[name], part.weight, recipes), strict=True))
            for name, part in parts.items()
            if not refused[name]
        }
        dtype = autocast or next(p.dtype for p in model.parameters() if p.is_floating_point())
        trials, speeds = Trials(), dict[Shape, dict[Recipe, Ratio | str]]()
        if not (emulate or only):
            passing = {name: [r for r, e in pairs if not self._failure(r, e)] for name, pairs in found.items()}
            trials, speeds = self._time(_shapes(parts, seen, passing), str(device), dtype)
        made = []
        for name, part in parts.items():
            shape = seen[name].tokens, part.in_features, part.out_features
            if refused[name]:
                choice = _Choice(BFLOAT16, refused[name])
            elif only:
                choice = _Choice(only, f"asked for; {UNKNOWN}" if emulate else "asked for", None, found[name][0][1])
            else:
                choice = self._choose(found[name], None if emulate else speeds.get(shape, {}))
            made.append(_decision(name, part, seen[name], choice, emulate))
        return Decisions(tuple(made), device_name(device), dtype_name(dtype), emulate, trials=trials)

    def _refused(self, name: str, part: nn.Linear, seen: Mapping[str, Seen], emulate: bool) -> str:
        """Why a layer is not even looked at, or ""."""
        if name in self.keep:
            return "kept by name"
        if type(part) not in (nn.Linear, FP8Linear):
            return f"{type(part).__name__} may compute something other than nn.Linear, which it extends"
        reason = shape_unsupported(part.in_features, part.out_features, part.weight.dtype) if emulate else unsupported(part)
        if reason:
            return reason
        if not seen[name].calls:
            return "not called on this batch"
        return "" if seen[name].gradient is not None else "no gradient reaches it on this batch"

    def _failure(self, recipe: Recipe, found: Errors) -> str:
        """Which limit a recipe's errors miss on a layer, or ""."""
        for name in GEMMS:
            least = self.forward if name == "forward" else self.e5m2 if recipe.gradient == "e5m2" else self.e4m3
            if name in found.whole and not found.whole[name] >= least:
                return f"{name.replace('_', ' ')} has {found.whole[name]:.1f} dB of {least:g}"
            if name in found.tokens and not found.tokens[name] >= self.tokens:
                return f"{name.replace('_', ' ')} has {found.tokens[name]:.1f} dB of {self.tokens:g} in its low tokens"
        if found.flushed > self.flushed:
            return f"{found.flushed:.1%} of a tensor is flushed to zero"
        return ""

    def _choose(self, pairs: list[tuple[Recipe, Errors]], speeds: Mapping[Recipe, Ratio | str] | None) -> _Choice:
        """A layer's recipe from those that keep the error: the fastest, or without times the first."""
        failures = {recipe: self._failure(recipe, found) for recipe, found in pairs}
        known, passing = dict(pairs), [recipe for recipe, why in failures.items() if not why]
        left = _told(failures)
        if not passing:
            return _Choice(BFLOAT16, left, None, pairs[-1][1])
        if speeds is None:
            before = _told(dict(itertools.takewhile(lambda pair: pair[0] != passing[0], failures.items())))
            return _Choice(passing[0], f"{UNKNOWN}; {before}" if before else UNKNOWN, None, known[passing[0]])
        timed = {recipe: ratio for recipe in passing if isinstance(ratio := speeds[recipe], Ratio)}
        if not timed:
            return _Choice(BFLOAT16, f"no time: {speeds[passing[0]]}", None, known[passing[0]])
        best = max(timed, key=lambda recipe: timed[recipe].value)
        fastest = self.fastest(timed)
        if fastest is None:
            return _Choice(BFLOAT16, f"no gain: {_short(best)} {span(timed[best])}", None, known[best])
        reason = f"fastest within the error; {left}" if left else "fastest"
        return _Choice(fastest, reason, timed[fastest], known[fastest])

    def fastest(self, ratios: Mapping[Recipe, Ratio]) -> Recipe | None:
        """Of recipes and their speedups the highest among those whose lower end is above `gain`; None where there is none."""
        faster = [recipe for recipe, ratio in ratios.items() if ratio.low > self.gain]
        return max(faster, key=lambda recipe: ratios[recipe].value, default=None)

    def _time(
        self, shapes: Mapping[Shape, list[list[Recipe]]], device: str, dtype: torch.dtype
    ) -> tuple[Trials, dict[Shape, dict[Recipe, Ratio | str]]]:
        """Each recipe's speedup over the best baseline by shape, or the reason why there is none, and the Trials.

        A first look at all of them says which could be the fastest; those are measured again, for long enough and on other
        values, and only that counts: the best of many looks better than it is.
        """
        trials, found = Trials(), dict[Shape, dict[Recipe, Ratio | str]]()
        for shape, wanted in shapes.items():
            everyone = list(dict.fromkeys(recipe for recipes in wanted for recipe in recipes))
            look, first = self._measured(shape, everyone, device, dtype, self.budget, seed=0)
            trials += look
            leaders = list(dict.fromkeys(recipe for recipes in wanted for recipe in self._leaders(recipes, first)))
            if leaders:
                again, second = self._measured(shape, leaders, device, dtype, self.confirm, seed=2)
                trials += again
                first = {recipe: self._passed_over(ratio) for recipe, ratio in first.items()} | second
            found[shape] = first
        return trials, found

    def _passed_over(self, ratio: Ratio | str) -> Ratio | str:
        """What a recipe that is not measured again is left with: nothing that could be chosen."""
        return f"{ratio.value:.3f}x at first look" if isinstance(ratio, Ratio) and ratio.value > self.gain else ratio

    def _leaders(self, recipes: Iterable[Recipe], ratios: Mapping[Recipe, Ratio | str]) -> list[Recipe]:
        """Of one layer's recipes the LEADERS that look fastest, if that is fast enough."""
        known = {recipe: r.value for recipe in recipes if isinstance(r := ratios[recipe], Ratio) and r.value > self.gain}
        return sorted(known, key=lambda recipe: -known[recipe])[:LEADERS]

    def _measured(
        self, shape: Shape, recipes: Iterable[Recipe], device: str, dtype: torch.dtype, budget: float, seed: int
    ) -> tuple[Trials, dict[Recipe, Ratio | str]]:
        candidates = {layer.at(recipe).label: recipe for recipe in recipes}
        techniques = (layer.eager, layer.compiled, *(layer.at(recipe) for recipe in recipes))
        bound = layer.step(tokens=shape[0], in_features=shape[1], out_features=shape[2])
        cell = measure(bound, techniques, device=device, dtype=dtype, budget=budget, processes=0, seed=seed)
        found = {candidates[s.label]: s.ratio if s.ratio else s.reason for s in speedups(cell) if s.label in candidates}
        return cell, found


@dataclass(frozen=True)
class _Choice:
    recipe: Recipe
    reason: str
    predicted: Ratio | None = None
    errors: Errors | None = None


def _decision(name: str, part: nn.Linear, seen: Seen, choice: _Choice, emulate: bool) -> Decision:
    label = layer.at(choice.recipe).label if choice.recipe.any_fp8 and not emulate else ""
    found = choice.errors or Errors()
    return Decision(
        name, choice.recipe, choice.reason, part.in_features, part.out_features, seen.tokens, seen.calls, choice.predicted,
        found, label,
    )  # fmt: skip


def _told(failures: dict[Recipe, str]) -> str:
    """Why recipes were not taken, each reason once, by the first that it struck."""
    first = {why: recipe for recipe, why in reversed(failures.items()) if why}
    return "; ".join(f"not {_short(recipe)}: {why}" for why, recipe in reversed(first.items()))


def _short(recipe: Recipe) -> str:
    """A recipe in a few words."""
    kinds = [getattr(recipe, name) for name in GEMMS]
    if len(set(kinds)) == 1:
        return kinds[0]
    return "/".join(kinds)


def _shapes(
    parts: Mapping[str, nn.Linear], seen: Mapping[str, Seen], wanted: Mapping[str, list[Recipe]]
) -> dict[Shape, list[list[Recipe]]]:
    """At each distinct shape the recipes of its layers, each layer's own."""
    found: dict[Shape, list[list[Recipe]]] = {}
    for name, recipes in wanted.items():
        if recipes:
            known = found.setdefault((seen[name].tokens, parts[name].in_features, parts[name].out_features), [])
            if recipes not in known:
                known.append(recipes)
    return found


def _head(model: nn.Module, parts: Mapping[str, nn.Linear], seen: Mapping[str, Seen]) -> str | None:
    """The output layer's name: what a Transformers model says it is, else the layer called last, if it has the most outputs."""
    if callable(asked := getattr(model, "get_output_embeddings", None)) and isinstance(head := asked(), nn.Linear):
        return next((name for name, part in parts.items() if part is head), None)
    called = [name for name in parts if seen[name].calls]
    if not called:
        return None
    last = max(called, key=lambda name: seen[name].order)
    others = [parts[name].out_features for name in called if name != last]
    return last if others and parts[last].out_features > max(others) else None
