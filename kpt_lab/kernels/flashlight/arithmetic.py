"""Arithmetic and comparisons of whole numbers that come out simple: exact floor division, remainder of the divisor's sign."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from kpt_lab.kernels.flashlight.atoms import ZERO, is_integer
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Expression
from kpt_lab.kernels.flashlight.polynomials import (
    Terms,
    bounds,
    never_negative,
    number,
    order,
    plus,
    positive,
    quotient,
    ratio,
    terms,
    times,
    total,
    within,
)

COMPARISONS = {"ge": "lt", "gt": "le", "le": "gt", "lt": "ge", "eq": "ne", "ne": "eq"}  # each with its negation
MIRRORED = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt", "eq": "eq", "ne": "ne"}


def _divide(dividend: Expression, divisor: Expression) -> tuple[Expression, Expression]:
    """Floor division and remainder by a positive divisor."""
    whole: Terms = {}
    rest: Terms = {}
    for monomial, factor in terms(dividend).items():
        piece = ratio(monomial, factor, terms(divisor))
        if piece is None and not monomial and (unit := number(terms(divisor))):  # split a constant
            whole, rest = plus(whole, {(): factor // unit}), plus(rest, {(): factor % unit})
        elif piece is None:
            rest = plus(rest, {monomial: factor})
        else:
            whole = plus(whole, piece)
    if within(rest, divisor):
        return total(whole), total(rest)
    remaining = total(rest)
    match remaining:
        case Apply("floor_divide", (inner, below), _) if positive(below):
            floor = arithmetic("floor_divide", inner, arithmetic("mul", below, divisor))
        case Apply("remainder", (inner, below), _) if positive(below) and quotient(below, divisor) is not None:
            floor, again = Apply("floor_divide", (remaining, divisor), torch.int64), arithmetic("remainder", inner, divisor)
            return total(plus(whole, terms(floor))), again
        case _:
            floor = Apply("floor_divide", (remaining, divisor), torch.int64)
    return total(plus(whole, terms(floor))), Apply("remainder", (remaining, divisor), torch.int64)


def arithmetic(op: str, left: Expression, right: Expression) -> Expression:
    """Sum, difference, product, floor division or remainder of whole numbers, simplified."""
    if op == "add":
        return total(plus(terms(left), terms(right)))
    if op == "sub":
        return total(plus(terms(left), terms(right), -1))
    if op == "mul":
        return total(times(terms(left), terms(right)))
    if positive(right):
        floor, rest = _divide(left, right)
        return floor if op == "floor_divide" else rest
    return Apply(op, (left, right), torch.int64)


def compare(op: str, left: Expression, right: Expression) -> Expression:
    """A comparison of whole numbers, decided where the ranges decide it, else written with the query first."""
    difference = plus(terms(left), terms(right), -1)
    decided = _decide(op, difference)
    if decided is not None:
        return Constant(decided)
    constant = difference.pop((), 0)
    leading = min(difference, key=lambda monomial: [order(x)[::1] for x in monomial])
    names = [m for m in difference if len(m) == 1 and str(m[0]).startswith("q")]
    leading = names[0] if names else leading
    if difference[leading] < 0:
        op, constant = MIRRORED[op], -constant
        difference = plus({}, difference, -1)
    if constant and not (abs(constant) == 1 and op in ("ge", "lt", "gt", "le")):
        return Apply(op, (total(difference), Constant(-constant)), torch.bool)
    if constant:
        op, constant = _absorbed(op, constant)
        if constant:
            return Apply(op, (total(difference), Constant(-constant)), torch.bool)
    above = {m: f for m, f in difference.items() if f > 0}
    below = {m: -f for m, f in difference.items() if f < 0}
    return Apply(op, (total(above), total(below)), torch.bool)


def _absorbed(op: str, constant: int) -> tuple[str, int]:
    """`x + 1 > 0` is `x >= 0`, and so on, for whole numbers."""
    swap = {("gt", 1): "ge", ("ge", -1): "gt", ("le", 1): "lt", ("lt", -1): "le"}
    return (swap[op, constant], 0) if (op, constant) in swap else (op, constant)


def _decide(op: str, difference: Terms) -> bool | None:
    low, high = bounds(difference)

    def at_least(value: int) -> bool:
        return low is not None and never_negative(plus(low, {(): value}, -1))

    def at_most(value: int) -> bool:
        return high is not None and never_negative(plus({(): value} if value else {}, high, -1))

    facts = {
        "ge": (at_least(0), at_most(-1)), "gt": (at_least(1), at_most(0)),
        "le": (at_most(0), at_least(1)), "lt": (at_most(-1), at_least(0)),
        "eq": (at_least(0) and at_most(0), at_least(1) or at_most(-1)),
        "ne": (at_least(1) or at_most(-1), at_least(0) and at_most(0)),
    }  # fmt: skip
    return True if facts[op][0] else False if facts[op][1] else None


def extreme(op: str, arguments: tuple[Expression, ...], dtype: torch.dtype) -> Expression:
    """The minimum, maximum or absolute value of whole numbers, decided where the ranges decide it."""
    if op == "abs":
        low, high = bounds(terms(arguments[0]))
        if low is not None and never_negative(low):
            return arguments[0]
        if high is not None and never_negative(plus({}, high, -1)):
            return arithmetic("sub", ZERO, arguments[0])
        return Apply(op, arguments, dtype)
    left, right = arguments
    difference = plus(terms(left), terms(right), -1)
    if _decide("ge", difference):
        return left if op == "maximum" else right
    if _decide("le", difference):
        return right if op == "maximum" else left
    return Apply(op, arguments, dtype)


def inequality(op: str, left: Expression, right: Expression) -> tuple[Terms, bool] | None:
    """`left op right` as a polynomial, and whether it says that it is 0 (True) or at least 0 (False); None for other comparisons.

    So q >= k, k <= q, k < q + 1 and not (k > q), simplified, are one and the same.
    """
    if not (is_integer(left) and is_integer(right)) or op not in ("ge", "gt", "le", "lt", "eq"):
        return None
    if op in ("le", "lt"):
        left, right = right, left
    return plus(plus(terms(left), terms(right), -1), {(): 1} if op in ("gt", "lt") else {}, -1), op == "eq"


def at_least_zero(condition: Expression) -> Terms | None:
    """The polynomial that a comparison of integers says is at least 0, None for equalities and anything else."""
    if not isinstance(condition, Apply) or len(condition.arguments) != 2:
        return None
    found = inequality(condition.op, *condition.arguments)
    return None if found is None or found[1] else found[0]


def symbolic(expr: Any, named: Callable[[Any], Expression | None]) -> Expression | None:
    """What sympy says of a size as an expression; `named` gives what stands for a symbol. None where it can't be read."""
    if expr.is_Integer:
        return Constant(int(expr))
    kind, arguments = type(expr).__name__, expr.args
    if kind == "Pow" and arguments[1].is_Integer and int(arguments[1]) > 0:
        kind, arguments = "Mul", (arguments[0],) * int(arguments[1])
    op = {"Add": "add", "Mul": "mul", "FloorDiv": "floor_divide"}.get(kind)
    if op is not None:
        parts = [symbolic(part, named) for part in arguments]
        if all(part is not None for part in parts):
            return reduce(lambda one, other: arithmetic(op, one, other), parts)  # type: ignore[arg-type]
    return named(expr)
