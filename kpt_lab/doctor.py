"""`kpt-lab doctor`: what is here, what is missing, and the command that gets it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch

from kpt_lab.environment import environment

State = Literal["ok", "missing", "broken"]

MINIMUM = {"python": (3, 11), "torch": (2, 11)}  # as pyproject.toml says

# distribution, what it is for, extra of kpt-lab that brings it ("" where none does)
OPTIONAL = (
    ("triton", "Triton kernels, and torch.compile on a GPU", "lab"),
    ("plotly", "figures", "lab"),
    ("jupyterlab", "notebooks", "lab"),
    ("ipywidgets", "widgets in notebooks", "lab"),
    ("anywidget", "widgets in notebooks", "lab"),
    ("liger-kernel", "a peer to compare kernels with (GPU)", ""),
    ("transformers", "models as workloads", "models"),
    ("scikit-learn", "data for small models", "models"),
    ("qiskit", "quantum techniques", "frontier"),
    ("snntorch", "spiking techniques", "frontier"),
)


class Finding(NamedTuple):
    """One line of the report: what was looked at, its state, what was found, and what to do about it."""

    name: str
    state: State
    found: str
    advice: str = ""


def findings() -> Iterator[Finding]:
    """All findings, the necessary ones first."""
    yield _python()
    yield _torch()
    yield _gpu()
    yield _compiler()
    for name, purpose, extra in OPTIONAL:
        yield _package(name, purpose, extra)
    yield from _room()


def doctor(say: Callable[[str], None] = print) -> int:
    """Print the report; 0 unless torch itself does not work."""
    broken = False
    for finding in findings():
        broken |= finding.name == "torch" and finding.state == "broken"
        mark = {"ok": "ok     ", "missing": "missing", "broken": "BROKEN "}[finding.state]
        say(f"{mark}  {finding.name:<13} {finding.found}")
        if finding.advice:
            say(f"{'':<24}{finding.advice}")
    return int(broken)


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < MINIMUM["python"]:
        return Finding("python", "broken", found, "Python 3.11 or later is needed: see python.org, or uv python install 3.12")
    return Finding("python", "ok", found)


def _torch() -> Finding:
    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "ROCm build" if torch.version.hip else "CPU build"
    found = f"{torch.__version__}, {build}"
    try:
        works = float((torch.ones(8, 8) @ torch.ones(8, 8)).sum()) == 512.0
    except Exception as error:
        return Finding("torch", "broken", f"{found}: {error}", "pip install --force-reinstall torch")
    if not works:
        return Finding("torch", "broken", f"{found}: a product of ones is wrong", "pip install --force-reinstall torch")
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < MINIMUM["torch"]:
        return Finding("torch", "missing", f"{found}; 2.11 or later is needed", "pip install --upgrade torch")
    return Finding("torch", "ok", found)


def _gpu() -> Finding:
    if torch.cuda.is_available():
        try:
            torch.ones(1, device="cuda").add_(1)
            env, memory = environment("cuda"), torch.cuda.get_device_properties(0).total_memory
        except Exception as error:
            return Finding("GPU", "broken", f"torch sees a GPU but can't use it: {error}", "nvidia-smi shows what uses it")
        found = f"{env['device_name']}, {memory / 1e9:.0f} GB, driver {env['driver'] or 'unknown'}"
        smi = "" if shutil.which("nvidia-smi") else "nvidia-smi is not on the PATH: clocks and power will be unknown"
        return Finding("GPU", "ok", found, smi)
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "missing", "no NVIDIA driver here", "nothing to install: use --device cpu, and recorded results")
    if torch.version.cuda is None:
        advice = "pip install --force-reinstall torch (on Linux the default wheel is a CUDA build)"
        return Finding("GPU", "missing", "there is an NVIDIA driver, but this torch is a CPU build", advice)
    advice = "nvidia-smi shows the driver's own CUDA version: update the driver, or pip install a torch build for that version"
    return Finding("GPU", "missing", f"torch for CUDA {torch.version.cuda} can't use the NVIDIA driver here", advice)


def _compiler() -> Finding:
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        if name and shutil.which(name):
            return Finding("C++ compiler", "ok", name)
    system = "xcode-select --install" if sys.platform == "darwin" else "apt install g++, or your system's equivalent"
    return Finding("C++ compiler", "missing", "torch.compile on a CPU needs one", system)


def _package(name: str, purpose: str, extra: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name == "triton" and sys.platform != "linux":
            return Finding(name, "missing", f"{purpose}; it exists for Linux only")
        group = f", or all of its group: pip install -e '.[{extra}]' in the checkout" if extra else ""
        return Finding(name, "missing", purpose, f"pip install {name}{group}")
    if name == "triton" and not torch.cuda.is_available():
        return Finding(name, "ok", f"{version}; no GPU, so its kernels run only in the interpreter (TRITON_INTERPRET=1)")
    return Finding(name, "ok", version)


def _room() -> Iterator[Finding]:
    disk = shutil.disk_usage(".").free
    yield Finding("disk", "ok", f"{disk / 1e9:.1f} GB free in the working folder")
    if memory := _free_memory():
        yield Finding("memory", "ok", f"{memory / 1e9:.1f} GB free")
    env = environment("cpu")
    yield Finding("threads", "ok", f"torch uses {env['threads']} of {env['cores']} cores ({env['cpu']})")


def _free_memory() -> float:
    """Bytes of free memory, or 0 where the system doesn't say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0.0
