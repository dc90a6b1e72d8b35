"""How good the policy's choices are: decided from one run of a cell, graded on the next, which it has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kpt_lab import stats
from kpt_lab.core import Ratio, Trial, Trials
from kpt_lab.precision import layer
from kpt_lab.precision.linear import BFLOAT16, Recipe
from kpt_lab.precision.policy import AutoMixedPrecision
from kpt_lab.ratios import Incomparable, Speedup, speedups

LIMIT = 0.98  # of the best baseline's speed: below it, a choice made something slower
SEED = 1  # of the runs that grade; the policy's own have others
WINS = 1.05  # the best recipe's speedup from which a choice must come near it


class Grade(NamedTuple):
    """One cell: the recipe chosen on one run, its speedup on another, and the best there.

    pvalue: of the grading run's blocks if the choice were no slower than LIMIT times the best baseline. share: the choice's speedup
    over the best's.
    """

    sizes: Mapping[str, Any]
    chosen: Recipe
    ratio: Ratio
    best: Recipe
    best_ratio: Ratio
    pvalue: float

    @property
    def share(self) -> float:
        return self.ratio.value / self.best_ratio.value

    def __str__(self) -> str:
        where = " x ".join(str(value) for value in self.sizes.values())
        chosen = f"{self.chosen} {self.ratio.value:.3f}x [{self.ratio.low:.3f}, {self.ratio.high:.3f}]"
        return f"{where}: {chosen}; best {self.best} {self.best_ratio.value:.3f}x"


def graded(trials: Iterable[Trial], policy: AutoMixedPrecision | None = None) -> list[Grade]:
    """Grades of a policy in every cell of `linear.step`: decided on its newest run, graded on the newest of seed SEED.

    The two may come from two machines of one target: a choice must hold on the next such device too.
    ValueError where no cell has both.
    """
    policy = policy or AutoMixedPrecision()
    runs: dict[tuple, dict[str, list[Trial]]] = {}
    for trial in trials:
        if trial.workload == layer.step.name and trial.device:
            place = (tuple(sorted(trial.params.items())), trial.dtype, trial.target or trial.host)
            runs.setdefault(place, {}).setdefault(trial.cell, []).append(trial)
    found = []
    for by_cell in runs.values():
        ordered = sorted(by_cell.values(), key=lambda run: min(t.at for t in run))
        deciding = [run for run in ordered if run[0].seed != SEED]
        grading = [run for run in ordered if run[0].seed == SEED]
        if deciding and grading:
            found.append(_grade(_ratios(deciding[-1]), _ratios(grading[-1]), grading[-1], policy))
    if not found:
        raise ValueError(
            f"trials hold no cell of {layer.step.name!r} with one run to decide on and one of seed {SEED} to grade"
        )
    return found


def _ratios(run: list[Trial]) -> dict[Recipe, Speedup]:
    """The speedups over the best baseline of one run, by recipe; bfloat16 is the layer as torch.compile leaves it."""
    labels = {layer.compiled.label: BFLOAT16, **{layer.at(recipe).label: recipe for recipe in layer.RECIPES}}
    return {labels[s.label]: s for s in speedups(Trials(run)) if s.label in labels and s.ratio is not None}


def _grade(
    before: Mapping[Recipe, Speedup], after: Mapping[Recipe, Speedup], run: list[Trial], policy: AutoMixedPrecision
) -> Grade:
    timed = {recipe: s.ratio for recipe, s in before.items() if recipe in policy.recipes and s.ratio is not None}
    chosen = policy.fastest(timed) or BFLOAT16
    if chosen not in after:
        raise Incomparable(f"{chosen} was chosen and has no time in the run that grades")
    best = max(after, key=lambda recipe: after[recipe].ratio.value)  # type: ignore[union-attr]
    mine, baseline = after[chosen].trials[0], after[chosen].over[0]
    blocks = np.asarray(baseline.samples["time"], dtype=float) / np.asarray(mine.samples["time"], dtype=float)
    sizes = {name: run[0].params[name] for name in ("tokens", "in_features", "out_features")}
    one, other = after[chosen].ratio, after[best].ratio
    assert one is not None
    assert other is not None
    return Grade(sizes, chosen, one, best, other, stats.median_pvalue(blocks, LIMIT))


def summary(grades: Iterable[Grade]) -> dict[str, Any]:
    """The two bars in numbers: cells slower than LIMIT after Holm's correction, and the least share where FP8 wins by WINS."""
    grades = list(grades)
    adjusted = stats.holm([grade.pvalue for grade in grades])
    winning = [grade for grade in grades if grade.best_ratio.value > WINS]
    return {
        "cells": len(grades),
        "chosen_fp8": sum(grade.chosen.any_fp8 for grade in grades),
        "slower_than_limit": [str(grade) for grade, p in zip(grades, adjusted, strict=True) if p <= 0.05],
        "lowest": min(grade.ratio.value for grade in grades),
        "highest": max(grade.ratio.value for grade in grades),
        "winning_cells": len(winning),
        "least_share_of_best": min((grade.share for grade in winning), default=None),
        "below_share": [str(grade) for grade in winning if grade.share < 0.97],
    }
