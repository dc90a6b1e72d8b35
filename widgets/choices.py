"""What a live sweep can be asked for: the workloads, techniques and first values on offer, and the controls that choose."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import ipywidgets
import torch

from kpt_lab import asked, baselines, place
from kpt_lab.core import Technique, Trials, Workload
from kpt_lab.measure import check_device
from kpt_lab.sweep import points

DTYPES = ("float32", "bfloat16", "float16", "float64")
WRAP = {"flex_flow": "row wrap", "grid_gap": "0.3em 1.5em"}

EXAMPLE = "256, 1024"
SIMPLE = (bool, int, float, str, type(None))  # values that a text field can hold


def offered(given: Any) -> tuple[list[Workload], Sequence[Technique], Sequence[Any]]:
    """The Workloads to choose from, their module's techniques, and the lines of its record_grid."""
    module = given if isinstance(given, ModuleType) else None
    if isinstance(given, str):
        module = asked.module_of(given)
    elif isinstance(given, Workload):
        module = sys.modules.get(place.locate(given).partition(":")[0])
    elif module is None:
        raise ValueError(
            f"module_or_workload is {type(given).__name__}; accepted are a module such as kpt_lab.kernels.softmax, its name, or "
            "a Workload (kpt.workload(fn, x) makes one from your own function or module)"
        )
    found = [given] if isinstance(given, Workload) else list(asked.workloads_in(module).values()) if module else []
    if module and not found:
        raise ValueError(f"module {module.__name__} has no Workload; one that has is kpt_lab.kernels.softmax")
    return found, tuple(getattr(module, "techniques", ())) or baselines.ladder, tuple(getattr(module, "record_grid", ()))


def start_values(workload: Workload, lines: Sequence[Any], beside: Trials, grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What each parameter's field holds at first: the grid's, bound or default values, or the smallest of those recorded.

    Of the last parameter three, so that there is a curve. Empty where nothing is known. ValueError on an unusable grid.
    """
    found: dict[str, list[Any]] = {}
    names = workload.parameters()
    for name, default in names.items():
        value = workload.params.get(name, default)
        known = {t.params[name] for t in beside if t.workload == workload.name and name in t.params}
        known = known or {v for line in lines if line.workload.name == workload.name for v in line.grid.get(name, ())}
        smallest = sorted(known, key=lambda v: (type(v).__name__, v))[: 3 if name == list(names)[-1] else 1]
        found[name] = smallest if value is inspect.Parameter.empty else [value]
    points(workload, {**{name: values or [None] for name, values in found.items()}, **grid})
    given = {name: [v] if isinstance(v, SIMPLE) else list(v) for name, v in grid.items()}
    return {**found, **given}


def read_values(name: str, text: str, like: Sequence[Any]) -> list[Any]:
    """The values in a field, separated by commas or spaces, of the kind of those in `like`; ValueError as one sentence."""
    parts = [part for part in re.split(r"[,;\s]+", text.strip()) if part]
    example = ", ".join(map(str, like)) or EXAMPLE
    if not parts:
        raise ValueError(f"{name} has no value; give one or more, separated by commas, such as {example}")
    words = bool(like) and all(isinstance(v, str) for v in like)
    found = parts if words else [_read(part) for part in parts]
    whole = bool(like) and all(type(v) is int for v in like)
    for value in found:
        if whole and type(value) is not int:
            raise ValueError(f"{name} holds {str(value)!r}; whole numbers are accepted, separated by commas, such as {example}")
        if found.count(value) > 1:
            raise ValueError(f"{name} holds {value} more than once; give each value once")
    return found


def _read(text: str) -> Any:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    if isinstance(found, float) and found.is_integer() and "e" in text.lower():
        return int(found)  # 1e3 is a whole number to whoever types it
    return found if isinstance(found, SIMPLE) else text


class Asked(NamedTuple):
    """What the controls say: the arguments of a sweep."""

    workload: Workload
    techniques: list[Technique]
    grid: dict[str, list[Any]]
    options: dict[str, Any]


class Choices(ipywidgets.VBox):
    """The controls that say what to measure; `asked()` reads them.

    step, techniques (by label), fields (by parameter), device, dtype and budget are the controls.
    """

    def __init__(
        self,
        workloads: Sequence[Workload],
        techniques: Sequence[Technique],
        starts: Mapping[str, Mapping[str, list[Any]]],
        options: dict[str, Any],
    ) -> None:
        self._workloads, self._starts = {w.name: w for w in workloads}, starts
        self._techniques, self._options = {t.label: t for t in techniques}, options
        wide = {"style": {"description_width": "initial"}}
        auto = {"indent": False, "layout": {"width": "auto"}}
        self.step = ipywidgets.Dropdown(options=list(self._workloads), description="operation", **wide)
        self.techniques = {label: ipywidgets.Checkbox(True, description=label, **auto) for label in self._techniques}
        self.fields: dict[str, Any] = {}
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = dict.fromkeys(["cpu", *(f"cuda:{i}" if count > 1 else "cuda" for i in range(count)), options["device"]])
        self.device = ipywidgets.Dropdown(options=list(devices), value=options["device"], description="device", **wide)
        self.dtype = ipywidgets.Dropdown(options=[options["dtype"]], description="data type", **wide)
        self.budget = ipywidgets.Text(
            f"{options['budget']:g}", description="seconds for each cell", layout={"width": "14em"}, **wide
        )
        self._grid = ipywidgets.Box([], layout=WRAP)
        super().__init__(
            [
                *([self.step] if len(self._workloads) > 1 else []),
                ipywidgets.HTML("<b>Techniques</b>"),
                ipywidgets.Box(list(self.techniques.values()), layout=WRAP),
                ipywidgets.HTML("<b>Grid</b>: for each parameter one value, or several with commas between"),
                self._grid,
                ipywidgets.Box([self.device, self.dtype, self.budget], layout=WRAP),
            ]
        )
        self._show_workload()
        self.step.observe(self._show_workload, "value")

    @property
    def workload(self) -> Workload:
        """The Workload that is chosen."""
        return self._workloads[self.step.value]

    def _show_workload(self, _: Any = None) -> None:
        """The chosen workload's fields and dtypes; values that are no numbers or words have no field and stay as given."""
        starts = self._starts[self.step.value]
        self._fixed = {name: values for name, values in starts.items() if not all(isinstance(v, SIMPLE) for v in values)}
        look = {"placeholder": EXAMPLE, "style": {"description_width": "initial"}}
        self.fields = {
            name: ipywidgets.Text(", ".join(map(str, values)), description=name, **look)
            for name, values in starts.items()
            if name not in self._fixed
        }
        self._grid.children = list(self.fields.values())
        now = self.dtype.value
        accepted = self.workload.dtypes or tuple(dict.fromkeys((*DTYPES, self._options["dtype"])))
        self.dtype.options = accepted
        self.dtype.value = now if now in accepted else accepted[0]

    def asked(self) -> Asked:
        """What the controls say; ValueError in one sentence where that can't be measured."""
        techniques = [t for label, t in self._techniques.items() if self.techniques[label].value]
        if not techniques:
            raise ValueError("no technique is chosen; tick at least one")
        starts = self._starts[self.step.value]
        grid = {name: read_values(name, field.value, starts[name]) for name, field in self.fields.items()}
        points(self.workload, grid | self._fixed)
        try:
            budget = float(self.budget.value)
        except ValueError:
            budget = 0.0
        if not 0 < budget < float("inf"):
            raise ValueError(f"seconds for each cell is {self.budget.value!r}; accepted is a number above 0, such as 2")
        check_device(self.device.value)
        options = {**self._options, "device": self.device.value, "dtype": self.dtype.value, "budget": budget}
        return Asked(self.workload, techniques, grid | self._fixed, options)

    def enable(self, on: bool) -> None:
        """Let the reader choose, or not while a sweep runs."""
        for control in (self.step, *self.techniques.values(), *self.fields.values(), self.device, self.dtype, self.budget):
            control.disabled = not on
