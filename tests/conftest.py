"""Settings that must hold before anything is imported, and fixtures that every test may use.

Triton kernels run in the interpreter here. On a machine with a GPU, `TRITON_INTERPRET=0 pytest -m gpu` runs the tests that
need one, compiled.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated, so before any import

import hypothesis
import numpy as np
import pytest
import torch

from kpt_lab.testing import is_interpreted

# the interpreter and torch.compile make single examples slow in a way that says nothing about the code
hypothesis.settings.register_profile("kpt_lab", deadline=None, max_examples=25, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("kpt_lab")

SEED = 20261122


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)
    # numpy under the interpreter warns of infinities that the kernels are meant to handle
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = ""
    if not torch.cuda.is_available():
        reason = "needs a CUDA device"
    elif is_interpreted():
        reason = "needs compiled kernels: run TRITON_INTERPRET=0 pytest -m gpu"
    for item in items if reason else ():
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  (for libraries that still draw from numpy's global state)


class FakeClock:
    """A clock that moves only when told: call it or `now_ns()` to read nanoseconds, `advance(ns)` to move it."""

    def __init__(self) -> None:
        self._ns = 0

    def now_ns(self) -> int:
        return self._ns

    def __call__(self) -> int:
        return self._ns

    def advance(self, ns: int) -> None:
        if ns < 0:
            raise ValueError(f"ns is {ns}; a clock moves forward only")
        self._ns += int(ns)


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The clock that `kpt_lab.timer` reads, replaced by one that the test moves."""
    clock = FakeClock()
    monkeypatch.setattr("kpt_lab.timer._clock", clock)
    return clock
