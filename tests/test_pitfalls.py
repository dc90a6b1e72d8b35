"""The naive protocols, on a fake clock: each must make the mistake that it is there to show, and no other."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kpt_lab import pitfalls, redteam, timer
from kpt_lab.baselines import eager
from kpt_lab.kernels import softmax
from kpt_lab.testing import assert_close_to_oracle

INPUTS = [(torch.tensor(float(i)),) for i in range(4)]


@pytest.fixture
def spend(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A clock that moves only when a step spends time."""
    now = [0]
    monkeypatch.setattr(timer, "_clock", lambda: now[0])
    return lambda nanoseconds: now.__setitem__(0, now[0] + nanoseconds)


@pytest.fixture
def cached_step(spend: Callable[[int], None]) -> Callable[..., None]:
    """A step that costs 100 ns, and 50 where the call before had the same input."""
    last: list[object] = [None]

    def step(x: torch.Tensor) -> None:
        spend(50 if last[0] is x else 100)
        last[0] = x

    return step


def test_fixed_order_favours_the_second_and_random_order_neither(cached_step: Callable[..., None]) -> None:
    fixed = pitfalls.fixed_order(cached_step, cached_step, INPUTS, 60)
    assert set(fixed.a) == {100}
    assert set(fixed.b) == {50}
    assert fixed.excludes_one
    drawn = pitfalls.random_order(cached_step, cached_step, INPUTS, 60, seed=1)
    assert all(sorted(pair) == [50, 100] for pair in zip(drawn.a, drawn.b, strict=True))
    assert not drawn.excludes_one


def test_random_order_draws_other_orders_unless_seeded(cached_step: Callable[..., None]) -> None:
    assert pitfalls.random_order(cached_step, cached_step, INPUTS, 64) != pitfalls.random_order(
        cached_step, cached_step, INPUTS, 64
    )
    seeded = [pitfalls.random_order(cached_step, cached_step, INPUTS, 64, seed=3) for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_back_to_back_takes_drift_for_a_difference(spend: Callable[[int], None]) -> None:
    calls = iter(range(1000))

    def slower_each_time(x: torch.Tensor) -> None:
        spend(1000 + next(calls))

    pair = pitfalls.back_to_back(slower_each_time, slower_each_time, INPUTS, 100)
    assert pair.a == tuple(range(1000, 1100))
    assert pair.b == tuple(range(1100, 1200))
    assert statistics.median(pair.b) / statistics.median(pair.a) == pytest.approx(1.1, rel=0.01)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=40))
def test_best_of_more_tries_is_never_worse(costs: list[int]) -> None:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for tries in (1, len(costs)):
            now, queue = [0], iter(costs)
            patch.setattr(timer, "_clock", lambda now=now: now[0])
            step = lambda x, now=now, queue=queue: now.__setitem__(0, now[0] + next(queue))  # noqa: E731
            found.append(pitfalls.best_of(step, INPUTS, tries))
    assert found == [costs[0], min(costs)]


def test_after_flush_times_the_step_alone(spend: Callable[[int], None]) -> None:
    assert pitfalls.after_flush(lambda x: spend(7), INPUTS, 3, flush_bytes=64) == (7, 7, 7)


@pytest.mark.parametrize(("calls", "inputs", "named"), [(0, INPUTS, "calls"), (3, [], "inputs")])
def test_bad_arguments_are_named(calls: int, inputs: list, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        pitfalls.times(lambda x: None, inputs, calls)


def test_naive_speedup_believes_a_patched_clock() -> None:
    cheat = next(t for t in redteam.cheats if t.name == "patched timer")
    clock = timer._clock
    with redteam.undone():
        pitfalls.naive_speedup(redteam.target, cheat, tries=2, rows=8, cols=8)
        assert timer._clock is not clock  # nothing stopped it
    assert timer._clock is clock


def test_naive_speedup_is_eager_over_the_technique(spend: Callable[[int], None]) -> None:
    def halved(fn: Callable, args: tuple) -> Callable:
        return lambda x: spend(50)

    def whole(fn: Callable, args: tuple) -> Callable:
        return lambda x: spend(100)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pitfalls, "eager", pitfalls.Technique("eager", whole))
        found = pitfalls.naive_speedup(softmax.forward, pitfalls.Technique("halved", halved), tries=3, rows=2, cols=3)
    assert found == 2


@pytest.mark.parametrize("technique", [pitfalls.again, pitfalls.slowed, pitfalls.slowed(percent=50)], ids=lambda t: t.label)
def test_the_planted_pair_computes_the_specification(technique: pitfalls.Technique) -> None:
    x = torch.randn(37, 129)
    candidate = technique.apply(softmax.softmax, (x,), **technique.knobs)
    assert_close_to_oracle(candidate, softmax.softmax, x)


def test_slowed_computes_its_share_of_the_rows_twice() -> None:
    seen: list[int] = []
    step = pitfalls.slowed.apply(lambda x: seen.append(len(x)), (torch.zeros(200, 1),), percent=10)
    step(torch.zeros(200, 1))
    assert seen == [20, 200]
    with pytest.raises(ValueError, match="percent"):
        pitfalls.slowed.apply(lambda x: x, (torch.zeros(5, 1),), percent=10)


def test_the_simulated_clock_drifts_for_all_steps_alike() -> None:
    a, b = (np.log(row) for row in pitfalls.simulated(2000, seed=1, noise=0.0, drift=0.01))
    assert np.array_equal(a, b)
    a, b = (np.log(row) for row in pitfalls.simulated(2000, seed=1, noise=0.05))
    assert statistics.stdev(a) == pytest.approx(0.05, rel=0.1)
    assert abs(float(np.corrcoef(a, b)[0, 1])) < 4 / 2000**0.5


def test_choosing_the_winner_needs_a_corrected_level() -> None:
    seeds = range(400)
    one = pitfalls.chosen_winner_is_faster(1, seeds, corrected=False, blocks=30)
    plain = pitfalls.chosen_winner_is_faster(20, seeds, corrected=False, blocks=30)
    corrected = pitfalls.chosen_winner_is_faster(20, seeds, corrected=True, blocks=30)
    assert plain > 2 * one  # the more candidates, the more false winners
    assert corrected <= 10  # 2.5% of 400 expected at most, one side of 95%
    assert corrected < plain


def test_the_baseline_of_the_planted_pair_is_eager() -> None:
    assert eager.baseline
    assert not any(technique.baseline for technique in (pitfalls.again, pitfalls.slowed))
