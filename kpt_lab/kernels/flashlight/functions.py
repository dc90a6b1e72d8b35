"""Expressions as FX functions of scalar indices: what Dynamo itself would hand to the FlexAttention operator.

A function takes `(score, b, h, q, k, *buffers)` or `(b, h, q, k, *buffers)`. Every operation in it is pointwise and every
captured tensor is read by indexing with tensors, so the same function also evaluates whole blocks when it is called with
coordinates that broadcast against each other.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from kpt_lab.core import Unsupported, dtype_name
from kpt_lab.kernels.flashlight.atoms import dtype_of
from kpt_lab.kernels.flashlight.expression import PLACES, Apply, Constant, Coordinate, Expression, Load, Score, Size

INFIX: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "neg": operator.neg,
    "ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt, "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip
LOGIC = {
    "logical_and": operator.and_, "logical_or": operator.or_, "logical_xor": operator.xor,
    "bitwise_and": operator.and_, "bitwise_or": operator.or_, "bitwise_xor": operator.xor,
}  # fmt: skip
SCALAR: dict[str, Callable[..., Any]] = {
    "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "tanh": math.tanh, "abs": abs, "sin": math.sin, "cos": math.cos,
    "minimum": min, "maximum": max,
}  # fmt: skip


@dataclass(frozen=True)
class Function:
    """A module of `names` (score first where it has one) and buffers, and the graph's nodes that are those buffers."""

    module: fx.GraphModule
    buffers: tuple[fx.Node, ...]


def score_function(expression: Expression) -> Function:
    """`(score, b, h, q, k, *buffers) -> score`: the expression that stands between the two contractions."""
    return _Writer(("score", *PLACES)).write(expression)


def mask_function(expression: Expression | None) -> Function:
    """`(b, h, q, k, *buffers) -> bool`: True where the key is attended; everywhere for None."""
    return _Writer(PLACES).write(Constant(True) if expression is None else expression, boolean=True)


def value_function(expression: Expression) -> Function:
    """`(b, h, q, k, *buffers) -> value`: any expression without the score."""
    return _Writer(PLACES).write(expression, keep=True)


class _Writer:
    """Writes one expression into an FX graph; equal subexpressions are written once."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.graph = fx.Graph()
        self.names = {name: self.graph.placeholder(name) for name in names}
        self.like = self.names["q"]
        self.buffers: dict[fx.Node, fx.Node] = {}
        self.known: dict[Expression, Any] = {}

    def write(self, expression: Expression, boolean: bool = False, keep: bool = False) -> Function:
        for part in expression.walk():  # placeholders come before all other nodes
            if isinstance(part, (Load, Size)):
                node = part.tensor if isinstance(part, Load) else part.node
                if node not in self.buffers:
                    self.buffers[node] = self.graph.placeholder(f"buffer_{len(self.buffers)}")
        found = self.value(expression)
        if keep:
            found = self.tensor(found, dtype_of(expression))
        elif boolean:
            found = self.tensor(found, torch.bool)
            if dtype_of(expression) != torch.bool:
                found = self.call(operator.ne, found, 0)
        elif not isinstance(found, fx.Node) or not _reads(expression, Score):
            # a score that does not depend on s: Flex needs a tensor, and a derivative that is zero
            found = self.call(operator.add, self.call(operator.mul, self.names["score"], 0.0), found)
        self.graph.output(found)
        self.graph.lint()
        return Function(fx.GraphModule(torch.nn.Module(), self.graph), tuple(self.buffers))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def tensor(self, value: Any, dtype: torch.dtype) -> fx.Node:
        """The value as a node that holds a tensor: numbers are spread over the shape of the query index."""
        if isinstance(value, fx.Node) and not value.meta.get("scalar"):
            return value
        return self.call(torch.full_like, self.like, value, dtype=dtype)

    def value(self, expression: Expression) -> Any:
        """A node, or a Python number where the expression is one."""
        if isinstance(expression, Constant):  # True, 1 and 1.0 are equal as keys
            return expression.value
        if expression not in self.known:
            self.known[expression] = self._value(expression)
        return self.known[expression]

    def _value(self, expression: Expression) -> Any:
        match expression:
            case Coordinate(place):
                return self.names[place]
            case Score():
                if "score" not in self.names:
                    raise Unsupported("the mask depends on the scores, which FlexAttention's mask function doesn't see")
                return self.names["score"]
            case Size(node):
                self.buffers[node].meta["scalar"] = True
                return self.buffers[node]
            case Load(tensor, index):
                return self.load(tensor, index)
            case Apply(op, arguments, dtype):
                return self.apply(op, arguments, dtype)
        raise TypeError(f"{type(expression).__name__} is no expression")

    def load(self, tensor: fx.Node, index: tuple[Expression, ...]) -> fx.Node:
        buffer = self.buffers[tensor]
        if not index:
            return buffer
        # indices must all be tensors: only then does Flex's backward scatter into a captured tensor's gradient
        return self.call(operator.getitem, buffer, tuple(self.tensor(self.value(part), torch.int32) for part in index))

    def apply(self, op: str, arguments: tuple[Expression, ...], dtype: torch.dtype) -> Any:
        values = [self.value(part) for part in arguments]
        scalars = all(not isinstance(value, fx.Node) or value.meta.get("scalar") for value in values)
        if op in ("to", "_to_copy"):
            return self.cast(values[0], dtype_of(arguments[0]), dtype, scalars)
        if op in ("clone", "alias", "detach", "contiguous"):
            return values[0]
        if op in LOGIC or op in ("logical_not", "bitwise_not"):
            return self.logic(op, values, arguments, scalars)
        if scalars:
            return self.fold(op, values)
        if op in INFIX:
            return self.call(INFIX[op], *values)
        function = getattr(torch, op, None) or getattr(torch.ops.aten, op, None)
        if function is None:
            raise Unsupported(f"the scores go through {op}, which has no form in FlexAttention's functions")
        if op == "where":  # two numbers would take torch's default dtype
            values[0] = self.tensor(values[0], torch.bool)
            if not any(isinstance(value, fx.Node) for value in values[1:]):
                values[1] = self.tensor(values[1], dtype)
        elif op in ("minimum", "maximum"):
            values = [self.tensor(v, dtype_of(part)) for v, part in zip(values, arguments, strict=True)]
        else:
            values[0] = self.tensor(values[0], dtype_of(arguments[0]))
        return self.call(function, *values)

    def cast(self, value: Any, source: torch.dtype, goal: torch.dtype, scalar: bool) -> Any:
        if scalar and not isinstance(value, fx.Node):
            return bool(value) if goal == torch.bool else float(value) if goal.is_floating_point else int(value)
        if source.is_floating_point and goal.is_floating_point:
            return value  # a kernel keeps float32 from the first contraction to the second: rounding between would only lose
        wide = torch.float32 if goal.is_floating_point and goal.itemsize < 4 else goal
        if source == wide:
            return value
        return self.call(torch.Tensor.to, self.tensor(value, source), wide)

    def logic(self, op: str, values: list[Any], arguments: tuple[Expression, ...], scalars: bool) -> Any:
        truths = op.startswith("logical")
        if truths:
            values = [self.truth(v, part) for v, part in zip(values, arguments, strict=True)]
        if op in LOGIC:
            return LOGIC[op](*values) if not any(isinstance(v, fx.Node) for v in values) else self.call(LOGIC[op], *values)
        if isinstance(values[0], fx.Node):
            return self.call(operator.invert, values[0])
        return not values[0] if isinstance(values[0], bool) else ~values[0]

    def truth(self, value: Any, part: Expression) -> Any:
        if not isinstance(value, fx.Node):
            return bool(value)
        return value if dtype_of(part) == torch.bool else self.call(operator.ne, value, 0)

    def fold(self, op: str, values: list[Any]) -> Any:
        if op in INFIX and any(isinstance(value, fx.Node) for value in values):  # symbolic integers
            node = self.call(INFIX[op], *values)
            node.meta["scalar"] = True
            return node
        if op == "where" and not isinstance(values[0], fx.Node):
            return values[1] if values[0] else values[2]
        function = INFIX.get(op) or SCALAR.get(op)
        if function is None or any(isinstance(value, fx.Node) for value in values):
            values[0] = self.tensor(values[0], torch.float32)
            return self.call(getattr(torch, op), *values)
        return function(*values)


def _reads(expression: Expression, kind: type[Expression]) -> bool:
    return any(isinstance(part, kind) for part in expression.walk())


def check(expression: Expression) -> None:
    """Raise Unsupported where a dtype in the expression has no form in a kernel (complex, float8)."""
    for part in expression.walk():
        dtype = dtype_of(part)
        if dtype.is_complex or (dtype.is_floating_point and dtype.itemsize < 2):
            raise Unsupported(f"the scores meet a tensor of dtype {dtype_name(dtype)}, which FlexAttention does not take")
