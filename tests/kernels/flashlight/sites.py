"""Attentions written down by hand, without a matcher: a graph with a stand-in where the output is, and its float64 oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from kpt_lab.kernels.flashlight.expression import Apply, Attention, Constant, Coordinate, Expression, Load, Operand, Part, Score

B, H, Q, K = (Coordinate(place) for place in "bhqk")
S = Score()
BHLD = ((0,), (1,), (2,), (3,))
BLHD = ((0,), (2,), (1,), (3,))


def op(name: str, *arguments: Any, dtype: torch.dtype = torch.int64) -> Apply:
    """An Apply whose Python numbers become Constants."""
    parts = tuple(a if isinstance(a, Expression) else Constant(a) for a in arguments)
    if name in ("ge", "gt", "le", "lt", "eq", "ne", "logical_and", "logical_or", "logical_not"):
        dtype = torch.bool
    return Apply(name, parts, dtype)


def both(*parts: Expression) -> Expression:
    found = parts[0]
    for part in parts[1:]:
        found = op("logical_and", found, part)
    return found


def either(*parts: Expression) -> Expression:
    found = parts[0]
    for part in parts[1:]:
        found = op("logical_or", found, part)
    return found


CAUSAL = op("ge", Q, K)


def window(width: int) -> Expression:
    return both(CAUSAL, op("lt", op("sub", Q, K), width))


def prefix(length: int) -> Expression:
    return either(CAUSAL, op("lt", K, length))


def dilated(step: int) -> Expression:
    return both(CAUSAL, op("eq", op("remainder", op("sub", Q, K), step), 0))


def real(expression: Expression) -> Expression:
    """The expression as float32."""
    return op("to", expression, dtype=torch.float32)


class Site:
    """A graph of placeholders, one stand-in for the attention's output, and the Attention that says what it is."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *captured: torch.Tensor,
        parts: Callable[..., Sequence[dict[str, Any]]] | None = None,
        dims: Any = BHLD,
        out_dims: Any = BHLD,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.inputs = (query, key, value, *captured)
        graph = fx.Graph()
        names = ["query", "key", "value", *(f"captured_{i}" for i in range(len(captured)))]
        nodes = [graph.placeholder(name) for name in names]
        self.fake_mode = FakeTensorMode()
        for node, x in zip(nodes, self.inputs, strict=True):
            node.meta["val"] = self.fake_mode.from_tensor(x)
        operands = [Operand(node, dims) for node in nodes[:3]]
        groups = query.shape[dims[1][0]] // key.shape[dims[1][0]]
        said = parts(*nodes[3:]) if parts else [{}]
        defaults = {"score": S, "scale": 1 / math.sqrt(query.shape[-1]), "mask": None, "fill": "infinite", "groups": groups}
        made = tuple(Part(operands[0], operands[1], **{**defaults, **part}) for part in said)
        softmax = graph.call_function(torch.softmax, (nodes[0], -1))
        output = graph.call_function(torch.matmul, (softmax, nodes[2]))
        sizes = [query.shape[dims[p][0]] for p in range(3)] + [value.shape[dims[3][0]]]
        shape = [0] * 4
        for place, size in zip(out_dims, sizes, strict=True):
            shape[place[0]] = size
        with self.fake_mode:
            output.meta["val"] = torch.empty(shape, dtype=dtype or value.dtype, device=value.device)
        graph.output((output,))
        self.gm = fx.GraphModule(torch.nn.Module(), graph)
        self.attention = Attention(made, operands[2], (softmax,) * len(made), output, out_dims, dropout)
        self.nodes = {node.name: node for node in nodes}

    def oracle(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The attention in float64, scores and all."""
        given = dict(zip(self.nodes.values(), inputs or self.inputs, strict=True))
        attention = self.attention
        place = lambda o: given[o.node].permute([d for g in o.dims for d in g]).double()  # noqa: E731
        value = place(attention.value)
        total: Any = 0
        for part in attention.parts:
            query, key = place(part.query), place(part.key).repeat_interleave(part.groups, 1)
            scores = query @ key.mT
            at = [torch.arange(n).view([-1 if d == i else 1 for d in range(4)]) for i, n in enumerate(scores.shape)]
            at_places = dict(zip("bhqk", (x.to(scores.device) for x in at), strict=True))
            scale = part.scale if isinstance(part.scale, float) else evaluate(part.scale, at_places, given, scores)
            scores = evaluate(part.score, at_places, given, scores * scale)
            if part.mask is not None:
                mask = evaluate(part.mask, at_places, given, scores)
                scores = torch.where(mask, scores, -math.inf if part.fill == "infinite" else -1e30)
            out = torch.softmax(scores, -1) @ value.repeat_interleave(part.groups, 1)
            if part.coefficient is not None:
                out = out * evaluate(
                    part.coefficient, {**at_places, "k": torch.zeros(1, 1, 1, 1, dtype=torch.int64)}, given, out
                )
            total = total + out
        order = [d for g in attention.dims for d in g]
        return total.permute([order.index(d) for d in range(4)])


def evaluate(expression: Any, at: dict[str, torch.Tensor], given: dict[fx.Node, torch.Tensor], score: torch.Tensor) -> Any:
    """An expression's values in float64 over coordinates that broadcast: written apart from the library on purpose."""
    if isinstance(expression, Constant):
        return expression.value
    if isinstance(expression, Coordinate):
        return at[expression.place]
    if isinstance(expression, Score):
        return score
    if isinstance(expression, Load):
        tensor = given[expression.tensor]
        tensor = tensor.double() if tensor.is_floating_point() else tensor
        return tensor[tuple(torch.as_tensor(evaluate(i, at, given, score)) for i in expression.index)]
    values = [evaluate(a, at, given, score) for a in expression.arguments]
    if expression.op == "to":
        return torch.as_tensor(values[0]).to(torch.float64 if expression.dtype.is_floating_point else expression.dtype)
    tensors = [torch.as_tensor(v) for v in values]
    return getattr(torch, {"div": "true_divide"}.get(expression.op, expression.op))(*tensors)
