"""How programs end: the line that is said, the status, and no traceback."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli import CLOSED_PIPE, UserError, run_program

ROOT = Path(__file__).parent.parent


def ended(error: BaseException | None, capsys, *argv: str) -> tuple[int, str]:
    """Status and stderr of a program that raises this."""

    def main(_) -> int:
        if error:
            raise error
        return 0

    with pytest.raises(SystemExit) as left:
        run_program(main, argv)
    return left.value.code, capsys.readouterr().err


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("--flag: wrong"), 2, "error: --flag: wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out.json"), 2, "error: out.json: No space left on device\n"),
        (OSError(errno.EMFILE, "Too many open files", "a.png"), 2, "error: too few file handles (ulimit -n is "),
        (RuntimeError("unable to open shared memory: Too many open files (24)"), 2, "error: too few file handles"),
        (caused(UserError("a.png: unreadable"), OSError(errno.EMFILE, "?")), 2, "error: too few file handles"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(error, status, said, capsys):
    code, text = ended(error, capsys)
    assert code == status and text.startswith(said) and text.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug")])
def test_what_only_we_can_keeps_its_traceback(error):
    with pytest.raises(type(error), match="a bug"):
        run_program(lambda _: (_ for _ in ()).throw(error), [])


def test_debug_shows_where_an_error_happened():
    with pytest.raises(OSError):
        run_program(lambda _: Path("/nowhere/x").read_bytes(), ["--debug"])


def program(text: str, **options) -> subprocess.Popen:
    """A program that uses run_program, started."""
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # shells start background jobs deaf to Ctrl-C
    command = [sys.executable, "-c", f"import os, signal, sys\n{heard}\n{text}"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


def test_a_reader_that_has_gone_is_no_error():
    """As `program | head -1`: neither a line nor a traceback, and the status that shells give such programs."""
    read, write = os.pipe()
    os.close(read)
    process = program("from utils.cli import run_program\nrun_program(lambda _: print('x'), [])", stdout=write)
    os.close(write)
    assert process.communicate()[1] == "" and process.returncode == CLOSED_PIPE


def test_a_full_disk_under_the_output_is_said():
    with open("/dev/full", "w") as full:
        process = program("from utils.cli import run_program\nrun_program(lambda _: print('x'), [])", stdout=full)
    assert process.communicate()[1] == "error: No space left on device\n" and process.returncode == 2


def test_an_error_that_cannot_be_said_keeps_its_status():
    main = "def main(_): raise UserError('x')\nrun_program(main, [])"
    command = [sys.executable, "-c", f"from utils.cli import UserError, run_program\n{main}"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, cwd=ROOT, stderr=full).returncode == 2


def test_streams_that_were_closed_lead_nowhere(tmp_path):
    """As `program <&- >&- 2>&-`: what is printed must not go into the file that is opened next."""
    file = tmp_path / "result"
    main = f"def main(_): file = open({str(file)!r}, 'w'); print('x'); print('y', file=sys.stderr); file.write('z')"
    code = f"import sys\nfrom utils.cli import run_program\n{main}\nrun_program(main, [])"
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=ROOT)
    assert done.returncode == 0 and file.read_text() == "z"


LOADING = "from utils.cli import speak_while_loading, run_program\nspeak_while_loading()\n"


def test_ctrl_c_while_libraries_load():
    process = program(LOADING + "os.kill(os.getpid(), signal.SIGINT)\nprint('still there', file=sys.stderr)")
    assert process.communicate()[1] == "interrupted\n" and process.returncode == 130


def test_too_few_handles_while_libraries_load():
    process = program(LOADING + "raise ImportError('lib.so: cannot open shared object file: Too many open files')")
    said = process.communicate()[1]
    assert said.startswith("error: too few file handles") and said.count("\n") == 1 and process.returncode == 2


def test_what_a_library_deprecates_is_not_said():
    process = program(LOADING + "import warnings\nwarnings.warn('`torch.jit.script` is deprecated', FutureWarning)")
    assert process.communicate()[1] == "" and process.returncode == 0


def test_after_loading_a_program_has_its_own_handling():
    main = "lambda _: os.kill(os.getpid(), signal.SIGINT)"
    process = program(f"{LOADING}signal.signal(signal.SIGTERM, signal.SIG_IGN)\nrun_program({main}, [])")
    assert process.communicate()[1] == "interrupted\n" and process.returncode == 130


@pytest.mark.parametrize("name", ["train.py", "eval.py", "compress_and_decompress.py"])
def test_programs_speak_before_they_load(name):
    """Their first statement, before any library is imported."""
    _, future, first, *_ = ast.parse((ROOT / name).read_text()).body
    assert isinstance(future, ast.ImportFrom) and future.module == "__future__"
    assert ast.unparse(first).startswith("if __name__ == '__main__':") and "speak_while_loading()" in ast.unparse(first)
