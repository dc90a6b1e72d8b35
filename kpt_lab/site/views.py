"""A live view as HTML: a box with its state, and the columns of its records as a script that works from a folder, too."""

from __future__ import annotations

import functools
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kpt_lab.site.plots import script_json

MIME = "application/vnd.kpt-lab.view+json"
"""The output beside a notebook's live widget, as kpt_lab.widgets.views writes it."""

VIEWS = ("explorer", "breakeven", "roofline", "reveal", "formats", "energy", "raster", "bits", "circuit")
HEIGHTS = {
    "explorer": 640,
    "breakeven": 600,
    "roofline": 600,
    "reveal": 420,
    "formats": 720,
    "energy": 900,
    "raster": 1000,
    "bits": 1020,
    "circuit": 800,
}
"""px kept free until a view is drawn, so that the text below does not jump."""

LIMIT = 2_000_000
"""Bytes: the largest data file of a view, and the largest page."""


def checked(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of a view's output; ValueError where it names no view that there is, or brings no data."""
    if content.get("view") not in VIEWS:
        raise ValueError(f"view is {content.get('view')!r}; accepted are {', '.join(map(repr, VIEWS))}")
    if not isinstance(content.get("state", {}), Mapping):
        raise ValueError(f"state is {content['state']!r}; accepted is a mapping of what the view shows at first")
    if ("records" in content) == ("data" in content):
        raise ValueError("a view brings either 'records', the paths of record files, or 'data', their columns")
    return content


def columns_of(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The columns that a view draws: its own, or those of its records, which are paths from `folder`.

    ValueError where a path is not there, or no Trial fulfils `where`.
    """
    if "data" in content:
        return dict(content["data"])
    paths = tuple(str((folder / name).resolve()) for name in content["records"])
    if missing := next((name for name, path in zip(content["records"], paths, strict=True) if not Path(path).exists()), ""):
        raise ValueError(f"records names {missing!r}, which is not in {folder.name}")
    overs = tuple(content["overs"]) if "overs" in content else None
    return _columns(paths, json.dumps(content.get("where", {}), sort_keys=True), overs, content.get("title", ""))


@functools.lru_cache(maxsize=32)
def _columns(paths: Sequence[str], where: str, overs: Sequence[str] | None, title: str) -> dict[str, Any]:
    from kpt_lab.columns import columns
    from kpt_lab.records import load

    found = load(paths).where(**json.loads(where))
    if not found:
        raise ValueError(f"no Trial of {', '.join(Path(path).name for path in paths)} fulfils {where}")
    data = columns(found, overs=overs, title=title)
    for environment in data["environments"]:
        environment["elsewhere"] = ""  # speaks of the machine that built the site, not of the reader's
    return data


def data_script(data: Mapping[str, Any]) -> tuple[str, str]:
    """A key, and a classic script that puts these columns into window.kptData under it; ValueError where they are too large."""
    text = script_json(data)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    script = f'(window.kptData = window.kptData || {{}})["{key}"] = {text};\n'
    if len(script.encode()) > LIMIT:
        raise ValueError(f"a view's columns take {len(script.encode()):,} bytes; at most {LIMIT:,}: narrow it with where")
    return key, script


def view_html(content: Mapping[str, Any], key: str, number: int, source: str = "") -> str:
    """A view's box: which view, the key of its columns, its state; and a sentence for readers without scripts.

    number: the how manieth such view of its page; source: the address of the columns' script, "" where the page has it already.
    """
    view, title = content["view"], content.get("title", "")
    name = f"{view.capitalize()}: {title}" if title else view.capitalize()
    said = (
        "This view needs scripts, which your browser does not run; the figures and tables around it show recorded Trials, too."
    )
    return "".join(
        (
            f'<div class="kpt-view" id="{view}-{number}" data-view="{view}" data-columns="{key}" role="group" ',
            f'aria-label="{html.escape(name)}" style="min-height:{HEIGHTS[view]}px">',
            f'<script type="application/json">{script_json(dict(content.get("state", {})))}</script>',
            f'<noscript><p class="site-noscript">{said}</p></noscript></div>',
            f'<script defer src="{source}"></script>' if source else "",
        )
    )
