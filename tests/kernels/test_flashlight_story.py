"""The gallery of attentions and what its notebooks show: every variant fused, near misses left alone, blocks as the mask says."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kpt_lab.kernels import flashlight_drawn, flashlight_judged, flashlight_story
from kpt_lab.kernels.flashlight import blocks, gallery

LENGTH = 300  # ends inside of a block


def by_eye(seen: flashlight_story.Seen, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks of a mask over queries and keys are true everywhere, and which somewhere."""
    size = blocks.BLOCK
    rows, columns = (-(-n // size) for n in keep.shape)
    tiles = [[keep[y * size : y * size + size, x * size : x * size + size] for x in range(columns)] for y in range(rows)]
    full = torch.tensor([[bool(t.all()) and t.shape == (size, size) for t in row] for row in tiles])
    return full, torch.tensor([[bool(t.any()) for t in row] for row in tiles])


@pytest.mark.parametrize("variant", gallery.VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_is_fused_and_its_blocks_hold_its_mask(variant):
    seen = flashlight_story.look_at(variant.function, variant.arguments(LENGTH))
    assert len(seen.lowerings) == 1
    assert not seen.refusals
    found = flashlight_story.blocks_of(seen)
    assert found.needed <= found.computed + 1e-9
    assert variant.name in flashlight_drawn.card(variant, seen, found)


@pytest.mark.parametrize("variant", gallery.REFUSED, ids=lambda variant: variant.name)
def test_near_misses_are_refused(variant):
    assert flashlight_story.reason(variant.function, variant.arguments())


@settings(max_examples=8, deadline=None)
@given(window=st.integers(1, 400), length=st.sampled_from((128, 256, 300)))
def test_a_windows_blocks_are_those_of_its_mask(window, length):
    variant = gallery.by_name("sliding_window")
    seen = flashlight_story.look_at(lambda q, k, v: variant.function(q, k, v, window), variant.arguments(length, 1, 1))
    i = torch.arange(length)
    keep = (i[:, None] >= i) & (i[:, None] - i < window)
    found, (full, some) = flashlight_story.blocks_of(seen), by_eye(seen, keep)
    assert torch.equal(found.full, full)
    assert torch.equal(found.full | found.partial, some)
    assert found.needed == pytest.approx(keep.double().mean().item())


def test_errors_are_those_of_a_kernel():
    found = flashlight_story.errors(gallery.by_name("alibi"), 96)
    assert 0 < found.output < 1e-5
    assert 0 < found.gradient < 1e-5
    assert found.lowering.kernel == "blocked"


def test_reading_ends_in_the_expression_that_was_matched():
    def attention(q, k, v, bias):
        return (q @ k.mT / 4 + bias[:, None, :]).softmax(-1) @ v

    args = *torch.randn(3, 3, 2, 24, 16).unbind(), torch.randn(2, 24)
    seen = flashlight_story.look_at(attention, args)
    told = flashlight_story.reading(seen)
    assert [step.becomes for step in told][-1] == "bias[h, k]"
    assert told[0].becomes.endswith("+ bias[h, k]")
    assert flashlight_story.pairs(seen.dynamo, 24, 24)
    assert not flashlight_story.pairs(seen.lowered, 24, 24)
    assert seen.pattern == "softmax over k of [s + bias[h, k] with s · 0.25 for s] · v"


def test_a_letter_stands_for_what_occurs_again():
    variant = gallery.by_name("relative_buckets")
    text = flashlight_story.look_at(variant.function, variant.arguments()).pattern
    assert "; a = " in text
    assert len(text) < 300


def test_the_corpus_says_how_to_record_it_or_what_was_recorded(tmp_path):
    assert flashlight_judged.RECORDS in flashlight_judged.table(tmp_path)
    rows = [
        {"idiom": "a", "near_miss": False, "error": 2e-7, "plain": 1e-7, "right": True},
        {"idiom": "b", "near_miss": False, "refused": "why", "right": False},
        {"idiom": "c", "near_miss": True, "refused": "why", "right": True},
        {"idiom": "d", "near_miss": True, "not_on_device": "why", "right": True},
    ]
    told = {"environment": {"device_name": "D", "torch": "2"}, "dtype": "float32", "idioms": rows}
    (tmp_path / "flashlight_corpus.d.json").write_text(json.dumps(told))
    assert "| D, float32, torch 2 | 1 of 2 | 0 | 1 of 1 |" in flashlight_judged.table(tmp_path)
    assert "| a | 2.0e-07 | 1.0e-07 | 2.00 |" in flashlight_judged.largest(tmp_path)


def test_the_figure_has_a_slider_for_each_mask_and_one_visible_state():
    families = flashlight_drawn.FAMILIES[:2]
    found = flashlight_drawn.looked(256, families)
    figure = flashlight_drawn.masks(found, families)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert sum(trace.visible is True for trace in maps) == 1
    assert [slider.visible for slider in figure.layout.sliders] == [True, False]
    assert len(maps) == sum(len(f.values) for f in families)
    for slider, family in zip(figure.layout.sliders, families, strict=True):
        for step, value in zip(slider.steps, family.values, strict=True):
            shown = [
                trace
                for trace, seen in zip(figure.data, step.args[0]["visible"], strict=True)
                if seen and trace.type == "heatmap"
            ]
            assert [trace.z for trace in shown] == [flashlight_drawn._heat(found[family.name, value]).z]
