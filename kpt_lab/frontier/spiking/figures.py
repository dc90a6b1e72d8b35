"""Figures of a recorded conversion, as benchmarks/spiking_digits.py writes it: what it loses and sends, and what it would gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kpt_lab import look

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BOUNDARIES = {"energy.compute": "arithmetic alone", "energy.with_memory": "with data movement"}
_NUMBERS = ("float32", "int8")


def lost_and_sent(record: Mapping[str, Any]) -> go.Figure:
    """Points of accuracy lost and spikes a neuron by T: the mean over seeds, and bars from the best seed to the worst."""
    names, seeds = _strategies(record), {run["seed"] for run in record["runs"]}
    said = f"digits; {len(seeds)} seeds, each with its own split, training and conversion"
    note = "Simulated; the bars run from the lowest seed to the highest."
    figure = look.frame(
        "What a window of T steps loses, and what it sends", said, ["points lost", "spikes a neuron"], [note], names, columns=2
    )
    for name, style in look.styles(names).items():
        for column, key in enumerate(("lost_points", "spikes_per_neuron"), 1):
            found: dict[int, list[float]] = {}
            for run in record["runs"]:
                if run["strategy"] == name:
                    found.setdefault(run["timesteps"], []).append(run[key])
            middle = [sum(values) / len(values) for values in found.values()]
            ends = [[look.six(abs(end(v) - m)) for v, m in zip(found.values(), middle, strict=True)] for end in (max, min)]
            figure.add_scatter(
                x=list(found), y=[look.six(m) for m in middle], name=name, mode="lines+markers", showlegend=column == 1, row=1,
                col=column, error_y={"array": ends[0], "arrayminus": ends[1]}, **_drawn(style),
            )  # fmt: skip
    return figure.update_xaxes(**_steps(record))


def gains(record: Mapping[str, Any]) -> go.Figure:
    """Standard over spiking energy by T, both in the same numbers, by both boundaries, with the lines of 1x and 100x."""
    from kpt_lab.frontier.spiking.energy import HOROWITZ

    names = _strategies(record)
    kinds = {f"{numbers}, {word}": f"gain.{metric}.{numbers}" for numbers in _NUMBERS for metric, word in _BOUNDARIES.items()}
    note = f"Modelled from counts in simulated runs, means of {record['means'][0]['seeds']} seeds. {HOROWITZ}."
    title = "How many times less energy the spiking transformer needs"
    said = "digits; weights of linear layers rounded to 8 bits"
    figure = look.frame(title, said, names, [note], kinds, columns=2, shared_y=True)
    for column, name in enumerate(names, 1):
        some = [mean for mean in record["means"] if mean["strategy"] == name]
        for kind, style in look.styles(kinds).items():
            figure.add_scatter(
                x=[mean["timesteps"] for mean in some], y=[look.six(mean[kinds[kind]]) for mean in some], name=kind,
                mode="lines+markers", showlegend=column == 1, row=1, col=column, **_drawn(style),
            )  # fmt: skip
    lines(figure)
    figure.update_xaxes(**_steps(record))
    return figure.update_yaxes(type="log", exponentformat="power", dtick=1)


def lines(figure: go.Figure, gains: tuple[float, ...] = (1, 100)) -> None:
    """Draw these gains across every panel."""
    for gain in gains:
        figure.add_hline(y=gain, line={"color": look.colors().ink, "dash": "dot", "width": 1.2})


def _strategies(record: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(mean["strategy"] for mean in record["means"]))


def _drawn(style: look.Style) -> dict[str, Any]:
    return {"line": {"color": style.color, "dash": style.dash}, "marker": {"symbol": style.symbol, "size": 8}}


def _steps(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "log", "title": "T", "tickvals": sorted({mean["timesteps"] for mean in record["means"]})}
