"""PatchErasing under the engine and in a hand-written loop."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from repertory.data import load
from repertory.systems.patch_erasing import PatchErasing
from repertory.systems.patch_erasing.experiment import RectangleErasing
from repertory.systems.patch_erasing.method import classes_of
from repertory.training import Batch, FitSettings, Outputs, Progress, fit
from repertory.training.checkpoint import load_checkpoint

QUICK = {"accelerator": "cpu", "tensorboard": False, "batch_size": 32, "lr": 0.05, "evaluate_every": 0}
START = Progress(0, 0, 100)


@pytest.fixture(scope="module")
def digits():
    return load("digits", val_fraction=0.8)  # 360 images train, or nearly: 11 batches of 32


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10))


def run(digits, out, methods, progress=False, resume=False, **changes):
    chosen = FitSettings(**{**QUICK, **changes})
    return fit(network(), digits, methods, out=out, settings=chosen, progress=progress, resume=resume)


def same(first, second):
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def state(out):
    return load_checkpoint(out / "checkpoints" / "last.ckpt")["methods"][0]["state"]


def batch(size=4, classes=10):
    return Batch(torch.rand(size, 1, 8, 8) + 1, torch.arange(size) % classes, torch.arange(size))


def outputs(probabilities):
    """Logits that give label i the i-th probability, over 10 classes."""
    logits = torch.zeros(len(probabilities), 10)
    for i, p in enumerate(probabilities):
        logits[i, i % 10] = torch.tensor(9 * p / (1 - p)).log()
    return Outputs(logits, logits)


def test_images_are_erased_for_training(digits):
    given = batch()
    found = PatchErasing(0.5, patch_size=4).transform_batch(given, START)
    assert found.images.eq(0).flatten(1).sum(1).tolist() == [2 * 16] * 4
    assert not given.images.eq(0).any()
    assert torch.equal(found.labels, given.labels)


def test_easy_samples_lose_more_patches_in_the_next_epoch():
    method, given = PatchErasing(0.25, patch_size=2, easy_rate=0.5), batch(4)
    method.follow(4)
    first = method.transform_batch(given, START)
    assert first.images.eq(0).flatten(1).sum(1).tolist() == [4 * 4] * 4  # nobody is easy before the first visit
    method.extra_loss(outputs([0.95, 0.79, 0.81, 0.2]), first)
    within = method.transform_batch(given, START)
    assert within.images.eq(0).flatten(1).sum(1).tolist() == [4 * 4] * 4
    method.end_epoch()
    after = method.transform_batch(given, START)
    assert after.images.eq(0).flatten(1).sum(1).tolist() == [12 * 4, 4 * 4, 12 * 4, 4 * 4]


def test_an_epoch_is_closed_when_the_next_begins():
    method, model = PatchErasing(0.0, patch_size=4), network()
    for step, (epoch, probabilities) in enumerate([(0, [0.9, 0.5]), (0, [0.1, 0.9]), (1, [0.9, 0.9])]):
        method.before_step(model, Progress(step, epoch, 9))
        method.extra_loss(outputs(probabilities), batch(2))
        method.after_step(model, Progress(step + 1, 0 if step == 0 else epoch + 1, 9))
    assert [epoch["easy"] for epoch in method.history] == [0.5, 1.0]
    assert [epoch["hard"] for epoch in method.history] == [0.25, 0.0]
    assert method.figures()["easy"] == 1.0
    assert "hard_loss" not in method.figures()  # of no sample there is none


def test_shares_are_recorded_and_kept_by_a_run(digits, tmp_path):
    result = run(digits, tmp_path, [PatchErasing(0.3, patch_size=2)], epochs=4)
    history = state(tmp_path)["history"]
    assert len(history) == 4
    for name in ("easy", "moderate", "hard", "probability"):
        assert [value for _, value in result.curves[f"patch_erasing_{name}"]] == [epoch[name] for epoch in history]
    assert history[-1]["hard"] < history[0]["hard"]


def test_measuring_alone_is_ordinary_training_to_the_bit(digits, tmp_path):
    plain = run(digits, tmp_path / "plain", [], epochs=2)
    measured = run(digits, tmp_path / "measured", [PatchErasing(0.0, patch_size=2)], epochs=2)
    same(plain.model, measured.model)


@pytest.mark.parametrize("stop", [11 * 2, 11 * 2 + 4])
@pytest.mark.parametrize("mixing", ["none", "proportion", "period"])
def test_a_run_cut_between_or_within_epochs_goes_on_as_the_uncut_run(digits, tmp_path, stop, mixing):
    class StoppedError(Exception):
        pass

    def halt(done, total):
        if done >= stop * 32:
            raise StoppedError

    def method():
        return [PatchErasing(0.2, patch_size=2, easy_rate=0.4, alpha=0.5, mixing=mixing)]

    steps = {"epochs": 4, "checkpoint_steps": 1}
    whole = run(digits, tmp_path / "whole", method(), **steps)
    with pytest.raises(StoppedError):
        run(digits, tmp_path / "cut", method(), halt, **steps)
    resumed = run(digits, tmp_path / "cut", method(), resume=True, **steps)
    same(whole.model, resumed.model)
    assert resumed.curves == whole.curves
    assert repr(state(tmp_path / "cut")["history"]) == repr(state(tmp_path / "whole")["history"])  # also where NaN


def test_other_settings_do_not_resume_a_run(digits, tmp_path):
    run(digits, tmp_path, [PatchErasing(0.3, patch_size=2)], epochs=1)
    with pytest.raises(ValueError, match="rate of patch_erasing is 0.4, but the run was started with 0.3"):
        run(digits, tmp_path, [PatchErasing(0.4, patch_size=2)], epochs=2, resume=True)


def test_mixing_makes_soft_labels_of_the_networks_classes():
    method = PatchErasing(0.0, patch_size=4, mixing="proportion")
    method.before_step(network(), START)
    torch.manual_seed(0)
    found = method.transform_batch(batch(), START)
    assert found.labels.shape == (4, 10)
    torch.testing.assert_close(found.labels.sum(1), torch.ones(4))
    method.extra_loss(outputs([0.9] * 4), found)
    never = PatchErasing(0.0, patch_size=4, mixing="period", mix_probability=0.0)
    never.before_step(network(), START)
    assert never.transform_batch(batch(), START).labels.ndim == 1


def test_another_policy_may_take_its_place():
    asked = []
    method = PatchErasing(0.0, patch_size=4)
    method.policy = lambda history: asked.append(len(history)) or 0.5
    method.before_step(network(), START)
    assert method.transform_batch(batch(), START).labels.ndim == 2
    assert asked == [0]


def test_classes_are_those_of_the_network():
    model = network()
    assert classes_of(model) == classes_of(nn.ModuleList([model, model])) == 10
    model.num_classes = 7
    assert classes_of(model) == 7
    with pytest.raises(ValueError, match="Conv2d has neither num_classes nor a linear layer"):
        classes_of(nn.Conv2d(1, 1, 1))


def test_the_rival_erases_one_rectangle_of_the_same_area():
    torch.manual_seed(0)
    given = Batch(torch.rand(64, 1, 28, 28) + 1, torch.zeros(64).long(), torch.arange(64))
    gone = RectangleErasing(0.3, 4).transform_batch(given, START).images.eq(0)[:, 0]
    assert float(gone.float().mean()) == pytest.approx(0.3, abs=0.02)
    for mask in gone:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert int(rows * columns) == int(mask.sum())


def test_bad_settings_are_named(digits):
    for setting, value in (
        ("rate", 1.0),
        ("rate", -0.1),
        ("easy_rate", 1.0),
        ("patch_size", 0),
        ("mix_probability", 2.0),
    ):
        with pytest.raises(ValueError, match=f"{setting} is {value}"):
            PatchErasing(**{setting: value})
    with pytest.raises(ValueError, match=r"rate \+ easy_rate is 1.1"):
        PatchErasing(0.5, easy_rate=0.6)
    with pytest.raises(ValueError, match="fill is 'black'; it must be one of mean, noise"):
        PatchErasing(fill="black")
    with pytest.raises(ValueError, match="mixing is 'all'; it must be one of none, proportion, period"):
        PatchErasing(mixing="all")
    with pytest.raises(ValueError, match="alpha and beta are 0.2 and 0.3"):
        PatchErasing(alpha=0.2)
    with pytest.raises(ValueError, match="patch_size is 16 x 16, which does not divide images of 8 x 8"):
        PatchErasing().transform_batch(batch(), START)
    with pytest.raises(ValueError, match="call follow"):
        PatchErasing(0.1, 4, easy_rate=0.2).transform_batch(batch(), START)
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"patch_erasing follows classifiers; these logits have shape \(2, 3, 4, 4\)"):
        PatchErasing().extra_loss(Outputs(maps, maps), Batch(maps, torch.zeros(2, 4, 4).long(), torch.arange(2)))


def test_every_setting_has_a_type_and_an_explanation():
    for parameter in inspect.signature(PatchErasing).parameters.values():
        assert parameter.annotation is not parameter.empty
        assert f"        {parameter.name}: " in PatchErasing.__doc__


def test_the_loop_of_the_docs_trains_a_model_of_timm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "__main__"}
    exec((Path(__file__).parents[3] / "docs" / "snippets" / "patch_erasing.py").read_text(), scope)
    history = scope["history"]
    assert type(scope["model"]).__name__ == "VisionTransformer"
    assert len(history) == scope["epochs"]
    assert all(
        float(sum(epoch[name] for name in ("easy", "moderate", "hard"))) == pytest.approx(1) for epoch in history
    )
