"""Hybrid sublayers of transformers: a linear map to a few angles, a circuit, and a linear map back; found and put in by structure."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kpt_lab.frontier.quantum.circuit import Circuit, Gate
from kpt_lab.frontier.quantum.layer import QuantumLayer

_gelu = nn.functional.gelu
_FUNCTIONS = (torch.relu, _gelu, partial(_gelu, approximate="tanh"), nn.functional.silu, torch.tanh, torch.sigmoid)
KINDS = ("attention", "feedforward")
QUBITS, DEPTH = 4, 2  # of each hybrid sublayer, unless asked otherwise
_BETWEEN = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Hardswish, nn.Dropout, nn.Identity,
)  # fmt: skip
_ENCODERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def ansatz(qubits: int, depth: int, *, entangle: bool = True) -> Circuit:
    """RX by an input on each qubit, then in each of `depth` layers RY and RZ by weights, and a ring of CX unless told otherwise."""
    gates = [Gate("rx", [q], [f"x{q}"]) for q in range(qubits)]
    for layer in range(depth):
        gates += [Gate(name, [q], [f"w{layer}_{name}_{q}"]) for q in range(qubits) for name in ("ry", "rz")]
        if entangle and qubits > 1:
            gates += [Gate("cx", [q, (q + 1) % qubits]) for q in range(qubits)]
    return Circuit(qubits, gates)


def circuit_layer(qubits: int, depth: int, backend: str, entangle: bool) -> QuantumLayer:
    """x (..., qubits) in radians -> Z of each qubit (..., qubits)."""
    circuit = ansatz(qubits, depth, entangle=entangle)
    names = circuit.parameters
    observables = ["I" * (qubits - 1 - q) + "Z" + "I" * q for q in range(qubits)]
    return QuantumLayer(circuit, observables, names[:qubits], names[qubits:], backend)


class Features(nn.Module):
    """x (..., width) -> (..., qubits) between -1 and 1: a linear map, pi times its tanh as angles, a circuit, Z of each qubit."""

    def __init__(self, width: int, qubits: int, depth: int, backend: str, entangle: bool) -> None:
        super().__init__()
        self.encode = nn.Linear(width, qubits)
        self.circuit = circuit_layer(qubits, depth, backend, entangle)

    def forward(self, x: Tensor) -> Tensor:
        return self.circuit(math.pi * torch.tanh(self.encode(x)))


class HybridFeedForward(nn.Module):
    """x (..., width) -> (..., width): the circuit's features and a linear map back."""

    def __init__(self, width: int, qubits: int, depth: int, backend: str = "torch", entangle: bool = True) -> None:
        super().__init__()
        self.features = Features(width, qubits, depth, backend, entangle)
        self.decode = nn.Linear(qubits, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.features(x))


class HybridAttention(nn.Module):
    """Attention with one head whose queries and keys are circuits' features; values and the output map are linear.

    Called as nn.MultiheadAttention is, and returns the same pair; weights are (B, L, S).
    """

    # what nn.TransformerEncoderLayer looks at before it takes its fused path, which knows only its own attention
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self, width: int, qubits: int, depth: int, backend: str = "torch", entangle: bool = True, *, batch_first: bool = True,
        kdim: int | None = None, vdim: int | None = None, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.batch_first, self.dropout = batch_first, dropout
        self.query = Features(width, qubits, depth, backend, entangle)
        self.key = Features(kdim or width, qubits, depth, backend, entangle)
        self.value, self.out = nn.Linear(vdim or width, width), nn.Linear(width, width)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        single = query.dim() == 2
        if single:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if attn_mask is not None and attn_mask.dim() == 3 and len(attn_mask) != len(query):
            raise ValueError(
                f"attn_mask has the shape {tuple(attn_mask.shape)}; hybrid attention has one head: (L, S) or (B, L, S)"
            )
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is True without attn_mask; as for nn.MultiheadAttention, the mask itself is needed too")
        features = self.query(query)
        scores = features @ self.key(key).transpose(1, 2) / math.sqrt(features.shape[-1])
        scores = _masked(scores, attn_mask)
        scores = _masked(scores, None if key_padding_mask is None else key_padding_mask[:, None])
        weights = torch.softmax(scores, -1)
        mixed = self.out(nn.functional.dropout(weights, self.dropout, self.training) @ self.value(value))
        given = weights if need_weights else None
        if single:
            return mixed[0], None if given is None else given[0]
        return (mixed if self.batch_first else mixed.transpose(0, 1)), given


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def find(model: nn.Module, kinds: Sequence[str]) -> dict[str, list[str]]:
    """For each kind the names of the sublayers in `model` that can be replaced, in the model's order.

    attention: every nn.MultiheadAttention. feedforward: the two linear layers of PyTorch's own transformer layers (named by the layer),
    and every module that holds nothing but two nn.Linear, width -> h and h -> width, with an activation and dropout, and that computes
    just that chain, which is tried on random numbers.
    """
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name, module in model.named_modules():
        if "attention" in found and name and type(module) is nn.MultiheadAttention:
            found["attention"].append(name)
        if "feedforward" in found and (type(module) in _ENCODERS or (name and _width(module))):
            found["feedforward"].append(name)
    return found


def _width(module: nn.Module) -> int:
    """The width of a feed-forward sublayer, or 0 where the module is none."""
    children = list(module.children())
    linear = [child for child in children if type(child) is nn.Linear]
    others = [child for child in children if type(child) is not nn.Linear]
    if len(linear) != 2 or not all(type(child) in _BETWEEN for child in others) or list(module.parameters(recurse=False)):
        return 0
    first, second = linear
    if (first.in_features, first.out_features) != (second.out_features, second.in_features):
        return 0
    own: list[Callable[[Tensor], Tensor]] = [child for child in others if type(child) not in (nn.Dropout, nn.Identity)]
    return first.in_features if _is_chain(module, first, second, own or _FUNCTIONS) else 0


def _is_chain(module: nn.Module, first: nn.Linear, second: nn.Linear, between: Sequence[Callable[[Tensor], Tensor]]) -> bool:
    """Whether it computes second(activation(first(x))) and no more: a residual or a gate inside would be lost."""
    like = first.weight
    x = 4 * torch.randn(16, first.in_features, generator=torch.Generator().manual_seed(0)).to(like)
    x = torch.stack((x, -x))  # both signs before the activation: on one of them alone ReLU may be the identity
    with torch.no_grad():
        try:
            found = copy.deepcopy(module).eval()(x)
        except Exception:  # it takes something else than one tensor: not a feed-forward sublayer
            return False
        expected, linear = [second(activation(first(x))) for activation in between], second(first(x))
    bar = 64 * torch.finfo(like.dtype).eps
    if not isinstance(found, Tensor) or torch.allclose(found, linear, rtol=bar, atol=bar):
        return False
    return any(torch.allclose(found, one, rtol=bar, atol=bar) for one in expected)


def replace(model: nn.Module, found: dict[str, list[str]], qubits: int, depth: int, backend: str, entangle: bool) -> None:
    """Put hybrid sublayers in place, in the dtype and on the device of what they replace; new weights are drawn at random."""
    for name in found.get("attention", ()):
        old: Any = model.get_submodule(name)
        made = HybridAttention(
            old.embed_dim, qubits, depth, backend, entangle, batch_first=old.batch_first, kdim=old.kdim, vdim=old.vdim,
            dropout=old.dropout,
        )  # fmt: skip
        _put(model, name, made, old)
    for name in found.get("feedforward", ()):
        old = model.get_submodule(name)
        if type(old) in _ENCODERS:
            both = HybridFeedForward(old.linear1.in_features, qubits, depth, backend, entangle)
            like, mode = old.linear1.weight, old.training
            old.linear1, old.linear2 = both.features.to(like).train(mode), both.decode.to(like).train(mode)
            old.activation, old.activation_relu_or_gelu = nn.Identity(), 0
        else:
            _put(model, name, HybridFeedForward(_width(old), qubits, depth, backend, entangle), old)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # it reads the replaced layers' weights


def _put(model: nn.Module, name: str, made: nn.Module, old: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    like = next(old.parameters())
    setattr(model.get_submodule(parent), last, made.to(like).train(old.training))
