"""What the words of a command line stand for: modules, the user's files, workloads and techniques."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from kpt_lab import baselines
from kpt_lab.core import Technique, Workload
from kpt_lab.models import MODES
from kpt_lab.models import workload as make_workload

_WITH_WORKLOADS = ("kernels", "precision", "sparsity", "frontier")


def module_of(name: str) -> ModuleType:
    """A module of the package ("kernels.softmax"), or any importable one; ValueError with those that there are."""
    full = name if name.split(".")[0] == "kpt_lab" else f"kpt_lab.{name}"
    for candidate in dict.fromkeys((full, name)):
        try:
            return importlib.import_module(candidate)
        except ModuleNotFoundError as error:
            if not error.name or not f"{candidate}.".startswith(f"{error.name}."):
                raise ValueError(f"module {name!r} needs {error.name}, which is not here: pip install {error.name}") from error
        except (TypeError, ValueError):  # not a module's name at all
            break
    raise ValueError(f"there is no module {name!r}; there are {', '.join(_modules())}, and files such as my_file.py:model")


def _modules() -> list[str]:
    """Names of the modules that expose techniques, found without importing them."""
    found = []
    for package in _WITH_WORKLOADS:
        folder = Path(__file__).parent / package
        names = [module.name for module in pkgutil.iter_modules([str(folder)]) if (folder / f"{module.name}.py").is_file()]
        found += [
            f"{package}.{name}" for name in names if "\ntechniques" in (folder / f"{name}.py").read_text(encoding="utf-8")
        ]
    return found


def file_module(path: Path) -> ModuleType:
    """The user's file, imported under its own name, so that child processes can import it as well."""
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    if not path.stem.isidentifier():
        raise ValueError(f"{path.name!r} can't be imported: name it with letters, digits and underscores, such as my_file.py")
    folder, name = str(path.resolve().parent), path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and _is_file(loaded, path):
        return loaded
    if loaded is not None or (importlib.util.find_spec(name) is not None and not _found_in(name, path)):
        raise ValueError(f"{path.name!r} can't be imported, because {name!r} is another module's name; rename the file")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.resolve())]
        where = f" at line {lines[-1]}" if lines else ""
        raise ValueError(f"{path.name!r} can't be imported{where}: {type(error).__name__}: {error}") from error


def _is_file(module: ModuleType, path: Path) -> bool:
    return os.path.realpath(module.__file__ or "") == str(path.resolve())


def _found_in(name: str, path: Path) -> bool:
    spec = importlib.util.find_spec(name)
    return bool(spec and spec.origin and os.path.realpath(spec.origin) == str(path.resolve()))


def workloads_in(module: ModuleType) -> dict[str, Workload]:
    """The Workloads of a module by attribute."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Workload)}


def of_module(target: str, step: str | None, device: str) -> tuple[Workload, tuple[Technique, ...]]:
    """The Workload and the techniques of a TARGET; ValueError says what there is instead."""
    place, _, attribute = target.partition(":")
    own = place.endswith(".py") or os.sep in place
    module = file_module(Path(place)) if own else module_of(place)
    there = workloads_in(module)
    attribute = attribute or ("model" if own else "forward")
    found = getattr(module, attribute, None)
    if found is None:
        known = ", ".join(there) or "no Workload"
        raise ValueError(f"{place} has no {attribute!r}; it has {known}")
    if not isinstance(found, Workload):
        found = _from_callable(found, module, attribute, place)
    if step is not None:
        found = _in_mode(found, step)
    return found, tuple(getattr(module, "techniques", ())) or _ladder(device)


def _from_callable(found: Any, module: ModuleType, attribute: str, place: str) -> Workload:
    """kpt.workload of a function or module, with the file's `inputs` and `loss`."""
    if not callable(found) or isinstance(found, Technique | type):
        raise ValueError(f"{place}:{attribute} is a {type(found).__name__}; a Workload, a function or an nn.Module is needed")
    inputs = getattr(module, "inputs", None)
    if callable(inputs):
        inputs = inputs()
    if inputs is None:
        raise ValueError(f"{place} has no inputs; add one set of example inputs, such as inputs = (torch.randn(64, 512),)")
    loss = getattr(module, "loss", None)
    given = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return make_workload(found, *given, loss=loss, name=attribute)


def _in_mode(workload: Workload, step: str) -> Workload:
    if step not in MODES:
        raise ValueError(f"--step is {step!r}; accepted are {', '.join(MODES)}")
    if "mode" not in workload.parameters():
        raise ValueError(f"workload {workload.name!r} has no modes; name another of its module's workloads instead of --step")
    return workload(mode=step)


def _ladder(device: str) -> tuple[Technique, ...]:
    on_gpu = (baselines.cuda_graph, baselines.compiled >> baselines.cuda_graph)
    return (*baselines.ladder, *(on_gpu if device.startswith("cuda") else ()))


def choose(names: str, target: str, techniques: Sequence[Technique]) -> tuple[Technique, ...]:
    """The techniques of these comma-separated names, by label, name or attribute; ValueError lists those that are known."""
    known = _named(target, techniques)
    found: dict[str, Technique] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in known:
            raise ValueError(
                f"there is no technique {name!r} for {target}; there are {', '.join(t.label for t in _unique(known))}"
            )
        found[known[name].label] = known[name]
    if not found:
        raise ValueError(f"--techniques names none; there are {', '.join(t.label for t in _unique(known))}")
    return tuple(found.values())


def _named(target: str, techniques: Sequence[Technique]) -> Mapping[str, Technique]:
    place = target.partition(":")[0]
    module = file_module(Path(place)) if place.endswith(".py") or os.sep in place else module_of(place)
    known: dict[str, Technique] = {}
    for source in (vars(module), vars(baselines)):
        for attribute, value in source.items():
            if isinstance(value, Technique):
                known.setdefault(attribute, value)
                known.setdefault(value.label, value)
    for technique in techniques:
        known[technique.label] = technique
        known.setdefault(technique.name, technique)
    return known


def _unique(known: Mapping[str, Technique]) -> list[Technique]:
    return list({technique.label: technique for technique in known.values()}.values())
