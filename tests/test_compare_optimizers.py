"""What is printed trains, what was trained is plotted, and the costs are those of the optimizer that is there."""

from __future__ import annotations

import json
import shlex

import pytest
import torch

from scripts.compare_optimizers import main
from tests.toys import toy_model
from utils.cli import UserError
from utils.training.flags import parse_arguments, requested_options, settings
from utils.training.optimization import make_optimizers
from utils.training.optimizer_cost import soap_cost


def test_the_runs_differ_in_their_optimizer_alone(capsys):
    main(["commands", "--data", "my photos", "--steps", "3000", "2000", "--precision", "bf16"])
    lines = capsys.readouterr().out.splitlines()
    runs = [parse_arguments(shlex.split(line.removeprefix("python train.py "))) for line in lines]
    for args in runs:
        requested_options(args, "dcae")
    both = [settings(args) for args in runs]
    differing = {key for key in both[0] if both[0][key] != both[1][key]}
    assert differing == {"optimizer", "learning_rate", "max_steps", "val_every", "save_path"}
    assert [(args.max_steps, args.val_every, args.precision) for args in runs] == [
        (3000, 250, "bf16"),
        (2000, 166, "bf16"),
    ]


def write_log(folder, losses) -> None:
    folder.mkdir()
    lines = []
    for i, loss in enumerate(losses, 1):
        lines.append({"event": "train", "step": 10 * i, "loss": 1.0, "processor_s": 2.5})
        lines.append({"event": "validation", "step": 10 * i, "loss": loss})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_losses_over_processor_seconds(tmp_path, capsys):
    write_log(tmp_path / "a", [2.0, 1.5, None]), write_log(tmp_path / "b", [1.9])
    flags = ["plot", f"Adam={tmp_path}/a", f"SOAP={tmp_path}/b"]
    main([*flags, "--json", "--output", str(tmp_path / "loss.png")])
    text = capsys.readouterr().out
    assert json.loads(text)["Adam"] == [
        {"step": 10, "seconds": 2.5, "loss": 2.0},
        {"step": 20, "seconds": 5.0, "loss": 1.5},
    ]
    assert (tmp_path / "loss.png").stat().st_size > 1000
    (tmp_path / "numbers.json").write_text(text)
    main(["plot", str(tmp_path / "numbers.json")])
    again = capsys.readouterr().out
    main(flags)
    assert capsys.readouterr().out == again and "1.9000" in again


@pytest.mark.parametrize(
    "reference, message",
    [("runs/a", "give NAME=DIR"), ("A=nowhere", "cannot be read"), ("none.json", "cannot be read")],
)
def test_what_cannot_be_plotted_is_one_line(reference, message):
    with pytest.raises(UserError, match=message):
        main(["plot", reference])


def test_a_log_without_validation_is_named(tmp_path):
    write_log(tmp_path / "a", [])
    write_log(tmp_path / "b", [None])
    for name in "ab":
        with pytest.raises(UserError, match="holds no validation"):
            main(["plot", f"A={tmp_path}/{name}"])


def test_the_counted_state_is_the_state():
    """Bytes after a step, of the tensors that the optimizer keeps."""
    model = toy_model("dcae").train()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer = make_optimizers(model, 1e-3, 1e-3, "soap")[0]
    optimizer.step()
    kept = 0
    for state in optimizer.state.values():
        tensors = [state["exp_avg"], state["exp_avg_sq"], *state.get("statistics", []), *state.get("bases", [])]
        kept += sum(t.numel() * t.element_size() for t in tensors if t is not None)
    cost = soap_cost(model)
    assert cost.soap_bytes == kept > cost.adam_bytes
    assert cost.parameters == sum(p.numel() for n, p in model.named_parameters() if not n.endswith("quantiles"))


def test_the_published_dcae_costs_little_more(capsys):
    main(["count", "--model", "dcae"])
    said = capsys.readouterr().out
    assert "119.4 M parameters" in said and "Adam 0.89 GiB, of SOAP 1.00 GiB" in said and "SOAP adds 1.7%" in said
