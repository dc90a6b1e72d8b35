"""Work and traffic of each module that a model calls, counted while it runs once: FLOPs by arithmetic type, compulsory bytes.

FLOPs are those of matrix products, convolutions and attention, by torch's own formulas; elementwise work counts as none. Bytes are
what a call must at least move: inputs, weights and buffers as far as they are read, once, and outputs written once.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kpt_lab.core import Cost, Problem, Workload, dtype_name
from kpt_lab.models import _Reads, _storage, workload

WHOLE = "whole"  # the kind of what is no part
DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Call:
    """One call of a module or function with its arguments."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        return self.fn(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Part:
    """Equal calls of modules: the first one's name, its class, all names, the cost of a call, and a call to time.

    `call` is None for what a module computes by itself between the modules that it calls: then only FLOPs are known, and bytes are 0.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    cost: Cost
    call: Call | None

    @property
    def label(self) -> str:
        """Its name among Trials: "layers.0 (Linear)"."""
        return self.name if self.kind == WHOLE else f"{self.name or self.kind} ({self.kind})"

    def workload(self) -> Workload:
        """The call as a Workload at this cost: of the module itself where it takes tensors alone, else of one that holds the rest.

        ValueError where there is no call, or where the module can't be copied.
        """
        if self.call is None:
            raise ValueError(f"{self.label} was not called by itself, so it can't be timed alone")
        fn, args, kwargs = self.call.fn, self.call.args, self.call.kwargs
        if isinstance(fn, torch.nn.Module) and (kwargs or not all(isinstance(arg, torch.Tensor) for arg in args)):
            fn, args, kwargs = Held(self.call), tuple(tensors_of((args, dict(kwargs)))), {}
        made = workload(fn, *(args or (dict(kwargs),)), name=self.label)
        return replace(made, cost=functools.partial(_stated, self.cost))

    def unmade(self) -> Workload:
        """A Workload of this name and cost that can be predicted from, but not be run."""
        return Workload(self.label, _unmade, cost=functools.partial(_stated, self.cost))


class Held(torch.nn.Module):
    """A module with the arguments of one call of it that are no tensors; it is called with the tensors alone."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.arguments = pytree.tree_map_only(torch.Tensor, lambda _: Held, (call.args, dict(call.kwargs)))
        self.module = call.fn
        self.train(getattr(call.fn, "training", False))

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Whatever the module returns."""
        rest = iter(tensors)
        args, kwargs = pytree.tree_map(lambda leaf: next(rest) if leaf is Held else leaf, self.arguments)
        return self.module(*args, **kwargs)


def _stated(cost: Cost, **params: Any) -> Cost:
    return cost


def _unmade(*, device: str, dtype: torch.dtype, seed: int) -> Problem:
    raise ValueError("this Workload was only counted, for a prediction; kpt.workload(module, inputs) makes one to measure")


def cost_of(call: Call, dtype: str | None = None) -> Cost:
    """The cost of a call, from running it once; floats count as if they were `dtype` where one is named."""
    module = call.fn if isinstance(call.fn, torch.nn.Module) else None
    own = [*module.parameters(), *module.buffers()] if module is not None else []
    reads, flops = _Reads([*tensors_of((call.args, call.kwargs)), *own]), _Flops(dtype)
    with _plainly(module), flops, reads:
        output = call()
    width = torch.empty(0, dtype=getattr(torch, dtype)).element_size() if dtype else 0

    def size(tensor: torch.Tensor, count: int) -> int:
        return count * (width if width and tensor.is_floating_point() else tensor.element_size())

    moved = sum(size(tensor, reads.count(key)) for key, tensor in reads.known.items())
    written = {_storage(t): t for t in tensors_of(output)}
    moved += sum(size(tensor, tensor.numel()) for key, tensor in written.items() if key not in reads.known)
    return Cost(flops.total(), float(moved))


def parts_of(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: str | None = None) -> list[Part]:
    """The modules that ran and called no other, in the order of their first call, equal calls together; then the rest.

    The rest is what modules that call others compute by themselves, such as attention's products between its projections.
    """
    calls = _Calls(module)
    flops = _Flops(dtype, lambda: calls.path[-1] if calls.path else "")
    with _plainly(module), calls, flops:
        module(*args, **kwargs)
    groups: dict[Any, list[str]] = {}
    for name, key in calls.leaves():
        groups.setdefault(key, []).append(name)
    parts = []
    for key, names in groups.items():
        call = calls.first[key]
        parts.append(Part(names[0], type(call.fn).__name__, tuple(names), cost_of(call, dtype), call))
    return [*parts, *_rest(calls, flops)]


def _rest(calls: _Calls, flops: _Flops) -> Iterator[Part]:
    """What calling modules did themselves, equal ones together."""
    groups: dict[Any, list[str]] = {}
    for name, work in flops.found.items():
        if name in calls.callers and any(work.values()):
            times, kind = calls.count[name], type(calls.module_of[name]).__name__
            each = tuple((what, amount / times) for what, amount in sorted(work.items()))
            groups.setdefault((kind, each), []).extend([name] * times)
    for (kind, each), names in groups.items():
        yield Part(f"{names[0] or kind}, its own", kind, tuple(names), Cost(dict(each), 0.0), None)


class _Calls:
    """Which modules ran inside which, and of equal calls the first one's arguments."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.path: list[str] = []
        self.calls: list[tuple[str, Any]] = []  # the module's name, and the call's signature
        self.first: dict[Any, Call] = {}
        self.callers: set[str] = set()
        self.count: Counter[str] = Counter()
        self.module_of: dict[str, torch.nn.Module] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> _Calls:
        for name, module in self.module.named_modules():
            self.module_of[name] = module
            self._hooks.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True, prepend=True))
            self._hooks.append(module.register_forward_hook(self._after, always_call=True))
        return self

    def __exit__(self, *why: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, name: str) -> Callable[..., None]:
        def before(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self.callers.update(self.path)
            self.path.append(name)
            self.count[name] += 1
            call = Call(module, args, kwargs)
            key = _signature(call)
            self.calls.append((name, key))
            self.first.setdefault(key, call)  # the other calls' inputs need not be kept

        return before

    def _after(self, *_: Any) -> None:
        self.path.pop()

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Name and signature of each call of a module that never called another."""
        return ((name, key) for name, key in self.calls if name not in self.callers)


class _Flops(TorchDispatchMode):
    """FLOPs by where `at` says that we are, and by arithmetic type: the dtype of an operation's first float."""

    def __init__(self, dtype: str | None = None, at: Callable[[], str] = lambda: "") -> None:
        super().__init__()
        self.dtype, self.at = dtype, at
        self.found: dict[str, dict[str, float]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if work := _work(func, args, kwargs, output):
            of = self.found.setdefault(self.at(), {})
            kind = self._kind(args)
            of[kind] = of.get(kind, 0.0) + work
        return output

    def _kind(self, args: Any) -> str:
        tensor = next(t for t in tensors_of(args) if t.is_floating_point())
        name = dtype_name(tensor.dtype)
        if self.dtype and name in DTYPES:
            return self.dtype
        fast = tensor.is_cuda and torch.get_float32_matmul_precision() != "highest"
        return "tf32" if name == "float32" and fast else name

    def total(self) -> dict[str, float]:
        """All FLOPs by arithmetic type."""
        found: Counter[str] = Counter()
        for work in self.found.values():
            found.update(work)
        return dict(found)


def _work(func: Any, args: Any, kwargs: Any, output: Any) -> float:
    """FLOPs of one operation by torch's formula; half of them where attention is causal: the other half is not compulsory."""
    packet = func.overloadpacket
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # torch has a formula for CUDA's kernels only
        packet = torch.ops.aten._scaled_dot_product_flash_attention
        work = flop_registry[packet](*args[:3], out_val=output)
    elif packet in flop_registry:
        work = flop_registry[packet](*args, **kwargs, out_val=output)
    else:
        return 0.0
    given = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
    return work / 2 if given.get("is_causal") else float(work)


@contextmanager
def _plainly(module: torch.nn.Module | None) -> Iterator[None]:
    """Without gradients and without the fused forms that hide a layer's parts; buffers and random states are put back."""
    fast = torch.backends.mha.get_fastpath_enabled()
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()] if module is not None else []
    devices = {t.device for t in (module.parameters() if module is not None else ()) if t.is_cuda}
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices, key=str)):
            yield
            for buffer, value in kept:
                buffer.copy_(value)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """All tensors in nested arguments, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _signature(call: Call) -> Any:
    """Calls with equal signatures cost the same: class, settings, weights' and arguments' shapes and dtypes, other arguments."""
    module = call.fn
    assert isinstance(module, torch.nn.Module)
    own = [*module.parameters(), *module.buffers()]
    leaves, structure = pytree.tree_flatten((call.args, dict(call.kwargs)))
    shapes = [_shape(leaf) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves]
    return type(module), module.extra_repr(), module.training, str(structure), (*map(_shape, own),), tuple(shapes)


def _shape(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device
