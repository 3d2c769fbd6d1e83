"""How a program ends: one clear line for what a user can put right, a traceback for what only we can."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """Something the user can put right; its text is one line that names the file or flag and the way out."""


def run_program(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> None:
    """Call `main(argv)` and leave with its status; a UserError becomes one line on stderr and status 2.

    With `--debug` among the arguments the traceback is shown instead. Ctrl-C leaves with status 130.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        status = main(argv)
    except UserError as error:
        if "--debug" in argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        if "--debug" in argv:
            raise
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
