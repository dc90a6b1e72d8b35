"""Operations that are no views and not only pointwise: one element of each as an expression, None where it stays a Load."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from kpt_lab.kernels.flashlight.algebra import apply, cast, choose
from kpt_lab.kernels.flashlight.arithmetic import arithmetic, compare
from kpt_lab.kernels.flashlight.atoms import INTEGERS, TRUE, ZERO, Product, dtype_of, is_integer
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Expression, Load
from kpt_lab.kernels.flashlight.logic import both
from kpt_lab.kernels.flashlight.nodes import Arguments, Index, value
from kpt_lab.kernels.flashlight.views import nonnegative

if TYPE_CHECKING:
    from kpt_lab.kernels.flashlight.index import Reader

Rule = Callable[["Reader", fx.Node, Arguments, Index], "Expression | None"]


def _cast(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    source = node.args[0]
    if not isinstance(source, fx.Node) or value(source).device != value(node).device:
        return None
    return cast(reader.element(source, index), value(node).dtype)


def _where(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    if "self" not in a.values:
        return None
    dtype = value(node).dtype
    condition, left, right = (reader.broadcast(a.values[x], index) for x in ("condition", "self", "other"))
    return choose(condition, _number_in(left, dtype), _number_in(right, dtype), dtype)


def _number_in(expression: Expression, dtype: torch.dtype) -> Expression:
    return cast(expression, dtype) if dtype_of(expression) != dtype else expression


def _masked_fill(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    dtype = value(node).dtype
    mask, filled = reader.broadcast(a.mask, index), reader.broadcast(a.value, index)
    return choose(mask, _number_in(filled, dtype), reader.broadcast(a.values["self"], index), dtype)


def _clamp(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    dtype, found = value(node).dtype, reader.broadcast(a.values["self"], index)
    for op, name in (("maximum", "min"), ("minimum", "max")):
        if (limit := a.get(name)) is not None:
            found = apply(op, (_number_in(found, dtype), _number_in(reader.broadcast(limit, index), dtype)), dtype)
    return found


def _arange(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    dtype = value(node).dtype
    start, step = (reader.element(x, ()) for x in (a.get("start", 0), a.get("step", 1)))
    if not (is_integer(start) and is_integer(step)):
        return None
    return cast(arithmetic("add", arithmetic("mul", index[0], step), start), dtype)


def _constant(number: Any) -> Rule:
    def rule(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
        return cast(Constant(number), value(node).dtype)

    return rule


def _full(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    given = a.get("fill_value", a.get("value", a.get("s")))
    return _number_in(reader.broadcast(given, index), value(node).dtype)


def _eye(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    return cast(compare("eq", index[0], index[1]), value(node).dtype)


def _triangle(op: str) -> Rule:
    def rule(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
        dtype, row = value(node).dtype, arithmetic("add", index[-2], reader.size(a.diagonal))
        inside = compare(op, row, index[-1])
        return choose(inside, reader.element(a.values["self"], index), cast(ZERO, dtype), dtype)

    return rule


def wrapped(i: Expression, extent: Expression) -> Expression:
    """A possibly negative index, counted from the end as tensors do."""
    negative = compare("lt", i, ZERO)
    return choose(negative, arithmetic("add", i, extent), i, torch.int64)


def _gather(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    dim = nonnegative(a.dim, len(index))
    return reader.element(a.values["self"], (*index[:dim], reader.element(a.values["index"], index), *index[dim + 1 :]))


def _index_select(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    dim = nonnegative(a.dim, len(index))
    chosen = reader.element(a.values["index"], (index[dim],))
    return reader.element(a.values["self"], (*index[:dim], chosen, *index[dim + 1 :]))


def _embedding(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    if a.sparse or a.scale_grad_by_freq or a.padding_idx not in (-1, None):
        return None
    return reader.element(a.weight, (reader.element(a.values["indices"], index[:-1]), index[-1]))


def _advanced(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    source, given = a.values["self"], list(a.values["indices"])
    shape = reader.shape(source)
    given += [None] * (len(shape) - len(given))
    used = [d for d, x in enumerate(given) if x is not None]
    if not used or any(value(given[d]).dtype not in INTEGERS for d in used):
        return None  # truth values as an index choose places by data
    rank = max(value(given[d]).dim() for d in used)
    adjacent = used == list(range(used[0], used[-1] + 1))
    first = used[0] if adjacent else 0
    block, rest = index[first : first + rank], iter((*index[:first], *index[first + rank :]))
    full: list[Expression] = []
    for d, extent in enumerate(shape):
        full.append(wrapped(reader.broadcast(given[d], block), extent) if d in used else next(rest))
    return reader.element(source, tuple(full))


def _scatter(kind: str) -> Rule:
    def rule(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
        dim, dtype = nonnegative(a.dim, len(index)), value(node).dtype
        extent = reader.shape(node)[dim]
        other = reader.element(a.values["self"], index)
        if kind == "select":
            place = wrapped(reader.size(a.values["index"]), extent)
            return choose(
                compare("eq", index[dim], place), reader.element(a.src, (*index[:dim], *index[dim + 1 :])), other, dtype
            )
        start = wrapped(reader.size(a.start), extent) if a.start is not None else ZERO
        if a.step != 1 or value(a.src).numel() == 0:
            return None
        inside = both(
            compare("ge", index[dim], start),
            compare("lt", index[dim], arithmetic("add", start, reader.shape(a.src)[dim])),
        )
        source = reader.element(a.src, (*index[:dim], arithmetic("sub", index[dim], start), *index[dim + 1 :]))
        outside = any(isinstance(x, (Load, Product)) for x in source.walk()) and inside != Constant(True)
        return None if outside else choose(inside, source, other, dtype)  # a load must not leave its tensor

    return rule


def _masked_put(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    given = [x for x in a.values["indices"] if x is not None]
    lead = next((i for i, x in enumerate(a.values["indices"]) if x is not None), 0)
    if a.accumulate or len(given) != 1 or value(given[0]).dtype is not torch.bool or value(a.values["values"]).numel() != 1:
        return None
    held = a.values["values"]
    put = reader.element(held, (ZERO,) * value(held).dim())
    mask = reader.element(given[0], index[lead : lead + value(given[0]).dim()])
    return choose(mask, put, reader.element(a.values["self"], index), value(node).dtype)


def _stack(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    dim, tensors = nonnegative(a.dim, len(index)), a.tensors
    rest = (*index[:dim], *index[dim + 1 :])
    if isinstance(place := index[dim], Constant):
        return reader.element(tensors[int(place.value)], rest)
    found = reader.element(tensors[-1], rest)
    for i, tensor in reversed(list(enumerate(tensors[:-1]))):
        found = choose(compare("eq", index[dim], Constant(i)), reader.element(tensor, rest), found, value(node).dtype)
    return found


def _guard(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    replaced = a.get("nan")
    inner = reader.element(a.values["self"], index)
    return Apply("nan_to_num", (inner, Constant(0.0 if replaced is None else float(replaced))), value(node).dtype)


def _dropout(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    return Apply("dropout", (reader.element(node.args[0], index), Constant(float(a.p))), value(node).dtype)


def _composed(build: Callable[[Expression, torch.dtype], Expression]) -> Rule:
    def rule(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
        return build(reader.element(node.args[0], index), value(node).dtype)

    return rule


def _rsub(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    dtype, (left, right) = value(node).dtype, (reader.broadcast(a.values[x], index) for x in ("self", "other"))
    return apply("sub", (right, apply("mul", (left, reader.element(a.alpha, ())), dtype)), dtype)


def _extreme(op: str) -> Rule:
    def rule(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
        if "other" not in a.values:
            return None  # the reduction of that name
        return apply(op, tuple(reader.broadcast(a.values[x], index) for x in ("self", "other")), value(node).dtype)

    return rule


def _leaky(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    slope, dtype = a.negative_slope, value(node).dtype
    if not 0 <= slope <= 1:
        return None
    inner = reader.element(a.values["self"], index)
    return apply("maximum", (inner, apply("mul", (inner, Constant(float(slope))), dtype)), dtype)


def _pad(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    if a.get("mode", "constant") != "constant":
        return None
    source, places = a.values["self"], list(index)
    inside: Expression = TRUE
    shape = reader.shape(source)
    for i in range(len(a.pad) // 2):
        d, before = len(shape) - 1 - i, reader.size(a.pad[2 * i])
        places[d] = arithmetic("sub", index[d], before)
        inside = both(inside, both(compare("ge", places[d], ZERO), compare("lt", places[d], shape[d])))
    found = reader.element(source, tuple(places))
    if any(isinstance(part, (Load, Product)) for part in found.walk()):
        return None  # a load must not leave its tensor
    dtype = value(node).dtype
    return choose(inside, found, _number_in(Constant(a.value or 0), dtype), dtype)


OPERATIONS: dict[str, Rule] = {
    "to": _cast, "_to_copy": _cast, "type_as": _cast, "where": _where, "masked_fill": _masked_fill, "clamp": _clamp,
    "clamp_min": _clamp, "clamp_max": _clamp, "min": _extreme("minimum"), "max": _extreme("maximum"), "leaky_relu": _leaky,
    "constant_pad_nd": _pad, "pad": _pad, "arange": _arange, "ones": _constant(1), "zeros": _constant(0),
    "ones_like": _constant(1), "zeros_like": _constant(0), "new_ones": _constant(1), "new_zeros": _constant(0), "full": _full,
    "full_like": _full, "new_full": _full, "scalar_tensor": _full, "fill": _full, "eye": _eye, "tril": _triangle("ge"),
    "triu": _triangle("le"), "gather": _gather, "index_select": _index_select, "embedding": _embedding, "index": _advanced,
    "select_scatter": _scatter("select"), "slice_scatter": _scatter("slice"), "index_put": _masked_put, "stack": _stack,
    "nan_to_num": _guard, "dropout": _dropout, "rsub": _rsub,
    "square": _composed(lambda x, t: apply("mul", (x, x), t)), "relu": _composed(lambda x, t: apply("maximum", (x, Constant(0.0)), t)),
    "reciprocal": _composed(lambda x, t: apply("div", (Constant(1.0), x), t)),
}  # fmt: skip
