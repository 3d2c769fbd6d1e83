"""The printed commands train and evaluate, the collector finds what they leave, and its numbers are right."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from eval import main as evaluate
from models import ABLATIONS, MODELS
from scripts.ablation import TABLES, main, models_of
from tests.toys import TOYS, toy_image
from train import main as train
from utils.cli import UserError
from utils.data.images import to_uint8, write_png
from utils.evaluation.results import make_results, write_results
from utils.figures.rd_curves import load_curve
from utils.figures.small_ablation import CONFIGURATIONS
from utils.training.flags import parse_arguments, requested_options, settings

NAME = "dcae-ablation-entries-64"


def commands(capsys, *flags: str) -> dict[str, list[str]]:
    """The lines printed for each configuration."""
    main(["commands", "--data", "my images", *flags])
    blocks = capsys.readouterr().out.strip().split("\n\n")
    return {block.splitlines()[0].removeprefix("# "): block.splitlines()[1:] for block in blocks}


def test_every_configuration_is_trained_by_one_line(capsys):
    printed = commands(capsys)
    assert list(printed) == models_of(list(TABLES)) and set(printed) <= set(MODELS)
    assert {f"dcae-ablation-{name}" for name in ABLATIONS} <= set(printed)
    for name, (training, _) in printed.items():
        loop, body = re.fullmatch(r"for l in ([\d. ]+); do python train.py (.+); done", training).groups()
        args = parse_arguments(shlex.split(body.replace("$l", loop.split()[0])))
        assert (args.model, args.weight, args.batch_size, args.epochs, args.lr_epoch) == (name, 0.0018, 8, 25, [20])


def test_rows_are_what_their_labels_say():
    from models import default_config

    entries = {row["label"]: default_config(row["model"]) for row in TABLES["3"]["rows"]}
    assert [config["dictionary_entries"] for config in entries.values()] == [0, 64, 128, 192, 256]
    assert [default_config(row["model"])["msfa"] for row in TABLES["4"]["rows"]] == [0, 1, 2, 3, 4]
    ablation = [row["model"] for table in "2345" for row in TABLES[table]["rows"]]
    assert all(default_config(name)["depths"] == [0, 0, 4] for name in ablation)


def test_toy_runs_are_collected(tmp_path, capsys):
    """Two runs of a step each, of toy size, by the lines that are printed."""
    for i in range(3):
        write_png(tmp_path / "images" / f"{i}.png", to_uint8(toy_image(128, 128, seed=i)))
    flags = [
        "--runs",
        str(tmp_path / "runs"),
        "--lambdas",
        "0.01",
        "0.02",
        "--evaluation",
        str(tmp_path / "images" / "0.png"),
    ]
    training, evaluation = commands(capsys, *flags)[NAME]
    body = training.split("train.py ")[1].split("; done")[0]
    sizes = {
        key: value for key, value in TOYS["dcae"][1].items() if key not in ("dictionary_entries", "msfa", "depths")
    }
    sizes = [f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in sizes.items()]
    toy = ["-d", str(tmp_path / "images"), "--model-option", *sizes, "--patch-size", "128", "--max-steps", "1"]
    toy += ["--batch-size", "2", "-n", "0", "--val-share", "0.4", "--no-tensorboard"]
    for value in ("0.01", "0.02"):
        train([*shlex.split(body.replace("$l", value)), *toy])
    words = shlex.split(evaluation.removeprefix("python eval.py "))
    pattern = next(word for word in words if "*" in word)
    best = sorted(str(path) for path in (tmp_path / "runs" / NAME).glob("*/best.pt"))
    assert pattern == f"{tmp_path}/runs/{NAME}/*/best.pt" and len(best) == 2
    place = words.index(pattern)
    assert evaluate([*words[:place], *best, *words[place + 1 :]]) == 0
    capsys.readouterr()
    main(["collect", "--runs", str(tmp_path / "runs"), "--tables", "3", "--json"])
    rows = json.loads(capsys.readouterr().out)["3"]["rows"]
    (row,) = [row for row in rows if row["points"]]
    assert row["model"] == NAME and row["our_latency_ms"] > 0


def test_numbers_are_right(tmp_path, capsys):
    """A tenth fewer bits than VTM everywhere is a BD-rate of -10 %."""
    vtm = load_curve("kodak/vtm")
    averages = [
        {"bpp": 0.9 * rate, "psnr": quality, "ms_ssim": None, "encode_ms": 30.0, "decode_ms": 50.0}
        for rate, quality in vtm.points
    ]
    results = make_results("toy", "", [{"average": average} for average in averages])
    write_results(tmp_path / "dcae-ablation" / "results.json", results)
    main(["collect", "--runs", str(tmp_path), "--tables", "2", "4"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " dcae-ablation " in line]
    assert len(lines) == 2
    for line in lines:
        assert line[-4:] == ["-10.00", "80", "-8.50", "160"]


def test_no_runs(tmp_path):
    with pytest.raises(UserError, match="commands"):
        main(["collect", "--runs", str(tmp_path)])


# ---- in small ------------------------------------------------------------------------------------------------------


def test_small_runs_differ_in_what_is_examined_alone(capsys):
    main(["commands", "--size", "small", "--data", "my images"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python train.py ")]
    runs = [parse_arguments(shlex.split(line.removeprefix("python train.py "))) for line in lines]
    assert len(runs) == sum(configuration.seeds for configuration in CONFIGURATIONS.values()) == 8
    examined = {"dictionary_entries", "msfa"}
    for args in runs:
        requested_options(args, "dcae")
        assert examined <= set(args.model_option)
        args.model_option = {k: v for k, v in args.model_option.items() if k not in examined}
        args.save_path = None
    assert len({args.seed for args in runs}) == 2
    assert len({json.dumps({**settings(args), "seed": 0}) for args in runs}) == 1
    assert max(len(line) for line in lines) < 1000


def test_small_runs_are_compared_with_the_baseline_of_their_seed(tmp_path, capsys):
    """Made-up curves: a tenth fewer bits are -10 %, whichever the seed; the paper's figures follow from its own."""
    for name, factors in {"baseline": (1.0, 1.1), "dictionary": (0.9, 0.95 * 1.1), "msfa-1": (0.8,)}.items():
        for seed, factor in enumerate(factors):
            path = tmp_path / f"{name}-{seed}" / "results.json"
            path.parent.mkdir()
            points = [
                {"average": {"bpp": factor * bpp, "psnr": psnr}}
                for bpp, psnr in ((0.2, 29), (0.4, 31), (0.8, 33.5), (1, 34))
            ]
            columns = {"bpp": [p["average"]["bpp"] for p in points], "psnr": [p["average"]["psnr"] for p in points]}
            path.write_text(json.dumps({"name": name, "results": columns}))
    main(["collect", "--size", "small", "--runs", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    rates = {entry["name"]: entry["bd_rates"] for entry in found["configurations"]}
    assert rates["baseline"] == pytest.approx([0, 0], abs=1e-6)
    assert rates["dictionary"] == pytest.approx([-10, -5], abs=1e-6) and rates["msfa-1"] == pytest.approx(
        [-20], abs=1e-6
    )
    assert found["seed_noise_percent"] == pytest.approx(10, abs=1e-6)
    paper = {entry["name"]: entry["paper"] for entry in found["configurations"]}
    assert paper["baseline"] == 0 and paper["dictionary"] == pytest.approx(100 * (0.9272 / 0.9580 - 1))
    main(["collect", "--size", "small", "--runs", str(tmp_path)])
    assert "-10.00 to -5.00" in capsys.readouterr().out
    (tmp_path / "baseline-0" / "results.json").unlink()
    with pytest.raises(UserError, match="baseline-0/results.json is missing"):
        main(["collect", "--size", "small", "--runs", str(tmp_path)])
    with pytest.raises(UserError, match="commands --size small"):
        main(["collect", "--size", "small", "--runs", str(tmp_path / "none")])
