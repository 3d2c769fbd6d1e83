"""The entropy coder against CompressAI's, on as many symbols as DCAE has for a 768x512 image."""

from __future__ import annotations

import numpy as np
from compressai.ans import BufferedRansEncoder, RansDecoder

from models.layers.entropy_models import GaussianConditional
from utils.entropy_coding.frequencies import published_scale_table
from utils.entropy_coding.rans import Decoder, Encoder
from utils.measuring.runs import in_turn

KODAK_SYMBOLS = 320 * 32 * 48


def coder_speed(runs: int, clock: str) -> list[dict]:
    """Milliseconds and how many times faster, for encoding and decoding; medians of `runs` by a clock of `measuring`.

    Symbols are as their scales distribute them, most of them small, as in a latent; indexes are uint8, as a model has.
    """
    gaussian, random = GaussianConditional(published_scale_table().tolist()), np.random.default_rng(0)
    gaussian.update()
    tables, scales = gaussian.tables(), gaussian.scale_table.numpy()
    indexes = random.integers(0, 40, KODAK_SYMBOLS).astype(np.uint8)
    symbols = np.rint(random.standard_normal(KODAK_SYMBOLS) * scales[indexes]).astype(np.int32)
    lists = [array.tolist() for array in (tables.cdf, tables.lengths, tables.offsets)]

    def encode() -> bytes:
        encoder = Encoder()
        encoder.put(symbols, indexes, tables)
        return encoder.finish()

    def encode_there() -> bytes:
        encoder = BufferedRansEncoder()
        encoder.encode_with_indexes(symbols.tolist(), indexes.tolist(), *lists)
        return encoder.flush()

    def decode_there() -> np.ndarray:
        decoder = RansDecoder()
        decoder.set_stream(data)
        return np.array(decoder.decode_stream(indexes.tolist(), *lists))

    data = encode()
    assert data == encode_there() and (decode_there() == symbols).all()
    ours = {"encode": encode, "decode": lambda: Decoder(data).get(indexes, tables)}
    theirs = {"encode": encode_there, "decode": decode_there}
    rows = []
    for direction in ours:
        seconds = in_turn({"ours": ours[direction], "compressai": theirs[direction]}, runs, clock)
        milliseconds = {f"{name}_ms": 1000 * value for name, value in seconds.items()}
        rows.append({"what": direction, **milliseconds, "times": seconds["compressai"] / seconds["ours"]})
    return rows
