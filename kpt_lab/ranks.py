"""One process, or all ranks of a torch.distributed group, behind the same five questions that measure asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


class Alone:
    """A single process: every answer is its own."""

    rank, count = 0, 1

    def barrier(self) -> None:
        """Nothing to wait for."""

    def agree(self, problem: tuple[str, str] | None) -> tuple[str, str] | None:
        """The problem itself, a status and advice, or None."""
        return problem

    def slowest(self, samples: Sequence[int]) -> list[int]:
        """The samples themselves."""
        return list(samples)

    def decide(self, choice: Any) -> Any:
        """The choice itself."""
        return choice


class Ranks(Alone):
    """All ranks of `group`: they share rank 0's decisions, wait for each other, and count the slowest rank's time."""

    def __init__(self, group: Any) -> None:
        self.group = None if group is True else group
        self.rank, self.count = dist.get_rank(self.group), dist.get_world_size(self.group)
        self._device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"

    def barrier(self) -> None:
        """Returns when all ranks have come here."""
        dist.barrier(self.group)

    def agree(self, problem: tuple[str, str] | None) -> tuple[str, str] | None:
        """The first failing rank's status and advice, with its number, on every rank; None when all are well."""
        flag = torch.tensor([problem is not None], dtype=torch.int64, device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        if not flag.item():
            return None
        problems: list[Any] = [None] * self.count
        dist.all_gather_object(problems, problem, group=self.group)
        rank, (status, advice) = next((rank, found) for rank, found in enumerate(problems) if found)
        return status, advice if advice.startswith("rank ") else f"rank {rank}: {advice}"  # a rank may pass on another's

    def slowest(self, samples: Sequence[int]) -> list[int]:
        """Elementwise maximum over ranks."""
        values = torch.tensor(list(samples), dtype=torch.int64, device=self._device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values.tolist()

    def decide(self, choice: Any) -> Any:
        """Rank 0's choice."""
        box = [choice]
        dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]


def ranks_of(group: Any) -> Alone:
    """Alone for None, else the ranks of a process group (True means the default group)."""
    if group is None:
        return Alone()
    if not dist.is_initialized():
        raise ValueError("group needs torch.distributed to be initialised; start with torchrun and call init_process_group")
    return Ranks(group)
