"""Costs add up over parts, the cheapest architecture is found exactly, and a limit below it is refused."""

import itertools
import re

import pytest
import torch

from repertory.systems.fnas import LatencyTable, MultiplyAdds, SearchSpace, Stage, cheapest, miniature
from repertory.systems.fnas.cost import check_feasible, parts_in, parts_of

TINY = SearchSpace(
    (Stage(8, 1, 2), Stage(16, 2, 1)),
    operations=(("sep", 1), ("mb", 3)),
    se_ratios=(0.25,),
    skips=("pool", "none"),
    widths=(0.75, 1.5),
    depths=(0,),
    stem=8,
    stem_stride=1,
    head=8,
    input_size=(1, 9, 9),
    num_classes=3,
)
COST = MultiplyAdds(TINY.input_size, TINY.num_classes)


def everything(space):
    return itertools.product(*map(range, space.sizes))


def test_the_cheapest_architecture_is_that_of_trying_all():
    tokens, least = cheapest(TINY, COST)
    assert least == min(COST(TINY.decode(each)) for each in everything(TINY))
    assert COST(TINY.decode(tokens)) == least


def test_a_limit_that_no_architecture_keeps_is_refused_with_what_would_do():
    _, least = cheapest(TINY, COST)
    check_feasible(TINY, COST, least)
    with pytest.raises(ValueError, match=rf"the cheapest .* costs {re.escape(f'{least:g}')}: no architecture is feas"):
        check_feasible(TINY, COST, least - 1)
    with pytest.raises(ValueError, match="limit is -1; it must be above 0"):
        check_feasible(TINY, COST, -1)


def test_the_mobile_space_is_searched_for_its_cheapest_at_once():
    space = SearchSpace()
    tokens, least = cheapest(space, MultiplyAdds(space.input_size, space.num_classes))
    assert {block.op for block in space.decode(tokens).blocks} == {"sep"}
    assert 1e7 < least < 1e8


def by_size(module, image, rounds):
    return (1 + sum(p.numel() for p in module.parameters())) * 1e-6 + image.shape[-1] * 1e-9


def test_a_table_of_measured_parts_adds_up():
    table = LatencyTable.measure(TINY, timer=by_size)
    assert set(table.seconds) == {part.name for part in parts_in(TINY)}
    for tokens in list(everything(TINY))[::5]:
        architecture = TINY.decode(tokens)
        names = [part.name for part in parts_of(architecture, TINY.input_size)]
        assert table(architecture) == pytest.approx(sum(table.seconds[name] for name in names))
    fast, _ = cheapest(TINY, table)
    assert TINY.decode(fast).blocks[1].channels == 16


def test_the_stopwatch_measures_every_part_of_a_network():
    architecture = miniature().decode((2, 1, 1, 0, 1, 1) * 3)
    table = LatencyTable.measure(miniature(), architectures=[architecture], rounds=1)
    assert len(table.seconds) == 2 + 5
    assert 0 < table(architecture) < 60


def test_a_part_that_was_not_measured_is_named():
    table = LatencyTable.measure(TINY, architectures=[TINY.decode((0,) * 12)], timer=by_size)
    with pytest.raises(ValueError, match=r"no entry for 'mb3 k3 se0.25 pool 8 x1 s2 on 8x9x9'"):
        table(TINY.decode((1,) + (0,) * 11))


def test_a_table_is_kept_as_json(tmp_path):
    table = LatencyTable.measure(TINY, timer=by_size)
    table.save(tmp_path / "phone.json")
    again = LatencyTable.load(tmp_path / "phone.json")
    assert again.configuration == table.configuration
    assert [path.name for path in tmp_path.iterdir()] == ["phone.json"]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is no latency table"):
        LatencyTable.load(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match=r"no latency table at .*none\.json"):
        LatencyTable.load(tmp_path / "none.json")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_is_above_zero(seconds):
    with pytest.raises(ValueError, match=r"seconds of 'stem' is .*; it must be above 0"):
        LatencyTable({"stem": seconds}, (1, 8, 8), 2)


def test_rounds_are_at_least_one():
    with pytest.raises(ValueError, match="rounds is 0; it must be at least 1"):
        LatencyTable.measure(TINY, rounds=0)


def test_a_module_of_a_part_takes_the_map_that_comes_in():
    def shapes(module, image, rounds):
        assert torch.is_tensor(module(image))
        return 1.0

    assert LatencyTable.measure(TINY, timer=shapes).seconds
