"""The front end's pieces, widgets/js/*.js and one style sheet, put together: an ES module for notebooks, a script for pages.

Needs nothing but the files beside it, so the site can be built where anywidget is not installed.
"""

from __future__ import annotations

import functools
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PIECES = (
    "columns", "controls", "scales", "draw", "export", "plot", "card", "choose", "explorer_plan", "explorer_words", "explorer", "map", "roofline", "reveal", "formats", "energy", "raster", "bits", "circuit", "main",
)  # fmt: skip
"""Names of the files in widgets/js in the order in which they are joined: each may use those before it while it loads."""


def module() -> str:
    """All pieces as one ES module whose default export is {render}: what anywidget loads."""
    return f"{_joined(_times())}\nexport default {{ render }};\n"


def script() -> str:
    """All pieces as one classic script that sets window.kptLab = {mount}: it also works on a page opened as a file."""
    return f'(function () {{\n"use strict";\n{_joined(_times())}\nwindow.kptLab = {{ mount }};\n}})();\n'


def stylesheet() -> str:
    """The style sheet of all views, light and dark."""
    return _text("kpt_lab.css")


def _times() -> tuple[tuple[str, int], ...]:
    """Each piece's name and time of change; RuntimeError where one is missing, or a file is there that no piece names."""
    folder = FOLDER / "js"
    there = {path.stem: path for path in folder.glob("*.js")}
    if missing := [name for name in PIECES if name not in there]:
        raise RuntimeError(f"widgets/js lacks {', '.join(f'{name}.js' for name in missing)}; install kpt_lab again")
    if unnamed := sorted(there.keys() - set(PIECES)):
        raise RuntimeError(f"widgets/js holds {unnamed[0]}.js, which PIECES in widgets/front.py does not name: add it there")
    return tuple((name, there[name].stat().st_mtime_ns) for name in PIECES)


@functools.lru_cache(maxsize=1)
def _joined(times: tuple[tuple[str, int], ...]) -> str:
    """The pieces' text; `times` is the key, so that an edited piece is read again."""
    return "\n".join(f"// ---- {name}.js\n{_text(f'js/{name}.js').strip()}\n" for name, _ in times)


def _text(name: str) -> str:
    path = FOLDER / name
    if not path.is_file():
        raise RuntimeError(f"widgets/{name} is missing; install kpt_lab again")
    return path.read_text(encoding="utf-8")
