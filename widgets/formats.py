"""The formats view: the bits of a number, and where a real number lands on the lines of two formats, with and without a scale.

Every value, boundary, tie and scale comes from `kpt_lab.precision`, computed once for all 256 codes of each format; the front
end compares a number with the boundaries and looks its code up. It rounds nothing itself.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kpt_lab.precision.formats import Format
from kpt_lab.precision.formats import formats as known
from kpt_lab.precision.scaling import quantise, scale_of

from .views import Drawn

if TYPE_CHECKING:
    import plotly.graph_objects as go

AXES = ("logarithmic", "linear", "near the number")
OVERFLOWS = ("saturate", "nan", "inf")
KINDS = ("zero", "subnormal", "normal", "integer", "infinity", "nan")
AMAXES = tuple(float(f"{digit}e{power}") for power in range(-6, 7) for digit in (1, 2, 5))
MAGNITUDES = tuple(float(f"{10 ** (k / 10):.3g}") for k in range(-60, 61))
START = {"value": 0.35, "format": "e4m3fn", "beside": "e5m2", "amax": None, "overflow": "saturate", "axis": "logarithmic"}


class Formats(Drawn):
    """The formats view; `state` holds the number, both formats, the scale's amax (None: no scale), overflow and axis."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        amax = state["amax"]
        super().__init__("formats", tables() if amax in (None, *AMAXES) else tables(amax), dict(state))

    def __repr__(self) -> str:
        return f"formats: {self.state['value']} in {self.state['format']} and {self.state['beside']}"


def formats(
    value: float | str = 0.35,
    *,
    format: str = "e4m3fn",
    beside: str = "e5m2",
    amax: float | None = None,
    overflow: str = "saturate",
    axis: str = "logarithmic",
) -> Formats:
    """The bits and the number line of an 8-bit format, with another one beside it.

    value: a number, also "nan" or "inf". amax: the largest magnitude of the tensor that the scale is made for; None scales
    nothing. overflow: "saturate", "nan" or "inf", as `Format.round` takes it. Raises ValueError for what is not accepted.
    """
    return Formats(
        _checked({"value": value, "format": format, "beside": beside, "amax": amax, "overflow": overflow, "axis": axis})
    )


def number_line(
    value: float = 0.35, *, format: str = "e4m3fn", beside: str = "e5m2", amax: float | None = None, overflow: str = "saturate"
) -> go.Figure:
    """The view's logarithmic number line as a figure: the positive numbers of two formats, and where `value` lands in each."""

    from kpt_lab import look

    state = _checked({"value": value, "format": format, "beside": beside, "amax": amax, "overflow": overflow})
    if not state["value"] or isinstance(state["value"], str):
        raise ValueError(f"value is {value!r}; accepted for a logarithmic line are finite numbers other than 0")
    names = dict.fromkeys((state["format"], state["beside"]))
    colors, style = look.colors(), look.styles(names)
    said = "not scaled" if amax is None else f"scaled for an amax of {amax:g}"
    note = "Each mark is a number of the format (magnitudes), the dotted line the number, and the large mark what it becomes."
    figure = look.frame(f"{value:g} in {' and '.join(names)}", said, [""], [note], row_height=190)
    given = abs(float(state["value"]))
    line = {"mode": "lines", "line": {"color": colors.ink, "dash": "dot", "width": 1.5}, "name": "the number"}
    figure.add_scatter(x=[given, given], y=[0.5, 0.5 - len(names)], hovertemplate="%{x:.6g}", **line)
    for row, name in enumerate(names):
        fmt, color = _format(name), style[name].color
        scale = 1.0 if amax is None else _scale(fmt, amax)[0]
        marks = sorted({abs(v) * scale for v in _values(fmt) if math.isfinite(v) and v})
        comb = {"symbol": "line-ns", "size": 15, "line": {"color": color, "width": 1}}
        drawn = {"mode": "markers", "hovertemplate": "%{x:.6g}"}
        figure.add_scatter(x=marks, y=[-row] * len(marks), name=name, marker=comb, **drawn)
        lands = abs(_lands(fmt, float(state["value"]), amax, overflow))
        if lands and math.isfinite(lands):
            point = {"symbol": style[name].symbol, "size": 11, "color": color, "line": {"width": 1.5, "color": colors.ink}}
            figure.add_scatter(x=[lands], y=[-row], name=f"{name}: what it becomes", marker=point, **drawn)
    figure.update_xaxes(type="log", title="magnitude", exponentformat="power", dtick=1)
    ticks = {"tickvals": [-row for row in range(len(names))], "ticktext": list(names), "range": [-len(names) + 0.4, 0.6]}
    return figure.update_yaxes(tickmode="array", showgrid=False, **ticks).update_layout(showlegend=False)


@functools.lru_cache(maxsize=8)
def tables(*amaxes: float) -> dict[str, Any]:
    """What the front end looks up: all formats, the stops of its sliders, and the scales of each format for each amax.

    amaxes: further ones than AMAXES. JSON-ready: NaN and infinities are None, their codes are in `kinds`.
    """
    stops = [*sorted(-m for m in MAGNITUDES), 0.0, *MAGNITUDES]
    every = sorted({*AMAXES, *amaxes})
    return {
        "schema": 1,
        "title": "8-bit formats",
        "kinds": list(KINDS),
        "axes": list(AXES),
        "start": START,
        "stops": stops,
        "amaxes": every,
        "formats": [_table(fmt, every) for fmt in known],
    }


def _table(fmt: Format, amaxes: list[float]) -> dict[str, Any]:
    """One format: values and kinds by code; codes in order of value; the boundary below each, and one above them all.

    A number beyond edges[i] belongs to order[i] or later; one that is equal to it belongs there where up[i] is 1. Below the
    first edge and beyond the last a number overflows.
    """
    values = _values(fmt)
    order = sorted((c for c in range(256) if math.isfinite(values[c])), key=lambda c: (values[c], c < 128))
    numbers = [values[c] for c in order]
    inner = [(a + b) / 2 for a, b in itertools.pairwise(numbers)]
    half = (numbers[-1] - numbers[-2]) / 2  # as far beyond the largest as from the one before it: both lie in one binade
    edges = [numbers[0] - half, *inner, numbers[-1] + half]
    codes = fmt.encode(_exact(edges)).tolist()
    outside = [_overflows(fmt, edges[0]), _overflows(fmt, edges[-1])]
    up = [int(not outside[0]), *(int(c == above) for c, above in zip(codes[1:-1], order[1:], strict=True)), int(outside[1])]
    beyond = {how: fmt.encode(_exact([-math.inf, math.inf]), overflow=how).tolist() for how in fmt.overflows}
    scales = [_scale(fmt, amax) for amax in amaxes]
    return {
        "name": fmt.name,
        "exponent_bits": fmt.exponent_bits,
        "mantissa_bits": fmt.mantissa_bits,
        "bias": fmt.bias,
        "max": fmt.max,
        "smallest": fmt.smallest_subnormal,
        "values": [v if math.isfinite(v) else None for v in values],
        "kinds": [KINDS.index(fmt.fields(code).kind) for code in range(256)],
        "order": order,
        "edges": edges,
        "up": up,
        "overflow": beyond,
        "nan": fmt.encode(_exact([math.nan])).item(),
        "minus_zero": fmt.encode(_exact([-0.0])).item(),
        "scales": [scale for scale, _ in scales],
        "inverses": [inverse for _, inverse in scales],
    }


def _exact(numbers: list[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _values(fmt: Format) -> list[float]:
    return fmt.values(torch.float64).tolist()


def _overflows(fmt: Format, number: float) -> bool:
    return bool(fmt.counts(_exact([number])).as_dict()["overflowed"])


def _scale(fmt: Format, amax: float) -> tuple[float, float]:
    """The scale for a tensor of that amax, and its inverse, in float64 as `quantise` forms them."""
    scale = scale_of(_exact([amax]), fmt)
    return scale.item(), (1.0 / scale).item()


def _lands(fmt: Format, value: float, amax: float | None, overflow: Any) -> float:
    """What a number becomes: cast with the scale for `amax`, and multiplied back."""
    if overflow not in fmt.overflows:
        overflow = "saturate"
    if amax is None:
        return fmt.round(_exact([value]), overflow=overflow).item()
    return (
        quantise(_exact([value]), fmt, scale=scale_of(_exact([amax]), fmt), overflow=overflow).dequantise(torch.float64).item()
    )


def _format(name: str) -> Format:
    return next(fmt for fmt in known if fmt.name == name)


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    """The state as the front end takes it; ValueError with what is accepted."""
    names = tuple(fmt.name for fmt in known)
    for name in ("format", "beside"):
        if state[name] not in names:
            raise ValueError(f"{name} is {state[name]!r}; accepted are {', '.join(map(repr, names))}")
    fmt, amax = _format(state["format"]), state["amax"]
    if state["overflow"] not in fmt.overflows:
        accepted = ", ".join(map(repr, fmt.overflows))
        raise ValueError(f"overflow is {state['overflow']!r}; accepted for {fmt.name} are {accepted}")
    if state.get("axis", AXES[0]) not in AXES:
        raise ValueError(f"axis is {state['axis']!r}; accepted are {', '.join(map(repr, AXES))}")
    if amax is not None and not (isinstance(amax, int | float) and 1e-12 <= amax < math.inf):
        raise ValueError(f"amax is {amax!r}; accepted are None and finite numbers from 1e-12 up")
    try:
        value = float(state["value"])
    except (TypeError, ValueError):
        raise ValueError(f"value is {state['value']!r}; accepted are numbers, also 'nan' and 'inf'") from None
    return {**state, "value": value if math.isfinite(value) else str(value), "amax": None if amax is None else float(amax)}
