"""Widgets over Trials for notebooks, imported as `kpt_lab.widgets`.

The package is mapped from the repository's widgets/ folder when kpt_lab is installed (`make lab` does that, and so does
`pip install -e '.[lab]'`). A bare checkout has no `kpt_lab.widgets`: recording on a headless machine never needs it.
"""

from typing import Any

try:
    import anywidget as _anywidget  # noqa: F401
except ImportError as _error:
    _missing = _error.name

    def __getattr__(name: str) -> Any:
        """One sentence where a view is asked for; `kpt_lab.widgets.front`, from which pages are built, needs none of that."""
        if name in __all__:
            raise ImportError(f"kpt_lab.widgets.{name} needs {_missing}: pip install 'kpt-lab[lab]'")
        raise AttributeError(f"module 'kpt_lab.widgets' has no attribute {name!r}")
else:
    from .bits import bits
    from .circuit import circuit
    from .energy import energy
    from .formats import formats
    from .live import live
    from .raster import raster
    from .views import View, breakeven, explorer, reveal, roofline

__all__ = ["View", "bits", "breakeven", "circuit", "energy", "explorer", "formats", "live", "raster", "reveal", "roofline"]
