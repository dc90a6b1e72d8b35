"""Where a Technique or Workload stands, as "module:attribute", and what stands there now."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kpt_lab.core import Technique, Workload, stack
from kpt_lab.pickled import is_pickle, pickled
from kpt_lab.syntax import is_library


def locate(obj: Technique | Workload) -> str:
    """ "module:attribute" where the Technique or Workload stands, bound or not, or "" where no importable module holds it.

    A stack that has no name of its own gives its parts' places, joined by " >> ".
    """
    for module in _modules_of(obj):
        for name, value in list(vars(module).items()):
            if type(value) is type(obj) and _is_form_of(value, obj):
                return f"{module.__name__}:{name}"
    if isinstance(obj, Technique) and obj.parts:
        places = [locate(part) for part in obj.parts]
        if all(places) and all(resolve(at).knobs == part.knobs for at, part in zip(places, obj.parts, strict=True)):
            return " >> ".join(places)
    return ""


def resolve(at: str) -> Any:
    """What `locate` found: "module:attribute", or several joined by " >> "; ValueError names the part that isn't there."""
    if " >> " in at:
        return stack(*(resolve(part) for part in at.split(" >> ")))
    name, colon, attribute = at.partition(":")
    if not (name and colon and attribute):
        raise ValueError(f"at is {at!r}; accepted is 'module:attribute', such as 'kpt_lab.baselines:eager'")
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(name))
    except ImportError as error:
        raise ValueError(f"at is {at!r}, but module {name!r} can't be imported: {error}") from error
    except AttributeError as error:
        raise ValueError(f"at is {at!r}, but module {name!r} has no {attribute!r}") from error


def _is_form_of(found: Any, obj: Any) -> bool:
    if isinstance(found, Workload):
        return found.name == obj.name and _same(found.make, obj.make)
    if found.name != obj.name or len(found.parts) != len(obj.parts):
        return False
    if obj.parts:
        return all(a.knobs == b.knobs and _is_form_of(a, b) for a, b in zip(found.parts, obj.parts, strict=True))
    return _same(found.apply, obj.apply)


def _same(a: Any, b: Any) -> bool:
    """Whether two callables or their arguments are the same, also after one of them went through pickle."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, functools.partial):
        return _same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


def _modules_of(obj: Technique | Workload) -> Iterator[types.ModuleType]:
    """Modules whose functions `apply` or `make` is made of, then all others of kpt_lab that are loaded."""
    names = dict.fromkeys(_function_modules(obj.apply if isinstance(obj, Technique) else obj.make, set()))
    names |= dict.fromkeys(sorted(name for name in sys.modules if name.startswith("kpt_lab.")))
    for name in names:
        module = sys.modules.get(name)
        if module is not None and name != "__main__" and not is_library(name):
            yield module


def _function_modules(value: Any, seen: set[int]) -> Iterator[str]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, functools.partial):
        for inner in (value.func, *value.args, *value.keywords.values()):
            yield from _function_modules(inner, seen)
    elif is_pickle(value):
        yield from dict.fromkeys(module for module, _ in pickled(value)[0])
    elif isinstance(value, types.MethodType):
        yield from _function_modules(value.__func__, seen)
    elif isinstance(value, types.FunctionType):
        yield value.__globals__.get("__name__", "")
        if hasattr(value, "__wrapped__"):
            yield from _function_modules(value.__wrapped__, seen)
        for inner in closure(value).values():
            yield from _function_modules(inner, seen)
    elif callable(value) and not isinstance(value, type):
        yield type(value).__module__


def closure(fn: types.FunctionType) -> dict[str, Any]:
    """Names and contents of a function's closure; cells that are still empty are left out."""
    found = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found
