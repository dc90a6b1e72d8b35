"""ring: local processes of one gloo group against dense attention in one process.

Each group costs seconds, so it does all scenarios. KPT_LAB_FLASHLIGHT_ALL=1 adds a group of four ranks.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from kpt_lab.core import Unsupported
from kpt_lab.kernels import blockwise, ring, ring_local
from kpt_lab.kernels.ring_steps import Ring
from kpt_lab.testing import error_limit, interpreted, scaled_error, unit_roundoff

ALL = os.environ.get("KPT_LAB_FLASHLIGHT_ALL", "") not in ("", "0")
HERE = Path(__file__).parent

needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")


# ---- groups of processes


@pytest.fixture(scope="module", params=[1, 2, 3, *([4] if ALL else [])])
def ranks(request, tmp_path_factory):
    """(number of ranks, what each rank found in each scenario)."""
    count, folder = request.param, tmp_path_factory.mktemp("ring")
    paths = os.pathsep.join([str(HERE.parents[1]), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(HERE / "ring_worker.py")]
    answers = ring_local.printed(count, command, [str(folder / "store"), "60"], environment)
    found = [{line[0]: line[1] for line in map(json.loads, out.splitlines())} for out in answers]
    return count, found


@needs_gloo
def test_output_and_gradients_are_those_of_dense_float64_attention(ranks):
    for rank in ranks[1]:
        for cases in (rank["exact"], rank["plain_kernel"]):
            for name, errors in cases.items():
                assert max(mine for mine, _ in errors) < 1e-13, name


@needs_gloo
def test_other_dtypes_stay_within_the_error_model(ranks):
    for rank in ranks[1]:
        for name, errors in rank["rounded"].items():
            dtype = name.split()[0].removeprefix("torch.")
            for mine, dense in errors:
                assert mine <= error_limit(dtype, 16, dense), name
            assert errors[0][0] <= 2 * unit_roundoff(dtype) + 2 * errors[0][1], name


@needs_gloo
def test_heads_in_pieces_and_strided_inputs_change_nothing(ranks):
    for rank in ranks[1]:
        assert max(mine for errors in rank["pieces"] for mine, _ in errors) < 1e-13
        assert rank["strided"] < 1e-13


@needs_gloo
def test_the_forward_is_bitwise_the_same_from_run_to_run(ranks):
    assert all(all(rank["repeated"]) for rank in ranks[1])


@needs_gloo
def test_shards_and_the_gradient_of_what_joins_them(ranks):
    count, found = ranks
    for number, rank in enumerate(found):
        last = 4 * count - 2 * number - 2
        part, joined, _ = rank["shards"]["zigzag"]
        assert (part, joined) == ([2.0 * number, 2.0 * number + 1, last, last + 1.0], True)
        part, joined, gradient = rank["shards"]["contiguous"]
        assert (part, joined) == ([4.0 * number + i for i in range(4)], True)
        total = count * (count + 1) / 2  # every rank weighs its loss by its number, from 1
        assert all(value in (0.0, total) for value in gradient)  # 0 only where x is
        assert total in gradient


@needs_gloo
def test_a_group_of_some_ranks(ranks):
    count, found = ranks
    if count < 3:
        pytest.skip("needs a rank that is left out")
    for number, rank in enumerate(found):
        if number in (1, count - 1):
            assert rank["subgroup"] < 1e-13
        else:
            assert rank["subgroup"] == "group does not hold this rank; call it on the group's own ranks only"


MISTAKES = {
    "layout": "layout is 'striped'; accepted are 'zigzag' and 'contiguous'",
    "dimensions": "each must be (batch, heads, local tokens, width)",
    "shapes": "they must agree in all but q's number of heads",
    "heads": "q has 2 heads and k 4",
    "empty": "nothing empty",
    "odd": "a rank holds 3 tokens; layout 'zigzag' needs an even number",
    "dtype": "they must be of one dtype (float16, bfloat16, float32, float64)",
    "dtypes": "q, k and v are float32 on cpu, float64 on cpu, float64 on cpu",
    "kernel": "kernel is 'best'; accepted are fa3, cudnn, flash, cpu, plain",
    "unshard": "x has length 3 along dim 0; layout 'zigzag' needs an even number",
}


@needs_gloo
def test_one_sentence_for_a_wrong_argument(ranks):
    count, found = ranks
    for rank in found:
        told = dict(rank["mistakes"])
        assert told.pop("shard") == (
            f"x has length {2 * count + 1} along dim 0; layout 'zigzag' on {count} ranks needs a multiple of {2 * count}"
        )
        assert told.keys() == MISTAKES.keys()
        for name, part in MISTAKES.items():
            assert part in told[name], name
        assert rank["second"].startswith("ring attention has no second derivative")


@needs_gloo
def test_the_specification_is_dense_attention(ranks):
    for rank in ranks[1]:
        assert len(rank["specified"]) == 6
        for dtype, error in rank["specified"]:
            assert error < (1e-13 if dtype == "float64" else 32 * unit_roundoff(dtype))


@needs_gloo
def test_workloads_are_measured_by_a_group(ranks):
    count, found = ranks
    if count != 2:
        pytest.skip("measured with two ranks only")
    for rank in found:
        assert len(rank["measured"]) == 2
        for name, trials in rank["measured"].items():
            assert trials["ring"] == ["ok", ""], name
            assert trials["context_parallel"][0] == "unsupported"


# ---- in this process


def test_without_a_group_every_entry_says_what_to_do():
    x = torch.zeros(1, 1, 2, 8)
    calls = (
        lambda: ring.attention(x, x, x), lambda: ring.shard(x, 2), lambda: ring.unshard(x, 2),
        lambda: ring.forward.make(device="cpu", dtype="float32", seed=0, length=64),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=r"group needs torch\.distributed to be initialised; start with torchrun"):
            call()


def test_techniques_take_the_modules_own_workloads_only():
    for technique in ring.techniques:
        with pytest.raises(Unsupported, match="own workloads; it was given"):
            technique.apply(torch.neg, (torch.zeros(1),))


@given(count=st.integers(1, 7), layout=st.sampled_from(ring.LAYOUTS), causal=st.booleans())
def test_every_needed_pair_of_tokens_is_computed_once_and_no_other(count, layout, causal):
    balanced = layout == "zigzag" or not causal
    tokens = torch.arange(4 * count)
    parts = tokens.chunk(2 * count)
    held = [
        torch.cat([parts[r], parts[2 * count - 1 - r]]) if layout == "zigzag" else tokens.chunk(count)[r] for r in range(count)
    ]
    seen, work = torch.zeros(4 * count, 4 * count), []
    for rank in range(count):
        steps = Ring(rank, count, None, layout, causal, 1.0, None)
        seen[held[rank][:, None], held[rank]] += torch.ones(4, 4).tril() if causal else 1
        blocks = []
        for step in range(1, count):
            if needed := steps.needs(rank, steps.before(step), 4):
                rows, columns = held[rank][needed[0]], held[steps.before(step)][needed[1]]
                seen[rows[:, None], columns] += 1
                blocks.append(len(rows) * len(columns))
        work.append(sum(blocks))
    assert torch.equal(seen, torch.ones_like(seen).tril() if causal else torch.ones_like(seen))
    assert len(set(work)) == 1 or not balanced


SIZES = [(1, 1, 1), (7, 3, 8), (33, 64, 16), (130, 65, 13), (129, 257, 24)]


@pytest.mark.parametrize("name", ["plain", "cpu"])
@pytest.mark.parametrize(("rows", "columns", "width"), SIZES)
def test_kernels_give_outputs_sums_and_gradients_of_a_block(name, rows, columns, width, monkeypatch):
    monkeypatch.setattr(blockwise, "SCORES", 4 * 2 * columns * 50)  # several chunks of queries
    kernel = blockwise.KERNELS[name]
    for causal in (False, True)[: 2 if rows == columns else 1]:
        q, dout = torch.randn(2, 2, 4, rows, width, dtype=torch.float64)
        k, v = torch.randn(2, 2, 2, columns, width, dtype=torch.float64)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.7
        if causal:
            scores = scores.masked_fill(torch.ones(rows, columns, dtype=torch.bool).triu(1), -torch.inf)
        exact = scores.softmax(-1) @ v.repeat_interleave(2, 1)
        wanted = torch.autograd.grad(exact, inputs, dout)
        with torch.no_grad():
            out, lse = kernel.forward(q, k, v, causal, 0.7)
            found = kernel.backward(dout, q, k, v, out, lse, causal, 0.7)
        for mine, theirs in zip((out, lse, *found), (exact, scores.logsumexp(-1), *wanted), strict=True):
            assert scaled_error(mine, theirs.detach()) < 1e-13


def blocks_apart(dtype, rows, width, columns=(9, 5)):
    """out and lse of two blocks of keys, and of both together in float64."""
    q, k, v = (torch.randn(2, 3, n, width, dtype=torch.float64) for n in (rows, sum(columns), sum(columns)))
    k[..., columns[0] :, :] *= 5  # some rows belong to one of the blocks nearly alone
    pairs = zip(k.split(columns, 2), v.split(columns, 2), strict=True)
    apart = [blockwise.plain_forward(q, a, b, False, width**-0.5) for a, b in pairs]
    return [(out.to(dtype), lse.float()) for out, lse in apart], blockwise.plain_forward(q, k, v, False, width**-0.5)


@pytest.mark.parametrize("on_gpu", [False, pytest.param(True, marks=interpreted(), id="kernel")])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 24), (300, 64), (33, 128)])
def test_merging_two_blocks_gives_both_together(on_gpu, rows, width):
    merge = blockwise.merge_on_gpu if on_gpu else blockwise.merge
    for dtype, accumulator in itertools.product((torch.float32, torch.float16), repeat=2):
        if torch.finfo(accumulator).bits < torch.finfo(dtype).bits:
            continue
        ((out, lse), block), (exact, sums) = blocks_apart(dtype, rows, width)
        out = torch.cat([out, out], 2).to(accumulator)  # written in place, in the second half of the rows only
        lse = torch.cat([lse, lse], 2)
        first = out[:, :, :rows].clone()
        merge(out[:, :, rows:], lse[:, :, rows:], *block)
        assert scaled_error(out[:, :, rows:].float(), exact) <= 16 * unit_roundoff(dtype)
        assert scaled_error(lse[:, :, rows:], sums) <= 64 * unit_roundoff(torch.float32)
        assert torch.equal(out[:, :, :rows], first)


def test_a_kernel_that_differs_or_fails_is_passed_over(monkeypatch):
    def wrong(q, k, v, causal, scale):
        out, lse = blockwise.plain_forward(q, k, v, causal, scale)
        return out, lse / 0.6931471805599453  # sums in base 2

    def broken(*args):
        raise RuntimeError("no such operator\nand a long trace")

    kernels = {**blockwise.KERNELS, "wrong": blockwise.Kernel("wrong", wrong, None)}
    kernels["broken"] = blockwise.Kernel("broken", broken, broken)
    monkeypatch.setattr(blockwise, "KERNELS", kernels)
    q = torch.zeros(1, 4, 300, 16)
    assert blockwise.choose(False, q, q[:, :2], True, ("wrong", "broken", "plain")).name == "plain"
    with pytest.raises(ValueError, match=r"no kernel for torch.float32 .*wrong: differs .* by .*broken: no such operator$"):
        blockwise.choose(False, q, q, False, ("wrong", "broken"))
    with pytest.raises(ValueError, match="wrong: has no backward"):
        blockwise.choose(True, q, q, False, ("wrong",))
    assert blockwise.choose(False, q, q, True).name == "cpu"


def test_operators_have_the_arguments_that_the_kernels_pass():
    """The CUDA operators can't run here; their schemas can be held to what is passed to them by position."""
    aten = torch.ops.aten
    expected = {
        aten._scaled_dot_product_flash_attention: "query key value dropout_p is_causal return_debug_mask scale",
        aten._scaled_dot_product_flash_attention_backward: "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k "
        "dropout_p is_causal philox_seed philox_offset scale",
        aten._scaled_dot_product_cudnn_attention: "query key value attn_bias compute_log_sumexp dropout_p is_causal "
        "return_debug_mask scale",
        aten._scaled_dot_product_cudnn_attention_backward: "grad_out query key value out logsumexp philox_seed philox_offset "
        "attn_bias cum_seq_q cum_seq_k max_q max_k dropout_p is_causal scale",
    }  # fmt: skip
    for operator, names in expected.items():
        assert [argument.name for argument in operator.default._schema.arguments] == names.split()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cudnn", "flash"])
@pytest.mark.parametrize("shape", [(1, 1024, 1024, 128), (4, 1024, 512, 64), (4, 130, 135, 128)])
def test_cuda_kernels_agree_with_the_plain_one(name, shape):
    device = torch.device("cuda", torch.cuda.current_device())
    for backward, causal in itertools.product((False, True), (False, True)[: 2 if shape[1] == shape[2] else 1]):
        assert not blockwise.disagreement(blockwise.KERNELS[name], backward, device, torch.bfloat16, shape, causal)
