"""What a simulation may claim: each misleading ratio is refused in a sentence that says what is allowed, and that then works."""

from __future__ import annotations

from dataclasses import replace

import pytest

import kpt_lab as kpt
from kpt_lab.core import Metric, Target, Trial
from kpt_lab.frontier.photonic import core_target, forward, photonic
from kpt_lab.hardware.targets import h100_sxm

HERE = {"host": "a1", "torch": "2.13.0", "triton": "3.6.0", "driver": ""}
SHAPE = {"rows": 64, "inner": 64, "cols": 64}


def measured(technique: str, ns: int = 2000, **fields) -> Trial:
    metrics = {"time": Metric(ns / 1e9, "s", "measured"), **fields.pop("metrics", {})}
    fields = {"params": SHAPE, "env": HERE, "cell": "c", **fields}
    return Trial("photonic.matmul", technique, metrics=metrics, samples={"time": (ns,) * 40}, **fields)


def simulated(ns: int = 100, **fields) -> Trial:
    """A simulator that happens to be twenty times faster than what it is set against."""
    metrics = {
        "simulation_time": Metric(ns / 1e9, "s", "measured"),
        "memory.peak": Metric(1e6, "B", "measured"),
        "setup_time.cold": Metric(1.0, "s", "measured"),
        "error": Metric(0.02, "1", "simulated"),
        "quality": Metric(0.7, "1", "simulated"),
        "energy.compute": Metric(1e-9, "J", "modelled", source="photon model"),
    }
    fields = {"params": SHAPE, "env": HERE, "cell": "c", **fields}
    return Trial(
        "photonic.matmul",
        "photonic",
        simulates="photonic core",
        metrics=metrics,
        samples={"simulation_time": (ns,) * 40},
        **fields,
    )


EAGER = measured(
    "eager",
    metrics={
        "quality": Metric(0.8, "1", "measured"), "error": Metric(1e-7, "1", "measured"), "memory.peak": Metric(1e7, "B", "measured"),
        "setup_time.cold": Metric(2.0, "s", "measured"),
    },
)  # fmt: skip


def refused(message: str, one: Trial, other: Trial, metric: str = "time") -> None:
    """In either direction."""
    for a, b in ((one, other), (other, one)):
        with pytest.raises(kpt.Incomparable, match=message):
            kpt.compare(a, b, metric)


def test_1_a_simulators_wall_time_is_no_speed_of_the_device():
    message = "simulates 'photonic core': its wall time is simulation_time, .* compare modelled energy, or quality"
    refused(message, simulated(), EAGER)
    with pytest.raises(kpt.Incomparable, match=message):
        kpt.speedup(simulated(), EAGER)
    refused(
        r"has no metric 'simulation_time'; it has .*; compare a metric that both have", simulated(), EAGER, "simulation_time"
    )
    with pytest.raises(ValueError, match="its clock is simulation_time, never time"):
        replace(simulated(), metrics={"time": Metric(1e-9, "s", "measured")})
    allowed = kpt.compare(simulated(), EAGER, "quality")
    assert (allowed.provenance, allowed.note) == ("simulated", "simulated quality; 0.7 over 0.8")


@pytest.mark.parametrize("metric", ["memory.peak", "setup_time.cold"])
def test_1b_nor_is_anything_else_that_was_measured_of_the_simulator(metric):
    message = (
        f"'{metric}' of 'photonic' is the simulator's own, not that of 'photonic core'.*; compare modelled energy, or quality"
    )
    refused(message, simulated(), EAGER, metric)


def test_2_a_simulator_is_not_set_against_a_gpu():
    gpu = replace(EAGER, device="cuda", target="h100-sxm")
    refused("its wall time is simulation_time, .* compare modelled energy, or quality", simulated(), gpu)
    on_gpu = simulated(device="cuda")
    refused("compare modelled energy, or quality", on_gpu, gpu)
    refused(r"measured on different devices or dtypes: .*; measure both in one cell", on_gpu, simulated(), "simulation_time")
    allowed = kpt.compare(replace(simulated(50), knobs={"bits": 4}), simulated(), "simulation_time")
    assert "speed of the simulation, not of the device" in allowed.note


def digital() -> Target:
    return replace(
        h100_sxm,
        energy={"float32": 2.3e-12},
        source={**h100_sxm.source, "energy.float32": "M. Horowitz, ISSCC 2014, 45 nm: multiply 3.7 pJ, add 0.9 pJ"},
    )


def test_3_energies_of_different_boundaries():
    light = kpt.predict(forward, photonic, core_target(6), **SHAPE)
    wire = kpt.predict(forward, kpt.baselines.eager, digital(), **SHAPE)
    assert "energy.with_memory" not in wire.metrics
    refused(
        "'eager' has no metric 'energy.with_memory'; it has bound, energy.compute; compare a metric that both have",
        light,
        wire,
        "energy.with_memory",
    )
    metered = replace(EAGER, metrics={**EAGER.metrics, "energy.compute": Metric(1e-6, "J", "measured")})
    refused("modelled and measured|measured and modelled", light, metered, "energy.compute")
    allowed = kpt.compare(light, wire, "energy.compute")
    assert (allowed.provenance, allowed.verdict) == ("modelled", "UNCLEAR")
    assert "Horowitz" in allowed.note
    assert "Harris" in allowed.note


def test_4_a_quoted_figure_against_a_measured_one():
    def chip(technique: str, seconds: float, source: str) -> Trial:
        metrics = {"time": Metric(seconds, "s", "quoted", source=source)}
        return kpt.quote(forward, replace(photonic, name=technique, simulates=""), "a chip", metrics, source, **SHAPE)

    ours = chip("theirs", 1e-9, "paper A")
    refused(
        "(quoted and measured|measured and quoted); only numbers of one kind make a ratio: measure both, or model both",
        ours,
        EAGER,
    )
    refused(
        r"different sources \(paper [AB]; paper [AB]\); conditions differ: compare quotes of one source",
        ours,
        chip("other", 1e-8, "paper B"),
    )
    assert kpt.compare(ours, chip("other", 1e-8, "paper A")).provenance == "quoted"


def test_5_different_params():
    refused(
        r"belong to different work: photonic.matmul\(rows=\d+.*\) .* and photonic.matmul\(rows=.*compare Trials of one workload with the same params",
        measured("fast", 100, params={**SHAPE, "rows": 1}),
        EAGER,
    )
    small, large = (kpt.predict(forward, photonic, core_target(6), **{**SHAPE, "cols": cols}) for cols in (1, 64))
    refused("compare Trials of one workload with the same params", small, large, "energy.compute")
    assert kpt.speedup(measured("fast", 1000), EAGER).value == pytest.approx(2.0)


@pytest.mark.parametrize(("name", "value"), [("torch", "2.11.0"), ("triton", "3.5.0"), ("driver", "580.1")])
def test_6_another_environment(name, value):
    other = measured("fast", 100, env={**HERE, name: value})
    refused(rf"measured in another environment each \({name} .* and .*\); measure both in one call", other, EAGER)
    refused(
        "measured on different devices or dtypes: .*; measure both in one cell",
        measured("fast", 100, env={**HERE, "host": "b2"}),
        EAGER,
    )
    refused("measured in different runs, .*; measure them in one call", measured("fast", 100, cell="d"), EAGER)
