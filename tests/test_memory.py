"""memory: bytes that are known by arithmetic. Sizes are multiples of 64 bytes, so that no allocator's rounding matters."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from kpt_lab.core import Technique
from kpt_lab.memory import held_memory, peak_memory

N = 1600


def test_one_output_counts_its_own_bytes():
    x = torch.ones(N)
    assert peak_memory(lambda: torch.neg(x), "cpu") == 4 * N
    assert peak_memory(lambda: torch.neg(x.double()), "cpu") == 8 * N + 8 * N


def test_what_is_alive_together_counts_together():
    x = torch.ones(N)

    def two_temporaries():
        a, b = torch.neg(x), torch.exp(x)
        return torch.mul(a, b)

    def one_after_the_other():
        a = torch.neg(x)
        a = torch.exp(a)  # the first is freed when the second is there
        return torch.sin(a)

    def freed_before_the_next():
        a = torch.neg(x)
        del a
        return torch.sin(x)

    assert peak_memory(two_temporaries, "cpu") == 3 * 4 * N
    assert peak_memory(one_after_the_other, "cpu") == 2 * 4 * N
    assert peak_memory(freed_before_the_next, "cpu") == 4 * N


def test_the_peak_counts_where_it_was_not_the_end():
    def tall():
        big = torch.ones(16 * N)
        small = big[:1].clone()
        del big
        return small

    assert peak_memory(tall, "cpu") == 16 * 4 * N + 4


def test_a_call_that_allocates_nothing_peaks_at_nothing():
    x = torch.ones(N)
    assert peak_memory(lambda: torch.neg(x, out=x), "cpu") in (None, 0)


REPLACES = f"""
import sys, torch
from kpt_lab.memory import peak_memory
x, held = torch.ones({N}), [torch.ones(64 * {N})]
def replaced_after(): held[0] = torch.neg(x)
def replaced_before(): held.clear(); held.append(torch.neg(x))
def said(): print("words"); print("more", file=sys.stderr); held.clear()
print(peak_memory(replaced_after, "cpu"), peak_memory(replaced_before, "cpu"))
held.append(torch.ones(64 * {N}))
print(peak_memory(said, "cpu"))
"""


def test_state_that_a_call_replaces_is_seen_freed_and_the_profilers_warning_is_not_heard():
    found = subprocess.run([sys.executable, "-c", REPLACES], capture_output=True, text=True, timeout=60, check=True)
    assert found.stderr == "more\nmore\n"  # and not a word of the profiler about the tensors from before its start
    assert found.stdout.splitlines()[0] == f"{4 * N} 0"  # as on CUDA
    assert found.stdout.splitlines()[1:3] == ["words", "words"]
    assert found.stdout.splitlines()[3] in ("None", "0")


def test_a_tensor_from_before_that_only_the_first_call_frees_counts_as_held():
    x, held = torch.ones(N), [torch.ones(64 * N)]
    assert peak_memory(lambda: held.clear() or torch.neg(x), "cpu") == 4 * N


def test_only_the_calls_own_words_are_printed(capfd):
    peak_memory(lambda: print("the call's own words stay") or torch.ones(N), "cpu")
    out, err = capfd.readouterr()
    assert out == "the call's own words stay\n" * 2
    assert err == ""


def test_an_error_of_the_call_is_passed_on_and_the_streams_still_work(capfd):
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 // 0, "cpu")
    print("heard")
    assert capfd.readouterr().out == "heard\n"
    assert peak_memory(lambda: torch.ones(N), "cpu") == 4 * N


PART = Technique("part", lambda fn, args: fn)


def test_held_memory_counts_parameters_and_buffers():
    module = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    parameters, statistics, counter = 7 * 5 + 5 + 5 + 5, 5 + 5, 8
    assert held_memory([(PART, module)], ()) == 4 * (parameters + statistics) + counter
    assert held_memory([(PART, module.double())], ()) == 8 * (parameters + statistics) + counter


def test_shared_storages_count_once():
    tied = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    tied[1].weight = tied[0].weight
    assert held_memory([(PART, tied)], ()) == 4 * 36
    assert held_memory([(PART, tied), (PART, nn.Sequential(tied))], ()) == 4 * 36
    view = nn.Module()
    view.register_buffer("whole", torch.zeros(10))
    view.register_buffer("part", view.whole[3:5])
    assert held_memory([(PART, view)], ()) == 40


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # importing torch's compiler says it
def test_a_plain_function_holds_nothing_and_a_compiled_module_its_own():
    assert held_memory([(PART, torch.neg)], ()) == 0
    assert held_memory([], ()) == 0
    assert held_memory([(PART, torch.compile(nn.Linear(3, 4)))], ()) == 4 * (12 + 4)


@pytest.mark.gpu
def test_one_output_on_a_gpu_counts_its_own_bytes():
    x = torch.ones(1 << 20, device="cuda")
    assert peak_memory(lambda: torch.neg(x), "cuda") == 4 << 20
