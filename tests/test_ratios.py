"""Ratios of Trials: which ones are refused and why, and what the allowed ones say.

Trials are made by hand, so every number has a known answer; nothing here is measured.
"""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom

import kpt_lab as kpt
from kpt_lab import ratios
from kpt_lab.core import Incomparable, Metric, Trial, Trials
from kpt_lab.ratios import best_baseline, breakeven, cells, compare, speedup, speedups

HERE = {"host": "a1"}


def flat(nanoseconds, blocks=40):
    return (nanoseconds,) * blocks


def timed(technique, samples, *, process=0, cell="c", **fields):
    """A measured Trial with these samples; its time is their median."""
    middle = sorted(samples)[len(samples) // 2] / 1e9
    fields = {"env": HERE, "params": {"rows": 3}, "at": "2026-01-01T00:00:00Z", **fields}
    metrics = {"time": Metric(middle, "s", "measured"), **fields.pop("metrics", {})}
    return Trial("softmax", technique, metrics=metrics, samples={"time": samples}, cell=cell, process=process, **fields)


def processes(technique, medians, **fields):
    return Trials(timed(technique, flat(ns), process=p, **fields) for p, ns in enumerate(medians))


def stated(technique, metrics, **fields):
    """A Trial without samples: modelled, quoted or simulated."""
    return Trial("softmax", technique, **{"params": {"rows": 3}, "device": "", "metrics": metrics, **fields})


def joules(value, source="a formula"):
    return Metric(value, "J", "modelled", source=source)


SLOW, FAST = timed("slow", flat(2000)), timed("fast", flat(1000))


# ---- the rule against false ratios -------------------------------------------------------------------------------------------

SIMULATED = Trial(
    "softmax", "photonic", params={"rows": 3}, simulates="a photonic core", cell="c", env=HERE,
    metrics={"simulation_time": Metric(1e-6, "s", "measured"), "energy.compute": joules(1e-9)},
)  # fmt: skip


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SIMULATED, "simulates 'a photonic core': its wall time is simulation_time, the speed of the simulator"),
        (
            timed("fast", flat(1000), device="cuda"),
            "measured on different devices or dtypes: .* on (cpu and .* on cuda|cuda and .* on cpu)",
        ),
        (timed("fast", flat(1000), dtype="bfloat16"), "measured on different devices or dtypes"),
        (timed("fast", flat(1000), env={"host": "b2"}), "measured on different devices or dtypes"),
        (
            timed("fast", flat(1000), params={"rows": 4}),
            r"different work: softmax\(rows=[34]\) float32 on cpu and softmax\(rows=[34]\)",
        ),
        (replace(FAST, workload="gelu"), "different work: .*gelu"),
        (timed("fast", flat(1000), cell="d"), "in different runs, not interleaved in the same blocks"),
        (timed("fast", flat(1000), process=1), "in different runs, not interleaved in the same blocks"),
        (
            stated("fast", {"time": Metric(1e-6, "s", "modelled", source="a bound")}),
            "are (measured and modelled|modelled and measured); only numbers of one kind make a ratio",
        ),
        (
            stated("fast", {"time": Metric(1e-6, "s", "quoted", source="a paper")}),
            "are (measured and quoted|quoted and measured); only numbers of one kind make a ratio",
        ),
        (timed("fast", flat(1000), status="wrong", advice="off by one"), "'fast' is wrong: off by one"),
        (stated("fast", {"bound": Metric(1e-6, "s", "modelled", source="a bound")}), "has no metric 'time'; it has bound"),
        (stated("fast", {}), "has no metric 'time'; it has none"),
        ((), "no Trial was given"),
        ((FAST, SLOW), "several techniques or cells were given as one side"),
    ],
)
def test_a_ratio_that_means_nothing_is_refused_in_either_direction(other, message):
    with pytest.raises(Incomparable, match=message):
        speedup(other, over=SLOW)
    with pytest.raises(Incomparable, match=message):
        speedup(SLOW, over=other)


def test_photonic_ten_times_faster_cannot_be_computed_from_the_simulator():
    with pytest.raises(Incomparable, match="compare modelled energy, or quality"):
        kpt.speedup(SIMULATED, over=SLOW)
    with pytest.raises(Incomparable, match="has no metric 'simulation_time'"):
        compare(SIMULATED, SLOW, "simulation_time")


def test_a_modelled_metric_is_not_set_against_a_measured_one():
    metered = timed("gpu", flat(10), metrics={"energy.compute": Metric(1e-6, "J", "measured")})
    with pytest.raises(Incomparable, match="are modelled and measured; only numbers of one kind make a ratio"):
        compare(SIMULATED, metered, "energy.compute")


def test_quotes_compare_only_within_one_source():
    one = stated("a", {"time": Metric(2e-6, "s", "quoted", source="paper A")})
    same = stated("b", {"time": Metric(1e-6, "s", "quoted", source="paper A")})
    other = stated("b", {"time": Metric(1e-6, "s", "quoted", source="paper B")})
    with pytest.raises(Incomparable, match=r"different sources \(paper A; paper B\)"):
        compare(one, other)
    found = compare(one, same)
    assert (found.value, found.provenance, found.verdict) == (2.0, "quoted", "UNCLEAR")
    assert "paper A" in found.note


def test_modelled_energy_of_one_boundary_compares_also_across_targets():
    light = stated("photonic", {"energy.compute": joules(1e-9, "photon model")}, target="a photonic core")
    gpu = stated("eager", {"energy.compute": joules(4e-9, "gpu model"), "energy.with_memory": joules(9e-9)}, target="H100")
    found = compare(light, gpu, "energy.compute")
    assert found.value == pytest.approx(0.25)
    assert (found.low, found.high, found.verdict, found.provenance) == (found.value, found.value, "UNCLEAR", "modelled")
    assert "photon model" in found.note
    assert "gpu model" in found.note
    with pytest.raises(Incomparable, match=r"'photonic' has no metric 'energy.with_memory'; it has energy.compute"):
        compare(light, gpu, "energy.with_memory")


def test_simulated_quality_against_a_measured_baseline_is_allowed_and_labelled():
    real = timed("eager", flat(10), metrics={"quality": Metric(0.8, "1", "measured")})
    simulated = replace(SIMULATED, metrics={**SIMULATED.metrics, "quality": Metric(0.6, "1", "simulated")})
    found = compare(simulated, real, "quality")
    assert found.value == pytest.approx(0.75)
    assert found.provenance == "simulated"
    assert found.note == "simulated quality; 0.6 over 0.8"
    assert "simulated" in repr(found)
    assert compare(real, real, "quality").provenance == "measured"


def test_a_simulations_speed_compares_only_with_a_simulations_and_says_so():
    def simulation(label, ns):
        trial = timed(label, flat(ns), simulates="", metrics={})
        metrics = {"simulation_time": Metric(ns / 1e9, "s", "measured")}
        return replace(trial, simulates="x", metrics=metrics, samples={"simulation_time": flat(ns)})

    found = compare(simulation("a", 3000), simulation("b", 1000), "simulation_time")
    assert found.value == pytest.approx(3.0)
    assert found.note == "speed of the simulation, not of the device"


@pytest.mark.parametrize("metric", ["error", "energy.compute"])
def test_a_ratio_over_zero_is_refused_with_a_sentence(metric):
    zero = {"error": Metric(0.0, "1", "measured"), "energy.compute": joules(0.0)}
    one = {"error": Metric(1e-7, "1", "measured"), "energy.compute": joules(1e-9)}
    with pytest.raises(Incomparable, match="is 0"):
        compare(timed("a", flat(10), metrics=one), timed("b", flat(10), metrics=zero), metric)


def test_measured_memory_over_zero_is_refused_with_a_sentence():
    held = [timed(name, flat(10), metrics={"memory.held": Metric(b, "B", "measured")}) for name, b in (("a", 8.0), ("b", 0.0))]
    with pytest.raises(Incomparable, match=r"'memory\.held' of 'b' is 0"):
        compare(*held, "memory.held")


# ---- values and intervals ----------------------------------------------------------------------------------------------------


def test_direction_a_speedup_above_one_is_a_win_and_compare_is_the_plain_ratio():
    assert speedup(FAST, over=SLOW).value == pytest.approx(2.0)
    assert speedup(FAST, over=SLOW).verdict == "FASTER"
    assert speedup(SLOW, over=FAST).verdict == "SLOWER"
    assert compare(FAST, SLOW).value == pytest.approx(0.5)
    assert speedup(FAST, over=FAST).verdict == "SAME"
    assert (speedup(FAST, over=SLOW).processes, speedup(FAST, over=SLOW).blocks) == (1, 40)


def test_only_a_speedup_is_called_faster():
    small, large = (timed("a", flat(10), metrics={"memory.peak": Metric(b, "B", "measured")}) for b in (8.0, 16.0))
    assert compare(large, small, "memory.peak").verdict not in ("FASTER", "SLOWER")  # one number each, without an interval
    assert "16 B over 8 B" in compare(large, small, "memory.peak").note
    many = [
        processes(name, [10] * 6, metrics={"memory.peak": Metric(b, "B", "measured")}) for name, b in (("a", 16.0), ("b", 8.0))
    ]
    assert (compare(*many, "memory.peak").verdict, compare(many[0], many[0], "memory.peak").verdict) == ("UNCLEAR", "SAME")


def test_a_ratio_of_times_below_one_is_faster():
    assert compare(SLOW, FAST).verdict == "SLOWER"
    assert compare(FAST, SLOW).verdict == "FASTER"
    assert compare(FAST, FAST).verdict == "SAME"


def test_one_setup_time_each_has_no_interval_and_no_verdict():
    quick, slow = (timed(name, flat(10), metrics=setups(seconds)) for name, seconds in (("a", 4.0), ("b", 16.0)))
    later = processes("a", [10] * 3)[1:]
    found = compare(Trials([quick]) + later, slow, "setup_time.cold")
    assert (found.value, found.verdict, found.processes) == (pytest.approx(0.25), "UNCLEAR", 1)
    assert found.note == "one number each, without an interval"


@pytest.mark.parametrize("provenance", ["modelled", "quoted"])
def test_quotes_and_models_over_zero_are_refused_with_a_sentence(provenance):
    one, zero = (stated(name, {"energy": Metric(j, "J", provenance, source="a paper")}) for name, j in (("a", 1.0), ("b", 0.0)))
    with pytest.raises(Incomparable, match="'energy' of 'b' is 0, so there is no ratio over it"):
        compare(one, zero, "energy")
    assert compare(zero, one, "energy").value == 0


def test_pairs_are_formed_by_position_not_by_medians():
    drift = [1000, 5000, 1000, 5000, 1000, 5000, 1000, 5000] * 5
    ratio = speedup(timed("a", tuple(drift)), over=timed("b", tuple(2 * ns for ns in drift)))
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))


def test_six_processes_span_their_medians():
    factors = [2.3, 2.1, 2.2, 2.5, 2.4, 2.05]
    ours, theirs = processes("ours", [1000] * 6), processes("theirs", [round(1000 * f) for f in factors])
    found = speedup(ours, over=theirs)
    assert (found.low, found.high) == (pytest.approx(2.05), pytest.approx(2.5))
    assert found.value == pytest.approx(math.sqrt(2.2 * 2.3))
    assert (found.verdict, found.processes, found.blocks) == ("FASTER", 6, 240)


def test_six_processes_that_disagree_are_unclear():
    ours, theirs = processes("ours", [1000] * 6), processes("theirs", [1100, 1100, 1100, 1100, 1100, 950])
    assert speedup(ours, over=theirs).verdict == "UNCLEAR"
    assert speedup(processes("ours", [1000] * 6), over=processes("theirs", [1010] * 6)).verdict == "SAME"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_fewer_processes_hold_every_single_ones_interval(count):
    ours = Trials(timed("ours", wobbling(1000, 40, p), process=p) for p in range(count))
    theirs = Trials(timed("theirs", wobbling(2000 + 100 * p, 40, p + 9), process=p) for p in range(count))
    together = speedup(ours, over=theirs)
    singles = [speedup(a, over=b) for a, b in zip(ours, theirs, strict=True)]
    assert together.low == min(single.low for single in singles)
    assert together.high == max(single.high for single in singles)
    assert together.processes == count


def wobbling(middle, blocks, phase):
    """Samples around `middle` without drift: neighbours lie on opposite sides, so blocks are not positively correlated."""
    return tuple(middle + (-1) ** i * (1 + (7 * i + phase) % blocks) for i in range(blocks))


def order_statistics(values, level):
    """The exact interval of the median of independent values, by scipy's binomial."""
    ordered, n = sorted(values), len(values)
    k = max(k for k in range(1, n // 2) if binom.cdf(k - 1, n, 0.5) <= (1 - level) / 2)
    return ordered[k - 1], ordered[-k]


@pytest.mark.parametrize("choices", [1, 3, 8])
def test_the_level_is_corrected_for_the_choice_of_baseline(choices):
    samples = wobbling(100_000, 60, 0)
    found = speedup(timed("a", flat(50_000, 60)), over=timed("b", samples), choices=choices)
    low, high = order_statistics([ns / 50_000 for ns in samples], 1 - 0.01 / choices)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


nanoseconds = st.integers(min_value=1, max_value=10**9)


@given(st.lists(st.tuples(nanoseconds, nanoseconds), min_size=3, max_size=70))
def test_the_two_directions_are_reciprocal(pairs):
    a, b = (timed(name, tuple(samples)) for name, samples in zip("ab", zip(*pairs, strict=True), strict=True))
    one, back = speedup(a, over=b), speedup(b, over=a)
    assume(not 0.0195 < abs(one.value - 1) < 0.0205)  # the margin of 2% is not symmetric in the ratio
    assert one.value * back.value == pytest.approx(1)
    assert one.low == pytest.approx(1 / back.high if math.isfinite(back.high) else 0)
    assert back.low == pytest.approx(1 / one.high if math.isfinite(one.high) else 0)
    assert one.low <= one.value <= one.high


@pytest.mark.parametrize("count", [2, 6, 7])
def test_pooled_directions_are_reciprocal(count):
    a, b = processes("a", [1000] * count), processes("b", [1000 * (p + 2) for p in range(count)])
    assert speedup(a, over=b).value * speedup(b, over=a).value == pytest.approx(1)


# ---- cells, best baseline, speedups ------------------------------------------------------------------------------------------


def test_best_baseline_has_the_lowest_median_pooled_over_processes_among_those_that_are_ok():
    lucky = processes("lucky", [10, 900, 900], baseline=True)  # fastest once, slower as a rule
    steady = processes("steady", [500, 500, 500], baseline=True)
    ours = processes("ours", [100, 100, 100])
    broken = processes("broken", [50, 50, 50], baseline=True, status="wrong", advice="no")
    assert {t.label for t in best_baseline(lucky + steady + ours + broken)} == {"steady"}
    assert len(best_baseline(lucky + steady + ours + broken)) == 3
    with pytest.raises(Incomparable, match=r"no baseline that ran: add one of kpt_lab\.baselines"):
        best_baseline(ours + broken)


def test_speedups_leave_the_copy_out_and_keep_failures_with_their_reason():
    broken = timed("broken", flat(1), status="wrong", advice="off by one")
    trials = [timed("eager", flat(2000), baseline=True), FAST, broken, timed(ratios.COPY, flat(1))]
    found = {row.label: row for row in speedups(trials)}
    assert set(found) == {"eager", "fast", "broken"}
    assert found["fast"].ratio.value == pytest.approx(2)
    assert found["eager"].ratio.value == pytest.approx(1)
    assert found["broken"].ratio is None
    assert "off by one" in found["broken"].reason
    assert {t.label for t in found["fast"].over} == {"eager"}
    assert found["fast"].cell == ratios.Cell("softmax", (("rows", 3),), "cpu", "float32", "", "a1")


def test_speedups_over_a_label_that_is_not_there_or_without_a_baseline_give_a_reason():
    for row in speedups([FAST, SLOW], over="eager"):
        assert row.ratio is None
        assert row.reason == "no technique labelled 'eager' in this cell; there are fast, slow"
    assert all("no baseline that ran" in row.reason for row in speedups([FAST, SLOW]))
    assert {row.label: row.ratio.value for row in speedups([FAST, SLOW], over="slow")} == {"fast": 2.0, "slow": 1.0}


def test_speedups_correct_the_level_for_the_number_of_baselines_and_a_named_one_is_no_choice():
    samples = wobbling(100_000, 60, 0)
    bases = [
        timed(name, tuple(ns + extra for ns in samples), baseline=True) for name, extra in (("x", 0), ("y", 999), ("z", 99))
    ]
    ours = timed("ours", flat(50_000, 60))
    ratio = {row.label: row.ratio for row in speedups([*bases, ours])}["ours"]
    named = {row.label: row.ratio for row in speedups([*bases, ours], over="x")}["ours"]
    values = [ns / 50_000 for ns in samples]
    assert (ratio.low, ratio.high) == pytest.approx(order_statistics(values, 1 - 0.01 / 3))
    assert (named.low, named.high) == pytest.approx(order_statistics(values, 0.99))
    assert ratio.low < named.low


def test_cells_keep_the_newest_run_whole_with_all_its_processes():
    old = Trials(timed(name, flat(1), cell="old", process=p) for name in ("eager", "gone") for p in range(3))
    new = Trials(timed("eager", flat(2), cell="new", process=p, at=f"2026-02-0{p + 1}T00:00:00Z") for p in range(2))
    elsewhere = timed("eager", flat(3), env={"host": "b2"})
    found = cells([*new, *old, elsewhere])
    assert len(found) == 2
    here = found[ratios.Cell("softmax", (("rows", 3),), "cpu", "float32", "", "a1")]
    assert set(here) == {"eager"}
    assert [(t.cell, t.process) for t in here["eager"]] == [("new", 0), ("new", 1)]


def test_cells_of_modelled_trials_keep_every_trial():
    trials = [stated("a", {"bound": joules(1.0)}, target="H100"), stated("b", {"bound": joules(2.0)}, target="H100")]
    (found,) = cells(trials).values()
    assert {label: len(group) for label, group in found.items()} == {"a": 1, "b": 1}


def test_cells_do_not_depend_on_the_order_of_parameters():
    one = timed("a", flat(1), params={"rows": 3, "cols": 4})
    two = timed("b", flat(1), params={"cols": 4, "rows": 3})
    assert speedup(one, over=two).value == pytest.approx(1)
    (cell,) = cells([one, two])
    assert cell.params == (("rows", 3), ("cols", 4))  # in the first one's order
    (other,) = cells([two])
    assert cell == other
    assert (cell != other) is False  # tuples answer this one by themselves
    assert {cell: 1}[other] == 1


def test_all_cells_of_a_workload_have_their_parameters_in_one_order():
    given = [timed("a", flat(1), params=p) for p in ({"rows": 3, "cols": 4}, {"cols": 4, "rows": 5})]
    assert [cell.params for cell in cells(given)] == [(("rows", 3), ("cols", 4)), (("rows", 5), ("cols", 4))]
    assert len(set(cells(given))) == 2


# ---- break-even --------------------------------------------------------------------------------------------------------------


def setups(cold, warm=0.0):
    return {"setup_time.cold": Metric(cold, "s", "measured"), "setup_time.warm": Metric(warm, "s", "measured")}


def test_breakeven_divides_the_extra_setup_by_the_gain_per_call():
    compiled = timed("compiled", flat(1_000_000), metrics=setups(16.0, 4.0))
    eager = timed("eager", flat(3_000_000))
    assert breakeven(compiled, over=eager) == pytest.approx(8000)
    assert breakeven(compiled, over=eager, setup="warm") == pytest.approx(2000)
    costly = timed("eager", flat(3_000_000), metrics=setups(6.0, 5.0))
    assert breakeven(compiled, over=costly) == pytest.approx(5000)
    assert breakeven(compiled, over=costly, setup="warm") == 0.0


def test_breakeven_is_never_without_a_gain_and_asks_for_setup_times():
    slow = timed("slow", flat(3000), metrics=setups(16.0))
    assert breakeven(slow, over=timed("eager", flat(1000))) == math.inf
    assert breakeven(slow, over=timed("eager", flat(3000))) == math.inf
    with pytest.raises(Incomparable, match=r"has no metric 'setup_time\.cold'"):
        breakeven(FAST, over=SLOW)


def test_breakeven_takes_the_setup_time_of_process_0():
    first = timed("compiled", flat(1_000_000), metrics=setups(16.0))
    compiled = Trials([first]) + processes("compiled", [0] + [1_000_000] * 5)[1:]
    assert breakeven(compiled, over=processes("eager", [3_000_000] * 6)) == pytest.approx(8000)
