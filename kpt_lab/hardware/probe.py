"""What this machine reaches: bandwidths, rates of matrix products by arithmetic type and the cost of a launch, beside the data sheet.

A ceiling is the best that a short run of torch's own operations reached: no promise that nothing is faster, and no data sheet.
What was found is kept in a file of its own for each environment (device, driver, torch, threads), in the folder that the variable
KPT_LAB_CACHE names, else in the platform's cache folder. `python -m kpt_lab.hardware.probe --device cuda --into FILE` records it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kpt_lab.core import NOTHING, FrozenDict, Metric, Target
from kpt_lab.environment import environment
from kpt_lab.files import atomically, cache_folder
from kpt_lab.hardware import devices, reach
from kpt_lab.hardware.sheet import Device
from kpt_lab.measure import check_device
from kpt_lab.runner import now
from kpt_lab.tables import markdown
from kpt_lab.terminal import columns

SCHEMA = 1
_KEY = ("host", "device_name", "driver", "torch", "cuda", "threads", "cores", "omp_num_threads", "mkl_num_threads")
_NO_RATE = ("bandwidth", "launch")  # the names of figures that are no arithmetic type begin so
HEADER = ("figure", "reached", "data sheet", "share", "how")


def quantity(metric: Metric) -> str:
    """A Metric at three digits with its unit: "3.03 TB/s", "4.1 us", "72%" for a share."""
    if metric.unit == "1":
        return f"{metric.value:.3g}"
    small = ((1e-9, "n"), (1e-6, "u"), (1e-3, "m"))
    large = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P"))
    size = abs(float(f"{metric.value:.3g}"))
    scale, prefix = max((p for p in (*small, *large) if p[0] <= size), default=small[0] if size else large[0])
    return f"{metric.value / scale:.3g} {prefix}{metric.unit}"


@dataclass(frozen=True)
class Ceilings:
    """The measured ceilings of one device in one environment.

    figures: arithmetic types (FLOP/s, int8 in OP/s), "bandwidth" (the best of a copy, a read and a fill of a buffer that no cache
    holds), "bandwidth copy" and "bandwidth read" alone, "launch" (s), each a Metric whose source says how it was reached.
    traffic: "copy" and "read" -> bytes touched -> B/s, small buffers included, which stay in caches. absent: why a figure is missing.
    """

    device: str
    name: str
    at: str
    figures: Mapping[str, Metric]
    traffic: Mapping[str, Mapping[int, Metric]] = field(default_factory=lambda: NOTHING)
    absent: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    cache: float = 0.0
    memory: float = 0.0
    features: frozenset[str] = frozenset()
    env: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    def __post_init__(self) -> None:
        object.__setattr__(self, "traffic", FrozenDict({name: dict(of) for name, of in self.traffic.items()}))
        for name in ("figures", "absent", "env"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    def rates(self) -> dict[str, Metric]:
        """The figures that are rates of an arithmetic type."""
        return {name: metric for name, metric in self.figures.items() if not name.startswith(_NO_RATE)}

    def sheet(self) -> Device | None:
        """The row of the device table for this device, or None; `unknown` says why there is none."""
        try:
            return devices.look_up(self.name, self.memory or None)
        except ValueError:
            return None

    def unknown(self) -> str:
        """Why no data sheet stands beside these figures, or "" where one does."""
        try:
            devices.look_up(self.name, self.memory or None)
        except ValueError as error:
            return str(error)
        return ""

    def target(self) -> Target:
        """A Target with these ceilings, for bounds; it is named after the device, as probed."""
        rates, bandwidth = self.rates(), self.figures["bandwidth"]
        source = {name: f"{m.provenance} by probe: {m.source}" for name, m in {**rates, "bandwidth": bandwidth}.items()}
        name = self.name if self.device.startswith("cuda") else f"{self.name}, {self.env.get('threads', '?')} threads"
        return Target(
            f"{name}, probed",
            {kind: metric.value for kind, metric in rates.items()},
            bandwidth.value,
            {**source, "cache": "as the driver or the system gives it"},
            features=self.features,
            cache=self.cache,
        )

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """The figures as text: name, reached, the data sheet's, the share reached, and how."""
        sheet = self.sheet()
        printed = sheet.figures if sheet else {}
        found = []
        for name, metric in self.figures.items():
            quoted = printed[name].metric if name in printed else None
            share = f"{metric.value / quoted.value:.0%}" if quoted else ""
            kind = "" if metric.provenance == "measured" else f"{metric.provenance}: "
            found.append((name, quantity(metric), quantity(quoted) if quoted else "", share, kind + metric.source))
        return found

    def traffic_rows(self) -> list[tuple[str, str, str]]:
        """Bandwidth by bytes touched as text: size, copy, read."""
        sizes = sorted({size for of in self.traffic.values() for size in of})
        names = ("copy", "read")
        cells = [[quantity(self.traffic[n][s]) if s in self.traffic.get(n, ()) else "" for n in names] for s in sizes]
        return [(f"{size / 2**20:.4g} MiB", *row) for size, row in zip(sizes, cells, strict=True)]  # type: ignore[misc]

    def table(self) -> str:
        """The figures in Markdown."""
        return markdown(HEADER, self.rows())

    def traffic_table(self) -> str:
        """Bandwidth by bytes touched in Markdown: what fits into a cache is faster."""
        return markdown(("bytes touched", "copy", "read"), self.traffic_rows())

    def where(self) -> str:
        """Device, versions and day in one sentence."""
        versions = [f"{name} {self.env[name]}" for name in ("torch", "driver", "threads") if self.env.get(name)]
        return f"{self.name}; {', '.join(versions)}; {self.at[:10]}."

    def __repr__(self) -> str:
        lines = [f"Ceilings of {self.where()}", *columns([HEADER, *self.rows()])]
        if why := self.unknown():
            lines.append(f"No data sheet: {why}.")
        return "\n".join([*lines, *(f"no {name}: {why}" for name, why in self.absent.items())])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, in one step, so that no reader sees half a file."""
        data = {"kind": "ceilings", "schema": SCHEMA, **asdict(self), "features": sorted(self.features)}
        atomically(path, lambda file: file.write(json.dumps(data, indent=1).encode()))


def load(path: str | os.PathLike[str]) -> Ceilings:
    """Ceilings that `save` wrote; ValueError in one sentence where the file is something else."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data.pop("kind") != "ceilings" or data.pop("schema") != SCHEMA:
            raise ValueError("it was written by another version")
        data["figures"] = {name: Metric(**metric) for name, metric in data["figures"].items()}
        data["traffic"] = {
            name: {int(size): Metric(**m) for size, m in by_size.items()} for name, by_size in data["traffic"].items()
        }
        found = Ceilings(**{**data, "features": frozenset(data["features"])})
        found.figures["bandwidth"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no ceilings that can be read ({type(error).__name__}: {error})") from error
    return found


def probe(device: str = "cpu", *, again: bool = False, cache: bool = True) -> Ceilings:
    """The measured ceilings of "cpu" or "cuda": probed once in each environment, which takes seconds, and then read from a file.

    again: probe once more and keep the better of each figure, as a busy neighbour hides a ceiling. cache: use the file.
    ValueError where torch has no such device here. A file that can't be read or written is one warning, and probed anew.
    """
    check_device(device)
    path = cache_file(device)
    known = _recall(path) if cache else None
    if known is not None and not again:
        return known
    found = _probed(device, again)
    found = _better(known, found) if known else found
    if cache:
        try:
            found.save(path)
        except OSError as error:
            warnings.warn(f"{path} can't be written ({error.strerror}), so the next process probes again", stacklevel=2)
    return found


def cache_file(device: str = "cpu") -> Path:
    """The file of this device in this environment: another driver, torch or number of threads has another one."""
    env = environment(device)
    key = json.dumps([SCHEMA, device.split(":")[0], *(str(env.get(name, "")) for name in _KEY)])
    return cache_folder() / f"ceilings.{device.split(':')[0]}.{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _recall(path: Path) -> Ceilings | None:
    if not path.exists():
        return None
    try:
        return load(path)
    except (OSError, ValueError) as error:
        warnings.warn(f"{error}; the device is probed again and the file is replaced", stacklevel=3)
        return None


def _probed(device: str, again: bool) -> Ceilings:
    with torch.no_grad():
        reached = reach.on_cuda(device) if device.startswith("cuda") else reach.on_cpu(again)
    env = environment(device)
    return Ceilings(device=device, name=str(env["device_name"]), at=now(), env=env, **reached)


def _better(a: Ceilings, b: Ceilings) -> Ceilings:
    """`b`, with those figures of `a` that are better: higher rates, shorter launches."""

    def best(old: Mapping[Any, Metric], new: Mapping[Any, Metric]) -> dict[Any, Metric]:
        def better(x: Metric, y: Metric) -> bool:
            return x.value < y.value if x.unit == "s" else x.value > y.value

        return {**old, **new, **{name: old[name] for name in old.keys() & new.keys() if better(old[name], new[name])}}

    traffic = {name: best(a.traffic.get(name, NOTHING), of) for name, of in b.traffic.items()}
    return replace(b, figures=best(a.figures, b.figures), traffic=traffic)


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe a device anew, print what it reaches, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m kpt_lab.hardware.probe", description=main.__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--into", help="a JSON file to write")
    given = parser.parse_args(arguments)
    try:
        found = probe(given.device, cache=False)
    except ValueError as error:
        parser.error(str(error))
    print(found)
    print("\n".join(columns([("bytes touched", "copy", "read"), *found.traffic_rows()])))
    if given.into:
        found.save(given.into)


if __name__ == "__main__":
    main()
