"""The bits view: how many bits light of some power leaves of a product, and how many photons the wanted bits need.

The front end computes with the constants of `kpt_lab.frontier.photonic.noise` by its formulas, which stand in bits.js a second
time; tests hold the two equal. Everything shown is a closed form: nothing is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kpt_lab.frontier.photonic import noise

from .views import Drawn

if TYPE_CHECKING:
    import plotly.graph_objects as go

POWERS = tuple(float(f"{10 ** (k / 10):.3g}") for k in range(-70, 31))
CHANNELS = tuple(2**k for k in range(11))
RATES = tuple(float(f"{digit}e{power}") for power in range(6, 12) for digit in (1, 2, 5))[:-2]
RESISTANCES = (None, 1e6, 1e5, 1e4, 1e3, 50.0)
LOSSES = tuple(range(41))
BITS = tuple(range(2, 25))
TEMPERATURE = 300.0
START = {"power": 1e-3, "channels": 64, "rate": 1e9, "resistance": None, "loss": 0, "bits": 8}
_STOPS: dict[str, tuple[Any, ...]] = {
    "power": POWERS, "channels": CHANNELS, "rate": RATES, "resistance": RESISTANCES, "loss": LOSSES, "bits": BITS,
}  # fmt: skip


class Bits(Drawn):
    """The bits view; `state` holds the sliders: power, channels, rate, resistance (None: no detector noise), loss and bits."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__("bits", constants(state), dict(state))

    def __repr__(self) -> str:
        found = answer(self.state)
        return f"bits: {found['bits']:.2f} of {self.state['bits']} asked for, {self.state['power'] * 1e3:g} mW a wavelength, modelled"


def bits(
    power: float = 1e-3,
    *,
    channels: int = 64,
    rate: float = 1e9,
    resistance: float | None = None,
    loss: float = 0,
    bits: int = 8,
) -> Bits:
    """Effective bits of a photonic product over the light that it gets, and the photons that the wanted bits need.

    power: W on each wavelength. channels: wavelengths, and receivers. rate: vectors a second. resistance: ohm of a receiver's
    load at 300 K, whose Johnson noise is added to shot noise; None adds nothing. loss: dB between modulators and detectors.
    bits: asked for. Raises ValueError for what is not accepted.
    """
    state = {"power": power, "channels": channels, "rate": rate, "resistance": resistance, "loss": loss, "bits": bits}
    return Bits(_checked(state))


def answer(state: Mapping[str, Any]) -> dict[str, float]:
    """What a state gives: detected photons a multiply and their bits; photons and W a wavelength that the bits asked for need."""
    electrons, channels = _electrons(state), state["channels"]
    detected = _detected(state)
    needed = noise.photons_for(state["bits"], electrons, channels)
    return {
        "detected": detected,
        "bits": noise.received_bits(detected, electrons, channels),
        "needed": needed,
        "power": state["power"] * needed / detected,
        "light": state["power"] / state["rate"] / channels,  # J launched for one multiply
    }


def curve(**state: Any) -> go.Figure:
    """The view's chart as a figure: bits over optical power, the bits asked for as a line, and where the present power lies."""
    from kpt_lab import look

    full = _checked({**START, **state})
    found = answer(full)
    curves = {"shot noise alone": {**full, "resistance": None}}
    if full["resistance"] is not None:
        curves[f"with a load of {full['resistance']:g} ohm"] = full
    colors, style = look.colors(), look.styles(curves)
    said = f"{full['channels']} wavelengths at {full['rate']:g} vectors/s, {full['loss']:g} dB lost on the way"
    note = f"Closed form, nothing measured. {full['bits']} bits need {found['needed']:.2g} detected photons a multiply, {look.quantity(found['power'], 'W')} a wavelength."
    figure = look.frame("Effective bits over optical power", said, [""], [note], curves)
    for name, at in curves.items():
        drawn = {"mode": "lines", "line": {"color": style[name].color, "dash": style[name].dash}}
        values = [max(answer({**at, "power": power})["bits"], 0.0) for power in POWERS]
        figure.add_scatter(
            x=list(POWERS), y=[look.six(v) for v in values], name=name, hovertemplate="%{x:.3g} W: %{y:.2f} bits", **drawn
        )
    point = {"symbol": "circle", "size": 11, "color": colors.paper, "line": {"width": 2, "color": colors.ink}}
    figure.add_scatter(
        x=[full["power"]], y=[look.six(max(found["bits"], 0.0))], mode="markers", marker=point, name="the present power",
        hovertemplate="%{x:.3g} W: %{y:.2f} bits", showlegend=False,
    )  # fmt: skip
    line = {"color": colors.ink, "dash": "dot", "width": 1.2}
    figure.add_hline(y=full["bits"], line=line, annotation_text=f"{full['bits']} bits asked for")
    figure.update_xaxes(type="log", title="optical power on each wavelength, W", exponentformat="power", dtick=2)
    return figure.update_yaxes(title="effective bits", rangemode="tozero")


def constants(state: Mapping[str, Any] = START) -> dict[str, Any]:
    """What the front end computes from: constants of nature, and the stops of its sliders; JSON-ready."""
    return {
        "schema": 1,
        "title": "bits against optical power",
        "start": START,
        "photon": _scaled(noise.photon_energy(), 1e18),  # aJ
        "boltzmann": _scaled(noise.BOLTZMANN, 1e24),  # yJ/K
        "charge": _scaled(noise.CHARGE, 1e18),  # aC
        "temperature": TEMPERATURE,
        "sources": [noise.Shot.source, noise.Johnson.source],
        "stops": {name: _with(stops, state[name]) for name, stops in _STOPS.items()},
    }


def _scaled(value: float, factor: float) -> float:
    """In a unit in which few digits say it: tools that rewrite a notebook's JSON keep those, not the last bit of 1e-23."""
    return float(f"{value * factor:.14g}")


def _with(stops: tuple[Any, ...], value: Any) -> list[Any]:
    """The stops of a slider and one more; None stays in front, resistances fall."""
    numbers = sorted({x for x in (*stops, value) if x is not None}, reverse=stops is RESISTANCES)
    return [None, *numbers] if None in stops else numbers


def _electrons(state: Mapping[str, Any]) -> float:
    resistance = state["resistance"]
    return noise.Johnson(resistance, TEMPERATURE).electrons(1 / state["rate"]) if resistance is not None else 0.0


def _detected(state: Mapping[str, Any]) -> float:
    return noise.detected_photons(state["power"], state["rate"], state["channels"]) * 10 ** (-state["loss"] / 10)


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    """The state as the front end takes it; ValueError with what is accepted."""
    if unknown := sorted(state.keys() - START.keys()):
        raise ValueError(f"bits has no {unknown[0]!r}; accepted are {', '.join(START)}")
    for name in ("power", "rate", "resistance"):
        value = state[name]
        if name == "resistance" and value is None:
            continue
        if not _finite(value) or value <= 0:
            accepted = "None or a finite number above 0" if name == "resistance" else "a finite number above 0"
            raise ValueError(f"{name} is {value!r}; {accepted} is needed")
    if not _finite(state["loss"]) or state["loss"] < 0:
        raise ValueError(f"loss is {state['loss']!r}; a finite number of 0 or more, in dB, is needed")
    channels = state["channels"]
    if isinstance(channels, bool) or not isinstance(channels, int) or not 1 <= channels <= 1024:
        raise ValueError(f"channels is {channels!r}; a whole number from 1 to 1024 is needed")
    noise.checked_bits("bits", state["bits"])
    return state


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
