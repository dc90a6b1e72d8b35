"""The formats view without a browser: its tables against `Format`, the front end's look-up in Node, outputs and refusals."""

from __future__ import annotations

import bisect
import importlib
import itertools
import json
import math
import random
import re
import shutil
import subprocess
from typing import Any

import pytest
import torch

from kpt_lab.precision.formats import Format, formats
from kpt_lab.precision.scaling import quantise, scale_of
from kpt_lab.site import views as site

pytest.importorskip("anywidget", reason="the views need anywidget")
from kpt_lab.widgets import front, views

from kpt_lab import widgets

module = importlib.import_module("kpt_lab.widgets.formats")  # the package's attribute of that name is the function
IDS = [fmt.name for fmt in formats]
NODE = shutil.which("node")


def exact(numbers: list[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def numbers(fmt: Format) -> list[float]:
    """Every value, every middle between neighbours, the doubles beside each, far ones, random ones, and what is no number."""
    values = sorted({v for v in fmt.values(torch.float64).tolist() if math.isfinite(v)})
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    step = values[-1] - values[-2]
    middles += [values[-1] + step / 2, values[0] - step / 2]
    near = [math.nextafter(x, side) for x in values + middles for side in (-math.inf, math.inf)]
    draw = random.Random(0)
    spread = [draw.choice((-1, 1)) * 2 ** draw.uniform(-30, 30) for _ in range(3000)]
    return [*values, *middles, *near, *spread, 0.0, -0.0, 5e-324, -5e-324, 1e308, -1e308, math.inf, -math.inf, math.nan]


def table(name: str) -> dict[str, Any]:
    return next(found for found in module.tables()["formats"] if found["name"] == name)


# ---- the tables


@pytest.mark.parametrize("fmt", formats, ids=IDS)
def test_values_and_kinds_are_those_of_every_code(fmt: Format) -> None:
    found, kinds = table(fmt.name), module.tables()["kinds"]
    for code in range(256):
        fields = fmt.fields(code)
        assert kinds[found["kinds"][code]] == fields.kind
        value = found["values"][code]
        assert value == fields.value if math.isfinite(fields.value) else value is None
    signed = fmt.name in ("e4m3fn", "e5m2")
    assert (found["values"][0x80] == 0 and math.copysign(1, found["values"][0x80]) == -1) is signed


@pytest.mark.parametrize("fmt", formats, ids=IDS)
def test_boundaries_and_ties_give_the_formats_own_codes(fmt: Format) -> None:
    """Counting the boundaries that a number has passed, as the front end does, leads to the code that `encode` gives."""
    found = table(fmt.name)
    assert found["edges"] == sorted(found["edges"])
    assert len(found["edges"]) == len(found["up"]) == len(found["order"]) + 1
    given = [x for x in numbers(fmt) if math.isfinite(x) and math.copysign(1, x) * (x == 0) >= 0]
    for how in fmt.overflows:
        codes = fmt.encode(exact(given), overflow=how).tolist()
        for x, code in zip(given, codes, strict=True):
            passed = bisect.bisect_left(found["edges"], x)
            passed += passed < len(found["edges"]) and found["edges"][passed] == x and found["up"][passed]
            ends = {0: found["overflow"][how][0], len(found["edges"]): found["overflow"][how][1]}
            assert (ends[passed] if passed in ends else found["order"][passed - 1]) == code, (x, how)


@pytest.mark.parametrize("fmt", formats, ids=IDS)
def test_scales_are_those_of_the_library(fmt: Format) -> None:
    found = table(fmt.name)
    for amax, scale, inverse in zip(module.tables()["amaxes"], found["scales"], found["inverses"], strict=True):
        assert scale == scale_of(exact([amax]), fmt).item() == amax / fmt.max
        assert inverse == 1.0 / scale


def test_tables_are_json_and_small() -> None:
    text = json.dumps(module.tables(), allow_nan=False)
    assert len(text) < 60_000
    assert module.tables(3.0)["amaxes"] == sorted({*module.AMAXES, 3.0})


# ---- the front end's look-up


def run_node(tmp_path: Any, script: str, given: Any) -> Any:
    source = front.module().removesuffix("export default { render };\n")
    tail = (
        f"\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\nconsole.log(JSON.stringify(({script})(given)));\n"
    )
    path = tmp_path / "lookup.cjs"
    path.write_text(source + tail, encoding="utf-8")
    done = subprocess.run(
        ["node", str(path)], input=json.dumps(given), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def words(given: list[float]) -> list[float | str]:
    """NaN and infinities as a state holds them."""
    return [x if math.isfinite(x) else str(x) for x in given]


LOOKUP = """({table, name, xs}) => {
  const format = table.formats.find((f) => f.name === name);
  return Object.fromEntries(Object.keys(format.overflow).map((how) => [how, xs.map((x) => landing(format, numberOf(x), how).code)]));
}"""
CAST = """({table, cases}) => cases.map(({name, value, amax, overflow}) => {
  const found = cast(table, table.formats.find((f) => f.name === name), {value, amax, overflow});
  return [found.code, wordOf(found.value), found.what];
})"""


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize("fmt", formats, ids=IDS)
def test_the_front_end_finds_the_code_that_the_format_gives(fmt: Format, tmp_path: Any) -> None:
    given = numbers(fmt)
    found = run_node(tmp_path, LOOKUP, {"table": module.tables(), "name": fmt.name, "xs": words(given)})
    assert set(found) == set(fmt.overflows)
    for how, codes in found.items():
        assert codes == fmt.encode(exact(given), overflow=how).tolist()


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_front_end_scales_as_quantise_does(tmp_path: Any) -> None:
    draw = random.Random(1)
    cases: list[dict[str, Any]] = []
    for fmt in formats:
        for amax in module.AMAXES:
            values = [amax, -amax, amax / fmt.max, 1.2 * amax, *(draw.uniform(-amax, amax) for _ in range(20))]
            cases += [{"name": fmt.name, "value": v, "amax": amax, "overflow": draw.choice(fmt.overflows)} for v in values]
    found = run_node(tmp_path, CAST, {"table": module.tables(), "cases": cases})
    by_name = {fmt.name: fmt for fmt in formats}
    for case, (code, value, what) in zip(cases, found, strict=True):
        fmt, x = by_name[case["name"]], exact([case["value"]])
        wanted = quantise(x, fmt, scale=scale_of(exact([case["amax"]]), fmt), overflow=case["overflow"])
        assert code == wanted.data.view(torch.uint8).item(), case
        back = wanted.dequantise(torch.float64).item()
        assert value == (back if math.isfinite(back) else str(back)), case
        counts = wanted.counts.as_dict()
        assert (what == "overflows") is bool(counts["overflowed"])
        assert (what == "flushed to zero") is bool(counts["flushed"])


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_copied_call_makes_the_same_view(tmp_path: Any) -> None:
    state = widgets.formats("inf", format="e5m2", amax=3.0, overflow="nan").state
    call = run_node(tmp_path, '(state) => pythonCall("formats", state)', state)
    assert eval(call, {"formats": widgets.formats}).state == state


# ---- the view


def carried(view: Any) -> dict[str, Any]:
    data, _ = view._repr_mimebundle_()
    return data[views.MIME]


def test_the_view_holds_tables_and_state() -> None:
    view = widgets.formats()
    assert view.view == "formats"
    assert view.state == module.START
    assert view.data == module.tables()
    assert (view._esm, view._css) == (front.module(), front.stylesheet())
    assert repr(view) == "formats: 0.35 in e4m3fn and e5m2"
    assert carried(view) == {"view": "formats", "state": module.START, "title": "8-bit formats", "data": module.tables()}


def test_the_site_takes_its_output() -> None:
    content = site.checked(carried(widgets.formats(26, amax=3, axis="near the number")))
    data = site.columns_of(content, front.FOLDER)
    assert 3.0 in data["amaxes"]
    key, script = site.data_script(data)
    assert len(script) < site.LIMIT
    assert 'data-view="formats"' in site.view_html(content, key, 1)


def test_a_number_may_be_no_number() -> None:
    assert widgets.formats("nan").state["value"] == "nan"
    assert widgets.formats(-math.inf, overflow="nan").state == {**module.START, "value": "-inf", "overflow": "nan"}
    json.dumps(carried(widgets.formats(math.nan)), allow_nan=False)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"format": "fp8"}, "format is 'fp8'; accepted are 'e4m3fn', 'e5m2', 'e4m3fnuz', 'e5m2fnuz', 'int8'"),
        ({"beside": None}, "beside is None; accepted are 'e4m3fn'"),
        (
            {"overflow": "inf"},
            "overflow is 'inf'; accepted for e4m3fn are 'saturate', 'nan'",
        ),
        ({"axis": "log"}, "axis is 'log'; accepted are 'logarithmic', 'linear', 'near the number'"),
        ({"amax": 0.0}, "amax is 0.0; accepted are None and finite numbers from 1e-12 up"),
        ({"amax": math.inf}, "amax is inf; accepted"),
        ({"value": "many"}, "value is 'many'; accepted are numbers"),
        ({"value": None}, "value is None; accepted are numbers"),
    ],
)
def test_what_is_not_accepted_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        widgets.formats(**given)


# ---- the static figure


@pytest.mark.parametrize("amax", [None, 3.0])
def test_the_figure_marks_every_magnitude_and_where_the_number_lands(amax: float | None) -> None:
    figure = module.number_line(0.35, amax=amax)
    drawn = {trace.name: trace for trace in figure.data}
    assert list(drawn["the number"].x) == [0.35, 0.35]
    for fmt in formats[:2]:
        scale = 1.0 if amax is None else amax / fmt.max
        values = fmt.values(torch.float64)
        magnitudes = sorted({abs(v) * scale for v in values.tolist() if math.isfinite(v) and v})
        assert list(drawn[fmt.name].x) == pytest.approx(magnitudes, rel=1e-15)
        x = exact([0.35])
        back = None if amax is None else quantise(x, fmt, scale=scale_of(exact([amax]), fmt)).dequantise(torch.float64)
        lands = fmt.round(x) if back is None else back
        assert list(drawn[f"{fmt.name}: what it becomes"].x) == [lands.item()]


def test_the_figure_refuses_what_has_no_logarithm() -> None:
    for value in (0, math.inf):
        with pytest.raises(ValueError, match=re.escape(f"value is {value}; accepted for a logarithmic line")):
            module.number_line(value)
