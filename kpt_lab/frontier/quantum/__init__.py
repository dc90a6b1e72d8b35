"""Quantum circuits, simulated exactly: a batched state vector with adjoint gradients, layers, and models with such layers.

from kpt_lab.frontier.quantum import QuantumLayer

layer = QuantumLayer(circuit, ["IZ", "ZI"], input_params=["x0", "x1"], weight_params=["w0", "w1"])
layer(torch.rand(32, 2)).sum().backward()

No quantum computer is used and no quantum speedup is claimed: a simulator's time says nothing about a device's.
"""

from kpt_lab.frontier.quantum.circuit import Angle, Circuit, Gate
from kpt_lab.frontier.quantum.layer import QuantumLayer
from kpt_lab.frontier.quantum.observables import PauliSum
from kpt_lab.frontier.quantum.optimizer import HybridResult, QuantumHybridOptimizer
from kpt_lab.frontier.quantum.statevector import counts, expectations, sample, statevector
from kpt_lab.frontier.quantum.technique import hybrid

__all__ = [
    "Angle", "Circuit", "Gate", "HybridResult", "PauliSum", "QuantumHybridOptimizer", "QuantumLayer", "counts", "expectations",
    "hybrid", "sample", "statevector",
]  # fmt: skip
