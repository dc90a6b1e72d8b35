"""Widgets over Trials for notebooks, imported as `kpt_lab.widgets`; there are none in this release.

The package is mapped from the repository's widgets/ folder when kpt_lab is installed (`make lab` does that, and so does
`pip install -e '.[lab]'`). A bare checkout has no `kpt_lab.widgets`: recording on a headless machine never needs it.
"""

__all__: list[str] = []
