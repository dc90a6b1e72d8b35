"""Taking the scale and the mask out of the expression that stands between the two products.

A mask is only taken out where softmax over the attended keys alone gives the same result on every row: the fill must be so
low that its exponential is zero beside any score, and a row without any key must come out as the Part's `fill` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kpt_lab.kernels.flashlight.algebra import apply
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Expression, Fill, Load, Score, Size, replace
from kpt_lab.kernels.flashlight.logic import both, negate

LOW = -1e4  # a fill at or below this is a mask
SCALED = -1e3  # and after scaling still at or below this: exp of it is zero in float32 beside any score above -900
ABSORBS = -1e8  # added to a score, a fill at or below this swallows it (float32 has 24 bits): the row becomes uniform


@dataclass(frozen=True)
class Masked:
    """score where mask holds, else `fill` (a number); `added` says that the fill was added to the score."""

    score: Expression
    mask: Expression | None = None
    fill: float = 0.0
    added: bool = False

    def kind(self) -> Fill:
        """What the fill makes of a row without any key."""
        return "none" if self.mask is None else "infinite" if math.isinf(self.fill) else "finite"


def scored(expression: Expression) -> bool:
    """Whether it depends on the score."""
    return any(isinstance(part, Score) for part in expression.walk())


def holds_low(expression: Expression) -> bool:
    """Whether a finite number in it is so low that its exponential is 0."""
    numbers = (part.value for part in expression.walk() if isinstance(part, Constant))
    return any(isinstance(number, float) and -math.inf < number <= LOW for number in numbers)


def decides_by_score(expression: Expression) -> bool:
    """Whether a condition in it depends on the score: a mask chosen by data, such as the largest scores."""
    for part in expression.walk():
        if isinstance(part, Apply) and (part.dtype is torch.bool or part.op == "sign") and scored(part):
            return True
    return False


def without_casts(expression: Expression) -> Expression:
    """Drops the casts of the score between floating dtypes: the kernels compute the score in float32 throughout."""

    def change(part: Expression) -> Expression | None:
        match part:
            case Apply("to", (inner,), dtype) if dtype.is_floating_point and scored(inner):
                return without_casts(inner)
        return None

    return replace(expression, change)


class Splitter:
    """Splits one expression. `certain` says whether a mask provably leaves each row a key; `lenient` joins all masks."""

    def __init__(self, certain: Callable[[Expression], bool], lenient: bool = False) -> None:
        self.certain, self.lenient = certain, lenient

    def split(self, expression: Expression) -> Masked:
        """The expression as a score and a mask."""
        match expression:
            case Apply("where", (condition, kept, Constant(fill)), dtype) if _low(fill) and dtype.is_floating_point:
                return self._joined(self.split(kept), condition, float(fill), False) or Masked(expression)
            case Apply("where", (condition, Constant(fill), kept), dtype) if _low(fill) and dtype.is_floating_point:
                return self._joined(self.split(kept), negate(condition), float(fill), False) or Masked(expression)
            case Apply("add", (left, right), dtype) if scored(left) != scored(right):
                return self._sum(*((left, right) if scored(left) else (right, left)), dtype) or Masked(expression)
            case Apply("sub", (left, right), dtype) if scored(left) and not scored(right):
                return self._sum(left, apply("neg", (right,), dtype), dtype) or Masked(expression)
            case Apply("mul" | "div" as op, (left, right), dtype) if scored(left) and not scored(right):
                return self._scaled(op, left, right, dtype) or Masked(expression)
            case Apply("mul", (left, right), dtype) if scored(right) and not scored(left):
                return self._scaled("mul", right, left, dtype) or Masked(expression)
        return Masked(expression)

    def _joined(self, inner: Masked, condition: Expression, fill: float, added: bool) -> Masked | None:
        """One more mask around what is masked already; None where the two can't be one."""
        if scored(condition):
            return None
        if inner.mask is None:
            if added and fill > ABSORBS and not (self.lenient or self.certain(condition)):
                return None  # an empty row gives the softmax of its scores, not their mean
            return Masked(inner.score, condition, fill, added)
        mask = both(inner.mask, condition)
        alike = inner.fill == fill and not (math.isfinite(fill) and (added or inner.added))
        if alike or self.lenient or self.certain(mask):
            return Masked(inner.score, mask, max(inner.fill, fill), added or inner.added)
        return None

    def _sum(self, score: Expression, other: Expression, dtype: torch.dtype) -> Masked | None:
        inner = self.split(score)
        extra = additive(other)
        if extra is not None:
            condition, rest, fill = extra
            kept = inner.score if rest is None else apply("add", (inner.score, rest), dtype)
            return self._joined(Masked(kept, inner.mask, inner.fill, inner.added), condition, fill, True)
        if inner.mask is None:
            return None
        if math.isfinite(inner.fill) and not (inner.fill <= ABSORBS or self.lenient or self.certain(inner.mask)):
            return None
        return Masked(apply("add", (inner.score, other), dtype), inner.mask, inner.fill, True)

    def _scaled(self, op: str, score: Expression, factor: Expression, dtype: torch.dtype) -> Masked | None:
        inner = self.split(score)
        if inner.mask is None:
            return None
        number = _positive_number(factor)
        if number is None:
            return None
        fill = inner.fill * number if op == "mul" else inner.fill / number
        if fill > SCALED:
            return None
        return Masked(apply(op, (inner.score, factor), dtype), inner.mask, fill, inner.added)


def _low(fill: object) -> bool:
    return isinstance(fill, (int, float)) and not isinstance(fill, bool) and fill <= LOW


def _positive_number(factor: Expression) -> float | None:
    match factor:
        case Constant(value) if value > 0 and math.isfinite(value):
            return float(value)
        case Size(node):  # a length, or a root of one
            hint = getattr(getattr(node.meta.get("val"), "node", None), "hint", None)
            return float(hint) if hint is not None and hint > 0 else None
    return None


def additive(expression: Expression) -> tuple[Expression, Expression | None, float] | None:
    """An added mask as (where it adds `rest`, rest or None for 0, the fill elsewhere); None where it is no mask."""
    match expression:
        case Apply("to", (inner,), dtype) if dtype.is_floating_point:
            return additive(inner)
        case Apply("where", (condition, left, Constant(fill)), _) if _low(fill):
            return _rest(condition, left, float(fill))
        case Apply("where", (condition, Constant(fill), right), _) if _low(fill):
            return _rest(negate(condition), right, float(fill))
        case Apply("add", (left, right), dtype):
            for one, other in ((left, right), (right, left)):
                found = additive(one)
                if found is not None and additive(other) is None:
                    condition, rest, fill = found
                    return condition, other if rest is None else apply("add", (rest, other), dtype), fill
    return None


def _rest(condition: Expression, rest: Expression, fill: float) -> tuple[Expression, Expression | None, float] | None:
    if isinstance(rest, Constant):
        if rest.value == 0:
            return condition, None, fill
        return None if _low(rest.value) else (condition, rest, fill)
    inner = additive(rest)
    if inner is not None:  # two masks in one number: the same fill, or not one mask
        return (both(condition, inner[0]), inner[1], fill) if inner[2] == fill else None
    if any(isinstance(part, Constant) and _low(part.value) for part in rest.walk()):
        return None
    return condition, rest, fill


def take_scale(score: Expression) -> tuple[float | Size, Expression]:
    """The constant that multiplies the score first, and the rest with the scaled score as its Score."""
    scale: float | Size = 1.0
    count = sum(isinstance(part, Score) for part in score.walk())
    while count == 1:
        found = next((part for part in score.walk() if _scales(part)), None)
        if not isinstance(found, Apply) or not isinstance(scale, float):
            break
        left, right = found.arguments
        factor = right if isinstance(left, Score) else left
        if isinstance(factor, Constant):
            number = float(factor.value)
            scale = scale / number if found.op == "div" else scale * number
        elif isinstance(factor, Size) and found.op == "mul" and scale == 1.0:
            scale = factor
        else:
            break
        score = replace(score, lambda part, found=found: Score() if part is found else None)  # type: ignore[misc]
    return scale, score


def _scales(part: Expression) -> bool:
    match part:
        case Apply("mul", (Score(), Constant() | Size()), _) | Apply("mul", (Constant() | Size(), Score()), _):
            return True
        case Apply("div", (Score(), Constant(value)), _):
            return value != 0
    return False


def loads(expression: Expression) -> list[Load]:
    """The loads in an expression, outer ones first."""
    return [part for part in expression.walk() if isinstance(part, Load)]
