"""ranks: two local processes of one gloo group measure together. Each pair costs some seconds, so healthy scenarios share one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from kpt_lab.ranks import Alone, ranks_of

HERE = Path(__file__).parent
LIMIT = 90  # seconds after which both ranks are ended, whatever they do

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")


class Stuck(AssertionError):
    """The ranks lost each other: one waited in vain, or ended early."""


def run(folder, *scenarios, patience=40):
    """For each scenario, what rank 0 and rank 1 printed; patience: seconds for which one rank waits for the other."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])}
    command = [sys.executable, str(HERE / "ranks_worker.py")]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "store"), str(patience), *scenarios],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        answers = [process.communicate(timeout=LIMIT) for process in processes]
    except subprocess.TimeoutExpired:
        raise Stuck(f"no end within {LIMIT} s") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        raise Stuck("\n".join(error[-600:] for _, error in answers))
    lines = [[json.loads(line) for line in out.splitlines() if line[:1] in "[{"] for out, _ in answers]
    return dict(zip(scenarios, zip(*lines, strict=True), strict=True))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The scenarios in which nothing gets stuck."""
    return run(tmp_path_factory.mktemp("ranks"), "questions", "apply_fails", "healthy")


def test_alone_answers_for_itself():
    alone = ranks_of(None)
    assert type(alone) is Alone
    assert (alone.rank, alone.count) == (0, 1)
    assert alone.agree(("failed", "it broke")) == ("failed", "it broke")
    assert alone.slowest((3, 4)) == [3, 4]
    assert alone.decide(7) == 7
    assert alone.barrier() is None


def test_a_group_without_torchrun_is_refused_with_what_to_do():
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match=r"group needs torch\.distributed to be initialised; start with torchrun"):
        ranks_of(True)


def test_ranks_share_decisions_the_slowest_time_and_the_first_problem(together):
    zero, one = together["questions"]
    assert (zero.pop("rank"), one.pop("rank")) == (0, 1)
    assert zero == one
    assert zero["count"] == 2
    assert zero["decide"] == "choice of 0"
    assert zero["slowest"] == [5, 9, 7]
    assert zero["none"] is None
    assert zero["one"] == ["failed", "rank 1: it broke"]
    assert zero["both"] == ["failed", "rank 0: it broke on 0"]


def test_every_rank_has_the_same_samples_and_the_slowest_rank_counts(together):
    zero, one = together["healthy"]
    assert [t["status"] for t in zero] == ["ok", "ok"]
    for mine, theirs in zip(zero, one, strict=True):
        assert mine["blocks"] == theirs["blocks"] == mine["chosen"] == theirs["chosen"] >= 3
        assert mine["samples"] == theirs["samples"]
    eager, uneven = zero
    # rank 1 makes 31 calls where eager makes one: on rank 0 alone the two would be alike
    assert sorted(uneven["samples"])[len(uneven["samples"]) // 2] > 5 * sorted(eager["samples"])[len(eager["samples"]) // 2]


def test_every_rank_has_the_same_cell(together):
    zero, one = together["healthy"]
    assert {t["cell"] for t in zero} == {t["cell"] for t in one}


def test_what_fails_on_one_rank_fails_on_all_and_names_the_rank(together):
    for trials in together["apply_fails"]:
        found = {t["label"]: t for t in trials}
        assert {name: t["status"] for name, t in found.items()}["eager"] == "ok"
        assert found["broken"]["status"] == "failed"
        assert "ArithmeticError: no such tile" in found["broken"]["advice"]
        assert found["wrong"]["status"] in ("failed", "wrong")
    rank_0 = {t["label"]: t["advice"] for t in together["apply_fails"][0]}
    assert rank_0["broken"].startswith("rank 1:")
    assert rank_0["wrong"].startswith("rank 1:")


def test_the_rank_at_fault_tells_the_same_as_the_others(together):
    zero, one = together["apply_fails"]
    assert [(t["status"], t["advice"]) for t in zero] == [(t["status"], t["advice"]) for t in one]


@pytest.mark.parametrize("scenario", ["missing_package", "probing", "late_failure"])
def test_ranks_stay_together(scenario, tmp_path):
    zero, one = run(tmp_path, scenario, patience=8)[scenario]
    assert [t["status"] for t in zero] == [t["status"] for t in one]
    assert zero[0]["status"] == "ok", zero[0]["advice"]
