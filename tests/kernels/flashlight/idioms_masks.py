"""Idioms that differ in which keys a query sees, and in how that is written."""

import torch
from corpus import Collection, qkv
from torch import nn
from torch.nn import functional as F

masks = Collection()
INF = float("inf")


def scores(q, k):
    return torch.matmul(q, k.transpose(-2, -1)) / q.shape[-1] ** 0.5


def attend(s, v):
    return torch.matmul(F.softmax(s, dim=-1), v)


# ---- causal, in many spellings


@masks("a boolean tril and masked_fill", qkv())
def causal_tril(q, k, v):
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    return attend(scores(q, k).masked_fill(~seen, -INF), v)


@masks("nn.Transformer: triu of minus infinity, added", qkv())
def causal_triu_added(q, k, v):
    return attend(scores(q, k) + torch.triu(torch.full((19, 19), float("-inf")), diagonal=1).to(q), v)


@masks("minGPT: tril compared with 0", qkv())
def causal_tril_is_zero(q, k, v):
    mask = torch.tril(torch.ones(19, 19, device=q.device))[None, None]
    return attend(scores(q, k).masked_fill(mask == 0, -1e9), v)


@masks("Annotated Transformer: 1 - triu", qkv())
def causal_subsequent_mask(q, k, v):
    subsequent = torch.triu(torch.ones(1, 1, 19, 19), diagonal=1).type(torch.uint8)
    return attend(scores(q, k).masked_fill((subsequent == 0) == 0, -1e9), v)


@masks("the dtype's smallest number", qkv())
def causal_finfo_min(q, k, v):
    s = scores(q, k)
    rows, columns = torch.meshgrid(torch.arange(19), torch.arange(19), indexing="ij")
    return attend(s.masked_fill(columns > rows, torch.finfo(s.dtype).min), v)


@masks("GPT-2's first release: s * mask - 1e4 * (1 - mask)", qkv())
def causal_times_and_minus(q, k, v):
    mask = torch.tril(torch.ones(19, 19, dtype=q.dtype))
    return attend(scores(q, k) * mask - 1e4 * (1 - mask), v)


@masks("where with a tensor of the smallest number: GPT-2 in Transformers 4", qkv())
def causal_where(q, k, v):
    s = scores(q, k)
    causal = torch.tril(torch.ones((19, 19), dtype=torch.bool)).view(1, 1, 19, 19)
    value = torch.full([], torch.finfo(s.dtype).min, dtype=s.dtype, device=s.device)
    return attend(torch.where(causal, s.to(s.dtype), value), v)


@masks("comparison of two aranges", qkv())
def causal_arange(q, k, v):
    i, j = torch.arange(q.size(-2), device=q.device)[:, None], torch.arange(k.size(-2), device=q.device)
    return attend(torch.where(i >= j, scores(q, k), -INF), v)


@masks("lucidrains: triu of ones with the lengths' difference", qkv(queries=7, keys=19))
def causal_with_offset(q, k, v):
    i, j = q.shape[-2], k.shape[-2]
    mask = torch.ones((i, j), dtype=torch.bool).triu(j - i + 1)
    return attend(scores(q, k).masked_fill(mask, -torch.finfo(q.dtype).max), v)


@masks("in place", qkv())
def causal_in_place(q, k, v):
    s = scores(q, k)
    s.masked_fill_(torch.ones(19, 19, dtype=torch.bool).triu_(1), -1e4)
    return attend(s, v)


@masks("strictly causal, the first query sees itself", qkv())
def causal_strict(q, k, v):
    i = torch.arange(19)
    seen = (i[:, None] > i[None, :]) | ((i[:, None] == 0) & (i[None, :] == 0))
    return attend(scores(q, k).masked_fill(~seen, -INF), v)


# ---- padding


@masks("BERT: [b, 1, 1, k] times -10000", lambda draw: (*qkv()(draw), draw.boolean(2, 19)))
def padding_times_fill(q, k, v, attention_mask):
    extended = attention_mask[:, None, None, :].to(q.dtype)
    return attend(scores(q, k) + (1.0 - extended) * -10000.0, v)


@masks("Transformers 4: (1 - mask) * finfo.min", lambda draw: (*qkv()(draw), draw.boolean(2, 19).long()))
def padding_times_finfo(q, k, v, attention_mask):
    extended = (1.0 - attention_mask[:, None, None, :].to(dtype=q.dtype)) * torch.finfo(q.dtype).min
    return attend(scores(q, k) + extended, v)


@masks("key_padding_mask of nn.MultiheadAttention", lambda draw: (*qkv()(draw), ~draw.boolean(2, 19)))
def padding_masked_fill(q, k, v, key_padding_mask):
    return attend(scores(q, k).masked_fill(key_padding_mask.unsqueeze(1).unsqueeze(2), float("-inf")), v)


@masks("padding from lengths", lambda draw: (*qkv(keys=23)(draw), torch.tensor([23, 5])))
def padding_lengths(q, k, v, lengths):
    seen = torch.arange(k.shape[-2], device=q.device)[None, :] < lengths[:, None]
    return attend(torch.where(seen[:, None, None], scores(q, k), torch.tensor(-1e9, dtype=q.dtype)), v)


@masks(
    "padding from token ids, and causal", lambda draw: (*qkv()(draw), draw.integers(9, 2, 19).index_fill(1, torch.tensor(0), 3))
)
def padding_and_causal(q, k, v, ids):
    causal = torch.tril(torch.ones(19, 19, dtype=torch.bool))
    mask = (ids != 0)[:, None, None, :] & causal
    return attend(scores(q, k).masked_fill(mask.logical_not(), -1e9), v)


@masks(
    "an additive float mask that was passed", lambda draw: (*qkv()(draw), torch.where(draw.boolean(2, 1, 19, 19), 0.0, -1e9))
)
def additive_passed(q, k, v, mask):
    return attend(scores(q, k) + mask.to(q.dtype), v)


@masks("folded batch and heads, mask unfolded and folded again: BART in Transformers 4",
       lambda draw: (*(draw(6, 19, 16) for _ in "qkv"), torch.where(draw.boolean(2, 1, 19, 19), 0.0, -1e9)))  # fmt: skip
def additive_folded(q, k, v, mask):
    s = torch.bmm(q / 4, k.transpose(1, 2))
    s = (s.view(2, 3, 19, 19) + mask.to(q.dtype)).view(6, 19, 19)
    return torch.bmm(F.softmax(s, dim=-1), v)


@masks("fairseq: padding repeated for each head", lambda draw: (*(draw(6, 19, 16) for _ in "qkv"), ~draw.boolean(2, 19)))
def padding_repeated_for_heads(q, k, v, padding):
    s = torch.bmm(q / 4, k.transpose(1, 2))
    s = s.masked_fill(padding.repeat_interleave(3, dim=0)[:, None, :], -INF)
    return torch.bmm(F.softmax(s, dim=-1), v)


# ---- documents, windows, patterns


@masks("packed documents, ids passed", lambda draw: (*qkv()(draw), draw.integers(3, 2, 19).sort(-1).values))
def documents(q, k, v, document):
    same = document[:, :, None] == document[:, None, :]
    return attend(scores(q, k).masked_fill(~same[:, None], -INF), v)


@masks("packed documents, ids from separators, causal", lambda draw: (*qkv()(draw), draw.integers(5, 2, 19)))
def documents_from_separators(q, k, v, tokens):
    document = (tokens == 0).cumsum(-1)
    i = torch.arange(19)
    seen = (document[:, None, :, None] == document[:, None, None, :]) & (i[:, None] >= i)
    return attend(scores(q, k).masked_fill(~seen, -1e9), v)


@masks(
    "packed documents from cumulative lengths", lambda draw: (*(draw(3, 19, 16) for _ in "qkv"), torch.tensor([0, 4, 11, 19]))
)
def documents_from_cumulative_lengths(q, k, v, starts):
    document = torch.searchsorted(starts, torch.arange(19), right=True)
    return attend(torch.where(document[:, None] == document[None, :], scores(q, k), -INF), v)


@masks("Mistral: causal window", qkv(queries=29))
def sliding_window(q, k, v, window=5):
    mask = torch.full((29, 29), 1.0).tril(0)
    mask = torch.triu(mask, diagonal=-window)
    return attend(scores(q, k) + torch.log(mask).to(q.dtype), v)


@masks("window on both sides", qkv(queries=29))
def symmetric_window(q, k, v):
    i = torch.arange(29, device=q.device)
    return attend(scores(q, k).masked_fill((i[:, None] - i[None, :]).abs() > 4, -INF), v)


@masks("prefix LM, one prefix for each sequence", lambda draw: (*qkv()(draw), torch.tensor([3, 11])))
def prefix(q, k, v, lengths):
    i = torch.arange(19)
    seen = (i[:, None] >= i)[None] | (i[None, None, :] < lengths[:, None, None])
    return attend(scores(q, k).masked_fill(~seen.unsqueeze(1), torch.finfo(q.dtype).min), v)


@masks("Longformer: dilated window", qkv(queries=29))
def dilated(q, k, v):
    gap = torch.arange(29)[:, None] - torch.arange(29)[None, :]
    return attend(torch.where((gap % 3 == 0) & (gap.abs() <= 9), scores(q, k), -INF), v)


@masks("Llama 4: chunks, causal within", qkv(queries=29))
def chunked(q, k, v):
    i = torch.arange(29)
    seen = (i[:, None] // 8 == i[None, :] // 8) & (i[:, None] >= i[None, :])
    return attend(scores(q, k).masked_fill(~seen, -1e9), v)


@masks("Sparse Transformer: strided", qkv(queries=29))
def strided(q, k, v):
    i, j = torch.arange(29)[:, None], torch.arange(29)[None, :]
    seen = (i >= j) & ((i - j < 5) | ((i - j) % 5 == 0))
    return attend(torch.where(seen, scores(q, k), torch.finfo(q.dtype).min), v)


@masks("StreamingLLM: sinks and a window", qkv(queries=29))
def sinks_and_window(q, k, v):
    i, j = torch.arange(29).unsqueeze(1), torch.arange(29).unsqueeze(0)
    seen = (j <= i) & ((j < 2) | (i - j < 6))
    return attend(scores(q, k).masked_fill(torch.logical_not(seen), -INF), v)


@masks("BigBird: global tokens and a window", lambda draw: (*qkv(queries=29)(draw), draw.boolean(29, likely=0.1)))
def global_and_window(q, k, v, is_global):
    i = torch.arange(29)
    seen = is_global[:, None] | is_global[None, :] | ((i[:, None] - i[None, :]).abs() <= 2)
    return attend(scores(q, k).masked_fill(~seen, -1e9), v)


@masks("SpecInfer, Medusa: a tree of drafts", lambda draw: (*qkv(queries=7)(draw), draw.boolean(7, 7)))
def tree(q, k, v, ancestor):
    return attend(scores(q, k).masked_fill(~ancestor, float("-inf")), v)


@masks("blocks chosen from outside: [q / 4, k / 4] repeated", lambda draw: (*qkv(queries=24)(draw), draw.boolean(6, 6)))
def chosen_blocks(q, k, v, blocks):
    seen = blocks.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)
    return attend(torch.where(seen, scores(q, k), -1e9), v)


@masks("blocks chosen from outside, looked up", lambda draw: (*qkv(queries=23)(draw), draw.boolean(2, 6, 6)))
def looked_up_blocks(q, k, v, blocks):
    i = torch.arange(23) // 4
    return attend(scores(q, k).masked_fill(~blocks[:, i[:, None], i[None, :]][:, None], -INF), v)


@masks("XLNet: an order of prediction", lambda draw: (*qkv()(draw), torch.rand(2, 19, generator=draw.generator).argsort(-1)))
def permutation(q, k, v, order):
    seen = order[:, :, None] >= order[:, None, :]
    return attend(scores(q, k) - 1e30 * (~seen[:, None]).to(q.dtype), v)


@masks("Transfusion: causal, but whole images", lambda draw: (*qkv()(draw), draw.integers(3, 2, 19).sort(-1).values))
def causal_or_same_image(q, k, v, image):
    i = torch.arange(19)
    same = (image[:, :, None] == image[:, None, :]) & (image > 0)[:, :, None]
    return attend(scores(q, k).masked_fill(~((i[:, None] >= i) | same)[:, None], -INF), v)


@masks("SLViT, Reformer: a token does not see itself", qkv())
def not_itself(q, k, v):
    return attend(scores(q, k).masked_fill(torch.eye(19, dtype=torch.bool), -torch.finfo(q.dtype).max), v)


@masks("NATTEN: a window in two dimensions", qkv(queries=30))
def window_of_image(q, k, v, columns=6):
    i = torch.arange(30)
    row, column = i // columns, i % columns
    near = ((row[:, None] - row).abs() <= 1) & ((column[:, None] - column).abs() <= 2)
    return attend(scores(q, k).masked_fill(~near, -INF), v)


@masks("a window for each head", lambda draw: (*qkv(queries=23)(draw), torch.tensor([2, 5, 30])))
def window_for_each_head(q, k, v, reach):
    i = torch.arange(23)
    far = (i[:, None] - i).abs()[None] > reach[:, None, None]
    return attend(scores(q, k).masked_fill(far, -1e9), v)


@masks("events in time", lambda draw: (*qkv()(draw), torch.rand(2, 19, generator=draw.generator)))
def no_later_event(q, k, v, time):
    return attend(scores(q, k).masked_fill((time.unsqueeze(-2) > time.unsqueeze(-1)).unsqueeze(1), -INF), v)


@masks("two masks after each other", lambda draw: (*qkv()(draw), draw.boolean(2, 1, 1, 19)))
def two_masks(q, k, v, padding):
    s = scores(q, k).masked_fill(~torch.ones(19, 19).tril().bool(), -1e9)
    return attend(s.masked_fill(~padding, -1e9), v)


@masks(
    "Swin: windows that were rolled",
    lambda draw: (draw(8, 3, 9, 16), draw(8, 3, 9, 16), draw(8, 3, 9, 16), draw.integers(2, 4, 9)),
)
def shifted_windows(q, k, v, region):
    mask = region[:, None, :] - region[:, :, None]
    mask = mask.masked_fill(mask != 0, -100000).masked_fill(mask == 0, 0).to(q.dtype)
    s = scores(q, k).view(2, 4, 3, 9, 9) + mask.unsqueeze(1).unsqueeze(0)
    return attend(s.view(-1, 3, 9, 9), v)


# ---- after the softmax


def _rows_may_be_empty(draw):
    mask = draw.boolean(2, 19, 19)
    mask[:, 3:6] = False
    return (*qkv()(draw), mask)


@masks("NaN of empty rows made 0", _rows_may_be_empty)
def nan_guard(q, k, v, mask):
    weights = torch.softmax(scores(q, k).masked_fill(~mask[:, None], -INF), dim=-1)
    return torch.nan_to_num(weights, nan=0.0) @ v


@masks("ESPnet: masked again after the softmax", _rows_may_be_empty)
def masked_again(q, k, v, mask):
    mask = mask.unsqueeze(1).eq(0)
    s = scores(q, k).masked_fill(mask, torch.finfo(q.dtype).min)
    return torch.softmax(s, dim=-1).masked_fill(mask, 0.0) @ v


@masks("empty rows made 0 by where", _rows_may_be_empty)
def empty_rows_where(q, k, v, mask):
    mask = mask[:, None]
    weights = torch.softmax(torch.where(mask, scores(q, k), -INF), dim=-1)
    return torch.where(mask.any(-1, keepdim=True), weights, torch.zeros_like(weights)) @ v


@masks("empty rows left as they are: the mean of the values", _rows_may_be_empty)
def empty_rows_finite(q, k, v, mask):
    return attend(scores(q, k).masked_fill(~mask[:, None], -1e9), v)


@masks("dropout of probability 0", qkv())
class DropoutOfZero(nn.Module):
    def forward(self, q, k, v):
        return F.dropout(F.softmax(scores(q, k), -1), p=0.0, training=True) @ v


@masks("dropout outside training", qkv())
class DropoutInEvaluation(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_dropout = nn.Dropout(0.2)

    def forward(self, q, k, v):
        return self.attn_dropout(F.softmax(scores(q, k), -1)) @ v
