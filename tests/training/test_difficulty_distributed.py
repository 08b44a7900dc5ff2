"""Methods that follow samples do on two processes what they do on one: every process knows the scores of all."""

import pytest
import torch
from training_cases import digits, furthest, plain_net, run_all, settings, weights

from repertory.systems.dap.method import Dap
from repertory.systems.patch_erasing.method import PatchErasing
from repertory.training import Method, fit
from repertory.training.checkpoint import load_checkpoint
from repertory.training.difficulty import DifficultyStore
from repertory.training.engine import Job
from repertory.training.processes import start

LENGTH = {"epochs": 5, "evaluate_every": 0, "checkpoint_steps": 3}
CASES = {
    "fraction": ([Dap(warmup=1, period=2, fraction=0.4)], LENGTH),
    "confidence": (
        [Dap(warmup=1, period=3, mode="confidence", threshold=0.5)],
        {**LENGTH, "epochs": 8, "lr": 0.1},
    ),
    "proportion": ([PatchErasing(rate=0.0, patch_size=2)], LENGTH),
    # Cut within the second epoch, then gone on with: what the first process wrote must be what all had.
    "begun": ([Dap(warmup=1, period=2, fraction=0.4)], {**LENGTH, "max_images": 8 * 32, "schedule": "constant"}),
}


class GathersOnAll(Method):
    """Shows that the state is asked of all processes together: a gathering that only some begin never ends."""

    name = "gathers_on_all"

    def __init__(self):
        self.store = DifficultyStore(4)

    def after_step(self, model, progress):
        rank = torch.distributed.get_rank()
        self.store.record(torch.tensor([rank, 3]), torch.tensor([1.0 + rank, 5.0 - rank]))

    def state_dict(self):
        return self.store.state_dict()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    jobs = [
        Job(plain_net(), digits(), methods, folder / name, settings(devices=2, **changes), False)
        for name, (methods, changes) in CASES.items()
    ]
    jobs.append(Job(plain_net(), digits(), [GathersOnAll()], folder / "gathered", settings(devices=2, epochs=1), False))
    two = dict(zip(CASES, start(run_all, jobs, 2, lambda done, total: None)))
    one = {
        name: fit(plain_net(), digits(), methods, out=folder / f"{name}-alone", settings=settings(**changes))
        for name, (methods, changes) in CASES.items()
    }
    return folder, one, two


def state(folder, name):
    return load_checkpoint(folder / name / "checkpoints" / "last.ckpt")["methods"][0]["state"]


@pytest.mark.parametrize("name", ["fraction", "confidence"])
def test_two_processes_keep_the_samples_that_one_keeps(pairs, name):
    folder, one, two = pairs[0], pairs[1][name], pairs[2][name]
    assert (one.steps, one.images, one.epochs) == (two.steps, two.images, two.epochs)
    assert furthest(weights(one.model), weights(two.model)) < 1e-5
    kept = [[share for _, share in result.curves["dap_kept"]] for result in (one, two)]
    assert kept[0] == kept[1]
    assert min(kept[0]) < 1
    states = [state(folder, place)["selection"] for place in (name, f"{name}-alone")]
    torch.testing.assert_close(states[0]["store"]["values"], states[1]["store"]["values"], atol=1e-3, rtol=1e-3)
    assert torch.equal(states[0]["kept"], states[1]["kept"])


def test_shares_are_counted_over_both_processes(pairs):
    folder = pairs[0]
    histories = [state(folder, place)["history"] for place in ("proportion", "proportion-alone")]
    assert len(histories[0]) == 5
    for two, one in zip(*histories, strict=True):
        assert two == pytest.approx(one, abs=1e-4, nan_ok=True)


def test_a_checkpoint_holds_the_scores_of_all_processes(pairs):
    found = state(pairs[0], "gathered")["fresh"]
    assert found.tolist() == [1.0, 2.0, float("-inf"), 5.0]


def test_what_two_processes_began_one_goes_on_with(pairs):
    folder = pairs[0]
    longer = settings(**{**LENGTH, "max_images": 20 * 32, "schedule": "constant"})
    ends = [
        fit(plain_net(), digits(), CASES["begun"][0], out=folder / name, settings=longer, resume=True)
        for name in ("begun", "begun-alone")
    ]
    assert ends[0].steps == 20
    assert furthest(*(weights(end.model) for end in ends)) < 1e-5
