"""The compressed form of a 2:4 weight as plain data, which kernels can be checked against.

Layout, for a dense weight of shape (rows, cols), cols a multiple of 4, with at most 2 nonzero numbers in each group of 4
consecutive ones of a row:

- `values`: (rows, cols / 2), the weight's dtype: two numbers a group, in the order of their positions.
- `indices`: (rows, ceil(cols / 8)), uint8: the positions 0 to 3 of those two numbers in their group, 2 bits each. Group g of a
  row has the 4 bits at 4 * (g % 2) of byte g // 2: the first position in the lower two, the second in the upper two. The first
  is always smaller than the second. Where the number of groups is odd, the last byte's upper 4 bits are 0.

A group with fewer than two nonzero numbers is filled with zeros at its lowest free positions. Zeros lose their sign: -0.0 is a
zero and comes back as +0.0; every other number, NaN included, comes back bit for bit. This is the lab's own layout;
cuSPARSELt's and CUTLASS's interleave the indices for their instructions.
"""

from __future__ import annotations

import torch

from kpt_lab.sparsity.patterns import SparsityPattern, keep_largest

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FNUZ = ("torch.float8_e4m3fnuz", "torch.float8_e5m2fnuz")  # no -0: its code is NaN
_EIGHT = ("torch.float8_e4m3fn", "torch.float8_e5m2", *_FNUZ)
_ACCEPTED = {"torch.int8", "torch.float16", "torch.bfloat16", "torch.float32", "torch.float64", *_EIGHT}


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two numbers of each group of four that may be nonzero, and their positions in 2 bits each.

    weight: (rows, cols), cols a multiple of 4: float16, bfloat16, float32, float64, 8-bit floats or int8. Returns (values,
    indices) as the module describes. Raises ValueError naming the first group that has more than two nonzero numbers.

    >>> values, indices = pack(torch.tensor([[0.0, 5.0, 0.0, 7.0]]))
    >>> values.tolist(), [f"{byte:08b}" for byte in indices[0].tolist()]
    ([[5.0, 7.0]], ['00001101'])
    """
    bits = _bits(weight)
    full = _nonzero(bits, weight.dtype)
    groups = full.unflatten(1, (-1, 4))
    crowded = groups.sum(dim=-1) > 2
    if bool(crowded.any()):
        row, group = crowded.nonzero()[0].tolist()
        raise ValueError(
            f"weight is not 2:4: row {row}, columns {4 * group} to {4 * group + 3} hold more than 2 nonzero numbers; prune it first"
        )
    a, b, c, d = keep_largest(full.to(torch.uint8), SparsityPattern.SPARSE_24).unflatten(1, (-1, 4)).unbind(-1)
    first = torch.where(a, 0, torch.where(b, 1, 2))
    second = torch.where(d, 3, torch.where(c, 2, 1))
    chosen = torch.stack([first, second], dim=-1)
    values = torch.where(full, bits, 0).unflatten(1, (-1, 4)).gather(2, chosen).flatten(1)
    codes = (first | second << 2).to(torch.uint8)
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return values.view(weight.dtype), codes[:, 0::2] | codes[:, 1::2] << 4


def unpack(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The dense weight (rows, cols) of a packed one: values (rows, cols / 2) and indices (rows, ceil(cols / 8)) of `pack`.

    Raises ValueError where the two don't belong together or a group's positions are not in rising order.
    """
    if values.dim() != 2 or values.shape[1] % 2 or not values.numel():
        raise ValueError(f"values has shape {tuple(values.shape)}; (rows, cols / 2) with two numbers a group is needed")
    rows, groups = values.shape[0], values.shape[1] // 2
    if indices.dtype != torch.uint8 or tuple(indices.shape) != (rows, -(-groups // 2)):
        raise ValueError(
            f"indices is {indices.dtype} of shape {tuple(indices.shape)}; torch.uint8 of shape {(rows, -(-groups // 2))} belongs "
            "to these values"
        )
    codes = torch.stack([indices & 15, indices >> 4], dim=-1).flatten(1)[:, :groups].to(torch.int64)
    chosen = torch.stack([codes & 3, codes >> 2], dim=-1)
    if not bool((chosen[..., 0] < chosen[..., 1]).all()):
        raise ValueError("indices holds a group whose first position is not below its second; they are not from pack")
    bits = values.contiguous().view(_BITS[values.element_size()])
    dense = bits.new_zeros(rows, groups, 4).scatter(2, chosen, bits.unflatten(1, (-1, 2)))
    return dense.flatten(1).view(values.dtype)


def memory_ratio(values: torch.Tensor, indices: torch.Tensor) -> float:
    """Bytes of the packed form over bytes of the dense weight, 1/2 + 1/8 over the bytes of a number where nothing is padded."""
    packed = values.numel() * values.element_size() + indices.numel() * indices.element_size()
    return packed / (2 * values.numel() * values.element_size())


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """The weight's numbers as integers of their size; TypeError or ValueError where it can't be packed."""
    if not isinstance(weight, torch.Tensor) or str(weight.dtype) not in _ACCEPTED:
        came = weight.dtype if isinstance(weight, torch.Tensor) else type(weight).__name__
        raise TypeError(
            f"weight is {came}; {', '.join(sorted(name.removeprefix('torch.') for name in _ACCEPTED))} are accepted"
        )
    if weight.dim() != 2 or not weight.numel() or weight.shape[1] % 4:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; (rows, cols) with cols a multiple of 4 is needed")
    return weight.detach().contiguous().view(_BITS[weight.element_size()])


def _nonzero(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Where the number is not zero of either sign."""
    if not dtype.is_floating_point or str(dtype) in _FNUZ:
        return bits != 0
    sign = 0x80 if bits.dtype == torch.uint8 else torch.iinfo(bits.dtype).min
    return (bits != 0) & (bits != sign)
