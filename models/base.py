"""The whole flow of a slice compression model on one page.

    x ->[analysis]-> y ->[h_a]-> z ->[factorized prior]-> z_hat ->[hyper_synthesis]-> latent scales, latent means
    for slice i of y:  support  = slice_support(hyper features, slices before i)
                       mu, sigma = cc_mean_transforms[i](support), cc_scale_transforms[i](support)
                       y_hat_i  = coder(y_i, mu, sigma)          <- training, encoding and decoding differ here only
                       y_hat_i += 0.5 * tanh(lrp_transforms[i](support, y_hat_i))
    y_hat ->[synthesis]-> x_hat

"Channel-wise Autoregressive Entropy Models for Learned Image Compression" (Minnen and Singh, ICIP 2020,
arXiv:2007.08739), as DCAE, TCM and ICWEM use it. A model consists of its transforms and two hooks, `hyper_synthesis`
and `slice_support`. It overrides `analysis` and `synthesis` if there is more to them than g_a and g_s, `code_slice` and
`join` if a slice is coded in several passes, and the `*_hyper` methods if there is side information beside z.

Frozen names: `g_a`, `g_s` analysis and synthesis transform; `h_a` hyper-analysis; `cc_*_transforms` the networks of the
slices' means and scales; `lrp_transforms` latent residual prediction.
"""

from __future__ import annotations

import math
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
from models.coders import DecodingCoder, EncodingCoder, EstimatingCoder, decode_under, encode_under
from models.layers.convolution import EntropyParameters
from models.layers.entropy_models import EntropyBottleneck, EntropyModel
from models.layers.gain import LAMBDA_RANGE, GainUnit, qualities
from utils.entropy_coding.check import SymbolCheck
from utils.entropy_coding.frequencies import published_scale_table
from utils.entropy_coding.rans import Decoder, Encoder


class SliceCompressionModel(CompressionModel, ABC):
    """What all models share. Subclasses build the modules named above, and both entropy models.

    M, hyper_channels: channels of y and of z; slices: the number of slices of y, or the channels of each; windows:
    window sides in the transforms and in the hyper-prior; variable_rate: one model for every quality, by gain units;
    lambda_range: the trade-offs at quality 1 and at quality 100. Raises ValueError where y cannot be cut like that.
    """

    model_name: str
    config: dict[str, Any]  # the constructor's arguments, as build_model records them for checkpoints
    trained_for: tuple[str, float] | None = None  # metric and lambda of a model of one rate, where that is known
    fixed: tuple[str, ...] = ()  # arguments of the parent class that it sets itself
    transform_names: tuple[str, ...] = ("g_a", "g_s")  # what analysis and synthesis consist of
    hyper_names: tuple[str, ...] = ("h_a",)  # what makes z; a decoder needs none of them

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
        # Every map has to be a whole number of windows: g_a's last is 1/16 of a side, h_a's first 1/32.
        self.size_multiple = math.lcm(STRIDE_Y * windows[0], STRIDE_Z // 2 * windows[1], STRIDE_Z)
        self.variable_rate, self.lambda_range = variable_rate, tuple(lambda_range)
        if variable_rate:
            self.gain = GainUnit(M, self.lambda_range)

    def build_slice_networks(self, support_channels: Sequence[int], widths: Sequence[int]) -> None:
        """The mean, scale and residual networks of every slice; `support_channels[i]` is the width of support i."""
        sizes = list(zip(support_channels, self.slice_sizes))
        self.cc_mean_transforms = nn.ModuleList(EntropyParameters(c, widths, out) for c, out in sizes)
        self.cc_scale_transforms = nn.ModuleList(EntropyParameters(c, widths, out) for c, out in sizes)
        self.lrp_transforms = nn.ModuleList(EntropyParameters(c + out, widths, out) for c, out in sizes)

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
        """The correction (B, slice_sizes[i], h, w) that the decoder adds to slice i: less than half a step."""
        return 0.5 * torch.tanh(self.lrp_transforms[i](torch.cat([support, y_hat_i], 1)))

    def join(self, parts: list[Tensor]) -> Tensor:
        """What a coder kept at each call, joined to one map like y (B, M, h, w)."""
        return torch.cat(parts, 1)

    # ---- training and rate estimation ------------------------------------------------------------------------------

    def forward(self, x: Tensor, quality: Tensor | float | None = None) -> dict[str, Any]:
        """Images (B, 3, H, W) in [0, 1] -> {"x_hat", "likelihoods": {"y", "z"}, "para": {"means", "scales", "y"}}.

        x_hat (B, 3, H, W) is not clamped. Images are padded with zeros to multiples of `size_multiple`, and x_hat is
        cropped; the likelihoods cover the padded image. While training, noise replaces rounding in the likelihoods.
        `quality` (1..100, one number or (B,)) is required by variable-rate models and refused by others.
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
        """(B, 3, H, W) in [0, 1] -> y (B, M, H/16, W/16) after any gain. Raises ValueError for an unfit `quality`."""
        levels = qualities(quality, x, self.variable_rate)
        y = self.analysis(x)
        return self.gain(y, levels) if self.variable_rate else y

    def to_image(self, y_hat: Tensor, quality: Tensor | float | None = None) -> Tensor:
        """y_hat (B, M, h, w), after any gain -> x_hat (B, 3, 16h, 16w). Raises ValueError for an unfit `quality`."""
        levels = qualities(quality, y_hat, self.variable_rate)
        return self.synthesis(self.gain.inverse(y_hat, levels) if self.variable_rate else y_hat)

    # ---- strings ---------------------------------------------------------------------------------------------------
    # `path` is the model whose slice loop the entropy coder relies on: this one, or the engine's float64 copy.

    @torch.no_grad()
    def compress(self, x: Tensor, quality: float | None = None) -> dict[str, Any]:
        """Images (B, 3, H, W) in [0, 1] -> {"strings": [y strings, z strings], "shape": z's (h, w), "checks", "y_hat"}.

        Each image has a string of y, one of z and a 16-bit check. Raises ValueError where the latent is not finite.
        """
        pad, _ = compute_padding(*x.shape[-2:], min_div=self.size_multiple)
        return self.compress_latent(self.to_latent(F.pad(x, pad), quality))

    @torch.no_grad()
    def compress_latent(
        self, y: Tensor, path: SliceCompressionModel | None = None, z_from: Tensor | None = None
    ) -> dict[str, Any]:
        """The second half of `compress`: y (B, M, h, w), after any gain, is coded; z is made of `z_from` or of y."""
        path = path or self
        checks = [SymbolCheck() for _ in y]  # one an image, of y and z together
        encoders = [[Encoder(check) for check in checks] for _ in range(2)]
        z_hat = self.encode_hyper(y if z_from is None else z_from, encoders[1], path)
        coder = EncodingCoder(path.gaussian_conditional, encoders[0])
        y_hat = path.code_slices(z_hat, y.to(path.dtype), coder).to(self.dtype)
        strings = [[encoder.finish() for encoder in group] for group in encoders]
        shape = tuple(side * STRIDE_Y // STRIDE_Z for side in y.shape[-2:])
        return {"strings": strings, "shape": shape, "checks": [check.value for check in checks], "y_hat": y_hat}

    def encode_hyper(self, y: Tensor, encoders: list[Encoder], path: SliceCompressionModel) -> Any:
        """Give the symbols of z, made of y (B, M, h, w), to one encoder an image; return z_hat for `code_slices`."""
        return encode_under(path.entropy_bottleneck, self.h_a(y), encoders)

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
        damaged or belong to another model, or sums on this machine differ from the encoder's.
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
        checks = [SymbolCheck() for _ in strings[0]]
        decoders = [[Decoder(*pair) for pair in zip(group, checks)] for group in strings]
        z_hat = path.decode_hyper(shape, decoders[1])
        for decoder in decoders[1]:
            decoder.check_end()
        y_hat = path.code_slices(z_hat, None, DecodingCoder(path.gaussian_conditional, decoders[0]))
        for decoder in decoders[0]:
            decoder.check_end()
        return y_hat.to(self.dtype), [check.value for check in checks]

    def decode_hyper(self, shape: tuple[int, int], decoders: list[Decoder]) -> Any:
        """The inverse of `encode_hyper`, for z of `shape`."""
        return decode_under(self.entropy_bottleneck, shape, decoders)

    # ---- weights ---------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.entropy_bottleneck.quantiles.dtype

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False):
        """As in torch, but entropy tables may have any size, and names may predate CompressAI 1.2.7."""
        for name, module in self.named_modules():
            if isinstance(module, EntropyBottleneck):
                state_dict = remap_old_keys(name, state_dict)
        return nn.Module.load_state_dict(self, state_dict, strict, assign)

    def update(self, scale_table=None, force: bool = False, update_quantiles: bool = False) -> bool:
        """Fill the entropy tables where they are empty (all with `force`); needed before files are written or read."""
        return super().update(published_scale_table() if scale_table is None else scale_table, force, update_quantiles)

    def entropy_models(self) -> list[EntropyModel]:
        """All modules with entropy tables."""
        return [module for module in self.modules() if isinstance(module, EntropyModel)]
