"""Which dimension plays which role: batch, head, query, key or width, down to digits where a dimension holds several.

A dimension of B·H elements that views take apart is n = b·H + h: its digits are b and h. Everything is said in digits first;
then the digits that neither key nor value knows are the queries and the heads that share a key (GQA), and the rest is
batch and head.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import fx

from kpt_lab.kernels.flashlight.algebra import substitute
from kpt_lab.kernels.flashlight.arithmetic import arithmetic
from kpt_lab.kernels.flashlight.atoms import ONE, ZERO, Variable
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Expression, Operand, Size
from kpt_lab.kernels.flashlight.index import Reader
from kpt_lab.kernels.flashlight.nodes import Arguments, Index, is_tensor, name_of, value
from kpt_lab.kernels.flashlight.polynomials import quotient, terms, total

Digits = tuple[Variable, ...]
SPARE = 1 << 20  # stands in for a size without a hint


def splits(variable: Variable, expressions: Iterable[Expression]) -> list[Variable]:
    """The digits of a variable, most significant first, that divisions and remainders in the expressions take it apart into."""
    strides: list[Expression] = []
    for expression in expressions:
        for part in expression.walk():
            strides += _strides(part, variable)
    chain: list[Expression] = []
    for stride in dict.fromkeys(strides):
        if stride in (ONE, variable.extent) or quotient(variable.extent, stride) is None:
            continue
        if all(quotient(stride, other) is not None or quotient(other, stride) is not None for other in chain):
            chain.append(stride)
    if not chain:
        return [variable]
    chain.sort(key=lambda stride: sum(quotient(stride, other) is not None for other in chain), reverse=True)
    edges = [variable.extent, *chain, ONE]
    extents = [quotient(above, below) or ONE for above, below in pairwise(edges)]
    return [Variable(f"{variable.name}.{i}", extent) for i, extent in enumerate(extents)]


def _strides(part: Expression, variable: Variable) -> list[Expression]:
    match part:
        case Apply("floor_divide" | "remainder", (inner, divisor), _) if inner == variable:
            return [divisor]
        case Apply("remainder", (Apply("floor_divide", (inner, first), _), second), _) if inner == variable:
            return [first, arithmetic("mul", first, second)]
    return []


def radix(digits: Sequence[Variable]) -> Expression:
    """The number whose digits these are."""
    result: Expression = ZERO
    for digit in digits:
        result = arithmetic("add", arithmetic("mul", result, digit.extent), digit)
    return result


def extent_of(digits: Sequence[Variable]) -> Expression:
    """How many values the number with these digits takes."""
    result: Expression = ONE
    for digit in digits:
        result = arithmetic("mul", result, digit.extent)
    return result


@dataclass(frozen=True)
class Fixed(Variable):
    """A digit that is always the same: every second head, one half of a dimension."""

    value: int = 0


def digits_of(index: Expression, extent: Expression, partial: bool = False) -> Digits | None:
    """The digits whose number an index is, where it runs over the whole extent; None for any other index.

    partial: some digits may be fixed, so that the index runs over a part of the extent.
    """
    strides: dict[Variable, Expression] = {}
    polynomial = dict(terms(index))
    constant = polynomial.pop((), 0) if partial else 0
    for monomial, factor in polynomial.items():
        found = [atom for atom in monomial if isinstance(atom, Variable)]
        if len(found) != 1 or found[0] in strides:
            return None
        rest = list(monomial)
        rest.remove(found[0])
        strides[found[0]] = total({tuple(rest): factor})
    digits: list[Variable] = []
    expected: Expression = ONE
    while strides or (partial and expected != extent):
        following = next((v for v, stride in strides.items() if stride == expected), None)
        if following is None and partial:
            following = _fixed(constant, expected, [*strides.values(), extent])
            constant -= following.value * hint(expected) if following is not None else 0
        if following is None:
            return None
        digits.insert(0, following)
        expected = arithmetic("mul", expected, following.extent)
        strides.pop(following, None)
    return tuple(digits) if expected == extent and not constant else None


def _fixed(constant: int, stride: Expression, above: list[Expression]) -> Fixed | None:
    """The fixed digit of a constant between one stride and the next one above it, where both are numbers."""
    numbers = [x.value for x in above if isinstance(x, Constant)]
    if not isinstance(stride, Constant) or len(numbers) != len(above):
        return None
    extent, rest = divmod(int(min(numbers)), int(stride.value))
    if rest or extent < 2:
        return None
    return Fixed(f"={constant // int(stride.value) % extent}", Constant(extent), constant // int(stride.value) % extent)


@dataclass(frozen=True)
class Source:
    """A tensor below views, with the digits of each of its dimensions, and the constant factor that was peeled off."""

    node: fx.Node
    digits: tuple[Digits, ...]
    factor: float = 1.0
    casts: bool = False


def descend(node: fx.Node, index: Index, reader: Reader, numbers: bool) -> list[tuple[fx.Node, Index, float, bool]]:
    """The tensors that a node is a view of, itself first; with `numbers` also below a constant factor or an exact cast."""
    chain = [(node, index, 1.0, False)]
    factor, cast = 1.0, False
    while True:
        step = reader.source(node, index)
        if step is None and numbers and node not in reader.stopped:
            below = _below_number(node)
            if below is not None:
                step, factor = (below[0], index), factor * below[1]
                cast = cast or below[2]
        if step is None or not is_tensor(step[0]):
            return chain
        node, index = step
        chain.append((node, index, factor, cast))


def _below_number(node: fx.Node) -> tuple[fx.Node, float, bool] | None:
    """The tensor that a node multiplies or divides by a constant, or casts without loss."""
    name = name_of(node)
    if name in ("mul", "div"):
        left, right = list(Arguments(node).values.values())[:2]
        if is_tensor(left) and isinstance(right, (int, float)) and right and Arguments(node).get("rounding_mode") is None:
            return left, (float(right) if name == "mul" else 1.0 / float(right)), False
    if name in ("to", "_to_copy", "type_as"):
        source = node.args[0]
        exact = (torch.float16, torch.bfloat16)
        if isinstance(source, fx.Node) and value(source).dtype in exact and value(node).dtype == torch.float32:
            return (source, 1.0, True) if value(source).device == value(node).device else None
    return None


def cleanest(
    chain: list[tuple[fx.Node, Index, float, bool]], reader: Reader, dtype: torch.dtype | None = None
) -> Source | None:
    """The deepest tensor of a chain each of whose dimensions is a number of digits; of the given dtype where one is wanted."""
    best = _cleanest(chain, reader, dtype, partial=False)
    return best if best is not None else _cleanest(chain, reader, dtype, partial=True)


def _cleanest(chain: list, reader: Reader, dtype: torch.dtype | None, partial: bool) -> Source | None:
    best = None
    for node, index, factor, cast in chain:
        held = [digits_of(i, n, partial) for i, n in zip(index, reader.shape(node), strict=True)]
        flat = [digit for digits in held if digits is not None for digit in digits if not isinstance(digit, Fixed)]
        if any(digits is None for digits in held) or len(flat) != len(set(flat)):
            continue
        if dtype is not None and value(node).dtype != dtype:
            continue
        best = Source(node, tuple(digits or () for digits in held), factor, cast)
        if partial:  # the first one: what it is a part of may be far larger
            return best
    return best


def hint(expression: Expression) -> int:
    """The value of an extent where it is known, else that of the sizes that the graph was captured with."""
    match expression:
        case Constant(number):
            return int(number)
        case Size(node):
            return int(getattr(value(node).node, "hint", None) or SPARE)
        case Apply("mul", (left, right), _):
            return hint(left) * hint(right)
        case Apply("add", (left, right), _):
            return hint(left) + hint(right)
        case Apply("sub", (left, right), _):
            return hint(left) - hint(right)
        case Apply("floor_divide", (left, right), _):
            return hint(left) // max(hint(right), 1)
    return SPARE


@dataclass(frozen=True)
class Roles:
    """The digits of each role, most significant first; the last `shared` of the heads share one key."""

    b: Digits
    h: Digits
    q: Digits
    k: Digits
    shared: Digits

    def place(self, name: str) -> Variable:
        """The variable of a whole role."""
        return Variable(name, extent_of(getattr(self, name)))

    def known(self) -> dict[Variable, Expression]:
        """Each digit as an expression of the whole roles."""
        result: dict[Variable, Expression] = {}
        for name in "bhqk":
            digits: Digits = getattr(self, name)
            whole: Expression = self.place(name) if extent_of(digits) != ONE else ZERO
            for i, digit in enumerate(digits):
                below = extent_of(digits[i + 1 :])
                rest = arithmetic("remainder", whole, arithmetic("mul", below, digit.extent)) if i else whole
                result[digit] = arithmetic("floor_divide", rest, below)
        return result


def assign(
    order: Sequence[Variable], keyed: frozenset[Variable], keys: Digits, compared: frozenset[Variable], one_row: bool = False
) -> Roles:
    """Roles of the digits in `order`; `keyed` are those that a key or a value depends on, `compared` those compared with keys.

    one_row: the batch has one row, which has no digit, so that a single digit besides queries and keys is a head.
    """
    free = [digit for digit in order if digit not in keyed]
    fixed = [digit for digit in order if digit in keyed]
    whole = extent_of(keys)

    def likely(digit: Variable) -> tuple:
        return digit in compared, digit.extent == whole, hint(digit.extent), order.index(digit)

    query = max(free, key=likely) if free else None
    shared = tuple(digit for digit in free if digit != query)
    split = len(fixed) - 1 if len(fixed) > 1 or (fixed and one_row) else len(fixed)
    heads = (*fixed[split:], *shared)
    return Roles(tuple(fixed[:split]), heads, (query,) if query is not None else (), keys, shared)


# ---- the graph's side of it


def number(expression: Expression, graph: fx.Graph) -> int | fx.Node:
    """An extent as an argument of a node: an int, or nodes of the graph that compute it."""
    match expression:
        case Constant(held):
            return int(held)
        case Size(node):
            return node
        case Apply(op, arguments, _) if op in ("add", "sub", "mul", "floor_divide"):
            function = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "floor_divide": operator.floordiv}[op]
            parts = [number(part, graph) for part in arguments]
            if all(isinstance(part, int) for part in parts):
                return function(*parts)
            node = graph.call_function(function, tuple(parts))
            node.meta["val"] = function(*(value(part) if isinstance(part, fx.Node) else part for part in parts))
            return node
    raise TypeError(f"{expression} is not an extent")


def call(graph: fx.Graph, target: torch._ops.OpOverload, *args: object) -> fx.Node:
    """A new node with its fake value beside it."""
    node = graph.call_function(target, args)  # type: ignore[arg-type]

    def held(x: object) -> object:
        return [held(y) for y in x] if isinstance(x, list) else value(x) if isinstance(x, fx.Node) else x

    node.meta["val"] = target(*(held(x) for x in args))
    return node


def contiguous_run(digits: Digits, role: Digits) -> bool:
    """Whether the digits stand next to each other, in order, in the role."""
    return any(role[i : i + len(digits)] == digits for i in range(len(role)))


def separated(digits: tuple[Digits, ...], roles: Sequence[Digits]) -> list[Digits]:
    """The same dimensions, those taken apart that mix roles or hold a role's digits in another order."""
    result: list[Digits] = []
    for held in digits:
        whole = not held or any(contiguous_run(held, role) for role in roles)
        result += [held] if whole else [(digit,) for digit in held]
    return result


def places(digits: Sequence[Digits], roles: Sequence[Digits]) -> tuple[tuple[int, ...], ...]:
    """For each role the dimensions that hold its digits, in the role's order; dimensions of one element go to the first."""
    found = []
    for role in roles:
        mine = [i for i, held in enumerate(digits) if held and held[0] in role]
        found.append(sorted(mine, key=lambda i, role=role: role.index(digits[i][0])))  # type: ignore[misc]
    found[0] = [i for i, held in enumerate(digits) if not held] + found[0]
    return tuple(tuple(dims) for dims in found)


def operand(source: Source, wanted: Sequence[Digits], graph: fx.Graph) -> Operand:
    """The operand with the digits of (b, h, l, d): views are inserted where a dimension mixes roles or a digit is missing."""
    node, digits = source.node, list(source.digits)
    apart = separated(source.digits, wanted)
    if len(apart) != len(digits):
        extents = [number(extent_of(held), graph) for held in apart]
        node, digits = call(graph, torch.ops.aten.view.default, node, extents), apart
    for dim in reversed(range(len(digits))):
        if digits[dim] and isinstance(chosen := digits[dim][0], Fixed):
            node = call(graph, torch.ops.aten.select.int, node, dim, chosen.value)
            del digits[dim]
    missing = [digit for role in wanted for digit in role if not any(digit in held for held in digits)]
    for digit in missing:
        node = call(graph, torch.ops.aten.unsqueeze.default, node, len(digits))
        digits.append((digit,))
    if missing:
        extents = [number(extent_of(held), graph) for held in digits]
        node = call(graph, torch.ops.aten.expand.default, node, extents)
    return Operand(node, places(digits, wanted))  # type: ignore[arg-type]


def renamed(expression: Expression, known: dict[Variable, Expression]) -> Expression:
    """The expression in whole roles instead of digits."""
    return substitute(expression, known)
