"""What a training step did to numbers: read once a step for all layers, before anything is applied.

Two things make a step bad. Values that are not finite, counted before any cast, or a loss or gradient norm that isn't. And a spike, one
finite value far beyond the others of its tensor, seen in one of two ways:

- Under tensorwise scaling it sets the scale, and the others are flushed to zero. In e4m3fn that is what lies below 2**-10 of 448ths
  of the largest value: beside one of 1e5 times the root mean square a sixth of normal numbers is lost, beside 1e6 nearly all, beside
  100 one in several thousand. Clean tensors, with heavy tails, loud channels or behind a SwiGLU, stay below a hundredth, so a twentieth
  (FLUSHED) lies well between. A layer that flushes more on the batch that its recipe was chosen on is given four times that.
- A gradient in e5m2 keeps numbers 1e9 times smaller than its largest, so nothing is flushed there. What shows is the largest magnitude
  over the mean one: up to 2,000 in clean gradients of language models, whose tokens differ widely, and 1e5 or more beside such a value.
  PEAK lies between. (The ratio can't exceed the number of elements, so small tensors have a lower limit, and tiny ones none.)

`benchmarks/fp8_language_model.py --faults` measures both sides of both limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kpt_lab.precision.linear import COUNTS, TENSORS, FP8Linear, Recipe

FLUSHED = 0.05
"""Share of a tensorwise cast tensor that is flushed to zero, above which there was a spike."""
PEAK = 1e4
"""Largest over mean magnitude of an output gradient, above which there was a spike."""
_JUDGED = 4096  # elements of a gradient from which it is judged
_USUAL = 4.0  # times the share on the batch that the recipe was chosen on, where that is more


class Place(NamedTuple):
    """Where something was found, and how much: values that are not finite, the share flushed, or above 1 the largest over the mean."""

    layer: str
    tensor: str
    amount: float


@dataclass(frozen=True)
class Finding:
    """One step's loss and gradient norm, and where values are not finite (`broken`) or a spike is (`loud`)."""

    loss: float
    norm: float
    broken: tuple[Place, ...] = ()
    loud: tuple[Place, ...] = ()

    @property
    def bad(self) -> bool:
        """Whether the step must not be applied as it is."""
        return bool(self.kind)

    @property
    def kind(self) -> str:
        """ "non-finite", "spike", or "" for a clean step."""
        if self.broken or not (math.isfinite(self.loss) and math.isfinite(self.norm)):
            return "non-finite"
        return "spike" if self.loud else ""

    @property
    def origin(self) -> Place | None:
        """Where it began: a weight, else the first layer's input, else the gradient of the layer that backward reached first."""
        for tensor, first in (("weight", 0), ("input", 0), ("gradient", -1)):
            if places := [p for p in self.broken or self.loud if p.tensor == tensor]:
                return places[first]
        return None

    def __str__(self) -> str:
        place = self.origin
        if place is None:
            what = "loss" if not math.isfinite(self.loss) else "gradients' norm"
            return f"the {what} is {self.loss if what == 'loss' else self.norm}" if self.bad else "clean"
        where = f"{place.tensor} of layer {place.layer!r}"
        if self.broken:
            return f"the {where} holds {place.amount:.0f} values that are not finite"
        if place.amount > 1:
            return f"a spike in the {where} is {place.amount:.3g} times its mean magnitude"
        return f"a spike in the {where} flushes {place.amount:.1%} of it to zero"


class Watch:
    """The counts of all FP8Linear of a model: `start` before a step's forward, `read` after its backward, one wait for the device.

    usual: each layer's flushed share on the batch that its recipe was chosen on. flushed: the share that makes a spike.
    """

    def __init__(self, model: nn.Module, usual: Mapping[str, float], flushed: float = FLUSHED, on: bool = True) -> None:
        self.layers = {name: part for name, part in model.named_modules() if isinstance(part, FP8Linear)} if on else {}
        self.limits = {name: max(flushed, _USUAL * usual.get(name, 0.0)) for name in self.layers}
        self.totals = torch.zeros(len(self.layers), len(TENSORS), len(COUNTS), dtype=torch.float64)
        self.peaks = {name: torch.zeros(2, device=p.weight.device, requires_grad=True) for name, p in self.layers.items()}
        self._hooks = []
        for name, part in self.layers.items():
            part.watch()
            part.peak = self.peaks[name]
            self._hooks.append(part.register_forward_hook(_peaked))

    def close(self) -> None:
        """Take the hooks away again."""
        for hook in self._hooks:
            hook.remove()

    def start(self) -> None:
        """Forget what earlier calls left."""
        for part in self.layers.values():
            assert part.seen is not None
            part.seen.grad = None
        for peak in self.peaks.values():
            peak.grad = None

    def read(self, loss: Tensor, norm: Tensor) -> tuple[Finding, Tensor]:
        """What the calls since `start` found, and its counts (layers, TENSORS, COUNTS) in float64 on the CPU."""
        count = len(self.layers)
        zeros = torch.zeros(len(TENSORS) * len(COUNTS), device=loss.device)
        grads = [part.seen.grad for part in self.layers.values() if part.seen is not None]
        held = [zeros if g is None else g.reshape(-1) for g in grads]
        held += [zeros[:2] if peak.grad is None else peak.grad for peak in self.peaks.values()]
        told = torch.cat([part.to(loss.device, torch.float32) for part in (loss.reshape(1), norm.reshape(1), *held)])
        (loss_, norm_), counts, peaks = told.cpu().double().split([2, zeros.numel() * count, 2 * count])
        counts = counts.reshape(count, len(TENSORS), len(COUNTS))
        return self._judged(float(loss_), float(norm_), counts, peaks.reshape(count, 2)), counts

    def _judged(self, loss: float, norm: float, counts: Tensor, peaks: Tensor) -> Finding:
        broken, loud = [], []
        for (name, part), rows, (above, ratio) in zip(self.layers.items(), counts.tolist(), peaks.tolist(), strict=True):
            whole = tensorwise(part.recipe)
            for tensor, (elements, nonfinite, flushed, _) in zip(TENSORS, rows, strict=True):
                if nonfinite:
                    broken.append(Place(name, tensor, nonfinite))
                elif tensor in whole and elements and flushed / elements > self.limits[name]:
                    loud.append(Place(name, tensor, flushed / elements))
                elif tensor in whole and tensor == "gradient" and above:
                    loud.append(Place(name, tensor, ratio))
        return Finding(loss, norm, tuple(broken), tuple(loud))

    def shares(self) -> dict[str, dict[str, tuple[float, int, int]]]:
        """By layer and tensor, over all steps so far: share flushed, values not finite, values clipped."""
        found = {}
        for name, rows in zip(self.layers, self.totals.tolist(), strict=True):
            found[name] = {
                tensor: (flushed / elements if elements else 0.0, int(broken), int(clipped))
                for tensor, (elements, broken, flushed, clipped) in zip(TENSORS, rows, strict=True)
            }
        return found


class _Peak(torch.autograd.Function):
    """The identity; backward leaves in its second argument's gradient whether there is a peak, and the ratio."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, told: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        norm, n = torch.linalg.vector_norm, gradient.numel()
        ratio = norm(gradient, float("inf"), dtype=torch.float32) / (norm(gradient, 1, dtype=torch.float32) / max(n, 1))
        limit = min(PEAK, n / 2) if n >= _JUDGED else math.inf
        return gradient, torch.stack([(ratio > limit).float(), ratio])


def _peaked(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return _Peak.apply(output, module.peak)


def tensorwise(recipe: Recipe) -> frozenset[str]:
    """The tensors whose flushed values a layer counts in a tensorwise cast: that of the first product that casts them."""
    used = {
        "input": (recipe.forward, recipe.weight_gradient),
        "weight": (recipe.forward, recipe.input_gradient),
        "gradient": (recipe.input_gradient, recipe.weight_gradient),
    }
    first = {name: next((choice for choice in pair if choice != "bfloat16"), "") for name, pair in used.items()}
    return frozenset(name for name, choice in first.items() if choice == "tensorwise")
