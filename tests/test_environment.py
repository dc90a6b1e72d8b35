"""The environment says what ran where, twice the same, and nothing private."""

import getpass
import importlib.metadata
import json
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kpt_lab import environment as module
from kpt_lab.environment import clocks, environment


def test_environment_names_versions_as_their_packages_do():
    env = environment("cpu")
    assert env["torch"] == torch.__version__
    assert env["python"] == platform.python_version()
    assert env["threads"] == torch.get_num_threads()
    try:
        assert env["triton"] == importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        assert env["triton"] == ""
    assert env["cpu"] == env["device_name"] != ""
    assert len(env["host"]) == 12
    assert set(env["host"]) <= set("0123456789abcdef")


def test_environment_is_flat_json_and_a_fresh_copy():
    first = environment("cpu")
    assert json.loads(json.dumps(first)) == first
    assert not any(isinstance(value, (dict, list)) for value in first.values())
    first["torch"] = "edited"
    assert environment("cpu")["torch"] == torch.__version__


def test_environment_follows_a_change_of_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert environment("cpu")["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_nothing_private_is_kept():
    text = json.dumps([environment("cpu"), clocks("cpu")])
    machine = module._machine()
    private = {socket.gethostname(), str(Path.home()), str(Path.cwd()), machine}
    user = getpass.getuser()
    for word in private | ({user} if len(user) > 4 else set()):
        if len(word) > 2:
            assert word not in text


def test_host_does_not_depend_on_the_process():
    code = "from kpt_lab.environment import environment; print(environment('cpu')['host'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=module.PACKAGE.parent)
    assert done.stdout.strip() == environment("cpu")["host"]


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_git_gives_the_revision_and_says_dirty(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "core.py").write_text("x = 1\n")
    git(tmp_path, "add", "core.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    clean = module._git(tmp_path, "core.py")
    assert len(clean) >= 12
    (tmp_path / "core.py").write_text("x = 2\n")
    assert module._git(tmp_path, "core.py") == f"{clean}+dirty"


def test_git_is_empty_for_files_that_a_repository_does_not_track(tmp_path):
    assert module._git(tmp_path, "core.py") == ""
    git(tmp_path, "init", "-q")
    (tmp_path / "core.py").write_text("x = 1\n")
    assert module._git(tmp_path, "core.py") == ""


def test_clocks_of_a_cpu_are_numbers():
    found = clocks("cpu")
    assert found["load"] >= 0
    assert found.get("mhz", 1.0) > 0


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_environment_refuses_other_devices(device):
    with pytest.raises(ValueError, match=f"device is '{device}'; accepted are 'cpu' and 'cuda'"):
        environment(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("ask", [environment, clocks])
def test_cuda_without_a_gpu_is_one_sentence(ask):
    with pytest.raises(ValueError, match="finds no CUDA device here; use device='cpu'"):
        ask("cuda")


def test_a_line_of_nvidia_smi_is_read_and_gaps_stay_gaps():
    found = module._parse("1980, 2619, 41, [N/A], 0x0000000000000024", "17\n23\n99\n", own=23)
    assert found == {
        "sm_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "temperature_c": 41.0,
        "throttle": "software_power_cap, software_thermal",
        "processes": 3,
        "others": 2,
    }


def test_other_processes_are_not_counted_where_our_own_is_not_listed():
    found = module._parse("345, 2619, 30, 70.1, 0x0000000000000000", "17\n", own=23)
    assert found["throttle"] == "none"
    assert found["processes"] == 1
    assert "others" not in found


def test_without_nvidia_smi_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert set(module._gpu_clocks("GPU-0")) == {"reason"}


def test_an_older_driver_is_asked_by_the_older_name(monkeypatch):
    asked = []

    def output(*command, folder=None):
        asked.append(command[2])
        if "compute-apps" in command[2]:
            return ""
        return None if "clocks_event_reasons" in command[2] else "1, 2, 3, 4, 0x1"

    monkeypatch.setattr(module.shutil, "which", lambda name: name)
    monkeypatch.setattr(module, "_output", output)
    found = module._gpu_clocks("GPU-0")
    assert found["throttle"] == "idle"
    assert found["processes"] == 0
    assert len(asked) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_a_driver_and_clocks():
    env = environment("cuda")
    assert env["device_name"] == torch.cuda.get_device_name()
    assert env["driver"]
    found = clocks("cuda")
    assert found["sm_mhz"] > 0 or "reason" in found
