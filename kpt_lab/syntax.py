"""A module's source as data for `kpt_lab.source`: what its top level binds, and what each definition says and names."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import site
import symtable
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_SKIPPED = {"ctx", "kind", "type_comment"}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Facts:
    """A piece of syntax: its canonical text, its free names, its dotted names, and the imports inside it."""

    dump: str
    names: frozenset[str]
    chains: frozenset[tuple[str, ...]]
    inner: tuple[ast.Import | ast.ImportFrom, ...]

    def imports(self, module: Module) -> Mapping[str, tuple[str, str]]:
        """What the imports in the piece bind, as `Module.imports`."""
        return {name: origin for node in self.inner for name, origin in module.bound_by(node)}


@dataclass
class Module:
    """The top level of one source file.

    bindings: name -> the statements that bind it. attached: name -> the statements that register something on it.
    imports: name -> (module, attribute or ""). ops: "namespace::name" of a custom op -> the name of its definition.
    """

    name: str
    package: str
    tree: ast.Module
    bindings: dict[str, list[ast.stmt]] = field(default_factory=dict)
    attached: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    ops: dict[str, str] = field(default_factory=dict)
    _stars: list[str] = field(default_factory=list)
    _facts: dict[int, Facts] = field(default_factory=dict)

    def facts(self, node: ast.AST) -> Facts:
        """Facts of one of this module's nodes, made once."""
        if id(node) not in self._facts:
            self._facts[id(node)] = facts_of(node)
        return self._facts[id(node)]

    def lambdas(self, line: int) -> list[ast.Lambda]:
        """The lambdas that begin on a line."""
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Lambda) and node.lineno == line]

    def stars(self, name: str) -> list[str]:
        """Modules imported with a star, where `name` may come from; none where it is bound here."""
        return [] if name in self.bindings else self._stars

    def bound_by(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, tuple[str, str]]]:
        """(name, (module, attribute)) for each name that an import statement binds."""
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                parent = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
                origin = ".".join([*parent, node.module] if node.module else parent)
                yield alias.asname or alias.name, (origin, alias.name)
            elif alias.asname:
                yield alias.asname, (alias.name, "")
            else:
                yield alias.name.split(".")[0], (alias.name.split(".")[0], "")


def module_source(name: str) -> Module | None:
    """The Module of that name, read anew when its file changed; None where it has no Python source."""
    loaded = sys.modules.get(name)
    file = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec else None
    if not file or not file.endswith(".py") or not os.path.isfile(file):
        return None
    state = os.stat(file)
    is_package = os.path.basename(file) == "__init__.py"
    return _read(name, file, name if is_package else name.rpartition(".")[0], state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=256)
def _read(name: str, file: str, package: str, modified: int, size: int) -> Module | None:
    with open(file, encoding="utf-8") as stream:
        text = stream.read()
    try:
        module = Module(name, package, strip_docstrings(ast.parse(text)))
    except SyntaxError:
        return None
    for statement in _flat(module.tree.body):
        _index(module, statement)
    for statement in _flat(module.tree.body):
        for target in _registers_on(module, statement):
            module.attached.setdefault(target, []).append(statement)
    return module


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of the top level, also those under if, try, with and for."""
    for statement in body:
        nested = [getattr(statement, part, []) for part in ("body", "orelse", "finalbody")]
        nested += [handler.body for handler in getattr(statement, "handlers", [])]
        if isinstance(statement, _DEFINITIONS) or not any(nested):
            yield statement
        else:
            for inner in nested:
                yield from _flat(inner)


def _index(module: Module, statement: ast.stmt) -> None:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            module._stars += [origin for _, (origin, _) in module.bound_by(statement)]
            return
        found = dict(module.bound_by(statement))
        module.imports |= found
        names = list(found)
    elif isinstance(statement, _DEFINITIONS):
        names = [statement.name]
        for text in _strings(statement.decorator_list):
            if "::" in text:
                module.ops[text] = statement.name
    else:
        names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            for text in _strings([statement.value]):
                if "::" in text and names:
                    module.ops[text] = names[0]
    for name in dict.fromkeys(names):
        module.bindings.setdefault(name, []).append(statement)


def _strings(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value


def _registers_on(module: Module, statement: ast.stmt) -> set[str]:
    """Names of this module that a statement adds something to: `op.register_fake(f)`, `@op.register_kernel("cpu")`,
    `torch.library.register_autograd("space::op", f)`, `table["key"] = f`."""
    found: set[str] = set()
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        given = [node.id for node in call.args if isinstance(node, ast.Name)]
        roots = [_root(call.func), *given]
        found = {root for root in roots if root} | {module.ops[t] for t in _strings(call.args) if t in module.ops}
    elif isinstance(statement, _DEFINITIONS):
        attributes = [d.func if isinstance(d, ast.Call) else d for d in statement.decorator_list]
        found = {_root(d) for d in attributes if isinstance(d, ast.Attribute)}
        found |= {module.ops[t] for t in _strings(statement.decorator_list) if t in module.ops}
        found -= {statement.name}
    elif isinstance(statement, ast.Assign):
        found = {_root(target) for target in statement.targets if isinstance(target, ast.Subscript | ast.Attribute)}
    return {name for name in found if name in module.bindings and name not in module.imports}


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def strip_docstrings(tree: ast.Module) -> ast.Module:
    """The same tree without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, (*_DEFINITIONS, ast.Module)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]
                if not node.body and not isinstance(node, ast.Module):
                    node.body = [ast.Pass()]
    return tree


def facts_of(node: ast.AST) -> Facts:
    """Facts of a statement, lambda or module."""
    text = ast.unparse(ast.fix_missing_locations(node))
    names: set[str] = set()
    _free(symtable.symtable(text, "<piece>", "exec"), names, _of_comprehensions(node))
    chains = {chain for inner in ast.walk(node) if isinstance(inner, ast.Attribute) and (chain := _chain(inner))}
    imports = tuple(inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom))
    return Facts(_dump(node), frozenset(names), frozenset(chains), imports)


def _free(table: symtable.SymbolTable, names: set[str], inlined: set[str]) -> None:
    top = table.get_type() == "module"
    found = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    names |= found - inlined if top else found
    for child in table.get_children():
        _free(child, names, inlined)


def _of_comprehensions(tree: ast.AST) -> set[str]:
    """Names that a piece's top level has only as variables of comprehensions: from Python 3.12 on they count as its own there."""
    bound: set[str] = set()
    used: set[str] = set()

    def visit(node: ast.AST, local: frozenset[str]) -> None:
        inner = list(ast.iter_child_nodes(node))
        if isinstance(node, (*_DEFINITIONS, ast.Lambda)):  # scopes of their own: what stands in their heads belongs to this one
            body = [node.body] if isinstance(node, ast.Lambda) else node.body
            inner = [part for part in inner if part not in body]
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            first = node.generators[0].iter
            visit(first, local)
            targets = [name for part in node.generators for name in ast.walk(part.target) if isinstance(name, ast.Name)]
            bound.update(name.id for name in targets)
            local |= {name.id for name in targets}
            parts: list[ast.AST] = [
                part for one in node.generators for part in (one.target, one.iter, *one.ifs) if part is not first
            ]
            inner = [part for part in inner if not isinstance(part, ast.comprehension)] + parts
        elif isinstance(node, ast.Name) and node.id not in local:
            used.add(node.id)
        for part in inner:
            visit(part, local)

    visit(tree, frozenset())
    return bound - used


def _chain(node: ast.Attribute) -> tuple[str, ...]:
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    return (inner.id, *reversed(parts)) if isinstance(inner, ast.Name) else ()


def _dump(value: object) -> str:
    """Canonical text of a tree: as ast.dump, but without empty fields, whose presence depends on Python's version."""
    if isinstance(value, ast.Constant):
        return f"{type(value.value).__name__}:{value.value!r}"
    if isinstance(value, ast.AST):
        parts = [
            f"{name}={_dump(inner)}"
            for name in sorted(value._fields)
            if name not in _SKIPPED and (inner := getattr(value, name, None)) is not None and inner != []
        ]
        return f"{type(value).__name__}({','.join(parts)})"
    if isinstance(value, list):
        return f"[{','.join(map(_dump, value))}]"
    return repr(value)


@functools.cache
def _library_folders() -> tuple[str, ...]:
    folders = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.realpath(folder) + os.sep for folder in folders)


def is_library(name: str) -> bool:
    """Whether a module belongs to Python or to an installed package: not the user's own file."""
    if name in sys.builtin_module_names:
        return True
    loaded = sys.modules.get(name)
    file = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return True
        file = spec.origin if spec and spec.has_location else None
        if file is None:
            return True
    if file is None:
        return name != "__main__"  # a notebook's own cells have no file
    return os.path.realpath(file).startswith(_library_folders())
