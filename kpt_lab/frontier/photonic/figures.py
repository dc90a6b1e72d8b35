"""A mesh as a figure: its waveguides and interferometers, and the light in each piece of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
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
    said = f"{mesh.scheme}, {mesh.modes} modes, {mesh.interferometers} interferometers in {len(mesh.columns)} columns; light enters at mode {port}"
    note = "Simulated. Wider lines carry more light; a square is an interferometer, more strongly coloured where it passes more of the light straight on."
    figure = look.frame(title or "Light in a mesh", said, [""], [note], row_height=60 + 34 * mesh.modes)
    looks = _looks(mesh, port)
    for k, (mode, xs) in enumerate(_pieces(mesh)):
        line = {"color": look.colors().palette[0], "width": looks["line.width"][k]}
        figure.add_scatter(
            x=xs,
            y=[mode] * len(xs),
            mode="lines",
            line=line,
            opacity=looks["opacity"][k],
            showlegend=False,
            hovertemplate=looks["hovertemplate"][k],
        )
    places = [(at + 0.5, c.first + 2 * k + 0.5) for at, c in enumerate(mesh.columns) for k in range(len(c.indices))]
    figure.add_scatter(
        x=[x for x, _ in places], y=[y for _, y in places], mode="markers", text=_words(mesh), hovertemplate="%{text}", showlegend=False,
        marker={
            "symbol": "square", "size": 17, "color": _straight(mesh), "cmin": 0, "cmax": 1,
            "colorscale": [[0, look.colors().paper], [1, look.colors().palette[0]]], "line": {"color": look.colors().ink, "width": 1.2},
        },
    )  # fmt: skip
    figure.update_xaxes(title="column", tickvals=list(range(len(mesh.columns) + 1)), showgrid=False)
    return figure.update_yaxes(title="mode", autorange="reversed", tickvals=list(range(mesh.modes)), showgrid=False)


def turned(mesh: Mesh, index: int, port: int = 0, steps: int = 24) -> go.Figure:
    """The same with a slider that turns theta of interferometer `index` once around, in so many steps; its square has a thick edge."""
    if not (isinstance(index, int) and 0 <= index < mesh.interferometers):
        raise ValueError(f"index is {index!r}; a whole number from 0 to {mesh.interferometers - 1} is needed")
    figure = drawn(mesh, port, f"One phase turned, of interferometer {index}")
    angles = sorted([float(mesh.theta[index]) % (2 * math.pi), *(2 * math.pi * k / steps for k in range(steps))])
    stops = []
    for angle in angles:
        theta = mesh.theta.clone()
        theta[index] = angle
        now = replace(mesh, theta=theta)
        looks = _looks(now, port)
        count = len(looks["line.width"])
        change = {name: [*values, None] for name, values in looks.items() if name != "hovertemplate"}
        change["marker.color"] = [None] * count + [_straight(now)]
        change["hovertemplate"] = [*looks["hovertemplate"], "%{text}"]
        change["text"] = [None] * count + [_words(now)]
        stops.append({"method": "restyle", "args": [change], "label": f"{angle:.2f}"})
    present = angles.index(float(mesh.theta[index]) % (2 * math.pi))
    place = {"active": present, "pad": {"t": 100}, "currentvalue": {"prefix": "theta, radians: "}, "steps": stops}
    bottom = figure.layout.margin.b + 110
    figure.data[-1].marker.line.width = [4.0 if each == index else 1.2 for each in _in_columns(mesh)]
    figure.update_layout(sliders=[place], height=figure.layout.height + 110, margin={"b": bottom})
    return figure


def _looks(mesh: Mesh, port: int) -> dict[str, list]:
    """How each piece of waveguide is drawn."""
    light = powers(mesh, port)
    found = [float(light[at, mode]) for mode in range(mesh.modes) for at in range(len(mesh.columns) + 1)]
    return {
        "opacity": [1.0 if power > 1e-4 else 0.2 for power in found],  # no colour: a page in the dark has another one
        "line.width": [round(max(WIDEST * math.sqrt(power), 1.0), 2) for power in found],
        "hovertemplate": [f"power {power:.4f}" for power in found],
    }


def _in_columns(mesh: Mesh) -> list[int]:
    return [index for column in mesh.columns for index in column.indices]


def _straight(mesh: Mesh) -> list[float]:
    """The share of the light that each interferometer passes straight on, in the order of the columns."""
    return [round(math.sin(float(mesh.theta[index]) / 2) ** 2, 4) for index in _in_columns(mesh)]


def _words(mesh: Mesh) -> list[str]:
    return [
        f"{index}: theta {float(mesh.theta[index]):.3f}, phi {float(mesh.phi[index]):.3f}, {part:.1%} straight on"
        for index, part in zip(_in_columns(mesh), _straight(mesh), strict=True)
    ]


def _pieces(mesh: Mesh) -> Iterator[tuple[int, list[float]]]:
    """(mode, from and to) of every straight piece of waveguide: half of each column carries what it had before."""
    last = len(mesh.columns)
    for mode in range(mesh.modes):
        for at in range(last + 1):
            yield mode, [max(at - 0.5, -0.3), min(at + 0.5, last + 0.3)]
