"""The compressed 2:4 form: exact round trips, the layout bit by bit, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kpt_lab.sparsity import magnitude_mask, memory_ratio, pack, unpack

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EIGHT = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


def sparse(rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    weight = torch.randn(rows, cols)
    return torch.where(magnitude_mask(weight), weight, 0).to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", FLOATS + EIGHT, ids=str)
@pytest.mark.parametrize("shape", [(1, 4), (3, 8), (5, 12), (33, 100), (64, 256)], ids=str)
def test_round_trip_is_bit_for_bit(shape, dtype):
    weight = sparse(*shape, dtype)
    values, indices = pack(weight)
    assert values.dtype == dtype
    assert values.shape == (shape[0], shape[1] // 2)
    assert indices.dtype == torch.uint8
    assert indices.shape == (shape[0], -(-shape[1] // 8))
    assert torch.equal(bits(unpack(values, indices)), bits(weight))


def test_int8_and_strided_weights_round_trip():
    weight = torch.where(magnitude_mask(torch.randn(6, 16)), torch.randint(-128, 128, (6, 16)), 0).to(torch.int8)
    assert torch.equal(unpack(*pack(weight)), weight)
    wide = sparse(16, 16, torch.float32)
    assert torch.equal(unpack(*pack(wide[::2])), wide[::2])


@given(
    st.lists(st.lists(st.sampled_from([(i, j) for i in range(4) for j in range(i + 1, 4)]), min_size=3, max_size=3), min_size=1)
)
def test_positions_are_two_bits_each_in_the_documented_place(rows):
    weight = torch.zeros(len(rows), 12)
    for row, groups in enumerate(rows):
        for group, pair in enumerate(groups):
            weight[row, [4 * group + place for place in pair]] = torch.tensor([1.0 + group, -1.0 - group])
    values, indices = pack(weight)
    for row, groups in enumerate(rows):
        for group, (first, second) in enumerate(groups):
            code = int(indices[row, group // 2]) >> 4 * (group % 2) & 15
            assert (code & 3, code >> 2) == (first, second)
            assert values[row, 2 * group : 2 * group + 2].tolist() == [1.0 + group, -1.0 - group]
        assert int(indices[row, 1]) >> 4 == 0  # three groups: the fourth half byte is unused
    assert torch.equal(unpack(values, indices), weight)


def test_all_sixteen_choices_of_nonzeros_survive_or_are_refused():
    for chosen in range(16):
        weight = torch.tensor([[float(chosen >> place & 1) * (place + 1) for place in range(4)]])
        if chosen.bit_count() <= 2:
            assert torch.equal(unpack(*pack(weight)), weight)
        else:
            with pytest.raises(ValueError, match="row 0, columns 0 to 3 hold more than 2 nonzero"):
                pack(weight)


@pytest.mark.parametrize("dtype", FLOATS + EIGHT[:2], ids=str)
def test_zeros_lose_their_sign_and_count_as_zero(dtype):
    weight = torch.tensor([[-0.0, 1.0, -0.0, 2.0], [-0.0, -0.0, 3.0, 0.0]]).to(dtype)
    back = unpack(*pack(weight))
    assert torch.equal(back.float(), weight.float())
    assert not back.float()[weight.float() == 0].signbit().any()


@pytest.mark.parametrize("dtype", EIGHT[2:], ids=str)
def test_the_code_of_negative_zero_is_nan_in_fnuz_and_stays(dtype):
    weight = torch.tensor([[0x80, 0, 0, 0x38]], dtype=torch.uint8).view(dtype)
    assert torch.equal(bits(unpack(*pack(weight))), bits(weight))


def test_nan_and_infinity_keep_their_bits():
    weight = torch.tensor([[0.0, float("inf"), 0.0, 0.0]])
    weight.view(torch.int32)[0, 2] = 0x7FC12345
    assert torch.equal(bits(unpack(*pack(weight))), bits(weight))


@pytest.mark.parametrize(
    ("dtype", "ratio"), [(torch.bfloat16, 9 / 16), (torch.float32, 17 / 32), (torch.float8_e4m3fn, 10 / 16)], ids=str
)
def test_memory_is_half_and_two_bits_a_number(dtype, ratio):
    assert memory_ratio(*pack(sparse(4, 64, dtype))) == ratio
    assert memory_ratio(*pack(sparse(4, 4, dtype))) > ratio  # half a byte of indices is padding


@pytest.mark.parametrize(
    ("weight", "error", "sentence"),
    [
        (torch.zeros(2, 6), ValueError, r"shape \(2, 6\)"),
        (torch.zeros(4), ValueError, r"shape \(4,\)"),
        (torch.zeros(0, 4), ValueError, r"shape \(0, 4\)"),
        (torch.zeros(2, 4, dtype=torch.bool), TypeError, "weight is torch.bool"),
        (torch.zeros(2, 4, dtype=torch.complex64), TypeError, "weight is torch.complex64"),
        ([[0.0] * 4], TypeError, "weight is list"),
        (torch.ones(3, 8), ValueError, "row 0, columns 0 to 3"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_a_sentence(weight, error, sentence):
    with pytest.raises(error, match=sentence):
        pack(weight)


def test_the_first_crowded_group_is_named():
    weight = sparse(5, 16, torch.float32)
    weight[3, 8:12] = 1.0
    with pytest.raises(ValueError, match="row 3, columns 8 to 11"):
        pack(weight)


def test_parts_that_do_not_belong_together_are_refused():
    values, indices = pack(sparse(2, 16, torch.float32))
    with pytest.raises(ValueError, match=r"torch.uint8 of shape \(2, 2\) belongs"):
        unpack(values, indices[:, :1])
    with pytest.raises(ValueError, match=r"indices is torch\.int64"):
        unpack(values, indices.long())
    with pytest.raises(ValueError, match="first position is not below its second"):
        unpack(values, torch.zeros_like(indices))
    with pytest.raises(ValueError, match="values has shape"):
        unpack(values[:, :3], indices)
