"""Which words of a sentence are a figure: a ratio, percentage, time, rate, memory amount, energy or accuracy as a result.

Limits and settings ("under 60 s", "at most 2%", "a budget of 10 s"), sizes, counts and levels are none. Where it can't be told, it
is a figure: a sentence is sooner written anew than a wrong number found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kpt_lab.claims.prose import Sentence


class Figure(NamedTuple):
    """The words of a figure, what kind it is, and where it stands in its sentence."""

    text: str
    kind: str
    start: int
    end: int


# ---- the vocabulary

_WORDS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|dozen"
)
_WORD = rf"(?i:\b(?:{_WORDS})(?:[- ](?:{_WORDS}))*(?:\s+and\s+a\s+half)?\b)"
_DIGITS = r"(?<![A-Za-z_\d.])(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
_DECIMAL = r"(?<![A-Za-z_\d.])(?:\d*\.\d+(?:[eE][+-]?\d+)?|\d+[eE]-?\d+)"
_NUMBER = rf"(?:{_DIGITS}|{_WORD})"
_RANGE = rf"(?:{_NUMBER}\s?(?:-|–|to|and|or)\s?)?{_NUMBER}"
_RESULT_NOUN = (
    r"(?i:speed|throughput|bandwidth|performance|(?:run|wall)?-?\s?times?|runtime|latency|memory|energy|power|accuracy|footprint|"
    r"costs?|rate|utili[sz]ation|efficiency|loss|errors?|traffic|overhead|perplexity|duration)"
)
_COMPARED = (
    r"(?i:faster|slower|quicker|less|more|fewer|smaller|larger|bigger|lower|higher|better|worse|cheaper|shorter|longer|greater)"
)
_SPEAKS = re.compile(
    rf"\b(?:{_RESULT_NOUN}|{_COMPARED}|(?i:fast|slow|quick|speed-?\s?ups?|speeds|sped|accelerat\w+|sav(?:es?|ed|ing)s?|reduc\w+|improv\w+|gain\w*|peak|bound|"
    r"roofline|ceiling|baselines?|eager|beats?|outperform\w*|accurate|drops?|cuts?|wins?|loses?))\b"
)
_COUNTED = (
    r"(?i:runs?|cases|experiments|trials|cells|rows|columns|cols|tests|seeds|inputs|weights|values|elements|samples|calls|files|"
    r"lines|intervals|processes|blocks|draws|parameters|readers|work|the time)"
)

# ---- what makes it a limit or a setting

_NORM = re.compile(r"(?i)\b(?:must|should|shall|ha(?:s|ve) to|may not|required to be|cannot exceed)\b[^,;:—]*$")
_FILL = r"(?:(?:about|a|an|the|some|of|is|to|at|around)\s+)*$"
_AT_MOST = re.compile(
    rf"(?i)(?:\b(?:at most|no more than|not more than|not exceed|limit(?:ed|s)?|maximum|budget|timeout|threshold|margin|tolerance|"
    rf"deadline|allow(?:ed|s)?|capped)|[<≤])\W*\s*{_FILL}"
)
_BELOW = re.compile(rf"(?i)(?:\b(?:under|below|less than|fewer than|within|until|up to)|[<≤])\s*{_FILL}")
_AT_LEAST = re.compile(rf"(?i)(?:\b(?:at least|above|or more|beyond)|[>≥])\s*{_FILL}")
_WAITS = re.compile(
    rf"(?i)\b(?:every|each|after|wait(?:s|ed)?|sleeps?|for|first|last|next|past|(?:interval|pause|period)s? of|--\w+)\s*{_FILL}"
)
_SET = re.compile(
    r"(?i)^[\s-]*(?:\w+\s+)?(?:budget|timeout|limit|deadline|apart|old|ago|of timing|per cell|a cell|window|pause|delay|threshold|"
    r"margin|tolerance)\b"
)
_LEVEL = re.compile(
    rf"(?i)^\s*(?:confidence|intervals?|level|quantile|percentile|CI\b|sparsity|sparse|dense|dropout|significance|margin|limit|"
    rf"tolerance|budget|threshold|of\s+(?:all\s+|the\s+|its\s+|these\s+)?(?:{_COUNTED}|\d)|(?:more|less|fewer)\s+{_COUNTED}\b)"
)
_DEVICES = re.compile(
    rf"^\s?(?:NVIDIA\s|AMD\s|Intel\s)?(?:[A-Z]+\d{{2,4}}\w*|GPUs?\b|CPUs?\b|cores?\b|nodes?\b)(?!\s+(?:{_RESULT_NOUN}|speed))"
)

Judge = Callable[[re.Match[str], str, str, str], bool]


def _normal(before: str) -> bool:
    return bool(_NORM.search(before) or _AT_MOST.search(before))


def _ratio(match: re.Match[str], before: str, after: str, context: str) -> bool:
    one = re.fullmatch(r"(?i)1\s?[x×]|[x×]\s?1|speed-?up.*\b(?:one|1)", match[0].strip())
    devices = _DEVICES.match(after) and "." not in match[0]
    return not (one or _normal(before) or devices)


def _spoken(match: re.Match[str], before: str, after: str, context: str) -> bool:
    return bool(_SPEAKS.search(context)) and not _normal(before)


def _percentage(match: re.Match[str], before: str, after: str, context: str) -> bool:
    if _LEVEL.match(after) or _normal(before):
        return False
    near = rf"(?i)\s*(?:{_COMPARED}\b|(?:of|from)\s+(?:the\s+|its\s+|a\s+)?(?:\w+'s\s+)?(?:peak|bound|roofline|copy|eager))"
    return bool(re.match(near, after)) or not _BELOW.search(before)


def _time(match: re.Match[str], before: str, after: str, context: str) -> bool:
    if _normal(before) or _SET.match(after):
        return False
    long = not re.search(r"(?i)(?:[nuµm]s|nano\w*|micro\w*|milli\w*)$", match[0])
    waits = _WAITS.search(before)
    return not ((long and _BELOW.search(before)) or (waits and (long or waits[0].split()[0].lower() != "for")))


def _amount(match: re.Match[str], before: str, after: str, context: str) -> bool:
    results = re.search(
        r"(?i)\b(?:us(?:es?|ed|ing)|needs?|takes?|peaks?|footprint|memory|consum\w+|allocat\w+|sav\w+|less|fewer|more|reduc\w+|"
        r"instead of|drops?|grows?|cuts?|holds?|held|down)\b",
        context,
    )
    if re.match(r"\s+per\s+(?:element|value|number|weight|parameter|row|item|word)\b", after):
        return False
    return bool(results) and not (_normal(before) or _BELOW.search(before) or _AT_LEAST.search(before))


def _plain(match: re.Match[str], before: str, after: str, context: str) -> bool:
    return not _normal(before)


_FRACTION = (
    r"(?i:\b(?:a|one|two|three|four|nine)[- ](?:half|halves|thirds?|quarters?|fifths?|sixths?|eighths?|tenths?|hundredths?))"
)
_PER = r"(?:s|sec|seconds?|ms|milliseconds?|min|minutes?|h|hours?|W|watts?|J|joules?)"
_RULES: tuple[tuple[str, str, Judge], ...] = (
    ("ratio", rf"{_RANGE}\s?(?:[xX]|×|✕)(?!\w)(?!\s*\d)", _ratio),
    ("ratio", r"(?<![^\s(~≈])(?<!\d\s)(?<!PCIe )[x×](?!(?:86|64|1)(?!\.?\d))\d+(?:\.\d+)?(?![\w×])", _ratio),
    ("ratio", rf"{_DECIMAL}\s+(?i:times)\b|{_WORD}(?<=half)\s+(?i:times)\b", _ratio),
    ("ratio", rf"{_RANGE}[- ](?i:times)\s+(?:as\s+\w+|{_COMPARED}|(?:the|its)\s+(?:\w+\s+)?{_RESULT_NOUN}|(?i:speed-?ups?|improvement))", _spoken),
    ("ratio", rf"(?:{_DIGITS}[- ]?|\b(?i:{_WORDS}|many|mani)[- ]?)(?<!mani)fold\b(?!\s+cross)", _ratio),
    ("ratio", r"(?i:\b(?:twice|thrice|half|double))\s+as\s+(?i:fast|slow|quick|efficient|accurate|expensive|cheap|quickly|slowly|long)\b", _ratio),
    ("ratio", rf"(?i:\b(?:twice|thrice|half|double|triple|quadruple))\s+(?:as\s+\w+\s+|of\s+)?(?:the\s+|its\s+|their\s+|\w+'s\s+)?(?:\w+\s+)?{_RESULT_NOUN}\b", _ratio),
    ("ratio", rf"(?i:\b(?:doubl|halv|tripl|quadrupl)(?:e|es|ed|ing))\b(?:\s+[\w'-]+){{0,4}}?\s+{_RESULT_NOUN}\b", _ratio),
    ("ratio", rf"\b{_RESULT_NOUN}\s+(?:\w+\s+){{0,3}}?(?i:doubles|doubled|halves|halved|triples|tripled|quadruples|quadrupled)\b", _ratio),
    ("ratio", r"(?i:\b(?:in|by)\s+(?:half|two[- ]thirds|three[- ]quarters))\b", _spoken),
    ("ratio", rf"(?:{_NUMBER}|(?i:\b(?:an|several|many|some)))\s+(?i:orders?\s+of\s+magnitude)", _ratio),
    ("ratio", rf"{_FRACTION}\s+(?:of\s+(?:the\s+|its\s+)?(?:[\w']+\s+)?{_RESULT_NOUN}\b|{_COMPARED}\b|off\b)", _ratio),
    ("ratio", rf"(?i:\bspeed-?\s?ups?)(?:\s*(?:of|is|was|were|[:=≈~]|by|to|up|about|around|from|reach\w*))*\s*{_RANGE}\b(?!\s*(?:of\s+{_NUMBER}|techniques|cells|processes))", _ratio),
    ("ratio", rf"(?i:\bfactors?\s+(?:of\s+)?|\b{_COMPARED}\s+by\s+){_RANGE}\b(?!\s?(?:%|percent))", _spoken),
    ("ratio", rf"{_DECIMAL}\s+(?i:speed-?up)\b", _ratio),
    ("ratio", rf"(?<!\d)\d+/\d+\s+(?:of\s+)?(?:the\s+|its\s+)?(?:[\w']+\s+)?{_RESULT_NOUN}\b", _ratio),
    ("rate", rf"(?i:\b(?:throughput|bandwidth|latency|runtime))\s+(?i:of|is|was|reaches|at)\s+(?i:about\s+|around\s+|only\s+)?{_RANGE}", _plain),
    ("accuracy", rf"{_DECIMAL}\s+(?i:accuracy|perplexity|bleu|mAP)\b", _plain),
    ("percentage", rf"{_RANGE}[\s-]?(?:%|(?i:per\s?cent)\b)", _percentage),
    ("rate", rf"{_RANGE}\s?(?:(?i:million|billion|thousand)\s+)?[A-Za-z]{{0,12}}\s?(?:/\s?{_PER}|\s+(?i:per|a|each|every)\s+(?i:second|millisecond|minute|hour|watt|joule))\b", _plain),
    ("rate", rf"{_RANGE}\s?(?:[kKMGTPE]?(?:FLOPS|OPS|Bps|bps)|[kKMGTPE](?:FLOPs|flops)|(?i:giga|tera|peta|exa)flops|(?i:QPS|fps|it/s))\b", _plain),
    ("time", rf"{_RANGE}[\s-]?(?:(?:[nuµm]s|sec|min|h|hrs?)\b|(?i:(?:nano|micro|milli)?seconds?|minutes?|hours?)\b)", _time),
    ("time", r"(?<![A-Za-z_\d.])\d{1,3}(?:,\d{3})*(?:\.\d+)?\ss\b|(?<![A-Za-z_\d.])\d{1,3}(?:\.\d+)?s\b", _time),
    ("memory", rf"{_RANGE}[\s-]?(?:[kKMGT]i?B|(?i:(?:kilo|mega|giga|tera)?bytes?)|B)\b(?!\s?/)", _amount),
    ("energy", rf"{_RANGE}\s?(?:[fpnuµmk]?J|[uµmkM]?Wh?|(?i:(?:milli|micro|pico|nano|femto|kilo)?(?:joules?|watts?(?:-hours?)?)))\b", _plain),
    ("accuracy", rf"(?i:\b(?:accuracy|perplexity|ppl|bleu|rouge|mmlu|score|f1|psnr|snr|auc|fidelity|top-[15]|r?mse|wer))\b(?:\s+[a-z]+){{0,3}}?\s*[:=≈~]?\s*{_RANGE}\b(?!\s?(?:%|percent))", _plain),
    ("accuracy", rf"(?i:\b(?:errors?|loss|quality))\s+(?:(?:of|is|was|at|to|by|only|just|about)\s+)*[:=≈~]?\s*{_DECIMAL}", _plain),
    ("accuracy", rf"{_RANGE}[\s-](?i:(?:percentage\s+)?points?)\b|{_RANGE}\s?dB\b", _spoken),
)  # fmt: skip
_COMPILED = tuple((kind, re.compile(pattern), judge) for kind, pattern, judge in _RULES)

_HEADS = re.compile(
    rf"\b(?:{_RESULT_NOUN}|(?i:speed-?ups?|faster|slower|gain|ratio|over eager))\b|"
    r"(?:^|[\s(\[,])(?:[nuµm]?s|[kKMGT]i?B(?:/s)?|[kKMGTP]?FLOP(?:S|/s)|tokens/s|[pnµm]?J|W|x|×)(?:$|[\s)\],])"
)
_BARE = re.compile(rf"[~≈+-]?\s*{_DIGITS}(?:\s*(?:±|to|-|–|/)\s*{_DIGITS})?\s*(?:\[[^\]]*\])?")
_QUOTATION = re.compile(r"\(quoted from\s+([^()]*(?:\([^()]*\)[^()]*)*)\)", re.IGNORECASE)
_CLAUSE = re.compile(r"[;:—]|\s[-–]\s|,?\s+(?:but|while|whereas|yet|ours|we|our|here)\s", re.IGNORECASE)


def find(sentence: Sentence) -> tuple[list[Figure], int]:
    """The figures of a sentence without a source, and how many it quotes: "4.2x (quoted from Dao 2022, table 3)"."""
    text = sentence.text
    found = list(_distinct(_figures(text, sentence.header)))
    open_ = [figure for figure in found if not _is_quoted(text, figure)]
    return open_, len(found) - len(open_)


def _figures(text: str, header: str) -> Iterator[Figure]:
    context = f"{header}: {text}" if header else text
    shown = _QUOTATION.sub(lambda m: " " * len(m[0]), text)  # years and tables of the source are none
    if header and _HEADS.search(header) and _BARE.fullmatch(shown.strip()):
        yield Figure(text.strip(), "number under such a heading", 0, len(text))
    for kind, pattern, judge in _COMPILED:
        for match in pattern.finditer(shown):
            if judge(match, shown[: match.start()], shown[match.end() :], context):
                yield Figure(" ".join(match[0].split()), kind, match.start(), match.end())


def _distinct(found: Iterator[Figure]) -> Iterator[Figure]:
    """Each figure once, by its first rule, in the order of the sentence."""
    kept: list[Figure] = []
    for figure in found:
        if all(figure.end <= other.start or figure.start >= other.end for other in kept):
            kept.append(figure)
    yield from sorted(kept, key=lambda figure: figure.start)


def _is_quoted(text: str, figure: Figure) -> bool:
    """Whether "(quoted from SOURCE)" follows in the figure's own clause."""
    for quotation in _QUOTATION.finditer(text):
        between = text[figure.end : quotation.start()]
        if quotation.start() >= figure.end and len(re.findall(r"[A-Za-z]", quotation[1])) >= 3:
            return not (_CLAUSE.search(between) or _QUOTATION.search(between))
    return False
