"""What expressions are made of while the matcher works: variables without a role yet, products of the graph, dtypes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kpt_lab.kernels.flashlight.expression import Apply, Constant, Coordinate, Expression, Load, Score, Size

INTEGERS = (torch.int64, torch.int32)  # narrower ones wrap too soon to be taken for whole numbers
TRUE, FALSE, ZERO, ONE = Constant(True), Constant(False), Constant(0), Constant(1)


@dataclass(frozen=True)
class Variable(Expression):
    """A coordinate while its role is not known yet: 0 <= name < extent."""

    name: str
    extent: Expression

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Product(Expression):
    """One element of a contraction of the graph (matmul, einsum, ...), without what baddbmm adds to it."""

    node: torch.fx.Node
    index: tuple[Expression, ...]

    def children(self) -> tuple[Expression, ...]:
        """The indices."""
        return self.index

    def __str__(self) -> str:
        return f"{self.node.name}[{', '.join(map(str, self.index))}]"


def dtype_of(expression: Expression) -> torch.dtype:
    """The dtype of an expression's elements: int64 for coordinates and sizes, float32 for the score and a bare float."""
    match expression:
        case Constant(value):
            return torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float32
        case Size(node):
            return torch.float64 if isinstance(node.meta.get("val"), (float, torch.SymFloat)) else torch.int64
        case Variable() | Coordinate():
            return torch.int64
        case Score():
            return torch.float32
        case Load(node, _) | Product(node, _):
            held = node.meta.get("val", node.meta.get("example_value"))
            if not isinstance(held, torch.Tensor):
                raise TypeError(f"node {node.name!r} has no tensor in its meta; expressions load tensors only")
            return held.dtype
        case Apply(_, _, dtype):
            return dtype
    raise TypeError(f"{type(expression).__name__} has no dtype")


def is_integer(expression: Expression) -> bool:
    """Whether it is a whole number that may be treated as one (int32, int64)."""
    return dtype_of(expression) in INTEGERS


def variables(expression: Expression) -> frozenset[Variable]:
    """The variables in it, those in the indices of its loads included."""
    return frozenset(part for part in expression.walk() if isinstance(part, Variable))
