"""SPGNet: stages and what joins them, sizes, interface, export, bad input."""

import warnings

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import repertory
from repertory.data.preprocessing import Preprocessing
from repertory.systems.spgnet import SPGNet, StageLoss, initialise_encoders, spgnet_resnet50, spgnet_small
from repertory.systems.spgnet.model import CrossStageAggregation, Decoder, ResidualEncoder

SIZES = {"widths": (8, 12, 16, 24), "depths": (1, 1, 1, 1), "decoder_width": 8}
KINDS = ("spg", "unsupervised", "se", "ge", "none")


def small(**settings):
    torch.manual_seed(0)
    return SPGNet(5, **SIZES | settings)


def count(module):
    return sum(p.numel() for p in module.parameters())


def on_meta(**settings):
    with torch.device("meta"):
        return spgnet_resnet50(**settings).eval()


def multiply_adds(model, height=256, width=512):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, height, width, device="meta"))
    return counter.get_total_flops() / 2


def test_encoders_have_the_parameters_of_the_resnets_that_they_are():
    """No figure is published; 23.5 M and 42.5 M are the sheet's, and are those of ResNet-50 and ResNet-101."""
    for depths, builder in (
        ((3, 4, 6, 3), torchvision.models.resnet50),
        ((3, 4, 23, 3), torchvision.models.resnet101),
    ):
        with torch.device("meta"):
            theirs = builder()
        assert count(on_meta(stages=1, depths=depths).encoders[0]) == count(theirs) - count(theirs.fc)


def test_two_stages_of_resnet50_cost_about_what_one_of_resnet101_does():
    """The abstract claims "similar parameters and computation"; our reading has 1.29 and 1.28 times as much."""
    two, one = on_meta(), on_meta(stages=1, depths=(3, 4, 23, 3))
    assert (count(two), count(one)) == (57_091_430, 44_224_851)
    assert multiply_adds(two) == pytest.approx(28.33e9, rel=0.001)
    assert multiply_adds(one) == pytest.approx(22.17e9, rel=0.001)


def test_guidance_costs_next_to_nothing():
    spg, none = (on_meta(gate=kind, intermediate=False) for kind in ("spg", "none"))
    assert count(spg) - count(none) == 256 * 19 + 19 + 19 * 256 + 256
    assert multiply_adds(spg) - multiply_adds(none) == 2 * 256 * 19 * (256 // 4) * (512 // 4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_gate_trains_with_a_loss_on_both_stages(kind):
    model = small(gate=kind).train()
    outputs = model(torch.randn(2, 3, 48, 64))
    assert outputs["out"].shape == (2, 5, 48, 64)
    assert [aux.shape for aux in outputs["aux"]] == [(2, 5, 48, 64)]
    assert outputs["features"].shape == (2, 8, 12, 16)
    StageLoss()(outputs, torch.randint(0, 5, (2, 48, 64))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_supervision_reaches_the_gate_of_spg_and_not_that_of_its_control():
    """The loss on the first stage alone: it teaches the prediction that gates only where that is supervised."""
    for kind, taught in (("spg", True), ("unsupervised", False)):
        model = small(gate=kind).train()
        model(torch.randn(2, 3, 32, 32))["aux"][0].square().sum().backward()
        assert (model.passages[0].gate.predict.weight.grad is not None) is taught


def test_without_intermediate_supervision_only_spg_has_an_auxiliary_output():
    images = torch.randn(2, 3, 32, 32)
    assert [len(small(gate=k, intermediate=False)(images)["aux"]) for k in KINDS] == [1, 0, 0, 0, 0]


def test_one_stage_gives_logits_alone():
    assert small(stages=1).train()(torch.randn(2, 3, 32, 32)).shape == (2, 5, 32, 32)


def test_three_stages_have_two_gates_and_two_auxiliary_outputs():
    model = small(stages=3)
    assert len(model.passages) == len(model.aggregations) == 2
    assert len(model(torch.randn(2, 3, 32, 32))["aux"]) == 2


def test_the_second_stage_sees_what_the_gate_lets_through():
    model = small().eval()
    entered = []
    model.encoders[1].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    images = torch.randn(1, 3, 32, 32)
    model(images)
    first = model.decoders[0](model.encoders[0](images))[0]
    guide = model.guidance(images)[0]
    torch.testing.assert_close(entered[0], first * guide + first)
    assert guide.shape == first.shape
    assert ((guide > 0) & (guide < 1)).all()


def test_the_last_stage_depends_on_the_intermediate_prediction_at_inference():
    model = small().eval()
    images = torch.randn(1, 3, 32, 32)
    before = model(images)
    with torch.no_grad():
        model.passages[0].gate.predict.bias.add_(1.0)
    assert not torch.allclose(before, model(images))


def test_the_decoder_adds_context_laterals_and_upsampled_maps():
    decoder = Decoder((8, 12, 16, 24), 8, align_corners=True)
    maps = [torch.randn(1, width, side, side + 1) for width, side in ((8, 9), (12, 5), (16, 3), (24, 2))]
    found = decoder.eval()(maps)
    assert [f.shape[-2:] for f in found] == [m.shape[-2:] for m in maps]
    context = decoder.context(maps[3].mean((2, 3))[..., None, None])
    torch.testing.assert_close(found[3], decoder.top(maps[3]) + context)
    up = F.interpolate(found[1], size=(9, 10), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found[0], decoder.upsample[0].bottleneck(up + decoder.upsample[0].lateral(maps[0])))


def test_aggregation_joins_every_level_before_the_next_and_is_rectified():
    encoder = ResidualEncoder(8, (8, 12, 16, 24), (1, 1, 1, 1), stem=False).eval()
    x = torch.randn(1, 8, 16, 16)
    plain = encoder(x)
    added = [torch.randn_like(m) for m in plain]
    joined = encoder(x, added)
    torch.testing.assert_close(joined[0], F.relu(plain[0] + added[0]))
    torch.testing.assert_close(joined[1], F.relu(encoder.layer2(joined[0]) + added[1]))
    assert torch.equal(encoder(x, [torch.zeros_like(m) for m in plain])[3], plain[3])


def test_aggregation_is_the_sum_of_two_projections():
    module = CrossStageAggregation(8, 4, 6).eval()
    encoded, decoded = torch.randn(1, 8, 5, 5), torch.randn(1, 4, 5, 5)
    nothing = torch.zeros_like(encoded), torch.zeros_like(decoded)
    parts = module(encoded, nothing[1]) + module(nothing[0], decoded)
    torch.testing.assert_close(module(encoded, decoded), parts)
    assert not len(small(aggregation=False).aggregations)


def test_later_stages_have_no_stem_and_keep_the_stride():
    for entry in ("projection", "convolution"):
        maps = ResidualEncoder(8, (8, 12, 16, 24), (1, 1, 1, 1), False, entry)(torch.randn(2, 8, 16, 24))
        assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 24), (12, 8, 12), (16, 4, 6), (24, 2, 3)]
    model = small()
    assert "conv1.weight" in model.encoders[0].state_dict()
    assert "conv1.weight" not in model.encoders[1].state_dict()


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (65, 40)])
def test_any_size_goes(size):
    assert small().eval()(torch.randn(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_backbone_of_timm_is_the_first_encoder(name):
    sizes = {"img_size": 64} if name.startswith("swin") else {"depths": (1, 1, 1, 1)}
    sizes |= {"depths": (1, 1, 1, 1)}
    model = small(backbone=name, backbone_settings=sizes, decoder_width=8)
    widths = model.encoders[0].widths
    maps = model.encoders[0](torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(w, 16 // 2**i, 16 // 2**i) for i, w in enumerate(widths)]
    assert [tuple(m.shape[1:]) for m in model.encoders[1](torch.randn(2, 8, 16, 16))] == [
        tuple(m.shape[1:]) for m in maps
    ]
    model.set_grad_checkpointing()
    assert model(torch.randn(2, 3, 64, 64))["out"].shape == (2, 5, 64, 64)


def test_both_encoders_begin_with_an_imagenet_resnet():
    torch.manual_seed(0)
    resnet = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=7)
    model = SPGNet(5, depths=(1, 1, 1, 1), decoder_width=8)
    kept = initialise_encoders(model, resnet.state_dict())
    state = resnet.state_dict()
    assert torch.equal(model.encoders[0].conv1.weight, state["conv1.weight"])
    for encoder in model.encoders:
        assert torch.equal(encoder.layer3[0].conv2.weight, state["layer3.0.conv2.weight"])
        assert torch.equal(encoder.layer4[0].bn3.running_var, state["layer4.0.bn3.running_var"])
    assert kept == ["encoders.1.layer1.0.conv1.weight", "encoders.1.layer1.0.downsample.0.weight"]
    with pytest.raises(ValueError, match=r"another network than the first encoder: conv1\.weight is absent"):
        initialise_encoders(model, {})


def test_deploy_leaves_out_the_heads_that_only_make_losses():
    images = torch.randn(1, 3, 32, 32)
    for kind in KINDS:
        model = small(gate=kind).train()
        deployed = model.deploy()
        names = {n for n, _ in model.named_parameters()}
        gone = names - {n for n, _ in deployed.named_parameters()}
        assert gone == (set() if kind == "spg" else {"heads.0.weight", "heads.0.bias"})
        assert (model.training, deployed.training) == (True, False)
        torch.testing.assert_close(deployed(images), model.eval()(images))
        with torch.no_grad():
            model.classifier.bias.add_(1)
        assert not torch.equal(deployed.classifier.bias, model.classifier.bias)


def test_gradient_checkpointing_changes_neither_gradients_nor_statistics():
    images, found = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model = small().train()
        model.set_grad_checkpointing(enable)
        model(images)["out"].square().sum().backward()
        found.append([*(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_interface_of_our_segmentors_is_there():
    model = small().eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    up = F.interpolate(model.forward_head(features), size=(32, 32), mode="bilinear", align_corners=True)
    torch.testing.assert_close(up, model(images))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert isinstance(model.preprocessing, Preprocessing)
    assert model.class_names is None


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_classes_changes_what_depends_on_it_alone(kind):
    model = small(gate=kind)
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.reset_classifier(9)
    assert model.num_classes == 9
    assert model(torch.randn(2, 3, 32, 32))["aux"][0].shape == (2, 9, 32, 32)
    classes = model.get_classifier()
    dependent = {id(p) for p in classes.parameters()}
    for name, p in model.named_parameters():
        if id(p) not in dependent:
            assert torch.equal(p, before[name])
    assert count(model) - count(classes) == count(small(gate=kind)) - count(small(gate=kind).get_classifier())


def test_a_checkpoint_of_another_number_of_classes_resets_the_head_when_asked(tmp_path):
    settings = {"depths": (1, 1, 1, 1)}
    model = repertory.create_model("spgnet_small", num_classes=4, **settings)
    torch.save(model.state_dict(), tmp_path / "four.pth")
    loaded = repertory.create_model(
        "spgnet_small", checkpoint=tmp_path / "four.pth", num_classes=6, reset_head=True, **settings
    )
    assert loaded.eval()(torch.randn(1, 3, 32, 32)).shape[1] == 6
    assert torch.equal(loaded.encoders[1].layer1[0].conv2.weight, model.encoders[1].layer1[0].conv2.weight)
    with pytest.raises(ValueError, match="give num_classes=4"):
        repertory.create_model("spgnet_small", checkpoint=tmp_path / "four.pth", num_classes=6, **settings)


def test_it_compiles_without_a_graph_break():
    model = small().eval()
    images = torch.randn(1, 3, 32, 40)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images), atol=1e-4, rtol=1e-4)


def test_an_exported_program_takes_other_batches():
    model = small().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 33, 47),), dynamic_shapes=({0: batch},))
    images = torch.randn(5, 3, 33, 47)
    torch.testing.assert_close(program.module()(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("align_corners", [True, False])
def test_onnx_computes_the_same(tmp_path, align_corners):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, images = small(align_corners=align_corners).eval(), torch.randn(2, 3, 33, 47)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images).detach(), atol=1e-4, rtol=1e-4)


def test_models_are_created_by_name():
    model = repertory.create_model("spgnet_small", num_classes=4, in_chans=1)
    assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 4, 32, 32)
    assert {"spgnet_resnet50", "spgnet_small"} <= set(repertory.list_models("spgnet*"))
    assert count(spgnet_small(19)) < 250_000


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: small(widths=(8, 12, 16)), r"widths are \(8, 12, 16\); there must be 4"),
        (lambda: small(widths=(8, 12, 16, 30)), "each must be a multiple of 4"),
        (lambda: small(depths=(1, 1, 0, 1)), r"depths are \(1, 1, 0, 1\); each must be at least 1"),
        (lambda: small(decoder_width=10), "decoder_width is 10; it must be a multiple of 4"),
        (lambda: small(stages=0), "stages is 0; it must be at least 1"),
        (lambda: small(gate="attention"), "gate is 'attention'"),
        (lambda: small(supervision="half"), "supervision is 'half'; it must be one of input, stride"),
        (lambda: small(entry="stem"), "entry is 'stem'"),
        (lambda: small(backbone="resnet51"), "backbone is 'resnet51'"),
        (lambda: small(backbone="vit_tiny_patch16_224"), "it must have 4, 8, 16 and 32"),
        (lambda: SPGNet(0), "num_classes is 0"),
        (lambda: small().reset_classifier(0), "num_classes is 0; it must be at least 1"),
        (lambda: small()(torch.randn(1, 1, 32, 32)), r"images are \(1, 1, 32, 32\); they must be \(B, C, H, W\)"),
        (lambda: small()(torch.randn(3, 32, 32)), "with C = 3"),
        (lambda: small(gate="none").guidance(torch.randn(1, 3, 8, 8)), "no guidance to show"),
        (
            lambda: initialise_encoders(small(backbone="convnext_atto", backbone_settings={"depths": (1,) * 4}), {}),
            "give pretrained in backbone_settings instead",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def test_gates_begin_open_and_logits_near_zero():
    torch.manual_seed(0)
    model, images = spgnet_small(19).train(), torch.randn(2, 3, 64, 64)
    assert model(images)["out"].abs().mean() < 0.5
    guide = model.guidance(images)[0]
    assert ((guide > 0.3) & (guide < 0.7)).float().mean() > 0.95
    model.reset_classifier(7)
    assert model(images)["out"].abs().mean() < 0.5
