"""Idioms that differ in what attends to what: shared key heads, other sources, caches, images, sums of attentions."""

import math

import torch
from corpus import Collection, blhd, qkv
from torch import nn
from torch.nn import functional as F

heads = Collection()


def shared(heads=6, groups=3, queries=19, keys=0, width=16):
    keys = keys or queries
    return lambda draw: (
        draw(2, heads, queries, width), draw(2, heads // groups, keys, width), draw(2, heads // groups, keys, width)
    )  # fmt: skip


def attend(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v


# ---- grouped queries


@heads("Llama in Transformers: repeat_kv", shared())
def grouped_expand(q, k, v):
    def repeat_kv(x, n):
        b, h, length, d = x.shape
        return x[:, :, None, :, :].expand(b, h, n, length, d).reshape(b, h * n, length, d)

    return attend(q, repeat_kv(k, 3), repeat_kv(v, 3))


@heads("LLaMA's release: repeat_interleave", shared())
def grouped_repeat_interleave(q, k, v):
    return attend(q, k.repeat_interleave(3, dim=1), torch.repeat_interleave(v, 3, dim=1))


@heads("five-dimensional einsum", shared(keys=23))
def grouped_einsum(q, k, v):
    s = torch.einsum("bghqd,bgkd->bghqk", q.view(2, 2, 3, 19, 16), k) / 4
    return torch.einsum("bghqk,bgkd->bghqd", s.softmax(-1), v).reshape(2, 6, 19, 16)


@heads("five-dimensional matmul, broadcasting", shared(keys=23))
def grouped_broadcast(q, k, v):
    s = q.unflatten(1, (2, 3)) @ k.unsqueeze(2).transpose(-2, -1) / 4
    return (s.softmax(-1) @ v.unsqueeze(2)).flatten(1, 2)


@heads("groups as rows of the query", shared(keys=23))
def grouped_rows(q, k, v):
    q = q.reshape(2, 2, 3 * 19, 16)
    return attend(q, k, v).reshape(2, 6, 19, 16)


@heads("repeat: key heads alternate", shared())
def grouped_repeat(q, k, v):
    return attend(q, k.repeat(1, 3, 1, 1), v.repeat(1, 3, 1, 1))


@heads("Shazeer 2019: one key head", lambda draw: (draw(2, 6, 19, 16), draw(2, 19, 16), draw(2, 19, 16)))
def one_key_head_einsum(q, k, v):
    return torch.einsum("bhnm,bmv->bhnv", torch.softmax(torch.einsum("bhnk,bmk->bhnm", q, k) / 4, -1), v)


@heads(
    "GPT-BigCode: one key head, heads folded into the queries",
    lambda draw: (draw(2, 19, 6, 16), draw(2, 19, 16), draw(2, 19, 16)),
)
def one_key_head_folded(q, k, v):
    s = torch.baddbmm(
        torch.zeros(2, 19 * 6, 19, dtype=q.dtype), q.reshape(2, 19 * 6, 16), k.transpose(1, 2), beta=1, alpha=0.25
    )
    s = s.view(2, 19, 6, 19) + torch.triu(torch.full((19, 19), -1e9), 1).to(q.dtype)[None, :, None, :]
    return torch.bmm(s.softmax(-1).view(2, 19 * 6, 19), v).view(2, 19, 6, 16)


@heads("grouped, [b, l, h, d], causal", lambda draw: (draw(2, 19, 6, 16), draw(2, 19, 2, 16), draw(2, 19, 2, 16)))
def grouped_length_before_heads(q, k, v):
    k, v = (x.unsqueeze(3).expand(2, 19, 2, 3, 16).flatten(2, 3) for x in (k, v))
    s = torch.einsum("bqhd,bkhd->bhqk", q, k) / 4
    s = s.masked_fill(torch.ones(19, 19, dtype=torch.bool).triu(1), float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", s.softmax(-1), v)


@heads(
    "DeepSeek: a rotated part of the key that all heads share",
    lambda draw: (draw(2, 3, 19, 16), draw(2, 3, 19, 8), draw(2, 3, 19, 16), draw(2, 19, 8), draw(2, 3, 19, 12)),
)
def latent(q, q_rotated, k, k_rotated, v):
    q = torch.cat((q, q_rotated), dim=-1)
    k = torch.cat((k, k_rotated[:, None].expand(-1, 3, -1, -1)), dim=-1)
    return attend(q, k, v)


# ---- other sources and caches


@heads("cross attention", lambda draw: (draw(2, 19, 48), draw(2, 7, 32)), gradients=True)
class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_kv, self.to_out = nn.Linear(48, 48, bias=False), nn.Linear(32, 96, bias=False), nn.Linear(48, 48)

    def forward(self, x, context):
        q, (k, v) = self.to_q(x), self.to_kv(context).chunk(2, dim=-1)
        q, k, v = (y.view(2, -1, 3, 16).permute(0, 2, 1, 3) for y in (q, k, v))
        return self.to_out(attend(q, k, v).permute(0, 2, 1, 3).reshape(2, -1, 48))


@heads("Perceiver: latents", lambda draw: (draw(2, 29, 32),), gradients=True)
class Latents(nn.Module):
    def __init__(self):
        super().__init__()
        self.latents, self.to_kv = nn.Parameter(torch.randn(5, 48)), nn.Linear(32, 96)

    def forward(self, x):
        q = self.latents.expand(x.shape[0], -1, -1)
        k, v = self.to_kv(torch.nn.functional.layer_norm(x, (32,))).split(48, -1)
        q, k, v = (y.unflatten(-1, (3, 16)).movedim(-2, 1) for y in (q, k, v))
        return attend(q, k, v).movedim(1, -2).flatten(-2)


@heads("Set Transformer: pooling by one seed", lambda draw: (draw(2, 29, 16),), gradients=True)
class PoolingBySeed(nn.Module):
    def __init__(self):
        super().__init__()
        self.seed = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x):
        return attend(self.seed.repeat(x.size(0), 1, 1), x, x)


@heads("Luong: a general product", qkv(heads=1), gradients=True)
class GeneralProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(16, 16, bias=False)

    def forward(self, q, k, v):
        return torch.softmax(torch.matmul(self.w(q), k.transpose(-1, -2)), dim=-1) @ v


@heads("decoding: one query at the end", qkv(queries=1, keys=23))
def decode(q, k, v):
    return attend(q, k, v)


@heads("decoding some tokens with an offset that is a tensor", lambda draw: (*qkv(queries=4, keys=23)(draw), torch.tensor(11)))
def decode_with_offset(q, k, v, offset):
    seen = torch.arange(23)[None, :] <= (torch.arange(4) + offset)[:, None]
    s = (q @ k.mT / 4).masked_fill(~seen, torch.finfo(q.dtype).min)
    return s.softmax(-1) @ v


@heads("a cache that grows by concatenation", lambda draw: (*qkv(queries=3)(draw), draw(2, 3, 11, 16), draw(2, 3, 11, 16)))
def cache_concatenated(q, k, v, past_k, past_v):
    k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
    mask = torch.ones(3, 14, dtype=torch.bool).tril(diagonal=11)
    return (q @ k.mT / 4).masked_fill(~mask, float("-inf")).softmax(-1) @ v


@heads(
    "a cache of fixed length, written at positions",
    lambda draw: (*qkv(queries=3)(draw), draw(2, 3, 29, 16), draw(2, 3, 29, 16), torch.arange(7, 10)),
)
def cache_written(q, k, v, cache_k, cache_v, position):
    k, v = cache_k.index_copy(2, position, k), cache_v.index_copy(2, position, v)
    seen = torch.arange(29) <= position[:, None]
    return torch.where(seen, q @ k.mT / 4, -1e9).softmax(-1) @ v


@heads("persistent memory: learned keys and values", qkv(), gradients=True)
class PersistentMemory(nn.Module):
    def __init__(self):
        super().__init__()
        self.k, self.v = nn.Parameter(torch.randn(3, 5, 16)), nn.Parameter(torch.randn(3, 5, 16))

    def forward(self, q, k, v):
        k, v = (torch.cat((m.expand(2, -1, -1, -1), x), dim=-2) for m, x in ((self.k, k), (self.v, v)))
        mask = F.pad(torch.ones(19, 19, dtype=torch.bool).triu(1), (5, 0), value=False)
        return (q @ k.mT / 4).masked_fill(mask, float("-inf")).softmax(-1) @ v


@heads("add_zero_attn: an empty key that is always seen", lambda draw: (*qkv()(draw), draw.boolean(2, 1, 1, 19, likely=0.3)))
def zero_key(q, k, v, mask):
    blank = torch.zeros(2, 3, 1, 16, dtype=q.dtype)
    k, v, mask = torch.cat([k, blank], 2), torch.cat([v, blank], 2), F.pad(mask, (0, 1), value=True)
    return (q @ k.mT / 4).masked_fill(~mask, float("-inf")).softmax(-1) @ v


@heads("Linformer: keys and values projected along the length", qkv(), gradients=True)
class ProjectedLength(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.f = nn.Linear(19, 6), nn.Linear(19, 6)

    def forward(self, q, k, v):
        return attend(q, self.e(k.mT).mT, self.f(v.mT).mT)


@heads("memory-saving code: chunks of queries", qkv(queries=20), softmaxes=4)
def chunks_of_queries(q, k, v):
    return torch.cat([attend(part, k, v) for part in q.split(5, dim=2)], dim=2)


# ---- images and other places


@heads("ViT, from patches", lambda draw: (draw(2, 3, 12, 8),), gradients=True)
class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, 48, 4, 4), nn.Parameter(torch.randn(1, 1, 48))
        self.norm, self.qkv, self.proj = nn.LayerNorm(48), nn.Linear(48, 144), nn.Linear(48, 48)

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), dim=1)
        q, k, v = self.qkv(self.norm(x)).reshape(2, -1, 3, 3, 16).permute(2, 0, 3, 1, 4)
        return x + self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


@heads("Non-local networks, DDPM's U-Net", lambda draw: (draw(2, 16, 5, 4),), gradients=True)
class NonLocal(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta, self.phi, self.g, self.out = (nn.Conv2d(16, 16, 1) for _ in range(4))

    def forward(self, x):
        b, c, height, width = x.shape
        q = self.theta(x).view(b, c, height * width).permute(0, 2, 1)
        k = self.phi(x).view(b, c, height * width)
        w = F.softmax(torch.bmm(q, k) * int(c) ** -0.5, dim=2)
        y = torch.bmm(self.g(x).view(b, c, height * width), w.permute(0, 2, 1)).view(b, c, height, width)
        return x + self.out(y)


@heads("guided diffusion: legacy packing [b, 3 h c, l]", lambda draw: (draw(2, 144, 20),))
def legacy_packing(qkv):
    bs, _, length = qkv.shape
    ch = 16
    q, k, v = qkv.reshape(bs * 3, ch * 3, length).split(ch, dim=1)
    scale = 1 / math.sqrt(math.sqrt(ch))
    weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
    weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
    return torch.einsum("bts,bcs->bct", weight, v).reshape(bs, -1, length)


@heads("axial attention: the columns of an image", blhd(batch=2, heads=5, queries=7))
def axial_columns(q, k, v):
    s = torch.einsum("bhwc,bgwc->bwhg", q, k) / 4
    return torch.einsum("bwhg,bgwc->bhwc", s.softmax(-1), v)


@heads("axial attention with heads: five dimensions", lambda draw: tuple(draw(2, 5, 7, 3, 16) for _ in "qkv"))
def axial_rows_of_heads(q, k, v):
    s = torch.einsum("brqhc,brkhc->brhqk", q, k) / 4
    return torch.einsum("brhqk,brkhc->brqhc", s.softmax(-1), v)


@heads("MSA Transformer: columns of an alignment", lambda draw: tuple(draw(7, 5, 2, 3, 16) for _ in "qkv"))
def alignment_columns(q, k, v):
    weights = torch.einsum("icnhd,jcnhd->hcnij", q / 4, k).softmax(-1)
    return torch.einsum("hcnij,jcnhd->icnhd", weights, v)


@heads("MSA Transformer: rows tied", lambda draw: tuple(draw(7, 5, 2, 3, 16) for _ in "qkv"))
def tied_rows(q, k, v):
    weights = torch.einsum("rinhd,rjnhd->hnij", q / math.sqrt(16 * 7), k).softmax(-1)
    return torch.einsum("hnij,rjnhd->rinhd", weights, v)


@heads("Swin: windows cut out of an image", lambda draw: (draw(2, 8, 6, 48),))
def windows_of_image(x):
    x = x.view(2, 2, 4, 2, 3, 48).permute(0, 1, 3, 2, 4, 5).reshape(-1, 12, 48)
    q = k = v = x.unflatten(-1, (3, 16)).transpose(1, 2)
    x = attend(q, k, v).transpose(1, 2).reshape(2, 2, 2, 4, 3, 48)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(2, 8, 6, 48)


@heads("XCiT: channels attend to channels", qkv(), gradients=True)
class CrossCovariance(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, q, k, v):
        q, k, v = (x.transpose(-2, -1) for x in (q, k, v))
        attn = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        return (attn.softmax(dim=-1) @ v).transpose(-2, -1)


# ---- sums of attentions, gates


@heads(
    "Differential Transformer, one lambda",
    lambda draw: (draw(2, 6, 19, 16), draw(2, 6, 19, 16), draw(2, 3, 19, 32)),
    gradients=True,
)
class Differential(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("q1", "k1", "q2", "k2"):
            setattr(self, f"lambda_{name}", nn.Parameter(0.1 * torch.randn(16)))
        self.subln = nn.RMSNorm(32, elementwise_affine=False)

    def forward(self, q, k, v):
        weights = torch.softmax(q / 4 @ k.transpose(-1, -2) + torch.triu(torch.full((19, 19), float("-inf")), 1).to(q), dim=-1)
        first = torch.exp(torch.sum(self.lambda_q1 * self.lambda_k1, dim=-1).float()).type_as(q)
        second = torch.exp(torch.sum(self.lambda_q2 * self.lambda_k2, dim=-1).float()).type_as(q)
        weights = weights.view(2, 3, 2, 19, 19)
        weights = weights[:, :, 0] - (first - second + 0.8) * weights[:, :, 1]
        return self.subln(torch.matmul(weights, v)) * 0.2


@heads(
    "differential, two softmaxes, a lambda for each head",
    lambda draw: (*(draw(2, 3, 19, 16) for _ in range(5)), draw(3)),
    softmaxes=2,
)
def differential_of_heads(q1, k1, q2, k2, v, weight):
    first, second = (torch.softmax(q @ k.mT / 4, -1) for q, k in ((q1, k1), (q2, k2)))
    return (first - weight[None, :, None, None] * second) @ v


@heads(
    "differential, subtracted after the values", lambda draw: (*(draw(2, 3, 19, 16) for _ in range(5)), draw(1)), softmaxes=2
)
def differential_of_outputs(q1, k1, q2, k2, v, weight):
    return attend(q1, k1, v) - weight * attend(q2, k2, v)


@heads("IP-Adapter: two sources, two softmaxes", lambda draw: (*qkv(keys=7)(draw), *qkv(keys=4)(draw)[1:]), softmaxes=2)
def two_sources(q, k, v, k_image, v_image):
    return attend(q, k, v) + 0.6 * attend(q, k_image, v_image)


@heads(
    "Mixture of two weights of one value",
    lambda draw: (*(draw(2, 3, 19, 16) for _ in range(5)), draw(2, 3, 19, 1)),
    softmaxes=2,
)
def mixture_of_softmaxes(q1, k1, q2, k2, v, gate):
    g = gate.sigmoid()
    return (g * torch.softmax(q1 @ k1.mT / 4, -1) + (1 - g) * torch.softmax(q2 @ k2.mT / 4, -1)) @ v


@heads("Qwen 3 Next: a gate on the output", lambda draw: (*qkv()(draw), draw(2, 3, 19, 16)))
def gated_output(q, k, v, gate):
    return attend(q, k, v) * torch.sigmoid(gate)


@heads("weights times a gate of heads and queries", lambda draw: (*qkv()(draw), draw(2, 3, 19, 1)))
def gated_weights(q, k, v, gate):
    return (torch.softmax(q @ k.mT / 4, -1) * gate.sigmoid()) @ v


@heads("values scaled in the weights' product: weights times 2", qkv())
def scaled_weights(q, k, v):
    return (torch.softmax(q @ k.mT / 4, -1) * 2.0) @ v
