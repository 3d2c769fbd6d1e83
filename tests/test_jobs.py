"""Files of a folder: read, worked on and written at the same time, with one at a time's results and errors."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from compress_and_decompress import step_bar
from utils.cli import UserError
from utils.codec import folders
from utils.codec.folders import Job, Outcome, Stages, gather, joined_processes, leave_if_stopped, run_jobs


def make(tmp_path, names: str) -> list[Job]:
    for name in names:
        (tmp_path / name).write_text(name)
    return [Job(name, tmp_path / name, tmp_path / f"{name}.out") for name in names]


def write(job: Job, result: str) -> Outcome:
    job.target.write_text(result)
    return Outcome(job.name, "done", 1, len(result), 1.0)


@pytest.mark.parametrize("at_once", [1, 3])
def test_outcomes_in_order_with_failures_at_every_stage(tmp_path, capsys, at_once):
    jobs = make(tmp_path, "abcdef")
    jobs[4].target.write_text("mine")

    def read(job: Job) -> str:
        if job.name == "b":
            raise UserError("b: cannot be read")
        return job.source.read_text()

    def work(job: Job, text: str) -> str:
        if job.name == "c":
            raise ValueError("cannot be worked on")
        return text.upper()

    def write_some(job: Job, result: str) -> Outcome:
        if job.name == "d":
            raise OSError("disk full")
        return write(job, result)

    outcomes = run_jobs(jobs, Stages(read, work, write_some), False, "test", at_once)
    assert [o.file for o in outcomes] == list("abcdef")
    assert [o.status for o in outcomes] == ["done", "failed", "failed", "failed", "kept", "done"]
    assert [(tmp_path / f"{n}.out").read_text() for n in "aef"] == ["A", "mine", "F"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    for reason in ("b: cannot be read", "c: cannot be worked on", "d: disk full"):
        assert sum(line.endswith(reason) for line in lines) == 1


def test_reading_and_writing_go_on_during_work(tmp_path):
    """The next file is being read, and the last one written, before the work on one ends: else this would wait."""
    jobs = make(tmp_path, "abc")
    reading, writing = ({job.name: threading.Event() for job in jobs} for _ in range(2))

    def read(job: Job) -> str:
        reading[job.name].set()
        return job.name

    def work(job: Job, text: str) -> str:
        if text == "b":
            assert reading["c"].wait(10) and writing["a"].wait(10)
        return text

    def write_later(job: Job, result: str) -> Outcome:
        writing[job.name].set()
        return write(job, result)

    assert [o.status for o in run_jobs(jobs, Stages(read, work, write_later), False, "test")] == ["done"] * 3


def test_what_is_read_and_not_written_is_bounded(tmp_path):
    """No more than two files are held beside the one that is worked on, however slow writing is."""
    jobs, held, most, lock = make(tmp_path, "abcdefgh"), set(), [], threading.Lock()

    def read(job: Job) -> str:
        with lock:
            held.add(job.name)
            most.append(len(held))
        return job.name

    def write_slowly(job: Job, result: str) -> Outcome:
        threading.Event().wait(0.02)
        with lock:
            held.remove(job.name)
        return write(job, result)

    run_jobs(jobs, Stages(read, lambda job, text: text, write_slowly), False, "test")
    assert max(most) <= 3


def test_files_at_once(tmp_path):
    """Two files are worked on at a time, never three."""
    meeting, busy, most = threading.Barrier(2, timeout=10), [], []

    def work(job: Job, text: str) -> str:
        busy.append(job.name)
        most.append(len(busy))
        meeting.wait()
        busy.remove(job.name)
        return text

    outcomes = run_jobs(make(tmp_path, "abcdef"), Stages(lambda job: "", work, write), False, "test", at_once=2)
    assert [o.status for o in outcomes] == ["done"] * 6
    assert max(most) == 2


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_interrupt_ends_it(tmp_path, at_once):
    def work(job: Job, text: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(make(tmp_path, "abc"), Stages(lambda job: "", work, write), False, "test", at_once)
    assert not list(tmp_path.glob("*.out"))


def test_an_interrupt_ends_long_work_in_other_threads(tmp_path):
    """Else this would wait: one file is interrupted, as the main thread is by Ctrl-C, and the other goes on."""
    jobs, begun, deadline = make(tmp_path, "ab"), threading.Event(), time.monotonic() + 60

    def work(job: Job, text: str) -> str:
        if job.name == "a":
            begun.wait()
            raise KeyboardInterrupt
        begun.set()
        while time.monotonic() < deadline:
            leave_if_stopped(1, 2)
            time.sleep(0.01)
        return text

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, Stages(lambda job: job.source.read_text(), work, write), False, "test", 2)
    assert time.monotonic() < deadline and not jobs[1].target.exists()


def test_searches_of_several_files_at_once_can_be_left():
    args = SimpleNamespace(effort=1, jobs=2)
    with step_bar(Job("a", Path("a"), Path("b")), args) as progress:
        assert progress is leave_if_stopped


# Processes


def share_files(rank: int, port: int, second_ends: bool, said) -> None:
    """One of two processes: the second takes longer than they wait to meet, or ends before it has done its share."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folders.TO_MEET = timedelta(seconds=1.5)
    try:
        with joined_processes() as group:
            if rank and second_ends:
                os._exit(1)
            time.sleep(2 * rank)
            outcomes = gather([Outcome(f"file {1 - rank}", "done")], group)
        said.put((rank, outcomes and [outcome.file for outcome in outcomes]))
    except UserError as error:
        said.put((rank, str(error)))


@pytest.mark.parametrize("second_ends", [False, True])
def test_processes_wait_for_the_slowest_and_not_for_one_that_ended(second_ends):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    said = fork.SimpleQueue()
    workers = [fork.Process(target=share_files, args=(rank, port, second_ends, said)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, int(second_ends)]
    told = dict(said.get() for _ in range(1 if second_ends else 2))
    if second_ends:
        assert told[0].startswith("another process of this run has ended")
    else:
        assert told == {0: ["file 0", "file 1"], 1: None}


def test_processes_that_cannot_meet_say_so(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "none")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--master_port: the processes cannot meet"), joined_processes():
        pytest.fail("they met")
