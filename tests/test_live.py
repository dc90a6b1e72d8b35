"""The live sweep without a browser: its controls are set and clicked, and its cells are tiny and run in this process."""

import gc
import importlib
import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

import kpt_lab as kpt
from kpt_lab import baselines, records
from kpt_lab.core import Problem, Technique, Workload
from kpt_lab.environment import environment
from kpt_lab.kernels import gelu, softmax

pytest.importorskip("anywidget")
import ipywidgets
from kpt_lab.widgets.choices import read_values
from kpt_lab.widgets.live import live, remaining

HERE = {"processes": 0, "budget": 0.02}
PATIENCE = 60  # seconds after which a wait has failed; none takes long
MADE = []  # the columns of every call to make, so that a cell that was not measured shows
GATES = {}  # columns -> the event that their cell waits for


def make(*, device, dtype, seed, rows=2, cols=8):
    MADE.append(cols)
    if cols in GATES:
        assert GATES[cols].wait(PATIENCE)
    return Problem(torch.neg, [(torch.randn(rows, cols).to(device, dtype),) for _ in range(3)])


def by_zero(fn, args):
    return lambda x: 0 - x


def breaks(fn, args):
    raise ArithmeticError("<b>no</b>")


work = Workload("negative", make)
needy = Workload("needy", lambda *, device, dtype, seed, size: make(device=device, dtype=dtype, seed=seed, rows=size))
mine = Technique("mine", by_zero)
failing = Technique("failing <i>", breaks)
both = (baselines.eager, mine)


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Leave what is imported out of the garbage collections of every cell: they are most of a tiny cell's time."""
    importlib.import_module("torch._dynamo")  # the first cell would
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """An own folder to work in, and no gate and no widget left from another test."""
    monkeypatch.chdir(tmp_path)
    MADE.clear()
    yield
    for gate in GATES.values():
        gate.set()
    GATES.clear()
    ipywidgets.Widget.close_all()


def panel(cols=(8, 9), techniques=both, **options):
    return live(work, techniques, {"cols": cols}, path="live.jsonl", **{**HERE, **options})


def until(condition):
    """Wait for what another thread does."""
    tick = threading.Event()
    for _ in range(PATIENCE * 100):
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError("it did not happen")


def gate(cols):
    GATES[cols] = threading.Event()
    return GATES[cols]


def finished(widget):
    trials = widget.wait(PATIENCE)
    assert not widget.running
    until(lambda: not widget.start_button.disabled)
    return trials


def controls(widget):
    inside = getattr(widget, "children", ())
    return [widget, *(each for child in inside for each in controls(child))]


# ---- what is offered


def test_nothing_runs_and_nothing_is_written_before_start():
    widget = panel()
    assert not widget.running
    assert (MADE, list(Path().iterdir())) == ([], [])
    assert (widget.start_button.disabled, widget.cancel_button.disabled, widget.resume_button.disabled) == (False, True, True)


def test_every_control_has_a_description():
    widget = live(softmax, path="live.jsonl")
    kinds = (ipywidgets.Text, ipywidgets.Dropdown, ipywidgets.Checkbox, ipywidgets.Button, ipywidgets.IntProgress)
    found = [each for each in controls(widget) if isinstance(each, kinds)]
    assert len(found) > 10
    assert all(each.description for each in found)
    assert all(each.tooltip for each in found if isinstance(each, ipywidgets.Button))


def test_a_module_offers_its_workloads_techniques_and_recorded_sizes():
    widget = live(softmax)
    choices = widget.choices
    assert choices.step.options == ("softmax.forward", "softmax.backward")
    assert list(choices.techniques) == [t.label for t in softmax.techniques]
    assert {name: field.value for name, field in choices.fields.items()} == {"rows": "64", "cols": "1000, 4096, 8192"}
    assert choices.dtype.options == softmax.forward.dtypes
    assert str(widget.path) == "results/live/softmax.forward.jsonl"
    choices.step.value = "softmax.backward"
    assert str(widget.path) == "results/live/softmax.backward.jsonl"
    assert choices.asked().workload is softmax.backward


def test_a_workload_brings_the_techniques_of_its_module_and_its_defaults():
    widget = live("kernels.gelu")
    assert widget.choices.fields["approximate"].value == "none"
    assert widget.choices.asked().grid["approximate"] == ["none"]
    one = live(gelu.forward(rows=32))
    assert list(one.choices.techniques) == [t.label for t in gelu.techniques]
    assert one.choices.fields["rows"].value == "32"
    assert one.choices.step not in one.choices.children
    own = live(kpt.workload(torch.neg, torch.ones(2, 3)))
    assert list(own.choices.techniques) == [t.label for t in baselines.ladder]
    assert own.choices.asked().grid == {"mode": ["forward"]}


def test_recorded_trials_give_the_sizes_and_the_data_type():
    recorded = kpt.load(Path(__file__).parents[1] / "notebooks/phase1/results/grid")
    widget = live(softmax, recorded=recorded)
    assert widget.choices.dtype.value == "bfloat16"
    assert widget.choices.fields["cols"].value == "256, 1024, 4096"
    assert len(widget.view.trials) == len(recorded)
    assert "H100" in widget.beside.value
    assert "faded" in widget.beside.value
    assert widget.view.state["target"] == "all"
    assert widget.view.state["front"] == []
    widget.choices.step.value = "softmax.backward"  # of which nothing is in that record
    assert (len(widget.view.trials), widget.beside.value) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.neg,), {}, r"module_or_workload is builtin_function_or_method; accepted are a module such as"),
        (("no.such",), {}, "there is no module 'no.such'"),
        ((records,), {}, "module kpt_lab.records has no Workload"),
        ((work, ["eager"]), {}, "techniques must hold at least one Technique"),
        ((work, []), {}, "techniques must hold at least one Technique"),
        ((work, both, {"columns": [1]}), {}, "has no parameter 'columns'; it takes rows, cols"),
        ((work, both, {"cols": []}), {}, "grid has no values for 'cols'"),
        ((work,), {"bugdet": 1}, "live has no option 'bugdet'; accepted are device, dtype, budget"),
        ((work,), {"device": "tpu"}, "device is 'tpu'"),
        ((work,), {"dtype": "float17"}, "dtype is 'float17'"),
    ],
)
def test_unusable_arguments_are_refused_in_one_sentence(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        live(*arguments, **options)


# ---- running


def test_a_sweep_measures_what_is_chosen_keeps_it_and_shows_it():
    began = datetime.now(UTC).replace(microsecond=0, tzinfo=None).isoformat()
    widget = panel()
    widget.choices.fields["cols"].value = "8, 9 10"
    widget.choices.fields["rows"].value = "3"
    widget.start_button.click()
    trials = finished(widget)
    assert [(t.params["rows"], t.params["cols"], t.label) for t in trials] == [
        (3, cols, label) for cols in (8, 9, 10) for label in ("eager", "mine")
    ]
    assert kpt.load("live.jsonl") == trials == widget.trials
    assert widget.view.trials == trials
    assert (widget.progress.value, widget.progress.max) == (3, 3)
    assert "done: 3 of 3 cells are in <code>live.jsonl</code>" in widget.status.value
    assert widget.view.state["front"] == [widget.view.data["targets"][0]]
    here = environment("cpu")
    assert all({name: t.env[name] for name in ("host", "git", "torch")} == {name: here[name] for name in ("host", "git", "torch")}
               for t in trials)  # fmt: skip
    assert all(t.at >= began for t in trials)


def test_the_count_grows_while_the_page_still_answers():
    later = gate(9)
    widget, slider = panel(), ipywidgets.IntSlider(0)
    moves = []
    slider.observe(lambda change: moves.append(change["new"]), "value")
    widget.start_button.click()
    until(lambda: len(widget.view.trials) == 2)  # the first cell is in the figure, the second not done
    assert widget.running
    assert [len(kpt.load("live.jsonl")), len(widget.trials)] == [2, 2]
    slider.value = 5
    assert moves == [5]
    until(lambda: "cell 2 of 2" in widget.status.value)
    assert widget.progress.value == 1
    assert " left" in widget.status.value
    later.set()
    assert len(finished(widget)) == 4
    assert len(widget.view.trials) == 4


def test_while_it_runs_only_cancel_can_be_clicked_and_start_says_so():
    later = gate(8)
    widget = panel()
    widget.start_button.click()
    until(lambda: MADE)
    thread = widget._thread
    assert (widget.start_button.disabled, widget.cancel_button.disabled, widget.resume_button.disabled) == (True, False, True)
    assert all(each.disabled for each in (*widget.choices.techniques.values(), *widget.choices.fields.values()))
    assert "estimating" in widget.status.value or "starting" in widget.status.value
    widget.start()  # as a second click that was under way would
    widget.resume()
    assert widget._thread is thread
    later.set()
    assert len(finished(widget)) == 4
    assert not any(each.disabled for each in (*widget.choices.techniques.values(), *widget.choices.fields.values()))


def test_cancel_keeps_what_is_finished_and_resume_measures_the_rest():
    later = gate(10)
    widget = panel(cols=(8, 9, 10, 11))
    widget.start_button.click()
    until(lambda: len(widget.trials) == 4 and 10 in MADE)
    widget.cancel_button.click()
    assert "cancelling" in widget.status.value
    later.set()
    assert len(finished(widget)) == 4
    assert "cancelled: 2 of 4 cells are in" in widget.status.value
    assert len(kpt.load("live.jsonl")) == 4
    MADE.clear()
    widget.resume_button.click()
    trials = finished(widget)
    assert set(MADE) == {10, 11}
    assert [t.params["cols"] for t in trials] == [c for c in (8, 9, 10, 11) for _ in range(2)]
    assert kpt.load("live.jsonl") == trials
    assert "done: 4 of 4 cells are in <code>live.jsonl</code>, 2 of them from before" in widget.status.value


def test_a_later_session_shows_what_the_file_holds_and_resumes_it():
    finished_first = panel()
    finished_first.start()
    before = finished(finished_first)
    MADE.clear()
    widget = panel(cols=(8, 9, 10))
    assert widget.trials == before == widget.view.trials
    assert not widget.resume_button.disabled
    widget.resume_button.click()
    finished(widget)
    assert set(MADE) == {10}
    widget.resume_button.click()
    finished(widget)
    assert "nothing was left to measure" in widget.status.value
    assert len(kpt.load("live.jsonl")) == 6


def test_start_measures_again_what_the_file_holds():
    for count in (2, 4):
        widget = panel(cols=[8])
        widget.start_button.click()
        assert len(finished(widget)) == count
        assert len(kpt.load("live.jsonl")) == count
    assert len(set(kpt.load("live.jsonl"))) == 4


def test_only_ticked_techniques_are_measured():
    widget = panel(cols=[8])
    widget.choices.techniques["mine"].value = False
    widget.start_button.click()
    assert [t.label for t in finished(widget)] == ["eager"]


def test_another_workload_of_a_module_has_its_own_fields_and_results(monkeypatch):
    widget = live("kernels.softmax", [baselines.eager], {"rows": [2], "cols": [8]}, dtype="float32", **HERE)
    widget.start_button.click()
    assert len(finished(widget)) == 2  # with the copy
    widget.choices.step.value = "softmax.backward"
    assert (widget.trials, widget.view.trials) == ((), ())
    widget.choices.step.value = "softmax.forward"
    assert len(widget.trials) == 2


# ---- what goes wrong


@pytest.mark.parametrize(
    ("parameter", "typed", "message"),
    [
        ("cols", "", "cols has no value; give one or more, separated by commas, such as 8, 9"),
        ("cols", " , ", "cols has no value"),
        ("cols", "many", "cols holds &#x27;many&#x27;; whole numbers are accepted"),
        ("cols", "8, 9.5", "cols holds &#x27;9.5&#x27;; whole numbers are accepted"),
        ("cols", "8, 8", "cols holds 8 more than once"),
        ("cols", "<img/src=x>", "cols holds &#x27;&lt;img/src=x&gt;&#x27;"),
        ("rows", "True", "rows holds &#x27;True&#x27;"),
    ],
)
def test_a_grid_that_can_not_be_measured_is_a_sentence(parameter, typed, message):
    widget = panel()
    widget.choices.fields[parameter].value = typed
    widget.start_button.click()
    assert not widget.running
    assert f"not started: {message}" in widget.status.value
    assert (MADE, list(Path().iterdir())) == ([], [])
    widget.choices.fields[parameter].value = "9"
    widget.start_button.click()
    assert finished(widget)


@pytest.mark.parametrize("typed", ["", "two", "0", "-1", "nan", "inf"])
def test_a_budget_that_is_no_time_is_a_sentence(typed):
    widget = panel()
    widget.choices.budget.value = typed
    widget.start_button.click()
    assert f"seconds for each cell is &#x27;{typed}&#x27;; accepted is a number above 0" in widget.status.value
    assert MADE == []


def test_no_technique_is_a_sentence():
    widget = panel()
    for box in widget.choices.techniques.values():
        box.value = False
    widget.resume()
    assert "not started: no technique is chosen; tick at least one" in widget.status.value
    assert MADE == []


def test_a_parameter_of_which_nothing_is_known_is_asked_for():
    widget = live(needy, both, path="live.jsonl", **HERE)
    assert widget.choices.fields["size"].value == ""
    widget.start_button.click()
    assert "size has no value; give one or more, separated by commas, such as 256, 1024" in widget.status.value


def test_a_file_that_can_not_be_written_is_a_sentence_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, message in (
        (tmp_path / "file" / "t.jsonl", "pass another path="),
        (tmp_path / "folder", "is a folder, and results need a file: pass another path="),
    ):
        widget = live(work, both, path=path, **HERE)
        widget.start_button.click()
        assert not widget.running
        assert message in widget.status.value
        assert MADE == []


def test_a_file_of_a_newer_version_is_left_alone_and_a_damaged_line_is_told():
    Path("live.jsonl").write_text('{"kind":"trial","schema":99}\n')
    widget = panel()
    assert "has schema 99" in widget.kept.value
    widget.start_button.click()
    assert "install a newer one" in widget.status.value
    assert Path("live.jsonl").read_text() == '{"kind":"trial","schema":99}\n'
    Path("live.jsonl").write_text("not <b>json</b>\n")
    widget = panel(cols=[8])
    assert "live.jsonl line 1 is corrupt and is skipped" in widget.kept.value
    widget.resume()
    assert len(finished(widget)) == 2


def test_a_technique_that_fails_shows_its_advice_below_and_the_rest_goes_on():
    widget = panel(techniques=[baselines.eager, failing])
    widget.start_button.click()
    trials = finished(widget)
    assert [t.status for t in trials] == ["ok", "failed"] * 2
    assert "done: 2 of 2" in widget.status.value
    assert "<b>failing &lt;i&gt;</b>: failed in 2 cells: " in widget.problems.value
    assert "ArithmeticError: &lt;b&gt;no&lt;/b&gt;" in widget.problems.value


def test_a_disk_that_fills_up_stops_the_sweep_with_a_sentence(monkeypatch, capfd):
    def full(trials, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(records, "record", full)
    for click in ("start_button", "resume_button"):
        widget = panel()
        getattr(widget, click).click()
        finished(widget)
        assert "stopped: &#x27;live.jsonl&#x27; can&#x27;t be used (No space left on device)" in widget.status.value
        assert 'role="alert"' in widget.status.value
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_figure_that_fails_stops_nothing_and_says_why(monkeypatch):
    widget = panel()

    def broken(trials):
        raise RuntimeError("no <canvas>")

    monkeypatch.setattr(widget.view, "show", broken)
    widget.start_button.click()
    assert len(finished(widget)) == 4
    assert widget.trouble.value == "The figure can't be drawn: RuntimeError: no &lt;canvas&gt;"
    assert "done: 2 of 2" in widget.status.value


def test_closing_the_widget_cancels_and_keeps_what_is_finished():
    later = gate(9)
    widget = panel()
    widget.start_button.click()
    until(lambda: len(widget.trials) == 2 and 9 in MADE)
    widget.close()
    later.set()
    widget.wait(PATIENCE)
    assert not widget.running
    assert len(kpt.load("live.jsonl")) == 2


def test_a_second_widget_waits_for_the_first_and_can_cancel_it():
    later = gate(8)
    first, second = panel(), live(work, both, {"cols": [7]}, path="other.jsonl", **HERE)
    first.start_button.click()
    until(lambda: MADE and first._sweep)  # a cancel between the two is kept, but a cell this small can end before it
    second.start_button.click()
    assert not second.running
    assert "another live sweep, of negative, is running in this kernel" in second.status.value
    assert not second.cancel_button.disabled
    second.cancel_button.click()
    later.set()
    finished(first)
    assert "cancelled" in first.status.value
    second.start_button.click()
    assert len(finished(second)) == 2


def test_an_interrupt_while_a_cell_waits_for_it_cancels(monkeypatch):
    later = gate(8)
    widget = panel()
    widget.start_button.click()
    until(lambda: MADE)
    join = widget._thread.join

    def interrupted(timeout=None):
        monkeypatch.setattr(widget._thread, "join", join)
        later.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(widget._thread, "join", interrupted)
    widget.wait()
    assert not widget.running
    assert "cancelled: 0 of 2" in widget.status.value


def test_an_interrupt_of_the_kernel_does_not_reach_a_process_that_measures():
    """JupyterLab interrupts the whole process group; a child that took it would be recorded as a technique that failed."""
    widget = live(
        softmax.forward, [baselines.eager], {"rows": [2], "cols": [8]}, path="live.jsonl", dtype="float32", budget=0.05
    )
    widget.start_button.click()
    until(lambda: "eager" in widget.status.value)  # it measures
    children = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    assert children
    for child in children:
        os.kill(child, signal.SIGINT)
    assert [t.status for t in finished(widget) if t.label == "eager"] == ["ok"]


# ---- words


@pytest.mark.parametrize(
    ("done", "left", "spent", "since", "words"),
    [
        (0, 5, 0, 9e9, "estimating the time that remains"),
        (2, 3, 20e9, 0, "about 30 s left"),
        (2, 3, 20e9, 12e9, "about 18 s left"),
        (2, 3, 20e9, 900e9, "about 1 s left"),
        (1, 10, 60e9, 0, "about 10 min left"),
    ],
)
def test_the_remaining_time_comes_from_the_cells_done(done, left, spent, since, words):
    assert remaining(done, left, spent, since) == words


def test_values_are_read_as_what_they_are_like():
    assert read_values("cols", "256,1024 ; 4_096 1e3", [8]) == [256, 1024, 4096, 1000]
    assert read_values("mode", "forward, step", ["forward"]) == ["forward", "step"]
    assert read_values("approximate", "1, none", ["none"]) == ["1", "none"]
    assert read_values("scale", "0.5, 2, True, word", [1.0]) == [0.5, 2, True, "word"]
    assert read_values("anything", "((((", []) == ["(((("]
