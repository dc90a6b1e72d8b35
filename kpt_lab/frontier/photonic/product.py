"""What a product by light is made of: operands that fit, a programmed matrix, and the gradients of the ideal product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kpt_lab.frontier.photonic.mesh import Mesh, SVDMesh


@dataclass(frozen=True)
class Program:
    """A matrix (..., k, n) as it stands in the cores: meshes batched over (..., tiles of k, tiles of n).

    plus and minus realise the square roots of the positive and of the negative weights of W = tile transposed / scale.
    `full_scale` (..., tiles, tiles) is the largest reading that a core can give: the range of its ADCs.
    """

    plus: SVDMesh
    minus: SVDMesh
    scale: Tensor
    full_scale: Tensor
    shape: tuple[int, int]

    @property
    def meshes(self) -> tuple[Mesh, ...]:
        """All four: left and right of plus, left and right of minus."""
        return self.plus.left, self.plus.right, self.minus.left, self.minus.right


class StraightThrough(torch.autograd.Function):
    """The physical reading forward, the ideal product's gradients backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, reading: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return reading

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        return (gradient @ b.mT).sum_to_size(a.shape), (a.mT @ gradient).sum_to_size(b.shape), None


def check(a: Tensor, b: Tensor) -> None:
    """ValueError with a sentence for anything but two finite floating point tensors of one dtype and device that fit together."""
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is {type(value).__name__}; a floating point tensor is needed")
        if not value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype}; floating point is needed")
        if not value.dim() or not value.numel():
            raise ValueError(f"{name} has shape {tuple(value.shape)}; at least one dimension and one element are needed")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity, which no optical power can represent")
    if a.dtype != b.dtype or a.device != b.device:
        raise ValueError(f"a is {a.dtype} on {a.device} and b is {b.dtype} on {b.device}; both must be the same")
    inner = b.shape[0] if b.dim() == 1 else b.shape[-2]
    try:
        torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        inner = -1
    if a.shape[-1] != inner:
        raise ValueError(f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}, which don't fit for a matrix product")
