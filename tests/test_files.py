"""Files written whole or not at all, and where what was found out is kept."""

import os
from pathlib import Path

import pytest

from kpt_lab import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    goal = tmp_path / "new" / "file"
    files.atomically(goal, lambda file: file.write(b"one"))
    assert goal.read_bytes() == b"one"

    def halfway(file):
        file.write(b"two")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.atomically(goal, halfway)
    assert goal.read_bytes() == b"one"
    assert os.listdir(goal.parent) == ["file"]


def test_the_cache_folder_is_the_platforms_unless_one_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path / "given"))
    assert files.cache_folder() == tmp_path / "given"
    monkeypatch.delenv("KPT_LAB_CACHE")
    monkeypatch.setattr(files.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "kpt_lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "kpt_lab"
    monkeypatch.setattr(files.sys, "platform", "darwin")
    assert files.cache_folder() == tmp_path / "Library" / "Caches" / "kpt_lab"
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert files.cache_folder() == tmp_path / "local" / "kpt_lab"
