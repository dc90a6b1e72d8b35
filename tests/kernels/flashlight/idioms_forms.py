"""Idioms that differ in how the products, the layout, the scale and the softmax are written."""

import math

import torch
from corpus import Collection, blhd, qkv
from torch import nn
from torch.nn import functional as F

forms = Collection()


# ---- contractions and layouts


@forms("Vaswani et al. 2017", qkv())
def matmul_transpose(q, k, v):
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    return torch.matmul(F.softmax(scores, dim=-1), v)


@forms("most code since Python 3.5", qkv())
def at_operator(q, k, v):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


@forms("lucidrains", qkv())
def einsum_bhqd(q, k, v):
    sim = torch.einsum("b h i d, b h j d -> b h i j", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("b h i j, b h j d -> b h i d", sim.softmax(dim=-1), v)


@forms("T5X, AlphaFold", blhd())
def einsum_bqhd(q, k, v):
    logits = torch.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("bhqk,bkhd->bqhd", torch.softmax(logits, -1), v)


@forms("scores with heads last, as in some TensorFlow code", blhd(keys=13))
def heads_last_scores(q, k, v):
    logits = torch.einsum("bqhd,bkhd->bqkh", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bqkh,bkhd->bqhd", F.softmax(logits, dim=2), v)


@forms("keys before queries: SAGAN, fast.ai", qkv(queries=11, keys=17))
def keys_first_scores(q, k, v):
    weights = torch.softmax(k @ q.transpose(-1, -2) * 0.25, dim=-2)
    return weights.transpose(-1, -2) @ v


@forms("SAGAN: values times transposed weights", qkv(queries=11, keys=17))
def values_on_the_left(q, k, v):
    weights = torch.softmax(q @ k.mT * 0.25, dim=-1)
    return (v.mT @ weights.mT).mT


@forms("BART and fairseq: batch and heads folded", lambda draw: tuple(draw(2, 19, 48) for _ in "qkv"))
def folded_bmm(q, k, v):
    def split(x):
        return x.view(2, -1, 3, 16).transpose(1, 2).reshape(6, -1, 16)

    weights = F.softmax(torch.bmm(split(q) * 16**-0.5, split(k).transpose(1, 2)), dim=-1)
    return torch.bmm(weights, split(v)).view(2, 3, -1, 16).transpose(1, 2).reshape(2, -1, 48)


@forms("fairseq: length first", lambda draw: tuple(draw(length, 2, 48) for length in (19, 23, 23)))
def length_first(q, k, v):
    q = (q * 16**-0.5).contiguous().view(19, 2 * 3, 16).transpose(0, 1)
    k, v = (x.contiguous().view(-1, 2 * 3, 16).transpose(0, 1) for x in (k, v))
    output = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1), v)
    return output.transpose(0, 1).contiguous().view(19, 2, 48)


@forms("Megatron: an empty tensor as baddbmm's input", qkv())
def baddbmm_empty(q, k, v):
    b, h, length, d = q.shape
    blank = torch.empty(b * h, length, length, dtype=q.dtype, device=q.device)
    q, k, v = (x.reshape(b * h, length, d) for x in (q, k, v))
    scores = torch.baddbmm(blank, q, k.transpose(1, 2), beta=0.0, alpha=d**-0.5)
    return torch.bmm(scores.softmax(-1), v).view(b, h, length, d)


@forms("BLOOM: ALiBi through baddbmm", lambda draw: (*(draw(6, 19, 16) for _ in "qkv"), draw(6, 1, 19)))
def baddbmm_bias(q, k, v, alibi):
    scores = alibi.baddbmm(batch1=q, batch2=k.transpose(1, 2), beta=1.0, alpha=0.25)
    return torch.bmm(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)


@forms("a textbook", lambda draw: (draw(19, 16), draw(23, 16), draw(23, 16)))
def single_head_without_batch(q, k, v):
    return torch.softmax(q @ k.T / 16**0.5, dim=1) @ v


@forms("a textbook", lambda draw: tuple(draw(3, 19, 16) for _ in "qkv"))
def single_head_with_batch(q, k, v):
    return torch.bmm(torch.softmax(torch.bmm(q, k.permute(0, 2, 1)) / 4.0, dim=2), v)


@forms("all sizes equal: a matcher that goes by sizes is wrong here", lambda draw: tuple(draw(4, 4, 4, 4) for _ in "qkv"))
def all_sizes_equal(q, k, v):
    logits = torch.einsum("qbhd,bkhd->bhqk", q, k) / 2
    return torch.einsum("bhqk,hbkd->bqhd", logits.softmax(-1), v)


@forms("non-contiguous operands", lambda draw: (draw(16, 19, 3, 2), draw(2, 16, 3, 23), draw(3, 2, 16, 23)))
def strided_operands(q, k, v):
    q, k, v = q.permute(3, 2, 1, 0), k.permute(0, 2, 3, 1), v.permute(1, 0, 3, 2)
    return (F.softmax(q @ k.transpose(2, 3) / 4, dim=3) @ v).permute(2, 0, 1, 3)


@forms("values of another width", qkv(keys=23, values=24))
def wider_values(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) * 0.25, -1) @ v


@forms("one loop for the heads", qkv(heads=2), softmaxes=2)
def loop_over_heads(q, k, v):
    heads = [torch.softmax(q[:, i] @ k[:, i].mT / 4, dim=-1) @ v[:, i] for i in range(q.shape[1])]
    return torch.cat(heads, dim=-1)


@forms("JAX habits: one head, mapped twice", qkv())
def mapped(q, k, v):
    def one(q, k, v):
        return torch.softmax(q @ k.T / 4, -1) @ v

    return torch.vmap(torch.vmap(one))(q, k, v)


@forms("products by broadcasting", qkv(heads=2, queries=7, keys=5))
def broadcast_product(q, k, v):
    scores = (q[:, :, :, None, :] * k[:, :, None, :, :]).sum(-1) / 4
    return (scores.softmax(-1)[..., None] * v[:, :, None]).sum(-2)


# ---- packed projections


@forms("nanoGPT: one projection, split", lambda draw: (draw(2, 19, 48),))
class PackedSplit(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(48, 144), nn.Linear(48, 48)
        self.register_buffer("bias", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def forward(self, x):
        b, length, c = x.size()
        q, k, v = self.c_attn(x).split(c, dim=2)
        q, k, v = (y.view(b, length, 3, c // 3).transpose(1, 2) for y in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, length, c))


@forms("timm: ViT's qkv, permuted and unbound", lambda draw: (draw(2, 17, 48),))
class PackedUnbind(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.drop = nn.Linear(48, 144), nn.Linear(48, 48), nn.Dropout(0.1)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 3, c // 3).permute(2, 0, 3, 1, 4).unbind(0)
        attn = self.drop(((q * 0.25) @ k.transpose(-2, -1)).softmax(dim=-1))
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


@forms("ViT in 100 lines: chunk", lambda draw: (draw(2, 17, 144),))
def packed_chunk(qkv):
    q, k, v = (x.unflatten(-1, (3, 16)).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
    return (torch.softmax(q @ k.mT / 4, -1) @ v).transpose(1, 2).flatten(2)


@forms("GPT-NeoX: packed within each head", lambda draw: (draw(2, 17, 144),))
def packed_within_heads(qkv):
    q, k, v = qkv.view(2, 17, 3, 48).transpose(1, 2).chunk(3, dim=-1)
    return torch.matmul(F.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.25, -1), v).transpose(1, 2).contiguous()


@forms("FlashAttention's reference: [b, l, 3, h, d] indexed", lambda draw: (draw(2, 17, 3, 3, 16),))
def packed_indexed(qkv):
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = torch.einsum("bthd,bshd->bhts", q, k * 0.25)
    return torch.einsum("bhts,bshd->bthd", torch.softmax(scores, dim=-1, dtype=v.dtype), v)


# ---- scale


@forms("scale on the query", qkv())
def scale_on_query(q, k, v):
    return F.softmax((q / math.sqrt(q.shape[-1])) @ k.mT, dim=-1) @ v


@forms("scale on the key", qkv())
def scale_on_key(q, k, v):
    return F.softmax(q @ (k * 0.25).mT, dim=-1) @ v


@forms("Whisper: the fourth root on both", qkv())
def scale_on_both(q, k, v):
    scale = q.shape[-1] ** -0.25
    return F.softmax((q * scale) @ (k * scale).mT, dim=-1) @ v


@forms("scale as a tensor, Annotated Transformer's later copies", qkv())
def scale_tensor(q, k, v):
    scores = q @ k.mT / torch.sqrt(torch.tensor(q.shape[-1], dtype=q.dtype))
    return scores.softmax(-1) @ v


@forms("T5: no scale", qkv())
def no_scale(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


@forms("a learned temperature for each head", qkv(), gradients=True)
class LearnedTemperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1))

    def forward(self, q, k, v):
        return torch.softmax((q @ k.transpose(-2, -1)) * self.temperature, dim=-1) @ v


@forms("SLViT: one learned temperature, as an exponent", qkv(), gradients=True)
class ExponentTemperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(-1.2))

    def forward(self, q, k, v):
        return torch.softmax((q @ k.transpose(-2, -1)) * self.temperature.exp(), dim=-1) @ v


# ---- softmax


@forms("nn.Softmax", qkv())
class SoftmaxModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, q, k, v):
        return self.softmax(q @ k.transpose(-2, -1) / 4) @ v


@forms("softmax in float32 and back", qkv())
def upcast_dtype(q, k, v):
    return F.softmax(q @ k.mT / 4, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@forms("LLaMA's first release", qkv())
def upcast_float(q, k, v):
    scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(16)
    return torch.matmul(F.softmax(scores.float(), dim=-1).type_as(q), v)


@forms("both products in float32", qkv())
def upcast_operands(q, k, v):
    return (torch.softmax(q.float() @ k.float().mT / 4, -1) @ v.float()).to(q.dtype)


@forms("by hand", qkv())
def exp_over_sum(q, k, v):
    e = torch.exp(q @ k.mT / 16)
    return (e / e.sum(dim=-1, keepdim=True)) @ v


@forms("by hand, stable", qkv())
def exp_of_difference(q, k, v):
    s = q @ k.mT / 4
    e = (s - s.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True) @ v


@forms("by hand, stable, max with indices, no gradient through it", qkv())
def exp_of_detached_difference(q, k, v):
    s = q @ k.mT / 4
    e = torch.exp(s - torch.max(s, dim=-1, keepdim=True)[0].detach())
    return torch.div(e, torch.sum(e, dim=-1, keepdim=True)) @ v


@forms("softmax through log-sum-exp", qkv())
def exp_minus_logsumexp(q, k, v):
    s = q @ k.mT / 4
    return torch.exp(s - torch.logsumexp(s, dim=-1, keepdim=True)) @ v


@forms("softmax through log_softmax", qkv())
def exp_of_log_softmax(q, k, v):
    return F.log_softmax(q @ k.mT / 4, dim=-1).exp() @ v


@forms("the maximum taken off before softmax", qkv())
def softmax_after_max(q, k, v):
    s = q @ k.mT / 4
    return torch.softmax(s - s.max(dim=-1, keepdim=True).values, dim=-1) @ v


@forms("CogView, BEiT: precision bottleneck relaxation", qkv())
def cogview_relaxation(q, k, v, alpha=32):
    s = q @ k.mT / 4 / alpha
    s = (s - s.amax(dim=-1).unsqueeze(-1)) * alpha
    return nn.Softmax(dim=-1)(s) @ v


@forms("FlashAttention's own order: normalised after the values", qkv())
def normalised_last(q, k, v):
    s = q @ k.mT / 4
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e @ v) / e.sum(-1, keepdim=True)


@forms("AllenNLP: exponentials times a mask", lambda draw: (*qkv()(draw), draw.boolean(2, 1, 1, 19)))
def masked_exponentials(q, k, v, mask):
    s = q @ k.mT / 4
    e = torch.exp(s - s.amax(-1, keepdim=True)) * mask
    return (e / e.sum(-1, keepdim=True)) @ v
