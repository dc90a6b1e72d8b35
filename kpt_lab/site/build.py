"""What the extension does while Sphinx builds: pages made beforehand, directives, and on each page the scripts that it needs."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

from kpt_lab.claims.query import root_of
from kpt_lab.site import audit, docstrings, ledger, mime, pages, plots, sheets, views

LATE = {"loading_method": "defer"}


def setup(app: Any) -> dict[str, Any]:
    """Connect the extension to Sphinx."""
    app.add_config_value("kpt_pages", "", "")
    app.connect("config-inited", prepare)
    app.connect("builder-inited", static_files)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("html-page-context", page_scripts)
    app.connect("html-page-context", accessible, priority=900)  # behind the theme, which makes the navigation
    for name, directive in _directives().items():
        app.add_directive(name, directive)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def prepare(app: Any, config: Any) -> None:
    """Make the pages that Sphinx is about to read; an error in one sentence where the installation lacks the entry points."""
    from sphinx.errors import ConfigError

    if said := mime.missing_entry_points():
        raise ConfigError(said)
    source = Path(app.srcdir)
    pages.copy_notebooks(root_of(source), source / "notebooks")
    pages.write_reference(source / "reference")


def static_files(app: Any) -> None:
    """Put Plotly, the views' script and style sheet, and the figures' looks among the static files."""
    import plotly

    front = importlib.import_module("kpt_lab.widgets.front")  # mypy knows widgets/ only by its folder
    app.config.kpt_pages = str(app.outdir)  # where views put their columns
    made = Path(app.outdir).parent / "made"
    made.mkdir(parents=True, exist_ok=True)
    (made / "kpt_views.js").write_text(front.script(), encoding="utf-8")
    (made / "kpt_lab.css").write_text(front.stylesheet(), encoding="utf-8")
    (made / "kpt_look.js").write_text(plots.look_script(), encoding="utf-8")
    library = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    app.config.html_static_path = [*app.config.html_static_path, str(made), str(library)]


def process_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain sentences; Sphinx wants reStructuredText."""
    lines[:] = docstrings.rst(lines)


def page_scripts(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Views first, so that they are soon there; then the site's own script, which fetches Plotly where there are figures."""
    from docutils import nodes

    marked = list(doctree.findall(nodes.raw)) if doctree is not None else []
    if any(node.get("kpt_view") for node in marked):
        app.add_css_file("kpt_lab.css")
        app.add_js_file("kpt_views.js", priority=700, **LATE)
    app.add_js_file("site.js", priority=720, **LATE)
    if any(node.get("kpt_plot") for node in marked):
        app.add_js_file("kpt_look.js", priority=730, **LATE)
        app.add_js_file("plotly.min.js", priority=740, type="text/plain", **{"data-later": "yes"})


def accessible(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Take from Sphinx's HTML what screen readers stumble over: headings without a level, and lists of definitions without terms."""
    for part in ("furo_navigation_tree", "body"):
        if context.get(part):
            context[part] = audit.mended(context[part])


def _directives() -> dict[str, Any]:
    """The directives of Markdown pages: a live view over records, and the two ledgers."""
    from docutils.parsers.rst import directives
    from sphinx.util.docutils import SphinxDirective

    class ViewDirective(SphinxDirective):
        """A live view: its name, then :records: paths from the repository's root, :where: and :state: as JSON, :title:."""

        required_arguments = 1
        option_spec = dict.fromkeys(("records", "where", "state", "title"), directives.unchanged)

        def run(self) -> list[Any]:
            try:
                content = view_content(self.arguments[0], self.options)
                return [mime.view_node(self.env, content, root_of(self.env.srcdir))]
            except ValueError as error:
                raise self.error(f"kpt-view: {error}") from error

    class LedgerDirective(SphinxDirective):
        """A table made from committed Trials or code: "claims", a part of the results ledger, or of the hardware page."""

        required_arguments = 1

        def run(self) -> list[Any]:
            from docutils import nodes
            from docutils.statemachine import StringList

            try:
                text = ledger_text(self.arguments[0], root_of(self.env.srcdir))
            except ValueError as error:
                raise self.error(f"kpt-ledger: {error}") from error
            box = nodes.container()
            self.state.nested_parse(StringList(text.splitlines(), self.arguments[0]), self.content_offset, box)
            return list(box.children)

    return {"kpt-view": ViewDirective, "kpt-ledger": LedgerDirective}


def view_content(view: str, options: dict[str, str]) -> dict[str, Any]:
    """What the directive asks for, as a notebook's output would say it; ValueError for JSON that can't be read."""
    content: dict[str, Any] = {
        "view": view,
        "records": shlex.split(options.get("records", "")),
        "title": options.get("title", ""),
    }
    if not content["records"]:
        raise ValueError("records is empty; accepted are paths of record files or folders, from the repository's root")
    for name in ("where", "state"):
        try:
            content[name] = json.loads(options.get(name) or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is {options[name]!r}, which is no JSON object ({error.msg})") from None
    return dict(views.checked(content))


def ledger_text(name: str, root: Path) -> str:
    """The Markdown of the claims ledger, of a part of the results ledger of the repository at `root`, or of the hardware page."""
    if name in sheets.PARTS:
        return sheets.sheets(name)
    if name == "claims":
        from kpt_lab import claims

        return claims.ledger(root / "docs" / "claims.toml")
    return ledger.results(root, name)
