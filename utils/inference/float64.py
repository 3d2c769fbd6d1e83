"""The entropy path in float64, for files that decode on any machine.

Decoding works only if the decoder finds the same scale level for every symbol as the encoder did. Sums in float32
differ between processors, thread counts and libraries by more than a level's edge can bear in the long run; in
float64 they differ a billion times less. See docs/bitstream.md for the argument in numbers.
"""

from __future__ import annotations

import copy
from itertools import product

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.base import SliceCompressionModel
from models.layers.convolution import ExactConvolution
from utils.inference import products, winograd
from utils.inference.fast import CONVOLUTIONS, quicken
from utils.inference.rows import Border, Striped, StripedConvolution, StripedExactConvolution, to_map, tokens_of
from utils.inference.slices import share_first_layers
from utils.inference.threads import flat, in_threads

KEPT_KERNELS = 256 << 20  # bytes; dcae-medium's take 217 MiB and are computed once, DCAE's 1.4 GiB each time


def portable(model: SliceCompressionModel) -> SliceCompressionModel:
    """A quick float64 copy of what lies between z_hat and the scales; the transforms are left out."""
    left_out = {id(getattr(model, name)): nn.Identity() for name in model.transform_names + model.hyper_names}
    path = copy.deepcopy(model, left_out).double().eval().requires_grad_(False)
    on_cpu = next(path.parameters()).device.type == "cpu"
    quicken(path, [*(MATRICES if on_cpu else ()), *CONVOLUTIONS])
    share_first_layers(path)
    tiled = [layer for layer in path.modules() if isinstance(layer, MATRICES) and layer.tiled]
    if sum(winograd.size_of_kernels(layer.weight) for layer in tiled) <= KEPT_KERNELS:
        for layer in tiled:
            layer.weight = nn.Parameter(winograd.transform_kernels(layer.weight), requires_grad=False)
    return path


class MatrixConvolution(StripedConvolution):
    """A convolution as matrix products or loops: CPU libraries have no fast one in float64. It has no gradients.

    3x3 kernels are transformed (utils/inference/winograd.py). For others tokens lie row after row, with the zeros of
    the padding between them; what a tap of the kernel reads is then one block of memory, displaced by the tap. Each tap
    adds one matrix product to the result, and nothing is gathered. Depthwise ones are loops. For odd kernels, stride 1
    and zero padding that keeps the size.
    """

    @classmethod
    def fits(cls, module: nn.Conv2d) -> bool:
        """Where the size is kept, and channels are either all mixed or not at all."""
        kernel = module.kernel_size
        same_size = module.stride == (1, 1) and module.padding == tuple(k // 2 for k in kernel)
        mixed = module.groups == 1 or module.groups == module.in_channels == module.out_channels
        return super().fits(module) and same_size and all(k % 2 for k in kernel) and mixed

    def prepare(self) -> None:
        """Keep the weight as taps (r * s, in, out) only, where it has several."""
        if self.pointwise:
            return
        taps = rearrange(self.weight, "o i r s -> (r s) i o").contiguous()
        self.weight = nn.Parameter(taps, requires_grad=False)

    @property
    def pointwise(self) -> bool:
        """Whether it is one matrix product."""
        return self.kernel_size == (1, 1) and self.groups == 1

    def convolve(self, rows: Tensor, border: Border, kernels: Tensor | None = None) -> Tensor:
        """Tokens (B, r, W, in) and `border` rows of zeros -> (B, rows, W, out), as in StripedLayer."""
        if self.pointwise:
            return products.linear(rows, self.weight, self.bias)
        if self.tiled:
            kernels = winograd.transform_kernels(self.weight) if kernels is None else kernels
            return winograd.Tiles(rows, border).convolve(kernels, self.bias, kernels is self.weight)
        return self._depthwise(rows, border) if self.groups > 1 else self._dense(rows, border)

    def _dense(self, x: Tensor, border: Border) -> Tensor:
        side = self.padding[1]
        x = F.pad(x, (0, 0, side, side, *border))
        rows, columns = (n - k + 1 for n, k in zip(x.shape[1:3], self.kernel_size))
        width, tokens = x.shape[2], x.flatten(1, 2)
        count = (rows - 1) * width + columns  # the result has as wide rows, of which the last tokens mean nothing
        out = x.new_zeros(len(x), rows * width, self.out_channels)
        if self.bias is not None:
            out += self.bias
        positions = product(*(range(kernel) for kernel in self.kernel_size))
        for (i, j), tap in zip(positions, self.weight):
            first = i * width + j
            out[:, :count].baddbmm_(tokens[:, first : first + count], tap.expand(len(x), -1, -1))
        return out.unflatten(1, (rows, width))[:, :, :columns]

    def _depthwise(self, x: Tensor, border: Border) -> Tensor:
        from utils.inference.loops import depthwise  # here, as Numba is slow to import

        batch, height, width, channels = x.shape
        rows = height + sum(border) - self.kernel_size[0] + 1
        bias = x.new_zeros(channels) if self.bias is None else self.bias
        out = x.new_empty(batch, rows, width, channels)
        size = rows, height, width, channels
        arrays = flat(x), *size, border[0], self.kernel_size, flat(self.weight), flat(bias), flat(out)
        in_threads(depthwise, batch * rows, out.numel() * len(self.weight), *arrays)
        return out


class ExactMatrixConvolution(MatrixConvolution):
    """The same of layers that leave autocast, which means nothing here."""

    plain = ExactConvolution
    written = StripedExactConvolution.written


class MatrixDeconvolution(Striped, nn.ConvTranspose2d):
    """A transposed convolution as a 3x3 convolution of its input to one set of channels for each of its phases.

    With stride s and padding p, row s * m + a of the result is the sum over d of row m + d of the input times the
    kernel's row a + p - s * d: where |d| is at most 1 for all, three rows and columns are enough. For outputs s times
    as large as the input.
    """

    plain = nn.ConvTranspose2d
    tiled = True  # its convolution's kernels are transformed

    @classmethod
    def fits(cls, module: nn.ConvTranspose2d) -> bool:
        """Where the result is s times as large, and no place reaches further than its neighbours."""
        (stride, across), (kernel, wide) = module.stride, module.kernel_size
        enlarging = module.padding == (kernel // 2,) * 2 and module.output_padding == (stride - 1,) * 2
        reaches = kernel // 2 <= stride and kernel <= kernel // 2 + 2 * stride  # |d| <= 1
        square = (stride, kernel) == (across, wide) and kernel % 2 == 1
        return (
            super().fits(module) and square and enlarging and reaches and (module.groups, module.dilation[0]) == (1, 1)
        )

    def prepare(self) -> None:
        """Keep the weight as taps (9, in, s * s * out) only."""
        (stride, _), (padding, _), (kernel, _) = self.stride, self.padding, self.kernel_size
        taps = self.weight.new_zeros(3, 3, self.in_channels, stride, stride, self.out_channels)
        reads = [(d, a, a + padding - stride * (d - 1)) for d in range(3) for a in range(stride)]
        reads = [(d, a, k) for d, a, k in reads if 0 <= k < kernel]
        for (i, a, row), (j, b, column) in product(reads, repeat=2):
            taps[i, j, :, a, b] = self.weight[:, :, row, column]
        bias = None if self.bias is None else nn.Parameter(self.bias.repeat(stride**2), requires_grad=False)
        self.weight, self.bias = nn.Parameter(taps.reshape(9, self.in_channels, -1), requires_grad=False), bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H * s, W * s)."""
        phases = winograd.Tiles(tokens_of(x), (1, 1)).convolve(winograd.transform_kernels(self.weight), self.bias)
        stride = self.stride[0]
        return to_map(rearrange(phases, "b y x (i j o) -> b (y i) (x j) o", i=stride, j=stride))


MATRICES = (MatrixConvolution, ExactMatrixConvolution, MatrixDeconvolution)
