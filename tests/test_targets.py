"""Files of a wanted size, rate or PSNR: how close they come, and what is said where they cannot."""

import pytest

import compress_and_decompress
from models.layers.gain import QUALITY_MAX, QUALITY_MIN
from tests.toys import graded_model, toy_image
from utils.cli import UserError
from utils.codec.codec import Codec
from utils.codec.targets import Target, Trial, compress_to_target, search
from utils.metrics import psnr, quantise_8_bit


def curve(kind, low, high):
    """An attempt whose result grows exponentially with quality from `low` to `high`, and the list of what was tried."""
    tried = []

    def attempt(quality):
        tried.append(quality)
        share = (quality - QUALITY_MIN) / (QUALITY_MAX - QUALITY_MIN)
        reached = low * (high / low) ** share
        return Trial(quality, b"", int(reached) if kind == "size" else reached)

    return attempt, tried


@pytest.mark.parametrize("kind, low, high", [("bpp", 0.05, 1.5), ("size", 3000, 90000), ("psnr", 26.0, 38.0)])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.77, 0.99])
def test_search_comes_within_a_percent(kind, low, high, share):
    attempt, tried = curve(kind, low, high)
    target = Target(kind, low * (high / low) ** share)
    trial = search(attempt, target)
    assert abs(trial.reached / target.value - 1) <= 0.01
    assert kind != "size" or trial.reached <= target.value
    assert len(tried) <= 8 and trial.trials == len(tried)


def test_a_jump_across_the_size_stays_below_it():
    def attempt(quality):
        return Trial(quality, b"", 1000 if quality < 61.37 else 2000)

    assert search(attempt, Target("size", 1500)).reached == 1000


@pytest.mark.parametrize("kind, low, high", [("bpp", 0.05, 1.5), ("size", 3000, 90000)])
def test_beyond_the_range_of_rates(kind, low, high):
    attempt, _ = curve(kind, low, high)
    assert search(attempt, Target(kind, 2 * high)).quality == QUALITY_MAX
    with pytest.raises(UserError, match="out of reach; quality 1 gives"):
        search(attempt, Target(kind, low / 2))


def test_beyond_the_range_of_psnr():
    attempt, _ = curve("psnr", 26.0, 38.0)
    assert search(attempt, Target("psnr", 20.0)).quality == QUALITY_MIN
    with pytest.raises(UserError, match="out of reach; quality 100 gives 38 dB"):
        search(attempt, Target("psnr", 45.0))


def test_files_on_target_are_what_compress_writes_at_their_quality():
    model = graded_model()
    x = quantise_8_bit(toy_image(96, 160))
    sizes = [len(Codec(model).compress(x, quality)) for quality in (QUALITY_MIN, QUALITY_MAX)]
    wanted = sum(sizes) // 2
    trial = compress_to_target(Codec(model), x, Target("size", wanted))
    assert 0.97 * wanted <= len(trial.data) <= wanted  # a toy's files are so small that a step of quality shows
    assert trial.data == Codec(model).compress(x, trial.quality)


def test_the_psnr_reached_is_that_of_the_decoded_file():
    model = graded_model()
    x = quantise_8_bit(toy_image(96, 160))
    ends = [psnr(quantise_8_bit(Codec(model).decompress(Codec(model).compress(x, q))), x) for q in (1.0, 100.0)]
    trial = compress_to_target(Codec(model), x, Target("psnr", min(ends)))
    assert trial.reached == pytest.approx(psnr(quantise_8_bit(Codec(model).decompress(trial.data)), x), abs=1e-6)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--target-bpp", "0.5", "--quality", "30"], "--target-bpp and --quality each decide the quality"),
        (["--target-bpp", "0.5", "--target-size", "3000"], "--target-bpp and --target-size each decide"),
        (["--target-psnr", "0"], "must be a number above 0"),
        (["--target-size", "900", "--format", "official"], "has no quality"),
    ],
)
def test_wrong_flags_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as leave:
        compress_and_decompress.parse_arguments(["--mode", "compress", "--data", "a", "--save_path", "b", *flags])
    assert leave.value.code == 2
    assert message in capsys.readouterr().err
