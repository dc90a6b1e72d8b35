"""kpt.workload: the user's own function or module as a Workload; gradients and steps against torch by hand."""

import copy
import gc
import importlib
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kpt_lab as kpt
from kpt_lab import baselines
from kpt_lab.core import Technique, Trial

HERE = {"processes": 0, "budget": 0.05}
MADE = {"device": "cpu", "dtype": torch.float32, "seed": 0}


class Net(nn.Module):
    """Two layers with an awkward width, taking a second argument that is no tensor."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x, scale=1.0):
        return self.two(torch.tanh(self.one(x))) * scale


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Leave what is imported out of the garbage collections of every cell: they are most of a tiny cell's time."""
    importlib.import_module("torch._dynamo")  # the first cell would
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def x():
    return torch.randn(6, 7)


def measured(workload, *techniques, **params) -> dict[str, Trial]:
    return {t.label: t for t in kpt.measure(workload, [baselines.eager, *techniques], **HERE, **params)}


# ---- what comes in -----------------------------------------------------------------------------------------------------------


def gelu_by_hand(x, y):
    return x * torch.erf(x) + y


def test_a_function_becomes_a_workload_with_three_input_sets_of_the_same_rows(x):
    work = kpt.workload(gelu_by_hand, x, x + 1)
    problem = work.make(**MADE)
    assert work.name == "gelu_by_hand"
    assert not work.random
    assert [len(inputs) for inputs in problem.inputs] == [2, 2, 2]
    for k, (rolled, _) in enumerate(problem.inputs):
        assert torch.equal(rolled, torch.cat([x[len(x) - k :], x[: len(x) - k]]))
    output = problem.drive(problem.fn)(*problem.inputs[0])
    assert torch.equal(output, gelu_by_hand(x, x + 1))


def test_the_users_inputs_are_copied_and_integers_keep_their_dtype(x):
    ids = torch.arange(6)
    work = kpt.workload(lambda x, ids: x[ids], x, ids)
    kept = x.clone()
    x.zero_()
    values, places = work.make(device="cpu", dtype=torch.bfloat16, seed=0).inputs[0]
    assert torch.equal(values, kept.bfloat16())
    assert torch.equal(places, ids)


def test_names_come_from_the_function_or_the_class_unless_given(net, x):
    assert kpt.workload(net, x).name == "Net"
    assert kpt.workload(net, x, name="mine").name == "mine"
    assert kpt.workload(gelu_by_hand, x, x).parameters() == {"mode": "forward"}


def test_keywords_come_in_as_a_mapping(net, x):
    work = kpt.workload(net, {"x": x, "scale": 3.0})
    problem = work.make(**MADE)
    torch.testing.assert_close(problem.drive(problem.fn)(*problem.inputs[0]), 3 * net(x).detach())


def test_seeds_give_other_orders_of_the_same_rows(x):
    work = kpt.workload(torch.neg, x)
    first = work.make(device="cpu", dtype=torch.float32, seed=4).inputs[0][0]
    assert torch.equal(first, x.roll(4, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, torch.ones(2)), "fn_or_module is int; a function or an nn.Module is needed"),
        ((torch.neg,), "inputs holds no tensor; pass one set of example inputs"),
        ((torch.neg, 3.0, {"a": 4}), "inputs holds no tensor"),
    ],
)
def test_unusable_arguments_are_refused_with_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        kpt.workload(*arguments)


def test_a_module_that_does_not_pickle_is_refused_with_what_to_do(net, x):
    net.hook = lambda value: value
    with pytest.raises(ValueError, match=r"can't be copied by pickle .* keep activations and lambdas out of its attributes"):
        kpt.workload(net, x)


def test_an_unknown_mode_or_parameter_and_a_step_of_a_function_are_refused(net, x):
    with pytest.raises(ValueError, match="mode is 'sideways'; accepted are forward, backward, step"):
        kpt.measure(kpt.workload(net, x), [baselines.eager], mode="sideways", **HERE)
    with pytest.raises(ValueError, match="mode is 'step', but the workload is a plain function without parameters to update"):
        kpt.measure(kpt.workload(torch.neg, x), [baselines.eager], mode="step", **HERE)
    with pytest.raises(ValueError, match="has no parameter 'rows'; it takes mode"):
        kpt.workload(net, x)(rows=3)


def test_an_output_without_gradients_asks_for_a_loss(x):
    problem = kpt.workload(lambda x: x.argmax(-1), x).make(**MADE, mode="backward")
    with pytest.raises(ValueError, match="no output depends on anything that requires a gradient; give loss="):
        problem.drive(problem.fn)(*problem.inputs[0])


# ---- modes against torch by hand ---------------------------------------------------------------------------------------------


def test_forward_takes_no_gradients(net, x):
    problem = kpt.workload(net, x).make(**MADE)
    output = problem.drive(problem.fn)(*problem.inputs[0])
    assert not output.requires_grad
    torch.testing.assert_close(output, net(x).detach(), rtol=0, atol=0)


def square(output):
    return (output**2).mean()


def test_a_modules_backward_gives_the_loss_and_every_parameters_gradient(net, x):
    problem = kpt.workload(net, x, loss=square)(mode="backward").make(**MADE, mode="backward")
    loss, *gradients = problem.drive(problem.fn)(*problem.inputs[0])
    by_hand = square(net(x))
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand.detach())
    assert len(gradients) == 4
    for found, parameter in zip(gradients, net.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad)


def test_a_functions_backward_gives_its_inputs_gradients(x):
    problem = kpt.workload(gelu_by_hand, x, x + 1, loss=square).make(**MADE, mode="backward")
    loss, *gradients = problem.drive(problem.fn)(*problem.inputs[0])
    a, b = x.clone().requires_grad_(), (x + 1).requires_grad_()
    by_hand = square(gelu_by_hand(a, b))
    torch.testing.assert_close(loss, by_hand.detach())
    torch.testing.assert_close(tuple(gradients), torch.autograd.grad(by_hand, (a, b)))


def test_without_a_loss_every_output_element_has_a_gradient_of_its_own(x):
    problem = kpt.workload(lambda x: (x, {"twice": 2 * x}), x).make(**MADE, mode="backward")
    step = problem.drive(problem.fn)
    _, gradient = step(*problem.inputs[0])
    assert len(gradient.unique()) == gradient.numel()
    _, again = step(*problem.inputs[1])
    assert torch.equal(gradient, again)  # the directions are fixed, and the function is linear


def test_frozen_and_unused_parameters(net, x):
    net.one.requires_grad_(False)
    net.spare = nn.Parameter(torch.ones(2))
    problem = kpt.workload(net, x, loss=square).make(**MADE, mode="backward")
    _, *gradients = problem.drive(problem.fn)(*problem.inputs[0])
    assert {tuple(g.shape) for g in gradients} == {(2,), (3, 5), (3,)}
    assert gradients[0].tolist() == [0.0, 0.0]


def test_a_module_without_trainable_parameters_gives_its_inputs_gradients(net, x):
    for module in (nn.GELU(), net.requires_grad_(False)):
        problem = kpt.workload(module, x, loss=square).make(**MADE, mode="backward")
        loss, gradient = problem.drive(problem.fn)(*problem.inputs[0])
        by_hand = x.clone().requires_grad_()
        want = square(module(by_hand))
        torch.testing.assert_close(loss, want.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(want, by_hand)[0])


def test_a_step_of_a_module_without_trainable_parameters_is_refused(net, x):
    for module in (nn.GELU(), net.requires_grad_(False)):
        with pytest.raises(ValueError, match="a module without trainable parameters to update; use 'backward'"):
            kpt.workload(module, x).make(**MADE, mode="step")


def test_three_steps_after_reset_are_three_steps_of_adamw_by_hand(net, x):
    problem = kpt.workload(net, x, loss=square).make(**MADE, mode="step")
    step = problem.drive(problem.fn)
    for inputs in problem.inputs:
        step(*inputs)
    step.reset()
    assert all(not change.any() for change in step.moved())
    losses = [step(*inputs).item() for inputs in problem.inputs]

    mine = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-3)
    for found, (rows,) in zip(losses, problem.inputs, strict=True):
        optimizer.zero_grad()
        loss = square(mine(rows))
        loss.backward()
        optimizer.step()
        assert found == pytest.approx(loss.item(), rel=1e-5)
    for found, want, start in zip(problem.fn.parameters(), mine.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(found, want)
        assert not torch.equal(found, start)
    torch.testing.assert_close(
        step.moved(), [a.detach() - b.detach() for a, b in zip(mine.parameters(), net.parameters(), strict=True)]
    )


def test_the_step_trains_the_candidates_own_parameters(net, x):
    problem = kpt.workload(net, x, loss=square).make(**MADE, mode="step")
    other = copy.deepcopy(problem.fn)
    step = problem.drive(other)
    step(*problem.inputs[0])
    assert not torch.equal(other.one.weight, net.one.weight)
    assert torch.equal(problem.fn.one.weight, net.one.weight)


# ---- independence ------------------------------------------------------------------------------------------------------------


def zero_weights(fn, args):
    with torch.no_grad():
        for parameter in fn.parameters():
            parameter.zero_()
    return fn


def test_a_technique_that_edits_the_module_touches_neither_the_users_nor_the_others(net, x):
    before = copy.deepcopy(net.state_dict())
    found = measured(kpt.workload(net, x), Technique("zero", zero_weights), Technique("after", lambda fn, args: fn))
    assert {name: found[name].status for name in ("eager", "zero", "after")} == {"eager": "ok", "zero": "wrong", "after": "ok"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_steps_do_not_train_the_users_module(net, x):
    before = copy.deepcopy(net.state_dict())
    assert measured(kpt.workload(net, x, loss=square), mode="step")["eager"].status == "ok"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_changing_the_users_module_afterwards_does_not_change_the_workload(net, x):
    work, want = kpt.workload(net, x), net(x).detach()
    zero_weights(net, ())
    problem = work.make(**MADE)
    assert torch.equal(problem.drive(problem.fn)(*problem.inputs[0]), want)


# ---- what measure catches in a model -----------------------------------------------------------------------------------------


class CoarseGradient(torch.autograd.Function):
    """The identity with a gradient rounded to bfloat16."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.bfloat16().float()


def coarse_gradient(fn, args):
    return lambda x: CoarseGradient.apply(fn(x))


def coarse_all(fn, args):
    return fn.bfloat16() and (lambda x: fn(x.bfloat16()).float())


def test_gradients_of_lower_precision_are_caught(net, x):
    found = measured(kpt.workload(net, x), Technique("gradient", coarse_gradient), mode="backward")
    assert found["eager"].status == "ok"
    assert found["gradient"].status == "wrong"
    assert "lower precision than it says" in found["gradient"].advice
    forward = measured(kpt.workload(net, x), Technique("gradient", coarse_gradient), Technique("all", coarse_all))
    assert (forward["gradient"].status, forward["all"].status) == ("ok", "wrong")


def no_update(step, args):
    return lambda *inputs: square(step.candidate(*inputs)).detach()


def frozen_layer(fn, args):
    fn.one.requires_grad_(False)
    return fn


def update_of_one_parameter(step, args):
    def one(*inputs):
        value = step(*inputs)
        with torch.no_grad():
            for parameter, start in list(zip(step.parameters, step.start, strict=True))[1:]:
                parameter.copy_(start)
        return value

    return one


def test_a_skipped_update_is_wrong(net, x):
    found = measured(
        kpt.workload(net, x, loss=square),
        Technique("none", no_update, on="step"),
        Technique("one", update_of_one_parameter, on="step"),
        Technique("frozen", frozen_layer),
        mode="step",
    )
    assert {name: found[name].status for name in ("eager", "none", "one", "frozen")} == {
        "eager": "ok", "none": "wrong", "one": "wrong", "frozen": "wrong",
    }  # fmt: skip


def tiny_loss(output):
    return 1e4 + (output - output.detach()).sum()  # the same value whatever the parameters are: only the update can tell


def no_update_of_a_constant_loss(step, args):
    return lambda *inputs: tiny_loss(step.candidate(*inputs)).detach()


def test_a_skipped_update_that_the_loss_does_not_show_is_wrong(net, x):
    found = measured(
        kpt.workload(net, x, loss=tiny_loss), Technique("none", no_update_of_a_constant_loss, on="step"), mode="step"
    )
    assert found["eager"].status == "ok"
    assert found["none"].status == "wrong"
    assert "parameters' update differs from the specification's (cosine 0.000)" in found["none"].advice


@dataclass
class Answer:
    """An output type of the user's own, which torch's pytree takes for a leaf."""

    logits: torch.Tensor


def answer(x):
    return Answer(2 * x)


def other_answer(fn, args):
    return lambda x: Answer(100 * x)


def test_an_output_type_of_the_users_own_is_compared_or_refused(x):
    try:
        found = measured(kpt.workload(answer, x), Technique("other", other_answer))
    except (ValueError, RuntimeError):
        return
    assert found["other"].status == "wrong"


# ---- dropout -----------------------------------------------------------------------------------------------------------------


def test_dropout_in_training_mode_makes_the_workload_random(x):
    net = nn.Sequential(nn.Linear(7, 64), nn.Dropout(0.3))
    assert kpt.workload(net, x).random
    assert not kpt.workload(net, x, random=False).random
    assert not kpt.workload(net.eval(), x).random
    assert not kpt.workload(nn.Dropout(0.0).train(), x).random
    assert kpt.workload(F.dropout, x, random=True).random


@pytest.mark.parametrize("module", [nn.MultiheadAttention(8, 2, dropout=0.5), nn.LSTM(7, 7, num_layers=2, dropout=0.5)])
def test_dropout_inside_other_layers_makes_the_workload_random(module):
    x = torch.randn(3, 2, 8 if isinstance(module, nn.MultiheadAttention) else 7)
    assert kpt.workload(module, x).random
    assert not kpt.workload(module.eval(), x).random


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last:UserWarning")
def test_dropout_between_the_layers_of_a_single_layer_drops_nothing(x):
    assert not kpt.workload(nn.GRU(7, 5, num_layers=1, dropout=0.5), x).random


def other_rate(fn, args):
    fn[1].p = 0.6
    return fn


def not_dropped(fn, args):
    return lambda x: fn[0](x) * 0.7


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # importing torch's compiler says it
def test_dropout_is_compared_in_distribution_also_with_torch_compile(x):
    net = nn.Sequential(nn.Linear(7, 64), nn.Dropout(0.3))
    found = measured(
        kpt.workload(net, x),
        baselines.compiled,
        Technique("rate", other_rate),
        Technique("scaled", not_dropped),
        Technique("again", lambda fn, args: lambda x: fn(x)),
    )
    assert {name: trial.status for name, trial in found.items() if name != "copy"} == {
        "eager": "ok", "torch.compile": "ok", "rate": "wrong", "scaled": "wrong", "again": "ok",
    }  # fmt: skip
    assert "of its random outputs differs" in found["rate"].advice


# ---- cost --------------------------------------------------------------------------------------------------------------------

M, K, N = 11, 7, 5


def test_the_cost_of_a_linear_layer_is_exact():
    work = kpt.workload(nn.Linear(K, N), torch.randn(M, K))
    weights, moved = K * N + N, M * K + M * N
    for dtype, width in (("float32", 4), ("bfloat16", 2), ("float64", 8)):
        cost = work.cost(dtype=dtype)
        assert dict(cost.flops) == {dtype: 2.0 * M * K * N}
        assert cost.bytes == width * (weights + moved)


def test_the_cost_of_a_backward_pass_counts_the_gradient_of_the_weights():
    work = kpt.workload(nn.Linear(K, N), torch.randn(M, K), loss=square)
    cost = work.cost(dtype="float32", mode="backward")
    assert dict(cost.flops) == {"float32": 2 * 2.0 * M * K * N}  # the input needs no gradient
    weights = K * N + N
    assert cost.bytes == 4 * (weights + M * K + weights + 1)  # parameters and inputs in, gradients and the loss out


def test_a_function_without_products_has_bytes_only(x):
    cost = kpt.workload(torch.neg, x).cost(dtype="float32")
    assert dict(cost.flops) == {}
    assert cost.bytes == 2 * x.numel() * 4


def test_integers_count_by_their_own_width():
    cost = kpt.workload(nn.Embedding(9, 4), torch.arange(6)).cost(dtype="bfloat16")
    assert cost.bytes == 6 * 4 * 2 + 6 * 8 + 6 * 4 * 2  # the rows that are looked up, the indices, the output


def test_only_what_is_read_counts(x):
    again = kpt.workload(nn.Embedding(900, 4), torch.tensor([3, 3, 5, 3])).cost(dtype="float32")
    assert again.bytes == 2 * 4 * 4 + 4 * 8 + 4 * 4 * 4
    first = kpt.workload(lambda x: x[:2].neg(), x).cost(dtype="float32")
    assert first.bytes == 2 * 2 * 7 * 4
    assert kpt.workload(lambda x: x.view(-1), x).cost(dtype="float32").bytes == 0  # nothing has to move
    picked = kpt.workload(lambda x, i: x[i], x, torch.tensor([0, 4])).cost(dtype="float32")
    assert picked.bytes == 2 * 8 + 2 * 7 * 4


def test_the_parts_of_one_tensor_that_are_read_add_up_once():
    x = torch.randn(6, 4)
    halves = kpt.workload(lambda x: x[:3] * x[3:], x).cost(dtype="float32")
    assert halves.bytes == 4 * (24 + 12)
    overlapping = kpt.workload(lambda x: x[:4] * x[2:], x).cost(dtype="float32")
    assert overlapping.bytes == 4 * (24 + 16)
    columns = kpt.workload(lambda x: x[:, 1].exp(), x).cost(dtype="float32")
    assert columns.bytes == 4 * (6 + 6)
    widened = kpt.workload(lambda x: x[:1].expand(50, 4).exp(), x).cost(dtype="float32")
    assert widened.bytes == 4 * (4 + 200)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_cost_of_a_backward_pass_with_gradients_of_the_inputs(x, frozen):
    module = nn.Linear(7, 5).requires_grad_(False) if frozen else nn.GELU()
    cost = kpt.workload(module, x, loss=square).cost(dtype="float32", mode="backward")
    assert dict(cost.flops) == ({"float32": 2 * 2.0 * 6 * 7 * 5} if frozen else {})
    assert cost.bytes == 4 * (2 * x.numel() + 1 + (7 * 5 + 5 if frozen else 0))


def test_attention_reads_all_its_weights():
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    cost = kpt.workload(module, *(torch.randn(2, 3, 8) for _ in range(3))).cost(dtype="float32")
    weights = sum(p.numel() for p in module.parameters())
    assert cost.bytes == 4 * (weights + 3 * 48 + 48 + 2 * 3 * 3)  # inputs, the output and the mean attention


def test_a_step_needs_the_flops_of_its_own_backward_pass():
    work = kpt.workload(nn.Linear(K, N), torch.randn(M, K), loss=square)
    assert dict(work.cost(dtype="float32", mode="step").flops) == dict(work.cost(dtype="float32", mode="backward").flops)


def test_a_step_moves_frozen_and_unused_weights_no_more_than_it_must(x):
    net = Net()
    net.one.requires_grad_(False)
    net.spare = nn.Parameter(torch.ones(1000))
    trained, frozen = 5 * 3 + 3, 7 * 5 + 5
    cost = kpt.workload(net, x, loss=square).cost(dtype="float32", mode="step")
    # in: the input and both layers; out: the loss, the trained weights, and two moments of them, which also come in
    assert cost.bytes == 4 * (x.numel() + frozen + trained + 1 + 5 * trained)


def test_a_steps_embedding_is_updated_whole():
    cost = kpt.workload(nn.Embedding(9, 4), torch.arange(3), loss=square).cost(dtype="float32", mode="step")
    assert cost.bytes == 3 * 8 + 4 * (6 * 9 * 4 + 1)


# ---- Transformers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    torch.manual_seed(3)
    return transformers.BertModel(config).eval(), {
        "input_ids": torch.randint(0, 50, (3, 8)),
        "attention_mask": torch.ones(3, 8, dtype=torch.long),
    }


def lost_layer(fn, args):
    fn.encoder.layer = fn.encoder.layer[:1]
    return fn


@pytest.mark.parametrize("mode", ["forward", "backward", "step"])
def test_a_transformers_model_is_measured_in_every_mode(bert, mode):
    model, inputs = bert
    found = measured(kpt.workload(model, inputs), Technique("same", lambda fn, args: fn), mode=mode)
    assert (found["eager"].status, found["same"].status) == ("ok", "ok"), found["same"].advice
    assert found["eager"].params["mode"] == mode
    assert found["eager"].chosen["oracle"] == "float64"
    assert found["eager"].metrics["memory.held"].value == 4 * sum(p.numel() for p in model.parameters()) + 8 * 2 * 16


def test_a_transformers_model_that_lost_a_layer_is_wrong(bert):
    model, inputs = bert
    found = measured(kpt.workload(model, inputs), Technique("lost", lost_layer))
    assert found["lost"].status == "wrong"
    assert len(model.encoder.layer) == 2


def test_a_language_models_own_loss_is_taken():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.randint(0, 50, (3, 8))
    problem = kpt.workload(model, {"input_ids": ids, "labels": ids}).make(**MADE, mode="backward")
    loss, *gradients = problem.drive(problem.fn)(*problem.inputs[0])
    by_hand = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss, by_hand.detach())
    torch.testing.assert_close(tuple(gradients), torch.autograd.grad(by_hand, list(model.parameters())))
