"""Whether a class is still written as it was when its faster form was made.

Someone who edits the forward pass of a known block is to find the edit in inference, too: from then on the block
computes as it is written, slower, until the faster class follows and takes the new digest, which a test names.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable
from functools import cache

UNSEEN = (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER)
MARKS = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def own_methods(kind: type) -> tuple[Callable, ...]:
    """The functions that a class defines itself, without `__init__`, which only decides about its parts."""
    return tuple(f for name, f in vars(kind).items() if inspect.isfunction(f) and name != "__init__")


@cache
def digest(*functions: Callable) -> str:
    """8 hexadecimal digits of what functions do, whatever their comments and docstrings; "" where that is unknown."""
    try:
        sources = [inspect.getsource(function) for function in functions]
    except OSError:  # installed without source, where nobody edits it
        return ""
    words = [word for source in sources for word in code_of(source)]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]


def code_of(source: str) -> list[str]:
    """The words of a function, without comments, docstrings and line breaks inside statements."""
    words, begins = [], True  # a statement
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline):
        if token.type in UNSEEN or (token.type == tokenize.STRING and begins):
            continue
        if not (token.type == tokenize.NEWLINE and begins):  # that of a docstring
            words.append(tokenize.tok_name[token.type] if token.type in MARKS else token.string)
        begins = token.type in MARKS
    return words


def is_as_written(known: str, *functions: Callable) -> bool:
    """Whether functions are those of the digest `known`, as far as that can be seen."""
    return digest(*functions) in (known, "")
