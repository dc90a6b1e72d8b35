"""What was found out about this machine, kept in a JSON file of the cache folder and replaced in one step."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpt_lab.files import atomically, cache_folder

# As in kpt_lab.race: sparsity.search keeps its own until its Trials are recorded again.

SCHEMA = 1


@dataclass(frozen=True)
class Store:
    """A file of entries by key; `again` says in a warning what happens where it can't be read or written."""

    file: str
    again: str

    def path(self) -> Path:
        """Where it is."""
        return cache_folder() / self.file

    def recall(self, name: str) -> dict[str, Any] | None:
        """What was remembered under this key, or None; a file that can't be read is reported in a warning."""
        return self._read().get(name)

    def remember(self, name: str, found: Mapping[str, Any]) -> None:
        """Keep `found` under this key; a reader never sees half of the file."""
        path = self.path()
        try:
            kept = {"schema": SCHEMA, "found": {**self._read(warn=False), name: dict(found)}}
            atomically(path, lambda file: file.write(json.dumps(kept, indent=1, sort_keys=True).encode()))
        except OSError as error:
            warnings.warn(f"{path} can't be written ({error.strerror}), so {self.again} next time", stacklevel=3)

    def _read(self, warn: bool = True) -> dict[str, Any]:
        path = self.path()
        try:
            data = json.loads(path.read_text())
            found = data["found"] if data["schema"] == SCHEMA else None
            if isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values()):
                return found
            reason = "it was written by another version"
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"it can't be read ({type(error).__name__})"
        if warn:
            warnings.warn(f"{path} is left aside: {reason}; {self.again} and the file is replaced", stacklevel=4)
        return {}
