"""How a program ends: one clear line for what a user can put right, a traceback for what only we can."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

from utils.text import forgive

INTERRUPTED, CLOSED_PIPE = 128 + signal.SIGINT, 141  # what a shell says of a program that such a signal ended


class UserError(Exception):
    """Something the user can put right; its text is one line that names the file or flag and the way out."""


def run_program(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> None:
    """Call `main(argv)` and leave with its status; a UserError becomes one line on stderr and status 2.

    So does what the system refuses: a full disk, too few file handles. With `--debug` among the arguments the traceback
    is shown instead. Ctrl-C leaves with status 130, a reader of the output that has gone with 141 and without a word.
    What a terminal or a file behind stdout and stderr cannot show, as names of other encodings, is spelt out.
    """
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        forgive(stream)
    argv = list(sys.argv[1:] if argv is None else argv)
    if signal.getsignal(signal.SIGINT) is _leave_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = main(argv)
        sys.stdout.flush()
    except UserError as error:
        if "--debug" in argv:
            raise
        tell(f"error: {describe_refusal(error) or error}")
        status = 2
    except KeyboardInterrupt:
        if "--debug" in argv:
            raise
        tell("interrupted")
        status = INTERRUPTED
    except (OSError, RuntimeError, ImportError) as error:
        problem = "" if _output_is_closed(error) else describe_refusal(error)
        if problem is None or "--debug" in argv:
            raise
        if problem:
            tell(f"error: {problem}")
        status = 2 if problem else CLOSED_PIPE
    sys.exit(status or 0)


def open_streams() -> None:
    """What was closed when the program was started (`>&-`) leads nowhere, where it would be None or a later file."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue  # another file has the number by now
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


def tell(line: str) -> None:
    """A line on stderr; that it cannot be written there changes no status."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def speak_while_loading() -> None:
    """Until `run_program`, which can take seconds, Ctrl-C and too few file handles end the program as they do there.

    Called by a program before it imports its libraries.
    """
    open_streams()
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)  # a library's own, of what CompressAI loads
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave_interrupted)
    sys.excepthook = _report


def _leave_interrupted(*_) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)  # an exception would end in whatever library is being loaded


def _report(kind: type, error: BaseException, trace) -> None:
    if not out_of_handles(error) or "--debug" in sys.argv:
        sys.__excepthook__(kind, error, trace)
        return
    os.write(2, f"error: {describe_refusal(error)}\n".encode())
    os._exit(2)


def describe_refusal(error: BaseException) -> str | None:
    """What the system has refused, in one line with the way out; None for errors of another kind."""
    if out_of_handles(error):
        return f"too few file handles{_handle_limit()}; raise them (ulimit -n 4096), or let fewer processes work"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return None


def out_of_handles(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, is that no more files can be opened."""
    if error is None:
        return False
    own = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    return own or "Too many open files" in str(error) or out_of_handles(error.__cause__ or error.__context__)


def _handle_limit() -> str:
    try:
        import resource
    except ImportError:  # not on Windows
        return ""
    return f" (ulimit -n is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"


def _output_is_closed(error: Exception) -> bool:
    """Whether the error is that who read our output has gone; then what is left of it goes nowhere."""
    if not isinstance(error, BrokenPipeError) or sys.stdout is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed
