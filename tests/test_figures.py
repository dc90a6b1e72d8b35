"""Figures: the data in their traces equals the Trials' and the ratios', and nothing is claimed or dropped silently."""

import contextlib
import json
import math
import statistics

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kpt_lab import ratios
from kpt_lab.core import Incomparable, Metric, Target, Trial, Trials

figures = pytest.importorskip("kpt_lab.figures", reason="needs plotly")
from kpt_lab import look  # noqa: E402 (it needs plotly as well)
from kpt_lab.look import six  # noqa: E402

BANDWIDTH = 3.35e12
BLOCKS = 60


def trial(technique, cols=1024, time=1e-4, *, spread=0.0, process=0, status="ok", advice="", rows=4096, **fields):
    """A Trial as measure makes it: `spread` alternates the samples by that relative amount, so ratios get an interval."""
    traffic = 4.0 * rows * cols
    bound = Metric(traffic / BANDWIDTH, "s", "modelled", source="bytes over bandwidth of h100-sxm (data sheet)")
    metrics, samples = {}, {}
    if status == "ok":
        metrics = {
            "time": Metric(time, "s", "measured", time * 0.99, time * 1.01),
            "bound": bound,
            "error": Metric(1e-3, "1", "measured"),
        }
        samples = {"time": tuple(round(time * (1 + spread * (-1) ** (i + i // 7)) * 1e9) for i in range(BLOCKS))}
    given = {
        "workload": "softmax.forward",
        "params": {"rows": rows, "cols": cols},
        "dtype": "bfloat16",
        "device": "cuda",
        "target": "h100-sxm",
        "baseline": technique in ("eager", "torch.compile"),
        "metrics": metrics,
        "samples": samples,
        "cell": f"{rows}.{cols}",
        "at": "2026-11-22T10:00:00Z",
        "chosen": {"flops": {"bfloat16": 5.0 * rows * cols}, "bytes": traffic},
        "env": {"host": "abcdef", "device_name": "NVIDIA H100 80GB HBM3"},
    }
    return Trial(technique=technique, process=process, status=status, advice=advice, **{**given, **fields})


def grid(processes=1, columns=(1024, 4096), failing=(16384,)):
    """eager, torch.compile and ours; ours fails in the `failing` columns, with markup in its advice."""
    made = []
    for cols in (*columns, *failing):
        for process in range(processes):
            wobble, base = 1 + 0.001 * process, cols * 1e-7
            made.append(trial("eager", cols, 2 * base * wobble, process=process))
            made.append(trial("torch.compile", cols, 1.5 * base * wobble, process=process))
            if cols in failing:
                advice = "a row of <b>16384</b> is too long for $1 and $2"
                made.append(trial("ours", cols, status="unsupported", advice=advice, process=process))
            else:
                made.append(trial("ours", cols, base, spread=0.02, process=process))
    return Trials(made)


def traces(figure, meta, name=None):
    return [t for t in figure.data if t.meta == meta and (name is None or t.name == name)]


def notes(figure):
    return "".join(a.text for a in figure.layout.annotations if a.name == "notes").replace("<br>", " ")


def found(trials, label, over="best baseline"):
    """The ratios that the rules allow, by cols."""
    return {dict(s.cell.params)["cols"]: s.ratio for s in ratios.speedups(trials, over) if s.label == label and s.ratio}


@pytest.mark.parametrize("processes", [1, 6])
def test_speedup_curves_are_the_ratios_with_their_intervals(processes):
    trials = grid(processes)
    figure = figures.speedup(trials)
    (curve,), (band,) = traces(figure, "values", "ours"), traces(figure, "band", "ours")
    expected = found(trials, "ours")
    assert set(expected) == {1024, 4096}
    assert curve.x == (1024, 4096, 16384)
    assert curve.y == (six(expected[1024].value), six(expected[4096].value), None)
    low, high = ([six(getattr(expected[c], end)) for c in (1024, 4096)] for end in ("low", "high"))
    assert band.x == (1024, 4096, 4096, 1024)
    assert list(band.y) == [*high, *reversed(low)]
    assert band.fill == "toself"


def test_the_bound_line_is_the_baselines_time_over_the_bound():
    trials = grid()
    (line,) = traces(figures.speedup(trials), "reference")
    bounds = [4.0 * 4096 * cols / BANDWIDTH for cols in (1024, 4096, 16384)]
    assert line.x == (1024, 4096, 16384)
    assert line.y == pytest.approx([1.5e-7 * c / b for c, b in zip(line.x, bounds, strict=True)], rel=1e-5)
    assert "modelled" in line.name
    assert "data sheet" in line.hovertext[0]
    (line,) = traces(figures.times(trials), "reference")
    assert line.y == pytest.approx(bounds, rel=1e-5)


def test_techniques_with_other_arithmetic_get_a_bound_line_of_their_own():
    half = {"bound": Metric(1e-6, "s", "modelled", source="FLOPs over fp8 peak"), "time": Metric(5e-5, "s", "measured")}
    trials = grid(failing=()) + [trial("fp8", cols, 5e-5, metrics=half) for cols in (1024, 4096)]
    names = [t.name for t in traces(figures.speedup(trials), "reference")]
    assert len(names) == 2
    assert names[1] == "hardware bound of fp8 (modelled)"


def test_1x_and_the_same_region_are_drawn_in_every_panel():
    trials = grid(failing=()) + [trial(t.technique, rows=64, time=t.time, cols=t.params["cols"]) for t in grid(failing=())]
    figure = figures.speedup(trials, x="cols")
    assert sorted(a.text for a in figure.layout.annotations if a.name != "notes") == ["rows=4096", "rows=64"]
    regions = [s for s in figure.layout.shapes if s.type == "rect"]
    assert [(s.y0, s.y1) for s in regions] == [(0.98, 1.02)] * 2
    assert [s.y0 for s in figure.layout.shapes if s.type == "line"] == [1, 1]
    assert {s.yref for s in regions} == {"y", "y2"}


def test_unclear_points_are_hollow_and_no_others():
    noisy = [trial("noisy", cols, cols * 1.5e-7, spread=0.3) for cols in (1024, 4096)]
    trials = grid(failing=()) + noisy
    verdicts = {label: [r.verdict for r in found(trials, label).values()] for label in ("ours", "noisy")}
    assert verdicts == {"ours": ["FASTER"] * 2, "noisy": ["UNCLEAR"] * 2}
    figure = figures.speedup(trials)
    (hollow,) = traces(figure, "hollow")
    assert (hollow.name, hollow.x) == ("noisy", (1024, 4096))
    assert hollow.marker.color == look.THEMES["light"].paper != hollow.marker.line.color
    assert [t.name for t in traces(figure, "key")] == ["UNCLEAR"]
    assert not traces(figures.speedup(grid(failing=())), "hollow")


def test_an_unbounded_interval_is_a_whisker_and_leaves_the_scale_alone():
    trials = grid(failing=())
    short = Trials(
        t if (t.label, t.params["cols"]) != ("ours", 1024) else trial("ours", 1024, 1e-4, samples={"time": (1, 2, 3)})
        for t in trials
    )
    short = Trials(
        t if t.params["cols"] != 1024 else trial(t.technique, 1024, t.time, samples={"time": (100, 120, 90)}) for t in short
    )
    ratio = found(short, "ours")[1024]
    assert not math.isfinite(ratio.high)
    figure = figures.speedup(short)
    (curve,) = traces(figure, "values", "ours")
    assert curve.error_y.array[0] > 10 * curve.y[0]
    assert 1024 not in traces(figure, "band", "ours")[0].x
    assert "interval unbounded" in curve.hovertext[0]
    assert "interval unbounded" in notes(figure)


@pytest.mark.parametrize(
    "make", [figures.speedup, figures.times, figures.roofline, lambda t: figures.heatmap(t, "ours", "cols", "rows")]
)
def test_what_is_not_ok_is_listed_with_its_conditions_and_escaped(make, monkeypatch):
    monkeypatch.setattr("kpt_lab.maps._target", lambda trials: H100)
    text = notes(make(grid()))
    assert "Not shown: ours at cols=16384: unsupported, a row of &lt;b>16384&lt;/b> is too long for &#36;1 and &#36;2" in text


def test_bars_replace_curves_where_nothing_varies_and_show_the_status():
    trials = [*grid(6, columns=(4096,), failing=()), trial("broken", 4096, status="out_of_memory", advice="needs 90 GB")]
    trials = Trials(trials)
    figure = figures.speedup(trials)
    (bar,) = traces(figure, "values")
    assert bar.type == "bar"
    ratio = found(trials, "ours")[4096]
    at = bar.customdata.index("ours")
    assert bar.x[at] == six(ratio.value)
    assert bar.error_x.array[at] == six(ratio.high - ratio.value)
    assert bar.error_x.arrayminus[at] == six(ratio.value - ratio.low)
    assert "<i>out of memory</i>" in [a.text for a in figure.layout.annotations]
    assert "Not shown: broken: out of memory, needs 90 GB" in notes(figure)


def test_bars_show_any_metric_and_pool_processes_by_their_median():
    memory = [
        trial("ours", process=p, metrics={"memory.peak": Metric(v, "B", "measured")}) for p, v in enumerate((3e6, 1e6, 2e6))
    ]
    figure = figures.bars(Trials(memory), "memory.peak")
    (bar,) = traces(figure, "values")
    assert (bar.x, bar.error_x.array, bar.error_x.arrayminus) == ((2e6,), (1e6,), (1e6,))
    assert "measured in 3 processes" in figure.layout.title.text
    with pytest.raises(
        ValueError, match=r"no Trial has the metric 'energy' to show: ours: no energy; its metrics are memory\.peak"
    ):
        figures.bars(Trials(memory), "energy")


def test_times_pool_processes_and_draw_the_copy():
    copy = Metric(3e-5, "s", "measured")
    trials = Trials(trial("ours", c, c * (1e-7 + 1e-9 * p), process=p) for c in (256, 512) for p in range(3))
    trials = Trials(
        trial(t.technique, t.params["cols"], t.time, process=t.process, metrics={**t.metrics, "copy_time": copy})
        for t in trials
    )
    figure = figures.times(trials)
    (curve,), (band,) = traces(figure, "values", "ours"), traces(figure, "band", "ours")
    for x, y, top in zip(curve.x, curve.y, band.y, strict=False):
        each = trials.where(cols=x)
        assert y == six(statistics.median(t.time for t in each))
        assert top == six(max(t.time for t in each))
    assert [t.y for t in traces(figure, "reference") if "copy" in t.name] == [(3e-5, 3e-5)]


def test_the_copy_is_a_line_and_never_a_technique():
    copies = [trial("copy", c, c * 0.8e-7) for c in (1024, 4096)]
    trials = grid(failing=()) + copies
    figure = figures.speedup(trials)
    assert "copy" not in [t.name for t in figure.data]
    (line,) = [t for t in traces(figure, "reference") if "copy" in t.name]
    assert line.y == (six(1.5 / 0.8), six(1.5 / 0.8))
    for other in (figures.times(trials), figures.bars(trials), figures.roofline(trials, H100)):
        assert "copy" not in [n for t in other.data for n in (t.name, *(t.customdata or ()))]
        assert "copy" not in notes(other)
    with pytest.raises(ValueError, match="nothing but the copy"):
        figures.times(Trials(copies))


def test_heatmap_centres_1x_hatches_unclear_and_outlines_break_even():
    made = []
    for rows, cols, factor, spread in ((64, 256, 2.0, 0), (64, 512, 0.5, 0), (128, 256, 1.0, 0.3), (128, 512, 0, 0)):
        made.append(trial("eager", cols, 1e-4, rows=rows))
        made.append(
            trial("ours", cols, 1e-4 / factor, rows=rows, spread=spread)
            if factor
            else trial("ours", cols, rows=rows, status="timeout", advice="slow")
        )
    figure = figures.heatmap(Trials(made), "ours", "cols", "rows")
    (colours,), (hatch,), (edge,) = (traces(figure, m) for m in ("values", "hatch", "break-even"))
    z = [list(row) for row in colours.z]
    ratio = next(s.ratio for s in ratios.speedups(made) if s.label == "ours" and s.ratio and s.ratio.verdict == "UNCLEAR")
    assert z[0] == pytest.approx([1, -1], abs=1e-5)
    assert z[1] == [six(math.log2(ratio.value)), None]
    assert (colours.zmid, colours.zmin) == (0, -colours.zmax)
    drawn = [(x, y) for x, y in zip(hatch.x, hatch.y, strict=True) if x is not None]
    assert all(-0.5 <= x <= 0.5 <= y <= 1.5 for x, y in drawn)  # only the cell of rows=128, cols=256
    assert (edge.x[:2], edge.y[:2]) == ((0.5, 0.5), (-0.5, 0.5))  # between the two cells of rows=64
    texts = [a.text for a in figure.layout.annotations if a.name == "cell"]
    assert texts == ["2.00x", f"{ratio.value:.3f}x", "0.500x", "<i>timeout</i>"]
    with pytest.raises(ValueError, match=r"technique is 'mine'; these Trials hold eager, ours"):
        figures.heatmap(Trials(made), "mine", "cols", "rows")
    doubled = Trials(made) + [trial(t.technique, t.params["cols"], 1e-4, dtype="float32") for t in made]
    with pytest.raises(ValueError, match=r"x is 'width'; these Trials have workload, rows, cols"):
        figures.heatmap(doubled, "ours", "width", "rows")
    two = Trials(made) + [trial(t.technique, t.params["cols"], 1e-4, rows=t.params["rows"], dtype="float32") for t in made]
    with pytest.raises(ValueError, match=r"dtype varies beyond cols and rows: select one value with \.where\(dtype=\.\.\.\)"):
        figures.heatmap(two, "ours", "cols", "rows")


def test_heatmap_names_a_long_technique_where_lines_are_broken():
    knobs = dict.fromkeys(("forward", "input_gradient", "weight_gradient"), "tensorwise")
    made = [t for cols in (256, 512) for t in (trial("eager", cols), trial("fp8", cols, 5e-5, knobs=knobs))]
    name = made[1].label
    figure = figures.heatmap(Trials(made), name, "cols", "rows")
    heading, under = figure.layout.title.text.split("<br>", 1)
    assert heading == "<b>softmax.forward: speedup over the best baseline</b>"
    assert name in " ".join(under.replace("<br>", " ").split())


H100 = Target("h100-sxm", {"bfloat16": 989e12}, BANDWIDTH, {"bfloat16": "data sheet", "bandwidth": "data sheet"})


def test_roofline_places_points_under_the_roof():
    figure = figures.roofline(grid(failing=()), H100)
    (roof,), (ours,) = traces(figure, "roof"), traces(figure, "values", "ours")
    assert roof.x[1] == six(989e12 / BANDWIDTH)
    assert roof.y[1] == roof.y[2] == 989e12
    assert roof.y[0] == pytest.approx(BANDWIDTH * roof.x[0], rel=1e-5)
    assert ours.x == (1.25, 1.25)
    assert ours.y == pytest.approx([5.0 * 4096 * 1e7] * 2, rel=1e-5)
    share = 4.0 * 4096 * 1024 / BANDWIDTH / 1024e-7
    assert f"{100 * share:.3g}% of the bound" in ours.hovertext[0]
    with pytest.raises(ValueError, match="no Trial can stand under a roofline: eager: its workload states no cost"):
        figures.roofline(trial("eager", chosen={}), H100)


def test_titles_say_where_when_and_what_kind_of_numbers():
    title = figures.speedup(grid()).layout.title.text
    for part in (
        "softmax.forward",
        "best baseline",
        "NVIDIA H100 80GB HBM3",
        "bfloat16",
        "2026-11-22",
        "measured in one process: exploratory",
    ):
        assert part in title
    assert "measured in 6 processes" in figures.speedup(grid(6)).layout.title.text
    modelled = {"time": Metric(1e-5, "s", "modelled", source="bound of h100-sxm")}
    guess = Trials(trial(n, c, metrics=modelled, samples={}, device="", env={}) for n in ("eager", "ours") for c in (256, 512))
    figure = figures.speedup(guess)
    assert "modelled" in figure.layout.title.text
    assert "measured" not in figure.layout.title.text
    assert "ours (modelled)" in [t.name for t in traces(figure, "values")]
    assert [t.name for t in traces(figure, "key")] == ["UNCLEAR or not measured"]


def test_modelled_speedups_stand_in_a_panel_of_their_own():
    time = {"time": Metric(1e-5, "s", "modelled", source="bound of h100-sxm")}
    guess = [trial(n, c, metrics=time, samples={}, device="", env={}) for n in ("eager", "ours") for c in (1024, 4096)]
    figure = figures.speedup(grid(failing=()) + guess)
    assert {t.name: t.xaxis for t in traces(figure, "values")} == {
        "eager": "x", "ours": "x", "eager (modelled)": "x2", "ours (modelled)": "x2"
    }  # fmt: skip
    assert "h100-sxm, not measured" in [a.text for a in figure.layout.annotations]


def test_a_simulators_clock_is_never_drawn_as_a_time():
    clock = {"simulation_time": Metric(1e-6, "s", "simulated")}
    trials = grid() + [trial("photonic", c, metrics=clock, simulates="photonic-4bit", samples={}) for c in (1024, 4096)]
    for figure in (figures.speedup(trials), figures.times(trials)):
        assert not [t for t in figure.data if t.name and "photonic" in t.name]
        assert "Not shown: photonic" in notes(figure)
        assert "simulates photonic-4bit" in notes(figure)


def test_older_runs_of_a_cell_are_counted():
    old = [trial("eager", c, 1e-3, cell="old", at="2025-01-01T00:00:00Z") for c in (1024, 4096)]
    assert "Left out: 2 Trials that a newer run of the same cell replaces." in notes(figures.speedup(grid() + old))


@pytest.mark.parametrize(
    "make", [figures.speedup, figures.times, figures.bars, figures.roofline, lambda t: figures.heatmap(t, "a", "x", "y")]
)
def test_empty_or_foreign_input_is_one_sentence(make):
    with pytest.raises(ValueError, match="trials is empty: there is nothing to draw"):
        make([])
    with pytest.raises(ValueError, match="trials holds a int; accepted are Trials"):
        make([3])


def test_what_cannot_be_compared_is_one_sentence():
    with pytest.raises(ValueError, match="no speedup over 'best baseline' can be shown: this cell has no baseline"):
        figures.speedup(Trials([trial("ours")]))
    with pytest.raises(ValueError, match="can be shown: there is nothing beside the baseline itself"):
        figures.speedup(Trials([trial("eager")]))
    with pytest.raises(ValueError, match=r"no technique labelled 'eger' in this cell; there are eager, torch\.compile, ours"):
        figures.speedup(grid(), over="eger")
    with pytest.raises(ValueError, match="x is 'width'; these Trials have workload, rows, cols, dtype, device"):
        figures.speedup(grid(), x="width")
    with pytest.raises(ValueError, match="no Trial has the metric 'time' to show: eager: failed, broke"):
        figures.times(trial("eager", status="failed", advice="broke"))


def test_figures_are_deterministic_small_and_say_nothing_but_plotly():
    trials = grid(6, columns=tuple(2**k for k in range(6, 18)), failing=())
    once, again = (figures.speedup(trials).to_json() for _ in range(2))
    assert once == again
    assert len(once) < 100_000
    assert "uid" not in once
    assert "http" not in once
    assert not {"NaN", "Infinity"} & set(json.loads(once, parse_constant=lambda c: c))


def test_themes_and_styles_tell_techniques_apart_without_colour():
    labels = ["eager", *(f"t{i}" for i in range(20))]
    assert figures.theme() == "light"
    try:
        for name, expected in look.THEMES.items():
            assert figures.theme(name) == name
            styles = look.styles(labels)
            assert styles["eager"].color == expected.eager
            assert len(set(styles.values())) == len(labels)
            assert len({(s.dash, s.symbol) for s in list(styles.values())[:7]}) == 7
            assert figures.speedup(grid()).layout.template.layout.paper_bgcolor == expected.paper
    finally:
        figures.theme("light")
    with pytest.raises(ValueError, match="name is 'sepia'; accepted are 'light', 'dark'"):
        figures.theme("sepia")
    colours = [{t.name: t.line.color for t in traces(f(grid()), "values")} for f in (figures.speedup, figures.times)]
    assert all(colours[0][name] == colours[1][name] for name in colours[0])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.2e-4, "s", "120 µs"),
        (9.999e-4, "s", "1 ms"),
        (0.0, "s", "0 s"),
        (1.5e9, "B", "1.5 GB"),
        (0.25, "1", "0.25"),
        (3.35e12, "B/s", "3.35 TB/s"),
    ],
)
def test_quantities_read_well(value, unit, text):
    assert look.quantity(value, unit) == text


KINDS = {
    "measured": {},
    "another host": {"env": {"host": "other"}},
    "another device": {"device": "cpu"},
    "another dtype": {"dtype": "float32"},
    "another run": {"cell": "elsewhere"},
    "modelled": {"metrics": {"time": Metric(1e-5, "s", "modelled", source="bound")}, "samples": {}},
    "quoted": {"metrics": {"time": Metric(1e-5, "s", "quoted", source="a paper")}, "samples": {}},
    "simulated": {"metrics": {"simulation_time": Metric(1e-9, "s", "simulated")}, "simulates": "chip", "samples": {}},
    "failed": {"status": "failed", "advice": "broke", "metrics": {}, "samples": {}},
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["eager", "torch.compile", "a", "b"]),
            st.sampled_from([256, 512]),
            st.sampled_from(sorted(KINDS)),
            st.integers(1, 50),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["best baseline", "eager"]),
)
def test_no_figure_claims_a_ratio_that_the_rules_refuse(recipe, over):
    trials = Trials(trial(name, cols, 1e-5 * n, **KINDS[kind]) for name, cols, kind, n in recipe)
    allowed = set()
    for by_label in ratios.cells(trials).values():
        for one in by_label.values():
            for base in by_label.values():
                with contextlib.suppress(Incomparable):
                    allowed.add(six(ratios.speedup(one, base).value))
    try:
        figure = figures.speedup(trials, over)
    except ValueError:
        formed = [s for s in ratios.speedups(trials, over) if s.ratio]
        assert all(s.label == s.over[0].label for s in formed)  # nothing but baselines over themselves
        return
    shown = [v for t in traces(figure, "values") for v in (t.x if t.type == "bar" else t.y) if v is not None]
    assert shown
    assert set(shown) <= allowed
    for t in ratios.speedups(trials, over):
        if not t.ratio:
            assert f"Not shown: {t.label}" in notes(figure)
