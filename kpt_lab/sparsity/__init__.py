"""Semi-structured sparsity: which two of four weights stay, what they become, and how they are stored.

from kpt_lab.sparsity import SparsityPattern, StructuredSparse

made = StructuredSparse.convert(model=model, pattern=SparsityPattern.SPARSE_24, hardware_target="H100", calibration=batches)
print(made)  # layer by layer: error, sparse or dense, and why
"""

from kpt_lab.sparsity.calibration import Calibration
from kpt_lab.sparsity.convert import Layer, StructuredSparse
from kpt_lab.sparsity.linear import SparseLinear
from kpt_lab.sparsity.packed import memory_ratio, pack, unpack
from kpt_lab.sparsity.patterns import SparsityPattern, keep_largest, magnitude_mask, wanda_mask
from kpt_lab.sparsity.prune import CRITERIA, LayerReport, Pruning, prune, prune_weight
from kpt_lab.sparsity.reconstruct import layer_error, least_squares, sparsegpt

__all__ = [
    "CRITERIA",
    "Calibration",
    "Layer",
    "LayerReport",
    "Pruning",
    "SparseLinear",
    "SparsityPattern",
    "StructuredSparse",
    "keep_largest",
    "layer_error",
    "least_squares",
    "magnitude_mask",
    "memory_ratio",
    "pack",
    "prune",
    "prune_weight",
    "sparsegpt",
    "unpack",
    "wanda_mask",
]
