"""Forward and backward of one layer beside its peers, in one process. Run: python benchmarks/quantum_peers.py [--qubits 6 8 10]

The circuit: RX by inputs, twice (RY, RZ by weights, a ring of CX), Z of every qubit; batch 32, gradients of inputs and weights. Peers:
PennyLane's default.qubit with broadcasting and backprop (bar: 1.5x), and with --connector qiskit-machine-learning's TorchConnector
over a StatevectorEstimator without sampling noise (bar: 1000x; it takes minutes, so 5 blocks). Blocks alternate between ours and the
peer; the ratio is of medians with the range of the blocks' own ratios. One process: exploratory. Both simulate: this is simulation time.
Needs pennylane, or qiskit-machine-learning, installed beside PyTorch; neither is among this project's dependencies.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kpt_lab.frontier.quantum import QuantumLayer
from kpt_lab.frontier.quantum.sublayers import ansatz

BATCH, DEPTH = 32, 2
BARS = {"PennyLane default.qubit": 1.5, "TorchConnector": 1000.0}
AGREE = {"PennyLane default.qubit": 1e-12, "TorchConnector": 1e-5}  # the connector goes through float32


def ours(qubits: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    circuit = ansatz(qubits, DEPTH)
    names = circuit.parameters
    observables = ["I" * (qubits - 1 - q) + "Z" + "I" * q for q in range(qubits)]
    layer = QuantumLayer(circuit, observables, names[:qubits], names[qubits:]).double()
    return layer, layer.weight


def pennylane(qubits: int, weight: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    import pennylane as qml

    w = weight.detach().clone().requires_grad_()

    @qml.qnode(qml.device("default.qubit", wires=qubits), interface="torch", diff_method="backprop")
    def node(x: Tensor, w: Tensor) -> Any:
        for q in range(qubits):
            qml.RX(x[:, q], wires=q)
        table = w.view(DEPTH, qubits, 2)
        for layer in range(DEPTH):
            for q in range(qubits):
                qml.RY(table[layer, q, 0], wires=q)
                qml.RZ(table[layer, q, 1], wires=q)
            for q in range(qubits):
                qml.CNOT(wires=[q, (q + 1) % qubits])
        return [qml.expval(qml.PauliZ(q)) for q in range(qubits)]

    return lambda x: torch.stack(node(x, w), 1), w


def connector(qubits: int, weight: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector
    from qiskit.primitives import StatevectorEstimator
    from qiskit.quantum_info import SparsePauliOp
    from qiskit_machine_learning.connectors import TorchConnector
    from qiskit_machine_learning.neural_networks import EstimatorQNN

    x, w = ParameterVector("x", qubits), ParameterVector("w", len(weight))
    circuit = QuantumCircuit(qubits)
    for q in range(qubits):
        circuit.rx(x[q], q)
    for layer in range(DEPTH):
        for q in range(qubits):
            circuit.ry(w[2 * (layer * qubits + q)], q)
            circuit.rz(w[2 * (layer * qubits + q) + 1], q)
        for q in range(qubits):
            circuit.cx(q, (q + 1) % qubits)
    network = EstimatorQNN(
        circuit=circuit, estimator=StatevectorEstimator(default_precision=0.0), input_params=list(x), weight_params=list(w),
        observables=[SparsePauliOp("I" * (qubits - 1 - q) + "Z" + "I" * q) for q in range(qubits)], input_gradients=True,
        default_precision=0.0,
    )  # fmt: skip
    layer = TorchConnector(network, initial_weights=weight.detach().numpy())
    return layer, layer.weight


def seconds(layer: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        x.grad = weight.grad = None
        layer(x).sum().backward()
    return (time.perf_counter() - start) / repeats


def agree(name: str, mine: tuple, peer: tuple, x: Tensor) -> None:
    """AssertionError where outputs or gradients differ."""
    found = []
    for layer, weight in (mine, peer):
        x.grad = weight.grad = None
        out = layer(x)
        (out * torch.linspace(1, 2, out.shape[1])).sum().backward()
        assert x.grad is not None
        assert weight.grad is not None
        found.append([value.detach().double() for value in (out, x.grad, weight.grad)])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < AGREE[name] * max(1.0, float(a.abs().max())), f"{name} gives other numbers"


def compare(name: str, make: Callable[..., Any], qubits: int, blocks: int, repeats: int) -> bool:
    torch.manual_seed(0)
    mine = ours(qubits)
    peer = make(qubits, mine[1])
    x = torch.randn(BATCH, qubits, dtype=torch.float64, requires_grad=True)
    agree(name, mine, peer, x)  # also the warm-up
    own, other = [], []
    for _ in range(blocks):
        own.append(seconds(*mine, x, 5))
        other.append(seconds(*peer, x, repeats))
    ratios = [b / a for a, b in zip(own, other, strict=True)]
    ratio = statistics.median(other) / statistics.median(own)
    print(
        f"{qubits} qubits: ours {statistics.median(own) * 1e3:.2f} ms, {name} {statistics.median(other) * 1e3:.1f} ms: {ratio:.4g}x, "
        f"blocks {min(ratios):.4g} to {max(ratios):.4g} (simulation time, {blocks} blocks, one process, exploratory); "
        f"bar {BARS[name]}x",
        flush=True,
    )
    return ratio >= BARS[name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qubits", type=int, nargs="+", default=[6, 8, 10])
    parser.add_argument("--connector", action="store_true")
    parser.add_argument("--blocks", type=int, default=0, help="default 30, and 5 for the connector")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    name, make = ("TorchConnector", connector) if asked.connector else ("PennyLane default.qubit", pennylane)
    blocks = asked.blocks or (5 if asked.connector else 30)
    print(f"torch {torch.__version__}, {asked.threads} threads, batch {BATCH}, complex128")
    kept = [compare(name, make, n, blocks, 1 if asked.connector else 3) for n in asked.qubits]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
