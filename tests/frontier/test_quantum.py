"""The simulator against Qiskit and Aer, its gradients against parameter shift, and what it refuses."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kpt_lab.frontier.quantum import (
    Angle,
    Circuit,
    Gate,
    PauliSum,
    QuantumLayer,
    counts,
    expectations,
    program,
    sample,
    statevector,
)
from kpt_lab.frontier.quantum.gates import KINDS, NAMES, shift_rule
from kpt_lab.frontier.quantum.layer import BACKENDS

STATE = {torch.complex128: 1e-12, torch.complex64: 1e-6}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products wait for the second thread longer than they take, on a machine that others use too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _script(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def qiskit() -> Any:
    return pytest.importorskip("qiskit")


@pytest.fixture(scope="module")
def states(qiskit: Any) -> ModuleType:
    """The benchmark's own circuits, of which the tests run fewer."""
    return _script("quantum_states")


# States


@pytest.mark.parametrize("name", NAMES)
def test_every_gate_is_qiskits(states: ModuleType, name: str) -> None:
    dice = random.Random(name)
    for _ in range(4):
        circuit = states.start(4, dice)
        states.append(circuit, name, dice)
        error = np.abs(statevector(circuit).numpy() - states.reference(circuit)).max()
        assert error < 1e-14


def test_at_least_25_gate_names_are_imported() -> None:
    assert len(NAMES) >= 25


@pytest.mark.parametrize("seed", range(40))
def test_random_circuits_are_qiskits(states: ModuleType, seed: int) -> None:
    circuit = states.random_circuit(seed)
    expected = states.reference(circuit)
    for dtype, bar in STATE.items():
        assert np.abs(statevector(circuit, dtype=dtype).numpy() - expected).max() < bar


@pytest.mark.parametrize("seed", range(8))
def test_random_circuits_are_aers(states: ModuleType, seed: int) -> None:
    pytest.importorskip("qiskit_aer")
    circuit = states.random_circuit(1000 + seed)
    assert np.abs(statevector(circuit).numpy() - states.aer_reference(circuit)).max() < 1e-12


def test_qubit_0_is_the_lowest_bit() -> None:
    assert statevector(Circuit(3, [Gate("x", [0])])).abs().argmax() == 1
    assert statevector(Circuit(3, [Gate("x", [2])])).abs().argmax() == 4


def test_a_batch_is_its_samples_one_by_one() -> None:
    circuit, values = _random(5, 60, seed=3), _values(4)
    together = statevector(circuit, values)
    for k in range(4):
        alone = statevector(circuit, {name: v[k] if v.dim() else v for name, v in values.items()})
        assert torch.allclose(together[k], alone, atol=1e-14, rtol=0)


def test_a_state_stays_normal_through_many_gates() -> None:
    state = statevector(_random(6, 2000, seed=1), _values(3))
    assert torch.allclose(state.abs().square().sum(1), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)


# Import


def test_affine_angles_and_the_global_phase_are_imported(qiskit: Any) -> None:
    from qiskit.circuit import Parameter, ParameterVector
    from qiskit.quantum_info import Statevector

    a, v = Parameter("a"), ParameterVector("v", 12)
    circuit = qiskit.QuantumCircuit(2, global_phase=0.3 - a / 2)
    circuit.ry(2 * a - v[10] / 3 + 0.5, 0)
    circuit.cu(a, -v[2], 0.25, v[2] + v[10] - a, 1, 0)
    circuit.rzz(0 * a + 0.7, 0, 1)
    circuit.measure_all()
    imported = Circuit.from_qiskit(circuit)
    assert imported.parameters == ("a", "v[2]", "v[10]")
    values = {"a": 0.4, "v[2]": -1.1, "v[10]": 2.3}
    bound = circuit.remove_final_measurements(inplace=False).assign_parameters(values)
    assert np.abs(statevector(imported, values).numpy() - Statevector(bound).data).max() < 1e-14


def _refused(qiskit: Any) -> Iterator[tuple[str, Any]]:
    from qiskit.circuit import Parameter
    from qiskit.circuit.library import QFTGate

    a, b = Parameter("a"), Parameter("b")
    for angle in (a * a, a * b, a.sin(), 1j * a):
        circuit = qiskit.QuantumCircuit(1)
        circuit.rx(angle, 0) if angle != 1j * a else circuit.append(qiskit.circuit.library.RXGate(angle), [0])
        yield "affine", circuit
    circuit = qiskit.QuantumCircuit(2, 2)
    circuit.measure(1, 0)
    circuit.h(0)
    circuit.cx(0, 1)
    yield "qubit 1 is measured before 'cx' acts on it; a measurement in mid-circuit", circuit
    circuit = qiskit.QuantumCircuit(2)
    circuit.reset(0)
    yield "instruction 'reset'", circuit
    circuit = qiskit.QuantumCircuit(2)
    circuit.initialize([1, 0, 0, 0])
    yield "instruction 'initialize'", circuit
    circuit = qiskit.QuantumCircuit(2)
    circuit.append(QFTGate(2), [0, 1])
    yield r"instruction 'qft'.*decompose", circuit
    circuit = qiskit.QuantumCircuit(2)
    circuit.cx(0, 1, ctrl_state=0)
    yield "instruction 'cx_o0'", circuit
    circuit = qiskit.QuantumCircuit(2, 1)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.x(0)
    yield "instruction 'if_else'", circuit


def test_what_cannot_be_imported_is_refused_by_name(qiskit: Any) -> None:
    cases = list(_refused(qiskit))
    assert len(cases) == 10
    for message, circuit in cases:
        with pytest.raises(ValueError, match=message):
            Circuit.from_qiskit(circuit)


def test_an_unbound_parameter_is_named(qiskit: Any) -> None:
    circuit = qiskit.QuantumCircuit(1)
    circuit.rx(qiskit.circuit.Parameter("theta"), 0)
    with pytest.raises(ValueError, match="parameter 'theta' of the circuit is unbound; values gives none"):
        statevector(circuit)
    with pytest.raises(ValueError, match="values names 'phi'; the circuit has theta"):
        statevector(circuit, {"theta": 1.0, "phi": 1.0})
    with pytest.raises(ValueError, match="parameter 'theta' of the circuit is unbound; input_params and weight_params gives x"):
        QuantumLayer(circuit, ["Z"], ["x"], [])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gate("foo", [0]), "gate 'foo' is not known; known are x, y"),
        (lambda: Gate("cx", [0, 0]), "each may stand there once"),
        (lambda: Gate("cx", [0]), "gate 'cx' has 1 qubits; it takes 2"),
        (lambda: Gate("rx", [0]), "gate 'rx' has 0 angles; it takes 1"),
        (lambda: Gate("rx", [0], [math.nan]), "accepted are finite numbers"),
        (lambda: Gate("mcx", [0]), "it takes 2 or more"),
        (lambda: Gate("x", [0], matrix=torch.eye(2)), "only 'unitary' takes one"),
        (lambda: Gate("unitary", [0], matrix=torch.ones(2, 2)), "not unitary: its U\\^H U differs from 1 by"),
        (lambda: Gate("unitary", [0], matrix=torch.ones(2, 3)), r"of shape \(2, 3\); it needs one of shape \(2, 2\)"),
        (lambda: Circuit(0, []), "qubits is 0"),
        (lambda: Circuit(2, [Gate("x", [2])]), "acts on qubit 2; the circuit has 0 to 1"),
        (lambda: Circuit(1, [Gate("rx", [0], ["a"])], ["b"]), "parameters lacks 'a'"),
        (lambda: Circuit(1, [], ["b", "b"]), "twice"),
        (lambda: statevector(Circuit(1, []), dtype=torch.float32), "accepted are torch.complex64"),
        (lambda: statevector(_random(2, 9, 1), {**_values(3), "x1": torch.ones(2)}), "batch sizes"),
        (lambda: statevector(_random(2, 9, 1), {**_values(3), "x1": torch.ones(2, 2)}), r"accepted are \(\) and \(B,\)"),
        (lambda: statevector(Circuit(1, [Gate("rx", [0], ["a"])]), {"a": torch.ones(0)}), "a batch of 0 samples"),
        (lambda: PauliSum({"ZA": 1.0}), "accepted are strings of I, X, Y and Z"),
        (lambda: PauliSum({"ZZ": 1.0, "Z": 1.0}), "another length"),
        (lambda: PauliSum({"Z": 1j}), "must be real"),
        (lambda: PauliSum({}), "at least one term"),
        (lambda: expectations(torch.ones(4) + 0j, ["Z"]), "observable 0 has 1 qubits; the circuit has 2"),
        (lambda: expectations(torch.ones(4), ["ZZ"]), "complex"),
        (lambda: expectations(torch.ones(3) + 0j, ["ZZ"]), r"\(2\^n,\)"),
        (lambda: sample(torch.ones(4) + 0j, 0), "shots is 0"),
        (lambda: counts(torch.zeros(2, 2), 1), r"\(shots,\) is needed"),
        (lambda: QuantumLayer(Circuit(1, []), ["Z"], [], [], backend="ibm"), "accepted are torch, aer"),
        (lambda: QuantumLayer(Circuit(1, []), "Z", [], []), r"give a list of them: \['Z'\]"),
        (lambda: QuantumLayer(Circuit(1, []), ["Z"], "x", []), "input_params is the string"),
        (lambda: QuantumLayer(Circuit(1, []), [], [], []), "observables is empty"),
        (lambda: QuantumLayer(_random(2, 9, 1), ["ZZ"], ["x0", "x0"], []), "twice"),
        (lambda: QuantumLayer(_random(2, 9, 1), ["ZZ"], ["x0"], ["x0"]), "can be one of them"),
        (lambda: _layer()(torch.ones(3, 5)), "a last dimension of 3 is needed"),
        (lambda: _layer()(torch.ones(3, 3, dtype=torch.int64)), "floating point"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: statevector("circuit"), lambda: expectations(torch.ones(2) + 0j, [3])])
def test_wrong_types_are_refused(make: Any) -> None:
    with pytest.raises(TypeError, match=r"is (str|int);"):
        make()


# Expectations and samples


@pytest.mark.parametrize("qubits", [1, 3, 5])
def test_expectations_are_those_of_dense_operators(qubits: int) -> None:
    letters = {
        "I": np.eye(2), "X": np.array([[0, 1], [1, 0]]), "Y": np.array([[0, -1j], [1j, 0]]), "Z": np.diag([1, -1]),
    }  # fmt: skip
    dice = random.Random(qubits)
    sums = [{"".join(dice.choices("IXYZ", k=qubits)): dice.uniform(-2, 2) for _ in range(6)} for _ in range(5)]
    state = torch.randn(3, 2**qubits, dtype=torch.complex128)
    found = expectations(state, sums)
    for number, one in enumerate(sums):
        dense = np.zeros((2**qubits, 2**qubits), dtype=complex)
        for label, coefficient in one.items():
            string = np.eye(1)
            for letter in label:
                string = np.kron(string, letters[letter])
            dense += coefficient * string
        for k in range(3):
            vector = state[k].numpy()
            assert abs(np.vdot(vector, dense @ vector).real - float(found[k, number])) < 1e-12
    assert torch.allclose(expectations(state[1], sums), found[1], atol=1e-12, rtol=0)


def test_qiskits_operators_are_taken(qiskit: Any) -> None:
    from qiskit.quantum_info import Pauli, SparsePauliOp

    state = statevector(_random(3, 40, seed=5), _values(2))
    operator = SparsePauliOp.from_list([("XYZ", 0.25), ("IIZ", -2.0)])
    assert torch.equal(expectations(state, [operator, Pauli("XXI")]), expectations(state, [{"XYZ": 0.25, "IIZ": -2.0}, "XXI"]))
    with pytest.raises(ValueError, match="must be real"):
        expectations(state, [1j * operator])
    with pytest.raises(ValueError, match="has a phase"):
        expectations(state, [Pauli("-XXI")])


def test_samples_come_as_often_as_the_state_says() -> None:
    state = statevector(_random(4, 60, seed=2), _values(2))
    shots = 200_000
    outcomes = sample(state, shots, generator=torch.Generator().manual_seed(1))
    assert outcomes.shape == (2, shots)
    for k in range(2):
        chances = state[k].abs().square()
        seen = torch.bincount(outcomes[k], minlength=16) / shots
        assert ((seen - chances).abs() <= 5 * (chances * (1 - chances) / shots).sqrt() + 1e-12).all()


def test_counts_are_written_as_qiskit_does() -> None:
    state = statevector(Circuit(3, [Gate("x", [0])]))
    assert counts(sample(state, 7), 3) == {"001": 7}


def test_an_outcome_of_no_chance_never_comes() -> None:
    outcomes = sample(statevector(Circuit(2, [Gate("h", [1])])), 20_000)
    assert set(outcomes.tolist()) == {0, 2}


# Gradients


def _random(qubits: int, gates: int, seed: int, names: tuple[str, ...] = tuple(KINDS)) -> Circuit:
    """Gates with fixed angles and angles affine in inputs x0..x2 and weights w0..w3, some in both."""
    dice, made = random.Random(seed), []
    for _ in range(gates):
        kind = KINDS[name := dice.choice(names)]
        count = 0 if name == "global_phase" else kind.qubits or dice.randint(2, max(2, qubits))
        if count > qubits:
            continue
        angles: list[float | Angle] = []
        for _ in range(kind.angles):
            x, w = f"x{dice.randrange(3)}", f"w{dice.randrange(4)}"
            terms: tuple[tuple[str, float], ...] = dice.choice([((x, 0.7),), ((w, -1.3),), ((x, 0.4), (w, 1.1))])
            angles.append(Angle(dice.uniform(-1, 1), terms) if dice.random() < 0.8 else dice.uniform(-3, 3))
        made.append(Gate(name, dice.sample(range(qubits), count), angles))
    return Circuit(qubits, made, ["x0", "x1", "x2", "w0", "w1", "w2", "w3"])


def _values(batch: int) -> dict[str, Tensor]:
    found = {f"x{k}": torch.randn(batch, dtype=torch.float64) for k in range(3)}
    return found | {f"w{k}": torch.randn((), dtype=torch.float64) for k in range(4)}


def _layer(backend: str = "torch", qubits: int = 3, seed: int = 4, gates: int = 40) -> QuantumLayer:
    sums = ["Z" * qubits, {"X" * qubits: 0.5, "I" * qubits: 0.7}]
    return QuantumLayer(_random(qubits, gates, seed), sums, ["x2", "x0", "x1"], ["w3", "w0", "w1", "w2"], backend)


def test_shift_rules_are_the_known_two_and_four_terms() -> None:
    root, two, four = math.sqrt(2), dict(shift_rule(1.0, 1)), dict(shift_rule(0.5, 2))
    assert list(two) == pytest.approx([math.pi / 2, 3 * math.pi / 2])
    assert list(two.values()) == pytest.approx([0.5, -0.5])
    assert list(four) == pytest.approx([k * math.pi / 2 for k in (1, 3, 5, 7)])
    near, far = (root + 1) / (4 * root), (root - 1) / (4 * root)
    assert list(four.values()) == pytest.approx([near, -far, far, -near])


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.angles])
def test_gradients_are_parameter_shifts_of_qiskits_states(states: ModuleType, name: str) -> None:
    from qiskit.quantum_info import SparsePauliOp, Statevector

    dice, kind = random.Random(name), KINDS[name]
    names = [f"a{k}" for k in range(kind.angles)]
    start = [Gate("u", [q], [dice.uniform(-3, 3) for _ in range(3)]) for q in range(4)]
    qubits = dice.sample(range(4), 0 if name == "global_phase" else kind.qubits or 3)
    circuit = Circuit(4, [*start, Gate("cx", [0, 1]), Gate(name, qubits, names), *start, Gate("cx", [3, 2])])
    values = {n: torch.tensor(dice.uniform(-3, 3), dtype=torch.float64, requires_grad=True) for n in names}
    operator = SparsePauliOp.from_list([("ZXYI", 1.0), ("IZZX", 0.7)])
    expectations(statevector(circuit, values), [operator]).sum().backward()

    def value(**changed: float) -> float:
        numbers = {n: v.item() for n, v in values.items()} | changed
        bound = states.to_qiskit(circuit, numbers)
        return float(Statevector(bound).expectation_value(operator).real)

    for parameter, rule in zip(names, kind.shifts, strict=True):
        at = values[parameter].item()
        expected = sum(weight * value(**{parameter: at + shift}) for shift, weight in shift_rule(*rule))
        gradient = values[parameter].grad
        assert gradient is not None
        assert abs(float(gradient) - expected) < 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_gradcheck_of_expectations_and_states(seed: int) -> None:
    circuit, given = _random(3, 30, seed), _values(2)
    names = list(given)
    leaves = [value.requires_grad_() for value in given.values()]

    def both(*values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = statevector(circuit, dict(zip(names, values, strict=True)))
        return expectations(state, ["ZXY", {"IIZ": 0.5, "YXI": -1.0}]), state.real, state.imag

    assert torch.autograd.gradcheck(both, leaves)


def test_gradients_are_the_same_in_many_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        torch.manual_seed(5)
        leaves = {name: value.requires_grad_() for name, value in _values(3).items()}
        expectations(statevector(_random(4, 200, 7), leaves), ["ZZXY"]).sum().backward()
        return [leaf.grad for leaf in leaves.values() if leaf.grad is not None]

    whole = gradients()
    monkeypatch.setattr("kpt_lab.frontier.quantum.program.SEGMENT", 64)
    monkeypatch.setattr("kpt_lab.frontier.quantum.program.ROWS", 32)
    monkeypatch.setattr("kpt_lab.frontier.quantum.program.TABLES", 600)
    parts = gradients()
    assert len(whole) == 7
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    values = _values(2)
    values["w1"].requires_grad_()
    expectations(statevector(_random(3, 60, 1), values), ["ZZZ"]).sum().backward()
    assert [name for name, value in values.items() if value.grad is not None] == ["w1"]


def test_single_precision_gradients_follow_double() -> None:
    found = []
    for dtype in (torch.complex128, torch.complex64):
        torch.manual_seed(5)
        leaves = {name: value.requires_grad_() for name, value in _values(4).items()}
        expectations(statevector(_random(6, 150, 3), leaves, dtype=dtype), ["ZZXYIZ", "XIIIIZ"]).sum().backward()
        found.append(torch.cat([leaf.grad.reshape(-1) for leaf in leaves.values() if leaf.grad is not None]))
    assert (found[0] - found[1]).abs().max() < 1e-4 * found[0].abs().max()


@pytest.mark.parametrize(("qubits", "threads"), [(10, 1), (11, 3)])
def test_small_states_stay_on_one_thread(qubits: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, and the setting is put back, also where the work fails."""
    seen: list[int] = []
    for name in ("apply", "undo"):
        own = getattr(program.Dense, name)
        monkeypatch.setattr(
            program.Dense, name, lambda *given, _own=own: (seen.append(torch.get_num_threads()), _own(*given))[1]
        )
    layer = QuantumLayer(Circuit(qubits, [Gate("rx", [q], ["x"]) for q in range(qubits)]), ["Z" * qubits], ["x"], [])
    torch.set_num_threads(3)
    layer(torch.rand(32, 1, requires_grad=True)).sum().backward()
    assert len(seen) >= 2
    assert set(seen) == {threads}
    assert torch.get_num_threads() == 3
    monkeypatch.setattr(program.Dense, "apply", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layer(torch.rand(32, 1))
    assert torch.get_num_threads() == 3


def test_memory_does_not_grow_with_depth() -> None:
    memory = _script("quantum_memory")
    few, many = (memory.peak(qubits=12, batch=32, depth=depth) for depth in (10, 100))
    assert few > 2 * 32 * 2**12 * 16
    assert abs(many / few - 1) < 0.1


# The layer


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_is_the_circuit_for_any_leading_shape(backend: str) -> None:
    if backend == "aer":
        pytest.importorskip("qiskit_aer")
    layer = _layer(backend)
    x = torch.randn(2, 3, 3)
    out = layer(x)
    assert out.shape == (2, 3, 2)
    assert out.dtype == torch.float32
    given = {"x2": x[0, 1, 0], "x0": x[0, 1, 1], "x1": x[0, 1, 2]}
    weights = dict(zip(["w3", "w0", "w1", "w2"], layer.weight.detach(), strict=True))
    expected = expectations(statevector(layer.circuit, given | weights), layer.observables.sums)
    assert torch.allclose(out[0, 1].double(), expected, atol=1e-6, rtol=0)
    assert torch.allclose(layer(x[0, 1]), out[0, 1], atol=1e-6, rtol=0)
    assert layer(x[:0]).shape == (0, 3, 2)


@pytest.mark.parametrize("seed", range(3))
def test_backends_agree_in_values_and_gradients(seed: int) -> None:
    pytest.importorskip("qiskit_aer")
    ours, aer = _layer("torch", seed=seed), _layer("aer", seed=seed)
    aer.load_state_dict(ours.state_dict())
    x, upstream = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    found = []
    for layer in (ours.double(), aer.double()):
        inputs = x.clone().requires_grad_()
        out = layer(inputs)
        out.backward(upstream)
        found.append((out, inputs.grad, layer.weight.grad))
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        assert (a - b).abs().max() < 1e-10


def test_aer_missing_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qiskit_aer", None)
    with pytest.raises(ModuleNotFoundError, match="backend 'aer' needs the packages qiskit and qiskit-aer"):
        _layer("aer")


def test_layer_survives_copy_and_pickle_and_state_dict() -> None:
    layer, x = _layer(), torch.randn(4, 3)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    fresh = _layer()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))


def test_layer_learns_a_target() -> None:
    layer = QuantumLayer(Circuit(1, [Gate("rx", [0], ["x"]), Gate("ry", [0], ["w"])]), ["Z"], ["x"], ["w"])
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    x = torch.linspace(-1, 1, 16)[:, None]
    for _ in range(200):
        optimiser.zero_grad()
        loss = (layer(x) + x.cos()).square().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1e-4


@pytest.mark.gpu
def test_states_and_gradients_on_a_gpu_are_the_cpus() -> None:
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(5)
        leaves = {name: value.to(device).requires_grad_() for name, value in _values(4).items()}
        value = expectations(statevector(_random(7, 150, 3), leaves), ["ZZXYIZI", "XIIIIZZ"])
        value.sum().backward()
        found.append(
            torch.cat([value.reshape(-1).cpu(), *(v.grad.reshape(-1).cpu() for v in leaves.values() if v.grad is not None)])
        )
    assert (found[0] - found[1]).abs().max() < 1e-11
