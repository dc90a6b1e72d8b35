"""Two ways to run a structured graph: plainly, with a rule in place of the neurons, and in time, with trains of spikes.

In time, a population of neurons listens for one window of T steps and fires in the next. What arrives is added as it comes, one
addition for each spike and target. Of a product of two trains, the second is latched in counters during its window, and the
first, delayed by a window, drives additions of what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from kpt_lab.frontier.spiking.counts import Run, Work
from kpt_lab.frontier.spiking.neurons import Train, fire
from kpt_lab.frontier.spiking.structure import inputs, place

Edit = Callable[[str, Tensor], Tensor]


class Plain(fx.Interpreter):
    """The graph in ordinary float64 arithmetic; `rule(name, values)` says what leaves each population of neurons."""

    def __init__(self, module: fx.GraphModule, rule: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # an error is one sentence, without the graph
        self.rule = rule

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        if place(n).step == "fire":
            return self.rule(n.name, self.fetch_args_kwargs_from_env(n)[0][0])
        return super().run_node(n)


class Timed(fx.Interpreter):
    """The graph in spikes; `scales` holds each population's threshold, `edit` sees each train before it is sent."""

    def __init__(self, module: fx.GraphModule, scales: dict[str, float], run: Run, edit: Edit | None, keep: bool) -> None:
        super().__init__(module)
        self.extra_traceback = False  # an error is one sentence, without the graph
        self.scales, self.record, self.edit, self.keep = scales, run, edit, keep
        self.window: dict[fx.Node, int] = {}
        final = next(n for n in module.graph.nodes if n.op == "output").args[0]
        self.final = final if isinstance(final, fx.Node) else None

    def run_node(self, n: fx.Node) -> Any:
        """The node's value: a constant, a Train, or a membrane (float64)."""
        where = place(n)
        self.window[n] = max((self.window[i] for i in inputs(n)), default=0)
        if where.step == "output":
            self.record.windows = self.window[n] + 1
            return map_aggregate(super().run_node(n), lambda v: self._received(n, v))
        if where.kind == "constant":
            return super().run_node(n)
        if where.step == "input":
            return self._sent(n, super().run_node(n))
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        known = {"fire": self._fire, "linear": self._linear, "embedding": self._embedding, "matmul": self._matmul,
                 "mean": self._mean, "wire": self._wire, "split": self._wire}  # fmt: skip
        if where.step == "mul" and len(inputs(n)) == 2:
            return self._product(n, *args, **kwargs)
        return known.get(where.step, self._in_place)(n, args, kwargs)

    # where spikes are sent and received

    def _fire(self, node: fx.Node, args: tuple, kwargs: dict) -> Train:
        (membrane,) = args
        if not bool(torch.isfinite(membrane).all()):
            raise ValueError(f"{place(node).called or node.name} gives values that are not finite, which no train can say")
        self.window[node] += 1
        return self._sent(node, fire(membrane, self.scales[node.name], self.record.code, self.record.steps))

    def _sent(self, node: fx.Node, train: Any) -> Any:
        """A train as it leaves its neurons: edited where asked for, counted and kept."""
        self.record.sent[node.name] = self.window[node]
        if not isinstance(train, Train):  # ids: one event each
            self._count(node, spikes=train.numel(), neurons=0)
            return train
        if self.edit:
            edited = self.edit(node.name, train.spikes.clone())
            if edited.shape != train.spikes.shape or edited.dtype != train.spikes.dtype:
                raise ValueError(
                    f"edit returned {tuple(edited.shape)} {edited.dtype} for {node.name!r}; it must return spikes like those it got, "
                    f"{tuple(train.spikes.shape)} {train.spikes.dtype}"
                )
            if edited.numel() and int(edited.abs().max()) > 1:
                raise ValueError(f"edit returned other values than -1, 0 and 1 for {node.name!r}")
            train = Train(edited, train.scale, train.code)
        if self.keep:
            self.record.trains[node.name] = train.spikes
        neurons = train.spikes[0].numel()
        steps = neurons * train.steps if place(node).step == "fire" else 0
        self._count(node, spikes=train.count(), neurons=neurons, neuron_steps=steps)
        return train

    def _received(self, node: fx.Node, value: Any) -> Any:
        """A train added up by neurons that each listen to one line; anything else as it is."""
        if not isinstance(value, Train):
            return value
        self._count(node, spikes=value.count(), synaptic=value.count(), **self._integrating(value, value.spikes[0].numel()))
        return value.levels() * value.scale

    def _arrived(self, train: Train, spread: Callable[[Tensor], Tensor], trace: bool = False) -> Tensor:
        """The membranes after a window in which, at each step, `spread` of the spikes arrived, in levels."""
        membrane = current = None
        seen = []
        for now in train.spikes:
            arriving = spread(now.to(torch.float64))
            if train.code == "first_spike":
                current = arriving if current is None else current + arriving
                arriving = current
            membrane = arriving if membrane is None else membrane + arriving
            if trace:
                seen.append(membrane)
        if trace:
            self.record.readout = torch.stack(seen)
        assert membrane is not None
        return membrane

    def _integrating(self, train: Train, neurons: int) -> dict[str, int]:
        return {"integrated": neurons * train.steps if train.code == "first_spike" else 0}

    def _count(self, node: fx.Node, **counts: int) -> None:
        where = place(node)
        self.record.works.append(Work(node.name, where.step, where.called, **counts))

    # steps that read trains

    def _linear(self, node: fx.Node, args: tuple, kwargs: dict) -> Tensor:
        train, weight, bias = self._weighted(node, args, kwargs)
        trace = self.keep and node is self.final
        out = self._arrived(train, lambda now: F.linear(now, weight), trace) * train.scale
        if trace and self.record.readout is not None:
            self.record.readout = self.record.readout * train.scale + (0.0 if bias is None else bias)
        macs = out.numel() * weight.shape[-1]
        self._count(
            node, spikes=train.count(), synaptic=train.count() * (out.numel() // max(1, out[..., 0].numel())), macs=macs,
            read=2 * macs, written=out.numel(), functions=out.numel() if bias is not None else 0,
            **self._integrating(train, out.numel()),
        )  # fmt: skip
        return out if bias is None else out + bias

    def _weighted(self, node: fx.Node, args: tuple, kwargs: dict) -> tuple[Any, Tensor, Tensor | None]:
        """Input, weight and bias of a linear step, from its module or its arguments."""
        if node.op == "call_module":
            child = self.fetch_attr(str(node.target))
            return (args[0] if args else kwargs["input"]), child.weight, child.bias
        named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        return named["input"], named["weight"], named.get("bias")

    def _embedding(self, node: fx.Node, args: tuple, kwargs: dict) -> Tensor:
        if node.op == "call_module":
            ids, weight = (args[0] if args else kwargs["input"]), self.fetch_attr(str(node.target)).weight
        else:
            named = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            ids, weight = named["input"], named["weight"]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(weight):
            raise ValueError(
                f"temporal_input names line {int(ids.max())} or {int(ids.min())}; {place(node).called} has {len(weight)}"
            )
        out = F.embedding(ids, weight)
        self._count(node, spikes=ids.numel(), synaptic=out.numel(), read=out.numel(), written=out.numel())
        return out

    def _matmul(self, node: fx.Node, args: tuple, kwargs: dict) -> Tensor:
        left, right = (*args, *kwargs.values())[:2]
        latched = 0
        if not isinstance(left, Train):  # constant weights on the left
            train, scale, fixed = right, right.scale, left.to(torch.float64)
            out = self._arrived(train, lambda now: fixed @ now)
        elif isinstance(right, Train):
            train, scale, held = left, left.scale * right.scale, right.levels()
            latched = right.count()
            self.window[node] += 1
            out = self._arrived(train, lambda now: now @ held)
        else:
            train, scale, fixed = left, left.scale, right.to(torch.float64)
            out = self._arrived(train, lambda now: now @ fixed)
        macs = out.numel() * train.shape[-2 if train is right and train is not left else -1]
        fan_out = macs // max(1, train.spikes[0].numel())
        self._count(
            node, spikes=train.count() + latched, synaptic=train.count() * fan_out, latched=latched, macs=macs,
            read=2 * macs, written=out.numel(), **self._integrating(train, out.numel()),
        )  # fmt: skip
        return out * scale

    def _product(self, node: fx.Node, input: Train, other: Train) -> Tensor:
        """Two trains multiplied element by element: the second latched, the first driving."""
        left, right = input, other
        self.window[node] += 1
        held = right.levels()
        out = self._arrived(left, lambda now: now * held)
        self._count(
            node, spikes=left.count() + right.count(), latched=right.count(),
            synaptic=left.count() * (out.numel() // max(1, left.spikes[0].numel())), multiplies=out.numel(),
            read=2 * out.numel(), written=out.numel(), **self._integrating(left, out.numel()),
        )  # fmt: skip
        return out * (left.scale * right.scale)

    def _mean(self, node: fx.Node, args: tuple, kwargs: dict) -> Tensor:
        train = args[0] if args else kwargs["input"]
        out = self._arrived(train, lambda now: self._as_called(node, *_swapped(args, kwargs, train, now))) * train.scale
        size = train.spikes[0].numel()
        self._count(
            node, spikes=train.count(), synaptic=train.count(), adds=size, read=size, written=out.numel(),
            functions=out.numel(), **self._integrating(train, out.numel()),
        )  # fmt: skip
        return out

    # steps that move values or compute in place

    def _wire(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        train = next((a for a in (*args, *kwargs.values()) if isinstance(a, Train)), None)
        if train is None:
            return self._as_called(node, args, kwargs)
        moved = [self._as_called(node, *_swapped(args, kwargs, train, now)) for now in train.spikes]
        if isinstance(moved[0], Tensor):
            return Train(torch.stack(moved), train.scale, train.code)
        return tuple(Train(torch.stack(part), train.scale, train.code) for part in zip(*moved, strict=True))

    def _in_place(self, node: fx.Node, args: tuple, kwargs: dict) -> Tensor:
        """A function of membranes; trains among its values are added up first."""
        trains = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Train)]
        args, kwargs = (map_aggregate(a, lambda v: self._received(node, v)) for a in (args, kwargs))  # type: ignore[assignment]
        out = self._as_called(node, args, kwargs)
        if place(node).step in ("add", "sub") and len(inputs(node)) > 1:
            self._count(node, adds=out.numel(), read=2 * out.numel(), written=out.numel())
        else:  # what the neuron computes in place is outside on both sides; what it had to be sent is not
            self._count(node, functions=out.numel(), read=sum(train.spikes[0].numel() for train in trains))
        return out

    def _as_called(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        return getattr(self, node.op)(node.target, tuple(args), dict(kwargs))


def _swapped(args: Iterable[Any], kwargs: dict, old: Any, new: Any) -> tuple[tuple, dict]:
    """The arguments with one value in place of another."""
    return tuple(new if a is old else a for a in args), {k: new if v is old else v for k, v in kwargs.items()}
