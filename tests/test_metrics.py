"""The measures agree with their definitions, with each other and with values worked out by hand."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import metrics


def noisy_pair(height: int, width: int, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(1, 3, height, width, generator=generator)
    return a, (a + noise * torch.randn(a.shape, generator=generator)).clamp(0, 1)


def test_psnr_of_a_known_error():
    a = torch.zeros(1, 3, 4, 4)
    assert metrics.psnr(a, a + 0.1) == pytest.approx(20.0, abs=1e-5)
    assert metrics.psnr(a, a + 1 / 255) == pytest.approx(20 * math.log10(255), abs=1e-5)
    assert metrics.psnr(a, a) == math.inf


def test_psnr_takes_all_channels_together():
    a = torch.zeros(1, 3, 4, 4)
    b = a.clone()
    b[:, 0] = 0.3  # MSE 0.09 / 3
    assert metrics.psnr(a, b) == pytest.approx(-10 * math.log10(0.03), abs=1e-5)


def test_eight_bits_round_and_clamp():
    x = torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 100.49 / 255, 1.3])
    assert torch.equal((metrics.quantise_8_bit(x) * 255).round(), torch.tensor([0.0, 0.0, 1.0, 100.0, 255.0]))


def test_eight_bit_values_survive_exactly():
    x = torch.arange(256).float() / 255
    assert metrics.psnr(x, metrics.quantise_8_bit(x)) == math.inf


def test_different_shapes_are_refused_rather_than_broadcast():
    a, b = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    for measure in (metrics.psnr, metrics.ms_ssim):
        with pytest.raises(ValueError, match="different shapes"):
            measure(a, b)


def test_ms_ssim_of_equal_images_is_one_and_falls_with_noise():
    a, slightly = noisy_pair(192, 200, 0.02)
    _, strongly = noisy_pair(192, 200, 0.3)
    assert metrics.ms_ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert 1 > metrics.ms_ssim(a, slightly) > metrics.ms_ssim(a, strongly) > 0


def test_ms_ssim_of_a_uniform_change_of_brightness():
    """On flat images contrast and structure are 1, so only the luminance term of the coarsest level is left."""
    a, b = torch.full((1, 3, 176, 176), 0.5), torch.full((1, 3, 176, 176), 0.6)
    c1 = 0.01**2
    luminance = (2 * 0.5 * 0.6 + c1) / (0.5**2 + 0.6**2 + c1)
    assert metrics.ms_ssim(a, b) == pytest.approx(luminance**0.1333, abs=1e-6)


@pytest.mark.parametrize(
    "size, defined", [((161, 161), True), ((160, 400), False), ((400, 160), False), ((1, 1), False)]
)
def test_ms_ssim_is_undefined_below_its_window(size, defined):
    a, b = noisy_pair(*size)
    value = metrics.ms_ssim(a, b)
    assert (value is not None) == defined
    assert (metrics.ms_ssim_db(value) is not None) == defined


def test_ms_ssim_in_decibels():
    assert metrics.ms_ssim_db(0.99) == pytest.approx(20)
    assert metrics.ms_ssim_db(1.0) == math.inf
    assert metrics.ms_ssim_db(None) is None


def test_estimated_bits_and_bpp():
    likelihoods = torch.tensor([0.5, 0.25, 1.0, 2.0**-9])
    assert metrics.estimated_bits(likelihoods) == pytest.approx(12)
    assert metrics.bpp(12, 2, 3) == 2


def test_many_small_costs_add_up_without_rounding():
    assert metrics.estimated_bits(torch.full((2_000_000,), 0.999)) == pytest.approx(
        2_000_000 * -math.log2(torch.tensor(0.999).item()), rel=1e-9
    )


def test_the_measure_of_structure_is_not_imported_before_it_is_needed():
    code = "import sys, utils.metrics; sys.exit(any('msssim' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
