"""Models with hybrid sublayers, optimised beside the same models without: the front door `QuantumHybridOptimizer`.

Everything is simulated here. What comes out can say how well a hybrid model fits, and what it costs in parameters and evaluations; it
says nothing about the time on a quantum computer, and claims no quantum speedup.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kpt_lab.core import Metric
from kpt_lab.frontier.quantum import sublayers

Loss = Callable[[nn.Module], Tensor]
METHODS = ("adjoint", "spsa")
DEVICES = {"IBM_Quantum": "torch"}  # asked for by name, simulated here
BACKENDS = ("torch", "aer", *DEVICES)
STEPS, RATE = 50, 0.05
# Gain sequences a / (k + 1 + A)^0.602 and c / (k + 1)^0.101 (Spall, IEEE Trans. Aerosp. Electron. Syst. 34, 817, 1998)
_SPSA_DECAY, _SPSA_WIDTH_DECAY, _SPSA_WIDTH = 0.602, 0.101, 0.05


@dataclass(frozen=True)
class Run:
    """One optimisation: the model with its best parameters, the loss of each step, evaluations of the loss, trained parameters."""

    model: nn.Module
    history: tuple[float, ...]
    evaluations: int
    trained: int
    loss: float


@dataclass(frozen=True)
class HybridResult:
    """What `quantum_optimize` returns: the hybrid run, the baseline's run, and what stands behind them.

    parameters: the hybrid model's trained parameters by name, at the lowest loss seen. replaced: names of the sublayers, by kind.
    metrics:    the hybrid loss, and the baseline's minus it (above 0 the hybrid model fits better): both simulated.
    """

    hybrid: Run
    baseline: Run
    parameters: Mapping[str, Tensor]
    replaced: Mapping[str, Sequence[str]]
    settings: Mapping[str, object]
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The hybrid model with its best parameters."""
        return self.hybrid.model

    @property
    def history(self) -> tuple[float, ...]:
        """The hybrid model's loss at every step."""
        return self.hybrid.history

    def report(self) -> str:
        """What was done and found, in sentences, with what it does not show."""
        settings, names = self.settings, [name for found in self.replaced.values() for name in found]
        asked = settings["backend"]
        device = (
            f"{asked} was not used: it is simulated on this machine" if asked in DEVICES else f"Backend {asked}, a simulation"
        )
        shape = f"{settings['qubits']} qubits, depth {settings['depth']}" + (
            "" if settings["entangle"] else ", no entanglement"
        )
        return "\n".join(
            [
                f"{device}, by exact states without noise and without shots.",
                f"Replaced {len(names)} sublayer{'s' * (len(names) != 1)} ({', '.join(names)}), {shape} each.",
                f"Hybrid: loss {self.hybrid.loss:.6g}, {self.hybrid.trained} parameters, {self.hybrid.evaluations} evaluations.",
                f"Baseline, without hybrid layers: loss {self.baseline.loss:.6g}, {self.baseline.trained} parameters, "
                f"{self.baseline.evaluations} evaluations, the same optimiser ({settings['method']}).",
                "The two differ in their parameters, so the losses alone don't say what the circuit adds; one seed, no interval.",
                "No quantum speedup is shown or claimed: a simulator's time says nothing about a device's.",
            ]
        )

    __str__ = report


class QuantumHybridOptimizer:
    """Puts hybrid quantum-classical sublayers into a copy of a model, and optimises it beside the model as it was.

    classical_model: an nn.Module with attention (nn.MultiheadAttention) or feed-forward sublayers, found by structure; not changed.
    quantum_backend: "torch" or "aer", or "IBM_Quantum", which is simulated here by "torch"; the report says so.
    hybrid_layers:   "attention", "feedforward" or both. qubits, depth: of each circuit, 4 and 2 by default.
    entangle:        False leaves out the CX gates: the ablation that shows whether entanglement does anything.
    seed:            draws the new weights, and the steps of SPSA.
    Raises ValueError for an unknown backend or kind, a model without such a sublayer, and qubits or depth below 1.
    """

    def __init__(
        self,
        classical_model: nn.Module,
        quantum_backend: str = "torch",
        hybrid_layers: Sequence[str] = ("feedforward",),
        *,
        qubits: int = sublayers.QUBITS,
        depth: int = sublayers.DEPTH,
        entangle: bool = True,
        seed: int = 0,
    ) -> None:
        if not isinstance(classical_model, nn.Module):
            raise ValueError(f"classical_model is {type(classical_model).__name__}; an nn.Module is needed")
        if quantum_backend not in BACKENDS:
            raise ValueError(f"quantum_backend is {quantum_backend!r}; accepted are {', '.join(BACKENDS)}")
        for name, value in (("qubits", qubits), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} is {value}; at least 1 is needed")
        self.classical_model, self.seed = classical_model, seed
        backend = DEVICES.get(quantum_backend, quantum_backend)
        self.hybrid_model, self.replaced = hybrid_copy(classical_model, hybrid_layers, qubits, depth, backend, entangle, seed)
        self._settings = {"backend": quantum_backend, "qubits": qubits, "depth": depth, "entangle": entangle}

    def quantum_optimize(
        self, loss_landscape: Loss, *, method: str = "adjoint", steps: int = STEPS, learning_rate: float = RATE
    ) -> HybridResult:
        """Minimise `loss_landscape(model) -> scalar tensor` over all trainable parameters, of the hybrid model and of the baseline.

        method: "adjoint" (Adam on exact gradients, one evaluation a step) or "spsa" (two evaluations a step, no gradient).
        Both runs get the same optimiser, steps, learning rate, seed and number of evaluations. Each keeps the parameters of the lowest
        loss it saw. Raises ValueError for an unknown method, steps below 1, and a loss that is not a finite scalar tensor.
        """
        if not callable(loss_landscape):
            raise ValueError(
                f"loss_landscape is {type(loss_landscape).__name__}; a function from the model to a scalar loss is needed"
            )
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; accepted are {', '.join(METHODS)}")
        if steps < 1:
            raise ValueError(f"steps is {steps}; at least 1 is needed")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}; it must be above 0")
        minimise = _adjoint if method == "adjoint" else _spsa
        runs = []
        for model in (self.hybrid_model, self.classical_model):
            with torch.random.fork_rng(devices=_devices(model)):
                torch.manual_seed(self.seed)
                runs.append(minimise(copy.deepcopy(model), loss_landscape, steps, learning_rate))
        hybrid, baseline = runs
        parameters = {name: p.detach().clone() for name, p in hybrid.model.named_parameters() if p.requires_grad}
        metrics = {
            "hybrid_loss": Metric(hybrid.loss, "1", "simulated"),
            "loss_difference": Metric(baseline.loss - hybrid.loss, "1", "simulated"),
        }
        settings = self._settings | {"method": method, "steps": steps, "learning_rate": learning_rate, "seed": self.seed}
        return HybridResult(hybrid, baseline, parameters, self.replaced, settings, metrics)


def hybrid_copy(
    model: nn.Module, hybrid_layers: Sequence[str], qubits: int, depth: int, backend: str, entangle: bool, seed: int
) -> tuple[nn.Module, dict[str, list[str]]]:
    """A copy of the model with hybrid sublayers, new weights drawn with `seed`, and the names of what was replaced."""
    kinds = [hybrid_layers] if isinstance(hybrid_layers, str) else list(hybrid_layers)
    if unknown := [kind for kind in kinds if kind not in sublayers.KINDS]:
        raise ValueError(f"hybrid_layers names {unknown[0]!r}; accepted are {', '.join(sublayers.KINDS)}")
    if not kinds:
        raise ValueError(f"hybrid_layers is empty; accepted are {', '.join(sublayers.KINDS)}")
    found = sublayers.find(model, kinds)
    if missing := [kind for kind, names in found.items() if not names]:
        raise ValueError(
            f"the model has no {missing[0]} sublayer that can be replaced: nn.MultiheadAttention, the feed-forward part of nn.Transformer's "
            "layers, and modules of two nn.Linear, width -> h -> width, with an activation are"
        )
    made = copy.deepcopy(model)
    with torch.random.fork_rng(devices=_devices(model)):
        torch.manual_seed(seed)
        sublayers.replace(made, found, qubits, depth, backend, entangle)
    return made, found


def _value(loss: Loss, model: nn.Module) -> Tensor:
    found = loss(model)
    if not isinstance(found, Tensor) or found.numel() != 1:
        came = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"loss_landscape returned {came}; a scalar tensor is needed")
    if not math.isfinite(found.item()):
        raise ValueError(f"loss_landscape returned {found.item()}; a finite loss is needed")
    return found.reshape(())


def _devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})


def _trained(model: nn.Module) -> list[nn.Parameter]:
    found = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise ValueError("the model has no trainable parameter; at least one must require a gradient")
    return found


class _Best:
    """The lowest loss seen and the parameters there."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters, self.loss = parameters, math.inf
        self.values = [p.detach().clone() for p in parameters]

    def see(self, loss: float) -> None:
        if loss < self.loss:
            self.loss = loss
            self.values = [p.detach().clone() for p in self.parameters]

    def run(self, model: nn.Module, history: Sequence[float], evaluations: int) -> Run:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.values, strict=True):
                parameter.copy_(value)
        return Run(model, tuple(history), evaluations, sum(p.numel() for p in self.parameters), self.loss)


def _adjoint(model: nn.Module, loss: Loss, steps: int, rate: float) -> Run:
    parameters = _trained(model)
    optimiser, best, history = torch.optim.Adam(parameters, lr=rate), _Best(parameters), []
    for _ in range(steps):
        optimiser.zero_grad()
        value = _value(loss, model)
        if not value.requires_grad:
            raise ValueError(
                "loss_landscape returned a loss without a gradient; compute it from the model's output, or use method 'spsa'"
            )
        value.backward()
        history.append(value.item())
        best.see(history[-1])
        optimiser.step()
    return best.run(model, history, steps)


@torch.no_grad()
def _spsa(model: nn.Module, loss: Loss, steps: int, rate: float) -> Run:
    parameters = _trained(model)
    best, history = _Best(parameters), []

    def move(signs: Sequence[Tensor], by: float) -> None:
        for parameter, sign in zip(parameters, signs, strict=True):
            parameter.add_(sign, alpha=by)

    for k in range(steps):
        width = _SPSA_WIDTH / (k + 1) ** _SPSA_WIDTH_DECAY
        signs = [torch.randint(0, 2, p.shape, device=p.device).to(p.dtype) * 2 - 1 for p in parameters]
        move(signs, width)
        above = _value(loss, model).item()
        best.see(above)
        move(signs, -2 * width)
        below = _value(loss, model).item()
        best.see(below)
        slope = (above - below) / (2 * width)
        move(signs, width - rate * (0.1 * steps + 1) ** _SPSA_DECAY / (k + 1 + 0.1 * steps) ** _SPSA_DECAY * slope)
        history.append((above + below) / 2)
    return best.run(model, history, 2 * steps)
