"""One call of the FlexAttention operator in a graph: its functions, its block mask, and rows without keys as eager has them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx
from torch.nn.attention import flex_attention as flex

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import attend, blocks, choose, empty_rows, functions, native, proofs
from kpt_lab.kernels.flashlight.expression import Apply, Attention, Coordinate, Expression, Part, Score
from kpt_lab.kernels.flashlight.expression import replace as rewritten
from kpt_lab.kernels.flashlight.layout import Layout

aten = torch.ops.aten


@dataclass(frozen=True)
class Options:
    """How attentions are lowered.

    empty_rows: what a query without any key gives: "eager" as eager PyTorch (the mean of all values where masked scores were
                finite, NaN where they were -inf), "zero" skips that. Its gradient reaches the values alone; eager's reaches
                query and key too where a finite number is added to the scores, though the result does not depend on them.
    kernel:     "auto", "flex", or one of `attend.KERNELS`; of these "fa3" also takes bent scores, windows and masks over keys alone.
    measure:    race kernels on a CUDA device where no choice is remembered for the shape.
    trial:      a kind of attention (`FlexCall.kind`) and what to take for it whatever was measured: FlexAttention's options as JSON,
                or "fa3". For races: nothing else is raced then.
    block_masks: skip blocks of keys that the mask leaves out.
    training:   whether gradients will be asked for; None asks whether grad mode is on and an input of the graph requires them.
    kernel_options: for FlexAttention's templates, over what was chosen.
    """

    empty_rows: Literal["eager", "zero"] = "eager"
    kernel: str = "auto"
    measure: bool = True
    trial: tuple[str, str] = ("", "")
    block_masks: bool = True
    training: bool | None = None
    kernel_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.empty_rows not in ("eager", "zero"):
            raise ValueError(f"empty_rows is {self.empty_rows!r}; accepted are 'eager' and 'zero'")
        if self.kernel not in (accepted := ("auto", "flex", *attend.KERNELS)):
            raise ValueError(f"kernel is {self.kernel!r}; accepted are {', '.join(accepted)}")


class FlexCall(Layout):
    """Writes FlexAttention calls for one attention: everything is inserted before its output node."""

    def __init__(self, gm: fx.GraphModule, attention: Attention, options: Options) -> None:
        super().__init__(gm, attention)
        self.options = options
        self.asked: list[choose.Shape] = []
        self.unraced: list[tuple[choose.Shape, bool]] = []
        self.training = _training(gm) if options.training is None else options.training

    def shape(self, part: Part, kind: str) -> choose.Shape:
        """What choices are remembered by; symbolic lengths by the size at hand."""
        queries, keys = (_hint(length) for length in self.lengths(part))
        width, value_width, heads = (
            _hint(self.extent(o, place)) for o, place in ((part.query, 3), (self.attention.value, 3), (part.query, 1))
        )
        batch = _hint(self.extent(part.query, 0))
        return choose.Shape(self.dtype, width, value_width, heads, part.groups, queries, keys, kind, self.training, batch)

    def kind(self, part: Part) -> str:
        """What an attention for FlexAttention is called where its options are remembered."""
        flex = f"flex{'' if isinstance(part.score, Score) else ' score'}{' mask' if part.mask is not None else ''}"
        form = native.form(part, *self.lengths(part))
        name = f"{flex}, {form.name}" if form else flex
        # below a block of queries Flex takes its decoding template, which has block sizes of its own
        return name if _hint(self.lengths(part)[0]) >= blocks.BLOCK else f"{name}, few queries"

    def chosen(self, part: Part, native: bool) -> choose.Choice:
        """FlexAttention's options for a part, or "fa3", which is open where `native`; noted where nobody has raced them.

        Nothing is raced where gradients are asked for, whose kernels these options leave as they are.
        """
        shape, (kind, what) = self.shape(part, self.kind(part)), self.options.trial
        self.asked.append(shape)
        if kind and kind == shape.kind:
            return choose.Choice("fa3" if what == "fa3" else "flex", "tried", {}, {} if what == "fa3" else json.loads(what))
        found = choose.flex_options(shape, self.device, native=native)
        wanted = self.options.measure and self.options.kernel == "auto" and not kind and not shape.training
        if wanted and self.races and (native or shape.queries >= blocks.BLOCK) and not choose.raced(shape, self.device):
            self.unraced.append((shape, native))
        return found

    @property
    def races(self) -> bool:
        """Whether the device is one on which there is a choice."""
        return self.device.type == "cuda"

    def flex(self, part: Part, query: fx.Node, key: fx.Node, value: fx.Node, tiles: Mapping[str, Any]) -> fx.Node:
        """One call of the FlexAttention operator with these options, and what makes empty rows as eager has them."""
        if self.device.type not in ("cuda", "cpu"):
            raise Unsupported(f"FlexAttention is lowered to on cuda and cpu, not on {self.device.type}")
        part = scale_as_number(part)
        filled = self.fill(part)
        score, mask = functions.score_function(part.score), functions.mask_function(part.mask)
        mask_module = self.module("mask", mask.module)
        counted = bool(filled) and not self.has_sums  # a column of ones beside the values tells instead
        if counted:
            ones = self.call(aten.new_ones.default, value, [self.size(part.query, 0), self.size(self.attention.value, 1),
                             self.size(self.attention.value, 2), 1])  # fmt: skip
            widened = self.call(aten.cat.default, [value, ones], -1)
        query, key, values, width = self.widened(part, query, key, widened if counted else value, counted)
        both = self.call(
            torch.ops.higher_order.flex_attention, query, key, values, self.module("score", score.module),
            self.blocks(part, mask_module), float(part.scale), self.flex_options(lse=bool(filled), tiles=tiles),  # type: ignore[arg-type]
            score.buffers, tuple(map(self.without_gradient, mask.buffers)),
        )  # fmt: skip
        whole = out = self.call(operator.getitem, both, 0)
        if values is not value:
            out = self.call(aten.slice.Tensor, whole, -1, 0, width)
        if not filled:
            return out
        if counted:
            empty = self.call(aten.eq.Scalar, self.call(aten.slice.Tensor, whole, -1, width, width + 1), 0)
        else:
            sums = self.call(operator.getitem, both, 1)
            if not self.training:  # in place, which autograd could not follow
                self.call(empty_rows.fill_empty_rows._opoverload, out, sums, value, part.groups, filled == "nan")
                return out
            empty = self.call(aten.unsqueeze.default, self.call(aten.eq.Scalar, sums, -math.inf), -1)
        return self.call(aten.where.self, empty, self.empty_row(part, value), out)

    def fill(self, part: Part) -> str:
        """What is written into rows without keys, and those whose scores are all -inf: "mean" or "nan"; "" where there are none."""
        if self.options.empty_rows == "zero" or part.fill == "zero":
            return ""
        if proofs.rows_have_keys(part.mask, *self.lengths(part)) and not proofs.may_vanish(part.score):
            return ""
        return "mean" if part.fill == "finite" else "nan"

    def without_gradient(self, node: fx.Node) -> fx.Node:
        """What a mask reads: Flex refuses it where it asks for gradients, which no comparison hands on."""
        value = node.meta.get("val")
        floats = isinstance(value, torch.Tensor) and value.dtype.is_floating_point
        return self.call(aten.detach.default, node) if floats and self.training else node

    @property
    def has_sums(self) -> bool:
        """Whether Flex gives the row sums: its CPU template does not."""
        return self.device.type == "cuda"

    def widened(
        self, part: Part, query: fx.Node, key: fx.Node, value: fx.Node, counted: bool
    ) -> tuple[fx.Node, fx.Node, fx.Node, int]:
        """Operands padded with zeros to the least width that the templates take, and the values' own width."""
        wide, width = self.extent(part.query, 3), self.extent(self.attention.value, 3)
        if not (isinstance(wide, int) and isinstance(width, int)):
            raise Unsupported("the head width is symbolic; FlexAttention's kernels need it as a number")
        if self.device.type == "cuda":
            if wide < 16:
                query, key = (self.call(aten.constant_pad_nd.default, node, [0, 16 - wide]) for node in (query, key))
            if width < 16:
                value = self.call(aten.constant_pad_nd.default, value, [0, 16 - width])
        return query, key, value, width

    def empty_row(self, part: Part, value: fx.Node) -> fx.Node:
        """What a row without keys gives, broadcasting over queries: the mean of all values, or NaN."""
        if self.fill(part) == "nan":
            return self.call(aten.full.default, [], math.nan, dtype=self.dtype, device=self.device)
        mean = self.call(aten.mean.dim, value, [-2], True)
        return self.call(aten.repeat_interleave.self_int, mean, part.groups, 1) if part.groups > 1 else mean

    def blocks(self, part: Part, mask_module: fx.Node) -> tuple[Any, ...]:
        """The block mask's tuple, in the order of this version of torch; one block for all where there is no mask."""
        if part.mask is None or not self.options.block_masks:
            ones = self.call(torch.ones, [1, 1, 1], dtype=torch.int32, device=self.device)
            zeros = self.call(torch.zeros, [1, 1, 1, 1], dtype=torch.int32, device=self.device)
            given = {"kv_num_blocks": ones, "kv_indices": zeros, "q_num_blocks": ones, "q_indices": zeros}
            return block_tuple(given, (1, 1), (1 << 30, 1 << 30), mask_module)
        made = self.builder(part.mask, part)
        names = (*blocks.NAMES, *blocks.TRANSPOSED)
        given = {name: self.call(operator.getitem, made, i) for i, name in enumerate(names)}
        lengths = self.size(part.query, 2), self.size(part.key, 2)
        return block_tuple(given, lengths, (blocks.BLOCK, blocks.BLOCK), mask_module)

    def builder(self, mask: Expression, part: Part) -> fx.Node:
        """The call that makes the block mask; one for all attentions that have the same mask."""
        expression, captured = blocks.slotted(mask)
        places = {e.place for e in mask.walk() if isinstance(e, Coordinate)}
        sizes = [self.size(part.query, i) if place in places else 1 for i, place in enumerate("bh")]
        args = (*sizes, self.size(part.query, 2), self.size(part.key, 2), *captured)
        made = blocks.Builder(expression, self.device)
        for node in self.graph.nodes:
            if node is self.attention.output:
                break
            if node.op == "call_module" and self._equal(node.args, args):
                other = self.gm.get_submodule(str(node.target))
                if isinstance(other, blocks.Builder) and other.key == made.key:
                    return node
        return self.graph.call_module(self.added("blocks", made), args)

    @staticmethod
    def _equal(one: Sequence[Any], other: Sequence[Any]) -> bool:
        """Whether two calls get the same: nodes that read the same symbolic size count as one."""

        def key(arg: Any) -> Any:
            value = arg.meta.get("val") if isinstance(arg, fx.Node) else None
            return str(value.node.expr) if isinstance(value, torch.SymInt) else arg

        return len(one) == len(other) and all(key(a) == key(b) for a, b in zip(one, other, strict=True))

    def flex_options(self, *, lse: bool, tiles: Mapping[str, Any]) -> dict[str, Any]:
        """What torch's own front end puts into kernel_options, with ours over it.

        ROWS_GUARANTEED_SAFE stays off even where every row is proved to have a key: the template's first block of keys may have none
        for a row, as in a window, and without its check the row is NaN from there on.
        """
        value = self.output
        extra = {"return_aux": flex.AuxRequest(lse=lse)} if lse and self.has_sums else {}
        with torch.set_grad_enabled(self.training):
            made = flex._apply_kernel_options(value, value, value, False, None, **extra)
        return {**made, **tiles, **self.options.kernel_options}

    def module(self, kind: str, module: fx.GraphModule) -> fx.Node:
        """A node that gives a submodule of the graph."""
        return self.graph.get_attr(self.added(kind, module))

    def added(self, kind: str, module: torch.nn.Module) -> str:
        """The name under which a module was added to the graph's."""
        count = 0
        while hasattr(self.gm, name := f"flashlight_{kind}_{count}"):
            count += 1
        self.gm.add_submodule(name, module)
        return name


def _training(gm: fx.GraphModule) -> bool:
    inputs = (node.meta.get("example_value", node.meta.get("val")) for node in gm.graph.nodes if node.op == "placeholder")
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)


def _hint(size: int | torch.SymInt) -> int:
    """A size as a number; for a symbolic one, that of the call at hand, or 4096 where it has none."""
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    return hint if isinstance(hint, int) else 4096


def scale_as_number(part: Part) -> Part:
    """The part with a scale that is a tensor or a size moved into the score's function."""
    if isinstance(part.scale, (int, float)):
        return part
    by = Apply("mul", (Score(), part.scale), torch.float32)
    return dataclasses.replace(part, scale=1.0, score=rewritten(part.score, lambda e: by if isinstance(e, Score) else None))


def block_tuple(given: dict[str, Any], lengths: tuple[Any, Any], block: tuple[int, int], mask_module: Any) -> tuple[Any, ...]:
    """BlockMask.as_tuple() of this version of torch with graph nodes in it: `given` by the names of BlockMask's attributes."""
    return tuple(
        {"length_0": lengths[0], "length_1": lengths[1], "block_0": block[0], "block_1": block[1], "mask": mask_module}.get(
            name, given.get(name)
        )
        for name in _order()
    )


def _order() -> tuple[str, ...]:
    """The names of what as_tuple gives, found by marking: versions of torch differ in it."""
    names = [n for n in inspect.signature(flex.BlockMask.__init__).parameters if n.endswith(("num_blocks", "indices"))]
    marks: dict[str, Any] = {name: torch.zeros(1, 1, 1, 1) for name in names}
    mask: Callable[..., Any] = lambda b, h, q, k: q  # noqa: E731
    made = flex.BlockMask(seq_lengths=(3, 5), BLOCK_SIZE=(7, 11), mask_mod=mask, **marks)
    numbers: dict[Any, str] = {3: "length_0", 5: "length_1", 7: "block_0", 11: "block_1"}
    found = []
    for item in made.as_tuple():
        if isinstance(item, torch.Tensor):
            found.append(next(name for name, mark in marks.items() if mark is item))
        else:
            found.append(numbers[item] if isinstance(item, int) else "mask" if callable(item) else "nothing")
    return tuple(found)
