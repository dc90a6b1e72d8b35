"""Does FlashLight ever give another result than the code it replaces? Attentions written at random, against float64.

    python benchmarks/flashlight_random.py --seconds 240 --record benchmarks/recorded/flashlight_random.cpu.json
    python benchmarks/flashlight_random.py --inference --first 1000 --count 50     # through FlexAttention's compiled template

Each is drawn from a number: sizes, layout, grouped heads, how products, scale and softmax are written, and up to three steps of
biases, caps, slopes, tables and masks, the masks being trees of conditions over places, padding, documents and given tensors, filled
or added in several ways. An output is right if it is as far from float64 as the code itself, three times that at most, plus three
units of rounding, with NaN in the same places. A refusal is no mistake. What is left out because it is documented to differ:
gradients of rows without any key, and biases of -inf under masks that fill finite numbers. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kpt_lab import timer
from kpt_lab.core import Unsupported
from kpt_lab.environment import environment
from kpt_lab.files import atomically
from kpt_lab.kernels.flashlight import explain, flashlight

Given = dict[str, Tensor]
Mask = Callable[[Given, Tensor, Tensor], Tensor]
Step = Callable[[Tensor, Given, Tensor, Tensor], Tensor]
ROUNDING = 2.0**-23


class Attention:
    """One attention, drawn from a number; called with query, key, value and the tensors that its steps read."""

    def __init__(self, number: int) -> None:
        dice = self.dice = random.Random(number)
        generator = torch.Generator().manual_seed(number)
        self.batch, self.kv_heads, self.groups = dice.randint(1, 3), dice.randint(1, 3), dice.choice([1, 1, 2])
        self.width, self.queries = dice.choice([8, 12, 16]), dice.choice([1, 7, 19, 33])
        self.keys = self.queries if dice.random() < 0.7 else dice.choice([5, 23, 40])
        self.heads, self.infinite = self.kv_heads * self.groups, dice.random() < 0.3
        self.given = self._given(generator)
        self.names = sorted(self.given)
        self.layout = dice.choice(["b h l d", "b l h d"])
        self.scale = dice.choice(["none", "divided", "multiplied", "query", "key", "temperature", "both"])
        self.product = dice.choice(["@", "einsum", "matmul", "bmm"])
        self.softmax = dice.choice(["softmax", "functional", "float32", "exp", "exp without maximum"])
        self.after = dice.choice(["", "", "", "nan_to_num"])
        self.repeat = dice.choice(["repeat_interleave", "expand"])
        steps = [self._step() for _ in range(dice.choice([0, 1, 1, 2, 2, 3]))]
        self.steps = [step for _, step in steps]
        self.title = (
            f"{self.batch} x {self.kv_heads} x {self.groups} heads, {self.queries} x {self.keys}, width {self.width}, {self.layout}; "
            f"scale {self.scale}, {self.product}, {self.softmax} {self.after}: {'; '.join(name for name, _ in steps)}"
        )
        value_width = dice.choice([self.width, 24])
        shapes = (
            (self.heads, self.queries, self.width), (self.kv_heads, self.keys, self.width), (self.kv_heads, self.keys, value_width),
        )  # fmt: skip
        made = [torch.randn(self.batch, *shape, generator=generator) for shape in shapes]
        self.inputs = (
            *(x if self.layout == "b h l d" else x.transpose(1, 2).contiguous() for x in made),
            *map(self.given.get, self.names),
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *tensors: Tensor) -> Tensor:
        query, key, value = self._laid_out(query, key, value)
        weights = self._weights(self._logits(query, key, dict(zip(self.names, tensors, strict=True))))
        return (weights.nan_to_num(0.0) if self.after else weights) @ value

    def has_empty_rows(self) -> bool:
        """Whether a query has no key: all of its scores are filled in, or -inf."""
        query, key, _, *tensors = (x.double() if x.is_floating_point() else x for x in self.inputs)
        query, key, _ = self._laid_out(query, key, key)
        return bool((self._logits(query, key, dict(zip(self.names, tensors, strict=True))).amax(-1) < -1e6).any())

    def _laid_out(self, *operands: Tensor) -> list[Tensor]:
        """Query, key and value as (b, h, l, d), each with a head for each of the query's."""
        query, *others = (x.transpose(1, 2) if self.layout == "b l h d" else x for x in operands)
        return [query, *(self._repeated(x) if self.groups > 1 else x for x in others)]

    def _logits(self, query: Tensor, key: Tensor, given: Given) -> Tensor:
        """What the softmax takes."""
        scores = self._scores(query, key, given["temperature"])
        i, j = torch.arange(query.shape[-2])[:, None], torch.arange(key.shape[-2])[None]
        for step in self.steps:
            scores = step(scores, given, i, j)
        return scores

    def _repeated(self, x: Tensor) -> Tensor:
        if self.repeat == "repeat_interleave":
            return x.repeat_interleave(self.groups, 1)
        return x[:, :, None].expand(-1, -1, self.groups, -1, -1).reshape(x.shape[0], -1, *x.shape[2:])

    def _scores(self, query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
        width = query.shape[-1]
        if self.scale == "query":
            query = query * width**-0.5
        elif self.scale == "key":
            key = key / math.sqrt(width)
        elif self.scale == "both":
            query, key = query * width**-0.25, key * width**-0.25
        elif self.scale == "temperature":
            query = query * temperature[None, :, None, None]
        if self.product == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", query, key)
        elif self.product == "matmul":
            scores = torch.matmul(query, key.transpose(-1, -2))
        elif self.product == "bmm":
            scores = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).mT).view(*query.shape[:3], key.shape[2])
        else:
            scores = query @ key.mT
        if self.scale == "divided":
            return scores / math.sqrt(width)
        return scores * width**-0.5 if self.scale == "multiplied" else scores

    def _weights(self, scores: Tensor) -> Tensor:
        if self.softmax == "softmax":
            return scores.softmax(-1)
        if self.softmax == "functional":
            return F.softmax(scores, dim=3)
        if self.softmax == "float32":
            return F.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True) if self.softmax == "exp" else scores)
        return weights / weights.sum(-1, keepdim=True)

    # ---- what is drawn

    def _given(self, generator: torch.Generator) -> Given:
        b, h, q, k = self.batch, self.heads, self.queries, self.keys

        def some(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) < 0.65

        def whole(top: int, *shape: int) -> Tensor:
            return torch.randint(0, top, shape, generator=generator)

        given = {
            "query documents": whole(3, b, q), "key documents": whole(3, b, k), "kept": some(b, k), "kept as numbers": whole(2, b, k),
            "pairs": some(q, k), "pairs of each sequence": some(b, 1, q, k), "pairs of each head": some(h, q, k), "lengths": whole(k + 1, b),
            "windows": whole(9, h), "slopes": torch.rand(h, generator=generator), "table": torch.randn(h, 16, generator=generator),
            "bias": torch.randn(h, q, k, generator=generator), "key bias": torch.randn(b, k, generator=generator),
            "temperature": torch.rand(h, generator=generator) + 0.5, "gate": torch.randn(b, h, q, generator=generator),
        }  # fmt: skip
        if self.infinite:
            given["bias"] = given["bias"].masked_fill(~some(h, q, k), -math.inf)
            given["bias"][:, ::3] = -math.inf
            given["key bias"] = given["key bias"].masked_fill(~some(b, k), -math.inf)
        return given

    def _conditions(self) -> dict[str, Mask]:
        dice = self.dice
        window, prefix, stride, chunk, ahead = (
            dice.randint(1, 12),
            dice.randint(0, self.keys),
            dice.randint(1, 4),
            dice.randint(2, 9),
            dice.randint(0, 3),
        )
        return {
            "i >= j": lambda t, i, j: i >= j,
            f"j <= i + {ahead}": lambda t, i, j: j <= i + ahead,
            f"i - j < {window}": lambda t, i, j: i - j < window,
            f"|i - j| <= {window}": lambda t, i, j: (i - j).abs() <= window,
            f"j < {prefix}": lambda t, i, j: (j < prefix).expand(i.shape[0], -1),
            f"(i - j) % {stride} == 0": lambda t, i, j: (i - j) % stride == 0,
            f"i // {chunk} == j // {chunk}": lambda t, i, j: i // chunk == torch.div(j, chunk, rounding_mode="floor"),
            "one document": lambda t, i, j: t["query documents"][:, None, :, None] == t["key documents"][:, None, None],
            "a document's queries": lambda t, i, j: (t["query documents"] > 1)[:, None, :, None],
            "kept": lambda t, i, j: t["kept"][:, None, None],
            "kept as numbers": lambda t, i, j: (t["kept as numbers"] != 0)[:, None, None],
            "pairs": lambda t, i, j: t["pairs"],
            "pairs of each sequence": lambda t, i, j: t["pairs of each sequence"],
            "pairs of each head": lambda t, i, j: t["pairs of each head"][None],
            "lengths": lambda t, i, j: j[None, None] < t["lengths"].view(-1, 1, 1, 1),
            "windows of heads": lambda t, i, j: (i - j)[None] < t["windows"].view(-1, 1, 1),
        }

    def _mask(self, depth: int) -> tuple[str, Mask]:
        if depth == 0 or self.dice.random() < 0.35:
            return self.dice.choice(list(self._conditions().items()))
        name, inner = self._mask(depth - 1)
        joined: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "&": torch.Tensor.__and__, "|": torch.Tensor.__or__, "and": torch.logical_and, "or": torch.logical_or, "^": torch.Tensor.__xor__,
        }  # fmt: skip
        kind = self.dice.choice(["~", "&", "&", "|", "and", "or", "^"])
        if kind == "~":
            return f"~({name})", lambda t, i, j: ~inner(t, i, j)
        other_name, other = self._mask(depth - 1)
        return f"({name} {kind} {other_name})", lambda t, i, j: joined[kind](inner(t, i, j), other(t, i, j))

    def _masked(self) -> tuple[str, Step]:
        name, mask = self._mask(self.dice.choice([0, 1, 1, 2]))
        fill: float | None = -math.inf if self.infinite else self.dice.choice([-math.inf, -1e9, -1e8, None])
        way = self.dice.choice(["masked_fill", "where", "added", "added tensor", "subtracted"])
        if fill == -math.inf and way not in ("masked_fill", "where"):
            way = "masked_fill"

        def step(scores: Tensor, given: Given, i: Tensor, j: Tensor) -> Tensor:
            seen, low = mask(given, i, j), torch.finfo(scores.dtype).min if fill is None else fill
            if way == "masked_fill":
                return scores.masked_fill(~seen, low)
            if way == "where":
                return torch.where(seen, scores, low)
            if way == "added":
                return scores + (1.0 - seen.to(scores.dtype)) * low
            if way == "subtracted":
                return scores - seen.logical_not().to(scores.dtype) * -low
            return scores + torch.zeros(seen.shape, dtype=scores.dtype).masked_fill(seen.logical_not(), low)

        return f"{way} {'lowest' if fill is None else fill} where not {name}", step

    def _step(self) -> tuple[str, Step]:
        cap = self.dice.choice([1.0, 5.0, 30.0])
        plain: dict[str, Step] = {
            f"cap {cap}": lambda s, t, i, j: cap * torch.tanh(s / cap),
            "slopes": lambda s, t, i, j: s + t["slopes"].view(-1, 1, 1) * (j - i),
            "table": lambda s, t, i, j: s + t["table"][:, (i - j).clamp(-7, 8) + 7],
            "bias": lambda s, t, i, j: s + t["bias"],
            "key bias": lambda s, t, i, j: s + t["key bias"][:, None, None],
            "gate": lambda s, t, i, j: s * t["gate"][..., None].sigmoid(),
            "halved": lambda s, t, i, j: s * 0.5 - 1.0,
        }
        return self._masked() if self.dice.random() < 0.4 else self.dice.choice(list(plain.items()))


# ---- compared


def results(fn: Callable[..., Tensor], args: tuple, training: bool) -> list[Tensor]:
    """The output and, in training, the gradients of all inputs of floating point, in directions of their own."""
    if not training:
        with torch.no_grad():
            return [fn(*args)]
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in args]
    output = fn(*inputs)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    return [output.detach(), *(x.grad for x in inputs if x.grad is not None)]


def verdict(found: list[Tensor], plain: list[Tensor], exact: list[Tensor]) -> str:
    """ "right", or what is wrong; a row without a key, whose gradients differ by design, shows as a gradient of NaN or of rounding."""
    for which, (ours, theirs, wanted) in enumerate(zip(found, plain, exact, strict=True)):
        if not torch.equal(ours.isnan(), theirs.isnan()):
            return "NaN in other places" if which == 0 else "a gradient has NaN in other places"
        both = ~(wanted.isnan() | theirs.isnan())
        if both.any():
            error, own = (float((x.double() - wanted)[both].abs().max()) for x in (ours, theirs))
            if error > 3 * own + 3 * ROUNDING * 8 * (1 + float(wanted[both].abs().max())):
                return f"off by {error:.1e}, the code itself by {own:.1e}" if which == 0 else "a gradient is off"
    return "right"


def judged(attention: Attention, training: bool) -> tuple[str, str]:
    """What became of one, "fused by ..." or "refused", and the verdict on it or the reason."""
    torch.compiler.reset()
    wide = tuple(x.double() if x.is_floating_point() else x for x in attention.inputs)
    given = tuple(x.clone().requires_grad_(training and x.is_floating_point()) for x in attention.inputs)
    try:
        with torch.set_grad_enabled(training):
            fused = flashlight.apply(attention.__call__, given)
    except Unsupported as error:
        return "refused", str(error).removeprefix("no attention was fused: ")
    kernels = sorted({entry.lowering.kernel for entry in explain(fused).entries if entry.lowering})
    each = [
        results(fn, args, training)
        for fn, args in ((fused, attention.inputs), (attention, attention.inputs), (attention, wide))
    ]
    return f"fused by {' and '.join(kernels)}", verdict(*each)


def main() -> int:
    """Draw, judge and count; 1 where an output was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the first number")
    parser.add_argument("--count", type=int, default=10**9, help="how many, at most")
    parser.add_argument("--seconds", type=float, default=120.0, help="begin none after so many")
    parser.add_argument("--inference", action="store_true", help="without gradients: each is compiled for itself, some seconds")
    parser.add_argument("--record", type=Path, help="the JSON to write")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    start, outcomes, reasons, wrong = timer.now(), Counter[str](), Counter[str](), []
    gradients = 0
    for number in range(asked.first, asked.first + asked.count):
        if (timer.now() - start) / 1e9 > asked.seconds:
            break
        attention = Attention(number)
        became, told = judged(attention, not asked.inference)
        outcomes[became] += 1
        if became == "refused":
            reasons[told.split(":")[0][:100]] += 1
        elif "gradient" in told and attention.has_empty_rows():
            gradients += 1
        elif told != "right":
            wrong.append({"number": number, "attention": attention.title, "verdict": told})
            print(f"{number}: {told}: {attention.title}", flush=True)
    found: dict[str, Any] = {
        "environment": environment("cpu"), "mode": "inference" if asked.inference else "training", "first": asked.first,
        "attentions": outcomes.total(), "fused": outcomes.total() - outcomes["refused"], "outcomes": dict(outcomes), "wrong": wrong,
        "wrong_count": len(wrong), "gradients_of_empty_rows": gradients, "refused_because": dict(reasons.most_common()),
    }  # fmt: skip
    if asked.record:
        atomically(asked.record, lambda file: file.write((json.dumps(found, indent=1) + "\n").encode()))
    print(
        json.dumps({key: found[key] for key in ("attentions", "fused", "outcomes", "wrong_count", "gradients_of_empty_rows")})
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
