"""The circuit view without a browser: the front end's states and slopes, in Node, are the library's; outputs and refusals."""

from __future__ import annotations

import importlib
import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from kpt_lab.frontier.quantum import Angle, Circuit, Gate, expectations, statevector
from kpt_lab.frontier.quantum.gates import KINDS
from kpt_lab.site import views as site

pytest.importorskip("anywidget", reason="the views need anywidget")
from kpt_lab.widgets import front, views

from kpt_lab import widgets

module = importlib.import_module("kpt_lab.widgets.circuit")  # the package's attribute of that name is the function
NODE = shutil.which("node")
RUN = """({tables, cases}) => cases.map(({number, values, label}) => {
  const table = tables.circuits[number];
  const [re, im] = circuitRun(table, values);
  return { re, im, chances: circuitChances([re, im]), value: circuitExpectation([re, im], label), slopes: circuitSlopes(table, values, label) };
})"""


def run_node(tmp_path: Path, script: str, given: Any) -> Any:
    source = front.module().removesuffix("export default { render };\n")
    tail = (
        f"\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\nconsole.log(JSON.stringify(({script})(given)));\n"
    )
    path = tmp_path / "circuit.cjs"
    path.write_text(source + tail, encoding="utf-8")
    done = subprocess.run(
        ["node", str(path)], input=json.dumps(given), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def random_circuit(seed: int) -> Circuit:
    """1 to 4 qubits, every gate that fits, angles affine in shared parameters."""
    dice = random.Random(seed)
    qubits = dice.randint(1, 4)
    gates = []
    for _ in range(25):
        name = dice.choice([g for g in module.GATES if KINDS[g].qubits <= qubits])
        terms = tuple((f"p{k}", dice.uniform(-2, 2)) for k in dice.sample(range(5), dice.randint(0, 2)))
        angles = [Angle(dice.uniform(-3, 3), terms)] * KINDS[name].angles
        gates.append(Gate(name, dice.sample(range(qubits), KINDS[name].qubits), angles))
    return Circuit(qubits, gates)


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_front_end_simulates_as_the_library_does(tmp_path: Path) -> None:
    dice = random.Random(0)
    made = [*module.CIRCUITS.values(), *map(random_circuit, range(60))]
    assert {gate.name for each in made for gate in each.gates} == set(module.GATES)
    tables = {"circuits": [module._table(str(k), each) for k, each in enumerate(made)]}
    cases = [
        {
            "number": k,
            "values": {p: dice.uniform(-1, 1) for p in each.parameters},
            "label": dice.choice(module.observables(each.qubits)),
        }
        for k, each in enumerate(made)
        for _ in range(3)
    ]
    for case, found in zip(cases, run_node(tmp_path, RUN, {"tables": tables, "cases": cases}), strict=True):
        each = made[case["number"]]
        values = {name: math.pi * value for name, value in case["values"].items()}
        state = statevector(each, values)
        assert (
            torch.complex(*(torch.tensor(found[part], dtype=torch.float64) for part in ("re", "im"))) - state
        ).abs().max() < 1e-14
        assert (torch.tensor(found["chances"], dtype=torch.float64) - state.abs().square()).abs().max() < 1e-14
        assert abs(found["value"] - expectations(state, [case["label"]]).item()) < 1e-14
        wanted = module.slopes(each, values, case["label"])
        assert found["slopes"].keys() == wanted.keys()
        assert all(abs(found["slopes"][name] - slope) < 1e-12 for name, slope in wanted.items())


def test_every_offered_angle_matters() -> None:
    """A slider that changes nothing would tell a reader nothing."""
    for name, made in module.CIRCUITS.items():
        start = {p: math.pi * value for p, value in module._table(name, made)["start"].items()}
        before = statevector(made, start).abs()
        for parameter in made.parameters:
            assert (statevector(made, {**start, parameter: start[parameter] + 0.5}).abs() - before).abs().max() > 1e-3, (
                name,
                parameter,
            )


def test_a_pair_is_entangled_and_the_layer_without_cx_is_not() -> None:
    """Chances that are products of the qubits' own are what a circuit without CX can give."""

    def product_error(name: str) -> float:
        made = module.CIRCUITS[name]
        start = {p: math.pi * value for p, value in module._table(name, made)["start"].items()}
        joint = statevector(made, start).abs().square().view(2, 2)
        return (joint - joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)).abs().max().item()

    assert product_error("the same without CX") < 1e-15
    assert product_error("a pair") > 0.1


def test_an_output_carries_what_a_page_needs() -> None:
    made = widgets.circuit("a pair", observable="IZ", turn=0.25)
    assert made.state == {"circuit": "a pair", "observable": "IZ", "turn": 0.25}
    bundle = made._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    carried = data[views.MIME]
    assert site.checked(carried)["view"] == "circuit"
    assert len(json.dumps(site.columns_of(carried, Path()), allow_nan=False)) < 20_000
    assert repr(made) == "circuit: a pair, IZ"


def test_your_own_circuit_is_shown() -> None:
    own = Circuit(3, [Gate("h", [0]), Gate("cx", [0, 1]), Gate("rz", [2], ["a"])])
    made = widgets.circuit(own, a=-0.5)
    assert made.state == {"circuit": "yours", "observable": "ZZZ", "a": -0.5}
    assert made.data["circuits"][-1]["name"] == "yours"


def test_the_figure_shows_the_same_chances() -> None:
    figure = module.probabilities("a pair", turn=0.5)
    assert list(figure.data[0].x) == ["00", "01", "10", "11"]
    assert [round(y, 6) for y in figure.data[0].y] == [0.5, 0, 0, 0.5]
    assert "ZZ: 1.0000" in figure.layout.annotations[-1].text


@pytest.mark.parametrize(
    ("arguments", "angles", "message"),
    [
        (("a trio",), {}, "circuit is 'a trio'; accepted are 'a layer of two qubits'"),
        (("a pair",), {"turn": 1.5}, "turn is 1.5; accepted are numbers from -1 to 1, in units of pi"),
        (("a pair",), {"x": 0.5}, "'a pair' has no angle 'x'; it has turn"),
        (("a pair",), {"observable": "XX"}, "observable is 'XX'; accepted here are 'ZZ', 'IZ', 'ZI'"),
        ((Circuit(5, [Gate("h", [0])]),), {}, "circuit has 5 qubits and 0 parameters; the view shows at most 4 and 12"),
        ((Circuit(3, [Gate("ccx", [0, 1, 2])]),), {}, "circuit has the gate 'ccx'; the view knows h, x"),
        ((Circuit(1, [Gate("rx", [0], ["view"])]),), {}, "circuit has a parameter named 'view'"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(arguments: tuple, angles: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        widgets.circuit(*arguments, **angles)
