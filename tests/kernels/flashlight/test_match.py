"""What the matcher says about graphs, beyond the corpus: roles, masks, symbolic sizes, gradients, and reasons."""

import math

import pytest
import torch
from corpus import oracle
from idioms import by_name
from rewriting import rewritten
from torch.nn import functional as F


def only(fn, *args, **options):
    """The one part of the one attention of a callable."""
    found = rewritten(fn, args, **options)
    assert [r.reason for r in found.refusals] == []
    (attention,) = found.attentions
    torch.testing.assert_close(found.output, fn(*args), rtol=2e-5, atol=2e-6, equal_nan=True)
    return attention, attention.parts[0]


def reasons(fn, *args):
    found = rewritten(fn, args)
    assert found.attentions == []
    assert torch.equal(found.output[0] if isinstance(found.output, tuple) else found.output, first(fn(*args)))
    return " ".join(r.reason for r in found.refusals)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def qkv(queries=9, keys=9, heads=3, width=8):
    return draw(2, heads, queries, width), draw(2, heads, keys, width) + 0.1, draw(2, heads, keys, width) - 0.1


def causal(rows, columns):
    return torch.ones(rows, columns, dtype=torch.bool).tril()


@torch.no_grad()
@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (lambda: causal(9, 9), "q ≥ k"),
        (lambda: torch.ones(9, 9).triu(1) == 0, "q ≥ k"),
        (lambda: ~torch.triu(torch.ones(9, 9), 1).bool(), "q ≥ k"),
        (lambda: torch.arange(9)[None] <= torch.arange(9)[:, None], "q ≥ k"),
        (lambda: (torch.arange(9)[:, None] - torch.arange(9)).abs() < 3, "abs(q - k) < 3"),
        (lambda: torch.eye(9).bool() | causal(9, 9), "(q = k) or (q ≥ k)"),
        (lambda: (torch.arange(9) % 2 == 0)[None, :] & causal(9, 9), "((k mod 2) = 0) and (q ≥ k)"),
        (lambda: (torch.arange(9)[:, None] // 3) == (torch.arange(9) // 3), "(q // 3) = (k // 3)"),
    ],
)
def test_masks_read_as_mathematics(mask, text):
    def attention(q, k, v):
        return (q @ k.mT).masked_fill(~mask(), -math.inf).softmax(-1) @ v

    _, part = only(attention, *qkv())
    assert str(part.mask) == text
    assert part.fill == "infinite"


@torch.no_grad()
def test_decode_has_an_offset():
    def attention(q, k, v):
        rows = torch.arange(q.shape[2]) + k.shape[2] - q.shape[2]
        return (q @ k.mT).masked_fill(rows[:, None] < torch.arange(k.shape[2]), -math.inf).softmax(-1) @ v

    _, part = only(attention, *qkv(3, 9))
    assert str(part.mask) == "(q - k) ≥ -6"
    _, part = only(attention, *qkv(1, 9))
    assert part.mask is None


@torch.no_grad()
def test_values_may_be_wider_and_operands_may_lie_in_any_order():
    q, k, v = draw(7, 2, 3, 8), draw(3, 8, 2, 11), draw(11, 3, 2, 5)
    attention, part = only(
        lambda q, k, v: torch.einsum("hbqk,khbd->bqdh", torch.einsum("qbhw,hwbk->hbqk", q, k).softmax(-1), v), q, k, v
    )
    assert part.groups == 1
    assert sorted(d for role in attention.dims for d in role) == [0, 1, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("repeat", ["repeat_interleave", "expand", "repeat", "five dimensions"])
def test_groups(repeat):
    def attention(q, k, v):
        if repeat == "five dimensions":
            s = torch.einsum("bhgqd,bhkd->bhgqk", q.unflatten(1, (2, 3)), k).softmax(-1)
            return torch.einsum("bhgqk,bhkd->bhgqd", s, v).flatten(1, 2)
        spread = {
            "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
            "expand": lambda x: x[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2),
            "repeat": lambda x: x.repeat(1, 3, 1, 1),
        }[repeat]
        return (q @ spread(k).mT).softmax(-1) @ spread(v)

    q, k, v = draw(2, 6, 9, 8), draw(2, 2, 9, 8), draw(2, 2, 9, 8) + 1
    attention, part = only(attention, q, k, v)
    assert part.groups == 3
    assert attention.value.node.op == "placeholder"


@torch.no_grad()
def test_rows_without_keys_say_what_they_give():
    mask = causal(9, 9)
    mask[4] = False

    def attention(q, k, v, mask, fill, guard):
        p = (q @ k.mT).masked_fill(~mask, fill).softmax(-1)
        return guard(p, mask) @ v

    for fill, guard, wanted in [
        (-math.inf, lambda p, m: p, "infinite"),
        (-1e9, lambda p, m: p, "finite"),
        (-math.inf, lambda p, m: p.nan_to_num(0.0), "zero"),
        (-1e9, lambda p, m: p.masked_fill(~m, 0.0), "zero"),
        (-1e9, lambda p, m: p * m.any(-1, keepdim=True), "zero"),
    ]:
        _, part = only(lambda q, k, v, m, f=fill, g=guard: attention(q, k, v, m, f, g), *qkv(), mask)
        assert part.fill == wanted


@torch.no_grad()
def test_dropout_is_recorded_and_inert_when_it_is_off():
    def attention(q, k, v, training):
        return F.dropout((q @ k.mT).softmax(-1), 0.25, training) @ v

    found = rewritten(lambda *x: attention(*x, True), qkv())
    assert [a.dropout for a in found.attentions] == [0.25]
    whole, _ = only(lambda *x: attention(*x, False), *qkv())
    assert whole.dropout == 0.0


@torch.no_grad()
def test_writes_in_place_are_followed():
    def attention(q, k, v, bias):
        s = q @ k.mT
        s /= 4
        s += bias
        s[..., 2:4] = -math.inf
        return s.softmax(-1) @ v

    only(attention, *qkv(), draw(3, 9, 9))


@torch.no_grad()
def test_inputs_that_are_written_to_are_written_to():
    def attention(q, k, v, cache):
        cache[:, :, 3:5] = k[:, :, :2]
        return (q @ cache.mT).softmax(-1) @ v

    q, k, v = qkv()
    one, other = draw(2, 3, 9, 8), draw(2, 3, 9, 8)
    wanted = attention(q, k, v, one)
    found = rewritten(attention, (q, k, v, other))
    assert found.matched == 1
    assert torch.equal(one, other)
    torch.testing.assert_close(found.output, wanted)


def lengths_seen(fn, made):
    """How often a callable is captured for three lengths, and the largest error against plain PyTorch."""
    import reference

    from kpt_lab.kernels.flashlight import match
    from kpt_lab.kernels.flashlight.capture import functional_form, remove_dead

    graphs, errors = [], []

    def backend(graph_module, inputs):
        graph = functional_form(graph_module, inputs)
        drafts, refusals = match.find(graph)
        assert not refusals, refusals
        for draft in drafts:
            reference.insert(graph, draft.build())
        remove_dead(graph)
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(fn, backend=backend)
    for length in (9, 14, 21):
        args = made(length)
        errors.append(float((compiled(*args) - fn(*args)).abs().max()))
    return len(graphs), max(errors)


@torch.no_grad()
def test_no_capture_after_the_second_length():
    def attention(q, k, v, pad):
        s = q @ k.mT / math.sqrt(q.shape[-1])
        keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril() & pad[:, None, None, :]
        return s.masked_fill(~keep, -1e9).softmax(-1) @ v

    def folded(q, k, v, pad):
        b, h, n, d = q.shape
        q, k, v = (x.reshape(b * h, n, d) for x in (q, k, v))
        s = torch.bmm(q, k.transpose(1, 2)).view(b, h, n, n) + torch.where(
            pad[:, None, None], 0.0, torch.finfo(torch.float32).min
        )
        return torch.bmm(s.softmax(-1).view(b * h, n, n), v).view(b, h, n, d).transpose(1, 2).reshape(b, n, h * d)

    for fn in (attention, folded):
        count, error = lengths_seen(fn, lambda n: (*qkv(n, n), torch.arange(n).expand(2, n) < n - 2))
        assert count == 2
        assert error < 2e-6


def test_a_stopped_gradient_is_not_let_through():
    q, k, v = (x.requires_grad_() for x in qkv())
    assert "gradient is stopped" in reasons(lambda q, k, v: (q @ k.mT).detach().softmax(-1) @ v, q, k, v)

    def switched(q, k, v):
        with torch.no_grad():
            s = q @ k.mT
        return s.softmax(-1) @ v

    assert "gradient is stopped" in reasons(switched, q, k, v)
    scale = torch.ones(3, 1, 1, requires_grad=True)
    found = rewritten(lambda q, k, v, t: (q @ k.mT * t.exp().detach()).softmax(-1) @ v, (q, k, v, scale))
    assert found.matched == 1
    found.output.sum().backward()
    assert scale.grad is None
    assert q.grad is not None


def test_gradients_are_those_of_the_original():
    def attention(q, k, v, table):
        gap = torch.arange(9)[None] - torch.arange(9)[:, None]
        return ((q @ k.mT).float() / 3 + table[:, gap.clamp(-4, 4) + 4]).softmax(-1).to(q.dtype) @ v

    args = [x.double().requires_grad_() for x in (*qkv(), draw(3, 9))]
    found = rewritten(attention, tuple(args))
    assert found.matched == 1
    given = torch.autograd.grad(found.output.square().sum(), args)
    wanted = torch.autograd.grad(attention(*args).square().sum(), args)
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_reasons_beyond_the_corpus():
    q, k, v = qkv()
    router = lambda x, w, y: ((x @ w).softmax(-1)[..., None] * y).sum(-2)  # noqa: E731
    assert "no product with values" in reasons(router, draw(5, 8), draw(8, 4), draw(5, 4, 6))
    assert "no product with values" in reasons(lambda x: F.log_softmax(x, -1).exp() * 2, draw(5, 8))
    assert "not a product" in reasons(lambda q, v: q.softmax(-1) @ v, draw(2, 3, 9, 9), v)
    assert "returned" in reasons(lambda q, k, v: ((p := (q @ k.mT).softmax(-1)) @ v, p.detach()), q, k, v)
    assert "used elsewhere" in reasons(lambda q, k, v: ((p := (q @ k.mT).softmax(-1)) @ v, p.sum()), q, k, v)


@torch.no_grad()
def test_an_output_that_shares_memory_with_a_written_input():
    def attention(q, k, v):
        return (q @ k.mT).softmax(-1) @ v, v.mul_(2).view(-1)

    (reason,) = rewritten(attention, qkv()).unsupported
    assert "shares memory" in reason


@torch.no_grad()
def test_both_uses_of_one_softmax():
    q, k, v = qkv()
    found = rewritten(lambda q, k, v: ((p := (q @ k.mT).softmax(-1)) @ v) - p @ v.flip(-1), (q, k, v))
    assert len(found.attentions) == 2
    assert found.refusals == []


@torch.no_grad()
def test_the_oracle_agrees_with_another():
    fn, args = by_name["causal_tril"].make(0, torch.float32)
    found = rewritten(fn, args)
    torch.testing.assert_close(
        found.output.double(), oracle(*by_name["causal_tril"].make(0, torch.float32)), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 9])
def test_one_key_has_nothing_to_fuse(queries):
    assert "there is one key" in reasons(lambda q, k, v: (q @ k.mT).softmax(-1) @ v, *qkv(queries, 1))


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_a_batch_of_one_row_reads_as_any_other(groups):
    """Heads taken for the batch would be written in another order than the output's, and copied."""

    def attention(q, k, v):  # (b, l, h, d), as models have it
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        return torch.einsum("bhqk,bkhd->bqhd", torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k), -1), v)

    places = []
    for rows in (1, 2):
        found, part = only(attention, draw(rows, 9, 4, 8), draw(rows, 9, 4 // groups, 8), draw(rows, 9, 4 // groups, 8))
        assert part.groups == groups
        places.append((found.dims, found.value.dims, part.query.dims, part.key.dims))
    assert places[0] == places[1] == (((0,), (2,), (1,), (3,)),) * 4


@torch.no_grad()
def test_a_lone_digit_before_queries_and_keys_is_the_batch():
    found, part = only(lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, draw(3, 9, 8), draw(3, 9, 8), draw(3, 9, 8))
    assert found.dims == part.query.dims == ((0,), (), (1,), (2,))
