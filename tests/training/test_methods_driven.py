"""The engine calls the slots of methods in the order in which the protocol lists them."""

import pytest
import torch
from torch import nn
from training_cases import assert_same, digits, furthest, plain_net, settings, weights

from repertory.training import Batch, Method, check_claims, fit
from repertory.training.randomness import generator

CALLS: list[tuple] = []


class Scribe(Method):
    def __init__(self, name="scribe"):
        self.name = name

    def note(self, slot, progress=None):
        CALLS.append((self.name, slot) if progress is None else (self.name, slot, progress.step, progress.epoch))

    def prepare_model(self, model):
        self.note("prepare_model")
        return model

    def build_optimizer(self, model, default):
        assert {id(p) for g in default.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
        self.note("build_optimizer")
        return default

    def batch_sampler(self, dataset, batch_size, seed, rank, world):
        assert len(dataset.targets) == len(dataset)
        self.note("batch_sampler")

    def before_step(self, model, progress):
        assert progress.total == 3
        self.note("before_step", progress)

    def transform_batch(self, batch, progress):
        self.note("transform_batch", progress)
        return batch

    def extra_loss(self, outputs, batch):
        assert outputs.features.shape == (16, 24)
        assert outputs.logits.shape == (16, 10)
        self.note("extra_loss")
        return {"term": outputs.logits.sum() * 0}

    def after_step(self, model, progress):
        self.note("after_step", progress)

    def evaluation_model(self, model, train_loader):
        batches = list(train_loader)
        assert sum(len(batch.images) for batch in batches) == 32
        assert all(isinstance(batch, Batch) for batch in batches)
        self.note("evaluation_model")
        return model

    def state_dict(self):
        self.note("state_dict")
        return {}


def test_slots_are_called_in_the_order_of_the_protocol(tmp_path):
    CALLS.clear()
    fit(
        plain_net(),
        digits(train=32),
        [Scribe("a"), Scribe("b")],
        out=tmp_path,
        settings=settings(batch_size=16, max_images=48, evaluate_every=0),
    )
    whole = [call for call in CALLS if call[0] == "a"]
    step = ["transform_batch", "extra_loss", "after_step"]
    expected = ["prepare_model", "batch_sampler", "build_optimizer", *["before_step", *step] * 3]
    assert [call[1] for call in whole] == [*expected, "evaluation_model", "state_dict"]
    assert [call[2:] for call in whole if call[1] == "before_step"] == [(0, 0), (1, 0), (2, 1)]
    assert [call[2:] for call in whole if call[1] == "after_step"] == [(1, 0), (2, 1), (3, 1)]
    for first, second in zip(whole, [call for call in CALLS if call[0] == "b"]):
        assert CALLS.index(first) < CALLS.index(second)


def test_terms_of_methods_are_added_to_the_loss_and_recorded(tmp_path):
    class Push(Method):
        name = "push"

        def extra_loss(self, outputs, batch):
            return {"norm": 0.5 * outputs.logits.square().mean()}

    with_term = fit(plain_net(), digits(), [Push()], out=tmp_path / "1", settings=settings(epochs=1, log_steps=1))
    without = fit(plain_net(), digits(), out=tmp_path / "2", settings=settings(epochs=1))
    assert with_term.curves["train_push_norm"][0][1] > 0
    assert furthest(weights(with_term.model), weights(without.model)) > 0


class Claimant(Method):
    def __init__(self, name, claims=(), replicas=1):
        self.name, self.claims, self.replicas = name, frozenset(claims), replicas


def test_two_methods_with_one_claim_are_refused_by_name():
    with pytest.raises(ValueError, match="methods sam and lion cannot be combined: both need the optimizer alone"):
        check_claims([Claimant("sam", {"optimizer"}), Claimant("pairs", {"sampler"}), Claimant("lion", {"optimizer"})])
    with pytest.raises(ValueError, match="both need the replicas alone"):
        check_claims([Claimant("one", replicas=2), Claimant("two", replicas=3)])
    check_claims([Claimant("sam", {"optimizer"}), Claimant("pairs", {"sampler", "weights"}), Claimant("x")])


class Pairs(torch.utils.data.Sampler):
    """Each image twice in a row; the last batch is short."""

    def __init__(self, size, batch_size, seed):
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"epoch": self.epoch}

    def __iter__(self):
        order = torch.randperm(self.size, generator=generator("pairs", self.seed, self.epoch)).tolist()
        twice = [index for index in order for _ in range(2)]
        yield from (twice[i : i + self.batch_size] for i in range(0, len(twice), self.batch_size))


class Paired(Method):
    name = "paired"
    claims = frozenset({"sampler"})

    def batch_sampler(self, dataset, batch_size, seed, rank, world):
        return Pairs(len(dataset), batch_size, seed)

    def extra_loss(self, outputs, batch):
        assert torch.equal(batch.indices[::2], batch.indices[1::2])
        return {}


def test_a_methods_sampler_makes_the_batches_and_short_ones_are_left_out(tmp_path):
    result = fit(plain_net(), digits(train=72), [Paired()], out=tmp_path, settings=settings(epochs=2))
    assert (result.steps, result.images) == (8, 8 * 32)


SEEN: dict[int, list] = {}


class Replicated(Method):
    """Averages its replicas in the end."""

    name = "replicated"
    replicas = 2

    def before_step(self, model, progress):
        assert isinstance(model, nn.ModuleList)
        assert len(model) == 2
        if progress.step == 0:
            assert_same(weights(model[0]), weights(model[1]))

    def extra_loss(self, outputs, batch):
        SEEN.setdefault(len(SEEN), batch.indices.tolist())
        return {}

    def evaluation_model(self, model, train_loader):
        averaged = plain_net()
        states = [replica.state_dict() for replica in model]
        averaged.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
        return averaged


def test_replicas_take_batches_of_their_own_and_all_images_are_counted(tmp_path):
    SEEN.clear()
    result = fit(plain_net(), digits(), [Replicated()], out=tmp_path / "2", settings=settings(max_images=640))
    alone = fit(plain_net(), digits(), out=tmp_path / "1", settings=settings(max_images=320))
    assert (result.steps, result.images) == (10, 640)
    assert SEEN[0] != SEEN[1]
    saved = torch.load(tmp_path / "2" / "checkpoints" / "last.ckpt", weights_only=True)["model"]
    first = {name[2:]: tensor for name, tensor in saved.items() if name.startswith("0.")}
    second = {name[2:]: tensor for name, tensor in saved.items() if name.startswith("1.")}
    assert furthest(first, weights(alone.model)) < 1e-6
    assert furthest(first, second) > 1e-3
    assert furthest(weights(result.model), {n: (first[n] + second[n]) / 2 for n in first}) < 1e-6


def test_replicas_resume_exactly(tmp_path):
    whole = settings(epochs=4, schedule="constant")
    begun = settings(max_images=7 * 64, schedule="constant")
    uncut = fit(plain_net(), digits(), [Replicated()], out=tmp_path / "uncut", settings=whole)
    fit(plain_net(), digits(), [Replicated()], out=tmp_path / "cut", settings=begun)
    resumed = fit(plain_net(), digits(), [Replicated()], out=tmp_path / "cut", settings=whole, resume=True)
    assert_same(weights(resumed.model), weights(uncut.model))
