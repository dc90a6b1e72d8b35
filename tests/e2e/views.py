"""A view in a page, used as a reader uses it: by the labels of its controls and by keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kpt_lab.widgets import front

# Every shape, square and word but the controls': any change of the figure changes it. Ids differ from view to view.
DRAWN = """root => [...root.querySelectorAll('*')].filter(each => !each.closest('.kpt-control')).map(each =>
  ['d', 'x', 'y', 'x1', 'x2', 'y1', 'y2', 'cx', 'cy', 'width', 'height', 'points', 'transform', 'fill', 'style', 'class']
    .map(name => each.getAttribute(name) ?? '').join(' ')
  + [...each.childNodes].filter(child => child.nodeType === Node.TEXT_NODE).map(child => child.data).join('')).join('\\n').replace(/kpt-\\d+-\\w+/g, '')"""
CHANGED = f"([root, before]) => root.isConnected && ({DRAWN})(root) !== before"
ANSWER_MS = 20_000  # how long a view may take to answer before it counts as dead
PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><head><title>View</title><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><style>body {{ margin: 8px }} {style}</style></head>
<body><main><h1>View</h1><div id="view"></div></main><script>{script}</script>
<script>window.kptLab.mount(document.getElementById("view"), "{view}", {data}, {state})</script></body></html>"""
SETTLE = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


class View:
    """One view: the element that holds its controls and its figure."""

    def __init__(self, root: Any) -> None:
        self.root, self.page = root, root.page
        self.root.locator("svg, table, p").first.wait_for()
        problem = self.root.locator(".kpt-problem").all_text_contents()
        assert not problem, problem

    def drawn(self) -> str:
        """The figure's geometry and words as one text."""
        self.page.evaluate(SETTLE)
        return str(self.root.evaluate(DRAWN))

    def changes(self, before: str) -> None:
        """Wait until the figure is another than it was."""
        self.page.wait_for_function(CHANGED, arg=[self.root.element_handle(), before], timeout=ANSWER_MS)

    def control(self, label: str) -> Any:
        return self.root.get_by_label(label, exact=True)

    def labels(self, kind: str) -> list[str]:
        """The labels of the controls of a kind ("select", "range", "checkbox") that can be used now, in order."""
        found = "select" if kind == "select" else f"input[type={kind}]"
        script = (
            f"root => [...root.querySelectorAll('{found}')].filter(box => !box.disabled).map(box => box.labels[0].textContent)"
        )
        return list(self.root.evaluate(script))

    def options(self, label: str) -> list[str]:
        """What a select offers now."""
        return list(self.control(label).locator("option:not([disabled])").all_text_contents())

    def chosen(self, label: str) -> str:
        return str(self.control(label).evaluate("box => box.selectedOptions[0].textContent"))

    def choose(self, label: str, option: str) -> None:
        """Choose another option and wait for the figure."""
        before = self.drawn()
        self.control(label).select_option(label=option)
        self.changes(before)

    def choose_another(self, label: str) -> str:
        """Choose the first option of a select that isn't chosen, wait for the figure; returns it."""
        present = self.chosen(label)
        option = next(option for option in self.options(label) if option != present)
        self.choose(label, option)
        return option

    def press(self, label: str, key: str) -> None:
        """Press a key on a control, and wait for the figure."""
        before = self.drawn()
        self.control(label).focus()
        self.page.keyboard.press(key)
        self.changes(before)

    def use_selects(self, most: int = 3) -> int:
        """Choose another option of the first selects that have one; returns how many changed the figure."""
        used = 0
        for label in self.labels("select")[:most]:
            if label in self.labels("select") and len(self.options(label)) > 1:
                self.choose_another(label)
                used += 1
        return used

    def use_pointer(self) -> bool:
        """Change the figure by its selects, or where none has a choice by ticking a box."""
        if self.use_selects():
            return True
        boxes = self.labels("checkbox")
        if boxes:
            before = self.drawn()
            self.control(boxes[-1]).click()
            self.changes(before)
        return bool(boxes)

    def step(self, label: str) -> int:
        """Move a slider one stop by the keyboard, away from its end, and wait for the figure; returns its new index."""
        box = self.control(label)
        at, most = int(box.input_value()), int(box.get_attribute("max"))
        self.press(label, "ArrowRight" if at < most else "ArrowLeft")
        assert abs(int(box.input_value()) - at) == 1
        return int(box.input_value())

    def use_keys(self) -> str:
        """Change the figure by the keyboard alone: a slider, else a square of a map, else a box to tick; returns which."""
        square = self.root.locator("td[tabindex='0']")
        if sliders := self.labels("range"):
            self.step(sliders[0])
            return sliders[0]
        if square.count():
            square.focus()
            for way in (("ArrowRight", "ArrowLeft"), ("Enter",)):
                before = self.drawn()
                for key in way:
                    self.page.keyboard.press(key)
                    if self.drawn() != before:
                        break
                else:
                    raise AssertionError(f"the map does not answer {' or '.join(way)}")
            return "map"
        box = self.labels("checkbox")[-1]
        self.press(box, "Space")
        return box

    def reveal(self) -> None:
        """Guess by the keyboard in predict-then-reveal, reveal, and find the guess in the answer."""
        label = "the speedup you expect"
        words = self.control(label).get_attribute("aria-valuetext")
        self.control(label).focus()
        self.page.keyboard.press("ArrowRight")
        guess = self.control(label).get_attribute("aria-valuetext")
        assert guess != words
        before = self.drawn()
        self.page.keyboard.press("Tab")
        self.page.keyboard.press("Enter")
        self.changes(before)
        assert f"You expected {guess}" in self.root.inner_text()


def page_of(folder: Path, view: str, data: Any, state: dict[str, Any], theme: str = "light", script: str = "") -> str:
    """The address of a page, opened as a file, that shows one view as the site does. script: instead of the site's own."""
    text = PAGE.format(
        theme=theme, view=view, style=front.stylesheet(), script=script or front.script(), data=json.dumps(data),
        state=json.dumps(state),
    )  # fmt: skip
    path = folder / f"{view}.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


def fact(view: View, name: str, column: int = 0) -> str:
    """A cell of the view's table of facts, by its row's head."""
    row = view.root.locator(".kpt-casts tr", has=view.page.get_by_role("rowheader", name=name, exact=True))
    return str(row.locator("td").nth(column).text_content())


def fits(view: View) -> None:
    """Nothing scrolls sideways, no control is too small to be hit, and axe finds nothing serious."""
    from axe_playwright_python.sync_playwright import Axe

    assert view.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    small = view.root.locator("button, select, input").evaluate_all(
        "all => all.filter(each => each.getBoundingClientRect().height < 24).map(each => each.outerHTML)"
    )
    assert small == []
    serious = [v for v in Axe().run(view.page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert serious == []
