"""Text that leaves the program: names of any bytes on any terminal, and JSON as the standard has it."""

from __future__ import annotations

import codecs
import json
import math
from typing import Any, TextIO

SPELL_OUT = "spell-out"  # an error handler: what an encoding lacks is written as \xe9 (a byte of a name) or \u5199


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelt = (f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else ascii(c)[1:-1] for c in lacking)
    return "".join(spelt), error.end


codecs.register_error(SPELL_OUT, _spell_out)


def printable(text: str) -> str:
    """The text without what UTF-8 lacks: the bytes of a file name that is not UTF-8 are spelt out as \\xe9."""
    return text.encode("utf-8", SPELL_OUT).decode()


def one_line(text: str) -> str:
    """The same with line breaks, which a file name may hold, spelt out."""
    return printable(text).replace("\r", "\\r").replace("\n", "\\n")


def forgive(stream: TextIO | None) -> None:
    """Make a stream spell out what its encoding lacks, where it would raise UnicodeEncodeError."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=SPELL_OUT)


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON of `value` as the standard has it: infinite and undefined numbers, which it lacks, become null.

    indent: of the levels, in spaces; None for a single line.
    """
    return json.dumps(_standard(value), indent=indent, allow_nan=False)


def _standard(value: Any) -> Any:
    if isinstance(value, dict):
        return {_standard(key): _standard(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_standard(part) for part in value]
    if isinstance(value, str):
        return printable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
