"""Idioms that differ in what is added to the scores, or done to them, before the softmax."""

import math

import torch
from corpus import Collection, qkv
from torch import nn
from torch.nn import functional as F

biases = Collection()


def causal(length):
    return torch.triu(torch.full((length, length), float("-inf")), 1)


@biases("ALiBi, slopes passed", lambda draw: (*qkv()(draw), torch.tensor([0.5, 0.25, 0.125]).to(draw.dtype)))
def alibi(q, k, v, slopes):
    i = torch.arange(19)
    bias = slopes.view(3, 1, 1) * (i[None, :] - i[:, None])
    return torch.softmax(q @ k.mT / 4 + bias + causal(19).to(q), dim=-1) @ v


@biases("ALiBi, slopes as powers of 2, as in the paper", qkv(heads=4))
def alibi_of_powers(q, k, v):
    slopes = torch.pow(2.0, -8.0 * torch.arange(1, 5) / 4)
    gap = (torch.arange(19)[None, :] - torch.arange(19)[:, None]).abs()
    s = q @ k.mT / 4 - (slopes[:, None, None] * gap).to(q.dtype)
    return s.softmax(-1) @ v


@biases("MPT: a bias of keys alone", lambda draw: (*qkv()(draw), draw(1, 3, 1, 19)))
def bias_of_keys(q, k, v, bias):
    return (q @ k.mT * 0.25 + bias).softmax(-1) @ v


@biases("ToMe: the logarithm of how many tokens were merged", lambda draw: (*qkv()(draw), 1 + draw.integers(4, 2, 19, 1)))
def logarithm_of_sizes(q, k, v, size):
    return ((q @ k.mT) / 4 + size.log()[:, None, None, :, 0].to(q.dtype)).softmax(-1) @ v


@biases("T5: buckets of distance", qkv(), gradients=True)
class BucketsOfDistance(nn.Module):
    def __init__(self):
        super().__init__()
        self.relative_attention_bias = nn.Embedding(8, 3)

    def forward(self, q, k, v):
        gap = torch.arange(19)[None, :] - torch.arange(19)[:, None]
        bucket = (gap > 0).to(torch.long) * 4
        gap = gap.abs()
        far = 2 + (torch.log(gap.float() / 2) / math.log(16 / 2) * 2).to(torch.long)
        bucket = bucket + torch.where(gap < 2, gap, torch.min(far, torch.full_like(far, 3)))
        bias = self.relative_attention_bias(bucket).permute(2, 0, 1).unsqueeze(0)
        return torch.softmax(q @ k.mT + bias, dim=-1) @ v


@biases("Swin: a table looked up by relative position", lambda draw: (draw(4, 12, 48),), gradients=True)
class TableOfRelativePositions(nn.Module):
    def __init__(self, rows=3, columns=4):
        super().__init__()
        self.qkv = nn.Linear(48, 144)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * rows - 1) * (2 * columns - 1), 3))
        grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1)
        relative = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0).contiguous()
        relative[:, :, 0] += rows - 1
        relative[:, :, 1] += columns - 1
        relative[:, :, 0] *= 2 * columns - 1
        self.register_buffer("relative_position_index", relative.sum(-1))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 3, 16).permute(2, 0, 3, 1, 4)
        attn = (q * 0.25) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(12, 12, -1)
        attn = attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        return (attn.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)


@biases("LeViT: one bias for each head and offset", qkv(queries=12), gradients=True)
class BiasOfOffsets(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_biases = nn.Parameter(torch.randn(3, 12))
        points = torch.arange(12)
        self.register_buffer("index", (points[:, None] // 4 - points // 4).abs() * 4 + (points[:, None] % 4 - points % 4).abs())

    def forward(self, q, k, v):
        return (q @ k.transpose(-2, -1) * 0.25 + self.attention_biases[:, self.index]).softmax(dim=-1) @ v


@biases("a learned bias [h, q, k]", qkv(), gradients=True)
class LearnedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3, 32, 32))

    def forward(self, q, k, v):
        return (q @ k.transpose(-2, -1) * 0.25 + self.bias[:, : q.shape[2], : k.shape[2]]).softmax(dim=-1) @ v


@biases("a table of clipped distances", qkv(), gradients=True)
class ClippedDistances(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 11))

    def forward(self, q, k, v):
        gap = (torch.arange(19)[None, :] - torch.arange(19)[:, None]).clamp(-5, 5) + 5
        return (q @ k.mT / 4 + self.table[:, gap]).softmax(-1) @ v


@biases(
    "Graphormer: an embedding of distances in a graph", lambda draw: (*qkv()(draw), draw.integers(9, 2, 19, 19)), gradients=True
)
class DistancesInGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.spatial_encoder = nn.Embedding(9, 3)

    def forward(self, q, k, v, distance):
        return (q @ k.mT / 4 + self.spatial_encoder(distance).permute(0, 3, 1, 2)).softmax(-1) @ v


@biases("Swin v2: an MLP on the table of offsets, not on pairs", qkv(queries=12), gradients=True)
class ContinuousPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.cpb_mlp = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
        self.logit_scale = nn.Parameter(torch.log(10 * torch.ones(3, 1, 1)))
        self.register_buffer("offsets", torch.linspace(-1, 1, 23)[:, None])
        self.register_buffer("index", torch.arange(12)[:, None] - torch.arange(12) + 11)

    def forward(self, q, k, v):
        s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        s = s * torch.clamp(self.logit_scale, max=math.log(1.0 / 0.01)).exp()
        table = self.cpb_mlp(self.offsets)
        bias = 16 * torch.sigmoid(table[self.index.view(-1)].view(12, 12, 3).permute(2, 0, 1).contiguous())
        return F.softmax(s + bias.unsqueeze(0), dim=-1) @ v


@biases("RetNet's decay, as a logarithm", lambda draw: (*qkv()(draw), torch.tensor([0.9, 0.95, 0.99]).to(draw.dtype)))
def decay(q, k, v, gamma):
    gap = torch.arange(19)[:, None] - torch.arange(19)
    bias = torch.where(gap >= 0, gap * gamma.log()[:, None, None], float("-inf"))
    return torch.softmax(q @ k.mT / 4 + bias, -1) @ v


@biases("KERPLE: logarithmic", qkv(), gradients=True)
class Kerple(nn.Module):
    def __init__(self):
        super().__init__()
        self.p, self.a = nn.Parameter(torch.rand(3, 1, 1)), nn.Parameter(torch.rand(3, 1, 1))

    def forward(self, q, k, v):
        gap = (torch.arange(19)[:, None] - torch.arange(19)[None]).abs().to(q.dtype)
        bias = -self.p.clamp(min=0.01) * torch.log1p(self.a.clamp(min=0.01) * gap)
        return torch.softmax(q @ k.mT / 4 + bias + causal(19).to(q), -1) @ v


@biases("Forgetting Transformer: sums of the logarithms of forget gates", lambda draw: (*qkv()(draw), draw(2, 3, 19)))
def forget_gates(q, k, v, gate):
    c = F.logsigmoid(gate).cumsum(-1)
    s = q @ k.mT / 4 + (c[..., :, None] - c[..., None, :])
    return s.masked_fill(torch.ones(19, 19, dtype=torch.bool).triu(1), float("-inf")).softmax(-1) @ v


@biases("Uni-Mol: a Gaussian of distances, passed", lambda draw: (*qkv()(draw), draw(2, 19, 19).abs(), draw(3)))
def distances_in_space(q, k, v, distance, sharpness):
    bias = -(distance[:, None] ** 2) * F.softplus(sharpness)[None, :, None, None]
    return torch.softmax(q @ k.mT / 4 + bias, -1) @ v


@biases(
    "TiSASRec: buckets of time between events", lambda draw: (*qkv()(draw), draw.integers(50, 2, 19).sort(-1).values, draw(9))
)
def time_between_events(q, k, v, time, table):
    bucket = (time[:, :, None] - time[:, None, :]).abs().clamp(max=8)
    return torch.softmax(q @ k.mT / 4 + table[bucket].unsqueeze(1), -1) @ v


@biases("Gemma 2: soft cap", qkv())
def softcap(q, k, v):
    s = torch.tanh(q @ k.mT / 4 / 20.0) * 20.0
    return (s + causal(19).to(q)).softmax(-1) @ v


@biases("Grok: soft cap, otherwise written", qkv())
def softcap_multiplied(q, k, v):
    s = 30.0 * (torch.einsum("bhqd,bhkd->bhqk", q, k) * (0.25 / 30.0)).tanh()
    return torch.einsum("bhqk,bhkd->bhqd", F.softmax(s, -1), v)


@biases("clamped scores", qkv())
def clamped_scores(q, k, v):
    return (q @ k.mT / 4).clamp(-5, 5).softmax(-1) @ v


@biases("AAN: scores through an activation", qkv())
def activated_scores(q, k, v):
    return F.leaky_relu(q @ k.mT / 4, 0.2).softmax(-1) @ v


@biases("cosine attention with a learned scale", qkv(), gradients=True)
class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.log(10 * torch.ones(3, 1, 1)))

    def forward(self, q, k, v):
        s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.logit_scale.exp().clamp(max=100)
        return s.softmax(dim=-1) @ v


@biases("norms of the operands divided out of the scores", qkv())
def cosine_after_product(q, k, v):
    norms = q.norm(dim=-1)[..., :, None] * k.norm(dim=-1)[..., None, :]
    return ((q @ k.mT) / norms * 10).softmax(-1) @ v


@biases("Qwen 3, OLMo 2: RMS norm of query and key", qkv(), gradients=True)
class NormedQueryAndKey(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_norm, self.k_norm = nn.RMSNorm(16, eps=1e-6), nn.RMSNorm(16, eps=1e-6)

    def forward(self, q, k, v):
        return (self.q_norm(q) @ self.k_norm(k).mT / 4).softmax(-1) @ v


def _rotated(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


@biases("RoPE before the product", qkv())
def rotary(q, k, v):
    angle = torch.outer(torch.arange(19.0), 10000.0 ** (-torch.arange(0, 16, 2) / 16))
    cos, sin = (torch.cat((f(angle), f(angle)), -1).to(q.dtype) for f in (torch.cos, torch.sin))
    q, k = q * cos + _rotated(q) * sin, k * cos + _rotated(k) * sin
    return (q @ k.mT / 4 + causal(19).to(q)).softmax(-1) @ v


@biases("LLaMA's first release: RoPE in complex numbers", lambda draw: tuple(draw(2, 19, 3, 16).float() for _ in "qkv"))
def rotary_complex(q, k, v):
    angle = torch.outer(torch.arange(19.0), 10000.0 ** (-torch.arange(0, 16, 2) / 16))
    turn = torch.polar(torch.ones_like(angle), angle)[None, :, None, :]
    q, k = (torch.view_as_real(torch.view_as_complex(x.reshape(2, 19, 3, 8, 2)) * turn).flatten(3) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2)


@biases("scalable softmax: times the logarithm of the position", qkv())
def scalable_softmax(q, k, v):
    length = torch.arange(2, 21, dtype=q.dtype)
    s = (q @ k.mT / 4) * torch.log(length)[:, None]
    return (s + causal(19).to(q)).softmax(-1) @ v


@biases("in place: scaled, then the bias added", lambda draw: (*qkv()(draw), draw(1, 3, 19, 19)))
def in_place_bias(q, k, v, bias):
    s = torch.matmul(q, k.mT)
    s /= math.sqrt(16)
    s += bias
    return torch.matmul(s.softmax(-1), v)


@biases(
    "Evoformer: biases passed, heads gated",
    lambda draw: (*qkv(batch=5)(draw), draw(5, 1, 1, 19), draw(1, 3, 19, 19), draw(5, 3, 19, 16)),
)
def evoformer(q, k, v, mask_bias, pair_bias, gate):
    a = torch.matmul(q / 4, k.transpose(-1, -2))
    for bias in (mask_bias, pair_bias):
        a += bias
    return torch.matmul(F.softmax(a, dim=-1), v) * torch.sigmoid(gate)


@biases("AlphaFold: pairs projected to biases in the model", lambda draw: (draw(5, 19, 48), draw(19, 19, 8)), gradients=True)
class PairBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.pair, self.gate = nn.Linear(48, 144), nn.Linear(8, 3, bias=False), nn.Linear(48, 48)

    def forward(self, x, z):
        q, k, v = (y.unflatten(-1, (3, 16)) for y in self.qkv(x).chunk(3, -1))
        a = torch.einsum("sqhc,skhc->shqk", q / 4, k) + self.pair(z).permute(2, 0, 1)
        o = torch.einsum("shqk,skhc->sqhc", a.softmax(-1), v).flatten(-2)
        return self.gate(x).sigmoid() * o


@biases(
    "AlphaFold: triangle attention around starting nodes", lambda draw: (draw(11, 11, 48), draw.boolean(11, 11)), gradients=True
)
class TriangleRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(48, 48, bias=False) for _ in "qkv")
        self.bias = nn.Linear(48, 3, bias=False)

    def forward(self, z, mask):
        q, k, v = (f(z).view(11, 11, 3, 16).transpose(1, 2) for f in (self.q, self.k, self.v))
        s = q @ k.transpose(-1, -2) / 4 + (1e9 * (mask.to(z.dtype) - 1))[:, None, None, :]
        s = s + self.bias(z).permute(2, 0, 1)[None]
        return (s.softmax(-1) @ v).transpose(1, 2).flatten(2)
