"""`kpt-lab claims`: every figure in prose comes from a record or names its source; what does not is listed with its place."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kpt_lab import records, tables
from kpt_lab.claims import figures, notebooks, prose
from kpt_lab.claims.query import count, files, record_commands, trials_of
from kpt_lab.claims.roles import show

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "notebooks")
"""What is checked unless paths are given."""

IN_DOCS = "take it from a record with {trial}`...` or {recorded}`...`, or name its source: {quoted}`FIGURE <SOURCE>`"
IN_NOTEBOOK = 'let a code cell print it from Trials, or name its source in the sentence: "4.2x (quoted from SOURCE)"'
ELSEWHERE = (
    'let `python -m kpt_lab.tables` write it from Trials, or name its source in the sentence: "4.2x (quoted from SOURCE)"'
)


@dataclass
class Report:
    """What was found: failures and warnings as lines with their places, and how many figures are generated and quoted."""

    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pages: int = 0
    generated: int = 0
    quoted: int = 0


def check(root: Path, paths: Sequence[str | Path] = ()) -> Report:
    """Check the pages of the repository at `root`, or the files and folders of `paths`; ValueError for a path that isn't there."""
    report = Report()
    for path in pages(root, paths):
        report.pages += 1
        text = path.read_text(encoding="utf-8")
        where = _named(path, root)
        if path.suffix == ".ipynb":
            for number, above, source in notebooks.cells(text):
                _check_text(source, f"{where}: cell {number} line ", IN_NOTEBOOK, root, report, above)
        else:
            in_docs = path.resolve().is_relative_to((root / "docs").resolve())
            _check_text(text, f"{where}:", IN_DOCS if in_docs else ELSEWHERE, root, report)
    report.warnings += stale_files(root)
    return report


def pages(root: Path, paths: Sequence[str | Path] = ()) -> list[Path]:
    """The Markdown files and notebooks in `paths`, without those that git ignores."""
    found: dict[Path, None] = {}
    for given in map(Path, paths or [root / name for name in PAGES if (root / name).exists()]):
        if not given.exists():
            raise ValueError(f"path is {str(given)!r}, which is not there")
        if given.is_file() and given.suffix not in (".md", ".ipynb"):
            raise ValueError(f"path is {str(given)!r}; accepted are folders, and files that end in .md or .ipynb")
        inside = [given] if given.is_file() else _unignored(given)
        found |= dict.fromkeys(inside)
    return list(found)


def _unignored(folder: Path) -> list[Path]:
    candidates = sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".ipynb") and path.is_file())
    candidates = [path for path in candidates if not any(part[0] in "._" for part in path.relative_to(folder).parts)]
    try:
        asked = "\0".join(str(path.resolve()) for path in candidates)
        command = ["git", "-C", str(folder), "check-ignore", "-z", "--stdin"]
        told = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    except OSError:  # no git here: then nothing is known to be ignored
        return candidates
    ignored = set(told.stdout.split("\0"))
    return [path for path in candidates if str(path.resolve()) not in ignored]


def _named(path: Path, root: Path) -> str:
    full = path.resolve()
    return str(full.relative_to(root.resolve())) if full.is_relative_to(root.resolve()) else str(path)


def _check_text(text: str, where: str, remedy: str, root: Path, report: Report, above: int = 0) -> None:
    page = prose.read(text)
    for sentence in page.sentences:
        open_, quoted = figures.find(sentence)
        report.quoted += quoted
        said = " ".join(sentence.text.replace(prose.CODE, "`..`").split())
        for figure in open_:
            line = above + sentence.line + sentence.text.count("\n", 0, figure.start)
            report.failures.append(f"{where}{line}: {figure.text!r} ({figure.kind}) in {said!r}: {remedy}")
    for role in page.roles:
        _check_role(role, where, remedy, root, report)
    for line, table in page.tables:
        if table != tables.headline_table(tables.recorded(root / "notebooks/phase1/results")):
            report.failures.append(
                f"{where}{line}: the table between the markers is not what the Trials give: run `python -m kpt_lab.tables`"
            )
        else:
            report.generated += sum(cell.count("x [") for cell in table.split("|"))


def _check_role(role: prose.Role, where: str, remedy: str, root: Path, report: Report) -> None:
    if remedy != IN_DOCS:
        report.failures.append(f"{where}{role.line}: {{{role.name}}} is a role, which shows as its own text here: {remedy}")
        return
    try:
        shown = show(role.name, role.content, root)
    except ValueError as error:
        report.failures.append(f"{where}{role.line}: {{{role.name}}}: {error}")
        return
    if role.name == "quoted":
        report.quoted += 1
    else:
        report.generated += 1
    if shown.stale:
        report.warnings.append(f"{where}{role.line}: {{{role.name}}} {role.content}: {shown.stale}")


def stale_files(root: Path) -> list[str]:
    """For each committed record with stale Trials a line with the command that records them again."""
    found = []
    for path in files(root):
        mine = trials_of(path)
        old = [trial for trial, status in zip(mine, records.statuses(mine), strict=True) if status == "stale"]
        commands = record_commands(old, _named(path, root))
        if old:
            found.append(f"{_named(path, root)}: {len(old)} of {count(len(mine), 'Trial')} are stale; {'; '.join(commands)}")
    return found


def say(report: Report) -> str:
    """The report in lines: failures, warnings, and the counts."""
    counts = f"{count(report.pages, 'page')}: {count(report.generated, 'figure')} generated, {report.quoted} quoted"
    outcome = f"{len(report.failures)} without a source" if report.failures else "none without a source"
    lines = [*report.failures, *(f"warning: {line}" for line in report.warnings), f"{counts}, {outcome}"]
    return "\n".join(lines)
