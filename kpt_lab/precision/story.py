"""The recorded training of the small language model as sentences and tables, for the notebook: every figure comes from the record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kpt_lab import tables

HOW = "`python benchmarks/fp8_language_model.py --device cuda training faults resume policy` records it on a GPU with FP8."
Record = Mapping[str, Any]


def recorded(path: str | Path) -> Record:
    """What `benchmarks/fp8_language_model.py` wrote there; empty where nothing is recorded yet."""
    place = Path(path)
    return json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}


def _missing(part: str) -> str:
    return f"The {part} is not recorded yet: {HOW}"


def _where(record: Record) -> str:
    env = record["environment"]
    return f"{env['device_name']}, torch {env['torch']}"


def answer(record: Record) -> str:
    """The loss gap, in a sentence."""
    told = record.get("training")
    if not told:
        return _missing("training")
    verdict = "within" if told["met"] else "beyond"
    size = told["settings"]
    return (
        f"**Over {len(told['gaps'])} seeds the loss on unseen text is {told['gap']:+.2%} beside `bfloat16`'s, {verdict} the limit of "
        f"{told['limit']:.1%}**: {size['layers']} blocks of width {size['width']}, {size['steps']} steps, {told['layers']} ({_where(record)})."
    )


def losses(record: Record) -> str:
    """A table of the runs: seed, the two losses, the gap."""
    told = record.get("training")
    if not told:
        return _missing("training")
    by = {(run["seed"], run["kind"]): run["validation"] for run in told["runs"]}
    seeds = list(dict.fromkeys(run["seed"] for run in told["runs"]))
    rows: list[Sequence[Any]] = [
        (seed, f"{by[seed, 'bfloat16']:.4f}", f"{by[seed, 'fp8']:.4f}", f"{gap:+.2%}")
        for seed, gap in zip(seeds, told["gaps"], strict=True)
    ]
    rows.append(("mean", f"{told['validation']['bfloat16']:.4f}", f"{told['validation']['fp8']:.4f}", f"{told['gap']:+.2%}"))
    table = tables.markdown(("seed", "bfloat16", "FP8", "gap"), rows)
    if not (chance := told.get("chance")):
        return table
    apart = ", ".join(f"{gap:+.2%}" for gap in chance)
    return f"{table}\n\nTwins without FP8, whose first weights were rounded once, differ by {apart}: what chance alone does."


def faults(record: Record) -> str:
    """A table of what was planted: how often it was found, what became of the step, whether anything bad was applied."""
    told = record.get("faults")
    if not told:
        return _missing("search for faults")
    rows = []
    for place, kind in dict.fromkeys((row["place"], row["kind"]) for row in told["planted"]):
        group = [row for row in told["planted"] if (row["place"], row["kind"]) == (place, kind)]
        outcomes = ", ".join(sorted({row["outcome"] for row in group}))
        safe = "no" if all(row["safe"] for row in group) else "yes"
        rows.append((place, kind, f"{sum(row['found'] for row in group)} of {len(group)}", outcomes, safe))
    head = f"{sum(told['false'].values())} of {told['clean_steps']} clean steps were called bad."
    return f"{head}\n\n{tables.markdown(('where', 'what', 'found', 'the step was', 'a bad one applied'), rows)}"


def chosen(record: Record) -> str:
    """What the policy chose for the recorded model, and the whole step's ratio, predicted and measured."""
    told = record.get("policy")
    if not told or "decisions" not in told:
        return _missing("policy's choice")
    text = f"```\n{told['decisions']}\n```"
    if not told["layers_in_fp8"]:
        return f"{text}\n\nNo layer gained, so the model stayed in `bfloat16`."
    value, low, high = told["measured"]
    expected = f"{told['predicted']:.2f}x predicted from the layers, " if told["predicted"] else ""
    return f"{text}\n\nThe whole step: {expected}{value:.2f}x [{low:.2f}, {high:.2f}] measured."


def ledger(record: Record) -> str:
    """One line for each claim: what stands behind it, and what was not shown."""
    rows = []
    if told := record.get("training"):
        shown = f"{told['gap']:+.2%} over {len(told['gaps'])} seeds, each {', '.join(f'{gap:+.2%}' for gap in told['gaps'])}"
        rows.append(("FP8 learns as well", shown, "longer training, wider models, other text"))
    if told := record.get("faults"):
        wrong = len(told["wrong"])
        shown = f"{len(told['planted'])} planted, {wrong} judged wrongly, {sum(told['false'].values())} false alarms"
        rows.append(("bad numbers are found", shown, "faults outside linear layers, beyond loss and gradient norm"))
    if told := record.get("resume"):
        rows.append(("a resumed run has equal bits", "yes" if told["met"] else "no", "another GPU or release of torch"))
    return tables.markdown(("claim", "evidence", "not shown"), rows) if rows else _missing("evidence")


def curves(losses: Mapping[str, Sequence[float]]) -> Any:
    """A Plotly figure of losses over steps, one line for each name."""
    import plotly.graph_objects as go

    figure = go.Figure([go.Scatter(y=list(values), name=name, mode="lines") for name, values in losses.items()])
    return figure.update_layout(xaxis_title="step", yaxis_title="loss, nats a byte", height=360, template="plotly_white")
