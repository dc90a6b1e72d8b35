"""What is proved about a mask from its expression alone: causal or not, rows that surely have a key.

A mask is built again over variables with the extents of queries and keys, with one and the same size for all nodes of one symbol;
what the one simplifier (algebra.py) then decides is proved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kpt_lab.kernels.flashlight.algebra import simplify, substitute
from kpt_lab.kernels.flashlight.arithmetic import arithmetic, at_least_zero, compare, symbolic
from kpt_lab.kernels.flashlight.atoms import ONE, TRUE, ZERO, Variable
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Coordinate, Expression, Load, Size
from kpt_lab.kernels.flashlight.polynomials import Terms, number, terms

Length = int | torch.SymInt
KEY = Coordinate("k")


@dataclass(frozen=True)
class Symbol:
    """Stands in a Size for the node: one symbol of the graph's sizes, whichever nodes hold it."""

    name: str

    @property
    def meta(self) -> dict[str, Any]:
        """Nothing: it is printed by its name."""
        return {}


def of_length(length: Length) -> Expression:
    """A number or symbolic integer as an expression over Symbols."""
    if isinstance(length, int):
        return Constant(length)
    expr = length.node.expr
    found = symbolic(expr, lambda part: Size(Symbol(str(part))) if part.is_Symbol else None)  # type: ignore[arg-type]
    # what can't be read is some number, not a Size, which would be at least 1
    return Apply("size", (Size(Symbol(str(expr))),), torch.int64) if found is None else found  # type: ignore[arg-type]


def _placed(mask: Expression, places: Mapping[str, Expression]) -> Expression:
    """The mask over other expressions of its places and over Symbols, simplified."""

    def leaf(part: Expression) -> Expression | None:
        if isinstance(part, Coordinate):
            return places.get(part.place)
        held = part.node.meta.get("val") if isinstance(part, Size) else None
        return of_length(held) if isinstance(held, (int, torch.SymInt)) else None

    return simplify(mask, leaf)


def same_size(one: Length, other: Length) -> bool:
    """Whether two sizes are proved to be equal."""
    return number(terms(arithmetic("sub", of_length(one), of_length(other)))) == 0


def causal_offset(mask: Expression) -> Terms | None:
    """The polynomial c where the mask says exactly k <= q + c, and c is made of sizes and numbers only; else None."""
    found = at_least_zero(_placed(mask, {}))
    if found is None:
        return None
    rest = dict(found)
    if rest.pop((Coordinate("q"),), 0) != 1 or rest.pop((Coordinate("k"),), 0) != -1:
        return None
    return rest if all(isinstance(atom, Size) for monomial in rest for atom in monomial) else None


def is_causal(mask: Expression) -> bool:
    """Whether the mask is q >= k and nothing else, whatever the lengths."""
    return causal_offset(mask) == {}


def attends_everywhere(mask: Expression, keys: Length) -> bool:
    """Whether the mask is proved to be True at every place."""
    return _placed(mask, {"k": Variable("k", of_length(keys))}) == TRUE


def rows_have_keys(mask: Expression | None, queries: Length, keys: Length) -> bool:
    """Whether it is proved that every query attends some key."""
    query, key = Variable("q", of_length(queries)), Variable("k", of_length(keys))
    return mask is None or some_key_always(_placed(mask, {"q": query, "k": key}), key, query)


def may_vanish(score: Expression) -> bool:
    """Whether all scores of a row may be -inf: that number is in them, or a tensor with an element of its own for each key."""

    def holds(part: Expression) -> bool:
        if isinstance(part, Constant):
            return part.value == -math.inf
        return isinstance(part, Load) and KEY in part.index and part.tensor.meta["val"].dtype.is_floating_point

    return any(map(holds, score.walk()))


def some_key_always(mask: Expression, key: Variable, query: Variable | None) -> bool:
    """Whether one of these keys makes the mask True in every row: the first, the last, the query's own, as far from the end."""
    places: list[Expression] = [ZERO, arithmetic("sub", key.extent, ONE)]
    if query is not None and compare("ge", key.extent, query.extent) == TRUE:
        places += [query, arithmetic("add", query, arithmetic("sub", key.extent, query.extent))]
    return any(substitute(mask, {key: place}) == TRUE for place in places)
