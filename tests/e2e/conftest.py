"""A real browser for the tests in this folder: Chromium, JupyterLab on a copy of the notebooks, and pages that reach no network.

`make e2e` runs them. A plain `pytest` run passes this folder by, since it needs a browser and takes minutes.
KPT_LAB_CHROMIUM names a browser to use; KPT_LAB_E2E_ALL=1 runs all notebooks instead of three.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RESULTS = ROOT / "test-results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Debian's Chromium as root in a container, without what it sends home on its own
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 60_000  # the longest wait for one condition, on two busy cores
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


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


FAILED = pytest.StashKey[list[bool]]()


# Pages


@dataclass
class Watched:
    """A page, and all that it did which nobody wants: requests off this machine, errors in the console, uncaught exceptions."""

    page: Any
    external: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def watch(self) -> Watched:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        self.page.context.route("**/*", self._gate)
        return self

    def _hear(self, message: Any) -> None:
        self.console.append(f"{message.type}: {message.text}")
        if message.type == "error":
            self.errors.append(message.text)

    def _gate(self, route: Any) -> None:
        url = urlsplit(route.request.url)
        if url.scheme in ("data", "blob", "file", "about") or url.hostname in LOOPBACK:
            route.continue_()
        else:
            self.external.append(route.request.url)
            route.abort()

    def keep(self, name: str) -> None:
        """Save a screenshot and the console's lines to test-results/."""
        RESULTS.mkdir(exist_ok=True)
        self.page.screenshot(path=RESULTS / f"{name}.png", timeout=PATIENCE_MS)
        lines = [self.page.url, *self.console, *self.errors, *(f"external: {url}" for url in self.external)]
        (RESULTS / f"{name}.txt").write_text("\n".join(lines) + "\n")


def browser_path() -> str:
    """Where Chromium is, or a sentence that says how to get it."""
    chosen = os.environ.get("KPT_LAB_CHROMIUM")
    if chosen and not shutil.which(chosen):
        pytest.exit(f"KPT_LAB_CHROMIUM is {chosen!r}, which is no program; name a Chromium or Chrome, or unset it", 2)
    found = chosen or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.exit("the browser tests found no Chromium: apt-get install chromium, or set KPT_LAB_CHROMIUM", 2)
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
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


# JupyterLab

# the shown notebook's kernel has nothing left to do
IDLE = """() => window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'"""
ASK = """async code => {
  const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
  const future = kernel.requestExecute({code, store_history: false});
  let text = '';
  future.onIOPub = message => {
    if (message.header.msg_type === 'stream') text += message.content.text;
    if (message.header.msg_type === 'error') text += message.content.ename + ': ' + message.content.evalue;
  };
  const reply = await future.done;
  return [reply.content.status, text];
}"""
CELLS = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
  .filter(cell => cell.type === 'code' && cell.sharedModel.source.trim())
  .map(cell => ({
    id: cell.id, count: cell.executionCount, outputs: cell.sharedModel.outputs.map(output => ({
      kind: output.output_type, error: output.ename ? output.ename + ': ' + output.evalue : '',
      types: Object.keys(output.data ?? {}),
    })),
  }))"""
SHOW = """async id => {
  const book = window.jupyterapp.shell.currentWidget.content;
  await book.scrollToItem([...book.model.cells].findIndex(cell => cell.id === id), 'start');
}"""


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, and the folder that it serves."""

    url: str
    folder: Path

    def open(self, watched: Watched, notebook: str) -> Any:
        """Show a notebook of the folder, with its outputs cleared and its kernel idle; returns the page."""
        page = watched.page
        page.goto(f"{self.url}/lab/tree/{notebook}?reset")
        page.wait_for_function(IDLE)
        page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        return page

    def run_all(self, page: Any, *, timeout_ms: int = 3 * PATIENCE_MS) -> list[dict[str, Any]]:
        """Run every cell, wait until the kernel is idle, and return each code cell's id, count and outputs."""
        page.evaluate(
            "() => { window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => window.kptRan = true); }"
        )
        page.wait_for_function("() => window.kptRan", timeout=timeout_ms)
        page.wait_for_function(IDLE)
        return page.evaluate(CELLS)

    def ask(self, page: Any, code: str) -> str:
        """What the code prints in the shown notebook's kernel."""
        status, text = page.evaluate(ASK, code)
        assert status == "ok", f"the kernel raised {text}"
        return text.strip()

    def show(self, page: Any, cell: str) -> None:
        """Scroll to a cell: JupyterLab draws only those in sight."""
        page.evaluate(SHOW, cell)

    def close_kernels(self) -> None:
        """End all sessions, so that their memory is free before the next test."""
        import json

        with urllib.request.urlopen(f"{self.url}/api/sessions") as answer:
            sessions = json.load(answer)
        for session in sessions:
            end = urllib.request.Request(f"{self.url}/api/sessions/{session['id']}", method="DELETE")
            urllib.request.urlopen(end).close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lab_environment(folder: Path) -> dict[str, str]:
    """The settings under which JupyterLab keeps to the folder and shows no news."""
    names = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    places = {f"JUPYTER_{name}": folder / place for name, place in names.items()}
    places |= {"JUPYTERLAB_SETTINGS_DIR": folder / "settings", "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces"}
    places |= {"IPYTHONDIR": folder / "ipython"}
    news = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # chosen by tests/conftest.py
    return kept | {name: str(place) for name, place in places.items()}


def lab_command(folder: Path, port: int) -> list[str]:
    options = (
        "--allow-root",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
        # should these tests be killed, the server ends itself
        "--ServerApp.shutdown_no_activity_timeout=900",
        "--MappingKernelManager.cull_idle_timeout=900",
        "--MappingKernelManager.cull_connected=True",
    )
    return [sys.executable, "-m", "jupyterlab", *options]


def answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; False if it ended instead."""
    import time

    until = time.monotonic() + PATIENCE_MS / 1000
    while server.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{url}/api", timeout=5).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One JupyterLab for all tests, on a copy of notebooks/."""
    pytest.importorskip("jupyterlab")
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    root = folder / "root"
    shutil.copytree(ROOT / "notebooks", root, ignore=shutil.ignore_patterns("live", ".ipynb_checkpoints", "__pycache__"))
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
