"""The points in results/, and the tools over them: BD-rate, plots, rate over speed, classical codecs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import bd_rate, bench_codecs, plot_rd, rate_speed, rd_table
from tests.toys import toy_image
from utils.cli import UserError
from utils.data.images import to_uint8
from utils.evaluation.results import read_results
from utils.figures.bd_rate import METHODS, compare, mean_over_images
from utils.figures.classical_codecs import PILLOW_CODECS
from utils.figures.codec_programs import rgb_to_ycbcr, ycbcr_to_rgb
from utils.figures.plots import FORMATS
from utils.figures.rd_curves import METRICS, RESULTS, Curve, image_curves, known_curves, load_curve, resolve

COLUMNS = {"bpp": (0, 24), "psnr-rgb": (10, 70), "ms-ssim-rgb": (0, 1)}  # name -> range of its values
PNG_START = b"\x89PNG\r\n\x1a\n"


def curve(name, bpp, quality):
    return Curve(name, tuple(bpp), tuple(quality))


# The files


@pytest.mark.parametrize("name", known_curves())
def test_curves_have_one_schema(name):
    content = read_results(RESULTS / f"{name}.json")
    assert content["name"] and content["description"]
    assert content.get("source") or content.get("points"), "says where its numbers are from"
    assert content.get("kind", "") in ("", "classical", "learned")
    columns = content["results"]
    assert columns["bpp"] == sorted(columns["bpp"])
    assert "psnr-rgb" in columns or "ms-ssim-rgb" in columns
    for column, (low, high) in COLUMNS.items():
        assert all(low < value < high for value in columns.get(column, []))


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("*/**/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_measured_points_agree_with_their_averages(path):
    content = json.loads(path.read_text())
    for number, point in enumerate(content.get("points", [])):
        mean = sum(image["bpp"] for image in point["images"]) / len(point["images"])
        assert mean == pytest.approx(content["results"]["bpp"][number])
        assert not point["failed"] and not Path(point.get("checkpoint", "")).is_absolute()


def test_rows_of_the_papers_table_name_curves():
    rows = json.loads((RESULTS / "paper_table1.json").read_text())["models"]
    assert {row["curve"] for row in rows if row["curve"]} <= {path.stem for path in (RESULTS / "kodak").glob("*.json")}
    assert {row["name"]: row["bd_rate_percent"]["kodak"] for row in rows}["DCAE"] == -17.0


# BD-rate


@pytest.mark.parametrize(
    "anchor, test, percent",
    [
        ("kodak/vtm", "kodak/dcae", -17.0),
        ("kodak/vtm", "kodak/tcm-large", -11.8),
        ("kodak/vtm", "kodak/cca", -13.7),
        ("clic/vtm-12.1", "clic/dcae", -19.6),
    ],
)
def test_published_bd_rates(anchor, test, percent):
    comparison = compare(load_curve(anchor), load_curve(test))
    assert comparison.rate_percent == pytest.approx(percent, abs=0.1)
    assert comparison.quality_db > 0 and not comparison.warnings


@pytest.mark.parametrize("method", METHODS)
def test_a_tenth_fewer_bits_is_minus_ten_percent(method):
    bpp, quality = (0.1, 0.2, 0.4, 0.8, 1.6), (27.0, 30.0, 33.0, 36.5, 40.0)
    comparison = compare(curve("a", bpp, quality), curve("b", [0.9 * rate for rate in bpp], quality), method)
    assert comparison.rate_percent == pytest.approx(-10)
    assert comparison.share == 1 and comparison.common_quality == (27.0, 40.0)
    same = compare(curve("a", bpp, quality), curve("c", bpp, [q + 0.5 for q in quality]), method)
    assert same.quality_db == pytest.approx(0.5)


def test_warnings_for_what_a_delta_cannot_say():
    anchor = curve("a", (0.1, 0.2, 0.4, 0.8), (27.0, 30.0, 33.0, 36.0))
    few = compare(anchor, curve("b", (0.1, 0.4, 0.8), (27.5, 33.5, 36.5)))
    assert few.warnings == ("b: only 3 point(s), 4 are needed",) and few.rate_percent < 0
    assert compare(anchor, curve("b", (0.1, 0.4, 0.8), (27.5, 33.5, 36.5)), "cubic").rate_percent is None
    above = compare(anchor, curve("b", (0.5, 0.9, 1.2, 2.0), (34.0, 37.0, 39.0, 42.0)))
    assert above.warnings == ("b against a: the curves barely overlap, 25% of the shorter one",)
    apart = compare(anchor, curve("b", (0.9, 1.2, 2.0, 3.0), (37.0, 39.0, 42.0, 44.0)))
    assert apart.rate_percent is None and "no quality is reached by both" in apart.warnings[0]


def test_bd_rate_prints_table_and_warnings(capsys):
    bd_rate.main(["--anchor", "kodak/vtm", "kodak/dcae", "Mine=kodak/cca", "--bpp", "0.1", "0.6"])
    out, err = capsys.readouterr()
    assert "anchor VTM: 3 points" in out and "DCAE" in out and "Mine" in out and "BD-rate % akima" in out
    assert "VTM: only 3 point(s)" in err
    bd_rate.main(["--anchor", "kodak/vtm", "kodak/dcae", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["rate_percent"] == pytest.approx(-17.0, abs=0.1)
    bd_rate.main(["--list"])
    assert "kodak/dcae-ms-ssim" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["kodak/dcae"], "name an --anchor"),
        (["--anchor", "kodak/vtm", "kodak/dcea"], "is it kodak/dcae"),
        (["--anchor", "kodak/vtm", "kodak"], "there is no such file"),
        (["--anchor", "kodak/vtm", "kodak/dcae", "--metric", "ms-ssim"], "has no ms-ssim-rgb"),
        (["--anchor", "kodak/vtm", "kodak/dcae", "--bpp", "5", "6"], "has no points within --bpp"),
    ],
)
def test_bd_rate_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        bd_rate.main(arguments)


# The table of a model against codecs


def test_rd_table_is_markdown_with_sources(tmp_path, capsys):
    path = tmp_path / "table.md"
    rd_table.main(["kodak/dcae", "--against", "kodak/vtm", "kodak/jpeg", "--output", str(path), "--at", "34"])
    lines = path.read_text().splitlines()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line
    }
    assert cells["VTM"][0] == "-17.0" and cells["VTM"][1] == ""  # no MS-SSIM was published
    assert cells["VTM"][2] == "" and cells["VTM"][3] == "29.2 to 37.9" and cells["VTM"][5:] == ["", ""]
    assert float(cells["JPEG"][0]) < -60
    assert 0.292 < float(cells["DCAE"][4]) < 0.426  # the rates of its points around 34 dB
    assert "- VTM: CompressAI repository, results/image/kodak/vtm.json" in lines
    assert capsys.readouterr().out.splitlines() == lines[: lines.index("Sources:") - 1]


def test_rd_table_has_no_model_against_itself(capsys):
    rd_table.main(["kodak/vtm", "--against", "kodak/vtm", "kodak/bpg-444"])
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[4:]] == ["| VTM", "| BPG 4:4:4"]


def test_rd_table_has_both_metrics_and_seconds(capsys):
    rd_table.main(["kodak/measured/avif", "--against", "kodak/vtm", "kodak/measured/jpeg-420"])
    vtm, jpeg = (line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines()[-2:])
    assert all(float(cell) > 0 for cell in vtm[:2]) and all(float(cell) < -30 for cell in jpeg[:3])
    assert vtm[2].strip() == ""  # its points are means alone
    assert all(0 < float(cell) < 1 for cell in jpeg[-2:])


def test_bd_rate_by_image_does_not_depend_on_the_spread_of_bits(tmp_path):
    """A codec's image curves are compared at equal quality, whatever its mean curve mixes."""
    of_images = {"easy": (0.1, 31), "hard": (1.0, 25)}
    points = [
        {"images": [{"name": name, "bpp": bpp * 2**i, "psnr": db + 3 * i} for name, (bpp, db) in of_images.items()]}
        for i in range(5)
    ]
    path = tmp_path / "codec.json"
    path.write_text(json.dumps({"results": {"bpp": [1], "psnr-rgb": [30]}, "points": points}))
    anchor = image_curves(str(path))
    assert {name: c.quality for name, c in anchor.items()} == {
        "easy": (31, 34, 37, 40, 43),
        "hard": (25, 28, 31, 34, 37),
    }
    cheaper = {name: curve(name, (0.9 * rate for rate in c.bpp), c.quality) for name, c in anchor.items()}
    cheaper["hard"] = curve("hard", cheaper["hard"].bpp[2:], cheaper["hard"].quality[2:])
    assert mean_over_images(anchor, cheaper) == (pytest.approx(-10), 2, 0)
    cheaper["easy"] = anchor["easy"]
    assert mean_over_images(anchor, cheaper) == (pytest.approx(-5), 2, 0)
    cheaper["easy"] = curve("easy", (1, 2, 3, 4), (61, 64, 67, 70))
    assert mean_over_images(anchor, cheaper) == (pytest.approx(-10), 1, 1)  # no common range of quality
    assert mean_over_images(anchor, {"another": anchor["easy"]}) is None


# Reading curves


def test_points_that_cost_more_and_give_less_are_left_out(tmp_path):
    path = tmp_path / "mine.json"
    columns = {"bpp": [0.4, 0.1, 0.2, 0.3, 0.3], "psnr": [34.0, 28.0, None, 27.0, 31.0]}
    path.write_text(json.dumps({"results": columns}))
    mine = load_curve(f"Ours={path}")
    assert mine.name == "Ours" and mine.points == [(0.1, 28.0), (0.3, 31.0), (0.4, 34.0)]
    assert len(mine.notes) == 2 and "1 point(s) without a value" in mine.notes[0]
    assert load_curve(str(path)).name == "mine"


def test_ms_ssim_is_read_in_either_unit(tmp_path):
    for number, values in enumerate(([0.9, 0.99], [10.0, 20.0])):
        (tmp_path / f"{number}.json").write_text(json.dumps({"results": {"bpp": [0.1, 0.4], "ms-ssim-rgb": values}}))
    first, second = (load_curve(str(tmp_path / f"{number}.json"), "ms-ssim") for number in range(2))
    assert first.quality == pytest.approx(second.quality)


@pytest.mark.parametrize("text", ["{", '{"results": {"psnr": [1]}}', '{"results": {"bpp": [1], "psnr-rgb": [1, 2]}}'])
def test_what_is_no_curve_is_named(tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UserError, match="odd.json"):
        load_curve(str(tmp_path / "odd.json"))


@pytest.mark.parametrize(
    ("bpp", "psnr", "said"),
    [
        ([0.1, 0.2, 0.4, 0.8], [28, 30, 33, math.inf], "1 point(s) without a value in psnr left out"),
        ([0.1, 0.2, 0.4, 0.8], [28, math.nan, 33, 36], "1 point(s) without a value in psnr left out"),
        ([0.0, 0.2, 0.4, 0.8], [28, 30, 33, 36], "1 point(s) without a value in psnr left out, or without a rate"),
        ([-0.1, 0.2, 0.4, math.inf], [28, 30, 33, 36], "2 point(s) without a value"),
        ([0.1, 0.2, 0.4, 0.8], ["28", "30", "33", "36"], '"psnr-rgb" holds "28", which is no number'),
        ([".1", 0.2, 0.4, 0.8], [28, 30, 33, 36], '"bpp" holds ".1", which is no number'),
        ([0.1, 0.2, 0.4, 0.8], [28, True, 33, [36]], '"psnr-rgb" holds true, which is no number'),
        ([0.3], [31], "has one point, and two are needed"),
        ([0.3, 0.3, 0.5], [31, 30, 31], "has one point, and two are needed"),
        ([0, 0], [31, 32], "has no points, and two are needed (odd: 2 point(s) without a value"),
        ([], [], "has no points, and two are needed"),
        ([0.1, 10**400, 0.4, 0.8], [28, 30, 33, 36], "1 point(s) without a value"),
    ],
)
def test_what_is_no_number_is_one_line(tmp_path, capsys, bpp, psnr, said):
    (tmp_path / "odd.json").write_text(json.dumps({"name": "odd", "results": {"bpp": bpp, "psnr-rgb": psnr}}))
    for flags in (
        ["--anchor", "kodak/vtm", str(tmp_path / "odd.json")],
        ["--anchor", str(tmp_path / "odd.json"), "kodak/vtm"],
    ):
        try:
            bd_rate.main([*flags, "--json"])
            (values,) = json.loads(capsys.readouterr().out)
            assert abs(values["rate_percent"]) < 1000
        except UserError as error:
            assert said in str(error) and "odd.json" in str(error) and "\n" not in str(error)
            continue
        bd_rate.main(flags)
        lines = [line for line in capsys.readouterr().err.splitlines() if said in line]
        assert len(lines) == 1 and lines[0].startswith("warning: odd: ")


def test_values_of_single_images_that_are_no_numbers_are_passed_over(tmp_path):
    images = [{"name": "a", "bpp": rate, "psnr": value} for rate, value in ((1, 30), (2, None), (3, math.inf), (0, 40))]
    points = [{"images": [image]} for image in images]
    (tmp_path / "a.json").write_text(json.dumps({"results": {"bpp": [1], "psnr-rgb": [30]}, "points": points}))
    assert image_curves(str(tmp_path / "a.json"))["a"].points == [(1, 30)]


@pytest.mark.parametrize(
    "points, said",
    [
        ([1], "not a list of objects"),
        ({"images": []}, "not a list of objects"),
        ([{"images": [1]}], "lacks name, bpp or psnr"),
        ([{"images": 1}], "lacks name, bpp or psnr"),
        ([{"images": [{"name": "a", "bpp": 1}]}], "lacks name, bpp or psnr"),
        ([{"images": [{"name": "a", "bpp": 1, "psnr": "x"}]}], "no number"),
    ],
)
def test_points_that_are_damaged_are_one_line(tmp_path, points, said):
    (tmp_path / "a.json").write_text(json.dumps({"results": {"bpp": [1], "psnr-rgb": [30]}, "points": points}))
    with pytest.raises(UserError, match=f"a.json: .*{said}"):
        image_curves(str(tmp_path / "a.json"))


# Plots


@pytest.mark.parametrize("name", plot_rd.FIGURES)
def test_figures_have_their_curves(name):
    preset = plot_rd.FIGURES[name]
    curves = [load_curve(name, preset.metric) for name in preset.names]
    assert len({curve.name for curve in curves}) == len(curves) >= 4


def test_a_figure_is_drawn(tmp_path, capsys):
    path = tmp_path / "figure.png"
    plot_rd.main(["--figure", "4", "Mine=kodak/hpcm-large", "--output", str(path)])
    assert path.read_bytes().startswith(PNG_START)
    assert "Mine, DCAE" in capsys.readouterr().out
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[0] > 500 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_a_figure_in_the_other_metric_has_fewer_curves(tmp_path, capsys):
    plot_rd.main(["--figure", "codecs", "--metric", "ms-ssim", "--output", str(tmp_path / "figure.png")])
    drawn = capsys.readouterr().out
    assert "VTM" in drawn and "AVIF" in drawn and "DCAE" not in drawn


@pytest.mark.parametrize("suffix", FORMATS)
def test_figures_are_the_same_bytes_each_time(tmp_path, suffix):
    paths = [tmp_path / f"{number}.{suffix}" for number in range(2)]
    for path in paths:
        plot_rd.main(["kodak/vtm", "kodak/bmshj2018-hyperprior", "--metric", "ms-ssim", "--output", str(path)])
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name curves or a --figure"),
        (["--figure", "4"], "--output is missing"),
        (["--figure", "4", "--output", "a.gif"], "has to end in .png"),
        (["--figure", "4", "--output", "a.png", "--bpp", "1", "0.5"], "has to be larger"),
    ],
)
def test_plot_rd_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        plot_rd.main(arguments)


# Classical codecs


@pytest.fixture
def data(tmp_path):
    """A folder with one small image."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(to_uint8(toy_image(40, 56))).save(folder / "a.png")
    return folder


def test_bench_codecs_measures_a_folder(data, tmp_path, capsys):
    arguments = ["--data", str(data), "--output", str(tmp_path), "--settings", "30", "80"]
    bench_codecs.main([*arguments, "--codecs", "jpeg-420", "avif"])
    assert "JPEG 4:2:0 on data: libjpeg-turbo" in capsys.readouterr().out
    for name in ("jpeg-420", "avif"):
        content = read_results(tmp_path / f"{name}.json")
        point = content["points"][1]
        assert content["results"]["ms-ssim-rgb"] == [None, None]  # the image is too small for it
        assert point["quality"] == 80 and point["images"][0]["name"] == "a.png"
        assert point["average"]["bpp"] == pytest.approx(8 * point["images"][0]["bytes"] / (40 * 56))
        mine = load_curve(str(tmp_path / f"{name}.json"))
        assert mine.kind == "classical" and len(mine.points) == 2
    assert "speed=6, subsampling=4:2:0" in content["source"]
    rate_speed_of(tmp_path, capsys)


def rate_speed_of(folder, capsys):
    """A measured curve in Figure 1: its time is the mean of its points."""
    content = read_results(folder / "avif.json")["results"]
    arguments = ["--output", str(folder / "1.png"), "--add", f"Mine={folder / 'avif.json'}", "--latency", "decode"]
    rate_speed.main([*arguments, "--anchor", str(folder / "jpeg-420.json")])
    assert (folder / "1.png").read_bytes().startswith(PNG_START)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("Mine"))
    assert float(row.split()[1]) == pytest.approx(500 * sum(content["decoding_time"]), abs=0.51)
    assert " JPEG 4:2:0 " in row and " VTM " in next(line for line in lines if line.startswith("DCAE"))


@pytest.mark.parametrize("codec", PILLOW_CODECS, ids=lambda codec: codec.name)
def test_more_bits_give_better_images(codec):
    assert codec.missing() is None
    pixels = to_uint8(toy_image(48, 64))
    errors, sizes = [], []
    for setting in (codec.settings[1], codec.settings[-1]):
        data = codec.encode(pixels, setting)
        decoded = codec.decode(data, pixels.shape)
        assert decoded.shape == pixels.shape and decoded.dtype == np.uint8
        errors.append(np.abs(decoded - pixels.astype(float)).mean())
        sizes.append(len(data))
    assert sizes[0] < sizes[1] and errors[0] > errors[1]


def test_a_codec_that_is_not_there_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--codecs bpg: no program bpgenc on the PATH"):
        bench_codecs.main(["--data", str(data), "--output", str(tmp_path), "--codecs", "bpg"])


def test_ycbcr_goes_back_to_rgb():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    back = ycbcr_to_rgb(rgb_to_ycbcr(pixels))
    assert np.abs(back.astype(int) - pixels).max() <= 3
    grey = np.full((2, 2, 3), 77, np.uint8)
    assert (ycbcr_to_rgb(rgb_to_ycbcr(grey))[..., 1] == 77).all()


# Rate over speed


def test_figure_1_without_points_of_ones_own(tmp_path, capsys):
    rate_speed.main(["--output", str(tmp_path / "1.svg"), "--set", "clic"])
    out = capsys.readouterr().out
    assert "DCAE" in out and "-19.7" in out and "MLIC+ " not in out


def test_the_axis_of_figure_1_says_what_rates_are_against():
    paper = rate_speed.published("decode", "kodak")
    assert rate_speed.rate_label(paper) == "BD-rate against VTM (%)"
    added = rate_speed.Contender("Mine", 1.0, 2.0, "here", "JPEG 4:2:0")
    assert rate_speed.rate_label([*paper, added]).endswith("the paper's against VTM, the added against JPEG 4:2:0")


def test_rate_speed_needs_times(tmp_path):
    with pytest.raises(UserError, match="kodak/cca: has no encoding_time"):
        rate_speed.main(["--output", str(tmp_path / "1.png"), "--add", "kodak/cca"])
    assert resolve("a=kodak/cca")[0] == "a" and set(METRICS) == {"psnr", "ms-ssim"}
