"""A path into a benchmark's committed JSON -> the number that stands there, or a count or range of several.

benchmarks/recorded/redteam.cpu.json#cheats[escape=] count
benchmarks/recorded/afterwards.cpu.json#cheats[technique=knows the blend]/speedup range as x
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from kpt_lab.claims.query import Shown, count, quantity

_REDUCE: dict[str, Callable[[list[Any]], Any]] = {
    "count": len,
    "min": lambda values: min(_numbers(values)),
    "max": lambda values: max(_numbers(values)),
    "median": lambda values: median(_numbers(values)),
    "range": lambda values: (min(_numbers(values)), max(_numbers(values))),
}
_RECORDED = re.compile(
    r"(?P<file>[^#]+\.json)#(?P<path>.*?)(?:\s+(?P<reduce>count|min|max|median|range))?(?:\s+as\s+(?P<unit>\S+))?"
)
_STEP = re.compile(r"(?P<key>[^\[\]]*)(?P<filters>(?:\[[^\[\]=]+=[^\[\]]*\])*)")


def recorded(content: str, root: Path) -> Shown:
    """A number of a benchmark's committed JSON: FILE#KEY/KEY[NAME=VALUE] [count|min|max|median|range] [as x|%|UNIT].

    A KEY may be a position in a list; a list's entries are chosen by [NAME=VALUE]; "~1" stands for "/" in a key. ValueError says
    what is missing.
    """
    form = _RECORDED.fullmatch(content.strip())
    if not form:
        raise ValueError(
            f"content is {content!r}; accepted is benchmarks/recorded/FILE.json#KEY/KEY[NAME=VALUE] [count|range|..] [as x]"
        )
    path = root / form["file"]
    folder = (root / "benchmarks" / "recorded").resolve()
    if not path.resolve().is_relative_to(folder) or not path.is_file():
        raise ValueError(
            f"{form['file']!r} is no file in benchmarks/recorded; there are {', '.join(p.name for p in sorted(folder.glob('*.json')))}"
        )
    data = json.loads(path.read_text(encoding="utf-8"))
    values, is_list = [data], False
    for step in form["path"].split("/"):
        values, is_list = _down(values, is_list, step, content)
    if form["reduce"]:
        if not is_list and len(values) == 1 and isinstance(values[0], list):
            values = values[0]
        found = _REDUCE[form["reduce"]](values)
    elif len(values) == 1:
        found = values[0]
    else:
        raise ValueError(
            f"{content!r} names {count(len(values), 'value')}; choose one by [NAME=VALUE], or add count, median or range"
        )
    text = " to ".join(dict.fromkeys(_as(value, form["unit"]) for value in (found if isinstance(found, tuple) else (found,))))
    return Shown(text, f"{form['file']}#{form['path']}; {_provenance(data)}")


def _down(values: list[Any], is_list: bool, step: str, content: str) -> tuple[list[Any], bool]:
    """One step of a path: by key or position into each value, then into lists by their filters."""
    form = _STEP.fullmatch(step)
    if not form:
        raise ValueError(f"{content!r} has the step {step!r}; accepted is KEY or KEY[NAME=VALUE]")
    key = form["key"].replace("~1", "/").replace("~0", "~")
    if key:
        values = [_entry(value, key, content) for value in values]
    for name, wanted in re.findall(r"\[([^\[\]=]+)=([^\[\]]*)\]", form["filters"]):
        flat = [entry for value in values for entry in value] if not is_list else values
        if not all(isinstance(entry, dict) and name in entry for entry in flat):
            raise ValueError(f"{content!r} chooses by {name!r}, which the entries there don't have")
        values, is_list = [entry for entry in flat if str(entry[name]) == wanted], True
    return values, is_list


def _entry(value: Any, key: str, content: str) -> Any:
    if isinstance(value, dict) and key in value:
        return value[key]
    if isinstance(value, list) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    known = f"there are {', '.join(map(str, value))}" if isinstance(value, dict) else f"it is a {type(value).__name__}"
    raise ValueError(f"{content!r} has no {key!r}: {known}")


def _numbers(values: list[Any]) -> list[float]:
    found = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if not found or len(found) < len(values):
        raise ValueError(f"{len(values) - len(found)} of {len(values)} values there are no numbers")
    return found


def _as(value: Any, unit: str | None) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        if unit or not isinstance(value, str):
            raise ValueError(f"the value there is no number but {value!r:.60}")
        return value
    if unit == "x":
        return f"{value:.2f}x"
    if unit == "%":
        return f"{100 * value:.3g}%"
    return quantity(value, unit) if unit else f"{value:.5g}"


def _provenance(data: Any) -> str:
    if not isinstance(data, dict):
        return "no conditions stand in the file"
    device = data.get("device_name") or data.get("device", "")
    parts = [f"{device}" if device else "", f"torch {data['torch']}" if "torch" in data else "", str(data.get("at", ""))[:10]]
    parts += [f"revision {data['git']}"] if data.get("git") else []
    return ", ".join(part for part in parts if part) or "no conditions stand in the file"
