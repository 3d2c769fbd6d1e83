"""What test files share, and which tests run: few machines have a browser that a program can drive."""

import os

import pytest
import torch

from tests.toys import TOYS, graded_model, toy_model
from utils.codec.checkpoint import save_checkpoint

os.environ.setdefault("OMP_NUM_THREADS", "1")  # toys are too small for threads to pay; for the programs that tests run
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(config, items):
    """Leave out tests marked "browser" unless -m names them or a test file is named on the command line."""
    if "browser" in config.option.markexpr:
        return
    named = [argument.split("::")[0].rsplit("/")[-1] for argument in config.args]
    out = [item for item in items if item.get_closest_marker("browser") and item.path.name not in named]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory):
    """A checkpoint of the toy model of variable rate."""
    return saved(toy_model("dcae-variable-rate"), tmp_path_factory)


@pytest.fixture(scope="session")
def graded_checkpoint(tmp_path_factory):
    """A checkpoint of the toy whose rates grow with quality."""
    return saved(graded_model(), tmp_path_factory)


def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.pt"
    recorded = {"name": TOYS["dcae-variable-rate"][0], "config": model.config}
    save_checkpoint(path, {"format": 1, "model": recorded, "state_dict": model.state_dict()})
    return path
