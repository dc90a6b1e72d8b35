"""Trials in JSON lines: appended in one write under a lock, read with every damaged line reported, none lost or half-written.

A line is a Trial ("kind": "trial") or an environment ("kind": "env"), written once per file and referenced by its hash.
Samples are integer nanoseconds; floats are the shortest text that reads back as the same number.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kpt_lab import source
from kpt_lab.core import NOTHING, Technique, Trial, Trials, Workload
from kpt_lab.environment import environment
from kpt_lab.lines import SCHEMA, from_dict, frozen, plain, to_dict


class CorruptRecord(UserWarning):
    """A line of a record could not be read; the message names file and line. All other lines are read."""


class NewerSchema(ValueError):
    """A record was written by a newer kpt_lab; the message names file, line, and both versions."""


# ---- writing


def record(trials: Trial | Iterable[Trial], path: str | os.PathLike[str]) -> None:
    """Append Trials to a JSONL file, made with its folders where it is missing; several processes may do so at once.

    All lines of a call go out in one write under a lock, so a cell's Trials stay together. Raises TypeError before anything is
    written where a value can't be kept, OSError where the disk is full (the file is then as before) or locks don't exist.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"path is the folder {os.fspath(path)!r}; give a file, such as results/softmax.forward.jsonl")
    environments: dict[str, str] = {}
    lines = [_line(trial, environments) for trial in ((trials,) if isinstance(trials, Trial) else trials)]
    if not lines:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with _lock(descriptor, exclusive=True):
            before = os.fstat(descriptor).st_size
            held = _whole(descriptor, before)
            new = [line for key, line in environments.items() if not _holds(held, key)]
            start = "" if not held or held.endswith(b"\n") else "\n"  # a torn last line stays apart from what follows
            data = (start + "".join(new + lines)).encode()
            if (written := os.write(descriptor, data)) != len(data):
                os.ftruncate(descriptor, before)
                raise OSError(
                    f"{os.fspath(path)!r} took {written} of {len(data)} bytes; is the disk full? The file is as before"
                )
    finally:
        os.close(descriptor)


def _line(trial: Trial, environments: dict[str, str]) -> str:
    """A Trial's line; its environment's line goes into `environments` by hash. What changes within a process, the mappings
    in `env` such as the clocks before and after, stays on the Trial's line."""
    data = to_dict(trial)
    env = data.pop("env", None)
    if env:
        fixed = {key: value for key, value in env.items() if not isinstance(value, dict)}
        during = {key: value for key, value in env.items() if isinstance(value, dict)}
        text = _dumps(dict(sorted(fixed.items())))
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        environments[key] = f'{_env_start(key)},"env":{text}}}\n'
        data |= {"env": key, **({"during": during} if during else {})}
    return _dumps(data) + "\n"


def _dumps(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _env_start(key: str) -> str:
    return f'{{"kind":"env","schema":{SCHEMA},"id":"{key}"'


def _holds(data: bytes, key: str) -> bool:
    """Whether a whole line of `data` is the environment of that hash."""
    start, position = _env_start(key).encode(), -1
    while (position := data.find(start, position + 1)) >= 0:
        end = data.find(b"\n", position)
        if end >= 0 and (position == 0 or data[position - 1 : position] == b"\n") and _parsed(data[position:end]):
            return True
    return False


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def _lock(descriptor: int, *, exclusive: bool) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not POSIX; a reader can do without
        if exclusive:
            raise OSError("recording needs POSIX file locks, which this platform lacks; record under Linux or macOS") from None
        yield
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _whole(descriptor: int, size: int) -> bytes:
    parts, position = [], 0
    while position < size and (part := os.pread(descriptor, size - position, position)):
        parts.append(part)
        position += len(part)
    return b"".join(parts)


# ---- reading


def load(path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Trials:
    """All Trials of a JSONL file, of several, or of a folder's *.jsonl, in the order in which they were recorded.

    A torn or corrupt line is skipped with a CorruptRecord warning that names file and line. FileNotFoundError where there is
    nothing to read; NewerSchema where a newer kpt_lab wrote it.
    """
    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    files: dict[Path, None] = {}
    for place in map(Path, given):
        inside = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
        if not inside or not inside[0].exists():
            raise FileNotFoundError(
                f"path is {str(place)!r}: {'it holds no *.jsonl' if place.is_dir() else 'there is no such file'}"
            )
        files |= dict.fromkeys(inside)
    collecting = gc.isenabled()
    gc.disable()  # nothing here makes a cycle, and looking for some in so many small objects costs as much as reading
    try:
        return Trials(trial for file in files for trial in _read(file))
    finally:
        if collecting:
            gc.enable()


def _read(path: Path) -> list[Trial]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _lock(descriptor, exclusive=False):
            data = _whole(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
    lines = data.split(b"\n")
    torn = len(lines) if lines[-1] else 0  # a last line that is not ended may still be whole
    found: list[Trial] = []
    environments: dict[str, Mapping[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = _parsed(line)
        if entry is None:
            what = "breaks off (its writer was stopped)" if number == torn else "is corrupt"
            _report(path, number, f"{what} and is skipped")
        else:
            _take(entry, found, environments, path, number)
    return found


def _take(
    entry: dict[str, Any], found: list[Trial], environments: dict[str, Mapping[str, Any]], path: Path, number: int
) -> None:
    """Add the Trial or environment of one line; report a line that is neither."""
    schema, kind = entry.get("schema"), entry.get("kind")
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerSchema(f"{path} line {number} has schema {schema}; this kpt_lab reads up to {SCHEMA}: install a newer one")
    try:
        if not isinstance(schema, int):
            raise TypeError(f"schema is {schema!r}")
        if kind == "env":
            environments[entry["id"]] = frozen(entry["env"])
        elif kind == "trial":
            if isinstance(env := entry.get("env"), str) and env not in environments:
                _report(path, number, f"names the environment {env}, which no line above it gives; it is read without")
                environments[env] = NOTHING
            found.append(from_dict(entry, environments))
        else:
            _report(path, number, f"is of the unknown kind {kind!r} and is skipped")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _report(path, number, f"is not a whole {kind} ({type(error).__name__}: {error}) and is skipped")


def _report(path: Path, number: int, what: str) -> None:
    warnings.warn(f"{path} line {number} {what}", CorruptRecord, stacklevel=2)


# ---- judging


def newest(trials: Iterable[Trial]) -> Trials:
    """Without what was measured again: the newest Trial wins, and a run of a cell stays whole while any of it is the newest.

    A run is one process's Trials of one cell; their samples are paired, so a technique never loses its own baselines. Trials
    are told apart by workload, params, technique, knobs, target, device, dtype, seed, host and process.
    """
    given = list(trials)
    order = sorted(range(len(given)), key=lambda i: given[i].at)
    runs: list[list[int]] = []
    current: dict[tuple[str, str, int], tuple[int, set[str]]] = {}
    latest: dict[str, int] = {}
    for i in order:
        trial = given[i]
        place = (trial.host, trial.cell or f"alone {i}", trial.process)
        run, labels = current.get(place, (-1, set()))
        if run < 0 or trial.label in labels:  # a label that comes again begins another run of the same cell
            run, labels = len(runs), set()
            runs.append([])
        current[place] = (run, labels | {trial.label})
        runs[run].append(i)
        latest[_identity(trial)] = run
    kept = set(latest.values())
    return Trials(given[i] for i in sorted(i for run in kept for i in runs[run]))


def _identity(trial: Trial) -> str:
    names = ("workload", "params", "technique", "knobs", "target", "device", "dtype", "seed", "host", "process")
    values = [plain(getattr(trial, name), name) for name in names]
    return json.dumps([*values, trial.source.get("publication", "")], sort_keys=True)


def status_of(trial: Trial, workload: Workload | None = None, technique: Technique | None = None) -> str:
    """ "" for a Trial that still stands; else "stale", "unknown source" or "another environment".

    Stale: the source of its technique or workload, or the measuring method, is not what it was. Unknown source: one of them
    can't be found to compare. Another environment: this same machine now has another torch, triton or driver. `workload` and
    `technique` are compared where given; else those that stand at the places that the Trial names.
    """
    return _judge(trial, {}, workload, technique)


def statuses(trials: Iterable[Trial]) -> list[str]:
    """`status_of` each Trial, hashing each source once."""
    today: dict[str, str] = {}
    return [_judge(trial, today) for trial in trials]


def _judge(trial: Trial, today: dict[str, str], workload: Workload | None = None, technique: Technique | None = None) -> str:
    recorded = trial.source
    if recorded.get("publication"):
        return ""
    if "method" in recorded and recorded["method"] != _method():
        return "stale"
    pairs = [(recorded.get("workload", ""), _hash_today(recorded.get("workload_at", ""), NOTHING, workload, today))]
    if "technique" in recorded or technique:
        hashed = _hash_today(recorded.get("technique_at", ""), trial.knobs, technique, today)
        pairs.append((recorded.get("technique", ""), hashed))
    if any(then and now and then != now for then, now in pairs):
        return "stale"
    if not all(then and now for then, now in pairs):
        return "unknown source"
    here = _environment_here(trial.device)
    if not trial.host or here.get("host") != trial.host:
        return ""
    changed = any(trial.env.get(name, "") != here.get(name, "") for name in ("torch", "triton", "driver"))
    return "another environment" if changed else ""


def _method() -> int:
    from kpt_lab.runner import METHOD  # here, because measuring needs more than reading a record does

    return METHOD


def _hash_today(at: str, knobs: Mapping[str, Any], live: Any, today: dict[str, str]) -> str:
    """Hash of `live`, or of what stands at "module:attribute" today with these knobs; "" where nothing does."""
    if live is not None:
        return source.source_hash(live)
    key = f"{at} {sorted(knobs.items(), key=repr)}"
    if key not in today:
        try:
            found = source.resolve(at)
            today[key] = source.source_hash(replace(found, knobs=knobs) if knobs else found)
        except (ValueError, TypeError):  # gone, or something else stands there
            today[key] = ""
    return today[key]


@functools.lru_cache(maxsize=8)
def _environment_here(device: str) -> Mapping[str, Any]:
    try:
        return environment(device) if device else {}
    except ValueError:  # no such device here, so it can't be the same host
        return {}
