"""Models of Transformers in eager mode: equal logits and gradients, and every softmax accounted for."""

import pytest
import torch
from architectures import ARCHITECTURES
from rewriting import rewritten

by_name = {architecture.name: architecture for architecture in ARCHITECTURES}


def cacheless(architecture, inputs):
    """The inputs, asking for no cache where the model would return one."""
    return inputs if architecture.kind in ("bert", "vit", "clip") else inputs | {"use_cache": False}


def logits(output):
    return output.logits_per_text if hasattr(output, "logits_per_text") else output.logits


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_logits_are_equal_and_every_softmax_is_accounted_for(architecture):
    model, inputs = architecture.make()
    wanted = logits(model(**cacheless(architecture, inputs)))
    found = rewritten(model, kwargs=cacheless(architecture, inputs), shuffle=7)
    assert found.matched == architecture.attentions, [refusal.reason for refusal in found.refusals]
    assert len(found.refusals) == architecture.routers
    assert all("no product with values" in refusal.reason for refusal in found.refusals)
    torch.testing.assert_close(logits(found.output), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama_padded", "gemma2_softcap", "t5", "mixtral", "vit"])
def test_gradients_of_a_training_step(name):
    architecture = by_name[name]
    model, inputs = architecture.make()
    logits(model(**cacheless(architecture, inputs))).square().mean().backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    model, inputs = architecture.make()
    found = rewritten(model, kwargs=cacheless(architecture, inputs))
    assert found.matched == architecture.attentions
    logits(found.output).square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        if wanted[parameter_name] is None:
            assert parameter.grad is None, parameter_name
        else:
            scale = float(wanted[parameter_name].abs().max())
            torch.testing.assert_close(parameter.grad, wanted[parameter_name], rtol=1e-3, atol=1e-4 * scale + 1e-9)
