"""Views: the node and index that one element of a view, copy or permutation is taken from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import fx

from kpt_lab.kernels.flashlight.arithmetic import arithmetic, compare
from kpt_lab.kernels.flashlight.atoms import ONE, ZERO
from kpt_lab.kernels.flashlight.expression import Constant, Expression
from kpt_lab.kernels.flashlight.nodes import Arguments, Index, is_tensor, name_of, value

if TYPE_CHECKING:
    from kpt_lab.kernels.flashlight.index import Reader

View = tuple[fx.Node, Index] | None  # None where the element stays a Load


def nonnegative(dim: int, rank: int) -> int:
    """The dimension counted from the front."""
    return dim % rank if rank else 0


def _permute(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    source = a.values["self"]
    order = [nonnegative(d, len(index)) for d in a.dims]
    return source, tuple(index[order.index(i)] for i in range(len(order)))


def _swap(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    name, rank, swapped = name_of(node), len(index), list(index)
    dims = (a.dim0, a.dim1) if name in ("transpose", "swapaxes", "swapdims") and "dim0" in a.values else (-2, -1)
    if name in ("swapaxes",):
        dims = (a.values["axis0"], a.values["axis1"])
    if rank >= 2:
        i, j = (nonnegative(d, rank) for d in dims)
        swapped[i], swapped[j] = swapped[j], swapped[i]
    return a.values["self"], tuple(swapped)


def _unsqueeze(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    dim = nonnegative(a.dim, len(index))
    return a.values["self"], index[:dim] + index[dim + 1 :]


def _squeeze(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    source = a.values["self"]
    shape = reader.shape(source)
    dims = a.get("dim")
    chosen = (
        range(len(shape)) if dims is None else [nonnegative(d, len(shape)) for d in ([dims] if isinstance(dims, int) else dims)]
    )
    gone = {d for d in chosen if shape[d] == ONE}
    rest = iter(index)
    return source, tuple(ZERO if d in gone else next(rest) for d in range(len(shape)))


def _expand(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    source = a.values["self"]
    shape, target = reader.shape(source), reader.shape(node)
    lead = len(index) - len(shape)
    pairs = zip(index[lead:], shape, target[lead:], strict=True)
    return source, tuple(ZERO if extent == ONE and wide != ONE else i for i, extent, wide in pairs)


def _slice(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    source = a.values["self"]
    dim = nonnegative(a.dim, len(index))
    extent = reader.shape(source)[dim]
    start = reader.size(a.start) if a.start is not None else ZERO
    if isinstance(start, Constant) and start.value < 0:
        start = arithmetic("add", start, extent)
    if isinstance(start, Constant) and isinstance(extent, Constant):
        start = Constant(min(max(start.value, 0), extent.value))
    elif compare("ge", start, ZERO) != Constant(True):
        return None
    moved = arithmetic("add", arithmetic("mul", index[dim], reader.size(a.step)), start)
    return source, (*index[:dim], moved, *index[dim + 1 :])


def _select(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    source = a.values["self"]
    shape = reader.shape(source)
    dim, chosen = nonnegative(a.dim, len(shape)), reader.size(a.values["index"])
    if isinstance(chosen, Constant) and chosen.value < 0:
        chosen = arithmetic("add", chosen, shape[dim])
    elif compare("ge", chosen, ZERO) != Constant(True):
        return None
    return source, (*index[:dim], chosen, *index[dim:])


def _repeat(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    source = a.values["self"]
    shape, target = reader.shape(source), reader.shape(node)
    lead = len(index) - len(shape)
    return source, tuple(
        i if extent == wide else arithmetic("remainder", i, extent)
        for i, extent, wide in zip(index[lead:], shape, target[lead:], strict=True)
    )


def _repeat_interleave(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    if not is_tensor(a.get("self")) or is_tensor(a.get("repeats")):
        return None
    source, repeats = a.values["self"], reader.size(a.repeats)
    if a.dim is None:
        shape = reader.shape(source)
        flat = arithmetic("floor_divide", index[0], repeats)
        return source, reader.reindex((_numel(shape),), (flat,), shape)
    dim = nonnegative(a.dim, len(index))
    return source, (*index[:dim], arithmetic("floor_divide", index[dim], repeats), *index[dim + 1 :])


def _numel(shape: Index) -> Expression:
    result: Expression = ONE
    for extent in shape:
        result = arithmetic("mul", result, extent)
    return result


def _flip(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    shape, dims = reader.shape(node), {nonnegative(d, len(index)) for d in a.dims}
    back = (
        arithmetic("sub", arithmetic("sub", n, ONE), i) if d in dims else i for d, (i, n) in enumerate(_pairs(index, shape))
    )
    return a.values["self"], tuple(back)


def _roll(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    if not a.dims or len(a.dims) != len(a.shifts):
        return None
    shape, moved = reader.shape(node), list(index)
    for shift, d in zip(a.shifts, a.dims, strict=True):
        d = nonnegative(d, len(index))
        moved[d] = arithmetic("remainder", arithmetic("sub", moved[d], reader.size(shift)), shape[d])
    return a.values["self"], tuple(moved)


def _pairs(index: Index, shape: Index) -> list[tuple[Expression, Expression]]:
    return list(zip(index, shape, strict=True))


VIEWS: dict[str, Callable[[Reader, fx.Node, Arguments, Index], View]] = {
    "permute": _permute, "transpose": _swap, "t": _swap, "swapaxes": _swap, "swapdims": _swap, "mT": _swap, "numpy_T": _swap,
    "unsqueeze": _unsqueeze, "squeeze": _squeeze, "expand": _expand, "expand_as": _expand, "broadcast_to": _expand,
    "slice": _slice, "select": _select, "repeat": _repeat, "tile": _repeat, "repeat_interleave": _repeat_interleave,
    "flip": _flip, "roll": _roll,
}  # fmt: skip


def split_source(node: fx.Node, reader: Reader, index: Index) -> tuple[fx.Node, Index] | None:
    """The tensor below `operator.getitem` of split, chunk or unbind, and the index into it."""
    parent = node.args[0]
    if not isinstance(parent, fx.Node):
        return None
    name, which = name_of(parent), node.args[1]
    if name == "meshgrid" and isinstance(which, int):
        order = (
            [1, 0, *range(2, len(index))] if Arguments(parent).get("indexing") == "xy" and len(index) > 1 else range(len(index))
        )
        tensor = Arguments(parent).tensors[which]
        return tensor, (index[order[which]],) * value(tensor).dim()
    if name not in ("split", "split_with_sizes", "chunk", "unbind", "tensor_split") or not isinstance(which, int):
        return None
    a = Arguments(parent)
    source = a.values["self"]
    rank = len(reader.shape(source))
    dim = nonnegative(a.dim, rank)
    if name == "unbind":
        chosen = Constant(which % len(value(parent)))
        return source, (*index[:dim], chosen, *index[dim:])
    start: Expression = ZERO
    for part in value(parent)[: which % len(value(parent))]:
        start = arithmetic("add", start, reader.size(part.shape[dim]))
    return source, (*index[:dim], arithmetic("add", index[dim], start), *index[dim + 1 :])
