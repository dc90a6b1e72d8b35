"""A Trial as one JSON object, and back: short, exact, and refused where a value would not come back as itself."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import torch

from kpt_lab.core import NOTHING, FrozenDict, Metric, Trial, dtype_name

SCHEMA = 1
"""Version of the line format: readers ignore unknown keys and refuse a newer version."""

_ALWAYS = ("workload", "technique", "params", "device", "dtype", "seed", "at", "status", "cell", "process", "metrics")
_WHERE_SET = ("knobs", "contract", "baseline", "simulates", "target", "advice", "samples", "chosen", "source", "env")
_FIELDS = (*_ALWAYS, *_WHERE_SET)
_METRIC_FIELDS = ("value", "unit", "provenance", "low", "high", "source")
_DEFAULTS = {f.name: NOTHING if f.default is MISSING else f.default for f in fields(Trial)}
_FLOAT = "$float"  # JSON has no NaN and no infinity


def to_dict(trial: Trial) -> dict[str, Any]:
    """A Trial as JSON types, whole, with its environment inline; TypeError names a value that a record can't hold."""
    found: dict[str, Any] = {"kind": "trial", "schema": SCHEMA}
    for name in _FIELDS:
        value = getattr(trial, name)
        if name == "metrics":
            value = {key: _metric(metric) for key, metric in value.items()}
        if name in _ALWAYS or value != _DEFAULTS[name]:
            found[name] = plain(value, name)
    return found


def from_dict(data: Mapping[str, Any], environments: Mapping[str, Mapping[str, Any]] = NOTHING) -> Trial:
    """The Trial of a line; keys that are not known are ignored. `env` may be a hash that `environments` explains."""
    given = {name: data[name] for name in _FIELDS if name in data}
    for name in ("params", "knobs", "chosen", "source"):
        if given.get(name):
            given[name] = frozen(given[name])
    given["metrics"] = FrozenDict({key: _read_metric(metric) for key, metric in given["metrics"].items()})
    if "samples" in given:
        given["samples"] = FrozenDict({key: tuple(values) for key, values in given["samples"].items()})
    env = given.pop("env", NOTHING)
    env = environments[env] if isinstance(env, str) else frozen(env)
    during = data.get("during")
    return Trial(**given, env=FrozenDict({**env, **frozen(during)}) if during else env)


def _metric(metric: Metric) -> dict[str, Any]:
    return {name: value for name in _METRIC_FIELDS if (value := getattr(metric, name)) is not None and value != ""}


def _read_metric(data: Mapping[str, Any]) -> Metric:
    value, low, high = data["value"], data.get("low"), data.get("high")
    if value.__class__ is not float or low.__class__ is dict or high.__class__ is dict:
        value, low, high = frozen(value), frozen(low), frozen(high)
        if not isinstance(value, int | float):
            raise TypeError(f"a metric's value is {value!r}, not a number")
    return Metric(value, data["unit"], data["provenance"], low, high, sys.intern(data.get("source", "")))


def plain(value: Any, where: str) -> Any:
    """`value` in JSON's types: tuples become lists, dtypes, functions and classes their names, NaN and infinities an object."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str) or key == _FLOAT]:
            raise TypeError(f"{where} has the key {bad[0]!r}; keys of a record are strings other than {_FLOAT!r}")
        return {key: plain(inner, f"{where}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, where) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(inner, where) for inner in value), key=repr)
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, torch.device):
        return str(value)
    if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        return plain(value.item(), where)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(
        f"{where} is a {type(value).__name__}; a record holds numbers, strings, booleans, None, and lists and mappings of them"
    )


def frozen(value: Any) -> Any:
    """What JSON gave, immutable: lists become tuples, objects FrozenDicts."""
    if value.__class__ is dict:
        if _FLOAT in value:
            return float(value[_FLOAT])
        # most values are scalars, and not calling for them halves the time of reading a file
        return FrozenDict({k: frozen(v) if v.__class__ is dict or v.__class__ is list else v for k, v in value.items()})
    return tuple(map(frozen, value)) if value.__class__ is list else value
