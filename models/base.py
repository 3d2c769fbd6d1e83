"""The whole flow of a slice compression model on one page.

    x ->[analysis]-> y ->[h_a]-> z ->[factorized prior]-> z_hat ->[hyper_synthesis]-> latent scales, latent means
    for slice i of y:  support  = slice_support(hyper features, slices before i)
                       mu, sigma = cc_mean_transforms[i](support), cc_scale_transforms[i](support)
                       y_hat_i  = coder(y_i, mu, sigma)          <- training, encoding and decoding differ here only
                       y_hat_i += 0.5 * tanh(lrp_transforms[i](support, y_hat_i))
    y_hat ->[synthesis]-> x_hat

"Channel-wise Autoregressive Entropy Models for Learned Image Compression" (Minnen and Singh, ICIP 2020,
arXiv:2007.08739), as DCAE, TCM and ICWEM use it. A model is its transforms plus two hooks, `hyper_synthesis` and
`slice_support`. Where the latent is not g_a's output alone, it has `analysis` and `synthesis` of its own; where a slice
is coded in several passes, `code_slice` and `join`; where there is side information beside z, the `*_hyper` methods.

Frozen names: `g_a`, `g_s` analysis and synthesis transform; `h_a` hyper-analysis; `cc_*_transforms` the networks of the
slices' means and scales; `lrp_transforms` latent residual prediction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from compressai.models import CompressionModel
from compressai.models.utils import remap_old_keys
from compressai.ops import compute_padding
from torch import Tensor, nn

from models import STRIDE_Y, STRIDE_Z
from models.coders import DecodingCoder, EncodingCoder, EstimatingCoder, SymbolCheck, decode_under, encode_under
from models.layers.convolution import conv
from models.layers.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from models.layers.gain import LAMBDA_RANGE, GainUnit, qualities
from utils.entropy_coding.frequencies import published_scale_table
from utils.entropy_coding.rans import Decoder, Encoder


class EntropyParameters(nn.Sequential):
    """Support (B, in_channels, h, w) -> means, scales or residuals of one slice (B, out_channels, h, w)."""

    def __init__(self, in_channels: int, widths: Sequence[int], out_channels: int) -> None:
        first, second = widths
        last = conv(second, out_channels, exact=True)
        super().__init__(conv(in_channels, first), nn.GELU(), conv(first, second), nn.GELU(), last)


class SliceCompressionModel(CompressionModel, ABC):
    """What all models share. Subclasses build the modules named above with the help of the `build_*` methods.

    M: channels of y; hyper_channels: of z; slices: into how many y is cut, or the channels of each; windows: window
    sides of the transforms and of the hyper-prior; variable_rate: one model for every quality, by gain units;
    lambda_range: the trade-offs of quality 1 and quality 100.
    """

    model_name: str
    config: dict[str, Any]  # the constructor's arguments, recorded in checkpoints
    trained_for: tuple[str, float] | None = None  # metric and lambda of a model of one rate, where that is known
    fixed: tuple[str, ...] = ()  # arguments of the class above that it sets itself
    transform_names: tuple[str, ...] = ("g_a", "g_s")  # what analysis and synthesis consist of
    hyper_names: tuple[str, ...] = ("h_a",)  # what makes z; neither is on the path from z_hat to the scales

    def __init__(
        self,
        M: int,
        hyper_channels: int,
        slices: int | Sequence[int],
        windows: tuple[int, int],
        variable_rate: bool = False,
        lambda_range: Sequence[float] = LAMBDA_RANGE,
    ) -> None:
        super().__init__()
        self.slice_sizes = [M // slices] * slices if isinstance(slices, int) else list(slices)
        if sum(self.slice_sizes) != M:
            raise ValueError(f"M = {M} channels do not divide into slices of {self.slice_sizes}")
        self.channels_before = [sum(self.slice_sizes[:i]) for i in range(len(self.slice_sizes))]  # of earlier slices
        self.M, self.hyper_channels, self.slices = M, hyper_channels, len(self.slice_sizes)
        # A map is a whole number of windows: 16 to y times the window, 32 to h_a's attention times its window.
        self.size_multiple = max(STRIDE_Y * windows[0], STRIDE_Z // 2 * windows[1], STRIDE_Z)
        self.variable_rate, self.lambda_range = variable_rate, tuple(lambda_range)
        if variable_rate:
            self.gain = GainUnit(M, self.lambda_range)

    def build_slice_networks(self, support_channels: Sequence[int], widths: Sequence[int]) -> None:
        """The mean, scale and residual networks of every slice; `support_channels[i]` is the width of support i."""
        sizes = list(zip(support_channels, self.slice_sizes))
        self.cc_mean_transforms = nn.ModuleList(EntropyParameters(c, widths, out) for c, out in sizes)
        self.cc_scale_transforms = nn.ModuleList(EntropyParameters(c, widths, out) for c, out in sizes)
        self.lrp_transforms = nn.ModuleList(EntropyParameters(c + out, widths, out) for c, out in sizes)

    def build_prior(self) -> None:
        """The factorized prior of z, with empty tables."""
        self.entropy_bottleneck = EntropyBottleneck(self.hyper_channels)

    def build_conditional(self) -> None:
        """The Gaussian model of y, with empty tables."""
        self.gaussian_conditional = GaussianConditional(None)

    # ---- what a model supplies -------------------------------------------------------------------------------------

    def analysis(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1] -> y (B, M, H/16, W/16)."""
        return self.g_a(x)

    def synthesis(self, y_hat: Tensor) -> Tensor:
        """y_hat (B, M, h, w) -> image (B, 3, 16h, 16w), not clamped."""
        return self.g_s(y_hat)

    @abstractmethod
    def hyper_synthesis(self, z_hat: Tensor) -> tuple[Tensor, ...]:
        """z_hat (B, hyper_channels, h/4, w/4) -> latent scales and means, (B, M, h, w) each, or other features."""

    @abstractmethod
    def slice_support(self, i: int, scales: Tensor, means: Tensor, decoded: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What is known before slice i: supports of its means and of its scales, (B, support_channels[i], h, w).

        Takes the features that `hyper_synthesis` gives, and the slices of y_hat before i.
        """

    # ---- the slice loop --------------------------------------------------------------------------------------------

    def code_slices(self, z_hat: Tensor, y: Tensor | None, coder) -> Tensor:
        """Run `coder` over the slices of y (None when decoding); return y_hat (B, M, h, w)."""
        features = self.hyper_synthesis(z_hat)
        y_slices = [None] * self.slices if y is None else y.split(self.slice_sizes, 1)
        decoded: list[Tensor] = []
        for i, y_i in enumerate(y_slices):
            supports = self.slice_support(i, *features, decoded)
            decoded.append(self.code_slice(i, y_i, *supports, coder))
        return torch.cat(decoded, 1)

    def code_slice(self, i: int, y_i: Tensor | None, mean_support: Tensor, scale_support: Tensor, coder) -> Tensor:
        """Slice i of y_hat (B, slice_sizes[i], h, w), its latent residual added."""
        mu, sigma = self.cc_mean_transforms[i](mean_support), self.cc_scale_transforms[i](scale_support)
        with torch.autocast(mu.device.type, enabled=False):
            y_hat_i = coder(y_i, mu, sigma)
        return y_hat_i + self.latent_residual(i, mean_support, y_hat_i)

    def latent_residual(self, i: int, support: Tensor, y_hat_i: Tensor) -> Tensor:
        """What the decoder adds to slice i (B, slice_sizes[i], h, w): less than half a step."""
        return 0.5 * torch.tanh(self.lrp_transforms[i](torch.cat([support, y_hat_i], 1)))

    def join(self, parts: list[Tensor]) -> Tensor:
        """What a coder kept at each call, as one map like y (B, M, h, w)."""
        return torch.cat(parts, 1)

    # ---- training and rate estimation ------------------------------------------------------------------------------

    def forward(self, x: Tensor, quality: Tensor | float | None = None) -> dict[str, Any]:
        """Images (B, 3, H, W) in [0, 1] -> {"x_hat", "likelihoods": {"y", "z"}, "para": {"means", "scales", "y"}}.

        x_hat (B, 3, H, W) is not clamped. Sides that are no multiples of `size_multiple` are padded with zeros and
        x_hat is cropped; the likelihoods cover the padded image. Noise replaces rounding in the likelihoods while
        training. `quality` (1..100, one for all or (B,)) is required by variable-rate models and refused by others.
        """
        pad, unpad = compute_padding(*x.shape[-2:], min_div=self.size_multiple)
        y = self.to_latent(F.pad(x, pad), quality)
        z_hat, z_likelihoods = self.estimate_hyper(y)
        coder = EstimatingCoder(self.gaussian_conditional)
        y_hat = self.code_slices(z_hat, y, coder)
        likelihoods = {"y": self.join(coder.likelihoods), "z": z_likelihoods}
        para = {"means": self.join(coder.means), "scales": self.join(coder.scales), "y": y}
        x_hat = F.pad(self.to_image(y_hat, quality), unpad)
        return {"x_hat": x_hat, "likelihoods": likelihoods, "para": para}

    def estimate_hyper(self, y: Tensor) -> tuple[Any, Tensor]:
        """y -> z_hat as `code_slices` takes it, and the likelihoods (B, ...) of the symbols of z."""
        return self.entropy_bottleneck.estimate(self.h_a(y))

    def to_latent(self, x: Tensor, quality: Tensor | float | None = None) -> Tensor:
        """Analysis transform and gain: y as it is quantised. Raises ValueError for a quality that is not to be had."""
        levels = qualities(quality, x, self.variable_rate)
        y = self.analysis(x)
        return self.gain(y, levels) if self.variable_rate else y

    def to_image(self, y_hat: Tensor, quality: Tensor | float | None = None) -> Tensor:
        """Inverse gain and synthesis transform. Raises ValueError for a quality that is not to be had."""
        levels = qualities(quality, y_hat, self.variable_rate)
        return self.synthesis(self.gain.inverse(y_hat, levels) if self.variable_rate else y_hat)

    # ---- strings ---------------------------------------------------------------------------------------------------
    # `path` is the model whose slice loop decides what the entropy coder does: the engine's float64 copy, or this one.

    @torch.no_grad()
    def compress(self, x: Tensor, quality: float | None = None) -> dict[str, Any]:
        """Images (B, 3, H, W) in [0, 1] -> {"strings": [y strings, z strings], "shape": z's (h, w), "checks"}.

        One string and one 16-bit check of the symbols an image. Raises ValueError where the latent is not finite.
        """
        pad, _ = compute_padding(*x.shape[-2:], min_div=self.size_multiple)
        return self.compress_latent(self.to_latent(F.pad(x, pad), quality))

    @torch.no_grad()
    def compress_latent(
        self, y: Tensor, path: SliceCompressionModel | None = None, z_from: Tensor | None = None
    ) -> dict[str, Any]:
        """The second half of `compress`, from y (B, M, h, w) after any gain; also "y_hat", as it will be decoded.

        z_from: the latent that z is made of, where that is another one.
        """
        path = path or self
        encoders, checks = [[Encoder() for _ in y] for _ in range(2)], [SymbolCheck() for _ in y]
        z_hat = self.encode_hyper(y if z_from is None else z_from, encoders[1], checks, path)
        coder = EncodingCoder(path.gaussian_conditional, encoders[0], checks)
        y_hat = path.code_slices(z_hat, y.to(path.dtype), coder).to(self.dtype)
        strings = [[encoder.finish() for encoder in group] for group in encoders]
        shape = tuple(side * STRIDE_Y // STRIDE_Z for side in y.shape[-2:])
        return {"strings": strings, "shape": shape, "checks": [check.value for check in checks], "y_hat": y_hat}

    def encode_hyper(
        self, y: Tensor, encoders: list[Encoder], checks: list[SymbolCheck], path: SliceCompressionModel
    ) -> Any:
        """Give the symbols of z to one encoder an image; return z_hat as the `code_slices` of `path` takes it."""
        return encode_under(path.entropy_bottleneck, self.h_a(y), encoders, checks)

    @torch.no_grad()
    def decompress(
        self,
        strings: Sequence[Sequence[bytes]],
        shape: tuple[int, int],
        size: tuple[int, int] | None = None,
        quality: float | None = None,
    ) -> dict[str, Any]:
        """The inverse of `compress`: {"x_hat": (B, 3, 64h, 64w) clamped to [0, 1], "checks"}, cropped to `size`.

        Raises DesynchronisedError (utils/entropy_coding/rans.py) where the strings do not end as they must: they are
        damaged, belong to another model, or this machine's sums differ from the encoder's.
        """
        y_hat, checks = self.decompress_latent(strings, shape)
        x_hat = self.to_image(y_hat, quality).clamp(0, 1)
        _, unpad = compute_padding(*(size or x_hat.shape[-2:]), min_div=self.size_multiple)
        return {"x_hat": F.pad(x_hat, unpad), "checks": checks}

    @torch.no_grad()
    def decompress_latent(
        self, strings: Sequence[Sequence[bytes]], shape: tuple[int, int], path: SliceCompressionModel | None = None
    ) -> tuple[Tensor, list[int]]:
        """The first half of `decompress`: y_hat (B, M, 4h, 4w), before any inverse gain, and the checks."""
        path = path or self
        decoders, checks = [[Decoder(s) for s in group] for group in strings], [SymbolCheck() for _ in strings[0]]
        z_hat = path.decode_hyper(shape, decoders[1], checks)
        for decoder in decoders[1]:
            decoder.check_end()
        y_hat = path.code_slices(z_hat, None, DecodingCoder(path.gaussian_conditional, decoders[0], checks))
        for decoder in decoders[0]:
            decoder.check_end()
        return y_hat.to(self.dtype), [check.value for check in checks]

    def decode_hyper(self, shape: tuple[int, int], decoders: list[Decoder], checks: list[SymbolCheck]) -> Any:
        """The inverse of `encode_hyper`, for z of `shape`."""
        return decode_under(self.entropy_bottleneck, shape, decoders, checks)

    # ---- weights ---------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.entropy_bottleneck.quantiles.dtype

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False):
        """As in torch. Entropy tables may be of any size, and have CompressAI's names from before 1.2.7."""
        for name, module in self.named_modules():
            if isinstance(module, EntropyBottleneck):
                state_dict = remap_old_keys(name, state_dict)
        return nn.Module.load_state_dict(self, state_dict, strict, assign)

    def update(self, scale_table=None, force: bool = False, update_quantiles: bool = False) -> bool:
        """Fill the entropy tables where they are empty (all with `force`); needed before files are written or read."""
        levels = published_scale_table() if scale_table is None else scale_table
        return super().update(levels, force, update_quantiles)

    def entropy_models(self) -> list[EntropyModel]:
        """All that has entropy tables."""
        return [module for module in self.modules() if isinstance(module, EntropyModel)]
