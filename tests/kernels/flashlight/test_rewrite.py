"""The rewrite as users meet it: alone, under Inductor, in a stack, refused, and explained."""

import math

import pytest
import torch
from torch import nn

from kpt_lab import baselines
from kpt_lab.core import Unsupported
from kpt_lab.kernels import flashlight as package
from kpt_lab.kernels.flashlight import backend, differential, explain, flashlight, rewrite


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def qkv(length=9, heads=3, grad=False):
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randn(2, heads, length, 16, generator=generator).requires_grad_(grad) for _ in "qkv")


def causal(q, k, v):
    s = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    keep = torch.ones(s.shape[-2:], dtype=torch.bool).tril()
    return s.masked_fill(~keep, -math.inf).softmax(-1) @ v


def weights_too(q, k, v):
    p = (q @ k.mT).softmax(-1)
    return p @ v, p


class Block(nn.Module):
    """Self attention with a counter that every call writes to."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        q, k, v = self.qkv(x).unflatten(-1, (3, 1, 16)).permute(2, 0, 3, 1, 4)
        return causal(q, k, v).squeeze(1)


@torch.no_grad()
def test_the_technique_alone_and_its_explanation():
    fused = flashlight.apply(causal, qkv())
    torch.testing.assert_close(fused(*qkv()), causal(*qkv()))
    said = explain(fused)
    assert said.matched == 1
    assert "softmax over k of [s · 0.25 where q ≥ k] · v" in str(said)
    assert "masked_fill" in said.entries[0].where
    assert "random at the sizes of the call" in said.entries[0].lowering.checked


def test_gradients_through_the_technique():
    fused = flashlight.apply(causal, qkv(grad=True))
    one, other = qkv(grad=True), qkv(grad=True)
    fused(*one).square().sum().backward()
    causal(*other).square().sum().backward()
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_stack_with_inductor_keeps_the_rewrite():
    stacked = (flashlight >> baselines.compiled).apply(causal, qkv())
    torch.testing.assert_close(stacked(*qkv()), causal(*qkv()))
    assert stacked.backend.inner == "inductor"
    assert explain(stacked).matched == 1


@torch.no_grad()
def test_a_compilation_around_it_does_not_lose_the_rewrite():
    fused = flashlight.apply(causal, qkv())
    before = len(fused.backend.reports)
    wrapped = torch.compile(lambda *x: fused(*x) * 2, backend="eager")
    torch.testing.assert_close(wrapped(*qkv(11)), causal(*qkv(11)) * 2)
    assert len(fused.backend.reports) == before + 1
    with pytest.raises(Exception, match="flashlight"):
        torch.compile(lambda *x: fused(*x), backend="eager", fullgraph=True)(*qkv())


@torch.no_grad()
def test_what_cannot_be_fused_says_why_and_runs_as_it_was():
    with pytest.raises(Unsupported, match="returned"):
        flashlight.apply(weights_too, qkv())
    with pytest.raises(Unsupported, match="no softmax"):
        flashlight.apply(torch.sin, qkv()[:1])
    made = backend()
    for given, wanted in zip(torch.compile(weights_too, backend=made)(*qkv()), weights_too(*qkv()), strict=True):
        assert torch.equal(given, wanted)
    assert "left as it is" in str(explain(made))


def test_modules_keep_their_parameters_and_state():
    block = Block()
    fused = flashlight.apply(block, (torch.randn(2, 5, 16),))
    assert float(block.calls) == 0
    x = torch.randn(2, 5, 16)
    out = fused(x)
    assert float(block.calls) == 1
    out.sum().backward()
    assert all(p.grad is not None for p in fused.parameters())
    torch.testing.assert_close(out, block(x))


@torch.no_grad()
def test_one_more_capture_for_symbolic_lengths_and_then_none():
    made = backend()
    compiled = torch.compile(causal, backend=made)
    for length in (9, 14, 21, 30):
        torch.testing.assert_close(compiled(*qkv(length)), causal(*qkv(length)))
    assert len(made.reports) == 2
    assert "odd lengths" in made.reports[1].entries[0].lowering.checked


@torch.no_grad()
def test_a_failed_check_refuses(monkeypatch):
    def wrong(gm, attention, *, options):
        with gm.graph.inserting_before(attention.output):
            node = gm.graph.call_function(torch.ops.aten.mul.Tensor, (attention.value.node, 2.0))
        node.meta.update(attention.output.meta)
        attention.output.replace_all_uses_with(node)

    monkeypatch.setattr(rewrite.lower, "replace", wrong)
    made = backend()
    assert torch.equal(torch.compile(causal, backend=made)(*qkv()), causal(*qkv()))
    (entry,) = made.reports[0].entries
    assert not entry.matched
    assert "differs from the original" in entry.reason


@torch.no_grad()
def test_what_no_compiler_takes_runs_as_it_was_and_says_so(monkeypatch):
    def refusing(module, examples):
        raise RuntimeError("no valid\nconfiguration")

    def capped(q, k, v):
        return torch.softmax(torch.tanh(q @ k.mT), -1) @ v

    monkeypatch.setattr(rewrite.regions, "compile_fx", refusing)
    made = backend()
    with pytest.warns(rewrite.UncompiledWarning, match="no valid configuration; the graph runs as it was"):
        assert torch.equal(torch.compile(capped, backend=made)(*qkv()), capped(*qkv()))
    (entry,) = made.reports[0].entries
    assert not entry.matched
    assert entry.reason == "the fused form could not be compiled: RuntimeError: no valid configuration"
    refused = pytest.raises(Unsupported, match="no attention was fused: the fused form could not be compiled: RuntimeError: no")
    with pytest.warns(rewrite.UncompiledWarning), refused:
        flashlight.apply(capped, qkv())


@torch.no_grad()
def test_a_check_that_is_too_large_says_so(monkeypatch):
    monkeypatch.setattr(differential, "LARGEST", 10)
    made = backend()
    torch.compile(causal, backend=made)(*qkv())
    assert "too many to hold" in made.reports[0].entries[0].lowering.checked


def test_names_and_errors():
    assert flashlight.replaces == {"attention"}
    assert flashlight.stage == "rewrite"
    assert isinstance(package.backend("inductor"), package.Backend)
    with pytest.raises(ValueError, match="inner is 'onnx'"):
        backend("onnx")
    with pytest.raises(ValueError, match="no knob"):
        flashlight(speed=11)
    with pytest.raises(TypeError, match="candidate is a int"):
        explain(3)
    assert str(explain(backend())) == "no graph with a softmax has been captured"
