"""Transformers' eager models under flashlight, against their own attention implementations; random weights, nothing is downloaded.

    PYTHONPATH=. python benchmarks/flashlight_transformers.py --part llama --seconds 240 --record FILE     # or any of CASES
    PYTHONPATH=. python benchmarks/flashlight_transformers.py --part t5 vit --mode forward --record FILE
    PYTHONPATH=. python benchmarks/flashlight_transformers.py --device cpu --budget 1       # the same paths, small
    PYTHONPATH=. python benchmarks/flashlight_transformers.py --summary FILE                # the table of a record

For each model and mode one cell, all techniques interleaved on the same inputs: the model with attn_implementation "eager" (the
specification), flashlight on it, and the model's own "sdpa" and "flex_attention", each alone and under torch.compile. A mode
is "forward", "backward" (forward and all gradients) or "step" (with an AdamW update). Trials are appended to FILE as they come; no
cell is begun after --seconds. A technique that a model does not support is a row with its reason.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import kpt_lab as kpt
from kpt_lab import baselines, timer
from kpt_lab.core import Technique, Trials, Unsupported, Workload
from kpt_lab.kernels import flashlight
from kpt_lab.ratios import compare

MODES = ("forward", "backward")
Sizes = dict[str, Any]


class Hidden(nn.Module):
    """A model of Transformers from its inputs to its last hidden states."""

    def __init__(self, kind: str, names: tuple[str, ...], settings: Sizes) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(kind, attn_implementation="eager", **settings)
        self.recipe = (kind, names, settings)
        self.model, self.names = AutoModel.from_config(config), names
        self.constants = {} if kind in ("vit", "bert") else {"use_cache": False}

    def __reduce__(self) -> tuple[Any, ...]:
        """Kept as what it is made from: a cell makes a model for each technique, and to unpickle 1.2 GB takes seconds each time."""
        return built, self.recipe

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        if "lengths" in given:
            lengths, place = given.pop("lengths"), torch.arange(given["input_ids"].shape[1], device=given["input_ids"].device)
            given["attention_mask"] = (place < lengths[:, None]).long()
        return self.model(**given, **self.constants).last_hidden_state


def built(*recipe: Any) -> Hidden:
    """The same weights each time on one kind of device, made on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return Hidden(*recipe).eval()


@dataclass(frozen=True)
class Case:
    """A model: its kind in Transformers, its settings, what small replaces on a CPU, and its inputs by (batch, tokens)."""

    kind: str
    settings: Sizes
    small: Sizes
    inputs: Callable[[int, int], dict[str, torch.Tensor]]
    batch: int
    tokens: int

    def made(self, device: str) -> tuple[Hidden, tuple[torch.Tensor, ...]]:
        """The model, in evaluation mode, and one set of inputs."""
        small = device == "cpu"
        inputs = self.inputs(2, 24) if small else self.inputs(self.batch, self.tokens)
        return built(self.kind, tuple(inputs), self.settings | (self.small if small else {})), tuple(inputs.values())


def ids(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 1000, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def text(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Sequences of one length."""
    return {"input_ids": ids(batch, tokens)}


def padded(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Sequences of lengths between half and all of the tokens, padded at their ends.

    Padding before a causal sequence leaves rows without any key: there the model's float64, which Transformers' softmax casts
    to float32, is NaN, and nothing could be checked against it. As lengths, since `measure` rolls integer inputs along their
    last dimension, and a rolled mask has such rows.
    """
    return {"input_ids": ids(batch, tokens), "lengths": torch.linspace(tokens / 2, tokens, batch).long()}


def pairs(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """A padded source and a target of half its length."""
    return padded(batch, tokens) | {"decoder_input_ids": ids(batch, tokens // 2, seed=1)}


def images(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Square images; tokens is the side's length in pixels."""
    return {"pixel_values": torch.randn(batch, 3, tokens, tokens, generator=torch.Generator().manual_seed(0))}


LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
GEMMA = {"hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
BERT = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 6}
T5 = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_heads": 16, "num_layers": 4, "num_decoder_layers": 4, "dropout_rate": 0.0}
MIXTRAL = {
    "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4, "num_local_experts": 8,
    "vocab_size": 32000, "num_hidden_layers": 4, "sliding_window": None,
    "experts_implementation": "eager",  # grouped products have no float64, in which everything is checked
}  # fmt: skip
SMALL = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
GROUPED = SMALL | {"num_key_value_heads": 2, "vocab_size": 1000}

CASES = {
    "llama": Case("llama", LLAMA | {"num_hidden_layers": 4}, GROUPED, text, 1, 4096),
    "llama_padded": Case("llama", LLAMA | {"num_hidden_layers": 4}, GROUPED, padded, 4, 2048),
    "gemma2": Case(
        "gemma2", GEMMA | {"num_hidden_layers": 4, "sliding_window": 1024, "vocab_size": 32000},
        GROUPED | {"head_dim": 12, "sliding_window": 8}, text, 1, 4096,
    ),
    "bert": Case("bert", BERT, SMALL, padded, 32, 512),
    "t5": Case("t5", T5, {"d_model": 48, "d_kv": 12, "d_ff": 64, "num_heads": 4, "vocab_size": 1000}, pairs, 8, 1024),
    "vit": Case("vit", BERT | {"num_hidden_layers": 8}, SMALL | {"image_size": 24, "patch_size": 8}, images, 64, 224),
    "mixtral": Case("mixtral", MIXTRAL, GROUPED | {"num_local_experts": 4}, text, 2, 2048),
}  # fmt: skip


# ---- techniques


def _implementation(fn: Hidden, args: tuple, name: str) -> Hidden:
    kind, config = type(fn.model).__name__, fn.model.config
    if name == "sdpa" and getattr(config, "attn_logit_softcapping", None) is not None:
        raise Unsupported(
            f"{kind} bends its scores, which scaled_dot_product_attention can't; Transformers 5.17 leaves that out"
        )
    try:
        for part in fn.model.modules():  # T5's stacks have configurations of their own
            if hasattr(part, "set_attn_implementation"):
                part.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise Unsupported(f"{kind} has no attention {name!r}: {' '.join(str(error).split())[:200]}") from error
    configs = (getattr(part, "config", None) for part in fn.model.modules())
    kept = {found for one in configs if (found := getattr(one, "_attn_implementation", name)) != name}
    if kept:
        raise Unsupported(f"parts of {kind} keep their attention {', '.join(sorted(map(str, kept)))!r} when {name!r} is set")
    return fn


implementation = Technique(
    "attn_implementation", _implementation, stage="rewrite", replaces=frozenset({"attention"}), baseline=True
)
PARTS = (baselines.eager, flashlight.flashlight, implementation(name="sdpa"), implementation(name="flex_attention"))
TECHNIQUES = (*PARTS, baselines.compiled, *(part >> baselines.compiled for part in PARTS[1:]))


# ---- running


def workload(name: str, case: Case, mode: str, device: str) -> Workload:
    """The model as a Workload; its cost is left out, since counting it would run the model on the CPU."""
    model, inputs = case.made(device)
    return replace(kpt.workload(model, *inputs, name=f"transformers.{name}"), cost=None)(mode=mode)


def run(name: str, mode: str, options: argparse.Namespace) -> Trials:
    """One cell, printed."""
    work = workload(name, CASES[name], mode, options.device)
    chosen = [
        t
        for t in (PARTS if options.alone else TECHNIQUES)
        if not options.techniques or any(word in t.label for word in options.techniques)
    ]
    trials = kpt.measure(
        work, chosen, device=options.device, dtype="bfloat16" if options.device == "cuda" else "float32",
        budget=options.budget, processes=options.processes, limit=options.limit,
    )  # fmt: skip
    show(trials)
    return trials


def show(trials: Trials) -> None:
    """A line for each technique: median time, and the ratio to the fastest of the others' (the cell's best baseline)."""
    for cell in dict.fromkeys(trial.cell for trial in trials):
        rows = Trials(trial for trial in trials if trial.cell == cell)
        first = rows[0]
        print(f"{first.workload} {first.params.get('mode', '')} {first.dtype} {first.device}")
        timed = [t for t in rows.ok if t.process == first.process]
        metric = "wall_time" if all("wall_time" in t.metrics for t in timed) else "time"
        best = min((t for t in timed if t.baseline), key=lambda t: t.metrics[metric].value, default=None)
        for trial in rows:
            if trial.status != "ok":
                print(f"  {trial.label:50s} {trial.status}: {trial.advice[:200]}")
                continue
            ratio = "best baseline"
            if best and best is not trial:
                found = compare(best, trial, metric)  # of times: above 1 the trial is the faster one
                ratio = f"{found.value:.3f}x [{found.low:.3f}, {found.high:.3f}] as fast as {best.label}"
            peak = trial.metrics.get("memory.peak")
            memory = f" {peak.value / 2**30:6.2f} GiB" if peak else ""
            print(f"  {trial.label:50s} {trial.metrics[metric].value * 1e3:9.3f} ms{memory}  {ratio}", flush=True)


def main() -> int:
    """Run the chosen models; one that fails does not stop the others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--part", nargs="*", choices=tuple(CASES), default=[], help="models; all unless given")
    parser.add_argument("--mode", nargs="*", choices=(*MODES, "step"), default=list(MODES))
    parser.add_argument("--techniques", nargs="*", default=[], help="only those whose label holds one of these words")
    parser.add_argument("--alone", action="store_true", help="without those under torch.compile, which takes minutes a model")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of timing for each cell and process")
    parser.add_argument("--processes", type=int, default=0, help="fresh processes for each cell; 0 runs it in this one")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a silent technique is ended")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no cell after so many seconds")
    parser.add_argument("--record", help="the .jsonl to which Trials are appended")
    parser.add_argument("--summary", help="print the table of such a file and end")
    options = parser.parse_args()
    if options.summary:
        show(kpt.load(Path(options.summary)))
        return 0
    start, failed = timer.now(), 0
    for name, mode in ((name, mode) for name in options.part or CASES for mode in options.mode):
        if (spent := (timer.now() - start) / 1e9) > options.seconds:
            print(f"{name} {mode}: not begun, {spent:.0f} s had passed")
            continue
        try:
            trials = run(name, mode, options)
            if options.record:
                kpt.record(trials, Path(options.record))
        except Exception:
            traceback.print_exc()
            failed += 1
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
