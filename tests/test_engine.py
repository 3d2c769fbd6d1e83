"""The engine: a quick copy computes what the model computes, whatever the model is made of."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from models import build_model
from models.base import SliceCompressionModel
from models.layers.attention import ConvolutionalGLU, ResidualScale, ScaledSwinLayer, SwinStage, WindowAttention
from models.layers.convolution import Down, ExactConvolution, ResidualBottleneck
from models.layers.dictionary import DictionaryCrossAttention, MultiScaleAggregation
from tests.toys import TOYS, toy_image, toy_model, writer
from utils.cli import UserError
from utils.codec.codec import Codec
from utils.data.padding import pad_centred
from utils.inference import float64, winograd
from utils.inference.blocks import FastBottleneck, FastDown
from utils.inference.engine import Engine
from utils.inference.fast import BLOCKS, CONVOLUTIONS, fast, quicken, uncut
from utils.inference.float64 import MATRICES, MatrixConvolution, MatrixDeconvolution, portable
from utils.inference.rows import (
    Striped,
    StripedConvolution,
    StripedDeconvolution,
    by_rows,
    cut,
    own,
    stripes_of,
    to_map,
    tokens_of,
)
from utils.inference.slices import WRITTEN
from utils.inference.swin import FastSwinLayer, FastSwinStage
from utils.inference.threads import in_threads
from utils.inference.written import code_of, digest

THIN = 3000  # bytes: a row or a few
ROOT = Path(__file__).parents[1]


def quality_of(model: SliceCompressionModel) -> float | None:
    return 37.5 if model.variable_rate else None


def quick_layer(layer: nn.Module, convolutions=CONVOLUTIONS) -> nn.Module:
    """A copy of a layer with the faster class, if one fits."""
    holder = nn.Sequential(copy.deepcopy(layer)).eval().requires_grad_(False)
    quicken(holder, convolutions)
    return holder[0]


# ---- the model itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOYS)
def test_gradients_change_nothing_and_every_layer_is_called(kind):
    model, x, called = toy_model(kind), toy_image(128, 128), set()
    leaves = {name: m for name, m in model.named_modules() if not list(m.children()) and list(m.parameters(False))}
    leaves.pop("gain", None)  # its two methods are called, not itself
    hooks = [m.register_forward_hook(lambda m, i, o, name=name: called.add(name)) for name, m in leaves.items()]
    with torch.no_grad():
        expected = model(x, quality_of(model))
    out = model(x, quality_of(model))
    for hook in hooks:
        hook.remove()
    assert out["x_hat"].requires_grad and torch.allclose(out["x_hat"], expected["x_hat"], atol=1e-4)
    assert {name for name in leaves if "entropy_bottleneck" not in name} <= called


WITHOUT_ENGINE = """
import sys
sys.modules["utils.inference"] = None
import torch
from tests.toys import toy_image, toy_model
from utils.training.losses import rate_distortion
for kind in ("dcae-variable-rate", "tcm", "icwem", "elic-dictionary", "global-tokens"):
    model, x = toy_model(kind), toy_image(128, 128)
    quality = 50.0 if model.variable_rate else None
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-4)
    out = model(x, quality)
    rate_distortion(out, x, torch.tensor([0.01]), "mse", model.slice_sizes)["loss"].backward()
    optimizer.step()
    model.eval().update(force=True)
    coded = model.compress(x, quality)
    decoded = model.decompress(coded["strings"], coded["shape"], x.shape[-2:], quality)
    assert decoded["checks"] == coded["checks"]
    with torch.no_grad():
        assert torch.allclose(decoded["x_hat"], model(x, quality)["x_hat"].clamp(0, 1), atol=1e-5)
"""


def test_models_work_without_the_engine():
    """They train, evaluate and code: nothing that models or losses need is in utils/inference."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT_ENGINE], cwd=ROOT, check=True)


@pytest.mark.parametrize("kind", TOYS)
def test_plain_models_in_float64_decode_the_files_of_the_past(kind, monkeypatch):
    from utils.entropy_coding.check import SymbolCheck

    model, digest, add = writer(kind), hashlib.sha256(), SymbolCheck.add
    monkeypatch.setattr(
        SymbolCheck, "add", lambda s, symbols: (digest.update(symbols.astype("<i4").tobytes()), add(s, symbols))
    )
    codec = Codec(model)
    codec._paths["fp64"] = copy.deepcopy(model).double()
    codec.symbols(codec.open((ROOT / f"tests/portable/{kind}.bin").read_bytes()))
    assert digest.hexdigest() == (ROOT / f"tests/portable/{kind}.sha256").read_text().strip()


# ---- quick copies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stripe", [THIN, None])
@pytest.mark.parametrize("kind", TOYS)
def test_quick_models_are_plain_models(kind, stripe):
    model, x = toy_model(kind), pad_centred(toy_image(100, 150), 128)
    quick, path, quality = fast(model), portable(model), quality_of(model)
    with torch.no_grad(), stripes_of(stripe):
        expected, out = model(x, quality), quick(x, quality)
        assert torch.allclose(out["x_hat"], expected["x_hat"], atol=2e-4)
        for name in ("means", "scales", "y"):
            assert torch.allclose(out["para"][name], expected["para"][name], atol=2e-4), name
        y = model.to_latent(x, quality)
        exact = model.compress_latent(y, copy.deepcopy(model).double())
        assert model.compress_latent(y, path)["strings"] == exact["strings"]


@pytest.mark.parametrize("stripe", [THIN, None])
@pytest.mark.parametrize("kind", TOYS)
def test_quick_bfloat16_is_plain_bfloat16(kind, stripe):
    """As near to the plain model under autocast as that is to float32; and the model keeps its weights."""
    model, x = toy_model(kind), toy_image(128, 128)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    engine = Engine(model, precision="bf16")
    with torch.no_grad(), stripes_of(stripe):
        exact = model.analysis(x)
        with torch.autocast("cpu", torch.bfloat16):
            plain = model.analysis(x).float()
        quick = engine.quick.analysis(x)
        spread = (plain - exact).abs().max()
        assert quick.dtype == torch.float32 and 0 < (quick - exact).abs().max() < 3 * spread
        y_hat = torch.round(exact)
        image, narrow = model.synthesis(y_hat), engine.quick.synthesis(y_hat)
        assert 0 < (image - narrow).abs().max() < 0.1
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_of_dcae_has_faster_classes():
    quick = fast(toy_model("dcae"))
    assert not [
        name
        for part in ("g_a", "g_s", "h_a", "h_z_s1", "dt_cross_attention", "lrp_transforms")
        for name, _ in uncut(getattr(quick, part), part)
    ]
    assert isinstance(quick.g_a[1], FastSwinStage) and isinstance(quick.g_a[0], FastDown)


@pytest.mark.parametrize("stripe", [THIN, None])
@pytest.mark.parametrize("kind", TOYS)
def test_quick_layers_leave_what_they_are_given_as_it_is(kind, stripe):
    """Somebody may keep the output of any layer of a transform."""
    quick, y_hat = fast(toy_model(kind)), torch.randn(1, toy_model(kind).M, 8, 8)
    with torch.no_grad(), stripes_of(stripe):
        for transform, x in ((quick.g_a, toy_image(128, 128)), (quick.g_s, y_hat)):
            for layer in transform:
                before = x.clone()
                after = layer(x)
                assert torch.equal(x, before), type(layer).__name__
                x = after


def test_copies_share_the_weights():
    model = toy_model("dcae")
    quick = fast(model)
    assert {id(p) for p in quick.parameters()} == {id(p) for p in model.parameters()}
    assert type(model.g_a[1]) is SwinStage and not any(isinstance(m, Striped) for m in model.modules())


# ---- known classes that are not what they were -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in (*BLOCKS, *CONVOLUTIONS) if kind.written], ids=lambda k: k.__name__)
def test_known_classes_are_as_they_were(kind):
    now = digest(*kind.replaced())
    assert now == kind.written, f"{kind.plain.__name__} has changed: let {kind.__name__} follow, then written = {now!r}"


def test_every_faster_class_of_ours_records_what_it_replaces():
    ours = [kind for kind in (*BLOCKS, *CONVOLUTIONS, *MATRICES) if kind.plain.__module__.startswith("models.")]
    assert ours and all(kind.written for kind in ours)
    assert digest(SliceCompressionModel.code_slice, SliceCompressionModel.latent_residual) == WRITTEN


def test_comments_and_docstrings_are_no_change():
    one = 'def f(x):\n    """What it does."""\n    return g(x, 1)  # once\n'
    other = "    def f(x):\n        # more\n        return g(\n            x, 1)\n"
    assert code_of(one) == code_of(other) != code_of(one.replace("1", "2"))


EDITS = {
    Down: lambda self, x: self.res3(self.res2(self.res1(self.conv(x)))) + self.conv(x),
    ScaledSwinLayer: lambda self, x: x + 2 * attention_map(self, x),
    ConvolutionalGLU: lambda self, x: self.fc2(self.fc1(x).chunk(2, -1)[1]),
    ResidualScale: lambda self, x, branch: self.scale * x - branch,
    MultiScaleAggregation: lambda self, x: self.dense(self.s(x)),
}


def attention_map(layer, x):
    return layer.msa(layer.ln1(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", EDITS, ids=lambda kind: kind.__name__)
def test_an_edit_of_a_known_class_is_not_lost(kind, monkeypatch):
    """A researcher changes a forward pass where it stands: the quick copy computes it as it is now."""
    model, x = toy_model("dcae"), toy_image(128, 128)
    with torch.no_grad():
        before = model(x)
        monkeypatch.setattr(kind, "forward", EDITS[kind])
        expected, out = model(x), fast(model)(x)
        assert torch.allclose(out["x_hat"], expected["x_hat"], atol=2e-4)
        assert torch.allclose(out["para"]["means"], expected["para"]["means"], atol=2e-4)
        assert not torch.allclose(expected["para"]["means"], before["para"]["means"], atol=2e-4)
        exact = model.compress_latent(model.to_latent(x), copy.deepcopy(model).double())
        assert model.compress_latent(model.to_latent(x), portable(model))["strings"] == exact["strings"]


def test_an_edit_of_how_a_slice_is_coded_is_not_lost(monkeypatch):
    residual = SliceCompressionModel.latent_residual
    monkeypatch.setattr(SliceCompressionModel, "latent_residual", lambda *given: 0.5 * residual(*given))
    assert "code_slice" not in vars(fast(toy_model("dcae")))


def test_skipped_branches_are_no_matter_of_inference():
    """drop_path trains other branches each time, and is nothing in eval mode: the quick class takes its place."""
    torch.manual_seed(0)
    model, x = build_model("dcae", **TOYS["dcae"][1], drop_path=0.5), toy_image(128, 128, batch=2)
    ys = [model.train().analysis(x) for _ in range(2)]
    assert not torch.equal(*ys)
    with torch.no_grad():
        quick = fast(model)
        assert type(quick.g_a[1].layers[0]) is FastSwinLayer
        assert torch.allclose(quick.analysis(x), model.eval().analysis(x), atol=1e-4)


def test_wider_kernels_are_left_alone():
    unit = ConvolutionalGLU(8)
    unit.dwconv.dwconv = nn.Conv2d(16, 16, 5, padding=2, groups=16)
    block = ResidualBottleneck(8, 8)
    block.conv1 = nn.Conv2d(8, 4, 1, padding=1)
    block.conv2 = nn.Conv2d(4, 4, 3, padding=0)
    assert type(quick_layer(unit)) is ConvolutionalGLU and type(quick_layer(block)) is ResidualBottleneck
    x, layer = torch.randn(1, 8, 12, 9), nn.Conv2d(8, 4, 1, padding=1)
    with torch.no_grad():
        assert torch.allclose(quick_layer(layer)(x), layer(x), atol=1e-5)


def test_exact_convolutions_stay_exact_in_bfloat16():
    """Also one that the engine leaves as it is."""
    model = toy_model("dcae")
    model.g_a[0].conv.register_forward_hook(lambda module, inputs, out: out)
    quick = Codec(model, precision="bf16").quick
    assert type(quick.g_a[0].conv) is ExactConvolution and quick.g_a[0].conv.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="precision 'bfloat16' is none of fp32, bf16"):
        Codec(model, precision="bfloat16")


# ---- what the engine does not know -------------------------------------------------------------------------------


class Doubled(ScaledSwinLayer):
    """Somebody's variant of a known block."""

    def forward(self, x):
        return 2 * super().forward(x)


class Keeper(nn.Module):
    """A block that keeps what it returns."""

    def forward(self, x):
        self.kept = x
        return x


def with_second_dictionary(model):
    class Second(type(model)):
        def slice_support(self, i, scales, means, decoded):
            query = torch.cat([scales, means, *decoded], 1)
            answer = self.dt_cross_attention[i](query, self.dt) + self.dt_cross_attention[i](query, self.dt2)
            support = torch.cat([query, answer], 1)
            return support, support

    model = copy.deepcopy(model)
    model.dt2 = nn.Parameter(model.dt.flip(0) * 2)
    model.__class__ = Second
    return model


def with_long_skip(model):
    class Skip(type(model.g_a[0])):
        def forward(self, x):
            y = self.conv(x)
            return self.res3(self.res2(self.res1(y))) + y

    model = copy.deepcopy(model)
    model.g_a[2].__class__ = Skip
    return model


def with_own_layer(model):
    model = copy.deepcopy(model)
    model.g_a[5].layers[0].__class__ = Doubled
    return model


def with_own_part(model):
    class Half(WindowAttention):
        def forward(self, x):
            return 0.5 * super().forward(x)

    model = copy.deepcopy(model)
    model.g_a[5].layers[1].msa.__class__ = Half
    model.g_s[1].layers[0] = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
    return model


def with_another_activation(model):
    model = copy.deepcopy(model)
    for network in model.cc_scale_transforms:
        network[1] = nn.SiLU()
    return model


def with_hooks(model):
    model = copy.deepcopy(model)
    model.g_a[0].res1.conv2.register_forward_hook(lambda module, inputs, out: out + 1)
    model.g_a[5].layers[0].mlp.fc1.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return model


CHANGES = (with_second_dictionary, with_long_skip, with_own_layer, with_own_part, with_another_activation, with_hooks)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_that_a_researcher_makes_hold_in_every_arithmetic(change):
    """What is trained is what is coded."""
    original, x = toy_model("dcae"), toy_image(128, 200)
    model = change(original).eval()
    padded = pad_centred(x, 128)
    with torch.no_grad(), stripes_of(THIN):
        expected, before = model(padded), original(padded)
        out = fast(model)(padded)
        assert torch.allclose(out["x_hat"], expected["x_hat"], atol=2e-4)
        for name in ("means", "scales", "y"):
            assert torch.allclose(out["para"][name], expected["para"][name], atol=2e-4), name
        assert any(
            not torch.allclose(expected["para"][name], before["para"][name], atol=2e-4) for name in before["para"]
        )
        y = model.to_latent(padded)
        exact = model.compress_latent(y, copy.deepcopy(model).double())
        assert model.compress_latent(y, portable(model))["strings"] == exact["strings"]
    for arithmetic, precision in (("fp32", "fp32"), ("fp64", "bf16")):
        codec = Codec(model, arithmetic, precision=precision)
        assert codec.decompress(codec.compress(x)).shape == x.shape


def test_what_a_block_keeps_is_not_overwritten():
    model, x = copy.deepcopy(toy_model("dcae")), toy_image(128, 128)
    model.g_a[0].res2, model.g_a[5].layers[0] = Keeper(), Keeper()
    quick = fast(model)
    with torch.no_grad():
        for m in (model, quick):
            m.analysis(x)
    for place in (lambda m: m.g_a[0].res2, lambda m: m.g_a[5].layers[0]):
        assert torch.allclose(place(model).kept, place(quick).kept, atol=1e-5)


def test_features_that_hooks_keep_are_those_of_the_model():
    model, x, kept = copy.deepcopy(toy_model("dcae")), toy_image(128, 128), []
    model.g_a[5].layers[0].register_forward_hook(lambda module, inputs, out: kept.append(out))
    model.g_a[0].res1.register_forward_hook(lambda module, inputs, out: kept.append(out))
    with torch.no_grad():
        for m in (model, fast(model)):
            m.analysis(x)
    for expected, found in zip(kept[:2], kept[2:]):
        assert torch.allclose(expected, found, atol=1e-5)


def test_a_dictionary_of_each_image_is_not_kept():
    layer = quick_layer(DictionaryCrossAttention(6, 5, 8, 2, 0))
    x, dictionaries = torch.randn(2, 6, 4, 4), torch.randn(2, 7, 8)
    with torch.no_grad():
        together = layer(x, dictionaries)
        alone = [layer(x[i : i + 1], dictionaries[i]) for i in range(2)]
    assert layer.kept is None and torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_limit_on_memory_names_the_layer_that_cannot_keep_it():
    with pytest.raises(UserError, match=r"tcm's layer g_a.0 \(StridedBlock\) works on whole maps"):
        Engine(toy_model("tcm"), max_memory=1 << 34)
    model = copy.deepcopy(toy_model("dcae"))
    model.g_a[5].layers[0] = Keeper()
    with pytest.raises(UserError, match=r"g_a.5.layers.0 \(Keeper\)"):
        Engine(model, max_memory=1 << 34)
    with pytest.raises(UserError, match="token_encoder"):
        Engine(toy_model("global-tokens"), max_memory=1 << 34)


# ---- layers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads(monkeypatch):
    """Loops are cut into as many parts as there are rows, for two threads."""
    monkeypatch.setattr("utils.inference.threads.LEAST_VALUES", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 4), (7, 5), (9, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loops_are_convolutions(size, dtype, two_threads):
    """At any size, of images in a batch, and of more channels than a block."""
    x, tolerance = torch.randn(2, 70, *size, dtype=dtype), 1e-3 if dtype == torch.float32 else 1e-11
    layer = nn.Conv2d(70, 5, 3, padding=1, dtype=dtype)
    with torch.inference_mode():
        tiles = winograd.Tiles(tokens_of(x), (1, 1))
        result = tiles.convolve(winograd.transform_kernels(layer.weight), layer.bias)
        assert torch.allclose(to_map(result), layer(x), atol=tolerance)
        if dtype == torch.float64:
            for kernel in (3, (5, 1)):
                padding = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
                depthwise = nn.Conv2d(70, 70, kernel, padding=padding, groups=70, dtype=dtype)
                if kernel == 3:
                    assert type(quick_layer(depthwise, MATRICES)) is MatrixConvolution
                assert torch.allclose(quick_layer(depthwise, MATRICES)(x), depthwise(x), atol=tolerance)


def test_an_error_in_a_thread_is_raised(two_threads):
    meeting = threading.Barrier(2, timeout=10)  # a part each

    def loop(first: int, last: int) -> None:
        meeting.wait()
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_threads(loop, 2, 2)


@pytest.mark.parametrize("kernel,stride", [(1, 1), (3, 1), (5, 2), (3, 2), (7, 1)])
@pytest.mark.parametrize("size", [(1, 1), (2, 6), (32, 10)], ids=str)
def test_convolutions_in_stripes(kernel, stride, size):
    x = torch.randn(2, 6, *size)
    layer = nn.Conv2d(6, 4, kernel, stride, kernel // 2)
    up = nn.ConvTranspose2d(6, 4, kernel, stride, kernel // 2, stride - 1)
    quick, quick_up = quick_layer(layer), quick_layer(up)
    assert type(quick) is StripedConvolution and type(quick_up) is StripedDeconvolution
    with torch.no_grad(), stripes_of(600):
        assert torch.allclose(quick(x), layer(x), atol=1e-5)
        assert torch.allclose(quick_up(x), up(x), atol=1e-5)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 4)], ids=str)
def test_matrix_convolution_is_the_convolution(groups, kernel, size):
    layer = nn.Conv2d(6, 6, kernel, padding=kernel // 2, groups=groups).double()
    x, quick = torch.randn(2, 6, *size, dtype=torch.float64), quick_layer(layer, MATRICES)
    assert type(quick) is MatrixConvolution
    with torch.no_grad():
        assert torch.allclose(quick(x), layer(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel,stride", [(5, 2), (3, 1), (3, 2), (7, 3)])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 4)], ids=str)
def test_matrix_deconvolution_is_the_transposed_convolution(kernel, stride, size):
    layer = nn.ConvTranspose2d(6, 5, kernel, stride, kernel // 2, output_padding=stride - 1).double()
    x, quick = torch.randn(2, 6, *size, dtype=torch.float64), quick_layer(layer, MATRICES)
    assert type(quick) is MatrixDeconvolution
    with torch.no_grad():
        assert torch.allclose(quick(x), layer(x), rtol=0, atol=1e-13)


UNUSUAL = (
    nn.ConvTranspose2d(6, 6, 5, padding=2), nn.ConvTranspose2d(6, 6, 4, padding=2),
    nn.ConvTranspose2d(6, 6, 5, padding=2, groups=2), nn.Conv2d(6, 6, 2, padding=1, groups=6),
    nn.Conv2d(6, 4, 3, padding=1, dilation=2), nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(6, 6, (3, 1), padding=(1, 0)), nn.Conv2d(6, 6, 3, padding="same"),
)  # fmt: skip


@pytest.mark.parametrize("layer", UNUSUAL, ids=str)
def test_other_layers_compute_as_they_are_written(layer):
    layer, x = copy.deepcopy(layer).double(), torch.randn(2, 6, 9, 7, dtype=torch.float64)
    with torch.no_grad(), stripes_of(600):
        for table in (CONVOLUTIONS, [*MATRICES, *CONVOLUTIONS]):
            assert torch.allclose(quick_layer(layer, table)(x), layer(x), rtol=0, atol=1e-13)


def test_wide_convolutions_are_tiled_where_no_gradients_are_recorded():
    x, layer = torch.randn(1, 128, 9, 13), nn.Conv2d(128, 128, 3, padding=1)
    quick, strided = quick_layer(layer), quick_layer(nn.Conv2d(128, 128, 3, 2, 1))
    with torch.no_grad(), stripes_of(30000):
        assert winograd.pays(x, quick)
        assert torch.allclose(quick(x), layer(x), atol=1e-5)
        assert not winograd.pays(x, strided)
    assert not winograd.pays(x, quick)


def test_workspace_is_that_of_the_largest_transformed_kernels():
    layers = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(50, 50, 1))
    quicken(layers, CONVOLUTIONS)
    assert winograd.workspace(layers) == 4 * winograd.transform_kernels(layers[0].weight).nbytes


def test_layers_that_read_pixels_or_make_symbols_leave_autocast():
    x, layers = toy_image(40, 40), (ExactConvolution(3, 8, 5, 2, 2), nn.Conv2d(8, 8, 3, padding=1))
    for first, second in (layers, map(quick_layer, layers)):
        with torch.no_grad():
            exact = first(x)
            after = second(exact)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(first(x), exact) and first(x.bfloat16()).dtype == torch.float32
                assert not torch.equal(second(exact).float(), after)


@pytest.mark.parametrize("kind", ["dcae", "elic"])
def test_files_do_not_depend_on_whether_kernels_are_kept(kind, monkeypatch):
    """Of the shipped model they are, of full-size models they are not."""
    model, x = toy_model(kind), toy_image(128, 200)
    keeping = Codec(model)
    assert winograd.workspace(keeping.path("fp64")) == 0
    monkeypatch.setattr(float64, "KEPT_KERNELS", -1)
    other = Codec(model)
    assert winograd.workspace(other.path("fp64")) > 0
    files = [codec.compress(x) for codec in (keeping, other)]
    images = [codec.decompress(data) for codec, data in zip((other, keeping), files)]  # raise if a symbol differs
    assert files[0] == files[1] and torch.allclose(*images, atol=1e-3)


def test_stripes_are_equally_high():
    x = torch.zeros(1, 34, 10, 10)  # 400 bytes a row
    with torch.no_grad(), stripes_of(400 * 16):
        heights = [bottom - top for top, bottom in cut(x, 34)]
        assert heights == [12, 12, 10]
        assert all(top % 8 == 0 for top, _ in cut(x, 34, 8)) and len(cut(x, 34, times=3)) == 1


def test_rows_are_overwritten_only_where_that_is_safe():
    """A halo reads the rows above a stripe as they were, also when the result replaces them."""
    x = torch.randn(1, 40, 5, 3)

    def function(rows, border):
        return nn.functional.pad(rows, (0, 0, 0, 0, *border)).unfold(1, 3, 1).sum(-1)

    again = x.clone()
    with stripes_of(None):
        expected = by_rows(function, x, halo=1)
    with torch.no_grad(), stripes_of(200):
        result = by_rows(function, x, halo=1, out=own(x))
        view = by_rows(function, again[:, :], halo=1, out=again[:, :])
    assert result is x and torch.equal(result, expected) and torch.equal(view, expected)
    assert own(x) is None  # while gradients are recorded


@pytest.mark.parametrize("kind", [kind for kind in TOYS if kind != "icwem"])  # whose path to the symbols is TCM's
def test_portable_files_are_read_in_any_stripe(kind):
    codec, x = Codec(toy_model(kind)), toy_image(100, 150)
    for writing, reading in ((THIN, None), (None, THIN), (10 * THIN, THIN)):
        # each pair has its own file: they differ where the transform's y is close to a tie
        with stripes_of(writing):
            data = codec.compress(x, quality_of(codec.model))
            image = codec.decompress(data)
        with stripes_of(reading):
            assert torch.allclose(codec.decompress(data), image, atol=1e-5)  # raises where a symbol differs


def test_bfloat16_transforms_change_no_file_s_decoding():
    """Files written with bfloat16 transforms decode in float32 and the other way round, portable or not."""
    model, x = toy_model("dcae"), toy_image(128, 128)
    for arithmetic in ("fp64", "fp32"):
        codecs = [Codec(model, arithmetic, precision=precision) for precision in ("bf16", "fp32")]
        images = [reading.decompress(writing.compress(x)) for writing in codecs for reading in codecs]
        assert all(image.dtype == torch.float32 for image in images)
        assert (images[0] - images[3]).abs().max() > 0  # it was not float32 throughout
        assert ((images[0] - images[3]) ** 2).mean() < 1e-3


def test_a_bottleneck_is_overwritten_only_by_its_owner():
    block, x = ResidualBottleneck(8, 8), torch.randn(1, 8, 40, 6)
    quick, before = quick_layer(block), x.clone()
    assert isinstance(quick, FastBottleneck)
    with torch.no_grad(), stripes_of(600):
        assert torch.allclose(quick(x), block(x), atol=1e-5) and torch.equal(x, before)
        mine = to_map(tokens_of(x).clone())
        assert torch.allclose(quick.overwrite(mine), block(x), atol=1e-5) and not torch.equal(mine, before)
    layer = quick_layer(ScaledSwinLayer(8, 4, 4, True))
    assert isinstance(layer, FastSwinLayer)
