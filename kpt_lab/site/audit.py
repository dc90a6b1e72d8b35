"""What must hold of the built site: it loads nothing from elsewhere, no page is too heavy, its links lead somewhere; and what is mended.

python -m kpt_lab.site.audit docs/_build/html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kpt_lab.site.views import LIMIT

LOADING = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"), "video": ("src", "poster"),
    "audio": ("src",), "embed": ("src",), "object": ("data",), "track": ("src",), "image": ("href", "xlink:href"),
}  # fmt: skip
"""Attributes by which a page loads something, by element; a <link> loads unless it only names a page."""

NAMING = {"canonical", "alternate", "author", "license", "next", "prev", "index", "search", "help", "top"}
SHARED = ("_static", "_images")


_TERMLESS = re.compile(r"<dl>\s*((?:<dd>(?:(?!</?d[ldt]\b).)*</dd>\s*)+)</dl>", re.DOTALL)


def mended(text: str) -> str:
    """Sphinx's HTML with captions that are no headings, and a signature's parameters as lines instead of a list without terms."""
    text = text.replace('<p class="caption" role="heading">', '<p class="caption">')
    return _TERMLESS.sub(lambda found: f'<span class="site-lines">{_lines(found[1])}</span>', text)


def _lines(inside: str) -> str:
    return inside.replace("<dd>", "<span>").replace("</dd>", "</span>")


class _Page(HTMLParser):
    """Collects what a page loads, where its links lead, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "link" and not set(given.get("rel", "").split()) & NAMING:
            self.loads.append(given.get("href", ""))
        for name in LOADING.get(tag, ()):
            value = given.get(name, "")
            self.loads += [part.split()[0] for part in value.split(",") if part.strip()] if name == "srcset" else [value]


def audit(site: Path) -> list[str]:
    """Each fault of the site in the folder `site` as a sentence; ValueError where there is no site."""
    pages = {path: _parsed(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        raise ValueError(f"site is {str(site)!r}, which holds no HTML page; build it with make site")
    faults = [
        f"{sheet.relative_to(site)} loads {url} from elsewhere" for sheet in site.rglob("*.css") for url in _imported(sheet)
    ]
    resolved = {path.resolve(): page for path, page in pages.items()}
    for path, page in pages.items():
        name = path.relative_to(site)
        faults += [f"{name} loads {url} from elsewhere" for url in page.loads if _elsewhere(url)]
        faults += [f"{name} loads {url}, which is not there" for url in page.loads if _missing(path, url)]
        faults += [f"{name} links to {url}, which is not there" for url in page.links if _broken(path, url, resolved)]
        weight = path.stat().st_size + sum(_own(path, url, site) for url in dict.fromkeys(page.loads))
        if weight > LIMIT:
            faults.append(f"{name} takes {weight:,} bytes besides shared scripts; at most {LIMIT:,}")
    return faults


def _parsed(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def _elsewhere(url: str) -> bool:
    return bool(urlsplit(url).netloc) or urlsplit(url).scheme in ("http", "https", "ftp")


def _local(page: Path, url: str) -> Path | None:
    """The file that a page means by an address of its own site; None for others and for the page itself."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    return (page.parent / unquote(parts.path)).resolve()


def _missing(page: Path, url: str) -> bool:
    file = _local(page, url)
    return file is not None and not file.is_file()


def _broken(page: Path, url: str, pages: dict[Path, _Page]) -> bool:
    if urlsplit(url).scheme or urlsplit(url).netloc:
        return False
    file, anchor = _local(page, url) or page.resolve(), unquote(urlsplit(url).fragment)
    if not file.exists():
        return True
    found = pages.get(file)
    return bool(anchor) and found is not None and anchor not in found.anchors and "=" not in anchor  # "=": a view's state


def _own(page: Path, url: str, site: Path) -> int:
    """The bytes that a page loads for itself: files of the site outside its shared folders."""
    file = _local(page, url)
    if file is None or not file.is_file() or not file.is_relative_to(site.resolve()):
        return 0
    return 0 if file.relative_to(site.resolve()).parts[0] in SHARED else file.stat().st_size


def _imported(sheet: Path) -> list[str]:
    """The addresses elsewhere that a style sheet loads."""
    text = sheet.read_text(encoding="utf-8", errors="replace")
    urls = [part.split(")")[0].strip("'\" ") for part in text.split("url(")[1:]]
    return [url for url in urls if _elsewhere(url)]


def main(arguments: Sequence[str]) -> int:
    """Print the faults of the site in a folder, docs/_build/html by default; 1 where there are some."""
    faults = audit(Path(arguments[0] if arguments else "docs/_build/html"))
    print("\n".join(faults) or "nothing is loaded from elsewhere, no page is too heavy, every link leads somewhere")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
