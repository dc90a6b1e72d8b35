"""Lets nbval compare Plotly figures by their numbers instead of their bytes, and run notebooks without Triton's interpreter.

Plotly stores arrays as base64 of their bytes ("bdata"), so that a difference in the last bit of one value, as between
two CPUs, fails a comparison of strings. Here such arrays are decoded and compared with a tolerance relative to the
array's largest value; all else in a figure must still be equal.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nbval.plugin import IPyNbCell, IPyNbFile

PLOTLY = "application/vnd.plotly.v1+json"
# A few hundred roundoffs: what another order of summation does to float64 and float32, invisible in a plot.
TOLERANCE = {"f8": 1e-12, "f4": 1e-5}


def decode(array: Mapping[str, Any]) -> np.ndarray:
    """The numbers of one of Plotly's {"dtype", "bdata", "shape"} objects, flat."""
    return np.frombuffer(base64.b64decode(array["bdata"]), dtype=np.dtype(array["dtype"].removesuffix("c")))


def same_figure(ours: Any, theirs: Any) -> bool:
    """Whether two parts of Plotly figures are equal up to rounding in their numbers."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        if "bdata" in ours and "bdata" in theirs:
            return same_array(ours, theirs)
        return ours.keys() == theirs.keys() and all(same_figure(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours == theirs
    if isinstance(ours, Sequence) and isinstance(theirs, Sequence):
        return len(ours) == len(theirs) and all(map(same_figure, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=TOLERANCE["f8"]) or (math.isnan(ours) and math.isnan(theirs))
    return type(ours) is type(theirs) and ours == theirs


def same_array(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two encoded arrays have one dtype and shape and values within the dtype's tolerance; NaN equals NaN."""
    if ours["dtype"] != theirs["dtype"] or ours.get("shape") != theirs.get("shape"):
        return False
    a, b = decode(ours), decode(theirs)
    if a.shape != b.shape:
        return False
    if ours["dtype"] not in TOLERANCE:
        return bool(np.array_equal(a, b))
    finite = np.abs(b[np.isfinite(b)])
    slack = TOLERANCE[ours["dtype"]] * float(finite.max(initial=0.0))
    return bool(np.allclose(a, b, rtol=0.0, atol=slack, equal_nan=True))


def figures(outputs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The Plotly figures among a cell's outputs, in order."""
    return [output["data"][PLOTLY] for output in outputs if PLOTLY in output.get("data", {})]


def with_figures(outputs: Sequence[Any], replacements: Sequence[Any]) -> list[Any]:
    """The outputs, with their Plotly figures replaced in order; the given ones stay as they are."""
    rest = iter(replacements)
    return [
        type(output)({**output, "data": {**output["data"], PLOTLY: next(rest)}}) if PLOTLY in output.get("data", {}) else output
        for output in outputs
    ]


def compare_outputs(cell: IPyNbCell, test: Any, ref: Any, skip_compare: Any = None) -> bool:
    """nbval's own comparison, after figures that are equal up to rounding have been made equal."""
    ours, stored = figures(test), figures(ref)
    if len(ours) == len(stored):
        test = with_figures(test, [b if same_figure(a, b) else a for a, b in zip(ours, stored, strict=True)])
    return _compare_outputs(cell, test, ref, skip_compare)


_compare_outputs = IPyNbCell.compare_outputs
IPyNbCell.compare_outputs = compare_outputs


def setup(notebook: IPyNbFile) -> None:
    """Start the kernel as a reader has it: without Triton's interpreter, which tests/conftest.py chooses for its own process."""
    chosen = os.environ.pop("TRITON_INTERPRET", None)
    try:
        _setup(notebook)
    finally:
        if chosen is not None:
            os.environ["TRITON_INTERPRET"] = chosen


_setup = IPyNbFile.setup
IPyNbFile.setup = setup
