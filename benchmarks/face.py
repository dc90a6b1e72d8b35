"""How fast the face is: the explorer over many Trials, the site's build, its pages' sizes, their first figure, each notebook's run.

    make site                                     # the pages that are measured
    python benchmarks/face.py                     # all of it, a few minutes; needs the e2e extra and Chromium
    python benchmarks/face.py explorer pages      # some of it; what the file has of the others is kept

Prints each figure beside its limit, writes benchmarks/recorded/face.json, and exits with 1 where a limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the browser's settings and the made-up Trials are the tests'

from kpt_lab.environment import clocks, environment  # noqa: E402
from tests.e2e.browser import FLAGS, browser_path  # noqa: E402

SITE = ROOT / "docs" / "_build" / "html"
NBVAL = ("-m", "pytest", "-q", "--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tests/sanitize.cfg")
# painted: the second frame after the last change
FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
DRAW = """async ([text, state]) => {
  const begun = performance.now();
  const root = document.createElement('div');
  document.body.replaceChildren(root);
  window.kptLab.mount(root, 'explorer', JSON.parse(text), state);
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  if (!root.querySelector('svg')) throw new Error('the explorer drew nothing');
  const seconds = (performance.now() - begun) / 1000;
  const label = root.querySelector('[aria-roledescription=figure]').getAttribute('aria-label');
  return [seconds, Number(label.match(/(\\d+) points/)[1])];
}"""
# the moment at which a page's first figure, a view or a chart, is painted, in ms since its navigation began
SEEN = """const look = () => document.querySelector('.kpt-view svg path, .kpt-view svg circle, .kpt-view td, .js-plotly-plot path')
  ? requestAnimationFrame(() => { window.kptSeen = performance.now(); }) : requestAnimationFrame(look);
look();"""


def figure(name: str, value: float, unit: str, limit: float | None, how: str) -> dict[str, Any]:
    """One measured figure beside its limit."""
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "limit": limit,
        "holds": limit is None or value < limit,
        "how": how,
    }


@contextmanager
def chromium() -> Iterable[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        yield browser
        browser.close()


def explorer(repeats: int) -> list[dict[str, Any]]:
    """From the columns' text to the painted explorer, over 10,000 made-up Trials, all of them in the figure."""
    from kpt_lab.widgets import front

    from kpt_lab.columns import columns
    from tests.synthetic import many_trials

    trials = many_trials(10_000)
    begun = time.perf_counter()
    data = columns(trials)
    made = time.perf_counter() - begun
    text = json.dumps(data, separators=(",", ":"))
    every = dict.fromkeys(("workload", "dtype", "target", "environment", "cache", *data["params"]), "all")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_content("<!doctype html><title>explorer</title><body></body>")
        page.add_style_tag(content=front.stylesheet())
        page.add_script_tag(content=front.script())
        runs = {
            name: [page.evaluate(DRAW, [text, state]) for _ in range(repeats)] for name, state in (("all", every), ("", {}))
        }
    how = f"JSON.parse, mount and two frames; median of {repeats}; {{}} points in the figure"
    drawn = {name: (median(seconds for seconds, _ in of), how.format(of[-1][1])) for name, of in runs.items()}
    return [
        figure("10,000 Trials drawn in the explorer, all in one figure", drawn["all"][0], "s", 1.0, drawn["all"][1]),
        figure("10,000 Trials drawn in the explorer, as it opens", drawn[""][0], "s", 1.0, drawn[""][1]),
        figure("10,000 Trials as columns", len(text.encode()) / 1e6, "MB", 2.0, "the JSON that the front end reads"),
        figure("10,000 Trials made columns, in Python", made, "s", None, "kpt_lab.columns.columns; once"),
    ]


def site(repeats: int) -> list[dict[str, Any]]:
    """A build of the site from nothing."""
    shutil.rmtree(SITE.parent, ignore_errors=True)
    begun = time.perf_counter()
    subprocess.run(["make", "site"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return [figure("site built", time.perf_counter() - begun, "s", 180.0, "make site after removing docs/_build; once")]


def pages(repeats: int) -> list[dict[str, Any]]:
    """What each page of the site loads besides shared scripts, and when its first figure is painted, from a local folder."""
    found = sorted(SITE.rglob("*.html"))
    if not found:
        raise SystemExit("there is no site in docs/_build/html: run make site first")
    sizes, seen = {}, {}
    with chromium() as browser:
        for path in found:
            name = str(path.relative_to(SITE))
            sizes[name], live = own_bytes(browser, path)
            if live:
                seen[name] = median(first_figure(browser, path) for _ in range(repeats))
    heavy, late = max(sizes, key=sizes.__getitem__), max(seen, key=seen.__getitem__)
    for name, seconds in seen.items():
        print(f"pages: {name}: {sizes[name] / 1e6:.2f} MB, first figure after {seconds:.2f} s")
    how = f"all that the page loads but what other pages load too; the largest of {len(sizes)}, {heavy}"
    when = f"from navigation to its paint, over file://, a new browser context each; median of {repeats}; the latest of {len(seen)}, {late}"
    return [
        figure("page besides shared scripts", sizes[heavy] / 1e6, "MB", 2.0, how),
        figure("first figure visible", seen[late], "s", 1.0, when),
    ]


def own_bytes(browser: Any, path: Path) -> tuple[int, bool]:
    """The bytes of a page and of all that it loads outside the folder of shared scripts and styles; whether it has a live view."""
    page = browser.new_page()
    loaded = {path}
    page.on("request", lambda request: loaded.add(Path(request.url.split("?")[0].split("#")[0].removeprefix("file://"))))
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate(FRAMES)
    live = page.locator(".kpt-view").count() > 0
    page.close()
    return sum(file.stat().st_size for file in loaded if file.is_file() and SITE / "_static" not in file.parents), live


def first_figure(browser: Any, path: Path) -> float:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.add_init_script(SEEN)
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_function("() => window.kptSeen")
    seconds = page.evaluate("() => window.kptSeen / 1000")
    context.close()
    return float(seconds)


def notebooks(repeats: int) -> list[dict[str, Any]]:
    """Each notebook under nbval as make test runs it: the seconds that pytest counts for its cells and its kernel's start."""
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, *NBVAL, f"--junitxml={report}", "-o", "junit_duration_report=total", "notebooks"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(f"notebooks failed under nbval:\n{run.stdout[-3000:]}")
        for case in ElementTree.parse(report).iter("testcase"):
            times[case.attrib["classname"]] = times.get(case.attrib["classname"], 0.0) + float(case.attrib["time"])
    slow = max(times, key=times.__getitem__)
    each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
    return [
        figure("slowest notebook under nbval", times[slow], "s", 60.0, slow),
        figure("mean of the notebooks under nbval", mean(times.values()), "s", 15.0, each),
    ]


PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "explorer": explorer,
    "site": site,
    "pages": pages,
    "notebooks": notebooks,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--repeats", type=int, default=7, help="of what takes under a second")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "recorded" / "face.json")
    chosen = parser.parse_args()
    if unknown := [part for part in chosen.parts if part not in PARTS]:
        parser.error(f"part is {unknown[0]!r}; accepted are {', '.join(PARTS)}")
    kept = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    for part in chosen.parts or PARTS:
        before = clocks("cpu")  # the load tells whether the machine was otherwise idle
        figures = PARTS[part](chosen.repeats)
        kept[part] = {
            "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "env": environment("cpu"),
            "clocks": before,
            "figures": figures,
        }
        chosen.out.write_text(json.dumps(kept, indent=1) + "\n")
    failed = False
    for part in kept.values():
        for found in part["figures"]:
            failed |= not found["holds"]
            limit = f" (limit {found['limit']} {found['unit']})" if found["limit"] is not None else ""
            print(f"{found['name']}: {found['value']} {found['unit']}{limit}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
