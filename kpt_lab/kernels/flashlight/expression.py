"""One element of an attention's scores as an expression of its place: (batch, head, query, key) and captured tensors.

The matcher writes these expressions, the lowering turns them into FlexAttention's functions and block masks, and
`explain()` prints them. An expression says what one element is, never how a tensor is laid out, so that views, transposes,
expansions and slices have already become arithmetic on the coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

Place = Literal["b", "h", "q", "k"]
PLACES: tuple[Place, ...] = ("b", "h", "q", "k")


@dataclass(frozen=True)
class Expression:
    """Base of all expressions; equality is structural, fx nodes compare by identity."""

    def children(self) -> tuple[Expression, ...]:
        """The expressions directly below this one."""
        return ()

    def walk(self) -> Iterator[Expression]:
        """This expression and everything below it, parents first."""
        yield self
        for child in self.children():
            yield from child.walk()

    def __str__(self) -> str:
        return readable(self)


@dataclass(frozen=True)
class Constant(Expression):
    """A number or truth value known when the graph was captured."""

    value: bool | int | float


@dataclass(frozen=True)
class Size(Expression):
    """An integer that is known only when the graph runs: a node of the graph that gives a symbolic integer."""

    node: fx.Node


@dataclass(frozen=True)
class Coordinate(Expression):
    """The batch, head, query or key index of the element."""

    place: Place


@dataclass(frozen=True)
class Score(Expression):
    """The element of query times key, before scale, bias and mask."""


@dataclass(frozen=True)
class Load(Expression):
    """One element of a captured tensor (a node of the graph that does not depend on the scores)."""

    tensor: fx.Node
    index: tuple[Expression, ...]

    def children(self) -> tuple[Expression, ...]:
        """The indices."""
        return self.index


@dataclass(frozen=True)
class Apply(Expression):
    """A pointwise operation; `op` is the name of an ATen operator ("add", "where", "ge"), `dtype` that of its result.

    "to" casts to `dtype`. Integer division is "floor_divide", the remainder that takes the divisor's sign "remainder".
    """

    op: str
    arguments: tuple[Expression, ...]
    dtype: torch.dtype

    def children(self) -> tuple[Expression, ...]:
        """The operands."""
        return self.arguments


def replace(expression: Expression, change: Callable[[Expression], Expression | None]) -> Expression:
    """The expression with every part for which `change` gives another one replaced; parents are asked first."""
    changed = change(expression)
    if changed is not None:
        return changed
    match expression:
        case Load(tensor, index):
            return Load(tensor, tuple(replace(part, change) for part in index))
        case Apply(op, arguments, dtype):
            return Apply(op, tuple(replace(part, change) for part in arguments), dtype)
    return expression


# ---- reading it

_INFIX = {
    "add": "+", "sub": "-", "mul": "·", "div": "/", "floor_divide": "//", "remainder": "mod", "pow": "^",
    "ge": "≥", "gt": ">", "le": "≤", "lt": "<", "eq": "=", "ne": "≠",
    "logical_and": "and", "logical_or": "or", "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor",
}  # fmt: skip
_PREFIX = {"neg": "-", "logical_not": "not ", "bitwise_not": "not "}


def readable(expression: Expression) -> str:
    """The expression as one line of mathematics: `where(q ≥ k, s · 0.125, -inf)`."""
    match expression:
        case Constant(value):
            return f"{value:g}" if isinstance(value, float) else str(value)
        case Size(node):
            return str(node.meta.get("val", node.name))
        case Coordinate(place):
            return place
        case Score():
            return "s"
        case Load(tensor, index):
            return f"{tensor.name}[{', '.join(map(readable, index))}]"
        case Apply("to", (operand,), dtype):
            return readable(operand) if dtype.is_floating_point else f"{str(dtype).removeprefix('torch.')}({readable(operand)})"
        case Apply(op, (left, right), _) if op in _INFIX:
            return f"{_grouped(left)} {_INFIX[op]} {_grouped(right)}"
        case Apply(op, (operand,), _) if op in _PREFIX:
            return f"{_PREFIX[op]}{_grouped(operand)}"
        case Apply(op, arguments, _):
            return f"{op}({', '.join(map(readable, arguments))})"
    if type(expression).__str__ is not Expression.__str__:  # the matcher's own, while it works
        return str(expression)
    raise TypeError(f"{type(expression).__name__} is not an expression that can be read")


def _grouped(expression: Expression) -> str:
    text = readable(expression)
    simple = not isinstance(expression, Apply) or (expression.op not in _INFIX and expression.op != "to")
    return text if simple or " " not in text else f"({text})"


# ---- what the matcher found

Fill = Literal["none", "finite", "infinite", "zero"]


@dataclass(frozen=True)
class Operand:
    """A tensor of the graph with the place of each of its dimensions, which the lowering permutes to (b, h, l, d).

    node:   the tensor; its own layout is kept, nothing is copied by the matcher.
    dims:   for b, h, l and d in that order, the dimensions of `node` that are flattened into it; () where there is none
            (then its extent is 1). `heads` below says how many query heads share one key head.
    """

    node: fx.Node
    dims: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """One softmax: softmax over k of `score`, where `mask` holds, times value; all heads of one attention.

    query, key: operands of the first contraction; score: an expression with `Score`, already without the mask.
    scale:      a constant that multiplies Score first, taken out of `score` (1.0 where there is none).
    mask:       True where the key is attended; None where there is no mask.
    fill:       what stood at masked places: decides what a fully masked row gives (finite: the mean of the values over all
                keys, as eager has it; infinite: NaN in eager; zero: 0, because the graph itself guards such rows).
    groups:     query heads that share one key head (GQA); 1 where each has its own.
    coefficient: multiplies this softmax in the sum, an expression of b, h and q; None for 1.
    """

    query: Operand
    key: Operand
    score: Expression
    scale: float | Size | Load
    mask: Expression | None
    fill: Fill
    groups: int
    coefficient: Expression | None = None


@dataclass(frozen=True)
class Attention:
    """A matched attention: the sum over parts of coefficient times softmax, times value.

    softmaxes: the graph's softmax nodes, one per part.     output: the node that the lowering replaces.
    dims:      for b, h, q and d, the dimensions of `output` that each is unflattened into.
    dtype:     of the probabilities where they meet the values; dropout: probability that an element is dropped, 0.0 for none.
    """

    parts: tuple[Part, ...]
    value: Operand
    softmaxes: tuple[fx.Node, ...]
    output: fx.Node
    dims: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    dropout: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """A softmax that is left as it is, and the reason in one sentence, proved from the graph."""

    softmax: fx.Node
    reason: str


@dataclass(frozen=True)
class Lowering:
    """What replaced an attention: the kernel's name, why, and what else was measured (seconds by kernel; empty on a CPU).

    asked: what FlexAttention's options were looked up for, one for each part that it computes. unraced: those of them for which
    nobody has measured anything, each with whether FlashAttention-3 could take it too.
    """

    kernel: str
    reason: str
    measured: dict[str, float]
    checked: str = ""
    asked: tuple[Any, ...] = ()
    unraced: tuple[Any, ...] = ()


def expressions(attention: Attention) -> list[Expression]:
    """All expressions of an attention's parts."""
    found = [e for p in attention.parts for e in (p.score, p.mask, p.coefficient, p.scale)]
    return [e for e in found if isinstance(e, Expression)]


def plain(part: Part) -> bool:
    """Whether the part is softmax(scale · s) over all keys, with nothing between."""
    return part.mask is None and isinstance(part.score, Score)
