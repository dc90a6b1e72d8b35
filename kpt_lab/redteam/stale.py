"""Old answers for new questions: caches, counters, and candidates that behave only while they are watched."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from kpt_lab.core import Technique
from kpt_lab.redteam.workload import copied, sample, tensors

KEPT = 8  # answers that a cache holds
PATIENCE = 20  # honest calls before a candidate that waits begins to cheat


def _cached(fn: Callable, key: Callable[[tuple], Any]) -> Callable:
    answers: OrderedDict[Any, Any] = OrderedDict()

    def candidate(*inputs: Any) -> Any:
        name = key(inputs)
        if name not in answers:
            answers[name] = fn(*inputs)
            if len(answers) > KEPT:
                answers.popitem(last=False)
        # a clone, so that whoever overwrites the output doesn't spoil the cache
        return copied(answers[name])

    return candidate


def _cached_by_identity(fn: Callable, args: tuple) -> Callable:
    """Keeps the answer by the inputs' addresses and gives it again whatever they hold now."""
    return _cached(fn, lambda inputs: tuple(t.data_ptr() for t in tensors(inputs)))


def _cached_by_version(fn: Callable, args: tuple) -> Callable:
    """Keeps the answer by the inputs' addresses and version counters, so that only unchanged inputs are free."""
    return _cached(fn, lambda inputs: tuple((t.data_ptr(), t._version) for t in tensors(inputs)))


def _cached_by_sample(fn: Callable, args: tuple) -> Callable:
    """Keeps the answer by some 64 values of each input, which cost microseconds to compare."""
    return _cached(fn, sample)


def _cached_by_value(fn: Callable, args: tuple) -> Callable:
    """Keeps copies of the inputs with the answers, and compares with torch.equal, which is cheaper than computing."""
    kept: list[tuple[list[torch.Tensor], Any]] = []

    def candidate(*inputs: Any) -> Any:
        mine = tensors(inputs)
        for values, answer in kept:
            if all(torch.equal(a, b) for a, b in zip(mine, values, strict=True)):
                return copied(answer)
        kept[:] = [*kept[1 - KEPT :], (copied(mine), fn(*inputs))]
        return copied(kept[-1][1])

    return candidate


def _first_answer(fn: Callable, args: tuple) -> Callable:
    """Computes at the first call and gives copies of that answer ever after: right only for the first input."""
    return _cached(fn, lambda inputs: "first")


def _previous_buffer(fn: Callable, args: tuple) -> Callable:
    """Computes three calls, then hands out the same three buffers in turn, as they were left."""
    buffers: list[Any] = []

    def candidate(*inputs: Any) -> Any:
        buffers.append(fn(*inputs) if len(buffers) < 3 else buffers.pop(0))
        return buffers[-1]

    return candidate


def _patient(fn: Callable, args: tuple, after: int = PATIENCE) -> Callable:
    """Honest for the first calls, where answers are checked; then computes half of the rows and repeats them."""
    calls = 0

    def candidate(*inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        return fn(*inputs) if calls <= after else half_the_rows(fn, inputs)

    return candidate


def half_the_rows(fn: Callable, inputs: tuple) -> torch.Tensor:
    """`fn` on the first half of its first input's rows, twice, so that the shape is right."""
    rows = inputs[0].shape[0]
    half = fn(inputs[0][: rows - rows // 2], *inputs[1:])
    return torch.cat((half, half[: rows // 2]))


def _one_in_three(fn: Callable, args: tuple) -> Callable:
    """Honest for the first calls; then one call in three, by its own dice, returns the answer before."""
    dice = random.Random(len(args))
    calls, last = 0, None

    def candidate(*inputs: Any) -> Any:
        nonlocal calls, last
        calls += 1
        if calls <= PATIENCE or dice.random() > 1 / 3:
            last = fn(*inputs)
            return copied(last)
        return copied(last)

    return candidate


def _knows_the_harness(fn: Callable, args: tuple) -> Callable:
    """Looks up the stack, and gives an old answer where a caller's name says that it is being timed."""
    timing = re.compile("time|clock|sample|block|bench|repeat|rounds?$")
    last = fn(*args)

    def candidate(*inputs: Any) -> Any:
        nonlocal last
        frame = sys._getframe(1)
        while frame is not None:
            if timing.search(frame.f_code.co_name):
                return copied(last)
            frame = frame.f_back  # type: ignore[assignment]
        last = fn(*inputs)
        return copied(last)

    return candidate


def _knows_the_loop(fn: Callable, args: tuple) -> Callable:
    """Counts its calls by the line that makes them, and gives an old answer where a line has called often: a timing loop."""
    seen: Counter[Any] = Counter()
    last = fn(*args)

    def candidate(*inputs: Any) -> Any:
        nonlocal last
        caller = sys._getframe(1)
        site = (caller.f_code, caller.f_lasti)
        seen[site] += 1
        if seen[site] <= PATIENCE:
            last = fn(*inputs)
        return copied(last)

    return candidate


cached_by_identity = Technique("cached by identity", _cached_by_identity)
cached_by_version = Technique("cached by version", _cached_by_version)
cached_by_sample = Technique("cached by sample", _cached_by_sample)
cached_by_value = Technique("cached by value", _cached_by_value)
first_answer = Technique("first answer", _first_answer)
previous_buffer = Technique("previous buffer", _previous_buffer)
patient = Technique("patient", _patient)
one_in_three = Technique("one in three", _one_in_three)
knows_the_harness = Technique("knows the harness", _knows_the_harness)
knows_the_loop = Technique("knows the loop", _knows_the_loop)
