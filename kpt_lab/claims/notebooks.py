"""The words that somebody typed into a notebook: Markdown cells, and the comments and texts in code cells. Outputs are none."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Iterator

from kpt_lab.claims.prose import CODE


def cells(text: str) -> Iterator[tuple[int, int, str]]:
    """Of each piece of text the cell's number, from 1, the lines above it in the cell, and the text as Markdown."""
    for number, cell in enumerate(json.loads(text)["cells"], 1):
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        if cell["cell_type"] == "code":
            yield from ((number, line - 1, typed) for line, typed in (*_texts(source), *_comments(source)))
        else:
            yield number, 0, source


def _texts(source: str) -> Iterator[tuple[int, str]]:
    """The string literals with their lines, and f-strings with a gap for each value."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic of IPython
        return
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in inside:
            parts = [part.value if isinstance(part, ast.Constant) else CODE for part in node.values]
            for value in node.values:  # texts within a value count on their own, its format does not
                inside |= {id(value)} if isinstance(value, ast.Constant) else set()
                if isinstance(value, ast.FormattedValue) and value.format_spec:
                    inside |= {id(each) for each in ast.walk(value.format_spec)}
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def _comments(source: str) -> Iterator[tuple[int, str]]:
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("# ")
    except (tokenize.TokenError, SyntaxError):
        return
