"""How benchmarks go wrong: the naive protocols, kept so that a notebook can show what each of them gets wrong.

Nothing here makes a Trial: what these functions return are bare nanoseconds and ratios, and `measure` is the cure. The
simulated clock has a known answer, so that wrong verdicts can be counted in thousands of comparisons.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from kpt_lab import stats
from kpt_lab.baselines import eager
from kpt_lab.core import Technique, Workload
from kpt_lab.timer import call_on_cpu

Step = Callable[..., Any]
Inputs = Sequence[tuple[Any, ...]]

CALL = 100_000  # ns of a simulated call


class Pair(NamedTuple):
    """Nanoseconds of two steps, one value of each a block, in the order in which the blocks ran."""

    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def excludes_one(self) -> bool:
        """Whether the 95% interval of the median of b / a excludes 1: the naive test for "they differ"."""
        _, low, high = stats.ratio_interval(self.b, self.a, 0.95)
        return not low <= 1 <= high


# ---- naive protocols, live on a CPU


def times(step: Step, inputs: Inputs, calls: int) -> tuple[int, ...]:
    """Wall nanoseconds of `calls` calls, one after the other, on the sets of `inputs` in turn."""
    _check(calls, "calls", inputs)
    return tuple(call_on_cpu(step, inputs[i % len(inputs)])[0] for i in range(calls))


def best_of(step: Step, inputs: Inputs, tries: int) -> int:
    """The lowest of `tries` calls in nanoseconds: the more tries, the lower, whatever the step."""
    return min(times(step, inputs, tries))


def after_flush(step: Step, inputs: Inputs, calls: int, flush_bytes: int = 2**26) -> tuple[int, ...]:
    """As `times`, but a buffer of `flush_bytes` is written before each call, so that the inputs have left the caches."""
    _check(calls, "calls", inputs)
    buffer = torch.zeros(flush_bytes // 4)
    found = []
    for i in range(calls):
        buffer.add_(1)
        found.append(call_on_cpu(step, inputs[i % len(inputs)])[0])
    return tuple(found)


def back_to_back(a: Step, b: Step, inputs: Inputs, blocks: int) -> Pair:
    """All calls of `a`, then all calls of `b`: whatever drifts meanwhile becomes their difference."""
    return Pair(times(a, inputs, blocks), times(b, inputs, blocks))


def fixed_order(a: Step, b: Step, inputs: Inputs, blocks: int) -> Pair:
    """In each block `a`, then `b`, on the same inputs: `b` finds in the cache what `a` had to fetch."""
    return _blocks(a, b, inputs, blocks, lambda: False)


def random_order(a: Step, b: Step, inputs: Inputs, blocks: int, seed: int | None = None) -> Pair:
    """In each block both in an order drawn anew: being second helps neither. Without a `seed` each call draws other orders."""
    dice = random.Random(seed)
    return _blocks(a, b, inputs, blocks, lambda: dice.random() < 0.5)


def _blocks(a: Step, b: Step, inputs: Inputs, blocks: int, swapped: Callable[[], bool]) -> Pair:
    _check(blocks, "blocks", inputs)
    found: tuple[list[int], list[int]] = ([], [])
    for i in range(blocks):
        order = ((b, found[1]), (a, found[0])) if swapped() else ((a, found[0]), (b, found[1]))
        for step, samples in order:
            samples.append(call_on_cpu(step, inputs[i % len(inputs)])[0])
    return Pair(tuple(found[0]), tuple(found[1]))


def naive_speedup(workload: Workload, technique: Technique, *, tries: int = 50, seed: int = 0, **params: Any) -> float:
    """What a quick benchmark reports: best time of eager over best time of the technique, on one input, nothing checked.

    The number may be anything at all where the technique cheats, and is nobody's measurement. CPU, float32.
    """
    best = []
    for each in (eager, technique):
        problem = workload.make(device="cpu", dtype=torch.float32, seed=seed, **params)
        step = problem.drive(each.apply(problem.fn, problem.inputs[0], **each.knobs))
        call_on_cpu(step, problem.inputs[0])
        best.append(best_of(step, problem.inputs[:1], tries))
    return best[0] / max(best[1], 1)


def _check(count: int, name: str, inputs: Inputs) -> None:
    if count < 1:
        raise ValueError(f"{name} is {count}; accepted are whole numbers from 1")
    if not inputs:
        raise ValueError("inputs is empty; give at least one tuple of arguments")


# ---- two techniques with a known answer


def _again(fn: Callable[..., Any], args: tuple) -> Callable[..., Any]:
    """The specification itself under another name: its speedup over eager is 1."""
    return fn


def _slowed(fn: Callable[..., Any], args: tuple, percent: int = 10) -> Callable[..., Any]:
    """The specification, then `percent` of its rows once more for nothing."""
    rows = args[0].shape[0]
    extra = rows * percent // 100
    if extra < 1:
        raise ValueError(f"percent is {percent}, which is less than one of {rows} rows; use more rows")

    def slowed(x: torch.Tensor) -> Any:
        fn(x[:extra])
        return fn(x)

    return slowed


again = Technique("the same again", _again)
slowed = Technique("slowed", _slowed)(percent=10)


# ---- a simulated clock


def simulated(
    blocks: int, *, seed: int, steps: int = 2, noise: float = 0.03, drift: float = 0.0
) -> tuple[tuple[int, ...], ...]:
    """Nanoseconds of `steps` identical steps by block, on a clock that drifts for all of them alike; simulated.

    noise: relative spread of each call; drift: relative step of the common random walk from block to block.
    """
    dice = np.random.default_rng(seed)
    common = np.cumsum(dice.normal(0.0, drift, blocks))
    logs = common + dice.normal(0.0, noise, (steps, blocks))
    return tuple(tuple(int(value) for value in row) for row in CALL * np.exp(logs))


def chosen_winner_is_faster(variants: int, seeds: Iterable[int], *, corrected: bool, blocks: int = 60) -> int:
    """In how many simulated experiments the best of identical variants is called different from an identical baseline.

    The winner is the variant with the lowest median. `corrected` divides the error level by the number of variants.
    """
    level = stats.corrected_level(0.95, variants) if corrected else 0.95
    found = 0
    for seed in seeds:
        base, *others = simulated(blocks, seed=seed, steps=variants + 1)
        winner = min(others, key=np.median)
        found += stats.ratio_interval(base, winner, level)[1] > 1
    return found
