"""The red team: techniques that cheat, which `measure` must catch, and unusual honest ones, which it must not.

A Trial of each of `cheats` must come out "rejected" or "wrong" with advice that names the trick (`escape` says whether it
did); a Trial of each of `honest` must come out "ok". `afterwards` are six more cheats, written when the harness was finished;
docs/redteam.md says which of them it caught unchanged. A technique's `apply.__doc__` says in a sentence what it does. Those that
tamper with the process leave traces: run them by hand inside `undone()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kpt_lab.core import Technique, Trial
from kpt_lab.redteam import afterwards as _afterwards
from kpt_lab.redteam import forged as _forged
from kpt_lab.redteam import honest as _honest
from kpt_lab.redteam import late as _late
from kpt_lab.redteam import stale as _stale
from kpt_lab.redteam import tampered as _tampered
from kpt_lab.redteam.tampered import undone
from kpt_lab.redteam.workload import SIZES, target

__all__ = ["SIZES", "afterwards", "cheats", "escape", "honest", "keywords", "target", "undone"]

_NOT_IN_TIMED_CALLS = ("timed call", "while timed", "when timed", "first calls", "once it was checked")
_CACHE = ("cache", "repeated values", "seen before")

_TRICKS: tuple[tuple[Technique, tuple[str, ...]], ...] = (
    (_late.side_stream, ("side stream", "another stream", "other stream")),
    (_late.worker_thread, ("thread", "after it returned", "later")),
    (_late.watcher_thread, ("thread",)),
    (_late.lazy_output, ("lazily", "lazy")),
    (_late.tensor_subclass, ("subclass",)),
    (_stale.cached_by_identity, _CACHE),
    (_stale.cached_by_version, _CACHE),
    (_stale.cached_by_sample, _CACHE),
    (_stale.cached_by_value, _CACHE),
    (_stale.first_answer, ("first input", "earlier call")),
    (_stale.previous_buffer, ("previous buffer", "earlier call")),
    (_stale.patient, _NOT_IN_TIMED_CALLS),
    (_stale.one_in_three, (*_NOT_IN_TIMED_CALLS, "earlier call")),
    (_stale.knows_the_harness, (*_NOT_IN_TIMED_CALLS, "earlier call")),
    (_stale.knows_the_loop, (*_NOT_IN_TIMED_CALLS, "earlier call")),
    (_forged.mutated_input, ("mutated input", "writes to its input")),
    (_forged.remembers_in_input, ("mutated input", "writes to its input")),
    (_forged.returns_input, ("returns its input",)),
    (_forged.half_rows, ("not the specification's result",)),
    (_forged.lower_precision, ("lower precision",)),
    (_forged.tf32, ("lower precision",)),
    (_forged.nan_output, ("nan",)),
    (_forged.uninitialised, ("uninitialised", "did not write")),
    (_tampered.patched_timer, ("perf_counter", "clock", "timer")),
    (_tampered.patched_for_one_reading, ("perf_counter", "clock", "timer")),
    (_tampered.patched_events, ("elapsed_time",)),
    (_tampered.patched_synchronize, ("synchronize",)),
    (_tampered.fewer_threads, ("num_threads",)),
    (_tampered.global_precision, ("matmul_precision", "lower precision")),
    (_tampered.slower_softmax, ("softmax",)),
    (_tampered.slower_by_mode, ("mode",)),
    (_tampered.rewrites_specification, ("__code__", "specification's code", "specification itself")),
    (_tampered.loaded_dice, ("random.random", "dice", *_NOT_IN_TIMED_CALLS)),
    (_tampered.disarmed_checks, ("_audit", "_judge", "compare")),
)

_WRITTEN_AFTERWARDS: tuple[tuple[Technique, tuple[str, ...]], ...] = (
    (_afterwards.interop_future, ("thread", "after the call", "side stream")),
    (_afterwards.works_ahead, ("hook", "outside the clock", "setprofile")),
    (_afterwards.packed_weights, ("first input", "earlier call", "cached")),
    (_afterwards.knows_the_blend, ("blend", "work was skipped")),
    (_afterwards.edits_the_record, ("record", "samples")),
    (_afterwards.slower_by_dispatcher, ("dispatcher", "kernel", "aten")),
)

cheats: tuple[Technique, ...] = tuple(technique for technique, _ in _TRICKS)
afterwards: tuple[Technique, ...] = tuple(technique for technique, _ in _WRITTEN_AFTERWARDS)
keywords: Mapping[str, tuple[str, ...]] = {technique.name: words for technique, words in (*_TRICKS, *_WRITTEN_AFTERWARDS)}
"""What the advice must contain, without regard to case, for it to name the trick: one of these, by the technique's name."""

honest: tuple[Technique, ...] = (
    _honest.recomputed,
    _honest.chunked,
    _honest.compiled,
    _honest.scratch,
    _honest.reused_buffer,
    _honest.view,
    _honest.other_layout,
    _honest.inference_mode,
    _honest.double,
    _honest.joined_thread,
    _honest.joined_stream,
)


def escape(trial: Trial, others: Iterable[Trial] = ()) -> str:
    """How this Trial's cheat escaped, or "".

    It does where its status is neither "rejected" nor "wrong", where the advice names no trick, and where an honest one of
    `others` (Trials of the same cell) was blamed for it.
    """
    if trial.technique not in keywords:
        raise ValueError(f"trial is of {trial.technique!r}; accepted are the cheats {', '.join(keywords)}")
    for other in others:
        if other.technique not in keywords and other.status != "ok":
            return f"status is {trial.status}, and {other.label} was blamed: {other.status}, {other.advice}"
    if trial.status not in ("rejected", "wrong"):
        return f"status is {trial.status}"
    wanted = keywords[trial.technique]
    if not any(word in trial.advice.lower() for word in wanted):
        return f"the advice names none of {', '.join(wanted)}"
    return ""
