"""From an understood attention to a kernel: `replace` writes into the graph what computes its output.

Plain and causal attentions become one call of scaled dot product attention, all others one call of the FlexAttention operator
with the score's and the mask's functions as modules of the graph, which is what Dynamo itself emits. The graph may then go to
Inductor as a whole; where it runs eagerly, `regions.alone` compiles each FlexAttention call by itself, since an uncompiled one
holds the whole score matrix.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Literal

import torch
from torch import fx

from kpt_lab.core import Unsupported, dtype_name
from kpt_lab.kernels.flashlight import algebra, attend, blocked, choose, functions, native, proofs
from kpt_lab.kernels.flashlight.expression import (
    Attention,
    Constant,
    Load,
    Lowering,
    Part,
    Score,
)
from kpt_lab.kernels.flashlight.flex_call import FlexCall, Options, scale_as_number
from kpt_lab.kernels.flashlight.layout import FLOATS, value_of

aten = torch.ops.aten
NO_FORM = "it has no such form"


def replace(gm: fx.GraphModule, attention: Attention, *, options: Options | None = None) -> Lowering:
    """Insert into `gm` what computes `attention.output`, hand its uses over, and say what it is; dead nodes are left to the caller.

    Raises Unsupported, with the graph as it was, where no kernel takes it.
    """
    options = options or Options()
    before = set(gm.graph.nodes)
    try:
        with gm.graph.inserting_before(attention.output):
            return _Site(gm, attention, options).lower()
    except Unsupported:
        for node in reversed([node for node in gm.graph.nodes if node not in before]):
            gm.graph.erase_node(node)
        raise


class _Site(FlexCall):
    """One attention's place in a graph: everything is inserted before its output node."""

    def __init__(self, gm: fx.GraphModule, attention: Attention, options: Options) -> None:
        super().__init__(gm, attention, options)
        self.measured: dict[str, float] = {}

    # ---- the whole

    def lower(self) -> Lowering:
        """Write all parts, their sum, and the way back to the output's layout."""
        attention = self.attention
        value = self.operand(attention.value)
        total, kernels, reasons = None, [], []
        for part in attention.parts:
            functions.check(part.score)
            out, kernel, reason = self.part(part, value)
            kernels.append(kernel)
            reasons.append(reason)
            if part.coefficient is not None:
                factor = self.coefficient(part)
                out = self.call(aten.mul.Tensor, out, factor)
            total = out if total is None else self.call(aten.add.Tensor, total, out)
        assert total is not None
        result = self.back(total)
        if value_of(attention.output).dtype != self.dtype or any(p.coefficient is not None for p in attention.parts):
            result = self.call(aten.to.dtype, result, self.output.dtype)
        result.meta.update({k: v for k, v in attention.output.meta.items() if k in ("val", "example_value", "tensor_meta")})
        attention.output.replace_all_uses_with(result)
        kernel = kernels[0] if len(set(kernels)) == 1 else " + ".join(kernels)
        times = f"{len(kernels)} calls, summed: " if len(kernels) > 1 else ""
        return Lowering(
            kernel,
            times + "; ".join(dict.fromkeys(reasons)),
            self.measured,
            asked=tuple(self.asked),
            unraced=tuple(self.unraced),
        )

    def part(self, part: Part, value: fx.Node) -> tuple[fx.Node, str, str]:
        """One softmax times the values as (b, h, l, d), the kernel's name and the reason for it."""
        query, key = self.operand(part.query), self.operand(part.key)
        form, reason = self.form(part)
        forced = self.options.kernel
        if form != "flex" and forced != "flex":
            choice = self.choice(part, form)
            self.measured.update(choice.seconds)
            out = self.call(
                attend.attention, query, key, value, choice.kernel, form == "causal", float(part.scale), self.attention.dropout,  # type: ignore[arg-type]
                forced == "auto",
            )  # fmt: skip
            instead = forced == "auto" and choice.kernel in attend.BACKENDS
            told = f"{reason}; {choice.reason}" + ("; where torch refuses it, another fused one" if instead else "")
            return out, choice.kernel, told
        if forced == "fa3":
            if why := self.refused(part):
                raise Unsupported(f"kernel 'fa3' was asked for: {why}" + (f", and {reason}" if why is NO_FORM else ""))
            return self.native(part, query, key, value), "fa3", f"fa3 was asked for; {reason}"
        if forced not in ("auto", "flex"):
            raise Unsupported(f"kernel is {forced!r}, which has no mask or score function, and {reason}")
        if self.attention.dropout:
            raise Unsupported(
                f"the probabilities are dropped out (p = {self.attention.dropout:g}) and {reason}: no fused kernel has both"
            )
        choice = self.chosen(part, native=forced == "auto" and not self.refused(part))
        self.measured.update(choice.seconds)
        if choice.kernel == "fa3":
            return self.native(part, query, key, value), "fa3", f"{reason}; {choice.reason}"
        if forced == "flex":
            reason = f"flex was asked for; {reason}"
        if lacking := self.lacking(part):
            return self.blocked(scale_as_number(part), query, key, value), "blocked", f"{reason}; {lacking}"
        told = f"{reason}; {choice.reason}" if choice.seconds else reason
        return self.flex(part, query, key, value, choice.options), "flex", told

    def refused(self, part: Part) -> str:
        """Why FlashAttention-3 can't take a part in one of its own forms, "" where it can."""
        form = native.form(part, *self.lengths(part))
        if form is None:
            return NO_FORM
        width, value_width = self.extent(part.query, 3), self.extent(self.attention.value, 3)
        if not (isinstance(width, int) and isinstance(value_width, int)):
            return "the head width is symbolic"
        why = attend.refused(
            "fa3", dtype=self.dtype, width=width, value_width=value_width, dropout=self.attention.dropout, device=self.device
        )
        return why or native.lacking(form) or ("it has gradients of plain and causal attention only" if self.training else "")

    def native(self, part: Part, query: fx.Node, key: fx.Node, value: fx.Node) -> fx.Node:
        """One call of FlashAttention-3 in a form of its own, which it has for the part."""
        lengths = self.lengths(part)
        form = native.form(part, *lengths)
        assert form is not None
        fill = {"infinite": "nan", "finite": "mean"}.get(part.fill, "zero")
        if self.options.empty_rows == "zero" or proofs.rows_have_keys(part.mask, *lengths):
            fill = "zero"
        keep = over = None
        if form.keep is not None:
            found = self.over_keys(functions.mask_function(form.keep), part, [-1, 1], [1, -1])
            keep = self.call(aten.expand.default, found, [self.size(part.query, 0), self.size(part.key, 2)])
        if form.lengths is not None:
            over = self.over_keys(functions.value_function(form.lengths), part, [-1], [1])
        # the kernel multiplies the scores by scale and divides by cap itself
        scale = float(part.scale) * (form.cap or 1.0)  # type: ignore[arg-type]
        return self.call(
            native.attention,
            query,
            key,
            value,
            keep,
            over,
            scale,
            form.causal,
            form.cap,
            form.left,
            form.right,
            fill,
        )

    def over_keys(self, function: functions.Function, part: Part, rows: list[int], keys: list[int]) -> fx.Node:
        """A function of (b, h, q, k) at h = q = 0 over all of b, viewed as `rows`, and of k, viewed as `keys`; k = 0 where that is [1]."""
        batch = self.call(torch.arange, self.size(part.query, 0), device=self.device)
        batch = self.call(aten.reshape.default, batch, rows)
        zero = self.call(torch.zeros, [1] * len(rows), dtype=torch.int64, device=self.device)
        key = zero
        if keys != [1]:
            key = self.call(aten.reshape.default, self.call(torch.arange, self.size(part.key, 2), device=self.device), keys)
        return self.inlined(function, [batch, zero, zero, key])

    def lacking(self, part: Part) -> str:
        """Why FlexAttention's CPU template can't take the part, "" where it can; Unsupported where nothing else does."""
        if self.device.type == "cuda" and self.dtype not in FLOATS:
            raise Unsupported(f"FlexAttention's kernels take float16, bfloat16 and float32, not {dtype_name(self.dtype)}")
        if self.device.type != "cpu":
            return ""
        if self.dtype not in FLOATS:
            return f"FlexAttention has no {dtype_name(self.dtype)} on a CPU"
        if self.training:
            return "FlexAttention has no backward on a CPU"
        captured = [
            x.tensor.meta.get("val")
            for given in (part.score, part.mask)
            if given is not None
            for x in given.walk()
            if isinstance(x, Load)
        ]
        sizes = [n for x in captured if isinstance(x, torch.Tensor) for n in (*x.shape, *x.stride())]
        fixed = all(isinstance(size, int) for size in (*self.lengths(part), *sizes))
        return "" if fixed else "FlexAttention's CPU template takes no symbolic sizes or strides"

    def choice(self, part: Part, form: str) -> choose.Choice:
        """The kernel for a plain or causal part."""
        shape = self.shape(part, form)
        if self.options.kernel == "auto":
            return choose.kernel_for(shape, self.device, dropout=self.attention.dropout, measure=self.options.measure)
        why = attend.refused(
            self.options.kernel, dtype=self.dtype, width=shape.width, value_width=shape.value_width,
            dropout=self.attention.dropout, device=self.device,
        )  # fmt: skip
        if why:
            raise Unsupported(f"kernel {self.options.kernel!r} was asked for: {why}")
        return choose.Choice(self.options.kernel, f"{self.options.kernel} was asked for", {}, {})

    def form(self, part: Part) -> tuple[Literal["plain", "causal", "flex"], str]:
        """What the part is, proved from its expressions: "plain", "causal", or "flex" for all else, and why."""
        _, keys = self.lengths(part)
        if not isinstance(part.score, Score):
            return "flex", f"the scores are changed: {part.score}"
        if not isinstance(part.scale, (int, float)):
            return "flex", "the scale is a tensor"
        if part.mask is None or proofs.attends_everywhere(part.mask, keys):
            return "plain", "every query attends every key"
        if proofs.is_causal(part.mask):
            return "causal", "the mask is q ≥ k"
        return "flex", f"the mask is {algebra.simplify(part.mask)}"

    def coefficient(self, part: Part) -> fx.Node:
        """The factor of a part over (b, h, q), as a tensor that broadcasts against (b, h, q, d)."""
        assert part.coefficient is not None
        if isinstance(part.coefficient, Constant):
            return part.coefficient.value  # type: ignore[return-value]
        function = functions.value_function(part.coefficient)
        return self.evaluated(function, part)

    def evaluated(self, function: functions.Function, part: Part) -> fx.Node:
        """A function of (b, h, q, k) at k = 0 over all of b, h, q: its values broadcast as (b, h, q, 1)."""
        places = []
        for place in range(3):
            size = self.size(part.query, place)
            index = self.call(torch.arange, size, device=self.device)
            places.append(self.call(aten.reshape.default, index, [-1 if p == place else 1 for p in range(4)]))
        zero = self.call(torch.zeros, [1, 1, 1, 1], dtype=torch.int64, device=self.device)
        return self.inlined(function, [*places, zero])

    def inlined(self, function: functions.Function, args: Sequence[fx.Node]) -> fx.Node:
        names = [node for node in function.module.graph.nodes if node.op == "placeholder"]
        found = self.graph.graph_copy(function.module.graph, dict(zip(names, (*args, *function.buffers), strict=True)))
        return found  # type: ignore[return-value]

    # ---- kernels

    def integer_or_tensor(self, node: fx.Node) -> fx.Node:
        """The node itself, but a symbolic float (the root of a symbolic width) as a tensor: the operator takes whole numbers."""
        if isinstance(node.meta.get("val"), torch.SymFloat):
            made = self.call(aten.scalar_tensor.default, node, dtype=torch.float64, device=self.device)
            made.meta["val"] = torch.empty((), dtype=torch.float64, device="meta")
            return made
        return node

    def blocked(self, part: Part, query: fx.Node, key: fx.Node, value: fx.Node) -> fx.Node:
        """One call of the operator that computes a block of queries at a time, with empty rows as eager has them."""
        score, mask = functions.score_function(part.score), functions.mask_function(part.mask)
        buffers = tuple(self.integer_or_tensor(node) for node in (*score.buffers, *mask.buffers))
        kinds = "".join("t" if isinstance(node.meta.get("val"), torch.Tensor) else "n" for node in buffers)
        tensors, numbers = ([n for n, kind in zip(buffers, kinds, strict=True) if kind == wanted] for wanted in "tn")
        both = self.call(
            blocked.blocked_attention._opoverload, blocked.register(score, mask), query, key, value, tensors, numbers, kinds,
            len(score.buffers), float(part.scale),  # type: ignore[arg-type]
        )  # fmt: skip
        out = self.call(operator.getitem, both, 0)
        if not self.fill(part):
            return out
        empty = self.call(
            aten.unsqueeze.default, self.call(aten.eq.Scalar, self.call(operator.getitem, both, 1), -math.inf), -1
        )
        return self.call(aten.where.self, empty, self.empty_row(part, value), out)
