"""The site: its renderers as pure functions, its pages' code, the ledger; with Sphinx, where it is installed, a build."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import sys
import types
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

import kpt_lab as kpt
from kpt_lab import look, stats
from kpt_lab.site import audit, build, docstrings, ledger, mime, pages, plots, views

ROOT = Path(__file__).parents[1]
HOWTO = sorted(path for path in (ROOT / "docs" / "howto").glob("*.md") if "```python" in path.read_text())


def recorded() -> kpt.Trials:
    return kpt.load(ROOT / "notebooks/phase1/results")


def figure() -> dict[str, Any]:
    trials = recorded().where(workload="softmax.forward", rows=16384, dtype="bfloat16")
    return json.loads(kpt.figures.speedup(trials).to_json())


# Figures


def test_a_figures_text_leaves_the_drawing_and_makes_it_smaller() -> None:
    whole = figure()
    found = plots.parts(whole)
    assert found.heading == "softmax.forward: speedup over the best baseline"
    assert "NVIDIA H100" in found.under
    assert found.notes.startswith("Intervals: span of the medians")
    assert "title" not in found.figure["layout"]
    assert "template" not in found.figure["layout"]
    assert all(a.get("name") != "notes" for a in found.figure["layout"].get("annotations", []))
    before, after = whole["layout"], found.figure["layout"]
    inside = [side["height"] - side["margin"]["t"] - side["margin"]["b"] for side in (before, after)]
    assert inside[0] == pytest.approx(inside[1])
    assert after["height"] < before["height"]
    assert found.figure["data"] == whole["data"]


def test_a_figure_without_text_stays_as_it_is() -> None:
    bare = {"data": [{"y": [1, 2]}], "layout": {"height": 300, "margin": {"t": 20}}}
    assert plots.parts(bare) == ("", "", "", bare)


def test_the_points_of_a_figure_are_a_table_with_intervals() -> None:
    packed = {"dtype": "f8", "bdata": base64.b64encode(np.array([2.0, 3.0]).tobytes()).decode()}
    trace = {"name": "<b>a</b>", "x": [1, 2], "y": packed, "error_y": {"array": [0.5, 0.25], "arrayminus": [1.0, 0.25]}}
    hidden = {"name": "b", "y": [1, 2], "visible": "legendonly"}
    rows = plots.points({"data": [trace, hidden]})
    assert rows == [("a", "1", "2", "1 to 2.5"), ("a", "2", "3", "2.75 to 3.25")]
    assert plots.points({"data": [{"y": list(range(plots.MOST_POINTS + 1))}]}) == []
    table = plots.table({"data": [trace], "layout": {"yaxis": {"title": {"text": "speedup"}}}})
    assert '<th scope="col">speedup</th>' in table
    assert table.count("<tr>") == 3


def test_a_plot_is_named_and_its_json_cannot_close_the_script() -> None:
    drawn = go.Figure(go.Scatter(y=[1, 2], name="</script><!--"), {"title": "a < b & c", "xaxis": {"title": "call"}})
    text = plots.plot_html(json.loads(drawn.to_json()))
    assert text.count("</script>") == 1
    assert '<figure class="site-plot"' in text
    inside = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert inside
    assert json.loads(inside[1])["data"][0]["name"] == "</script><!--"
    named = re.search(r'aria-label="([^"]*)"', text)
    assert named
    assert html.unescape(named[1]) == "a < b & c"
    assert "<noscript>" in text


def test_what_is_no_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="accepted is Plotly's JSON"):
        plots.plot_html({"layout": {}})


def test_every_light_colour_has_a_dark_one() -> None:
    said = json.loads(plots.look_script().removeprefix("window.kptLook = ").removesuffix(";\n"))
    assert set(said["templates"]) == {"light", "dark"}
    light, dark = look.THEMES["light"], look.THEMES["dark"]
    assert said["swap"][light.paper] == dark.paper
    assert [said["swap"][colour] for colour in light.palette] == list(dark.palette)
    assert len(set(said["swap"].values())) == len(said["swap"])  # so that it can be turned round


# Views


def content(**changes: Any) -> dict[str, Any]:
    return {"view": "explorer", "state": {"x": "cols"}, "title": "a <b>", "records": ["phase1/results"], **changes}


def test_a_view_rebuilds_its_columns_from_the_records_beside_its_notebook() -> None:
    data = views.columns_of(content(where={"workload": "gelu.forward"}), ROOT / "notebooks")
    assert data["workloads"] == ["gelu.forward"]
    assert not any(environment["elsewhere"] for environment in data["environments"])
    assert views.columns_of(content(data={"schema": 1}), ROOT) == {"schema": 1}


def test_a_views_script_holds_its_columns_once_under_their_key() -> None:
    key, script = views.data_script({"title": "</script>", "n": None})
    assert "</script>" not in script
    assert key in script
    assert views.data_script({"n": None, "title": "x"})[0] != key
    shown = views.view_html(content(), key, 2, f"../_data/{key}.js")
    assert 'id="explorer-2"' in shown
    assert f'data-columns="{key}"' in shown
    assert f'<script defer src="../_data/{key}.js"></script>' in shown
    assert "a &lt;b&gt;" in shown
    assert "<script defer" not in views.view_html(content(), key, 3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"view": "table"}, "accepted are 'explorer'"),
        ({"state": [1]}, "accepted is a mapping"),
        ({"data": {}}, "either 'records'"),
        ({"records": ["nowhere"]}, "records names 'nowhere'"),
        ({"where": {"workload": "matmul"}}, "no Trial of results fulfils"),
    ],
)
def test_a_view_that_cannot_be_shown_says_why(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        views.columns_of(views.checked(content(**changes)), ROOT / "notebooks")


def test_a_view_too_large_for_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match="narrow it with where"):
        views.data_script({"texts": ["x" * views.LIMIT]})


def test_the_directive_reads_its_options() -> None:
    asked = build.view_content("explorer", {"records": "a b", "where": '{"dtype": "bfloat16"}', "title": "t"})
    assert asked == {"view": "explorer", "records": ["a", "b"], "title": "t", "where": {"dtype": "bfloat16"}, "state": {}}
    with pytest.raises(ValueError, match="records is empty"):
        build.view_content("explorer", {})
    with pytest.raises(ValueError, match="no JSON object"):
        build.view_content("explorer", {"records": "a", "state": "{x}"})


def test_the_entry_points_are_installed_and_their_absence_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mime.missing_entry_points() == ""
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    assert mime.missing_entry_points().endswith("run pip install -e . again")


# Pages made before Sphinx reads them


def test_notebooks_are_copied_in_their_folders_with_a_note_and_without_marks(tmp_path: Path) -> None:
    (tmp_path / "notebooks" / "old.ipynb").parent.mkdir()
    (tmp_path / "notebooks" / "old.ipynb").write_text("{}")
    copies = pages.copy_notebooks(ROOT, tmp_path / "notebooks")
    assert {copy.relative_to(tmp_path).as_posix() for copy in copies} == {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "notebooks").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    }
    assert not (tmp_path / "notebooks" / "old.ipynb").exists()
    text = (tmp_path / "notebooks" / "index.ipynb").read_text()
    book = json.loads(text)
    assert book["cells"][0]["source"].startswith("# ")
    assert "notebooks/index.ipynb" in book["cells"][1]["source"]
    assert "NBVAL" not in text


def test_the_reference_has_a_page_for_every_module() -> None:
    names = set(pages.modules())
    files = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / "kpt_lab").rglob("*.py")}
    expected = {".".join(path.parts).removesuffix(".__init__") for path in files if path.name != "__main__"}
    expected |= {f"kpt_lab.widgets.{path.stem}" for path in (ROOT / "widgets").glob("*.py") if path.stem != "__init__"}
    public = {name for name in expected if not any(part.startswith("_") for part in name.split("."))}
    assert public | {"kpt_lab.widgets"} == names
    index = pages.index_page(names)
    assert all(f"[`{name}`]({name}.md)" in index for name in names)
    front = pages.module_page(kpt)
    assert "- `Trial` ([kpt_lab.core](kpt_lab.core.md)): What one technique did" in front
    from kpt_lab.kernels import softmax

    assert "Workload `forward`: softmax.forward" in pages.module_page(softmax)


def test_docstrings_become_restructuredtext_in_which_nothing_is_a_mark_by_chance() -> None:
    said = ["One *sentence* with `code` and a_ name.", "", "    x = 1", "", "one: first", "     goes on", "two: second"]
    assert docstrings.rst(said) == [
        r"One \*sentence\* with ``code`` and a\_ name.", "", "::", "", "   x = 1", "",
        "- **one**: first goes on", "- **two**: second", "",
    ]  # fmt: skip
    assert docstrings.rst(["- an item", "  of two lines"]) == ["- an item of two lines", ""]


# The ledger


def test_the_results_ledger_lists_every_file_with_its_age() -> None:
    text = ledger.results(ROOT, "files", date(2126, 1, 1))
    for path in (ROOT / "notebooks/phase1/results").glob("*.jsonl"):
        assert f"`{path.name}`" in text
    assert "NVIDIA H100" in text
    assert re.search(r"\d+ days ago", text)
    assert "live" not in text
    assert re.match(r"\d+ files?, \d+ Trials in \d+ cells", ledger.results(ROOT, "summary"))


def test_stale_and_failed_trials_are_named_with_what_to_do(tmp_path: Path) -> None:
    trial = recorded().where(technique="kpt triton")[0]
    stale = kpt.Trials((replace(trial, source={**trial.source, "technique": "0" * 12}),))
    failed = replace(trial, status="failed", metrics={}, samples={}, advice="a *sharp* reason")
    (tmp_path / "kpt_lab").mkdir()
    (tmp_path / "notebooks/phase1/results").mkdir(parents=True)
    assert ledger.results(tmp_path) == ledger.NONE
    kpt.record((*stale, failed), tmp_path / "notebooks/phase1/results/x.jsonl")
    assert "**stale**: 1 of 2" in ledger.results(tmp_path, "files")
    assert "python -m kpt_lab record kernels." in ledger.results(tmp_path, "again")
    assert r"a \*sharp\* reason" in ledger.results(tmp_path, "lost")
    with pytest.raises(ValueError, match="part is 'all'"):
        ledger.results(tmp_path, "all")


# The audit


def site(folder: Path, body: str, head: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text(f"<html><head>{head}</head><body>{body}</body></html>")
    return folder


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js from elsewhere"),
        ('<img src="//cdn.example/x.png" alt="">', "from elsewhere"),
        ('<script src="x.js"></script>', "loads x.js, which is not there"),
        ('<a href="gone.html">', "links to gone.html"),
        ('<a href="#gone">', "links to #gone"),
        ("x" * views.LIMIT, "besides shared scripts"),
    ],
)
def test_a_fault_of_the_site_is_found(tmp_path: Path, body: str, fault: str) -> None:
    (found,) = audit.audit(site(tmp_path / "site", body))
    assert fault in found
    assert audit.main([str(tmp_path / "site")]) == 1


def test_links_and_names_elsewhere_are_no_fault(tmp_path: Path) -> None:
    body = (
        '<a href="https://example.org">there</a> <a href="#here" id="here">here</a> <a href="#view=explorer-1&x=cols">view</a>'
    )
    folder = site(tmp_path / "site", body, '<link rel="canonical" href="https://example.org">')
    assert audit.audit(folder) == []
    (folder / "style.css").write_text("@font-face { src: url(https://fonts.example/a.woff2) }")
    assert audit.audit(folder) == ["style.css loads https://fonts.example/a.woff2 from elsewhere"]
    with pytest.raises(ValueError, match="holds no HTML page"):
        audit.audit(tmp_path / "nowhere")


def test_what_screen_readers_stumble_over_is_mended() -> None:
    whole = "<dl><dt>a</dt><dd>b</dd></dl>"
    assert audit.mended(whole) == whole
    lines = audit.mended("<dt>f(\n<dl>\n<dd><em>a</em>,</dd>\n<dd>b</dd>\n</dl>\n)</dt>")
    assert "<dd>" not in lines
    assert lines.count("<span>") == 2


# What the pages say


@pytest.mark.parametrize("page", HOWTO, ids=lambda page: page.stem)
def test_the_code_of_a_how_to_runs(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    module = types.ModuleType("how_to")  # Dynamo looks a function's module up by its name
    monkeypatch.setitem(sys.modules, "how_to", module)
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), module.__dict__)
    assert capsys.readouterr().out


def test_how_we_measure_names_the_settings_of_the_code() -> None:
    text = " ".join((ROOT / "docs/how-we-measure.md").read_text().split())
    *first, last = stats.LOOKS
    assert f"after {', '.join(map(str, first))} and {last} blocks" in text
    assert f"at the {stats.LOOK_LEVEL:.0%} level" in text
    assert f"within {stats.MARGIN:.0%} of 1x" in text
    assert f"exceeds {stats.MAX_AUTOCORRELATION}" in text
    assert stats.MIN_PROCESSES == 6
    assert "at least six fresh processes" in text


def test_the_front_page_shows_both_commands_and_a_live_view() -> None:
    text = (ROOT / "docs/index.md").read_text()
    assert "make lab " in text
    assert "make test " in text
    assert "```{kpt-view} explorer" in text


# With Sphinx


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Sphinx's extensions' own
def test_a_small_site_builds_with_figures_views_and_ledgers(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb")
    pytest.importorskip("furo")
    from sphinx.application import Sphinx

    for name in ("kpt_lab", "docs", "notebooks/phase1"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copytree(ROOT / "notebooks/phase1/results", tmp_path / "notebooks/phase1/results")
    shutil.copytree(ROOT / "docs/_static", tmp_path / "docs/_static")
    shutil.copy(ROOT / "docs/conf.py", tmp_path / "docs")
    shown = {"output_type": "display_data", "metadata": {}}
    outputs = [
        {**shown, "data": {plots.MIME: figure(), "text/plain": "Figure"}},
        {**shown, "data": {views.MIME: content(records=["results"]), mime.WIDGET: {"model_id": "x"}, "text/plain": "view"}},
    ]
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# A question"},
        {"cell_type": "code", "id": "b", "metadata": {}, "execution_count": 1, "source": "show()", "outputs": outputs},
    ]
    (tmp_path / "notebooks/phase1/01.ipynb").write_text(
        json.dumps({"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5})
    )
    (tmp_path / "docs/index.md").write_text(
        "# Front\n\n```{kpt-view} roofline\n:records: notebooks/phase1/results\n```\n\n```{kpt-ledger} files\n```\n\n"
        "```{toctree}\nnotebooks/phase1/01\n```\n"
    )
    out = tmp_path / "docs/_build/html"
    warnings = (tmp_path / "warnings").open("w+")
    app = Sphinx(
        tmp_path / "docs", tmp_path / "docs", out, out.parent / "doctrees", "html", {"exclude_patterns": ["_build", "reference"]},
        status=None, warning=warnings,
    )  # fmt: skip
    app.build()
    warnings.seek(0)
    assert warnings.read() == ""
    warnings.close()
    page, front = (out / "notebooks/phase1/01.html").read_text(), (out / "index.html").read_text()
    assert 'class="site-plot"' in page
    assert 'data-view="explorer"' in page
    assert page.index("kpt_views.js") < page.index("plotly.min.js")
    assert 'data-view="roofline"' in front
    assert "plotly" not in front
    assert "softmax.forward.h100-sxm.jsonl" in front
    assert audit.audit(out) == []
