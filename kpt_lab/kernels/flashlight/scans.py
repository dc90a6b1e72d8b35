"""Differences and running sums along a dimension, where what they run over is a range or a constant.

Models count sequences that are packed into one by where a position is not the one before it plus 1. Where positions are a range
that is nowhere, and the mask that compares the counts is True: what is left of it may be plain causal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from kpt_lab.kernels.flashlight.algebra import apply, cast
from kpt_lab.kernels.flashlight.arithmetic import arithmetic
from kpt_lab.kernels.flashlight.atoms import INTEGERS, ONE, ZERO, Product, Variable, is_integer
from kpt_lab.kernels.flashlight.expression import Constant, Expression, Load
from kpt_lab.kernels.flashlight.nodes import Arguments, Index, value
from kpt_lab.kernels.flashlight.views import nonnegative

if TYPE_CHECKING:
    from kpt_lab.kernels.flashlight.index import Reader


def difference(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    """An element of torch.diff of whole numbers that are a formula of their place; None otherwise.

    A prepended element is taken where the formula gives it for place -1; then one formula holds everywhere.
    """
    source, dim = a.values["self"], nonnegative(a.dim, len(index))
    if a.get("n", 1) != 1 or a.get("append") is not None or value(node).dtype not in INTEGERS:
        return None

    def at(place: Expression) -> Expression:
        return reader.element(source, (*index[:dim], place, *index[dim + 1 :]))

    place, before = Variable("place", reader.shape(source)[dim]), a.get("prepend")
    formula = at(place)
    if not is_integer(formula) or any(isinstance(part, (Load, Product)) for part in formula.walk()):
        return None
    if before is None:
        return arithmetic("sub", at(arithmetic("add", index[dim], ONE)), at(index[dim]))
    if reader.shape(before)[dim] != ONE:
        return None
    first = reader.element(before, (*index[:dim], ZERO, *index[dim + 1 :]))
    if not is_integer(first) or arithmetic("sub", first, at(Constant(-1))) != ZERO:
        return None
    return arithmetic("sub", at(index[dim]), at(arithmetic("sub", index[dim], ONE)))


def running_sum(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    """An element of torch.cumsum over a dimension along which all elements are proved to be one number; None otherwise."""
    source, dtype = a.values["self"], value(node).dtype
    if dtype not in INTEGERS:
        return None
    dim = nonnegative(a.dim, len(index))
    place = Variable("place", reader.shape(source)[dim])
    found = reader.element(source, (*index[:dim], place, *index[dim + 1 :]))
    if not isinstance(found, Constant) or not isinstance(found.value, (bool, int)):
        return None
    count = arithmetic("add", index[dim], ONE)
    return cast(apply("mul", (Constant(int(found.value)), count), dtype), dtype)


SCANS = {
    "diff": difference,
    "cumsum": running_sum,
}  # apart from other operations: their elements depend on several of the source's
