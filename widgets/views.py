"""Views of Trials for notebooks: each is one widget whose front end draws columns, and which pages show without a kernel.

Every function takes Trials, or a path (or several) as `kpt_lab.load` does, and what is chosen at first as keywords.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from kpt_lab.columns import columns
from kpt_lab.core import Trial, Trials
from kpt_lab.records import load

from . import front

MIME = "application/vnd.kpt-lab.view+json"
"""Beside the live widget, each output carries what a page needs to draw the same view: the records' names, or the columns."""

KEYS: Mapping[str, tuple[str, ...]] = {
    "explorer": ("x", "y", "over", "techniques", "front"),
    "breakeven": ("x", "y", "technique", "over"),
    "roofline": ("techniques", "roofs"),
    "reveal": ("technique", "over"),
}
"""What each view's state may choose, besides what cells have: workload, dtype, target, environment, cache and parameters."""

Source = Iterable[Trial] | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class Drawn(anywidget.AnyWidget):
    """What every view is: the front end, what it draws, what the reader has chosen, and an output from which a page draws the same."""

    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)
    view = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, view: str, data: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        super().__init__(_esm=front.module(), _css=front.stylesheet(), view=view, data=data, state=state)

    def _carried(self) -> dict[str, Any]:
        """What a page needs besides the view's name and state: a title, and its data or their records."""
        return {"title": self.data["title"], "data": self.data}

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, MIME: {"view": self.view, "state": dict(self.state), **self._carried()}}, metadata


class View(Drawn):
    """A view of Trials: `show(trials)` draws other ones, `state` is what the reader has chosen, `trials` is what is shown."""

    def __init__(
        self,
        view: str,
        trials: Source,
        state: Mapping[str, Any] | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        overs: Sequence[str] | None = None,
        title: str = "",
    ) -> None:
        if view not in KEYS:
            raise ValueError(f"view is {view!r}; accepted are {', '.join(map(repr, KEYS))}")
        self.trials, self.records = _read(trials)
        self.where = dict(where or {})
        self.trials = self.trials.where(**self.where)
        self._overs, self._title, self._kept = overs, title, dict[Any, Any]()
        data = self._columns()
        super().__init__(view, data, _checked(view, dict(state or {}), data))

    def show(self, trials: Source) -> None:
        """Draw these Trials instead; cells whose Trials were shown before are not computed again."""
        found, self.records = _read(trials)
        self.trials = found.where(**self.where)
        self.data = self._columns()

    def _columns(self) -> dict[str, Any]:
        *names, last = sorted({t.workload for t in self.trials}) or [""]
        title = self._title or " and ".join(filter(None, (", ".join(names), last)))
        return columns(self.trials, overs=self._overs, title=title, kept=self._kept)

    def __repr__(self) -> str:
        count = len(self.trials)
        return f"{self.view} of {count} Trial{'s' * (count != 1)}: {self.data['title'] or 'none yet'}"

    def _carried(self) -> dict[str, Any]:
        if not self.records:
            return super()._carried()
        content = {"records": list(self.records), "where": {name: _plain(v) for name, v in self.where.items()}}
        overs = {"overs": list(self._overs)} if self._overs is not None else {}
        return {"title": self.data["title"], **content, **overs}


def explorer(trials: Source, *, where: Mapping[str, Any] | None = None, title: str = "", **state: Any) -> View:
    """Speedups or another metric over a parameter, with intervals, bound and noise floor; a point opens its conditions.

    trials: Trials, or the path of records as `kpt_lab.load` takes it; where: conditions as `Trials.where` takes them.
    Keywords choose what is shown at first: x, y (a metric, or "speedup"), over, techniques, workload, dtype, or a parameter.
    front: devices that are drawn in full where several are shown (target="all"); the others are faded.
    """
    return View("explorer", trials, state, where=where, title=title)


def breakeven(trials: Source, *, where: Mapping[str, Any] | None = None, title: str = "", **state: Any) -> View:
    """Speedup of one technique over two parameters as colour, UNCLEAR hatched, with the contour of 1x.

    Keywords choose what is shown at first: x, y, technique, over, workload, dtype, or a parameter that is on no axis.
    """
    return View("breakeven", trials, state, where=where, title=title)


def roofline(trials: Source, *, where: Mapping[str, Any] | None = None, title: str = "", **state: Any) -> View:
    """What each technique attained, in FLOP/s against FLOP per byte, under the roofs of the known targets.

    Keywords choose what is shown at first: techniques, roofs (names of targets), workload, dtype, or a parameter.
    """
    return View("roofline", trials, state, where=where, title=title)


def reveal(trials: Source, *, where: Mapping[str, Any] | None = None, title: str = "", **state: Any) -> View:
    """Say what speedup you expect, then see the measured one, what the bound allows, and your own.

    Keywords choose what is shown at first: technique, over, workload, dtype, or a parameter.
    """
    return View("reveal", trials, state, where=where, title=title)


def _read(given: Source) -> tuple[Trials, tuple[str, ...]]:
    """The Trials, and the paths that they were read from, if any."""
    if isinstance(given, str | os.PathLike):
        return load(given), (os.fspath(given),)
    items = (given,) if isinstance(given, Trial) else tuple(given)
    if items and all(isinstance(item, str | os.PathLike) for item in items):
        return load(items), tuple(os.fspath(item) for item in items)  # type: ignore[arg-type]
    if wrong := next((type(item).__name__ for item in items if not isinstance(item, Trial)), ""):
        raise ValueError(
            f"trials holds a {wrong}; accepted are Trials, or the path of a record, of several, or of their folder"
        )
    return Trials(items), ()  # type: ignore[arg-type]


def _checked(view: str, state: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The state, or ValueError with the accepted keys and values; nothing is checked while there are no Trials."""
    accepted = _accepted(view, data)
    for name, value in state.items() if data["workloads"] else ():
        if name not in accepted:
            raise ValueError(f"{view} has no {name!r}; accepted are {', '.join(accepted)}")
        given = value if isinstance(value, list | tuple | set) else [value]
        known = accepted[name]
        if wrong := [each for each in given if known and each not in known]:
            raise ValueError(f"{name} is {wrong[0]!r}; accepted here are {', '.join(map(repr, known))}")
    return {name: _plain(value) for name, value in state.items()}


def _accepted(view: str, data: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The keys of a view's state with their values; those of a parameter are not listed: another one shows the nearest view."""
    facets = {name: (*data[f"{name}s"], "all") for name in ("workload", "dtype", "target")}
    facets |= {"environment": (*(e["text"] for e in data["environments"]), "all"), "cache": ("cold", "warm", "all")}
    params = dict.fromkeys(data["params"], ())
    techniques = tuple(data["techniques"])
    own = {
        "x": (*params, "technique") if view == "explorer" else (*facets, *params),
        "y": ("speedup", *data["metrics"]) if view == "explorer" else (*facets, *params),
        "over": tuple(data["overs"]),
        "technique": techniques,
        "techniques": techniques,
        "front": tuple(data["targets"]),
        "roofs": tuple(ceiling["name"] for ceiling in data["ceilings"]),
    }
    return {**params, **facets, **{name: own[name] for name in KEYS[view]}}


def _plain(value: Any) -> Any:
    """A value as JSON holds it: sets and tuples become lists."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return list(value) if isinstance(value, tuple) else value
