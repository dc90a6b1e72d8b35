"""cuSPARSELt's operators on a CPU, by the definition: a compressed weight is the dense one here, so that all around them can be tried."""

from __future__ import annotations

import pytest
import torch

from kpt_lab.sparsity import cusparselt, search

ALGORITHMS = (0, 1, 2, 5)  # what the fake knows; 1 gives wrong numbers
REFUSED = "cusparseLtMatmulAlgSetAttribute() failed"


def _mm(packed, dense, bias=None, out_dtype=None, transpose_result=False, alg_id=0, split_k=1, split_k_mode=-1):
    if alg_id not in ALGORITHMS or split_k not in (1, 2):
        raise RuntimeError(REFUSED)
    y = packed.float() @ dense.float()
    y = y if bias is None else y + bias.float()[:, None]
    y = (2 * y if alg_id == 1 else y).to(out_dtype or packed.dtype)
    return y.t().contiguous() if transpose_result else y


def _scaled_mm(a, b, *, scale_a, scale_b, out_dtype, use_fast_accum=True):
    return ((a.float() * scale_a) @ (b.float() * scale_b)).to(out_dtype)


def install(patch: pytest.MonkeyPatch, seconds) -> list[str]:
    """Put the fakes in place; `seconds(name)` is what a race finds for a step. Returns the list of races' names as they run."""
    raced: list[str] = []

    def race(steps, **rounds):
        found = {}
        for name, step in steps.items():
            try:
                step()
            except RuntimeError:
                continue
            raced.append(str(name))
            found[name] = seconds(name)
        return found

    patch.setattr(torch, "_cslt_compress", lambda weight: weight.clone())
    patch.setattr(torch, "_cslt_sparse_mm", _mm)
    patch.setattr(torch, "_scaled_mm", _scaled_mm)
    patch.setattr(torch.cuda, "get_device_name", lambda *args: "a made-up GPU")
    patch.setattr(cusparselt, "unsupported", lambda device, dtype: "")
    patch.setattr(cusparselt, "adds_bias", lambda *args: False)
    patch.setattr(search, "race", race)
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return raced
