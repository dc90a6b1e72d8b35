"""Chromium without what it sends home, and pages that reach no network and whose misdeeds are kept."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RESULTS = Path(__file__).parents[2] / "test-results"
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
    """Where Chromium is; FileNotFoundError with a sentence that says how to get it."""
    chosen = os.environ.get("KPT_LAB_CHROMIUM")
    if chosen and not shutil.which(chosen):
        raise FileNotFoundError(f"KPT_LAB_CHROMIUM is {chosen!r}, which is no program; name a Chromium or Chrome, or unset it")
    found = chosen or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        raise FileNotFoundError("no Chromium was found: apt-get install chromium, or name one in KPT_LAB_CHROMIUM")
    return found
