"""Made-up inputs for the check of a lowered attention: random ones, and hostile ones with empty rows, infinities and gaps in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from kpt_lab.kernels.flashlight.expression import Apply, Attention, Coordinate, Expression, Load, expressions
from kpt_lab.kernels.flashlight.nodes import name_of, value

if TYPE_CHECKING:
    from kpt_lab.kernels.flashlight.differential import Region

POSITIVE = ("norm", "linalg_vector_norm", "sqrt", "rsqrt", "exp", "softplus", "sigmoid")


class Unsuited(Exception):
    """The original itself can't run on what was made up; the message says why."""


def number(size: Any, sizes: dict[Any, int]) -> int:
    """A size as a number, with its symbols at these values."""
    if isinstance(size, torch.SymInt):
        return int(size.node.expr.xreplace(sizes))
    return int(size)


class Inputs:
    """Inputs of a region: random operands and biases, indices that stay inside what they index."""

    def __init__(self, region: Region, sizes: dict[Any, int], kind: str) -> None:
        self.region, self.sizes, self.kind = region, sizes, kind
        self.limits = _limits(region.attention, sizes)
        self.added = {
            load.tensor: dim for e in (p.score for p in region.attention.parts if p.fill != "finite") for load, dim in _added(e)
        }

    def tensors(self) -> list[Any]:
        """One value for each input of the region."""
        device = value(self.region.attention.output).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            try:
                return [self._one(node) for node in self.region.inputs]
            except (TypeError, ValueError, RuntimeError) as error:  # a size that stays symbolic, or more than fits
                raise Unsuited(f"no inputs can be made up ({type(error).__name__}: {str(error)[:120]})") from error

    def _one(self, node: fx.Node) -> Any:
        held = value(node)
        if isinstance(held, torch.SymInt):
            return number(held, self.sizes)
        if isinstance(held, torch.SymFloat):
            return float(held.node.expr.xreplace(self.sizes))
        if not isinstance(held, torch.Tensor):
            return held
        shape = [number(n, self.sizes) for n in held.shape]
        made = self._values(node, shape, held)
        spread = torch.empty((*shape, 2), dtype=made.dtype, device=made.device)[..., 0] if self.kind != "random" else made
        return spread.copy_(made) if spread is not made else made  # not contiguous

    def _values(self, node: fx.Node, shape: list[int], held: torch.Tensor) -> torch.Tensor:
        odd = self.kind == "adversarial"
        if held.dtype is torch.bool:
            chosen = torch.rand(shape, device=held.device) < (0.3 if odd else 0.7)
            if odd and shape:
                chosen[..., : max(shape[-1] // 2, 1)] &= torch.rand((*shape[:-1], 1), device=held.device) < 0.5
            if odd and len(shape) > 1:
                chosen.view(-1, shape[-1])[::3] = False  # a padding mask without any key for the first sequence
            if not odd and shape:  # gradients are compared: of a row without keys eager has some, ours has none
                chosen[..., 0] = True
            return chosen
        if not held.dtype.is_floating_point:
            limit = max(self.limits.get(node, 3), 1)
            least = 0 if odd else min(1, limit - 1)  # a sequence of no keys is for the adversarial ones
            return torch.randint(least, limit, shape, device=held.device, dtype=held.dtype)
        made = torch.randn(shape, device=held.device, dtype=torch.float32)
        if name_of(node) in POSITIVE:  # as it will be: what divides by it near 0 only compares roundings
            made = made.abs() + 0.5
        if odd and node in self.added and shape[self.added[node]] > 2:
            made.select(self.added[node], 1).fill_(float("-inf"))
            if made.dim() > 1:  # and a row of them, where each query has its own
                made.select(-2, 0).fill_(float("-inf"))
        return made.to(held.dtype)


def _added(expression: Expression) -> Iterable[tuple[Load, int]]:
    """The tensors that are added to the score, with the dimension that runs over the keys."""
    match expression:
        case Apply("add" | "to", arguments, _):
            for argument in arguments:
                yield from _added(argument)
        case Load(_, index) if Coordinate("k") in index:
            yield expression, index.index(Coordinate("k"))


def _limits(attention: Attention, sizes: dict[Any, int]) -> dict[fx.Node, int]:
    """How large the numbers of an integer tensor may be: below the extent of what they index."""
    found: dict[fx.Node, int] = {}
    for expression in expressions(attention):
        for part in expression.walk():
            if not isinstance(part, Load):
                continue
            for place, extent in zip(part.index, value(part.tensor).shape, strict=True):
                for inner in place.walk():
                    if isinstance(inner, Load):
                        limit = number(extent, sizes) if inner is place else min(2, number(extent, sizes))
                        found[inner.tensor] = min(found.get(inner.tensor, limit), limit)
    return found
