"""Files by an encoder that searches: ordinary files, never dearer, the same each time, of every model and any size."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import compress_and_decompress
import eval as eval_program
from models import load_model
from models.base import SliceCompressionModel
from models.checkpoints.loading import trained_for
from models.coders import EncodingCoder
from tests.toys import TOYS, graded_model, toy_image, toy_model
from utils.cli import UserError
from utils.codec.checkpoint import DEFAULT_CHECKPOINT
from utils.codec.codec import Codec
from utils.codec.effort import Search
from utils.codec.rates import Bits, SearchedCosts, costs_of
from utils.codec.search import SearchingCoder, refine, searchable, slope
from utils.codec.targets import Target, Trial, best_of, compress_to_target, next_quality
from utils.codec.trade_off import COARSER, STEPS, TradeOff, coarser, of_quality
from utils.codec.windows import before_the_search, bytes_a_pixel, cores, cut, refine_image, window_side
from utils.data.images import read_image, to_tensor, to_uint8, write_png
from utils.data.padding import pad_centred
from utils.entropy_coding.rans import Encoder
from utils.metrics import distortion_of, psnr, quantise_8_bit
from utils.training.fitted_tables import Recorder, fit_tables

ROOT = Path(__file__).parents[1]
FIXED = TradeOff(0.01, "mse", "test")


def codec_of(kind: str, model: SliceCompressionModel | None = None, **options) -> Codec:
    model = model or toy_model(kind)
    return Codec(model, **{"trade_off": None if model.variable_rate else FIXED, **options})


def quality_of(codec: Codec) -> float | None:
    return 30.0 if codec.model.variable_rate else None


def cost(codec: Codec, data: bytes, x: torch.Tensor, trade_off: TradeOff) -> float:
    """Of a file as whoever decodes it finds it."""
    shown = quantise_8_bit(codec.decompress(data)).double()
    pixels = x.shape[-2] * x.shape[-1]
    return trade_off.cost(float(distortion_of(shown, x.double(), trade_off.metric)[0]), pixels) + 8 * len(data)


@pytest.mark.parametrize("kind", TOYS)
def test_every_model_gets_a_cheaper_file_that_decodes(kind):
    codec, x = codec_of(kind), quantise_8_bit(toy_image(70, 90))
    quality = quality_of(codec)
    found = codec.search(x, quality, effort=3)
    trade_off, plain = found.trade_off, codec.compress(x, quality)
    assert found.plain.data == plain
    assert cost(codec, found.data, x, trade_off) == pytest.approx(found.best.cost, rel=1e-9)
    assert cost(codec, plain, x, trade_off) == pytest.approx(found.plain.cost, rel=1e-9)
    assert found.best.cost < found.plain.cost and found.won_percent > 0
    codec.verify(found.data)


def test_gains_of_a_search_are_coarser_within_the_range():
    for lambda_range in ((0.0018, 0.05), (0.001, 0.2)):
        wanted, chosen = (of_quality(q, lambda_range).weight for q in (60.0, coarser(60.0, lambda_range)))
        assert chosen == pytest.approx(COARSER * wanted, rel=1e-3)
    assert coarser(1.0) == coarser(3.0) == 1.0 and 93 < coarser(100.0) < 94


def test_the_quality_stays_and_bits_are_saved():
    """The shipped model: about the same PSNR, a smaller file, which names the quality of its gains."""
    x = to_tensor(read_image(DEFAULT_CHECKPOINT.parent / "samples/girl.png")[0])[..., 100:356, 200:456]
    codec, quality = Codec(load_model(DEFAULT_CHECKPOINT)), 50.0
    found = codec.search(x, quality, effort=4)
    decibels = [psnr(quantise_8_bit(codec.decompress(coded.data)), x) for coded in (found.plain, found.best)]
    assert abs(decibels[1] - decibels[0]) < 0.5 and len(found.data) < 0.94 * len(found.plain.data)
    assert found.quality == codec.open(found.data).quality == coarser(quality, codec.model.lambda_range)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (129, 64), (65, 131)])
def test_tiny_and_odd_sizes_never_cost_more(size):
    codec, x = codec_of("dcae-variable-rate"), quantise_8_bit(toy_image(*size))
    found = codec.search(x, 60.0, effort=2)
    assert cost(codec, found.data, x, found.trade_off) <= cost(codec, codec.compress(x, 60.0), x, found.trade_off)
    assert codec.decompress(found.data).shape == x.shape


@pytest.mark.parametrize("arithmetic", ["fp64", "fp32", "published"])
def test_files_of_every_arithmetic(arithmetic):
    codec, x = codec_of("tcm", arithmetic=arithmetic), quantise_8_bit(toy_image(64, 64))
    found = codec.search(x, None, effort=2)
    assert found.best.cost < found.plain.cost
    assert cost(codec, found.data, x, FIXED) == pytest.approx(found.best.cost, rel=1e-6)


def test_bfloat16_transforms():
    codec, x = codec_of("dcae-variable-rate", precision="bf16"), quantise_8_bit(toy_image(64, 64))
    found = codec.search(x, 30.0, effort=2)
    assert cost(codec, found.data, x, found.trade_off) < cost(codec, codec.compress(x, 30.0), x, found.trade_off)


def test_the_plain_file_is_kept_where_nothing_is_won():
    """A search that went astray is of no consequence."""
    codec, x = codec_of("dcae"), quantise_8_bit(toy_image(64, 64))
    search = Search(codec, x, 1)
    search.refined = lambda y, *_: y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) * 9
    worse = search.code(search.refined(search.latent(None)), None, FIXED)
    plain = search.code(search.latent(None), None, FIXED)
    assert worse.cost > plain.cost
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "refined", lambda self, y, *_: search.refined(y))
        assert codec.search(x, None, 1).data == codec.compress(x)


def test_same_bytes_each_time_also_side_by_side_and_in_inference_mode():
    codec, x = codec_of("dcae-variable-rate"), quantise_8_bit(toy_image(64, 128))
    first = codec.compress(x, 30.0, effort=3)
    assert first != codec.compress(x, 30.0)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: codec.compress(x, 30.0, effort=3), range(4))) == [first] * 4
    with torch.inference_mode():
        assert Codec(codec.model, effort=3).compress(x, 30.0) == first
    assert all(p.requires_grad and p.grad is None for p in codec.model.parameters())


def test_more_effort_is_more_steps_and_wins_more():
    assert list(STEPS) == sorted(set(STEPS)) and STEPS[0] == 0
    codec, x = codec_of("dcae-variable-rate"), quantise_8_bit(toy_image(64, 64))
    won = [codec.search(x, 30.0, effort).won_percent for effort in (0, 1, 5)]
    assert 0 == won[0] <= won[1] < won[2]
    with pytest.raises(ValueError, match=r"outside 0\.\.9"):
        codec.search(x, 30.0, 10)


def clustered_latent() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, means and scales, (1, 4, 24, 24), of symbols with long tails that come in clusters."""
    generator = torch.Generator().manual_seed(3)
    mean, noise, scale = (torch.randn(1, 4, 24, 24, generator=generator) for _ in range(3))
    place = torch.rand(1, 1, 24, 24, generator=generator) * 4
    return mean + 3 * noise * place, mean, 4 * scale.abs()


def fitted_toy(kind: str = "dcae") -> SliceCompressionModel:
    """A model with tables fitted to such symbols."""
    model, (y, mean, scale) = toy_model(kind), clustered_latent()
    recorder = Recorder()
    EncodingCoder(model.gaussian_conditional, [recorder])(y, mean, scale)
    fit_tables(model, recorder.found)
    return model


def test_bits_of_the_search_are_those_of_the_entropy_model():
    model, (y, mean, scale) = toy_model("dcae"), clustered_latent()
    coder = SearchingCoder()
    assert torch.equal(coder(y, mean, scale), y + ((y - mean).round() + mean - y))
    likelihoods = model.gaussian_conditional(y, scale, mean)[1]
    assert float(coder.bits) == pytest.approx(float(-torch.log2(likelihoods).sum()), rel=1e-5)


def test_with_fitted_tables_they_are_those_of_the_file():
    gaussian, encoder = fitted_toy().gaussian_conditional, Encoder()
    y, mean, scale = clustered_latent()
    coder = SearchingCoder(costs_of(gaussian))
    coder(y, mean, scale)
    EncodingCoder(gaussian, [encoder])(y, mean, scale)
    bits = 8 * len(encoder.finish())
    assert float(coder.bits) == pytest.approx(bits, abs=64)
    likelihoods = gaussian.eval()(y, scale, mean)[1]
    assert float(coder.bits) == pytest.approx(float(-torch.log2(likelihoods.double()).sum()), rel=1e-6)
    plain = SearchingCoder()
    plain(y, mean, scale)
    assert float(plain.bits) > 1.1 * bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_below_the_bound_have_the_first_level(dtype):
    costs = SearchedCosts(fitted_toy().gaussian_conditional)
    levels = costs.places(torch.zeros(1, 1, 1, 3), torch.tensor([[[[-1.0, 0.05, 0.12]]]], dtype=dtype))[0]
    assert levels.flatten().tolist() == [0, 0, 1]


def test_what_is_no_number_is_dear():
    """And no index outside the tables, which would end the process on a GPU."""
    costs = SearchedCosts(fitted_toy().gaussian_conditional)
    symbols = torch.tensor([[[[0.0, math.nan, math.inf, -1e30]]]])
    bits = costs.of(symbols, torch.ones(1, 1, 1, 4)).flatten()
    assert bits.isfinite().all() and (bits[1:] > 20).all() and bits[0] < 5


@pytest.mark.parametrize("kind", ["dcae-variable-rate", "elic"])
def test_the_search_wins_bits_under_fitted_tables(kind):
    codec, x = codec_of(kind, fitted_toy(kind)), quantise_8_bit(toy_image(70, 90))
    found = codec.search(x, quality_of(codec), effort=3)
    assert found.won_percent > 0
    assert cost(codec, found.data, x, found.trade_off) == pytest.approx(found.best.cost, rel=1e-9)
    problem, y = problem_of(codec, x)
    with torch.no_grad():
        bits = 8 * len(codec.code(y)["strings"][0][0])
        assert float(problem.forward(y)[1].bits) == pytest.approx(bits, rel=1e-3, abs=64)


def test_the_published_layout_is_searched_with_gaussians():
    codec, x = codec_of("dcae", fitted_toy(), arithmetic="published"), quantise_8_bit(toy_image(70, 90))
    assert codec.search(x, None, effort=2).won_percent > 0
    assert codec.model.gaussian_conditional.fitted and not codec.searchable.gaussian_conditional.fitted


def test_slopes_under_fitted_tables():
    """What the other integer costs more, and what the levels next to a symbol's cost, in its context."""
    gaussian = fitted_toy().gaussian_conditional
    y, _, scale = clustered_latent()
    scale[0, 1, 3, 20] = 0.05
    y, scale = y.requires_grad_(), scale.requires_grad_()
    costs = SearchedCosts(gaussian)
    of_y, of_scale = torch.autograd.grad(Bits.apply(y, scale, costs), (y, scale))
    with torch.no_grad():
        levels, contexts = costs.places(y.round(), scale)
        sizes, table = y.round().abs().long(), gaussian.scale_table
        for place in [(0, 0, 0, 0), (0, 1, 3, 20), (0, 3, 23, 7), (0, 2, 11, 11)]:
            level, context, size = (int(values[place]) for values in (levels, contexts, sizes))
            rows = costs.corrected[:, context]
            low, high = (int(function(y[place]).abs()) for function in (torch.floor, torch.ceil))
            bits = costs.bits[rows[level]]
            assert float(of_y[place]) == pytest.approx(float(bits[high] - bits[low]), abs=1e-5)
            below, above = max(level - 1, 0), min(level + 1, 63)
            rise = float(costs.bits[rows[above], size] - costs.bits[rows[below], size])
            width = math.log(float(table[above] / table[below])) * max(float(scale[place]), 0.11)
            rise = min(rise, 0.0) if scale[place] < 0.11 else rise  # the bound of the scales lets nobody below it
            assert float(of_scale[place]) == pytest.approx(rise / width, rel=1e-4, abs=1e-6)


def test_slopes_of_the_bits():
    """With respect to the scale the derivative; with respect to y what the integer on the other side costs more."""
    y, scale = torch.tensor([[[[0.3, -1.4, 2.2]]]]), torch.tensor([[[[0.6, 1.3, 2.0]]]])

    def bits(y, scale):
        coder = SearchingCoder()
        coder(y, torch.zeros_like(y), scale)
        return coder.bits

    y.requires_grad_()
    scale.requires_grad_()
    of_y, of_scale = torch.autograd.grad(bits(y, scale), (y, scale))
    with torch.no_grad():
        step = 1e-2
        for i in range(3):
            each = torch.zeros_like(scale)
            each[..., i] = step
            difference = (bits(y, scale + each) - bits(y, scale - each)) / (2 * step)
            assert float(of_scale[..., i]) == pytest.approx(float(difference), rel=1e-2)
            low, high = (function(y[..., i : i + 1]) for function in (torch.floor, torch.ceil))
            rise = bits(high, scale[..., i : i + 1]) - bits(low, scale[..., i : i + 1])
            assert float(of_y[..., i]) == pytest.approx(float(rise), rel=1e-4)


def problem_of(codec: Codec, x: torch.Tensor, trade_off: TradeOff = FIXED):
    search = Search(codec, x, 1)
    return search.problem(quality_of(codec), trade_off), search.latent(quality_of(codec))


def test_the_rate_of_the_search_is_that_of_the_file():
    """Of the shipped model: toys have symbols that their tables do not hold."""
    codec, x = Codec(load_model(DEFAULT_CHECKPOINT)), quantise_8_bit(toy_image(128, 128))
    search = Search(codec, x, 1)
    y, problem = search.latent(50.0), search.problem(50.0, search.trade_off(50.0))
    bits = 8 * len(codec.code(y)["strings"][0][0])
    with torch.no_grad():
        assert float(problem.forward(y)[1].bits) == pytest.approx(bits, rel=0.003, abs=64)  # 64: the coder's state


def test_curvature_is_that_of_the_distortion():
    """On a synthesis that is a matrix, the mean diagonal of its square."""
    codec, x = codec_of("dcae"), quantise_8_bit(toy_image(128, 128))
    problem, y = problem_of(codec, x)
    matrix = torch.nn.ConvTranspose2d(codec.model.M, 3, 16, 16, bias=False)
    torch.nn.init.normal_(matrix.weight, std=0.1)
    problem.model.synthesis = lambda y_hat: matrix(y_hat)
    many = [problem.curvature(y, torch.Generator().manual_seed(seed)) for seed in range(20)]
    expected = 2 * FIXED.cost(1.0, 1) / 3 * matrix.weight.detach().square().sum((1, 2, 3))
    assert torch.allclose(torch.stack(many).mean(0).flatten(), expected, rtol=0.3)


@pytest.mark.parametrize("kind", ["dcae-variable-rate", "global-tokens", "elic"])
def test_windows_win_what_the_whole_wins_and_move_cores_alone(kind):
    codec, x = codec_of(kind), quantise_8_bit(toy_image(300, 250))
    problem, y = problem_of(codec, x)
    before = problem.evaluate(y, with_gradient=False)[0]
    whole = refine(problem, y, 4)
    windows = [window for row in cut(problem, 300) for window in row]
    assert len(windows) > 1
    steps = []
    parts = refine_image(problem, y, 4, 300, lambda done, total: steps.append((done, total)))
    after = problem.evaluate(parts.y, with_gradient=False)[0]
    assert steps[-1] == (4 * len(windows), 4 * len(windows))
    assert before - after > 0.6 * (whole.before - whole.after) > 0
    covered = torch.zeros(y.shape[-2:])
    for rows, columns, (core_rows, core_columns) in windows:
        covered[rows, columns][core_rows, core_columns] += 1
    assert bool((covered == 1).all())


def test_cores_are_whole_units_and_fit():
    assert cores(1000 * 128, 128, 128 * 1000) == [(0, 128000)]
    for length, side in ((4096, 1280), (1408, 1280), (640, 384)):
        edges = cores(length, 128, side)
        assert edges[0][0] == 0 and edges[-1][1] == length
        assert all(a[1] == b[0] for a, b in zip(edges, edges[1:]))
        assert all((last - first) % 128 == 0 and last - first + 256 <= side for first, last in edges)


def test_a_limit_of_memory_makes_windows_smaller_or_is_refused(monkeypatch):
    codec, x = codec_of("dcae-variable-rate"), quantise_8_bit(toy_image(500, 120))
    problem, y = problem_of(codec, x)
    monkeypatch.setattr("utils.codec.windows.before_the_search", lambda problem, y: 0)
    enough = int(bytes_a_pixel(problem, y) * 400**2)
    steps = []
    found = refine_image(problem, y, 1, window_side(problem, y, enough), lambda done, total: steps.append(total))
    assert found.after < found.before and steps == [4, 4, 4, 4]
    with pytest.raises(UserError, match="--max-memory .*a search needs"):
        window_side(problem, y, enough // 8)


def test_a_search_wins_at_the_ends_of_the_range(graded):
    """Where nothing better is to be had, or nothing worse, bits are still to be saved."""
    x = quantise_8_bit(toy_image(128, 160))
    for target, quality in ((Target("bpp", 30.0), 100.0), (Target("psnr", 5.0), 1.0)):
        plain, found = compress_to_target(graded, x, target), compress_to_target(graded, x, target, effort=4)
        assert plain.quality == quality and found.won_percent > 0
        assert len(found.data) < len(plain.data)


@pytest.mark.parametrize("quality", [5.0, 7.0])
def test_a_search_wins_where_no_gains_are_coarser(quality):
    """Near the lowest quality all searches have about the same gains; what they search for still differs. Somewhat
    above it, four searches come close to the PSNR, and other gains for the last latent the rest of the way."""
    x = to_tensor(read_image(DEFAULT_CHECKPOINT.parent / "samples/city.png")[0])[..., 100:356, 200:456]
    codec = Codec(load_model(DEFAULT_CHECKPOINT))
    data = codec.compress(x, quality)
    found = compress_to_target(codec, x, Target("psnr", psnr(quantise_8_bit(codec.decompress(data)), x)), effort=4)
    assert found.won_percent > 2 and len(found.data) < len(data)


def test_of_files_on_target_the_cheapest_is_kept():
    trials = [Trial(50.0, bytes(4980), 0.498, distortion=1.0), Trial(45.0, bytes(5020), 0.502, distortion=0.99)]
    trials = [replace(trial, cost=cost) for trial, cost in zip(trials, (1.0, 1.1))]
    assert best_of(trials, Target("bpp", 0.5)) is trials[0]
    small, large = trials = [replace(trial, reached=len(trial.data)) for trial in trials]
    assert best_of(trials, Target("size", 5020)) is large
    assert best_of(trials, Target("size", 5000)) is small


def test_gains_that_are_the_last_may_leave_more_than_was_asked_for():
    """No coarser ones are left to give a higher PSNR away, no finer ones to fill a size."""
    plain = Trial(7.0, bytes(500), 27.62, cost=2.0)
    coarsest, finest = (replace(plain, quality=quality, data=bytes(450), cost=1.8) for quality in (1.0, 100.0))
    assert best_of([plain, replace(coarsest, reached=27.64)], Target("psnr", 27.62)).cost == 1.8
    assert best_of([plain, replace(coarsest, reached=27.58)], Target("psnr", 27.62)) is plain
    assert best_of([plain, replace(finest, reached=27.64)], Target("psnr", 27.62)) is plain
    plain = replace(plain, reached=0.5)
    assert best_of([plain, replace(finest, reached=0.48)], Target("bpp", 0.5)).cost == 1.8
    assert best_of([plain, replace(coarsest, reached=0.48)], Target("bpp", 0.5)) is plain


def test_an_image_without_an_error_has_a_psnr(graded):
    infinite = Trial(50.0, b"", math.inf)
    target = Target("psnr", 40.0)
    assert next_quality([(50.0, infinite)], target, 100.0) < 50
    assert next_quality([(50.0, infinite), (40.0, replace(infinite, reached=50.0))], target, 100.0) < 40


def test_effort_0_searches_nothing(graded):
    x = quantise_8_bit(toy_image(64, 64))
    found = graded.search(x, 20.0, effort=0)
    assert found.best is found.plain and found.data == graded.compress(x, 20.0) and found.won_percent == 0


def test_what_a_model_does_not_have_is_refused(graded):
    x = toy_image(64, 64)
    with pytest.raises(ValueError, match="one quality"):
        codec_of("dcae").compress(x, 50.0, effort=1)
    with pytest.raises(ValueError, match="needs a quality"):
        graded.compress(x, effort=1)
    with pytest.raises(ValueError, match="effort 10 is outside"):
        graded.compress(x, 50.0, effort=10)
    with pytest.raises(UserError, match="--lambda: this model has a lambda for every quality"):
        Codec(graded.model, trade_off=FIXED)
    with pytest.raises(UserError, match="--format official: .* no place for a quality"):
        Codec(graded.model, "published")


def test_evaluation_says_what_was_won_and_for_which_lambda(tmp_path, toy_checkpoint, capsys):
    write_png(tmp_path / "in" / "a.png", to_uint8(toy_image(64, 96)))
    flags = ["--data", str(tmp_path / "in"), "--checkpoint", str(toy_checkpoint), "--quality", "30", "--real"]
    files = {}
    for effort in ("0", "2"):
        output = tmp_path / f"{effort}.json"
        assert eval_program.main([*flags, "--effort", effort, "--output", str(output)]) == 0
        files[effort] = json.loads(output.read_text())["points"][0]
        assert ("won %" in capsys.readouterr().out) == (effort == "2")
    plain, found = (files[effort]["images"][0] for effort in "02")
    assert found["bytes"] < plain["bytes"] and found["won_percent"] > 0 and plain["won_percent"] is None
    assert found["lambda"] == pytest.approx(of_quality(30.0).weight) and found["source"] == "quality"
    assert found["excess_percent"] is None and plain["excess_percent"] is not None
    assert found["bpp_estimated"] == pytest.approx(plain["bpp_estimated"])


def test_lambda_of_a_large_image_is_that_of_its_middle(monkeypatch):
    codec, x = Codec(toy_model("dcae")), quantise_8_bit(toy_image(500, 700))
    monkeypatch.setattr("utils.codec.windows.LARGEST_WINDOW", 384)
    seen = []
    monkeypatch.setattr("utils.codec.effort.slope", lambda problem, y: seen.append((problem, y)) or FIXED)
    search = Search(codec, x, 1)
    assert search.padded.shape[-2:] == (512, 768) and search.trade_off(None) is FIXED
    ((problem, y),) = seen
    assert torch.equal(problem.x, search.padded[..., 128:512, 256:640])  # cores of 128 pixels, margins of as many
    assert torch.equal(y, search.analysed[..., 8:32, 16:40])


def test_what_a_process_happens_to_hold_decides_nothing():
    """About the sizes of windows, and with them the bytes of a file."""
    codec, x = codec_of("dcae-variable-rate"), quantise_8_bit(toy_image(500, 120))
    problem, y = problem_of(codec, x)
    limit = before_the_search(problem, y) + int(bytes_a_pixel(problem, y) * 400**2)
    side = window_side(problem, y, limit)
    kept = torch.zeros(1 << 26)
    assert window_side(problem, y, limit) == side == 384
    assert window_side(problem, y, None) > side and len(kept)


@pytest.mark.slow
def test_a_search_stays_within_its_limit(tmp_path):
    """Of the process, as the system counts it, with the shipped model and more than one window."""
    write_png(tmp_path / "in" / "a.png", to_uint8(toy_image(700, 1100)))
    flags = ["--mode", "compress", "--data", str(tmp_path / "in"), "--save_path", str(tmp_path / "out")]
    flags += ["--effort", "1", "--max-memory", "2200M", "--json"]
    program = (
        "import sys, compress_and_decompress as program\n"
        "from utils.measuring.runs import peak\n"  # resource's number would be this process's, where that is larger
        "assert program.main(sys.argv[1:]) == 0\n"
        "print(peak(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *flags], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"][0]["won_percent"] > 0
    assert int(done.stderr.split()[-1]) <= 2200 << 20


def test_a_model_for_ms_ssim():
    codec, x = codec_of("dcae", trade_off=TradeOff(60.0, "ms-ssim")), quantise_8_bit(toy_image(192, 200))
    found = codec.search(x, None, effort=3)
    assert found.best.cost < found.plain.cost
    assert cost(codec, found.data, x, found.trade_off) == pytest.approx(found.best.cost, rel=1e-5)
    small = quantise_8_bit(toy_image(100, 100))
    assert codec.compress(small, effort=3) == codec.compress(small)


@pytest.mark.parametrize(
    "name, flags, expected",
    [
        ("dcae_0.0130.pth.tar", {}, ("mse", 0.013)),
        ("dcae_8.73.pth.tar", {}, ("ms-ssim", 8.73)),
        ("tcm_lambda0.05.pt", {}, ("mse", 0.05)),
        ("best.pt", {"lambda": 0.02, "type": "mse"}, ("mse", 0.02)),
        ("best.pt", {"lambda": 16.0, "type": "ms-ssim"}, ("ms-ssim", 16.0)),
        ("model-v1.2.pt", {}, None),
        ("best.pt", {}, None),
    ],
)
def test_lambda_of_a_checkpoint(name, flags, expected):
    assert trained_for(name, flags) == expected


def test_lambda_from_the_slope():
    """Of the shipped model, whose lambda is known."""
    sample = DEFAULT_CHECKPOINT.parent / "samples" / "city.png"
    codec, x = Codec(load_model(DEFAULT_CHECKPOINT)), to_tensor(read_image(sample)[0])[..., :128, :128]
    search = Search(codec, x, 1)
    found = slope(search.problem(50.0, TradeOff(1.0)), search.latent(50.0))
    known = of_quality(50.0, codec.model.lambda_range)
    assert found.source == "slope" and found.metric == "mse"
    assert known.weight / 4 < found.weight < 4 * known.weight


def test_weights_are_shared_and_frozen():
    model = toy_model("tcm")
    copy = searchable(model)
    pairs = list(zip(model.parameters(), copy.parameters()))
    assert all(a.data_ptr() == b.data_ptr() and a.requires_grad and not b.requires_grad for a, b in pairs)


@pytest.fixture(scope="module")
def graded():
    return Codec(graded_model())


@pytest.mark.parametrize("kind", ["size", "bpp", "psnr"])
def test_targets_with_effort_are_met_and_better(graded, kind):
    x = quantise_8_bit(toy_image(128, 160))
    data = graded.compress(x, 55.0)
    pixels = x.shape[-2] * x.shape[-1]
    value = {"size": len(data), "bpp": 8 * len(data) / pixels, "psnr": psnr(quantise_8_bit(graded.decompress(data)), x)}
    target = Target(kind, value[kind])
    plain, found = compress_to_target(graded, x, target), compress_to_target(graded, x, target, effort=4)
    errors = [psnr(quantise_8_bit(graded.decompress(t.data)), x) for t in (plain, found)]
    if kind == "psnr":
        assert len(found.data) <= len(plain.data) and target.accepts(errors[1])
    else:
        assert errors[1] >= errors[0]
        assert len(found.data) <= value["size"] * (1 if kind == "size" else 1.005)
    assert found.trade_off == of_quality(plain.quality)


def arguments(*flags: str) -> list[str]:
    return ["--mode", "compress", "--data", "a", "--save_path", "b", *flags]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--effort", "10"], "invalid choice"),
        (["--lambda", "0.013"], "--lambda is for --effort"),
        (["--effort", "3", "--lambda", "0"], "must be a number above 0"),
        (["--effort", "3", "--mode", "decompress"], "is for compressing"),
    ],
)
def test_wrong_flags_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as leave:
        compress_and_decompress.parse_arguments(arguments(*flags))
    assert leave.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--target-size", "100000"]])
def test_the_program_reports_what_was_won_whatever_the_number_of_jobs(tmp_path, toy_checkpoint, capsys, more):
    for name in "ab":
        write_png(tmp_path / "in" / f"{name}.png", to_uint8(toy_image(64, 96, seed=ord(name))))
    written = []
    for jobs in ("1", "2"):
        flags = ["--mode", "compress", "--data", str(tmp_path / "in"), "--checkpoint", str(toy_checkpoint)]
        flags += [
            "--save_path",
            str(tmp_path / jobs),
            "--effort",
            "2",
            "--jobs",
            jobs,
            "--threads",
            "2",
            "--json",
            *more,
        ]
        assert compress_and_decompress.main(flags) == 0
        files = json.loads(capsys.readouterr().out)["files"]
        assert all(file["effort"] == 2 and file["won_percent"] >= 0 and file["ms"] > 0 for file in files)
        assert all(file["trade_off"]["source"] == "quality" for file in files)
        written.append([(tmp_path / jobs / f"{name}.bin").read_bytes() for name in "ab"])
    assert written[0] == written[1]


def test_padding_is_not_counted():
    """The distortion is that of the image alone, as the decoder crops it."""
    codec, x = codec_of("dcae"), quantise_8_bit(toy_image(70, 90))
    problem, y = problem_of(codec, x)
    assert problem.x[(..., *problem.inside)].shape == x.shape
    assert torch.equal(problem.x[(..., *problem.inside)], x)
    assert torch.equal(problem.x, pad_centred(x, codec.model.size_multiple, codec.padding))
