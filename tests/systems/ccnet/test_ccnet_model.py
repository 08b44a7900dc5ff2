"""CCNet: sizes, published counts, outputs, any timm backbone of stride 8, export, bad input."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import repertory
from repertory import catalog
from repertory.data.preprocessing import Preprocessing
from repertory.systems.ccnet import CCNet, CrissCrossAttention, ccnet, ccnet_resnet101
from repertory.systems.ccnet.model import DilatedResNet

NARROW = {"layers": (1, 1, 2, 1), "width": 4, "out_channels": 8, "aux_channels": 8}


def small(num_classes=5, **settings):
    torch.manual_seed(0)
    model = ccnet_resnet101(num_classes, **NARROW | settings)
    nn.init.constant_(model.head.attention.gamma, 0.5)
    return model


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_counted_exactly_in_training_and_at_inference():
    with torch.device("meta"):
        model = ccnet_resnet101()
    assert count(model) == catalog.card("ccnet").parameters["ccnet_resnet101"] == 71_287_911
    assert [count(part) for part in (model.backbone, model.head, model.aux_head)] == [42_623_936, 23_934_100, 4_729_875]
    assert count(model.head.attention) == 328_321
    assert count(model.deploy()) == 42_623_936 + 23_934_100


def test_multiply_adds_of_one_application_are_the_counted_ones():
    """Unit: multiply-adds of convolutions and matrix products; the sheet's 4.13 G count all H + W logits, as here."""
    with torch.device("meta"):
        layer, x = CrissCrossAttention(512, backend="reference"), torch.zeros(1, 512, 97, 97)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    assert counter.get_total_flops() / 2 == pytest.approx(4.13e9, rel=0.01)


@pytest.mark.parametrize(("backbone_stride", "size"), [((5, 7), (33, 49)), ((13, 17), (97, 129))])
def test_maps_have_the_sizes_that_align_corners(backbone_stride, size):
    maps = DilatedResNet((1, 1, 1, 1), width=4).eval()(torch.zeros(1, 3, *size))
    assert [m.shape[1] for m in maps] == [16, 32, 64, 128]
    assert [tuple(m.shape[-2:]) for m in maps[1:]] == [backbone_stride] * 3


def test_a_dilated_stage_uses_its_rate_from_the_first_block_on():
    backbone = DilatedResNet((1, 1, 2, 2), width=4)
    rates = [[block.conv2.dilation[0] for block in getattr(backbone, f"layer{index}")] for index in (1, 2, 3, 4)]
    assert rates == [[1], [1], [2, 2], [4, 4]]


def test_training_gives_logits_auxiliary_logits_and_features():
    model, images = small().train(), torch.randn(2, 3, 33, 41)
    outputs = model(images)
    assert outputs["out"].shape == outputs["aux"][0].shape == (2, 5, 33, 41)
    assert outputs["features"].shape == (2, 32, 5, 6)
    assert small(projection=16).train()(images)["features"].shape == (2, 16, 5, 6)
    assert small(aux_channels=0).train()(images)["aux"] == []


def test_evaluation_gives_the_logits_of_training_mode_alone():
    model, images = small(drop=0.0).train(), torch.randn(2, 3, 33, 41)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.testing.assert_close(model(images)["out"], model.eval()(images))


@pytest.mark.parametrize("size", [(8, 8), (8, 200), (61, 45)])
def test_any_size_from_eight_pixels_works(size):
    assert small().eval()(torch.randn(1, 3, *size)).shape == (1, 5, *size)


def test_recurrence_changes_the_result_and_no_parameter():
    images, found = torch.randn(1, 3, 33, 33), []
    for recurrence in (0, 1, 2, 3):
        model = small(recurrence=recurrence).eval()
        found.append(model(images))
        assert count(model) == count(small())
    for a, b in itertools.pairwise(found):
        assert not torch.allclose(a, b)


def test_deploy_drops_what_is_for_training_only():
    model = small(projection=4).train()
    deployed = model.deploy()
    assert deployed.aux_head is deployed.projection is None
    assert model.aux_head is not None
    assert model.training
    assert not deployed.training
    images = torch.randn(1, 3, 33, 33)
    torch.testing.assert_close(deployed(images), model.eval()(images))
    assert len(deployed.get_classifier()) == 1


def test_both_classifiers_are_reset():
    model = small()
    model.class_names = ("a", "b", "c", "d", "e")
    model.reset_classifier(3)
    assert (model.num_classes, model.class_names) == (3, None)
    assert [layer.out_channels for layer in model.get_classifier()] == [3, 3]
    assert model.train()(torch.randn(2, 3, 33, 33))["aux"][0].shape[1] == 3


def test_gradient_checkpointing_changes_no_gradient():
    images, found = torch.randn(2, 3, 25, 33), []
    for enable in (False, True):
        model = small(drop=0.0).train()
        model.set_grad_checkpointing(enable)
        outputs = model(images)
        (outputs["out"].square().sum() + outputs["aux"][0].sum()).backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["regnetx_002", "mobilenetv3_small_050"])
def test_a_timm_backbone_keeps_stride_eight(name):
    model = ccnet(4, backbone=name, out_channels=16, inner_channels=16, aux_channels=16)
    outputs = model.train()(torch.randn(2, 3, 65, 49))
    assert outputs["out"].shape == outputs["aux"][0].shape == (2, 4, 65, 49)
    assert outputs["features"].shape == (2, 16, 9, 7)
    assert model.preprocessing.channels == "RGB"
    model.set_grad_checkpointing()
    assert model.eval()(torch.randn(1, 3, 33, 33)).shape == (1, 4, 33, 33)


class TwoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 8, 8), nn.Conv2d(6, 12, 1)

    def forward(self, x):
        x = self.first(x)
        return [x, self.second(x)]


def on_two_maps():
    torch.manual_seed(0)
    model = ccnet(2, in_chans=1, backbone=TwoMaps(), channels=(6, 12), out_channels=8, aux_channels=4)
    nn.init.constant_(model.head.attention.gamma, 0.5)
    return model


def test_a_module_of_ones_own_can_be_the_backbone():
    assert on_two_maps().train()(torch.randn(2, 1, 40, 32))["aux"][0].shape == (2, 2, 40, 32)


def test_a_model_is_created_by_name_and_wants_the_authors_pixels():
    model = repertory.create_model("ccnet_resnet101", num_classes=4, **NARROW)
    assert model.num_classes == 4
    assert isinstance(model.preprocessing, Preprocessing)
    assert (model.preprocessing.channels, model.preprocessing.size) == ("BGR", (769, 769))
    assert [255 * value for value in model.preprocessing.mean] == pytest.approx(
        [104.00698793, 116.66876762, 122.67891434]
    )


def test_it_compiles_without_a_graph_break():
    model, images = on_two_maps().eval(), torch.randn(1, 1, 40, 32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images), atol=1e-5, rtol=1e-5)


def test_an_exported_program_takes_other_batches():
    model = on_two_maps().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 1, 40, 32),), dynamic_shapes=({0: batch},))
    images = torch.randn(3, 1, 40, 32)
    torch.testing.assert_close(program.module()(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_onnx_computes_the_same(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, images = small().eval(), torch.randn(2, 3, 33, 41)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: small(num_classes=0), "num_classes is 0"),
        (lambda: small(layers=(1, 1)), r"layers is \(1, 1\)"),
        (lambda: small(width=0), "width is 0"),
        (lambda: small(recurrence=-1), "recurrence is -1"),
        (lambda: small().reset_classifier(0), "num_classes is 0"),
        (lambda: small()(torch.randn(1, 3, 7, 20)), "at least 8"),
        (lambda: small()(torch.randn(3, 20, 20)), r"\(B, C, H, W\)"),
        (lambda: small().affinity(torch.randn(1, 3, 17, 17), 17, 0), r"query is \(17, 0\)"),
        (lambda: ccnet(backbone="resnet5"), "backbone is 'resnet5'"),
        (lambda: ccnet(backbone="vit_tiny_patch16_224"), "backbone is 'vit_tiny_patch16_224'"),
        (lambda: ccnet(backbone="swin_tiny_patch4_window7_224"), "backbone is 'swin_tiny_patch4_window7_224'"),
        (lambda: CCNet(3, TwoMaps()), "TwoMaps has no feature_info"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        make()
    assert "\n" not in str(caught.value)
