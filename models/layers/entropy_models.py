"""The two probability models: a factorized prior for z and a conditional Gaussian for y.

They are CompressAI's ("Variational Image Compression with a Scale Hyperprior", Ballé et al., ICLR 2018,
arXiv:1802.01436), with what files that decode on any machine need in addition: tables computed in float64 on the CPU,
so that they are the same everywhere, and scale levels found in the type of the scales.

`update()` turns probabilities into tables of integer frequencies for the entropy coder. Where a checkpoint brings
tables, those are kept: they are what its files were written with.
"""

from __future__ import annotations

import copy
from typing import Any

import compressai.entropy_models
import numpy as np
import torch
from compressai.ops import quantize_ste
from torch import Tensor

from utils.entropy_coding.context import ContextTables
from utils.entropy_coding.frequencies import gaussian_pmf, quantize_pmfs
from utils.entropy_coding.rans import Tables
from utils.entropy_coding.transfers import to_device, to_host

TABLE_BUFFERS = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
CORRECTED = "_corrected"  # a buffer of the Gaussian model where its tables were fitted


class EntropyModel(compressai.entropy_models.EntropyModel):
    """What both models share: the integer tables and their loading. Tables are empty until `update()`."""

    _tables: Tables | None = None

    def tables(self) -> Tables:
        """The entropy coder's tables, converted once. Raises ValueError before `update()`."""
        if self._tables is None:
            if not self._offset.numel():
                raise ValueError("the entropy tables are empty: call update() first")
            arrays = [array.cpu().numpy() for array in (self._quantized_cdf, self._cdf_length, self._offset)]
            corrected = self._buffers.get(CORRECTED)
            self._tables = Tables(*arrays) if corrected is None else ContextTables(*arrays, corrected.cpu().numpy())
        return self._tables

    def use(self, tables: Tables | None) -> None:
        """Let the entropy coder work with other tables than the buffers', or with theirs again."""
        self._tables = tables

    def _set_tables(self, pmfs: list[np.ndarray], offsets: np.ndarray) -> None:
        """Fill the buffers from one array of probabilities (n_i,) and one offset a distribution."""
        cdf, lengths = quantize_pmfs(pmfs)
        for name, array in zip(TABLE_BUFFERS, (offsets, cdf, lengths)):
            setattr(self, name, torch.from_numpy(np.ascontiguousarray(array, np.int32)).to(self._offset.device))
        self.use(None)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take tables of any size: a checkpoint may hold them empty or filled."""
        for name in TABLE_BUFFERS:
            value, own = state_dict.get(prefix + name), getattr(self, name, None)
            if value is not None and own is not None and value.shape != own.shape:
                setattr(self, name, torch.empty(value.shape, dtype=own.dtype, device=own.device))
        self._set_corrected(state_dict.get(prefix + CORRECTED))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _set_corrected(self, corrected: Tensor | None) -> None:
        """Keep rows by level and context as a buffer, or none."""
        self.use(None)
        self._buffers.pop(CORRECTED, None)
        if corrected is not None:
            self.register_buffer(CORRECTED, corrected.to(self._offset.device, torch.uint8, copy=True))


class EntropyBottleneck(EntropyModel, compressai.entropy_models.EntropyBottleneck):
    """One learned density a channel, a monotone network of five layers (Appendix 6.1 of the paper).

    Frozen names: `matrices`, `biases`, `factors` are H, b and a of the paper; `quantiles` (C, 1, 3) lower tail, median
    and upper tail, learned by `loss()` alone.
    """

    def forward(self, z: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """z (B, C, h, w) -> noisy or rounded z, and likelihoods in (0, 1]; both (B, C, h, w).

        As CompressAI's, which permutes by indices that lie on the GPU and so has to wait for it.
        """
        noisy = self.training if training is None else training
        values = z.transpose(0, 1).flatten(1).unsqueeze(1)  # (C, 1, B * h * w)
        outputs = self.quantize(values, "noise" if noisy else "dequantize", self._get_medians().detach())
        likelihoods = self.likelihood_lower_bound(self._likelihood(outputs)[0])
        shape = z.shape[1], z.shape[0], *z.shape[2:]
        return outputs.reshape(shape).transpose(0, 1), likelihoods.reshape(shape).transpose(0, 1)

    def estimate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, C, h, w) -> z_hat rounded straight-through, and likelihoods; both (B, C, h, w). Not under autocast."""
        with torch.autocast(z.device.type, enabled=False):
            z, medians = z.to(self.quantiles.dtype), self.medians()
            return quantize_ste(z - medians) + medians, self(z)[1]

    def medians(self) -> Tensor:
        """(1, C, 1, 1), without gradients: only the loss of the quantiles moves them."""
        return self._get_medians().detach().reshape(1, -1, 1, 1)

    @torch.no_grad()
    def update(self, force: bool = False, update_quantiles: bool = False) -> bool:
        """Fill the tables from the densities, in float64 on the CPU; return whether there was anything to do."""
        if self._offset.numel() and not force:
            return False
        if update_quantiles:
            self._update_quantiles()
        self._set_tables(*self.pmfs())
        return True

    @torch.no_grad()
    def pmfs(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Probabilities (n_i,): each channel's integers between tails, and the tails; offsets (C,) of the first."""
        low, median, high = self.quantiles[:, 0].cpu().float().unbind(1)  # float32 differences: exact on every machine
        below = torch.ceil(median - low).int().clamp(min=0)
        above = torch.ceil(high - median).int().clamp(min=0)
        lengths = below + above + 1
        samples = torch.arange(int(lengths.max())) + (median - below)[:, None, None]  # (C, 1, n)
        exact = copy.deepcopy(self).cpu().double()
        pmf, lower, upper = exact._likelihood(samples.double(), stop_gradient=True)
        tails = torch.sigmoid(lower[:, 0, :1]) + torch.sigmoid(-upper[:, 0, -1:])
        rows = [torch.cat([p[0, :n], t]).float().numpy() for p, n, t in zip(pmf, lengths, tails)]
        return rows, -below.numpy()


class GaussianConditional(EntropyModel, compressai.entropy_models.GaussianConditional):
    """N(mean, scale) integrated over unit intervals (Minnen et al., NeurIPS 2018, arXiv:1809.02736, Equation 3).

    Scales are rounded up to a table of 64 levels for coding, log-spaced from 0.11 to 256.
    """

    def forward(
        self, inputs: Tensor, scales: Tensor, means: Tensor | None = None, training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """y, sigma, mu (B, C, h, w) -> noisy or rounded y, and likelihoods in (0, 1]; both (B, C, h, w).

        As CompressAI's. Outside of training, likelihoods are those of the tables where these were fitted, and have no
        gradient then.
        """
        training = self.training if training is None else training
        outputs, likelihoods = super().forward(inputs, scales, means, training)
        if self.fitted and not training:
            symbols = outputs if means is None else torch.round(outputs - means)
            likelihoods = torch.exp2(-FittedCosts(self).of(symbols.detach(), scales.detach()))
        return outputs, likelihoods

    def build_indexes(self, scales: Tensor) -> Tensor:
        """The level (uint8) whose interval holds each scale, any shape: the first level not below it, at most the last.

        Compared in the scales' own type; the table's float32 values are exact in float64.
        """
        return torch.bucketize(scales.contiguous(), self.scale_table[:-1].to(scales.dtype)).to(torch.uint8)

    @torch.no_grad()
    def update(self) -> None:
        """Fill the frequency tables of `scale_table`; they do not depend on weights, device or threads."""
        self.set_rows([gaussian_pmf(scale) for scale in self.scale_table.cpu().float().numpy()])

    @property
    def fitted(self) -> bool:
        """Whether the tables are not the Gaussians' own, but fitted to symbols (utils/training/fitted_tables.py)."""
        return CORRECTED in self._buffers

    def set_rows(self, pmfs: list[np.ndarray], corrected: np.ndarray | None = None) -> None:
        """Code by these tables: a symmetric array of probabilities, then that of all other symbols, a level.

        corrected (levels, contexts): under which row a level is coded in which context; None: always under its own.
        """
        self._set_tables(pmfs, np.array([-(len(pmf) // 2 - 1) for pmf in pmfs]))
        self._set_corrected(None if corrected is None else torch.from_numpy(corrected))


class FittedCosts:
    """What symbols take under fitted tables, each under the row of its level and context.

    Raises ValueError where the tables are empty.
    """

    def __init__(self, gaussian: GaussianConditional) -> None:
        self.gaussian, self.tables = gaussian, gaussian.tables()
        device = gaussian.scale_table.device
        self.bits = torch.tensor(self.tables.costs, device=device)  # (rows, sizes)
        self.corrected = torch.tensor(self.tables.corrected, dtype=torch.long, device=device)  # (levels, contexts)

    def of(self, symbols: Tensor, scales: Tensor) -> Tensor:
        """Bits (B, C, h, w) of symbols and their scales, likewise: of each image one slice, as the coder sees it."""
        return self.under(*self.places(symbols, scales), symbols)

    def places(self, symbols: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Their levels and contexts, (B, C, h, w)."""
        levels = self.gaussian.build_indexes(scales)
        values = symbols.nan_to_num(nan=0.0).clamp(-(2**30), 2**30).int()
        maps = [
            self.tables.contexts(image.ravel(), row.ravel(), image.shape).reshape(image.shape)
            for image, row in zip(*to_host(values, levels))
        ]
        return levels.long(), to_device(np.stack(maps), symbols.device).long()

    def under(self, levels: Tensor, contexts: Tensor, symbols: Tensor) -> Tensor:
        """Bits of symbols, all (B, C, h, w); what is no number, or far outside the tables, is the largest size."""
        largest = self.bits.shape[1] - 1
        sizes = symbols.abs().nan_to_num(nan=largest).clamp(max=largest).long()
        return self.bits[self.corrected[levels, contexts], sizes]
