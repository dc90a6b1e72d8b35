"""The site: a Sphinx extension that shows notebooks' figures and views without a kernel, and writes the ledgers and the reference.

conf.py lists "kpt_lab.site" as an extension. Nothing here is needed to measure, and Sphinx is imported only while a site is built.
"""

from __future__ import annotations

from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """What Sphinx calls: connect all pieces of the extension."""
    from kpt_lab.site.build import setup as connected

    return connected(app)
