"""A method's sampler may give epochs of different lengths: the plan, the learning rate and resuming follow it."""

from types import SimpleNamespace

import pytest
import torch
from training_cases import assert_same, digits, normed_net, plain_net, settings, weights

from repertory.training import Method, fit
from repertory.training.loading import ShuffledBatches
from repertory.training.optimization import lr_factor

FULL, SHORT = 5, 2  # steps: 160 images in batches of 32, or 64 of them


class Halting(ShuffledBatches):
    """Every other epoch has two batches only, the last epoch all; ``told`` says that this is known before."""

    told = True
    epochs = 0

    def set_epochs(self, epochs):
        self.epochs = epochs

    def length(self, epoch):
        return SHORT if epoch % 2 and epoch != self.epochs - 1 else FULL

    def planned_batches(self, epoch):
        return self.length(epoch) if self.told else None

    def __iter__(self):
        yield from list(super().__iter__())[: self.length(self.epoch)]


class Untold(Halting):
    told = False


class Halts(Method):
    name = "halts"
    claims = frozenset({"sampler"})
    sampler = Halting

    def __init__(self):
        self.totals = []

    def batch_sampler(self, dataset, batch_size, seed, rank, world):
        return self.sampler(len(dataset), batch_size, seed, rank, world)

    def before_step(self, model, progress):
        self.totals.append(progress.total)

    def figures(self):
        return {"last_total": self.totals[-1]}

    def state_dict(self):
        return {"totals": self.totals}

    def load_state_dict(self, state):
        self.totals = list(state["totals"])


class HaltsUntold(Halts):
    sampler = Untold


def run(out, method, resume=False, progress=False, **changes):
    chosen = {"epochs": 4, "log_steps": 1, "checkpoint_steps": 1, **changes}
    return fit(
        normed_net(dropout=0.2),
        digits(),
        [method],
        out=out,
        settings=settings(**chosen),
        resume=resume,
        progress=progress,
    )


def test_a_run_is_planned_by_the_lengths_that_the_sampler_tells(tmp_path):
    seen = []
    result = run(tmp_path, Halts(), progress=lambda done, total: seen.append((done, total)))
    steps = FULL + SHORT + FULL + FULL
    assert (result.steps, result.images, result.epochs) == (steps, steps * 32, 4)
    assert {total for _, total in seen} == {steps * 32}
    assert [images // 32 for images, _ in result.curves["val_top1"]] == [5, 7, 12, 17]


def test_an_epoch_that_cannot_be_told_counts_as_full_until_it_begins(tmp_path):
    result = run(tmp_path, HaltsUntold())
    assert (result.steps, result.epochs) == (17, 4)
    assert [int(total) for _, total in result.curves["halts_last_total"]] == [20, 17, 17, 17]


def test_the_learning_rate_follows_the_epochs(tmp_path):
    result = run(tmp_path, Halts())
    rates = [rate for _, rate in result.curves["lr"]]
    # Steps of full epochs at which each step stands: a short epoch goes through its five in two strides.
    places = [*range(5), 5, 7.5, *range(10, 20)]
    assert rates == pytest.approx([0.05 * lr_factor("cosine", place, 20, 0) for place in places])


def test_with_equal_epochs_it_follows_the_steps_to_the_bit(tmp_path):
    result = fit(plain_net(), digits(), out=tmp_path, settings=settings(max_images=13 * 32, log_steps=1))
    assert [rate for _, rate in result.curves["lr"]] == [0.05 * lr_factor("cosine", step, 13, 0) for step in range(13)]


def test_a_run_may_be_cut_by_images_within_an_epoch(tmp_path):
    result = run(tmp_path, Halts(), max_images=14 * 32)
    assert (result.steps, result.images) == (14, 14 * 32)
    # Of the fourth epoch, which has five steps as it is the last, two are run.
    assert result.curves["lr"][-1][1] == pytest.approx(0.05 * lr_factor("cosine", 16, 17, 0))


def test_images_cannot_limit_a_run_whose_epochs_are_not_known(tmp_path):
    with pytest.raises(ValueError, match="max_images is 448, but how long an epoch of this sampler will be"):
        run(tmp_path, HaltsUntold(), max_images=14 * 32)


@pytest.mark.parametrize("method", [Halts, HaltsUntold])
@pytest.mark.parametrize("stop", [5, 6, 7, 13])
def test_a_run_stopped_in_any_epoch_goes_on_as_the_uncut_run(tmp_path, method, stop):
    class StoppedError(Exception):
        pass

    def halt(done, total):
        if done >= stop * 32:
            raise StoppedError

    whole = run(tmp_path / "whole", method())
    with pytest.raises(StoppedError):
        run(tmp_path / "cut", method(), progress=halt)
    resumed = run(tmp_path / "cut", method(), resume=True)
    assert_same(weights(whole.model), weights(resumed.model))
    assert (resumed.steps, resumed.curves) == (whole.steps, whole.curves)
    again = run(tmp_path / "cut", method(), resume=True)
    assert (again.steps, again.metrics) == (whole.steps, whole.metrics)


def test_every_method_is_shown_the_data_even_if_an_earlier_one_has_the_sampler(tmp_path):
    seen = []

    class Looks(Method):
        name = "looks"

        def batch_sampler(self, dataset, batch_size, seed, rank, world):
            seen.append(len(dataset))

    fit(plain_net(), digits(), [Halts(), Looks()], out=tmp_path, settings=settings(max_images=32))
    assert seen == [160]


class Vanishing(Untold):
    """An epoch comes that has no batch, which nobody could have told."""

    def __iter__(self):
        if self.epoch == 2:
            raise ValueError("epoch 2 keeps 0 of 160 samples")
        yield from super().__iter__()


def test_what_was_done_before_an_impossible_epoch_is_kept(tmp_path):
    class Vanishes(Halts):
        sampler = Vanishing

    with pytest.raises(ValueError, match="epoch 2 keeps 0 of 160 samples"):
        run(tmp_path, Vanishes(), checkpoint_steps=200)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert SimpleNamespace(**saved["position"]).step == FULL + SHORT
