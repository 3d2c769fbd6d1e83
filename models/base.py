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

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.coders import (
    DecodingCoder,
    EncodingCoder,
    EstimatingCoder,
    SymbolCheck,
    get_symbols,
    put_symbols,
)
from models.layers import winograd
from models.layers.convolution import conv
from models.layers.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from models.layers.gain import LAMBDA_RANGE, QUALITY_MAX, QUALITY_MIN, GainUnit
from models.narrow import narrow_copy
from models.portable import portable_copy
from models.stripes import channels_last, convolution, convolutions, of_last_channels

if TYPE_CHECKING:
    from utils.entropy_coding.rans import Decoder, Encoder

STRIDE_Y, STRIDE_Z = 16, 64  # pixels a latent position covers, in y and in z
ARITHMETICS = ("fp64", "fp32", "published")
_deriving = RLock()


class EntropyParameters(nn.Sequential):
    """Support -> means, scales or residuals of one slice: three 3x3 convolutions with GELU between.

    The last layer leaves autocast: its output decides what the entropy coder does.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], out_channels: int) -> None:
        first, second = widths
        super().__init__(
            conv(in_channels, first), nn.GELU(), conv(first, second), nn.GELU(), conv(second, out_channels)
        )

    @property
    def first(self) -> nn.Conv2d:
        """The layer that reads the support."""
        return self[0]

    def forward(self, support: Tensor | None, known: Tensor | None = None) -> Tensor:
        """(B, in_channels, h, w), or what the first layer makes of it if that is known, -> (B, out_channels, h, w)."""
        first, gelu, second, _, last = self
        hidden = convolution(first, support, gelu) if known is None else gelu(known)
        hidden = convolution(second, hidden, gelu)
        with torch.autocast(hidden.device.type, enabled=False):
            return convolution(last, hidden.to(last.weight.dtype))


class SliceCompressionModel(nn.Module, ABC):
    """What all models share. Subclasses build the modules named above with the help of the `build_*` methods.

    Arguments: `config`, the constructor's arguments, recorded in checkpoints; `M`, channels of y; `hyper_channels`,
    channels of z; `slices`, into how many y is cut, or the channels of each; `windows`, window sides of the transforms
    and of the hyper-prior; `lambda_range`, the trade-offs of quality 1 and 100 of a variable-rate model.
    """

    model_name: str
    transform_names: tuple[str, ...] = ("g_a", "g_s", "h_a")  # not on the path from z_hat to the scales
    precision = torch.float32  # of products in analysis and synthesis; bfloat16 is faster, and no file depends on it
    compiled: Callable[[SliceCompressionModel, str, Tensor], Tensor] | None = None  # does `transform`, if given
    bytes_a_pixel: int | None = None  # memory for the maps between layers; None where more than these are whole maps

    def __init__(
        self,
        config: dict[str, Any],
        M: int,
        hyper_channels: int,
        slices: int | Sequence[int],
        windows: tuple[int, int],
        variable_rate: bool,
        lambda_range: Sequence[float] = LAMBDA_RANGE,
    ) -> None:
        super().__init__()
        self.slice_sizes = [M // slices] * slices if isinstance(slices, int) else list(slices)
        if sum(self.slice_sizes) != M:
            raise ValueError(f"M = {M} channels do not divide into slices of {self.slice_sizes}")
        self.channels_before = [sum(self.slice_sizes[:i]) for i in range(len(self.slice_sizes))]  # of earlier slices
        self.config = config
        self.M, self.hyper_channels, self.slices = M, hyper_channels, len(self.slice_sizes)
        # A map is a whole number of windows: 16 to y times the window, 32 to h_a's attention times its window.
        self.size_multiple = max(STRIDE_Y * windows[0], STRIDE_Z // 2 * windows[1], STRIDE_Z)
        self.variable_rate, self.lambda_range = variable_rate, tuple(lambda_range)
        if variable_rate:
            self.gain = GainUnit(M, lambda_range)
        self._derived: dict[str, Any] = {}  # what follows from the weights: copies in other types, keys, fingerprint

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
        self.gaussian_conditional = GaussianConditional()

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
        of_mean, of_scale, of_residual = self.first_layers(i, mean_support, scale_support)
        mu = self.cc_mean_transforms[i](mean_support, of_mean)
        sigma = self.cc_scale_transforms[i](scale_support, of_scale)
        with torch.autocast(mu.device.type, enabled=False):
            y_hat_i = channels_last(coder(y_i, mu, sigma))  # the encoder's and the decoder's alike in memory too
        return self.add_residual(i, mean_support, y_hat_i, of_residual)

    def first_layers(self, i: int, mean_support: Tensor, scale_support: Tensor) -> list[Tensor | None]:
        """What the first layers of slice i's mean, scale and residual networks make of one support, where it is one."""
        groups = (self.cc_mean_transforms, self.cc_scale_transforms, self.lrp_transforms)
        layers = [networks[i].first for networks in groups]
        if mean_support is scale_support and winograd.pays(mean_support, *layers):
            return convolutions(layers, mean_support)
        return [None] * len(layers)

    def add_residual(self, i: int, support: Tensor, y_hat_i: Tensor, known: Tensor | None = None) -> Tensor:
        """Latent residual prediction: y_hat_i (B, slice_sizes[i], h, w) moved by less than half a step.

        known: what the network's first layer makes of the support.
        """
        network = self.lrp_transforms[i]
        if known is None:
            residual = network(torch.cat([support, y_hat_i], 1))
        else:
            residual = network(None, known + of_last_channels(network.first, y_hat_i))
        return y_hat_i + 0.5 * torch.tanh(residual)

    def ask_dictionary(self, i: int, query: Tensor) -> Tensor:
        """What slice i's dictionary attention makes of a query (B, query channels, h, w), in models that have one.

        Keys and values are computed once for all images, where nothing is trained.
        """
        layer = self.dt_cross_attention[i]
        if self.training or torch.is_grad_enabled() or torch.is_autocast_enabled(query.device.type):
            return layer(query, layer.entries(self.dt))
        return layer(query, self._derive(f"entries of slice {i}", lambda: layer.entries(self.dt)))

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
        size, x = x.shape[-2:], pad_to_multiple(x, self.size_multiple)
        quality = self.check_quality(quality, x)
        y = self.to_latent(x, quality)
        z_hat, z_likelihoods = self.estimate_hyper(y)
        y = y.to(x.dtype)  # out of autocast
        coder = EstimatingCoder(self.gaussian_conditional)
        y_hat = self.code_slices(z_hat, y, coder)
        likelihoods = {"y": self.join(coder.likelihoods), "z": z_likelihoods}
        para = {"means": self.join(coder.means), "scales": self.join(coder.scales), "y": y}
        return {"x_hat": crop(self.to_image(y_hat, quality), size), "likelihoods": likelihoods, "para": para}

    def estimate_hyper(self, y: Tensor) -> tuple[Any, Tensor]:
        """y -> z_hat as `code_slices` takes it, and the likelihoods (B, ...) of the symbols of z."""
        return self.entropy_bottleneck.estimate(self.h_a(y))

    def to_latent(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """Analysis transform and gain: y as it is quantised."""
        y = self.transform("analysis", x)
        return self.gain(y, quality) if self.variable_rate else y

    def to_image(self, y_hat: Tensor, quality: Tensor | None) -> Tensor:
        """Inverse gain and synthesis transform."""
        return self.transform("synthesis", self.gain.inverse(y_hat, quality) if self.variable_rate else y_hat)

    def transform(self, name: str, x: Tensor) -> Tensor:
        """`analysis` or `synthesis` of x, with matrix products in `precision`."""
        if self.compiled is not None and not torch.is_grad_enabled():
            return self.compiled(self, name, x)
        if self.precision is torch.float32:
            return getattr(self, name)(x)
        model = self if self.training or torch.is_grad_enabled() else self.narrow()
        with torch.autocast(x.device.type, self.precision):
            return getattr(model, name)(x).to(x.dtype)

    def narrow(self) -> SliceCompressionModel:
        """The model whose transforms have weights in `precision`: itself, or a copy made once."""
        if self.precision is torch.float32:
            return self
        return self._derive(f"narrow, {self.precision}", lambda: narrow_copy(self, self.precision))

    def check_quality(self, quality: Tensor | float | None, x: Tensor) -> Tensor | None:
        """`quality` as (B,) beside x. Raises ValueError where it is missing, superfluous or outside 1..100."""
        if not self.variable_rate:
            if quality is not None:
                raise ValueError("this model has one quality; a quality can be chosen with variable-rate models only")
            return None
        if quality is None:
            raise ValueError("a variable-rate model needs a quality from 1 to 100")
        values = torch.as_tensor(quality, dtype=torch.float32, device=x.device).expand(len(x))
        if not bool(((values >= QUALITY_MIN) & (values <= QUALITY_MAX)).all()):
            raise ValueError(f"quality {quality} is outside 1..100")
        return values

    def aux_loss(self) -> Tensor:
        """The loss of the factorized prior's quantiles, which nothing else trains."""
        return sum(prior.loss() for prior in self.entropy_models() if isinstance(prior, EntropyBottleneck))

    # ---- files -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def compress(self, x: Tensor, quality: float | None = None, arithmetic: str = "fp32") -> dict[str, Any]:
        """Images (B, 3, H, W) in [0, 1] -> {"strings": [y strings, z strings], "shape": z's (h, w), "checks"}.

        One string and one 16-bit check of the symbols an image. `arithmetic` of the path from z_hat to the scales:
        "fp64" for strings that any machine decodes, "fp32", or "published": fp64 with the tables of z as CompressAI
        computes them. Raises ValueError where the latent is not finite.
        """
        x = pad_to_multiple(x, self.size_multiple)
        return self.compress_latent(self.to_latent(x, self.check_quality(quality, x)), arithmetic)

    @torch.no_grad()
    def compress_latent(self, y: Tensor, arithmetic: str = "fp32") -> dict[str, Any]:
        """The second half of `compress`, from y (B, M, h, w) after any gain; also "y_hat", as it will be decoded."""
        from utils.entropy_coding.rans import Encoder

        path = self.entropy_path(arithmetic)
        encoders, checks = [[Encoder() for _ in y] for _ in range(2)], [SymbolCheck() for _ in y]
        z_hat = self.encode_hyper(y, encoders[1], checks, arithmetic)
        coder = EncodingCoder(path.gaussian_conditional, encoders[0], checks)
        y_hat = path.code_slices(z_hat, y.to(path.dtype), coder).to(self.dtype)
        strings = [[encoder.finish() for encoder in group] for group in encoders]
        shape = tuple(side * STRIDE_Y // STRIDE_Z for side in y.shape[-2:])
        return {"strings": strings, "shape": shape, "checks": [check.value for check in checks], "y_hat": y_hat}

    def encode_hyper(self, y: Tensor, encoders: list[Encoder], checks: list[SymbolCheck], arithmetic: str) -> Any:
        """Give the symbols of z to one encoder an image; return z_hat as the `code_slices` of `arithmetic` takes it."""
        medians = self.entropy_bottleneck.medians()
        symbols = torch.round(self.h_a(y) - medians)
        put_symbols(encoders, checks, symbols, self.z_indexes(symbols.shape), self.z_tables(arithmetic))
        dtype = self.entropy_path(arithmetic).dtype
        return symbols.to(dtype) + medians.to(dtype)

    @torch.no_grad()
    def decompress(
        self,
        strings: Sequence[Sequence[bytes]],
        shape: tuple[int, int],
        size: tuple[int, int] | None = None,
        quality: float | None = None,
        arithmetic: str = "fp32",
    ) -> dict[str, Any]:
        """The inverse of `compress`: {"x_hat": (B, 3, 64h, 64w) clamped to [0, 1], "checks"}, cropped to `size`.

        Raises utils.entropy_coding.rans.DesynchronisedError where the strings do not end as they must: they are
        damaged, belong to another model, or this machine's sums differ from the encoder's.
        """
        y_hat, checks = self.decompress_latent(strings, shape, arithmetic)
        x_hat = self.to_image(y_hat, self.check_quality(quality, y_hat)).clamp(0, 1)
        return {"x_hat": x_hat if size is None else crop(x_hat, size), "checks": checks}

    @torch.no_grad()
    def decompress_latent(
        self, strings: Sequence[Sequence[bytes]], shape: tuple[int, int], arithmetic: str = "fp32"
    ) -> tuple[Tensor, list[int]]:
        """The first half of `decompress`: y_hat (B, M, 4h, 4w), before any inverse gain, and the checks."""
        from utils.entropy_coding.rans import Decoder

        path = self.entropy_path(arithmetic)
        decoders, checks = [[Decoder(s) for s in group] for group in strings], [SymbolCheck() for _ in strings[0]]
        z_hat = self.decode_hyper(shape, decoders[1], checks, arithmetic)
        for decoder in decoders[1]:
            decoder.check_end()
        coder = DecodingCoder(path.gaussian_conditional, decoders[0], checks)
        y_hat = path.code_slices(z_hat, None, coder)
        for decoder in decoders[0]:
            decoder.check_end()
        return y_hat.to(self.dtype), [check.value for check in checks]

    def decode_hyper(
        self, shape: tuple[int, int], decoders: list[Decoder], checks: list[SymbolCheck], arithmetic: str
    ) -> Any:
        """The inverse of `encode_hyper`, for z of `shape`."""
        indexes = self.z_indexes((len(decoders), self.hyper_channels, *shape))
        symbols = get_symbols(decoders, checks, indexes, self.z_tables(arithmetic))
        medians = self.entropy_bottleneck.medians().to(self.entropy_path(arithmetic).dtype)
        return symbols.to(medians) + medians

    def entropy_path(self, arithmetic: str) -> SliceCompressionModel:
        """The model whose `code_slices` works in `arithmetic`: itself, or a float64 copy made once.

        "published" files come from float32 programs on other machines: float64 is the closest to all of them.
        """
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"arithmetic {arithmetic!r} is none of {', '.join(ARITHMETICS)}")
        if arithmetic == "fp32":
            return self
        return self._derive("portable", lambda: portable_copy(self))

    def z_tables(self, arithmetic: str):
        """The entropy coder's tables of z."""
        if arithmetic == "published":
            return self._derive("published", self.entropy_bottleneck.published_tables)
        return self.entropy_bottleneck.tables()

    @staticmethod
    def z_indexes(shape: Sequence[int]) -> Tensor:
        """The table of each symbol of z is its channel: (B, C, h, w)."""
        return torch.arange(shape[1], dtype=torch.int32)[None, :, None, None].expand(*shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.entropy_bottleneck.quantiles.dtype

    # ---- weights ---------------------------------------------------------------------------------------------------

    def update(self, force: bool = False) -> bool:
        """Fill the entropy tables where they are empty (all with `force`); needed before files are written or read."""
        self._derived.clear()
        return sum(prior.update(force) for prior in self.entropy_models()) > 0

    def entropy_models(self) -> list[EntropyModel]:
        """All that has entropy tables."""
        return [module for module in self.modules() if isinstance(module, EntropyModel)]

    def fingerprint(self) -> bytes:
        """4 bytes over weights and entropy tables: who wrote a file. Raises ValueError before `update()`."""
        return self._derive("fingerprint", self._hash)

    def _hash(self) -> bytes:
        for prior in self.entropy_models():
            prior.tables()
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.digest()[:4]

    def _derive(self, key: str, compute):
        if key not in self._derived:
            with _deriving:  # of threads that work with one model, one computes and the others wait
                if key not in self._derived:
                    self._derived[key] = compute()
        return self._derived[key]

    def train(self, mode: bool = True):
        """As in torch; what was derived from the weights is forgotten, since training changes them."""
        self._derived.clear()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self._derived.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args) -> None:
        self._derived.clear()
        super()._load_from_state_dict(*args)

    def copied(self, instead: dict[int, Any]) -> SliceCompressionModel:
        """A deep copy without what was derived; `instead` says what takes the place of the object with an id."""
        return copy.deepcopy(self, {id(self._derived): {}, **instead})


def recorded(arguments: dict[str, Any]) -> dict[str, Any]:
    """A constructor's `locals()` as plain values for checkpoints: its arguments, with tuples as lists."""
    own = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
    return {name: list(value) if isinstance(value, Sequence) else value for name, value in own.items()}


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros around (B, C, H, W) up to multiples of `multiple`; left and top get the smaller half."""
    height, width = (-side % multiple for side in x.shape[-2:])
    if not height and not width:
        return x
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The centre (B, C, *size) of x: the inverse of `pad_to_multiple`."""
    top, left = ((padded - side) // 2 for padded, side in zip(x.shape[-2:], size))
    return x[..., top : top + size[0], left : left + size[1]]
