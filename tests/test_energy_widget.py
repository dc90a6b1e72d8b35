"""The energy view without a browser: its formulas in Node against the library's, its constants, outputs and refusals."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import random
import shutil
import subprocess
from typing import Any

import pytest

from kpt_lab.frontier.spiking import energy as model
from kpt_lab.site import views as site

pytest.importorskip("anywidget", reason="the views need anywidget")
from kpt_lab.widgets import front, views

from kpt_lab import widgets

module = importlib.import_module("kpt_lab.widgets.energy")  # the package's attribute of that name is the function
NODE = shutil.which("node")
MARK = {"label": "digits", "arithmetic": "int8", "spikes": 0.9, "compute": 3.2, "with_memory": 0.06}


def run_node(tmp_path: Any, script: str, given: Any) -> Any:
    source = front.module().removesuffix("export default { render };\n")
    tail = (
        f"\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\nconsole.log(JSON.stringify(({script})(given)));\n"
    )
    path = tmp_path / "energy.cjs"
    path.write_text(source + tail, encoding="utf-8")
    done = subprocess.run(
        ["node", str(path)], input=json.dumps(given), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def states(count: int = 400) -> list[dict[str, Any]]:
    """States at random, and every combination of choices."""
    draw = random.Random(0)
    found = []
    choices = itertools.product(module.CODES, module.ARITHMETIC, module.ARITHMETIC, model.ACCESS_64_BITS)
    for code, standard, spiking, memory in itertools.islice(itertools.cycle(choices), count):
        sliders = {"spikes": draw.choice(module.SPIKES), "timesteps": draw.choice(module.TIMESTEPS)}
        sliders |= {"width": draw.choice(module.WIDTHS), "reuse": draw.choice(module.REUSES)}
        found.append({**sliders, "code": code, "standard": standard, "spiking": spiking, "memory": memory})
    return found


BOTH = """({table, states}) => states.map((state) => [false, true].map((moved) => [
  ...layerJoules(table, state, state.spikes, moved), layerGain(table, state, state.spikes, moved),
  ...[1, 100].map((gain) => wordOf(spikesFor(table, state, gain, moved))), mostSpikes(state)]))"""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_front_end_computes_what_the_library_computes(tmp_path: Any) -> None:
    given = states()
    found = run_node(tmp_path, BOTH, {"table": module.constants(), "states": given})
    reached = 0
    for state, both in zip(given, found, strict=True):
        layer = module.layer_of(state)
        for boundary, theirs in zip(module.boundaries_of(state).values(), both, strict=True):
            wanted = [*boundary.joules(layer, state["spikes"]), boundary.gain(layer, state["spikes"])]
            wanted += [boundary.spikes_for(layer, gain) for gain in (1, 100)]
            reached += not math.isnan(wanted[-1])
            got = [float(value) for value in theirs]
            assert got == pytest.approx([*wanted, layer.most], rel=1e-12, nan_ok=True), state
    assert 0 < reached < 2 * len(given)


def test_the_constants_are_the_librarys() -> None:
    found = module.constants()
    assert found["access"] == model.ACCESS_64_BITS
    assert found["arithmetic"]["int8"] == {"add": model.ADD["int32"], "multiply": model.MULTIPLY["int8"], "bits": 8}
    assert found["arithmetic"]["float32"]["multiply"] == model.MULTIPLY["float32"]
    assert "Horowitz" in found["source"]
    json.dumps(found, allow_nan=False)


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_sentence_says_what_the_numbers_say(tmp_path: Any) -> None:
    def told(**state: Any) -> str:
        full = {**module.START, **state}
        return run_node(
            tmp_path, "({table, state}) => energySentence(table, state)", {"table": module.constants(), "state": full}
        )

    assert "needs 10.2x less energy by arithmetic alone" in told(spikes=0.5)
    assert "more energy with data movement" in told(spikes=10.0)
    assert told(spikes=2.0, code="first_spike").startswith("No such trains: in this code a line carries at most 1 spike")
    assert "different numbers (float32 and int8)" in told(spiking="int8")


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_copied_call_makes_the_same_view(tmp_path: Any) -> None:
    state = widgets.energy(0.03, timesteps=7, memory="1MB", reuse=2.5).state
    call = run_node(tmp_path, '(state) => pythonCall("energy", state)', state)
    assert eval(call, {"energy": widgets.energy}).state == state


def test_the_view_holds_constants_and_state_and_the_site_takes_it() -> None:
    view = widgets.energy(0.3, marks=[MARK])
    assert repr(view) == "energy: 0.3 spikes a synapse in 32 steps, modelled"
    assert view.state == {**module.START, "spikes": 0.3}
    assert 0.3 in view.data["stops"]["spikes"]
    assert view.data["marks"] == [MARK]
    content = site.checked(view._repr_mimebundle_()[0][views.MIME])
    key, script = site.data_script(site.columns_of(content, front.FOLDER))
    assert len(script) < 20_000
    assert 'data-view="energy"' in site.view_html(content, key, 1)


def test_the_figure_draws_the_gains_and_the_marks_where_they_belong() -> None:
    figure = module.gains(standard="int8", spiking="int8", marks=[MARK])
    drawn = {trace.name: trace for trace in figure.data}
    layer = module.layer_of(module.START)
    for name, boundary in module.boundaries_of({**module.START, "standard": "int8", "spiking": "int8"}).items():
        curve = drawn[name]
        assert max(curve.x) <= layer.most
        assert list(curve.y) == pytest.approx([boundary.gain(layer, s) for s in curve.x], rel=1e-5)
    assert drawn["counted in runs, with data movement"].y == (0.06,)
    assert not [t for t in module.gains(marks=[MARK]).data if t.name.startswith("counted")]  # float32: another model


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"spikes": 0}, "spikes is 0; a finite number above 0 is needed"),
        ({"spikes": math.inf}, "spikes is inf; a finite number"),
        ({"reuse": 0.5}, "reuse is 0.5; at least 1 operation"),
        ({"timesteps": 2.5}, "timesteps is 2.5; a whole number from 1 up"),
        ({"width": True}, "width is True; a whole number"),
        ({"code": "rate"}, "code is 'rate'; accepted are 'count', 'first_spike'"),
        ({"memory": "DRAM"}, "memory is 'DRAM'; accepted are '8KB', '32KB', '1MB'"),
        ({"standard": "fp8"}, "standard is 'fp8'; accepted are 'float32', 'int8'"),
        ({"marks": [{"label": "x"}]}, "a mark lacks 'arithmetic'; each needs label, arithmetic"),
    ],
)
def test_what_is_not_accepted_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        widgets.energy(**given)
    if "marks" not in given:
        with pytest.raises(ValueError, match=sentence):
            module.gains(**given)


def test_the_figure_knows_no_other_keys() -> None:
    with pytest.raises(ValueError, match="energy has no 'volts'; accepted are spikes, timesteps"):
        module.gains(volts=1)
