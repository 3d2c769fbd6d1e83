"""What holds for every model, at toy width."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import MODELS, build_model
from models.coders import EncodingCoder, EstimatingCoder
from tests.toys import TOYS, toy_hyper, toy_image, toy_model
from utils.codec.codec import Codec, fingerprint
from utils.data.padding import pad_centred
from utils.entropy_coding.rans import DesynchronisedError, Encoder
from utils.inference.float64 import portable

SIZES = [(1, 1), (1, 300), (128, 128), (129, 127)]
MORE_SIZES = [(17, 64), (200, 312), (256, 128)]  # of one model, as padding is everybody's


def quality_of(model):
    return 37.5 if model.variable_rate else None


@pytest.fixture(scope="module", params=TOYS)
def model(request):
    return toy_model(request.param)


@pytest.fixture(scope="module")
def codecs(model):
    return [Codec(model, arithmetic) for arithmetic in ("fp32", "fp64")]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decode_of_encode_equals_the_quantised_forward(model, codecs, size):
    check_there_and_back(model, codecs, size)


def check_there_and_back(model, codecs, size):
    x, quality = toy_image(*size), quality_of(model)
    out = model.compress(x, quality)
    back = model.decompress(out["strings"], out["shape"], size, quality)
    assert back["checks"] == out["checks"]
    with torch.no_grad():
        assert torch.equal(back["x_hat"], model(x, quality)["x_hat"].clamp(0, 1))
    for codec in codecs:
        assert codec.decompress(codec.compress(x, quality)).shape == x.shape


@pytest.mark.parametrize("size", MORE_SIZES, ids=str)
def test_more_sizes(size):
    model = toy_model("dcae-variable-rate")
    check_there_and_back(model, [Codec(model, arithmetic) for arithmetic in ("fp32", "fp64")], size)


def test_batches(model):
    """One string an image; every image of a batch comes back, also when decoded on its own."""
    x, path = pad_centred(toy_image(70, 150, batch=3), 128), portable(model)
    y = model.to_latent(x, quality_of(model)).detach()
    out = model.compress_latent(y, path)
    assert [len(group) for group in out["strings"]] == [3, 3]
    together, checks = model.decompress_latent(out["strings"], out["shape"], path)
    assert checks == out["checks"]
    for i in range(3):
        strings = [[group[i]] for group in out["strings"]]
        alone, check = model.decompress_latent(strings, out["shape"], path)
        assert check == [checks[i]]
        assert torch.allclose(alone[0], together[i], atol=1e-5)


class SamplingCoder(EncodingCoder):
    """Encodes latents drawn from the very distribution that the model states, and adds up their information."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.bits = 0.0

    def __call__(self, y, mean, scale):
        y = mean + scale.clamp(min=0.11) * torch.randn_like(scale)
        likelihood = self.gaussian._likelihood(torch.round(y - mean), scale).clamp(min=1e-9)
        self.bits -= likelihood.log2().sum().item()
        return super().__call__(y, mean, scale)


def test_real_bits_are_the_estimated_bits(model):
    torch.manual_seed(0)
    encoder = Encoder()
    coder = SamplingCoder(model.gaussian_conditional, [encoder])
    with torch.no_grad():
        model.code_slices(toy_hyper(model, 8), torch.zeros(1, model.M, 32, 32), coder)
    # A scale is rounded up to one of 64 levels, and a string ends in 64 bits.
    assert 8 * len(encoder.finish()) == pytest.approx(coder.bits, rel=0.005, abs=64)


def test_a_slice_reads_nothing_of_itself_and_later_ones(model):
    """Changing slice i of y leaves means and scales of slices 0..i as they were, and changes a later one.

    Where a slice is coded in several passes, the first of them is looked at.
    """
    y, z_hat = torch.randn(1, model.M, 8, 8) * 4, toy_hyper(model, 2)
    with torch.no_grad():
        before = EstimatingCoder(model.gaussian_conditional)
        model.code_slices(z_hat, y, before)
        passes = len(before.means) // model.slices
        for i in range(model.slices):
            changed, after = y.clone(), EstimatingCoder(model.gaussian_conditional)
            changed.split(model.slice_sizes, 1)[i].add_(5)
            model.code_slices(z_hat, changed, after)
            for j in range(model.slices):
                first = j * passes
                pairs = ((before.means, after.means), (before.scales, after.scales))
                assert all(torch.equal(old[first], new[first]) for old, new in pairs) == (j <= i)


def test_gradients_reach_every_parameter(model):
    model = toy_model("dcae") if model.model_name == "dcae" and not model.variable_rate else model
    model.train()
    out = model(toy_image(128, 128), quality=quality_of(model))
    rate = sum(-torch.log2(value).mean() for value in out["likelihoods"].values())
    (rate + out["x_hat"].pow(2).mean() + model.aux_loss()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    model.zero_grad(set_to_none=True)
    model.eval()
    assert without == []


def test_a_wrong_string_is_an_error(model):
    x, quality = toy_image(128, 128), quality_of(model)
    out = model.compress(x, quality)
    broken = bytearray(out["strings"][0][0])
    broken[len(broken) // 2] ^= 0x10
    with pytest.raises(DesynchronisedError):
        model.decompress([[bytes(broken)], out["strings"][1]], out["shape"], None, quality)


def test_fingerprint_follows_the_weights():
    model, same, other = toy_model("dcae"), toy_model("dcae"), toy_model("dcae", salt="other")
    assert fingerprint(model) == fingerprint(same) != fingerprint(other)
    assert len(fingerprint(model)) == 4


def test_quality_changes_the_rate_smoothly():
    model, x = toy_model("dcae-variable-rate"), toy_image(128, 256)
    with torch.no_grad():
        model.gain.log_gain += torch.linspace(-1, 1, 6)[:, None]
    sizes = [len(model.compress(x, q)["strings"][0][0]) for q in (1, 20, 33.3, 50.5, 75, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    with pytest.raises(ValueError, match="1..100"):
        model.compress(x, 0.5)
    with pytest.raises(ValueError, match="needs a quality"):
        model.compress(x)
    with pytest.raises(ValueError, match="one quality"):
        toy_model("dcae").compress(x, 50)


def test_tables_do_not_depend_on_threads():
    model, threads = toy_model("dcae"), torch.get_num_threads()
    tables = [model.entropy_bottleneck.tables().cdf.copy()]
    torch.set_num_threads(3 - min(threads, 2))
    model.update(force=True)
    torch.set_num_threads(threads)
    assert np.array_equal(tables[0], model.entropy_bottleneck.tables().cdf)


def test_unknown_names_and_options():
    assert set(MODELS) >= {"dcae", "dcae-ablation", "tcm-small", "tcm-middle", "tcm-large", "icwem"}
    with pytest.raises(ValueError, match="unknown model"):
        build_model("nosuch")
    with pytest.raises(TypeError):
        build_model("dcae", no_such_option=1)
