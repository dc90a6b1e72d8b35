"""A real ring of processes of one machine, joined over gloo: whether ring attention is exact there, and what it sends.

For notebooks, which can't be started by torchrun: `run(4, length=256, ...)` starts the processes and gives what each found.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import subprocess
import sys
import tempfile
from typing import Any

import torch
import torch.distributed as dist

from kpt_lab.core import to_dtype
from kpt_lab.kernels import ring

LIMIT = 120  # s after which the processes are ended


def run(count: int, *, length: int, heads: int, groups: int, width: int, dtype: str = "float32") -> list[list[dict[str, Any]]]:
    """For each of `count` ranks, and each mask and layout: errors against float64, whether it repeats bitwise, bytes sent.

    length: tokens on all ranks together; groups: key heads. RuntimeError with the last lines of a process that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"length": length, "heads": heads, "groups": groups, "width": width, "dtype": dtype}
        command = [sys.executable, "-c", "from kpt_lab.kernels import ring_local; ring_local.main()"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        told = printed(count, command, [folder, json.dumps(sizes)], environment)
    return [json.loads(out.splitlines()[-1]) for out in told]


def printed(count: int, command: list[str], arguments: list[str], environment: dict[str, str]) -> list[str]:
    """What each of `count` processes of a command printed, given its rank, the count and the arguments; RuntimeError where one failed."""
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(count), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        raise RuntimeError("a local process failed: " + "\n".join(error[-1500:] for _, error in told))
    return [out for out, _ in told]


def main() -> None:
    """One process: its rank, their number, a folder that they share, and the sizes come as arguments."""
    rank, count, folder, sizes = sys.argv[1:]
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=LIMIT)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(count), timeout=limit)
    found = _exact(**json.loads(sizes))
    dist.barrier()
    print(json.dumps(found))
    dist.destroy_process_group()


def _exact(*, length: int, heads: int, groups: int, width: int, dtype: str) -> list[dict[str, Any]]:
    """For each layout and mask: the errors of output and gradients against float64 in one piece, repeatability, bytes sent."""
    from kpt_lab.testing import scaled_error

    generator = torch.Generator().manual_seed(0)
    whole = [
        torch.randn(1, n, length, width, generator=generator, dtype=torch.float64).to(to_dtype(dtype))
        for n in (heads, groups, groups, heads)
    ]
    found = []
    for layout, causal in ((layout, causal) for causal in (False, True) for layout in reversed(ring.LAYOUTS)):
        step = ring.forward_and_backward(lambda q, k, v, c=causal, s=layout: ring.attention(q, k, v, causal=c, layout=s))
        dense = ring.forward_and_backward(lambda q, k, v, c=causal: _dense(q, k, v, c))
        shards = [ring.shard(x, 2, None, layout) for x in whole]
        mine = [ring.unshard(x, 2, None, layout) for x in step(*shards)]
        with _Sent() as sent:
            again = ring.attention(*shards[:3], causal=causal, layout=layout)  # type: ignore[arg-type]
        exact, plain = dense(*(x.double() for x in whole)), dense(*whole)
        errors = {
            name: [scaled_error(a, e), scaled_error(b, e)]
            for name, a, b, e in zip(("output", "dq", "dk", "dv"), mine, plain, exact, strict=True)
        }
        same = torch.equal(ring.unshard(again, 2, None, layout), mine[0])
        found.append({"layout": layout, "causal": causal, "errors": errors, "repeats": same, "sent": sent.bytes})
    return found


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(later, -math.inf) if causal else scores).softmax(-1) @ v


class _Sent:
    """Counts the bytes that this process gives to torch.distributed to send, while it is open."""

    bytes = 0

    def __enter__(self) -> _Sent:
        self.original = dist.batch_isend_irecv

        def counted(operations: list[dist.P2POp]) -> Any:
            self.bytes += sum(one.tensor.nbytes for one in operations if one.op is dist.isend)
            return self.original(operations)

        dist.batch_isend_irecv = counted  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        dist.batch_isend_irecv = self.original
