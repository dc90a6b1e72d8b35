"""Files that are written whole or not at all, and the folder in which what was found out about this machine is kept."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def atomically(path: str | os.PathLike[str], write: Callable[[Any], Any]) -> None:
    """Write a file through a temporary one beside it, so that an end halfway leaves the old one; folders are made.

    write: takes the file, open for bytes.
    """
    goal = Path(path)
    goal.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=goal.parent, prefix=f".{goal.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, goal)
    except BaseException:
        os.unlink(temporary)
        raise


def cache_folder() -> Path:
    """Where measured ceilings and found algorithms are kept: $KPT_LAB_CACHE, else the platform's cache folder."""
    if given := os.environ.get("KPT_LAB_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "kpt_lab"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kpt_lab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kpt_lab"
