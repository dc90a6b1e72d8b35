"""Operands of an attention as (b, h, l, d) tensors of one dtype, and its result back in the layout that the graph expects."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from kpt_lab.core import Unsupported, dtype_name
from kpt_lab.kernels.flashlight import proofs
from kpt_lab.kernels.flashlight.expression import Attention, Operand, Part

aten = torch.ops.aten
Extent = int | fx.Node  # a number, or a node that gives a symbolic integer
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def value_of(node: fx.Node) -> torch.Tensor:
    """The fake tensor that stands for a node's output."""
    found = node.meta.get("val", node.meta.get("example_value"))
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"node {node.name!r} has no tensor in its meta; run FakeTensorProp over the graph first")
    return found


class Layout:
    """Writes permutations, reshapes, casts and sizes into a graph for one attention, at the graph's insertion point."""

    def __init__(self, gm: fx.GraphModule, attention: Attention) -> None:
        self.gm, self.graph, self.attention = gm, gm.graph, attention
        self.output = value_of(attention.output)
        self.device = self.output.device
        self.dtype = self._common_dtype()

    def lengths(self, part: Part) -> tuple[int | torch.SymInt, int | torch.SymInt]:
        """Queries and keys as numbers or symbolic integers."""
        return tuple(math.prod(value_of(o.node).shape[d] for d in o.dims[2]) for o in (part.query, part.key))  # type: ignore[return-value]

    def extent(self, operand: Operand, place: int) -> int | torch.SymInt:
        """The product of the sizes that are flattened into a place (0 to 3: b, h, l, d)."""
        return math.prod(value_of(operand.node).shape[d] for d in operand.dims[place])

    def operand(self, operand: Operand) -> fx.Node:
        """The tensor as (b, h, l, d) in the common dtype."""
        node, order = operand.node, [d for group in operand.dims for d in group]
        if order != list(range(len(order))):
            node = self.call(aten.permute.default, node, order)
        for place in (3, 2, 1, 0):
            group = operand.dims[place]
            start = sum(len(g) for g in operand.dims[:place])
            if not group:
                node = self.call(aten.unsqueeze.default, node, start)
            elif len(group) > 1:
                node = self.call(aten.flatten.using_ints, node, start, start + len(group) - 1)
        if value_of(operand.node).dtype != self.dtype:
            node = self.call(aten.to.dtype, node, self.dtype)
        batches = self.extent(self.attention.parts[0].query, 0)
        if not proofs.same_size(batches, self.extent(operand, 0)):
            node = self.call(aten.expand.default, node, [self.size(self.attention.parts[0].query, 0), -1, -1, -1])
        return node

    def size(self, operand: Operand, place: int) -> Extent:
        """The extent of a place as what can stand in the graph."""
        sizes = [self.dim(operand.node, d) for d in operand.dims[place]]
        total: Extent = 1
        for size in sizes:
            if isinstance(total, int) and (isinstance(size, int) or total == 1):
                total = total * size if isinstance(size, int) else size
            else:
                total = self.call(operator.mul, total, size)
                total.meta["val"] = self.extent(operand, place)
        return total

    def dim(self, node: fx.Node, dim: int) -> Extent:
        """One size of a node: a number where it is one, else a node."""
        size = value_of(node).shape[dim]
        if isinstance(size, int):
            return size
        found = self.call(aten.sym_size.int, node, dim)
        found.meta["val"] = size
        return found

    def back(self, out: fx.Node) -> fx.Node:
        """From (b, h, l, d) to the layout of the output."""
        dims, query, value = self.attention.dims, self.attention.parts[0].query, self.attention.value
        for place in (3, 2, 1, 0):
            group = dims[place]
            if not group:
                out = self.call(aten.squeeze.dim, out, place)
            elif len(group) > 1:
                sizes: list[Any] = [self.output.shape[d] for d in group]
                unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
                source = value if place == 3 else query
                if len(unknown) > 1:
                    if len(source.dims[place]) != len(group):
                        raise Unsupported("several symbolic sizes are flattened into one that the output splits differently")
                    sizes = [self.dim(source.node, d) for d in source.dims[place]]
                elif unknown:
                    sizes[unknown[0]] = -1
                out = self.call(aten.unflatten.int, out, place, sizes)
        order = [d for group in dims for d in group]
        if order != list(range(len(order))):
            out = self.call(aten.permute.default, out, [order.index(d) for d in range(len(order))])
        return out

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)

    def _common_dtype(self) -> torch.dtype:
        nodes = [self.attention.value.node, *(operand.node for p in self.attention.parts for operand in (p.query, p.key))]
        dtype = value_of(nodes[0]).dtype
        for node in nodes[1:]:
            dtype = torch.promote_types(dtype, value_of(node).dtype)
        if dtype not in (*FLOATS, torch.float64):
            raise Unsupported(f"the operands are {dtype_name(dtype)}; fused kernels take float16, bfloat16 and float32")
        return dtype
