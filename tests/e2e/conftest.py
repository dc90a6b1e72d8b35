"""A real browser for the tests in this folder: Chromium, JupyterLab on a copy of the notebooks, and pages that reach no network.

`make e2e` runs them. A plain `pytest` run passes this folder by, since it needs a browser and takes minutes.
KPT_LAB_CHROMIUM names a browser to use; KPT_LAB_E2E_ALL=1 runs all notebooks instead of three.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .browser import FLAGS, Watched, browser_path
from .jupyter import Lab, answers, free_port, lab_command, lab_environment

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FAILED = pytest.StashKey[list[bool]]()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect here only when this folder, or a file of it, was asked for by name."""
    asked = [(config.invocation_params.dir / str(word).split("::")[0]).resolve() for word in config.invocation_params.args]
    return None if any(path.is_relative_to(HERE) for path in asked) else True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Let `watched` know, when it ends, whether its test failed."""
    report = yield
    item.stash.setdefault(FAILED, []).append(report.failed)  # type: ignore[attr-defined]
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    try:
        path = browser_path()
    except FileNotFoundError as missing:
        pytest.exit(str(missing), 2)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def watch(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Watched]]:
    """Opens watched pages: `watch(width=390, color_scheme="dark")`; a failed test leaves their screenshots in test-results/."""
    opened: list[Watched] = []

    def watched(*, width: int = 1280, height: int = 1000, **options: Any) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        opened.append(Watched(context.new_page()).watch())
        return opened[-1]

    yield watched
    failed = any(request.node.stash.get(FAILED, []))
    for index, page in enumerate(opened):
        if failed:
            page.keep(re.sub(r"\W+", "-", request.node.name).strip("-") + (f"-{index}" if index else ""))
        page.page.context.close()


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One JupyterLab for all tests, on a copy of notebooks/ and of what they read."""
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    root = folder / "root"
    shutil.copytree(ROOT / "notebooks", root, ignore=shutil.ignore_patterns("live", ".ipynb_checkpoints", "__pycache__"))
    shutil.copytree(ROOT / "benchmarks/recorded", folder / "benchmarks/recorded")  # which notebooks read, two folders up
    log = folder / "server.log"
    with log.open("wb") as out:
        command, settings = lab_command(root, port), lab_environment(folder)
        server = subprocess.Popen(command, env=settings, stdout=out, stderr=out, start_new_session=True)
    try:
        lab = Lab(f"http://127.0.0.1:{port}", root)
        assert answers(lab.url, server), f"JupyterLab did not start: {log.read_text()[-2000:]}"
        yield lab
    finally:
        server.send_signal(signal.SIGTERM)  # ends its kernels too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture
def lab(lab_server: Lab) -> Iterator[Lab]:
    """The session's JupyterLab; the kernels that a test starts end with it."""
    yield lab_server
    lab_server.close_kernels()
