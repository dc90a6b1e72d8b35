"""Expressions built so that they come out simple: `apply` is the one constructor, `simplify` builds an expression again.

Everything it does is exact for the integers (see polynomials.py) and for truth values (see logic.py); floating-point arithmetic
is only folded where all operands are constants, in the dtype of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from kpt_lab.kernels.flashlight.arithmetic import COMPARISONS, arithmetic, compare, extreme
from kpt_lab.kernels.flashlight.atoms import INTEGERS, ZERO, Product, Variable, dtype_of, is_integer
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Expression, Load
from kpt_lab.kernels.flashlight.logic import both, either, negate


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
    if op in ("floor_divide", "remainder", "fmod") and not dtype.is_floating_point and arguments[1] == ZERO:
        return Apply(op, arguments, dtype)
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
            return extreme(op, arguments, dtype)
    return _without_neutral(op, arguments, dtype)


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


def simplify(expression: Expression, leaf: Callable[[Expression], Expression | None] | None = None) -> Expression:
    """The expression built again, so that it comes out simple; where `leaf` gives something for a leaf, that replaces it."""
    match expression:
        case Load(node, index):
            return Load(node, tuple(simplify(part, leaf) for part in index))
        case Product(node, index):
            return Product(node, tuple(simplify(part, leaf) for part in index))
        case Apply(op, arguments, dtype):
            return apply(op, tuple(simplify(part, leaf) for part in arguments), dtype)
    changed = leaf(expression) if leaf is not None else None
    return expression if changed is None else changed


def substitute(expression: Expression, known: Mapping[Variable, Expression]) -> Expression:
    """The expression with variables replaced, simplified again."""
    return simplify(expression, lambda part: known.get(part) if isinstance(part, Variable) else None)
