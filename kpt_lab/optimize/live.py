"""A stack on the user's own model: sharing its weights, for one form of inputs, and only while nothing beneath it has changed."""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kpt_lab import check
from kpt_lab.core import Technique
from kpt_lab.models import _call
from kpt_lab.optimize.stacks import PLAIN

_KINDS = (("_parameters", "parameter"), ("_buffers", "buffer"), ("_modules", "module"))
_AROUND = ("compile", "graph")  # stages that call the model as it is; all others may change its modules


def parts_of(technique: Technique) -> tuple[Technique, ...]:
    """A stack's parts in order, or the technique itself."""
    return technique.parts or (technique,)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that holds the very same parameters and buffers, so that changing its modules leaves `model` alone."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})


def applied(parts: tuple[Technique, ...], model: nn.Module, inputs: tuple) -> Callable[..., Any]:
    """The parts on `model`, which keeps its modules; parameters are shared, apart from what a part packs anew."""
    fn: Any = model if all(part.stage in _AROUND for part in parts) else shared_copy(model)
    for part in parts:
        fn = part.apply(fn, inputs, **part.knobs)
    return fn


def canonical(names: list[str], args: tuple, named: Mapping[str, Any]) -> tuple | None:
    """A call's inputs as kpt.workload takes them: positional, or one mapping sorted by name; None where they are neither."""
    if named:
        if len(args) > len(names):
            return None
        return (dict(sorted({**dict(zip(names, args, strict=False)), **named}.items())),)
    return None if len(args) == 1 and isinstance(args[0], Mapping) else args


def named_in_order(inputs: tuple) -> tuple:
    """Inputs as `canonical` gives them: a single mapping sorted by name."""
    return (dict(sorted(inputs[0].items())),) if len(inputs) == 1 and isinstance(inputs[0], Mapping) else inputs


def positional_names(model: nn.Module) -> list[str]:
    """Names of forward's positional parameters, as far as they can be given by name."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    found = []
    for parameter in parameters:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            break
        found.append(parameter.name)
    return found


def form(inputs: tuple) -> tuple[Any, list[Any]] | None:
    """What a stack is checked for: the inputs' structure, each tensor's shape, dtype and device, each plain value; None else."""
    leaves, structure = pytree.tree_flatten(inputs)
    found: list[Any] = []
    for leaf in leaves:
        if type(leaf) is Tensor:
            found.append((leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad))
        elif isinstance(leaf, PLAIN):
            found.append((type(leaf), leaf))
        else:
            return None
    return structure, found


def described(inputs: tuple) -> str:
    """The shapes and dtypes of a call's tensors, for a sentence."""
    shapes = [
        f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)
    ]
    return ", ".join(shapes) or "no tensors"


class Held:
    """Everything of a model that a compiled or captured stack took for given: modules, modes, hooks, and where tensors lie.

    `values`: the stack holds a form of the weights of its own, so that writing new values into them makes it stale.
    `storages`: keep the memory of the weights until `release`, so that a graph may be replayed before asking what changed.
    `guarded`: torch.compile looks at tensors itself; left are modules and modes, for each of which it would compile anew, and
    hooks, at which it does not look. Asked at every call, when nothing of this is in cache, so that it looks at little.
    """

    def __init__(self, model: nn.Module, *, values: bool, storages: bool = False, guarded: bool = False) -> None:
        slots: list[tuple[dict[str, Any], str, Any, str]] = []
        self._hooks: list[Mapping[int, Any]] = []
        for name, part in model.named_modules():
            where = f" of {name}" if name else ""
            if "training" in part.__dict__:
                slots.append((part.__dict__, "training", part.training, f"train() or eval() was called{where}"))
            for kind, what in _KINDS[-1:] if guarded else _KINDS:
                held = part.__dict__[kind]
                slots += [(held, key, value, f"the {what} {key!r}{where} was replaced") for key, value in held.items()]
            self._hooks += [hooks for hooks in (part._forward_hooks, part._forward_pre_hooks) if not hooks]
        self._dicts, self._keys, self._kept, self._said = zip(*slots, strict=True)
        tensors = () if guarded else (*model.parameters(), *model.buffers())
        self._tensors = list({id(t): t for t in tensors}.values())
        self._places = list(map(Tensor.data_ptr, self._tensors))
        self._storages = [t.untyped_storage() for t in self._tensors] if storages else []
        # parameters only: running statistics are buffers, which each call in training mode writes
        self._versions = [(p, p._version) for p in model.parameters() if not p.is_inference()] if values else []

    def release(self) -> None:
        """Let go of weights that were moved away."""
        self._storages.clear()

    def changed(self) -> str:
        """What changed since, or ""."""
        if not all(map(operator.is_, map(dict.get, self._dicts, self._keys), self._kept)):
            now = map(dict.get, self._dicts, self._keys)
            return next(said for it, was, said in zip(now, self._kept, self._said, strict=True) if it is not was)
        if any(self._hooks):
            return "a forward hook was registered, which this stack would not call"
        if list(map(Tensor.data_ptr, self._tensors)) != self._places:
            return "parameters were moved in memory, as .to() does"
        for tensor, version in self._versions:
            if tensor._version != version:
                return "weights were changed, and this stack holds a packed form of them"
        return ""


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what is changed inside: buffers, such as running statistics, modes, and the random state."""
    modes = [(part, part.training) for part in model.modules()]
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_inference()]
    with torch.random.fork_rng(devices=sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})):
        yield
    for part, mode in modes:
        part.training = mode
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)


def first_call(fast: Callable[..., Any], model: nn.Module, inputs: tuple, *, training: bool, limit: float | None) -> None:
    """Call the stack once, so that it is compiled, and compare it with `model` on the same inputs; raises check.Wrong.

    limit: error allowed between the two, or None where values differ by design (random or lossy).
    """
    with untouched(model), torch.set_grad_enabled(training):
        output = _call(fast, inputs)
        leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
        if training and leaves:  # compiles the backward pass, and ends what a forward pass began
            weights = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad([leaf.sum() for leaf in leaves], weights, allow_unused=True)
        if limit is not None:
            plain = _call(model, inputs)
            error = check.compare_output(check.detached(output), check.detached(plain), check.detached(plain))
            if not error <= limit:
                raise check.Wrong(f"on the model itself its error is {error:.2g}, where {limit:.2g} is allowed")
