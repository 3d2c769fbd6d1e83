"""Bjøntegaard deltas between two rate-distortion curves (Bjøntegaard, VCEG-M33, 2001), by the library `bjontegaard`.

BD-rate is the mean difference of log rate over the qualities that both curves reach, as a percentage of bits; BD-PSNR
is the mean difference of quality, in dB, over the log rates that both reach. Between its points each curve is
interpolated: by Akima splines (Herglotz et al., 2022: closest to densely measured curves), by PCHIP, or by one cubic
polynomial fitted to all points as in the original proposal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from utils.figures.rd_curves import Curve

METHODS = ("akima", "cubic", "pchip")
FEW_POINTS = 4  # with fewer, a cubic is not determined and the others are close to straight lines
SMALL_SHARE = 0.75  # of the shorter curve's qualities: below it the delta speaks of a part of the curve only

Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """What `test` costs against `anchor`.

    rate_percent: BD-rate, negative where test needs fewer bits; quality_db: BD-PSNR (or BD-MS-SSIM), positive where
    test is better; None where not defined. common_quality (dB), common_bpp: what both curves cover, None if nothing.
    share: of the qualities of the shorter curve that are common, 0..1. warnings: a line each.
    """

    anchor: Curve
    test: Curve
    method: str
    rate_percent: float | None
    quality_db: float | None
    common_quality: Interval | None
    common_bpp: Interval | None
    share: float
    warnings: tuple[str, ...]


def compare(anchor: Curve, test: Curve, method: str = "akima") -> Comparison:
    """BD-rate and BD-PSNR of `test` against `anchor`; `method` is one of METHODS."""
    if method not in METHODS:
        raise ValueError(f"unknown interpolation {method!r}; known are {', '.join(METHODS)}")
    quality, bpp = _common(anchor.quality, test.quality), _common(anchor.bpp, test.bpp)
    enough = min(len(anchor.bpp), len(test.bpp)) >= (FEW_POINTS if method == "cubic" else 2)
    share = _share(quality, anchor, test)
    return Comparison(
        anchor=anchor,
        test=test,
        method=method,
        rate_percent=_delta("bd_rate", anchor, test, method) if quality and enough else None,
        quality_db=_delta("bd_psnr", anchor, test, method) if bpp and enough else None,
        common_quality=quality,
        common_bpp=bpp,
        share=share,
        warnings=_warnings(anchor, test, share),
    )


def mean_over_images(anchor: dict[str, Curve], test: dict[str, Curve]) -> tuple[float, int, int] | None:
    """The mean of the BD-rates in percent of the images that both have curves of, of how many images, and how many of
    these have none because their curves share no range of quality. None where no image has one.

    Unlike the BD-rate of mean curves, this does not depend on how a codec spreads its bits over the images of a set: a
    codec at one rate for all images has another mean curve than the same codec at one quality for all of them.
    """
    rates = [compare(anchor[name], test[name]).rate_percent for name in anchor.keys() & test.keys()]
    known = [rate for rate in rates if rate is not None]
    return (sum(known) / len(known), len(known), len(rates) - len(known)) if known else None


def _delta(function: str, anchor: Curve, test: Curve, method: str) -> float | None:
    import bjontegaard  # here, because it brings matplotlib, which takes a second

    delta = getattr(bjontegaard, function)
    arguments = (anchor.bpp, anchor.quality, test.bpp, test.quality)
    try:
        value = float(delta(*arguments, method=method, require_matching_points=False, min_overlap=0))
    except OverflowError:  # rates as far apart as numbers reach
        return None
    return value if math.isfinite(value) else None


def _common(a: tuple[float, ...], b: tuple[float, ...]) -> Interval | None:
    """The interval that two rising sequences both cover; None if it is empty or a point."""
    if not a or not b:
        return None
    low, high = max(a[0], b[0]), min(a[-1], b[-1])
    return (low, high) if low < high else None


def _share(common: Interval | None, anchor: Curve, test: Curve) -> float:
    if common is None:
        return 0.0
    shorter = min(curve.quality[-1] - curve.quality[0] for curve in (anchor, test))
    return (common[1] - common[0]) / shorter


def _warnings(anchor: Curve, test: Curve, share: float) -> tuple[str, ...]:
    short = [curve for curve in (anchor, test) if len(curve.bpp) < FEW_POINTS]
    few = [f"{curve.name}: only {len(curve.bpp)} point(s), {FEW_POINTS} are needed" for curve in short]
    pair = f"{test.name} against {anchor.name}"
    if share == 0:
        return (*few, f"{pair}: no quality is reached by both, there is no BD-rate")
    if share < SMALL_SHARE:
        return (*few, f"{pair}: the curves barely overlap, {share:.0%} of the shorter one")
    return tuple(few)
