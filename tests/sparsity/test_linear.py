"""SparseLinear, its search and the workloads around it: by fakes of cuSPARSELt's operators here, and on a GPU where there is one."""

from __future__ import annotations

import gc
import json
import weakref

import fakes
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kpt_lab import baselines
from kpt_lab.core import Unsupported
from kpt_lab.measure import measure
from kpt_lab.optimize import stacks
from kpt_lab.precision.formats import e4m3fn
from kpt_lab.precision.scaling import quantise, sqnr
from kpt_lab.sparsity import cusparselt, layer, search
from kpt_lab.sparsity.cusparselt import Plan
from kpt_lab.sparsity.eight import balanced_scale
from kpt_lab.sparsity.linear import SparseLinear
from kpt_lab.sparsity.patterns import magnitude_mask

GPU = [pytest.mark.gpu, pytest.mark.skipif(bool(cusparselt.unsupported("cuda", torch.bfloat16)), reason="needs 2:4 products")]
HOPPER = [pytest.mark.gpu, pytest.mark.skipif(bool(cusparselt.unsupported("cuda", cusparselt.FP8)), reason="needs 2:4 in fp8")]


def pruned(out_features=96, in_features=64, dtype=torch.bfloat16, device="cpu", seed=0):
    weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed)) / in_features**0.5
    return torch.where(magnitude_mask(weight), weight, 0).to(device=device, dtype=dtype)


def inputs(tokens, in_features=64, dtype=torch.bfloat16, device="cpu"):
    x = torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(1))
    return x.to(device=device, dtype=dtype)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU on which the forms take the seconds of `times`."""
    times = {"sparse": 1.0, "dense": 2.0, "dense autotuned": 3.0}
    raced = fakes.install(monkeypatch, lambda name: times.get(name, 1.0 + getattr(name, "algorithm", 0)))
    return times, raced


# ---- without a GPU: the definition


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_cpu_the_layer_is_the_dense_one_and_says_so(dtype):
    linear = nn.Linear(64, 96, dtype=dtype)
    linear.weight = nn.Parameter(pruned(dtype=dtype))
    sparse = SparseLinear.from_linear(linear).tune([1, 4096])
    x = inputs(21, dtype=dtype).reshape(3, 7, 64)
    assert torch.equal(sparse(x), linear(x))
    assert not sparse.choices
    assert sparse.chosen(4096) == ("dense", Plan())
    assert sparse.explain().startswith("Dense on the pruned weight")
    assert "NVIDIA GPU" in sparse.explain()
    assert sparse.memory() == {"dense": 96 * 64 * 2, "2:4": 0, "held": 96 * 64 * 2 + 96 * 2}


def test_eight_bits_on_a_cpu_are_the_definition():
    weight, bias, x = pruned(), torch.randn(96).bfloat16(), inputs(33)
    sparse = SparseLinear(weight, bias, arithmetic="float8_e4m3fn")
    s = sparse.input_scale
    exact = e4m3fn.round(x.double() / s) @ e4m3fn.round(weight.double() * s).t() + bias.double()
    torch.testing.assert_close(sparse(x).double(), exact, rtol=2**-7, atol=1e-6)
    assert torch.equal(sparse.given_fp8(sparse.cast(x)), sparse(x))
    assert sqnr(F.linear(x.double(), weight.double(), bias.double()), sparse(x)) > 23


@pytest.mark.parametrize("in_features", [64, 4096, 28672])
@pytest.mark.parametrize("size", [0.5, 1.0, 300.0])
def test_reciprocal_scales_cost_no_accuracy(in_features, size):
    weight, x = pruned(32, in_features), (size * inputs(64, in_features).float()).bfloat16()
    exact = x.double() @ weight.double().t()
    dynamic = quantise(x, e4m3fn).dequantise(torch.float64) @ quantise(weight, e4m3fn).dequantise(torch.float64).t()
    known = SparseLinear(weight, arithmetic="float8_e4m3fn", input_scale=balanced_scale(weight, size))
    assert sqnr(exact, known(x)) > sqnr(exact, dynamic) - 1.5
    if size == 1.0:
        assert SparseLinear(weight, arithmetic="float8_e4m3fn").input_scale == known.input_scale


def test_inputs_beyond_the_range_are_held_and_scales_are_checked():
    sparse = SparseLinear(pruned(), arithmetic="float8_e4m3fn", input_scale=2.0)
    codes = sparse.cast(torch.tensor([[1e6, -1e6, 896.0, 2.0] * 16]).bfloat16()).float()
    assert codes[0, :4].tolist() == [448.0, -448.0, 448.0, 1.0]
    for scale, text in ((3.0, "a power of two"), (0.0, "a power of two"), ("1", "a power of two"), (2.0**40, "beyond 448")):
        with pytest.raises(ValueError, match=text):
            SparseLinear(pruned(), arithmetic="float8_e4m3fn", input_scale=scale)
    assert balanced_scale(torch.zeros(4, 4)) == 1.0
    with pytest.raises(Unsupported, match="too small together"):
        balanced_scale(pruned(), 1e-3)


def test_minus_zero_is_a_zero():
    weight = pruned()
    weight[weight == 0] = -0.0
    held = SparseLinear(weight).weight
    assert not bool((torch.signbit(held) & (held == 0)).any())
    assert torch.equal(held, weight)


@pytest.mark.parametrize(
    ("weight", "arithmetic", "error", "text"),
    [
        (torch.ones(32, 32, dtype=torch.bfloat16), None, ValueError, "row 0, columns 0 to 3"),
        (torch.zeros(32, 24, dtype=torch.bfloat16), None, Unsupported, "not divisible by 16"),
        (torch.zeros(48, 32, dtype=torch.bfloat16), "float8_e4m3fn", Unsupported, "not divisible by 32"),
        (torch.zeros(32, 32), None, Unsupported, "float32"),
        (torch.zeros(32, dtype=torch.bfloat16), None, Unsupported, "out_features, in_features"),
        (torch.zeros(32, 32, dtype=torch.bfloat16), "float16", ValueError, "'bfloat16' and 'float8_e4m3fn'"),
        (torch.zeros(32, 32, dtype=torch.bfloat16), "int8", ValueError, "'int8'"),
    ],
)
def test_what_cannot_be_a_2_4_layer_is_refused_in_a_sentence(weight, arithmetic, error, text):
    with pytest.raises(error, match=text):
        SparseLinear(weight, arithmetic=arithmetic)


def test_what_is_no_linear_layer_is_refused():
    with pytest.raises(TypeError, match="Conv1d"):
        SparseLinear.from_linear(nn.Conv1d(4, 4, 1))
    with pytest.raises(ValueError, match="8-bit inputs"):
        SparseLinear(pruned()).given_fp8(inputs(4))
    with pytest.raises(ValueError, match="tokens is 0"):
        SparseLinear(pruned()).tune([0])


# ---- choosing, on a pretended GPU


@pytest.mark.parametrize("arithmetic", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("tokens", [1, 16, 17, 100])
def test_every_form_gives_the_dense_values(gpu, arithmetic, tokens):
    bias = torch.randn(96).bfloat16()
    sparse = SparseLinear(pruned(), bias, arithmetic=arithmetic).tune([tokens])
    x, found = inputs(tokens), {}
    for form in ("sparse", "dense", "dispatch"):
        sparse.form = form
        found[form] = sparse(x)
        assert found[form].shape == (tokens, 96)
        assert found[form].dtype == torch.bfloat16
    for form in ("sparse", "dispatch"):
        torch.testing.assert_close(found[form], found["dense"], rtol=2**-6, atol=2**-6)
    if arithmetic == "bfloat16":
        torch.testing.assert_close(
            found["sparse"].double(), F.linear(x.double(), pruned().double(), bias.double()), rtol=0.02, atol=0.02
        )


def test_dispatch_follows_the_measurement(gpu):
    times, _ = gpu
    sparse = SparseLinear(pruned()).tune([4096])
    times["dense"] = 1.005  # within what noise does: sparse must win by more
    sparse.tune([16])
    times["dense"], times["sparse"] = 0.5, 1.0
    sparse.tune(range(100, 110))
    assert [sparse.chosen(n)[0] for n in (4096, 2049, 16, 3, 128, 65)] == [
        "sparse",
        "sparse",
        "dense",
        "dense",
        "dense",
        "dense",
    ]
    assert sparse.chosen(1024)[0] == "dense"  # not measured
    assert "up to 128 tokens: dense (sparse 1000000.0 us, dense 500000.0 us" in sparse.explain()


def test_without_the_dense_weight_everything_runs_sparse(gpu):
    sparse = SparseLinear(pruned(), keep_dense=False)
    assert sparse.weight is None
    assert sparse.memory()["dense"] == 0
    assert sparse.chosen(64) == ("sparse", Plan())
    sparse.tune([64])
    assert sparse.chosen(64)[0] == sparse.chosen(4096)[0] == "sparse"


def test_the_search_leaves_out_wrong_and_refused_algorithms_and_takes_the_fastest(gpu):
    sparse = SparseLinear(pruned())
    rows, outcomes = sparse._example(2048), {}
    found = search.best_plan(lambda plan: sparse._sparse(rows, plan), F.linear(rows, pruned()), 2048, outcomes)
    assert list(found) == [Plan(0), Plan(2), Plan(5)]  # 1 gives wrong numbers, the others are refused
    assert outcomes[Plan(1)] == "wrong"
    assert outcomes[Plan(3)] == "refused"
    few = search.best_plan(lambda plan: sparse._sparse(rows, plan), F.linear(rows, pruned()), 128)
    assert {plan.split_k for plan in few} == {1, 2}


def test_an_autotuned_dense_product_is_raced_where_asked(gpu, monkeypatch):
    times, _ = gpu
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    times["dense autotuned"] = 0.5
    sparse = SparseLinear(pruned()).tune([64], autotune=True)
    assert sparse.chosen(64)[0] == "dense autotuned"
    assert torch.equal(sparse(inputs(64)), F.linear(inputs(64), pruned()))


# ---- remembering


def test_a_search_is_remembered(gpu, folder):
    _, raced = gpu
    first = SparseLinear(pruned()).tune([100])
    count = len(raced)
    again = SparseLinear(pruned(seed=5)).tune([128])  # the same bucket
    assert again.choices == first.choices
    assert len(raced) == count
    SparseLinear(pruned()).tune([100], again=True)
    assert len(raced) > count
    (name,) = json.loads((folder / "sparse_24.json").read_text())["found"]
    assert name == f"a made-up GPU | torch {torch.__version__} | cuSPARSELt none | bfloat16 | tokens <= 128 | out 96 | in 64"
    assert [p.name for p in folder.iterdir()] == ["sparse_24.json"]  # no half-written file stays


def test_a_broken_file_is_told_and_replaced(gpu, folder):
    (folder / "sparse_24.json").write_text('{"schema": 1, "fou')
    with pytest.warns(UserWarning, match="can't be read"):
        SparseLinear(pruned()).tune([16])
    assert SparseLinear(pruned()).tune([16]).choices
    (folder / "sparse_24.json").write_text('{"schema": 99, "found": {}}')
    with pytest.warns(UserWarning, match="another version"):
        SparseLinear(pruned()).tune([16])


@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (16, 16), (17, 32), (4096, 4096), (4097, 8192)])
def test_buckets(tokens, size):
    assert search.bucket(tokens) == size


# ---- workloads and techniques


SMALL = {"tokens": 32, "in_features": 64, "out_features": 96}


@pytest.mark.parametrize("workload", [layer.forward, layer.fp8_inputs])
def test_the_workloads_can_be_measured(workload):
    (trial,) = measure(workload, [baselines.eager], dtype="bfloat16", processes=0, budget=0.1, **SMALL).where(technique="eager")
    assert trial.status == "ok"
    assert trial.chosen["flops"] == {"bfloat16": 2 * 32 * 64 * 96}


def test_given_codes_equal_the_input():
    problem = layer.fp8_inputs.make(device="cpu", dtype=torch.bfloat16, seed=3, **SMALL)
    for x, codes in problem.inputs:
        assert torch.equal(codes.view(cusparselt.FP8).float() * problem.fn.input_scale, x.float())
        assert bool(x.isfinite().all())


@pytest.mark.parametrize("workload", [layer.forward, layer.fp8_inputs])
@pytest.mark.parametrize("technique", [layer.sparse_24, layer.sparse_24_fp8, layer.dense_fp8])
def test_techniques_agree_with_their_definitions(gpu, monkeypatch, workload, technique):
    monkeypatch.setattr(layer, "static_cast", lambda x, largest: e4m3fn.cast(x.float() * (448 / largest)))
    made = [workload.make(device="cpu", dtype=torch.bfloat16, seed=3, **SMALL) for _ in range(2)]
    args = made[0].inputs[1]
    fast = technique.apply(made[0].fn, args, **technique.knobs)
    plain = technique.definition(made[1].fn, args, **technique.knobs)
    torch.testing.assert_close(fast(*args), plain(*args), rtol=2**-6, atol=2**-6)
    if technique.report:
        report = technique.report(fast)
        assert report["bytes.held"].value == report["bytes.dense"].value + report["bytes.2:4"].value + (
            8 if technique is layer.sparse_24_fp8 else 0
        )
        assert report["runs_sparse"].value == 1.0


def test_the_definition_keeps_two_of_four():
    problem = layer.forward.make(device="cpu", dtype=torch.bfloat16, seed=0, **SMALL)
    before = problem.fn.weight.clone()
    weight = layer.sparse_24.definition(problem.fn, problem.inputs[0]).weight
    assert torch.equal(weight, torch.where(magnitude_mask(before), before, 0))


def test_where_there_is_no_gpu_the_technique_says_so():
    trials = measure(layer.forward, [layer.searched_bf16], dtype="bfloat16", processes=0, budget=0.1, **SMALL)
    (trial,) = trials.where(label=layer.searched_bf16.label)
    assert trial.status == "unavailable"
    assert "NVIDIA GPU" in trial.advice


def test_techniques_refuse_other_layers():
    for technique in (layer.sparse_24, layer.dense_fp8):
        with pytest.raises(Unsupported, match="Conv1d"):
            technique.apply(nn.Conv1d(4, 4, 1), (inputs(4),))
    with pytest.raises(Unsupported, match="CUDA device"):
        layer.graph.apply(lambda x: x, (inputs(4),))


# ---- on a GPU


@pytest.mark.parametrize(
    "arithmetic",
    [pytest.param("bfloat16", marks=GPU), pytest.param("float16", marks=GPU), pytest.param("float8_e4m3fn", marks=HOPPER)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_values_on_a_gpu(arithmetic, bias):
    dtype = torch.float16 if arithmetic == "float16" else torch.bfloat16
    weight = pruned(160, 96, dtype, "cuda")
    b = torch.randn(160, device="cuda", dtype=dtype) if bias else None
    sparse = SparseLinear(weight, b, arithmetic=arithmetic)
    for tokens in (1, 16, 33, 257, 1024):
        x = inputs(tokens, 96, dtype, "cuda")
        sparse.form = "sparse"
        if arithmetic == "float8_e4m3fn":
            s = sparse.input_scale
            exact = e4m3fn.round(x.double() / s) @ e4m3fn.round(weight.double() * s).t()
        else:
            exact = x.double() @ weight.double().t()
        exact = exact if b is None else exact + b.double()
        assert sqnr(exact, sparse(x)) > 45  # of bfloat16's rounding about 50
        sparse.form = "dense"
        assert sqnr(exact, sparse(x)) > 45


@pytest.mark.parametrize("arithmetic", [pytest.param("bfloat16", marks=GPU), pytest.param("float8_e4m3fn", marks=HOPPER)])
def test_tuning_and_graphs_on_a_gpu(arithmetic):
    weight = pruned(512, 1024, device="cuda")
    sparse = SparseLinear(weight, arithmetic=arithmetic).tune([16, 2048])
    assert set(sparse.choices) == {16, 2048}
    for choice in sparse.choices.values():
        assert set(choice.seconds) == {"sparse", "dense"}
        if choice.form == "sparse":
            assert choice.seconds["sparse"] <= choice.seconds["dense"]
    sparse.form = "sparse"
    x = inputs(2048, 1024, device="cuda")
    graph, output = search.captured(lambda: sparse(x))
    x.copy_(inputs(2048, 1024, device="cuda").flip(0))
    graph.replay()
    torch.cuda.synchronize()
    wanted = sparse(x)
    torch.testing.assert_close(output, wanted, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize(
    "technique",
    [
        pytest.param(t, marks=HOPPER)
        for t in (layer.searched_bf16, layer.dispatch_bf16, layer.searched_fp8, layer.dense_fp8_graph)
    ],
    ids=lambda t: t.label,
)
@pytest.mark.parametrize("workload", [layer.forward, layer.fp8_inputs], ids=lambda w: w.name)
def test_measured_on_a_gpu(workload, technique):
    size = {"tokens": 256, "in_features": 512, "out_features": 512}
    trials = measure(workload, [layer.dense, technique], device="cuda", dtype="bfloat16", processes=0, budget=0.2, **size)
    assert {t.label: (t.status, t.advice) for t in trials if t.label in (layer.dense.label, technique.label)} == {
        layer.dense.label: ("ok", ""),
        technique.label: ("ok", ""),
    }


@pytest.mark.parametrize("size", [pytest.param(1.0, marks=HOPPER)])
def test_the_static_cast_on_a_gpu_is_the_cpus(size):
    sparse = SparseLinear(pruned(device="cuda"), arithmetic="float8_e4m3fn")
    x = inputs(33) * torch.logspace(-4, 5, 33)[:, None].bfloat16()
    got = sparse.cast(x.cuda()).view(torch.uint8).cpu()
    assert torch.equal(got, e4m3fn.cast(x.float() / sparse.input_scale).view(torch.uint8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("technique", [layer.graph, baselines.cuda_graph, stacks.cuda_graph], ids=lambda t: t.label)
def test_a_graph_keeps_the_model_whose_weights_it_reads(technique):
    x = torch.randn(32, 64, device="cuda", dtype=torch.bfloat16)
    model = nn.Sequential(nn.Linear(64, 64)).cuda().bfloat16()
    wanted = model(x).detach()
    held = weakref.ref(model)
    replay = technique.apply(model, (x,))
    del model
    gc.collect()
    torch.cuda.empty_cache()
    assert held() is not None
    torch.testing.assert_close(replay(x), wanted)
    del replay
    gc.collect()
    assert held() is None
