"""One of two ranks: `python ranks_worker.py RANK STORE PATIENCE SCENARIO...` measures each scenario and prints a line of JSON for it."""

import datetime
import json
import sys

import torch
import torch.distributed as dist

import kpt_lab as kpt
from kpt_lab import baselines, cell, ranks
from kpt_lab.core import Problem, Technique, Workload

OPTIONS = {"group": True, "budget": 0.05}
EXTRA = 30  # more calls on rank 1: enough for its time to stand out


# large enough that waking from the barrier is a small part of a call: tiny ones were taken for a cache by value
def make(*, device, dtype, seed):
    return Problem(torch.neg, [(torch.full((512, 1024), float(k)),) for k in range(1, 4)])


work = Workload("negative", make)


def uneven(fn, args):
    """More work on rank 1 than on rank 0."""

    def candidate(x):
        for _ in range(EXTRA if dist.get_rank() else 0):
            torch.neg(x)
        return fn(x)

    return candidate


def broken_on_one(fn, args):
    if dist.get_rank() == 1:
        raise ArithmeticError("no such tile")
    return fn


def wrong_on_one(fn, args):
    return (lambda x: 3 * fn(x)) if dist.get_rank() == 1 else fn


def late_on_one(fn, args):
    calls = []

    def candidate(x):
        calls.append(None)
        if dist.get_rank() == 1 and len(calls) > 8:  # four calls check it, two warm it up
            raise ArithmeticError("no more")
        return fn(x)

    return candidate


def named(name, apply, **fields):
    return Technique(name, apply, **fields)


def healthy():
    """One audit at most after timing, so that the probe's own clock can't send the ranks different ways: see `probing`."""
    cell._AUDITS = 1
    return kpt.measure(work, [baselines.eager, named("uneven", uneven)], **OPTIONS)


def apply_fails():
    cell._AUDITS = 1
    return kpt.measure(work, [baselines.eager, named("broken", broken_on_one), named("wrong", wrong_on_one)], **OPTIONS)


def probing():
    """Rank 1's clock says at once that the time for more audits is over; rank 0's says that there is plenty."""
    if dist.get_rank() == 1:
        readings = iter(range(0, 10**15, 10**9))
        cell.timer.now = lambda: next(readings)
    return kpt.measure(work, [baselines.eager, named("same", lambda fn, args: fn)], group=True, budget=4.0)


def late_failure():
    return kpt.measure(work, [baselines.eager, named("late", late_on_one)], **OPTIONS)


def missing_package():
    requires = ("no_such_package",) if dist.get_rank() == 1 else ()
    return kpt.measure(work, [baselines.eager, named("needs", lambda fn, args: fn, requires=requires)], **OPTIONS)


def questions():
    """What Ranks answers when it is asked directly."""
    group = ranks.ranks_of(True)
    own = [5, 1, 7] if group.rank == 0 else [2, 9, 7]
    answers = {
        "rank": group.rank,
        "count": group.count,
        "decide": group.decide(f"choice of {group.rank}"),
        "slowest": group.slowest(own),
        "none": group.agree(None),
        "one": group.agree(("failed", "it broke") if group.rank == 1 else None),
        "both": group.agree(("failed", f"it broke on {group.rank}")),
    }
    group.barrier()
    return answers


def plain(trials):
    return [
        {
            "label": t.label, "status": t.status, "advice": t.advice, "cell": t.cell, "blocks": len(t.samples.get("time", ())),
            "samples": t.samples.get("time", ()), "chosen": t.chosen["blocks"],
        }
        for t in trials
    ]  # fmt: skip


def main(rank: str, store: str, patience: str, *scenarios: str) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=int(patience))  # after which a rank that waits in vain gives up
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2, timeout=limit)
    for scenario in scenarios:
        found = globals()[scenario]()
        dist.barrier()
        print(json.dumps(found if isinstance(found, dict) else plain(found)), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
