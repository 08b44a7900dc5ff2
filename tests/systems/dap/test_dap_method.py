"""DaP under the engine and in a hand-written loop."""

import inspect
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from repertory.data import load
from repertory.systems.dap import Confident, Dap
from repertory.systems.dap.experiment import RandomFraction
from repertory.training import Batch, FitSettings, Outputs, fit
from repertory.training.checkpoint import load_checkpoint
from repertory.training.difficulty import label_entropy

QUICK = {"accelerator": "cpu", "tensorboard": False, "batch_size": 32, "lr": 0.05, "evaluate_every": 0}


@pytest.fixture(scope="module")
def digits():
    return load("digits", val_fraction=0.7)  # 539 images train: 16 batches of 32


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10))


def run(digits, out, methods, progress=False, resume=False, **changes):
    chosen = FitSettings(**{**QUICK, **changes})
    return fit(network(), digits, methods, out=out, settings=chosen, progress=progress, resume=resume)


def same(first, second):
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_run_processes_what_was_planned(digits, tmp_path):
    result = run(digits, tmp_path, [Dap(warmup=1, period=3, fraction=0.4, final=1)], epochs=8)
    n = len(digits.train)
    kept = n - round(0.4 * n)
    epochs = [n, n, kept, kept, n, kept, kept, n]
    assert [round(share * n) for _, share in result.curves["dap_kept"]] == epochs
    assert result.images == sum(count // 32 for count in epochs) * 32
    assert result.epochs == 8
    assert result.curves["dap_cost"][-1][1] == pytest.approx(sum(epochs) / (8 * n))


def test_with_nothing_dropped_it_is_ordinary_training_to_the_bit(digits, tmp_path):
    plain = run(digits, tmp_path / "plain", [], epochs=3)
    dap = run(digits, tmp_path / "dap", [Dap(warmup=1, fraction=0.0)], epochs=3)
    same(plain.model, dap.model)


def test_a_budget_of_images_is_spent_to_the_step(digits, tmp_path):
    result = run(digits, tmp_path, [Dap(warmup=1, period=2, fraction=0.5, final=1)], max_images=50 * 32)
    assert (result.steps, result.images) == (50, 1600)


@pytest.mark.parametrize("stop", [16 * 2 * 32, 37 * 32])
@pytest.mark.parametrize("mode", ["fraction", "confidence"])
def test_a_run_cut_between_or_within_epochs_goes_on_as_the_uncut_run(digits, tmp_path, mode, stop):
    class StoppedError(Exception):
        pass

    def halt(done, total):
        if done >= stop:
            raise StoppedError

    def method():
        return [Dap(warmup=1, period=3, fraction=0.4, mode=mode, threshold=0.6, accumulate=True)]

    whole = run(digits, tmp_path / "whole", method(), epochs=6, checkpoint_steps=1)
    with pytest.raises(StoppedError):
        run(digits, tmp_path / "cut", method(), halt, epochs=6, checkpoint_steps=1)
    resumed = run(digits, tmp_path / "cut", method(), resume=True, epochs=6, checkpoint_steps=1)
    same(whole.model, resumed.model)
    assert resumed.curves == whole.curves
    assert min(share for _, share in whole.curves["dap_kept"]) < 0.9


def test_other_settings_do_not_resume_a_run(digits, tmp_path):
    run(digits, tmp_path, [Dap(warmup=1)], epochs=1)
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match=r"fraction of dap is 0.5, but the run was started with 0.4"):
        run(digits, tmp_path, [Dap(warmup=1, fraction=0.5)], epochs=2, resume=True)
    with pytest.raises(ValueError, match=r"mode of dap is 'confidence', but the run was started with 'fraction'"):
        run(digits, tmp_path, [Dap(warmup=1, mode="confidence")], epochs=2, resume=True)
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before


def test_replicas_share_what_is_kept_and_have_batches_of_their_own(digits, tmp_path):
    method = Dap(warmup=1)
    samplers = [method.batch_sampler(digits.train, 32, seed, 0, 1) for seed in (0, 1)]
    assert samplers[0].selection is samplers[1].selection
    assert list(samplers[0]) != list(samplers[1])


def test_it_scores_the_hard_label_of_mixed_ones(digits):
    method = Dap()
    method.batch_sampler(digits.train, 32, 0, 0, 1)
    logits, indices = torch.randn(4, 10), torch.tensor([3, 1, 7, 5])
    soft = torch.full((4, 10), 0.02)
    soft[:, 2] = 0.82
    assert method.extra_loss(Outputs(logits, logits), Batch(torch.zeros(4, 1, 8, 8), soft, indices)) == {}
    found = method.selection.store.collect()[indices]
    torch.testing.assert_close(found, label_entropy(logits, torch.full((4,), 2)))


def test_random_dropping_leaves_as_many_and_other_ones(digits):
    rule, scores = RandomFraction(0.4), torch.arange(50.0)
    drops = [rule.easy(scores, torch.zeros(50, dtype=torch.int64), epoch) for epoch in range(2)]
    assert [int(drop.sum()) for drop in drops] == [20, 20]
    assert not torch.equal(drops[0], drops[1])
    assert not drops[0][:20].all()


def test_classes_are_told_by_the_targets_of_the_data(digits):
    sampler = Dap(per_class=True).batch_sampler(digits.train, 32, 0, 0, 1)
    assert sampler.selection.groups.tolist() == list(digits.train.targets)
    with pytest.raises(TypeError, match="list has no targets; per_class drops class by class"):
        Dap(per_class=True).batch_sampler([1, 2], 1, 0, 0, 1)


def test_bad_settings_are_named(digits):
    for setting, value in (("warmup", 0), ("period", 0), ("fraction", 1.0), ("fraction", -0.1), ("final", -1)):
        with pytest.raises(ValueError, match=f"{setting} is {value}"):
            Dap(**{setting: value})
    with pytest.raises(ValueError, match="mode is 'loss'; it must be one of fraction, confidence"):
        Dap(mode="loss")
    with pytest.raises(ValueError, match="threshold is 1.0"):
        Dap(mode="confidence", threshold=1.0)
    assert isinstance(Dap(mode="confidence").rule, Confident)
    with pytest.raises(ValueError, match="call its batch_sampler"):
        Dap().extra_loss(Outputs(torch.zeros(1, 2), torch.zeros(1, 2)), Batch(*[torch.zeros(1).long()] * 3))


def test_a_fraction_too_large_for_a_batch_is_refused_before_training(digits, tmp_path):
    with pytest.raises(ValueError, match="epoch 2 keeps 27 of 539 samples, fewer than one batch of 32"):
        run(digits, tmp_path, [Dap(warmup=1, fraction=0.95)], epochs=5)


def test_confidence_that_leaves_nothing_keeps_what_was_trained(digits, tmp_path):
    with pytest.raises(ValueError, match=r"epoch \d+ keeps \d+ of 539 samples, fewer than one batch"):
        run(digits, tmp_path, [Dap(1, 20, mode="confidence", threshold=0.5)], epochs=20, batch_size=108, lr=0.1)
    position = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["position"]
    assert position["step"] > 0
    assert position["step_in_epoch"] == 0


def test_every_setting_has_a_type_and_an_explanation():
    for parameter in inspect.signature(Dap).parameters.values():
        assert parameter.annotation is not parameter.empty
        assert f"        {parameter.name}: " in Dap.__doc__


def test_the_loop_of_the_docs_trains_a_model_of_timm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (Path(__file__).parents[3] / "docs" / "snippets" / "dap.py").read_text()
    scope = {"__name__": "__main__"}
    exec(source, scope)
    selection = scope["selection"]
    assert type(scope["model"]) is timm.models.resnet.ResNet
    assert selection.realised_cost == pytest.approx(selection.cost())
    assert selection.counts[-1] == selection.counts[0] > min(selection.counts)
