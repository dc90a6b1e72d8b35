"""Where a Technique or Workload is written, and a hash of all the source that it reaches: a changed hash makes a record stale.

The hash is over syntax trees, so comments, docstrings and layout don't count, nor does the Python version. It follows names
from a function's body to helpers, module constants, classes, Triton kernels and custom ops (with what is registered on
them), inside kpt_lab and the user's own files; torch and other packages stop it, for their versions are in the environment.
Constants count by the expression that makes them, never by their value: a value may differ between machines.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from kpt_lab.core import Technique, Workload
from kpt_lab.pickled import is_pickle, pickled
from kpt_lab.place import closure, locate, resolve
from kpt_lab.syntax import Facts, Module, facts_of, is_library, module_source, strip_docstrings

VOCABULARY = "kpt_lab.core"
"""Classes of this module count by name: they carry a technique and don't change what it computes."""

__all__ = ["locate", "reaches", "resolve", "source_hash"]

_STOPS = {"torch", "triton", "numpy", "builtins"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def source_hash(obj: Any) -> str:
    """12 hex digits over the source of everything that a Technique, Workload or function reaches.

    A Technique's knobs count; a Workload's bound parameters don't, for Trials carry them in `params`.
    """
    walk = _Walk()
    walk.add_object(obj)
    return hashlib.sha256("\n".join(sorted(walk.items)).encode()).hexdigest()[:12]


class _Walk:
    """Collects one line for each definition and value that is reached."""

    def __init__(self) -> None:
        self.items: set[str] = set()
        self._objects: dict[int, Any] = {}  # keeps them alive, so that an id stays one object's
        self._names: set[tuple[str, str]] = set()
        self._open: set[int] = set()
        self._roots: set[str] = set()

    # ---- from live objects: roots, closures, partials

    def add_object(self, value: Any, name: str = "") -> None:
        """One value: a function, technique, class, constant or container, under the name that leads to it."""
        if is_pickle(value):
            self._add_pickle(value, name)
            return
        if isinstance(value, _PLAIN):
            self.items.add(f"{name} = {value!r}")
            return
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            self._add_container(value, name)
            return
        if id(value) in self._objects:
            return
        self._objects[id(value)] = value
        kind = type(value)
        if isinstance(value, Technique):
            settings = (value.stage, value.on, value.contract, "")  # not simulates, which says where Triton runs today
            self.items.add(f"{name} technique {settings!r}")
            self._add_fields(value, ("apply", "definition", "report", "cost", "knobs", "parts"))
        elif isinstance(value, Workload):
            self._add_fields(value, ("make", "tolerance", "cost", "error", "quality", "random"))
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.MethodType):
            self.add_object(value.__func__, name)
            self.add_object(value.__self__, f"{name}.self")
        elif isinstance(value, functools.partial):
            self.add_object(value.func, name)
            self.add_object(value.args, f"{name}.args")
            self.add_object(value.keywords, f"{name}.keywords")
        elif isinstance(value, type):
            self._add_class(value)
        elif kind.__module__.split(".")[0] == "triton" and callable(getattr(value, "fn", None)):
            self.add_object(value.fn, name)  # JITFunction, Autotuner, Heuristics
        elif isinstance(getattr(value, "_init_fn", None), types.FunctionType):
            self.add_object(value._init_fn, name)  # what torch.library.custom_op returns
        else:
            self._add_value(value, name)

    def _add_fields(self, value: Any, names: tuple[str, ...]) -> None:
        for name in names:
            self.add_object(getattr(value, name), name)

    def _add_container(self, value: Any, name: str) -> None:
        # equal constants may or may not be one object, so containers are not remembered, only kept from containing themselves
        if id(value) in self._open:
            return
        self._open.add(id(value))
        if isinstance(value, Mapping):
            for key in sorted(value, key=repr):
                self.add_object(value[key], f"{name}[{key!r}]")
        elif isinstance(value, list | tuple):
            for i, inner in enumerate(value):
                self.add_object(inner, f"{name}[{i}]")
        else:
            self.items.add(f"{name} = {sorted(map(repr, value))}")
        self._open.remove(id(value))

    def _add_value(self, value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            self.items.add(f"{name} tensor {tuple(value.shape)} {value.dtype}")
        elif isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            self.items.add(f"{name} is {value.__name__}")
        elif isinstance(value, torch.nn.Module):
            for path, part in value.named_modules():
                self._add_class(type(part))
                self.items.add(
                    f"{name}.{path} is {type(part).__qualname__} {'' if list(part.children()) else part.extra_repr()}"
                )
            for path, tensor in value.named_parameters():
                self.add_object(tensor, f"{name}.{path}")
        else:
            self._add_class(type(value))
            if self._inside(type(value).__module__):
                for key, inner in sorted(getattr(value, "__dict__", {}).items()):
                    self.add_object(inner, f"{name}.{key}")

    def _add_class(self, kind: type) -> None:
        top = kind.__qualname__.split(".")[0]
        module = self._module(kind.__module__)
        if module and top in module.bindings:
            self.add_name(kind.__module__, top)
        elif self._inside(kind.__module__):
            self._add_text(kind, kind.__qualname__, vars(sys.modules[kind.__module__]))
        else:
            self.items.add(f"class {kind.__module__}.{kind.__qualname__}")

    def _add_pickle(self, value: bytes, name: str) -> None:
        """A module as kpt.workload stores it: its classes and settings count, its weights don't."""
        classes, settings = pickled(value)
        self.items.add(f"{name} pickle {settings!r}")
        for home, top in classes:
            self._take_in(home)
            if self._inside(home) and (module := self._module(home)) and top.split(".")[0] in module.bindings:
                self.add_name(home, top.split(".")[0])
            elif self._inside(home) and isinstance(live := getattr(sys.modules.get(home), top, None), type):
                self._add_class(live)
            else:
                self.items.add(f"{name} class {home}.{top}")

    def _take_in(self, home: str) -> None:
        """Code that was handed over as an object is the user's own: what its module reaches counts as well."""
        if not is_library(home):
            self._roots |= {home.split(".")[0]} - _STOPS

    def _add_function(self, fn: types.FunctionType) -> None:
        home, code = fn.__globals__.get("__name__", ""), fn.__code__
        if hasattr(fn, "__wrapped__"):
            self.add_object(fn.__wrapped__)
        self._take_in(home)
        if not self._inside(home):
            self.items.add(f"function {home}.{code.co_qualname}")
            return
        top, module = code.co_qualname.split(".")[0], self._module(home)
        if module and top in module.bindings:
            self.add_name(home, top)
        elif module and (lambdas := module.lambdas(code.co_firstlineno)):
            for node in lambdas:
                self._add_facts(facts_of(node), home, "<lambda>")
        else:
            self._add_text(fn, code.co_qualname, fn.__globals__)
        for name, inner in closure(fn).items():
            self.add_object(inner, f"{code.co_qualname}.{name}")
        if "<" in code.co_qualname:  # made anew each time, so its defaults may differ from one to the next
            self.add_object(fn.__defaults__ or (), f"{code.co_qualname}.defaults")

    def _add_text(self, value: Any, name: str, names: Mapping[str, Any]) -> None:
        """A definition without a file, as in a notebook: its names are looked up among the live ones."""
        try:
            tree = strip_docstrings(ast.parse(textwrap.dedent(inspect.getsource(value))))
        except (OSError, TypeError, SyntaxError):
            self._add_code(value, name, names)
            return
        facts = facts_of(tree)
        self.items.add(f"{name}: {facts.dump}")
        for used in sorted(facts.names & names.keys()):
            found = names[used]
            if isinstance(found, types.ModuleType):
                self._follow(found.__name__, facts, used)
            else:
                self.add_object(found, used)

    def _add_code(self, value: Any, name: str, names: Mapping[str, Any]) -> None:
        """A definition without any text: its compiled code, which depends on Python's version."""
        functions = (
            [value] if isinstance(value, types.FunctionType) else [f for f in vars(value).values() if inspect.isfunction(f)]
        )
        for fn in functions:
            constants = [repr(c) for c in fn.__code__.co_consts if isinstance(c, _PLAIN)]
            self.items.add(f"{name} code {fn.__code__.co_code.hex()} {fn.__code__.co_names} {constants}")
            for used in fn.__code__.co_names:
                if used in names:
                    self.add_object(names[used], used)

    # ---- from names in files

    def add_name(self, module_name: str, name: str) -> None:
        """What a module's top level binds to `name`, with everything that it reaches."""
        if (module_name, name) in self._names:
            return
        self._names.add((module_name, name))
        module = self._module(module_name)
        if module is None:
            self.items.add(f"{name} from {module_name}")
            return
        for origin in module.stars(name):
            if (inner := self._module(origin)) and name in inner.bindings:
                self.add_name(origin, name)
        for statement in module.bindings.get(name, ()):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._add_import(module, name)
            elif module_name == VOCABULARY and isinstance(statement, ast.ClassDef):
                self.items.add(f"{name} of the vocabulary")
            else:
                self._add_facts(module.facts(statement), module_name, name)
        for statement in module.attached.get(name, ()):
            self._add_facts(module.facts(statement), module_name, f"on {name}")

    def _add_import(self, module: Module, name: str) -> None:
        origin, attribute = module.imports[name]
        inner = self._module(origin)
        if attribute and inner and (attribute in inner.bindings or inner.stars(attribute)):
            self.add_name(origin, attribute)
        elif not self._inside(origin):
            self.items.add(f"{name} = {origin}.{attribute}")

    def _add_facts(self, facts: Facts, module_name: str, name: str) -> None:
        self.items.add(f"{name}: {facts.dump}")
        module = self._module(module_name)
        assert module is not None
        for used, (origin, attribute) in facts.imports(module).items():
            if attribute and (inner := self._module(origin)) and attribute in inner.bindings:
                self.add_name(origin, attribute)
            else:
                self._follow(f"{origin}.{attribute}" if attribute else origin, facts, used)
        for used in sorted(facts.names):
            if target := self._as_module(module, used):
                self._follow(target, facts, used)
            if used in module.bindings or module.stars(used):
                self.add_name(module_name, used)
        for chain in facts.chains:
            if chain[:2] == ("torch", "ops") and (op := module.ops.get("::".join(chain[2:4]))):
                self.add_name(module_name, op)

    def _as_module(self, module: Module, name: str) -> str:
        """Name of the module inside our reach that `name` is an import of, or ""."""
        origin, attribute = module.imports.get(name, ("", ""))
        inner = self._module(origin)
        if inner and attribute:
            if attribute in inner.bindings and (inner.name, attribute) != (module.name, name):
                return self._as_module(inner, attribute)
            origin = f"{origin}.{attribute}"
            inner = self._module(origin)
        return origin if inner else ""

    def _follow(self, module_name: str, facts: Facts, root: str) -> None:
        """All `root.a.b` in the text, where `root` stands for a module."""
        for chain in facts.chains:
            if chain[0] != root:
                continue
            home, rest = module_name, list(chain[1:])
            while rest and (module := self._module(home)):
                if rest[0] in module.bindings:
                    deeper = self._as_module(module, rest[0])
                    if not deeper:
                        self.add_name(home, rest[0])
                        break
                    home = deeper
                else:
                    home = f"{home}.{rest[0]}"
                rest = rest[1:]

    # ---- scope

    def _inside(self, module_name: str) -> bool:
        top = module_name.split(".")[0]
        if top == "kpt_lab" or top in self._roots:
            return True
        # the package's own code is followed inside the package only: a peer's source isn't on every reader's machine
        return bool(self._roots - {"kpt_lab"}) and not is_library(module_name)

    def _module(self, module_name: str) -> Module | None:
        return module_source(module_name) if module_name and self._inside(module_name) else None


def reaches(fn: Callable[..., Any]) -> frozenset[str]:
    """ "module.name" of every top-level definition that `fn` reaches, for looking into why a hash changed."""
    walk = _Walk()
    walk.add_object(fn)
    return frozenset(f"{module}.{name}" for module, name in walk._names)
