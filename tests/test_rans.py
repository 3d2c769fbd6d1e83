"""The entropy coder: byte for byte CompressAI's, and safe with anything."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from compressai._CXX import pmf_to_quantized_cdf
from compressai.ans import BufferedRansEncoder, RansDecoder

import utils.entropy_coding.rans_loops
from utils.entropy_coding.frequencies import gaussian_pmf, published_scale_table, quantize_pmf, quantize_pmfs
from utils.entropy_coding.rans import Decoder, DesynchronisedError, Encoder, Tables, reciprocals
from utils.measuring.coder_speed import coder_speed


@pytest.fixture(scope="module")
def tables() -> Tables:
    """The 64 Gaussian tables."""
    pmfs = [gaussian_pmf(scale) for scale in published_scale_table()]
    return Tables(*quantize_pmfs(pmfs), np.array([-(len(pmf) // 2 - 1) for pmf in pmfs]))


def draw(tables: Tables, count: int, seed: int, escapes: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Symbols of the tables' own scales, some far outside, and their indexes.

    Distances stay below 2^27: CompressAI shifts a 32-bit number by 32 bits, which C++ leaves undefined, above that.
    """
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, len(tables.lengths), count).astype(np.int32)
    symbols = np.round(rng.standard_normal(count) * published_scale_table()[indexes % 64]).astype(np.int64)
    far = rng.random(count) < escapes
    symbols[far] += (rng.choice([-1, 1], far.sum()) * 2.0 ** rng.uniform(1, 26.9, far.sum())).astype(np.int64)
    return symbols.astype(np.int32), indexes


def random_tables(seed: int, rows: int = 40) -> Tables:
    """Tables of any shape: nearly certain, flat, short, long, with offsets on either side."""
    rng = np.random.default_rng(seed)
    pmfs = [rng.dirichlet(np.full(rng.integers(2, 900), 10 ** rng.uniform(-2, 2))) for _ in range(rows)]
    return Tables(*quantize_pmfs([pmf.astype(np.float32) for pmf in pmfs]), rng.integers(-900, 900, rows))


def encode(symbols, indexes, tables) -> bytes:
    encoder = Encoder()
    encoder.put(symbols, indexes, tables)
    return encoder.finish()


def decode(data: bytes, indexes, tables) -> np.ndarray:
    decoder = Decoder(data)
    symbols = decoder.get(indexes, tables)
    decoder.check_end()
    return symbols


def by_hand(symbols, indexes, tables, spoil_groups: int | None = None) -> bytes:
    """The same coder in Python's unbounded integers, straight from the definition.

    `spoil_groups` is written in place of the number of groups of an escape.
    """
    steps = []
    for symbol, row in zip(symbols.tolist(), indexes.tolist()):
        value, last = symbol - int(tables.offsets[row]), int(tables.lengths[row]) - 2
        index = value if 0 <= value < last else last
        steps.append((int(tables.cdf[row, index]), int(tables.cdf[row, index + 1] - tables.cdf[row, index])))
        if index == last:
            distance = 2 * (value - last) if value >= 0 else -2 * value - 1
            groups = [distance >> shift & 15 for shift in range(0, distance.bit_length(), 4)]
            count = len(groups) if spoil_groups is None else spoil_groups
            steps += [(group, None) for group in (count, *groups)]
    state, words = 1 << 31, []
    for start, frequency in reversed(steps):
        if state >= (frequency or 1 << 12) << 47:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = state // frequency * 65536 + state % frequency + start if frequency else state << 4 | start
    words += [state >> 32, state & 0xFFFFFFFF]
    return np.array(words[::-1], "<u4").tobytes()


@pytest.mark.parametrize("count", [17, 1000, 50000])  # CompressAI's own encoder overruns its buffer on a few symbols
@pytest.mark.parametrize("kind", ["gaussian", 0, 1, 2])
@pytest.mark.parametrize("escapes", [0, 0.05, 0.5])
def test_bytes_are_compressais(tables, count, kind, escapes):
    used = tables if kind == "gaussian" else random_tables(kind)
    symbols, indexes = draw(used, count, count, escapes)
    lists = ([row[:n].tolist() for row, n in zip(used.cdf, used.lengths)], used.lengths.tolist(), used.offsets.tolist())
    theirs = BufferedRansEncoder()
    theirs.encode_with_indexes(symbols.tolist(), indexes.tolist(), *lists)
    data = theirs.flush()
    assert encode(symbols, indexes, used) == data
    assert np.array_equal(decode(data, indexes, used), symbols)
    reader = RansDecoder()
    reader.set_stream(data)
    assert reader.decode_stream(indexes.tolist(), *lists) == symbols.tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_symbols(tables, count):
    symbols, indexes = draw(tables, count, 6, escapes=0.5)
    data = encode(symbols, indexes, tables)
    assert data == by_hand(symbols, indexes, tables)
    assert np.array_equal(decode(data, indexes, tables), symbols)


def test_nothing_put_is_the_bare_state(tables):
    assert Encoder().finish() == b"\0\0\0\x80\0\0\0\0"
    assert len(decode(Encoder().finish(), [], tables)) == 0


def test_the_largest_escapes_come_back(tables):
    """Only escapes, all of 32 bits: the most words that a symbol can take."""
    symbols = np.tile(np.array([2**31 - 1, -(2**31), 2**31 - 2, 1 - 2**31], np.int32), 500)
    row = int(np.argmax(tables.lengths))
    indexes = np.full(len(symbols), row)
    data = encode(symbols, indexes, tables)
    assert data == by_hand(symbols, indexes, tables)
    assert np.array_equal(decode(data, indexes, tables), symbols)


def test_symbols_too_far_away_are_refused():
    cdf, lengths = np.array([[0, 9, 65536]] * 2), np.array([3, 3])
    tables = Tables(cdf, lengths, np.array([7, -7]))
    for symbol, row in ((-(2**31), 0), (2**31 - 1, 1)):
        with pytest.raises(ValueError, match="too far"):
            encode(np.array([symbol]), np.array([row]), tables)
        assert decode(encode([symbol], [1 - row], tables), [1 - row], tables).tolist() == [symbol]


@pytest.mark.parametrize("offset", [-3, -2, -1, 0, 1, 2])
def test_how_far_symbols_may_be_away(offset):
    """A table of one interval, at `offset`, and the escape: below and above it 2^31 distances each can be coded."""
    tables = Tables(np.array([[0, 9, 65536]]), np.array([3]), np.array([offset]))
    for symbol, distance in ((-(2**31), offset - 1 + 2**31), (2**31 - 1, 2**31 - 1 - (offset + 1))):
        if distance < 2**31:
            assert decode(encode([symbol], [0], tables), [0], tables).tolist() == [symbol]
        else:
            with pytest.raises(ValueError, match="too far"):
                encode([symbol], [0], tables)


def test_many_puts_are_one(tables):
    symbols, indexes = draw(tables, 5000, 1)
    encoder = Encoder()
    for part in np.array_split(np.arange(5000), 7):
        mine = symbols[part]
        encoder.put(mine, indexes[part].astype(np.uint8), tables)
        mine[:] = 0  # the encoder keeps a copy
    data = encoder.finish()
    assert data == encode(symbols, indexes, tables) == by_hand(symbols, indexes, tables)
    decoder = Decoder(data)
    parts = [decoder.get(indexes[part], tables) for part in np.array_split(np.arange(5000), 3)]
    assert np.array_equal(np.concatenate(parts), symbols)


def test_what_was_put_is_a_copy(tables):
    """Also of arrays that have the loops' own types already."""
    symbols, indexes = draw(tables, 500, 3)
    mine, my_indexes = symbols.copy(), indexes.astype(np.uint8)
    encoder = Encoder()
    encoder.put(mine, my_indexes, tables)
    mine[:], my_indexes[:] = 0, 255
    assert encoder.finish() == encode(symbols, indexes, tables)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, ">i2", np.uint16, np.int32, ">i4", np.uint32, np.int64, np.uint64])
def test_indexes_of_any_type_and_layout(tables, kind):
    symbols, indexes = draw(tables, 300, 4)
    data = encode(symbols, indexes, tables)
    spread, turned = np.zeros((300, 3), kind), indexes[::-1].astype(kind)[::-1]
    spread[:, 1] = indexes
    for given in (indexes.astype(kind), spread[:, 1], turned):
        assert encode(symbols, given, tables) == data
        assert np.array_equal(decode(data, given, tables), symbols)
    same = np.broadcast_to(np.array(7, kind), 300)
    assert np.array_equal(decode(encode(symbols, same, tables), same, tables), symbols)


@pytest.mark.parametrize("rows", [1, 256, 257, 300])
def test_any_number_of_rows(rows):
    tables = random_tables(8, rows)
    symbols, indexes = draw(tables, 2000, rows)
    indexes[-1] = rows - 1
    data = encode(symbols, indexes, tables)
    assert data == by_hand(symbols, indexes, tables)
    assert np.array_equal(decode(data, indexes, tables), symbols)
    with pytest.raises(ValueError, match="outside the entropy tables"):
        encode([0], [rows], tables)


def test_the_longest_and_the_shortest_rows():
    """65536 intervals of frequency 1; two intervals, of which one is as improbable as can be."""
    cdf = np.zeros((3, 65537), np.int32)
    cdf[0], cdf[1, :3], cdf[2, :3] = np.arange(65537), (0, 1, 65536), (0, 65535, 65536)
    tables = Tables(cdf, np.array([65537, 3, 3]), np.array([-30000, 0, 0]))
    indexes = np.arange(9000) % 3
    symbols = np.where(indexes == 0, np.linspace(-30002, 35540, 9000).astype(int), np.arange(9000) // 3 % 4 - 1)
    data = encode(symbols, indexes, tables)
    assert data == by_hand(symbols, indexes, tables)
    assert np.array_equal(decode(data, indexes, tables), symbols)


def test_division_is_exact():
    """By every frequency: random states of all sizes, the largest, and those next to a multiple."""
    rng, last = np.random.default_rng(6), np.uint64(2**63 - 1)
    frequencies = np.arange(1, 65537, dtype=np.uint64)
    random = rng.integers(2**62, 2**63, (3, 65536), dtype=np.uint64) >> np.array([[0], [20], [45]], np.uint64)
    multiples = [x // frequencies * frequencies for x in (np.full(65536, last), *random)]
    states = [np.full(65536, last), *random, *multiples, *(x - np.uint64(x.all()) for x in multiples)]
    for column in states:
        quotients = [utils.entropy_coding.rans_loops.divide(x, at, *reciprocals()) for at, x in enumerate(column)]
        assert np.array_equal(np.array(quotients, np.uint64), column // frequencies)


def test_threads_share_tables(tables):
    cases = [draw(tables, 20000, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda case: decode(encode(*case, tables), case[1], tables), cases))
    assert all(np.array_equal(result, case[0]) for result, case in zip(results, cases))


def test_cutting_a_word_anywhere_is_noticed(tables):
    symbols, indexes = draw(tables, 400, 2)
    data = encode(symbols, indexes, tables)
    for at in range(0, len(data), 4):
        with pytest.raises(DesynchronisedError):
            decode(data[:at] + data[at + 4 :], indexes, tables)
    with pytest.raises(DesynchronisedError, match="left over"):
        decode(data + bytes(4), indexes, tables)


def test_every_flipped_bit_is_noticed(tables):
    symbols, indexes = draw(tables, 150, 7)
    data = encode(symbols, indexes, tables)
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DesynchronisedError):
            decode(bytes(broken), indexes, tables)


def test_random_bytes_end_in_an_error(tables):
    rng, kinds = np.random.default_rng(3), [tables, random_tables(5)]
    for case in range(1000):
        data = rng.bytes(int(rng.choice([0, 1, 7, 8, 12, 64, 401, 4000])))
        data = bytes(len(data)) if case % 50 == 0 else b"\xff" * len(data) if case % 50 == 1 else data
        used = kinds[case % 2]
        with pytest.raises(DesynchronisedError):
            decode(data, rng.integers(0, len(used.lengths), 3000), used)


@pytest.mark.parametrize("groups", [9, 14, 15])
def test_an_endless_escape_is_refused(tables, groups):
    symbols, indexes = np.array([2**30, 3], np.int32), np.array([5, 5])
    assert by_hand(symbols, indexes, tables) == encode(symbols, indexes, tables)
    with pytest.raises(DesynchronisedError, match="impossible escape"):
        Decoder(by_hand(symbols, indexes, tables, groups)).get(indexes, tables)


def test_an_escape_beyond_32_bits_is_refused():
    """Written with a table further left than the one it is read with."""
    written, read = (Tables(np.array([[0, 9, 65536]]), np.array([3]), np.array([o])) for o in (0, 1000))
    data = encode([2**31 - 1], [0], written)
    with pytest.raises(DesynchronisedError, match="impossible escape"):
        Decoder(data).get([0], read)


def test_one_wrong_index_is_noticed(tables):
    symbols, indexes = draw(tables, 3000, 4)
    data = encode(symbols, indexes, tables)
    wrong = indexes.copy()
    wrong[100] = (wrong[100] + 1) % 64
    with pytest.raises(DesynchronisedError):
        decode(data, wrong, tables)


@pytest.mark.parametrize(
    ("symbols", "indexes", "message"),
    [
        ([0], [64], "outside the entropy tables"),
        ([0], [-1], "outside the entropy tables"),
        ([0], [2**32], "does not fit 32 bits"),
        ([2**31], [0], "does not fit 32 bits"),
        ([0, 0], [1], "one index for each"),
        ([0.5], [1], "integers are needed"),
        ([[0]], [[1]], "dimension"),
    ],
)
def test_bad_arguments(tables, symbols, indexes, message):
    with pytest.raises(ValueError, match=message):
        encode(np.array(symbols), np.array(indexes), tables)


@pytest.mark.parametrize("index", [64, 255, 256, 65536, -1, -192, -256, 2**31 - 1, -(2**31)])
def test_a_bad_index_is_refused_before_anything_is_coded(tables, index):
    """Whatever it is modulo 256; coder and string stay as they were."""
    symbols, indexes = draw(tables, 100, 8)
    bad = np.append(indexes[:50], index)
    encoder = Encoder()
    with pytest.raises(ValueError, match="outside the entropy tables"):
        encoder.put(np.append(symbols[:50], 0), bad, tables)
    encoder.put(symbols, indexes, tables)
    data = encoder.finish()
    assert data == encode(symbols, indexes, tables)
    decoder = Decoder(data)
    with pytest.raises(ValueError, match="outside the entropy tables"):
        decoder.get(bad, tables)
    assert np.array_equal(decoder.get(indexes, tables), symbols)
    decoder.check_end()


def test_bad_index_when_decoding(tables):
    with pytest.raises(ValueError, match="outside the entropy tables"):
        Decoder(Encoder().finish()).get(np.array([64]), tables)


@pytest.mark.parametrize(
    ("row", "length", "message"),
    [
        ([0, 5, 5, 65536], 4, "does not rise"),
        ([0, 9, 5, 65536], 4, "does not rise"),
        ([1, 5, 9, 65536], 4, "does not rise"),
        ([0, 5, 9, 65535], 4, "does not rise"),
        ([0, 5, 65536, 0], 4, "does not rise"),
        ([0, 2**31 - 1, -(2**31), -1, 65536], 5, "does not rise"),  # its 32-bit differences are all positive
        ([0, 5, 9, 65536], 5, "length is out of range"),
        ([0, 65536], 2, "length is out of range"),
        ([0, 5, 9, 65536], -1, "length is out of range"),
        ([0, 5, 9, 2**32 + 65536], 4, "does not fit"),
    ],
)
def test_bad_tables(row, length, message):
    with pytest.raises(ValueError, match=message):
        Tables(np.array([row]), np.array([length]), np.array([0]))


def test_tables_that_do_not_belong_together():
    with pytest.raises(ValueError, match="belong together"):
        Tables(np.array([[0, 9, 65536]]), np.array([3, 3]), np.array([0]))
    with pytest.raises(ValueError, match="length is out of range"):
        Tables(np.empty((0, 3), np.int32), np.empty(0, np.int32), np.empty(0, np.int32))


def test_frequencies_are_compressais():
    rng = np.random.default_rng(5)
    for length in (2, 3, 30, 700):
        for sharpness in (0.1, 3, 40):
            pmf = rng.dirichlet(np.full(length, 1 / sharpness)).astype(np.float32)
            assert quantize_pmf(pmf).tolist() == list(pmf_to_quantized_cdf(pmf.tolist(), 16))


def test_the_comparison_with_compressai_runs():
    """scripts/benchmark.py --parts coder, which asserts that strings and symbols are alike."""
    rows = coder_speed(1, "cpu")
    assert [row["what"] for row in rows] == ["encode", "decode"] and all(row["ours_ms"] > 0 for row in rows)


def test_numba_waits_until_it_is_needed():
    code = "import sys, utils.entropy_coding.rans; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_folder_for_compiled_code(tables, monkeypatch):
    """Where nothing can be kept on disk, the loops are compiled anew each time, and work."""

    def refuse(self):
        raise PermissionError("read-only")

    monkeypatch.setattr("numba.core.caching._CacheLocator.ensure_cache_path", refuse)
    spec = importlib.util.spec_from_file_location("loops_without_cache", utils.entropy_coding.rans_loops.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert type(module.encode._cache).__name__ == "NullCache"
    monkeypatch.setattr("utils.entropy_coding.rans_loops.encode", module.encode)
    symbols, indexes = draw(tables, 50, 9)
    assert encode(symbols, indexes, tables) == by_hand(symbols, indexes, tables)
