"""Pull semantics: what one element of a node of the graph is, as an expression of its coordinates.

Views, permutations and expansions become arithmetic on the coordinates, pointwise operations become Apply, ranges and
triangles become coordinates and comparisons. Where the understanding ends, a Load says which element of which node it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from kpt_lab.kernels.flashlight.algebra import apply, cast, choose
from kpt_lab.kernels.flashlight.arithmetic import arithmetic, compare, symbolic
from kpt_lab.kernels.flashlight.atoms import INTEGERS, ONE, TRUE, ZERO, Product, Variable, dtype_of, is_integer, variables
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Expression, Load, Size
from kpt_lab.kernels.flashlight.logic import both
from kpt_lab.kernels.flashlight.polynomials import quotient

Index = tuple[Expression, ...]

HOIST = 14  # an expression that does not depend on the key, has loads, and is larger than this stays a tensor of the graph
LARGEST = 600  # and no expression may be larger than this

SAME_SHAPE = {  # ATen's name -> ours, for operations whose operands are all tensors or numbers
    "add": "add", "sub": "sub", "mul": "mul", "multiply": "mul", "subtract": "sub", "div": "div", "true_divide": "div",
    "divide": "div", "floor_divide": "floor_divide", "remainder": "remainder", "fmod": "fmod", "pow": "pow", "neg": "neg",
    "negative": "neg", "abs": "abs", "absolute": "abs", "tanh": "tanh", "exp": "exp", "exp2": "exp2", "expm1": "expm1",
    "log": "log", "log2": "log2", "log1p": "log1p", "sigmoid": "sigmoid", "sqrt": "sqrt", "rsqrt": "rsqrt", "sin": "sin",
    "cos": "cos", "erf": "erf", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "sign": "sign", "minimum": "minimum",
    "maximum": "maximum", "ge": "ge", "gt": "gt", "le": "le", "lt": "lt", "eq": "eq", "ne": "ne", "greater_equal": "ge",
    "greater": "gt", "less_equal": "le", "less": "lt", "not_equal": "ne", "logical_and": "logical_and",
    "logical_or": "logical_or", "logical_xor": "logical_xor", "logical_not": "logical_not", "bitwise_and": "bitwise_and",
    "bitwise_or": "bitwise_or", "bitwise_xor": "bitwise_xor", "bitwise_not": "bitwise_not", "__and__": "bitwise_and",
    "__or__": "bitwise_or", "__xor__": "bitwise_xor", "isnan": "isnan", "isinf": "isinf", "round": "round",
    "bitwise_left_shift": "bitwise_left_shift", "bitwise_right_shift": "bitwise_right_shift",
    "__lshift__": "bitwise_left_shift", "__rshift__": "bitwise_right_shift",
}  # fmt: skip
IDENTITIES = {"alias", "clone", "contiguous", "lift_fresh_copy", "lift_fresh", "lift", "view_as_real_copy", "positive"}
RESHAPES = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_copy", "_reshape_alias", "view_as", "reshape_as",
}  # fmt: skip
CONTRACTIONS = {"matmul", "bmm", "mm", "einsum", "baddbmm", "addmm", "linear"}  # and a product that is summed


class Unreadable(Exception):
    """An element can't be written as an expression; the message says why."""


def name_of(node: fx.Node) -> str:
    """The ATen operator's name without its overload, or "" for other nodes."""
    target = node.target
    if node.op == "call_function" and isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return target._schema.name.removeprefix("aten::")
    return ""


def value(node: fx.Node) -> Any:
    """What the node holds, as a fake tensor or symbolic number."""
    return node.meta.get("val", node.meta.get("example_value"))


def is_tensor(node: Any) -> bool:
    """Whether the argument is a node that holds a tensor."""
    return isinstance(node, fx.Node) and isinstance(value(node), torch.Tensor)


class Arguments:
    """The arguments of an ATen node by the names in its schema, defaults filled in."""

    def __init__(self, node: fx.Node) -> None:
        schema = node.target._schema  # type: ignore[union-attr]
        self.values: dict[str, Any] = {}
        for i, argument in enumerate(schema.arguments):
            if i < len(node.args):
                self.values[argument.name] = node.args[i]
            elif argument.name in node.kwargs:
                self.values[argument.name] = node.kwargs[argument.name]
            else:
                self.values[argument.name] = argument.default_value if argument.has_default_value() else None

    def __getattr__(self, name: str) -> Any:
        return self.values[name.rstrip("_")]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of that name, or the default where the schema has none."""
        return self.values.get(name, default)


class Reader:
    """Reads elements of one graph. `opaque` nodes are never looked into; `key` is the variable that runs over the keys."""

    def __init__(
        self, graph: fx.Graph, opaque: frozenset[fx.Node] = frozenset(), module: torch.nn.Module | None = None
    ) -> None:
        self.graph, self.opaque, self.module = graph, opaque, module
        self.known: dict[tuple[fx.Node, Index], Expression] = {}
        self.keys: frozenset[Variable] = frozenset()
        self.symbols = self._symbols()
        self.stopped = _stopped_gradients(graph)

    # -- numbers

    def _symbols(self) -> dict[Any, fx.Node]:
        found: dict[Any, fx.Node] = {}
        for node in self.graph.nodes:
            held = value(node)
            if isinstance(held, torch.SymInt):
                found.setdefault(held.node.expr, node)
        return found

    def looking(self, keys: frozenset[Variable]) -> None:
        """From now on these variables run over the keys."""
        self.keys = keys
        self.known.clear()

    def size(self, number: Any) -> Expression:
        """An integer, a symbolic one, or a node that holds one, as an expression."""
        held = value(number) if isinstance(number, fx.Node) else number
        if isinstance(held, (bool, int, float)) and not isinstance(number, fx.Node):
            return Constant(held)
        if isinstance(held, int):
            return Constant(held)
        if isinstance(held, torch.SymInt):
            found = symbolic(held.node.expr, lambda expr: Size(self.symbols[expr]) if expr in self.symbols else None)
            if found is None:
                raise Unreadable(f"the symbolic size {held} can't be read")
            return found
        if isinstance(number, fx.Node):
            return Size(number)
        raise Unreadable(f"the number {number!r} can't be read")

    def shape(self, node: fx.Node) -> Index:
        """The extents of a tensor node."""
        return tuple(self.size(extent) for extent in value(node).shape)

    # -- elements

    def element(self, node: Any, index: Index) -> Expression:
        """The element of a node (or a plain number) at the index."""
        if not isinstance(node, fx.Node):
            return Constant(node)
        if not is_tensor(node):
            return self.size(node)
        if (node, index) not in self.known:
            self.known[node, index] = self._limited(node, index)
        return self.known[node, index]

    def broadcast(self, node: Any, index: Index) -> Expression:
        """The element of an operand that is broadcast to the shape which the index runs over."""
        if not is_tensor(node):
            return self.element(node, ())
        shape = self.shape(node)
        own = index[len(index) - len(shape) :]
        return self.element(node, tuple(ZERO if extent == ONE else i for i, extent in zip(own, shape, strict=True)))

    def _limited(self, node: fx.Node, index: Index) -> Expression:
        found = self._element(node, index)
        if isinstance(found, (Load, Constant)):
            return found
        size = sum(1 for _ in found.walk())
        if size > LARGEST:
            raise Unreadable("what stands between the two products is too long to be read")
        depends = variables(found) & self.keys
        loads = any(isinstance(part, Load) for part in found.walk())
        if any(isinstance(part, Product) or (isinstance(part, Load) and part.tensor in self.opaque) for part in found.walk()):
            return found
        return Load(node, index) if size > HOIST and loads and not depends and self.keys else found

    def _element(self, node: fx.Node, index: Index) -> Expression:
        if node in self.opaque or node in self.stopped:
            return Load(node, index)
        if node.op == "get_attr":
            return self._attribute(node, index)
        name = name_of(node)
        step = self.source(node, index)
        if step is not None:
            return self.element(*step)
        if name in SAME_SHAPE:
            return self._pointwise(node, SAME_SHAPE[name], index)
        if name in CONTRACTIONS:
            return self._contraction(node, name, index)
        if (
            name == "sum"
            and isinstance(node.args[0], fx.Node)
            and name_of(node.args[0]) == "mul"
            and not Arguments(node).keepdim
        ):
            return Product(node, index)
        rule = _RULES.get(name)
        found = rule(self, node, Arguments(node), index) if rule else None
        return Load(node, index) if found is None else found

    def _attribute(self, node: fx.Node, index: Index) -> Expression:
        tensor = self.module
        for part in str(node.target).split("."):
            tensor = getattr(tensor, part, None)
        if isinstance(tensor, torch.Tensor) and tensor.numel() == 1 and not _is_fake(tensor) and not tensor.requires_grad:
            return Constant(tensor.item())
        return Load(node, index)

    def _pointwise(self, node: fx.Node, op: str, index: Index) -> Expression:
        arguments, dtype = Arguments(node), value(node).dtype
        operands = [self.broadcast(x, index) for x in list(arguments.values.values())[: 1 if len(node.args) == 1 else 2]]
        mode = arguments.get("rounding_mode")
        if mode == "trunc":
            return apply("trunc", (apply("div", tuple(operands), torch.float64),), dtype)
        if mode == "floor":
            op = "floor_divide"
        if (alpha := arguments.get("alpha")) not in (None, 1):
            operands[1] = apply("mul", (operands[1], self.element(alpha, ())), dtype)
        if op == "round" and arguments.get("decimals"):
            return Load(node, index)
        return apply(op, tuple(operands), dtype)

    def _contraction(self, node: fx.Node, name: str, index: Index) -> Expression:
        if name == "linear" and Arguments(node).bias is not None:
            return Load(node, index)
        if name not in ("baddbmm", "addmm"):
            return Product(node, index)
        arguments, dtype = Arguments(node), value(node).dtype
        product = apply("mul", (Product(node, index), self.element(arguments.alpha, ())), dtype)
        if arguments.beta == 0:
            return product
        added = self.broadcast(arguments.values["self"], index)
        return apply("add", (apply("mul", (added, self.element(arguments.beta, ())), dtype), product), dtype)

    # -- views

    def source(self, node: fx.Node, index: Index) -> tuple[fx.Node, Index] | None:
        """The node and index that a view, copy or permutation takes this element from; None for other operations."""
        name = name_of(node)
        if node in self.opaque or node in self.stopped:
            return None
        if node.target is operator.getitem:
            return split_source(node, self, index)
        if name in RESHAPES:
            return self._reshaped(node, index)
        if name in IDENTITIES:
            return node.args[0], index  # type: ignore[return-value]
        if name in ("to", "_to_copy", "type_as", "float", "detach", "detach_", "dropout", "native_dropout"):
            return self._unchanged(node, name, index)
        rule = _VIEWS.get(name)
        return rule(self, node, Arguments(node), index) if rule else None

    def _unchanged(self, node: fx.Node, name: str, index: Index) -> tuple[fx.Node, Index] | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if name == "detach":
            return source, index
        if name == "dropout":
            return (source, index) if not Arguments(node).train or Arguments(node).p == 0 else None
        same = value(source).dtype == value(node).dtype and value(source).device == value(node).device
        return (source, index) if same and name != "native_dropout" else None

    def _reshaped(self, node: fx.Node, index: Index) -> tuple[fx.Node, Index]:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return source, self.reindex(self.shape(node), index, self.shape(source))

    def reindex(self, shape: Index, index: Index, source: Index) -> Index:
        """The index into `source` of what stands at `index` in `shape`, both holding the same elements in the same order."""
        result: list[Expression] = []
        i = j = 0
        while i < len(shape) and j < len(source):  # the smallest groups of dimensions that hold equally many elements
            left, right, held, wanted = [(shape[i], index[i])], [source[j]], shape[i], source[j]
            i, j = i + 1, j + 1
            while held != wanted and (i < len(shape) or j < len(source)):
                grow_right = quotient(wanted, held) is None and quotient(held, wanted) is not None
                if j < len(source) and (grow_right or i == len(shape)):
                    right.append(source[j])
                    wanted, j = arithmetic("mul", wanted, source[j]), j + 1
                elif i < len(shape):
                    left.append((shape[i], index[i]))
                    held, i = arithmetic("mul", held, shape[i]), i + 1
                else:
                    break
            result += _regrouped(left, right)
        return (*result, *[ZERO] * (len(source) - j))


def _regrouped(left: list[tuple[Expression, Expression]], right: list[Expression]) -> list[Expression]:
    if len(left) == len(right) == 1:
        return [left[0][1]]
    flat: Expression = ZERO
    for extent, i in left:
        flat = arithmetic("add", arithmetic("mul", flat, extent), i)
    result: list[Expression] = []
    for position, extent in enumerate(right):
        stride: Expression = ONE
        for other in right[position + 1 :]:
            stride = arithmetic("mul", stride, other)
        if extent == ONE:
            result.append(ZERO)
            continue
        rest = arithmetic("remainder", flat, arithmetic("mul", stride, extent)) if position else flat
        result.append(arithmetic("floor_divide", rest, stride) if stride != ONE else rest)
    return result


def _is_fake(tensor: torch.Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def needs_gradient(graph: fx.Graph) -> set[fx.Node]:
    """The nodes through which a gradient may have to flow: floating, and below an input that requires one."""
    found: set[fx.Node] = set()
    enabled = torch.is_grad_enabled()
    if not enabled and not any(n.target is torch._C._set_grad_enabled and n.args[0] for n in graph.nodes):
        return found
    for node in graph.nodes:
        if node.target is torch._C._set_grad_enabled:
            enabled = bool(node.args[0])
        held = value(node)
        if not isinstance(held, torch.Tensor):
            if any(parent in found for parent in node.all_input_nodes) and enabled:
                found.add(node)  # several outputs at once
            continue
        if not (held.dtype.is_floating_point or held.dtype.is_complex):
            continue
        own = node.op in ("placeholder", "get_attr") and held.requires_grad
        below = enabled and node.op == "call_function" and any(parent in found for parent in node.all_input_nodes)
        if own or (below and name_of(node) != "detach"):
            found.add(node)
    return found


def _stopped_gradients(graph: fx.Graph) -> frozenset[fx.Node]:
    """Floating nodes at which a gradient ends (detach, no_grad): looking through them would let it pass."""
    through = needs_gradient(graph)
    return frozenset(
        node
        for node in graph.nodes
        if node.op == "call_function" and node not in through and is_tensor(node) and value(node).dtype.is_floating_point
        and any(parent in through for parent in node.all_input_nodes)
    )  # fmt: skip


# ---- views, each as (source, index)

View = tuple[fx.Node, Index] | None


def _dim(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def _permute(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    source = a.values["self"]
    order = [_dim(d, len(index)) for d in a.dims]
    return source, tuple(index[order.index(i)] for i in range(len(order)))


def _swap(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    name, rank, swapped = name_of(node), len(index), list(index)
    dims = (a.dim0, a.dim1) if name in ("transpose", "swapaxes", "swapdims") and "dim0" in a.values else (-2, -1)
    if name in ("swapaxes",):
        dims = (a.values["axis0"], a.values["axis1"])
    if rank >= 2:
        i, j = (_dim(d, rank) for d in dims)
        swapped[i], swapped[j] = swapped[j], swapped[i]
    return a.values["self"], tuple(swapped)


def _unsqueeze(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    dim = _dim(a.dim, len(index))
    return a.values["self"], index[:dim] + index[dim + 1 :]


def _squeeze(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    source = a.values["self"]
    shape = reader.shape(source)
    dims = a.get("dim")
    chosen = range(len(shape)) if dims is None else [_dim(d, len(shape)) for d in ([dims] if isinstance(dims, int) else dims)]
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
    dim = _dim(a.dim, len(index))
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
    dim, chosen = _dim(a.dim, len(shape)), reader.size(a.values["index"])
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
    dim = _dim(a.dim, len(index))
    return source, (*index[:dim], arithmetic("floor_divide", index[dim], repeats), *index[dim + 1 :])


def _numel(shape: Index) -> Expression:
    result: Expression = ONE
    for extent in shape:
        result = arithmetic("mul", result, extent)
    return result


def _flip(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    shape, dims = reader.shape(node), {_dim(d, len(index)) for d in a.dims}
    back = (
        arithmetic("sub", arithmetic("sub", n, ONE), i) if d in dims else i for d, (i, n) in enumerate(_pairs(index, shape))
    )
    return a.values["self"], tuple(back)


def _roll(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> View:
    if not a.dims or len(a.dims) != len(a.shifts):
        return None
    shape, moved = reader.shape(node), list(index)
    for shift, d in zip(a.shifts, a.dims, strict=True):
        d = _dim(d, len(index))
        moved[d] = arithmetic("remainder", arithmetic("sub", moved[d], reader.size(shift)), shape[d])
    return a.values["self"], tuple(moved)


def _pairs(index: Index, shape: Index) -> list[tuple[Expression, Expression]]:
    return list(zip(index, shape, strict=True))


_VIEWS: dict[str, Callable[[Reader, fx.Node, Arguments, Index], View]] = {
    "permute": _permute, "transpose": _swap, "t": _swap, "swapaxes": _swap, "swapdims": _swap, "mT": _swap, "numpy_T": _swap,
    "unsqueeze": _unsqueeze, "squeeze": _squeeze, "expand": _expand, "expand_as": _expand, "broadcast_to": _expand,
    "slice": _slice, "select": _select, "repeat": _repeat, "tile": _repeat, "repeat_interleave": _repeat_interleave,
    "flip": _flip, "roll": _roll,
}  # fmt: skip


# ---- other operations, each as an expression; None where it stays a Load

Rule = Callable[[Reader, fx.Node, Arguments, Index], "Expression | None"]


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
    dim = _dim(a.dim, len(index))
    return reader.element(a.values["self"], (*index[:dim], reader.element(a.values["index"], index), *index[dim + 1 :]))


def _index_select(reader: Reader, node: fx.Node, a: Arguments, index: Index) -> Expression | None:
    dim = _dim(a.dim, len(index))
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
        dim, dtype = _dim(a.dim, len(index)), value(node).dtype
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
    dim, tensors = _dim(a.dim, len(index)), a.tensors
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


_RULES: dict[str, Rule] = {
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
    dim = _dim(a.dim, rank)
    if name == "unbind":
        chosen = Constant(which % len(value(parent)))
        return source, (*index[:dim], chosen, *index[dim:])
    start: Expression = ZERO
    for part in value(parent)[: which % len(value(parent))]:
        start = arithmetic("add", start, reader.size(part.shape[dim]))
    return source, (*index[:dim], arithmetic("add", index[dim], start), *index[dim + 1 :])
