"""What looks like attention and must be left alone, each with what the reason of its refusal must say.

`phrase` is what a reason must contain; where two reasons are equally true, either: "returned|no product with values".
"""

import math

import torch
from corpus import Collection, qkv
from torch import nn
from torch.nn import functional as F

collection = Collection()


def near_miss(phrase, arguments=None, **fields):
    return collection("", arguments or qkv(), phrase=phrase, **fields)


def scores(q, k):
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])


# ---- weights and scores that are wanted themselves


@near_miss("returned")
def weights_returned(q, k, v):
    weights = F.softmax(scores(q, k), dim=-1)
    return weights @ v, weights


@near_miss("returned")
def scores_returned(q, k, v):
    s = scores(q, k)
    return s.softmax(-1) @ v, s


@near_miss("used elsewhere")
def weights_averaged_over_heads(q, k, v):
    weights = F.softmax(scores(q, k), dim=-1)
    return weights @ v, weights.mean(dim=1)


@near_miss("used elsewhere")
def entropy_of_weights(q, k, v):
    weights = scores(q, k).softmax(-1)
    return weights @ v, -(weights * (weights + 1e-9).log()).sum(-1).mean()


@near_miss("used elsewhere")
def heavy_hitters(q, k, v):
    weights = scores(q, k).softmax(-1)
    return weights @ v, weights.sum(dim=-2)


@near_miss("used elsewhere")
def largest_score(q, k, v):
    s = scores(q, k)
    return s.softmax(-1) @ v, s.amax()


@near_miss("used elsewhere", lambda draw: (*qkv()(draw), draw(2, 3, 19, 8)))
def dropped_weights_of_two_values(q, k, v, w):
    weights = F.dropout(scores(q, k).softmax(-1), p=0.3, training=True)
    return weights @ v, weights @ w


# ---- softmax over something else


@near_miss("not over the keys")
def slots(q, k, v):
    weights = torch.softmax(scores(q, k), dim=-2)
    return (weights / (weights.sum(dim=-1, keepdim=True) + 1e-8)) @ v


@near_miss("not over the keys")
def over_queries(q, k, v):
    return scores(q, k).softmax(dim=2) @ v


@near_miss("not over the keys", lambda draw: tuple(draw(8, 8, 8, 8) for _ in "qkv"))
def over_heads(q, k, v):
    return scores(q, k).softmax(dim=1) @ v


@near_miss("not over the keys")
def over_queries_and_keys(q, k, v):
    s = scores(q, k)
    return s.flatten(-2).softmax(-1).view_as(s) @ v


@near_miss("not over the keys", qkv(queries=20))
def over_blocks_of_keys(q, k, v):
    return scores(q, k).unflatten(-1, (4, 5)).softmax(dim=-1).flatten(-2) @ v


@near_miss("not over the keys", lambda draw: tuple(draw(4, 4, 4, 4) for _ in "qkv"))
def values_summed_over_queries(q, k, v):
    return scores(q, k).softmax(-1).transpose(-2, -1) @ v


@near_miss("not over the keys|not a product of a query and a key|depends on the key", lambda draw: (*qkv()(draw), draw(3)))
def sinks_as_an_extra_key(q, k, v, sinks):
    s = torch.cat([scores(q, k), sinks.reshape(1, -1, 1, 1).expand(2, -1, 19, -1)], dim=-1)
    return s.softmax(-1)[..., :-1] @ v


# ---- heads that see one another


@near_miss("mixes heads", lambda draw: (*qkv()(draw), draw(3, 3)))
def talking_heads_before(q, k, v, mix):
    return torch.einsum("bhqk,hg->bgqk", scores(q, k), mix).softmax(-1) @ v


@near_miss("mixes heads", lambda draw: (*qkv()(draw), draw(3, 3)))
def talking_heads_after(q, k, v, mix):
    return torch.einsum("bhqk,hg->bgqk", scores(q, k).softmax(-1), mix) @ v


@near_miss("mixes heads")
class TalkingHeadsByLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj_l, self.proj_w = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, q, k, v):
        s = self.proj_l(scores(q, k).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj_w(s.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v


@near_miss("mixes heads|depends on the scores")
def scores_less_the_heads_mean(q, k, v):
    s = scores(q, k)
    return (s - s.mean(dim=1, keepdim=True)).softmax(-1) @ v


# ---- scores that depend on other scores


@near_miss("depends on the scores")
def top_k(q, k, v):
    s = scores(q, k)
    least = s.topk(4, dim=-1).values[..., -1:]
    return s.masked_fill(s < least, float("-inf")).softmax(-1) @ v


@near_miss("depends on the scores")
def above_the_mean(q, k, v):
    s = scores(q, k)
    return torch.where(s >= s.mean(dim=-1, keepdim=True), s, -1e9).softmax(-1) @ v


@near_miss("depends on the scores")
def sorted_scores(q, k, v):
    return scores(q, k).sort(dim=-1, descending=True).values.softmax(-1) @ v


@near_miss("depends on the scores")
def cumulated_scores(q, k, v):
    return scores(q, k).cumsum(dim=-1).softmax(-1) @ v


@near_miss("depends on the scores")
def contextual_positions(q, k, v):
    s = scores(q, k)
    position = s.sigmoid().flip(-1).cumsum(-1).flip(-1)
    return (s - position).softmax(-1) @ v


@near_miss("depends on the scores", lambda draw: (*qkv()(draw), draw(3, 1, 3, 5)))
def convolved_scores(q, k, v, kernel):
    return F.conv2d(scores(q, k), kernel, padding=(1, 2), groups=3).softmax(-1) @ v


@near_miss("depends on the scores")
def less_the_queries_mean(q, k, v):
    s = scores(q, k)
    return (s - s.mean(dim=-2, keepdim=True)).softmax(-1) @ v


@near_miss("depends on the scores")
def standardised_scores(q, k, v):
    return F.layer_norm(scores(q, k), (19,)).softmax(-1) @ v


@near_miss("depends on the scores", softmaxes=2)
def softmax_of_softmax(q, k, v):
    return scores(q, k).softmax(-1).softmax(-1) @ v


@near_miss("depends on the scores|computed in the graph")
def symmetric_scores(q, k, v):
    s = scores(q, k)
    return (s + s.transpose(-2, -1)).softmax(-1) @ v


@near_miss("no linear combination of softmaxes")
def squared_weights(q, k, v):
    weights = scores(q, k).softmax(-1)
    return (weights * weights) @ v


# ---- no product of a query and a key


@near_miss("not a product of a query and a key", lambda draw: (*qkv()(draw), draw(16)))
def additive(q, k, v, w):
    return (torch.tanh(q[:, :, :, None] + k[:, :, None]) @ w).softmax(-1) @ v


@near_miss("not a product of a query and a key", lambda draw: (draw(19, 16), draw(16, 1), draw(16, 1), draw.boolean(19, 19)))
def graph_attention(x, a, b, adjacent):
    e = F.leaky_relu(x @ a + (x @ b).T, 0.2)
    return torch.where(adjacent, e, -9e15).softmax(dim=1) @ x


@near_miss("not a product of a query and a key")
def distances(q, k, v):
    return (-torch.cdist(q, k)).softmax(-1) @ v


@near_miss("not a product of a query and a key", lambda draw: (draw(3, 19, 19), draw(2, 3, 19, 16)))
def synthesizer(table, v):
    return table.softmax(-1) @ v


# ---- no product with values


@near_miss("returned|no product with values", lambda draw: (draw(5, 16),))
class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 7)

    def forward(self, x):
        return self.head(x).softmax(-1)


@near_miss("no product with values", lambda draw: (draw(5, 16),))
class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(16, 4, bias=False)

    def forward(self, x):
        weights, chosen = torch.topk(F.softmax(self.gate(x), dim=-1, dtype=torch.float), 2, dim=-1)
        return weights / weights.sum(-1, keepdim=True), chosen


@near_miss("no product with values", lambda draw: (draw(5, 16), draw(7, 16)))
def confidence(x, classes):
    return (x @ classes.T).softmax(-1).amax(-1)


@near_miss("no product with values")
def cumulated_weights(q, k, v):
    return scores(q, k).softmax(-1).cumsum(-1) @ v


@near_miss("no product with values", lambda draw: (*qkv()(draw)[:2], draw(2, 3, 19, 19, 8)))
def values_of_pairs(q, k, v):
    return torch.einsum("bhqk,bhqkd->bhqd", scores(q, k).softmax(-1), v)


# ---- weights changed by key, biases from products, chance


@near_miss("depends on the key", lambda draw: (*qkv()(draw), draw(2, 1, 19, 19)))
def weights_times_pairs(q, k, v, gate):
    return (scores(q, k).softmax(-1) * gate.sigmoid()) @ v


@near_miss(
    "depends on the key|masked after the softmax by a condition that the scores were not masked with",
    lambda draw: (*qkv()(draw), draw.boolean(2, 1, 19, 19)),
)
def weights_masked_late(q, k, v, mask):
    return scores(q, k).softmax(-1).masked_fill(~mask, 0.0) @ v


@near_miss("computed in the graph", lambda draw: (*qkv()(draw), draw(19, 19, 16)))
def relative_keys(q, k, v, relative):
    return (scores(q, k) + torch.einsum("bhqd,qkd->bhqk", q, relative)).softmax(-1) @ v


@near_miss("computed in the graph", lambda draw: (*qkv()(draw), draw(3, 38, 16)))
def shifted_positions(q, k, v, r):
    bd = (q @ r.transpose(-2, -1)).reshape(2, 3, 38, 19)[:, :, 1:].reshape(2, 3, 19, 37)[..., :19]
    return ((q @ k.transpose(-2, -1) + bd) / 4).softmax(-1) @ v


@near_miss("computed in the graph", lambda draw: (*qkv()(draw), *qkv()(draw)[:2]))
def product_of_products(q, k, v, r, s):
    return (scores(q, k) * scores(r, s)).softmax(-1) @ v


@near_miss("computed in the graph", lambda draw: (*qkv()(draw), draw(2, 19, 3)))
def distances_in_space(q, k, v, x):
    return (scores(q, k) - torch.cdist(x, x)[:, None]).softmax(-1) @ v


@near_miss("random")
def noisy_scores(q, k, v):
    s = scores(q, k)
    return (s + 0.1 * torch.rand_like(s)).softmax(-1) @ v


@near_miss("random")
def dropped_keys(q, k, v):
    s = scores(q, k)
    gone = torch.bernoulli(torch.full_like(s, 0.3)).bool()
    return s.masked_fill(gone, -1e9).softmax(-1) @ v


@near_miss("random")
def dropped_scores(q, k, v):
    return F.dropout(scores(q, k), 0.3, training=True).softmax(-1) @ v


near_misses = tuple(collection)
