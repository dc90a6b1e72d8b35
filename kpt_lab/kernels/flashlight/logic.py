"""Truth values that come out simple: negation is pushed down to the comparisons, what is certain drops out."""

from __future__ import annotations

import torch

from kpt_lab.kernels.flashlight.arithmetic import COMPARISONS
from kpt_lab.kernels.flashlight.atoms import is_integer
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Expression


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
    pieces = conjuncts if neutral else _disjuncts
    if any(all(piece in kept for piece in pieces(negate(part))) for part in kept):  # a or b or not (a or b)
        return Constant(not neutral)
    result: Expression = kept[0] if kept else Constant(neutral)
    for part in kept[1:]:
        result = Apply(op, (result, part), torch.bool)
    return result
