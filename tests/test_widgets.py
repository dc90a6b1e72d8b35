"""The views without a browser: what they send to the front end, what their outputs carry, and how they refuse."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import kpt_lab as kpt
from kpt_lab.columns import columns
from kpt_lab.core import Trials

pytest.importorskip("anywidget", reason="the views need anywidget")
from kpt_lab.widgets import front, views

from kpt_lab import widgets

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "notebooks/phase1/results"
VIEWS = (widgets.explorer, widgets.breakeven, widgets.roofline, widgets.reveal)


@pytest.fixture(scope="module")
def trials():
    return kpt.load(RESULTS)


def carried(view):
    data, _ = view._repr_mimebundle_()
    json.dumps(data[views.MIME], allow_nan=False)
    return data[views.MIME]


# ---- what a view holds


@pytest.mark.parametrize("make", VIEWS, ids=lambda make: make.__name__)
def test_a_view_holds_the_columns_and_the_front_end(make, trials):
    view = make(trials)
    assert view.view == make.__name__
    assert view.state == {}
    assert view.data == columns(trials, title="gelu.backward, gelu.forward, softmax.backward and softmax.forward")
    assert (view._esm, view._css) == (front.module(), front.stylesheet())
    sent = view.get_state()
    assert {"view", "data", "state", "_esm", "_css"} <= set(sent)
    assert sent["data"] == view.data
    assert view.get_state()["_anywidget_id"].endswith("View")


def test_every_view_of_the_front_end_has_a_function():
    found = re.search(r"const VIEWS = \{([^}]*)\}", front.module())
    assert set(views.KEYS) == {make.__name__ for make in VIEWS}
    assert {name.strip() for name in found[1].split(",")} == {*views.KEYS, "formats", "energy", "raster", "bits", "circuit"}


def test_a_view_prints_as_what_it_shows(trials):
    softmax = trials.where(workload="softmax.forward")
    assert repr(widgets.explorer(softmax)) == f"explorer of {len(softmax)} Trials: softmax.forward"
    assert repr(widgets.roofline(Trials())) == "roofline of 0 Trials: none yet"


def test_showing_other_trials_replaces_the_columns_and_leaves_the_state(trials):
    some = trials.where(workload="gelu.forward")
    view = widgets.explorer(some, dtype="bfloat16")
    told = []
    view.observe(lambda change: told.append(change["name"]), names=["data", "state"])
    view.show(trials)
    assert view.data == columns(trials, title=view.data["title"])
    assert view.trials == trials
    assert view.state == {"dtype": "bfloat16"}
    assert told == ["data"]


def test_a_view_may_begin_with_nothing_and_grow(trials):
    view = widgets.explorer(Trials(), x="cols")
    assert view.data["rows"]["cell"] == []
    for n in (10, 20, len(trials)):
        view.show(trials[:n])
        assert view.data["rows"] == columns(trials[:n])["rows"]


def test_the_front_end_may_change_the_state(trials):
    view = widgets.explorer(trials)
    view.set_state({"state": {"x": "rows"}})
    assert view.state == {"x": "rows"}
    assert carried(view)["state"] == {"x": "rows"}


# ---- what an output carries


def test_an_output_carries_the_columns_where_trials_were_given(trials):
    some = trials.where(workload="gelu.backward")
    view = widgets.roofline(some, title="a title", roofs=["h200-sxm"])
    data, _ = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == f"roofline of {len(some)} Trials: a title"
    assert carried(view) == {
        "view": "roofline",
        "state": {"roofs": ["h200-sxm"]},
        "title": "a title",
        "data": columns(some, title="a title"),
    }


def test_an_output_names_its_records_where_a_path_was_given(trials, monkeypatch):
    monkeypatch.chdir(RESULTS.parent)
    where = {"workload": {"softmax.forward"}, "dtype": "bfloat16"}
    view = widgets.explorer("results", where=where, x="cols")
    assert view.trials == trials.where(**where)
    assert carried(view) == {
        "view": "explorer",
        "state": {"x": "cols"},
        "title": "softmax.forward",
        "records": ["results"],
        "where": {"workload": ["softmax.forward"], "dtype": "bfloat16"},
    }
    files = sorted(Path("results").glob("gelu*.jsonl"))
    assert carried(widgets.explorer(files))["records"] == [os.fspath(file) for file in files]
    view.show(trials)
    assert "records" not in carried(view)
    assert view.trials == trials.where(**where)


def test_an_output_says_over_what_where_that_was_chosen(trials):
    view = views.View("explorer", RESULTS, overs=["eager"])
    assert view.data["overs"] == carried(view)["overs"] == ["eager"]


# ---- what is refused


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"colour": "red"}, "explorer has no 'colour'; accepted are rows, cols, approximate, workload, dtype, target, "),
        ({"workload": "gelu"}, "workload is 'gelu'; accepted here are 'gelu.backward', .*'all'"),
        ({"over": "ours"}, "over is 'ours'; accepted here are 'best baseline', 'eager', "),
        ({"techniques": ["eager", "ours"]}, "techniques is 'ours'; accepted here are 'eager', "),
        ({"y": "speed"}, "y is 'speed'; accepted here are 'speedup', 'time', 'error'"),
        ({"x": "dtype"}, "x is 'dtype'; accepted here are 'rows', 'cols', 'approximate', 'technique'"),
    ],
)
def test_an_unknown_choice_is_one_sentence(state, sentence, trials):
    with pytest.raises(ValueError, match=sentence):
        widgets.explorer(trials, **state)


def test_each_view_knows_its_own_keys(trials):
    with pytest.raises(ValueError, match="reveal has no 'roofs'"):
        widgets.reveal(trials, roofs=["h100-sxm"])
    with pytest.raises(ValueError, match="view is 'map'; accepted are 'explorer', 'breakeven', 'roofline', 'reveal'"):
        views.View("map", trials)
    assert widgets.breakeven(trials, x="rows", y="cols", dtype="bfloat16", rows=16384).state["rows"] == 16384
    assert widgets.explorer(trials, dtype="all", techniques=()).state == {"dtype": "all", "techniques": []}


def test_what_is_no_trials_is_one_sentence():
    with pytest.raises(ValueError, match="trials holds a int; accepted are Trials, or the path of a record"):
        widgets.explorer([1])
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        widgets.explorer("nowhere.jsonl")


# ---- the front end's text


def test_pieces_are_joined_in_order_into_a_module_and_a_script():
    module, script = front.module(), front.script()
    marks = [module.index(f"// ---- {name}.js\n") for name in front.PIECES]
    assert marks == sorted(marks)
    assert module.endswith("export default { render };\n")
    assert script.startswith("(function () {")
    assert script.rstrip().endswith("window.kptLab = { mount };\n})();")
    for text in (module.removesuffix("export default { render };\n"), script):
        assert not re.search(r"^\s*(import|export)\b", text, re.MULTILINE)
        assert not re.search(r"\beval\(|new Function|\bfetch\(|XMLHttpRequest|\bimport\(", text)
        assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize(("made", "name"), [(front.module, "front.mjs"), (front.script, "front.js")])
def test_the_joined_text_is_sound_javascript(made, name, tmp_path):
    path = tmp_path / name
    path.write_text(made(), encoding="utf-8")
    done = subprocess.run(["node", "--check", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


SQUARE = """(data, state) => {
  const plan = mapPlan(indexed(data), state);
  return {axes: [plan.x.key, plan.y.key], chosen: plan.chosen.map((c) => c.facet.key), shown: plan.columns.length * plan.lines.length,
    missing: plan.columns.flatMap((_, i) => plan.lines.map((_, j) => plan.square(i, j))).filter((s) => !s).length};
}"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_width_under_two_names_is_one_axis_of_the_map(tmp_path, trials):
    """Square layers: out_features follows from in_features, so the map needs no choice of it, and no square is lost."""
    widths = [replace(t, params={"tokens": t.params["rows"], **dict.fromkeys(("in_features", "out_features"), t.params["cols"])})
              for t in kpt.load(RESULTS / "grid") if t.dtype == "bfloat16"]  # fmt: skip
    data = columns(Trials(widths))
    calls = [
        f"({SQUARE})({json.dumps(data)}, {json.dumps(state)})" for state in ({}, {"x": "out_features", "y": "in_features"})
    ]
    path = tmp_path / "square.cjs"
    source = front.module().removesuffix("export default { render };\n")
    path.write_text(f"{source}\nconsole.log(JSON.stringify([{', '.join(calls)}]));\n", encoding="utf-8")
    done = subprocess.run(["node", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    plain, asked = json.loads(done.stdout)
    assert set(plain["axes"]) == {"in_features", "tokens"}
    assert "out_features" not in plain["chosen"]
    assert plain["shown"] == len({(t.params["tokens"], t.params["in_features"]) for t in widths})
    assert plain["missing"] == 0
    assert asked["axes"] == ["out_features", "in_features"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "js").mkdir()
    for name in front.PIECES:
        (tmp_path / "js" / f"{name}.js").write_text(f"const {name}_piece = 1;\n")
    monkeypatch.setattr(front, "FOLDER", tmp_path)
    front._joined.cache_clear()
    yield tmp_path
    front._joined.cache_clear()


def test_a_missing_or_unnamed_piece_is_one_sentence(folder):
    (folder / "js/stray.js").write_text("")
    with pytest.raises(RuntimeError, match=r"holds stray\.js, which PIECES in widgets/front\.py does not name"):
        front.module()
    (folder / "js/stray.js").unlink()
    (folder / "js/plot.js").unlink()
    with pytest.raises(RuntimeError, match=r"widgets/js lacks plot\.js; install kpt_lab again"):
        front.script()
    with pytest.raises(RuntimeError, match=r"widgets/kpt_lab\.css is missing"):
        front.stylesheet()


def test_an_edited_piece_is_read_again(folder):
    assert "plot_piece = 1" in front.module()
    assert front._joined.cache_info().misses == 1
    front.script()
    assert front._joined.cache_info().misses == 1
    piece = folder / "js/plot.js"
    piece.write_text("const plot_piece = 2;\n")
    os.utime(piece, ns=(1, 1))
    assert "plot_piece = 2" in front.module()


def test_the_installed_package_brings_every_piece():
    there = importlib.resources.files("kpt_lab.widgets")
    assert (there / "kpt_lab.css").is_file()
    assert {f"{name}.js" for name in front.PIECES} == {
        file.name for file in (there / "js").iterdir() if file.name.endswith(".js")
    }


def test_a_wheel_would_bring_every_piece():
    import tomllib

    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["kpt_lab.widgets"]
    found = {path for pattern in patterns for path in (ROOT / "widgets").glob(pattern)}
    needed = {path for path in (ROOT / "widgets").rglob("*") if path.suffix in (".js", ".css")}
    assert found == needed


def test_without_anywidget_a_view_is_one_sentence_and_pages_can_be_built():
    start = "import sys; sys.modules['anywidget'] = None\nfrom kpt_lab.widgets import front; front.module()\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{start}from kpt_lab.widgets import explorer"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: kpt_lab.widgets.explorer needs anywidget: pip install 'kpt-lab[lab]'"
