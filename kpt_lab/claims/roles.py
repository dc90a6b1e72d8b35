"""The roles of the docs: {trial}, {recorded} and {quoted}; for Sphinx, list "kpt_lab.claims.roles" as an extension.

{trial}`softmax.forward rows=16384 cols=8192 dtype=bfloat16 technique="kpt triton" over="best baseline"`
{recorded}`benchmarks/recorded/redteam.cpu.json#cheats[escape=] count`
{quoted}`4.2x <Dao 2022, table 3>`
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kpt_lab.claims.benchmark import recorded
from kpt_lab.claims.prose import ROLES
from kpt_lab.claims.query import Shown, recorded_trials, root_of, trial


def quoted(content: str) -> Shown:
    """Somebody else's figure with its source: FIGURE <SOURCE>, the source a text or an address. ValueError without one."""
    form = re.fullmatch(r"(.*\S)\s*<([^<>]+)>", content.strip())
    if not form or len(re.findall(r"[A-Za-z]", form[2])) < 3:
        raise ValueError(f"content is {content!r}; accepted is FIGURE <SOURCE>, such as 4.2x <Dao 2022, table 3>")
    source = form[2].strip()
    link = next(iter(re.findall(r"https?://\S+", source)), "")
    return Shown(form[1], f"quoted: {source}", link)


def show(name: str, content: str, root: Path) -> Shown:
    """What the role `name` shows for `content`, from the records of the repository at `root`."""
    if name == "trial":
        return trial(content, recorded_trials(root))
    return recorded(content, root) if name == "recorded" else quoted(content)


# ---- Sphinx


def setup(app: Any) -> dict[str, Any]:
    """Register the roles with Sphinx; a figure shows its conditions as its title."""
    for name in ROLES:
        app.add_role(name, _role(name))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _role(name: str) -> Callable[..., Any]:
    """The docutils role `name`: an error of the page where its content stands for nothing, a warning where that is stale."""

    def role(
        kind: str, rawtext: str, text: str, line: int, inliner: Any, options: Any = None, content: Any = ()
    ) -> tuple[list[Any], list[Any]]:
        from docutils import nodes, utils
        from sphinx.util import logging

        env = inliner.document.settings.env
        try:
            shown = show(name, utils.unescape(text), root_of(env.srcdir))
        except ValueError as error:
            message = inliner.reporter.error(f"{{{name}}}: {error}", line=line)
            return [inliner.problematic(rawtext, rawtext, message)], [message]
        if shown.stale:
            warning = f"{{{name}}} {text}: {shown.stale}"
            logging.getLogger(__name__).warning(warning, location=(env.docname, line), type="kpt_lab", subtype="stale")
        text, title = shown.text + (" (stale)" if shown.stale else ""), "; ".join(filter(None, (shown.title, shown.stale)))
        figure = nodes.abbreviation(text, text, explanation=title, classes=["kpt-figure", f"kpt-{name}"])
        if not shown.link:
            return [figure], []
        return [nodes.reference("", "", figure, refuri=shown.link)], []

    return role
