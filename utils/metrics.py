"""Rate and distortion of an image: bits per pixel, PSNR, MS-SSIM (Wang et al., Asilomar 2003)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MS_SSIM_WINDOW = 11  # side of the Gaussian window
MS_SSIM_LEVELS = 5
MS_SSIM_SMALLEST = (MS_SSIM_WINDOW - 1) * 2 ** (MS_SSIM_LEVELS - 1) + 1  # 161: the window must fit at every level
WEIGHT_OF_METRIC = {"mse": 255.0**2, "ms-ssim": 1.0}  # lambda is given for errors of 8-bit values


def quantise_8_bit(x: Tensor) -> Tensor:
    """What an 8-bit file keeps of x (values nominally in [0, 1]): clamped and rounded to multiples of 1/255."""
    return (x.clamp(0, 1) * 255).round() / 255


def mse(a: Tensor, b: Tensor) -> float:
    """Mean squared error of two tensors of the same shape, any shape, values in [0, 1], summed in float64."""
    if a.shape != b.shape:
        raise ValueError(f"images of different shapes: {tuple(a.shape)} and {tuple(b.shape)}")
    return float((a.double() - b.double()).square().mean())


def psnr_of_mse(error: float) -> float:
    """Peak signal-to-noise ratio in dB, peak 1: -10 log10(MSE); infinite where the error is 0."""
    return math.inf if error == 0 else -10 * math.log10(error)


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of two tensors of the same shape, any shape, values in [0, 1], over all channels together."""
    return psnr_of_mse(mse(a, b))


def ms_ssim(a: Tensor, b: Tensor) -> float | None:
    """MS-SSIM in 0..1 of two tensors (B, 3, H, W), values in [0, 1], mean over images and channels.

    None where a side is below MS_SSIM_SMALLEST: there the measure is not defined. Computed in float64, because
    variances are differences of nearly equal numbers; on a CPU that costs no more time than float32.
    """
    if a.shape != b.shape:
        raise ValueError(f"images of different shapes: {tuple(a.shape)} and {tuple(b.shape)}")
    if min(a.shape[-2:]) < MS_SSIM_SMALLEST:
        return None
    import pytorch_msssim  # here, because programs that only code images do without it

    return float(pytorch_msssim.ms_ssim(a.double(), b.double(), data_range=1.0, win_size=MS_SSIM_WINDOW))


def ms_ssim_db(value: float | None) -> float | None:
    """MS-SSIM as -10 log10(1 - value) in dB; None stays None, 1 is infinite."""
    if value is None:
        return None
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


def estimated_bits(likelihoods: Tensor) -> float:
    """Bits an ideal entropy coder spends on symbols of these likelihoods, of any shape: -sum log2 p, in float64."""
    return float(-torch.log2(likelihoods.double()).sum())


def bits_per_position(likelihoods: Tensor) -> Tensor:
    """Bits at each position of a latent (1, C, h, w), summed over its channels: (h, w), float64."""
    return -torch.log2(likelihoods.double()).sum(1)[0]


def bpp(bits: float, height: int, width: int) -> float:
    """Bits per pixel of the image as the user knows it: padding costs bits but adds no pixels."""
    return bits / (height * width)


def require_finite(x_hat: Tensor) -> Tensor:
    """A reconstruction of any shape as it is, or a ValueError where one of its values is no number or infinite."""
    if not bool(torch.stack(torch.aminmax(x_hat)).isfinite().all()):
        raise ValueError("the reconstruction is not finite: the weights, or the precision, do not suit this image")
    return x_hat


def distortion_of(x_hat: Tensor, x: Tensor, metric: str) -> Tensor:
    """MSE or 1 - MS-SSIM of each image, (B,), from images (B, 3, H, W) in [0, 1]; it has gradients."""
    if metric == "mse":
        return (x_hat - x).square().flatten(1).mean(1)
    import pytorch_msssim

    return 1 - pytorch_msssim.ms_ssim(x_hat, x, data_range=1.0, win_size=MS_SSIM_WINDOW, size_average=False)
