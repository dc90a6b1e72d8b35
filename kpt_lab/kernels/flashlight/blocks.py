"""Which blocks of keys a mask leaves in, by interval analysis of its expression: no tensor of queries times keys is made.

Whatever depends on the query alone or on the key alone is evaluated element by element and reduced to its least and largest
value in each block of 128; where both meet, in comparisons, sums and logic, the bounds are combined. A block is then full, empty
or partial, and partial where the bounds can't tell, which costs time and never a wrong result. What the bounds say nothing about
(a captured mask of queries times keys, a table indexed by q - k) is evaluated and reduced in one loop that Inductor fuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kpt_lab.kernels.flashlight import functions
from kpt_lab.kernels.flashlight.algebra import simplify
from kpt_lab.kernels.flashlight.arithmetic import inequality
from kpt_lab.kernels.flashlight.atoms import dtype_of, is_integer
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Coordinate, Expression, Load, Size, replace
from kpt_lab.kernels.flashlight.polynomials import Terms, terms, total

BLOCK = 128
NAMES = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
TRANSPOSED = ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")

Bounds = tuple[Tensor, Tensor]  # least and largest; of truth values: whether all are true, whether any may be


@dataclass(frozen=True)
class Slot:
    """Stands in an expression for a captured tensor or size that the builder is given when it runs."""

    number: int
    dtype: torch.dtype | None

    @property
    def meta(self) -> dict[str, Any]:
        """What `dtype_of` reads."""
        return {"val": torch.empty(0, dtype=self.dtype, device="meta")} if self.dtype else {}

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"captured_{self.number}"


def slotted(mask: Expression) -> tuple[Expression, tuple[Any, ...]]:
    """The expression with its nodes replaced by Slots, and the nodes in the order of their numbers."""
    nodes: dict[Any, Slot] = {}

    def slot(node: Any, dtype: torch.dtype | None) -> Any:
        return nodes.setdefault(node, Slot(len(nodes), dtype))

    def change(part: Expression) -> Expression | None:
        if isinstance(part, Load):
            index = tuple(replace(i, change) for i in part.index)
            return Load(slot(part.tensor, dtype_of(part)), index)
        return Size(slot(part.node, None)) if isinstance(part, Size) else None

    return replace(mask, change), tuple(nodes)


class Builder(nn.Module):
    """`(batch, heads, queries, keys, *captured) -> ` the tensors named in NAMES, then those in TRANSPOSED if `transposed`.

    Shapes (batch or 1, heads or 1, blocks of queries[, blocks of keys]) of int32, as FlexAttention's BlockMask has them.
    """

    def __init__(self, mask: Expression, device: torch.device, transposed: bool = True) -> None:
        super().__init__()
        self.mask, self.device, self.transposed = simplify(mask), device, transposed
        self.evaluated: list[str] = []  # what no bounds were found for: evaluated at every place and reduced

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for builders that do the same."""
        return self.mask, str(self.device), self.transposed

    def forward(self, batch: Any, heads: Any, queries: Any, keys: Any, *captured: Any) -> tuple[Tensor, ...]:
        """The block mask's tensors."""
        every, some = self.decide(batch, heads, queries, keys, *captured)
        return indices(every, some & ~every, self.transposed)

    def decide(self, batch: Any, heads: Any, queries: Any, keys: Any, *captured: Any) -> Bounds:
        """For each block whether all of its places are attended, and whether any may be."""
        # what is smaller than a block counts as partial, since its full form would reach over the end
        _analysis = _Analysis(self.device, (batch, heads, queries, keys), captured)
        every, some = _analysis.bounds(self.mask)
        self.evaluated = _analysis.evaluated
        places = _analysis.places
        rows, columns = ((places[p].shape[d] * BLOCK, d) for p, d in (("q", 2), ("k", 3)))
        whole = _inside(rows, queries, self.device) & _inside(columns, keys, self.device)
        shape = (every.shape[0], every.shape[1], rows[0] // BLOCK, columns[0] // BLOCK)
        return (every & whole).expand(shape), some.expand(shape)


def _inside(rows: tuple[Any, int], length: Any, device: torch.device) -> Tensor:
    """For each block whether it ends before `length`, along its dimension (2 or 3 of 4)."""
    ends = torch.arange(1, rows[0] // BLOCK + 1, device=device) * BLOCK
    return (ends <= length).view([-1 if d == rows[1] else 1 for d in range(4)])


def indices(full: Tensor, partial: Tensor, transposed: bool) -> tuple[Tensor, ...]:
    """Counts and indices of the partial and the full blocks of each row, and of each column if `transposed`."""
    found = [*_ordered(partial), *_ordered(full)]
    if transposed:
        found += [*_ordered(partial.mT), *_ordered(full.mT)]
    return tuple(found)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the last dimension are True, and at which indices; behind them, the last index."""
    running = blocks.to(torch.int32).cumsum(-1, dtype=torch.int32)
    count = blocks.shape[-1]
    wanted = torch.arange(count, device=blocks.device, dtype=torch.int32).unsqueeze(-1)
    # the j-th True stands behind as many places as have a running count of j or less: no sort, no scatter
    at = (running.unsqueeze(-2) <= wanted).sum(-1, dtype=torch.int32)
    return running[..., -1].contiguous(), at.clamp(max=count - 1)


def sides(expression: Expression) -> frozenset[str]:
    """Which of q and k an expression depends on."""
    return frozenset(part.place for part in expression.walk() if isinstance(part, Coordinate) and part.place in "qk")


class _Analysis:
    """Bounds of expressions in each block, as tensors that broadcast to (batch, heads, query blocks, key blocks)."""

    def __init__(self, device: torch.device, lengths: tuple[Any, Any, Any, Any], captured: Sequence[Any]) -> None:
        self.device, self.captured = device, captured
        self.known: dict[tuple[Expression, torch.dtype], Bounds] = {}
        self.evaluated: list[str] = []
        self.places: dict[str, Tensor] = {}
        for dim, (place, length) in enumerate(zip("bhqk", lengths, strict=True)):
            if dim < 2:
                shape, count = [-1 if d == dim else 1 for d in range(6)], length
            else:  # a block's own places lie along a dimension of their own, so that a reduction over it gives the bounds
                count = (length + BLOCK - 1) // BLOCK * BLOCK
                shape = [-1 if d == dim else BLOCK if d == dim + 2 else 1 for d in range(6)]
            index = torch.arange(count, device=device)
            self.places[place] = (index if dim < 2 else index.clamp(max=length - 1)).view(shape)

    def bounds(self, expression: Expression) -> Bounds:
        """Least and largest value in each block, or whether all and whether any of the truth values are true."""
        at = expression, dtype_of(expression)
        if at not in self.known:
            self.known[at] = self._bounds(expression)
        return self.known[at]

    def _bounds(self, expression: Expression) -> Bounds:
        if len(sides(expression)) > 1 and isinstance(expression, Apply):
            rule = _RULES.get(expression.op)
            found = rule(self, expression) if rule else None
            if found is not None:
                return found
        if len(sides(expression)) > 1:
            self.evaluated.append(str(expression))
        return self.reduced(expression)

    def reduced(self, expression: Expression) -> Bounds:
        """The expression at every place of each block, reduced."""
        function = functions.value_function(expression)
        buffers = [self.captured[slot.number] for slot in function.buffers]  # type: ignore[attr-defined]
        values = function.module(*(self.places[place] for place in "bhqk"), *buffers)
        values = values.view([1] * (6 - values.dim()) + list(values.shape))
        if values.dtype == torch.bool:
            values = values.to(torch.int32)
            return values.amin((4, 5)) > 0, values.amax((4, 5)) > 0
        return values.amin((4, 5)), values.amax((4, 5))

    def of_form(self, form: Terms) -> Bounds:
        """Bounds of a polynomial: exact where every term depends on one side only, since q and k vary independently."""
        groups: dict[str, list[Expression]] = {"q": [], "k": []}
        mixed: list[tuple[Expression, int]] = []
        for monomial, factor in form.items():
            part = total({monomial: 1})
            if len(sides(part)) > 1:
                mixed.append((part, factor))
            else:
                term = Apply("mul", (part, Constant(factor)), torch.int64)
                groups["k" if "k" in sides(part) else "q"].append(term)
        found = [self.reduced(_sum_of(parts)) for parts in groups.values() if parts]
        for part, factor in mixed:
            low, high = self.bounds(part)
            found.append((low * factor, high * factor) if factor > 0 else (high * factor, low * factor))
        low, high = found[0]
        for one, other in found[1:]:
            low, high = low + one, high + other
        return low, high


def _sum_of(parts: list[Expression]) -> Expression:
    found = parts[0]
    for part in parts[1:]:
        found = Apply("add", (found, part), torch.int64)
    return found


# ---- rules: (analysis, expression that depends on q and on k) -> bounds, or None where they say nothing

Rule = Callable[[_Analysis, Apply], Bounds | None]


def _comparison(analysis: _Analysis, expression: Apply) -> Bounds | None:
    op, (left, right) = expression.op, expression.arguments
    if op == "ne":
        found = _comparison(analysis, Apply("eq", (left, right), torch.bool))
        return None if found is None else (~found[1], ~found[0])
    form = inequality(op, left, right)
    if form is not None:
        low, high = analysis.of_form(form[0])
        return ((low == 0) & (high == 0), (low <= 0) & (high >= 0)) if form[1] else (low >= 0, high >= 0)
    if torch.bool in (dtype_of(left), dtype_of(right)) and op != "eq":
        return None
    a, b = analysis.bounds(left), analysis.bounds(right)
    if a[0].dtype == torch.bool and b[0].dtype == torch.bool:
        same = (a[0] & b[0]) | ~(a[1] | b[1])
        return same, ~((a[0] & ~b[1]) | (b[0] & ~a[1]))
    if torch.bool in (a[0].dtype, b[0].dtype):
        return None
    if op in ("le", "lt"):
        a, b = b, a
    # written so that a NaN leaves the block partial
    if op in ("ge", "le"):
        return a[0] >= b[1], ~(a[1] < b[0])
    if op in ("gt", "lt"):
        return a[0] > b[1], ~(a[1] <= b[0])
    return (a[0] == b[1]) & (a[1] == b[0]), ~((a[1] < b[0]) | (a[0] > b[1]))


def _truths(analysis: _Analysis, expression: Apply) -> list[Bounds] | None:
    found = [analysis.bounds(part) for part in expression.arguments]
    return found if all(low.dtype == torch.bool for low, _ in found) else None


def _and(analysis: _Analysis, expression: Apply) -> Bounds | None:
    found = _truths(analysis, expression)
    return (found[0][0] & found[1][0], found[0][1] & found[1][1]) if found else None


def _or(analysis: _Analysis, expression: Apply) -> Bounds | None:
    found = _truths(analysis, expression)
    return (found[0][0] | found[1][0], found[0][1] | found[1][1]) if found else None


def _not(analysis: _Analysis, expression: Apply) -> Bounds | None:
    found = _truths(analysis, expression)
    return (~found[0][1], ~found[0][0]) if found else None


def _where(analysis: _Analysis, expression: Apply) -> Bounds | None:
    condition, yes, no = (analysis.bounds(part) for part in expression.arguments)
    if yes[0].dtype == no[0].dtype == torch.bool:
        # all: nowhere a false branch that may be taken; any: somewhere a true one
        return (~condition[1] | yes[0]) & (condition[0] | no[0]), (condition[1] & yes[1]) | (~condition[0] & no[1])
    if torch.bool in (yes[0].dtype, no[0].dtype):
        return None
    low = torch.where(condition[0], yes[0], torch.where(condition[1], torch.minimum(yes[0], no[0]), no[0]))
    return low, torch.where(condition[0], yes[1], torch.where(condition[1], torch.maximum(yes[1], no[1]), no[1]))


def _sum(analysis: _Analysis, expression: Apply) -> Bounds | None:
    if is_integer(expression):
        form = terms(expression)
        return None if (expression,) in form else analysis.of_form(form)
    a, b = _numbers(analysis, expression)
    if a is None or b is None:
        return None
    return (a[0] + b[0], a[1] + b[1]) if expression.op == "add" else (a[0] - b[1], a[1] - b[0])


def _numbers(analysis: _Analysis, expression: Apply) -> list[Bounds | None]:
    found = [analysis.bounds(part) for part in expression.arguments]
    return [None if low.dtype == torch.bool else (low, high) for low, high in found]


def _product(analysis: _Analysis, expression: Apply) -> Bounds | None:
    if expression.dtype == torch.bool:
        return _and(analysis, expression)
    if is_integer(expression) and list((form := terms(expression)).values()) != [1]:  # else it is one product itself
        return analysis.of_form(form)
    a, b = _numbers(analysis, expression)
    if a is None or b is None:
        return None
    corners = [x * y for x in a for y in b]
    return torch.minimum(torch.minimum(*corners[:2]), torch.minimum(*corners[2:])), torch.maximum(
        torch.maximum(*corners[:2]), torch.maximum(*corners[2:])
    )


def _divided(analysis: _Analysis, expression: Apply) -> Bounds | None:
    operand, divisor = expression.arguments
    if not (is_integer(operand) and isinstance(divisor, Constant) and isinstance(divisor.value, int) and divisor.value > 0):
        return None
    low, high = analysis.bounds(operand)
    first, last = low // divisor.value, high // divisor.value
    if expression.op == "floor_divide":
        return first, last
    within = first == last  # no multiple is passed, so the remainder grows with the operand
    return torch.where(within, low % divisor.value, 0), torch.where(within, high % divisor.value, divisor.value - 1)


def _absolute(analysis: _Analysis, expression: Apply) -> Bounds | None:
    low, high = analysis.bounds(expression.arguments[0])
    largest = torch.maximum(low.abs(), high.abs())
    return torch.where((low <= 0) & (high >= 0), torch.zeros_like(low), torch.minimum(low.abs(), high.abs())), largest


def _negative(analysis: _Analysis, expression: Apply) -> Bounds | None:
    low, high = analysis.bounds(expression.arguments[0])
    return -high, -low


def _extreme(analysis: _Analysis, expression: Apply) -> Bounds | None:
    a, b = _numbers(analysis, expression)
    function = getattr(torch, expression.op)
    return None if a is None or b is None else (function(a[0], b[0]), function(a[1], b[1]))


def _cast(analysis: _Analysis, expression: Apply) -> Bounds | None:
    low, high = analysis.bounds(expression.arguments[0])
    goal = expression.dtype
    if goal == torch.bool and low.dtype != torch.bool:
        return (low > 0) | (high < 0), (low != 0) | (high != 0)
    if goal.is_floating_point and goal.itemsize < 4:
        goal = torch.float32
    return low.to(goal), high.to(goal)  # every cast that an expression holds is monotone


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("ge", "gt", "le", "lt", "eq", "ne"), _comparison),
    **dict.fromkeys(("logical_and", "bitwise_and"), _and), **dict.fromkeys(("logical_or", "bitwise_or"), _or),
    **dict.fromkeys(("logical_not", "bitwise_not"), _not), "where": _where, **dict.fromkeys(("add", "sub"), _sum),
    "mul": _product, **dict.fromkeys(("floor_divide", "remainder"), _divided), "abs": _absolute, "neg": _negative,
    **dict.fromkeys(("minimum", "maximum"), _extreme), **dict.fromkeys(("to", "_to_copy"), _cast),
}  # fmt: skip
