"""A sweep that is chosen, started, watched, cancelled and resumed on a notebook's page, on the reader's own machine.

It runs in a thread, so that the page answers meanwhile, and each finished cell is appended to a file at once.
"""

from __future__ import annotations

import html
import re
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ipywidgets
import torch

from kpt_lab import panels, records, timer
from kpt_lab.core import Technique, Trial, Trials, Workload, dtype_name, to_dtype
from kpt_lab.isolate import Progress
from kpt_lab.measure import check_device
from kpt_lab.ratios import COPY, cells
from kpt_lab.sweep import Sweep
from kpt_lab.sweep import start as start_sweep
from kpt_lab.tables import conditions

from .choices import WRAP, Asked, Choices, offered, start_values
from .views import explorer

OPTIONS = ("device", "dtype", "budget", "processes", "seed", "cache", "limit", "setup")
BUDGET = 2.0  # seconds of timing for each cell
POLL = 0.2  # seconds between two looks at where the sweep stands

_busy: list[Live] = []  # the one that measures: two at once would disturb each other's times
_claim = threading.Lock()
_NO_THREAD = threading.Thread()  # never started, so not alive


def live(
    module_or_workload: ModuleType | Workload | str,
    techniques: Technique | Sequence[Technique] | None = None,
    grid: Mapping[str, Iterable[Any]] | None = None,
    *,
    recorded: Any = None,
    path: str | Path | None = None,
    **options: Any,
) -> Live:
    """Controls for a sweep on this machine, its progress, and a figure that grows with it; nothing runs before Start.

    module_or_workload: a module of operations, such as kpt_lab.kernels.softmax (or its name), or one Workload. techniques: by
    default the module's own. grid: what the fields hold at first. recorded: Trials, or a path to records, shown beside.
    path: the JSONL file that each finished cell is appended to, by default results/live/NAME.jsonl; Resume skips what it holds.
    options: device, dtype, budget (seconds a cell, 2), processes, seed, cache, limit and setup, as `kpt.start` takes them.
    ValueError where an argument can't be used; what goes wrong later appears in the widget, as a sentence.
    """
    if unknown := [name for name in options if name not in OPTIONS]:
        raise ValueError(f"live has no option {unknown[0]!r}; accepted are {', '.join(OPTIONS)}")
    workloads, own, lines = offered(module_or_workload)
    chosen = (techniques,) if isinstance(techniques, Technique) else tuple(own if techniques is None else techniques)
    if not chosen or not all(isinstance(t, Technique) for t in chosen):
        raise ValueError("techniques must hold at least one Technique, for example kpt_lab.baselines.eager")
    beside = Trials(recorded if isinstance(recorded, Trials) else records.load(recorded) if recorded else ())
    beside = Trials(t for t in beside if t.device)  # what was measured, not what was modelled or quoted
    starts = {w.name: start_values(w, lines, beside, grid or {}) for w in workloads}
    check_device(options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu"))
    dtypes = [t.dtype for t in beside if t.workload == workloads[0].name] or ["float32"]
    options["dtype"] = dtype_name(to_dtype(options.get("dtype", max(dtypes, key=dtypes.count))))
    return Live(Choices(workloads, chosen, starts, {"budget": BUDGET, **options}), beside, path)


class Live(ipywidgets.VBox):
    """The widget that `live` makes; `trials` is what stands in its file and what it measured since.

    `start()`, `cancel()` and `resume()` do what the buttons do, `wait()` blocks until the sweep under way has ended.
    """

    def __init__(self, choices: Choices, recorded: Trials, path: str | Path | None) -> None:
        self.choices, self._recorded, self._path = choices, recorded, path
        self._stop, self._thread = threading.Event(), _NO_THREAD
        self._sweep: Sweep | None = None
        self.start_button = _button("Start", "play", "Measure all chosen cells on this machine")
        self.cancel_button = _button("Cancel", "stop", "Stop; finished cells are kept")
        self.resume_button = _button("Resume", "forward", "Measure only the cells that the file does not hold yet")
        self.progress = ipywidgets.IntProgress(0, 0, 1, description="cells done", style={"description_width": "initial"})
        self.status, self.problems, self.beside, self.trouble, self.kept = (ipywidgets.HTML() for _ in range(5))
        self.view = explorer(Trials())
        self.start_button.on_click(lambda _: self.start())
        self.cancel_button.on_click(lambda _: self.cancel())
        self.resume_button.on_click(lambda _: self.resume())
        buttons = ipywidgets.Box([self.start_button, self.cancel_button, self.resume_button], layout=WRAP)
        stand = ipywidgets.Box([self.progress, self.status], layout=WRAP)
        super().__init__([choices, buttons, stand, self.problems, self.beside, self.view, self.trouble, self.kept])
        self._show_workload()
        self._enable(running=False)
        choices.step.observe(lambda _: self._show_workload(), "value")

    def __repr__(self) -> str:  # the same whatever was measured, for notebooks keep it
        return f"live sweep of {', '.join(self.choices.step.options)}"

    @property
    def path(self) -> Path:
        """The file that finished cells are appended to."""
        name = re.sub(r"[^\w.-]+", "_", self.choices.workload.name)
        return Path("results", "live", f"{name}.jsonl") if self._path is None else Path(self._path)

    @property
    def trials(self) -> Trials:
        """What the file held of this workload, and all that was measured since."""
        return Trials(self._found)

    @property
    def running(self) -> bool:
        """Whether a sweep is under way."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Measure all chosen cells, those that the file holds as well; returns at once."""
        self._begin(anew=True)

    def resume(self) -> None:
        """Measure the chosen cells that the file does not hold yet; returns at once."""
        self._begin(anew=False)

    def cancel(self) -> None:
        """Stop the sweep under way, this one's or the one in its way; finished cells are kept, the one under way is dropped."""
        for each in {id(each): each for each in (self, *_busy)}.values():
            if each.running:
                each._stop_now()
                each._say("cancelling; the cell under way is dropped")
        self.cancel_button.disabled = True

    def wait(self, timeout: float | None = None) -> Trials:
        """Block until the sweep has ended, or for `timeout` seconds, and return `trials`; Ctrl-C or an interrupt cancels."""
        try:
            if self.running:
                self._thread.join(timeout)
        except KeyboardInterrupt:
            self.cancel()
            self._thread.join()
        return self.trials

    def close(self) -> None:
        """Cancel what is under way and take the widget off the page; what is finished stays in the file."""
        self._stop_now()
        super().close()

    # ---- running

    def _stop_now(self) -> None:
        self._stop.set()
        if self._sweep is not None:
            self._sweep.cancel()

    def _begin(self, anew: bool) -> None:
        with _claim:
            if self.running:
                return self._say("this sweep is running already; Cancel ends it")
            if other := next((each for each in _busy if each.running), None):
                self.cancel_button.disabled = False
                return self._say(
                    f"not started: another live sweep, of {html.escape(other.choices.workload.name)}, is running in this kernel, "
                    "and two would disturb each other's times; wait for it, or press Cancel to end it"
                )
            try:
                asked = self.choices.asked()
                self._check_file()
            except (ValueError, OSError) as error:
                return self._say(f"not started: {html.escape(sentence(error))}", bad=True)
            self._stop.clear()
            self._sweep = None
            self._enable(running=True)
            self._say("starting")
            self._thread = threading.Thread(target=self._guarded, args=(asked, anew), daemon=True)
            _busy[:] = [self]
            self._thread.start()

    def _guarded(self, asked: Asked, anew: bool) -> None:
        """The thread: whatever goes wrong in it ends as a sentence in the widget, for nobody sees a thread's log."""
        try:
            self._run(asked, anew)
        except BaseException as error:
            self._say(f"stopped: {html.escape(sentence(error))}", bad=True)
        finally:
            self._draw()
            _busy.clear()
            self._enable(running=False)

    def _run(self, asked: Asked, anew: bool) -> None:
        path, told = self.path, list[Trials]()

        def each(trials: Trials) -> None:
            if anew:  # else the sweep itself appends to the file that it resumes
                records.record(trials, path)
            self._found += trials
            told.append(trials)

        self._aim(asked)
        into, measured = None if anew else path, (asked.workload, asked.techniques, asked.grid)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", records.CorruptRecord)  # it was said when the file was first read
            running = self._sweep = start_sweep(*measured, each=each, into=into, **asked.options)
        if self._stop.is_set():  # cancelled while it began, before `cancel` could reach it
            running.cancel()
        before = done = running.progress.done
        begun = last = timer.now()
        while running.running:
            running.wait(POLL)
            if self._stop.is_set():
                continue
            if before + len(told) != done:
                done, last = before + len(told), timer.now()
                self.problems.value = failures(running.trials)
                self._draw()
            left = remaining(done - before, running.progress.total - done, last - begun, timer.now() - last)
            self._stand(running.progress._replace(done=done), left)
        trials = running.wait()
        self._end(trials, running.progress._replace(done=before + len(told)), before)

    def _stand(self, where: Progress, left: str) -> None:
        """Say where the sweep stands: cells done, what it is doing, and how long it will take."""
        self.progress.max, self.progress.value = max(where.total, 1), where.done
        stage = ": ".join(filter(None, (where.label, where.stage))) or "setting up"
        # no role here: it changes every second, and would be read out every second
        self.status.value = (
            f"<span>cell {min(where.done + 1, where.total)} of {where.total}, {html.escape(stage)}; {left}</span>"
        )

    def _end(self, trials: Trials, where: Progress, before: int) -> None:
        self.progress.max, self.progress.value = max(where.total, 1), where.done
        self.problems.value = failures(trials)
        kept = f"{where.done} of {where.total} cells are in <code>{html.escape(str(self.path))}</code>"
        if where.done < where.total:
            self._say(f"cancelled: {kept}; Resume measures the rest")
        elif before == where.total:
            self._say(f"nothing was left to measure: {kept}; Start measures them again")
        else:
            self._say(f"done: {kept}" + (f", {before} of them from before" if before else ""))

    def _enable(self, *, running: bool) -> None:
        """Enable the controls that make sense while a sweep runs, or while none does."""
        self.choices.enable(not running)
        self.start_button.disabled, self.cancel_button.disabled = running, not running
        self.resume_button.disabled = running or not self.path.is_file()

    def _say(self, text: str, bad: bool = False) -> None:
        """One line of HTML as the status, read out by a screen reader."""
        color = ' style="color: var(--jp-error-color1, #b00020)"' if bad else ""
        self.status.value = f'<span role="{"alert" if bad else "status"}"{color}>{text}</span>'

    # ---- the file

    def _show_workload(self) -> None:
        """Show the chosen workload's results: what its file holds, and what was recorded elsewhere."""
        self.recorded = self._recorded.where(workload=self.choices.workload.name)
        hosts = dict.fromkeys(t.host for t in self.recorded)
        places = dict.fromkeys(conditions(self.recorded.where(host=host)) for host in hosts)
        self.beside.value = f"Shown beside, faded: recorded on {html.escape(' and '.join(places))}" if places else ""
        self._drawn, self._unreadable = -1, ""
        self._found: list[Trial] = list(self._held())
        self.resume_button.disabled = not self.path.is_file()
        try:
            self._aim(self.choices.asked())
        except ValueError:  # a field is still empty
            self.view.state = {}
        self._draw()

    def _held(self) -> Trials:
        """The file's Trials of this workload; what of it can't be read is said below the figure."""
        held, said = Trials(), f"Results are kept in <code>{html.escape(str(self.path))}</code>."
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                held = records.load(self.path).where(workload=self.choices.workload.name)
            except FileNotFoundError:
                pass
            except (ValueError, OSError) as error:
                self._unreadable = sentence(error)
        notes = [*(str(w.message) for w in caught), self._unreadable]
        self.kept.value = " ".join([said, *(f"{html.escape(note)}." for note in notes if note)])
        return held

    def _check_file(self) -> None:
        """ValueError or OSError unless results can be appended to the file."""
        if self._unreadable:
            raise ValueError(self._unreadable)
        if self.path.is_dir():
            raise ValueError(f"{str(self.path)!r} is a folder, and results need a file: pass another path=")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab"):
            pass

    # ---- the figure

    def _aim(self, asked: Asked) -> None:
        """Let the figure show what is asked for, and what was recorded of the same on other devices."""
        x = max(asked.grid, key=lambda name: len(asked.grid[name]), default="")
        chosen = {"workload": asked.workload.name, "dtype": asked.options["dtype"]}
        chosen |= dict.fromkeys(("target", "environment", "cache"), "all")
        chosen |= {name: values[0] for name, values in asked.grid.items() if name != x}
        chosen |= {"x": x} if x and len(asked.grid[x]) > 1 else {}
        self.view.state = {**self.view.state, **chosen}

    def _draw(self) -> None:
        """Show what there is, if it changed; a figure that can't be drawn says why and stops nothing."""
        if len(self._found) == self._drawn:
            return
        self._drawn = len(self._found)
        try:
            shown = Trials((*self.recorded, *self._found[: self._drawn]))
            self.view.show(shown)
            devices = panels.describe(cells(shown))
            here = [devices[cell]["device"] for cell in cells(self._found[: self._drawn])]
            self.view.state = {**self.view.state, "front": list(dict.fromkeys(here))}  # the other devices are drawn faded
            self.trouble.value = ""
        except Exception as error:
            self.trouble.value = f"The figure can't be drawn: {html.escape(sentence(error))}"


def remaining(done: int, left: int, spent: int, since: int) -> str:
    """The time that `left` cells will take: `done` ones took `spent` nanoseconds, and `since` have passed after the last."""
    if not done:
        return "estimating the time that remains"
    seconds = max(spent / done * left - since, 1e9) / 1e9
    return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"


def failures(trials: Iterable[Trial]) -> str:
    """HTML: each technique that has no result, or has one with a remark, in how many cells, and what to do about it."""
    groups: dict[tuple[str, str, str], int] = {}
    for trial in trials:
        if trial.label != COPY and (trial.status != "ok" or trial.advice):
            key = (trial.label, trial.status, trial.advice)
            groups[key] = groups.get(key, 0) + 1
    lines = []
    for (label, status, advice), count in groups.items():
        what = "" if status == "ok" else f"{status.replace('_', ' ')} in {count} cell{'s' * (count != 1)}: "
        lines.append(f"<li><b>{html.escape(label)}</b>: {what}{html.escape(advice or 'no reason was given')}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def sentence(error: BaseException) -> str:
    """An error in one sentence, without its traceback."""
    if isinstance(error, OSError) and error.strerror:
        return f"{str(error.filename or 'the file')!r} can't be used ({error.strerror}): pass another path="
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _button(name: str, icon: str, tooltip: str) -> Any:
    return ipywidgets.Button(description=name, icon=icon, tooltip=tooltip, button_style="primary" * (name == "Start"))
