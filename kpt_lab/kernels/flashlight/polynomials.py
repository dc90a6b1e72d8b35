"""Whole numbers as polynomials over atoms (coordinates, variables, sizes, whatever is no polynomial), and their bounds.

Everything here is exact for int32 and int64 without overflow. Coordinates and variables are at least 0, a variable is less
than its extent, and sizes are at least 1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product as combinations

import torch

from kpt_lab.kernels.flashlight.atoms import INTEGERS, ZERO, Variable
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Coordinate, Expression, Size

Terms = dict[tuple[Expression, ...], int]  # monomial (its factors in order) -> coefficient


def terms(expression: Expression) -> Terms:
    """The polynomial over atoms that equals an integer expression."""
    match expression:
        case Constant(value):
            return {(): int(value)} if value else {}
        case Apply("add", (left, right), dtype) if dtype in INTEGERS:
            return plus(terms(left), terms(right))
        case Apply("sub", (left, right), dtype) if dtype in INTEGERS:
            return plus(terms(left), terms(right), -1)
        case Apply("mul", (left, right), dtype) if dtype in INTEGERS:
            return times(terms(left), terms(right))
        case Apply("neg", (operand,), dtype) if dtype in INTEGERS:
            return plus({}, terms(operand), -1)
    return {(expression,): 1}


def plus(left: Terms, right: Terms, sign: int = 1) -> Terms:
    """left + sign · right."""
    total = dict(left)
    for monomial, factor in right.items():
        total[monomial] = total.get(monomial, 0) + sign * factor
    return {monomial: factor for monomial, factor in total.items() if factor}


def times(left: Terms, right: Terms) -> Terms:
    """left · right."""
    total: Terms = {}
    for (a, x), (b, y) in combinations(left.items(), right.items()):
        total = plus(total, {tuple(sorted((*a, *b), key=order)): x * y})
    return total


def order(expression: Expression) -> tuple[int, str]:
    """By what the factors of a monomial are sorted: places first, sizes last."""
    rank = 0 if isinstance(expression, (Variable, Coordinate)) else 1 if not isinstance(expression, Size) else 2
    return rank, f"{expression} {expression.node.name}" if isinstance(expression, Size) else str(expression)


def total(polynomial: Terms) -> Expression:
    """The expression of a polynomial, positive terms first and the constant last."""
    pieces = sorted(polynomial.items(), key=lambda item: (item[0] == (), item[1] < 0, [order(x) for x in item[0]]))
    result: Expression | None = None
    for monomial, factor in pieces:
        factors = [*monomial, *([Constant(abs(factor))] if abs(factor) != 1 or not monomial else [])]
        piece = factors[0]
        for other in factors[1:]:
            piece = Apply("mul", (piece, other), torch.int64)
        if result is None:
            result = piece if factor > 0 else _negated(piece)
        else:
            result = Apply("add" if factor > 0 else "sub", (result, piece), torch.int64)
    return result if result is not None else ZERO


def _negated(piece: Expression) -> Expression:
    return Constant(-piece.value) if isinstance(piece, Constant) else Apply("neg", (piece,), torch.int64)


def ratio(monomial: tuple[Expression, ...], factor: int, divisor: Terms) -> Terms | None:
    """factor · monomial / divisor where that is exact, for a divisor of one term."""
    if len(divisor) != 1:
        return None
    ((below, number),) = divisor.items()
    left = list(monomial)
    for atom in below:
        if atom not in left:
            return None
        left.remove(atom)
    return {tuple(left): factor // number} if number > 0 and factor % number == 0 else None


def quotient(dividend: Expression, divisor: Expression) -> Expression | None:
    """dividend / divisor where every term divides exactly, else None."""
    result: Terms = {}
    for monomial, factor in terms(dividend).items():
        piece = ratio(monomial, factor, terms(divisor))
        if piece is None:
            return None
        result = plus(result, piece)
    return total(result)


def bounds(polynomial: Terms) -> tuple[Terms | None, Terms | None]:
    """Least and largest value as polynomials over sizes; None where unknown."""
    low: Terms | None = {}
    high: Terms | None = {}
    for monomial, factor in polynomial.items():
        least: Terms | None = {(): 1}
        most: Terms | None = {(): 1}
        for atom in monomial:
            a, b = _atom_bounds(atom)
            if len(monomial) > 1 and (a is None or not never_negative(a)):
                least = most = None
                break
            least = times(least, a) if least is not None and a is not None else None
            most = times(most, b) if most is not None and b is not None else None
        if factor < 0:
            least, most = most, least
        low = plus(low, least, factor) if low is not None and least is not None else None
        high = plus(high, most, factor) if high is not None and most is not None else None
    return low, high


def _atom_bounds(atom: Expression) -> tuple[Terms | None, Terms | None]:
    match atom:
        case Constant(value):
            return {(): int(value)}, {(): int(value)}
        case Variable(_, extent):
            return {}, plus(terms(extent), {(): 1}, -1)
        case Coordinate():
            return {}, None
        case Size():
            return {(atom,): 1}, {(atom,): 1}
        case Apply("remainder", (_, divisor), _) if positive(divisor):
            return {}, plus(terms(divisor), {(): 1}, -1)
        case Apply("floor_divide", (dividend, divisor), _) if positive(divisor):
            low, high = bounds(terms(dividend))
            both = number(high), number(terms(divisor))
            top: Terms | None = {(): both[0] // both[1]} if both[0] is not None and both[1] else None
            return ({} if low is not None and never_negative(low) else None), (plus({}, top) if top is not None else None)
        case Apply("abs", _, _):
            return {}, None
        case Apply("where", (_, left, right), _):
            return _hull(bounds(terms(left)), bounds(terms(right)))
        case Apply("maximum", (left, right), _):
            (a, b), (c, d) = bounds(terms(left)), bounds(terms(right))
            return _extreme(a, c, max, one=True), _extreme(b, d, max)
        case Apply("minimum", (left, right), _):
            (a, b), (c, d) = bounds(terms(left)), bounds(terms(right))
            return _extreme(a, c, min), _extreme(b, d, min, one=True)
    return None, None


def number(polynomial: Terms | None) -> int | None:
    """The polynomial's value where it is a constant, else None."""
    if polynomial is None or any(monomial != () for monomial in polynomial):
        return None
    return polynomial.get((), 0)


def _extreme(a: Terms | None, b: Terms | None, pick: Callable[[int, int], int], one: bool = False) -> Terms | None:
    x, y = number(a), number(b)
    if x is not None and y is not None:
        return plus({}, {(): pick(x, y)})
    return (a if a is not None else b) if one else (a if a == b else None)


def _hull(a: tuple, b: tuple) -> tuple[Terms | None, Terms | None]:
    return _extreme(a[0], b[0], min), _extreme(a[1], b[1], max)


def never_negative(polynomial: Terms) -> bool:
    """Whether a polynomial over sizes, each at least 1, can be proved to be at least 0."""
    shifted: Terms = {}
    for monomial, factor in polynomial.items():
        if any(not isinstance(atom, Size) for atom in monomial):
            return False
        for kept in combinations((True, False), repeat=len(monomial)):  # each size is 1 + something
            shifted = plus(shifted, {tuple(x for x, keep in zip(monomial, kept, strict=True) if keep): factor})
    return all(factor >= 0 for factor in shifted.values())


def positive(expression: Expression) -> bool:
    """Whether it is certain to be at least 1."""
    low, _ = bounds(terms(expression))
    return low is not None and never_negative(plus(low, {(): 1}, -1))


def within(polynomial: Terms, divisor: Expression) -> bool:
    """Whether 0 <= polynomial < divisor is certain."""
    low, high = bounds(polynomial)
    if low is None or high is None or not never_negative(low):
        return False
    return never_negative(plus(plus(terms(divisor), high, -1), {(): 1}, -1))
