"""Which values of a graph are constants, spikes or membranes, and where neurons must fire between them.

Every value of a traced model is of one kind:

- constant: parameters, buffers, shapes and what is computed from them alone. It is put in place once and never sent in time,
  so that a learned position is added once, whatever the number of steps.
- ids: whole numbers that name a line of an embedding, one event each.
- train: spikes in time. membrane: what neurons hold when their window has passed.

Neurons fire exactly where a membrane is about to be multiplied by weights, by another value or summed over neurons, and where
more than one step reads it: each neuron fires once for all its readers. What is left runs in the neuron that holds the value.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kpt_lab.core import Unsupported

Kind = Literal["constant", "ids", "train", "membrane"]

_MODULES: dict[type, str] = {
    nn.Linear: "linear", nn.Embedding: "embedding", nn.LayerNorm: "layer_norm", nn.RMSNorm: "rms_norm", nn.GELU: "gelu",
    nn.SiLU: "silu", nn.ReLU: "relu", nn.Softmax: "softmax", nn.Dropout: "wire", nn.Identity: "wire", nn.Flatten: "wire",
    nn.Unflatten: "wire",
}  # fmt: skip
_FUNCTIONS: dict[Any, str] = {
    F.linear: "linear", F.embedding: "embedding", F.layer_norm: "layer_norm", F.rms_norm: "rms_norm", F.gelu: "gelu",
    F.silu: "silu", F.relu: "relu", torch.relu: "relu", F.softmax: "softmax", torch.softmax: "softmax", F.dropout: "wire",
    torch.matmul: "matmul", operator.matmul: "matmul", torch.bmm: "matmul", torch.mean: "mean", operator.add: "add",
    torch.add: "add", operator.sub: "sub", torch.sub: "sub", operator.mul: "mul", torch.mul: "mul",
    operator.truediv: "div", torch.div: "div", torch.cat: "join", torch.stack: "join",
    torch.reshape: "wire", torch.transpose: "wire", torch.permute: "wire", torch.flatten: "wire", torch.unflatten: "wire",
    torch.unsqueeze: "wire", torch.squeeze: "wire", torch.swapaxes: "wire", torch.movedim: "wire", torch.chunk: "split",
    torch.split: "split", torch.unbind: "split", operator.getitem: "wire",
}  # fmt: skip
_METHODS: dict[str, str] = {
    "relu": "relu", "softmax": "softmax", "matmul": "matmul", "bmm": "matmul", "mean": "mean", "add": "add", "sub": "sub",
    "mul": "mul", "div": "div", "chunk": "split", "split": "split", "unbind": "split",
} | dict.fromkeys(
    ("view", "reshape", "transpose", "permute", "flatten", "unflatten", "unsqueeze", "squeeze", "swapaxes", "movedim",
     "contiguous", "clone", "detach", "t"), "wire"
)  # fmt: skip
_SHAPES = ("size", "dim", "ndimension", "numel", "shape", "device", "dtype", "ndim")
SUPPORTED = tuple(sorted({*_MODULES.values(), *_FUNCTIONS.values(), *_METHODS.values()} - {"wire", "split", "join"}))


@dataclass(frozen=True)
class Place:
    """What a node of the graph is: its kind, the step it does ("linear", "fire", ...), and how it was called in the model."""

    kind: Kind
    step: str
    called: str = ""


def fire(membrane: Tensor) -> Tensor:
    """Stands in the graph where neurons fire; each way of running the graph gives it its own meaning (here: none)."""
    return membrane


def place(node: fx.Node) -> Place:
    """The Place that `structured` gave to a node."""
    return node.meta["spiking"]


def structured(module: fx.GraphModule) -> fx.GraphModule:
    """The traced graph with a Place for each node and `fire` nodes put in; Unsupported names everything that can't be converted."""
    graph, refused = module.graph, []
    for node in list(graph.nodes):
        try:
            node.meta["spiking"] = _placed(module, node)
        except Unsupported as error:
            refused.append(str(error))
            node.meta["spiking"] = Place("membrane", "refused")
            continue
        _fire_before(graph, node)
        _fire_after(graph, node)
    if refused:
        raise Unsupported(
            f"standard_transformer can't be converted: {'; '.join(dict.fromkeys(refused))}. Converted are {', '.join(SUPPORTED)}, "
            "attention by torch's modules and functions, residuals, constants, shapes and indexing"
        )
    graph.lint()
    module.recompile()
    return module


def inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes that a node reads and that are no constants, as often as it reads them."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return [n for n in found if place(n).kind != "constant"]


def _placed(module: fx.GraphModule, node: fx.Node) -> Place:
    if node.op == "get_attr":
        return Place("constant", "constant")
    if node.op == "placeholder":
        return Place("ids" if _names_embedding(module, node) else "train", "input")
    active = inputs(node)
    if node.op == "output":
        return Place("membrane", "output")
    if not active:
        return Place("constant", "constant")
    step, called = _step(module, node)
    if step == "shape":
        return Place("constant", "shape")
    kinds = [place(n).kind for n in active]
    _check(module, node, step, called, active, kinds)
    if step in ("wire", "split"):
        return Place(kinds[0], step, called)
    return Place("membrane", step, called)


def _step(module: fx.GraphModule, node: fx.Node) -> tuple[str, str]:
    """What a node does, and how to name it: "blocks.0.conv (Conv2d)"."""
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        return _MODULES.get(type(child), "?"), f"{node.target} ({type(child).__name__})"
    if node.op == "call_method":
        known = "shape" if node.target in _SHAPES else _METHODS.get(str(node.target), "?")
        return known, f"{node.name} (Tensor.{node.target})"
    if node.target is getattr:
        return (
            "shape" if node.args[1] in _SHAPES else "wire" if node.args[1] in ("T", "mT") else "?"
        ), f"{node.name} (.{node.args[1]})"
    return _FUNCTIONS.get(node.target, "?"), f"{node.name} ({getattr(node.target, '__name__', node.target)})"


_PAIRS = ("matmul", "mul", "add", "sub", "join")  # steps that may read more than one value of the network
_EXTRA = {"add": ("alpha",), "sub": ("alpha",), "div": ("rounding_mode",), "mean": ("out",)}


def _check(module: fx.GraphModule, node: fx.Node, step: str, called: str, active: list[fx.Node], kinds: list[Kind]) -> None:
    """Unsupported unless the step is known and can be done on values of these kinds."""
    if step == "?":
        raise Unsupported(called)
    if node.op == "call_module" and _hooked(module.get_submodule(str(node.target))):
        raise Unsupported(f"{called} with a forward hook")
    if "ids" in kinds and step not in ("embedding", "wire"):
        raise Unsupported(f"{called} of token ids")
    if len(active) > 1 and step not in _PAIRS:
        raise Unsupported(f"{called} of two values of the network ({', '.join(n.name for n in active)})")
    if step == "div" and _constant(_first(node)):
        raise Unsupported(f"{called} by a value of the network")
    if step in ("linear", "layer_norm", "rms_norm", "gelu", "silu", "relu", "softmax", "mean", "wire", "split") and _constant(
        _first(node)
    ):
        raise Unsupported(f"{called} with weights, sizes or an index that depend on the input")
    if step == "embedding" and (kinds != ["ids"] or _settings(module, node)):
        raise Unsupported(f"{called} with max_norm, or with weights that depend on the input")
    if extra := [name for name in _EXTRA.get(step, ()) if node.kwargs.get(name) is not None]:
        raise Unsupported(f"{called} with {extra[0]}")
    if step == "wire" and node.target is F.dropout and _training(node):
        raise Unsupported(f"{called} that drops values in evaluation too")


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _constant(value: Any) -> bool:
    return not isinstance(value, fx.Node) or place(value).kind == "constant"


def _training(node: fx.Node) -> Any:
    return node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)


def _settings(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an embedding changes its weights when it is read."""
    if node.op == "call_module":
        return module.get_submodule(str(node.target)).max_norm is not None
    return node.kwargs.get("max_norm") is not None


def _first(node: fx.Node) -> Any:
    """The value that a one-input step works on, whether given by position or as `input=`."""
    if node.args:
        return node.args[0]
    return node.kwargs.get("input", node.kwargs.get("tensors"))


def _names_embedding(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an input only names lines of embeddings, directly or by way of wiring."""
    for user in node.users:
        step = _step(module, user)[0] if user.op.startswith("call") else ""
        if step == "embedding" or (step == "wire" and _names_embedding(module, user)):
            return True
    return False


def _spiking(node: fx.Node, step: str) -> bool:
    """Whether a step reads its values as trains: what multiplies by weights or by another value, or sums over neurons."""
    return step in ("linear", "matmul", "mean") or (step == "mul" and len(inputs(node)) > 1)


def _fire_before(graph: fx.Graph, node: fx.Node) -> None:
    if not _spiking(node, place(node).step):
        return
    for source in inputs(node):
        if place(source).kind == "membrane":
            node.replace_input_with(source, _insert(graph, source))


def _fire_after(graph: fx.Graph, node: fx.Node) -> None:
    """Fire a membrane that several steps read; they all read the one train. A tuple's parts are looked at one by one."""
    if place(node).kind != "membrane" or place(node).step in ("split", "output"):
        return
    readers = [user for user in node.users if not _asks_shape(user)]
    if len(readers) > 1:
        fired = _insert(graph, node)
        for user in readers:
            user.replace_input_with(node, fired)


def _asks_shape(node: fx.Node) -> bool:
    return (node.op == "call_method" and node.target in _SHAPES) or (node.target is getattr and node.args[1] in _SHAPES)


def _insert(graph: fx.Graph, source: fx.Node) -> fx.Node:
    with graph.inserting_after(source):
        fired = graph.call_function(fire, (source,))
    fired.name = f"{source.name}_fired"
    fired.meta["spiking"] = Place("train", "fire", place(source).called)
    return fired
