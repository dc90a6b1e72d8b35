import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given

from kpt_lab.kernels import forward_and_backward, softmax
from kpt_lab.testing import assert_close_to_oracle, awkward_sizes, guarded, interpreted

pytestmark = interpreted()
DTYPES = ["float16", "bfloat16", "float32"]
INF = math.inf
fast = softmax.triton_softmax


def both(candidate):
    return forward_and_backward(candidate)


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
@pytest.mark.parametrize("cols", awkward_sizes)
def test_forward_and_backward_against_float64(cols, dtype):
    x, dy = 3 * torch.randn(3, cols), torch.randn(3, cols)
    # in float64 the oracle is no better than the candidate: both sum 1,000 terms in their own order
    assert_close_to_oracle(both(fast), both(softmax.softmax), x, dy, dtype=dtype, tolerance=64 if dtype == "float64" else 16)


@pytest.mark.parametrize("shape", [(5, 33), (2, 3, 1000), (1025,)])
def test_forward_against_scipy(shape):
    x = 5 * np.random.default_rng(0).standard_normal(shape)
    output = fast(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(output, scipy.special.softmax(x, axis=-1), rtol=1e-13, atol=1e-16)


def test_backward_against_the_jacobian():
    x, dy = np.random.default_rng(1).standard_normal((2, 4, 17))
    y = scipy.special.softmax(x, axis=-1)
    jacobian = np.einsum("ri,ij->rij", y, np.eye(17)) - np.einsum("ri,rj->rij", y, y)
    _, dx = both(fast)(torch.from_numpy(x), torch.from_numpy(dy))
    np.testing.assert_allclose(dx.numpy(), np.einsum("rij,ri->rj", jacobian, dy), rtol=1e-12, atol=1e-15)


def test_gradcheck():
    assert torch.autograd.gradcheck(fast, torch.randn(2, 5, dtype=torch.float64, requires_grad=True))


def extreme(cols):
    rows = {
        "all minus infinity": torch.full((cols,), -INF),
        "one plus infinity": torch.randn(cols).index_fill(0, torch.tensor(cols // 2), INF),
        "masked": torch.randn(cols).masked_fill(torch.arange(cols) % 3 > 0, -INF),
        "all but one masked": torch.full((cols,), -INF).index_fill(0, torch.tensor(cols - 1), 2.0),
        "all equal": torch.full((cols,), 7.0),
        "huge": torch.tensor([3e38, -3e38]).repeat(cols)[:cols],
        "large offset": torch.randn(cols) + 1e4,
        "nan": torch.randn(cols).index_fill(0, torch.tensor(1), math.nan),
        "tiny": torch.full((cols,), 1e-40),
    }
    return torch.stack(list(rows.values()))


LONG = softmax.Launch(64, 1, 1, packed=False, long=True)
SEVERAL = softmax.Launch(256, 4, 1, packed=False, long=False)


def by(launch):
    """Softmax forward with a launch that its size would not choose."""

    def run(x):
        y = torch.empty_like(x)
        softmax.run_forward(x, y, launch)
        return y

    return run


@pytest.mark.parametrize("cols", [3, 65, 200])
@pytest.mark.parametrize("function", [fast, by(LONG), by(SEVERAL)], ids=["chosen", "long", "several rows"])
def test_extreme_rows(function, cols):
    assert_close_to_oracle(function, softmax.softmax, extreme(cols))


@pytest.mark.parametrize("cols", [1, 63, 64, 65, 128, 200, 256])
@pytest.mark.parametrize("launch", [LONG, SEVERAL], ids=["long", "several rows"])
def test_other_launches_give_the_same(launch, cols):
    x, dy = torch.randn(6, cols), torch.randn(6, cols)
    assert_close_to_oracle(by(launch), softmax.softmax, x)
    y = torch.softmax(x, -1)

    def backward(dy, y):
        dx = torch.empty_like(y)
        softmax.run_backward(dy, y, dx, launch)
        return dx

    assert_close_to_oracle(backward, lambda dy, y: y * (dy - (y * dy).sum(-1, keepdim=True)), dy, y)


@pytest.mark.parametrize("cols", [7, 33, 200])
@pytest.mark.parametrize("launch", [None, LONG, SEVERAL], ids=["chosen", "long", "several rows"])
def test_nothing_outside_is_read_or_written(launch, cols):
    (x, check_x), (y, check_y), (dx, check_dx) = (guarded(torch.randn(5, cols)) for _ in range(3))
    softmax.run_forward(x, y, launch)
    softmax.run_backward(x, y, dx, launch)
    for check in (check_x, check_y, check_dx):
        check()
    torch.testing.assert_close(y, torch.softmax(x, -1))
    torch.testing.assert_close(dx, torch._softmax_backward_data(x, y, -1, x.dtype))


def test_padding_of_strided_rows_is_not_read():
    buffer, check = guarded(torch.full((4, 48), math.nan))
    buffer[:, 8:41] = torch.randn(4, 33)
    assert_close_to_oracle(fast, softmax.softmax, buffer[:, 8:41])
    check()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 2),
        lambda x: x[:, ::2],
        lambda x: x[..., ::2],
        lambda x: x[..., 1:],
        lambda x: x.transpose(0, 1),
        lambda x: x[:, :1].expand(3, 4, 20),
        lambda x: x[0, 0, 0],
        lambda x: x[:0],
        lambda x: x[..., :0],
        lambda x: x[None, :, None],
    ],
)
def test_any_shape_and_stride(view):
    x = view(torch.randn(3, 4, 20))
    assert_close_to_oracle(fast, softmax.softmax, x)
    assert fast(x).is_contiguous()
    assert_close_to_oracle(both(fast), both(softmax.softmax), x, torch.randn(x.shape[-1:]).expand(x.shape))


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**31 - 1), st.floats(-50, 50))
def test_invariants(rows, cols, seed, shift):
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = fast(x)
    order = torch.randperm(cols, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(y.sum(-1), torch.ones(rows, dtype=torch.float64))
    torch.testing.assert_close(fast(x + shift), y, rtol=1e-12, atol=0)
    torch.testing.assert_close(fast(x[:, order]), y[:, order], rtol=1e-12, atol=0)
    _, dx = both(fast)(x, x)
    torch.testing.assert_close(dx.sum(-1), torch.zeros(rows, dtype=torch.float64), rtol=0, atol=1e-12)


def test_opcheck():
    for x in (torch.randn(3, 5), torch.randn(2, 3, 4), torch.randn(0, 4), torch.randn(5, 3).t()):
        torch.library.opcheck(softmax.triton_softmax, (x.clone().requires_grad_(),))
        torch.library.opcheck(softmax.triton_softmax_backward, (torch.randn(x.shape), x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_by_aot_eager(dtype):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: fast(2 * x) + 1, backend="aot_eager", fullgraph=True)
    x, dy = torch.randn(2, 3, 33), torch.randn(2, 3, 33)
    assert_close_to_oracle(both(compiled), both(lambda x: softmax.softmax(2 * x) + 1), x, dy, dtype=dtype)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_vmap(dim):
    x, dy = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    mapped, plain = (torch.func.vmap(f, in_dims=dim) for f in (fast, softmax.softmax))
    assert_close_to_oracle(mapped, plain, x)
    assert_close_to_oracle(both(mapped), both(plain), x, dy.movedim(dim, 0))
    if dim >= 0:  # an unbatched output with a batch of upstream gradients, as in a Jacobian
        y, backward = torch.softmax(x.select(dim, 0), -1), softmax.triton_softmax_backward
        each = torch.func.vmap(backward, in_dims=(dim, None))(dy, y)
        torch.testing.assert_close(each, torch.stack([backward(one, y) for one in dy.unbind(dim)]), rtol=0, atol=0)
    torch.testing.assert_close(torch.func.vmap(fast)(torch.randn(4)), torch.ones(4))


@given(st.integers(1, 200_000), st.sampled_from([2, 4, 8]), st.sampled_from([1, 2]))
def test_launches_fit_the_registers(cols, itemsize, tensors):
    launch = softmax.launch_for(cols, itemsize, tensors)
    assert launch.warps in (1, 2, 4, 8, 16, 32)
    assert launch.block & (launch.block - 1) == 0
    if launch.long:
        assert cols * itemsize * tensors > softmax.HELD // 2
    else:
        registers = launch.block * launch.rows * itemsize * tensors / (32 * launch.warps * 4)
        assert launch.block >= cols
        assert registers <= 32
