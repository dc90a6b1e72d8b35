"""The energy view: how much less a spiking layer would need than the standard one, as sliders move what that depends on.

The front end computes with the constants of `kpt_lab.frontier.spiking.energy` by the formulas of `kpt_lab.frontier.spiking.layer`,
which stand in energy.js a second time; tests hold the two equal. Everything shown is modelled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kpt_lab.frontier.spiking import energy as model
from kpt_lab.frontier.spiking.layer import Boundary, Layer
from kpt_lab.frontier.spiking.neurons import CODES

from .views import Drawn

if TYPE_CHECKING:
    import plotly.graph_objects as go

ARITHMETIC = {one.name: one for one in (model.FLOAT32, model.INT8)}
SPIKES = (*(float(f"{m}e{power}") for power in range(-3, 2) for m in (1, 1.5, 2, 3, 5, 7)), 100.0)
TIMESTEPS = tuple(2**k for k in range(9))
WIDTHS = tuple(2**k for k in range(5, 14))
REUSES = tuple(2**k for k in range(9))
START = {
    "spikes": 0.5, "timesteps": 32, "width": 512, "code": "count", "standard": "float32", "spiking": "float32", "memory": "8KB",
    "reuse": 1,
}  # fmt: skip
_STOPS = {"spikes": SPIKES, "timesteps": TIMESTEPS, "width": WIDTHS, "reuse": REUSES}
_CHOICES = {"code": CODES, "standard": tuple(ARITHMETIC), "spiking": tuple(ARITHMETIC), "memory": tuple(model.ACCESS_64_BITS)}
_MARK = {"label": str, "arithmetic": str, "spikes": float, "compute": float, "with_memory": float}


class Energies(Drawn):
    """The energy view; `state` holds the sliders: spikes a synapse, steps, width, code, numbers on each side, memory and reuse."""

    def __init__(self, state: Mapping[str, Any], marks: Iterable[Mapping[str, Any]] = ()) -> None:
        super().__init__("energy", constants(state, marks), dict(state))

    def __repr__(self) -> str:
        return f"energy: {self.state['spikes']:g} spikes a synapse in {self.state['timesteps']} steps, modelled"


def energy(
    spikes: float = 0.5,
    *,
    timesteps: int = 32,
    width: int = 512,
    code: str = "count",
    standard: str = "float32",
    spiking: str = "float32",
    memory: str = "8KB",
    reuse: float = 1,
    marks: Iterable[Mapping[str, Any]] = (),
) -> Energies:
    """Modelled energy of a spiking layer beside the standard one, by arithmetic alone and with the movement of data.

    spikes: a synapse and inference. timesteps: of a window. width: lines into the layer, and its neurons. code: "count" or
    "first_spike". standard, spiking: the numbers that each side computes in. memory: the size of the SRAM that weights and
    membranes lie in. reuse: operations that one access serves. marks: networks whose counts came from runs, each with label,
    arithmetic, spikes, and its gains compute and with_memory (in 8 KB, without reuse). Raises ValueError for what is not accepted.
    """
    state = {
        "spikes": spikes, "timesteps": timesteps, "width": width, "code": code, "standard": standard, "spiking": spiking,
        "memory": memory, "reuse": reuse,
    }  # fmt: skip
    return Energies(_checked(state), [_mark(mark) for mark in marks])


def gains(spikes: float = 0.5, *, marks: Iterable[Mapping[str, Any]] = (), **state: Any) -> go.Figure:
    """The view's chart as a figure: the gain over spikes a synapse by both models, with the lines of 1x and 100x."""
    from kpt_lab import look
    from kpt_lab.frontier.spiking.figures import lines

    full = _checked({**START, "spikes": spikes, **state})
    layer, boundaries = layer_of(full), boundaries_of(full)
    style = look.styles(boundaries)
    said = f"{layer.inputs} lines to {layer.outputs} neurons, {layer.timesteps} steps, code {layer.code}; standard in {full['standard']}, spiking in {full['spiking']}"
    note = f"Dotted: 1x and 100x. Modelled, from energies at 45 nm; data in {full['memory']}, each access serving {full['reuse']:g} operations."
    figure = look.frame("How many times less energy a spiking layer needs", said, [""], [note], boundaries)
    reached = [s for s in SPIKES if s <= layer.most]
    for name, boundary in boundaries.items():
        drawn = {"mode": "lines", "line": {"color": style[name].color, "dash": style[name].dash}}
        values = [look.six(boundary.gain(layer, s)) for s in reached]
        figure.add_scatter(x=reached, y=values, name=name, hovertemplate="%{x:.3g} spikes: %{y:.3g}x", **drawn)
    for name, key in zip(boundaries, ("compute", "with_memory"), strict=True):
        shown = [mark for mark in map(_mark, marks) if _fits(mark, full)]
        point = {"symbol": style[name].symbol, "size": 8, "color": style[name].color}
        if shown:
            hover = {"text": [mark["label"] for mark in shown], "hovertemplate": "%{text}: %{y:.3g}x"}
            figure.add_scatter(
                x=[look.six(mark["spikes"]) for mark in shown], y=[look.six(mark[key]) for mark in shown], mode="markers",
                name=f"counted in runs, {name}", marker=point, **hover,
            )  # fmt: skip
    lines(figure)
    figure.update_xaxes(type="log", title="spikes a synapse and inference", exponentformat="power", dtick=1)
    return figure.update_yaxes(type="log", title="times less energy, modelled", exponentformat="power", dtick=1)


def layer_of(state: Mapping[str, Any]) -> Layer:
    """The layer that a state speaks of."""
    return Layer(state["width"], state["width"], state["timesteps"], state["code"])


def boundaries_of(state: Mapping[str, Any]) -> dict[str, Boundary]:
    """The two models that a state is drawn by."""
    standard, spiking = ARITHMETIC[state["standard"]], ARITHMETIC[state["spiking"]]
    moved = Boundary(state["memory"], standard, spiking, state["reuse"])
    return {"arithmetic alone": Boundary(None, standard, spiking), "with data movement": moved}


def constants(state: Mapping[str, Any] = START, marks: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What the front end computes from: joules, bits and their source, the stops of its sliders, and marks of runs; JSON-ready."""
    return {
        "schema": 1,
        "title": "spiking and standard energy, modelled",
        "start": START,
        "arithmetic": {a.name: {"add": a.add, "multiply": a.multiply, "bits": a.bits} for a in ARITHMETIC.values()},
        "access": dict(model.ACCESS_64_BITS),
        "state_bits": model.STATE_BITS,
        "source": model.HOROWITZ,
        "stops": {name: sorted({*stops, state[name]}) for name, stops in _STOPS.items()},
        "codes": list(CODES),
        "marks": list(marks),
    }


def _fits(mark: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether a run's gains were modelled as the state's curves are."""
    return (state["standard"], state["spiking"], state["memory"], state["reuse"]) == (mark["arithmetic"],) * 2 + ("8KB", 1)


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    """The state as the front end takes it; ValueError with what is accepted."""
    if unknown := sorted(state.keys() - START.keys()):
        raise ValueError(f"energy has no {unknown[0]!r}; accepted are {', '.join(START)}")
    for name, accepted in _CHOICES.items():
        if state[name] not in accepted:
            raise ValueError(f"{name} is {state[name]!r}; accepted are {', '.join(map(repr, accepted))}")
    for name in ("spikes", "reuse"):
        value = state[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}; a finite number above 0 is needed")
    if state["reuse"] < 1:
        raise ValueError(f"reuse is {state['reuse']!r}; at least 1 operation is served by an access")
    for name in ("timesteps", "width"):
        value = state[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; a whole number from 1 up is needed")
    return state


def _mark(mark: Mapping[str, Any]) -> dict[str, Any]:
    """A mark with what the front end reads of it, at six digits; ValueError where something is missing."""
    if missing := [name for name in _MARK if name not in mark]:
        raise ValueError(f"a mark lacks {missing[0]!r}; each needs {', '.join(_MARK)}")
    return {name: float(f"{mark[name]:.6g}") if kind is float else str(mark[name]) for name, kind in _MARK.items()}
