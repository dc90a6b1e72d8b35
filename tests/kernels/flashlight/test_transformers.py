"""Models of Transformers in eager mode: equal logits and gradients, and every softmax accounted for.

By default those of ARCHITECTURES that differ from each other; KPT_LAB_FLASHLIGHT_ALL=1 runs all.
"""

import pytest
import torch
from architectures import ARCHITECTURES
from corpus import ALL
from rewriting import rewritten
from torch._dynamo.backends.debugging import aot_eager

from kpt_lab.kernels.flashlight import explain, flashlight, lower, regions

RUN = ARCHITECTURES if ALL else ARCHITECTURES[:8]
by_name = {architecture.name: architecture for architecture in ARCHITECTURES}


def cacheless(architecture, inputs):
    """The inputs, asking for no cache where the model would return one."""
    return inputs if architecture.kind in ("bert", "vit", "clip") else inputs | {"use_cache": False}


def logits(output):
    if isinstance(output, torch.Tensor):
        return output
    return output.logits_per_text if hasattr(output, "logits_per_text") else output.logits


@torch.no_grad()
@pytest.mark.parametrize("architecture", RUN, ids=lambda architecture: architecture.name)
def test_logits_are_equal_and_every_softmax_is_accounted_for(architecture):
    model, inputs = architecture.make()
    wanted = logits(model(**cacheless(architecture, inputs)))
    found = rewritten(model, kwargs=cacheless(architecture, inputs), shuffle=7)
    assert found.matched == architecture.attentions, [refusal.reason for refusal in found.refusals]
    assert len(found.refusals) == architecture.routers
    assert all("no product with values" in refusal.reason for refusal in found.refusals)
    torch.testing.assert_close(logits(found.output), wanted, rtol=1e-4, atol=1e-5)


def loss(output, inputs):
    """Of the tokens that are no padding, as in training.

    Where a query sees no key, eager's finite fill lets gradients of the mean of all values reach query and key; the rewrite does not.
    """
    found = logits(output)
    mask = inputs.get("attention_mask")
    return (found[mask.bool()] if mask is not None and mask.shape == found.shape[:2] else found).square().mean()


@pytest.mark.parametrize("name", ["llama_padded", "gemma2_softcap", "vit"] if ALL else ["llama_padded", "vit"])
def test_gradients_of_a_training_step(name):
    architecture = by_name[name]
    model, inputs = architecture.make()
    loss(model(**cacheless(architecture, inputs)), inputs).backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in wanted.values() if gradient is not None)
    model, inputs = architecture.make()
    found = rewritten(model, kwargs=cacheless(architecture, inputs))
    assert found.matched == architecture.attentions
    loss(found.output, inputs).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (wanted[name] is None), name
        if parameter.grad is not None:  # a key's bias has none but rounding, since softmax takes it off again
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5 * largest)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama_padded"])
def test_the_technique_on_a_model(name):
    """With the real lowering: FlexAttention's compiled CPU template, rows without keys included."""
    architecture = by_name[name]
    model, inputs = architecture.make()
    torch._dynamo.reset()
    fast = flashlight.apply(Keyed(model, tuple(inputs)), tuple(inputs.values()), check=False)
    torch.testing.assert_close(fast(*inputs.values()), model(**inputs, use_cache=False).logits, rtol=1e-4, atol=1e-5)
    said = explain(fast)
    assert said.matched == architecture.attentions
    left = [entry for entry in said.entries if not entry.matched]
    assert len(left) == architecture.routers
    assert all("no product with values" in entry.reason for entry in left)


@pytest.mark.parametrize("name", ["gemma2_softcap", "t5", *(["llama_padded"] if ALL else [])])
def test_gradients_through_flex_s_own_operator_as_on_a_gpu(name, monkeypatch):
    """The path of training on CUDA, compiled by no Inductor: the check before first use asks for gradients too."""
    monkeypatch.setattr(lower._Site, "lacking", lambda self, part: "")
    monkeypatch.setattr(lower._Site, "has_sums", True)
    monkeypatch.setattr(regions, "compile_fx", lambda module, examples: aot_eager(module, examples))
    architecture = by_name[name]
    model, inputs = architecture.make()
    names = [key for key, x in inputs.items() if isinstance(x, torch.Tensor)]
    plain = Keyed(model, names)
    wanted = loss(plain(*(inputs[key] for key in names)), inputs)
    torch._dynamo.reset()
    fast = flashlight.apply(plain, tuple(inputs[key] for key in names))
    said = explain(fast)
    assert said.matched == architecture.attentions
    assert all("random at" in entry.lowering.checked for entry in said.entries if entry.matched)
    found = loss(fast(*(inputs[key] for key in names)), inputs)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(x, trained, allow_unused=True) for x in (found, wanted)]
    both = [(ours, theirs) for ours, theirs in zip(*gradients, strict=True) if ours is not None or theirs is not None]
    largest = max(float(theirs.abs().max()) for _, theirs in both)
    for ours, theirs in both:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * largest)


class Keyed(torch.nn.Module):
    """A model that takes its inputs by position and gives its logits."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs, strict=True)), use_cache=False).logits
