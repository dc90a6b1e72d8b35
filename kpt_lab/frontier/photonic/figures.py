"""A mesh as a figure: its waveguides and interferometers, and the light in each piece of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kpt_lab.frontier.photonic.mesh import Mesh

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDEST = 7.0  # px of a waveguide that carries all the light
LARGEST = 16  # modes that can be told apart in a figure


def powers(mesh: Mesh, port: int = 0) -> Tensor:
    """Power of light of 1 at `port` in every mode before each column and behind the last: (columns + 1, N)."""
    if mesh.theta.dim() != 1:
        raise ValueError(f"mesh is a batch of shape {tuple(mesh.theta.shape[:-1])}; one mesh is needed")
    if not (isinstance(port, int) and 0 <= port < mesh.modes):
        raise ValueError(f"port is {port!r}; a whole number from 0 to {mesh.modes - 1} is needed")
    kind = torch.complex64 if mesh.theta.dtype == torch.float32 else torch.complex128
    light = torch.eye(mesh.modes, dtype=kind)[:, port]
    found = [light]
    upper, lower = mesh.rows()
    for column in mesh.columns:
        light = light.clone()
        for place, index in enumerate(column.indices):
            m = column.first + 2 * place
            pair = light[m : m + 2].clone()
            light[m], light[m + 1] = (upper[index] * pair).sum(), (lower[index] * pair).sum()
        found.append(light)
    return torch.stack(found).abs().square()


def drawn(mesh: Mesh, port: int = 0, title: str = "") -> go.Figure:
    """The mesh with light of 1 entering at `port`: wider lines carry more of it, a square is an interferometer."""
    from kpt_lab import look

    if mesh.modes > LARGEST:
        raise ValueError(f"mesh has {mesh.modes} modes; at most {LARGEST} can be drawn")
    light = powers(mesh, port)
    colors, style = look.colors(), look.styles(["light"])["light"]
    said = f"{mesh.scheme}, {mesh.modes} modes, {mesh.interferometers} interferometers in {len(mesh.columns)} columns; light enters at mode {port}"
    note = "Simulated. Wider lines carry more light; a square is an interferometer, darker where it passes more of the light straight on."
    figure = look.frame(title or "Light in a mesh", said, [""], [note], row_height=60 + 34 * mesh.modes)
    for mode, xs, power in _pieces(mesh, light):
        width = WIDEST * math.sqrt(power)
        line = {"color": style.color if power > 1e-4 else colors.same, "width": max(width, 1.0)}
        figure.add_scatter(
            x=xs, y=[mode] * len(xs), mode="lines", line=line, showlegend=False, hovertemplate=f"mode {mode}: {power:.4f}"
        )
    places = [
        (at + 0.5, column.first + 2 * k + 0.5, index)
        for at, column in enumerate(mesh.columns)
        for k, index in enumerate(column.indices)
    ]
    straight = [math.sin(float(mesh.theta[index]) / 2) ** 2 for *_, index in places]
    words = [
        f"theta {float(mesh.theta[i]):.3f}, phi {float(mesh.phi[i]):.3f}: {part:.1%} straight on"
        for (*_, i), part in zip(places, straight, strict=True)
    ]
    figure.add_scatter(
        x=[x for x, *_ in places], y=[y for _, y, _ in places], mode="markers", text=words, hovertemplate="%{text}", showlegend=False,
        marker={
            "symbol": "square", "size": 17, "color": [look.six(part) for part in straight], "cmin": 0, "cmax": 1,
            "colorscale": [[0, colors.paper], [1, style.color]], "line": {"color": colors.ink, "width": 1.2},
        },
    )  # fmt: skip
    figure.update_xaxes(title="column", tickvals=list(range(len(mesh.columns) + 1)), showgrid=False)
    return figure.update_yaxes(title="mode", autorange="reversed", tickvals=list(range(mesh.modes)), showgrid=False)


def _pieces(mesh: Mesh, light: Tensor) -> Iterator[tuple[int, list[float], float]]:
    """(mode, from and to, power) of every straight piece of waveguide: half of each column carries what it had before."""
    last = len(mesh.columns)
    for mode in range(mesh.modes):
        for at in range(last + 1):
            yield mode, [max(at - 0.5, -0.3), min(at + 0.5, last + 0.3)], float(light[at, mode])
