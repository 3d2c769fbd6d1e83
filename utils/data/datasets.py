"""Training data: which images, and which crop of which image at which step.

All that is random about a sample follows from (seed, position), where the position counts samples from the start of
training over all processes. So the crops are the same whatever the number of worker processes, two processes draw what
one with twice the batch would, and a resumed run goes on where it was.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.cli import UserError, out_of_handles
from utils.data.colour import high_dynamic_range
from utils.data.images import opened, read_image
from utils.data.samples import has_several_frames

ORDERS = tuple(permutations(range(3)))  # of red, green and blue; the first is the image's own
SATURATION_MAX = 2.0  # as many samples are paler as are stronger
DOWNSCALE_MIN = 0.5  # JPEG's 8x8 blocks are gone at half the size


@dataclass(frozen=True)
class Usable:
    """Images that can be opened and hold a patch, with their pixel counts; those that cannot, and those too small.

    Among the usable ones, unconverted: those whose high dynamic range is taken for sRGB; several_frames: those of which
    the first picture of several is read.
    """

    paths: list[Path]
    pixels: list[int]
    not_opened: list[Path]
    too_small: list[Path]
    unconverted: int = 0
    several_frames: int = 0

    @property
    def unreadable(self) -> int:
        return len(self.not_opened)

    @property
    def small(self) -> int:
        return len(self.too_small)


def usable_images(paths: Sequence[Path], patch: int, progress: bool = False) -> Usable:
    """Sort out, by their headers, the images that cannot be opened or are smaller than the patch.

    Raises UserError where none is left.
    """
    kept: list[tuple[Path, int]] = []
    not_opened, too_small, unconverted, several = [], [], 0, 0
    for path in tqdm(paths, desc="looking at the images", unit="image", disable=None if progress else True):
        size, high, more = look_at(path)
        if size is None:
            not_opened.append(path)
        elif min(size) < patch:
            too_small.append(path)
        else:
            kept.append((path, size[0] * size[1]))
            unconverted, several = unconverted + high, several + more
    if not kept:
        raise UserError(
            f"--dataset: of {len(paths)} images {len(too_small)} are smaller than --patch-size {patch} and"
            f" {len(not_opened)} unreadable; choose a smaller patch or other images"
        )
    return Usable(
        [path for path, _ in kept], [pixels for _, pixels in kept], not_opened, too_small, unconverted, several
    )


def look_at(path: Path) -> tuple[tuple[int, int] | None, bool, bool]:
    """(width, height) as the header says, None where there is no readable header; whether the image has more than sRGB,
    and whether it is the first of several.
    """
    try:
        with opened(path) as image:
            return image.size, high_dynamic_range(image, path), has_several_frames(image, path)
    except UserError as error:
        if out_of_handles(error):  # which says nothing about the image
            raise
        return None, False, False


class ImageFiles:
    """The images as files, decoded each time they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | None:
        """uint8 (H, W, 3), or None where the file cannot be decoded."""
        try:
            return torch.from_numpy(np.array(read_image(self.paths[index])[0]))
        except UserError as error:
            if out_of_handles(error):
                raise
            return None


class HeldImages:
    """The pixels of all images in one block of memory, which worker processes share; or on the device."""

    def __init__(self, images: Usable, device: torch.device, progress: bool = False) -> None:
        files, self.shapes = ImageFiles(images.paths), []
        self.starts = np.cumsum([0, *(3 * pixels for pixels in images.pixels)]).tolist()
        block = allocate(self.starts[-1])
        for i, start in enumerate(tqdm(self.starts[:-1], "decoding", unit="image", disable=None if progress else True)):
            image = files[i]
            fits = image is not None and start + image.numel() == self.starts[i + 1]
            self.shapes.append(tuple(image.shape) if fits else None)
            if fits:
                block[start : self.starts[i + 1]] = image.flatten()
        self.block = block.to(device)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Tensor | None:
        """uint8 (H, W, 3), or None where the file could not be decoded."""
        shape = self.shapes[index]
        return None if shape is None else self.block[self.starts[index] : self.starts[index + 1]].view(shape)


def allocate(size: int) -> Tensor:
    """uint8 (size,), or a UserError where there is no room."""
    try:
        return torch.empty(size, dtype=torch.uint8)
    except RuntimeError as error:
        raise UserError(f"--cache: the decoded images take {size / 2**30:.1f} GiB; use --cache none") from error


@dataclass(frozen=True)
class Draw:
    """What chance decides about a sample: an image, a crop of it, its quality in training (1..100), its colours."""

    image: int
    down: float  # 0..1: no factor smaller than DOWNSCALE_MIN, 1 for the image as it is
    top: float
    left: float
    flip_rows: bool
    flip_columns: bool
    quality: float
    saturation: float = 1.0  # 0 for grey, 1 for the image as it is, up to SATURATION_MAX
    channels: tuple[int, ...] = ORDERS[0]  # which of the image's red, green and blue each one is


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn. `batch` is the global one: over it the qualities are spread evenly."""

    seed: int
    images: int
    batch: int
    downscale: float = 0.0  # share of samples taken from a reduced image
    recolor: float = 0.0  # share of samples with other colours: another saturation, and channels in any order

    def draw(self, position: int) -> Draw:
        """The sample at a position; its image comes from a new permutation each epoch."""
        epoch, place = divmod(position, self.images)
        u = np.random.Generator(np.random.Philox(key=(self.seed << 64) + position)).random(10)
        reduced = u[0] < self.downscale
        down = DOWNSCALE_MIN + (1 - DOWNSCALE_MIN) * u[1] if reduced else 1.0
        quality = 1 + 99 * (position % self.batch + u[6]) / self.batch
        image = int(shuffled(self.seed, epoch, self.images)[place])
        colors = (SATURATION_MAX * u[8], ORDERS[int(6 * u[9])]) if u[7] < self.recolor else ()
        return Draw(image, down, u[2], u[3], u[4] < 0.5, u[5] < 0.5, quality, *colors)


@lru_cache(maxsize=2)
def shuffled(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order of the images in an epoch, (images,) integers; from another random stream than the samples."""
    stream = np.random.Philox(key=(seed << 64) + epoch, counter=1 << 192)
    return np.random.Generator(stream).permutation(images)


def cut(image: Tensor, draw: Draw, patch: int) -> Tensor:
    """The crop (patch, patch, 3) of an image uint8 (H, W, 3), reduced with a Lanczos filter where the draw says so."""
    height, width = image.shape[:2]
    side = min(round(patch / draw.down), height, width)
    top, left = int(draw.top * (height - side + 1)), int(draw.left * (width - side + 1))
    crop = image[top : top + side, left : left + side]
    if side != patch:
        reduced = Image.fromarray(crop.numpy()).resize((patch, patch), Image.Resampling.LANCZOS)
        crop = torch.from_numpy(np.array(reduced))
    if draw.saturation != 1 or draw.channels != ORDERS[0]:
        crop = recolored(crop, draw)
    flips = [axis for axis, flip in enumerate((draw.flip_rows, draw.flip_columns)) if flip]
    return crop.flip(flips) if flips else crop


def recolored(crop: Tensor, draw: Draw) -> Tensor:
    """The crop uint8 (H, W, 3) with the draw's channels, moved from or towards their mean."""
    crop = crop[..., list(draw.channels)].float()
    grey = crop.mean(-1, keepdim=True)
    return (grey + draw.saturation * (crop - grey)).round().clamp(0, 255).to(torch.uint8)


class Crops(Dataset):
    """Samples by position. An image that cannot be decoded is replaced by the next one that can."""

    def __init__(self, images: ImageFiles | HeldImages, sampling: Sampling, patch: int) -> None:
        self.images, self.sampling, self.patch = images, sampling, patch

    def __getitem__(self, position: int) -> tuple[Tensor, float, int]:
        """(pixels uint8 (patch, patch, 3), quality 1..100, how many images had to be passed over)."""
        draw = self.sampling.draw(position)
        for passed in range(len(self.images)):
            image = self.images[(draw.image + passed) % len(self.images)]
            if image is not None and min(image.shape[:2]) >= self.patch:
                return cut(image, draw, self.patch), draw.quality, passed
        raise UserError("--dataset: not one of the images can be decoded")


def batch_positions(start: int, stop: int, batch: int, rank: int, processes: int, seen: int = 0) -> Iterator[list[int]]:
    """The positions of this process's batches `start` to `stop`, counted in batches of all processes together.

    `seen` samples came before batch 0, in batches of another size.
    """
    for index in range(start, stop):
        first = seen + (index * processes + rank) * batch
        yield list(range(first, first + batch))


def make_loader(crops: Crops, batches: Iterable[list[int]], workers: int, pin: bool) -> DataLoader:
    """Batches of (pixels uint8 (B, P, P, 3), qualities (B,), images passed over (B,))."""
    return DataLoader(
        crops,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # the loader draws a seed: not from the stream of the training noise
        multiprocessing_context="fork" if workers else None,  # workers share the decoded images
    )


def in_one_line(loader: DataLoader) -> Iterator:
    """The loader's batches. What ends a worker process becomes a UserError without that process's traceback."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("utils.cli.UserError: ")) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"--num-workers {loader.num_workers}: a process that reads images was ended from outside, as when memory"
            " runs out; use fewer"
        ) from error


def leave_signals_to_parent(_: int) -> None:
    """A worker process ends when its parent says so: Ctrl-C reaches it too, and must not stop it earlier."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
