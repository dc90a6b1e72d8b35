"""Small transformers that between them use every step that can be converted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, TOKENS, CLASSES = 12, 5, 3


class Own(nn.Module):
    """Written out: learned positions, class token, one matrix for query, key and value, indexing, mean pooling."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(4, WIDTH)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, TOKENS + 1, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.positions
        rows, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(rows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-2, -1) / (width // self.heads) ** 0.5
        mixed = (scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(rows, tokens, width)
        x = x + self.out(mixed)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1) + x[:, 0])


class Torchs(nn.Module):
    """torch's encoder and its attention module, called for its tuple."""

    def __init__(self, norm_first: bool = False, batch_first: bool = True, activation: str = "gelu") -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed, self.positions = nn.Linear(4, WIDTH), nn.Parameter(torch.randn(TOKENS, 1, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 3, 20, batch_first=batch_first, norm_first=norm_first, activation=activation, dropout=0.3
        )
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("mask", torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(x).transpose(0, 1) + self.positions
        x = x.transpose(0, 1) if self.batch_first else x
        x = self.encoder(x, mask=self.mask)
        mixed, weights = self.attention(x, x, x)
        x = x + mixed
        pooled = x.mean(dim=1 if self.batch_first else 0)
        return self.head(pooled), weights


class Llama(nn.Module):
    """Token ids, learned positions by index, RMSNorm, causal scaled_dot_product_attention, a gated SiLU, tied head."""

    def __init__(self, vocabulary: int = 11) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(WIDTH, 16, bias=False), nn.Linear(WIDTH, 16, bias=False)
        self.down = nn.Linear(16, WIDTH, bias=False)

    def forward(self, ids: Tensor, scale: float | None = None) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.size(1)))
        h = self.norm1(x)
        rows, tokens, _ = h.shape
        q, k, v = (layer(h).view(rows, tokens, 3, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        x += self.down(F.silu(self.gate(h)) * self.up(h))
        return F.linear(x, self.tokens.weight)


class Split(nn.Module):
    """chunk, split, stack, unsqueeze, subtraction, ReLU in place, a product with itself, and a scaled residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, WIDTH), nn.Linear(6, WIDTH)
        self.relu, self.scale = nn.ReLU(inplace=True), nn.Parameter(torch.rand(WIDTH))
        self.drop, self.soft = nn.Dropout(0.5), nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.first(x).chunk(2, -1)
        c, d = (b - a).split(3, -1)
        joined = torch.stack([c, d], -1).flatten(-2).unsqueeze(-1).squeeze(-1)
        y = self.relu(self.second(joined)) * self.scale
        gram = self.soft(y @ y.mT)
        return {"mixed": gram @ y, "square": self.drop(a) * a, "values": 1 - y}


def values(rows: int = 6) -> Tensor:
    return torch.randn(rows, TOKENS, 4)


def ids(rows: int = 6) -> Tensor:
    return torch.randint(0, 11, (rows, TOKENS))
