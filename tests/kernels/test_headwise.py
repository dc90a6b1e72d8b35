"""The float64 oracle holds the scores of one head at a time."""

import pytest
import torch

from kpt_lab.kernels import attention, headwise
from kpt_lab.kernels.attention_variants import SPECIFICATIONS


@pytest.mark.parametrize("variant", ["plain", "alibi", "document"])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_piece_is_one_head_and_all_pieces_are_the_whole(variant, groups):
    sizes = {"batch": 2, "heads": 6, "groups": groups, "length": 37, "width": 8, "variant": variant}
    inputs = attention.forward.make(device="cpu", dtype="float64", seed=0, **sizes).inputs[0]
    heads = []

    def counted(*given):
        heads.append(given[0].shape[2])
        return SPECIFICATIONS[variant](*given)

    found = headwise.forward(counted, variant)(*inputs)
    torch.testing.assert_close(found, SPECIFICATIONS[variant](*inputs), rtol=1e-12, atol=1e-12)
    assert heads == [1] * 12
