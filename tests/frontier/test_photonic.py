"""The machine against float64 products, the closed form of its noise, hand counts of its energy, and the core's rules."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import kpt_lab as kpt
from kpt_lab.frontier import photonic as ph
from kpt_lab.frontier.photonic.technique import rounded_product

FEW = {"wavelength_channels": 8, "precision_bits": 6}  # within the default light, so nothing warns
SHAPES = [
    ((5, 7), (7, 3)), ((1, 1), (1, 1)), ((3, 2, 5, 17), (17, 9)), ((2, 1, 4, 9), (3, 9, 8)), ((4, 8), (5, 8, 16)),
    ((7,), (7,)), ((7,), (2, 7, 3)), ((2, 3, 7), (7,)), ((1, 33), (33, 31)),
]  # fmt: skip


def machine(**settings) -> ph.PhotonicAccelerator:
    return ph.PhotonicAccelerator(**{**FEW, **settings})


def uniform(*shape: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """a uniform on [0, 1], b uniform on [-1, 1]."""
    rows, inner, cols = shape
    return torch.rand(rows, inner, dtype=dtype), 2 * torch.rand(inner, cols, dtype=dtype) - 1


# ---- the ideal product


@pytest.mark.parametrize("scheme", ["clements", "reck"])
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_the_ideal_product_is_the_product(left, right, scheme):
    a, b = torch.randn(left), torch.randn(right)
    exact = a.double() @ b.double()
    found = machine(scheme=scheme).photonic_matmul(a, b)
    assert found.dtype == a.dtype
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max().clamp(min=1e-3)
    fine = machine(scheme=scheme).photonic_matmul(a.double(), b.double())
    assert (fine - exact).abs().max() <= 1e-12 * max(exact.abs().max().item(), 1.0) * a.shape[-1]


def test_the_seeds_own_call_at_64_channels():
    a, b = torch.randn(3, 5, 70), torch.randn(70, 130)
    with pytest.warns(
        ph.PrecisionWarning, match=r"precision_bits=16 needs 3\.6e\+09 detected photons a multiply .* 1 mW on each of 64"
    ) as seen:
        y = ph.PhotonicAccelerator(wavelength_channels=64, precision_bits=16, thermal_stabilization=True).photonic_matmul(a, b)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert (y - a.double() @ b.double()).abs().max() <= 1e-5 * y.abs().max()
    assert ph.OPTICAL_POWER == 1e-3


def test_the_warning_stands_where_the_light_ends():
    """At 64 channels and 1 mW shot noise leaves 8 bits, and one more with four times the light."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ph.PhotonicAccelerator(64, 8)
        ph.PhotonicAccelerator(64, 9, optical_power=4e-3)
    with pytest.warns(ph.PrecisionWarning, match="enough for 8.1 bits"):
        made = ph.PhotonicAccelerator(64, 9)
    assert made.detected_photons == pytest.approx(1e-3 / 1e9 / 1.2816e-19 / 128, rel=1e-3)


def test_special_values_of_the_operands():
    zeros, ones = torch.zeros(3, 9), torch.ones(9, 4)
    assert torch.equal(machine().photonic_matmul(zeros, ones), torch.zeros(3, 4))
    assert torch.equal(machine().photonic_matmul(ones.T, zeros.T), torch.zeros(4, 3))
    wide = torch.tensor([[1e-20, 1.0], [1e20, -1e20]], dtype=torch.float64)
    assert torch.allclose(machine().photonic_matmul(wide, torch.eye(2, dtype=torch.float64)), wide, rtol=1e-12, atol=1e-12)
    half = torch.randn(4, 5).bfloat16()
    assert machine().photonic_matmul(half, half.T).dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["theta", "phi"])
def test_every_mesh_is_on_the_way_and_one_phase_off_changes_the_product(part):
    a, b = uniform(3, 8, 8)
    made = machine()
    program = made.program(b)
    ideal = made.run(a, program)
    assert torch.allclose(ideal, a @ b, rtol=0, atol=1e-12)
    for rail in ("plus", "minus"):
        for side in ("left", "right"):
            core = getattr(program, rail)
            mesh = getattr(core, side)
            phases = getattr(mesh, part).clone()
            phases[..., 10] += 0.1
            other = replace(program, **{rail: replace(core, **{side: replace(mesh, **{part: phases})})})
            assert (made.run(a, other) - ideal).abs().max() > 1e-4


def test_phases_at_the_detectors_do_not_matter():
    """Detectors see powers: the left mesh's output phases may be anything."""
    a, b = uniform(3, 8, 8)
    made = machine()
    program = made.program(b)
    left = program.plus.left
    other = replace(program, plus=replace(program.plus, left=replace(left, output=left.output + torch.rand(8))))
    assert torch.allclose(made.run(a, other), a @ b, rtol=0, atol=1e-12)


# ---- gradients


@pytest.mark.parametrize(
    ("left", "right"), [((3, 5), (5, 2)), ((2, 1, 3, 4), (3, 4, 2)), ((4,), (4, 3)), ((2, 4), (4,)), ((4,), (4,))]
)
def test_gradients_of_the_ideal_machine(left, right):
    a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in (left, right))
    assert torch.autograd.gradcheck(machine(wavelength_channels=3).photonic_matmul, (a, b))


def test_gradients_with_noise_are_those_of_the_ideal_product():
    a, b = (torch.randn(5, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    noisy = machine(noise=ph.Noise(shot=ph.Shot(100.0), quantisation=ph.Quantisation(4, 4, 4))).photonic_matmul(a, b)
    upstream = torch.randn(5, 5, dtype=torch.float64)
    found = torch.autograd.grad(noisy, (a, b), upstream)
    expected = torch.autograd.grad(a @ b, (a, b), upstream)
    assert not torch.allclose(noisy, a @ b)
    assert all(torch.allclose(x, y) for x, y in zip(found, expected, strict=True))


# ---- noise through the machine


def test_shot_noise_of_the_machine_has_the_deviation_of_the_closed_form():
    """Rows alike, so that each column's readings are 20,000 draws of one product; two slots, inputs of both signs."""
    x, b = 2 * torch.rand(1, 8, dtype=torch.float64) - 1, uniform(1, 8, 3)[1]
    photons, size, scale = 50.0, x.abs().max(), b.abs().max()
    made = machine(noise=ph.Noise(shot=ph.Shot(photons)))
    read = made.photonic_matmul(x.expand(20_000, 8), b)
    expected = ((x.abs() / size) @ (b.abs() / scale) / photons).sqrt() * size * scale
    assert torch.allclose(read.std(0), expected[0], rtol=0.03, atol=0)
    assert torch.allclose(read.mean(0), (x @ b)[0], rtol=0, atol=5 * expected.max().item() / math.sqrt(20_000))


def test_the_machines_own_light_gives_fewer_bits_than_the_best_case():
    """Meshes pass less than the light that the warning takes for granted."""
    a, b = uniform(4000, 8, 8)
    made = machine(noise=ph.Noise(shot=ph.Shot()))
    error = made.photonic_matmul(a, b) - a @ b
    bits = (10 * math.log10(((a @ b).square().mean() / error.square().mean()).item()) - 1.76) / 6.02
    assert 5 < bits < made.shot_noise_bits
    passed = made.detected(made.program(b))
    assert passed.shape == (1, 1)
    assert passed.item() < made.detected_photons
    assert ph.shot_bits(passed.item()) == pytest.approx(bits, abs=0.3)  # one matrix of 8 x 8, not the mean over all


def test_johnson_noise_of_the_machine():
    a, b = torch.ones(20_000, 2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    warm = ph.Johnson(50.0, 300.0)
    made = machine(noise=ph.Noise(johnson=warm), symbol_rate=1e9)
    full_scale = made.launched_photons / 2 / 2  # half for this rail, and half of that, as the one output combines two ports
    assert made.photonic_matmul(a, b).std().item() == pytest.approx(warm.electrons(1e-9) / full_scale, rel=0.03)


def test_the_warning_counts_a_warm_receiver():
    """Sixteen channels at 1 mW leave 9 bits by shot noise, and fewer to a receiver of 50 ohm."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = ph.PhotonicAccelerator(16, 9)
    assert quiet.receiver_bits == quiet.shot_noise_bits
    with pytest.warns(
        ph.PrecisionWarning, match="needs .* by shot and Johnson noise alone; .* enough for 8.[0-9] bits"
    ) as seen:
        warm = ph.PhotonicAccelerator(16, 9, noise=ph.Noise(johnson=ph.Johnson(50.0, 300.0)))
    assert warm.receiver_bits < 9 < warm.shot_noise_bits
    more = float(str(seen[0].message).rsplit(" or for ", 1)[1].split()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ph.PhotonicAccelerator(16, 9, noise=warm.noise, optical_power=1.1 * more * ph.OPTICAL_POWER)


def test_fabrication_errors_stay_and_draws_do_not():
    a, b = uniform(4, 8, 8)
    fixed = machine(noise=ph.Noise(phase=ph.PhaseError(0.01), splitter=ph.SplitterError(0.01)), seed=3)
    first = fixed.photonic_matmul(a, b)
    assert torch.equal(first, fixed.photonic_matmul(a, b))
    assert 1e-4 < (first - a @ b).abs().max() < 0.5
    assert not torch.equal(first, machine(noise=fixed.noise, seed=4).photonic_matmul(a, b))
    drawn = machine(noise=ph.Noise(shot=ph.Shot(1e3)))
    first = drawn.photonic_matmul(a, b)
    assert not torch.equal(first, drawn.photonic_matmul(a, b))
    assert torch.equal(first, machine(noise=drawn.noise).photonic_matmul(a, b))  # the seed repeats it


def test_drift_spoils_the_product_unless_it_is_controlled():
    a, b = uniform(6, 8, 8)
    error = {
        held: (machine(thermal_stabilization=held, ambient=ph.Ambient(1.0)).photonic_matmul(a, b) - a @ b).abs().max().item()
        for held in (True, False)
    }
    assert error[True] < 1e-4 < 1e-2 < error[False]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_converters_round_as_the_plain_definition_does(bits):
    a, b = torch.randn(9, 19, dtype=torch.float64), torch.randn(19, 11, dtype=torch.float64)
    made = machine(noise=ph.Noise(quantisation=ph.Quantisation(bits, bits, bits)))
    plain = rounded_product(a, b, bits, channels=8)
    assert torch.allclose(made.photonic_matmul(a, b), plain, rtol=0, atol=1e-12)
    assert (plain - a @ b).abs().max() > 1e-3


# ---- energy


def test_energy_equals_a_count_by_hand():
    """(3, 10) @ (10, 8) on 8 channels: two cores of 8 x 8, 3 vectors each in one slot, as the inputs are not negative."""
    a, b = uniform(3, 10, 8, dtype=torch.float32)
    made = machine()
    made.photonic_matmul(a, b)
    report = made.report()
    counts = report.counts
    assert (counts.multiplies, counts.products, counts.inputs, counts.outputs) == (240, 1, 48, 48)
    assert counts.bytes == 4 * (30 + 80 + 24)
    assert counts.shifters == 2 * 4 * 64  # two cores, four meshes of N^2 phases
    rows = {name: metric.value for name, metric in report.rows.items()}
    assert rows["light"] == pytest.approx(48 * 1e-3 / 1e9)
    assert rows["modulators"] == pytest.approx(48 * 6 * 0.9e-15)
    assert rows["ADCs"] == rows["DACs"] == pytest.approx(48 * 64 * 4.4e-15)
    assert rows["memory"] == pytest.approx(536 * 160e-12)
    phases = sum(float((p % (2 * math.pi)).sum()) for m in made.program(b).meshes for p in (m.theta, m.phi, m.output))
    assert rows["heaters"] == pytest.approx(24.77e-3 * phases / math.pi * 3 / 1e9)
    compute = sum(value for name, value in rows.items() if name != "memory")
    assert report.metrics["energy.compute"].value == pytest.approx(compute)
    assert report.metrics["energy.with_memory"].value == pytest.approx(compute + rows["memory"])
    assert report.metrics["optical_share"].value == pytest.approx(rows["light"] / compute)
    assert report.digital("float32")["energy.compute"].value == pytest.approx(240 * 4.6e-12)
    made.photonic_matmul(-a, b)  # negative inputs alone still take two slots
    assert made.last.inputs == 96
    assert made.total.multiplies == 480


def test_the_reports_trials_compare_within_a_boundary():
    made = machine(precision_bits=6)
    made.photonic_matmul(*uniform(16, 8, 8))
    report = made.report()
    light, int8, float32 = report.trials
    assert [t.technique for t in report.trials] == ["photonic", "digital int8", "digital float32"]
    assert (light.simulates, light.chosen, light.knobs["bits"]) == ("photonic-8", {}, 6)
    for boundary in ("energy.compute", "energy.with_memory"):
        for digital, kind in ((int8, "int8"), (float32, "float32")):
            ratio = kpt.compare(light, digital, boundary)
            assert ratio.value == pytest.approx(report.metrics[boundary].value / report.digital(kind)[boundary].value)
            assert (ratio.provenance, ratio.verdict) == ("modelled", "UNCLEAR")
            assert "Horowitz" in ratio.note
    with pytest.raises(kpt.Incomparable, match="'digital int8' has no metric 'optical_share'"):
        kpt.compare(light, int8, "optical_share")
    made.photonic_matmul(*uniform(16, 8, 8))
    with pytest.raises(kpt.Incomparable, match="belong to different work"):
        kpt.compare(made.report().trials[0], int8, "energy.compute")


def test_the_report_cites_everything_and_claims_no_measurement():
    made = machine()
    made.photonic_matmul(*uniform(3, 8, 8))
    report = made.report()
    text = str(report)
    for metric in (*report.rows.values(), *report.metrics.values(), *report.digital().values()):
        assert metric.provenance == "modelled"
        assert metric.source
    assert all(metric.source in text for metric in report.rows.values())
    assert "simulated; every energy below is modelled, none is measured" in text
    assert "optical share" in text
    assert "left out" in text


def test_a_published_chips_efficiency_follows_from_its_own_figures():
    """Nature 640, 368 (2025): 65.5e12 operations/s at 78 W of electrical and 1.6 W of optical power."""
    per_joule, share = ph.published_efficiency(65.5e12, 78.0, 1.6)
    assert per_joule == pytest.approx(0.82e12, rel=0.005)
    assert share == pytest.approx(0.02, abs=0.0005)


# ---- as a Technique


def test_measured_as_a_simulation_within_its_own_definition():
    trials = kpt.measure(
        ph.forward,
        [kpt.baselines.eager, ph.photonic(channels=4), ph.photonic(bits=4, channels=4)],
        processes=0,
        budget=0.05,
        rows=9,
        inner=7,
        cols=5,
    )
    eager, six, four = (
        trials.where(label=label)[0] for label in ("eager", "photonic(channels=4)", "photonic(bits=4, channels=4)")
    )
    for trial in (six, four):
        assert (trial.status, trial.contract, trial.simulates) == ("ok", "lossy", "photonic core")
        assert "time" not in trial.metrics
        assert trial.metrics["simulation_time"].value > 0
        assert trial.metrics["energy.compute"].provenance == "modelled"
        assert trial.metrics["error"].provenance == "simulated"
    assert four.metrics["error"].value > 2 * six.metrics["error"].value > 0
    with pytest.raises(kpt.Incomparable, match="compare modelled energy, or quality"):
        kpt.speedup(six, eager)


@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_a_models_linear_layers_are_replaced(mode):
    net = nn.Sequential(nn.Linear(12, 9), nn.GELU(), nn.Sequential(nn.Linear(9, 5, bias=False)))
    work = kpt.workload(net, torch.randn(4, 12), name="net")(mode=mode)
    trial = kpt.measure(work, [kpt.baselines.eager, ph.photonic(channels=4)], processes=0, budget=0.05).where(
        technique="photonic"
    )[0]
    assert (trial.status, trial.advice) == ("ok", "")
    assert trial.metrics["energy.compute"].value > 0


def test_what_has_no_product_is_refused():
    work = kpt.workload(nn.GELU(), torch.randn(4, 12))
    trial = kpt.measure(work, [kpt.baselines.eager, ph.photonic(channels=4)], processes=0, budget=0.05).where(
        technique="photonic"
    )[0]
    assert (trial.status, trial.advice) == (
        "unsupported",
        "photonic takes torch.matmul or a module with nn.Linear in it; GELU is neither",
    )


def test_predicted_on_a_modelled_core():
    trial = kpt.predict(ph.forward, ph.photonic(bits=6), ph.core_target(6), rows=64, inner=64, cols=64)
    assert trial.target == "photonic-64-6bit"
    assert {m.provenance for m in trial.metrics.values()} == {"modelled"}
    assert trial.metrics["bound"].value == pytest.approx(64e-9)  # 64 vectors at 1e9 a second
    more = kpt.predict(ph.forward, ph.photonic(bits=8), ph.core_target(8), rows=64, inner=64, cols=64)
    assert kpt.compare(more, trial, "energy.compute").value > 1


# ---- wrong input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wavelength_channels": 0}, "wavelength_channels is 0; a whole number from 1 to 1024"),
        ({"wavelength_channels": 8.0}, "wavelength_channels is 8.0"),
        ({"precision_bits": 1}, "precision_bits is 1; a whole number from 2 to 24"),
        ({"thermal_stabilization": "on"}, "thermal_stabilization is 'on'; accepted are True and False"),
        ({"optical_power": -1e-3}, "optical_power is -0.001; a finite number above 0"),
        ({"symbol_rate": math.inf}, "symbol_rate is inf"),
        ({"wavelength": 0}, "wavelength is 0"),
        ({"noise": 0.1}, "noise is 0.1; a Noise or None is accepted"),
        ({"ambient": 1.0}, "ambient is 1.0; a Ambient or None"),
        ({"thermal_stabilization": False, "controller": ph.Controller()}, "controller is given, but thermal_stabilization is False"),
        ({"scheme": "triangle"}, "scheme is 'triangle'; accepted are clements, reck"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        machine(**settings)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[1.0]], torch.ones(1, 1), "a is list; a floating point tensor is needed"),
        (torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64), "b is torch.int64; floating point is needed"),
        (torch.ones(2, 0), torch.ones(0, 2), r"a has shape \(2, 0\); at least one"),
        (torch.ones(()), torch.ones(1, 2), r"a has shape \(\); at least one"),
        (torch.ones(2, 3), torch.ones(2, 3), r"a has shape \(2, 3\) and b \(2, 3\), which don't fit"),
        (torch.ones(2, 2, 3), torch.ones(3, 3, 2), "which don't fit"),
        (torch.ones(2, 2), torch.ones(2, 2).double(), "both must be the same"),
        (torch.full((2, 2), math.nan), torch.ones(2, 2), "a holds NaN or infinity"),
    ],
)
def test_wrong_operands_are_named(a, b, message):
    with pytest.raises(ValueError, match=message):
        machine().photonic_matmul(a, b)


def test_other_wrong_calls_are_named():
    with pytest.raises(ValueError, match="no product was computed yet"):
        machine().report()
    with pytest.raises(ValueError, match=r"a has shape \(2, 3\), but the program holds a matrix of 4 rows"):
        machine().run(torch.ones(2, 3), machine().program(torch.ones(4, 4)))
    with pytest.raises(ValueError, match="kind is 'int4'; accepted are int8, float32"):
        ph.EnergyReport(ph.Counts(1), "x").digital("int4")
    with pytest.raises(ValueError, match="a Constant is -1"):
        ph.Constant(-1, "J", "me")
    with pytest.raises(ValueError, match="rows, inner and cols are 0, 64, 64"):
        kpt.measure(ph.forward, [ph.photonic], processes=0, rows=0)
    with pytest.raises(ValueError, match="bits is 1; a whole number from 2 to 24"):
        ph.core_target(1)
