"""Every pair of methods in the catalogue either trains together or is refused by name.

A method that is registered later takes part with its defaults; ``SETTINGS`` says otherwise where these ask for more
than the tiny network and the 160 digits here have.
"""

import math
import signal
from itertools import combinations

import pytest
from training_cases import assert_same, digits, settings, small_vit, weights

from repertory.catalog import cards, create_method, list_methods, method_class
from repertory.training import check_claims, fit
from repertory.training.checkpoint import load_checkpoint

SETTINGS = {
    "hwa": {"replicas": 2, "window": 2},
    "dap": {"warmup": 1, "period": 2, "final": 0},
    "patch_erasing": {"rate": 0.25, "patch_size": 2, "easy_rate": 0.25, "mixing": "proportion"},
    "reste": {"keep": []},
    "petl_channels": {"channels": 4},
    "scalable_transformers": {"heads": (4, 2), "depths": (2, 1), "resolutions": (8,)},
}
METHODS = [name for card in cards().values() if card.task != "semantic segmentation" for name in card.methods]


def method(name):
    return create_method(name, **SETTINGS.get(name, {}))


def clash(pair):
    try:
        check_claims([method(name) for name in pair])
    except ValueError as error:
        return str(error)
    return None


PAIRS = list(combinations(METHODS, 2))
STACKED = [pair for pair in PAIRS if clash(pair) is None]


def run(pair, out, steps, resume=False, progress=False):
    methods = [method(name) for name in pair]
    images = steps * 32 * max(one.replicas for one in methods)
    chosen = settings(max_images=images, evaluate_every=0, log_steps=1, lr=0.01)
    return fit(small_vit(), digits(), methods, out=out, settings=chosen, resume=resume, progress=progress)


def test_no_method_is_left_out_but_those_that_train_segmentors():
    others = set(list_methods()) - set(METHODS)
    assert {card.task for card in cards().values() if others & set(card.methods)} == {"semantic segmentation"}
    assert set(SETTINGS) <= set(METHODS)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in STACKED], ids="-".join)
def test_a_pair_that_clashes_is_refused_by_name(pair):
    first, second = (method_class(name) for name in pair)
    assert first.claims & second.claims
    assert f"methods {pair[0]} and {pair[1]} cannot be combined" in clash(pair)


@pytest.mark.parametrize("pair", STACKED, ids="-".join)
def test_a_pair_that_claims_to_stack_trains(pair, tmp_path):
    result = run(pair, tmp_path, 3)
    assert result.steps == 3
    assert all(math.isfinite(value) for curve in result.curves.values() for _, value in curve)
    assert all(value.isfinite().all() for value in result.model.state_dict().values())
    saved = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["methods"]
    assert [one["name"] for one in saved] == list(pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", STACKED, ids="-".join)
def test_a_pair_cut_in_its_second_epoch_goes_on_as_the_uncut_run(pair, tmp_path):
    replicas = max(method(name).replicas for name in pair)

    def interrupt(done, total):
        if done == 7 * 32 * replicas:
            signal.raise_signal(signal.SIGTERM)

    whole = run(pair, tmp_path / "whole", 13)
    cut = run(pair, tmp_path / "cut", 13, progress=interrupt)
    assert (cut.interrupted, cut.steps) == (signal.SIGTERM, 8)
    resumed = run(pair, tmp_path / "cut", 13, resume=True)
    assert_same(weights(whole.model), weights(resumed.model))
    assert resumed.metrics == whole.metrics
