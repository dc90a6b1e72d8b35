"""The digits' classifiers, the simulators as Workload and Techniques, and what the notebooks say about their records."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import nbformat
import pytest
import torch

import kpt_lab as kpt
from kpt_lab.core import Incomparable, Unsupported
from kpt_lab.frontier.quantum import digits, simulators
from kpt_lab.stats import median_interval

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "benchmarks/recorded/quantum_digits.cpu.json").read_text(encoding="utf-8"))
MEMORY = json.loads((ROOT / "benchmarks/recorded/quantum_memory.cpu.json").read_text(encoding="utf-8"))


def test_classifiers_have_equal_parameters_in_every_part() -> None:
    made = [digits.Classifier(kind) for kind in digits.KINDS]
    assert {digits.parameters(model) for model in made} == {RECORDED["models"][0]["parameters"]}
    assert {digits.parameters(model.middle) for model in made} == {digits.QUBITS**2}


@pytest.mark.parametrize(("kind", "mixed"), [("hybrid", True), ("no entanglement", False)])
def test_without_entangling_gates_an_output_depends_on_one_input(kind: str, mixed: bool) -> None:
    middle = digits.Classifier(kind).middle
    x = torch.rand(digits.QUBITS, dtype=torch.float64)
    slopes = torch.stack([torch.autograd.functional.jacobian(lambda v, k=k: middle(v)[k], x) for k in range(digits.QUBITS)])
    aside = slopes - torch.diag(slopes.diagonal())
    assert slopes.abs().max() > 1e-3
    assert bool(aside.abs().max() > 1e-3) is mixed


@pytest.mark.parametrize("kind", digits.KINDS)
def test_classifiers_learn(kind: str) -> None:
    pytest.importorskip("sklearn")
    train_on, choose_by, test_on = digits.data(3)
    assert [len(split.x) for split in (train_on, choose_by, test_on)] == [1150, 287, 360]
    torch.manual_seed(0)
    model = digits.Classifier(kind)
    history = digits.train(model, digits.Split(*(part[:192] for part in train_on)), rate=3e-2, epochs=4)
    assert history[-1] < 0.95 * history[0]


def test_an_unknown_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'quantum'; accepted are 'hybrid', 'no entanglement', 'classical'"):
        digits.Classifier("quantum")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("workload", [simulators.forward, simulators.backward], ids=lambda workload: workload.name)
def test_simulators_agree_and_their_clock_is_no_devices(workload: kpt.Workload, dtype: str) -> None:
    trials = kpt.measure(workload, simulators.techniques, qubits=3, batch=5, dtype=dtype, processes=0, budget=0.05)
    assert [(trial.status, trial.advice) for trial in trials] == [("ok", "")] * 2
    assert all("simulation_time" in trial.metrics and "time" not in trial.metrics for trial in trials)
    slow, fast = trials
    assert "not of the device" in kpt.compare(slow, fast, "simulation_time").note
    with pytest.raises(Incomparable, match="says nothing about the device"):
        kpt.speedup(fast, over=slow)


def test_a_simulator_replaces_only_a_quantum_layer() -> None:
    with pytest.raises(Unsupported, match="replaces the backend of a QuantumLayer; this is Linear"):
        simulators.adjoint.apply(torch.nn.Linear(2, 2), (torch.rand(1, 2),))


def test_recorded_differences_follow_from_the_runs() -> None:
    by = {(run["kind"], run["seed"]): 100 * run["test"] for run in RECORDED["runs"]}
    seeds = sorted({seed for _, seed in by})
    assert len(seeds) == RECORDED["seeds"] >= 5
    for row in RECORDED["differences"]:
        points = [by[row["of"], seed] - by[row["over"], seed] for seed in seeds]
        low, high = median_interval(points, row["level"])
        assert (row["median"], row["low"], row["high"]) == pytest.approx((median(points), low, high))
        assert row["verdict"] == ("better" if low > 0 else "worse" if high < 0 else "no difference seen")


def test_the_notebooks_answer_follows_from_the_record() -> None:
    book = nbformat.read(ROOT / "notebooks/phase3/02_a_hybrid_layer.ipynb", as_version=4)
    (cell,) = [cell for cell in book.cells if cell.id == "answer"]
    told = cell.outputs[0].data["text/markdown"]
    for row in RECORDED["differences"][:2]:
        said = f"{row['of']} over {row['over']}: {row['median']:+.1f} points [{row['low']:+.1f}, {row['high']:+.1f}], {row['verdict']}"
        assert said in told
    assert ("No advantage" in told) is all(
        row["verdict"] != "better" for row in RECORDED["differences"] if row["of"] == "hybrid"
    )


def test_recorded_memory_does_not_grow_with_depth() -> None:
    assert (MEMORY["qubits"], MEMORY["batch"], [row["depth"] for row in MEMORY["depths"]]) == (16, 32, [10, 1000])
    peaks = [row["peak_bytes"] for row in MEMORY["depths"]]
    assert max(peaks) <= 1.1 * min(peaks)


def test_recorded_peers_follow_from_their_trials() -> None:
    path = ROOT / "benchmarks/recorded/quantum_peers.cpu.json"
    peers = json.loads(path.read_text(encoding="utf-8"))
    trials = kpt.load(path.with_suffix(".jsonl"))
    assert [row["qubits"] for row in peers["default.qubit"]] == [6, 8, 10]
    for row in peers["default.qubit"]:
        peer, ours = (trials.where(label=label, qubits=row["qubits"]) for label in ("PennyLane default.qubit", "adjoint"))
        ratio = kpt.compare(peer, ours, "simulation_time")
        assert (row["ratio"], row["low"], row["high"]) == pytest.approx((ratio.value, ratio.low, ratio.high))
    for row in [*peers["default.qubit"], *peers.get("connector", ())]:
        assert row["low"] >= row["bar"]
