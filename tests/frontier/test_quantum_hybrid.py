"""Hybrid sublayers: found by structure, put in place, optimised beside the baseline, and measured as a Technique."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kpt_lab as kpt
from kpt_lab.core import Incomparable, Trial
from kpt_lab.frontier.quantum import HybridResult, QuantumHybridOptimizer, QuantumLayer, hybrid
from kpt_lab.frontier.quantum.sublayers import HybridAttention, HybridFeedForward, ansatz, find


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products wait for the second thread longer than they take, on a machine that others use too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Residual(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Functional(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.up(x)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.mlp = nn.MultiheadAttention(width, 2, batch_first=True), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


class Classifier(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.block, self.head = Block(width), nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


def _data() -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 3, 6, generator=torch.Generator().manual_seed(1))
    return x, (x.sum((1, 2)) > 0).long()


def _landscape(model: nn.Module) -> Tensor:
    x, y = _data()
    return nn.functional.cross_entropy(model(x), y)


def _encoder(**settings: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0, **settings)


# Structure


def test_sublayers_are_found_by_structure() -> None:
    model = nn.Sequential(Classifier(), nn.TransformerEncoder(_encoder(), 2, enable_nested_tensor=False))
    assert find(model, ["attention", "feedforward"]) == {
        "attention": ["0.block.attention", "1.layers.0.self_attn", "1.layers.1.self_attn"],
        "feedforward": ["0.block.mlp", "1.layers.0", "1.layers.1"],
    }


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4)),
        nn.Sequential(nn.ReLU(), nn.Linear(4, 8), nn.Linear(8, 4)),
        Residual(4),
        nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
    ],
)
def test_what_is_no_feed_forward_is_left(module: nn.Module) -> None:
    assert find(nn.Sequential(module), ["feedforward"]) == {"feedforward": []}


def test_two_linear_layers_are_no_feed_forward_whatever_their_weights() -> None:
    """With some weights ReLU is the identity on most inputs."""
    for seed in range(300):
        torch.manual_seed(seed)
        linear = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
        assert find(nn.Sequential(linear), ["feedforward"]) == {"feedforward": []}
        assert find(nn.Sequential(Functional(4)), ["feedforward"]) == {"feedforward": ["0"]}


def test_a_feed_forward_may_call_its_activation_as_a_function() -> None:
    assert find(nn.Sequential(Functional(4), nn.Dropout()), ["feedforward"]) == {"feedforward": ["0"]}


def test_the_ansatz_has_its_stated_size() -> None:
    assert [gate.name for gate in ansatz(2, 1).gates] == ["rx", "rx", "ry", "rz", "ry", "rz", "cx", "cx"]
    assert "cx" not in {gate.name for gate in ansatz(3, 2, entangle=False).gates}
    assert len(ansatz(3, 2).parameters) == 3 + 2 * 2 * 3


def test_replaced_sublayers_are_hybrid_and_the_model_passed_is_untouched() -> None:
    model = Classifier()
    before = copy.deepcopy(model.state_dict())
    made = QuantumHybridOptimizer(model, "torch", ["attention", "feedforward"], qubits=3, depth=1)
    assert isinstance(made.hybrid_model.block.attention, HybridAttention)
    assert isinstance(made.hybrid_model.block.mlp, HybridFeedForward)
    assert made.hybrid_model.block.mlp.features.circuit.circuit.qubits == 3
    assert isinstance(model.block.mlp, MLP)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = QuantumHybridOptimizer(model, "torch", ["attention", "feedforward"], qubits=3, depth=1)
    for a, b in zip(made.hybrid_model.parameters(), again.hybrid_model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm_first", [False, True])
def test_pytorchs_own_layers_run_in_both_modes(norm_first: bool) -> None:
    encoder = nn.TransformerEncoder(_encoder(norm_first=norm_first), 2, enable_nested_tensor=not norm_first)
    made = QuantumHybridOptimizer(encoder, "torch", ["attention", "feedforward"], qubits=2, depth=1).hybrid_model
    x = torch.randn(3, 4, 6)
    padding = torch.tensor([[False, False, False, True]] * 3)
    trained = made.train()(x, src_key_padding_mask=padding)
    with torch.no_grad():
        evaluated = made.eval()(x, src_key_padding_mask=padding)
    assert torch.allclose(trained, evaluated, atol=1e-6)
    changed = x.clone()
    changed[:, 3] += 1.0
    with torch.no_grad():
        assert torch.allclose(made(changed, src_key_padding_mask=padding)[:, :3], evaluated[:, :3], atol=1e-6)


def test_hybrid_attention_is_its_formula_and_is_called_as_pytorchs() -> None:
    layer = HybridAttention(6, 2, 1, batch_first=False)
    query, key, value = torch.randn(5, 3, 6), torch.randn(7, 3, 6), torch.randn(7, 3, 6)
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[:, 4:] = True
    out, weights = layer(query, key, value, attn_mask=mask)
    q, k = layer.query(query.transpose(0, 1)), layer.key(key.transpose(0, 1))
    expected = torch.softmax((torch.einsum("blf,bsf->bls", q, k) / math.sqrt(2)).masked_fill(mask, -math.inf), -1)
    assert torch.allclose(weights, expected, atol=1e-6)
    assert torch.allclose(out.transpose(0, 1), layer.out(expected @ layer.value(value.transpose(0, 1))), atol=1e-5)
    alone, _ = layer(query[:, 0], key[:, 0], value[:, 0], attn_mask=mask)
    assert torch.allclose(alone, out[:, 0], atol=1e-5)
    assert layer(query, key, value, need_weights=False)[1] is None
    with pytest.raises(ValueError, match="one head"):
        layer(query, key, value, attn_mask=torch.zeros(6, 5, 7))


# Optimising


def _short(result: HybridResult) -> tuple[Any, ...]:
    return result.history, result.baseline.history


def test_the_call_of_the_issue_runs_as_written_and_says_that_it_simulates() -> None:
    optimizer = QuantumHybridOptimizer(
        classical_model=Classifier(), quantum_backend="IBM_Quantum", hybrid_layers=["attention", "feedforward"]
    )
    result = optimizer.quantum_optimize(_landscape)
    assert len(result.history) == len(result.baseline.history) == 50
    assert result.hybrid.evaluations == result.baseline.evaluations == 50
    assert result.hybrid.loss == min(result.history) < result.history[0]
    assert _landscape(result.model).item() == pytest.approx(result.hybrid.loss, abs=1e-6)
    assert _landscape(result.baseline.model).item() == pytest.approx(result.baseline.loss, abs=1e-6)
    assert set(result.parameters) == {name for name, _ in result.model.named_parameters()}
    report = result.report()
    for sentence in (
        "IBM_Quantum was not used: it is simulated on this machine",
        "Replaced 2 sublayers (block.attention, block.mlp), 4 qubits, depth 2 each.",
        f"Baseline, without hybrid layers: loss {result.baseline.loss:.6g}",
        "No quantum speedup is shown or claimed",
    ):
        assert sentence in report
    assert {metric.provenance for metric in result.metrics.values()} == {"simulated"}
    assert result.metrics["loss_difference"].value == result.baseline.loss - result.hybrid.loss


@pytest.mark.parametrize("method", ["adjoint", "spsa"])
def test_a_run_repeats_exactly_and_changes_neither_model(method: str) -> None:
    optimizer = QuantumHybridOptimizer(Classifier(), "torch", ["feedforward"], qubits=2, depth=1, entangle=False)
    before = copy.deepcopy(optimizer.hybrid_model.state_dict())
    state = torch.get_rng_state()
    first = optimizer.quantum_optimize(_landscape, method=method, steps=6, learning_rate=0.02)
    assert torch.equal(torch.get_rng_state(), state)
    assert _short(first) == _short(optimizer.quantum_optimize(_landscape, method=method, steps=6, learning_rate=0.02))
    assert all(torch.equal(value, before[name]) for name, value in optimizer.hybrid_model.state_dict().items())
    assert first.hybrid.evaluations == (6 if method == "adjoint" else 12)
    assert "2 qubits, depth 1, no entanglement" in str(first)


def test_spsa_finds_the_minimum_of_a_bowl() -> None:
    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at, self.mlp = nn.Parameter(torch.tensor([1.0, -2.0])), MLP(2)
            self.mlp.requires_grad_(False)

    optimizer = QuantumHybridOptimizer(Bowl(), "torch", ["feedforward"], qubits=1, depth=1)
    optimizer.hybrid_model.mlp.requires_grad_(False)
    result = optimizer.quantum_optimize(lambda model: model.at.square().sum(), method="spsa", steps=300, learning_rate=0.1)
    assert result.hybrid.trained == result.baseline.trained == 2
    assert result.hybrid.loss < 0.02
    assert result.baseline.loss < 0.02


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantumHybridOptimizer(Classifier(), "Rigetti"), "accepted are torch, aer, IBM_Quantum"),
        (
            lambda: QuantumHybridOptimizer(Classifier(), hybrid_layers=["mlp"]),
            "names 'mlp'; accepted are attention, feedforward",
        ),
        (lambda: QuantumHybridOptimizer(Classifier(), hybrid_layers=[]), "hybrid_layers is empty"),
        (lambda: QuantumHybridOptimizer(nn.Linear(2, 2)), "no feedforward sublayer that can be replaced"),
        (lambda: QuantumHybridOptimizer(torch.relu), "an nn.Module is needed"),
        (lambda: QuantumHybridOptimizer(Classifier(), qubits=0), "qubits is 0"),
        (lambda: QuantumHybridOptimizer(Classifier(), depth=0), "depth is 0"),
        (lambda: _optimise(3), "a function from the model to a scalar loss is needed"),
        (lambda: _optimise(lambda m: m(_data()[0])), r"a tensor of shape \(12, 2\); a scalar tensor is needed"),
        (lambda: _optimise(lambda m: 1.0), "returned float"),
        (lambda: _optimise(lambda m: _landscape(m) * math.inf), "a finite loss is needed"),
        (lambda: _optimise(lambda m: _landscape(m).detach()), "without a gradient"),
        (lambda: _optimise(_landscape, method="vqe"), "accepted are adjoint, spsa"),
        (lambda: _optimise(_landscape, steps=0), "steps is 0"),
        (lambda: _optimise(_landscape, learning_rate=0.0), "must be above 0"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def _optimise(loss: Any, **settings: Any) -> HybridResult:
    return QuantumHybridOptimizer(Classifier(), qubits=1, depth=1).quantum_optimize(loss, **settings)


# As a Technique


def test_backends_are_the_same_model() -> None:
    pytest.importorskip("qiskit_aer")
    model, x = Classifier().double(), _data()[0][:2].double()
    torch.set_default_dtype(torch.float64)
    try:
        made = [QuantumHybridOptimizer(model, name, ["feedforward"], qubits=2, depth=1) for name in ("torch", "aer")]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(made[0].hybrid_model(x), made[1].hybrid_model(x), atol=1e-10, rtol=0)


def _measured() -> tuple[Trial, Trial]:
    workload = kpt.workload(Classifier(), _data()[0])
    techniques = [kpt.baselines.eager, hybrid(qubits=2, depth=1)]
    trials = kpt.measure(workload, techniques, processes=0, budget=0.2)
    (eager,), (made,) = trials.where(technique="eager"), trials.where(technique=hybrid.name)
    return eager, made


def test_measured_as_a_technique_its_clock_is_simulation_time_and_no_ratio_is_formed() -> None:
    eager, made = _measured()
    assert made.status == "ok", made.advice
    assert made.simulates == "IBM_Quantum"
    assert "time" not in made.metrics
    assert "simulation_time" in made.metrics
    assert made.metrics["gates"].provenance == "modelled"
    assert made.metrics["gates"].value == len(ansatz(2, 1).gates)
    with pytest.raises(Incomparable):
        kpt.speedup(made, eager)


def test_the_definition_is_the_same_mathematics() -> None:
    model, x = Classifier(), _data()[0]
    assert hybrid.definition is not None
    fast, slow = (
        hybrid.apply(model, (x,), layers="attention+feedforward"),
        hybrid.definition(model, (x,), layers="attention+feedforward"),
    )
    assert {part.backend for part in slow.modules() if isinstance(part, QuantumLayer)} == {"reference"}
    assert torch.allclose(fast(x), slow(x), atol=1e-5)
