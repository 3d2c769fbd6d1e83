"""Training data: the division is stable, crops depend on seed and position alone, what is skipped is counted."""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.image_files import write_png
from utils.cli import UserError
from utils.data.datasets import (
    DOWNSCALE_MIN,
    Crops,
    Draw,
    HeldImages,
    ImageFiles,
    Sampling,
    batch_positions,
    cut,
    in_one_line,
    make_loader,
    usable_images,
)
from utils.data.split import split_folder
from utils.data.survey import survey_images

PATCH = 16


def write_images(folder: Path, names, size: tuple[int, int] = (30, 24)) -> list[Path]:
    """PNG files of noise, (width, height) = size."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(list(folder.iterdir())))
    paths = [folder / f"{name}.png" for name in names]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return write_images(tmp_path / "a", range(4)) + write_images(tmp_path / "b", range(4, 7), (19, 41))


def samples(images, count: int = 12, workers: int = 0, **shares: float) -> torch.Tensor:
    """The first samples in batches of 2, (count, PATCH, PATCH, 3)."""
    crops = Crops(images, Sampling(3, len(images), 2, **shares), PATCH)
    loader = make_loader(crops, batch_positions(0, count // 2, 2, 0, 1), workers, pin=False)
    return torch.cat([pixels for pixels, _, _ in loader])


# ---- which images --------------------------------------------------------------------------------------------------


def test_the_division_does_not_move_when_images_come_or_go(tmp_path):
    write_images(tmp_path / "deep" / "er", range(40), (2, 2))
    before = split_folder(tmp_path, 0.2, 100)
    assert 0 < len(before.validation) < 20 and not set(before.validation) & set(before.train)
    write_images(tmp_path, range(100, 140), (2, 2))
    (tmp_path / "deep/er/7.png").unlink()
    after = split_folder(tmp_path, 0.2, 100)
    gone = {tmp_path / "deep/er/7.png"}
    assert set(before.validation) - gone <= set(after.validation) and set(before.train) - gone <= set(after.train)
    few = split_folder(tmp_path, 0.2, 3)
    assert few.validation == after.validation[:3] and few.train == after.train


def test_train_and_test_folders_are_taken_as_they_are(tmp_path):
    train, test = write_images(tmp_path / "train" / "x", range(3)), write_images(tmp_path / "test", range(9))
    split = split_folder(tmp_path)
    assert split.train == train and sorted(split.validation) == test
    assert len(split_folder(tmp_path, None, 4).validation) == 4
    with pytest.raises(UserError, match="--val-share"):
        split_folder(tmp_path, 0.5)


def test_train_alone_is_divided(tmp_path):
    write_images(tmp_path / "train", range(5))
    split = split_folder(tmp_path, 0.999)
    assert len(split.train) == 1 and len(split.validation) == 4  # never all of them


def test_too_little_is_said(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        split_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no images"):
        split_folder(tmp_path)
    write_images(tmp_path, range(1))
    with pytest.raises(UserError, match="one image is too few"):
        split_folder(tmp_path)


def test_unusable_images_are_counted(tmp_path, paths):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    small = write_images(tmp_path, ["small"], (40, PATCH - 1))
    found = usable_images([*paths, broken, *small], PATCH)
    assert (found.paths, found.unreadable, found.small) == (paths, 1, 1)
    with pytest.raises(UserError, match="of 2 images 1 are smaller than --patch-size 16 and 1 unreadable"):
        usable_images([broken, *small], PATCH)


def test_a_run_says_what_it_leaves_out_and_does_not_convert(tmp_path):
    write_images(tmp_path / "train", range(3))
    write_images(tmp_path / "test", range(1))
    write_png(tmp_path / "train/pq.png", np.zeros((24, 30, 3), int), chunks={b"cICP": bytes([9, 16, 0, 1])})
    (tmp_path / "train/a.psd").touch()
    (tmp_path / "test/._0.png").touch()
    (tmp_path / "elsewhere").mkdir()
    write_images(tmp_path / "elsewhere", range(2))
    (tmp_path / "train/more").symlink_to("../elsewhere")
    args = argparse.Namespace(dataset=tmp_path, val_share=None, val_images=None, patch_size=(PATCH, PATCH))
    survey = survey_images(args)
    assert [path.relative_to(tmp_path / "train").as_posix() for path in survey.images.paths] == [
        *("0.png", "1.png", "2.png"), *("more/0.png", "more/1.png"), "pq.png"
    ]  # fmt: skip
    assert "6 images to train on, 1 to validate on" in survey.text
    assert "2 left out: 1 hidden (._0.png), 1 of a format that is not read (a.psd)" in survey.text
    assert survey.text.endswith("; 1 of high dynamic range, not converted")
    frames = [Image.new("RGB", (30, 24), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "b.mpo", "phone.jpg"):
        kind = {"format": "MPO"} if name != "a.gif" else {}
        frames[0].save(tmp_path / "train" / name, save_all=True, append_images=frames[1:], **kind)
    assert survey_images(args).text.endswith(
        ", not converted; 2 of several frames or pages, of which the first is read"
    )
    for name in ("a.gif", "b.mpo", "phone.jpg"):
        (tmp_path / "train" / name).unlink()
    write_images(tmp_path / "train", ["small"], (40, PATCH - 1))
    (tmp_path / "train/two\nlines.png").write_bytes(b"no image")
    survey = survey_images(args)
    assert "skipped 1 unreadable and 1 smaller than 16 pixels (unreadable: train/two\\nlines.png)" in survey.text
    assert survey.closing(undecoded=2, unvalidated=1) == (
        "images: 6 done, 0 kept, 2 failed, 3 left out: 1 hidden (._0.png), 1 of a format that is not read (a.psd),"
        " 1 smaller than 16 pixels (train/small.png);"
        " samples of the next image for one that cannot be decoded: 2"
    )


# ---- which crops ---------------------------------------------------------------------------------------------------


def test_crops_are_the_same_from_files_from_memory_and_from_workers(paths):
    files, held = ImageFiles(paths), HeldImages(usable_images(paths, PATCH), torch.device("cpu"))
    expected = samples(files, downscale=0.5)
    assert torch.equal(samples(held, downscale=0.5), expected)
    assert torch.equal(samples(files, downscale=0.5, workers=2), expected)
    assert len({crop.numpy().tobytes() for crop in expected}) == len(expected)


def test_an_epoch_takes_every_image_once_in_a_new_order():
    sampling = Sampling(0, 50, 10)
    first, second = ([sampling.draw(epoch * 50 + i).image for i in range(50)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    assert [Sampling(1, 50, 10).draw(i).image for i in range(50)] != first


def test_processes_share_the_positions_of_one():
    one = list(batch_positions(3, 6, 8, 0, 1))
    two = [list(batch_positions(3, 6, 4, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*two)] == one


def test_a_crop_is_a_part_of_the_image_flipped():
    image = torch.arange(20 * 30 * 3, dtype=torch.uint8).reshape(20, 30, 3)
    plain = cut(image, Draw(0, 1.0, 0.5, 0.999, False, False, 1.0), PATCH)
    assert torch.equal(plain, image[2:18, 14:30])
    assert torch.equal(cut(image, Draw(0, 1.0, 0.5, 0.999, True, True, 1.0), PATCH), plain.flip(0, 1))


def test_a_reduced_crop_is_lanczos_of_a_larger_one(paths):
    image = ImageFiles(paths)[0]
    crop = cut(image, Draw(0, 0.8, 0.0, 0.0, False, False, 1.0), PATCH)
    reference = Image.fromarray(image[:20, :20].numpy()).resize((PATCH, PATCH), Image.Resampling.LANCZOS)
    assert np.array_equal(crop.numpy(), np.asarray(reference))
    draws = [Sampling(0, 7, 2, 0.4).draw(i) for i in range(500)]
    reduced = [draw.down for draw in draws if draw.down < 1]
    assert 0.3 < len(reduced) / 500 < 0.5 and min(reduced) >= DOWNSCALE_MIN
    assert all(Sampling(0, 7, 2).draw(i).down == 1 for i in range(50))


def test_recolored_crops_are_a_share_and_the_others_do_not_change(paths):
    files = ImageFiles(paths)
    plain, changed = samples(files, 60), samples(files, 60, recolor=0.3)
    same = (plain == changed).flatten(1).all(1)
    assert 0.5 < same.double().mean() < 0.9


def test_a_recolored_crop_is_in_its_new_order_around_its_grey():
    image = torch.tensor([[30, 60, 90], [0, 255, 255]], dtype=torch.uint8).repeat(PATCH, PATCH // 2, 1)
    draw = Draw(0, 1.0, 0, 0, False, False, 50.0, channels=(2, 0, 1))
    strong = cut(image, replace(draw, saturation=1.5), PATCH)
    assert strong[0, :2].tolist() == [[105, 15, 60], [255, 0, 255]]
    assert cut(image, replace(draw, saturation=0.0), PATCH)[0, :2].tolist() == [[60] * 3, [170] * 3]
    assert torch.equal(cut(image, draw, PATCH), image[:PATCH, :PATCH, [2, 0, 1]])  # the order alone


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_an_image_that_breaks_off_is_passed_over_and_counted(paths, cache):
    for path in paths[1:]:
        path.write_bytes(path.read_bytes()[:300])  # the header is whole
    usable = usable_images(paths, PATCH)
    assert usable.unreadable == 0
    images = ImageFiles(paths) if cache == "none" else HeldImages(usable, torch.device("cpu"))
    crops = Crops(images, Sampling(0, len(paths), 1), PATCH)
    assert sum(crops[i][2] for i in range(7)) == sum(range(7))  # six of seven are replaced by image 0
    paths[0].write_bytes(b"")
    with pytest.raises(UserError, match="not one of the images"):
        Crops(ImageFiles(paths), Sampling(0, len(paths), 1), PATCH)[0]


def test_what_ends_a_worker_is_one_line(paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[:300])
    crops = Crops(ImageFiles(paths), Sampling(0, len(paths), 1), PATCH)
    with pytest.raises(UserError, match="^--dataset: not one of the images can be decoded$"):
        next(in_one_line(make_loader(crops, batch_positions(0, 2, 2, 0, 1), 1, pin=False)))
    with pytest.raises(UserError, match="--num-workers 1: a process that reads images was ended"):
        next(in_one_line(make_loader(Killed(), [[0]], 1, pin=False)))


class Killed(torch.utils.data.Dataset):
    """A dataset whose process is killed, as the system does when memory runs out."""

    def __getitem__(self, _: int):
        os.kill(os.getpid(), signal.SIGKILL)
