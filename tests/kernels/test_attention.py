"""Attention's workloads and techniques: what is counted, what is refused, and the numbers on a GPU."""

import pytest
import torch

from kpt_lab.core import Recording, Technique, Unsupported
from kpt_lab.kernels import attention, attention_variants
from kpt_lab.kernels.attention import VARIANTS, backward, flashlight, forward

SIZES = {"batch": 2, "heads": 4, "groups": 2, "length": 40, "width": 8}
MAKE = {"device": "cpu", "dtype": "float32", "seed": 0}


def oracle(variant, query, key, value, *extra):
    """Attention in float64 with the mask that one hands to FlexAttention, written apart from the specifications."""
    score, mask = attention._flex_functions(variant, extra)
    groups = query.shape[2] // key.shape[2]
    q, k, v = (x.transpose(1, 2).double() for x in (query, key, value))
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    places = [
        torch.arange(n, device=q.device).view([-1 if d == i else 1 for d in range(4)]) for i, n in enumerate(scores.shape)
    ]
    scores = score(scores, *places) if score else scores
    scores = scores.masked_fill(~mask(*places), -torch.inf) if mask else scores
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_specification_is_the_attention_that_its_name_says(variant):
    problem = forward.make(**MAKE, **SIZES, variant=variant)
    for inputs in problem.inputs:
        wide = [x.double() if x.is_floating_point() else x for x in inputs]
        torch.testing.assert_close(problem.fn(*inputs).double(), oracle(variant, *wide), rtol=1e-5, atol=1e-5)
    flat = [x for inputs in problem.inputs for x in inputs[:3]]
    assert len({float(x.sum()) for x in flat}) == len(flat)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [1, 7, 300])
def test_costs_count_the_attended_pairs(variant, length):
    _, mask = attention._flex_functions(variant, attention.captured(variant, batch=3, heads=4, length=length, device="cpu"))
    places = [torch.arange(n).view([-1 if d == i else 1 for d in range(4)]) for i, n in enumerate((3, 1, length, length))]
    every = torch.ones(3, 1, length, length, dtype=torch.bool)
    counted = int((mask(*places) & every).sum() if mask else every.sum())
    assert attention.pairs(variant, batch=3, length=length) == counted
    sizes = {**SIZES, "batch": 3, "length": length, "variant": variant}
    once, both = forward.cost(dtype="bfloat16", **sizes), backward.cost(dtype="bfloat16", **sizes)
    assert once.flops == {"bfloat16": 4 * 4 * 8 * counted}
    assert both.flops == {"bfloat16": 14 * 4 * 8 * counted}
    assert once.bytes == 2 * 3 * length * 8 * (2 * 4 + 2 * 2)


def test_the_backward_step_gives_the_gradients_of_autograd():
    problem = backward.make(**MAKE, **SIZES, variant="window")
    out, *gradients = problem.drive(problem.fn)(*problem.inputs[0])
    leaves = [x.double().requires_grad_() for x in problem.inputs[0]]
    wanted = oracle("window", *leaves)
    upstream = problem.drive.keywords["upstream"]
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted, leaves, upstream.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    assert all(x.grad is None for x in problem.inputs[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads is 3 and groups is 2; heads must be a multiple of groups"),
        ({"length": 0}, "length is 0; a whole number of 1 or more is accepted"),
        ({"variant": "sparse"}, "variant is 'sparse'; accepted are plain, causal"),
    ],
)
def test_wrong_parameters_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        forward.make(**MAKE, **(SIZES | {"variant": "plain"} | change))


def test_the_face():
    assert (forward.name, backward.name) == ("attention.forward", "attention.backward")
    labels = [t.label for t in attention.techniques]
    assert len(set(labels)) == len(labels)
    assert labels[:3] == ["eager", "torch.compile", "torch.compile max-autotune"]
    assert labels[-2:] == ["flashlight", "flashlight >> torch.compile"]
    assert all(isinstance(t, Technique) for t in attention.techniques)
    assert not any(t.baseline for t in attention.techniques[-2:])
    for recording in attention.record_grid:
        assert isinstance(recording, Recording)
        recording.workload.complete({name: values[0] for name, values in recording.grid.items()})
    assert any(recording.processes >= 6 for recording in attention.record_grid)


def test_library_kernels_say_what_they_do_not_take():
    problem = forward.make(**MAKE, **SIZES, variant="window")
    with pytest.raises(Unsupported, match="has plain and causal attention only, not window"):
        attention.sdpa_flash.apply(problem.fn, problem.inputs[0])
    with pytest.raises(Unsupported, match="flash can't run here: flash is a CUDA kernel"):
        attention.sdpa_flash.apply(attention_variants.causal, problem.inputs[0])
    with pytest.raises(Unsupported, match=r"replaces the specifications of .* only; it was given 'relu'"):
        attention.flex.apply(torch.nn.functional.relu, problem.inputs[0])
    with pytest.raises(Unsupported, match="is compared on a CUDA device"):
        attention.flex.apply(problem.fn, problem.inputs[0])


@pytest.mark.parametrize(
    ("workload", "variant"), [(forward, "causal"), (backward, "causal"), (backward, "document"), (backward, "alibi")]
)
def test_flashlight_does_what_the_workloads_time(workload, variant):
    problem = workload.make(**MAKE, **SIZES, variant=variant)
    step = problem.drive(flashlight.apply(problem.fn, problem.inputs[0]) if workload is forward else _trained(problem))
    for inputs in problem.inputs:
        found, wanted = step(*inputs), problem.drive(problem.fn)(*inputs)
        found, wanted = ((x,) if isinstance(x, torch.Tensor) else x for x in (found, wanted))
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def _trained(problem):
    query, key, value, *extra = problem.inputs[0]
    return flashlight.apply(problem.fn, (*(x.clone().requires_grad_() for x in (query, key, value)), *extra))


@pytest.mark.gpu
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch's own Flex asks for it
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("length", "groups", "width"), [(1024, 1, 64), (777, 4, 128)])
def test_every_technique_is_right_on_a_gpu_forward_and_backward(variant, length, groups, width, tmp_path, monkeypatch):
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    sizes = {"batch": 2, "heads": 8, "groups": groups, "length": length, "width": width, "variant": variant}
    problem = backward.make(device="cuda", dtype="bfloat16", seed=0, **sizes)
    inputs = problem.inputs[0]
    leaves = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    wanted = oracle(variant, *leaves)
    upstream = problem.drive.keywords["upstream"]
    gradients = torch.autograd.grad(wanted, leaves[:3], upstream.double())
    ours = (flashlight, attention.flashlight_compiled, attention.flashlight_rebuilt)
    for technique in (*ours, attention.flex, attention.flex_rebuilt, *attention.libraries):
        torch._dynamo.reset()
        try:
            step = problem.drive(technique.apply(problem.fn, inputs))
        except (Unsupported, ImportError):
            assert technique not in ours
            continue
        for ours_, theirs in zip(step(*inputs), (wanted, *gradients), strict=True):
            error = float((ours_.detach().double() - theirs.detach()).norm()) / float(theirs.detach().norm())
            assert error <= 0.02, f"{technique.label}: {error}"


@pytest.mark.parametrize("variant", attention.VARIANTS)
def test_the_float64_oracle_takes_pieces_and_gives_the_whole(variant):
    size = {"batch": 2, "heads": 6, "groups": 3, "length": 19, "width": 8, "variant": variant}
    for workload in (attention.forward, attention.backward):
        problem = workload.make(device="cpu", dtype="float32", seed=0, **size)
        wide = tuple(x.double() if x.is_floating_point() else x for x in problem.inputs[0])
        found = problem.drive(problem.fn)(*wide)
        exact = problem.fn(*wide)
        torch.testing.assert_close(found if workload is attention.forward else found[0], exact, rtol=1e-14, atol=1e-14)
        if workload is attention.backward:
            leaves = [x.requires_grad_() for x in wide[:3]]
            upstream = problem.drive.keywords["upstream"].double()
            wanted = torch.autograd.grad(problem.fn(*leaves, *wide[3:]), leaves, upstream)
            for one, other in zip(found[1:], wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("variant", ["alibi", "document", "padding"])
def test_a_function_may_keep_what_it_captures(variant):
    size = {"batch": 2, "heads": 4, "groups": 2, "length": 19, "width": 8, "variant": variant}
    given = {"device": "cpu", "dtype": "float32", "seed": 0, **size}
    for workload in (attention.forward, attention.backward):
        free, kept = workload.make(**given), workload.make(**given, kept=True)
        assert len(kept.inputs[0]) == 3
        assert attention.variant_of("a kernel", kept.fn) == variant
        wide = [tuple(x.double() if x.is_floating_point() else x for x in p.inputs[0]) for p in (free, kept)]
        for one, other in zip(free.drive(free.fn)(*wide[0]), kept.drive(kept.fn)(*wide[1]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    fused = flashlight.apply(kept.fn, kept.inputs[1])
    torch.testing.assert_close(fused(*kept.inputs[2]), kept.fn(*kept.inputs[2]), rtol=1e-4, atol=1e-5)
