"""The raster view: which neuron spikes when, and how the answer settles in the last window.

Python runs the networks once, for a few inputs, and keeps their trains; the front end only shows those up to a step. Every spike and
every membrane shown is the simulation's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from kpt_lab.frontier.spiking import Run, SpikingTransformer
from kpt_lab.frontier.spiking.structure import inputs as read_by
from kpt_lab.frontier.spiking.structure import place

from .views import Drawn

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWS = ("every window", "the window under way")
MOST_INPUTS = 12
NEURONS = 24
"""Neurons of a population that are kept for drawing, unless told."""


class Raster(Drawn):
    """The raster view; `state` holds the network, the input's number, the step (spikes before it are drawn) and what is shown."""

    def __init__(self, data: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        super().__init__("raster", data, dict(state))

    def __repr__(self) -> str:
        return f"raster: input {self.state['input']} in {self.state['network']}, step {self.state['step']}, simulated"


def raster(
    networks: SpikingTransformer | Mapping[str, SpikingTransformer],
    inputs: Tensor,
    *,
    labels: Sequence[Any] | Tensor | None = None,
    classes: Sequence[str] | None = None,
    pictures: Tensor | None = None,
    neurons: int = NEURONS,
    network: str | None = None,
    input: int = 0,
    step: int | None = None,
    show: str = SHOWS[0],
) -> Raster:
    """The spikes of some neurons of each population over time, and the membranes of the output neurons so far.

    networks: one, or several by name, whose output is (batch, classes) of a last linear layer; each is run on `inputs` (batch, ...),
    at most 12. labels: the true classes. classes: their names. pictures: (batch, height, width) of greys from 0 to 1, shown beside.
    neurons: drawn of each population, evenly spaced. network, input, step (None: the last) and show choose what is drawn at first.
    Raises ValueError for what is not accepted.
    """
    named = {networks.strategy: networks} if isinstance(networks, SpikingTransformer) else dict(networks)
    _check(named, inputs, labels, pictures, neurons)
    data: dict[str, Any] = {
        "schema": 1,
        "title": "spikes over time, simulated",
        "shows": list(SHOWS),
        "networks": [_network(name, one, inputs, neurons) for name, one in named.items()],
        "inputs": [_input(k, labels, pictures) for k in range(len(inputs))],
    }
    count = data["networks"][0]["classes"]
    data["classes"] = [str(name) for name in (range(count) if classes is None else classes)]
    if len(data["classes"]) != count or any(one["classes"] != count for one in data["networks"]):
        raise ValueError(f"classes holds {len(data['classes'])} names; the networks' outputs have {count} classes")
    state = {"network": next(iter(named)) if network is None else network, "input": input, "step": step, "show": show}
    return Raster(data, _state(data, state))


def raster_figure(view: Raster) -> go.Figure:
    """What the view shows at first as a figure: every window's spikes, and below them the output membranes in the last window."""
    from kpt_lab import look

    one = next(found for found in view.data["networks"] if found["name"] == view.state["network"])
    shown, colors = one["runs"][view.state["input"]], look.colors()
    steps, end = one["timesteps"], one["windows"] * one["timesteps"]
    said = f"{one['name']}, input {view.state['input']}, {one['windows']} windows of {steps} steps, simulated"
    note = f"Above: one row for each drawn neuron, {one['drawn']} at most of a population; below: the membranes of the output neurons."
    figure = look.frame("Populations take turns, and the answer settles last", said, ["", ""], [note], row_height=240)
    signs: dict[int, tuple[list[int], list[int]]] = {1: ([], []), -1: ([], [])}
    row = 0
    for population, events in zip(one["populations"], shown["events"], strict=True):
        for event in map(int, events.split()):
            place = abs(event) - 1
            xs, ys = signs[1 if event > 0 else -1]
            xs.append(population["window"] * steps + place % steps + 1)
            ys.append(row + place // steps)
        row += len(population["neurons"]) + 3
    for sign, symbol, color in ((1, "circle", colors.palette[0]), (-1, "line-ew", colors.palette[1])):
        drawn = {"symbol": symbol, "size": 3, "color": color, "line": {"width": 1, "color": color}}
        xs, ys = signs[sign]
        figure.add_scatter(
            x=xs, y=ys, mode="markers", name=f"spikes of {sign:+d}", marker=drawn, row=1, col=1, hoverinfo="skip"
        )
    last = range(end - steps + 1, end + 1)
    for k, name in enumerate(view.data["classes"]):
        answer = k == shown["answer"]
        line = {"color": colors.palette[2] if answer else colors.eager, "width": 3 if answer else 1}
        values = [float(now.split()[k]) for now in shown["readout"]]
        figure.add_scatter(
            x=list(last), y=values, mode="lines", name=f"class {name}", line=line, showlegend=answer, row=2, col=1
        )
    figure.update_yaxes(showticklabels=False, autorange="reversed", title="neurons", row=1, col=1)
    figure.update_yaxes(title="membrane", row=2, col=1)
    return figure.update_xaxes(title="step")


def settled(readout: Sequence[Sequence[float]]) -> int:
    """The first step, counted from 1, from which on the largest of the membranes (T, classes) is the last step's."""
    winners = [max(range(len(now)), key=now.__getitem__) for now in readout]
    return next((t + 2 for t in reversed(range(len(winners))) if winners[t] != winners[-1]), 1)


def _network(name: str, network: SpikingTransformer, inputs: Tensor, neurons: int) -> dict[str, Any]:
    """One network's windows, populations and runs, as the front end reads them."""
    network.spike_forward(network.encode(inputs), keep_trains=True)
    run = network.last
    assert run is not None
    if run.readout is None or run.readout.dim() != 3:
        raise ValueError(f"{name} has no output (batch, classes) of a last linear layer, of which the view shows the membranes")
    kept = {
        population: torch.linspace(0, train[0, 0].numel() - 1, min(neurons, train[0, 0].numel())).round().long()
        for population, train in run.trains.items()
    }
    names = {node.name: _called(node) for node in network.network.graph.nodes if node.name in kept}
    return {
        "name": name,
        "strategy": network.strategy,
        "target": network.target,
        "timesteps": run.steps,
        "windows": run.windows,
        "classes": run.readout.shape[-1],
        "drawn": neurons,
        "populations": [
            {
                "name": names[population],
                "window": run.sent[population],
                "size": run.trains[population][0, 0].numel(),
                "neurons": chosen.tolist(),
            }
            for population, chosen in kept.items()
        ],
        "runs": [_run(run, kept, k) for k in range(len(inputs))],
    }


def _called(node: fx.Node) -> str:
    """What a population is called: the module or step whose values it sends, also where they were only moved since."""
    source = node
    while read_by(source) and place(source).step in ("fire", "wire"):
        source = read_by(source)[0]
    return str(source.target) if source.op == "call_module" else source.name


def _run(run: Run, kept: Mapping[str, Tensor], k: int) -> dict[str, Any]:
    """One input's spikes and membranes, as lines of numbers.

    events: for each population its spikes as +(1 + row * T + step), negative where the spike is. sent: spikes of the whole
    population at each step. readout: membranes of the output neurons after each step of the last window.
    """
    assert run.readout is not None
    trains = [run.trains[name][:, k].flatten(1) for name in kept]
    events = []
    for train, chosen in zip(trains, kept.values(), strict=True):
        drawn = train[:, chosen].T.flatten()
        places = drawn.nonzero().flatten()
        events.append(_line(((places + 1) * drawn[places]).tolist()))
    return {
        "events": events,
        "sent": [_line(train.count_nonzero(1).tolist()) for train in trains],
        "readout": [_line(now) for now in run.readout[:, k].tolist()],
        "answer": int(run.readout[-1, k].argmax()),
        "settled": settled(run.readout[:, k].tolist()),
    }


def _line(numbers: Sequence[float]) -> str:
    """Numbers in one line of text: a notebook stores a list with a line for each entry."""
    return " ".join(f"{number:.6g}" for number in numbers)


def _input(k: int, labels: Sequence[Any] | Tensor | None, pictures: Tensor | None) -> dict[str, Any]:
    label = None if labels is None else labels[k].item() if isinstance(labels, Tensor) else labels[k]
    greys = [] if pictures is None else (255 * pictures[k]).round().long().clamp(0, 255).tolist()
    return {"label": None if label is None else str(label), "picture": [_line(row) for row in greys]}


def _check(named: Mapping[str, Any], inputs: Any, labels: Any, pictures: Any, neurons: Any) -> None:
    """ValueError, with what is accepted, for what raster can't draw."""
    if not named or any(not isinstance(one, SpikingTransformer) for one in named.values()):
        raise ValueError("networks must be a SpikingTransformer, or several by name")
    if not isinstance(inputs, Tensor) or inputs.dim() < 2 or not 1 <= len(inputs) <= MOST_INPUTS:
        what = f"a tensor of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs is {what}; a tensor (batch, ...) of 1 to {MOST_INPUTS} inputs is needed")
    for name, given in (("labels", labels), ("pictures", pictures)):
        if given is not None and len(given) != len(inputs):
            raise ValueError(f"{name} holds {len(given)} for {len(inputs)} inputs; one each is needed")
    if pictures is not None and pictures.dim() != 3:
        raise ValueError(f"pictures has shape {tuple(pictures.shape)}; (batch, height, width) is needed")
    if not isinstance(neurons, int) or isinstance(neurons, bool) or not 1 <= neurons <= 64:
        raise ValueError(f"neurons is {neurons!r}; a whole number from 1 to 64 is needed")


def _state(data: Mapping[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """The state as the front end takes it; ValueError with what is accepted."""
    names = [one["name"] for one in data["networks"]]
    if state["network"] not in names:
        raise ValueError(f"network is {state['network']!r}; accepted are {', '.join(map(repr, names))}")
    if state["show"] not in SHOWS:
        raise ValueError(f"show is {state['show']!r}; accepted are {', '.join(map(repr, SHOWS))}")
    one = data["networks"][names.index(state["network"])]
    for name, most in (("input", len(data["inputs"]) - 1), ("step", one["windows"] * one["timesteps"])):
        value = most if state[name] is None and name == "step" else state[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise ValueError(f"{name} is {value!r}; a whole number from 0 to {most} is needed")
        state[name] = value
    return state
