"""The models in assets/: the default, and those that were it before. What they have written decodes for ever."""

from __future__ import annotations

from threading import Lock

from utils.codec.bitstream import Bitstream
from utils.codec.checkpoint import DEFAULT_CHECKPOINT, load_model
from utils.codec.codec import Codec

_loading = Lock()
_earlier: dict[int, list[Codec]] = {}  # by the id of the codec in use, which lives as long as the program


def codec_of(stream: Bitstream, default: Codec) -> Codec:
    """The codec of the shipped model that wrote a file; `default`, the one in use, where that is it or where none is.

    The others are loaded when the first file asks for them, and compute as `default` does.
    """
    if stream.official or stream.fingerprint == default.fingerprint:
        return default
    with _loading:  # of threads that meet a foreign file at once, one loads
        if id(default) not in _earlier:
            paths = [path for path in sorted(DEFAULT_CHECKPOINT.parent.glob("*.pt")) if path != DEFAULT_CHECKPOINT]
            _earlier[id(default)] = [Codec(load_model(path, default.device), **default.settings) for path in paths]
    return next((codec for codec in _earlier[id(default)] if codec.fingerprint == stream.fingerprint), default)
