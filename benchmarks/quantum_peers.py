"""Forward and backward of one quantum layer beside its peers' simulators, each pair interleaved in the same processes.

    python benchmarks/quantum_peers.py --out benchmarks/recorded/quantum_peers.cpu.json              # PennyLane, 4 minutes
    python benchmarks/quantum_peers.py --connector 6 --out benchmarks/recorded/quantum_peers.cpu.json  # TorchConnector, 3 minutes
    python benchmarks/quantum_peers.py --connector 8 --out benchmarks/recorded/quantum_peers.cpu.json  # 6 minutes

The circuit is that of kpt_lab.frontier.quantum.simulators: RX by inputs, twice RY and RZ by weights and a ring of CX, Z of every
qubit; batch 32, float64 and complex128, gradients of inputs and weights. PennyLane's default.qubit with broadcasting and backprop (bar:
1.5x) is a Technique, measured by kpt.measure in six processes; a process holds both. qiskit-machine-learning's TorchConnector over a
StatevectorEstimator without sampling noise (bar: 1000x) takes a minute a call, and a measured cell some fifty calls, so it is read from
the same clock in 5 blocks of one process, in random order: exploratory, and the range of the blocks' own ratios stands for an interval.
All of them simulate, so this is simulation time. What is written is merged into the JSON by qubits; Trials go beside it as .jsonl.
Needs pennylane, or qiskit-machine-learning, beside PyTorch; neither is among this project's dependencies.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import kpt_lab as kpt
from kpt_lab import ratios, timer
from kpt_lab.core import Technique, Trials
from kpt_lab.environment import environment
from kpt_lab.frontier.quantum import simulators
from kpt_lab.frontier.quantum.layer import QuantumLayer

BATCH, DEPTH = 32, 2
BARS = {"default.qubit": 1.5, "connector": 1000.0}
PACKAGES = ("torch", "numpy", "pennylane", "qiskit", "qiskit-machine-learning")
AGREE = 1e-5  # the connector goes through float32
CALLS = 9  # of ours in a block of the connector's, whose median counts


class DefaultQubit(nn.Module):
    """The layer on PennyLane's default.qubit, broadcast over the batch, differentiated by PyTorch."""

    def __init__(self, layer: QuantumLayer) -> None:
        super().__init__()
        import pennylane as qml

        self.weight = nn.Parameter(layer.weight.detach().clone())
        qubits = layer.circuit.qubits

        @qml.qnode(qml.device("default.qubit", wires=qubits), interface="torch", diff_method="backprop")
        def node(x: Tensor, w: Tensor) -> Any:
            for q in range(qubits):
                qml.RX(x[:, q], wires=q)
            for table in w.view(-1, qubits, 2):
                for q in range(qubits):
                    qml.RY(table[q, 0], wires=q)
                    qml.RZ(table[q, 1], wires=q)
                for q in range(qubits):
                    qml.CNOT(wires=[q, (q + 1) % qubits])
            return [qml.expval(qml.PauliZ(q)) for q in range(qubits)]

        self.node = node

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.node(x, self.weight), 1)


def _default_qubit(fn: Any, args: tuple) -> DefaultQubit:
    return DefaultQubit(fn)


default_qubit = Technique(
    "PennyLane default.qubit", _default_qubit, stage="device", simulates=simulators.TARGET, requires=("pennylane",), baseline=True,
)  # fmt: skip


def connector(layer: QuantumLayer) -> nn.Module:
    """The layer as qiskit-machine-learning's TorchConnector, exact expectations."""
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector
    from qiskit.primitives import StatevectorEstimator
    from qiskit.quantum_info import SparsePauliOp
    from qiskit_machine_learning.connectors import TorchConnector
    from qiskit_machine_learning.neural_networks import EstimatorQNN

    qubits = layer.circuit.qubits
    x, w = ParameterVector("x", qubits), ParameterVector("w", len(layer.weight))
    circuit = QuantumCircuit(qubits)
    for q in range(qubits):
        circuit.rx(x[q], q)
    for start in range(0, len(w), 2 * qubits):
        for q in range(qubits):
            circuit.ry(w[start + 2 * q], q)
            circuit.rz(w[start + 2 * q + 1], q)
        for q in range(qubits):
            circuit.cx(q, (q + 1) % qubits)
    network = EstimatorQNN(
        circuit=circuit, estimator=StatevectorEstimator(default_precision=0.0), input_params=list(x), weight_params=list(w),
        observables=[SparsePauliOp(label) for label in simulators.z_of_each(qubits)], input_gradients=True, default_precision=0.0,
    )  # fmt: skip
    return TorchConnector(network, initial_weights=layer.weight.detach().numpy())


def beside_pennylane(qubits: list[int], processes: int, budget: float) -> tuple[Trials, list[dict[str, Any]]]:
    """Measured in fresh processes, each of which holds both; the ratio is PennyLane's time over ours."""
    import quantum_peers  # by its name, so that child processes can import the technique

    trials = kpt.sweep(
        simulators.backward, [simulators.adjoint, quantum_peers.default_qubit], {"qubits": qubits, "depth": DEPTH, "batch": BATCH},
        dtype="float64", processes=processes, budget=budget,
    )  # fmt: skip
    if bad := [t for t in trials if t.status != "ok"]:
        raise SystemExit(f"{bad[0].label}: {bad[0].status}, {bad[0].advice}")
    rows = []
    for n in qubits:
        ours, peer = (trials.where(label=t.label, qubits=n) for t in (simulators.adjoint, default_qubit))
        ratio = kpt.compare(peer, ours, "simulation_time")
        rows.append({
            "qubits": n, "ratio": ratio.value, "low": ratio.low, "high": ratio.high, "processes": ratio.processes,
            "blocks": ratio.blocks, "ours_s": _middle(ours), "peer_s": _middle(peer), "bar": BARS["default.qubit"],
        })  # fmt: skip
    return trials, rows


def _middle(trials: Trials) -> float:
    return median(t.metrics["simulation_time"].value for t in trials)


def beside_connector(qubits: int, blocks: int) -> dict[str, Any]:
    """Blocks of one process, ours and the connector in random order in each; AssertionError where their numbers differ."""
    problem = simulators.backward.make(device="cpu", dtype=torch.float64, seed=0, qubits=qubits, depth=DEPTH, batch=BATCH)
    mine: Any = simulators.adjoint.apply(problem.fn, problem.inputs[0])
    steps = {"ours": problem.drive(mine), "peer": problem.drive(connector(mine))}
    found = {name: timer.call_on_cpu(step, problem.inputs[0])[1] for name, step in steps.items()}  # also the warm-up
    for a, b in zip(found["ours"], found["peer"], strict=True):
        assert (a - b).abs().max() < AGREE * max(1.0, float(a.abs().max())), "the connector gives other numbers"
    samples: dict[str, list[float]] = {"ours": [], "peer": []}
    for block in range(blocks):
        inputs = problem.inputs[block % len(problem.inputs)]
        for name in random.sample(list(steps), 2):
            samples[name].append(_seconds(steps[name], inputs, CALLS if name == "ours" else 1))
        print(f"{qubits} qubits, block {block}: {samples['peer'][-1] / samples['ours'][-1]:.4g}x", flush=True)
    ratios = [b / a for a, b in zip(samples["ours"], samples["peer"], strict=True)]
    return {
        "qubits": qubits, "ratio": median(ratios), "low": min(ratios), "high": max(ratios), "processes": 1, "blocks": blocks,
        "ours_s": median(samples["ours"]), "peer_s": median(samples["peer"]), "bar": BARS["connector"], "samples_s": samples,
        "note": "exploratory: low and high are the least and the largest of the blocks' ratios",
    }  # fmt: skip


def _seconds(step: Callable[..., Any], inputs: tuple, calls: int) -> float:
    return median(timer.call_on_cpu(step, inputs)[0] for _ in range(calls)) / 1e9


def merged(path: Path, peer: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The file's content with these rows in place of those of the same peer and qubits."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    versions = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    here = {"versions": versions, "environment": environment("cpu")}
    kept = {row["qubits"]: row for row in before.get(peer, [])} | {row["qubits"]: {**row, **here} for row in rows}
    what = (
        f"simulation time of forward and backward of one quantum layer, the peer's over ours; batch {BATCH}, depth {DEPTH}, "
        "complex128; speeds of simulators on one machine, not of a quantum computer"
    )
    return {**before, "what": what, peer: [kept[qubits] for qubits in sorted(kept)]}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qubits", type=int, nargs="+", default=[6, 8, 10], help="for PennyLane")
    parser.add_argument(
        "--connector", type=int, nargs="+", metavar="QUBITS", help="TorchConnector instead, with so many qubits"
    )
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of timing for each process and size")
    parser.add_argument("--blocks", type=int, default=5, help="of the connector")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.out and not asked.connector and asked.processes < ratios.MIN_PROCESSES:
        parser.error(
            f"--processes is {asked.processes}; what is written needs {ratios.MIN_PROCESSES}, whose interval is bounded"
        )
    torch.set_num_threads(asked.threads)
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)  # of the child processes
    rows, trials = [], Trials()
    if asked.connector:
        rows = [beside_connector(qubits, asked.blocks) for qubits in asked.connector]
    else:
        trials, rows = beside_pennylane(asked.qubits, asked.processes, asked.budget)
    for row in rows:
        said = {key: f"{row[key]:.4g}" for key in ("qubits", "ours_s", "peer_s", "ratio", "low", "high", "bar")}
        print(", ".join(f"{key} {value}" for key, value in said.items()), flush=True)
    if asked.out:
        content = merged(asked.out, "connector" if asked.connector else "default.qubit", rows)
        asked.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if trials:
            lines = asked.out.with_suffix(".jsonl")
            lines.unlink(missing_ok=True)
            kpt.record(trials, lines)
    return 0 if all(row["low"] >= row["bar"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
