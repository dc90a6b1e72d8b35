"""FlashLight judged on a corpus of attentions, as recorded: tables for its notebook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kpt_lab import tables

RECORDS = "python benchmarks/flashlight_corpus.py --device cuda --dtype bfloat16 --record benchmarks/recorded/flashlight_corpus.h100.json"


def _recorded(folder: str | Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Of each recorded run of the corpus where it ran, and its rows."""
    found = []
    for path in sorted(Path(folder).glob("flashlight_corpus*.json")):
        told = json.loads(path.read_text())
        where = f"{told['environment']['device_name']}, {told['dtype']}, torch {told['environment']['torch']}"
        found.append((where, told["idioms"]))
    return found


def table(folder: str | Path) -> str:
    """Markdown: of each recorded run of the corpus, how many idioms are fused and right; or the command that records one."""
    rows = []
    for where, told in _recorded(folder):
        told = [one for one in told if "not_on_device" not in one]  # what torch itself does not run in that dtype
        idioms, misses = ([one for one in told if one["near_miss"] is wanted] for wanted in (False, True))
        fused = [one for one in idioms if "error" in one]
        right, left = (sum(bool(one["right"]) for one in each) for each in (fused, misses))
        rows.append((where, f"{right} of {len(idioms)}", len(fused) - right, f"{left} of {len(misses)}"))
    if not rows:
        return f"Not recorded yet; `{RECORDS}` records it."
    return tables.markdown(
        ("where", "idioms fused and right", "fused and wrong", "near misses left alone, for the right reason"), rows
    )


def largest(folder: str | Path, count: int = 5) -> str:
    """Markdown: of each recorded run the idioms whose fused error is largest beside that of the lines as written."""
    rows = []
    for where, told in _recorded(folder):
        fused = [one for one in told if one.get("plain") and one.get("error") is not None]
        for one in sorted(fused, key=lambda one: one["plain"] / one["error"] if one["error"] else 2.0)[:count]:
            rows.append(
                (where, one["idiom"], f"{one['error']:.1e}", f"{one['plain']:.1e}", f"{one['error'] / one['plain']:.2f}")
            )
    if not rows:
        return "Not recorded yet: the short answer tells the command."
    return tables.markdown(("where", "idiom", "error, fused", "as written", "fused over as written"), rows)
