"""What a Trial ran on: hardware, versions, threads and revision, without names, paths or anything private.

`environment` is what stays the same in a process; `clocks` is what changes while it runs and is taken before and after a
measurement. A figure that can't be had is left out or given with its reason; none is invented.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parent

# Bits of NVML's clocks event reasons: nvmlClocksEventReason* in the NVML API reference, "Clocks Event Reasons"
REASONS = {
    0x1: "idle",
    0x2: "applications_clocks",
    0x4: "software_power_cap",
    0x8: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "hardware_power_brake",
    0x100: "display_clocks",
}


def environment(device: str = "cpu") -> dict[str, Any]:
    """What this process runs on, as Trials keep it in `env`; captured once per process and device.

    `host` is 12 hex digits of a hash of the machine's id (and the GPU's, on CUDA); `git` is the revision of the package,
    or of the working folder where the package lies outside a repository, with "+dirty" where tracked files were changed; on a
    machine that has the files without their repository, the variable KPT_LAB_REVISION says it.
    ValueError where `device` is neither a CPU nor a CUDA device that is here.
    """
    kind = torch.device(device)
    if kind.type == "cuda":
        index = _cuda_index(kind)
        return {**_static(), **_gpu(index), **_threads()}
    if kind.type != "cpu":
        raise ValueError(f"device is {device!r}; accepted are 'cpu' and 'cuda' with an optional index")
    return {**_static(), "host": _digest(_machine() or _boot()), "device_name": _static()["cpu"], "driver": "", **_threads()}


def clocks(device: str = "cpu") -> dict[str, Any]:
    """The device's state now: clocks (MHz), throttle reasons, temperature (C), power (W), other processes on a GPU; on a CPU
    the load average and clock. What can't be read is absent; where the tool is missing, the only key is "reason".
    """
    kind = torch.device(device)
    if kind.type == "cuda":
        return _gpu_clocks(_gpu_uuid(_cuda_index(kind)))
    found: dict[str, Any] = {}
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 2)
    if mhz := _cpu_mhz():
        found["mhz"] = mhz
    return found or {"reason": "this system gives neither a load average nor a clock"}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _cuda_index(device: torch.device) -> int:
    if not torch.cuda.is_available():
        raise ValueError(
            f"device is {str(device)!r}, but torch {torch.__version__} finds no CUDA device here; use device='cpu'"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device is {str(device)!r}, but there are {torch.cuda.device_count()} CUDA devices here")
    return index


@functools.cache
def _static() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "git": os.environ.get("KPT_LAB_REVISION") or _git(PACKAGE, "core.py") or _git(Path.cwd(), "."),
        "kpt_lab": _version("kpt-lab"),
    }


def _threads() -> dict[str, Any]:
    """Threads are not cached: a session may change them between measurements."""
    named = {name.lower(): os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    return {"threads": torch.get_num_threads(), **named}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _output(*command: str, folder: Path | None = None) -> str | None:
    """What a command printed, or None where it is missing, fails or takes over 10 s."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=folder)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _machine() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        if found := _read(path).strip():
            return found
    if sys.platform == "darwin":
        found = re.search(r'"IOPlatformUUID" = "([^"]+)"', _output("ioreg", "-rd1", "-c", "IOPlatformExpertDevice") or "")
        if found:
            return found[1]
    return ""


def _boot() -> str:
    """Identity of the running system where the machine has none of its own: equal for all processes until it restarts."""
    return _read("/proc/sys/kernel/random/boot_id").strip() or platform.node()


def _cpu_model() -> str:
    if found := re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE):
        return found[1].strip()
    if sys.platform == "darwin" and (brand := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return brand
    return platform.processor() or platform.machine()


def _cpu_mhz() -> float | None:
    """Mean clock over the cores in MHz, from /sys or /proc."""
    khz = [float(text) for i in range(os.cpu_count() or 1) if (text := _read(_FREQUENCY.format(i)).strip()).isdigit()]
    if khz:
        return round(sum(khz) / len(khz) / 1000, 1)
    mhz = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _read("/proc/cpuinfo"), re.MULTILINE)]
    return round(sum(mhz) / len(mhz), 1) if mhz else None


_FREQUENCY = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq"


def _git(folder: Path, tracked: str) -> str:
    """Revision of the repository in which `tracked` is a tracked path of `folder`, or "".

    The check keeps an installation inside somebody's repository (a .venv) from being given that repository's revision.
    """
    if _output("git", "ls-files", "--error-unmatch", tracked, folder=folder) is None:
        return ""
    revision = _output("git", "rev-parse", "--short=12", "HEAD", folder=folder) or ""
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", folder=folder)
    return f"{revision}+dirty" if revision and changed else revision


def _gpu_uuid(index: int) -> str:
    found = str(torch.cuda.get_device_properties(index).uuid)
    return found if found.startswith(("GPU-", "MIG-")) else f"GPU-{found}"


@functools.cache
def _gpu(index: int) -> dict[str, Any]:
    identity = _gpu_uuid(index)
    driver = _output("nvidia-smi", f"--id={identity}", "--query-gpu=driver_version", "--format=csv,noheader")
    if not driver:
        written = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _read("/proc/driver/nvidia/version"))
        driver = written[1] if written else ""
    return {
        "host": _digest(_machine() + identity),
        "device_name": torch.cuda.get_device_name(index),
        "driver": driver,
        "cuda": torch.version.cuda or "",
    }


_NUMBERS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
}


def _gpu_clocks(identity: str) -> dict[str, Any]:
    if shutil.which("nvidia-smi") is None:
        return {"reason": "nvidia-smi is not on the PATH: clocks, power and other processes are unknown"}
    # drivers before 535 know the reasons only by their older name, and refuse a query that holds an unknown field
    for reasons in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):
        fields = ",".join((*_NUMBERS, reasons))
        if text := _output("nvidia-smi", f"--id={identity}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"):
            pids = _output("nvidia-smi", f"--id={identity}", "--query-compute-apps=pid", "--format=csv,noheader")
            return _parse(text, pids, os.getpid())
    return {"reason": "nvidia-smi answered no query for this GPU: clocks, power and other processes are unknown"}


def _parse(text: str, pids: str | None, own: int) -> dict[str, Any]:
    """Numbers of one line of `nvidia-smi --query-gpu`; fields that read "[N/A]" are left out.

    `others` counts the other compute processes. It is absent where our own process is not in the list, as in a container
    whose process numbers differ from the driver's: `processes` is then all that can be said.
    """
    *numbers, reasons = (part.strip() for part in text.splitlines()[0].split(","))
    found: dict[str, Any] = {}
    for name, value in zip(_NUMBERS.values(), numbers, strict=True):
        if re.fullmatch(r"\d+(\.\d+)?", value):
            found[name] = float(value)
    if re.fullmatch(r"0x[0-9a-fA-F]+", reasons):
        bits = int(reasons, 16)
        found["throttle"] = ", ".join(name for bit, name in REASONS.items() if bits & bit) or "none"
    if pids is not None:
        listed = [int(line) for line in pids.split() if line.isdigit()]
        found["processes"] = len(listed)
        if own in listed:
            found["others"] = len(listed) - 1
    return found
