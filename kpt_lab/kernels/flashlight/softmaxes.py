"""The softmaxes of a graph: the operator, and those written by hand with exp and sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from kpt_lab.kernels.flashlight.atoms import ONE, ZERO, Product, Variable, dtype_of, variables
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Expression, Load
from kpt_lab.kernels.flashlight.index import Reader
from kpt_lab.kernels.flashlight.nodes import Arguments, Index, Unreadable, is_tensor, name_of, value

OPERATORS = ("softmax", "_softmax", "special_softmax", "_safe_softmax")


@dataclass(frozen=True)
class Anchor:
    """One softmax: the node that gives the probabilities, the dimension that it runs over and its input's element.

    guarded: a row without any key gives zeros, as the safe softmax does. divided: by the sum of exponentials, of scores from which
    the largest of the row may have been subtracted or not.
    """

    node: fx.Node
    dim: int
    logits: Callable[[Reader, Index], Expression]
    guarded: bool = False
    divided: bool = False


def find(graph: fx.Graph, reader: Reader) -> list[Anchor]:
    """All softmaxes in the order of the graph; `reader` must not treat any of them as opaque."""
    found = []
    for node in graph.nodes:
        if not is_tensor(node) or not value(node).dim():
            continue
        name = name_of(node)
        if name in OPERATORS:
            source, dim = node.args[0], Arguments(node).dim % value(node).dim()
            found.append(Anchor(node, dim, _element_of(source), name == "_safe_softmax"))
            continue
        rule = {"div": _quotient, "exp": _exponential, "mul": _quotient}.get(name)
        try:
            anchor = rule(node, reader) if rule else None
        except (Unreadable, RecursionError):
            anchor = None
        if anchor is not None:
            found.append(anchor)
    return found


def _element_of(source: fx.Node) -> Callable[[Reader, Index], Expression]:
    return lambda reader, index: reader.element(source, index)


def _places(node: fx.Node, reader: Reader) -> Index:
    return tuple(ZERO if n == ONE else Variable(f"y{i}", n) for i, n in enumerate(reader.shape(node)))


def bare(expression: Expression) -> Expression:
    """Without casts between floating dtypes around it."""
    while isinstance(expression, Apply) and expression.op == "to" and expression.dtype.is_floating_point:
        expression = expression.arguments[0]
    return expression


def holds(factor: Expression) -> Expression | None:
    """The condition of a factor that is 1 where it holds and else 0."""
    inner = bare(factor)
    if dtype_of(inner) is torch.bool:
        return inner
    match inner:
        case Apply("where", (condition, Constant(one), Constant(zero)), _) if one == 1 and zero == 0:
            return condition
    return None


def exponent(expression: Expression) -> Expression | None:
    """x of an element that is exp(x), or exp(x) where a condition holds and else 0."""
    match bare(expression):
        case Apply("exp", (inner,), _):
            return inner
        case Apply("where", (condition, kept, Constant(value)), dtype) if value == 0 and not isinstance(value, bool):
            inner_ = exponent(kept)
            return None if inner_ is None else Apply("where", (condition, inner_, Constant(float("-inf"))), dtype)
        case Apply("mul", (left, right), dtype):
            for side, other in ((left, right), (right, left)):
                inner_ = exponent(side)
                held = holds(other)
                if inner_ is not None and held is not None:
                    return Apply("where", (held, inner_, Constant(float("-inf"))), dtype)
    return None


def _reduced(load: Expression, name: str, index: Index, reader: Reader) -> tuple[int, Expression] | None:
    """For an element of a reduction over one dimension: which place of `index` it runs over, and the reduced element there."""
    node = load.tensor if isinstance(load, Load) else load.node if isinstance(load, Product) else None
    if node is None or name_of(node) != name or not isinstance(load, (Load, Product)):
        return None
    a = Arguments(node)
    source, dims = a.values["self"], a.get("dim")
    rank = value(source).dim()
    if dims is None or (not isinstance(dims, int) and len(dims) != 1):
        return None
    dim = (dims if isinstance(dims, int) else dims[0]) % rank
    used = frozenset().union(*(variables(i) for i in load.index)) if load.index else frozenset()
    missing = [i for i, place in enumerate(index) if isinstance(place, Variable) and place not in used]
    if len(missing) != 1:
        return None
    rest = load.index[dim + 1 :] if a.keepdim else load.index[dim:]
    place = index[missing[0]]
    if not isinstance(place, Variable) or reader.shape(source)[dim] != place.extent:
        return None
    return missing[0], reader.element(source, (*load.index[:dim], place, *rest))


def _quotient(node: fx.Node, reader: Reader) -> Anchor | None:
    """exp(x) / exp(x).sum(dim), or exp(x) times the reciprocal of the sum."""
    left, right = list(Arguments(node).values.values())[:2]
    if not (is_tensor(left) and is_tensor(right)):
        return None
    index = _places(node, reader)
    divisor = bare(reader.broadcast(right, index))
    if name_of(node) == "mul":
        match divisor:
            case Apply("div", (Constant(value=1), inner), _):
                divisor = bare(inner)
            case _:
                return None
    reduced = _reduced(divisor, "sum", index, reader)
    if reduced is None:
        return None
    dim, summed = reduced
    above = reader.broadcast(left, index)
    if exponent(above) is None or bare(summed) != bare(above):
        return None

    def logits(reader: Reader, index: Index) -> Expression:
        found = exponent(reader.broadcast(left, index))
        if found is None:
            raise Unreadable("the exponent of a hand-written softmax can't be read")
        return found

    return Anchor(node, dim, logits, divided=True)


def _exponential(node: fx.Node, reader: Reader) -> Anchor | None:
    """exp(x - logsumexp(x, dim)) and exp(log_softmax(x, dim))."""
    source, index = node.args[0], _places(node, reader)
    assert isinstance(source, fx.Node)
    match bare(reader.element(source, index)):
        case Load(inner, at) if name_of(inner) in ("log_softmax", "_log_softmax", "special_log_softmax") and at == index:
            return Anchor(node, Arguments(inner).dim % len(index), _element_of(inner.args[0]))  # type: ignore[arg-type]
        case Apply("sub", (logit, shift), _):
            reduced = _reduced(bare(shift), "logsumexp", index, reader)
            if reduced is None or bare(reduced[1]) != bare(logit):
                return None
            return Anchor(node, reduced[0], _minuend(source))
    return None


def _minuend(source: fx.Node) -> Callable[[Reader, Index], Expression]:
    def logits(reader: Reader, index: Index) -> Expression:
        match bare(reader.element(source, index)):
            case Apply("sub", (logit, _), _):
                return logit
        raise Unreadable("the exponent of a hand-written softmax can't be read")

    return logits
