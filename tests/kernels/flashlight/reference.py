"""An Attention evaluated element by element in float64: the oracle that says whether a match is right.

Nothing of the lowering is used: the parts' expressions are read as they stand, over all places at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from kpt_lab.kernels.flashlight.expression import (
    Apply,
    Attention,
    Constant,
    Coordinate,
    Expression,
    Load,
    Operand,
    Part,
    Score,
    Size,
)

PLAIN = {"logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_not": torch.logical_not}


def nodes_of(attention: Attention) -> list[fx.Node]:
    """All nodes of the graph that an attention reads."""
    found = [attention.value.node]
    for part in attention.parts:
        found += [part.query.node, part.key.node]
        for expression in (part.score, part.mask, part.coefficient, part.scale):
            if isinstance(expression, Expression):
                found += [x.tensor if isinstance(x, Load) else x.node for x in expression.walk() if isinstance(x, (Load, Size))]
    return list(dict.fromkeys(found))


def arranged(operand: Operand, held: dict[fx.Node, Any]) -> torch.Tensor:
    """The operand as (b, h, l, d) in float64."""
    tensor = held[operand.node].to(torch.float64)
    order = [dim for role in operand.dims for dim in role]
    assert sorted(order) == list(range(tensor.dim())), f"the dims {operand.dims} don't cover {tuple(tensor.shape)}"
    shape = [math.prod(tensor.shape[dim] for dim in role) for role in operand.dims]
    return tensor.permute(order).reshape(shape)


def element(expression: Expression, at: dict[str, torch.Tensor], held: dict[fx.Node, Any]) -> Any:
    """The expression at all places at once."""
    match expression:
        case Constant(value):
            return value
        case Size(node):
            return held[node]
        case Coordinate(place):
            return at[place]
        case Score():
            return at["score"]
        case Load(node, index):
            places = [torch.as_tensor(element(i, at, held), dtype=torch.int64) for i in index]
            for place, extent in zip(places, held[node].shape, strict=True):
                assert place.numel() == 0 or (int(place.min()) >= 0 and int(place.max()) < extent), (
                    f"{expression} leaves its tensor"
                )
            found = held[node][tuple(places)] if places else held[node]
            return found.to(torch.float64) if found.is_floating_point() else found
        case Apply(op, arguments, dtype):
            return _applied(op, [element(x, at, held) for x in arguments], dtype)
    raise TypeError(f"{expression!r} can't be evaluated")


def _applied(op: str, values: list[Any], dtype: torch.dtype) -> torch.Tensor:
    wide = torch.float64 if dtype.is_floating_point else dtype
    operands = [torch.as_tensor(x, dtype=torch.float64) if isinstance(x, float) else torch.as_tensor(x) for x in values]
    if op == "to":
        return operands[0].to(wide)
    if op == "where":
        return torch.where(operands[0], operands[1].to(wide), operands[2].to(wide))
    if op in PLAIN:
        return PLAIN[op](*operands)
    if dtype.is_floating_point:
        operands = [x.to(wide) for x in operands]
    function = getattr(torch, op, None) or getattr(torch.ops.aten, op)
    return function(*operands).to(wide)


def probabilities(part: Part, held: dict[fx.Node, Any]) -> torch.Tensor:
    """Softmax of one part, times its coefficient, as (b, h, q, k)."""
    query, key = arranged(part.query, held), arranged(part.key, held).repeat_interleave(part.groups, 1)
    score = query @ key.transpose(-2, -1)
    scale = element(part.scale, {}, held) if isinstance(part.scale, Expression) else part.scale
    b, h, q, k = (torch.arange(n) for n in score.shape)
    at = {"b": b[:, None, None, None], "h": h[:, None, None], "q": q[:, None], "k": k}
    at["score"] = score * scale
    score = torch.as_tensor(element(part.score, at, held), dtype=torch.float64).expand(score.shape)
    mask = torch.ones_like(score, dtype=torch.bool)
    if part.mask is not None:
        mask = torch.as_tensor(element(part.mask, at, held)).expand(score.shape)
        assert mask.dtype is torch.bool
    found = score.masked_fill(~mask, float("-inf")).softmax(-1)
    empty = ~mask.any(-1, keepdim=True)
    row = {"none": None, "finite": 1.0 / max(len(k), 1), "infinite": float("nan"), "zero": 0.0}[part.fill]
    found = found if row is None else torch.where(empty, row, found)
    if part.coefficient is not None:
        found = found * element(part.coefficient, at, held)
    return found


def evaluate(attention: Attention, held: dict[fx.Node, Any]) -> torch.Tensor:
    """The output in its own layout, float64; without dropout."""
    total = sum(probabilities(part, held) for part in attention.parts)
    value = arranged(attention.value, held).repeat_interleave(attention.parts[0].groups, 1)
    out = total @ value
    known: dict[Any, int] = {}
    for node, tensor in held.items():  # what the symbols of sizes are at this call
        if isinstance(tensor, torch.Tensor):
            known |= {
                n.node.expr: m for n, m in zip(node.meta["val"].shape, tensor.shape, strict=True) if isinstance(n, torch.SymInt)
            }
    shape = attention.output.meta["val"].shape
    placed = [n if isinstance(n, int) else n.node.expr.xreplace(known) for n in shape]
    extents = [int(n) if getattr(n, "is_Integer", True) else None for n in placed]
    return restored(out, attention, extents)


def restored(out: torch.Tensor, attention: Attention, extents: list[int | None]) -> torch.Tensor:
    """(b, h, q, d) in the layout of the node that is replaced."""
    order = [dim for role in attention.dims for dim in role]
    assert sorted(order) == list(range(len(extents))), f"the dims {attention.dims} don't cover the output"
    split: list[int] = []
    for role, extent in zip(attention.dims, out.shape, strict=True):
        known = [extents[dim] for dim in role]
        rest = extent // max(math.prod(n for n in known if n is not None), 1)
        if not role:
            assert extent == 1
        split += [rest if n is None else n for n in known]
    return out.reshape(split).permute([order.index(dim) for dim in range(len(order))])


def insert(graph_module: fx.GraphModule, attention: Attention) -> None:
    """Let the oracle compute an attention's output in its graph."""
    nodes = nodes_of(attention)
    dtype = attention.output.meta["val"].dtype

    def oracle(*values: Any) -> torch.Tensor:
        return evaluate(attention, dict(zip(nodes, values, strict=True))).to(dtype)

    with graph_module.graph.inserting_before(attention.output):
        node = graph_module.graph.call_function(oracle, tuple(nodes))
    node.meta.update(attention.output.meta)
    attention.output.replace_all_uses_with(node)
