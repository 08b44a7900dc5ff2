"""ELSA: sizes, costs, the layer, the interface, bad input."""

import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import repertory
from repertory import catalog
from repertory.data.preprocessing import Preprocessing
from repertory.systems.elsa import ELSASwin, HadamardAttention, elsa_swin_base, elsa_swin_small, elsa_swin_tiny
from repertory.systems.elsa.model import WindowAttention

BUILDERS = {"elsa_swin_tiny": elsa_swin_tiny, "elsa_swin_small": elsa_swin_small, "elsa_swin_base": elsa_swin_base}
# multiply-adds counted in the authors' code, convolutions and matrix products alone
COUNTED = {"elsa_swin_tiny": 4.637e9, "elsa_swin_small": 9.335e9, "elsa_swin_base": 16.369e9}


def small(**settings):
    torch.manual_seed(0)
    sizes = {"embed_dim": 12, "depths": (1, 1, 2, 2), "num_heads": (1, 2, 3, 4), "kernel_size": 3, "window_size": 3}
    return ELSASwin(5, 3, **sizes | settings)


TWO_STAGES = {"depths": (1, 2), "num_heads": (2, 3), "window_size": 2}  # one of each attention, shifted windows too


@pytest.mark.parametrize("name", BUILDERS)
def test_parameters_are_counted_exactly(name):
    with torch.device("meta"):
        model = BUILDERS[name]()
    assert sum(p.numel() for p in model.parameters()) == catalog.card("elsa").parameters[name]


@pytest.mark.parametrize("name", BUILDERS)
def test_multiply_adds_at_224_are_those_of_the_authors_code(name):
    """Unit: multiply-adds of convolutions and matrix products, one 224-pixel image. The authors' aggregation is
    neither, so that it is missing in what was counted in their code: k * k * C * H * W a layer, added here.
    """
    with torch.device("meta"):
        model, images = BUILDERS[name](backend="reference").eval(), torch.zeros(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    layers = [(stage, len(model.stages[stage].blocks)) for stage in range(3)]
    width = model.feature_info[0]["num_chs"]
    aggregation = sum(49 * depth * width * 2**stage * (56 // 2**stage) ** 2 for stage, depth in layers)
    assert counter.get_total_flops() / 2 == pytest.approx(COUNTED[name] + aggregation, rel=0.001)
    assert counter.get_total_flops() / 2 == pytest.approx(COUNTED[name], rel=0.03)


def test_a_filter_that_looks_at_its_own_pixel_gives_the_values_back():
    layer = HadamardAttention(12, 3, kernel_size=3, group_width=4, gamma=0.0)
    with torch.no_grad():
        layer.filters[2].weight.zero_()
        layer.filters[2].bias.copy_(torch.eye(9)[4].mul(200).repeat(3))
    x = torch.randn(2, 5, 4, 12)
    _, _, value = layer.qkv(x.permute(0, 3, 1, 2)).split((8, 8, 12), 1)
    torch.testing.assert_close(layer(x), layer.proj(value.permute(0, 2, 3, 1)), atol=1e-6, rtol=1e-5)


def test_uniform_filters_average_what_is_inside_over_all_taps():
    layer = HadamardAttention(12, 3, kernel_size=3, group_width=4, gamma=0.0)
    with torch.no_grad():
        for parameter in layer.filters[2].parameters():
            parameter.zero_()
    x = torch.randn(2, 5, 4, 12)
    _, _, value = layer.qkv(x.permute(0, 3, 1, 2)).split((8, 8, 12), 1)
    mean = F.avg_pool2d(value, 3, 1, 1, count_include_pad=True)  # offsets outside the map keep their share
    torch.testing.assert_close(layer(x), layer.proj(mean.permute(0, 2, 3, 1)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("lam", "gamma", "shape"),
    [(0, 1, (1, 12, 3, 3)), (1, 0, (1, 12, 3, 3)), (1, 1, (2, 1, 12, 3, 3)), (2, 0.5, (2, 1, 12, 3, 3)), (0, 0, None)],
)
def test_the_ghost_head_is_laid_out_as_in_the_authors_checkpoints(lam, gamma, shape):
    layer = HadamardAttention(12, 3, kernel_size=3, group_width=4, lam=lam, gamma=gamma)
    assert (layer.ghost_head is None) if shape is None else (tuple(layer.ghost_head.shape) == shape)
    out = layer(torch.randn(1, 4, 5, 12))
    out.sum().backward()
    assert out.isfinite().all()
    assert shape is None or layer.ghost_head.grad.abs().sum() > 0


def test_the_added_ghost_is_a_depth_wise_convolution_of_the_values():
    layer = HadamardAttention(12, 3, kernel_size=3, group_width=4, gamma=0.5)
    x = torch.randn(1, 5, 6, 12)
    with_ghost = layer(x)
    ghost = layer.ghost_head.detach().clone()
    with torch.no_grad():
        layer.ghost_head.zero_()
    _, _, value = layer.qkv(x.permute(0, 3, 1, 2)).split((8, 8, 12), 1)
    static = F.conv2d(value, 0.5 * ghost[0, :, None], padding=1, groups=12).permute(0, 2, 3, 1)
    torch.testing.assert_close(with_ghost, layer(x) + static @ layer.proj.weight.T, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("dim", "group_width", "width"), [(96, 4, 64), (128, 8, 88), (256, 8, 176), (48, 8, 32)])
def test_queries_and_keys_are_two_thirds_as_wide_rounded_up_to_groups(dim, group_width, width):
    assert HadamardAttention(dim, 4, 3, group_width).dim_qk == width


def test_window_attention_is_biased_by_key_minus_query():
    layer = WindowAttention(4, 1, window_size=2)
    with torch.no_grad():
        layer.qkv.weight[:8].zero_()
        layer.relative_bias.fill_(-1000)
        layer.relative_bias[0, 5] = 0  # row 1, column 2 of the 3 x 3 table: the key one pixel to the right
    x = torch.randn(1, 2, 2, 4)
    value = F.linear(x, layer.qkv.weight[8:], layer.qkv.bias[8:])
    torch.testing.assert_close(layer(x)[:, :, 0], layer.proj(value[:, :, 1]))


def test_both_paths_of_window_attention_agree():
    images = torch.randn(2, 3, 40, 56)
    fast, plain = small(**TWO_STAGES).eval(), small(backend="reference", **TWO_STAGES).eval()
    torch.testing.assert_close(fast(images), plain(images), atol=1e-5, rtol=1e-5)


def test_the_interface_of_timm_is_there():
    model = small().eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, 96, 2, 2)
    assert pooled.shape == (2, model.num_features) == (2, 96)
    torch.testing.assert_close(model.get_classifier()(pooled), model(images))
    model.reset_classifier(7)
    assert (model(images).shape, model.num_classes) == ((2, 7), 7)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), pooled)
    assert isinstance(model.preprocessing, Preprocessing)


def test_gradient_checkpointing_changes_no_gradient():
    images, found = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model = small().train()
        model.set_grad_checkpointing(enable)
        model(images).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_deploy_gives_a_new_model_with_the_same_parameters():
    model = small(drop_path=0.5, drop=0.5).train()
    deployed = model.deploy()
    assert not deployed.training
    assert model.training
    assert {n: p.shape for n, p in deployed.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(deployed(images), model.eval()(images))
    with torch.no_grad():
        model.head.bias.add_(1)
    assert not torch.equal(deployed.head.bias, model.head.bias)


def test_drop_path_rises_linearly():
    rates = [block.drop_path.drop_prob for stage in small(drop_path=0.5).stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_alone_and_under_autocast(dtype):
    model, images = small().eval(), torch.randn(1, 3, 32, 32)
    expected = model(images)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(model(images).float(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(model.to(dtype)(images.to(dtype)).float(), expected, atol=0.05, rtol=0.05)


def test_it_compiles_without_a_graph_break():
    model = small(**TWO_STAGES).eval()
    images = torch.randn(1, 3, 40, 40)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images), atol=1e-5, rtol=1e-5)


def test_an_exported_program_takes_other_batches():
    model = small(**TWO_STAGES).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 40, 40),), dynamic_shapes=({0: batch},))
    images = torch.randn(5, 3, 40, 40)
    torch.testing.assert_close(program.module()(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_onnx_computes_the_same(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, images = small(**TWO_STAGES).eval(), torch.randn(2, 3, 40, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images).detach(), atol=1e-4, rtol=1e-4)


def test_a_functional_call_reaches_the_attention():
    model = small().eval()
    state = {name: p.detach() * 0.5 for name, p in model.named_parameters()}
    images = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(torch.func.functional_call(model, state, (images,)), model(images))


def test_a_model_is_created_by_name():
    model = repertory.create_model("elsa_swin_tiny", num_classes=4, depths=(1, 1, 1, 1))
    assert model.num_classes == 4


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: small(depths=(1, 1)), "list 2 and 4 stages"),
        (lambda: small(kernel_size=4), "kernel_size is 4; it must be odd"),
        (lambda: small(num_heads=(5, 5, 5, 5)), "dim is 12; it must be a multiple of num_heads, which is 5"),
        (lambda: small(num_heads=(1, 2, 3, 5)), "dim is 96; it must be a multiple of num_heads, which is 5"),
        (lambda: small(group_width=0), "group_width is 0"),
        (lambda: small(window_size=0), "window_size is 0"),
        (lambda: small(lam=0.5), "lam is 0.5"),
        (lambda: HadamardAttention(2, 1), "dim is 2"),
        (lambda: HadamardAttention(12, 3, dilation=0), "dilation is 0"),
        (lambda: small(backend="cuda")(torch.randn(1, 3, 8, 8)), "backend is 'cuda'"),
        (lambda: small()(torch.randn(1, 3, 0, 8)), "at least 1"),
        (lambda: small()(torch.randn(3, 8, 8)), r"\(B, C, H, W\)"),
        (lambda: small().reset_classifier(3, global_pool="max"), "global_pool is 'max'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        make()
    assert "\n" not in str(caught.value)
