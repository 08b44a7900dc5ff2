"""AFFormer against the authors' numbers, and their checkpoints in its names."""

import re

import pytest
import torch

from repertory import catalog, create_model
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.afformer.authors import from_authors
from repertory.systems.afformer.model import AFFormer, AFFormerSegmentor, afformer_base_segmentor
from repertory.systems.afformer.parity import DRIVERS

VECTORS = sorted((catalog.room("afformer") / "vectors").iterdir(), key=lambda path: path.name)
NARROW = {"embed_dims": (16, 16, 24, 32), "num_layers": (1, 1, 2, 1)}


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.name)
def test_the_numbers_of_the_authors_are_reproduced(path):
    report = run_vector(load(path), path.stem, DRIVERS)
    assert report.passed, report


def test_another_number_of_paths_is_a_failed_vector():
    vector = load(next(path for path in VECTORS if path.name == "afformer_tiny_160x96.json"))
    config = {**vector["config"], "num_path": [1, 2, 1, 1]}
    report = run_vector({**vector, "config": config}, "two paths", DRIVERS)
    assert "one path a stage" in report.outputs[0].problem


TOP = {
    "squeeze.0": "decode_head.squeeze.conv",
    "squeeze.1": "decode_head.squeeze.gn",
    "classifier": "decode_head.conv_seg",
}
PAIR, EMBEDDING = {"0": "conv", "1": "bn"}, {"0": "dwconv", "1": "pwconv", "2": "bn"}
DESCRIPTOR = {"reduce.0": "conv1.conv", "reduce.1": "conv1.bn", "depthwise.0": "dwconv", "depthwise.1": "norm"}
DESCRIPTOR |= {"expand.0": "conv2.conv", "expand.1": "conv2.bn"}


def their_name(name):
    """The authors' name of our tensor, written down the other way round than the conversion does it."""
    place, _, leaf = name.rpartition(".")
    if place in TOP:
        return f"{TOP[place]}.{leaf}"
    if place == "head":
        return f"cls_head.cls.{leaf}"
    prefix = "backbone." if place.startswith("backbone.") else ""
    parts = place.removeprefix("backbone.").split(".")
    if parts[0] == "stem":
        return f"{prefix}stem.{parts[1]}.{PAIR[parts[2]]}.{leaf}"
    stage, kind, rest = parts[1], parts[2], parts[3:]
    if kind in ("pixels", "prototypes"):
        index = ("pixels", "prototypes").index(kind)
        return f"{prefix}patch_embed_stages.{stage}.patch_embeds.{index}.patch_conv.{EMBEDDING[rest[0]]}.{leaf}"
    if kind == "aggregate":
        inner = f"aggregate.{PAIR[rest[0]]}"
    elif kind == "descriptor":
        inner = f"Restore.{DESCRIPTOR['.'.join(rest)]}"
    elif rest[0] == "position":
        inner = "mhca_blks.0.cpe.proj"
    elif rest[0] == "filters":
        inner = f"mhca_blks.0.crpe.conv_list.{rest[1]}"
    else:
        inner = ".".join(rest[1:]).replace("attn", "factoratt_crpe").replace("mlp.depthwise", "mlp.dwconv.dwconv")
        inner = f"mhca_blks.0.MHCA_layers.{inner}"
    return f"{prefix}mhca_stages.{stage}.{inner}.{leaf}"


def theirs(model):
    """The state of ``model`` as the authors' code saves it: shared tensors again for every block, and ``align``."""
    state = {}
    for name, value in model.state_dict().items():
        state[their_name(name)] = value.clone()
    blocks = sorted({m[0] for name in state if (m := re.match(r".*mhca_blks\.0\.MHCA_layers\.\d+\.", name))})
    for block in blocks:
        encoder = block[: block.index("MHCA_layers.")]
        for name in [n for n in state if n.startswith((f"{encoder}cpe.", f"{encoder}crpe."))]:
            rest = name.removeprefix(encoder)
            state[block + rest] = state[name].clone()
            if rest.startswith("crpe."):
                state[f"{block}factoratt_crpe.{rest}"] = state[name].clone()
    if isinstance(model, AFFormerSegmentor):
        width = model.num_features
        state["decode_head.align.conv.weight"] = torch.randn(width, width, 1, 1)
        state |= {f"decode_head.align.gn.{leaf}": torch.randn(width) for leaf in ("weight", "bias")}
    return state


def test_a_saved_segmentor_of_the_authors_has_476_entries_for_258_parameters():
    model = afformer_base_segmentor(19)
    state = theirs(model)
    assert len(state) == 476
    assert len(list(model.parameters())) + 3 == 258  # and the three of the unused align
    check_conversion(model, from_authors(state))


def test_a_segmentor_with_mmsegs_wrapper_is_loaded(tmp_path):
    model = AFFormerSegmentor(7, **NARROW).eval()
    torch.save({"meta": {"epoch": 1}, "state_dict": theirs(model)}, tmp_path / "iter_160000.pth")
    loaded = create_model("afformer_base_segmentor", checkpoint=tmp_path / "iter_160000.pth", num_classes=7, **NARROW)
    images = torch.randn(1, 3, 40, 33)
    assert torch.equal(loaded.eval()(images), model(images))


def test_a_classifier_is_loaded_and_a_bare_backbone_is_told_apart_from_it(tmp_path):
    model = AFFormer(5, **NARROW).eval()
    state = theirs(model)
    torch.save(state, tmp_path / "imagenet.pth")
    loaded = create_model("afformer_base", checkpoint=tmp_path / "imagenet.pth", num_classes=5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    torch.save({k: v for k, v in state.items() if not k.startswith("cls_head.")}, tmp_path / "backbone.pth")
    bare = create_model("afformer_base", checkpoint=tmp_path / "backbone.pth", num_classes=0, **NARROW).eval()
    torch.testing.assert_close(bare(images), model.forward_head(model.forward_features(images), pre_logits=True))
    with pytest.raises(ValueError, match=r"missing head\.bias"):
        create_model("afformer_base", checkpoint=tmp_path / "backbone.pth", num_classes=5, **NARROW)


def test_another_number_of_classes_is_explained_and_its_head_reset_on_demand(tmp_path):
    torch.save({"state_dict": theirs(AFFormerSegmentor(7, **NARROW))}, tmp_path / "authors.pth")
    settings = {"checkpoint": tmp_path / "authors.pth", "num_classes": 4, **NARROW}
    with pytest.raises(ValueError, match="give num_classes=7 for its own classifier, or reset_head=True"):
        create_model("afformer_base_segmentor", **settings)
    assert create_model("afformer_base_segmentor", reset_head=True, **settings).num_classes == 4


def test_a_copy_that_differs_from_its_original_is_refused():
    state = theirs(AFFormerSegmentor(3, **NARROW))
    copy = next(name for name in state if ".factoratt_crpe.crpe." in name)
    with pytest.raises(ValueError, match="since a stage shares this tensor; they differ"):
        from_authors({**state, copy: state[copy] + 1})
    original = copy.replace("MHCA_layers.0.factoratt_crpe.", "")
    with pytest.raises(ValueError, match=f"copy of {re.escape(original)}, which is missing"):
        from_authors({name: value for name, value in state.items() if name != original})


def test_conversion_is_strict():
    """What the silent loading of the authors' trainer let through, and cost their users ten points of mIoU."""
    model = AFFormerSegmentor(3, **NARROW)
    state = theirs(model)
    for name in ("backbone.stem.1.bn.running_var", "backbone.mhca_stages.2.mhca_blks.0.MHCA_layers.1.norm2.bias"):
        with pytest.raises(ValueError, match="missing"):
            check_conversion(model, from_authors({key: value for key, value in state.items() if key != name}))
    with pytest.raises(ValueError, match="unexpected"):
        check_conversion(model, from_authors({**state, "decode_head.other.weight": torch.zeros(1)}))


def test_gradients_reach_the_authors_tensors():
    model = AFFormerSegmentor(3, **NARROW).eval()
    learned = {their_name(name) for name, _ in model.named_parameters()}
    leaves = {name: value.requires_grad_(name in learned) for name, value in theirs(model).items()}
    out = torch.func.functional_call(model, from_authors(leaves), (torch.randn(1, 3, 24, 24),))
    shared = leaves["backbone.mhca_stages.2.mhca_blks.0.crpe.conv_list.1.weight"]
    (found,) = torch.autograd.grad(out.square().sum(), [shared])
    assert found.abs().sum() > 0
