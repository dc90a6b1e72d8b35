"""This project's docstrings, which are plain sentences, as reStructuredText for Sphinx."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from textwrap import dedent

_ITEM = re.compile(r"(\*{0,2}[A-Za-z_][\w, .*]{0,40}): +(\S.*)")
_CODE = re.compile(r"(`+)(.+?)\1")


def escaped(text: str) -> str:
    """A line in which only `code` is marked; every other sign stands for itself."""
    out, end = "", 0
    for match in _CODE.finditer(text):
        out += _escaped(text[end : match.start()]) + f"``{match[2].strip()}``"
        if text[match.end() : match.end() + 1].isalnum():
            out += "\\ "
        end = match.end()
    return out + _escaped(text[end:])


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_|`<>])", r"\\\1", text)


def rst(lines: Iterable[str]) -> list[str]:
    """A docstring's lines as reStructuredText: paragraphs, lists of names, code where it is indented or begins with >>>."""
    out: list[str] = []
    for block in _blocks(lines):
        if block[0].startswith((" ", ">>>")):
            out += ["::", "", *(f"   {line}" for line in dedent("\n".join(block)).splitlines()), ""]
        elif sum(bool(_ITEM.match(line)) for line in block) > 1 and _ITEM.match(block[0]):
            out += [*_items(block), ""]
        else:
            out += [_line(line) for line in _unindented(block)] + [""]
    return out


def _line(line: str) -> str:
    if line.startswith("- "):
        return f"- {escaped(line[2:])}"
    text = escaped(line)
    return f"\\{text}" if re.match(r"([-+*=#.:]|\d+[.)]|\(?[A-Za-z0-9][.)])(\s|$)|[=\-.]{4,}$|\.\. ", line) else text


def _unindented(block: Sequence[str]) -> list[str]:
    """Continued lines of a list keep their indent, all others lose it."""
    listed = block[0].startswith("- ")
    return [line if listed and not line.startswith(" ") else line.strip() for line in block] if not listed else _joined(block)


def _joined(block: Sequence[str]) -> list[str]:
    found: list[str] = []
    for line in block:
        if line.startswith("- "):
            found.append(line)
        else:
            found[-1] += f" {line.strip()}"
    return found


def _items(block: Sequence[str]) -> list[str]:
    """ "name:  text" lines as a list, each with what continues it."""
    found: list[tuple[str, str]] = []
    for line in block:
        match = _ITEM.match(line)
        if match:
            found.append((match[1], match[2]))
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    return [f"- **{_escaped(name.strip('*'))}**: {escaped(text)}" for name, text in found]


def _blocks(lines: Iterable[str]) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line.rstrip())
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]
