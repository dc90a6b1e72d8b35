"""The model that `optimize` returns: the one that was passed, called through the fastest stack where that one was checked."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections import Counter
from typing import Any

import torch
from torch import nn

from kpt_lab import check
from kpt_lab.baselines import compiled, max_autotune
from kpt_lab.core import Technique, Trials, Unsupported
from kpt_lab.models import _call
from kpt_lab.optimize.live import (
    Held,
    applied,
    canonical,
    described,
    first_call,
    form,
    named_in_order,
    parts_of,
    positional_names,
)
from kpt_lab.optimize.search import AS_PASSED, Found, Request, device_name, search

_SHARED = (
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


class Optimised(nn.Module):
    """A model and the stack that was chosen for it; parameters, buffers and state_dict are those of the model as passed.

    model: the module that was passed, unchanged. chosen: the stack's label, or "as passed"; reason: why. trials: everything
    that was measured. as_passed: how many calls ran the model as passed, by reason. `report()` gives every stack tried.
    A call of another form than the one measured (shapes, dtypes, plain values, modes, gradients on or off, autocast) runs the
    model as passed, and the first one of each kind says so. With workload_type "inference" no call records gradients. Other
    attributes and methods are the model's own. For one thread at a time. A copy or a pickle of it holds no stack.
    """

    model: nn.Module
    chosen: str
    reason: str
    trials: Trials
    as_passed: Counter[str]

    def __init__(self, model: nn.Module, request: Request) -> None:
        super().__init__()
        for name in _SHARED:
            self.__dict__[name] = model.__dict__[name]
        self.__dict__ |= {"model": model, "chosen": AS_PASSED, "reason": "it is tuned on its first call", "trials": Trials()}
        self.__dict__ |= {"as_passed": Counter(), "_request": request, "_found": Found(), "_waiting": True, "_ahead": False}
        self.__dict__ |= {"_fast": None, "_held": None, "_form": None, "_names": positional_names(model), "_launched": None}

    # -- tuning ---------------------------------------------------------------------------------------------------------------

    def tune(self, inputs: tuple) -> Optimised:
        """Search once for inputs of this form (positional, or one mapping by name), and keep what won."""
        self.__dict__["_waiting"] = False
        inputs = check.detach_inputs(inputs)
        devices = sorted({p.device.index or 0 for p in self.model.parameters() if p.is_cuda})
        with torch.inference_mode(False), torch.random.fork_rng(devices=devices):
            found = search(self.model, inputs, self._request, as_returned)
            self.__dict__ |= {"_found": found, "reason": found.reason, "trials": found.trials}
            if found.technique is not None:
                self._keep(found.technique, found.limit, inputs)
        return self

    def _keep(self, technique: Technique, limit: float | None, inputs: tuple) -> None:
        """Put the stack on the model itself, and call it once."""
        try:
            self._put(technique, inputs)
            first_call(self._fast, self.model, inputs, training=self._request.training, limit=limit)
            self._hold(technique)  # as the first call left it
        except Exception as error:  # as the search: a model that works as before
            told = " ".join(str(error).split())[:300] or type(error).__name__
            self.__dict__ |= {"_fast": None, "_form": None, "_held": None, "chosen": AS_PASSED}
            self.__dict__["reason"] = f"{technique.label} won, but not on the model itself: {told}"

    def _put(self, technique: Technique, inputs: tuple) -> None:
        """Make the stack for the model and for calls of the form of `inputs`; raises what making it raises."""
        with torch.set_grad_enabled(self._request.training):
            fast = applied(parts_of(technique), self.model, inputs)
        self.__dict__ |= {"_fast": fast, "_form": form(inputs), "chosen": technique.label, "_waiting": False}
        self._hold(technique)

    def _hold(self, technique: Technique) -> None:
        training, parts = self._request.training, parts_of(technique)
        packed = any(p.stage == "sparsity" or (p.stage == "precision" and not training) for p in parts)
        # a graph replays what it was captured with, which a forward in eval mode may do in vain
        ahead = parts[-1].stage == "graph" and not training and not any(part.training for part in self.model.modules())
        guarded = all(part in (compiled, max_autotune) for part in parts)
        self.__dict__ |= {"_held": Held(self.model, values=packed, storages=ahead, guarded=guarded), "_ahead": ahead}

    def technique(self) -> Technique:
        """What was chosen, as a technique that makes an Optimised of a model: to be measured beside others by kpt.measure."""
        return as_returned(self._found.technique if self._fast is not None else None, self._request)

    # -- calling --------------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **named: Any) -> Any:
        if not self._ahead or (args and named):
            return super().__call__(*args, **named)
        # A graph starts before the questions are asked: after other work nothing of them is in cache, and the device would wait
        with contextlib.suppress(Exception):  # of another form: asked below
            self.__dict__["_launched"] = self._fast(*args, **named), args, tuple(named.values())
        try:
            return super().__call__(*args, **named)
        finally:
            self.__dict__["_launched"] = None

    def forward(self, *args: Any, **named: Any) -> Any:
        if self._request.training:
            return self._call(args, named)
        with torch.no_grad():
            return self._call(args, named)

    def _call(self, args: tuple, named: dict[str, Any]) -> Any:
        fast: Any = self._fast
        if fast is None and not self._waiting:
            return self.model(*args, **named)
        inputs = canonical(self._names, args, named)
        reason = self._unusual(inputs)
        if not reason and self._waiting:
            assert inputs is not None
            self.tune(inputs)
            if (fast := self._fast) is None:
                return self.model(*args, **named)
        reason = reason or self._unchecked(inputs)
        if not reason:
            assert inputs is not None
            launched = self._launched_with(args, named)
            if not (reason := str(self._held.changed())):
                return launched[0] if launched else _call(fast, inputs)
            self.__dict__["_ahead"] = False
            self._held.release()
        kind = reason.partition(":")[0]
        self.as_passed[kind] += 1
        if self.as_passed[kind] == 1:
            warnings.warn(f"this call runs the model as passed: {reason}", stacklevel=5)
        return self.model(*args, **named)

    def _launched_with(self, args: tuple, named: dict[str, Any]) -> tuple[Any] | None:
        """What was launched ahead, if with these very values: a hook may have put others in their place."""
        if self._launched is None:
            return None
        output, *given = self._launched
        now = args, tuple(named.values())
        same = all(len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True)) for a, b in zip(given, now, strict=True))
        return (output,) if same else None

    def _unusual(self, inputs: tuple | None) -> str:
        """Why a call can't be measured or run through a stack, or ""."""
        if inputs is None:
            return "its inputs are neither positional nor all given by name"
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            return "autocast is on, under which nothing was measured"
        if self._request.training and not torch.is_grad_enabled():
            return "gradients are off, and forward with backward was measured"
        return ""

    def _unchecked(self, inputs: tuple | None) -> str:
        assert inputs is not None
        if form(inputs) != self._form:
            return f"another form of inputs than the one measured: {described(inputs)}"
        if self._fragile and any(p.grad is not None for p in self.model.parameters()):
            return "gradients of an earlier step are still held, and reduce-overhead would overwrite them"
        return ""

    @property
    def _fragile(self) -> bool:
        return self._request.training and "reduce-overhead" in self.chosen

    # -- being the model --------------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "model" not in self.__dict__:
                raise
            return getattr(self.__dict__["model"], name)

    @property
    def training(self) -> bool:
        """The model's own mode."""
        return self.model.training if "model" in self.__dict__ else True

    @training.setter
    def training(self, mode: bool) -> None:
        if "model" in self.__dict__:
            self.model.training = mode

    def train(self, mode: bool = True) -> Optimised:
        """Set the model's mode; the stack stays for the mode in which it was measured."""
        self.model.train(mode)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.model._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **named: Any) -> None:
        self.model._load_from_state_dict(*args, **named)

    def __reduce__(self) -> Any:
        return _copied, (self.model, self._request)

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimised:
        return _copied(copy.deepcopy(self.model, memo), self._request)

    # -- telling ----------------------------------------------------------------------------------------------------------------

    def report(self) -> str:
        """Every stack tried: its ratio over the model as passed with the interval, the verdict, or why it could not run."""
        request = self._request
        head = (
            f"{type(self.model).__name__}: {request.workload_type}, {request.performance_target}, on {device_name(self.model)}"
        )
        lines = [head, f"chosen: {self.chosen}", f"because {self.reason}"]
        for line in self._found.lines:
            ratio = f"{line.ratio.value:.3f}x [{line.ratio.low:.3f}, {line.ratio.high:.3f}] " if line.ratio else ""
            against = f" over {line.over}" if line.ratio else ""
            lines.append(f"  {line.step:<9} {line.label}{against}: {ratio}{line.said}")
        lines += [f"  {count} calls ran the model as passed: {kind}" for kind, count in self.as_passed.items()]
        return "\n".join(lines)

    def extra_repr(self) -> str:
        return f"chosen={self.chosen!r}"


def as_returned(technique: Technique | None, request: Request) -> Technique:
    """A stack inside the model that `optimize` returns, with what each call costs there; None is the model as passed."""
    make = functools.partial(_returned, technique=technique, request=request)
    if technique is None:
        return Technique(f"{AS_PASSED}, as returned", make, stage="graph")
    define = functools.partial(technique.definition, **technique.knobs) if technique.definition else None
    name = f"{technique.label}, as returned"
    return Technique(name, make, stage="graph", contract=technique.contract, definition=define, requires=technique.requires)


def _returned(fn: Any, args: tuple, *, technique: Technique | None, request: Request) -> Any:
    if not isinstance(fn, nn.Module):
        raise Unsupported(f"a model is optimised; it was given {getattr(fn, '__name__', type(fn).__name__)!r}")
    found = Optimised(fn, request)
    found.__dict__["_waiting"] = False
    if technique is not None:
        found._put(technique, named_in_order(args))
    return found


def _copied(model: nn.Module, request: Request) -> Optimised:
    """A copy's weights are new, and a stack belongs to the old ones: the copy is tuned on its first call."""
    return Optimised(model, request)
