"""Models, batches and planted faults that the tests of the policy and the trainer share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, WIDTH, LENGTH = 48, 32, 16


def loss(output, target):
    return F.cross_entropy(output.flatten(0, 1).float(), target.flatten())


class Gate(nn.Module):
    """A SwiGLU feed-forward block with a residual."""

    def __init__(self, width=WIDTH, hidden=64):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Small(nn.Module):
    """A model of the next token from this one: embedding, blocks, norm, output layer."""

    def __init__(self, blocks=2, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Gate() for _ in range(blocks))
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY * 2)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = self.dropout(block(x))
        return self.head(self.norm(x))


def model(seed=0, **settings):
    torch.manual_seed(seed)
    return Small(**settings)


def batches(count, size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, VOCABULARY, (size, LENGTH), generator=generator) for _ in range(count)]
    return [(tokens, (3 * tokens + 1) % VOCABULARY) for tokens in drawn]


def state(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
