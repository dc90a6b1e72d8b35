"""JupyterLab as these tests start and drive it: settings of its own, cells run by its own commands, its kernel asked directly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .browser import PATIENCE_MS, Watched

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
    until = time.monotonic() + PATIENCE_MS / 1000
    while server.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{url}/api", timeout=5).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False
