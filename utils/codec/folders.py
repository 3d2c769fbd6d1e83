"""The files of a folder: read, worked on and written at the same time, shared by processes; failures are counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from utils.cli import UserError, describe_refusal
from utils.data.listing import LeftOut, closing_line
from utils.processes import connected, process_share
from utils.tables import format_number, format_table
from utils.text import one_line

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TO_MEET = timedelta(minutes=30)  # how long processes wait for each other before the work
TO_FINISH = timedelta(days=20)  # and after it, for the one whose files take longest


@dataclass(frozen=True)
class Job:
    """A file to read, a file to write, and the name that both go by."""

    name: str
    source: Path
    target: Path


@dataclass
class Outcome:
    """What came of a job: "done", "kept" or "failed".

    pixels of the image, bytes of the .bin file, milliseconds, quality it was written at (variable-rate models), effort
    of a search, by how many percent it lowered the cost, and the lambda and metric of that.
    """

    file: str
    status: str
    pixels: int | None = None
    bytes: int | None = None
    ms: float | None = None
    quality: float | None = None
    effort: int | None = None
    won_percent: float | None = None
    trade_off: dict[str, Any] | None = None
    message: str | None = None

    @property
    def bpp(self) -> float | None:
        return 8 * self.bytes / self.pixels if self.bytes and self.pixels else None


@dataclass(frozen=True)
class Stages:
    """What is done with a file: `read`(job) -> content, `work`(job, content) -> result, `write`(job, result)."""

    read: Callable[[Job], Any]
    work: Callable[[Job, Any], Any]
    write: Callable[[Job, Any], Outcome]


stopped = Event()  # the program ends: long work in other threads is to be left


def leave_if_stopped(*_: int) -> None:
    """For the progress of long work in other threads than the main one, to which Ctrl-C does not come."""
    if stopped.is_set():
        raise KeyboardInterrupt


def run_jobs(jobs: Sequence[Job], stages: Stages, overwrite: bool, label: str, at_once: int = 1) -> list[Outcome]:
    """Run this process's share of the jobs; a job that fails is reported on stderr and does not stop the others.

    The next file is read and the last one written, each in a thread, while this thread works; or so many files are done
    `at_once`, a thread each.
    """
    rank, processes = process_share()
    share = jobs[rank::processes]
    with tqdm(total=len(share), desc=label, unit="file", disable=None if len(jobs) > 1 and rank == 0 else True) as bar:
        ways = side_by_side(share, stages, overwrite, at_once) if at_once > 1 else in_line(share, stages, overwrite)
        outcomes = []
        for outcome in ways:
            outcomes.append(outcome)
            bar.update()
        return outcomes


def side_by_side(jobs: Sequence[Job], stages: Stages, overwrite: bool, at_once: int) -> Iterator[Outcome]:
    """What came of each job, in order; each is done by one thread from reading to writing."""

    def whole(job: Job) -> Outcome:
        if job.target.exists() and not overwrite:
            return kept(job)
        return guarded(job, lambda: stages.write(job, stages.work(job, stages.read(job))))

    stopped.clear()
    with ThreadPoolExecutor(at_once) as workers:
        try:
            yield from workers.map(whole, jobs)
        except BaseException:
            stopped.set()
            workers.shutdown(cancel_futures=True)
            raise


def in_line(jobs: Sequence[Job], stages: Stages, overwrite: bool) -> Iterator[Outcome]:
    """What came of each job, in order; this thread works on one after the other, two others read and write."""
    last: Outcome | Future[Outcome] | None = None
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        try:
            for job, content in read_ahead(jobs, stages.read, reader, overwrite):
                current = run_job(job, content, stages, writer)
                if last is not None:
                    yield finished(last)  # at most one result waits to be written
                last = current
            if last is not None:
                yield finished(last)
        except BaseException:
            reader.shutdown(cancel_futures=True)
            writer.shutdown(cancel_futures=True)
            raise


def read_ahead(
    jobs: Sequence[Job], read: Callable[[Job], Any], reader: ThreadPoolExecutor, overwrite: bool
) -> Iterator[tuple[Job, Future | None]]:
    """Each job with its content, which the reader began to read one job before; None where the output is kept."""
    waiting: tuple[Job, Future | None] | None = None
    for job in jobs:
        there = job.target.exists() and not overwrite
        following = job, None if there else reader.submit(read, job)
        if waiting:
            yield waiting
        waiting = following
    if waiting:
        yield waiting


def run_job(job: Job, content: Future | None, stages: Stages, writer: ThreadPoolExecutor) -> Outcome | Future[Outcome]:
    """One job, up to its result, which the writer gets."""
    if content is None:
        return kept(job)
    result = guarded(job, lambda: stages.work(job, content.result()))
    return result if isinstance(result, Outcome) else writer.submit(guarded, job, lambda: stages.write(job, result))


def kept(job: Job) -> Outcome:
    """What came of a job whose output was there; a folder in its place, or a link to nothing, is no output."""
    if not job.target.is_file():
        return failed(job, f"{one_line(str(job.target))} is in the way and no file; remove it")
    return Outcome(job.name, "kept", message=f"{job.target} exists; --overwrite replaces it")


def finished(outcome: Outcome | Future[Outcome]) -> Outcome:
    """What came of a job, waiting for it."""
    return outcome.result() if isinstance(outcome, Future) else outcome


def guarded(job: Job, step: Callable[[], Any]) -> Any:
    """step(); whatever goes wrong with it becomes a line on stderr and a "failed" outcome."""
    try:
        return step()
    except (UserError, ValueError, OSError, MemoryError, RuntimeError) as error:
        text = (describe_refusal(error) or str(error)).removeprefix(f"{job.source}: ")
        return failed(job, text.splitlines()[0] if text else type(error).__name__)


def failed(job: Job, reason: str) -> Outcome:
    """What came of a job that could not be done, which is said on stderr."""
    message = f"{one_line(str(job.source))}: {reason}"
    tqdm.write(f"error: {message}", file=sys.stderr)
    return Outcome(job.name, "failed", message=message)


@contextmanager
def joined_processes() -> Iterator[ProcessGroup | None]:
    """Within the block, the processes of `process_share` are connected; None where there is one only.

    They meet before the work, so that one that ends early breaks the connection instead of leaving others waiting.
    Raises UserError where they cannot meet.
    """
    if process_share()[1] == 1:
        yield None
        return
    with connected("gloo", TO_MEET, TO_FINISH) as group:
        yield group


def gather(outcomes: list[Outcome], group: ProcessGroup | None) -> list[Outcome] | None:
    """The outcomes of all processes in order of name, on the first process; None on the others.

    Raises UserError where another process of the group has ended without its share.
    """
    rank, processes = process_share()
    if group is not None:
        import torch.distributed as distributed

        parts: list | None = [None] * processes if rank == 0 else None
        try:
            distributed.gather_object(outcomes, parts, group=group)
        except RuntimeError as error:
            raise UserError(
                "another process of this run has ended; see what it said, and start again, without --overwrite to keep"
                " what is finished"
            ) from error
        if rank:
            return None
        outcomes = [outcome for part in parts for outcome in part]
    return sorted(outcomes, key=lambda outcome: outcome.file)


def summarise(outcomes: Sequence[Outcome], left_out: LeftOut) -> dict:
    """Files as a list of dicts, totals over those that are done, and by reason the names of those left out."""
    done = [o for o in outcomes if o.status == "done"]
    total = Outcome("total", "done", sum(o.pixels for o in done), sum(o.bytes for o in done), sum(o.ms for o in done))
    counts = {status: sum(o.status == status for o in outcomes) for status in ("done", "kept", "failed")}
    files = [{**asdict(o), "bpp": o.bpp} for o in outcomes]
    return {"files": files, "total": {**asdict(total), "bpp": total.bpp, **counts}, "left_out": left_out}


def format_summary(summary: dict) -> str:
    """A row a file and the totals; what became of the others is said below."""
    done, total = [file for file in summary["files"] if file["status"] == "done"], summary["total"]
    columns = [*_row(total)]
    optional = {"quality": "quality", "won %": "won_percent", "lambda": "trade_off"}
    head = [name for name in columns if name not in optional or any(file[optional[name]] for file in done)]
    rows = [[_row(file)[name] for name in head] for file in (*done, total)]
    lines = [format_table(head, rows[:-1], rows[-1])] if done else []
    if total["kept"]:
        lines.append(f"{total['kept']} kept: the output exists; --overwrite replaces it")
    if total["failed"]:
        lines.append(f"{total['failed']} failed, see the lines above")
    lines.append(closing_line(total["done"], total["kept"], total["failed"], summary["left_out"]))
    return "\n".join(lines)


def _row(file: dict) -> dict[str, str]:
    """The columns of the table that `file` has in a row of its own; estimated lambdas are marked."""
    of_search = file["trade_off"] or {}
    mark = "~" if of_search.get("source") == "slope" else ""
    return {
        "file": file["file"],
        "pixels": str(file["pixels"]),
        "bytes": str(file["bytes"]),
        "bpp": format_number(file["bpp"], 4),
        "ms": format_number(file["ms"], 0),
        "quality": "" if file["quality"] is None else f"{file['quality']:g}",
        "won %": "" if file["won_percent"] is None else f"{file['won_percent']:.2f}",
        "lambda": f"{mark}{of_search['lambda']:.4g}" if of_search else "",
    }
