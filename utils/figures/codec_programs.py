"""Image codecs that are programs of their own, used where they are on the PATH: JPEG XL, HEVC, BPG and VVC.

Encoding time is that of the encoding program from its start to its end, reading a file of pixels included; decoding
time likewise, and for those that write PNG includes that.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from utils.cli import UserError

# ITU-R BT.709: shares of red, green and blue in the luma
KR, KG, KB = 0.2126, 0.7152, 0.0722


@dataclass(frozen=True)
class ProgramCodec:
    """A pair of programs that read and write PNG.

    encoders, decoders: names of the programs, of which the first on the PATH is taken. encoding, decoding: their
    arguments, where {source} and {target} stand for files, and in encoding {setting} for the setting.
    """

    name: str
    label: str
    suffix: str
    encoders: tuple[str, ...]
    decoders: tuple[str, ...]
    encoding: tuple[str, ...]
    decoding: tuple[str, ...]
    settings: tuple[float, ...]
    setting_name: str = "quality"

    def missing(self) -> str | None:
        for names in (self.encoders, self.decoders):
            if not any(shutil.which(name) for name in names):
                return f"no program {' or '.join(names)} on the PATH"
        return None

    def description(self) -> str:
        words = {word: word.upper() for word in ("source", "target", "config", "width", "height")}
        program = Path(_find(self.encoders)).name
        command = " ".join([program, *self.encoding]).format(**words, setting=self.setting_name.upper())
        return f"{command} ({_version(self.encoders)})"

    def encode(self, pixels: np.ndarray, setting: float) -> bytes:
        with TemporaryDirectory() as folder:
            source, target = Path(folder, "source.png"), Path(folder, f"target{self.suffix}")
            Image.fromarray(pixels).save(source, compress_level=1)
            _run(self.encoders, self.encoding, source=source, target=target, setting=f"{setting:g}")
            return target.read_bytes()

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        with TemporaryDirectory() as folder:
            source, target = Path(folder, f"source{self.suffix}"), Path(folder, "target.png")
            source.write_bytes(data)
            _run(self.decoders, self.decoding, source=source, target=target)
            with Image.open(target) as image:
                return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class VvcCodec(ProgramCodec):
    """VVC's reference software on 8-bit YCbCr 4:4:4 of BT.709, as CompressAI and with it the papers use it.

    Its programs read and write bare samples, and its encoder needs cfg/encoder_intra_vtm.cfg from its sources, which
    is looked for in the folders above the program.
    """

    def missing(self) -> str | None:
        return super().missing() or (None if self.config() else "no cfg/encoder_intra_vtm.cfg above the VTM encoder")

    def config(self) -> Path | None:
        program = Path(_find(self.encoders)).resolve()
        places = (folder / "cfg" / "encoder_intra_vtm.cfg" for folder in program.parents)
        return next((place for place in places if place.is_file()), None)

    def encode(self, pixels: np.ndarray, setting: float) -> bytes:
        height, width = pixels.shape[:2]
        with TemporaryDirectory() as folder:
            source, target = Path(folder, "source.yuv"), Path(folder, "target.vvc")
            source.write_bytes(rgb_to_ycbcr(pixels).tobytes())
            words = {"config": self.config(), "width": width, "height": height, "setting": f"{setting:g}"}
            _run(self.encoders, self.encoding, source=source, target=target, **words)
            return target.read_bytes()

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        with TemporaryDirectory() as folder:
            source, target = Path(folder, "source.vvc"), Path(folder, "target.yuv")
            source.write_bytes(data)
            _run(self.decoders, self.decoding, source=source, target=target)
            planes = np.fromfile(target, np.uint8)
            return ycbcr_to_rgb(planes.reshape(3, *shape[:2]))


def rgb_to_ycbcr(pixels: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) to uint8 planes Y, Cb, Cr (3, H, W) of BT.709, full range, rounded."""
    red, green, blue = pixels.astype(np.float64).transpose(2, 0, 1)
    luma = KR * red + KG * green + KB * blue
    planes = luma, 127.5 + (blue - luma) / (2 - 2 * KB), 127.5 + (red - luma) / (2 - 2 * KR)
    return np.stack(planes).round().clip(0, 255).astype(np.uint8)


def ycbcr_to_rgb(planes: np.ndarray) -> np.ndarray:
    """The reverse of `rgb_to_ycbcr`: uint8 planes (3, H, W) to uint8 pixels (H, W, 3), within rounding."""
    luma, cb, cr = planes.astype(np.float64)
    red, blue = luma + (2 - 2 * KR) * (cr - 127.5), luma + (2 - 2 * KB) * (cb - 127.5)
    green = (luma - KR * red - KB * blue) / KG
    return np.stack([red, green, blue], -1).round().clip(0, 255).astype(np.uint8)


def _find(names: tuple[str, ...]) -> str:
    """The path of the first of these programs that is there. Raises UserError if none is."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise UserError(f"no program {' or '.join(names)} on the PATH")


def _version(names: tuple[str, ...]) -> str:
    """What the program calls itself: the first line with a version number that it prints when asked."""
    for flag in ("--version", "-h"):
        done = subprocess.run([_find(names), flag], capture_output=True, text=True, errors="replace")
        for line in (done.stdout + done.stderr).splitlines():
            if re.search(r"\d\.\d", line):
                return " ".join(line.split())
    return "version unknown"


def _run(names: tuple[str, ...], arguments: tuple[str, ...], **words: object) -> None:
    """Run a program with its arguments filled in. Raises UserError with its last line if it fails or writes nothing."""
    command = [_find(names), *(argument.format(**words) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not Path(str(words["target"])).is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(f"{Path(command[0]).name} failed with status {done.returncode}: {said}")


PROGRAM_CODECS = (
    ProgramCodec(
        *("jpegxl", "JPEG XL", ".jxl", ("cjxl",), ("djxl",)),
        ("{source}", "{target}", "--distance={setting}", "--effort=7", "--num_threads=0"),
        ("{source}", "{target}", "--num_threads=0"),
        *((15, 10, 7, 5, 3.4, 2.3, 1.6, 1.1), "distance"),
    ),
    ProgramCodec(
        *("hevc", "HEVC (x265, HEIF)", ".heic", ("heif-enc",), ("heif-dec", "heif-convert")),
        ("{source}", "-o", "{target}", "-q", "{setting}", "-p", "chroma=444", "-p", "preset=slow", "-p", "tune=psnr"),
        ("{source}", "{target}"),
        (6, 14, 22, 30, 38, 46, 54, 60),
    ),
    ProgramCodec(
        *("bpg", "BPG 4:4:4", ".bpg", ("bpgenc",), ("bpgdec",)),
        ("-q", "{setting}", "-f", "444", "-m", "8", "-o", "{target}", "{source}"),
        ("-o", "{target}", "{source}"),
        *((47, 44, 41, 38, 35, 32, 29, 26), "QP"),
    ),
    VvcCodec(
        *("vvc", "VVC (VTM)", ".vvc", ("EncoderAppStatic", "EncoderApp"), ("DecoderAppStatic", "DecoderApp")),
        ("-i", "{source}", "-c", "{config}", "-q", "{setting}", "-o", "/dev/null", "-b", "{target}", "-wdt", "{width}")
        + ("-hgt", "{height}", "-fr", "1", "-f", "1", "--InputChromaFormat=444", "--InputBitDepth=8")
        + ("--ConformanceWindowMode=1",),
        ("-b", "{source}", "-o", "{target}", "-d", "8"),
        *((43, 40, 37, 34, 31, 28, 25, 22), "QP"),
    ),
)
