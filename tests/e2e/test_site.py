"""The built site with the network blocked, from a folder and from a local server: pages quiet, views live, nobody left out."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .views import View

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
PHONE = 390
SERIOUS = ("serious", "critical")
VIEWS = ("explorer", "breakeven", "roofline", "formats")
READY = "() => [...document.querySelectorAll('.kpt-view')].every(view => view.querySelector('.kpt-root > *'))"
# what a view puts on the clipboard, kept where the test can read it
COPIED = "navigator.clipboard.writeText = text => { window.kptCopied = text; return Promise.resolve(); }"
SETTLED = "() => document.readyState === 'complete'"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *values: Any) -> None:
        pass


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built site."""
    if not (SITE / "index.html").is_file():
        pytest.fail("there is no site in docs/_build/html: run make site first", pytrace=False)
    return SITE


@pytest.fixture(scope="session")
def served(site: Path) -> Iterator[str]:
    """The address at which a local server gives the site out."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=["file", "http"])
def base(request: pytest.FixtureRequest, site: Path) -> str:
    """Where the site's pages begin: a folder, or a server."""
    return site.as_uri() if request.param == "file" else request.getfixturevalue("served")


def pages(site: Path) -> list[str]:
    return sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))


def showing(site: Path, name: str) -> str:
    """The first page that shows this view."""
    found = [page for page in pages(site) if f'data-view="{name}"' in (site / page).read_text()]
    assert found, f"no page shows {name}"
    return min(found, key=lambda page: (page != "index.html", page))


def settled(page: Any, url: str) -> None:
    """Open a page and wait until all of it is there and its views are drawn."""
    page.goto(url)
    page.wait_for_function(SETTLED)
    page.wait_for_function(READY)


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_every_page_fetches_nothing_logs_no_error_and_fits(
    width: int, base: str, site: Path, watch: Callable[..., Any]
) -> None:
    watched = watch(width=width, height=900)
    found = {}
    for name in pages(site):
        settled(watched.page, f"{base}/{name}")
        excess = watched.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        broken = watched.page.evaluate("() => [...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        complaints = [*watched.external, *watched.errors, *(f"no image {source}" for source in broken)]
        complaints += [f"{excess} px wider than the window"] if excess > 0 else []
        if complaints:
            found[name] = complaints
            watched.keep(f"site-{width}-{name.replace('/', '-')}")
        watched.external.clear()
        watched.errors.clear()
    assert not found, json.dumps(found, indent=1)


@pytest.mark.parametrize("name", VIEWS)
def test_view_reacts_to_selection_and_keyboard_without_a_kernel(
    name: str, base: str, site: Path, watch: Callable[..., Any]
) -> None:
    watched = watch(height=1200)
    view = opened(name, base, site, watched)
    assert view.use_keys()
    assert view.use_pointer()
    assert watched.external == []
    assert watched.errors == []


def test_a_guess_is_revealed_without_a_kernel(base: str, site: Path, watch: Callable[..., Any]) -> None:
    watched = watch(height=1200)
    opened("reveal", base, site, watched).reveal()
    assert watched.external == []
    assert watched.errors == []


def opened(name: str, base: str, site: Path, watched: Any) -> View:
    settled(watched.page, f"{base}/{showing(site, name)}")
    return View(watched.page.locator(f'.kpt-view[data-view="{name}"] .kpt-root').first)


def test_an_address_restores_the_view(base: str, site: Path, watch: Callable[..., Any]) -> None:
    first = watch()
    first.page.add_init_script(COPIED)
    view = opened("explorer", base, site, first)
    before = view.drawn()
    label = next(label for label in view.labels("select") if len(view.options(label)) > 1)
    option = view.choose_another(label)
    drawn = view.drawn()
    view.root.get_by_role("button", name="Copy link").click()
    address = first.page.wait_for_function("() => window.kptCopied").json_value()
    second = watch()
    settled(second.page, address)
    restored = View(second.page.locator('.kpt-view[data-view="explorer"] .kpt-root').first)
    assert restored.chosen(label) == option
    assert restored.drawn() == drawn != before


def test_search_finds_a_term(base: str, site: Path, watch: Callable[..., Any]) -> None:
    watched = watch()
    watched.page.goto(f"{base}/search.html?q=roofline")
    watched.page.locator("#search-results li a").first.wait_for()
    watched.page.wait_for_function(SETTLED)
    assert watched.external == []
    assert watched.errors == []


# a page of each kind that readers meet: front, notebook, ledgers, how-to, reference
KINDS = (
    "index.html",
    "notebooks/phase1/02_memory_bound_ops.html",
    "notebooks/phase1/03_can_you_guess_the_speedup.html",
    "notebooks/phase2/01_fp8_formats.html",
    "notebooks/phase3/04_convert_a_transformer.html",
    "notebooks/phase3/07_how_many_bits.html",
    "results.html",
    "claims.html",
    "howto/add-a-technique.html",
    "reference/kpt_lab.measure.html",
)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(theme: str, served: str, site: Path, watch: Callable[..., Any]) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = watch(color_scheme=theme).page
    found = {}
    for name in KINDS:
        settled(page, f"{served}/{name}")
        for violation in Axe().run(page).response["violations"]:
            if violation["impact"] in SERIOUS:
                places = [" ".join(map(str, spot["target"])) for spot in violation["nodes"]]
                found[f"{name}: {violation['id']}"] = [violation["help"], len(places), *places[:5]]
    assert not found, json.dumps(found, indent=1)
