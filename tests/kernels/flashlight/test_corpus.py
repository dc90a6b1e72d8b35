"""Every idiom is matched and right, every near miss is refused for its reason, whatever the graph's nodes are called.

What matched is computed by the float64 reference in tests/kernels/flashlight/reference.py, so these tests say whether the
matcher understood; the kernels have tests of their own. By default one in three idioms is trained, and of Transformers'
attentions, many of which are written alike, those that differ; KPT_LAB_FLASHLIGHT_ALL=1 runs all.
"""

import math

import pytest
import torch
from corpus import ALL, doubled, oracle, some
from idioms import by_name, idioms
from near_misses import near_misses
from rewriting import rewritten
from traps import traps

UNMATCHED = {
    "normalised_last",  # the sum divides the output, so nothing in the graph is a softmax
    "mapped",  # torch.func's transforms have no functional form
}
BFLOAT16 = ("matmul_transpose", "upcast_dtype", "causal_tril", "padding_times_fill", "alibi", "softcap", "grouped_expand")
TRAINED = [idiom for idiom in idioms if idiom.gradients and not idiom.name.startswith("transformers")]
ALIKE = {  # each like one that is run: LlamaAttention, GPT2Attention, BertSelfAttention or ViTAttention
    f"transformers_{kind}"
    for kind in (
        "mixtral",
        "qwen2",
        "olmo2",
        "cohere",
        "phi",
        "gpt_neox",
        "opt",
        "distilbert",
        "electra",
        "esm",
        "clip_vision_model",
    )
}
RUN = [idiom for idiom in idioms if ALL or idiom.name not in ALIKE]


def leaves(output):
    return output if isinstance(output, tuple) else (output,)


def error(output, reference):
    """Largest difference over the reference's largest element; NaN must stand in the same places."""
    assert torch.equal(output.isnan(), reference.isnan())
    difference = (output.detach().double() - reference).nan_to_num(0.0).abs().max()
    return float(difference / reference.nan_to_num(0.0).abs().max())


def made(idiom, dtype=torch.float32, seed=0):
    return idiom.make(seed, dtype)


@torch.no_grad()
@pytest.mark.parametrize("idiom", RUN, ids=lambda idiom: idiom.name)
def test_idioms_are_matched_and_right(idiom):
    found = rewritten(*made(idiom), shuffle=hash_of(idiom.name))
    reference, (fn, args) = oracle(*made(idiom)), made(idiom)
    # the reference rounds once to float32, so a plain result that is luckier than that is no bar
    assert error(found.output, reference) <= 2 * error(fn(*args), reference) + 2**-23
    assert found.matched == (0 if idiom.name in UNMATCHED else idiom.softmaxes), [r.reason for r in found.refusals]


def test_enough_idioms_are_matched():
    assert len(idioms) >= 64
    assert set(by_name) >= UNMATCHED | ALIKE
    assert len(RUN) - len(UNMATCHED) >= 60
    assert sum(idiom.name.startswith("transformers") for idiom in RUN) >= 12


@torch.no_grad()
@pytest.mark.parametrize("name", BFLOAT16)
def test_in_bfloat16(name):
    idiom = by_name[name]
    found = rewritten(*made(idiom, torch.bfloat16))
    fn, args = made(idiom, torch.bfloat16)
    reference = oracle(*made(idiom, torch.bfloat16))
    assert found.matched == idiom.softmaxes
    assert found.output.dtype is torch.bfloat16
    assert error(found.output, reference) <= 2 * error(fn(*args), reference)


@pytest.mark.parametrize("idiom", some(TRAINED, 3), ids=lambda idiom: idiom.name)
def test_gradients_of_captured_tensors(idiom):
    if idiom.name in UNMATCHED:
        pytest.skip("left as it is")
    fn, args = made(idiom)
    found = rewritten(fn, args)
    assert found.matched == idiom.softmaxes
    found.output.double().square().mean().backward()
    exact, exact_args = doubled(*made(idiom))
    exact(*exact_args).square().mean().backward()
    for (name, parameter), (_, wanted) in zip(fn.named_parameters(), exact.named_parameters(), strict=True):
        assert (parameter.grad is None) == (wanted.grad is None), name
        if wanted.grad is not None:
            torch.testing.assert_close(
                parameter.grad.double(), wanted.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@torch.no_grad()
@pytest.mark.parametrize("miss", near_misses, ids=lambda miss: miss.name)
def test_near_misses_are_refused_for_their_reason(miss):
    fn, args = made(miss)
    torch.manual_seed(1)
    plain = fn(*args)
    found = rewritten(*made(miss), shuffle=hash_of(miss.name), seed=1)
    reasons = [refusal.reason for refusal in found.refusals]
    assert found.attentions == []
    assert len(reasons) == miss.softmaxes
    assert any(phrase in reason for phrase in miss.phrase.split("|") for reason in reasons), reasons
    assert all("\n" not in reason and 10 < len(reason) < 200 for reason in reasons)
    for output, wanted in zip(leaves(found.output), leaves(plain), strict=True):
        assert torch.equal(output, wanted)


@pytest.mark.parametrize("trap", traps, ids=lambda trap: trap.name)
def test_traps_are_refused_or_right(trap):
    fn, args = needing_gradients(trap)
    plain = fn(*args)
    found_fn, found_args = needing_gradients(trap)
    found = rewritten(found_fn, found_args, shuffle=hash_of(trap.name))
    reference = oracle(*made(trap))
    assert error(found.output, reference) <= 2 * error(plain, reference) + 2**-23
    if trap.gradients:
        plain.square().sum().backward()
        found.output.square().sum().backward()
        for arg, wanted in zip(found_args, args, strict=True):
            assert (arg.grad is None) == (wanted.grad is None)
            if arg.grad is not None:
                torch.testing.assert_close(arg.grad, wanted.grad, rtol=1e-3, atol=1e-5)


def needing_gradients(trap):
    fn, args = made(trap)
    return fn, tuple(arg.requires_grad_(trap.gradients) if arg.is_floating_point() else arg for arg in args)


def test_enough_near_misses():
    assert len(near_misses) >= 22


@torch.no_grad()
@pytest.mark.parametrize("name", ["causal_tril", "BucketsOfDistance", "documents_from_separators", "grouped_einsum"])
def test_names_of_nodes_play_no_part(name):
    idiom = by_name[name]
    first, second = (rewritten(*made(idiom), shuffle=seed) for seed in (None, 5))
    assert torch.equal(first.output, second.output)
    if name != "documents_from_separators":  # a captured tensor is printed by its name
        assert str(first.attentions[0].parts[0].mask) == str(second.attentions[0].parts[0].mask)


def hash_of(name):
    """A seed that depends on the name and on nothing else, unlike hash()."""
    return math.prod(map(ord, name)) % 2**31
