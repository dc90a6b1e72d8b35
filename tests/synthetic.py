"""Made-up Trials for tests and for drawing speed: no number in them was measured."""

from __future__ import annotations

import math
import random

from kpt_lab.core import Metric, Trial, Trials

TECHNIQUES = (
    ("eager", True),
    ("torch.compile", True),
    ("torch.compile max-autotune", True),
    ("liger", False),
    ("kpt triton", False),
)
BANDWIDTH = 3.35e12


def many_trials(n: int = 10_000, *, blocks: int = 30) -> Trials:
    """About `n` synthetic Trials: five techniques in cells of two workloads, two dtypes, many rows and cols; seeded."""
    rng, made = random.Random(0), []
    for i in range(math.ceil(n / len(TECHNIQUES))):
        rows, cols = 2 ** (8 + i // 4 % 8), 64 * (1 + i // 32)
        made += _cell(
            rng, ("softmax.forward", "softmax.backward")[i % 2], ("bfloat16", "float32")[i // 2 % 2], rows, cols, blocks
        )
    return Trials(made[:n])


def _cell(rng: random.Random, workload: str, dtype: str, rows: int, cols: int, blocks: int) -> list[Trial]:
    traffic = 2.0 * rows * cols * (2 if dtype == "bfloat16" else 4)
    bound = Metric(traffic / BANDWIDTH, "s", "modelled", source="bytes over bandwidth of h100-sxm (synthetic)")
    made = []
    for i, (technique, baseline) in enumerate(TECHNIQUES):
        time = 5e-6 + bound.value * (2.6 - 0.3 * i) * rng.uniform(0.9, 1.1)
        samples = tuple(round(1e9 * time * rng.uniform(0.97, 1.03)) for _ in range(blocks))
        failed = technique == "liger" and cols > 20_000
        metrics = {
            "bound": bound,
            "memory.peak": Metric(traffic, "B", "measured"),
            "time": Metric(time, "s", "measured", time * 0.99, time * 1.01),
            "error": Metric(rng.uniform(1e-4, 1e-3), "1", "measured", source="against the float64 oracle"),
            "noise_floor": Metric(1.0, "1", "measured", 0.997, 1.003),
            "copy_time": Metric(5e-6 + bound.value * 1.15, "s", "measured"),
        }
        made.append(
            Trial(
                workload,
                technique,
                {"rows": rows, "cols": cols},
                baseline=baseline,
                target="h100-sxm",
                device="cuda",
                dtype=dtype,
                at="2026-11-22T10:00:00+00:00",
                status="unsupported" if failed else "ok",
                advice="a row of more than 20000 columns does not fit" if failed else "",
                metrics={} if failed else metrics,
                samples={} if failed else {"time": samples},
                cell=f"{workload}.{dtype}.{rows}.{cols}",
                chosen={"cache": "cold", "blocks": blocks, "flops": {"float32": 5.0 * rows * cols}, "bytes": traffic},
                source={"workload_at": f"kpt_lab.kernels.{workload.replace('.', ':')}"},
                env={"host": "synthetic", "device_name": "synthetic device", "torch": "2.11.0", "triton": "3.6.0"},
            )
        )
    return made
