"""What a training step did to numbers: read once a step for all layers, before anything is applied.

Two things make a step bad. Values that are not finite, counted before any cast, or a loss or gradient norm that isn't. And a spike, one
finite value far beyond the others of its tensor, seen in one of two ways:

- Under tensorwise scaling it sets the scale, and the others are flushed to zero. In e4m3fn that is what lies below 2**-10 of 448ths
  of the largest value: beside one of 1e5 times the root mean square a sixth of normal numbers is lost, beside 1e6 nearly all, beside
  100 one in several thousand. Clean tensors, with heavy tails, loud channels or behind a SwiGLU, stay below a hundredth, so a twentieth
  (FLUSHED) lies well between. A layer that flushes more on the batch that its recipe was chosen on is given four times that.
- A gradient in e5m2 keeps numbers 1e9 times smaller than its largest, so nothing is flushed there. But such a value dominates the
  gradients' norm, so a norm that is JUMP times the median of the last steps' counts as a spike too.

`benchmarks/fp8_language_model.py --faults` measures both sides of both limits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kpt_lab.precision.linear import COUNTS, TENSORS, FP8Linear, Recipe

FLUSHED = 0.05
"""Share of a tensorwise cast tensor that is flushed to zero, above which there was a spike."""
JUMP = 20.0
"""Times the median norm of the gradients in the last steps, above which there was a spike."""
_NORMS = (8, 64)  # steps before norms are compared, and how many of the last ones are
_USUAL = 4.0  # times the share on the batch that the recipe was chosen on, where that is more


class Place(NamedTuple):
    """Where something was found, and how much: a count of values that are not finite, or the share that was flushed."""

    layer: str
    tensor: str
    amount: float


@dataclass(frozen=True)
class Finding:
    """One step's loss and gradient norm, and where values are not finite (`broken`) or a spike flushed the rest (`loud`).

    jump: the norm over the median of the last steps' norms where that is a spike, else 0.
    """

    loss: float
    norm: float
    broken: tuple[Place, ...] = ()
    loud: tuple[Place, ...] = ()
    jump: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether the step must not be applied as it is."""
        return bool(self.kind)

    @property
    def kind(self) -> str:
        """ "non-finite", "spike", or "" for a clean step."""
        if self.broken or not (math.isfinite(self.loss) and math.isfinite(self.norm)):
            return "non-finite"
        return "spike" if self.loud or self.jump else ""

    @property
    def origin(self) -> Place | None:
        """Where it began: a weight, else the first layer's input, else the gradient of the layer that backward reached first."""
        for tensor, first in (("weight", 0), ("input", 0), ("gradient", -1)):
            if places := [p for p in self.broken or self.loud if p.tensor == tensor]:
                return places[first]
        return None

    def __str__(self) -> str:
        place = self.origin
        if place is None and self.jump:
            return f"a spike makes the gradients' norm {self.jump:.3g} times what it was"
        if place is None:
            what = "loss" if not math.isfinite(self.loss) else "gradients' norm"
            return f"the {what} is {self.loss if what == 'loss' else self.norm}" if self.bad else "clean"
        where = f"{place.tensor} of layer {place.layer!r}"
        if self.broken:
            return f"the {where} holds {place.amount:.0f} values that are not finite"
        return f"a spike in the {where} flushes {place.amount:.1%} of it to zero"


class Watch:
    """The counts of all FP8Linear of a model: `start` before a step's forward, `read` after its backward, one wait for the device.

    usual: each layer's flushed share on the batch that its recipe was chosen on. flushed: the share that makes a spike.
    """

    def __init__(self, model: nn.Module, usual: Mapping[str, float], flushed: float = FLUSHED, on: bool = True) -> None:
        self.layers = {name: part for name, part in model.named_modules() if isinstance(part, FP8Linear)} if on else {}
        self.limits = {name: max(flushed, _USUAL * usual.get(name, 0.0)) for name in self.layers}
        self.norms: deque[float] = deque(maxlen=_NORMS[1])
        self.totals = torch.zeros(len(self.layers), len(TENSORS), len(COUNTS), dtype=torch.float64)
        for part in self.layers.values():
            part.watch()

    def start(self) -> None:
        """Forget what earlier calls left."""
        for part in self.layers.values():
            assert part.seen is not None
            part.seen.grad = None

    def read(self, loss: Tensor, norm: Tensor) -> tuple[Finding, Tensor]:
        """What the calls since `start` found, and its counts (layers, TENSORS, COUNTS) in float64 on the CPU."""
        zeros = torch.zeros(len(TENSORS), len(COUNTS), device=loss.device)
        grads = [part.seen.grad for part in self.layers.values() if part.seen is not None]
        device = loss.device
        parts = [loss.reshape(1), norm.reshape(1), *((g if g is not None else zeros).reshape(-1) for g in grads)]
        told = torch.cat([part.to(device, torch.float32) for part in parts]).cpu().double()
        counts = told[2:].reshape(len(self.layers), len(TENSORS), len(COUNTS))
        return self._judged(float(told[0]), float(told[1]), counts), counts

    def _judged(self, loss: float, norm: float, counts: Tensor) -> Finding:
        broken, loud = [], []
        listed: Sequence[Sequence[Sequence[float]]] = counts.tolist()
        for (name, part), rows in zip(self.layers.items(), listed, strict=True):
            whole = tensorwise(part.recipe)
            for tensor, (elements, nonfinite, flushed, _) in zip(TENSORS, rows, strict=True):
                if nonfinite:
                    broken.append(Place(name, tensor, nonfinite))
                elif tensor in whole and elements and flushed / elements > self.limits[name]:
                    loud.append(Place(name, tensor, flushed / elements))
        usual = median(self.norms) if len(self.norms) >= _NORMS[0] else math.inf
        jump = norm / usual if math.isfinite(norm) and norm > JUMP * usual else 0.0
        return Finding(loss, norm, tuple(broken), tuple(loud), jump)

    def applied(self, norm: float) -> None:
        """Remember the norm of a step that was good at once, for the next ones to be compared with."""
        self.norms.append(norm)

    def shares(self) -> dict[str, dict[str, tuple[float, int, int]]]:
        """By layer and tensor, over all steps so far: share flushed, values not finite, values clipped."""
        found = {}
        for name, rows in zip(self.layers, self.totals.tolist(), strict=True):
            found[name] = {
                tensor: (flushed / elements if elements else 0.0, int(broken), int(clipped))
                for tensor, (elements, broken, flushed, clipped) in zip(TENSORS, rows, strict=True)
            }
        return found


def tensorwise(recipe: Recipe) -> frozenset[str]:
    """The tensors whose flushed values a layer counts in a tensorwise cast: that of the first product that casts them."""
    used = {
        "input": (recipe.forward, recipe.weight_gradient),
        "weight": (recipe.forward, recipe.input_gradient),
        "gradient": (recipe.input_gradient, recipe.weight_gradient),
    }
    first = {name: next((choice for choice in pair if choice != "bfloat16"), "") for name, pair in used.items()}
    return frozenset(name for name, choice in first.items() if choice == "tensorwise")
