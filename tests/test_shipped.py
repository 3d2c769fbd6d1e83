"""The models in assets: what the default promises, and files that people have stored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import load_model
from tests.test_portable import ENVIRONMENTS, environment
from utils.codec.bitstream import unpack
from utils.codec.checkpoint import DEFAULT_CHECKPOINT
from utils.codec.codec import Codec
from utils.codec.shipped import codec_of
from utils.data.images import read_image, to_tensor, to_uint8, write_png
from utils.metrics import psnr

STORED = Path(__file__).parent / "shipped"
SAMPLES = Path(__file__).parent.parent / "assets" / "samples"
FILES = {"girl-10": ("girl", 10.0), "city-55.5": ("city", 55.5), "flowers-100": ("flowers", 100.0)}
MODELS = sorted(folder.name for folder in STORED.iterdir())  # of each that is or was the default
SIDE = (200, 230)  # of the stored files' images: no multiples of anything

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def codec():
    return Codec(load_model(DEFAULT_CHECKPOINT))


def photo(name: str, height: int = SIDE[0], width: int = SIDE[1]) -> torch.Tensor:
    return to_tensor(read_image(SAMPLES / f"{name}.png")[0][150 : 150 + height, 200 : 200 + width])


def test_it_is_small(codec):
    assert DEFAULT_CHECKPOINT.stat().st_size <= 20e6
    assert sum(p.numel() for p in codec.model.parameters()) <= 20e6
    model = codec.model
    assert model.variable_rate and model.config["dictionary_entries"] and model.config["msfa"]


def test_every_model_in_assets_has_stored_files():
    assert sorted(path.stem for path in DEFAULT_CHECKPOINT.parent.glob("*.pt")) == MODELS


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("model", MODELS)
def test_stored_files_give_the_images_they_gave(codec, model, name):
    """Whichever model wrote them. Their symbols are checked by the file itself; the synthesis may round some pixels
    otherwise on other machines."""
    then = read_image(STORED / model / f"{name}.png")[0].astype(int)
    data = (STORED / model / f"{name}.bin").read_bytes()
    now = to_uint8(codec_of(unpack(data), codec).decompress(data)).astype(int)
    assert now.shape == then.shape == (*SIDE, 3)
    assert abs(now - then).max() <= 1 and (now != then).mean() < 1e-3


def test_all_orders_of_summation_give_one_file(codec):
    """Full size: threads x oneDNN x explicit attention x stripes, written under each and read under each."""
    x, files = photo("city", 128, 128), set()
    for chosen in ENVIRONMENTS:
        with environment(*chosen):
            files.add(codec.compress(x, 40.0))
    assert len(files) == 1
    for chosen in ENVIRONMENTS:
        with environment(*chosen):
            codec.decompress(*files)


@pytest.mark.parametrize("name", ["grass", "pixel"])
def test_rate_is_that_of_fast_files(codec, name):
    """float64 changes rate and distortion by less than 0.01 %."""
    x = photo(name, 320, 320)
    fast, portable = (Codec(codec.model, arithmetic).compress(x, 90.0) for arithmetic in ("fp32", "fp64"))
    qualities = [psnr(x, to_tensor(to_uint8(codec.decompress(data)))) for data in (fast, portable)]
    assert abs(len(portable) / (len(fast) - 2) - 1) < 1e-4 + 4 / len(fast)  # fast files say where they were written
    assert qualities[0] == pytest.approx(qualities[1], rel=1e-4)
    codec.verify(portable)


@pytest.mark.parametrize("name", ["city", "flowers", "girl", "grass", "night", "pixel"])
def test_better_than_jpeg_at_every_rate(codec, name):
    """At three qualities, JPEG in no fewer bytes is at least 0.9 dB behind; rate and PSNR rise with quality."""
    fast, x, rates, qualities = Codec(codec.model, "fp32"), photo(name, 320, 320), [], []
    for quality in (10.0, 45.0, 80.0):
        data = fast.compress(x, quality)
        rates.append(len(data))
        qualities.append(psnr(x, to_tensor(to_uint8(codec.decompress(data)))))
        assert qualities[-1] > psnr(x, to_tensor(jpeg_in_at_least(len(data), to_uint8(x)))) + 0.9
    assert rates == sorted(rates) and qualities == sorted(qualities)


def jpeg_in_at_least(size: int, pixels: np.ndarray) -> np.ndarray:
    """The pixels as the smallest JPEG of `size` bytes or more gives them."""
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() >= size:
            break
    return np.asarray(Image.open(file))


def write_files() -> None:
    """Once for a model, when it becomes the default: its files and what they give."""
    model, folder = load_model(DEFAULT_CHECKPOINT), STORED / DEFAULT_CHECKPOINT.stem
    folder.mkdir()  # or it has files, which stay as they are
    for stem, (name, quality) in FILES.items():
        data = Codec(model).compress(photo(name), quality)
        (folder / f"{stem}.bin").write_bytes(data)
        write_png(folder / f"{stem}.png", to_uint8(Codec(model).decompress(data)))


if __name__ == "__main__":
    write_files()
