"""Expressions built so that they come out simple: integer polynomials with division, comparisons, logic and `where`.

`apply` is the one constructor that index.py and match.py use. Everything it does is exact for the integers (int32 and int64
without overflow, floor division and the remainder of the divisor's sign) and for truth values; floating-point arithmetic is
only folded where all operands are constants, in the dtype of the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product as combinations

import torch

from kpt_lab.kernels.flashlight.expression import Apply, Constant, Coordinate, Expression, Load, Score, Size

Terms = dict[tuple[Expression, ...], int]  # monomial (its factors in order) -> coefficient

INTEGERS = (torch.int64, torch.int32)  # narrower ones wrap too soon to be taken for whole numbers
COMPARISONS = {"ge": "lt", "gt": "le", "le": "gt", "lt": "ge", "eq": "ne", "ne": "eq"}  # each with its negation
MIRRORED = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt", "eq": "eq", "ne": "ne"}
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
    """The dtype of the element that an expression gives; a bare float counts as float32."""
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
            return node.meta["val"].dtype
        case Apply(_, _, dtype):
            return dtype
    raise TypeError(f"{type(expression).__name__} has no dtype")


def is_integer(expression: Expression) -> bool:
    """Whether it is a whole number that may be treated as one (int32, int64)."""
    return dtype_of(expression) in INTEGERS


def variables(expression: Expression) -> frozenset[Variable]:
    """The variables in it, those in the indices of its loads included."""
    return frozenset(part for part in expression.walk() if isinstance(part, Variable))


# ---- whole numbers


def terms(expression: Expression) -> Terms:
    """The polynomial over atoms that equals an integer expression."""
    match expression:
        case Constant(value):
            return {(): int(value)} if value else {}
        case Apply("add", (left, right), dtype) if dtype in INTEGERS:
            return _plus(terms(left), terms(right))
        case Apply("sub", (left, right), dtype) if dtype in INTEGERS:
            return _plus(terms(left), terms(right), -1)
        case Apply("mul", (left, right), dtype) if dtype in INTEGERS:
            return _times(terms(left), terms(right))
        case Apply("neg", (operand,), dtype) if dtype in INTEGERS:
            return _plus({}, terms(operand), -1)
    return {(expression,): 1}


def _plus(left: Terms, right: Terms, sign: int = 1) -> Terms:
    total = dict(left)
    for monomial, factor in right.items():
        total[monomial] = total.get(monomial, 0) + sign * factor
    return {monomial: factor for monomial, factor in total.items() if factor}


def _times(left: Terms, right: Terms) -> Terms:
    total: Terms = {}
    for (a, x), (b, y) in combinations(left.items(), right.items()):
        total = _plus(total, {tuple(sorted((*a, *b), key=_order)): x * y})
    return total


def _order(expression: Expression) -> tuple[int, str]:
    rank = 0 if isinstance(expression, (Variable, Coordinate)) else 1 if not isinstance(expression, Size) else 2
    return rank, f"{expression} {expression.node.name}" if isinstance(expression, Size) else str(expression)


def total(polynomial: Terms) -> Expression:
    """The expression of a polynomial, positive terms first and the constant last."""
    pieces = sorted(polynomial.items(), key=lambda item: (item[0] == (), item[1] < 0, [_order(x) for x in item[0]]))
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


def _ratio(monomial: tuple[Expression, ...], factor: int, divisor: Terms) -> Terms | None:
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
        piece = _ratio(monomial, factor, terms(divisor))
        if piece is None:
            return None
        result = _plus(result, piece)
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
            least = _times(least, a) if least is not None and a is not None else None
            most = _times(most, b) if most is not None and b is not None else None
        if factor < 0:
            least, most = most, least
        low = _plus(low, least, factor) if low is not None and least is not None else None
        high = _plus(high, most, factor) if high is not None and most is not None else None
    return low, high


def _atom_bounds(atom: Expression) -> tuple[Terms | None, Terms | None]:
    match atom:
        case Constant(value):
            return {(): int(value)}, {(): int(value)}
        case Variable(_, extent):
            return {}, _plus(terms(extent), {(): 1}, -1)
        case Size():
            return {(atom,): 1}, {(atom,): 1}
        case Apply("remainder", (_, divisor), _) if _positive(divisor):
            return {}, _plus(terms(divisor), {(): 1}, -1)
        case Apply("floor_divide", (dividend, divisor), _) if _positive(divisor):
            low, high = bounds(terms(dividend))
            both = _number(high), _number(terms(divisor))
            top: Terms | None = {(): both[0] // both[1]} if both[0] is not None and both[1] else None
            return ({} if low is not None and never_negative(low) else None), (_plus({}, top) if top is not None else None)
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


def _number(polynomial: Terms | None) -> int | None:
    if polynomial is None or any(monomial != () for monomial in polynomial):
        return None
    return polynomial.get((), 0)


def _extreme(a: Terms | None, b: Terms | None, pick, one: bool = False) -> Terms | None:
    x, y = _number(a), _number(b)
    if x is not None and y is not None:
        return _plus({}, {(): pick(x, y)})
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
            shifted = _plus(shifted, {tuple(x for x, keep in zip(monomial, kept, strict=True) if keep): factor})
    return all(factor >= 0 for factor in shifted.values())


def _positive(expression: Expression) -> bool:
    low, _ = bounds(terms(expression))
    return low is not None and never_negative(_plus(low, {(): 1}, -1))


def within(polynomial: Terms, divisor: Expression) -> bool:
    """Whether 0 <= polynomial < divisor is certain."""
    low, high = bounds(polynomial)
    if low is None or high is None or not never_negative(low):
        return False
    return never_negative(_plus(_plus(terms(divisor), high, -1), {(): 1}, -1))


def _divide(dividend: Expression, divisor: Expression) -> tuple[Expression, Expression]:
    """Floor division and remainder by a positive divisor."""
    whole: Terms = {}
    rest: Terms = {}
    for monomial, factor in terms(dividend).items():
        piece = _ratio(monomial, factor, terms(divisor))
        if piece is None and not monomial and (number := _number(terms(divisor))):  # split a constant
            whole, rest = _plus(whole, {(): factor // number}), _plus(rest, {(): factor % number})
        elif piece is None:
            rest = _plus(rest, {monomial: factor})
        else:
            whole = _plus(whole, piece)
    if within(rest, divisor):
        return total(whole), total(rest)
    remaining = total(rest)
    match remaining:
        case Apply("floor_divide", (inner, below), _) if _positive(below):
            floor = arithmetic("floor_divide", inner, arithmetic("mul", below, divisor))
        case Apply("remainder", (inner, below), _) if _positive(below) and quotient(below, divisor) is not None:
            floor, again = Apply("floor_divide", (remaining, divisor), torch.int64), arithmetic("remainder", inner, divisor)
            return total(_plus(whole, terms(floor))), again
        case _:
            floor = Apply("floor_divide", (remaining, divisor), torch.int64)
    return total(_plus(whole, terms(floor))), Apply("remainder", (remaining, divisor), torch.int64)


def arithmetic(op: str, left: Expression, right: Expression) -> Expression:
    """Sum, difference, product, floor division or remainder of whole numbers, simplified."""
    if op == "add":
        return total(_plus(terms(left), terms(right)))
    if op == "sub":
        return total(_plus(terms(left), terms(right), -1))
    if op == "mul":
        return total(_times(terms(left), terms(right)))
    if _positive(right):
        floor, rest = _divide(left, right)
        return floor if op == "floor_divide" else rest
    return Apply(op, (left, right), torch.int64)


def compare(op: str, left: Expression, right: Expression) -> Expression:
    """A comparison of whole numbers, decided where the ranges decide it, else written with the query first."""
    difference = _plus(terms(left), terms(right), -1)
    decided = _decide(op, difference)
    if decided is not None:
        return Constant(decided)
    constant = difference.pop((), 0)
    leading = min(difference, key=lambda monomial: [_order(x)[::1] for x in monomial])
    names = [m for m in difference if len(m) == 1 and str(m[0]).startswith("q")]
    leading = names[0] if names else leading
    if difference[leading] < 0:
        op, constant = MIRRORED[op], -constant
        difference = _plus({}, difference, -1)
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
        return low is not None and never_negative(_plus(low, {(): value}, -1))

    def at_most(value: int) -> bool:
        return high is not None and never_negative(_plus({(): value} if value else {}, high, -1))

    facts = {
        "ge": (at_least(0), at_most(-1)), "gt": (at_least(1), at_most(0)),
        "le": (at_most(0), at_least(1)), "lt": (at_most(-1), at_least(0)),
        "eq": (at_least(0) and at_most(0), at_least(1) or at_most(-1)),
        "ne": (at_least(1) or at_most(-1), at_least(0) and at_most(0)),
    }  # fmt: skip
    return True if facts[op][0] else False if facts[op][1] else None


# ---- truth values


def negate(expression: Expression) -> Expression:
    """not expression, with the negation pushed down to the comparisons."""
    match expression:
        case Constant(value):
            return Constant(not value)
        case Apply("logical_not", (operand,), _):
            return operand
        case Apply(op, (left, right), _) if op in COMPARISONS and (
            (is_integer(left) and is_integer(right)) or op in ("eq", "ne")
        ):
            return Apply(COMPARISONS[op], (left, right), torch.bool)
        case Apply("logical_and", (left, right), _):
            return either(negate(left), negate(right))
        case Apply("logical_or", (left, right), _):
            return both(negate(left), negate(right))
    return Apply("logical_not", (expression,), torch.bool)


def conjuncts(expression: Expression | None) -> tuple[Expression, ...]:
    """The conditions that are joined by `and`; none for None."""
    match expression:
        case None:
            return ()
        case Apply("logical_and", (left, right), _):
            return (*conjuncts(left), *conjuncts(right))
    return (expression,)


def _disjuncts(expression: Expression) -> tuple[Expression, ...]:
    match expression:
        case Apply("logical_or", (left, right), _):
            return (*_disjuncts(left), *_disjuncts(right))
    return (expression,)


def both(left: Expression, right: Expression) -> Expression:
    """left and right."""
    return _joined("logical_and", [*conjuncts(left), *conjuncts(right)], neutral=True)


def either(left: Expression, right: Expression) -> Expression:
    """left or right."""
    return _joined("logical_or", [*_disjuncts(left), *_disjuncts(right)], neutral=False)


def _joined(op: str, parts: list[Expression], neutral: bool) -> Expression:
    kept: list[Expression] = []
    for part in parts:
        if part == Constant(not neutral) or negate(part) in kept:
            return Constant(not neutral)
        if part != Constant(neutral) and part not in kept:
            kept.append(part)
    result: Expression = kept[0] if kept else Constant(neutral)
    for part in kept[1:]:
        result = Apply(op, (result, part), torch.bool)
    return result


# ---- everything


def _is_choice(expression: Expression) -> bool:
    """Whether it is a number chosen by conditions: constants below `where`."""
    match expression:
        case Apply("where", (_, left, right), _):
            return all(isinstance(side, Constant) or _is_choice(side) for side in (left, right))
    return False


def fold(op: str, values: tuple[bool | int | float, ...], dtype: torch.dtype) -> Constant:
    """The result of an operation on constants, in the arithmetic of `dtype`."""
    wide = dtype if dtype.is_floating_point else torch.float64

    def tensor(value: bool | int | float) -> torch.Tensor:
        return torch.tensor(value, dtype=wide if isinstance(value, float) else None)

    if op == "to":
        result = tensor(values[0]).to(dtype)
    else:
        function = getattr(torch, op, None) or getattr(torch.ops.aten, op)
        operands = [tensor(value) for value in values]
        if dtype.is_floating_point:
            operands = [operand.to(dtype) for operand in operands]
        result = function(*operands).to(dtype)
    return Constant(result.item())


def apply(op: str, arguments: tuple[Expression, ...], dtype: torch.dtype) -> Expression:
    """The pointwise operation as an expression, simplified where that is exact."""
    if op == "where":
        condition, left, right = arguments
        return choose(condition, left, right, dtype)
    if dtype is torch.bool and op in ("mul", "bitwise_and", "logical_and", "minimum"):
        return both(*(truth(x) for x in arguments))
    if dtype is torch.bool and op in ("add", "bitwise_or", "logical_or", "maximum"):
        return either(*(truth(x) for x in arguments))
    if op == "logical_not" or (op == "bitwise_not" and dtype is torch.bool):
        return negate(truth(arguments[0]))
    if op in ("logical_xor", "bitwise_xor") and dtype is torch.bool:
        a, b = (truth(x) for x in arguments)
        return either(both(a, negate(b)), both(negate(a), b))
    if op == "logical_and" or op == "logical_or":
        raise AssertionError(f"{op} gives truth values")
    if all(isinstance(x, Constant) for x in arguments):
        return fold(op, tuple(x.value for x in arguments if isinstance(x, Constant)), dtype)
    if all(isinstance(x, Constant) or _is_choice(x) for x in arguments):
        return _distribute(op, arguments, dtype)
    if op == "to":
        return cast(arguments[0], dtype)
    if op in COMPARISONS:
        return _comparison(op, *arguments)
    if dtype in INTEGERS and all(map(is_integer, arguments)):
        if op in ("add", "sub", "mul", "floor_divide", "remainder"):
            return arithmetic(op, *arguments)
        if op == "neg":
            return arithmetic("sub", ZERO, arguments[0])
        if op in ("minimum", "maximum", "abs"):
            return _extremes(op, arguments, dtype)
    return _without_neutral(op, arguments, dtype)


def _extremes(op: str, arguments: tuple[Expression, ...], dtype: torch.dtype) -> Expression:
    if op == "abs":
        low, high = bounds(terms(arguments[0]))
        if low is not None and never_negative(low):
            return arguments[0]
        if high is not None and never_negative(_plus({}, high, -1)):
            return arithmetic("sub", ZERO, arguments[0])
        return Apply(op, arguments, dtype)
    left, right = arguments
    difference = _plus(terms(left), terms(right), -1)
    if _decide("ge", difference):
        return left if op == "maximum" else right
    if _decide("le", difference):
        return right if op == "maximum" else left
    return Apply(op, arguments, dtype)


def _without_neutral(op: str, arguments: tuple[Expression, ...], dtype: torch.dtype) -> Expression:
    if len(arguments) == 2 and isinstance(arguments[1], Constant):
        neutral = {"add": 0, "sub": 0, "mul": 1, "div": 1, "pow": 1}.get(op)
        if neutral is not None and arguments[1].value == neutral and not isinstance(arguments[1].value, bool):
            return cast(arguments[0], dtype)
    if len(arguments) == 2 and isinstance(arguments[0], Constant) and op in ("add", "mul"):
        return _without_neutral(op, (arguments[1], arguments[0]), dtype)
    return Apply(op, arguments, dtype)


def _distribute(op: str, arguments: tuple[Expression, ...], dtype: torch.dtype) -> Expression:
    """f(where(c, 1, 0), 2) as where(c, f(1, 2), f(0, 2))."""
    for i, argument in enumerate(arguments):
        if isinstance(argument, Apply):
            condition, left, right = argument.arguments
            left, right = (apply(op, (*arguments[:i], side, *arguments[i + 1 :]), dtype) for side in (left, right))
            return choose(condition, left, right, dtype)
    raise AssertionError("there is nothing to distribute over")


def _comparison(op: str, left: Expression, right: Expression) -> Expression:
    if is_integer(left) and is_integer(right):
        return compare(op, left, right)
    for a, b in ((left, right), (right, left)):  # a truth value against a constant
        if dtype_of(a) is torch.bool and isinstance(b, Constant) and op in ("eq", "ne") and b.value in (0, 1):
            return a if bool(b.value) == (op == "eq") else negate(a)
    if dtype_of(left) is torch.bool and dtype_of(right) is torch.bool and op in ("eq", "ne"):
        same = either(both(left, right), both(negate(left), negate(right)))
        return same if op == "eq" else negate(same)
    return Apply(op, (left, right), torch.bool)


def truth(expression: Expression) -> Expression:
    """Whether it is not zero."""
    return cast(expression, torch.bool)


def cast(expression: Expression, dtype: torch.dtype) -> Expression:
    """The expression in another dtype; truth values become where(c, 1, 0)."""
    source = dtype_of(expression)
    if isinstance(expression, Constant):
        return fold("to", (expression.value,), dtype)
    if source == dtype or (source in INTEGERS and dtype in INTEGERS):
        return expression
    if _is_choice(expression):
        return _distribute("to", (expression,), dtype)
    if source is torch.bool:
        number = 1.0 if dtype.is_floating_point else 1
        return choose(expression, Constant(number), Constant(0 * number), dtype)
    if dtype is torch.bool:
        return apply("ne", (expression, ZERO), torch.bool)
    return Apply("to", (expression,), dtype)


def choose(condition: Expression, left: Expression, right: Expression, dtype: torch.dtype) -> Expression:
    """where(condition, left, right)."""
    condition = truth(condition)
    if isinstance(condition, Constant):
        return left if condition.value else right
    if left == right:
        return left
    if dtype is torch.bool:
        return either(both(condition, truth(left)), both(negate(condition), truth(right)))
    left, right = _knowing(left, condition, True), _knowing(right, condition, False)
    flip = isinstance(left, Constant) and not isinstance(right, Constant)
    if flip or (isinstance(condition, Apply) and condition.op == "logical_not"):
        condition, left, right = negate(condition), right, left
    match left, right:  # where(a, where(b, x, y), y) is where(a and b, x, y)
        case Apply("where", (inner, x, y), _), _ if y == right:
            return choose(both(condition, inner), x, y, dtype)
        case _, Apply("where", (inner, x, y), _) if x == left:
            return choose(either(condition, inner), x, y, dtype)
    return Apply("where", (condition, left, right), dtype)


def _knowing(expression: Expression, condition: Expression, value: bool) -> Expression:
    match expression:
        case Apply("where", (same, left, right), _) if same == condition:
            return left if value else right
    return expression


def substitute(expression: Expression, known: Mapping[Variable, Expression]) -> Expression:
    """The expression with variables replaced, simplified again."""
    match expression:
        case Variable():
            return known.get(expression, expression)
        case Load(node, index):
            return Load(node, tuple(substitute(part, known) for part in index))
        case Product(node, index):
            return Product(node, tuple(substitute(part, known) for part in index))
        case Apply(op, arguments, dtype):
            return apply(op, tuple(substitute(part, known) for part in arguments), dtype)
    return expression


def is_number(expression: Expression) -> bool:
    """Whether it is a constant or a symbolic number of the graph."""
    return isinstance(expression, (Constant, Size))


def finite(value: float) -> bool:
    """Whether a fill is a number and not an infinity."""
    return math.isfinite(value)
