"""Crops of codecs, checkpoints and files: the right pixels, the right numbers, equal sizes on request."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.compare_crops import main, place_of_crop
from tests.toys import toy_image
from utils.cli import UserError
from utils.data.images import read_image, to_uint8, write_png
from utils.figures.classical_codecs import CODECS
from utils.figures.side_by_side import closest_setting, parse_source

CPU = torch.device("cpu")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    write_png(path, to_uint8(toy_image(128, 192)))
    return path


def table(capsys) -> dict[str, list[str]]:
    lines = [line.rsplit(maxsplit=3) for line in capsys.readouterr().out.splitlines()[2:]]
    return {line[0].split(maxsplit=1)[1].strip(): line[1:] for line in lines}


def test_program(image, toy_checkpoint, tmp_path, capsys):
    """A codec, a checkpoint, a folder of reconstructions, and a file that is its own size."""
    (tmp_path / "theirs").mkdir()
    write_png(tmp_path / "theirs" / "image.png", read_image(image)[0])
    Image.fromarray(read_image(image)[0]).save(tmp_path / "photo.jpg", quality=40)
    sources = ["jpeg:30", f"Ours={toy_checkpoint}:40", str(tmp_path / "theirs"), str(tmp_path / "photo.jpg")]
    main([*sources, "--data", str(image), "--crop", "10", "20", "64", "48", "--output", str(tmp_path / "crops.png")])
    rows = table(capsys)
    size = len(CODECS["jpeg-420"].encode(read_image(image)[0], 30))
    assert rows["JPEG 4:2:0  quality 30"][:2] == [str(size), f"{8 * size / (128 * 192):.4f}"]
    assert rows["theirs"] == ["n/a", "n/a", "inf"]
    assert rows["photo"][0] == str((tmp_path / "photo.jpg").stat().st_size)
    assert any(row.startswith("Ours  quality 40") or row.split() == ["Ours", "quality", "40"] for row in rows)
    picture = np.asarray(Image.open(tmp_path / "crops.png").convert("RGB"))
    assert picture.shape[1] > 4 * picture.shape[0]
    assert (picture == [255, 0, 0]).all(-1).any()  # the frame


def test_same_bytes(image, toy_checkpoint, tmp_path, capsys):
    main(["webp:40", "jpeg", "jpeg2000", "--data", str(image), "--same-bytes", "--output", str(tmp_path / "crops.svg")])
    sizes = [int(row[0]) for row in table(capsys).values()]
    assert len(sizes) == 3 and all(abs(size / sizes[0] - 1) < 0.05 for size in sizes)


@pytest.mark.parametrize("name", ["jpeg-444", "jpeg2000"])
def test_closest_setting_beats_its_neighbours(name, image):
    codec, pixels = CODECS[name], read_image(image)[0]
    target = len(codec.encode(pixels, codec.settings[3])) + 30
    found = closest_setting(codec, pixels, target)
    distance = abs(len(codec.encode(pixels, found)) - target)
    assert all(distance <= abs(len(codec.encode(pixels, setting)) - target) for setting in codec.settings)
    assert closest_setting(codec, pixels, 10**9) == (100 if name == "jpeg-444" else codec.settings[-1])


def test_crops_lie_inside(image):
    assert place_of_crop((100, 200, 3), None, image) == (80, 40, 40, 20)
    assert place_of_crop((1, 1, 3), None, image) == (0, 0, 1, 1)
    for crop in ((-1, 0, 5, 5), (0, 0, 0, 5), (190, 0, 11, 5), (0, 96, 5, 5)):
        with pytest.raises(UserError, match="does not lie inside"):
            place_of_crop((100, 200, 3), crop, image)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "neither CODEC:SETTING"),
        ("jpeg:much", "much is no number"),
        ("jpeg", "at what quality"),
        ("avif:300", "avif, quality 300"),
    ],
)
def test_wrong_sources(source, message, image, tmp_path):
    with pytest.raises(UserError, match=message):
        main([source, "--data", str(image), "--output", str(tmp_path / "crops.png")])


@pytest.mark.parametrize("quality", ["500", "0", "nan"])
def test_a_quality_that_no_model_has(toy_checkpoint, quality):
    with pytest.raises(UserError, match=f"toy.pt: quality {quality} is outside 1..100; choose another"):
        parse_source(f"{toy_checkpoint}:{quality}", CPU)


def test_reconstructions_of_another_size_or_name(image, tmp_path):
    write_png(tmp_path / "other" / "small.png", to_uint8(toy_image(16, 16)))
    source = parse_source(str(tmp_path / "other"), CPU)
    with pytest.raises(UserError, match="no reconstruction called image"):
        source.reconstruct(image, read_image(image)[0], None)
    source = parse_source(f"A={tmp_path / 'other' / 'small.png'}", CPU)
    assert source.label == "A"
    with pytest.raises(UserError, match="is 16x16 and the original 192x128 pixels"):
        source.reconstruct(image, read_image(image)[0], None)
