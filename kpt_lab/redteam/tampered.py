"""The measurement itself tampered with: clocks, global settings, the neighbours' speed, the specification.

These leave traces in the process. `undone()` removes them; whoever runs these techniques by hand should do so inside it.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import re
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from kpt_lab.core import Technique, Unsupported
from kpt_lab.redteam.stale import PATIENCE, half_the_rows

CLOCKS = ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns")
SLOWDOWN = 10  # how much slower the patched clocks run

_undo: list[Callable[[], Any]] = []


@contextlib.contextmanager
def undone() -> Iterator[None]:
    """On leaving, puts back every clock, setting, mode and function that the techniques of this module changed."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        yield
    finally:
        while _undo:
            _undo.pop()()
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)


def _patch(owner: Any, name: str, value: Any) -> None:
    was = vars(owner)[name]
    _undo.append(lambda: setattr(owner, name, was))
    setattr(owner, name, value)


def _clock_holders() -> Iterator[tuple[Any, str, Callable[[], Any]]]:
    """Every attribute of `time` and of this package's modules that is a clock now."""
    clocks = [getattr(time, name) for name in CLOCKS]
    modules = [module for name, module in sys.modules.items() if name.startswith("kpt_lab") and name != __name__]
    for module in (time, *modules):
        for name, value in list(vars(module).items()):
            if any(value is clock for clock in clocks):
                yield module, name, value


def _patched_timer(fn: Callable, args: tuple) -> Callable:
    """Replaces the clocks, in `time` and wherever this package keeps one, by ones that run ten times slower."""
    for owner, name, clock in list(_clock_holders()):
        _patch(owner, name, _slow(clock))
    return fn


def _slow(clock: Callable[[], Any]) -> Callable[[], Any]:
    start = clock()
    return lambda: start + type(start)((clock() - start) / SLOWDOWN)


def _patched_for_one_reading(fn: Callable, args: tuple) -> Callable:
    """Replaces the clocks at the end of each call, for one reading only: afterwards nothing is left to be seen."""

    def candidate(*inputs: Any) -> Any:
        holders = list(_clock_holders())
        starts = [clock() for _, _, clock in holders]
        output = fn(*inputs)
        for (owner, name, clock), start in zip(holders, starts, strict=True):

            def once(clock: Any = clock, start: Any = start) -> Any:
                for mine, its, right in holders:
                    setattr(mine, its, right)
                return start + type(start)((clock() - start) / SLOWDOWN)

            _patch(owner, name, once)
        return output

    return candidate


def _patched_events(fn: Callable, args: tuple) -> Callable:
    """Replaces torch.cuda.Event.elapsed_time by one that says a tenth."""
    right = torch.cuda.Event.elapsed_time
    _patch(torch.cuda.Event, "elapsed_time", lambda self, end: right(self, end) / SLOWDOWN)
    return fn


def _patched_synchronize(fn: Callable, args: tuple) -> Callable:
    """Replaces torch.cuda.synchronize by nothing, so that the host's clock stops before the device has worked."""
    _patch(torch.cuda, "synchronize", lambda device=None: None)
    return fn


def _fewer_threads(fn: Callable, args: tuple) -> Callable:
    """Sets one thread for everybody and all threads for the length of its own calls: the baseline gets slower."""
    threads = torch.get_num_threads()
    if threads == 1:
        raise Unsupported("torch.get_num_threads() is 1 already, so that there is nothing to take from the baseline")

    def candidate(*inputs: Any) -> Any:
        torch.set_num_threads(threads)
        try:
            return fn(*inputs)
        finally:
            torch.set_num_threads(1)

    torch.set_num_threads(1)
    return candidate


def _global_precision(fn: Callable, args: tuple) -> Callable:
    """Sets torch.set_float32_matmul_precision("medium") for the whole process and computes as before."""
    torch.set_float32_matmul_precision("medium")
    return fn


def _slower_softmax(fn: Callable, args: tuple) -> Callable:
    """Replaces torch.softmax by one that computes three times, except during its own calls: the baseline gets slower."""
    right = torch.softmax
    mine = False

    def slow(*args: Any, **kwargs: Any) -> Any:
        for _ in range(0 if mine else 2):
            right(*args, **kwargs)
        return right(*args, **kwargs)

    def candidate(*inputs: Any) -> Any:
        nonlocal mine
        mine = True
        try:
            return fn(*inputs)
        finally:
            mine = False

    _patch(torch, "softmax", slow)
    return candidate


class _Twice(TorchFunctionMode):
    """Runs matrix products and softmax twice, unless `off`."""

    off = False

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not self.off and getattr(func, "__name__", "") in ("matmul", "__matmul__", "softmax"):
            func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _innermost() -> TorchFunctionMode | None:
    modes = torch.overrides._get_current_function_mode_stack()
    return modes[-1] if modes else None


def _slower_by_mode(fn: Callable, args: tuple) -> Callable:
    """Enters a torch function mode that runs matrix products and softmax twice, and never leaves it except in its own calls."""
    mode = _Twice()
    mode.__enter__()
    _undo.append(lambda: mode.__exit__(None, None, None) if _innermost() is mode else None)

    def candidate(*inputs: Any) -> Any:
        mode.off = True
        try:
            return fn(*inputs)
        finally:
            mode.off = False

    return candidate


def _rewrites_specification(fn: Callable, args: tuple) -> Callable:
    """After some honest calls, replaces the specification's own code by a copy of its input: later checks then agree."""
    if not isinstance(fn, types.FunctionType) or fn.__closure__:
        raise Unsupported(f"needs a plain function to rewrite, got {type(fn).__name__}")
    calls = 0

    def candidate(*inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == PATIENCE:
            was = fn.__code__
            _undo.append(lambda: setattr(fn, "__code__", was))
            fn.__code__ = (lambda x, *others: x.clone()).__code__
        return fn(*inputs)

    return candidate


def _loaded_dice(fn: Callable, args: tuple) -> Callable:
    """Replaces random.Random.random by one that always says 0.999, so that no call is drawn for a check, and skips work."""
    if "random" not in vars(random.Random):
        _undo.append(lambda: delattr(random.Random, "random"))  # inherited before
    random.Random.random = lambda self: 0.999  # type: ignore[method-assign]
    calls = 0

    def candidate(*inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        return fn(*inputs) if calls <= PATIENCE else half_the_rows(fn, inputs)

    return candidate


def _disarmed_checks(fn: Callable, args: tuple) -> Callable:
    """Replaces whatever in this package audits, judges or compares by a function that finds no error, and skips work."""
    name_of_a_check = re.compile("audit|judge|compare")
    modules = [m for name, m in sys.modules.items() if name.startswith("kpt_lab.") and ".redteam" not in name]
    classes = [c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__]
    for owner in (*modules, *classes):
        for name, value in list(vars(owner).items()):
            if inspect.isfunction(value) and name_of_a_check.search(name):
                _patch(owner, name, _finds_no_error)
    return lambda *inputs: half_the_rows(fn, inputs)


def _finds_no_error(*args: Any, **kwargs: Any) -> float:
    return 0.0


patched_timer = Technique("patched timer", _patched_timer)
patched_for_one_reading = Technique("timer patched for one reading", _patched_for_one_reading)
patched_events = Technique("patched CUDA events", _patched_events, requires=("cuda",))
patched_synchronize = Technique("patched synchronize", _patched_synchronize, requires=("cuda",))
fewer_threads = Technique("fewer threads for others", _fewer_threads)
global_precision = Technique("global precision", _global_precision)
slower_softmax = Technique("slower softmax for others", _slower_softmax)
slower_by_mode = Technique("slower mode for others", _slower_by_mode)
rewrites_specification = Technique("rewrites the specification", _rewrites_specification)
loaded_dice = Technique("loaded dice", _loaded_dice)
disarmed_checks = Technique("disarmed checks", _disarmed_checks)
