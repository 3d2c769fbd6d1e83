"""Whose a run's folder is: refused to a second process, free again after a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from utils.cli import UserError
from utils.training.run_folder import LOCK_NAME, owned

ROOT = Path(__file__).parent.parent
OWNER = """
import os, sys, time
from pathlib import Path
from unittest.mock import Mock
from utils.training.run_folder import owned
with owned(Path(sys.argv[1])):
    child = os.fork()  # as a worker that reads images
    if not child:
        time.sleep(60)
    print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def test_a_second_run_is_refused_and_told_by_whom(owner, tmp_path):
    with pytest.raises(UserError, match=f"--save_path {tmp_path}: process {owner.pid} on .* is training there"):
        owned(tmp_path).__enter__()
    assert (tmp_path / LOCK_NAME).exists()


def test_a_killed_run_leaves_the_folder_free(owner, tmp_path):
    """Though the file is still there, and a worker of the killed process still runs."""
    owner.kill()
    owner.wait()
    assert (tmp_path / LOCK_NAME).exists()
    with owned(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / LOCK_NAME).read_text()
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_lock_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fcntl.lockf", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with owned(tmp_path):
        assert capsys.readouterr().err == (
            f"note: {tmp_path} cannot be locked (No locks available): let no second run use it\n"
        )


def test_a_run_that_fails_gives_its_folder_back(tmp_path):
    with pytest.raises(ValueError), owned(tmp_path):
        raise ValueError
    with owned(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
