"""n:m masks: of each m consecutive weights of a row, which n stay.

A group is m consecutive entries along the last dimension, the input features of an nn.Linear, as the 2:4 tensor cores read
them. n:m says how many *stay*: 2:4 keeps 2 of 4, 6:8 keeps 6 of 8. Ties: of equally good weights those with the lower index
stay, on every device, so that a mask depends on nothing but the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class SparsityPattern:
    """How many weights stay, `n`, of each `m` consecutive ones along a weight's input features.

    `SparsityPattern.SPARSE_24` is the one that tensor cores speed up; others are there to explore, as `SparsityPattern(6, 8)`.
    `SparsityPattern.AUTO` is for `prune`, which then chooses the criterion per layer by error, and for `StructuredSparse.convert`,
    which also asks the clock; a mask alone needs an n:m.

    >>> str(SparsityPattern.SPARSE_24), SparsityPattern(6, 8).kept
    ('2:4', 0.75)
    """

    n: int
    m: int

    SPARSE_24: ClassVar[SparsityPattern]
    AUTO: ClassVar[SparsityPattern]

    def __post_init__(self) -> None:
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (self.n, self.m))
        if not whole or not 0 < self.n < self.m:
            raise ValueError(f"pattern n:m is {self.n!r}:{self.m!r}; whole numbers with 0 < n < m are accepted, as 2:4")

    @property
    def kept(self) -> float:
        """The share of weights that stay, n/m."""
        return self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else "auto"

    def __repr__(self) -> str:
        return f"SparsityPattern({self.n}, {self.m})" if self.m else "SparsityPattern.AUTO"


def _auto() -> SparsityPattern:
    """The pattern that stands for a choice, 0:0, which the constructor refuses."""
    pattern = object.__new__(SparsityPattern)
    object.__setattr__(pattern, "n", 0)
    object.__setattr__(pattern, "m", 0)
    return pattern


SparsityPattern.SPARSE_24 = SparsityPattern(2, 4)
SparsityPattern.AUTO = _auto()


def as_pattern(pattern: SparsityPattern | str) -> SparsityPattern:
    """The pattern itself, or the one that a string such as "2:4" names.

    Raises ValueError for AUTO, which is no pattern of its own, and for what is none at all.
    """
    if isinstance(pattern, str):
        n, colon, m = pattern.partition(":")
        if not (colon and n.isdecimal() and m.isdecimal()):
            raise ValueError(f'pattern is {pattern!r}; a SparsityPattern or a string such as "2:4" is accepted')
        return SparsityPattern(int(n), int(m))
    if not isinstance(pattern, SparsityPattern):
        raise ValueError(f'pattern is {pattern!r}; a SparsityPattern or a string such as "2:4" is accepted')
    if pattern == SparsityPattern.AUTO:
        raise ValueError(
            "pattern is SparsityPattern.AUTO, which is a choice and no n:m; pass it to prune or StructuredSparse.convert, or "
            "SparsityPattern.SPARSE_24 here"
        )
    return pattern


def check_weight(weight: torch.Tensor, pattern: SparsityPattern | None = None, name: str = "weight") -> None:
    """Raise a sentence unless `weight` is a finite float tensor, not empty, whose last dimension is made of whole groups."""
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{name} is {type(weight).__name__}; a torch.Tensor is needed")
    if weight.dtype not in FLOATS:
        raise TypeError(f"{name} is {weight.dtype}; float16, bfloat16, float32 and float64 are accepted")
    if weight.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values; load it first")
    if not weight.dim() or not weight.numel():
        raise ValueError(f"{name} has shape {tuple(weight.shape)}; at least one row and one column are needed")
    if pattern is not None and weight.shape[-1] % pattern.m:
        raise ValueError(f"{name} has {weight.shape[-1]} input features, not divisible by {pattern.m} as {pattern} needs")
    if not bool(weight.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity; finite weights are needed")


def wide(device: torch.device) -> torch.dtype:
    """The widest float of a device: float64, or float32 on MPS, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def keep_largest(scores: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """True for the n largest of each m consecutive `scores` along the last dimension; of equal ones the lower index stays.

    scores: (..., k), k a multiple of m, without NaN, any real dtype and device; returns bool of the same shape. Costs m passes
    over the scores and no sort, whose treatment of ties would differ between devices.
    """
    groups = scores.unflatten(-1, (-1, pattern.m))
    place = torch.arange(pattern.m, device=scores.device)
    better = torch.zeros(groups.shape, dtype=torch.int16, device=scores.device)  # how many of the group come before this one
    for other in range(pattern.m):
        rival = groups[..., other, None]
        better += (rival > groups) | ((rival == groups) & (place > other))
    return (better < pattern.n).flatten(-2)


def magnitude_mask(weight: torch.Tensor, pattern: SparsityPattern | str = SparsityPattern.SPARSE_24) -> torch.Tensor:
    """The mask that keeps the n largest |w| of each m, True where a weight stays.

    weight: (..., in_features). Of equal |w| the lower index stays; a weight that is itself zero may stay.

    >>> magnitude_mask(torch.tensor([[1.0, -3.0, 2.0, 2.0]])).tolist()
    [[False, True, True, False]]
    """
    pattern = as_pattern(pattern)
    check_weight(weight, pattern)
    return keep_largest(weight.detach().abs(), pattern)


def wanda_mask(
    weight: torch.Tensor, norms: torch.Tensor, pattern: SparsityPattern | str = SparsityPattern.SPARSE_24
) -> torch.Tensor:
    """The mask that keeps the n largest |w| * norm of each m (Wanda, arXiv:2306.11695, equation 1).

    weight: (..., in_features); norms: (in_features,), the L2 norm of each input feature over the calibration's tokens, from
    `Calibration.norms`. The product is taken in float64 (float32 on MPS). Of equal scores the lower index stays.
    """
    pattern = as_pattern(pattern)
    check_weight(weight, pattern)
    check_norms(norms, weight.shape[-1])
    dtype = wide(weight.device)
    scores = weight.detach().to(dtype).abs() * norms.to(device=weight.device, dtype=dtype)
    return keep_largest(scores, pattern)


def check_norms(norms: torch.Tensor, features: int) -> None:
    """Raise a sentence unless `norms` has one finite number, not negative, for each input feature."""
    if not isinstance(norms, torch.Tensor) or tuple(norms.shape) != (features,):
        came = tuple(norms.shape) if isinstance(norms, torch.Tensor) else type(norms).__name__
        raise ValueError(f"norms is {came}; one number for each of the {features} input features is needed")
    if not bool((norms.isfinite() & (norms >= 0)).all()):
        raise ValueError("norms holds NaN, infinity or a negative number; L2 norms of input features are needed")
