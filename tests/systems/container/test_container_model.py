"""CONTAINER: sizes, published costs, interface, export, bad input."""

import warnings

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import repertory
from repertory import catalog
from repertory.data.preprocessing import Preprocessing
from repertory.systems.container import Container, container_full, container_light
from repertory.systems.container.model import mixed_block
from repertory.systems.container.pam import ContainerPAM, container_pam_small, container_pam_tiny

SIZES = {"embed_dims": (8, 12, 16, 24), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "mlp_ratios": (2, 2, 2, 2)}
FULL = {"affinities": ("dynamic+local",) * 4, "mixing": "free"}


def light(**settings):
    torch.manual_seed(0)
    return Container(5, 3, **SIZES | settings)


def full(**settings):
    return light(**FULL | settings)


def pam(**settings):
    torch.manual_seed(0)
    return ContainerPAM(5, 3, **{"embed_dim": 12, "depth": 2, "num_heads": 3, "img_size": 32} | settings)


SHALLOW = {"embed_dims": (8, 16), "depths": (1, 1), "num_heads": (1, 2), "mlp_ratios": (2, 2), "patch_sizes": (4, 2)}
TRACED = {  # one block of each kind, for what has to be traced
    "light": lambda: light(**SHALLOW, affinities=("local", "dynamic+local")).eval(),
    "full": lambda: full(**SHALLOW, affinities=("dynamic+local", "dynamic+local")).eval(),
    "pam": lambda: pam(depth=1).eval(),
}


BUILT = pytest.mark.parametrize("build", [light, full, pam], ids=lambda build: build.__name__)


def count(model):
    return sum(p.numel() for p in model.parameters())


def multiply_adds(builder):
    with torch.device("meta"):
        model, images = builder(backend="reference").eval(), torch.zeros(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops() / 2


def test_parameters_of_the_released_network_are_counted_exactly():
    with torch.device("meta"):
        model = container_light()
    assert count(model) == catalog.card("container").parameters["container_light"]
    parts = [count(stage.downsample) for stage in model.stages] + [count(stage.blocks) for stage in model.stages]
    assert parts == [3_264, 33_152, 164_800, 656_896, 230_976, 1_205_760, 8_312_320, 9_512_451]
    assert (count(model.norm), count(model.head)) == (1_024, 513_000)


def test_multiply_adds_at_224_are_those_of_the_authors_code():
    """Unit: multiply-adds of convolutions and matrix products, one 224-pixel image. 3.848 G are counted in the authors'
    code; the paper's own figure could not be read.
    """
    assert multiply_adds(container_light) == pytest.approx(3.848e9, rel=0.03)


def test_the_reading_of_the_full_network_has_the_published_number_of_parameters():
    """22 M is published, to no more digits."""
    with torch.device("meta"):
        model = container_full()
    assert round(count(model) / 1e6) == 22


@pytest.mark.parametrize(
    ("builder", "base", "heads"),
    [
        (container_pam_tiny, "deit_tiny_patch16_224", 3),
        pytest.param(container_pam_small, "deit_small_patch16_224", 6, marks=pytest.mark.slow),
    ],
)
def test_the_deit_variant_adds_one_static_matrix_a_head_to_deit(builder, base, heads):
    with torch.device("meta"):
        ours, theirs = builder(), timm.create_model(base)
    assert count(ours) - count(theirs) == 12 * heads * 197 * 197


def test_without_its_static_matrices_the_deit_variant_is_deit():
    ours = pam().eval()
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=16, num_classes=5, embed_dim=12, depth=2, num_heads=3
    )
    state = {}
    for name, value in ours.state_dict().items():
        if name.endswith("affinities.1.weight"):
            value.zero_()
        elif ".attn." in name:
            name = name.replace("aggregation.project", "qkv").replace("aggregation.output", "proj")
            state[name] = value.flatten(1) if value.ndim == 4 else value
        else:
            state[name] = value
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs.eval()(images))


@BUILT
def test_the_interface_of_timm_is_there(build):
    model = build().eval()
    images = torch.randn(2, 3, 32, 32)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    torch.testing.assert_close(model.get_classifier()(pooled), model(images))
    model.reset_classifier(7)
    assert (model(images).shape, model.num_classes) == ((2, 7), 7)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), pooled)
    assert isinstance(model.preprocessing, Preprocessing)


def test_the_head_averages_the_normalised_map():
    model = light().eval()
    images = torch.randn(2, 3, 64, 32)
    last = model.forward_pyramid(images)[-1]
    assert last.shape == (2, 24, 2, 1)
    torch.testing.assert_close(model(images), model.head(model.norm(last).flatten(2).mean(-1)))


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (160, 64)])
@pytest.mark.parametrize("build", [light, full], ids=lambda build: build.__name__)
def test_any_multiple_of_the_stride_works_and_leaves_the_model_as_it_was(build, size):
    model = build().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model(torch.randn(1, 3, *size)).shape == (1, 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_static_matrices_are_built_for_the_size_that_is_asked_for():
    assert pam(img_size=(32, 64)).eval()(torch.randn(1, 3, 32, 64)).shape == (1, 5)
    model = light(affinities=("local", "local", "local", "dynamic+dense"), img_size=(64, 96))
    assert model.preprocessing.size == (64, 96)
    assert model.stages[3].blocks[0].aggregation.affinities[1].weight.shape == (1, 6, 6)
    assert model.eval()(torch.randn(1, 3, 64, 96)).shape == (1, 5)


def test_an_empty_batch_gives_empty_logits():
    assert light().eval()(torch.randn(0, 3, 32, 32)).shape == (0, 5)


def test_only_the_last_stage_of_the_light_network_attends():
    kinds = [
        [type(affinity).__name__ for affinity in stage.blocks[0].aggregation.affinities] for stage in light().stages
    ]
    assert kinds == [["LocalAffinity"]] * 3 + [["DynamicAffinity", "LocalAffinity"]]


def test_blocks_of_the_light_network_hold_one_mixing_scalar_that_starts_in_the_middle():
    block = mixed_block(12, 3, 2)
    assert [n for n, p in block.named_parameters() if p.numel() == 1] == ["aggregation.mixing_logit"]
    assert block.aggregation.weights()[0].item() == 0.5


@BUILT
def test_gradient_checkpointing_changes_no_gradient_and_no_statistic(build):
    images, found = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model = build().train()
        model.set_grad_checkpointing(enable)
        for _ in range(2):  # the second pass shows that statistics are tracked again after the first
            model(images).square().sum().backward()
        found.append([*(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_are_computed_again_only_when_that_is_asked_for():
    calls, model = [], light().train()
    model.stages[0].blocks[0].aggregation.register_forward_hook(lambda *_: calls.append(1))
    for enable, expected in ((False, 1), (True, 2)):
        calls.clear()
        model.set_grad_checkpointing(enable)
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        assert len(calls) == expected


@BUILT
def test_deploy_gives_a_new_model_with_the_same_parameters(build):
    model = build(drop_path=0.5, drop=0.5).train()
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
    rates = [block.drop_path.drop_prob for stage in light(drop_path=0.4).stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("name", ["light", pytest.param("full", marks=pytest.mark.slow), "pam"])
def test_it_compiles_without_a_graph_break(name):
    model = TRACED[name]()
    images = torch.randn(1, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["light", pytest.param("full", marks=pytest.mark.slow), "pam"])
def test_an_exported_program_takes_other_batches(name):
    model = TRACED[name]()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_onnx_computes_the_same(tmp_path, name):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, images = TRACED[name](), torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_inductor_computes_the_same():
    model, images = TRACED["light"](), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), model(images), atol=1e-4, rtol=1e-4)


def test_channels_last_images_give_the_same_logits():
    model, images = light().eval(), torch.randn(2, 3, 32, 64)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    found = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_model_is_created_by_name_for_grey_images():
    model = repertory.create_model("container_light", num_classes=4, in_chans=1, **SIZES)
    assert (model.num_classes, model.preprocessing.channels) == (4, "L")
    assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: light(depths=(1, 1)), "embed_dims 4, depths 2, affinities 4, num_heads 4"),
        (lambda: light(num_heads=(1, 1, 1, 7)), "dim is 24; it must be a multiple of num_heads, which is 7"),
        (lambda: light(kernel_size=4), "kernel_size is 4; it must be odd"),
        (lambda: light(affinities=("local", "local", "local", "global")), "affinities has 'global'; each must be of"),
        (lambda: light(affinities=("dense",) * 4), "img_size is None; a dense affinity needs"),
        (lambda: light(img_size=(40, 64)), "img_size is 40 x 64; .* multiples of 32, 64 x 64 would do"),
        (lambda: light(mixing="sum"), "mixing is 'sum'"),
        (lambda: light(backend="fast"), "backend is 'fast'"),
        (lambda: light()(torch.randn(1, 3, 33, 64)), "images are 33 x 64; .* multiples of 32, 64 x 64 would do"),
        (lambda: light()(torch.randn(1, 3, 0, 32)), "images are 0 x 32; .* 32 x 32 would do"),
        (lambda: light()(torch.randn(3, 32, 32)), r"images are \(3, 32, 32\); they must be \(B, 3, H, W\)"),
        (lambda: light()(torch.randn(1, 4, 32, 32)), r"must be \(B, 3, H, W\)"),
        (lambda: light().forward_pyramid(torch.randn(1, 3, 40, 40)), "64 x 64 would do"),
        (lambda: light().reset_classifier(3, global_pool="max"), "global_pool is 'max'"),
        (lambda: pam(num_heads=5), "embed_dim is 12; it must be a multiple of num_heads, which is 5"),
        (lambda: pam(img_size=(32, 40)), r"img_size is \(32, 40\); .* multiples of patch_size, 16"),
        (lambda: pam()(torch.randn(1, 3, 48, 32)), r"must be \(B, 3, 32, 32\).* give img_size for another"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
