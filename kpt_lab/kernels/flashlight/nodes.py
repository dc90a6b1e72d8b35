"""What a node of a captured graph is: its operator, its arguments by name, what it holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from kpt_lab.kernels.flashlight.expression import Expression

Index = tuple[Expression, ...]

SAME_SHAPE = {  # ATen's name -> ours, for operations whose operands are all tensors or numbers
    "add": "add", "sub": "sub", "mul": "mul", "multiply": "mul", "subtract": "sub", "div": "div", "true_divide": "div",
    "divide": "div", "floor_divide": "floor_divide", "remainder": "remainder", "fmod": "fmod", "pow": "pow", "neg": "neg",
    "negative": "neg", "abs": "abs", "absolute": "abs", "tanh": "tanh", "exp": "exp", "exp2": "exp2", "expm1": "expm1",
    "log": "log", "log2": "log2", "log1p": "log1p", "sigmoid": "sigmoid", "sqrt": "sqrt", "rsqrt": "rsqrt", "sin": "sin",
    "cos": "cos", "erf": "erf", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "sign": "sign", "minimum": "minimum",
    "maximum": "maximum", "ge": "ge", "gt": "gt", "le": "le", "lt": "lt", "eq": "eq", "ne": "ne", "greater_equal": "ge",
    "greater": "gt", "less_equal": "le", "less": "lt", "not_equal": "ne", "logical_and": "logical_and",
    "logical_or": "logical_or", "logical_xor": "logical_xor", "logical_not": "logical_not", "bitwise_and": "bitwise_and",
    "bitwise_or": "bitwise_or", "bitwise_xor": "bitwise_xor", "bitwise_not": "bitwise_not", "__and__": "bitwise_and",
    "__or__": "bitwise_or", "__xor__": "bitwise_xor", "isnan": "isnan", "isinf": "isinf", "round": "round",
    "bitwise_left_shift": "bitwise_left_shift", "bitwise_right_shift": "bitwise_right_shift",
    "__lshift__": "bitwise_left_shift", "__rshift__": "bitwise_right_shift",
}  # fmt: skip
IDENTITIES = {"alias", "clone", "contiguous", "lift_fresh_copy", "lift_fresh", "lift", "view_as_real_copy", "positive"}
RESHAPES = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_copy", "_reshape_alias", "view_as", "reshape_as",
}  # fmt: skip
CONTRACTIONS = {"matmul", "bmm", "mm", "einsum", "baddbmm", "addmm", "linear"}  # and a product that is summed


class Unreadable(Exception):
    """An element can't be written as an expression; the message says why."""


def name_of(node: fx.Node) -> str:
    """The ATen operator's name without its overload, or "" for other nodes."""
    target = node.target
    if node.op == "call_function" and isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return target._schema.name.removeprefix("aten::")
    return ""


def value(node: fx.Node) -> Any:
    """What the node holds, as a fake tensor or symbolic number."""
    return node.meta.get("val", node.meta.get("example_value"))


def is_tensor(node: Any) -> bool:
    """Whether the argument is a node that holds a tensor."""
    return isinstance(node, fx.Node) and isinstance(value(node), torch.Tensor)


class Arguments:
    """The arguments of an ATen node by the names in its schema, defaults filled in."""

    def __init__(self, node: fx.Node) -> None:
        schema = node.target._schema  # type: ignore[union-attr]
        self.values: dict[str, Any] = {}
        for i, argument in enumerate(schema.arguments):
            if i < len(node.args):
                self.values[argument.name] = node.args[i]
            elif argument.name in node.kwargs:
                self.values[argument.name] = node.kwargs[argument.name]
            else:
                self.values[argument.name] = argument.default_value if argument.has_default_value() else None

    def __getattr__(self, name: str) -> Any:
        return self.values[name.rstrip("_")]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of that name, or the default where the schema has none."""
        return self.values.get(name, default)


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether it only has a shape and a dtype."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)
