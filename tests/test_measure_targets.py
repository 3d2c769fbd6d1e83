"""scripts/measure_targets.py: every kind of target on every image, and what it says of them."""

import json

import pytest
from PIL import Image

from scripts import measure_targets
from tests.toys import toy_image
from utils.cli import UserError
from utils.data.images import to_uint8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number in range(2):
        Image.fromarray(to_uint8(toy_image(96, 160, seed=number))).save(folder / f"{number}.png")
    return folder


def test_every_target_of_every_image(graded_checkpoint, data, capsys):
    measure_targets.main([f"--data={data}", f"--checkpoint={graded_checkpoint}", "--quality", "30", "70", "--json"])
    outcomes = json.loads(capsys.readouterr().out)
    assert [(o["image"], o["kind"]) for o in outcomes] == [
        (f"{number}.png", kind) for number in range(2) for _ in range(2) for kind in ("bpp", "size", "psnr")
    ]
    assert all(o["reached"] <= o["asked"] for o in outcomes if o["kind"] == "size")
    assert all(o["reached"] == pytest.approx(o["asked"], rel=0.01) for o in outcomes)
    assert all(o["trials"] > 1 for o in outcomes if o["kind"] != "psnr")  # a toy's PSNR hardly depends on quality


def test_the_table_holds_the_spread():
    searches = [("bpp", 0.5, 0.501), ("bpp", 1.0, 0.99), ("size", 1000, 996), ("psnr", 30.0, 30.015)]
    outcomes = [measure_targets.SearchOutcome("a.png", *found, 50.0, 3 + i) for i, found in enumerate(searches)]
    rows = {line.split()[0]: line.split()[1:] for line in measure_targets.format_spread(outcomes).splitlines()}
    assert rows["bpp"] == ["2", "0.600", "1.000", "0.01", "bpp", "1", "3.5", "4"]
    assert rows["size"] == ["1", "0.400", "0.400", "4", "bytes", "0", "5.0", "5"]
    assert rows["psnr"][-3:] == ["1", "6.0", "6"]
    assert "a.png" in measure_targets.format_outcomes(outcomes)


def test_what_cannot_be_measured_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="--quality 101"):
        measure_targets.main([f"--data={data}", "--quality", "101"])
    with pytest.raises(UserError, match="there is no such file"):
        measure_targets.main([f"--data={data}", f"--checkpoint={tmp_path / 'none.pt'}"])
