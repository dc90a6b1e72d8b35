"""Attentions that a careless matcher gets wrong: refusing them is allowed, another result is not.

Masks here leave rows without any key, fills meet functions that lift them again, heads are permuted, gradients are stopped.
"""

import torch
from corpus import Collection, qkv
from torch.nn import functional as F

collection = Collection()
INF = float("inf")


def trap(arguments=None, **fields):
    return collection("", arguments or qkv(), **fields)


def scores(q, k):
    return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5


def attend(s, v):
    return s.softmax(-1) @ v


def masked(draw):
    """Query, key, value and a mask [b, 1, q, k] with rows that are empty."""
    mask = draw.boolean(2, 1, 19, 19)
    mask[:, :, 3:6] = False
    return *qkv()(draw), mask


def two_masks(draw):
    """The first mask has empty rows, the second none."""
    return *masked(draw), draw.boolean(2, 1, 19, 19)


# ---- fills that are no masks, or no longer


@trap(masked)
def softcap_lifts_the_fill(q, k, v, mask):
    return attend(torch.tanh(scores(q, k).masked_fill(~mask, -1e9) / 5) * 5, v)


@trap(masked)
def clamp_lifts_the_fill(q, k, v, mask):
    return attend(scores(q, k).masked_fill(~mask, -INF).clamp(min=-3.0), v)


@trap(masked)
def scale_lifts_the_fill(q, k, v, mask):
    return attend(scores(q, k).masked_fill(~mask, -1e4) * 1e-4, v)


@trap(masked)
def sign_turns_the_fill(q, k, v, mask):
    return attend(-(scores(q, k).masked_fill(~mask, -1e9)), v)


@trap(masked)
def fill_of_plus_infinity_turned(q, k, v, mask):
    return attend(-(scores(q, k).masked_fill(~mask, INF)), v)


@trap(masked)
def fill_of_0(q, k, v, mask):
    return attend(scores(q, k).masked_fill(~mask, 0.0), v)


@trap(masked)
def fill_of_minus_5(q, k, v, mask):
    return attend(torch.where(mask, scores(q, k), -5.0), v)


@trap(masked)
def scores_times_mask(q, k, v, mask):
    return attend(scores(q, k) * mask, v)


@trap(masked)
def logarithm_of_a_small_number(q, k, v, mask):
    return attend(scores(q, k) + torch.log(mask.to(q.dtype) + 1e-3), v)


@trap(lambda draw: (*masked(draw), draw(1) - 5))
def fill_that_is_captured(q, k, v, mask, fill):
    return attend(torch.where(mask, scores(q, k), fill), v)


@trap(masked)
def bias_undoes_the_fill(q, k, v, mask):
    return attend(scores(q, k).masked_fill(~mask, -1e9) + 1e9, v)


@trap(masked)
def mask_turned_in_place(q, k, v, mask):
    mask = mask.clone()
    s = scores(q, k).masked_fill(mask, -1e9)
    mask.logical_not_()
    return attend(s.masked_fill(mask[:, :, :1], -1e9), v)


# ---- rows without keys


@trap(masked)
def empty_rows_infinite(q, k, v, mask):
    return attend(scores(q, k).masked_fill(~mask, -INF), v)


@trap(masked)
def empty_rows_added(q, k, v, mask):
    return attend(scores(q, k) + (1.0 - mask.to(q.dtype)) * -10000.0, v)


@trap(masked)
def empty_rows_added_more(q, k, v, mask):
    return attend(scores(q, k) + torch.where(mask, 0.0, -1e9).to(q.dtype), v)


@trap(two_masks)
def two_fills(q, k, v, mask, other):
    return attend(scores(q, k).masked_fill(~mask, -1e9).masked_fill(~other, -INF), v)


@trap(two_masks)
def two_fills_otherwise(q, k, v, mask, other):
    return attend(scores(q, k).masked_fill(~other, -INF).masked_fill(~mask, -1e9), v)


@trap(two_masks)
def two_finite_fills(q, k, v, mask, other):
    return attend(scores(q, k).masked_fill(~mask, -1e9).masked_fill(~other, -1e4), v)


@trap(two_masks)
def two_added_fills(q, k, v, mask, other):
    s = scores(q, k) + (1.0 - mask.to(q.dtype)) * -10000.0
    return attend(s + (1.0 - other.to(q.dtype)) * -10000.0, v)


@trap(two_masks)
def two_equal_fills(q, k, v, mask, other):
    return attend(scores(q, k).masked_fill(~mask, -1e9).masked_fill(~other, -1e9), v)


@trap(lambda draw: (*masked(draw), draw(1, 3, 19, 19)))
def bias_after_a_finite_fill(q, k, v, mask, bias):
    return attend(scores(q, k).masked_fill(~mask, -1e4) + 8 * bias, v)


@trap(lambda draw: (*masked(draw), draw(1, 3, 19, 19)))
def large_bias_after_a_finite_fill(q, k, v, mask, bias):
    return attend(scores(q, k).masked_fill(~mask, -1e4) + 1e4 * bias, v)


@trap(masked)
def zeros_for_part_of_the_mask(q, k, v, mask):
    weights = scores(q, k).masked_fill(~mask, -INF).softmax(-1)
    return weights.masked_fill(~mask[:, :, :, :1], 0.0) @ v


@trap(masked)
def zeros_for_empty_rows_of_finite_fill(q, k, v, mask):
    weights = scores(q, k).masked_fill(~mask, -1e9).softmax(-1)
    return torch.nan_to_num(weights, nan=0.0) @ v


@trap(masked)
def ones_for_nan(q, k, v, mask):
    return torch.nan_to_num(scores(q, k).masked_fill(~mask, -INF).softmax(-1), nan=1.0) @ v


@trap(qkv(queries=19, keys=7))
def causal_from_the_end_with_more_queries(q, k, v):
    seen = torch.ones(19, 7, dtype=torch.bool).tril(7 - 19)
    return attend(scores(q, k).masked_fill(~seen, torch.finfo(q.dtype).min), v)


# ---- heads, groups, batches, lengths


def grouped(draw):
    return draw(2, 6, 19, 16), draw(2, 2, 19, 16), draw(2, 2, 19, 16)


@trap(grouped)
def keys_interleaved_and_values_repeated(q, k, v):
    return attend(scores(q, k.repeat_interleave(3, 1)), v.repeat(1, 3, 1, 1))


@trap(lambda draw: (draw(2, 6, 19, 16), draw(2, 2, 19, 16), draw(2, 3, 19, 16)))
def keys_and_values_of_different_groups(q, k, v):
    return attend(scores(q, k.repeat_interleave(3, 1)), v.repeat_interleave(2, 1))


@trap(lambda draw: (draw(2, 6, 19, 16), draw(2, 2, 19, 16), draw(2, 6, 19, 16)))
def keys_shared_and_values_not(q, k, v):
    return attend(scores(q, k.repeat_interleave(3, 1)), v)


@trap()
def values_of_other_heads(q, k, v):
    return attend(scores(q, k), v[:, [2, 0, 1]])


@trap()
def values_in_reverse(q, k, v):
    return attend(scores(q, k), v.flip(2))


@trap()
def values_of_the_other_batch(q, k, v):
    return attend(scores(q, k.roll(1, 0)), v)


@trap(qkv(queries=20))
def every_other_key(q, k, v):
    return attend(scores(q, k[:, :, ::2]), v[:, :, 1::2])


@trap(lambda draw: (draw(1, 3, 19, 16), draw(2, 3, 19, 16), draw(2, 1, 19, 16)))
def broadcast_batch_and_heads(q, k, v):
    return attend(scores(q, k), v)


@trap(lambda draw: (draw(2, 3, 19, 16), draw(2, 3, 1, 16), draw(2, 3, 7, 16)))
def one_key_expanded(q, k, v):
    return attend(scores(q, k.expand(-1, -1, 7, -1)), v)


@trap(qkv(batch=1, heads=1, queries=1))
def everything_of_size_1(q, k, v):
    return attend(scores(q, k).masked_fill(torch.ones(1, 1).triu(1).bool(), -INF), v)


@trap(qkv(width=1, values=1))
def widths_of_1(q, k, v):
    return attend(scores(q, k), v)


@trap(lambda draw: (draw(2, 4, 5, 16), draw(2, 7, 16), draw(2, 7, 16)))
def queries_of_two_dimensions(q, k, v):
    return torch.einsum("bxyk,bkd->bxyd", torch.einsum("bxyd,bkd->bxyk", q, k).softmax(-1), v)


@trap(lambda draw: (draw(2, 9, 16), draw(2, 4, 5, 16), draw(2, 4, 5, 16)))
def keys_of_two_dimensions(q, k, v):
    s = torch.einsum("bqd,bxyd->bqxy", q, k).flatten(2).softmax(-1).unflatten(-1, (4, 5))
    return torch.einsum("bqxy,bxyd->bqd", s, v)


@trap(lambda draw: (draw(2, 9, 16), draw(2, 4, 5, 16), draw(2, 5, 4, 16)))
def keys_of_two_dimensions_crossed(q, k, v):
    s = torch.einsum("bqd,bxyd->bqxy", q, k).flatten(2).softmax(-1).unflatten(-1, (4, 5))
    return torch.einsum("bqxy,byxd->bqd", s, v)


@trap()
def heads_summed_with_the_values(q, k, v):
    return torch.einsum("bhqk,bhkd->bqd", scores(q, k).softmax(-1), v)


@trap()
def heads_crossed_with_the_values(q, k, v):
    return torch.einsum("bhqk,bgkd->bhgqd", scores(q, k).softmax(-1), v)


@trap()
def diagonal_of_heads(q, k, v):
    s = torch.einsum("bhqd,bgkd->bhgqk", q, k).diagonal(dim1=1, dim2=2).movedim(-1, 1) / 4
    return attend(s, v)


@trap(lambda draw: (draw(6, 19, 16), draw(6, 19, 16), draw(6, 19, 16), draw.boolean(2, 19, 19)))
def folded_the_other_way(q, k, v, mask):
    return attend(scores(q, k).masked_fill(~mask.repeat(3, 1, 1), -INF), v)


# ---- indices


@trap()
def bytes_that_wrap(q, k, v):
    i = torch.arange(19, dtype=torch.uint8)
    return attend(scores(q, k).masked_fill((i[:, None] - i[None, :]) > 200, -1e9), v)


@trap()
def quotients_toward_zero(q, k, v):
    gap = torch.arange(19)[:, None] - torch.arange(19)
    return attend(scores(q, k).masked_fill(torch.div(gap, 4, rounding_mode="trunc") != 0, -INF), v)


@trap()
def quotients_toward_minus_infinity(q, k, v):
    gap = torch.arange(19)[:, None] - torch.arange(19)
    return attend(scores(q, k).masked_fill(gap // 4 != 0, -INF), v)


@trap()
def remainders_with_the_dividends_sign(q, k, v):
    gap = torch.arange(19)[:, None] - torch.arange(19)
    return attend(scores(q, k).masked_fill(torch.fmod(gap, 3) > 0, -INF), v)


@trap(lambda draw: (*qkv()(draw), draw(3, 37)))
def table_indexed_from_the_end(q, k, v, table):
    gap = torch.arange(19)[:, None] - torch.arange(19)
    return attend(scores(q, k) + table[:, gap], v)


@trap()
def bands_of_a_tall_tril(q, k, v):
    band = torch.ones(25, 23).tril(3).triu(-2)[3:22, 4:23]
    return attend(scores(q, k).masked_fill(band == 0, -INF), v)


@trap()
def position_as_fraction(q, k, v):
    i = torch.arange(19, dtype=q.dtype) / 18
    near = (i[:, None] - i[None, :]).abs() * 18 <= 2.5
    return attend(torch.where(near, scores(q, k), -INF), v)


# ---- scores and weights


@trap()
def absolute_scores(q, k, v):
    return attend(scores(q, k).abs(), v)


@trap()
def squared_scores(q, k, v):
    s = scores(q, k)
    return attend(s * s - s, v)


@trap()
def divided_by_the_maximum(q, k, v):
    s = scores(q, k)
    return attend(s / s.amax(-1, keepdim=True), v)


@trap()
def less_the_minimum_of_queries(q, k, v):
    s = scores(q, k)
    return attend(s - s.amin(-2, keepdim=True), v)


@trap()
def less_the_maximum_of_itself_doubled(q, k, v):
    s = scores(q, k)
    return attend(2 * s - s.amax(-1, keepdim=True), v)


@trap()
def exponentials_without_a_sum_of_keys(q, k, v):
    e = scores(q, k).exp()
    return (e / e.sum(-2, keepdim=True)) @ v


@trap()
def exponentials_over_another_sum(q, k, v):
    s = scores(q, k)
    return (s.exp() / (2 * s).exp().sum(-1, keepdim=True)) @ v


@trap()
def exponentials_over_one_more(q, k, v):
    e = scores(q, k).exp()
    return (e / (1 + e.sum(-1, keepdim=True))) @ v


@trap()
def weights_less_their_mean(q, k, v):
    p = scores(q, k).softmax(-1)
    return (p - p.mean(-1, keepdim=True)) @ v


@trap()
def weights_of_rows_summed(q, k, v):
    p = scores(q, k).softmax(-1)
    return (p + p.roll(1, -2)) @ v


@trap()
def values_weighted_by_key(q, k, v):
    gate = torch.sigmoid(torch.linspace(-3, 3, 19)).to(q.dtype)
    return (scores(q, k).softmax(-1) * gate) @ v


@trap()
def weights_rounded(q, k, v):
    return (scores(q, k).softmax(-1) * 8).round() / 8 @ v


@trap()
def weights_at_both_sides(q, k, v):
    p = scores(q, k).softmax(-1)
    return p @ (p @ v)


@trap()
def attention_of_attention(q, k, v):
    return attend(scores(attend(scores(q, k), v), k), v)


@trap()
def scores_of_the_dropped(q, k, v):
    return F.dropout(scores(q, k), 0.0, training=True).softmax(-1).pow(1) @ v


@trap()
def output_written_in_place(q, k, v):
    out = attend(scores(q, k), v)
    view = out[:, :, 3:]
    out.mul_(2.0)
    return out + view.sum()


@trap()
def key_written_after_use(q, k, v):
    k = k.clone()
    s = scores(q, k)
    k.zero_()
    return attend(s, v + k)


# ---- stopped gradients (the test compares them too)


@trap(gradients=True)
def weights_detached(q, k, v):
    return scores(q, k).softmax(-1).detach() @ v


@trap(gradients=True)
def scores_detached(q, k, v):
    return attend(scores(q, k).detach(), v)


@trap(gradients=True)
def key_detached(q, k, v):
    return attend(scores(q, k.detach()), v)


@trap(gradients=True)
def weights_without_gradient(q, k, v):
    with torch.no_grad():
        p = scores(q, k).softmax(-1)
    return p @ v


@trap(gradients=True)
def scores_without_gradient(q, k, v):
    with torch.no_grad():
        s = scores(q, k)
    return attend(s * 0.5, v)


@trap(gradients=True)
def half_the_scores_detached(q, k, v):
    s = scores(q, k)
    return attend(0.5 * s + 0.5 * s.detach(), v)


@trap(lambda draw: (*qkv()(draw), draw(3, 19, 19)), gradients=True)
def bias_detached(q, k, v, bias):
    return attend(scores(q, k) + bias.detach(), v)


@trap(lambda draw: (*qkv()(draw), draw(3, 19, 19)), gradients=True)
def bias_from_an_index(q, k, v, bias):
    return attend(scores(q, k) + bias[:, torch.arange(19).flip(0)], v)


traps = tuple(collection)
