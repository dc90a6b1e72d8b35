"""sweep: grids, refusals before work starts, progress, cancelling, resuming. Cells are tiny and run in this process but for two."""

import gc
import importlib
import shutil
import threading
from dataclasses import replace

import pytest
import torch

import kpt_lab as kpt
from kpt_lab import baselines, records
from kpt_lab.core import Problem, Technique, Trials, Workload
from kpt_lab.sweep import Sweep, points, start, sweep

HERE = {"processes": 0, "budget": 0.02}
MADE = []  # parameters of every call to make, so that a cell that was not measured shows


def make(*, device, dtype, seed, rows=2, cols=8):
    MADE.append((rows, cols))
    return Problem(torch.neg, [(torch.randn(rows, cols).to(device, dtype),) for _ in range(3)])


def same(fn, args):
    return fn


def by_zero(fn, args):
    return lambda x: 0 - x


def breaks(fn, args):
    raise ArithmeticError("no")


def make_broken(*, device, dtype, seed, rows=2):
    return Problem(broken_specification, [(torch.ones(2),)] * 3)


def broken_specification(x):
    raise ArithmeticError("the specification breaks")


work = Workload("negative", make)
needy = Workload("needy", lambda *, device, dtype, seed, rows: make(device=device, dtype=dtype, seed=seed, rows=rows))
broken = Workload("broken", make_broken)
mine = Technique("mine", by_zero)
plain = Technique("plain", same)
namesake = Technique("mine", same)
failing = Technique("failing", breaks)


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Leave what is imported out of the garbage collections of every cell: they are most of a tiny cell's time."""
    importlib.import_module("torch._dynamo")  # the first cell would
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_made():
    MADE.clear()


# ---- grids -------------------------------------------------------------------------------------------------------------------


def test_a_grid_is_the_product_of_its_values_in_their_order():
    assert points(work, {"rows": [1, 2], "cols": (3, 4)}) == [
        {"rows": 1, "cols": 3}, {"rows": 1, "cols": 4}, {"rows": 2, "cols": 3}, {"rows": 2, "cols": 4},
    ]  # fmt: skip
    assert points(work, {"cols": range(3, 5)}) == [{"cols": 3}, {"cols": 4}]
    assert points(work, {"cols": iter([3, 4]), "rows": [1, 2]})[-1] == {"cols": 4, "rows": 2}
    assert points(work, {}) == [{}]  # everything has a default: one cell


def test_a_number_or_a_word_is_one_value():
    assert points(work, {"rows": 7}) == [{"rows": 7}]
    assert points(work, {"rows": "forward"}) == [{"rows": "forward"}]


@pytest.mark.parametrize(
    ("workload", "grid", "message"),
    [
        (work, {"cols": []}, r"grid has no values for 'cols'; give at least one, for example \{'cols': \[1024\]\}"),
        (work, {"rows": [1], "cols": ()}, "grid has no values for 'cols'"),
        (work, {"columns": [1]}, "workload 'negative' has no parameter 'columns'; it takes rows, cols"),
        (needy, {}, "workload 'needy' needs a value for 'rows'"),
        (work, {"cols": None}, "grid gives None for 'cols'; accepted are a list of values, or one number or word"),
        (work, {"rows": [1], "cols": [8, 9, 8]}, "grid gives 8 more than once for 'cols'; give each value once"),
        (work, [{"cols": 8}], "grid is list; give a mapping from parameters to values"),
    ],
)
def test_an_unusable_grid_is_refused_before_work_starts(workload, grid, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        start(workload, [baselines.eager], grid, into=tmp_path / "t.jsonl", **HERE)
    assert MADE == []
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"techniques": []}, "at least one Technique"),
        ({"techniques": ["eager"]}, "at least one Technique"),
        ({"workload": torch.neg}, r"make one from your own function or module by kpt\.workload"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"dtype": "float17"}, "dtype is 'float17'"),
        ({"budget": -1}, "budget must be above 0"),
        ({"cache": "hot"}, "cache is 'hot'"),
    ],
)
def test_unusable_options_are_refused_before_work_starts(change, message):
    arguments = {"workload": work, "techniques": [baselines.eager], "grid": {"cols": [8]}, **HERE, **change}
    with pytest.raises(ValueError, match=message):
        sweep(arguments.pop("workload"), arguments.pop("techniques"), arguments.pop("grid"), **arguments)
    assert MADE == []


# ---- running -----------------------------------------------------------------------------------------------------------------


def test_every_point_is_measured_each_is_told_of_every_cell_and_progress_reaches_the_total():
    cells = []
    running = start(work, [baselines.eager, mine], {"cols": [8, 9, 10]}, each=cells.append, **HERE)
    trials = running.wait()
    assert not running.running
    assert [dict(t.params) for t in trials] == [{"rows": 2, "cols": c} for c in (8, 9, 10) for _ in range(2)]
    assert {t.status for t in trials} == {"ok"}
    assert cells == [Trials(trials[i : i + 2]) for i in (0, 2, 4)]
    assert len({t.cell for t in trials}) == 3
    assert (running.progress.done, running.progress.total) == (3, 3)


def test_progress_moves_up_and_names_what_runs():
    seen, ready = [], threading.Event()

    def each(trials):
        ready.wait(30)
        seen.append(running.progress)

    running = start(work, [baselines.eager], {"cols": [8, 9, 10]}, each=each, **HERE)
    assert running.progress.total == 3
    ready.set()
    running.wait()
    assert [where.total for where in seen] == [3, 3, 3]
    assert [where.done for where in seen] == [0, 1, 2]  # told of a cell before it counts as done
    assert all(where.label == "eager" for where in seen)


def test_a_technique_that_fails_is_a_trial_and_the_sweep_goes_on():
    trials = sweep(work, [baselines.eager, failing], {"cols": [8, 9]}, **HERE)
    assert [(t.label, t.status) for t in trials] == [("eager", "ok"), ("failing", "failed")] * 2
    assert "ArithmeticError: no" in trials[1].advice


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_of_the_specification_is_a_trial_of_every_technique_and_the_sweep_goes_on(processes):
    trials = sweep(broken, [baselines.eager, mine], {"rows": [2, 3]}, processes=processes, budget=0.02)
    assert [(t.params["rows"], t.label, t.status) for t in trials] == [
        (rows, label, "failed") for rows in (2, 3) for label in ("eager", "mine")
    ]
    assert all("specification" in t.advice and "the specification breaks" in t.advice for t in trials)


def test_an_error_of_each_is_raised_by_wait():
    def each(trials):
        raise KeyError("a widget that is gone")

    running = start(work, [baselines.eager], {"cols": [8]}, each=each, **HERE)
    for _ in range(2):  # again, not only once
        with pytest.raises(KeyError, match="a widget that is gone"):
            running.wait()


def cancelled_after_the_first(path=None, **options) -> tuple[Sweep, list]:
    """A sweep over four cells that is cancelled from the callback of its first."""
    cells, ready = [], threading.Event()

    def each(trials):
        ready.wait(30)
        cells.append(trials)
        running.cancel()

    running = start(work, [baselines.eager], {"cols": [8, 9, 10, 11]}, each=each, into=path, **{**HERE, **options})
    ready.set()
    return running, cells


def test_cancel_keeps_the_finished_cells_and_their_record(tmp_path):
    path = tmp_path / "t.jsonl"
    running, cells = cancelled_after_the_first(path)
    trials = running.wait()
    assert [t.params["cols"] for t in trials] == [8]
    assert len(cells) == 1
    assert {cols for _, cols in MADE} == {8}
    assert kpt.load(path) == trials
    assert (running.progress.done, running.progress.total) != (4, 4)


def test_ctrl_c_cancels_and_gives_what_there_is(monkeypatch):
    first, ready = threading.Event(), threading.Event()
    running = start(work, [baselines.eager], {"cols": [8, 9, 10, 11]}, each=lambda _: first.set() or ready.wait(30), **HERE)
    join = running._thread.join

    def interrupted(timeout=None):
        first.wait(30)
        monkeypatch.setattr(running._thread, "join", join)
        threading.Timer(0.1, ready.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(running._thread, "join", interrupted)
    trials = running.wait()
    assert not running.running
    assert [t.params["cols"] for t in trials] == [8]


# ---- files and resuming ------------------------------------------------------------------------------------------------------


def test_the_file_loads_back_equal(tmp_path):
    path = tmp_path / "new folder" / "t.jsonl"
    trials = sweep(work, [baselines.eager, mine, failing], {"cols": [8, 9]}, into=path, **HERE)
    assert kpt.load(path) == trials


@pytest.fixture(scope="module")
def two_cells(tmp_path_factory):
    """The Trials of two cells of two techniques, and the file into which they were swept."""
    path = tmp_path_factory.mktemp("recorded") / "t.jsonl"
    return path, sweep(work, [baselines.eager, mine], {"cols": [8, 9]}, into=path, **HERE)


@pytest.fixture
def recorded(two_cells, tmp_path):
    """A test's own copy of that file, and its Trials."""
    path, trials = two_cells
    MADE.clear()
    return shutil.copy(path, tmp_path / "t.jsonl"), trials


def test_resuming_measures_nothing_that_is_there_and_gives_it(recorded):
    path, before = recorded
    told = []
    running = start(work, [baselines.eager, mine], {"cols": [8, 9]}, into=path, each=told.append, **HERE)
    assert running.wait() == before
    assert (MADE, told) == ([], [])
    assert (running.progress.done, running.progress.total) == (2, 2)
    assert len(kpt.load(path)) == len(before)


def test_resuming_measures_only_the_missing_cells(recorded):
    path, before = recorded
    trials = sweep(work, [baselines.eager, mine], {"cols": [9, 10]}, into=path, **HERE)
    assert {cols for _, cols in MADE} == {10}
    assert [t.params["cols"] for t in trials] == [9, 9, 10, 10]
    assert tuple(trials[:2]) == tuple(before[2:])  # as it was recorded, not measured again


def test_an_added_technique_measures_the_whole_cell_again(recorded):
    path, _ = recorded
    trials = sweep(work, [baselines.eager, mine, plain], {"cols": [8]}, into=path, **HERE)
    assert {cols for _, cols in MADE} == {8}
    assert [t.label for t in trials] == ["eager", "mine", "plain"]
    assert len({t.cell for t in trials}) == 1


@pytest.mark.parametrize("option", [{"dtype": "float64"}, {"seed": 1}, {"cache": "cold"}])
def test_other_options_are_other_cells(recorded, option):
    path, _ = recorded
    sweep(work, [baselines.eager, mine], {"cols": [8]}, into=path, **HERE, **option)
    assert {cols for _, cols in MADE} == {8}


def test_a_changed_technique_is_measured_again(recorded, monkeypatch):
    path, before = recorded
    changed = replace(mine, apply=same)
    monkeypatch.setitem(globals(), "mine", changed)  # as an edit of this file would
    trials = sweep(work, [baselines.eager, changed], {"cols": [8, 9]}, into=path, **HERE)
    assert {cols for _, cols in MADE} == {8, 9}
    assert len(trials) == len(before)
    assert {t.source["technique"] for t in trials}.isdisjoint({t.source["technique"] for t in before if t.label == "mine"})


def test_another_technique_of_the_same_name_is_measured(recorded):
    path, before = recorded
    trials = sweep(work, [baselines.eager, namesake], {"cols": [8]}, into=path, **HERE)
    assert {cols for _, cols in MADE} == {8}
    assert trials[1].source["technique"] != before[1].source["technique"]


def test_a_technique_from_a_closure_has_no_place_and_is_always_measured_again(tmp_path):
    local = Technique("local", lambda fn, args: fn)
    for _ in range(2):
        MADE.clear()
        sweep(work, [local], {"cols": [8]}, into=tmp_path / "t.jsonl", **HERE)
        assert {cols for _, cols in MADE} == {8}


def test_what_another_machine_or_another_torch_recorded_is_not_taken(recorded, tmp_path):
    _, before = recorded
    for name, env in (("host", {"host": "elsewhere"}), ("torch", {"torch": "0.1"})):
        path = tmp_path / f"{name}.jsonl"
        records.record([replace(t, env={**t.env, **env}) for t in before], path)
        MADE.clear()
        sweep(work, [baselines.eager, mine], {"cols": [8]}, into=path, **HERE)
        assert {cols for _, cols in MADE} == {8}


def test_a_cell_that_was_recorded_in_part_is_measured_whole(recorded, tmp_path):
    _, before = recorded
    path = tmp_path / "part.jsonl"
    records.record(before[:1], path)
    trials = sweep(work, [baselines.eager, mine], {"cols": [8]}, into=path, **HERE)
    assert {cols for _, cols in MADE} == {8}
    assert [t.label for t in trials] == ["eager", "mine"]


# ---- child processes ---------------------------------------------------------------------------------------------------------


def test_cells_run_in_a_child_and_the_child_says_what_it_does(tmp_path):
    stages = []

    class Watched(list):
        def append(self, trials):
            stages.append(running.progress)
            super().append(trials)

    cells, ready = Watched(), threading.Event()
    path = tmp_path / "t.jsonl"
    running = start(
        work, [baselines.eager, failing], {"cols": [8, 9]}, into=path, each=lambda t: ready.wait(60) and cells.append(t),
        processes=1, budget=0.02,
    )  # fmt: skip
    ready.set()
    trials = running.wait()
    assert MADE == []  # not here
    assert [(t.label, t.status) for t in trials] == [("eager", "ok"), ("failing", "failed")] * 2
    assert {t.process for t in trials} == {0}
    assert kpt.load(path) == trials
    assert [where.done for where in stages] == [0, 1]
    assert sweep(work, [baselines.eager, failing], {"cols": [8, 9]}, into=path, processes=1) == trials


def test_cancel_ends_a_child(tmp_path):
    running, cells = cancelled_after_the_first(tmp_path / "t.jsonl", processes=1, budget=0.5)
    trials = running.wait()
    assert len(cells) == len(trials) == 1
    assert kpt.load(tmp_path / "t.jsonl") == trials
