"""kpt_lab: PyTorch speedups that can be trusted.

    import kpt_lab as kpt
    from kpt_lab.kernels import softmax

    trials = kpt.sweep(softmax.forward, softmax.techniques, {"rows": [256], "cols": [1024, 4096]})
    kpt.figures.speedup(trials, over="best baseline")

Importing needs torch and numpy alone; figures and widgets are loaded when they are first used.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from kpt_lab import baselines
from kpt_lab.core import (
    Cost,
    Incomparable,
    Metric,
    Problem,
    Ratio,
    Recording,
    Target,
    Technique,
    Trial,
    Trials,
    Unsupported,
    Workload,
)
from kpt_lab.measure import measure, predict, quote
from kpt_lab.models import workload
from kpt_lab.ratios import breakeven, compare, speedup, speedups
from kpt_lab.records import load, record
from kpt_lab.sweep import start, sweep

if TYPE_CHECKING:
    from kpt_lab import figures

__all__ = [
    "Cost",
    "Incomparable",
    "Metric",
    "Problem",
    "Ratio",
    "Recording",
    "Target",
    "Technique",
    "Trial",
    "Trials",
    "Unsupported",
    "Workload",
    "baselines",
    "breakeven",
    "compare",
    "figures",
    "load",
    "measure",
    "predict",
    "quote",
    "record",
    "speedup",
    "speedups",
    "start",
    "sweep",
    "workload",
]


def __getattr__(name: str) -> Any:
    if name == "figures":
        try:
            return importlib.import_module("kpt_lab.figures")
        except ImportError as error:
            raise ImportError(f"kpt_lab.figures needs plotly: pip install plotly ({error})") from error
    raise AttributeError(f"module 'kpt_lab' has no attribute {name!r}")


class _Widgets:
    """Last in line of the importers: where no other one found kpt_lab.widgets, it says in one sentence what to do."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name == "kpt_lab.widgets":
            raise ModuleNotFoundError(
                "kpt_lab.widgets exists only where kpt_lab is installed, not in a bare checkout: run pip install -e '.[lab]' there"
            )


sys.meta_path.append(_Widgets)
