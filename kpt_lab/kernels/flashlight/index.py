"""Pull semantics: what one element of a node of the graph is, as an expression of its coordinates.

Views, permutations and expansions become arithmetic on the coordinates, pointwise operations become Apply, ranges and
triangles become coordinates and comparisons. Where the understanding ends, a Load says which element of which node it is.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from kpt_lab.kernels.flashlight.algebra import apply
from kpt_lab.kernels.flashlight.arithmetic import arithmetic, symbolic
from kpt_lab.kernels.flashlight.atoms import ONE, ZERO, Product, Variable, variables
from kpt_lab.kernels.flashlight.expression import Constant, Expression, Load, Size
from kpt_lab.kernels.flashlight.gradients import stopped_gradients
from kpt_lab.kernels.flashlight.nodes import (
    CONTRACTIONS,
    IDENTITIES,
    RESHAPES,
    SAME_SHAPE,
    Arguments,
    Index,
    Unreadable,
    is_fake,
    is_tensor,
    name_of,
    value,
)
from kpt_lab.kernels.flashlight.operations import OPERATIONS
from kpt_lab.kernels.flashlight.polynomials import quotient
from kpt_lab.kernels.flashlight.scans import SCANS
from kpt_lab.kernels.flashlight.views import VIEWS, split_source

HOIST = 14  # an expression that does not depend on the key, has loads, and is larger than this stays a tensor of the graph
LARGEST = 600  # and no expression may be larger than this


class Reader:
    """Reads elements of one graph. `opaque` nodes are never looked into; `key` is the variable that runs over the keys."""

    def __init__(
        self, graph: fx.Graph, opaque: frozenset[fx.Node] = frozenset(), module: torch.nn.Module | None = None
    ) -> None:
        self.graph, self.opaque, self.module = graph, opaque, module
        self.known: dict[tuple[fx.Node, Index], Expression] = {}
        self.keys: frozenset[Variable] = frozenset()
        self.symbols = self._symbols()
        self.stopped = stopped_gradients(graph)

    # -- numbers

    def _symbols(self) -> dict[Any, fx.Node]:
        found: dict[Any, fx.Node] = {}
        for node in self.graph.nodes:
            held = value(node)
            if isinstance(held, torch.SymInt):
                found.setdefault(held.node.expr, node)
        return found

    def looking(self, keys: frozenset[Variable]) -> None:
        """From now on these variables run over the keys."""
        self.keys = keys
        self.known.clear()

    def size(self, number: Any) -> Expression:
        """An integer, a symbolic one, or a node that holds one, as an expression."""
        held = value(number) if isinstance(number, fx.Node) else number
        if isinstance(held, (bool, int, float)) and not isinstance(number, fx.Node):
            return Constant(held)
        if isinstance(held, int):
            return Constant(held)
        if isinstance(held, torch.SymInt):
            found = symbolic(held.node.expr, lambda expr: Size(self.symbols[expr]) if expr in self.symbols else None)
            if found is None:
                raise Unreadable(f"the symbolic size {held} can't be read")
            return found
        if isinstance(number, fx.Node):
            return Size(number)
        raise Unreadable(f"the number {number!r} can't be read")

    def shape(self, node: fx.Node) -> Index:
        """The extents of a tensor node."""
        return tuple(self.size(extent) for extent in value(node).shape)

    # -- elements

    def element(self, node: Any, index: Index) -> Expression:
        """The element of a node (or a plain number) at the index."""
        if not isinstance(node, fx.Node):
            return Constant(node)
        if not is_tensor(node):
            return self.size(node)
        if (node, index) not in self.known:
            self.known[node, index] = self._limited(node, index)
        return self.known[node, index]

    def broadcast(self, node: Any, index: Index) -> Expression:
        """The element of an operand that is broadcast to the shape which the index runs over."""
        if not is_tensor(node):
            return self.element(node, ())
        shape = self.shape(node)
        own = index[len(index) - len(shape) :]
        return self.element(node, tuple(ZERO if extent == ONE else i for i, extent in zip(own, shape, strict=True)))

    def _limited(self, node: fx.Node, index: Index) -> Expression:
        found = self._element(node, index)
        if isinstance(found, (Load, Constant)):
            return found
        size = sum(1 for _ in found.walk())
        if size > LARGEST:
            raise Unreadable("what stands between the two products is too long to be read")
        depends = variables(found) & self.keys
        loads = any(isinstance(part, Load) for part in found.walk())
        if any(isinstance(part, Product) or (isinstance(part, Load) and part.tensor in self.opaque) for part in found.walk()):
            return found
        return Load(node, index) if size > HOIST and loads and not depends and self.keys else found

    def _element(self, node: fx.Node, index: Index) -> Expression:
        if node in self.opaque or node in self.stopped:
            return Load(node, index)
        if node.op == "get_attr":
            return self._attribute(node, index)
        name = name_of(node)
        step = self.source(node, index)
        if step is not None:
            return self.element(*step)
        if name in SAME_SHAPE:
            return self._pointwise(node, SAME_SHAPE[name], index)
        if name in CONTRACTIONS:
            return self._contraction(node, name, index)
        if (
            name == "sum"
            and isinstance(node.args[0], fx.Node)
            and name_of(node.args[0]) == "mul"
            and not Arguments(node).keepdim
        ):
            return Product(node, index)
        rule = OPERATIONS.get(name) or SCANS.get(name)
        found = rule(self, node, Arguments(node), index) if rule else None
        return Load(node, index) if found is None else found

    def _attribute(self, node: fx.Node, index: Index) -> Expression:
        tensor = self.module
        for part in str(node.target).split("."):
            tensor = getattr(tensor, part, None)
        if isinstance(tensor, torch.Tensor) and tensor.numel() == 1 and not is_fake(tensor) and not tensor.requires_grad:
            return Constant(tensor.item())
        return Load(node, index)

    def _pointwise(self, node: fx.Node, op: str, index: Index) -> Expression:
        arguments, dtype = Arguments(node), value(node).dtype
        operands = [self.broadcast(x, index) for x in list(arguments.values.values())[: 1 if len(node.args) == 1 else 2]]
        mode = arguments.get("rounding_mode")
        if mode == "trunc":
            return apply("trunc", (apply("div", tuple(operands), torch.float64),), dtype)
        if mode == "floor":
            op = "floor_divide"
        if (alpha := arguments.get("alpha")) not in (None, 1):
            operands[1] = apply("mul", (operands[1], self.element(alpha, ())), dtype)
        if op == "round" and arguments.get("decimals"):
            return Load(node, index)
        return apply(op, tuple(operands), dtype)

    def _contraction(self, node: fx.Node, name: str, index: Index) -> Expression:
        if name == "linear" and Arguments(node).bias is not None:
            return Load(node, index)
        if name not in ("baddbmm", "addmm"):
            return Product(node, index)
        arguments, dtype = Arguments(node), value(node).dtype
        product = apply("mul", (Product(node, index), self.element(arguments.alpha, ())), dtype)
        if arguments.beta == 0:
            return product
        added = self.broadcast(arguments.values["self"], index)
        return apply("add", (apply("mul", (added, self.element(arguments.beta, ())), dtype), product), dtype)

    # -- views

    def source(self, node: fx.Node, index: Index) -> tuple[fx.Node, Index] | None:
        """The node and index that a view, copy or permutation takes this element from; None for other operations."""
        name = name_of(node)
        if node in self.opaque or node in self.stopped:
            return None
        if node.target is operator.getitem:
            return split_source(node, self, index)
        if name in RESHAPES:
            return self._reshaped(node, index)
        if name in IDENTITIES:
            return node.args[0], index  # type: ignore[return-value]
        if name in ("to", "_to_copy", "type_as", "float", "detach", "detach_", "dropout", "native_dropout"):
            return self._unchanged(node, name, index)
        rule = VIEWS.get(name)
        return rule(self, node, Arguments(node), index) if rule else None

    def _unchanged(self, node: fx.Node, name: str, index: Index) -> tuple[fx.Node, Index] | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if name == "detach":
            return source, index
        if name == "dropout":
            return (source, index) if not Arguments(node).train or Arguments(node).p == 0 else None
        same = value(source).dtype == value(node).dtype and value(source).device == value(node).device
        return (source, index) if same and name != "native_dropout" else None

    def _reshaped(self, node: fx.Node, index: Index) -> tuple[fx.Node, Index]:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return source, self.reindex(self.shape(node), index, self.shape(source))

    def reindex(self, shape: Index, index: Index, source: Index) -> Index:
        """The index into `source` of what stands at `index` in `shape`, both holding the same elements in the same order."""
        result: list[Expression] = []
        i = j = 0
        while i < len(shape) and j < len(source):  # the smallest groups of dimensions that hold equally many elements
            left, right, held, wanted = [(shape[i], index[i])], [source[j]], shape[i], source[j]
            i, j = i + 1, j + 1
            while held != wanted and (i < len(shape) or j < len(source)):
                grow_right = quotient(wanted, held) is None and quotient(held, wanted) is not None
                if j < len(source) and (grow_right or i == len(shape)):
                    right.append(source[j])
                    wanted, j = arithmetic("mul", wanted, source[j]), j + 1
                elif i < len(shape):
                    left.append((shape[i], index[i]))
                    held, i = arithmetic("mul", held, shape[i]), i + 1
                else:
                    break
            result += _regrouped(left, right)
        return (*result, *[ZERO] * (len(source) - j))


def _regrouped(left: list[tuple[Expression, Expression]], right: list[Expression]) -> list[Expression]:
    if len(left) == len(right) == 1:
        return [left[0][1]]
    flat: Expression = ZERO
    for extent, i in left:
        flat = arithmetic("add", arithmetic("mul", flat, extent), i)
    result: list[Expression] = []
    for position, extent in enumerate(right):
        stride: Expression = ONE
        for other in right[position + 1 :]:
            stride = arithmetic("mul", stride, other)
        if extent == ONE:
            result.append(ZERO)
            continue
        rest = arithmetic("remainder", flat, arithmetic("mul", stride, extent)) if position else flat
        result.append(arithmetic("floor_divide", rest, stride) if stride != ONE else rest)
    return result


def pointwise(node: fx.Node) -> bool:
    """Whether each element of the node is read from elements of its operands, and it is no contraction."""
    name = name_of(node)
    if name in CONTRACTIONS or name == "sum":
        return False
    return name in SAME_SHAPE or name in OPERATIONS or is_view(node)


def is_view(node: fx.Node) -> bool:
    """Whether the node only moves or keeps elements."""
    return name_of(node) in VIEWS or name_of(node) in IDENTITIES or name_of(node) in RESHAPES or name_of(node) in (
        "detach", "dropout", "native_dropout", "type_as",
    )  # fmt: skip
