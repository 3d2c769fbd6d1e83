"""Training from its command line: it learns, goes on as if nothing had happened, and says what it cannot do."""

from __future__ import annotations

import errno
import io
import json
import math
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from models import load_model
from scripts.export_checkpoint import integer_weights
from scripts.export_checkpoint import main as export
from tests.toy_training import RECIPE, ROOT, checkpoint, equal, events, flags, write_photos
from tests.toys import TOYS, toy_image, toy_model
from train import main
from utils.cli import UserError, run_program
from utils.codec.checkpoint import save_checkpoint
from utils.codec.codec import Codec, fingerprint
from utils.data.images import to_uint8, write_png
from utils.data.split import split_folder
from utils.evaluation.evaluation import average, evaluate_images
from utils.training import log, start
from utils.training.distributed import Processes
from utils.training.flags import check_flags, parse_arguments, settings
from utils.training.stopping import StopRequest

TWO_STEPS = ("--batch-size", "2", "--max-steps", "2", "--val-every", "0")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """The folder of a run that kept everything a run can keep."""
    folder = tmp_path_factory.mktemp("run")
    more = ("--batch-size", "2", "--max-steps", "20", "-lr", "1e-3", "--ema", "0.9", "--val-every", "10")
    main(flags(photos, folder, *more, "--keep-every", "10", "--tensorboard"))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoints of toys as other programs write them: weights alone."""
    folder = tmp_path_factory.mktemp("weights")
    for kind in ("dcae", "dcae-variable-rate", "tcm"):
        save_checkpoint(folder / f"{kind}.pth.tar", {"state_dict": toy_model(kind).state_dict()})
    return folder


# ---- what a run does -----------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_best_is_kept(trained):
    losses = [event["loss"] for event in events(trained, "validation")]
    assert len(losses) == 2 and losses[1] < losses[0]
    best = checkpoint(trained, "best.pt")
    assert best["best"] == losses[1] and best["step"] == 20
    assert [checkpoint(trained, f"step_{n:07d}.pt")["step"] for n in (10, 20)] == [10, 20]
    assert not list(trained.glob(".*.tmp"))


def test_a_checkpoint_says_all_that_is_to_be_said(trained):
    content = checkpoint(trained)
    model = load_model(trained / "latest.pt")
    assert content["model"] == {"name": "dcae", "config": model.config}
    assert content["flags"]["learning_rate"] == 1e-3 and content["flags"]["lambda"] == 0.013
    assert content["data"]["images"] == 7 and content["scheduler"]["kind"] == "step"
    assert set(content["state_dict"]) == set(model.state_dict()) == set(content["ema"]["trained"])
    assert content["optimizer"]["state"] and content["aux_optimizer"]["state"]
    assert len(content["rng"]["cpu"]) and content["not_finite"] == {"in_row": 0, "total": 0}


def test_the_log_holds_what_there_is_to_know(trained):
    wanted = {"loss", "distortion", "mse", "bpp_y", "bpp_z", "bpp_slices", "psnr", "aux", "gradient_norm", "bound"}
    wanted |= {"rate", "images_per_s", "waiting", "processor_s", "gpu_gib", "not_finite", "passed_over"}
    for event in events(trained, "train"):
        assert wanted <= set(event) and 0 <= event["waiting"] <= 1 and 0 <= event["bound"] <= 1
        assert sum(event["bpp_slices"]) == pytest.approx(event["bpp_y"], rel=1e-5)
        assert event["psnr"] == pytest.approx(-10 * math.log10(event["mse"]))
    last = events(trained, "validation")[-1]
    assert len(last["dictionary_use"]) == 5 and all(1 / 12 <= use <= 1 for use in last["dictionary_use"])
    assert {event["file"] for event in events(trained, "checkpoint")} >= {"latest.pt", "best.pt", "step_0000010.pt"}
    assert events(trained, "start")[0]["settings"]["patch_size"] == [128]


def test_tensorboard_gets_the_same_and_the_reconstructions(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    scalars = set(board.Tags()["scalars"])
    names = ("loss", "bpp_y", "bpp_z", "psnr", "aux", "rate", "gradient_norm", "images_per_s", "bpp_slices/4")
    assert {f"train/{name}" for name in names} <= scalars
    assert {"validation/loss", "validation/psnr", "validation/dictionary_use/0"} <= scalars
    logged = [event["loss"] for event in events(trained, "train")]
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(logged)
    (name,) = board.Tags()["images"]
    assert name.startswith("validation/") and len(board.Images(name)) == 2


def test_validation_is_what_eval_finds(trained, photos):
    logged = events(trained, "validation")[-1]
    means = average(evaluate_images(Codec(load_model(trained / "best.pt"), "fp32"), split_folder(photos).validation))
    for name in ("bpp", "psnr", "ms_ssim"):
        assert logged[name] == means[name]


def test_checkpoints_work_in_the_other_programs(trained, photos, tmp_path, monkeypatch):
    import compress_and_decompress
    import eval as evaluation

    monkeypatch.chdir(tmp_path)
    given = ["--checkpoint", str(trained / "latest.pt"), "--data"]
    assert not evaluation.main([*given, str(photos / "0.png"), "--real"])
    assert not compress_and_decompress.main(
        ["--mode", "compress", "--save_path", "bins", *given, str(photos / "0.png")]
    )
    assert not compress_and_decompress.main(["--mode", "decompress", "--save_path", "out", *given, "bins"])
    assert (tmp_path / "out/0.png").is_file()


@pytest.mark.parametrize(
    "recipe",
    [("--schedule", "cosine"), ("--optimizer", "soap", "--schedule", "linear", "--cooldown", "0.5")],
    ids=["adam", "soap"],
)
def test_stopped_by_a_signal_and_resumed_equals_uninterrupted(photos, tmp_path, monkeypatch, capsys, recipe):
    """Bit for bit, with averaged weights, a schedule, accumulated passes and validation on the way."""
    more = ("--batch-size", "1", "--accumulate", "2", "--max-steps", "6", "--val-every", "2", "--ema", "0.9")
    more += ("--warmup", "3", "--downscale", "0.5", *recipe)
    main(flags(photos, tmp_path / "whole", *more))
    step, signals = train.train_step, {1: signal.SIGINT, 3: signal.SIGTERM}  # each before a validation

    def step_and_signal(state, *rest):
        if state.step in signals:
            signal.raise_signal(signals.pop(state.step))
        return step(state, *rest)

    monkeypatch.setattr(train, "train_step", step_and_signal)
    main(flags(photos, tmp_path / "parts", *more))
    said = capsys.readouterr().err
    assert "stopped at step 2 and saved; go on with: python train.py" in said
    resume = shlex.split(said.rsplit("train.py ", 1)[1].splitlines()[0])
    assert resume == flags(photos, tmp_path / "parts", *more, "--resume")
    main(resume)
    main(resume)
    assert f"going on with {tmp_path}/parts/latest.pt after step 4" in capsys.readouterr().err
    one, other = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert one["step"] == other["step"] == 6 and one["best"] == other["best"]
    assert equal(one["state_dict"], other["state_dict"]) and equal(one["ema"]["trained"], other["ema"]["trained"])
    assert events(tmp_path / "whole", "validation") == events(tmp_path / "parts", "validation")


def test_the_last_phase_trains_the_decoder_alone(trained, photos, tmp_path):
    """What is coded stays as it is, and the decoder does not."""
    before = checkpoint(trained)["state_dict"]
    for optimizer in ("adam", "soap"):
        folder = tmp_path / optimizer
        more = ("--checkpoint", str(trained / "latest.pt"), "--train", "decoder", "--optimizer", optimizer)
        main(flags(photos, folder, *TWO_STEPS, *more))
        after = checkpoint(folder)["state_dict"]
        changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
        assert changed and all(name.startswith(("g_s.", "lrp_transforms.")) for name in changed)
        assert {"g_s.0.weight", "lrp_transforms.0.0.weight"} <= changed


def test_resume_without_a_run_starts_one(photos, tmp_path, capsys):
    main(flags(photos, tmp_path, *TWO_STEPS, "--resume"))
    assert "there is nothing to resume" in capsys.readouterr().err
    assert checkpoint(tmp_path)["step"] == 2


def test_resuming_names_the_settings_that_changed_and_no_others(photos, tmp_path, capsys):
    more = ("--batch-size", "7", "--val-every", "0")
    main(flags(photos, tmp_path, *more, "--epochs", "1"))
    main(flags(photos, tmp_path, *more, "--epochs", "1", "--resume"))
    assert f"going on with {tmp_path}/latest.pt after step 1\n" in capsys.readouterr().err
    main(flags(photos, tmp_path, *more, "--epochs", "2", "--resume"))
    assert "after step 1; epochs was 1 and is 2; max_steps was 1 and is 2" in capsys.readouterr().err


def test_resuming_with_another_loss_chooses_the_best_anew_and_flags_are_in_force(photos, tmp_path, capsys):
    """Validation losses of another lambda cannot be compared; the quantiles' rate is this call's; some flags stay."""
    main(flags(photos, tmp_path, *TWO_STEPS[:-1], "2"))
    assert checkpoint(tmp_path, "best.pt")["best"] < 1000
    more = ("--lambda", "0.9", "--aux-learning-rate", "0.5", "--resume", "--batch-size", "2", "--val-every", "1")
    main(flags(photos, tmp_path, *more, "--max-steps", "3"))
    assert "best.pt is chosen anew" in capsys.readouterr().err
    latest, best = checkpoint(tmp_path), checkpoint(tmp_path, "best.pt")
    assert latest["aux_optimizer"]["param_groups"][0]["lr"] == 0.5
    assert best["step"] == 3 and best["best"] == latest["best"] > 1000
    main(flags(photos, tmp_path / "new", "--checkpoint", f"{tmp_path}/latest.pt", "--continue_train", *TWO_STEPS))
    assert checkpoint(tmp_path / "new")["best"] is None and "no best.pt" not in capsys.readouterr().err
    here = ("--checkpoint", f"{tmp_path}/latest.pt", "--continue_train", "--lambda", "0.9", "--batch-size", "2")
    main(flags(photos, tmp_path, *here, "--max-steps", "3"))
    assert checkpoint(tmp_path)["best"] == latest["best"] and checkpoint(tmp_path)["validated"] == 3
    for flag in (("--optimizer", "soap"), ("--train", "decoder")):
        with pytest.raises(UserError, match=f"{' '.join(flag)}: .*latest.pt was trained with .* --checkpoint"):
            main(flags(photos, tmp_path, "--resume", *flag))


def test_a_validation_takes_nothing_from_the_log_of_the_steps(photos, tmp_path, monkeypatch):
    more = ("--batch-size", "2", "--max-steps", "3", "--log-every", "3")
    lines = []
    for every in ("0", "2"):
        main(flags(photos, tmp_path / every, *more, "--val-every", every))
        lines += events(tmp_path / every, "train")
    assert len(lines) == 2 and lines[0]["loss"] == lines[1]["loss"]
    now = SimpleNamespace(perf_counter=lambda: seconds, process_time=lambda: 2 * seconds)
    monkeypatch.setattr(log, "time", now)
    seconds = 10.0
    interval = log.Interval()
    interval.add({"mse": 0.5}, 6, 0.0, True)
    with interval.paused():
        seconds = 100.0
    seconds = 102.0
    values = interval.summary()
    assert values["processor_s"] == 4 and values["images_per_s"] == 3


def test_processes_that_find_other_states_do_not_start(monkeypatch):
    """As on machines that do not share the folder."""
    monkeypatch.setattr(start, "gathered", lambda processes, items: [6, *items])
    found = start.Start("dcae", None, None, "")
    with pytest.raises(UserError, match="--save_path run: .* start at steps 6, 0; name a folder they share"):
        start.require_same_start(found, Path("run"), Processes(1, 2))
    start.require_same_start(start.Start("dcae", None, {"step": 6}, ""), Path("run"), Processes(1, 2))


def test_the_command_to_go_on_is_one_that_is_possible(tmp_path):
    stop, state = StopRequest(), SimpleNamespace(step=3)
    given = ["-d", "my photos", "--checkpoint", "a.pt", "--continue_train", "--local-rank=0"]
    said = train.farewell(state, stop, tmp_path, given, Processes(0, 2))
    command = said.partition("go on with: ")[2]
    assert command == "torchrun --nproc_per_node=2 -- train.py -d 'my photos' --checkpoint a.pt --resume"
    check_flags(parse_arguments(shlex.split(command.partition("train.py ")[2])))


def test_fine_tuning_starts_from_weights_with_fresh_optimizers(trained, photos, tmp_path, capsys):
    for i in range(2):
        write_png(tmp_path / "photos" / f"{i}.png", to_uint8(toy_image(256, 260, seed=i)))
    given = ["-d", str(tmp_path / "photos"), "--save_path", str(tmp_path / "run"), "-n", "0", "--no-tensorboard"]
    given += ["--checkpoint", str(trained / "best.pt"), "--type", "ms-ssim", "--batch-size", "1", "--max-steps", "2"]
    main(given)
    said = capsys.readouterr().err
    assert f"from the weights of {trained}/best.pt, with fresh optimizers" in said and "lambda=8.73" in said
    content, before = checkpoint(tmp_path / "run"), checkpoint(trained, "best.pt")
    assert content["step"] == 2 and all(s["step"] == 2 for s in content["optimizer"]["state"].values())
    assert 0 < float((content["state_dict"]["dt"] - before["state_dict"]["dt"]).abs().max()) < 1e-3
    values = events(tmp_path / "run", "validation")[0]
    assert values["loss"] == pytest.approx(8.73 * (1 - values["ms_ssim_float"]) + values["bpp"], rel=1e-4)


def test_a_score_that_is_no_number_is_never_the_best(photos, tmp_path, monkeypatch):
    losses = iter((math.nan, 3.0, math.nan))
    validate = train.validate
    monkeypatch.setattr(train, "validate", lambda *args: {**validate(*args), "loss": next(losses)})
    main(flags(photos, tmp_path, "--batch-size", "2", "--max-steps", "3", "--val-every", "1"))
    assert checkpoint(tmp_path)["best"] == 3 and checkpoint(tmp_path, "best.pt")["step"] == 2


def test_without_saving_nothing_is_written(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = flags(photos, tmp_path, *TWO_STEPS, "--no-save")
    arguments.remove("--save_path"), arguments.remove(str(tmp_path))
    main(arguments)
    said = capsys.readouterr().err
    assert not list(tmp_path.iterdir()) and "nothing was saved" in said
    in_force = next(line for line in said.splitlines() if line.startswith("settings: "))
    assert all(f" {name}=" in in_force for name in settings(parse_arguments(arguments)))


def test_export_keeps_the_model(trained, tmp_path):
    """In fp16 the exported file is small, loads without a flag, and its tables are those of its rounded weights."""
    export(["--checkpoint", str(trained / "latest.pt"), "--output", str(tmp_path / "small.pt")])
    model, original = load_model(tmp_path / "small.pt"), load_model(trained / "latest.pt")
    for exported, parameter in zip(model.parameters(), original.parameters()):
        assert torch.equal(exported, parameter.half().float())
    assert model.trained_for == original.trained_for == ("mse", 0.013)
    export(["--checkpoint", str(trained / "latest.pt"), "--output", str(tmp_path / "small.safetensors")])
    assert load_model(tmp_path / "small.safetensors").trained_for == ("mse", 0.013)
    tables = model.entropy_bottleneck.tables().cdf
    model.update(force=True)
    assert np.array_equal(model.entropy_bottleneck.tables().cdf, tables)
    assert (tmp_path / "small.pt").stat().st_size < (trained / "latest.pt").stat().st_size / 3


def test_export_as_integers(trained, tmp_path):
    """Smaller than fp16, close to the original, and the file decodes what was written with it."""
    for precision in ("fp16", "int8"):
        output = str(tmp_path / f"{precision}.pt")
        export(["--checkpoint", str(trained / "latest.pt"), "--output", output, "--precision", precision])
    small, original = load_model(tmp_path / "int8.pt"), load_model(trained / "latest.pt")
    for (name, exported), parameter in zip(small.named_parameters(), original.parameters()):
        assert (exported - parameter).abs().max() <= parameter.abs().max() / 100, name
    assert (tmp_path / "int8.pt").stat().st_size < (tmp_path / "fp16.pt").stat().st_size
    x = toy_image(100, 120)
    codec = Codec(small)
    x_hat = Codec(load_model(tmp_path / "int8.pt")).decompress(codec.compress(x))
    assert torch.equal(x_hat, codec.decompress(codec.compress(x)))
    assert fingerprint(small) != fingerprint(original)


def test_all_of_analysis_and_synthesis_gets_ten_bits():
    model = toy_model("dcae-bypass")
    assert {"g_a", "g_s", "bypass_a", "bypass_s"} == set(model.transform_names)
    parts = {name: set(integers) for name, integers in integer_weights(model).items()}
    fine = {name for name in parts if name.partition(".")[0] in model.transform_names}
    assert {"bypass_a.weight", "g_s.0.weight"} <= fine < parts.keys()
    assert all(("low" in held) == (name in fine) for name, held in parts.items())


def test_export_of_a_mean(trained, tmp_path):
    late = checkpoint(trained)
    early = {**late, "state_dict": {name: t + t.is_floating_point() for name, t in late["state_dict"].items()}}
    save_checkpoint(tmp_path / "early.pt", early)
    paths = [str(tmp_path / "early.pt"), str(trained / "latest.pt")]
    output = ["--output", str(tmp_path / "mean.pt"), "--precision", "fp32"]
    export(["--checkpoint", *paths, "--shares", "0.25", "0.75", *output])
    mean, last = load_model(tmp_path / "mean.pt"), load_model(trained / "latest.pt")
    for (name, weight), parameter in zip(mean.named_parameters(), last.parameters()):
        assert torch.allclose(weight, parameter + 0.25, atol=1e-5), name
    for shares in (["1.0"], ["0.25", "0.25"]):
        with pytest.raises(UserError, match="--shares .*one for each --checkpoint, 1 in sum"):
            export(["--checkpoint", *paths, "--shares", *shares, *output])
    with pytest.raises(UserError, match="--precision fp16: gives numbers that are not finite"):
        export(["--checkpoint", *paths, "--shares", "1e9", "-999999999", *output[:2]])
    others = early["model"] | {"name": "dcae-ablation"}, early["flags"] | {"lambda": 0.5}
    for changed in ({"model": others[0]}, {"flags": others[1]}):
        save_checkpoint(tmp_path / "early.pt", early | changed)
        with pytest.raises(UserError, match="latest.pt: of another model or lambda than .*early.pt.*no mean"):
            export(["--checkpoint", *paths, *output])


# ---- the papers' commands ------------------------------------------------------------------------------------------

DCAE = """CUDA_VISIBLE_DEVICES='0' python -u ./train.py -d [path of training dataset] \
    -lr 1e-4 --cuda --epochs 50 --lr_epoch 46 --batch-size 8 \
    --save_path [path for storing the checkpoints] --save \
    --checkpoint [path of the pretrained checkpoint]"""
TCM = """CUDA_VISIBLE_DEVICES='0' python -u ./train.py -d [path of training dataset] \
    --cuda --N 128 --lambda 0.05 --epochs 50 --lr_epoch 45 48 \
    --save_path [path for checkpoint] --save \
    --checkpoint [path of the pretrained checkpoint]"""
ICWEM = """python -u ./train.py -d your_dataset \
    --cuda --N 128 --lambda 0.05 --epochs 400 --lr_epoch 45 48 \
    --save_path train_result --save"""
SMALL = [*RECIPE, "--batch-size", "1", "--max-steps", "1", "--val-every", "0"]


def options(kind: str) -> list[str]:
    """A toy's sizes as words of the command line."""
    sizes = {key: list(v) if isinstance(v, tuple) else v for key, v in TOYS[kind][1].items() if key not in ("N", "M")}
    return [f"{key}={value}" for key, value in sizes.items()]


PUBLISHED = {
    "dcae": (DCAE, "dcae.pth.tar", SMALL),
    "tcm": (TCM, "tcm.pth.tar", ["--N", "8", *SMALL]),
    "icwem": (ICWEM, None, ["--model", "icwem", "--N", "8", "--M", "40", "--model-option", *options("icwem"), *SMALL]),
}  # fmt: skip


@pytest.mark.parametrize("paper", PUBLISHED)
def test_published_commands_run(paper, photos, weights, tmp_path, capsys):
    """As they stand in the papers' READMEs, with flags added that make them small."""
    command, file, more = PUBLISHED[paper]
    places = {"[path of training dataset]": photos, "your_dataset": photos, "train_result": tmp_path / "run"}
    places |= dict.fromkeys(("[path for storing the checkpoints]", "[path for checkpoint]"), tmp_path / "run")
    places["[path of the pretrained checkpoint]"] = weights / str(file)
    for name, path in places.items():
        command = command.replace(name, shlex.quote(str(path)))
    words = shlex.split(command)
    arguments = words[words.index("./train.py") + 1 :]
    args = parse_arguments(arguments)
    check_flags(args)
    assert args.cuda and args.save and args.lr_epoch and args.epochs in (50, 400)
    arguments += more
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--cuda"):
            main(arguments)
        arguments.remove("--cuda")
    main(arguments)
    said = capsys.readouterr().err
    assert checkpoint(tmp_path / "run")["model"]["name"].split("-")[0] == paper
    assert "with fresh optimizers" in said if file else "fresh weights" in said


DOCUMENTATION = (Path(__file__).parent.parent / "docs" / "training.md").read_text().replace("\\\n", "")
DOCUMENTED = [line for line in DOCUMENTATION.splitlines() if re.match(r"(python|torchrun \S+) train.py ", line)]


@pytest.mark.parametrize("command", DOCUMENTED)
def test_documented_commands_are_possible(command):
    check_flags(parse_arguments(shlex.split(command.partition("train.py ")[2])))


def test_documented_scalars_are_logged(trained):
    table = DOCUMENTATION.split("| event `train` |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named | {"event", "step"} == set(events(trained, "train")[0])


# ---- what cannot be done -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--patch-size", "512"), "--patch-size 512"),
        (("--patch-size", "100"), "--patch-size 100: dcae works on multiples of 128"),
        (("--patch-size", "128", "256"), "patches are square"),
        (("--lambda", "0.01", "--variable-rate"), "--variable-rate"),
        (("--type", "ms-ssim"), "--patch-size 128: MS-SSIM"),
        (("--test-batch-size", "8"), "--test-batch-size"),
        (("--model-option", "nonsense=1"), "--model-option nonsense: dcae has nothing of that kind"),
        (("--model-option", "N=8"), "a flag of its own"),
        (("--model-option", "variable_rate=true"), "use --variable-rate"),
        (("--M", "41"), "do not go together"),
        (("--model", "tcm-small"), "tcm-small has nothing of that kind"),
        (("--checkpoint", "/nowhere.pt"), "/nowhere.pt"),
        (("--checkpoint", __file__), "not a checkpoint"),
        (("--checkpoint", "WEIGHTS/tcm.pth.tar"), "holds a tcm"),
        (("--checkpoint", "WEIGHTS/dcae.pth.tar", "--N", "24"), "N = 16, the flags ask for 24"),
        (("--checkpoint", "WEIGHTS/dcae.pth.tar", "--continue_train"), "no training state"),
        (("--continue_train",), "--checkpoint"),
        (("--precision", "fp16"), "--precision fp16"),
        (("--schedule", "cosine", "--lr_epoch", "3"), "--lr_epoch"),
        (("--checkpoint", "WEIGHTS/dcae-variable-rate.pth.tar"), "add --variable-rate"),
        (("--clip_max_norm", "-1"), "--clip_max_norm"),
        (("--clip_max_norm", "nan"), "--clip_max_norm"),
        (("--resume", "--no-save"), "--resume"),
        (("--keep-every", "3", "--no-save"), "--keep-every"),
        (("--no-save",), "--save_path: --no-save"),
        (("--save_path", "PHOTOS/broken.png/run"), "--save_path"),
        (("-d", "/nowhere"), "--dataset /nowhere"),
        (("-d", "EMPTY"), "no images"),
    ],
    ids=lambda value: " ".join(value).replace("/", " ") if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(photos, weights, tmp_path, capsys, more, message):
    places = {"WEIGHTS": str(weights), "PHOTOS": str(photos), "EMPTY": str(tmp_path)}
    for name, path in places.items():
        more = [word.replace(name, path) for word in more]
    with pytest.raises(SystemExit) as left:
        run_program(main, flags(photos, tmp_path / "run", "--max-steps", "1", *more))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(said) == 1 and message in said[0]


def test_a_gpu_that_is_not_there(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--cuda: this machine has no usable CUDA GPU"):
        main(flags(photos, tmp_path, *TWO_STEPS, "--cuda"))


@pytest.mark.parametrize("flag", ["--lr_epochs 3", "--batch-size 0", "--precision fp8", "-lr nan", "--model-option N"])
def test_wrong_flags_leave_with_status_2(flag, photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(flags(photos, tmp_path, *flag.split()))
    assert left.value.code == 2 and flag.split()[0] in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_not_overwritten(trained, photos):
    with pytest.raises(UserError, match="holds a run already; --resume"):
        main(flags(photos, trained, *TWO_STEPS))


def test_twenty_bad_steps_end_the_program(photos, tmp_path, monkeypatch, capsys):
    """Weights that are no numbers. The log of them is JSON all the same."""
    build = start.build
    monkeypatch.setattr(start, "build", lambda *given: spoilt(build(*given)))
    more = ("--batch-size", "1", "--max-steps", "30", "--val-every", "0")
    with pytest.raises(UserError, match="not finite in 20 steps in a row, up to step 20"):
        main(flags(photos, tmp_path / "run", *more))
    assert "not_finite 15" in capsys.readouterr().err
    (tmp_path / "log.jsonl").write_bytes((tmp_path / "run" / "log.jsonl").read_bytes())
    assert len(events(tmp_path, "train")) == 3


def spoilt(model):
    with torch.no_grad():
        model.g_a[0].conv.weight.fill_(math.nan)
    return model


def test_broken_weights_are_refused(trained, photos, tmp_path):
    """Also of a run that would go on; others of it are named."""
    content = checkpoint(trained)
    content["ema"]["trained"]["g_a.0.conv.weight"] *= math.nan
    for name in ("best.pt", "latest.pt"):
        save_checkpoint(tmp_path / name, content if name == "latest.pt" else checkpoint(trained))
    said = "latest.pt: holds numbers .* in g_a.0.conv.weight; .*: --checkpoint .*best.pt --continue_train"
    with pytest.raises(UserError, match=said):
        main(flags(photos, tmp_path, *TWO_STEPS, "--ema", "0.9", "--resume"))
    content["state_dict"]["g_a.0.conv.weight"] *= math.nan
    save_checkpoint(tmp_path / "nan.pt", content)
    with pytest.raises(UserError, match="nan.pt: holds numbers .* in g_a.0.conv.weight"):
        main(flags(photos, tmp_path / "run", *TWO_STEPS, "--checkpoint", str(tmp_path / "nan.pt")))


def test_a_run_without_latest_is_not_started_afresh_over_what_it_left(photos, tmp_path, capsys):
    """Somebody removed latest.pt, or the machine stopped before it was first written."""
    more = ("--batch-size", "2", "--val-every", "0", "--keep-every", "1")
    main(flags(photos, tmp_path, *more, "--max-steps", "1"))
    (tmp_path / "latest.pt").unlink()
    with pytest.raises(UserError, match="holds a run already; --resume"):
        main(flags(photos, tmp_path, *more, "--max-steps", "1"))
    main(flags(photos, tmp_path, *more, "--max-steps", "2", "--resume"))
    said = capsys.readouterr().err
    assert f"there is no latest.pt; going on with {tmp_path}/step_0000001.pt after step 1" in said
    assert said.splitlines()[-2] == (
        "images: 8 done, 0 kept, 1 failed, 1 left out: 1 smaller than 128 pixels (small.png)"
    )


def test_a_damaged_latest_names_what_there_is_to_go_on_with(photos, tmp_path, capsys):
    more = ("--batch-size", "2", "--val-every", "0", "--keep-every", "1")
    main(flags(photos, tmp_path, *more, "--max-steps", "1"))
    data = (tmp_path / "latest.pt").read_bytes()
    for broken in (data[: len(data) // 2], b"", bytes(1000)):
        (tmp_path / "latest.pt").write_bytes(broken)
        with pytest.raises(UserError, match=r"latest.pt: .*--checkpoint .*step_0000001.pt --continue_train$") as raised:
            main(flags(photos, tmp_path, *more, "--max-steps", "2", "--resume"))
    way_out = shlex.split(str(raised.value).rpartition("newest: ")[2])
    main(flags(photos, tmp_path, *more, "--max-steps", "2", *way_out))
    assert checkpoint(tmp_path)["step"] == 2


# ---- what is said, and goes on -------------------------------------------------------------------------------------


def test_another_batch_size_keeps_the_progress_in_images(photos, tmp_path, capsys):
    """7 images, 4 epochs: 8 images in steps of one, the other 20 in steps of 4, and the rate falls after 3 epochs."""
    more = ("--val-every", "0", "--log-every", "1", "--epochs", "4", "--lr_epoch", "3")
    main(flags(photos, tmp_path, *more, "--batch-size", "1", "--max-steps", "8"))
    capsys.readouterr()
    main(flags(photos, tmp_path, *more, "--batch-size", "2", "--accumulate", "2", "--resume"))
    said = capsys.readouterr().err
    assert "batch_size was 1 and is 2; accumulate was 1 and is 2" in said
    assert "; 8 images seen, 5 steps of 4 are left" in said and "finished at step 13" in said
    content = checkpoint(tmp_path)
    assert content["step"] == 13 and content["seen"] == 28
    rates = [event["rate"] for event in events(tmp_path, "train")]
    assert rates == [1e-4] * (8 + 3) + [pytest.approx(1e-5)] * 2  # step 12 begins after 20 images, step 13 after 24


def test_after_another_batch_size_a_run_is_resumed_bit_for_bit(photos, tmp_path, monkeypatch):
    first = ("--val-every", "0", "--epochs", "2", "--batch-size", "1", "--max-steps", "3", "--schedule", "cosine")
    then = ("--val-every", "0", "--epochs", "2", "--batch-size", "2", "--schedule", "cosine", "--resume")
    for name in ("whole", "parts"):
        main(flags(photos, tmp_path / name, *first))
    main(flags(photos, tmp_path / "whole", *then))
    step, signals = train.train_step, [5]

    def step_and_signal(state, *rest):
        if state.step in signals:
            signal.raise_signal(signal.SIGINT)
            signals.clear()
        return step(state, *rest)

    monkeypatch.setattr(train, "train_step", step_and_signal)
    main(flags(photos, tmp_path / "parts", *then))
    assert checkpoint(tmp_path / "parts")["step"] == 7  # the step after the signal is the last
    main(flags(photos, tmp_path / "parts", *then))
    one, other = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert one["step"] == other["step"] == 9 and one["seen"] == other["seen"] == 15  # 3 + 6 * 2: two epochs, rounded up
    assert equal(one["state_dict"], other["state_dict"])


def test_fewer_processes_keep_the_progress_too(photos, tmp_path, capsys):
    """As another batch size; a checkpoint from before images were counted says how many there were."""
    more = ("--val-every", "0", "--epochs", "2", "--batch-size", "1")
    main(flags(photos, tmp_path, *more, "--max-steps", "3"))
    content = checkpoint(tmp_path)
    del content["seen"]
    content["flags"]["processes"] = 2
    save_checkpoint(tmp_path / "latest.pt", content)
    capsys.readouterr()
    main(flags(photos, tmp_path, *more, "--resume"))
    said = capsys.readouterr().err
    assert "; processes was 2 and is 1" in said and "; 6 images seen, 8 steps of 1 are left" in said
    assert "finished at step 11" in said


def test_validation_without_a_number_is_said_and_ends(tmp_path, capsys):
    """Not as a run that was stopped, which a queue would start again and again."""
    write_photos(tmp_path / "photos" / "train")
    (tmp_path / "photos" / "test").mkdir()
    (tmp_path / "photos" / "test" / "v.png").write_bytes((tmp_path / "photos" / "train" / "0.png").read_bytes()[:999])
    main(flags(tmp_path / "photos", tmp_path / "run", "--batch-size", "2", "--max-steps", "2", "--val-every", "1"))
    said = capsys.readouterr().err
    assert said.count("validation leaves out 1 of 1 images: ") == 1 and "v.png (" in said
    assert [f"validation at step {n}:   not one image gives a number" in said for n in (1, 2)] == [True, True]
    assert said.endswith("finished at step 2; " + str(tmp_path / "run/latest.pt") +
                         " and no best.pt: no validation image gave a number\n")  # fmt: skip
    assert [event["left_out"] for event in events(tmp_path / "run", "validation")] == [1, 1]
    assert checkpoint(tmp_path / "run")["validated"] == 2 and not (tmp_path / "run" / "best.pt").exists()


def test_a_best_checkpoint_that_was_taken_away_is_said(photos, tmp_path, capsys):
    main(flags(photos, tmp_path, "--max-steps", "1"))
    content = checkpoint(tmp_path)
    content["best"] = 1e-3  # which nothing will beat
    save_checkpoint(tmp_path / "latest.pt", content)
    (tmp_path / "best.pt").unlink()
    main(flags(photos, tmp_path, "--max-steps", "2", "--resume"))
    assert capsys.readouterr().err.endswith(
        "latest.pt and no best.pt: it was taken away, and no validation loss since is below its 0.0010\n"
    )


def test_images_that_are_too_small_for_ms_ssim_are_named(tmp_path, capsys):
    for i in range(2):
        write_png(tmp_path / "photos/train" / f"{i}.png", to_uint8(toy_image(256, 260, seed=i)))
        write_png(tmp_path / "photos/test" / f"{i}.png", to_uint8(toy_image(256 - 100 * i, 256, seed=i)))
    more = ("--type", "ms-ssim", "--patch-size", "256", "--batch-size", "1", "--max-steps", "1")
    main(flags(tmp_path / "photos", tmp_path / "run", *more))
    said = capsys.readouterr().err
    assert "leaves out 1 of 2 images: " in said and "1.png (smaller than 161 pixels, so without MS-SSIM)" in said
    (event,) = events(tmp_path / "run", "validation")
    assert event["images"] == 1 and event["left_out"] == 1


class FullDisk:
    """A place for `open` and `save_checkpoint`: no room from the second call on."""

    def __init__(self, action) -> None:
        self.action, self.calls = action, 0

    def __call__(self, *given, **options):
        self.calls += 1
        if self.calls > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.action(*given, **options)


def test_a_full_disk_under_the_log_ends_the_log_alone(photos, tmp_path, monkeypatch, capsys):
    write = log.LineFile.write
    full = FullDisk(lambda file, line: write(file, line))
    monkeypatch.setattr(log.LineFile, "write", lambda file, line: full(file, line))
    main(flags(photos, tmp_path, *TWO_STEPS, "--log-every", "1"))
    said = capsys.readouterr().err
    assert said.count("note: log.jsonl cannot be written (No space left on device) and ends here; the run goes") == 1
    assert checkpoint(tmp_path)["step"] == 2 and full.calls == 2
    assert [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == ["start"]


def test_a_line_without_room_leaves_no_half(tmp_path):
    file = log.LineFile(tmp_path / "log.jsonl", 0, 0)
    file.write('{"step": 0}')
    before, limit = (tmp_path / "log.jsonl").read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 4, limit[1]))
    try:
        with pytest.raises(OSError):
            file.write('{"step": 1}')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_full_disk_under_tensorboard_ends_it_alone(photos, tmp_path, monkeypatch, capsys):
    """Its own thread writes: no traceback from there either."""
    from tensorboard.summary.writer import record_writer

    monkeypatch.setattr(record_writer.RecordWriter, "write", FullDisk(lambda *_: None))
    main(flags(photos, tmp_path, "--batch-size", "2", "--max-steps", "4", "--val-every", "0", "--log-every", "1",
               "--tensorboard"))  # fmt: skip
    said = capsys.readouterr().err
    assert said.count("note: tensorboard cannot be written (No space left on device)") == 1 and "Traceback" not in said
    assert checkpoint(tmp_path)["step"] == 4 and len(events(tmp_path, "train")) == 4


def test_a_checkpoint_that_cannot_be_written_ends_no_run_before_its_end(photos, tmp_path, monkeypatch, capsys):
    save = train.save_checkpoint
    full = [1, 2]

    def save_where_there_is_room(path, content):
        if content["step"] in full:
            raise UserError(f"{path}: cannot be written (No space left on device)")
        save(path, content)

    monkeypatch.setattr(train, "save_checkpoint", save_where_there_is_room)
    more = ("--batch-size", "2", "--max-steps", "3", "--val-every", "1", "--save-every", "1")
    main(flags(photos, tmp_path, *more))
    said = capsys.readouterr().err
    assert said.count("error: ") == 4 and "the run goes on, latest.pt is as it was before step 1" in said
    assert checkpoint(tmp_path)["step"] == checkpoint(tmp_path, "best.pt")["step"] == 3
    full.append(4)
    with pytest.raises(UserError, match="latest.pt: cannot be written"):
        main(flags(photos, tmp_path, *more[:2], "--max-steps", "4", "--val-every", "0", "--resume"))


def test_a_terminal_that_was_closed_ends_no_run(photos, tmp_path, monkeypatch):
    closed = io.StringIO()
    closed.write = lambda _: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    monkeypatch.setattr("sys.stderr", closed)
    main(flags(photos, tmp_path, *TWO_STEPS))
    assert checkpoint(tmp_path)["step"] == 2


def test_a_folder_in_which_a_run_is_at_work_is_refused(photos, tmp_path):
    command = "from pathlib import Path\nimport sys\nfrom utils.training.run_folder import owned\n"
    command += "with owned(Path(sys.argv[1])):\n    print('owned', flush=True)\n    sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"owned\n"
    with pytest.raises(UserError, match=f"--save_path {tmp_path}: process {other.pid} on "):
        main(flags(photos, tmp_path, *TWO_STEPS, "--resume"))
    other.communicate()
    main(flags(photos, tmp_path, *TWO_STEPS, "--resume"))
    assert not (tmp_path / ".lock").exists()
