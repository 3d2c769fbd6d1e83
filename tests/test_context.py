"""Tables with contexts: what is put comes out, as the definition says, for ever alike; and tables fitted to symbols."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.export_checkpoint import main as export
from tests.toys import TOYS, toy_image, toy_model
from utils.cli import UserError
from utils.codec.checkpoint import load_model, save_checkpoint
from utils.codec.codec import Codec, fingerprint
from utils.data.images import to_uint8
from utils.entropy_coding.check import SymbolCheck
from utils.entropy_coding.context import CONTEXTS, ContextTables
from utils.entropy_coding.frequencies import gaussian_pmf, published_scale_table, quantize_pmfs
from utils.entropy_coding.rans import Decoder, DesynchronisedError, Encoder, Tables
from utils.evaluation.evaluation import evaluate_image
from utils.training.fitted_tables import Coded, coded_slices, fit_tables
from utils.training.flags import parse_arguments as training_flags
from utils.training.start import from_weights

SHAPES = [(1, 1, 1), (3, 1, 7), (3, 7, 1), (2, 2, 2), (5, 6, 9)]
SCALES = published_scale_table()


@pytest.fixture(scope="module")
def tables() -> ContextTables:
    """The 64 Gaussians, contexts moving a level by -7 to 8."""
    pmfs = [gaussian_pmf(scale) for scale in SCALES]
    moved = np.clip(np.arange(64)[:, None] + np.arange(CONTEXTS) - 7, 0, 63)
    return ContextTables(*quantize_pmfs(pmfs), np.array([-(len(pmf) // 2 - 1) for pmf in pmfs]), moved)


def draw(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and levels, both (n,): every place has scales of its own beside what the levels say."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 45, shape).astype(np.uint8)
    symbols = np.rint(rng.standard_normal(shape) * SCALES[levels] * rng.gamma(2, 0.5, (1, *shape[1:])))
    symbols[rng.random(shape) < 0.01] *= 1000
    return symbols.astype(np.int32).ravel(), levels.ravel()


def encode(parts, tables: Tables) -> bytes:
    encoder = Encoder()
    for symbols, levels, shape in parts:
        encoder.put(symbols, levels, tables, shape)
    return encoder.finish()


def by_definition(symbols, levels, expected, shape) -> np.ndarray:
    """The context of each symbol, in Python's integers, from the text: no state, every sum anew."""
    sizes = np.minimum(np.abs(symbols.astype(object)) * 256, 2048).reshape(shape)
    hoped = expected[levels].astype(object).reshape(shape)
    edges = [110, 140, 165, 190, 212, 232, 248, 264, 285, 320, 380, 480, 640, 900, 1400]
    around = [(0, 1, 8), (1, 0, 8), (1, 1, 4), (1, -1, 4), (0, 2, 3), (2, 0, 3)]  # rows up, columns left, weight

    def total(values, c, i, j) -> int:
        near = [w * values[c, i - up, j - left] for up, left, w in around
                if i >= up and 0 <= j - left < shape[2]]  # fmt: skip
        past = 0
        for before in range(c):
            past += values[before, i, j] - (past >> 4)
        return 1024 + sum(near) + 5 * past

    return np.array([
        sum(total(sizes, *place) * 256 >= total(hoped, *place) * edge for edge in edges) for place in np.ndindex(shape)
    ])  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_contexts_are_those_of_the_definition(tables, shape):
    symbols, levels = draw(shape, 1)
    numbers = np.tile(np.arange(CONTEXTS, dtype=np.uint8), (64, 1))
    found = tables.by_context(symbols, levels, shape, numbers)
    assert np.array_equal(found, by_definition(symbols, levels, tables.expected, shape))
    assert np.array_equal(tables.coded_under(symbols, levels, shape), np.clip(levels.astype(int) + found - 7, 0, 63))


def test_the_expected_size_is_that_of_the_tables(tables):
    sizes = [
        np.minimum(np.abs(np.rint(np.random.default_rng(0).standard_normal(200_000) * s)), 8).mean() for s in SCALES
    ]
    assert np.abs(tables.expected / 256 - sizes).max() < 0.02


def test_what_was_put_comes_out(tables):
    parts = [(*draw(shape, seed), shape) for seed, shape in enumerate(SHAPES)]
    decoder = Decoder(encode(parts, tables))
    for symbols, levels, shape in parts:
        assert np.array_equal(decoder.get(levels, tables, shape), symbols)
    decoder.check_end()


def test_strings_stay_what_they_are(tables):
    """Files hold such strings: never change what this test wants."""
    data = encode([(*draw((6, 20, 30), 7), (6, 20, 30))], tables)
    assert hashlib.sha256(data).hexdigest()[:16] == "684d327b011c8bd0"


def test_costs_are_what_symbols_take(tables):
    """Whatever their size, escapes included: strings of one symbol many times."""
    one_row = ContextTables(tables.cdf, tables.lengths, tables.offsets, np.tile(np.arange(64)[:, None], CONTEXTS))
    shape, levels = (1, 40, 50), np.arange(0, 64, 9, dtype=np.uint8)
    for level in levels:
        half = -int(tables.offsets[level])
        for size in (0, 1, half - 1, half, half + 1, half + 9, half + 63):
            signs = np.resize(np.array([size, -size], np.int32), 2000)
            bits = 8 * len(encode([(signs, np.full(2000, level), shape)], one_row)) - 64  # of the state
            assert bits / 2000 == pytest.approx(float(tables.costs[level, size]), rel=2e-3, abs=0.02)


def test_contexts_save_bits_where_levels_miss_the_place(tables):
    shape = (64, 24, 24)
    part = (*draw(shape, 3), shape)
    assert len(encode([part], tables)) < 0.96 * len(encode([part], Tables(tables.cdf, tables.lengths, tables.offsets)))


def test_damage_is_noticed(tables):
    """By the coder, or by the check of the symbols, where a bit of an escape's distance is another one."""
    symbols, levels = draw((4, 8, 8), 5)
    data, right = encode([(symbols, levels, (4, 8, 8))], tables), SymbolCheck()
    right.add(symbols)
    for bit in range(8 * len(data)):
        spoiled = bytearray(data)
        spoiled[bit // 8] ^= 1 << bit % 8
        check = SymbolCheck()
        try:
            decoder = Decoder(bytes(spoiled), check)
            decoder.get(levels, tables, (4, 8, 8))
            decoder.check_end()
        except DesynchronisedError:
            continue
        assert check.value != right.value


@pytest.mark.parametrize("shape", [None, (4, 4), (2, 2, 2), (1, 3, 3)])
def test_a_shape_that_does_not_fit(tables, shape):
    symbols, levels = draw((1, 3, 4), 0)
    with pytest.raises(ValueError, match="need the shape"):
        Encoder().put(symbols, levels, tables, shape)
    with pytest.raises(ValueError, match="need the shape"):
        Decoder(Encoder().finish()).get(levels, tables, shape)


@pytest.mark.parametrize(
    "corrected", [np.zeros((64, 3), int), np.full((64, CONTEXTS), 64), np.full((64, CONTEXTS), -1)]
)
def test_corrections_to_no_row(tables, corrected):
    with pytest.raises(ValueError, match="entropy tables"):
        ContextTables(tables.cdf, tables.lengths, tables.offsets, corrected)


# ---- fitted --------------------------------------------------------------------------------------------------------


def laplacian(shape: tuple[int, int, int], seed: int) -> Coded:
    """Symbols with longer tails than their levels' Gaussians have, at scales of 0.11 to 30."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 46, shape).astype(np.uint8)
    symbols = np.rint(rng.laplace(size=shape) * SCALES[levels] / 2**0.5 * rng.gamma(2, 0.5, (1, *shape[1:])))
    return Coded(symbols.astype(np.int32).ravel(), levels.ravel(), shape)


def test_fitted_tables_take_fewer_bits():
    model = toy_model("dcae")
    gaussians = model.gaussian_conditional.tables()
    fit_tables(model, [laplacian((32, 24, 24), seed) for seed in range(4)])
    other = laplacian((32, 24, 24), 9)
    part = (other.symbols, other.levels, other.shape)
    before, after = (len(encode([part], tables)) for tables in (gaussians, model.gaussian_conditional.tables()))
    assert after < 0.93 * before
    model.update(force=True)
    assert not model.gaussian_conditional.fitted
    assert len(encode([part], model.gaussian_conditional.tables())) == before


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of a toy, and an export of it with tables fitted to two images and a broken one, in one folder."""
    folder = tmp_path_factory.mktemp("fitted")
    model, (name, options) = toy_model("dcae"), TOYS["dcae"]
    content = {"model": {"name": name, "config": options}, "state_dict": model.state_dict()}
    save_checkpoint(folder / "plain.pt", content)
    (folder / "images").mkdir()
    for seed in range(2):
        Image.fromarray(to_uint8(toy_image(200, 140, seed=seed))).save(folder / "images" / f"{seed}.png")
    (folder / "images" / "broken.png").write_bytes(b"no image")
    flags = ["--checkpoint", str(folder / "plain.pt"), "--precision", "fp32", "--fit-tables", str(folder / "images")]
    export([*flags, "--output", str(folder / "fitted.pt")])
    return folder


@pytest.mark.parametrize("arithmetic", ["fp64", "fp32"])
def test_files_with_fitted_tables(checkpoint, arithmetic):
    """The image is the same, the file another and smaller one, which the model without the tables does not take."""
    x = toy_image(150, 200, seed=5)
    plain, fitted = (Codec(load_model(checkpoint / f"{name}.pt"), arithmetic) for name in ("plain", "fitted"))
    assert fitted.model.gaussian_conditional.fitted and plain.fingerprint != fitted.fingerprint
    data = fitted.compress(x)
    assert len(data) < len(plain.compress(x))
    assert torch.equal(fitted.decompress(data), plain.decompress(plain.compress(x)))
    fitted.verify(data)
    with pytest.raises(ValueError, match="model"):
        plain.decompress(data)


@pytest.mark.parametrize("kind", ["dcae", "elic"])
@torch.no_grad()
def test_the_rate_is_estimated_by_the_fitted_tables(kind):
    """Of elic, whose slices are coded in two passes, with the contexts of either."""
    model, pixels = toy_model(kind), to_uint8(toy_image(150, 200, seed=5))
    for fitted in (False, True):
        if fitted:
            fit_tables(model, coded_slices(model, [toy_image(200, 140)], [None]))
        record, _, bits = evaluate_image(Codec(model, "fp32"), pixels, real=True)
        real = record["bpp_y"] * 150 * 200 - 64  # of the coder's state
        assert (abs(real / bits.sum() - 1) < 0.002) == fitted


def test_training_starts_without_fitted_tables(checkpoint):
    """They are of the old weights; with them, but empty, no image could be validated."""
    args = training_flags(["-d", str(checkpoint), "--checkpoint", str(checkpoint / "fitted.pt")])
    model = from_weights(args).model.eval()
    assert not model.gaussian_conditional.fitted
    assert model(toy_image(64, 64))["likelihoods"]["y"].isfinite().all()


def test_the_published_layout_knows_no_fitted_tables(checkpoint):
    x = toy_image(100, 130, seed=6)
    plain, fitted = (Codec(load_model(checkpoint / f"{name}.pt"), "published") for name in ("plain", "fitted"))
    assert fitted.compress(x) == plain.compress(x)


def test_other_weights_take_fitted_tables_away(checkpoint):
    fitted, plain = load_model(checkpoint / "fitted.pt"), load_model(checkpoint / "plain.pt")
    before = fingerprint(fitted)
    plain.load_state_dict(fitted.state_dict(), strict=False)
    assert fingerprint(plain) == before
    fitted.load_state_dict(toy_model("dcae").state_dict())
    assert not fitted.gaussian_conditional.fitted and fingerprint(fitted) == fingerprint(toy_model("dcae"))


def test_images_that_cannot_be_read_are_counted(checkpoint, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    flags = ["--checkpoint", str(checkpoint / "plain.pt"), "--output", str(tmp_path / "a.pt"), "--fit-tables"]
    export([*flags, str(checkpoint / "images")])
    said = "".join(capsys.readouterr())
    assert "left out: " in said and "broken.png" in said and "tables fitted to 2 images, 1 left out" in said
    with pytest.raises(UserError, match="none of its images can be read"):
        export([*flags, str(tmp_path)])


def test_a_folder_without_images(checkpoint, tmp_path):
    with pytest.raises(UserError, match="no images"):
        export(
            [
                "--checkpoint",
                str(checkpoint / "plain.pt"),
                "--fit-tables",
                str(tmp_path),
                "--output",
                str(tmp_path / "a.pt"),
            ]
        )


@pytest.mark.parametrize("corrected", [torch.zeros(64, 3, dtype=torch.uint8), torch.full((64, CONTEXTS), 99)])
def test_damaged_rows_by_context_are_the_checkpoints_fault(checkpoint, corrected, tmp_path):
    content = torch.load(checkpoint / "fitted.pt", weights_only=True)
    content["state_dict"]["gaussian_conditional._corrected"] = corrected
    torch.save(content, tmp_path / "damaged.pt")
    with pytest.raises(UserError, match=r"damaged\.pt: its entropy tables are damaged"):
        load_model(tmp_path / "damaged.pt")
