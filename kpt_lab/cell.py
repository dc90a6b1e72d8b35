"""One cell in one process: build the candidates, check them, time them interleaved, audit them, and make Trials.

A cell is one workload with one set of parameters on one device. Its techniques, a second copy of the specification (the
noise floor) and a copy of the same bytes run in every block in a new random order, on values that no call has seen. Looks at
stats.LOOKS blocks decide when to stop. The protocol and what it rests on: DESIGN.md section 3.
"""

from __future__ import annotations

import gc
import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from statistics import median
from typing import Any

import torch

from kpt_lab import check, environment, stats, timer
from kpt_lab.check import Dishonest, Wrong
from kpt_lab.core import Technique, Trials, to_dtype
from kpt_lab.hardware import targets
from kpt_lab.outcome import finish, trials
from kpt_lab.ranks import Alone
from kpt_lab.ratios import COPY
from kpt_lab.runner import Job, Runner, built, missing_requirement, nothing, same, status_of

_AUDIT = 1 / 8  # share of timed calls whose output is checked afterwards, chosen at random
_WORTH_NS = 5_000  # a cache by value that saves less than this is not looked for: scheduling alone makes such gaps
_SAME_DIRECTION = 0.9  # cosine of a candidate's parameter update with the oracle's; Adam's sign noise costs a few percent
_AUDITS = 24  # audited calls at least, where an eighth of the budget allows: one skip in three then hides once in 17,000 runs
_SLOW_ORACLE_NS = 2_000_000_000  # an oracle slower than this checks two input sets, not three and one twice; audits check more
_REPEATS = 15  # pairs of calls on repeated and on new values in the probe for a cache by value
_GAINS = {"rewritten": 0.1, "untouched": 0.4}  # share of a call saved; what was not written since is in cache anyway
_FLUSH_BYTES = 256 * 2**20  # written before a cold call: five times an H100's L2, four times an H200's
_STRAYS = 8  # calls in a row after which the device was busy for half their time again: a busy host makes single ones look so


# ---- one cell in this process ----------------------------------------------------------------------------------------------


def measure_cell(
    job: Job, *, say: Callable[[str, str], None] = lambda label, stage: None, ranks: Alone | None = None
) -> Trials:
    """Measure one cell in this process; `say(label, stage)` is told what begins, so that a parent can end what hangs."""
    ranks = ranks or Alone()
    torch._dynamo.reset()
    before = check.settings()
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else a sweep's later shapes silently run eager
    cell = _Cell(job, say, ranks)
    try:
        cell.prepare()
        cell.verify()
        cell.run_blocks()
        cell.probe()
        finish(cell)
        return trials(cell)
    finally:
        cell.close()
        check.restore(before)


class _Cell:
    """The state of one cell while it is measured."""

    def __init__(self, job: Job, say: Callable[[str, str], None], ranks: Alone) -> None:
        self.job, self.say, self.ranks = replace(job, cell=ranks.decide(job.cell)), say, ranks
        self.on_cuda = job.device.startswith("cuda")
        self.dtype = to_dtype(job.dtype)
        self.dice = random.Random(ranks.decide(f"{job.cell}{job.process}"))
        self.problem: Any = job.workload.make(**job.settings)
        self.sets = [check.detach_inputs(inputs) for inputs in self.problem.inputs]
        self.runners: list[Runner] = []
        self.reference: Runner | None = None
        self.copy: Runner | None = None
        self.oracle: Any = None
        self._like: Any = None
        self._own: list[float] = []  # the specification's error in each leaf of its output
        self.checked = [0, *range(len(self.sets))]
        self.blocks = 0
        self.cost = job.workload.cost(dtype=job.dtype, **job.params) if job.workload.cost else None
        self.target = targets.find(job.device) if self.cost else None
        self.flush_buffer: torch.Tensor | None = self._flush_buffer()
        self.environment = {**environment.environment(job.device), "before": environment.clocks(job.device)}
        self.functions = check.functions(timer, check, stats, _Cell, check.Codes(self.problem.fn, job.workload.make))
        self.settings = check.settings()
        self.threads = set(threading.enumerate())

    def _flush_buffer(self) -> torch.Tensor | None:
        if self.job.cache != "cold":
            return None
        cache = self.target.cache if self.target else 0
        return torch.empty(
            int(max(_FLUSH_BYTES if self.on_cuda else 2 * cache, 2**25)), dtype=torch.int8, device=self.job.device
        )

    @property
    def active(self) -> list[Runner]:
        """Runners that are still in the race, the reference and the copy included."""
        everyone = [*self.runners, *(r for r in (self.reference, self.copy) if r)]
        return [runner for runner in everyone if runner.status == "ok"]

    # -- setting up and checking -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Build every candidate over a problem of its own; what can't be built becomes a status."""
        plain = Technique("specification", same)
        self.reference = built(self.job, plain, (plain,), self.problem, self.sets[0])
        for technique in self.job.techniques:
            self.say(technique.label, "preparing")
            runner = Runner(technique, nothing, (), set())
            self.runners.append(runner)
            with self._watching(runner):
                self._prepare_one(runner)
            self._agree(runner)
        if self.cost and self.cost.bytes >= 2 and self.cost.bytes < 2**33:
            self.copy = self._copy_runner(int(self.cost.bytes // 2))

    def _prepare_one(self, runner: Runner) -> None:
        technique = runner.technique
        if missing := missing_requirement(technique, self.job.device):
            runner.fail("unavailable", missing)
            return
        problem = self.job.workload.make(**self.job.settings)
        fresh = built(self.job, technique, technique.parts or (technique,), problem, self.sets[0])
        runner.step, runner.buffers, runner.protected = fresh.step, fresh.buffers, fresh.protected
        runner.driven, runner.parts, runner.reference = fresh.driven, fresh.parts, self.reference
        if technique.contract == "lossy" and technique.definition:
            runner.reference = self._definition(technique)
        self._adopt(runner)
        self._untouched()

    def _definition(self, technique: Technique) -> Runner:
        problem = self.job.workload.make(**self.job.settings)
        assert technique.definition is not None
        plain = Technique("definition", technique.definition, knobs=technique.knobs)
        return built(self.job, plain, (plain,), problem, self.sets[0])

    def _copy_runner(self, size: int) -> Runner:
        origin = torch.zeros(size, dtype=torch.int8, device=self.job.device)
        goal = torch.empty_like(origin)
        return Runner(Technique(COPY, same), lambda: goal.copy_(origin), (), {goal.untyped_storage().data_ptr()})

    def _watching(self, runner: Runner) -> Any:
        return _Watch(runner, self)

    def _agree(self, runner: Runner) -> None:
        """After each thing that a candidate may fail at: what failed on one rank has failed on all, in the same words."""
        if problem := self.ranks.agree(None if runner.status == "ok" else (runner.status, runner.advice)):
            runner.fail(*problem)  # type: ignore[arg-type]
            runner.status, runner.advice = problem  # type: ignore[assignment]

    def verify(self) -> None:
        """Every candidate against the oracle on every input set, twice on the first, before anything is timed."""
        assert self.reference is not None
        start = timer.now()
        self.oracle = check.oracle_for(self.job.workload, self.job.settings, self.sets[0])
        if self.ranks.decide(timer.now() - start > _SLOW_ORACLE_NS):  # a specification may hold collectives
            self.checked = [0, 1]
        own = self._errors(self.reference, self.oracle, math.inf)
        if not all(map(math.isfinite, own)):
            raise Wrong(
                f"workload {self.job.workload.name!r} gives NaN or infinity in {self.job.dtype} where its {self.oracle.precision} "
                "oracle does not; nothing can be compared with it"
            )
        for runner in [r for r in self.runners if r.status == "ok"]:
            self.say(runner.technique.label, "checking")
            with self._watching(runner):
                self._verify_one(runner, check.worst(self._own, self._own))
                self._untouched()
            self._agree(runner)
        self.oracle_precision = self.oracle.precision
        self.oracle = None  # its weights are freed before anything is timed
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()

    def _verify_one(self, runner: Runner, own: float) -> None:
        runner.limit = check.limit_for(self.job.workload, self.dtype, own)
        if self.job.workload.random or runner.technique.contract == "random":
            self._verify_distribution(runner)
            return
        assert runner.reference is not None
        if runner.technique.contract == "lossy":
            self._errors(runner, _Recast(runner.reference, self), runner.limit)
            runner.error = max(self._errors(runner, self.oracle, math.inf))
        else:
            runner.error = max(self._errors(runner, self.oracle, runner.limit))

    def _verify_distribution(self, runner: Runner) -> None:
        assert self.reference is not None
        outputs = []
        for who in (runner, self.reference):
            runs = []
            for _ in range(check.RUNS):
                check.fresh(who.buffers, self.sets, (0, 0, 0.0))
                runs.append(check.projected(who.step(*who.buffers)))
            outputs.append(runs)
        if reason := check.same_distribution(*outputs):
            raise Wrong(reason)

    def _errors(self, runner: Runner, oracle: Callable[[Any], Any], limit: float) -> list[float]:
        """Errors on the input sets as `checked` orders them; a stateful step starts from its reset state, as the oracle does."""
        for reset in (runner.reset, getattr(getattr(oracle, "step", None), "reset", None)):
            if reset:
                reset()
        stateful = runner.reset is not None
        found: list[float] = []
        before = -1
        for k in self.checked if not stateful else range(len(self.sets)):
            draw = (k, k, 0.0)
            if k != before:  # a set's second call sees the very same buffers again, as a cache by version would like
                check.fresh(runner.buffers, self.sets, draw)
            before = k
            if self._like is not None:
                check.litter(self._like)
            output = runner.step(*runner.buffers)
            self._adopt(runner)
            self._settled(runner, output)
            self._judge_together(runner, output, oracle(self.sets[k]), draw, limit, found)
            del output  # before the next pair is made: large ones fit the device once
        if stateful and limit < math.inf:
            self._same_updates(runner, oracle)
        return found

    def _judge_together(self, *given: Any) -> None:
        """`_judge`, and what is wrong on one rank is wrong on all: the next call may hold collectives."""
        try:
            self._judge(*given)
        except Exception as error:
            self.ranks.agree(("wrong", str(error)))
            raise
        if told := self.ranks.agree(None):
            raise Wrong(told[1])

    def _same_updates(self, runner: Runner, oracle: Any) -> None:
        """A training step must also have moved its parameters as the oracle moved its own."""
        mine, exact = getattr(runner.driven, "moved", None), getattr(getattr(oracle, "step", None), "moved", None)
        if mine and exact and (cosine := check.cosine(mine(), exact())) < _SAME_DIRECTION:
            raise Wrong(
                f"the parameters' update differs from the specification's (cosine {cosine:.3f}): an update was skipped or changed"
            )

    def _judge(self, runner: Runner, output: Any, exact: Any, draw: tuple, limit: float, found: list[float]) -> None:
        """Compare one output and remember its error; raises Wrong or Dishonest. Poisons the output afterwards."""
        like = output if runner is self.reference else self._like
        if runner is self.reference:
            self._like = check.shapes(output)
        errors = check.leaf_errors(output, exact, like, self.job.workload.error)
        if runner is self.reference:
            self._own = [max(pair) for pair in zip_longest(self._own, errors, fillvalue=0.0)]
        error = check.worst(errors, self._own)
        if not error <= limit:
            clues = {
                "inputs": runner.buffers,
                "earlier": runner.earlier,
                "kept": runner.kept,
                "right_first": bool(found) and found[0] <= limit,
                "repeated": len(found) == 1 and self.checked[:2] == [0, 0],
            }
            raise Wrong(check.explain_error(error, limit, output, self.dtype, clues))
        if limit < math.inf and (changed := check.changed_inputs(runner.buffers, self.sets, draw)):
            raise Dishonest(changed)
        found.append(error)
        if not runner.kept:
            runner.kept = [output]
            runner.earlier = [check.small_copy(output)]
        check.poison(output, runner.protected)

    # -- timing --------------------------------------------------------------------------------------------------------------

    def run_blocks(self) -> None:
        """Blocks in random order until no verdict is UNCLEAR, the looks are used up, or the budget is spent."""
        for runner in self.active:  # warm: compiled code, allocator, clocks
            self.say(runner.technique.label, "warming up")
            for _ in range(2):
                if runner.status == "ok":
                    self._turn(runner)
        gc.collect()
        gc.disable()
        start = timer.now()
        while self.blocks < stats.LOOKS[-1] and any(r.status == "ok" for r in self.runners):
            self._block()
            spent = self.ranks.decide((timer.now() - start) / 1e9 >= self.job.budget and self.blocks >= 3)
            if spent or (self.blocks in stats.LOOKS and self.ranks.decide(self._clear())):
                break
        gc.enable()
        if self.ranks.count > 1:
            for runner in self.active:
                runner.samples = self.ranks.slowest(runner.samples)
                runner.wall = self.ranks.slowest(runner.wall)

    def _block(self) -> None:
        draw, order = self._draw(), self.active
        self.dice.shuffle(order)
        for runner in order:
            audit = self.dice.random() < _AUDIT or self.blocks == 0
            if audit:  # what an earlier one of this block replaced must not be found in this one's audit
                self._blame()
                if runner.status != "ok":
                    continue
            if took := self._turn(runner, draw, audit=audit):
                runner.samples.append(took[0])
                runner.wall.append(took[1])
                runner.total += took[0]
        self.blocks += 1
        self._blame()

    def _turn(
        self, runner: Runner, draw: tuple[int, int, float] | None = None, *, write: bool = True, audit: bool = False
    ) -> tuple[int, int] | None:
        """One timed call, audited or not, that ends alike on all ranks: (device or wall ns, wall ns), or None if it failed."""
        took = None
        draw = draw or self._draw()
        with self._watching(runner):
            elapsed, wall, output = self._timed(runner, draw, write)
            if audit:
                self._audit(runner, output)
            check.poison(output, runner.protected)
            took = elapsed, wall
        self._agree(runner)
        return took if runner.status == "ok" else None

    def _blame(self) -> None:
        """Find out who replaced a function or changed a setting in this block, by letting each run alone."""
        found = ""
        try:
            self._untouched()
        except Dishonest as error:
            found = str(error)
        if not (problem := self.ranks.agree(("rejected", found) if found else None)):
            return
        for runner in self.active:
            self._turn(runner)
            with self._watching(runner):
                self._untouched()
            self._agree(runner)
        if all(runner.status == "ok" for runner in self.runners):
            for runner in self.runners:
                if not runner.technique.baseline:
                    runner.fail("rejected", f"{problem[1]}; it or another technique of this cell did so, once")

    def _draw(self) -> tuple[int, int, float]:
        i, j = self.dice.sample(range(len(self.sets)), 2)
        return i, j, 0.05 + 0.9 * self.dice.random()

    def _timed(self, runner: Runner, draw: tuple[int, int, float], write: bool = True) -> tuple[int, int, Any]:
        """(device or wall ns, wall ns, output) of one call on new values; `runner.drawn` says which the output belongs to."""
        self.say(runner.technique.label, "timing")
        if write:
            self._write(runner, draw)
        elif self.reference is not None:  # the same traffic elsewhere, so that the caches hold as much or less of the inputs
            check.fresh(self.reference.buffers, self.sets, draw)
        self.ranks.barrier()
        self._flush()
        if not self.on_cuda:
            elapsed, output = timer.call_on_cpu(runner.step, runner.buffers)
            return elapsed, elapsed, output
        try:
            runner.host_ns, output = timer.wall_on_cuda(runner.step, runner.buffers)
        except Exception:
            self.ranks.barrier()  # the other ranks wait there
            raise
        check.poison(output, runner.protected)
        if write:  # other values than the wall-clock call has seen, for a cache by value would hit
            self._write(runner, (draw[1], draw[0], draw[2]))
        self.ranks.barrier()
        self._flush()
        elapsed, stray, output = timer.device_on_cuda(runner.step, runner.buffers, runner.host_ns)
        runner.strays = runner.strays + 1 if 2 * stray > elapsed else 0
        if runner.strays >= _STRAYS and runner in self.runners:
            raise Dishonest(
                "left work on a side stream: the device was still busy after the current stream had finished, so the clock "
                "would have stopped early; wait for your stream before you return"
            )
        return elapsed, runner.host_ns, output

    def _adopt(self, runner: Runner) -> None:
        """Remember which threads have appeared while this runner had the floor."""
        if started := check.new_threads(self.threads):
            runner.threads += started
            self.threads |= set(started)

    def _write(self, runner: Runner, draw: tuple[int, int, float]) -> None:
        check.fresh(runner.buffers, self.sets, draw)
        runner.drawn = draw

    def _flush(self) -> None:
        if self.flush_buffer is not None:
            self.flush_buffer.add_(1)

    def _clear(self) -> bool:
        """Whether no verdict against the best baseline (or eager) is UNCLEAR."""
        runners = [r for r in self.runners if r.status == "ok"]
        if not runners:
            return True
        bases = [r for r in runners if r.technique.baseline] or runners[:1]
        level = stats.corrected_level(stats.LOOK_LEVEL, len(bases))
        best = min(bases, key=lambda r: median(r.samples))
        eager = next((r for r in runners if r.technique.name == "eager"), best)
        for runner in runners:
            for base in {id(best): best, id(eager): eager}.values():
                if runner is base:
                    continue
                if stats.sequential_verdict(base.samples, runner.samples, level)[3] == "UNCLEAR":
                    return False
        return True

    # -- audits --------------------------------------------------------------------------------------------------------------

    def _settled(self, runner: Runner, output: Any) -> None:
        """Raise Dishonest when the output changes after the call has returned, or a thread of the candidate's goes on working."""
        tensors = check.plain_tensors(output)
        first = [t.detach().clone() for t in tensors]
        started = [thread for thread in runner.threads if thread.is_alive()]
        seen = [check.positions(started)]
        if self.on_cuda:
            timer.wait()
        for _ in range(10 if started else 0 if self.on_cuda else 3):
            timer.pause(300_000 if started else 1_000_000)
            seen.append(check.positions(started))
        if any(not check.same_values(a, b.detach()) for a, b in zip(first, tensors, strict=True)):
            raise Dishonest(
                "the output changed after the call had returned: a worker thread or a side stream was still writing it, "
                "so the clock would have stopped early"
            )
        moving = [t for t in started if t.is_alive() and len({where.get(t.ident or 0) for where in seen}) > 2]
        if moving:
            raise Dishonest(
                f"left the thread {moving[0].name!r} working after the call had returned: it works outside the clock"
            )

    def _audit(self, runner: Runner, output: Any) -> None:
        """Check a timed call's output against its reference on the same values, recomputed now."""
        self._adopt(runner)
        if runner is self.copy or runner is self.reference:
            return
        self._settled(runner, output)
        self._untouched()
        runner.audits += 1
        if runner.reset or self.job.workload.random or runner.technique.contract == "random":
            return
        reference = runner.reference
        assert reference is not None
        check.fresh(reference.buffers, self.sets, runner.drawn)
        exact = check.detached(reference.step(*reference.buffers))
        error = check.worst(check.leaf_errors(output, exact, self._like, self.job.workload.error), self._own)
        limit = 1.5 * runner.limit
        if not error <= limit:
            clues = {"inputs": runner.buffers, "earlier": runner.earlier, "kept": runner.kept, "late": True}
            raise Wrong(check.explain_error(error, limit, output, self.dtype, clues))
        check.poison(exact, reference.protected)
        if changed := check.changed_inputs(runner.buffers, self.sets, runner.drawn):
            raise Dishonest(changed)

    def _untouched(self) -> None:
        if names := check.replaced(self.functions):
            raise Dishonest(f"replaced {names} while it ran: clocks and functions that others use too must stay as they are")
        now = check.settings()
        if names := ", ".join(name for name, value in self.settings.items() if now[name] != value):
            check.restore(self.settings)
            self.settings = check.settings()  # what can't be put back is nobody else's fault
            raise Dishonest(f"changed the global setting {names}, which changes what the others compute or how fast")

    def probe(self) -> None:
        """Time calls on new values against calls on values just seen, where a large gap is a cache by value; audit some more."""
        for runner in [r for r in self.runners if r.status == "ok"]:
            self.say(runner.technique.label, "probing")
            suspected = self._faster_when_repeated(runner, hurry=True)
            if suspected and all(self._faster_when_repeated(runner) for _ in range(2)) and runner.status == "ok":
                runner.fail(
                    "rejected",
                    "much faster on values that it has just seen than on new ones: its result is cached by value, "
                    "which a user's new inputs never hit",
                )
            start = timer.now()
            while runner.status == "ok" and runner.audits < _AUDITS:
                spent = (timer.now() - start) / 1e9 >= self.job.budget / 8
                if self.ranks.decide(spent and runner.audits >= 3):
                    break
                self._turn(runner, audit=True)

    def _faster_when_repeated(self, runner: Runner, hurry: bool = False) -> bool:
        """Rank 0's finding over pairs of calls, fewer of them where a hurry and the budget say so.

        Without a hurry the plain specification goes through the same: what the machine gives to it on repeated values, a busy one
        for instance by waking its threads, it gives to honest candidates too.
        """
        plain = self.reference
        if not runner.buffers or runner.reset or plain is None:
            return False
        times: dict[str, list[int]] = {"new": [], "rewritten": [], "untouched": []}
        control: dict[str, list[int]] = {name: [] for name in times}
        start = timer.now()
        while len(times["new"]) < _REPEATS:
            spent = hurry and (timer.now() - start) / 1e9 >= self.job.budget / 8
            if self.ranks.decide(spent and len(times["new"]) >= 7):
                break
            draw = self._draw()
            for who, taken in [(plain, control), (runner, times)][hurry:]:
                self._turn(who)  # so that all follow the same kind of call
                check.fresh(plain.buffers, self.sets, draw)  # the sources of new values, too, are then in cache for all
                for name, listed in taken.items():
                    took = self._turn(who, draw, write=name != "untouched") if who.status == "ok" else None
                    listed.append(took[0] if took else 0)
            if runner.status != "ok":
                return False
        return self.ranks.decide(any(_mostly_faster(times, control, name, least) for name, least in _GAINS.items()))

    # -- results --------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free every candidate, also those in reference cycles, so that the next cell finds the device empty."""
        for runner in (*self.runners, self.reference, self.copy):
            if runner is not None:
                runner.release()
                runner.reference = None
        self.sets, self.problem, self.flush_buffer, self.oracle = [], None, None, None
        gc.enable()
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()


def _mostly_faster(times: Mapping[str, Sequence[int]], control: Mapping[str, Sequence[int]], name: str, least: float) -> bool:
    """Whether four pairs of five are faster, and by the share `least` in the middle, and by far more than the control's are.

    Noise does not look like that three times in a row.
    """
    ratios = [a / max(b, 1) for a, b in zip(times[name], times["new"], strict=True)]
    gain, own = (median(t["new"]) - median(t[name]) if t["new"] else 0 for t in (times, control))
    most = sum(ratio < 1 - 0.7 * least for ratio in ratios) >= 0.8 * len(ratios)
    return gain > _WORTH_NS + 2 * max(own, 0) and median(ratios) < 1 - least and most


class _Recast:
    """A lossy technique's plain definition, standing where the oracle stands: called on an input set, in the working dtype."""

    def __init__(self, runner: Runner, cell: _Cell) -> None:
        self.step, self.runner, self.sets = runner.step, runner, cell.sets

    def __call__(self, inputs: Any) -> Any:
        for k, mine in enumerate(self.sets):
            if mine is inputs:
                check.fresh(self.runner.buffers, self.sets, (k, k, 0.0))
        return check.detached(self.runner.step(*self.runner.buffers))


class _Watch:
    """Turns what a candidate raises into its status and advice; the cell goes on without it."""

    def __init__(self, runner: Runner, cell: _Cell) -> None:
        self.runner, self.cell = runner, cell

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            return False
        if not isinstance(error, Exception) or self.runner is self.cell.reference:
            return False  # an interrupt, or the specification itself: nothing can be measured without it
        if trick := check.replaced(self.cell.functions):
            error = Dishonest(f"replaced {trick} while it ran: clocks and functions that others use too must stay as they are")
        self.runner.fail(*status_of(error))
        return True
