"""FP8 training of a small language model beside bfloat16: loss, faults planted and found, resume, and what the policy chooses.

    python benchmarks/fp8_language_model.py --device cpu                    # small, FP8 emulated, about three minutes
    python benchmarks/fp8_language_model.py --device cuda training faults   # FP8 products; parts: training faults resume policy

training  three seeds, each with and without FP8 in every layer but the output layer, on the same batches: validation loss, and the gap.
          Beside it the gap of a twin without FP8 whose first weights are rounded to bfloat16: what chance alone makes of a difference.
          The rate was lowered to AdamW's default after the bar was missed at higher ones, bfloat16's own best among them: what is
          recorded shows the bar at this rate, not in general. --rate tries others; the twin shows what chance does there.
faults    1,000 clean steps, of which none may be called bad; then infinities, NaN and spikes planted in activation, weight and gradient.
          A spike of 1e5 is one element set to 1e5 times its tensor's root mean square.
resume    six steps, and three, save, load in a fresh trainer, three: equal bits, with deterministic algorithms.
policy    what AutoMixedPrecision chooses for the trained shapes, and the whole step predicted and measured (CUDA only).

Writes fp8_language_model.<device>.json into the folder $OUT, or here; parts that the file holds and that aren't run again are kept.
Exits with 1 where a bar is missed: gap 0.5%, every fault found, none false, no bad step applied, equal bits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms ask for it, before CUDA starts
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from kpt_lab.environment import environment  # noqa: E402
from kpt_lab.precision import BFLOAT16, TENSORWISE, AutoMixedPrecision, BadStep, FP8Trainer, monitor  # noqa: E402
from kpt_lab.precision.language import Decoder, batches, next_byte_loss, text, validation_loss  # noqa: E402
from kpt_lab.precision.linear import COUNTS, TENSORS  # noqa: E402
from kpt_lab.tables import markdown  # noqa: E402

GAP = 0.005
SEEDS = (0, 1, 2)
SIZES = {
    "cpu": {"width": 64, "layers": 2, "heads": 4, "length": 64, "size": 8, "steps": 500, "rate": 1e-3},
    "cuda": {"width": 256, "layers": 4, "heads": 4, "length": 256, "size": 16, "steps": 600, "rate": 5e-4},
}
FAULTS = {
    "cpu": {"width": 32, "layers": 2, "heads": 2, "length": 32, "size": 4, "steps": 1000, "rate": 1e-3},
    "cuda": {"width": 256, "layers": 4, "heads": 4, "length": 128, "size": 8, "steps": 1000, "rate": 1e-3},
}
PLANTED = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan, "1e2": 1e2, "1e5": 1e5, "1e6": 1e6}
PLACES = ("activation", "weight", "gradient")


def decoder(size: dict[str, Any], seed: int) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(width=size["width"], layers=size["layers"], heads=size["heads"], length=size["length"])


def trainer(model: nn.Module, size: dict[str, Any], device: str, policy: Any) -> FP8Trainer:
    """AdamW with a short rise and a cosine fall of the rate; clipping at 1; bfloat16 autocast outside FP8."""
    torch._dynamo.reset()
    steps, rise = size["steps"], max(size["steps"] // 20, 1)

    def rate(step: int) -> float:
        return min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))

    return FP8Trainer(
        model.to(device), policy, hardware_optimization=device == "cuda", loss=next_byte_loss, clip=1.0, autocast=torch.bfloat16,
        optimizer=lambda p: torch.optim.AdamW(p, lr=size["rate"], betas=(0.9, 0.95), weight_decay=0.1),
        schedule=lambda o: torch.optim.lr_scheduler.LambdaLR(o, rate),
    )  # fmt: skip


# ---- training


def training(device: str, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    size, (train, valid), runs, fp8 = SIZES[device], text(), list[dict[str, Any]](), ""
    for seed in seeds:
        for name, policy in (("bfloat16", BFLOAT16), ("twin", BFLOAT16), ("fp8", TENSORWISE)):
            model = decoder(size, seed)
            run = trainer(model.bfloat16().float() if name == "twin" else model, size, device, policy)
            losses = [run.step(pair) for pair in batches(train, size["steps"], size["size"], size["length"], seed)]
            found = validation_loss(run.model, valid, size=size["size"], length=size["length"], count=16)
            told = run.receipt()
            last = float(torch.stack(losses[-20:]).mean())
            runs.append(
                {"seed": seed, "kind": name, "validation": found, "training": last, "bad": told.bad, "steps": told.steps}
            )
            print(f"seed {seed} {name}: validation {found:.4f}, training {last:.4f}", flush=True)
            fp8 = run.decisions.title if run.decisions else ""
    return compared(runs, {**size, "recipe": str(TENSORWISE)}, fp8)


def compared(runs: list[dict[str, Any]], settings: dict[str, Any], fp8: str) -> dict[str, Any]:
    """The gap between the means over seeds, each seed's own, and each twin's."""
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
    means = {kind: fmean(run["validation"] for run in runs if run["kind"] == kind) for kind in ("bfloat16", "twin", "fp8")}
    by = {(run["seed"], run["kind"]): run["validation"] for run in runs}
    gaps = [by[seed, "fp8"] / by[seed, "bfloat16"] - 1 for seed in seeds]
    chance = [by[seed, "twin"] / by[seed, "bfloat16"] - 1 for seed in seeds]
    gap = means["fp8"] / means["bfloat16"] - 1
    return {
        "settings": settings, "layers": fp8, "runs": runs, "validation": means, "seeds": seeds,
        "gap": gap, "gaps": gaps, "chance": chance, "limit": GAP, "met": gap <= GAP,
    }  # fmt: skip


# ---- faults


class _Planted(torch.autograd.Function):
    """The identity, with the first element of what passes set to a factor times the root mean square, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(backward)
        return planted(x, forward)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return planted(gradients[0], ctx.saved_tensors[0]), None, None


def planted(x: Tensor, factor: Tensor) -> Tensor:
    flat = x.reshape(-1)
    value = (factor * flat.float().square().mean().sqrt()).to(x.dtype)
    first = torch.arange(flat.numel(), device=x.device) == flat.numel() // 3
    return torch.where(first & (factor != 0), value, flat).view(x.shape)


class Plant(nn.Module):
    """Plants a fault where its factor isn't 0; changing it compiles nothing again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("activation", torch.zeros(()), persistent=False)
        self.register_buffer("gradient", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _Planted.apply(x, self.activation, self.gradient)


def faults(device: str) -> dict[str, Any]:
    size, (train, _) = FAULTS[device], text()
    model = decoder(size, 0)
    plants, layers = {}, {}
    for i, block in enumerate(model.blocks):
        for name in ("down", "qkv"):
            before, after = Plant(), Plant()
            setattr(block, name, nn.Sequential(before, getattr(block, name), after))
            plants[f"blocks.{i}.{name}"] = before, after
    run = trainer(model, {**size, "steps": 10 * size["steps"]}, device, TENSORWISE)
    more = batches(train, 10**6, size["size"], size["length"], 7)
    counted: list[Tensor] = []
    run.step(next(more))
    read = run.watch.read

    def reading(loss: Tensor, norm: Tensor) -> Any:
        found = read(loss, norm)
        counted.append(found[1])
        return found

    run.watch.read = reading  # type: ignore[method-assign]
    peaks = 0.0
    for _ in range(size["steps"] - 1):
        run.step(next(more))
        peaks = max(peaks, largest_peak(run))
    false = dict(run.bad)
    clean = largest_share(counted)
    layers = {name: run.model.get_submodule(f"{name}.1") for name in plants}
    rows = [plant(run, more, plants[name], layers[name], place, kind, counted)
            | {"layer": name, "place": place, "kind": kind}
            for name in plants for place in PLACES for kind in PLANTED]  # fmt: skip
    wrong = [row for row in rows if row["found"] != (row["kind"] != "1e2") or not row["safe"]]
    return {
        "settings": {**size, "recipe": str(TENSORWISE), "flushed": monitor.FLUSHED, "peak": monitor.PEAK},
        "clean_steps": size["steps"], "false": false, "clean_largest_flushed": clean, "clean_largest_peak": peaks,
        "planted": rows, "wrong": wrong, "met": not wrong and not false,
    }  # fmt: skip


def largest_share(counted: list[Tensor]) -> dict[str, float]:
    """Over steps and layers, the largest share flushed of each tensor."""
    all_ = torch.stack(counted)
    share = all_[..., COUNTS.index("flushed")] / all_[..., 0].clamp(min=1)
    return {name: float(share[:, :, i].max()) for i, name in enumerate(TENSORS)}


def largest_peak(run: FP8Trainer) -> float:
    """The largest of the layers' gradients' largest over mean magnitude in the last step."""
    held = [peak.grad[1] for peak in run.watch.peaks.values() if peak.grad is not None]
    return float(torch.stack(held).max()) if held else 0.0


def plant(
    run: FP8Trainer,
    more: Any,
    pair: tuple[Plant, Plant],
    layer: nn.Module,
    place: str,
    kind: str,
    counted: list[Tensor],
) -> dict[str, Any]:
    """One step with one fault: whether it was found, what became of it, and whether a skipped one left all as it was."""
    factor, before = PLANTED[kind], state(run)
    bad, weight = sum(run.bad.values()), layer.weight.detach().clone()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        if place == "activation":
            pair[0].activation.fill_(factor)  # type: ignore[operator, union-attr]
        elif place == "gradient":
            pair[1].gradient.fill_(factor)  # type: ignore[operator, union-attr]
        else:
            layer.weight[1, 2] = factor * weight.float().square().mean().sqrt()  # type: ignore[index, operator, union-attr]
            before = state(run)
    counted.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BadStep)
        run.step(next(more))
    outcome = run.last_bad if sum(run.bad.values()) > bad else ""
    told = largest_peak(run)
    skipped = bool(outcome) and "skipped" in outcome
    kept = all(same(a, b) for a, b in zip(before, state(run), strict=True))
    with torch.no_grad():
        pair[0].activation.zero_()  # type: ignore[operator, union-attr]
        pair[1].gradient.zero_()  # type: ignore[operator, union-attr]
        if place == "weight":
            layer.weight.copy_(weight)  # type: ignore[operator, union-attr]
    sound = all(bool(p.isfinite().all()) for p in run.model.parameters())
    finite = math.isfinite(factor)
    return {
        "found": bool(outcome), "outcome": "skipped" if skipped else "repaired" if outcome else "applied", "told": outcome,
        "safe": sound and (kept if skipped else finite), "flushed": max(largest_share(counted[:1]).values()), "peak": told if math.isfinite(told) else 0.0,
    }  # fmt: skip


def state(run: FP8Trainer) -> list[Tensor]:
    """Copies of all parameters and the optimiser's tensors."""
    held = [p.detach().clone() for p in run.model.parameters()]
    return held + [t.clone() for kept in run.optimizer.state.values() for t in kept.values() if isinstance(t, Tensor)]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=0.5), b.nan_to_num(nan=0.5)) and torch.equal(a.isnan(), b.isnan())


# ---- resume, policy


def resume(device: str) -> dict[str, Any]:
    size, (train, _) = FAULTS[device], text()
    pairs = list(batches(train, 6, size["size"], size["length"], 3))
    torch.use_deterministic_algorithms(True)
    straight = trainer(decoder(size, 0), size, device, TENSORWISE)
    losses = [straight.step(pair) for pair in pairs]
    first = trainer(decoder(size, 0), size, device, TENSORWISE)
    again = [first.step(pair) for pair in pairs[:3]]
    with tempfile.TemporaryDirectory() as folder:
        first.save(f"{folder}/checkpoint.pt")
        second = trainer(decoder(size, 5), size, device, TENSORWISE)
        second.load(f"{folder}/checkpoint.pt")
    again += [second.step(pair) for pair in pairs[3:]]
    torch.use_deterministic_algorithms(False)
    equal = all(same(a, b) for a, b in zip(state(straight), state(second), strict=True))
    return {"losses_equal": torch.equal(torch.stack(losses), torch.stack(again)), "state_equal": equal, "met": equal}


def policy(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {"skipped": "emulated FP8 has no time"}
    size, (train, _) = SIZES[device], text()
    run = trainer(decoder(size, 0), size, device, AutoMixedPrecision())
    more = batches(train, 12, size["size"], size["length"], 0)
    for _ in range(10):
        run.step(next(more))
    found: dict[str, Any] = {"decisions": str(run.decisions), "layers_in_fp8": len(run.decisions.fp8) if run.decisions else 0}
    if found["layers_in_fp8"]:
        ratio = run.measure(next(more))
        found |= {"measured": [ratio.value, ratio.low, ratio.high], "predicted": run.predicted.value if run.predicted else None}
    print(run.receipt())
    return found


PARTS = {"training": training, "faults": faults, "resume": resume, "policy": policy}


def table(found: dict[str, Any]) -> str:
    rows = []
    if told := found.get("training"):
        gaps, chance = (", ".join(f"{gap:+.2%}" for gap in told[name]) for name in ("gaps", "chance"))
        rows += [("loss gap to bfloat16", f"{told['gap']:+.2%} ({gaps})", f"at most {GAP:.1%}", told["met"])]
        rows.append(("the same of twins without FP8", chance, "", ""))
    if told := found.get("faults"):
        loud = [row["flushed"] for row in told["planted"] if row["kind"] in ("1e5", "1e6") and row["place"] != "gradient"]
        peaks = [row["peak"] for row in told["planted"] if row["kind"] in ("1e5", "1e6") and row["place"] == "gradient"]
        clean = max(told["clean_largest_flushed"].values())
        rows += [
            (
                "faults found",
                f"{sum(r['found'] for r in told['planted'])} of {len(told['planted'])}",
                "all but 1e2",
                told["met"],
            ),
            ("false alarms", f"{sum(told['false'].values())} in {told['clean_steps']} steps", "none", not told["false"]),
            ("flushed: clean, spikes", f"at most {clean:.2g}, at least {min(loud):.2g}", f"{monitor.FLUSHED} between", ""),
            (
                "gradient's peak: clean, spikes",
                f"at most {told['clean_largest_peak']:.3g}, at least {min(peaks):.3g}",
                f"{monitor.PEAK:g} between, or half the elements",
                "",
            ),
        ]
    if told := found.get("resume"):
        rows.append(("resumed run", "equal bits" if told["met"] else "differs", "equal bits", told["met"]))
    return markdown(("what", "found", "bar", "met"), rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["training", "faults", "resume"], help=", ".join(PARTS))
    parser.add_argument("--device", choices=sorted(SIZES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--faults", action="store_true", help="the part faults as well")
    parser.add_argument("--rate", type=float, help="another rate for the part training")
    parser.add_argument(
        "--seed", type=int, nargs="*", help="only these seeds of the part training; processes may share them out"
    )
    parser.add_argument(
        "--merge", type=Path, nargs="*", help="run nothing: join the part training of these files into this one"
    )
    chosen = parser.parse_args()
    if chosen.rate:
        SIZES[chosen.device]["rate"] = chosen.rate
    if unknown := [part for part in chosen.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    path = Path(os.environ.get("OUT", ".")) / f"fp8_language_model.{chosen.device}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if not chosen.merge:
        found["environment"] = environment(chosen.device)
    found["emulated"] = chosen.device == "cpu"
    if chosen.merge:
        whole = [json.loads(file.read_text()) for file in chosen.merge]
        each = [one["training"] for one in whole]
        if any(part["settings"] != each[0]["settings"] for part in each):
            parser.error("--merge takes files of one setting")
        runs = [
            {"git": one["training"].get("environment", one["environment"])["git"], **run}
            for one, part in zip(whole, each, strict=True)
            for run in part["runs"]
        ]
        found["training"] = compared(runs, each[0]["settings"], each[0]["layers"])
        # where they ran, which need not be where the rest did
        found["training"]["environment"] = each[0].get("environment", whole[0]["environment"])
        found.setdefault("environment", whole[0]["environment"])
        path.write_text(json.dumps(found, indent=1) + "\n")
        chosen.parts = []
    for part in dict.fromkeys([*chosen.parts, *(["faults"] if chosen.faults else [])]):
        found[part] = training(chosen.device, chosen.seed or SEEDS) if part == "training" else PARTS[part](chosen.device)
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return 0 if all(found[part].get("met", True) for part in PARTS if part in found) else 1


if __name__ == "__main__":
    sys.exit(main())
