"""The entropy coder: byte for byte CompressAI's, and safe with anything."""

from __future__ import annotations

import numpy as np
import pytest
from compressai._CXX import pmf_to_quantized_cdf
from compressai.ans import BufferedRansEncoder, RansDecoder

from models.layers.entropy_models import gaussian_pmf, published_scale_table
from utils.entropy_tables import quantize_pmf, quantize_pmfs
from utils.rans import Decoder, DesynchronisedError, Encoder, Tables


@pytest.fixture(scope="module")
def tables() -> Tables:
    """The 64 Gaussian tables."""
    pmfs = [gaussian_pmf(scale) for scale in published_scale_table()]
    return Tables(*quantize_pmfs(pmfs), np.array([-(len(pmf) // 2 - 1) for pmf in pmfs]))


def draw(tables: Tables, count: int, seed: int, escapes: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Symbols of the tables' own scales, some far outside, and their indexes."""
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, len(tables.lengths), count).astype(np.int32)
    symbols = np.round(rng.standard_normal(count) * published_scale_table()[indexes]).astype(np.int64)
    far = rng.random(count) < escapes
    # CompressAI does not come back from distances of 2^27 and more
    symbols[far] += (rng.choice([-1, 1], far.sum()) * 2.0 ** rng.uniform(1, 26, far.sum())).astype(np.int64)
    return symbols.astype(np.int32), indexes


def encode(symbols, indexes, tables) -> bytes:
    encoder = Encoder()
    encoder.put(symbols, indexes, tables)
    return encoder.finish()


@pytest.mark.parametrize("count", [17, 1000, 50000])  # CompressAI's own encoder overruns its buffer on a few symbols
@pytest.mark.parametrize("seed", range(4))
def test_bytes_are_compressais(tables, count, seed):
    symbols, indexes = draw(tables, count, seed, escapes=0.05 * seed)
    rows = [row[:n].tolist() for row, n in zip(tables.cdf, tables.lengths)]
    theirs = BufferedRansEncoder()
    lists = (rows, tables.lengths.tolist(), tables.offsets.tolist())
    theirs.encode_with_indexes(symbols.tolist(), indexes.tolist(), *lists)
    data = theirs.flush()
    assert encode(symbols, indexes, tables) == data
    decoder = Decoder(data)
    assert np.array_equal(decoder.get(indexes, tables), symbols)
    decoder.check_end()
    reader = RansDecoder()
    reader.set_stream(data)
    assert reader.decode_stream(indexes.tolist(), *lists) == symbols.tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_symbols(tables, count):
    symbols, indexes = draw(tables, count, 6)
    decoder = Decoder(encode(symbols, indexes, tables))
    assert np.array_equal(decoder.get(indexes, tables), symbols)
    decoder.check_end()


def test_many_puts_are_one(tables):
    symbols, indexes = draw(tables, 5000, 1)
    encoder = Encoder()
    for part in np.array_split(np.arange(5000), 7):
        encoder.put(symbols[part], indexes[part], tables)
    data = encoder.finish()
    assert data == encode(symbols, indexes, tables)
    decoder = Decoder(data)
    parts = [decoder.get(indexes[part], tables) for part in np.array_split(np.arange(5000), 3)]
    assert np.array_equal(np.concatenate(parts), symbols)


def test_cutting_a_word_anywhere_is_noticed(tables):
    symbols, indexes = draw(tables, 400, 2)
    data = encode(symbols, indexes, tables)
    for at in range(0, len(data), 4):
        with pytest.raises(DesynchronisedError):
            decoder = Decoder(data[:at] + data[at + 4 :])
            decoder.get(indexes, tables)
            decoder.check_end()


def test_random_bytes_end_in_an_error(tables):
    rng, indexes = np.random.default_rng(3), np.full(2000, 5, np.int32)
    for length in (0, 1, 7, 8, 12, 64, 400):
        with pytest.raises(DesynchronisedError):
            decoder = Decoder(rng.bytes(length))
            decoder.get(indexes, tables)
            decoder.check_end()


def test_one_wrong_index_is_noticed(tables):
    symbols, indexes = draw(tables, 3000, 4)
    data = encode(symbols, indexes, tables)
    wrong = indexes.copy()
    wrong[100] = (wrong[100] + 1) % 64
    with pytest.raises(DesynchronisedError):
        decoder = Decoder(data)
        decoder.get(wrong, tables)
        decoder.check_end()


def test_bad_arguments(tables):
    with pytest.raises(ValueError, match="outside the entropy tables"):
        encode(np.zeros(1, np.int32), np.array([64]), tables)
    with pytest.raises(ValueError, match="one index for each"):
        encode(np.zeros(2, np.int32), np.array([1]), tables)
    with pytest.raises(ValueError, match="does not rise"):
        Tables(np.array([[0, 5, 5, 65536]]), np.array([4]), np.array([0]))


def test_frequencies_are_compressais():
    rng = np.random.default_rng(5)
    for length in (2, 3, 30, 700):
        for sharpness in (0.1, 3, 40):
            pmf = rng.dirichlet(np.full(length, 1 / sharpness)).astype(np.float32)
            assert quantize_pmf(pmf).tolist() == list(pmf_to_quantized_cdf(pmf.tolist(), 16))
