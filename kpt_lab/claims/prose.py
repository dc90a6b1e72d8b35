"""Markdown -> sentences with their lines, without code; and the roles on the way. Needs no Markdown parser.

Every step keeps the lines apart, so that a sentence's place is that in the file.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

ROLES = ("trial", "recorded", "quoted")
GENERATED, QUOTED, CODE = "\ue000", "\ue001", "\ue002"
"""What stands in a sentence in the place of a generated figure, a quoted one, and a code span."""


class Sentence(NamedTuple):
    """A sentence, heading or table cell; `header` is the column's, for a cell."""

    line: int
    text: str
    header: str = ""


class Role(NamedTuple):
    """An inline role of ours with what stands between its backticks."""

    line: int
    name: str
    content: str


class Page(NamedTuple):
    """What a page says: its sentences, roles, and the tables between the markers of generated text, with their lines."""

    sentences: list[Sentence]
    roles: list[Role]
    tables: list[tuple[int, str]]


_CODE_BLOCKS = frozenset(
    [
        "code",
        "code-block",
        "code-cell",
        "sourcecode",
        "literalinclude",
        "math",
        "toctree",
        "mermaid",
        "graphviz",
        "doctest",
        "bibliography",
    ]
)
_FENCE = re.compile(r"^[\s>]*(`{3,}|~{3,}|:{3,})\s*(.*)$")
_OPTION = re.compile(r"^[\s>]*:(?!caption|alt|title)[\w-]+:(?:\s.*)?$")
_MARKED = re.compile(r"<!-- trials:begin -->\n?(.*?)\n?<!-- trials:end -->", re.DOTALL)
_SPAN = re.compile(r"(?:\{([\w:+-]+)\})?(?<!`)(`+)(?!`)((?:(?!\n[ \t]*\n).)+?)(?<!`)\2(?!`)", re.DOTALL)
_SHOWN_ROLES = frozenset(["doc", "ref", "numref", "term", "abbr", "sub", "sup", "download", "any", "guilabel"])
_NO_CODE = re.compile(
    r"\s*[x×~≈+]?\s*\d[\d.,]*(?:\s*(?:to|-|–)\s*[\d.,]+)?\s*"
    r"(?:[xX×]|%|[nuµμm]?s|[kKMGT]i?B(?:/s)?|[kKMGTP]?FLOPs?(?:/s)?|[nuµμmk]?[JW])(?:\s+[A-Za-z]+){0,5}\s*|\s*[x×]\d+(?:\.\d+)?\s*"
)
_ITEM = re.compile(r"^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)")
_RULE = re.compile(r"^[\s>]*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(\[\ue000-\ue002×+~≈])")
_ABBREVIATED = re.compile(r"\b(?:e\.g|i\.e|vs|al|cf|ca|approx|Fig|Eq|Sec|Tab|No|resp)\.$")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_MATH_FIGURE = re.compile(r"\s*[\d.,]+\s*(?:\\times|\\%|×|\\,\s*\\?\w+)\s*")


def read(source: str) -> Page:
    """The sentences, roles and generated tables of Markdown text; lines are counted from 1."""
    tables: list[tuple[int, str]] = []
    roles: list[Role] = []
    text = _without_tables(_without_front_matter(source), tables)
    text = "\n".join(_without_code(text.split("\n")))
    text = re.sub(r"<!--.*?-->", _blank, text, flags=re.DOTALL)
    text = re.sub(r"<(script|style|pre|code)\b.*?</\1>", _blank, text, flags=re.DOTALL | re.IGNORECASE)
    text = _SPAN.sub(_spans(text, roles), text)
    lines = [_plain(line) for line in _without_links(text).split("\n")]
    return Page(list(_sentences(lines)), roles, tables)


# ---- what is no prose


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _without_front_matter(source: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", _blank, source, flags=re.DOTALL)


def _without_tables(text: str, tables: list[tuple[int, str]]) -> str:
    def taken(match: re.Match[str]) -> str:
        tables.append((_line_at(text, match.start()), match[1]))
        return _blank(match)

    return _MARKED.sub(taken, text)


def _without_code(lines: list[str]) -> Iterator[str]:
    """The lines, those of fenced and indented code empty; a directive's text (a note, a table) stays."""
    fences: list[tuple[str, bool]] = []
    content, after_blank, in_code = 0, True, False
    for line in lines:
        fence = _FENCE.match(line)
        if fence and (fence[1][0] != "`" or "`" not in fence[2]):
            mark, info = fence[1], fence[2].strip()
            if fences and not info and mark[0] == fences[-1][0][0] and len(mark) >= len(fences[-1][0]):
                fences.pop()
                yield ""
                continue
            if not (fences and fences[-1][1]):
                name = re.match(r"\{([\w:-]+)\}\s*(.*)", info)
                is_code = name[1] in _CODE_BLOCKS if name else mark[0] != ":"
                fences.append((mark, is_code))
                yield name[2] if name and not is_code else ""
                continue
        if fences:
            yield "" if fences[-1][1] or _OPTION.match(line) else line
            continue
        if not line.strip():
            after_blank = True
            yield ""
            continue
        indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())
        if after_blank and indent < content:
            content = indent if indent and content else 0
        in_code = indent >= content + 4 and (after_blank or in_code)
        if not in_code and (item := _ITEM.match(line)):
            content = len(item[0])
        after_blank = False
        yield "" if in_code else line


def _spans(text: str, roles: list[Role]) -> Callable[[re.Match[str]], str]:
    """What a code span or role is replaced by; our roles are gathered. A span that is nothing but a figure is prose."""

    def replaced(match: re.Match[str]) -> str:
        name, inside = match[1], match[3]
        tail = "\n" * match[0].count("\n")
        if name in ROLES:
            roles.append(Role(_line_at(text, match.start()), name, " ".join(inside.split())))
            return (QUOTED if name == "quoted" else GENERATED) + tail
        if name in _SHOWN_ROLES:
            return re.sub(r"\s*<[^<>]*>\s*$", "", inside.replace("\n", " ")) + tail
        return inside if not name and _NO_CODE.fullmatch(inside) else CODE + tail

    return replaced


def _without_links(text: str) -> str:
    """Links as their texts, images as theirs; addresses as the word "link"."""
    text = re.sub(r"^[ \t]*\[(?!\^)[^\]\n]+\]:[ \t]*\S+.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", _blank, text, flags=re.DOTALL)
    text = re.sub(r"(?<![\w$\\])\$([^$\n]+)\$(?!\d)", lambda m: m[1] if _MATH_FIGURE.fullmatch(m[1]) else CODE, text)
    text = text.replace("\\times", "×").replace("\\%", "%").replace("\\,", " ")
    for _ in range(2):  # an image may stand in a link
        text = re.sub(r"!?\[([^\[\]]*)\]\(([^()\s]*(?:\([^()]*\)[^()\s]*)*)(?:\s+\"([^\"]*)\")?\)", _link, text)
    text = re.sub(r"!?\[([^\[\]]+)\]\[[^\[\]]*\]", r"\1", text)
    text = re.sub(r"\[\^[^\]]+\]:?", "", text)
    text = re.sub(r"<https?://[^>\s]*>|https?://[^\s)>\]]+", "link", text)
    return _TAG.sub(_attributes, text)


def _link(match: re.Match[str]) -> str:
    return f"{match[1] or 'link'}{f' ({match[3]})' if match[3] else ''}"


def _attributes(match: re.Match[str]) -> str:
    """Of an HTML tag only what a reader sees: its alt and title. Newlines stay; tags of inline emphasis leave no gap."""
    seen = " ".join(re.findall(r"\b(?:alt|title)=[\"']([^\"']*)", match[0]))
    inline = re.match(r"</?(?:b|i|em|strong|u|span|sup|sub|mark)\b", match[0])
    return (seen or ("" if inline else " ")) + "\n" * match[0].count("\n")


def _plain(line: str) -> str:
    """One line with its characters in one form, and without the marks of emphasis, headings and quotations."""
    line = (
        unicodedata.normalize("NFKC", html.unescape(line))
        .replace("\u200b", "")
        .replace("μ", "µ")
        .replace("−", "-")
        .replace("⁄", "/")
    )
    line = re.sub(r"^\s*(?:>\s?)+", "", line)
    return re.sub(r"\*+(?=\S)|(?<=\S)\*+|(?<!\w)_+(?=\w)|(?<=[\w.!?%])_+(?!\w)|~~", "", line)


# ---- sentences


def _sentences(lines: list[str]) -> Iterator[Sentence]:
    paragraph: list[str] = []
    start, header = 1, None
    for number, line in enumerate([*lines, ""], 1):
        following = lines[number] if number < len(lines) else ""
        cells = _cells(line) if "|" in line else []
        if header is None and cells and _RULE.match(following) and "-" in following and "|" in following:
            yield from _split(start, "\n".join(paragraph))
            paragraph, header = [], cells
            yield from (Sentence(number, cell) for cell in cells if cell)
            continue
        if header is not None and (cells or _RULE.match(line)) and line.strip():
            if not _RULE.match(line):
                columns = [*header, *[""] * len(cells)]
                yield from (Sentence(number, cell, columns[i]) for i, cell in enumerate(cells) if cell)
            continue
        header = None
        heading, item = re.match(r"^\s*#+\s", line), re.match(r"^\s*(?:[-+]|\d{1,9}[.)])\s+|^\s*\*\s+", line)
        if not line.strip() or heading or item:
            yield from _split(start, "\n".join(paragraph))
            paragraph = []
        if not paragraph:
            start = number
        if line.strip():
            paragraph.append(line[(heading or item).end() :] if heading or item else line)  # type: ignore[union-attr]
        if heading:
            yield from _split(start, "\n".join(paragraph))
            paragraph = []


def _cells(line: str) -> list[str]:
    inner = re.sub(r"^\s*\||\|\s*$", "", line)
    return [" ".join(cell.split()) for cell in re.split(r"(?<!\\)\|", inner)]


def _split(line: int, text: str) -> Iterator[Sentence]:
    """The sentences of a paragraph that begins in `line`."""
    begin = 0
    for end in _END.finditer(text):
        if _ABBREVIATED.search(text[: end.start()]):
            continue
        yield Sentence(line + text.count("\n", 0, begin), text[begin : end.end()].strip())
        begin = end.end()
    if text[begin:].strip():
        yield Sentence(line + text.count("\n", 0, begin), text[begin:].strip())
