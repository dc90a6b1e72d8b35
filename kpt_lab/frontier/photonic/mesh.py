"""Meshes of Mach-Zehnder interferometers: matrices to phases and back, and light propagated through the columns.

One interferometer on modes (m, m + 1): a phase phi on the upper arm, a splitter, a phase theta on the upper arm, a splitter.

    T = B diag(exp(i theta), 1) B diag(exp(i phi), 1)        B = exp(i (pi/4 + e) X), e = 0 for a perfect splitter

"clements": W. R. Clements et al., Optica 3, 1460 (2016), a rectangle of N columns. "reck": M. Reck et al., Phys. Rev. Lett.
73, 58 (1994), a triangle of 2N - 3 columns. Both take N(N-1)/2 interferometers and N phases at the outputs.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

Scheme = Literal["clements", "reck"]
UNITARY_TOLERANCE = 1e-6  # largest entry of U*U - 1 that still counts as rounding; float32 gives about 1e-7 times sqrt(N)


class Column(NamedTuple):
    """Interferometers that light passes at the same time: `indices` of them, upper modes `first`, `first + 2`, ..."""

    indices: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Mesh:
    """Phases of a mesh of `modes` modes: theta and phi (..., N(N-1)/2) in the order of `placed`, output (..., N), radians.

    `splitters` (..., N(N-1)/2, 2) holds each interferometer's two splitting errors e in radians; None where all are perfect.
    Leading dimensions are a batch of meshes. Everything is differentiable in the phases and in the light.
    """

    scheme: Scheme
    theta: Tensor
    phi: Tensor
    output: Tensor
    splitters: Tensor | None = None

    def __post_init__(self) -> None:
        _checked_scheme(self.scheme)
        count = self.modes * (self.modes - 1) // 2
        wanted = {"theta": (count,), "phi": (count,)} | ({} if self.splitters is None else {"splitters": (count, 2)})
        for name, tail in wanted.items():
            shape = tuple(getattr(self, name).shape)
            if shape[-len(tail) :] != tail:
                raise ValueError(
                    f"{name} has shape {shape}; a mesh of {self.modes} modes needs (..., {', '.join(map(str, tail))})"
                )

    @property
    def modes(self) -> int:
        """N, the number of modes."""
        return self.output.shape[-1]

    @property
    def interferometers(self) -> int:
        """N(N-1)/2."""
        return self.theta.shape[-1]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The interferometers by column, in the order in which light meets them."""
        return columns(self.scheme, self.modes)

    def propagate(self, fields: Tensor) -> Tensor:
        """Light behind the mesh: U @ fields for complex amplitudes (..., N, K), column by column."""
        if fields.shape[-2] != self.modes:
            raise ValueError(
                f"fields has shape {tuple(fields.shape)}; a mesh of {self.modes} modes needs (..., {self.modes}, K)"
            )
        upper, lower = self.rows()
        for column in self.columns:
            index = torch.tensor(column.indices, device=upper.device)
            end = column.first + 2 * len(column.indices)
            pairs = fields[..., column.first : end, :].unflatten(-2, (-1, 2))
            top, bottom = pairs[..., 0, :], pairs[..., 1, :]
            a, b = upper[..., index, :].unbind(-1)
            c, d = lower[..., index, :].unbind(-1)
            mixed = torch.stack([a[..., None] * top + b[..., None] * bottom, c[..., None] * top + d[..., None] * bottom], -2)
            parts = [fields[..., : column.first, :], mixed.flatten(-3, -2), fields[..., end:, :]]
            batch = mixed.shape[:-3]
            fields = torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], -2)
        return torch.polar(torch.ones_like(self.output), self.output)[..., None] * fields

    def matrix(self) -> Tensor:
        """The transfer matrix (..., N, N): what the mesh makes of light of amplitude 1 at each port alone."""
        kind = torch.complex64 if self.theta.dtype == torch.float32 else torch.complex128
        return self.propagate(torch.eye(self.modes, dtype=kind, device=self.output.device))

    def rows(self) -> tuple[Tensor, Tensor]:
        """Upper and lower rows of every interferometer's matrix, each (..., N(N-1)/2, 2)."""
        inner, outer = (torch.polar(torch.ones_like(angle), angle) for angle in (self.theta, self.phi))
        e = torch.zeros(2, dtype=self.theta.dtype, device=self.theta.device) if self.splitters is None else self.splitters
        c1, c2 = torch.cos(math.pi / 4 + e).unbind(-1)
        s1, s2 = torch.sin(math.pi / 4 + e).unbind(-1)
        upper = (outer * (c2 * c1 * inner - s2 * s1), 1j * (c2 * s1 * inner + s2 * c1))
        lower = (outer * 1j * (s2 * c1 * inner + c2 * s1), c2 * c1 - s2 * s1 * inner)
        return torch.stack(upper, -1), torch.stack(lower, -1)


@dataclass(frozen=True)
class SVDMesh:
    """Any matrix (..., m, n) as two meshes with attenuators between: left (gains) right, times `scale` in electronics.

    gains (..., min(m, n)) are amplitudes from 0 to 1, scale (...) the largest singular value, so no light needs amplifying.
    """

    left: Mesh
    gains: Tensor
    right: Mesh
    scale: Tensor

    def propagate(self, fields: Tensor) -> Tensor:
        """Light behind left mesh, attenuators and right mesh: (..., n, K) -> (..., m, K), without `scale`."""
        kept = self.gains.shape[-1]
        middle = self.gains[..., None] * self.right.propagate(fields)[..., :kept, :]
        dark = self.left.modes - kept
        return self.left.propagate(torch.nn.functional.pad(middle, (0, 0, 0, dark)) if dark else middle)

    def transfer(self) -> Tensor:
        """What the light meets: (..., m, n) complex, the matrix over `scale`."""
        kind = torch.complex64 if self.gains.dtype == torch.float32 else torch.complex128
        return self.propagate(torch.eye(self.right.modes, dtype=kind, device=self.gains.device))

    def matrix(self) -> Tensor:
        """The matrix that was programmed, as the meshes realise it: (..., m, n), complex."""
        return self.scale[..., None, None] * self.transfer()


def decompose(unitary: Tensor, scheme: Scheme = "clements") -> Mesh:
    """Phases (float64) of the mesh whose matrix is `unitary` (..., N, N), real or complex; computed on the CPU in complex128.

    ValueError unless square, finite and unitary. No gradient flows into the phases; make them parameters to train a mesh.
    """
    _checked_scheme(scheme)
    if unitary.dim() < 2 or unitary.shape[-1] != unitary.shape[-2] or not unitary.shape[-1]:
        raise ValueError(
            f"unitary has shape {tuple(unitary.shape)}; a square matrix (..., N, N) is needed; others go through svd()"
        )
    exact = unitary.detach().to("cpu", torch.complex128)
    off = (exact.mH @ exact - torch.eye(exact.shape[-1])).abs().max().item() if exact.numel() else 0.0
    if not off <= UNITARY_TOLERANCE:
        raise ValueError(f"unitary is not unitary: U*U differs from 1 by {off:.2g}; any matrix goes through svd()")
    size = exact.shape[-1]
    flat = exact.reshape(-1, size, size).permute(1, 2, 0).contiguous().numpy().copy()  # the batch last: contiguous in each step
    theta, phi, diagonal = (_clements if scheme == "clements" else _reck)(flat)
    batch, device = unitary.shape[:-2], unitary.device
    theta, phi, diagonal = (np.mod(angle, 2 * np.pi) for angle in (theta, phi, np.angle(diagonal)))
    back = (torch.from_numpy(np.ascontiguousarray(x.T)).reshape(*batch, x.shape[0]).to(device) for x in (theta, phi, diagonal))
    return Mesh(scheme, *back)


def svd(matrix: Tensor, scheme: Scheme = "clements") -> SVDMesh:
    """Two meshes and attenuators for any finite matrix (..., m, n), real or complex; ValueError for anything else."""
    _checked_scheme(scheme)
    if matrix.dim() < 2 or 0 in matrix.shape[-2:]:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; (..., m, n) with m and n of 1 or more is needed")
    if not torch.isfinite(matrix).all():
        raise ValueError("matrix holds NaN or infinity; no phases realise that")
    exact = matrix.detach().to(torch.complex128 if matrix.is_complex() else torch.float64)
    left, singular, right = torch.linalg.svd(exact)
    scale = singular[..., 0].clamp(min=torch.finfo(torch.float64).tiny)  # a dark matrix has a scale too
    if left.shape == right.shape:  # both in one go: the steps cost the same for a batch
        pair = decompose(torch.stack([left, right]), scheme)
        meshes = part(pair, 0), part(pair, 1)
    else:
        meshes = decompose(left, scheme), decompose(right, scheme)
    return SVDMesh(meshes[0], singular / scale[..., None], meshes[1], scale)


def part(mesh: Mesh, index: int) -> Mesh:
    """One mesh, or one sub-batch, of a batch: its entry `index` along the first dimension."""
    splitters = None if mesh.splitters is None else mesh.splitters[index]
    return Mesh(mesh.scheme, mesh.theta[index], mesh.phi[index], mesh.output[index], splitters)


@functools.lru_cache(maxsize=64)
def placed(scheme: Scheme, modes: int) -> tuple[int, ...]:
    """The upper mode of every interferometer in the order in which light meets them, which is that of theta and phi."""
    if scheme == "reck":
        return tuple(c for r in range(modes - 1, 0, -1) for c in range(r))
    right = [i - 1 - j for i in range(1, modes, 2) for j in range(i)]
    left = [modes + j - i - 2 for i in range(2, modes, 2) for j in range(1, i + 1)]
    return (*right, *reversed(left))


@functools.lru_cache(maxsize=64)
def columns(scheme: Scheme, modes: int) -> tuple[Column, ...]:
    """Interferometers by column: each stands in the first column in which both of its modes are free."""
    free = [0] * modes
    found: dict[int, list[tuple[int, int]]] = {}
    for index, m in enumerate(placed(_checked_scheme(scheme), modes)):
        depth = max(free[m], free[m + 1])
        free[m] = free[m + 1] = depth + 1
        found.setdefault(depth, []).append((m, index))
    made = []
    for depth in sorted(found):
        members = sorted(found[depth])
        first = members[0][0]
        assert [m for m, _ in members] == list(range(first, first + 2 * len(members), 2)), "a column has gaps"
        made.append(Column(tuple(index for _, index in members), first))
    return tuple(made)


def fidelity(matrix: Tensor, ideal: Tensor) -> Tensor:
    """|tr(ideal* matrix) / N|^2 for (..., N, N): 1 where they agree up to a global phase."""
    overlap = (ideal.conj() * matrix).sum((-2, -1)) / ideal.shape[-1]
    return overlap.abs().square()


def random_unitary(modes: int, *batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Unitary matrices (*batch, N, N) in complex128, uniform over the group (QR of a normal matrix, phases put right)."""
    if not (isinstance(modes, int) and modes >= 1):
        raise ValueError(f"modes is {modes!r}; a whole number of 1 or more is needed")
    normal = torch.randn(*batch, modes, modes, dtype=torch.complex128, generator=generator)
    q, r = torch.linalg.qr(normal)
    return q * torch.sgn(r.diagonal(dim1=-2, dim2=-1))[..., None, :]


def _checked_scheme(scheme: str) -> Scheme:
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme is {scheme!r}; accepted are {', '.join(get_args(Scheme))}")
    return scheme  # type: ignore[return-value]


# Entries are (N, N, batch). A step nulls one entry by an interferometer on two neighbouring columns (from the right) or rows.


def _null_right(u: np.ndarray, row: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Null u[row, m] by the inverse of an interferometer on columns m, m + 1; its angles."""
    a, b = u[row, m], u[row, m + 1]
    phi = np.angle(a) - np.angle(b) + np.pi
    theta = 2 * np.arctan2(np.abs(b), np.abs(a))
    common, s, c, turn = -1j * np.exp(-0.5j * theta), np.sin(theta / 2), np.cos(theta / 2), np.exp(-1j * phi)
    left, right = u[:, m].copy(), u[:, m + 1].copy()
    u[:, m] = common * (turn * s * left + c * right)
    u[:, m + 1] = common * (turn * c * left - s * right)
    return theta, phi


def _null_left(u: np.ndarray, m: int, col: int) -> tuple[np.ndarray, np.ndarray]:
    """Null u[m + 1, col] by an interferometer on rows m, m + 1; its angles."""
    a, b = u[m, col], u[m + 1, col]
    phi = np.angle(b) - np.angle(a)
    theta = 2 * np.arctan2(np.abs(a), np.abs(b))
    common, s, c, turn = 1j * np.exp(0.5j * theta), np.sin(theta / 2), np.cos(theta / 2), np.exp(1j * phi)
    top, bottom = u[m].copy(), u[m + 1].copy()
    u[m] = common * (turn * s * top + c * bottom)
    u[m + 1] = common * (turn * c * top - s * bottom)
    return theta, phi


def _reck(u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = u.shape[0]
    found = [_null_right(u, row, col) for row in range(size - 1, 0, -1) for col in range(row)]
    return _stacked(found, u)


def _clements(u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = u.shape[0]
    right: list[tuple[np.ndarray, np.ndarray]] = []
    left: list[tuple[int, np.ndarray, np.ndarray]] = []
    for i in range(1, size):
        if i % 2:
            right += [_null_right(u, size - 1 - j, i - 1 - j) for j in range(i)]
        else:
            left += [(m, *_null_left(u, m, j - 1)) for j in range(1, i + 1) for m in (size + j - i - 2,)]
    d = _diagonal(u).copy()
    for m, theta, phi in reversed(left):  # inverse(T) D = D' T': from before the diagonal to behind it
        a, b = d[m].copy(), d[m + 1].copy()
        d[m] = -np.exp(-1j * (theta + phi)) * b
        d[m + 1] = -np.exp(-1j * theta) * b
        right.append((theta, np.angle(a) - np.angle(b)))
    theta_phi = _stacked(right, u)
    return theta_phi[0], theta_phi[1], d


def _diagonal(u: np.ndarray) -> np.ndarray:
    return u[np.arange(len(u)), np.arange(len(u))]


def _stacked(found: list[tuple[np.ndarray, np.ndarray]], u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    empty = np.zeros((0, u.shape[2]))
    theta, phi = (np.stack([pair[k] for pair in found]) if found else empty for k in (0, 1))
    return theta, phi, _diagonal(u)
