"""What blocks hand on to each other, which block is the most similar, and that no block is favoured."""

import pytest
import torch

from repertory.systems.fnas import Architecture, Block, DescriptorSimilarity, KnowledgePool, MobileNetwork, miniature
from repertory.systems.fnas.pool import newest, overlapped, sites, transfer

SPACE = miniature()
BASE = (2, 1, 0, 2, 1, 1) * 3  # mb3 k5 at reference width and depth


def network(tokens=BASE, seed=0):
    torch.manual_seed(seed)
    return MobileNetwork(SPACE.decode(tokens), 10, 1)


def deposited(pool, model, quality=0.5, budget=20):
    pool.deposit(model, model.state_dict(), quality, budget, pool.inherit(network(seed=9)))


def test_leading_channels_are_copied_and_the_rest_stays():
    source, target = torch.ones(2, 3), torch.zeros(4, 2)
    assert overlapped(source, target).tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


def test_a_larger_kernel_computes_what_the_smaller_one_did():
    source, target = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 5, 5)
    x = torch.randn(1, 4, 9, 9)
    small, large = (
        torch.nn.functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=4)
        for kernel in (source, overlapped(source, target))
    )
    torch.testing.assert_close(small, large)


def test_a_smaller_kernel_takes_the_centre():
    source = torch.arange(25.0).view(1, 1, 5, 5)
    assert torch.equal(overlapped(source, torch.zeros(1, 1, 3, 3)), source[:, :, 1:4, 1:4])


def test_channels_beyond_the_source_keep_their_whole_kernel():
    target = torch.randn(3, 2, 5, 5)
    result = overlapped(torch.randn(2, 2, 3, 3), target)
    assert torch.equal(result[2], target[2])
    assert not result[:2, :, 0].any()


def test_more_layers_begin_from_the_last_one_and_others_from_their_own():
    source = {"blocks.1.0.project.weight": torch.full((1,), 1.0), "blocks.1.1.project.weight": torch.full((1,), 2.0)}
    target = {f"blocks.1.{layer}.project.weight": torch.zeros(1) for layer in range(4)}
    assert [float(value) for value in transfer(source, target).values()] == [1, 2, 2, 2]


def test_what_the_source_lacks_stays_as_it_was_initialised():
    target = {"blocks.0.0.se.reduce.weight": torch.full((1, 1, 1, 1), 3.0), "blocks.0.0.conv.weight": torch.ones(1)}
    assert transfer({"blocks.0.0.project.weight": torch.zeros(1)}, target) == target


def test_statistics_of_the_overlap_are_copied_and_others_begin_anew():
    source = {"head.1.running_mean": torch.full((2,), 5.0), "head.1.num_batches_tracked": torch.tensor(40)}
    target = {"head.1.running_mean": torch.zeros(3), "head.1.num_batches_tracked": torch.tensor(0)}
    result = transfer(source, target)
    assert result["head.1.running_mean"].tolist() == [5, 5, 0]
    assert int(result["head.1.num_batches_tracked"]) == 0


def test_an_equal_network_inherits_every_weight():
    pool, first = KnowledgePool(), network(seed=1)
    deposited(pool, first)
    inherited = pool.inherit(network(seed=2))
    assert all(
        torch.equal(inherited.state[name], tensor)
        for name, tensor in first.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )
    assert inherited.similarity == (1.0,) * 5


def test_after_one_network_every_block_of_any_other_is_a_hit():
    pool = KnowledgePool()
    assert pool.hit_ratio is None
    assert pool.inherit(network()).similarity == (None,) * 5
    assert pool.hit_ratio == 0
    pool = KnowledgePool()
    model = network()
    pool.deposit(model, model.state_dict(), 0.5, 20, KnowledgePool().inherit(model))
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        tokens = [int(torch.randint(size, (), generator=random)) for size in SPACE.sizes]
        inherited = pool.inherit(network(tokens))
        network(tokens).load_state_dict(inherited.state)
        assert all(score is not None and 0 < score <= 1 for score in inherited.similarity)
    assert pool.hit_ratio == 1


@pytest.mark.parametrize(
    ("nearer", "farther"),
    [
        (Block("mb", 5, 32, 2, 2, 3), Block("mb", 3, 24, 2, 2, 3)),
        (Block("mb", 5, 24, 2, 2, 6), Block("sep", 5, 24, 2, 2)),
        (Block("mb", 5, 24, 3, 2, 3), Block("mb", 5, 24, 4, 2, 3)),
        (Block("mb", 5, 24, 2, 2, 3, 0.25), Block("conv", 5, 24, 2, 2)),
    ],
)
def test_similar_blocks_are_found(nearer, farther):
    wanted, score = Block("mb", 5, 24, 2, 2, 3), DescriptorSimilarity()
    assert score(wanted, 16, wanted, 16) == 1
    assert 1 > score(wanted, 16, nearer, 16) > score(wanted, 16, farther, 16) > 0
    assert score(wanted, 16, nearer, 16) == pytest.approx(score(nearer, 16, wanted, 16))
    assert score(wanted, 16, wanted, 24) < 1


def test_the_most_similar_block_is_taken_and_the_better_of_equals():
    pool = KnowledgePool()
    other = (0, 0, 0, 2, 1, 1) * 3
    for tokens, seed in ((other, 1), (BASE, 2)):
        deposited(pool, network(tokens, seed))
    inherited = pool.inherit(network(seed=3))
    name = "blocks.1.0.project.weight"
    assert torch.equal(inherited.state[name], network(BASE, 2).state_dict()[name])


def test_weights_that_saw_too_many_budgets_are_not_stored():
    pool = KnowledgePool(cap=2)
    for seed in range(4):
        model = network(seed=seed)
        pool.deposit(model, model.state_dict(), 0.5, 20, pool.inherit(model))
    stored = [entry for entries in pool.entries.values() for entry in entries]
    assert {entry.updates for entry in stored} == {40}
    second = network(seed=1).state_dict()["stem.0.weight"]
    assert torch.equal(pool.entries[0][0].state["stem.0.weight"], second)


def test_only_a_copy_of_the_same_budget_replaces_one():
    pool = KnowledgePool()
    deposited(pool, network(seed=1), budget=20)
    deposited(pool, network(seed=2), budget=30)
    assert {entry.budget for entries in pool.entries.values() for entry in entries} == {20}
    deposited(pool, network(seed=3), budget=20)
    assert torch.equal(pool.entries[0][0].state["stem.0.weight"], network(seed=3).state_dict()["stem.0.weight"])


def test_the_oldest_entry_leaves_a_full_pool():
    pool = KnowledgePool(newest, capacity=1)
    other = (0, 0, 0, 2, 1, 1) * 3
    for tokens in (BASE, other):
        deposited(pool, network(tokens))
    assert all(len(entries) == 1 for entries in pool.entries.values())
    assert pool.entries[1][0].site.block.op == "conv"


def test_stored_weights_are_copies():
    pool, model = KnowledgePool(), network()
    deposited(pool, model)
    with torch.no_grad():
        model.stem[0].weight.zero_()
    assert pool.entries[0][0].state["stem.0.weight"].any()


def test_a_pool_comes_back_as_it_was():
    pool, again = KnowledgePool(), KnowledgePool()
    deposited(pool, network(seed=1))
    again.load_state_dict(pool.state_dict())
    ours, theirs = (each.inherit(network(seed=5)) for each in (pool, again))
    assert ours.similarity == theirs.similarity
    assert all(torch.equal(ours.state[name], theirs.state[name]) for name in ours.state)
    assert again.hit_ratio == pool.hit_ratio


def test_sites_cover_every_tensor_once():
    model = network()
    names = list(model.state_dict())
    found = [name for _, prefixes in sites(model.architecture, 1) for name in names if name.startswith(prefixes)]
    assert sorted(found) == sorted(names)


def test_weights_of_a_timm_network_are_knowledge_too():
    import timm

    from repertory.systems.fnas.authors import from_authors
    from repertory.systems.fnas.model import MOBILENET_V2

    state = from_authors(timm.create_model("mobilenetv2_100", num_classes=10).state_dict())
    pool, model = KnowledgePool(), MobileNetwork(MOBILENET_V2, 10)
    pool.deposit(model, state, 0.7, 1, pool.inherit(model))
    wider = Architecture((*MOBILENET_V2.blocks[:6], Block("mb", 5, 400, 1, 1, 6)), act="relu6")
    inherited = pool.inherit(MobileNetwork(wider, 10))
    assert None not in inherited.similarity
    assert torch.equal(inherited.state["blocks.3.0.expand.weight"], state["blocks.3.0.expand.weight"])
    MobileNetwork(wider, 10).load_state_dict(inherited.state)


@pytest.mark.parametrize("settings", [{"capacity": 0}, {"cap": 0}])
def test_a_pool_that_could_keep_nothing_is_refused(settings):
    with pytest.raises(ValueError, match="capacity and cap are .* at least 1"):
        KnowledgePool(**settings)


def test_untrained_weights_are_no_knowledge():
    with pytest.raises(ValueError, match="budget is 0"):
        deposited(KnowledgePool(), network(), budget=0)
