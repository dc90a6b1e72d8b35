"""MyST-NB's renderers for notebooks' outputs: Plotly's figures and this project's views; pyproject.toml names them as entry points."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kpt_lab.claims.query import root_of
from kpt_lab.site import plots, views

GROUP = "myst_nb.mime_renderers"
NAMES = ("kpt_lab_plotly", "kpt_lab_view")
"""The entry points that an installation must have."""

WIDGET = "application/vnd.jupyter.widget-view+json"


class Plotly:
    """Figures: drawn by the page's script, with their text as text."""

    mime_priority_overrides = (("html", plots.MIME, 2), ("html", WIDGET, None))

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[Any] | None:
        """The figure as a node, or None for other outputs."""
        if inline or data.mime_type != plots.MIME:
            return None
        return _shown(renderer, lambda: raw(plots.plot_html(_mapping(data.content)), plot=True))


class View:
    """Views: live again in the page, over the records that they name."""

    mime_priority_overrides = (("html", views.MIME, 1),)

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[Any] | None:
        """The view as a node, or None for other outputs."""
        if inline or data.mime_type != views.MIME:
            return None
        env = renderer.renderer.sphinx_env
        return _shown(renderer, lambda: view_node(env, _mapping(data.content), notebook_folder(env)))


def _shown(renderer: Any, make: Callable[[], Any]) -> list[Any]:
    """What `make` makes; where it refuses, a warning of the page and the reason as text."""
    from docutils import nodes

    try:
        return [make()]
    except ValueError as error:
        renderer.logger.warning(f"an output can't be shown: {error}", subtype="mime_type")
        return [nodes.paragraph(text=f"This output can't be shown: {error}")]


def _mapping(content: Any) -> Mapping[str, Any]:
    found = json.loads(content) if isinstance(content, str) else content
    if not isinstance(found, Mapping):
        raise ValueError(f"the output is a {type(found).__name__}; accepted is a JSON object")
    return found


def raw(text: str, **marks: Any) -> Any:
    """HTML as a docutils node; `marks` tell the build which scripts the page needs."""
    from docutils import nodes

    return nodes.raw("", text, format="html", **{f"kpt_{name}": value for name, value in marks.items()})


def view_node(env: Any, content: Mapping[str, Any], folder: Path) -> Any:
    """A view's node; its columns are written beside the pages, once for all views of the same ones."""
    key, script = views.data_script(views.columns_of(views.checked(content), folder))
    file = Path(env.config.kpt_pages) / "_data" / f"{key}.js"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(script, encoding="utf-8")
    used = env.temp_data.setdefault("kpt_views", [])
    source = "" if key in used else "../" * env.docname.count("/") + f"_data/{key}.js"
    used += [key, content["view"]]
    return raw(views.view_html(content, key, used.count(content["view"]), source), view=True)


def notebook_folder(env: Any) -> Path:
    """The folder from which the notebook of the page being read names its records: that of its original."""
    root = root_of(env.srcdir)
    return (root / "notebooks" / Path(env.docname).relative_to("notebooks")).parent


def missing_entry_points() -> str:
    """One sentence where this installation lacks the renderers' entry points, else ""."""
    from importlib.metadata import entry_points

    there = {found.name for found in entry_points(group=GROUP)}
    if there >= set(NAMES):
        return ""
    return "the notebooks' figures can't be shown, since kpt_lab was installed before it had renderers for them: run pip install -e . again"
