"""The command line: what it prints and records, and one sentence with exit code 2 for each mistake."""

import re
import sys
import threading
import types

import pytest
import torch

from kpt_lab import baselines, cli, doctor, terminal
from kpt_lab.core import Metric, Problem, Recording, Technique, Trial, Trials, Workload
from kpt_lab.records import load, record

FILE = """
import torch

import kpt_lab as kpt
from kpt_lab.core import Problem, Technique, Workload


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(x)


def fn(x):
    return torch.relu(x) + 1


def _make(*, device, dtype, seed, rows):
    generator = torch.Generator().manual_seed(seed)
    return Problem(torch.relu, [(torch.randn(rows, 7, generator=generator, dtype=dtype),) for _ in range(3)])


net = Net()
work = Workload("relu", _make, dtypes=("float32", "float64"))
model = kpt.workload(net, torch.randn(3, 6), name="own")
inputs = (torch.randn(4, 6),)
number = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A user's file under a module name of its own; forgotten again afterwards."""
    path = tmp_path / f"file_of_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(FILE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    sys.modules.pop(path.stem, None)


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


QUICK = ("--processes", "0", "--budget", "0.02", "--techniques", "eager")


@pytest.mark.parametrize(
    ("target", "more", "title"),
    [
        (":model", (), "own(mode=forward), float32, cpu"),
        ("", ("--step", "backward"), "own(mode=backward), float32, cpu"),
        (":net", ("--step", "step"), "net(mode=step), float32, cpu"),
        (":fn", ("--dtype", "float64"), "fn(mode=forward), float64, cpu"),
        (":work", ("--grid", "rows=3"), "relu(rows=3), float32, cpu"),
    ],
)
def test_sweep_of_the_users_own_file(capsys, file, target, more, title):
    code, out, err = run(capsys, "sweep", f"{file}{target}", *more, *QUICK)
    assert code == 0, err
    assert out.startswith(title)
    assert "eager" in out
    assert "1 (best baseline)" in out
    assert "exploratory" in out


def test_sweep_of_a_module_records_and_resumes(capsys, tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    words = ("sweep", "kernels.softmax", "--grid", "rows=3", "cols=5,7", *QUICK, "--into", path)
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert out.count("softmax.forward(rows=3") == 2
    assert f"recorded in {path}" in out
    before = path.read_bytes()
    assert {t.params["cols"] for t in load(path).where(label="eager")} == {5, 7}
    code, again, _ = run(capsys, *words)
    assert code == 0
    assert path.read_bytes() == before
    assert again == out


MISTAKES = {
    "unknown module": (
        ("kernels.nothing",),
        "there is no module 'kernels.nothing'; there are .*kernels.gelu, .*kernels.softmax",
    ),
    "unknown workload": (("kernels.softmax:sideways",), "no 'sideways'; it has forward, backward"),
    "not a workload": (("kernels.softmax:record_grid",), "is a tuple; a Workload, a function or an nn.Module is needed"),
    "missing file": (("nowhere/my_file.py:model",), "there is no file 'nowhere/my_file.py'"),
    "unknown technique": (
        ("kernels.softmax", "--techniques", "eager,magic"),
        "no technique 'magic' for kernels.softmax; there are .*eager",
    ),
    "no technique": (("kernels.softmax", "--techniques", ","), "--techniques names none; there are "),
    "parameters missing": (("kernels.softmax",), "needs values for rows, cols: add --grid rows=1024,4096 cols=1024,4096"),
    "unknown parameter": (
        ("kernels.softmax", "--grid", "rows=1", "cols=1", "depth=2"),
        "has no parameter 'depth'; it takes rows, cols",
    ),
    "empty grid": (("kernels.softmax", "--grid", "rows=", "cols=3"), "--grid has no values for 'rows'"),
    "grid without equals": (("kernels.softmax", "--grid", "rows"), "--grid has 'rows'; accepted is NAME=VALUE,VALUE"),
    "grid twice": (("kernels.softmax", "--grid", "rows=1", "rows=2"), "--grid names 'rows' twice"),
    "unknown dtype": (("kernels.softmax", "--dtype", "float33"), "dtype is 'float33'; accepted are"),
    "unknown device": (("kernels.softmax", "--device", "abacus"), "device is 'abacus'; accepted are 'cpu' and 'cuda'"),
    "unknown step": (("kernels.softmax", "--step", "sideways"), "--step is 'sideways'; accepted are forward, backward, step"),
    "step without modes": (("kernels.softmax", "--step", "step"), "'softmax.forward' has no modes"),
    "negative budget": (("kernels.softmax", "--grid", "rows=1", "cols=1", "--budget", "-1"), "budget is -1"),
    "into a folder": (("kernels.softmax", "--into", "."), "--into is the folder '.'; give a file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(capsys, mistake):
    words, sentence = MISTAKES[mistake]
    code, out, err = run(capsys, "sweep", *words)
    assert code == 2
    assert out == ""
    assert err.startswith("kpt-lab: ")
    assert err.count("\n") == 1
    assert re.search(sentence, err), err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize(
    "words",
    [("sweep", "kernels.softmax", "--grid", "rows=1", "cols=1", "--device", "cuda"), ("record", "kernels.softmax")],
)
def test_no_gpu_where_one_is_needed(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert "no usable CUDA GPU here" in err
    assert "--device cpu" in err
    assert "kpt-lab doctor" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "more", "sentence"),
    [
        (":other", (), "has no 'other'; it has work, model"),
        (":number", (), "is a int; a Workload, a function or an nn.Module is needed"),
        (":work", ("--grid", "rows=2", "--dtype", "bfloat16"), "dtype is bfloat16; workload 'relu' accepts float32, float64"),
    ],
)
def test_mistakes_about_the_users_file(capsys, file, target, more, sentence):
    code, _, err = run(capsys, "sweep", f"{file}{target}", *more)
    assert code == 2
    assert sentence in err


def test_a_file_without_inputs_says_what_to_add(capsys, file):
    file.write_text(FILE.replace("inputs = ", "outputs = "))
    code, _, err = run(capsys, "sweep", f"{file}:fn")
    assert code == 2
    assert "has no inputs; add one set of example inputs" in err


def test_inputs_may_be_a_function(capsys, file):
    file.write_text(FILE.replace("inputs = (torch.randn(4, 6),)", "def inputs():\n    return torch.randn(2, 3)\n"))
    code, out, err = run(capsys, "sweep", f"{file}:fn", *QUICK)
    assert code == 0, err
    assert out.startswith("fn(mode=forward)")


def test_a_file_that_fails_says_where(capsys, file):
    file.write_text("import torch\n\nx = torch.nothing\n")
    code, _, err = run(capsys, "sweep", f"{file}:fn")
    assert code == 2
    assert "can't be imported at line 3: AttributeError" in err


@pytest.mark.parametrize(
    ("name", "sentence"), [("json.py", "another module's name; rename"), ("my file.py", "name it with letters")]
)
def test_a_file_whose_name_is_taken_or_none(capsys, tmp_path, name, sentence):
    (tmp_path / name).write_text("model = 1\n")
    code, _, err = run(capsys, "sweep", tmp_path / name)
    assert code == 2
    assert sentence in err


def test_grid_values_are_numbers_where_they_look_like_it():
    assert cli.parse_grid(["a=1,2.5", "b=True,None", "c=tanh,1x", "d=(1"]) == {
        "a": [1, 2.5], "b": [True, None], "c": ["tanh", "1x"], "d": ["(1"],
    }  # fmt: skip


# ---- record


def _make(*, device, dtype, seed, n):
    return Problem(torch.neg, [(torch.arange(n + k, dtype=dtype)[:n],) for k in range(3)])


@pytest.fixture
def module(monkeypatch):
    """A module with a record_grid, as kernels have."""
    made = types.ModuleType("kpt_lab_test_recordable")
    made.forward, made.backward = Workload("made.forward", _make), Workload("made.backward", _make)
    made.techniques = (baselines.eager,)
    made.record_grid = (
        Recording(made.forward, {"n": [3, 4]}, device="cpu", processes=0),
        Recording(made.backward, {"n": [5]}, "float64", device="cpu", processes=0),
    )
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_record_writes_a_file_for_each_workload_and_resumes(capsys, tmp_path, module):
    words = ("record", module.__name__, "--out", tmp_path / "out", "--budget", "0.02")
    code, out, err = run(capsys, *words)
    assert code == 0, err
    files = sorted((tmp_path / "out").iterdir())
    target = cli.target_name("cpu")
    assert [file.name for file in files] == [f"made.backward.{target}.jsonl", f"made.forward.{target}.jsonl"]
    assert {t.params["n"] for t in load(files[1])} == {3, 4}
    assert {t.dtype for t in load(files[0])} == {"float64"}
    assert set(target) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert out.count("0 of") == 2


def test_record_only_one_workload(capsys, tmp_path, module):
    for name in ("backward", "made.backward"):
        code, _, err = run(capsys, "record", module.__name__, "--out", tmp_path / name, "--budget", "0.02", "--only", name)
        assert code == 0, err
        assert [file.name.split(".")[1] for file in (tmp_path / name).iterdir()] == ["backward"]
    code, _, err = run(capsys, "record", module.__name__, "--only", "step")
    assert code == 2
    assert "--only is 'step'; the record_grid has made.forward, made.backward" in err


def test_record_defaults_to_the_folder_results(capsys, tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "record", module.__name__, "--budget", "0.02", "--only", "forward")[0] == 0
    assert len(list((tmp_path / "results").glob("made.forward.*.jsonl"))) == 1


def test_a_module_without_a_grid(capsys, module):
    del module.record_grid
    code, _, err = run(capsys, "record", module.__name__)
    assert code == 2
    assert "has no record_grid" in err
    code, _, err = run(capsys, "record", "json")
    assert code == 2
    assert "has no record_grid" in err


def test_a_limit_stops_and_what_is_done_stays(capsys, tmp_path, monkeypatch, module):
    released = threading.Event()

    class Stopped(cli.Sweep):
        def cancel(self):
            super().cancel()
            released.set()

    def start(workload, techniques, grid, *, into, **options):
        def work(sweep):
            record(Trial(workload.name, "eager", grid and {"n": 3}), into)
            sweep.trials = load(into)
            sweep.progress = sweep.progress._replace(done=1, stage="timing")
            released.wait(60)

        return Stopped(cli_progress(0, 2), Trials(), work)

    from kpt_lab.isolate import Progress as cli_progress

    monkeypatch.setattr(cli, "start", start)
    code, out, err = run(capsys, "record", module.__name__, "--out", tmp_path, "--limit-minutes", "0.01")
    assert code == cli.UNFINISHED
    assert "stopped: 1 of 2 cells are done" in err
    assert "made.backward float64 {'n': [5]} on cpu, 0 processes: not begun" in out
    assert len(load(tmp_path)) == 1
    assert run(capsys, "record", module.__name__, "--limit-minutes", "0")[0] == 2


# ---- doctor


def test_doctor_reports_what_is_here(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    lines = out.splitlines()
    assert any(line.startswith("ok       python") for line in lines)
    assert any(line.startswith("ok       torch") and torch.__version__ in line for line in lines)
    assert any(line.startswith("ok       disk") for line in lines)


def test_doctor_gives_a_command_for_everything_that_is_missing(monkeypatch, capsys):
    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    found = {f.name: f for f in doctor.findings()}
    for name, _, extra in doctor.OPTIONAL:
        assert found[name].state == "missing"
        assert found[name].advice.startswith(f"pip install {name}")
        assert (f".[{extra}]" in found[name].advice) == bool(extra)
    assert doctor.doctor() == 0
    assert "missing  plotly" in capsys.readouterr().out


def test_doctor_fails_only_where_torch_does_not_work(monkeypatch, capsys):
    def broken(*size):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(doctor.torch, "ones", broken)
    assert run(capsys, "doctor")[0] == 1


# ---- tables


def _trial(name, **fields):
    metrics = {
        "time": Metric(1.2345e-4, "s", "measured"), "bound": Metric(1e-4, "s", "modelled", source="s"),
        "error": Metric(1e-7, "1", "measured"), "memory.peak": Metric(2.5e6, "B", "measured"),
    }  # fmt: skip
    return Trial("w", name, **{"metrics": metrics, "samples": {"time": (10, 11, 12) * 20}, "cell": "c", **fields})


def test_a_table_shows_losers_with_their_reason():
    failed = _trial("fast", status="wrong", advice="differs from the oracle", metrics={}, samples={})
    text = terminal.tables(Trials([_trial("eager", baseline=True), failed]))
    header, *rows = text.splitlines()[1:]
    assert [header.index(name) for name in terminal.HEADER] == sorted(header.index(name) for name in terminal.HEADER)
    eager, fast = rows[:2]
    assert "123 us" in eager
    assert "81%" in eager
    assert "2.5 MB" in eager
    assert fast.split()[-1] == "wrong"
    assert "fast: wrong, differs from the oracle" in text


def test_a_headline_says_nothing_about_exploring():
    many = [_trial(name, baseline=name == "eager", process=i) for i in range(6) for name in ("eager", "fast")]
    text = terminal.tables(Trials(many))
    assert "exploratory" not in text
    assert "1.000x [1.000, 1.000]" in text
    assert "SAME" in text
    assert "exploratory" in terminal.tables(Trials(many[:4]))


def test_a_cell_without_a_baseline_says_so():
    assert "no speedup, because this cell has no baseline" in " ".join(terminal.tables(Trials([_trial("fast")])).split())


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1.2e-4, "s", "120 us"), (9.999e-4, "s", "1 ms"), (0.0, "s", "0 s"), (1.5e9, "B", "1.5 GB"), (3.0, "B", "3 B"), (2e-12, "s", "0.002 ns"), (0.5, "1", "0.5")],
)  # fmt: skip
def test_quantities(value, unit, text):
    assert terminal.quantity(value, unit) == text


def test_a_technique_is_named_by_label_name_or_attribute():
    from kpt_lab.asked import choose

    stacked = baselines.compiled >> baselines.cuda_graph
    bound = Technique("mine", lambda fn, args, bits=8: fn)(bits=4)
    chosen = choose(f"max_autotune, torch.compile,mine,{stacked.label}", "kernels.softmax", (bound, stacked))
    assert [t.label for t in chosen] == [baselines.max_autotune.label, "torch.compile", "mine(bits=4)", stacked.label]
