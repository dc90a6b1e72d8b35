"""Which kernel is taken: raced once, remembered by device and shape, and never a kernel that can't take the inputs."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from kpt_lab.kernels.flashlight import attend, choose
from kpt_lab.kernels.flashlight.choose import Shape

CUDA = torch.device("cuda", 0)
SHAPE = Shape(torch.bfloat16, 64, 64, 16, 1, 4000, 4000, "causal")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A device with the name of one, whose races give what the test sets, and a list of what was raced."""
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(attend, "has_fa3", lambda: True)
    raced = []

    def race(shape, device):
        raced.append(shape)
        return {"cudnn": 2e-5, "fa3": 1e-5, "flash": 3e-5}

    monkeypatch.setattr(choose, "_raced", race)
    return raced


def test_the_fastest_is_taken_and_remembered_for_the_bucket(gpu):
    first = choose.kernel_for(SHAPE, CUDA)
    assert (first.kernel, first.reason) == ("fa3", "fastest of 3 measured")
    assert first.seconds == {"cudnn": 2e-5, "fa3": 1e-5, "flash": 3e-5}
    near = Shape(torch.bfloat16, 64, 64, 16, 1, 4096, 4096, "causal")
    assert choose.kernel_for(near, CUDA) == first
    assert gpu == [near]
    choose.kernel_for(Shape(torch.bfloat16, 64, 64, 16, 1, 4097, 4097, "causal"), CUDA)
    choose.kernel_for(Shape(torch.bfloat16, 64, 64, 16, 1, 4000, 4000, "causal", training=True), CUDA)
    assert len(gpu) == 3
    assert len(json.loads(choose.STORE.path().read_text())["found"]) == 3


def test_what_is_fastest_but_can_not_take_the_inputs_is_passed_over(gpu):
    assert choose.kernel_for(SHAPE, CUDA, dropout=0.1).kernel == "cudnn"
    shorter = Shape(torch.bfloat16, 64, 64, 16, 1, 3000, 4000, "causal")  # one bucket, but FA3 would align the mask to the end
    assert choose.kernel_for(shorter, CUDA).kernel == "cudnn"


def test_nothing_is_raced_on_a_cpu_while_capturing_or_when_told_not_to(gpu, monkeypatch):
    assert choose.kernel_for(SHAPE, torch.device("cpu")).kernel == "sdpa"
    unmeasured = choose.kernel_for(SHAPE, CUDA, measure=False)
    assert (unmeasured.kernel, unmeasured.reason) == ("sdpa", "torch's own choice, not measured")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert "not measured" in choose.kernel_for(SHAPE, CUDA).reason
    assert gpu == []


def test_a_race_without_winners_leaves_the_choice_to_torch(gpu, monkeypatch):
    monkeypatch.setattr(choose, "_raced", lambda shape, device: {})
    assert choose.kernel_for(SHAPE, CUDA).kernel == "sdpa"
    assert not choose.STORE.path().exists()


def test_a_broken_file_is_named_and_replaced(gpu):
    choose.STORE.path().write_text("{")
    with pytest.warns(UserWarning, match="kernels are raced again"):
        choose.kernel_for(SHAPE, CUDA)
    assert choose.kernel_for(SHAPE, CUDA).kernel == "fa3"


def test_flex_options_hold_for_all_lengths_and_head_counts(gpu, monkeypatch):
    shape = Shape(torch.bfloat16, 128, 128, 16, 8, 4096, 4096, "flex mask")
    assert choose.flex_options(shape, CUDA).options == {}
    monkeypatch.setattr(choose, "race", lambda steps: {name: float(i != 1) + 1 for i, name in enumerate(steps)})

    def make(options):
        def step():
            if options.get("fwd_num_stages") == 2:
                raise RuntimeError("out of shared memory")

        return step

    found = choose.tune_flex(shape, CUDA, make)
    assert len(found) == len(choose.FLEX) - 1
    other = Shape(torch.bfloat16, 128, 128, 32, 8, 700, 900, "flex mask")
    choice = choose.flex_options(other, CUDA)
    assert choice.options == choose.FLEX[2]
    assert "fastest of 4 measured" in choice.reason
    assert choose.flex_options(Shape(torch.bfloat16, 64, 64, 32, 8, 700, 900, "flex mask"), CUDA).seconds == {}


@pytest.mark.parametrize(("length", "size"), [(1, 1), (2, 128), (128, 128), (129, 256), (16384, 16384), (10**6, 16384)])
def test_lengths_share_a_bucket_by_their_power_of_two(length, size):
    assert choose.bucket(length) == size


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys", "raced"),
    [
        (1, 16, 4096, 4096, 1), (3, 16, 1024, 1024, 4), (16, 16, 1024, 1024, 16), (40, 16, 1024, 1024, 16), (9, 16, 16384, 16384, 1),
        (5, 100, 16384, 16384, 1), (64, 16, 1, 16384, 8), (64, 16, 1, 128, 64),
    ],
)  # fmt: skip
def test_the_batch_counts_until_the_device_is_full(batch, heads, queries, keys, raced):
    shape = Shape(torch.bfloat16, 64, 64, heads, 1, queries, keys, "plain", batch=batch)
    assert shape.bucketed().batch == raced
    assert shape.for_flex().key(torch.device("cpu")) == Shape(torch.bfloat16, 64, 64, 1, 1, 1, 1).for_flex().key(
        torch.device("cpu")
    )


def test_another_batch_is_raced_again(gpu):
    for batch in (1, 2, 2, 200, 300):
        choose.kernel_for(Shape(torch.bfloat16, 64, 64, 16, 1, 1000, 1000, "causal", batch=batch), CUDA)
    assert [shape.batch for shape in gpu] == [1, 2, 16]


def test_a_length_below_one_is_refused():
    with pytest.raises(ValueError, match="length is 0; 1 or more is accepted"):
        choose.bucket(0)


@pytest.mark.parametrize(
    ("kernel", "change", "why"),
    [
        ("cudnn", {"dtype": torch.float32}, "takes float16 and bfloat16"), ("flash", {"width": 512, "value_width": 512}, "up to 256"),
        ("fa3", {"dropout": 0.1}, "no dropout"), ("flash", {"value_width": 32}, "one head width"),
        ("cudnn", {"width": 20, "value_width": 20}, "divide by 8"), ("efficient", {"dtype": torch.float32}, ""), ("sdpa", {}, ""),
        ("cudnn", {"device": torch.device("cpu")}, "is a CUDA kernel"),
    ],
)  # fmt: skip
def test_kernels_say_what_they_can_not_take(gpu, kernel, change, why):
    given = {"dtype": torch.bfloat16, "width": 64, "value_width": 64, "dropout": 0.0, "device": CUDA} | change
    found = attend.refused(kernel, **given)
    assert why in found
    assert bool(found) == bool(why)


def test_attention_on_a_cpu_is_torch_s_own():
    query, key, value = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    out = attend.attention(query, key, value, "sdpa", True, 0.3)
    k, v = (x.repeat_interleave(2, 1).double() for x in (key, value))
    scores = (query.double() @ k.mT * 0.3).masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), -torch.inf)
    torch.testing.assert_close(out.double(), scores.softmax(-1) @ v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)])
def test_gradients_of_fa3_lie_as_what_they_belong_to(order, monkeypatch):
    made = lambda heads: torch.randn(2, heads, 7, 16).permute(order).contiguous().permute(order)  # noqa: E731
    given = made(4), made(4), made(2), made(2)  # upstream, query, key, value
    for found in (given[1:], [x.contiguous() for x in given[1:]], [x[..., :1].expand_as(x) for x in given[1:]]):
        monkeypatch.setattr(attend, "cudnn_backward", lambda *_, found=found: [x.clone() for x in found])
        outputs = torch.ops.kpt_lab.fa3_backward(*given, given[0], torch.zeros(2, 4, 7), True, 1.0)
        shapes = torch.ops.kpt_lab.fa3_backward(*(x.to("meta") for x in (*given, given[0], torch.zeros(2, 4, 7))), True, 1.0)
        for output, shape, wanted in zip(outputs, shapes, found, strict=True):
            assert torch.equal(output, wanted)
            assert output.stride() == shape.stride()


def test_fa3_s_shapes_are_known_without_a_device():
    query, key = torch.empty(2, 8, 64, 128, device="meta"), torch.empty(2, 2, 64, 128, device="meta")
    out, sums = torch.ops.kpt_lab.fa3(query, key, key, True, 1.0)
    assert (out.shape, out.stride()[2]) == (query.shape, 8 * 128)
    assert (sums.shape, sums.dtype) == ((2, 8, 64), torch.float32)


# ---- on a GPU


def close(found, wanted, scale):
    return float((found.detach().double() - wanted.detach()).norm()) <= scale * float(wanted.detach().norm())


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", attend.KERNELS)
@pytest.mark.parametrize(
    ("length", "width", "groups", "causal"), [(333, 64, 1, True), (1024, 128, 4, False), (257, 128, 4, True)]
)
def test_each_kernel_is_right_forward_and_backward(kernel, length, width, groups, causal):
    why = attend.refused(kernel, dtype=torch.bfloat16, width=width, value_width=width, dropout=0.0, device=CUDA)
    if why:
        pytest.skip(why)
    made = lambda heads: torch.randn(2, length, heads, width, device="cuda", dtype=torch.bfloat16).transpose(1, 2)  # noqa: E731
    inputs = [made(8).requires_grad_(), made(8 // groups).requires_grad_(), made(8 // groups).requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    query, key, value = exact
    scores = query @ key.repeat_interleave(groups, 1).mT * width**-0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool, device="cuda").tril(), -torch.inf)
    wanted = scores.softmax(-1) @ value.repeat_interleave(groups, 1)
    try:
        out = attend.attention(*inputs, kernel, causal, width**-0.5)
    except RuntimeError as error:
        pytest.skip(f"refused by torch: {str(error)[:80]}")
    upstream = made(8)
    found = torch.autograd.grad(out, inputs, upstream)
    gradients = torch.autograd.grad(wanted, exact, upstream.double())
    assert close(out, wanted, 0.01)
    for ours, theirs in zip(found, gradients, strict=True):
        assert close(ours, theirs, 0.015)


@pytest.mark.gpu
def test_a_race_on_this_device_gives_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    for training in (False, True):
        shape = Shape(torch.bfloat16, 64, 64, 8, 1, 1024, 1024, "causal", training)
        choice = choose.kernel_for(shape, CUDA)
        assert len(choice.seconds) > 1
        assert choice.kernel == min(choice.seconds, key=choice.seconds.get)
        assert all(0 < took < 0.1 for took in choice.seconds.values())


@pytest.mark.gpu
def test_another_kernel_takes_what_the_chosen_one_refuses_only_where_that_is_asked():
    query = torch.randn(2, 4, 9, 20, device="cuda", dtype=torch.bfloat16)
    key = torch.randn(2, 4, 37, 20, 2, device="cuda", dtype=torch.bfloat16)[..., 0]
    with pytest.raises(RuntimeError, match="No available kernel"):
        attend.attention(query, key, key, "cudnn", False, 0.125)
    found = attend.attention(query, key, key, "cudnn", False, 0.125, others=True)
    wanted = (query.double() @ key.double().mT * 0.125).softmax(-1) @ key.double()
    assert close(found, wanted, 0.01)


def test_a_kernel_is_launched_at_once_only_where_nothing_traces_and_no_gradient_is_asked_for():
    x, weight = torch.randn(2, 3), torch.nn.Parameter(torch.randn(2, 3))
    assert attend.at_once(x, x)
    assert not attend.at_once(x, weight)
    with torch.no_grad():
        assert attend.at_once(x, weight)
        seen = []
        torch.func.vmap(lambda y: seen.append(attend.at_once(y)) or y)(x)
        make_fx(lambda y: seen.append(attend.at_once(y)) or y)(x)
        with FakeTensorMode() as mode:
            seen += [attend.at_once(x), attend.at_once(mode.from_tensor(x))]
        assert seen == [False, False, False, False]
