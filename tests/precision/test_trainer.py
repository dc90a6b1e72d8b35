"""The trainer, emulated: it trains, finds every planted fault, applies no bad step, resumes bit for bit, and says what it did."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import warnings

import pytest
import small
import torch
from torch import nn
from torch.nn import functional as F

from kpt_lab.core import Incomparable, Metric, Ratio, Trial, Trials, Unsupported
from kpt_lab.precision import (
    BFLOAT16,
    ROWWISE,
    TENSORWISE,
    AutoMixedPrecision,
    BadStep,
    Decision,
    Decisions,
    FP8Trainer,
    Recipe,
    language,
    layer,
    monitor,
    whole,
)
from kpt_lab.precision.linear import COUNTS, FP8Linear
from kpt_lab.precision.objective import Objective, split

LAYER = "blocks.1.down"
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trainer(net=None, policy=TENSORWISE, **settings):
    settings = {"hardware_optimization": False, "loss": small.loss} | settings
    return FP8Trainer(small.model() if net is None else net, policy, **settings)


def held(run):
    """Parameters, buffers, and all that the optimiser keeps."""
    kept = [t.clone() for s in run.optimizer.state.values() for t in s.values()]
    return [*small.state(run.model).values(), *kept]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in zip(a, b, strict=True))


# ---- training


def test_the_call_as_the_roadmap_writes_it_trains_or_says_what_to_pass():
    net, batch = small.model(), small.batches(1)[0]

    def call():
        return FP8Trainer(model=net, precision_policy=AutoMixedPrecision(), hardware_optimization=True, loss=small.loss).step(
            batch
        )

    if torch.cuda.is_available():
        assert call().isfinite()
    else:
        with pytest.raises(Unsupported, match=r"needs an NVIDIA GPU with FP8.*pass hardware_optimization=False to emulate"):
            call()


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("policy", [AutoMixedPrecision(budget=0.2), TENSORWISE, ROWWISE], ids=str)
def test_it_trains_on_a_gpu(policy):
    run = FP8Trainer(model=small.model(), precision_policy=policy, hardware_optimization=True, loss=small.loss, accumulate=2)
    batches = small.batches(1) * 30
    losses = [float(run.step(batch)) for batch in batches]
    assert losses[-1] < 0.8 * losses[0]
    assert run.device.type == "cuda"
    assert run.steps == 30
    assert run.receipt().bad == {}
    assert run.decisions.device == torch.cuda.get_device_name()


def test_the_first_step_decides_and_the_loss_falls():
    run = trainer(policy=AutoMixedPrecision(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    assert run.decisions is None
    losses = [run.step(batch) for batch in small.batches(1) * 20]
    assert losses[-1] < 0.7 * losses[0]
    assert all(x.shape == () and not x.requires_grad for x in losses)
    assert len(run.decisions.fp8) == 6
    assert {type(p) for n, p in run.model.named_modules() if n in run.decisions.recipes} == {FP8Linear}
    assert (run.steps, run.tried, dict(run.bad)) == (20, 20, {})


def test_a_step_is_the_plain_one_where_nothing_is_in_fp8():
    run, net = trainer(policy=BFLOAT16, clip=0.5), small.model()
    plain = torch.optim.AdamW(net.parameters())
    for tokens, target in small.batches(5):
        loss = run.step((tokens, target))
        plain.zero_grad()
        exact = small.loss(net(tokens), target)
        exact.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        plain.step()
        torch.testing.assert_close(loss, exact.detach(), rtol=1e-6, atol=0)
    for a, b in zip(run.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_fp8_stays_beside_what_it_emulates():
    losses = {}
    for name, recipe in (("plain", BFLOAT16), ("fp8", TENSORWISE)):
        run = trainer(policy=recipe, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
        losses[name] = [float(run.step(batch)) for batch in small.batches(4) * 15]
    assert losses["fp8"] != losses["plain"]
    assert losses["fp8"][-1] == pytest.approx(losses["plain"][-1], rel=0.02)


def test_equal_pieces_make_one_step():
    whole_batch, pieces = trainer(policy=BFLOAT16), trainer(policy=BFLOAT16, accumulate=4)
    for batch in small.batches(3):
        torch.testing.assert_close(whole_batch.step(batch), pieces.step(batch), rtol=1e-5, atol=0)
    for a, b in zip(whole_batch.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert pieces.decisions["blocks.0.up"].tokens == 2 * small.LENGTH


def test_a_schedule_moves_with_each_update_only():
    run = trainer(schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1))
    good = small.batches(3)
    for batch in good:
        run.step(batch)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    run.model.head.register_forward_hook(lambda m, a, out: out * math.nan)
    with pytest.warns(BadStep):
        run.step(good[0])
    assert run.schedule.last_epoch == 3


def test_an_optimiser_of_the_callers_is_used():
    net = small.model()
    own = torch.optim.SGD(net.parameters(), lr=0.1)
    run = trainer(net, optimizer=own)
    before = small.state(net)
    run.step(small.batches(1)[0])
    assert run.optimizer is own
    assert not small.same(before, small.state(net))


def test_a_mapping_is_trained_on_the_models_own_loss():
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**settings, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32)
    )
    run = trainer(net, AutoMixedPrecision(), loss=None, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), accumulate=2)
    x = torch.randint(0, 64, (4, 16))
    losses = [run.step({"input_ids": x, "labels": x}) for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]
    assert len(run.decisions.fp8) == 14


@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_inputs_may_be_several(form):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(16, 32), nn.Linear(16, 32)

        def forward(self, a, b):
            return self.one(a) + self.two(b)

    a, b, y = torch.randn(8, 16), torch.randn(8, 16), torch.randn(8, 32)
    inputs = (a, b) if form == "tuple" else {"b": b, "a": a}
    run = trainer(Two(), loss=F.mse_loss)
    assert run.step((inputs, y)) < 10
    assert split((inputs, y), 2)[1][1].equal(y[4:])


def test_a_single_layer_is_a_model_too():
    run = trainer(nn.Linear(16, 32), loss=F.mse_loss)
    x, y = torch.randn(32, 16), torch.randn(32, 32)
    losses = [run.step((x, y)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert isinstance(run.model, FP8Linear)


def test_attention_modules_keep_their_own_layers():
    net = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    run = trainer(net, AutoMixedPrecision(), loss=F.mse_loss)
    x = torch.randn(4, 16, 32)
    losses = [run.step((x, x.flip(0))) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert not isinstance(run.model.self_attn.out_proj, FP8Linear)
    assert isinstance(run.model.linear1, FP8Linear)


def test_saved_decisions_are_a_policy(tmp_path):
    first = trainer(policy=AutoMixedPrecision())
    batch = small.batches(1)[0]
    first.step(batch)
    first.decisions.save(tmp_path / "d.json")
    again = trainer(policy=Decisions.load(tmp_path / "d.json"))
    again.step(batch)
    assert equal(held(first), held(again))
    with pytest.raises(ValueError, match=r"precision_policy can't be used: they name 'blocks.1"):
        trainer(small.model(blocks=1), first.decisions)
    there = Decisions(first.decisions.layers, "NVIDIA H100 80GB HBM3", "bfloat16", emulated=False)
    with pytest.raises(ValueError, match="made for FP8 products on a GPU, and hardware_optimization is False"):
        trainer(policy=there)


# ---- faults


class Fault:
    """Plants a value in a layer's activation or gradient while `times` lasts: `rms` times its tensor's root mean square."""

    def __init__(self, run, name=LAYER):
        self.place, self.value, self.times = "", 0.0, 0
        part = run.model.get_submodule(name)
        part.register_forward_pre_hook(lambda m, args: (self.planted(args[0], "input"), *args[1:]))
        part.register_forward_hook(lambda m, args, out: self.after(out))

    def planted(self, x, place):
        if self.place != place or not self.times:
            return x
        self.times -= 1
        x = x.clone()
        x.view(-1)[5] = self.value * float(x.detach().square().mean().sqrt())
        return x

    def after(self, out):
        out.register_hook(lambda g: self.planted(g, "gradient"))
        return out

    def plant(self, place, value, times=10**6):
        self.place, self.value, self.times = place, value, times


@pytest.fixture
def warm():
    """A trainer with a few good steps behind it, its fault, and more batches."""
    run, more = trainer(policy=TENSORWISE), small.batches(9)
    for batch in more[:3]:
        run.step(batch)
    return run, Fault(run), itertools.cycle(more[3:])


VALUES = [math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", ["input", "gradient"])
def test_a_value_that_is_not_finite_is_found_and_its_step_is_not_applied(warm, place, value):
    run, fault, more = warm
    before = held(run)
    fault.plant(place, value)
    with pytest.warns(BadStep, match=rf"the {place} of layer '{LAYER}' holds 1 values that are not finite.*skipped"):
        run.step(next(more))
    assert equal(before, held(run))
    assert (run.steps, run.tried) == (3, 4)
    told = run.receipt()
    assert told.bad == {"skipped, non-finite": 1}
    assert next(line for line in told.layers if line.decision.name == LAYER).nonfinite >= 1
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        run.step(next(more))
    assert run.receipt().skipped == 2
    fault.plant("", 0.0)
    assert run.step(next(more)).isfinite()
    assert run.steps == 4


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", ["input", "gradient"])
def test_what_passes_is_repaired(warm, place, value):
    run, fault, more = warm
    before = held(run)
    fault.plant(place, value, times=1)
    with pytest.warns(BadStep, match=r"done again with \d layers in bfloat16"):
        loss = run.step(next(more))
    assert loss.isfinite()
    assert not equal(before, held(run))
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert run.receipt().bad == {"repaired, non-finite": 1}
    assert {p.recipe for n, p in run.model.named_modules() if isinstance(p, FP8Linear) and n != "head"} == {TENSORWISE}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", [LAYER, "norm", "embedding"])
def test_a_broken_parameter_is_named_and_nothing_is_tried(warm, name, value):
    run, _, more = warm
    with torch.no_grad():
        run.model.get_submodule(name).weight.view(-1)[7] = value
        if name == "embedding":
            run.model.embedding.weight[:, 3] = value
    before = held(run)
    with pytest.warns(BadStep, match=rf"the parameter '{name}.weight' itself holds values that are not finite"):
        run.step(next(more))
    assert equal(before, held(run))
    assert run.steps == 3


def test_nothing_is_repaired_where_skipping_is_asked_for():
    run = trainer(on_bad="skip")
    good = small.batches(2)
    run.step(good[0])
    fault, before = Fault(run), held(run)
    fault.plant("input", math.inf, times=1)
    with pytest.warns(BadStep, match="on_bad='skip'"):
        run.step(good[1])
    assert equal(before, held(run))


@pytest.mark.parametrize("value", [1e5, 1e6])
@pytest.mark.parametrize("place", ["input", "gradient"])
def test_a_spike_is_flagged_and_done_again(warm, place, value):
    run, fault, more = warm
    fault.plant(place, value)
    with pytest.warns(BadStep, match="a spike") as told:
        run.step(next(more))
    assert run.receipt().bad == {"repaired, spike": 1}
    assert run.steps == 4
    assert ("flushes" if place == "input" else "times its mean") in str(told[0].message)
    assert all(p.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize("value", [1e5, 1e6])
def test_a_spike_in_a_weight_is_flagged(warm, value):
    run, _, more = warm
    weight = run.model.get_submodule(LAYER).weight
    with torch.no_grad():
        weight[2, 3] = value * weight.square().mean().sqrt()
    with pytest.warns(BadStep, match=rf"a spike in the weight of layer '{LAYER}' flushes"):
        run.step(next(more))


@pytest.mark.parametrize("place", ["input", "gradient", "weight"])
def test_a_value_a_hundred_times_larger_is_no_spike(warm, place):
    run, fault, more = warm
    if place == "weight":
        weight = run.model.get_submodule(LAYER).weight
        with torch.no_grad():
            weight[2, 3] = 100 * weight.square().mean().sqrt()
    else:
        fault.plant(place, 100.0)
    run.step(next(more))
    assert run.receipt().bad == {}
    assert run.steps == 4


def test_clean_steps_raise_no_alarm():
    run = trainer(policy=AutoMixedPrecision(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    for batch in small.batches(60):
        run.step(batch)
    assert run.receipt().bad == {}
    assert max(line.flushed for line in run.receipt().layers) < monitor.FLUSHED / 5


def test_running_statistics_of_a_skipped_step_stay():
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 16))
    run = trainer(net, loss=F.mse_loss)
    x, y = torch.randn(32, 16), torch.randn(32, 16)
    run.step((x, y))
    before = held(run)
    with pytest.warns(BadStep):
        run.step((x * math.inf, y))
    assert equal(before, held(run))
    run.step((x, y))
    assert int(run.model[1].num_batches_tracked) == 2


def test_a_first_batch_that_is_bad_decides_nothing():
    run = trainer(policy=AutoMixedPrecision())
    run.objective.loss = lambda o, t: small.loss(o, t) * math.nan
    with pytest.warns(BadStep, match="nothing was decided"):
        assert run.step(small.batches(1)[0]).isnan()
    assert run.decisions is None
    run.objective.loss = small.loss
    assert run.step(small.batches(1)[0]).isfinite()
    assert (run.steps, run.tried) == (1, 2)


def test_a_good_step_is_read_once(warm):
    run, _, more = warm
    reads, read = [], run.watch.read
    run.watch.read = lambda *given: reads.append(given) or read(*given)
    run.step(next(more))
    assert len(reads) == 1


def test_without_watching_the_loss_and_the_norm_are_still_looked_at():
    run = trainer(watch=False)
    good = small.batches(2)
    run.step(good[0])
    fault = Fault(run)
    fault.plant("input", math.nan)
    with pytest.warns(BadStep, match="the loss is nan"):
        run.step(good[1])
    assert all(p.seen is None for p in run.model.modules() if isinstance(p, FP8Linear))
    assert "" in run.receipt().rows()[0][-3:]


# ---- what the counts say


def counts(**given):
    """(1 layer, TENSORS, COUNTS) of 1,000 elements each."""
    found = torch.zeros(1, 3, 4, dtype=torch.float64)
    found[..., 0] = 1000
    for name, (kind, value) in given.items():
        found[0, ("input", "weight", "gradient").index(name), COUNTS.index(kind)] = value
    return found


@pytest.mark.parametrize(
    ("recipe", "given", "kind"),
    [
        (TENSORWISE, {}, ""),
        (TENSORWISE, {"input": ("flushed", 50)}, ""),
        (TENSORWISE, {"input": ("flushed", 51)}, "spike"),
        (ROWWISE, {"input": ("flushed", 500)}, ""),
        (Recipe("bfloat16", "bfloat16", "tensorwise"), {"input": ("flushed", 51)}, "spike"),
        (Recipe("bfloat16", "bfloat16", "tensorwise"), {"weight": ("flushed", 51)}, ""),
        (BFLOAT16, {"gradient": ("nonfinite", 1)}, "non-finite"),
    ],
)
def test_what_counts_as_bad(recipe, given, kind):
    net = nn.Sequential(FP8Linear.from_linear(nn.Linear(16, 32), recipe, emulate=True))
    watch = monitor.Watch(net, {})
    watch.layers["0"].seen.grad = counts(**given)[0].float()
    found, read = watch.read(torch.tensor(1.0), torch.tensor(1.0))
    assert found.kind == kind
    assert torch.equal(read, counts(**given))


def test_a_layer_that_always_flushes_is_given_more():
    net = nn.Sequential(FP8Linear.from_linear(nn.Linear(16, 32), TENSORWISE, emulate=True))
    watch = monitor.Watch(net, {"0": 0.04})
    watch.layers["0"].seen.grad = counts(input=("flushed", 150))[0].float()
    assert not watch.read(torch.tensor(1.0), torch.tensor(1.0))[0].bad


def peaked(net, gradient):
    """What is found where a layer's output gradient is the given one."""
    watch = monitor.Watch(net, {})
    watch.start()
    net(torch.zeros(gradient.shape[0], 16, requires_grad=True)).backward(gradient)
    found = watch.read(torch.tensor(1.0), torch.tensor(1.0))[0]
    watch.close()
    assert not net[0]._forward_hooks
    return found


@pytest.mark.parametrize(("recipe", "loud"), [(TENSORWISE, True), (ROWWISE, False), (BFLOAT16, False)])
@pytest.mark.parametrize(
    ("tokens", "value", "above"), [(1024, 1e5, True), (1024, 1e2, False), (128, 1e5, True), (64, 1e5, False)]
)
def test_a_peak_of_the_gradient_is_a_spike_under_tensorwise_scaling(recipe, loud, tokens, value, above):
    net = nn.Sequential(FP8Linear.from_linear(nn.Linear(16, 32), recipe, emulate=True))
    gradient = torch.randn(tokens, 32)
    assert not peaked(net, gradient).bad
    gradient[3, 4] = value
    found = peaked(net, gradient)
    assert found.bad is (loud and above)
    if found.bad:
        exact = float(gradient.abs().max() / gradient.abs().mean())
        assert found.origin == monitor.Place("0", "gradient", pytest.approx(exact, rel=1e-4))
        assert "times its mean magnitude" in str(found)


def test_a_norm_that_is_not_finite_is_bad():
    found, _ = monitor.Watch(nn.Module(), {}).read(torch.tensor(1.0), torch.tensor(math.inf))
    assert found.bad
    assert "norm is inf" in str(found)


# ---- compiled


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_compiled_steps_are_one_graph_and_a_repair_compiles_nothing_again(accumulate, autocast):
    torch._dynamo.reset()
    settings = {"accumulate": accumulate, "autocast": autocast}
    eager, run, graphs = trainer(**settings), trainer(**settings), []
    (batch,) = small.batches(1)

    def backend(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(graph)
        return aot_eager(graph, inputs)

    losses = [eager.step(batch) for _ in range(3)]
    run._adopt(run._decide(split(batch, accumulate)[0]))
    run._compiled = torch.compile(run.objective, backend=backend, fullgraph=True)
    assert [run.step(batch) for _ in range(3)] == losses
    assert torch.equal(run.watch.totals, eager.watch.totals)
    assert len(graphs) == 1
    fault = run.watch.read
    run.watch.read = lambda *given: (dataclasses.replace((found := fault(*given))[0], loud=(LOUD,)), found[1])
    with pytest.warns(BadStep, match="a spike"):
        run.step(batch)
    run.watch.read = fault
    run.step(batch)
    assert len(graphs) == 1


LOUD = monitor.Place(LAYER, "input", 0.5)


@pytest.mark.gpu
@GPU
def test_a_good_step_waits_for_the_gpu_once():
    run = trainer(hardware_optimization=True, clip=1.0)
    batch = tuple(t.cuda() for t in small.batches(1)[0])
    for _ in range(12):
        run.step(batch)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")  # the mode itself warns that it is a prototype
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run.step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("called a synchronizing" in str(w.message) for w in told) <= 1


# ---- checkpoints


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def resumable(seed=0, **settings):
    return trainer(
        small.model(seed, dropout=0.2), AutoMixedPrecision(), clip=1.0, accumulate=2,
        schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10), **settings,
    )  # fmt: skip


@pytest.mark.usefixtures("deterministic")
def test_a_resumed_run_has_equal_bits(tmp_path):
    batches = small.batches(6)
    straight = resumable()
    torch.manual_seed(5)
    losses = [straight.step(batch) for batch in batches]
    first = resumable()
    torch.manual_seed(5)
    again = [first.step(batch) for batch in batches[:3]]
    first.save(tmp_path / "checkpoint.pt")
    second = resumable(seed=9)
    torch.manual_seed(77)
    second.load(tmp_path / "checkpoint.pt")
    again += [second.step(batch) for batch in batches[3:]]
    assert torch.equal(torch.stack(losses), torch.stack(again))
    assert equal(held(straight), held(second))
    assert straight.schedule.state_dict() == second.schedule.state_dict()
    assert torch.equal(straight.watch.totals, second.watch.totals)
    assert (second.steps, second.tried) == (6, 6)
    assert second.decisions == straight.decisions
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.gpu
@GPU
@pytest.mark.usefixtures("deterministic")
def test_a_resumed_run_has_equal_bits_on_a_gpu(tmp_path):
    batches = small.batches(6)
    straight, first, second = (trainer(small.model(s, dropout=0.2), hardware_optimization=True) for s in (0, 0, 1))
    torch.manual_seed(5)
    losses = [straight.step(batch) for batch in batches]
    torch.manual_seed(5)
    again = [first.step(batch) for batch in batches[:3]]
    first.save(tmp_path / "checkpoint.pt")
    second.load(tmp_path / "checkpoint.pt")
    again += [second.step(batch) for batch in batches[3:]]
    assert torch.equal(torch.stack(losses), torch.stack(again))
    assert equal(held(straight), held(second))


def test_a_checkpoint_goes_on_in_a_trainer_that_has_begun(tmp_path):
    batches = small.batches(4)
    run = trainer()
    run.step(batches[0])
    run.save(tmp_path / "c.pt")
    after = [run.step(batch) for batch in batches[1:]]
    run.load(tmp_path / "c.pt")
    assert [run.step(batch) for batch in batches[1:]] == after


def test_a_failed_save_leaves_the_old_checkpoint(monkeypatch, tmp_path):
    run, path = trainer(), tmp_path / "c.pt"
    run.step(small.batches(1)[0])
    run.save(path)
    before = path.read_bytes()

    def torn(state, file):
        file.write(b"half")
        raise OSError("no space")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space"):
        run.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_other_files_and_other_trainers_are_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no checkpoint of an FP8Trainer"):
        trainer().load(tmp_path / "x.pt")
    trainer().save(tmp_path / "c.pt")
    with pytest.raises(ValueError, match="this trainer has a schedule and the checkpoint has none"):
        resumable().load(tmp_path / "c.pt")
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        trainer(small.model(blocks=3)).load(tmp_path / "c.pt")


def test_decisions_that_do_not_hold_here_are_made_again(tmp_path):
    run = trainer()
    run.step(small.batches(1)[0])
    run.decisions = Decisions(run.decisions.layers, "NVIDIA H100 80GB HBM3", "bfloat16", emulated=False)
    run.save(tmp_path / "c.pt")
    other = trainer()
    with pytest.warns(UserWarning, match="decisions are not used: they were made for FP8 products on a GPU"):
        other.load(tmp_path / "c.pt")
    assert other.decisions is None
    other.step(small.batches(1)[0])
    assert other.decisions.emulated


# ---- receipt and measuring


def test_the_receipt_says_what_and_why():
    run = trainer(policy=AutoMixedPrecision())
    assert "nothing is decided yet" in str(run.receipt())
    for batch in [*small.batches(2), *small.batches(1, size=4)]:
        run.step(batch)
    told = run.receipt()
    text = str(told)
    assert text.splitlines()[0] == "3 of 3 steps applied; none bad"
    assert "1 batches had other shapes" in text
    assert "emulated: time unknown" in text
    assert len(told.layers) == 7
    assert told._repr_markdown_().count("\n| ") >= 8
    assert (told.skipped, told.repaired) == (0, 0)


def test_measuring_is_refused_where_it_would_mean_nothing():
    run = trainer()
    with pytest.raises(ValueError, match="nothing is decided yet"):
        run.measure(small.batches(1)[0])
    run.step(small.batches(1)[0])
    with pytest.raises(Unsupported, match="emulated FP8 has no speed"):
        run.measure(small.batches(1)[0])


def test_the_whole_step_is_that_of_the_model_before_it_was_converted():
    run, batch = trainer(net := language.Decoder(32, 1, 2, 64, 16), loss=language.next_byte_loss), small.batches(1)[0]
    plain = copy.deepcopy(net)
    run.step(batch)
    workload = whole.of(run.objective, batch)
    assert workload.params["mode"] == "step"
    problem = workload.make(device="cpu", dtype=torch.float32, seed=0, mode="step")
    kinds = {name: type(part) for name, part in problem.fn.model.named_modules()}
    assert kinds == {name: type(part) for name, part in plain.named_modules()}
    assert type(run.model.blocks[0].up) is FP8Linear
    found = problem.drive(problem.fn)(*problem.inputs[0])
    torch.testing.assert_close(found, run.objective.loss(problem.fn.model(batch[0]), batch[1]).detach(), rtol=0.2, atol=0.2)
    emulated = whole.decided(run.decisions).definition(Objective(plain, language.next_byte_loss), ())
    assert type(emulated.model.blocks[0].up) is FP8Linear
    assert emulated.model.blocks[0].up.recipe == TENSORWISE


def trial(label, time, baseline=False, workload="Small.step", **params):
    samples = {"time": tuple(round(time * 1e9) + i % 3 for i in range(30))}
    return Trial(
        workload, label, params, baseline=baseline, device="cuda", dtype="bfloat16", samples=samples, cell="a",
        metrics={"time": Metric(time, "s", "measured")},
    )  # fmt: skip


def test_the_predicted_step_is_the_baselines_less_what_the_layers_save():
    label, size = layer.at(TENSORWISE).label, {"tokens": 64, "in_features": 16, "out_features": 32}
    cell = [trial("torch.compile", 2e-3, True, layer.step.name, **size)]
    mine = layer.at(TENSORWISE)
    cell.append(
        Trial(
            layer.step.name, mine.name, size, mine.knobs, device="cuda", dtype="bfloat16", cell="a",
            samples={"time": (1_500_000,) * 30}, metrics={"time": Metric(1.5e-3, "s", "measured")},
        )
    )  # fmt: skip
    ratio = Ratio(1.33, 1.3, 1.35, "FASTER", "measured")
    chosen = Decision("a", TENSORWISE, "fastest", 16, 32, 64, 4, ratio, label=label)
    decisions = Decisions((chosen,), "cuda", "bfloat16", trials=Trials(cell))
    step = Trials(
        [trial("eager", 2e-2, True), trial("torch.compile", 1e-2, True), trial(f"{whole.NAME} >> torch.compile", 8e-3)]
    )
    measured, predicted = whole.ratios(step, decisions)
    assert measured.value == pytest.approx(1.25, rel=1e-3)
    assert measured.verdict == "FASTER"
    assert predicted.value == pytest.approx(1e-2 / (1e-2 - 4 * 0.5e-3))
    assert predicted.provenance == "modelled"
    with pytest.raises(Incomparable):
        whole.ratios(step.where(label="eager"), decisions)


# ---- the small language model


def test_the_text_is_real_and_its_batches_are_shifted_by_one():
    train, valid = language.text()
    assert train.numel() > 100_000
    assert valid.numel() > 10_000
    assert b"assert" in bytes(train.tolist())
    ((x, y),) = language.batches(train, 1, 3, 20, seed=1)
    assert x.shape == y.shape == (3, 20)
    assert torch.equal(x[:, 1:], y[:, :-1])
    (again,) = language.batches(train, 1, 3, 20, seed=1)
    assert torch.equal(again[0], x)


def test_a_decoder_sees_no_later_byte():
    net = language.Decoder(32, 2, 2, length=24)
    x = torch.randint(0, 256, (2, 24))
    other = x.clone()
    other[:, 12:] = 7
    assert torch.allclose(net(x)[:, :12], net(other)[:, :12], atol=1e-6)
    assert float(language.next_byte_loss(net(x), x).detach()) == pytest.approx(math.log(256), rel=0.02)


# ---- wrong input


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"policy": "fp8"}, TypeError, "precision_policy is 'fp8'; accepted are AutoMixedPrecision"),
        ({"loss": 3}, TypeError, "loss is 3"),
        ({"optimizer": "adam"}, TypeError, "optimizer is 'adam'"),
        ({"optimizer": lambda p: None}, TypeError, "optimizer gave NoneType"),
        ({"schedule": 0.1}, TypeError, "schedule is 0.1"),
        ({"accumulate": 0}, ValueError, "accumulate is 0"),
        ({"clip": -1}, ValueError, "clip is -1"),
        ({"on_bad": "ignore"}, ValueError, "on_bad is 'ignore'; accepted are 'repair', 'skip'"),
        ({"flushed": 0}, ValueError, "flushed is 0"),
        ({"net": nn.ReLU()}, ValueError, "no parameters"),
        ({"net": small.loss}, TypeError, "model is function"),
    ],
)
def test_wrong_settings(settings, error, match):
    with pytest.raises(error, match=match):
        trainer(**settings)


def test_an_integer_model_is_refused():
    net = nn.Linear(16, 16)
    net.weight = nn.Parameter(torch.ones(16, 16, dtype=torch.int8), requires_grad=False)
    net.bias = None
    with pytest.raises(ValueError, match=r"no floating-point parameter to train \(it holds int8\)"):
        trainer(net)


def test_an_optimiser_of_another_model_is_refused():
    with pytest.raises(ValueError, match="none of the model's parameters"):
        trainer(optimizer=torch.optim.SGD(small.model().parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("batch", "settings", "error", "match"),
    [
        (torch.ones(3), {}, TypeError, "batch is Tensor; accepted are a mapping"),
        ((torch.ones(3),), {}, TypeError, "batch is tuple of 1"),
        ((torch.ones(3), torch.ones(3)), {"loss": None}, ValueError, "so loss= is needed"),
        ({"tokens": torch.ones(3)}, {}, ValueError, "batch is a mapping, for which the model returns its loss"),
        ((1, 2), {}, TypeError, "batch holds no tensor"),
        (small.batches(1, size=6)[0], {"accumulate": 4}, ValueError, r"accumulate is 4.*\(6, 16\)"),
    ],
)
def test_wrong_batches(batch, settings, error, match):
    run = trainer(**settings)
    with pytest.raises(error, match=match):
        run.step(batch)
    assert (run.steps, run.tried) == (0, 0)


def test_half_precision_parameters_are_refused():
    with pytest.raises(ValueError, match="float16 parameters, whose gradients need loss scaling"):
        trainer(small.model().half())
