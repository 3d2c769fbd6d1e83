"""Parameters, multiplications, time and memory of models, beside the paper's: Table 1 of the paper of models/dcae.py.

    python scripts/complexity.py --output complexity.json --threads 1
    python scripts/complexity.py --models dcae tcm-large --data photo.png --cuda --runs 20 --profile
    python scripts/complexity.py --checkpoint dcae_0.0130.pth.tar --data photo.png

MACs are counted twice, exactly and as the papers do (utils/measuring/complexity.py says where that differs).
utils/measuring/latency.py has the protocol of the times. Every model is measured in a process of its own, so that its
peak memory is its own. Without --checkpoint the models are freshly initialised: complexity and time have a meaning
then, images and rates have none.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import project_root  # noqa: F401
from tqdm import tqdm

from models import MODELS, default_config
from utils.cli import UserError, run_program
from utils.devices import processor
from utils.evaluation.results import write_results
from utils.files import require_writable
from utils.inference.memory import keep_memory
from utils.measuring.runs import in_new_process
from utils.tables import format_number, format_table
from utils.text import to_json

PAPER = Path(__file__).parent.parent / "results" / "paper_table1.json"
NAMES_IN_PAPER = {"dcae": "DCAE", "tcm-large": "TCM", "elic": "ELIC"}
CLASSES = {"dcae": "dcae", "tcm-large": "tcm", "elic": "elic"}  # what the models call themselves
FULL_SIZE = [name for name in MODELS if not name.startswith("dcae-ablation-")]
FRESH = "weights are freshly initialised: only complexity, time and memory have a meaning"
NOTES = {
    "macs_g": "10^9 multiply-accumulate operations an image; the encoder runs the entropy model, too",
    "exact": "every product once; thop: as the papers count (measuring/complexity.py); thop_parameters_m likewise",
    "latency_ms": "milliseconds an image, pixels to file and back, medians; coding: what entropy coding has of them",
    "peak_mib": "MiB of GPU memory, or of main memory with Python and its libraries (about 400)",
    "paper": "its Table 1, on a GPU; FLOPs there are MACs as thop counts them",
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, metavar="NAME", help=f"default: {', '.join(FULL_SIZE)}")
    add("--checkpoint", nargs="+", type=Path, metavar="FILE", help="trained models instead")
    add("--quality", type=float, help="1..100, of variable-rate models (default: 50)")
    add("--data", type=Path, metavar="IMAGE", help="default: a smooth one, drawn from a seed")
    add("--size", type=int, nargs=2, metavar=("W", "H"), default=(768, 512), help="without --data (default: 768 512)")
    add("--runs", type=int, default=3, metavar="N", help="of which the median is taken (default: 3)")
    add("--warm-up", type=int, default=1, metavar="N", help="runs before them (default: 1)")
    add("--threads", type=int, help="of the CPU (default: torch's choice)")
    add("--cpu-time", action="store_true", help="of the process, not of the wall clock: for busy CPUs; one thread")
    add("--cuda", action="store_true", help="work on the GPU")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--profile", action="store_true", help="also show the time by part")
    add("--output", type=Path, metavar="FILE", help="also write all numbers as JSON")
    add("--debug", action="store_true", help="show where an error happened")
    add("--alone", action="store_true", help=argparse.SUPPRESS)  # print the one model's numbers as JSON
    return parser.parse_args(argv)


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other or ask for nothing."""
    if args.models and args.checkpoint:
        raise UserError("--models are freshly initialised, --checkpoint are trained; choose one")
    if args.quality and not args.checkpoint:
        raise UserError("--quality: matters to trained models only; add --checkpoint or leave it out")
    for path in args.checkpoint or []:
        if not path.is_file():
            raise UserError(f"--checkpoint {path}: there is no such file")
    for name in ("runs", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: has to be 1 or more")
    if args.cpu_time and (args.threads != 1 or args.cuda or args.device):
        raise UserError("--cpu-time: is the time of an image with --threads 1 on a CPU only; add that")
    if args.warm_up < 0 or min(args.size) < 1:
        raise UserError("--warm-up and --size: negative numbers have no meaning")
    if args.output:
        require_writable(args.output, "--output")


def measure(args: argparse.Namespace, reference: str) -> dict[str, Any]:
    """Everything about one model in this process."""
    import torch

    from utils.codec.codec import Codec
    from utils.devices import choose_device, describe_device
    from utils.measuring.complexity import count_parts, encoder_and_decoder, parameters_of, parameters_that_thop_sees
    from utils.measuring.latency import measure_latency, peak_memory

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, x = choose_device(args.device, args.cuda), read(args)
    name, model, quality = load(args, reference, device)
    clock = time.process_time if args.cpu_time else time.perf_counter
    latency = measure_latency(Codec(model, "fp32"), x.to(device), quality, args.runs, args.warm_up, clock)
    peak, parts = peak_memory(device), count_parts(model.cpu(), *x.shape[-2:])
    kinds = {kind: [getattr(macs, kind) / 1e9 for macs in encoder_and_decoder(parts)] for kind in ("exact", "thop")}
    return {
        "name": Path(reference).name if args.checkpoint else reference,
        "model": name,
        "paper": paper_row(model),
        "parameters_m": parameters_of(model) / 1e6,
        "thop_parameters_m": parameters_that_thop_sees(model) / 1e6,
        "macs_g": {kind: dict(zip(("encode", "decode"), values)) for kind, values in kinds.items()},
        "macs_g_by_part": {part: {k: getattr(macs, k) / 1e9 for k in kinds} for part, macs in parts.items()},
        "latency_ms": latency,
        "peak_mib": peak,
        "image": list(x.shape[-2:]),
        "device": f"{describe_device(device)}" + (f", {processor()}" if device.type == "cpu" else ""),
    }


def load(args: argparse.Namespace, reference: str, device) -> tuple[str, Any, float | None]:
    """build_model's name for it, the model on the device, tables ready, and the quality to code at."""
    from models import build_model
    from models.layers.gain import DEFAULT_QUALITY
    from utils.codec.checkpoint import load_model

    if not args.checkpoint:
        model = build_model(reference).to(device).eval()
        model.update()
        return reference, model, None
    model = load_model(Path(reference), device)
    if args.quality and not model.variable_rate:
        raise UserError(f"{reference}: has one quality only; leave out --quality")
    return model.model_name, model, (args.quality or DEFAULT_QUALITY) if model.variable_rate else None


def read(args: argparse.Namespace):
    """The image (1, 3, H, W) in [0, 1]."""
    import torch

    from utils.data.images import read_image, to_tensor

    if args.data:
        return to_tensor(read_image(args.data)[0])
    width, height = args.size
    coarse = torch.rand(1, 3, height // 32 + 1, width // 32 + 1)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def paper_row(model) -> dict[str, Any] | None:
    """The paper's row of this model, if it has one: of the same class and sizes."""
    for name, label in NAMES_IN_PAPER.items():
        sizes = {**default_config(name), "variable_rate": model.variable_rate}
        if model.model_name == CLASSES[name] and model.config == sizes:
            rows = json.loads(PAPER.read_text(encoding="utf-8"))["models"]
            return next(row for row in rows if row["name"] == label)
    return None


def format_sizes(results: Sequence[dict[str, Any]]) -> str:
    """Parameters and MACs; the paper's beside those counted in the same way."""
    header = ["model", "params M", "thop", "paper", "enc GMACs", "thop", "paper", "dec GMACs", "thop", "paper"]
    rows = []
    for r in results:
        paper, macs = r["paper"] or {}, r["macs_g"]
        numbers = [(r["parameters_m"], 1), (r["thop_parameters_m"], 1), (paper.get("parameters_m"), 1)]
        for way in ("encode", "decode"):
            numbers += [(macs["exact"][way], 0), (macs["thop"][way], 0), (paper.get("gflops", {}).get(way), 0)]
        rows.append([r["name"], *(format_number(*number) for number in numbers)])
    return format_table(header, rows)


def format_times(results: Sequence[dict[str, Any]]) -> str:
    """Latency, entropy coding included and apart, and memory."""
    ways, rows = ("total", "encode", "decode"), []
    for r in results:
        paper, latency = r["paper"] or {}, r["latency_ms"]
        numbers = [latency[way] for way in ways] + [latency["coding"][way] for way in ways[1:]]
        numbers += [r["peak_mib"], *(paper.get("latency_ms", {}).get(way) for way in ways)]
        rows.append([r["name"], *(format_number(number, 0) for number in numbers)])
    header = ["model", "total ms", "encode", "decode", "coding enc", "coding dec", "peak MiB"]
    return format_table([*header, "paper total", "paper enc", "paper dec"], rows)


def format_profile(result: dict[str, Any]) -> str:
    """Milliseconds by part, in the order of the encoder."""
    parts = result["latency_ms"]["parts"]
    names = list(dict.fromkeys([*parts["encode"], *parts["decode"]]))
    last = [name for name in ("g_s", "entropy coding", "rest") if name in names]
    names = [name for name in names if name not in last] + last
    rows = [[name, *(format_number(parts[way].get(name), 1) for way in ("encode", "decode"))] for name in names]
    sums = [f"{sum(parts[way].values()):.1f}" for way in ("encode", "decode")]
    return format_table([result["name"], "encode ms", "decode ms"], rows, ["sum", *sums])


def protocol(args: argparse.Namespace, results: Sequence[dict[str, Any]]) -> str:
    """How times were taken."""
    height, width = results[0]["image"]
    clock = "CPU time" if args.cpu_time else "wall time"
    return f"one image of {width}x{height}, {clock}, median of {args.runs} after {args.warm_up} to warm up, float32"


def as_json(args: argparse.Namespace, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What --output holds."""
    weights = "trained" if args.checkpoint else FRESH
    head = {"name": "Complexity", "protocol": protocol(args, results), "weights": weights, "notes": NOTES}
    return {**head, "models": list(results)}


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    check_flags(args)
    keep_memory()
    flag = "--checkpoint" if args.checkpoint else "--models"
    references = [str(path) for path in args.checkpoint] if args.checkpoint else args.models or FULL_SIZE
    if args.alone:
        print(to_json(measure(args, references[0])))
        return
    results = []
    for reference in tqdm(references, unit="model", disable=None):
        flags = [*argv, flag, reference, "--alone"]  # the last of a flag counts
        results.append(in_new_process(__file__, flags, reference))
        if args.output:  # after each, since all of them may take an hour
            write_results(args.output, as_json(args, results))
    print(f"{results[0]['device']}; {protocol(args, results)}" + ("" if args.checkpoint else f"; {FRESH}"))
    print(format_sizes(results), format_times(results), sep="\n\n")
    for result in results if args.profile else []:
        print(f"\n{format_profile(result)}")


if __name__ == "__main__":
    run_program(main)
