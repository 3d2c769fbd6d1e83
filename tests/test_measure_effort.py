"""scripts/measure_effort.py: the table of efforts and of AVIF's speeds, from where a cut run stopped."""

import json

import pytest

from models import load_model
from scripts import measure_effort
from tests.toys import toy_image
from utils.cli import UserError
from utils.codec.codec import fingerprint
from utils.data.images import to_uint8, write_png
from utils.figures.rd_curves import load_curve


@pytest.fixture
def data(tmp_path):
    for number in range(2):
        write_png(tmp_path / "set" / f"{number}.png", to_uint8(toy_image(64, 96, seed=number)))
    return tmp_path / "set"


def test_efforts_and_speeds_are_measured_once(data, graded_checkpoint, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    flags = [f"--data={data}", f"--output={output}", f"--checkpoint={graded_checkpoint}", "--speeds", "10", "8"]
    measure_effort.main([*flags, "--effort", "2", "--images", "1"])
    before = json.loads((output / "measured.json").read_text())["sets"]["set"]["0.png"]
    capsys.readouterr()
    calls, measure = [], measure_effort.measure
    monkeypatch.setattr(measure_effort, "measure", lambda e, s, x: (calls.append((e.name, s)), measure(e, s, x))[1])
    measure_effort.main([*flags, "--effort", "2"])
    names = {"effort-0": 4, "effort-2": 4, "avif-10": 4, "avif-8": 4}
    assert sorted(name for name, _ in calls) == sorted(name for name, count in names.items() for _ in range(count))
    images = json.loads((output / "measured.json").read_text())["sets"]["set"]
    assert images["0.png"] == before and set(images["1.png"]) == set(names)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("toy, effort", "AVIF"))]
    assert [row.split()[2] for row in rows[:2]] == ["0", "2"]
    for name in names:
        curve = load_curve(str(output / f"set-{name}.json"))
        rates = [[r["bpp"] for r in image[name].values()] for image in images.values()]
        assert curve.bpp[0] == pytest.approx(min(sum(pair) / 2 for pair in zip(*rates)))
    assert (output / "effort.png").stat().st_size > 0


def test_what_cannot_be_measured_is_refused(data, toy_checkpoint, tmp_path):
    (tmp_path / "measured.json").write_text('{"model": "00000000", "sets": {}}')
    with pytest.raises(UserError, match="holds measurements of model 00000000"):
        measure_effort.main([f"--data={data}", f"--output={tmp_path}", f"--checkpoint={toy_checkpoint}"])
    same = load_model(toy_checkpoint)
    (tmp_path / "measured.json").write_text(f'{{"model": "{fingerprint(same).hex()}", "sets": {{}}}}')
    with pytest.raises(UserError, match="an older search"):
        measure_effort.main([f"--data={data}", f"--output={tmp_path}", f"--checkpoint={toy_checkpoint}"])
    for damaged in ('{"model": "0', "[]", '{"model": "00000000", "sets": []}', "{}"):
        (tmp_path / "measured.json").write_text(damaged)
        with pytest.raises(UserError, match="measured.json: damaged, or of another program; choose another"):
            measure_effort.main([f"--data={data}", f"--output={tmp_path}", f"--checkpoint={toy_checkpoint}"])
    with pytest.raises(UserError, match="same name"):
        measure_effort.main(
            ["--data", str(data), str(data), f"--output={tmp_path / 'new'}", f"--checkpoint={toy_checkpoint}"]
        )
    with pytest.raises(UserError, match="--quality 101 is outside"):
        measure_effort.main([f"--data={data}", f"--output={tmp_path}", "--quality", "10", "30", "50", "101"])
    with pytest.raises(UserError, match="four or more"):
        measure_effort.main([f"--data={data}", f"--output={tmp_path}", "--quality", "10", "50"])
