"""Six cheats written after the measuring harness was finished, to see how many it catches unchanged (docs/redteam.md).

They are not part of `cheats`: what escapes is reported, and the harness was not tuned to them first. Three know this harness.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from kpt_lab.core import Technique
from kpt_lab.redteam.tampered import _undo
from kpt_lab.redteam.workload import empty_output, sample

pending: deque[Any] = deque(maxlen=64)
"""The latest futures of the inter-op pool; `wait()` on one returns the filled output."""


def _interop_future(fn: Callable, args: tuple) -> Callable:
    """Returns an unwritten output; torch's inter-op pool, a C++ thread that Python can't list, fills it later."""
    allocate = empty_output(fn, args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and works
        traced = torch.jit.trace(fn, args)

        def fill(x, weight, output):
            return output.copy_(traced(x, weight))

        def launch(x, weight, output):
            return torch.jit.fork(fill, x, weight, output)

        launched = torch.jit.script(launch)

    def candidate(*inputs: Any) -> Any:
        output = allocate()
        pending.append(launched(*inputs, output))
        return output

    return candidate


def _works_ahead(fn: Callable, args: tuple) -> Callable:
    """A profile hook, which runs as the harness's own functions return, computes once it sees new values in the inputs."""
    mine: tuple[torch.Tensor, ...] = ()
    seen: list[int] = []
    ready: Any = None

    def hook(frame: Any, event: str, arg: Any) -> None:
        nonlocal seen, ready
        if event == "return" and (now := [t._version for t in mine]) != seen:
            with torch.no_grad():
                seen, ready = now, fn(*mine)

    def candidate(*inputs: torch.Tensor) -> Any:
        nonlocal mine, seen, ready
        if ready is not None and all(a is b for a, b in zip(mine, inputs, strict=True)):
            output, ready = ready, None
            if seen == [t._version for t in inputs]:
                return output
        mine, seen = inputs, [t._version for t in inputs]
        return fn(*inputs)

    before = sys.getprofile()
    _undo.append(lambda: sys.setprofile(before))
    sys.setprofile(hook)
    return candidate


def _packed_weights(fn: Callable, args: tuple) -> Callable:
    """Folds the scale into the weight once for each address, though the weight is an input: new values there go unseen."""
    packed: dict[int, torch.Tensor] = {}

    def candidate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        where = weight.data_ptr()
        if where not in packed:
            packed[where] = weight * weight.shape[0] ** -0.5
        return torch.softmax(x @ packed[where], dim=-1)

    return candidate


class _Bases:
    """The first three inputs met, and the products of each one's x with each one's weight."""

    def __init__(self) -> None:
        self.inputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.samples: list[torch.Tensor] = []
        self.products: dict[tuple[int, int], torch.Tensor] = {}

    def learn(self, inputs: tuple, values: torch.Tensor) -> None:
        self.inputs.append(tuple(t.clone() for t in inputs))
        self.samples.append(values)
        count = len(self.inputs)
        self.products = {(i, j): self.inputs[i][0] @ self.inputs[j][1] for i in range(count) for j in range(count)}

    def blend(self, values: torch.Tensor) -> tuple[int, int, float] | None:
        """The two bases and the weight of the second that give these sampled values, or None."""
        for i, a in enumerate(self.samples):
            if torch.allclose(values, a, rtol=0, atol=1e-6):
                return i, i, 0.0
            for j in range(i):
                step = self.samples[j] - a
                weight = float((values - a) @ step / (step @ step))
                if torch.allclose(values, a + weight * step, rtol=0, atol=1e-5):
                    return i, j, weight
        return None


def _knows_the_blend(fn: Callable, args: tuple) -> Callable:
    """Learns the input sets, finds each new input to be a blend of two of them, and adds up products computed before."""
    bases = _Bases()

    def candidate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        values = torch.tensor(sample((x, weight)), dtype=torch.float64)
        found = bases.blend(values)
        if found is None:
            if len(bases.inputs) < 3:
                bases.learn((x, weight), values)
            return fn(x, weight)
        i, j, w = found
        p = bases.products
        logits = p[i, i] * (1 - w) ** 2
        logits.add_(p[i, j], alpha=w * (1 - w)).add_(p[j, i], alpha=w * (1 - w)).add_(p[j, j], alpha=w * w)
        return torch.softmax(logits.mul_(weight.shape[0] ** -0.5), dim=-1)

    return candidate


def _edits_the_record(fn: Callable, args: tuple, to: float = 0.8) -> Callable:
    """Asks the garbage collector who holds it, finds the times noted there and shortens each of them by a fifth."""
    calls = 0
    records: list[tuple[list[int], list[int]]] = []  # a list of times, and how many of it are shortened

    def candidate(*inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        output = fn(*inputs)
        if 8 <= calls < 16 and not records:  # a search takes milliseconds: later, not in every call
            records.extend((times, [0]) for times in _times_beside(candidate))
        for times, done in records:
            times[done[0] :] = [round(to * time) for time in times[done[0] :]]
            done[0] = len(times)
        return output

    return candidate


def _times_beside(candidate: Callable) -> list[list[int]]:
    """Lists of whole numbers among the fields of whatever refers to the candidate."""
    found: list[list[int]] = []
    for owner in gc.get_referrers(candidate):
        fields = owner if isinstance(owner, dict) else getattr(owner, "__dict__", {})
        for value in list(fields.values()):
            if type(value) is list and value and all(type(item) is int for item in value):
                found.append(value)
    return found


def _slower_by_dispatcher(fn: Callable, args: tuple) -> Callable:
    """Registers another kernel for aten::mm, which multiplies twice except in its own calls: no Python function is replaced."""
    mine = False

    def twice(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        output = a.new_empty(a.shape[0], b.shape[1])
        for _ in range(1 if mine else 2):
            torch.ops.aten.mm.out(a, b, out=output)
        return output

    def candidate(*inputs: Any) -> Any:
        nonlocal mine
        mine = True
        try:
            return fn(*inputs)
        finally:
            mine = False

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that a kernel was overridden
        library.impl("mm", twice, "CUDA" if args[0].is_cuda else "CPU")
    _undo.append(library._destroy)
    return candidate


interop_future = Technique("inter-op future", _interop_future)
works_ahead = Technique("works ahead", _works_ahead)
packed_weights = Technique("packed weights", _packed_weights)
knows_the_blend = Technique("knows the blend", _knows_the_blend)
edits_the_record = Technique("edits the record", _edits_the_record)
slower_by_dispatcher = Technique("slower by dispatcher", _slower_by_dispatcher)
