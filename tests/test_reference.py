"""The models equal the published ones: names, shapes, values, bytes."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compress_and_decompress
from models import build_model
from models.coders import get_symbols
from utils.data.padding import crop_centred, pad_centred
from utils.entropy_coding.rans import Decoder, Encoder
from utils.inference.published import published_tables
from utils.measuring.fill_weights import fill_

HERE = Path(__file__).parent / "reference"
MODELS = {"dcae": "dcae", "tcm": "tcm-large", "icwem": "icwem"}
SIZES = ("256x256", "200x312")
BOUNDS = {  # what another order of summation may change; a real mistake changes more
    "dcae": {"y": 5e-5, "means": 1e-5, "scales": 1e-5, "x_hat": 1e-5},
    "tcm": {"y": 5e-5, "means": 1e-4, "scales": 1e-4, "x_hat": 5e-5},
    "icwem": {"y": 5e-5, "means": 1e-4, "scales": 1e-4, "x_hat": 5e-5},
}
STEPS = {"y": 61, "means": 61, "scales": 61, "x_hat": 97}


@pytest.fixture(scope="module", params=MODELS)
def filled(request):
    """The name of a published model, and that model at full size."""
    model = build_model(MODELS[request.param])
    fill_(model.state_dict())
    model.update(force=True)
    return request.param, model.eval().requires_grad_(False)


class ForcedCoder:
    """Puts the reference's symbols in place of round(y - mean): ties would fall either way."""

    def __init__(self, symbols: torch.Tensor, slices: int) -> None:
        self.slices, self.means, self.scales = iter(symbols.chunk(slices, 1)), [], []

    def __call__(self, y, mean, scale):
        self.means.append(mean)
        self.scales.append(scale)
        return next(self.slices) + mean


def read_official(path: Path) -> tuple[bytes, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[4:8], "big")
    return data[8 : 8 + length], data[12 + length :]


@pytest.mark.parametrize("name", MODELS)
def test_names_shapes_and_order(name):
    expected = (HERE / f"{name}_tensors.txt").read_text().splitlines()
    state = build_model(MODELS[name]).state_dict()
    own = [f"{n} {'x'.join(map(str, t.shape)) or 'scalar'} {str(t.dtype)[6:]}" for n, t in state.items()]
    assert own == expected


@pytest.mark.slow
def test_values(filled):
    """In float64, so that the differences are the float32 reference's own, whatever machine this is."""
    name, model = filled[0], copy.deepcopy(filled[1]).double()
    for size in SIZES:
        check_values(name, model, size)


def check_values(name, model, size):
    reference = np.load(HERE / f"{name}_{size}.npz")
    image = torch.from_numpy(np.array(Image.open(HERE / f"input_{size}.png"))).permute(2, 0, 1)[None].float() / 255
    x = pad_centred(image, 128).double()
    y = model.analysis(x)
    z = model.h_a(y)
    medians = model.entropy_bottleneck.medians()
    symbols = torch.from_numpy(reference["symbols"].astype(np.float64)).reshape(y.shape)
    coder = ForcedCoder(symbols, model.slices)
    x_hat = model.synthesis(model.code_slices(torch.round(z - medians) + medians, y, coder))
    own = {"y": y, "means": torch.cat(coder.means, 1), "scales": torch.cat(coder.scales, 1), "x_hat": x_hat}
    for key, bound in BOUNDS[name].items():
        error = np.abs(own[key].numpy().ravel()[:: STEPS[key]] - reference[key]).max()
        print(f"{name} {size} {key}: {error:.2e}")
        assert error <= bound, key
    gaussian = model.gaussian_conditional
    y_bits = -gaussian.likelihood_lower_bound(gaussian._likelihood(symbols, own["scales"])).log2().sum()
    z_bits = -model.entropy_bottleneck(z)[1].log2().sum()
    assert y_bits.item() == pytest.approx(float(reference["y_bits"]), rel=1e-5)
    assert z_bits.item() == pytest.approx(float(reference["z_bits"]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_bytes(filled, size):
    """The reference's symbols give the published file's strings, z's with the tables as CompressAI computes them."""
    (name, model), reference = filled, np.load(HERE / f"{filled[0]}_{size}.npz")
    y_string, z_string = read_official(HERE / f"{name}_{size}.bin")
    encoder, tables = Encoder(), model.gaussian_conditional.tables()
    encoder.put(reference["symbols"].ravel(), reference["indexes"].ravel(), tables)
    assert encoder.finish() == y_string
    height, width = (side // 4 for side in reference["symbols"].reshape(1, 320, *_latent_size(size)).shape[2:])
    indexes = model.entropy_bottleneck._build_indexes((1, 192, height, width))
    z_tables = published_tables(model.entropy_bottleneck)
    z = get_symbols([Decoder(z_string)], indexes, z_tables)
    encoder = Encoder()
    encoder.put(z.numpy().ravel(), indexes.numpy().ravel(), z_tables)
    assert encoder.finish() == z_string


@pytest.mark.slow
@pytest.mark.parametrize("filled", ["dcae"], indirect=True)
def test_published_files_decode(filled, tmp_path):
    """DCAE's reference files decode to the reference images, through the program and a checkpoint as released."""
    torch.save({"state_dict": filled[1].state_dict()}, tmp_path / "checkpoint.pth.tar")
    for size in SIZES:
        shutil.copy(HERE / f"dcae_{size}.bin", tmp_path)
    flags = ["--mode", "decompress", "--data", str(tmp_path), "--save_path", str(tmp_path / "out"), "--checkpoint"]
    assert compress_and_decompress.main([*flags, str(tmp_path / "checkpoint.pth.tar")]) == 0
    for size in SIZES:
        padded = np.load(HERE / f"dcae_{size}.npz")["decoded"].astype(np.float32)  # every 97th value
        height, width = (16 * side for side in _latent_size(size))
        decoded = np.full(3 * height * width, np.nan, np.float32)
        decoded[::97] = padded
        expected = crop_centred(
            torch.from_numpy(decoded.reshape(1, 3, height, width)), [int(s) for s in size.split("x")]
        )[0]
        png = np.array(Image.open(tmp_path / "out" / f"dcae_{size}.png")).transpose(2, 0, 1) / 255
        known = ~np.isnan(expected.numpy())
        # the PNG is rounded to 8 bits, the reference to float16
        assert known.sum() > 1000 and np.abs(png - expected.numpy())[known].max() < 0.5 / 255 + 3e-4


def _latent_size(size: str) -> list[int]:
    return [-(-int(side) // 128) * 8 for side in size.split("x")]
