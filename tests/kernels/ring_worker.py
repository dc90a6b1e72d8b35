"""One rank: `python ring_worker.py RANK COUNT STORE PATIENCE` runs every scenario and prints a line of JSON for each."""

import datetime
import itertools
import json
import random
import sys
import time
import warnings

import torch
import torch.distributed as dist

import kpt_lab as kpt
from kpt_lab.kernels import ring, ring_steps
from kpt_lab.testing import scaled_error

warnings.simplefilter("error")

# (layout, causal, batch, heads, groups, chunk, width): 2 * ranks chunks in all
SHAPES = [
    ("zigzag", True, 1, 2, 2, 17, 16),
    ("zigzag", True, 2, 4, 2, 1, 8),
    ("zigzag", True, 1, 6, 2, 33, 24),
    ("zigzag", False, 1, 2, 1, 7, 13),
    ("contiguous", True, 2, 3, 3, 5, 16),
    ("contiguous", False, 1, 4, 4, 31, 8),
    ("contiguous", True, 1, 4, 1, 64, 32),
]


def dense(q, k, v, causal, scale=None):
    """The definition, on one process."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ v


def with_gradients(function, q, k, v, dout):
    given = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*given)
    return [out.detach(), *torch.autograd.grad(out, given, dout)]


def whole(shape, dtype, seed=0):
    """q, k, v and an upstream gradient for all ranks, and how they are shared out."""
    layout, causal, batch, heads, groups, chunk, width = shape
    generator = torch.Generator().manual_seed(seed)
    length = 2 * chunk * dist.get_world_size()
    tensors = [
        torch.randn(batch, n, length, width, generator=generator, dtype=torch.float64).to(dtype)
        for n in (heads, groups, groups, heads)
    ]
    return tensors, layout, causal


def ours(tensors, layout, causal, **options):
    """Output and gradients of the whole sequence, computed in shards."""
    shards = [ring.shard(x, 2, None, layout) for x in tensors]
    found = with_gradients(lambda q, k, v: ring.attention(q, k, v, causal=causal, layout=layout, **options), *shards)
    return [ring.unshard(x, 2, None, layout) for x in found]


def errors(shape, dtype, **options):
    """For the output, dq, dk and dv: our scaled error, and the dense definition's in the same dtype."""
    tensors, layout, causal = whole(shape, dtype)
    scale = options.get("scale")
    exact = with_gradients(lambda q, k, v: dense(q, k, v, causal, scale), *(x.double() for x in tensors))
    plain = with_gradients(lambda q, k, v: dense(q, k, v, causal, scale), *tensors)
    mine = ours(tensors, layout, causal, **options)
    assert all(x.dtype == dtype for x in mine)
    return [[scaled_error(a, e), scaled_error(b, e)] for a, b, e in zip(mine, plain, exact, strict=True)]


def exact():
    return {str(shape): errors(shape, torch.float64) for shape in SHAPES}


def plain_kernel():
    return {str(shape): errors(shape, torch.float64, kernels=("plain",), scale=0.3) for shape in SHAPES[2:4]}


def rounded():
    return {
        f"{dtype} {shape}": errors(shape, dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for shape in (SHAPES[2], SHAPES[5])
    }


def pieces():
    """The backward's last step in groups of heads, as for long sequences."""
    ring_steps.LONG = 0
    found = [errors((layout, True, 1, 8, 4, 9, 8), torch.float64) for layout in ring.LAYOUTS]
    ring_steps.LONG = 8192
    return found


def strided():
    """Tokens before heads in memory, a gradient without memory of its own, columns apart in q."""
    tensors, layout, causal = whole(SHAPES[0], torch.float64)
    q, k, v = (ring.shard(x, 2, None, layout).transpose(1, 2).contiguous().transpose(1, 2) for x in tensors[:3])
    q = torch.stack([q, q], -1)[..., 0].requires_grad_()
    ring.attention(q, k, v, causal=causal).sum().backward()
    one = torch.ones_like(tensors[0])
    wanted = with_gradients(lambda q, k, v: dense(q, k, v, causal), *tensors[:3], one)[1]
    return scaled_error(q.grad, ring.shard(wanted, 2, None, layout))


def repeated():
    """Whether the forward is bitwise the same however late each rank comes."""
    same = []
    for shape, dtype in ((SHAPES[2], torch.bfloat16), (SHAPES[4], torch.float32)):
        (q, k, v, _), layout, causal = whole(shape, dtype)
        q, k, v = (ring.shard(x, 2, None, layout) for x in (q, k, v))
        first = ring.attention(q, k, v, causal=causal, layout=layout)
        for _ in range(4):
            time.sleep(0.01 * random.random() * dist.get_rank())
            same.append(torch.equal(first, ring.attention(q, k, v, causal=causal, layout=layout)))
    return same


def shards():
    """What `shard` gives of 0, 1, 2, ..., whether `unshard` undoes it, and unshard's gradient."""
    count, found = dist.get_world_size(), {}
    for layout in ring.LAYOUTS:
        x = torch.arange(4.0 * count)
        part = ring.shard(x, 0, None, layout)
        mine = part.clone().requires_grad_()
        (ring.unshard(mine, 0, None, layout) * x * (1 + dist.get_rank())).sum().backward()
        found[layout] = [
            part.tolist(), torch.equal(ring.unshard(part, 0, None, layout), x), (mine.grad / (x[part.long()] + (x[part.long()] == 0))).tolist()
        ]  # fmt: skip
    return found


def subgroup():
    """Attention in a group of two of the ranks, not the first ones."""
    count = dist.get_world_size()
    group = dist.new_group([1, count - 1])
    if dist.get_rank() not in (1, count - 1):
        try:
            ring.shard(torch.zeros(8), 0, group)
        except ValueError as error:
            return str(error)
        return "no error"
    generator = torch.Generator().manual_seed(3)
    q, k, v, dout = (torch.randn(1, 2, 20, 8, generator=generator, dtype=torch.float64) for _ in range(4))
    wanted = with_gradients(lambda q, k, v: dense(q, k, v, True), q, k, v, dout)
    given = [ring.shard(x, 2, group) for x in (q, k, v, dout)]
    mine = with_gradients(lambda q, k, v: ring.attention(q, k, v, group=group, causal=True), *given)
    return max(scaled_error(a, ring.shard(b, 2, group)) for a, b in zip(mine, wanted, strict=True))


def mistakes():
    """The sentences for wrong arguments: none of them sends anything, so the ranks stay together."""
    x = torch.zeros(1, 2, 4, 8)
    calls = {
        "layout": lambda: ring.attention(x, x, x, layout="striped"),
        "dimensions": lambda: ring.attention(x[0], x[0], x[0]),
        "shapes": lambda: ring.attention(x, x[:, :, :2], x),
        "heads": lambda: ring.attention(x, x.repeat(1, 2, 1, 1), x.repeat(1, 2, 1, 1)),
        "empty": lambda: ring.attention(x[:, :, :0], x[:, :, :0], x[:, :, :0]),
        "odd": lambda: ring.attention(x[:, :, :3], x[:, :, :3], x[:, :, :3]),
        "dtype": lambda: ring.attention(x.long(), x.long(), x.long()),
        "dtypes": lambda: ring.attention(x, x.double(), x.double()),
        "kernel": lambda: ring.attention(x, x, x, kernels=("best",)),
        "shard": lambda: ring.shard(torch.zeros(2 * dist.get_world_size() + 1), 0),
        "unshard": lambda: ring.unshard(torch.zeros(3), 0),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "no error"
        except ValueError as error:
            found[name] = str(error)
    return found


def second():
    """Second derivatives are refused, not wrong."""
    q, k, v = (torch.randn(1, 1, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    try:
        torch.autograd.grad(ring.attention(q, k, v).sum(), q, create_graph=True)
    except RuntimeError as error:
        return str(error)
    return "no error"


def measured():
    found = {}
    options = {"group": True, "budget": 0.05, "heads": 2, "groups": 1, "width": 8, "length": 32 * dist.get_world_size()}
    for workload, dtype, causal, layout in (
        (ring.forward, "bfloat16", True, "zigzag"),
        (ring.backward, "float32", True, "contiguous"),
    ):
        trials = kpt.measure(workload, ring.techniques, dtype=dtype, causal=causal, layout=layout, **options)
        found[f"{workload.name} {causal} {layout}"] = {t.label: [t.status, t.advice] for t in trials}
    return found


def specified():
    """Errors of the workloads' specification, as the oracle and (in bfloat16) as PyTorch's own function."""
    found = []
    for shape, dtype in itertools.product((SHAPES[2], SHAPES[3], SHAPES[4]), (torch.float64, torch.bfloat16)):
        tensors, layout, causal = whole(shape, dtype)
        wanted = with_gradients(lambda q, k, v, causal=causal: dense(q, k, v, causal), *(x.double() for x in tensors))
        shards = [ring.shard(x, 2, None, layout) for x in tensors]
        mine = with_gradients(ring.Specification(causal, layout), *shards)
        errors = [scaled_error(a, ring.shard(b, 2, None, layout)) for a, b in zip(mine, wanted, strict=True)]
        found.append([str(dtype).removeprefix("torch."), max(errors)])
    return found


ALL = (exact, plain_kernel, rounded, pieces, strided, repeated, shards, mistakes, second, specified)
ONLY = {2: (measured,), 3: (subgroup,), 4: (subgroup,)}


def main(rank, count, store, patience):
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=int(patience))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(count), timeout=limit)
    for scenario in (*ALL, *ONLY.get(int(count), ())):
        start = time.perf_counter()
        print(json.dumps([scenario.__name__, scenario(), time.perf_counter() - start]), flush=True)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
