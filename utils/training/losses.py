"""The training loss: rate plus lambda times distortion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.layers.gain import LAMBDA_RANGE
from utils.entropy_coding.frequencies import SCALE_MIN
from utils.metrics import WEIGHT_OF_METRIC, distortion_of

METRICS = ("mse", "ms-ssim")
DEFAULT_LAMBDA = {"mse": 0.013, "ms-ssim": 8.73}


def rate_distortion(
    out: dict, x: Tensor, lambdas: Tensor, metric: str, slice_sizes: list[int], balanced: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The loss lambda * distortion + rate and its parts, means over the batch, in float32 (Equation 2).

    `balanced`, for batches of many lambdas, is their range: each image's loss is weighted with `balance`.
    The distortion is 255^2 MSE or 1 - MS-SSIM; rates are in bits per pixel. `out` is a model's output for x
    (B, 3, H, W), lambdas (B,). Returns 0-dim tensors loss, distortion (without the 255^2), mse, bpp_y, bpp_z, bound
    (share of scales at the lower bound, 0..1) and bpp_slices: one rate for each of the slices, of `slice_sizes`
    channels, that y is cut into.
    """
    pixels = x.shape[-2] * x.shape[-1]
    y, z = (-torch.log2(out["likelihoods"][name]) for name in ("y", "z"))
    of_slices = torch.stack([part.flatten(1).sum(1) for part in y.split(slice_sizes, 1)], 1) / pixels  # (B, slices)
    of_z = z.flatten(1).sum(1) / pixels
    distortion = distortion_of(out["x_hat"].to(x.dtype), x, metric)
    loss = lambdas * WEIGHT_OF_METRIC[metric] * distortion + of_slices.sum(1) + of_z
    if balanced:
        loss = loss * balance(lambdas, balanced)
    at_bound = (out["para"]["scales"] <= SCALE_MIN).float().mean()
    error = distortion if metric == "mse" else distortion_of(out["x_hat"].detach().to(x.dtype), x, "mse")
    parts = {"distortion": distortion.mean(), "mse": error.mean()}
    parts |= {"bpp_y": of_slices.sum(1).mean(), "bpp_z": of_z.mean()}
    return {"loss": loss.mean(), **parts, "bound": at_bound, "bpp_slices": of_slices.mean(0)}


def balance(lambdas, lambda_range: Sequence[float] = LAMBDA_RANGE):
    """The weight of a loss at this lambda (a number or a tensor) beside those of other lambdas: 1 in mid-range.

    Losses grow with about the square root of lambda: those of the published DCAE on Kodak from 0.25 to 1.34, where
    lambda grows 27.8-fold. Without weights the gradients of the high rates would drown those of the low ones.
    """
    return (lambdas / math.sqrt(math.prod(lambda_range))) ** -0.5
