"""eval.py --report: what the page says and shows, and what is refused. How it behaves: tests/test_report_browser.py."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval as program
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.codec.codec import Codec
from utils.data.images import read_image, to_uint8
from utils.evaluation.evaluation import evaluate_images
from utils.evaluation.report import box_in_map
from utils.evaluation.report_page import measured_curves, script_json, value_for_script
from utils.evaluation.report_pictures import DrawnCurve, colour_map, nice_ticks, rd_plot

AWKWARD = "</script><b>&\"'é.png".replace("/", "")  # a file's name cannot hold a slash


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An image larger than MS-SSIM needs, a small one with an awkward name, and one that is no image."""
    folder = tmp_path_factory.mktemp("data")
    Image.fromarray(to_uint8(toy_image(170, 200))).save(folder / "b.png")
    Image.fromarray(to_uint8(toy_image(40, 70, seed=1))).save(folder / AWKWARD)
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def run(checkpoint, data, folder, *flags) -> int:
    arguments = ["--checkpoint", checkpoint, "--data", data, "--report", folder, "--output", folder.parent / "r.json"]
    return program.main([str(argument) for argument in [*arguments, *flags]])


@pytest.fixture(scope="module")
def report(toy_checkpoint, data, tmp_path_factory):
    """The folder of a report on two qualities."""
    folder = tmp_path_factory.mktemp("results") / "report"
    assert run(toy_checkpoint, data, folder, "--quality", 20, 80) == 2  # broken.png
    return folder


class Page(HTMLParser):
    """Everything in a page that a browser would fetch, the tags left open, and the text of its data element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources, self.open, self.data = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        fields = dict(attributes)
        self.sources += [fields[key] for key in ("src", "href", "action", "srcset") if fields.get(key)]
        if tag not in ("meta", "link", "img", "input"):
            self.open.append((tag, fields.get("id")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == ("script", "data"):
            self.data += text


def page_of(folder: Path) -> tuple[str, Page]:
    text = (folder / "index.html").read_text(encoding="utf-8")
    return text, Page(text)


def points_of(folder: Path) -> list[dict]:
    return json.loads((folder.parent / "r.json").read_text())["points"]


def test_the_page_is_well_formed_and_fetches_nothing_but_its_own_files(report):
    text, page = page_of(report)
    assert page.open == [] and page.sources == ["data:,"]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|\{\{", text)
    assert set(re.findall(r"https?://[^\"' )]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    for image in json.loads(page.data)["images"]:
        for view in image["views"].values():
            assert all((report / path).is_file() for path in (image["original"], view["decoded"], view["bits"]))
    assert not list(report.rglob("*.tmp"))


def test_pictures_are_the_evaluated_ones(report, data):
    content = json.loads(page_of(report)[1].data)
    points = points_of(report)
    assert content["points"] == [point["label"] for point in points]
    for image in content["images"]:
        original = read_image(report / image["original"])[0]
        assert np.array_equal(original, read_image(data / image["name"])[0])
        assert (image["height"], image["width"]) == original.shape[:2]
        for place, point in enumerate(points):
            (record,) = [record for record in point["images"] if record["name"] == image["name"]]
            decoded = read_image(report / image["views"][str(place)]["decoded"])[0]
            mse = np.mean((decoded / 255 - original / 255) ** 2)
            assert -10 * np.log10(mse) == pytest.approx(record["psnr"], abs=1e-3)
            assert f"{record['bpp']:.4f} bpp" in image["views"][str(place)]["text"]


def test_names_are_escaped_everywhere(report):
    text, page = page_of(report)
    assert AWKWARD not in text and "<b>" not in text
    assert AWKWARD in [image["name"] for image in json.loads(page.data)["images"]]
    assert json.loads(script_json(AWKWARD + "</script>")) == AWKWARD + "</script>"
    assert "<" not in script_json("</script><!--")


def test_the_table_has_a_row_an_image_and_point_and_says_what_failed(report):
    text, _ = page_of(report)
    rows = re.findall(r'<tr data-image="(\d)" data-point="(\d)">(.*?)</tr>', text, re.S)
    assert {(image, point) for image, point, _ in rows} == {(i, p) for i in "01" for p in "01"} and len(rows) == 4
    point = points_of(report)[0]
    record = {record["name"]: record for record in point["images"]}["b.png"]
    (row,) = [cells for _, number, cells in rows if number == "0" and "b.png" in cells]
    assert f'<td data-value="{record["psnr"]!r}">{record["psnr"]:.3f}</td>' in row
    assert '<td data-value="">n/a</td>' in text  # MS-SSIM of the small image
    assert "Could not be evaluated" in text and "broken.png: not an image" in text


def test_maps_hold_the_estimated_bits_of_y(data):
    maps = {}
    paths = [data / "b.png", data / AWKWARD]
    records = evaluate_images(Codec(toy_model("dcae")), paths, keep_bits=maps.__setitem__)
    for path, record in zip(paths, records):
        assert maps[path].shape == tuple(8 * -(-record[side] // 128) for side in ("height", "width"))
        assert maps[path].sum() == pytest.approx(record["bpp_y"] * record["height"] * record["width"])
        assert maps[path].min() > 0 and maps[path].std() > 0


def test_map_files_have_one_pixel_a_position_and_one_scale_an_image(report):
    for image in json.loads(page_of(report)[1].data)["images"]:
        tops = {view["top"] for view in image["views"].values()}
        brightest = [np.asarray(Image.open(report / view["bits"])) for view in image["views"].values()]
        assert len(tops) == 1
        assert sum((pixels.reshape(-1, 3) == (0xFD, 0xE7, 0x25)).all(1).any() for pixels in brightest) == 1
        for view, pixels in zip(image["views"].values(), brightest):
            assert pixels.shape[:2] == (view["map"]["height"], view["map"]["width"])


def test_colours_run_from_dark_to_bright():
    ramp = colour_map(np.linspace(0, 8, 100)[None], 8.0)[0].astype(float)
    assert (np.diff(ramp @ [0.299, 0.587, 0.114]) > 0).all()
    assert colour_map(np.zeros((2, 3)), 0.0).tolist() == [[[0x44, 0x01, 0x54]] * 3] * 2


def test_the_outline_is_where_padding_put_the_image():
    left, top, width, height = box_in_map({"height": 250, "width": 128}, (16, 8))
    assert (left, width, top, height) == (0, 100, 100 * 3 / 256, 100 * 250 / 256)


@pytest.mark.parametrize("low, high", [(0, 0.83), (27.31, 41.2), (0, 1), (3, 3.2), (-2, 1e4)])
def test_ticks_are_round_and_enclose(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9 and 3 <= len(ticks) <= 9
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0]) and float(f"{steps[0]:.0e}") == pytest.approx(steps[0])


def test_plots_show_every_point_inside_their_axes(report):
    points = [(0.2, 30.0, "low"), (0.9, 36.5, "a<b")]
    svg = rd_plot([DrawnCurve("ours", points), DrawnCurve("theirs", [(0.5, 33, "p")], published=True)], "PSNR (dB)")
    assert "a&lt;b: 0.9000 bpp, 36.500 dB" in svg and 'class="curve published"' in svg
    places = [tuple(map(float, pair)) for pair in re.findall(r"translate\(([\d.]+),([\d.]+)\)\" style", svg)]
    assert len(places) == 5 and all(60 <= x <= 628 and 12 <= y <= 352 for x, y in places)
    assert places[0][0] < places[1][0] and places[0][1] > places[1][1]  # svg counts downwards
    assert rd_plot([], "PSNR (dB)") == ""
    text = page_of(report)[0]
    assert text.count("<svg") == 2 and all(f"{point['label']}: " in text for point in points_of(report))


def test_checkpoints_of_one_model_are_one_curve_and_several_qualities_one_each():
    def point(checkpoint, quality, psnr=30.0):
        average = {"bpp": 0.5, "psnr": psnr}
        return {"model": "dcae", "checkpoint": checkpoint, "quality": quality, "label": checkpoint, "average": average}

    assert [c.name for c in measured_curves([point("a.pt", None), point("b.pt", None)], "psnr")] == ["dcae"]
    curves = measured_curves([point("a.pth.tar", 1.0), point("a.pth.tar", 2.0), point("b.pt", 1.0)], "psnr")
    assert [(curve.name, len(curve.points)) for curve in curves] == [("a", 2), ("b", 1)]
    assert measured_curves([point("a.pt", None, float("inf")), point("a.pt", None, None)], "psnr") == []
    assert value_for_script(float("inf")) == "Infinity" and value_for_script(0.1) == "0.1"


def test_a_report_of_real_files(toy_checkpoint, data, tmp_path):
    assert run(toy_checkpoint, data / "b.png", tmp_path / "report", "--real", "--save_path", tmp_path / "png") == 0
    text, page = page_of(tmp_path / "report")
    (record,) = points_of(tmp_path / "report")[0]["images"]
    (image,) = json.loads(page.data)["images"]
    assert f"{record['bytes']:,} bytes" in image["views"]["0"]["text"] and "decode ms" in text
    saved = (tmp_path / "png" / "b.png").read_bytes()
    assert saved == (tmp_path / "report" / image["views"]["0"]["decoded"]).read_bytes()


@pytest.mark.parametrize(
    "name, flags, reason",
    [
        ("file", [], "--report: cannot write to"),
        ("full", [], "full: is not empty; choose another folder, or add --overwrite"),
        ("images", ["--overwrite"], "holds a.png, which is to be evaluated"),
    ],
)
def test_refused_before_work_starts(toy_checkpoint, tmp_path, monkeypatch, name, flags, reason):
    monkeypatch.setattr(program, "evaluate_points", None)  # never reached
    for folder in ("full", "images"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / folder / "a.png")
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        run(toy_checkpoint, tmp_path / "images", tmp_path / name, *flags)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_overwrite_replaces_a_report_and_needs_one(toy_checkpoint, data, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "index.html").write_text("old")
    (folder / "precious").write_text("kept")
    assert run(toy_checkpoint, data / "b.png", folder, "--overwrite") == 0
    assert (folder / "index.html").read_text() != "old" and (folder / "precious").read_text() == "kept"
    with pytest.raises(UserError, match="--overwrite matters to --report only"):
        program.main(["--checkpoint", str(toy_checkpoint), "--data", str(data), "--overwrite"])
