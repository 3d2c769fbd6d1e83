"""Records and averages: analytic values from a fake model, and real files of toy models."""

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from models.layers.gain import GainUnit
from tests.toys import toy_image, toy_model
from utils.cli import UserError
from utils.codec.codec import Codec
from utils.data.images import read_image, to_uint8
from utils.data.padding import pad_centred
from utils.evaluation import evaluation
from utils.evaluation.evaluation import average, evaluate_images
from utils.evaluation.results import make_results, read_results, to_json, write_results


class FakeCodec:
    """Adds `error` to the image, and spends one bit a symbol on one symbol a padded pixel of y and 16 of z."""

    device = torch.device("cpu")

    def __init__(self, error: float = 0.0) -> None:
        self.error, self.calls = error, []

    def prepare(self, height, width, *transforms):
        pass

    def bounded(self, height, width):
        return nullcontext()

    def padded(self, x):
        return pad_centred(x, 64, "replicate")

    def quick(self, x, quality):
        self.calls.append((tuple(x.shape), quality, torch.is_inference_mode_enabled()))
        y, z = torch.full_like(x[:, :1], 0.5), torch.full((1, 16, 1, 1), 0.5)
        return {"x_hat": x + self.error, "likelihoods": {"y": y, "z": z}}


@pytest.fixture
def images(tmp_path):
    """Three images, of which one is too small for MS-SSIM."""
    paths = []
    for number, size in enumerate([(170, 200), (50, 37), (161, 161)]):
        pixels = to_uint8(0.2 + 0.6 * toy_image(*size, seed=number))  # away from black and white: nothing is clamped
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_estimated_rate_counts_the_images_own_pixels(images):
    record = evaluate_images(FakeCodec(), images[:1])[0]
    assert record["bpp_y"] == pytest.approx(192 * 256 / (170 * 200))
    assert record["bpp_z"] == pytest.approx(16 / (170 * 200))
    assert record["bpp"] == record["bpp_estimated"] == record["bpp_y"] + record["bpp_z"]
    assert record["bpp_header"] == 0 and record["bytes"] is None and record["excess_percent"] is None
    assert record["forward_ms"] > 0 and record["encode_ms"] is None and record["decode_ms"] is None
    assert (record["height"], record["width"], record["name"]) == (170, 200, images[0].as_posix())


def test_distortion_is_measured_after_rounding_with_the_float_one_beside_it(images):
    hidden, visible = (evaluate_images(FakeCodec(error / 255), images[:1])[0] for error in (0.4, 2.0))
    assert hidden["psnr"] == math.inf and hidden["mse"] == 0 and hidden["ms_ssim"] == pytest.approx(1)
    assert hidden["psnr_float"] == pytest.approx(20 * math.log10(255 / 0.4), abs=1e-3)
    assert visible["psnr"] == pytest.approx(20 * math.log10(255 / 2), abs=1e-3)
    assert 0 < visible["ms_ssim"] < 1
    assert visible["ms_ssim_db"] == pytest.approx(-10 * math.log10(1 - visible["ms_ssim"]))


def test_output_outside_0_to_1_is_clamped_before_it_is_measured(images):
    assert evaluate_images(FakeCodec(5.0), images[:1])[0]["mse_float"] < 1


def test_small_images_have_no_ms_ssim_and_do_not_spoil_its_average(images):
    records = evaluate_images(FakeCodec(0.05), images)
    assert [record["ms_ssim"] is None for record in records] == [False, True, False]
    means = average(records)
    assert means["ms_ssim"] == pytest.approx((records[0]["ms_ssim"] + records[2]["ms_ssim"]) / 2)
    assert (means["images"], means["images_with_ms_ssim"]) == (3, 2)
    only_small = average(records[1:2])
    assert only_small["ms_ssim"] is None and only_small["ms_ssim_db_of_mean"] is None


def test_psnr_of_a_set_is_the_mean_of_psnrs(images):
    records = evaluate_images(FakeCodec(0.05), images[:2])
    records[1].update(mse=1e-4, psnr=40.0)
    means = average(records)
    assert means["psnr"] == pytest.approx((records[0]["psnr"] + 40) / 2)
    assert means["psnr_of_mean_mse"] == pytest.approx(-10 * math.log10((records[0]["mse"] + 1e-4) / 2))
    assert means["psnr_of_mean_mse"] < means["psnr"]


def test_average_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        average([])


def test_a_bad_image_stops_only_those_who_do_not_handle_it(images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(UserError, match="broken.png"):
        evaluate_images(FakeCodec(), [broken, *images])
    failed = []
    records = evaluate_images(FakeCodec(), [broken, *images], failed=lambda path, error: failed.append(path))
    assert failed == [broken] and len(records) == 3


def test_the_first_image_is_run_once_more_to_warm_up(images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    codec = FakeCodec()
    paths = [tmp_path / "broken.png", *images]
    evaluate_images(codec, paths, warm_up=True, quality=7.5, failed=lambda path, error: None)
    shapes = [(1, 3, 192, 256), (1, 3, 192, 256), (1, 3, 64, 64), (1, 3, 192, 192)]
    assert codec.calls == [(shape, 7.5, True) for shape in shapes]


def test_time_includes_the_devices_work(monkeypatch):
    events = []
    monkeypatch.setattr(evaluation, "synchronise", lambda device: events.append("wait"))
    result, milliseconds = evaluation.timed(lambda: events.append("work"), torch.device("cpu"))
    assert events == ["wait", "work", "wait"] and result is None and milliseconds >= 0


def test_reconstructions_and_notes_are_handed_on(images, tmp_path):
    grey = Image.fromarray(np.full((20, 30, 2), 128, np.uint8))
    grey.save(tmp_path / "alpha.png")
    kept, noted = {}, {}
    paths = [images[1], tmp_path / "alpha.png"]
    evaluate_images(FakeCodec(), paths, keep=kept.__setitem__, noted=noted.__setitem__)
    assert all(np.array_equal(kept[path], read_image(path)[0]) for path in paths)
    assert list(noted) == [tmp_path / "alpha.png"] and "white" in noted[tmp_path / "alpha.png"][0]


def test_training_goes_on_after_validation(images):
    """The model stays in its mode, and nothing made under inference mode is left where a gradient would pass."""
    model, x = toy_model("dcae").train(), toy_image(128, 128)
    evaluate_images(Codec(model), images[:2])
    assert model.training
    out = model(x)
    (out["x_hat"].mean() + out["likelihoods"]["y"].log().mean()).backward()
    assert model.g_a[0].conv.weight.grad.abs().sum() > 0


def test_a_criterion_gets_what_is_shown(images):
    """Its value is the record's "loss": of the cropped image, clamped, and of all bits."""
    loss = lambda out, x: float((out["x_hat"] - x).abs().max()) if x.shape[-1] > 100 else None  # noqa: E731
    records = evaluate_images(FakeCodec(5.0), images, criterion=loss)
    assert [record["loss"] is None for record in records] == [False, True, False]
    assert 0 < records[0]["loss"] <= 1


@pytest.mark.parametrize("arithmetic", ["fp32", "fp64"])
def test_real_files(images, arithmetic):
    codec, kept = Codec(toy_model("dcae"), arithmetic), {}
    records = evaluate_images(codec, images[:2], real=True, keep=kept.__setitem__)
    estimates = evaluate_images(codec, images[:2])
    for record, estimated, path in zip(records, estimates, images):
        pixels = record["height"] * record["width"]
        assert record["bpp"] == 8 * record["bytes"] / pixels
        assert record["bpp_y"] + record["bpp_z"] + record["bpp_header"] == pytest.approx(record["bpp"])
        assert 0 < 8 * 10 <= record["bpp_header"] * pixels <= 8 * 24
        assert record["bpp_estimated"] == estimated["bpp"]
        assert record["excess_percent"] == pytest.approx(100 * (record["bpp"] / estimated["bpp"] - 1))
        assert record["psnr"] == pytest.approx(estimated["psnr"], abs=1e-3)
        assert record["encode_ms"] > 0 and record["decode_ms"] > 0
        original, decoded = read_image(path)[0], kept[path]
        error = np.mean((original.astype(float) - decoded) ** 2)
        assert record["psnr"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-4)
    means = average(records)
    assert means["excess_percent"] == pytest.approx(100 * (means["bpp"] / means["bpp_estimated"] - 1))


def test_a_file_takes_what_was_estimated_and_a_few_bytes(images):
    """Where the tables hold every symbol, and the scales are among theirs: what is left is the coder's own cost."""
    model = toy_model("dcae")
    for network in model.cc_scale_transforms:
        network[-1].weight.data.zero_()
        network[-1].bias.data.fill_(model.gaussian_conditional.scale_table[36])  # about 10
    model.entropy_bottleneck.quantiles.data += torch.tensor([-30.0, 0.0, 30.0])
    model.update(force=True)
    record = evaluate_images(Codec(model), images[:1], real=True)[0]
    estimated = record["bpp_estimated"] * record["height"] * record["width"] / 8
    assert estimated > 4000
    assert 10 < record["bytes"] - estimated < 60  # header and check about 20, two final states of 4 to 8
    assert 0 < record["excess_percent"] < 1.5


def test_quality_reaches_the_estimate_and_the_file(images):
    model = toy_model("dcae-variable-rate")
    for name, tensor in GainUnit(model.M).state_dict().items():  # gains as training starts with: they grow with quality
        getattr(model.gain, name).data.copy_(tensor)
    low, high = (evaluate_images(Codec(model), images[:1], quality=quality, real=True)[0] for quality in (1, 100))
    assert 1.1 * low["bpp"] < high["bpp"] and 1.1 * low["bpp_estimated"] < high["bpp_estimated"]


def point(bpp: float, milliseconds: float | None = 1500.0) -> dict:
    means = {"bpp": bpp, "psnr": math.inf, "ms_ssim": None, "encode_ms": milliseconds, "decode_ms": milliseconds}
    return {"label": str(bpp), "average": means, "images": [{"psnr": math.inf}]}


def test_results_are_in_order_of_rate_in_seconds_and_standard_json(tmp_path):
    results = make_results("curve", "what it is", [point(0.9), point(0.1, None), point(0.4)])
    write_results(tmp_path / "results.json", results)
    read = read_results(tmp_path / "results.json")
    assert read["name"] == "curve" and read["description"] == "what it is"
    assert read["results"] == {
        "bpp": [0.1, 0.4, 0.9],
        "psnr-rgb": [None, None, None],
        "ms-ssim-rgb": [None, None, None],
        "encoding_time": [None, 1.5, 1.5],
        "decoding_time": [None, 1.5, 1.5],
    }
    assert [entry["label"] for entry in read["points"]] == ["0.1", "0.4", "0.9"]
    assert "Infinity" not in to_json(results)
    assert set(read["results"]) <= set(read["notes"])


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{", "not a JSON"),
        ("[]", "has no"),
        ('{"results": {"psnr": [1]}}', "has no"),
        ('{"results": {"bpp": [1], "psnr-rgb": []}}', "differ in length"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path, content, reason):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UserError, match=reason):
        read_results(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "none.json")


def test_compressai_files_are_read_too(tmp_path):
    content = {"name": "x", "description": "", "results": {"bpp": [0.1], "psnr-rgb": [30.0], "encoding_time": [1.0]}}
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert read_results(tmp_path / "c.json") == content
