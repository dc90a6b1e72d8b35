import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given

from kpt_lab.kernels import accumulator, forward_and_backward, gelu
from kpt_lab.testing import assert_close_to_oracle, awkward_sizes, guarded, interpreted

pytestmark = interpreted()
DTYPES = ["float16", "bfloat16", "float32"]
INF = math.inf
FORMS = [
    pytest.param(gelu.triton_gelu, gelu.gelu, id="erf"),
    pytest.param(gelu.triton_gelu_tanh, gelu.gelu_tanh, id="tanh"),
]
both = forward_and_backward


def scipy_gelu(x):
    return x * scipy.special.ndtr(x)


def scipy_slope(x):
    return scipy.special.ndtr(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def scipy_gelu_tanh(x):
    return x * scipy.special.expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", awkward_sizes)
@pytest.mark.parametrize(("fast", "specification"), FORMS)
def test_forward_and_backward_against_float64(fast, specification, size, dtype):
    x, dy = 3 * torch.randn(3, size), torch.randn(3, size)
    assert_close_to_oracle(both(fast), both(specification), x, dy, dtype=dtype)


def test_against_scipy():
    x = np.linspace(-30, 30, 4001)
    one = torch.ones(4001, dtype=torch.float64)
    y, dx = (t.numpy() for t in both(gelu.triton_gelu)(torch.from_numpy(x), one))
    np.testing.assert_allclose(y, scipy_gelu(x), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(dx, scipy_slope(x), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(gelu.triton_gelu_tanh(torch.from_numpy(x)), scipy_gelu_tanh(x), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 7.5e-8), (torch.float32, 3e-7)])
def test_the_short_form_of_phi_is_as_close_as_it_says(dtype, limit):
    """Wide buffers through the 16-bit code path show the formula's error, apart from the rounding to 16 bits."""
    x = torch.linspace(-12, 12, 20000, dtype=dtype)  # an even number of points: no zero among them
    y = torch.empty_like(x)
    gelu._forward[(3,)](x, y, 20000, False, True, 8192, accumulator(dtype))
    exact = scipy.special.ndtr(x.double().numpy())
    assert np.abs((y.double() / x.double()).numpy() - exact).max() < limit


@pytest.mark.parametrize(("fast", "specification"), FORMS)
def test_gradcheck(fast, specification):
    assert torch.autograd.gradcheck(fast, torch.linspace(-4, 4, 9, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fast", "specification"), FORMS)
def test_extreme_values(fast, specification, dtype):
    finite = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 5.5, -5.5, 30.0, -30.0, 60000.0, -60000.0])
    assert_close_to_oracle(both(fast), both(specification), finite, torch.ones(10), dtype=dtype)
    # infinity times zero is NaN in the specification, and here
    assert_close_to_oracle(
        both(fast), both(specification), torch.tensor([INF, -INF, math.nan, 1.0]), torch.ones(4), dtype=dtype
    )


@pytest.mark.parametrize("x", [1e15, 1e30, 3e38])
def test_huge_values_pass_through(x):
    for fast, mirrored in ((gelu.triton_gelu, -0.0), (gelu.triton_gelu_tanh, -0.0)):
        y, dx = both(fast)(torch.tensor([x, -x]), torch.ones(2))
        torch.testing.assert_close(y, torch.tensor([x, mirrored]))
        torch.testing.assert_close(dx, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("tanh", [False, True])
def test_nothing_outside_is_read_or_written(size, tanh):
    launch = gelu.Launch(64, 1)
    (x, check_x), (y, check_y), (dx, check_dx) = (guarded(torch.randn(size)) for _ in range(3))
    gelu.run_forward(x, y, tanh, launch)
    gelu.run_backward(x, x, dx, tanh, launch)
    for check in (check_x, check_y, check_dx):
        check()
    form = "tanh" if tanh else "none"
    torch.testing.assert_close(y, torch.nn.functional.gelu(x, approximate=form))
    torch.testing.assert_close(dx, torch.ops.aten.gelu_backward(x, x, approximate=form))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 2),
        lambda x: x[..., ::2],
        lambda x: x[:, :1].expand(3, 4, 20),
        lambda x: x[0, 0, 0],
        lambda x: x[:0],
        lambda x: x[..., :0],
    ],
)
def test_any_shape_and_stride(view):
    x = view(torch.randn(3, 4, 20))
    upstream = torch.randn(()).expand(x.shape)  # as the gradient of a sum is: strides 0
    assert_close_to_oracle(both(gelu.triton_gelu), both(gelu.gelu), x, upstream)
    assert gelu.triton_gelu(x).is_contiguous()


@given(st.floats(-30, 30), st.sampled_from([gelu.triton_gelu, gelu.triton_gelu_tanh]))
def test_odd_part_is_half_of_x(x, fast):
    """gelu(x) - gelu(-x) = x, for both forms, since Phi(x) + Phi(-x) = 1."""
    y = fast(torch.tensor([x, -x], dtype=torch.float64))
    assert float(y[0] - y[1]) == pytest.approx(x, rel=1e-13, abs=1e-300)


def test_opcheck():
    for x in (torch.randn(3, 5), torch.randn(0, 4), torch.randn(5, 3).t()):
        for tanh in (False, True):
            torch.library.opcheck(gelu._gelu_op, (x.clone().requires_grad_(), tanh))
            torch.library.opcheck(gelu._gelu_backward_op, (torch.randn(x.shape), x, tanh))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fast", "specification"), FORMS)
def test_compiled_by_aot_eager(fast, specification, dtype):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: fast(2 * x) + 1, backend="aot_eager", fullgraph=True)
    x, dy = torch.randn(2, 33), torch.randn(2, 33)
    assert_close_to_oracle(both(compiled), both(lambda x: specification(2 * x) + 1), x, dy, dtype=dtype)


@pytest.mark.parametrize(("fast", "specification"), FORMS)
def test_vmap(fast, specification):
    x, dy = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    mapped, plain = (torch.func.vmap(f, in_dims=1) for f in (fast, specification))
    assert_close_to_oracle(mapped, plain, x)
    assert_close_to_oracle(both(mapped), both(plain), x, dy.movedim(1, 0))
    each = torch.func.vmap(gelu._gelu_backward_op, in_dims=(0, None, None))(dy, x[0], fast is gelu.triton_gelu_tanh)
    wanted = [gelu._gelu_backward_op(one, x[0], fast is gelu.triton_gelu_tanh) for one in dy]
    torch.testing.assert_close(each, torch.stack(wanted), rtol=0, atol=0)
