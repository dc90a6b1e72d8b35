"""Pages that are made before Sphinx reads them: copies of the notebooks, and one reference page for each public module."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from kpt_lab.core import Technique, Workload

NOTE = (
    "```{{container}} site-from\n"
    "Rendered from `{path}` with the outputs that are stored in it; nothing ran for this page. "
    "`make lab` opens it on your machine.\n```"
)
IGNORED = "# NBVAL_IGNORE_OUTPUT\n"
GROUPS = {
    "": "Measuring and comparing",
    "kernels": "Operations and their techniques",
    "hardware": "Hardware",
    "widgets": "Widgets",
    "claims": "Figures in prose",
    "redteam": "The red team",
    "site": "This site",
}
"""Packages in the order of the reference, with their headings; a package that is not named here comes last under its own name."""


def copy_notebooks(root: Path, into: Path) -> list[Path]:
    """Copy all notebooks of `root`/notebooks to `into` in the same folders, each with a note of where it came from; their copies."""
    sources = [path for path in sorted((root / "notebooks").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
    if not sources:
        raise ValueError(f"{root} holds no notebook under notebooks/")
    texts = {}
    for source in sources:
        copy = into / source.relative_to(root / "notebooks")
        texts[copy] = with_note(source.read_text(encoding="utf-8"), source.relative_to(root).as_posix())
    return _written(into, texts)


def _written(into: Path, texts: Mapping[Path, str]) -> list[Path]:
    """Make `into` hold these files and no others; what is already as it should be is left alone."""
    for path in sorted(into.rglob("*"), reverse=True):
        if path.is_file() and path not in texts:
            path.unlink()
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return list(texts)


def with_note(text: str, path: str) -> str:
    """A notebook's JSON with a cell behind its title that says what the page is, and without the marks that only tests read."""
    book = json.loads(text)
    for cell in book["cells"]:
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        cell["source"] = source.removeprefix(IGNORED) if cell["cell_type"] == "code" else source
    note = {"cell_type": "markdown", "id": "site-from", "metadata": {}, "source": NOTE.format(path=path)}
    book["cells"].insert(1, note)
    return json.dumps(book, ensure_ascii=False)


def modules() -> list[str]:
    """The names of all public modules of kpt_lab, widgets included; ValueError where one can't be imported."""
    package = importlib.import_module("kpt_lab")
    names = ["kpt_lab"]
    folders = [("kpt_lab.", package.__path__)]
    widgets = importlib.import_module("kpt_lab.widgets")
    names.append(widgets.__name__)
    folders.append(("kpt_lab.widgets.", widgets.__path__))
    for prefix, path in folders:
        names += [found.name for found in pkgutil.walk_packages(path, prefix, onerror=_refuse)]
    public = {name for name in names if not any(part.startswith("_") for part in name.split("."))}
    return sorted(public)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} can't be imported, so the reference can't show it")


def write_reference(into: Path) -> list[Path]:
    """One page for each public module, and index.md with their first sentences in groups."""
    names = modules()
    texts = {into / f"{name}.md": module_page(importlib.import_module(name)) for name in names}
    return _written(into, {**texts, into / "index.md": index_page(names)})


def index_page(names: Iterable[str]) -> str:
    """The reference's front: modules by package with what each is for."""
    groups: dict[str, list[str]] = {key: [] for key in GROUPS}
    for name in names:
        package = name.split(".")[1] if name.count(".") else ""
        is_package = bool(package) and hasattr(importlib.import_module(f"kpt_lab.{package}"), "__path__")
        groups.setdefault(package if is_package else "", []).append(name)
    parts = [
        "# Reference",
        "From the docstrings. The search box finds every name. A reader's way in: [`kpt_lab`](kpt_lab.md) lists what "
        "`import kpt_lab as kpt` gives.",
    ]
    for key, members in groups.items():
        if members:
            lines = [f"- [`{name}`]({name}.md): {first_sentence(importlib.import_module(name))}" for name in members]
            parts += [f"## {GROUPS.get(key, key.capitalize())}", "\n".join(lines)]
    listed = "\n".join(sorted(name for members in groups.values() for name in members))
    parts.append(f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{listed}\n```")
    return "\n\n".join(parts) + "\n"


def first_sentence(thing: Any) -> str:
    """The first line of a docstring, escaped for Markdown."""
    lines = (inspect.getdoc(thing) or "").strip().splitlines() or [""]
    return lines[0].replace("_", "\\_").replace("*", "\\*").replace("<", "&lt;").replace("{", "\\{")


def module_page(module: ModuleType) -> str:
    """A module's page: what it gives under its own names, its workloads and techniques, and everything that it defines."""
    parts = [f"# {module.__name__}"]
    tables = [*_gathered(module), *_measured(module)]
    parts.append(f"```{{eval-rst}}\n.. automodule:: {module.__name__}\n   :members:\n   :ignore-module-all:\n```")
    return "\n\n".join([*parts, *tables]) + "\n"


def _gathered(module: ModuleType) -> list[str]:
    """What the module offers that other modules define, with links there."""
    lines = []
    for name in getattr(module, "__all__", ()):
        thing = getattr(module, name, None)
        home = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", module.__name__)
        if home != module.__name__ and home.startswith("kpt_lab"):
            lines.append(f"- `{name}` ([{home}]({home}.md)): {first_sentence(thing)}")
    return ["## Names gathered here", "\n".join(lines)] if lines else []


def _measured(module: ModuleType) -> list[str]:
    """The Workloads and the techniques that a module of operations exposes."""
    workloads = {name: value for name, value in vars(module).items() if isinstance(value, Workload)}
    techniques = [t for t in getattr(module, "techniques", ()) if isinstance(t, Technique)]
    if not (workloads and techniques):
        return []
    lines = [f"- Workload `{name}`: {value.name}" for name, value in workloads.items()]
    lines += [f"- Technique `{t.name}`" + (", a baseline" if t.baseline else "") for t in techniques]
    return ["## Workloads and techniques", "\n".join(lines)]
