"""What the lowering proves about a mask from its expression alone: causal or not, rows that surely have a key.

Comparisons of integers are brought to `sum of coefficient times atom + constant >= 0`, so that q >= k, k <= q, k < q + 1 and
not (k > q) are one and the same. An atom is a coordinate, a symbolic size, or any expression that is not linear.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch

from kpt_lab.kernels.flashlight.expression import Apply, Constant, Coordinate, Expression, Size, replace
from kpt_lab.kernels.flashlight.functions import dtype_of

Atom = Expression | str  # a symbolic size is the text of its sympy symbol, so that two nodes of one size are one atom
Linear = dict[Atom, int]  # by atom; the constant under ""
Length = int | torch.SymInt
CONSTANT = ""

TRUE, FALSE = Constant(True), Constant(False)
NEGATED = {"ge": "lt", "lt": "ge", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}
CASTS = ("to", "_to_copy", "clone", "alias", "detach", "contiguous")
_FOLDED: dict[str, Callable[..., int]] = {
    "remainder": operator.mod,
    "floor_divide": operator.floordiv,
    "abs": abs,
    "minimum": min,
    "maximum": max,
}


def integral(expression: Expression) -> bool:
    """Whether the expression's elements are whole numbers (truth values are not)."""
    dtype = dtype_of(expression)
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def linear(expression: Expression) -> Linear:
    """The integer expression as a linear form; whatever is not linear becomes an atom of its own."""
    match expression:
        case Constant(value) if not isinstance(value, float):
            return {CONSTANT: int(value)} if value else {}
        case Size(node):
            return _of_size(node.meta.get("val"), expression)
        case Apply(op, (operand,), dtype) if op in CASTS and integral(operand) and not dtype.is_floating_point:
            return linear(operand)
        case Apply("neg", (operand,), _):
            return scaled(linear(operand), -1)
        case Apply("add", (left, right), _) if integral(left) and integral(right):
            return added(linear(left), linear(right))
        case Apply("sub", (left, right), _) if integral(left) and integral(right):
            return added(linear(left), scaled(linear(right), -1))
        case Apply("mul", (left, right), _) if integral(left) and integral(right):
            one, other = linear(left), linear(right)
            for factor, rest in ((one, other), (other, one)):
                if (number := constant(factor)) is not None:
                    return scaled(rest, number)
        case Apply(op, arguments, _) if op in _FOLDED and all(map(integral, arguments)):
            known = [constant(linear(part)) for part in arguments]
            if None not in known and not (op in ("remainder", "floor_divide") and known[1] == 0):
                return {CONSTANT: value} if (value := _FOLDED[op](*known)) else {}
    return {expression: 1}


def _of_size(value: object, expression: Expression) -> Linear:
    if isinstance(value, int):
        return {CONSTANT: value} if value else {}
    if not isinstance(value, torch.SymInt):
        return {expression: 1}
    found: Linear = {}
    for term, factor in value.node.expr.as_coefficients_dict().items():
        if int(factor) != factor:
            return {f"size {value.node.expr}": 1}
        found[CONSTANT if term == 1 else f"size {term}"] = int(factor)
    return found


def added(one: Linear, other: Linear) -> Linear:
    """The sum of two linear forms."""
    total = {atom: one.get(atom, 0) + other.get(atom, 0) for atom in {**one, **other}}
    return {atom: factor for atom, factor in total.items() if factor}


def scaled(form: Linear, factor: int) -> Linear:
    """The linear form times a whole number."""
    return {atom: factor * value for atom, value in form.items()} if factor else {}


def constant(form: Linear) -> int | None:
    """The form's value where it has no atom, else None."""
    return form.get(CONSTANT, 0) if all(atom == CONSTANT for atom in form) else None


def difference(op: str, left: Expression, right: Expression) -> tuple[Linear, bool] | None:
    """`left op right` of integers as a form, and whether it says form == 0 (True) or form >= 0 (False); None for others."""
    if not (integral(left) and integral(right)):
        return None
    forward = added(linear(left), scaled(linear(right), -1))
    match op:
        case "ge":
            return forward, False
        case "gt":
            return added(forward, {CONSTANT: -1}), False
        case "le":
            return scaled(forward, -1), False
        case "lt":
            return added(scaled(forward, -1), {CONSTANT: -1}), False
        case "eq":
            return forward, True
    return None


# ---- simplifying truth values


def simplify(expression: Expression) -> Expression:
    """An equal truth value with comparisons decided where their linear form decides them, and the logic folded."""
    match expression:
        case Apply("logical_not" | "bitwise_not", (operand,), _) if dtype_of(operand) == torch.bool:
            return _negated(simplify(operand))
        case Apply("logical_and" | "bitwise_and" | "mul", (left, right), torch.bool) if _truths(left, right):
            return _joined("logical_and", TRUE, simplify(left), simplify(right))
        case Apply("logical_or" | "bitwise_or", (left, right), _) if _truths(left, right):
            return _joined("logical_or", FALSE, simplify(left), simplify(right))
        case Apply("where", (condition, yes, no), torch.bool):
            chosen, yes, no = simplify(condition), simplify(yes), simplify(no)
            if isinstance(chosen, Constant):
                return yes if chosen.value else no
            return yes if yes == no else Apply("where", (chosen, yes, no), torch.bool)
        case Apply("ne", (operand, Constant(value)), _) if not value and dtype_of(operand) == torch.bool:
            return simplify(operand)
        case Apply(op, (operand,), torch.bool) if op in CASTS and dtype_of(operand) == torch.bool:
            return simplify(operand)
        case Apply(op, (left, right), _) if op in NEGATED:
            return _compared(op, left, right)
    return expression


def _truths(*parts: Expression) -> bool:
    return all(dtype_of(part) == torch.bool for part in parts)


def _negated(expression: Expression) -> Expression:
    match expression:
        case Constant(value):
            return Constant(not value)
        case Apply("logical_not", (operand,), _):
            return operand
        case Apply("logical_and", (left, right), _):
            return _joined("logical_or", FALSE, _negated(left), _negated(right))
        case Apply("logical_or", (left, right), _):
            return _joined("logical_and", TRUE, _negated(left), _negated(right))
        case Apply(op, (left, right), dtype) if op in ("eq", "ne") or (op in NEGATED and integral(left) and integral(right)):
            return Apply(NEGATED[op], (left, right), dtype)
    return Apply("logical_not", (expression,), torch.bool)


def _joined(op: str, neutral: Constant, left: Expression, right: Expression) -> Expression:
    ending = Constant(not neutral.value)
    if ending in (left, right):
        return ending
    if left in (neutral, right):
        return right
    return left if right == neutral else Apply(op, (left, right), torch.bool)


def _compared(op: str, left: Expression, right: Expression) -> Expression:
    if op == "ne":
        return _negated(_compared("eq", left, right))
    if op == "eq" and left == right and not dtype_of(left).is_floating_point:
        return TRUE
    found = difference(op, left, right)
    if found is not None:
        low, high = extent(found[0])
        if found[1]:
            if low == high == 0:
                return TRUE
            if (low is not None and low > 0) or (high is not None and high < 0):
                return FALSE
        elif low is not None and low >= 0:
            return TRUE
        elif high is not None and high < 0:
            return FALSE
    return Apply(op, (left, right), torch.bool)


def extent(form: Linear) -> tuple[int | None, int | None]:
    """The least and largest value that a form can have, None where unbounded: coordinates are at least 0, sizes at least 1."""
    low: int | None = form.get(CONSTANT, 0)
    high: int | None = low
    for atom, factor in form.items():
        if atom == CONSTANT:
            continue
        least = 0 if isinstance(atom, Coordinate) else 1 if isinstance(atom, str) else None
        if least is None:
            return None, None
        if factor > 0:
            low, high = (None if low is None else low + factor * least), None
        else:
            low, high = None, (None if high is None else high + factor * least)
    return low, high


def substitute(expression: Expression, place: str, by: Expression) -> Expression:
    """The expression with the coordinate `place` replaced."""
    return replace(expression, lambda part: by if isinstance(part, Coordinate) and part.place == place else None)


# ---- what the lowering asks


def size_difference(one: Length, other: Length) -> Linear:
    """The linear form of one size minus another."""
    return added(_of_size(one, TRUE), scaled(_of_size(other, TRUE), -1))


def causal_offset(mask: Expression) -> Linear | None:
    """The form c where the mask says exactly k <= q + c, and c names sizes and numbers only; else None."""
    found = simplify(mask)
    if not isinstance(found, Apply) or len(found.arguments) != 2:
        return None
    form = difference(found.op, *found.arguments)
    if form is None or form[1]:
        return None
    rest = dict(form[0])
    if rest.pop(Coordinate("q"), 0) != 1 or rest.pop(Coordinate("k"), 0) != -1:
        return None
    return rest if all(isinstance(atom, str) for atom in rest) else None


def is_causal(mask: Expression) -> bool:
    """Whether the mask is q >= k and nothing else, whatever the lengths."""
    offset = causal_offset(mask)
    return offset is not None and constant(offset) == 0


def attends_everywhere(mask: Expression, keys: Length) -> bool:
    """Whether the mask is True at every place: by itself, or since its offset reaches the last key from query 0."""
    if simplify(mask) == TRUE:
        return True
    offset = causal_offset(mask)
    if offset is None:
        return False
    low, _ = extent(added(offset, size_difference(1, keys)))
    return low is not None and low >= 0


def rows_have_keys(mask: Expression | None, queries: Length, keys: Length) -> bool:
    """Whether it is proved that every query attends some key: of k = 0, k = q and k = q + keys - queries, one makes it True."""
    if mask is None:
        return True
    tries: list[Expression] = [Constant(0)]
    ahead = size_difference(keys, queries)
    low, _ = extent(ahead)
    if low is not None and low >= 0:
        tries.append(Coordinate("q"))
        if fixed := constant(ahead):
            tries.append(Apply("add", (Coordinate("q"), Constant(fixed)), torch.int64))
    return any(simplify(substitute(mask, "k", k)) == TRUE for k in tries)
