"""The attention layer: what it adds, how far it sees, in two axes and in three; where its share of a pixel went."""

import itertools

import pytest
import torch

from repertory.systems.ccnet import CCNet, CrissCrossAttention, CrissCrossHead, affinity_picture
from repertory.systems.ccnet.model import DilatedResNet
from repertory.systems.ccnet.released import ReleasedAttention3d


def layer(dim=8, axes=2, gamma=0.7, **settings):
    torch.manual_seed(0)
    made = CrissCrossAttention(dim, axes=axes, **settings)
    torch.nn.init.constant_(made.gamma, gamma)
    return made


def by_loops(made, x):
    """The definition of the paper, one position at a time: every line through it, itself once."""
    query, key, value = (part(x)[0] for part in (made.query, made.key, made.value))
    out = x.clone()
    for place in itertools.product(*map(range, x.shape[2:])):
        seen = {place}
        for axis, size in enumerate(x.shape[2:]):
            seen |= {(*place[:axis], other, *place[axis + 1 :]) for other in range(size)}
        assert len(seen) == sum(x.shape[2:]) - x.ndim + 3
        keys, values = (torch.stack([y[(slice(None), *p)] for p in sorted(seen)]) for y in (key, value))
        weights = (keys @ query[(slice(None), *place)]).softmax(0)
        out[(0, slice(None), *place)] += made.gamma * (weights @ values)
    return out


@pytest.mark.parametrize(("axes", "size"), [(2, (4, 5)), (2, (1, 3)), (3, (3, 2, 4)), (3, (1, 1, 1))])
def test_a_position_attends_to_the_lines_through_it_and_counts_itself_once(axes, size):
    made, x = layer(axes=axes), torch.randn(1, 8, *size)
    torch.testing.assert_close(made(x), by_loops(made, x))


def test_the_released_three_axes_are_not_the_papers():
    x, correct = torch.randn(1, 8, 3, 4, 5), layer(axes=3)
    released = ReleasedAttention3d(8)
    released.load_state_dict(correct.state_dict())
    assert not torch.allclose(released(x), correct(x), atol=1e-2)


def test_a_new_layer_is_the_identity():
    x = torch.randn(2, 16, 5, 6)
    assert torch.equal(CrissCrossAttention(16)(x), x)


@pytest.mark.parametrize(("times", "reached"), [(1, False), (2, True)])
def test_two_applications_reach_every_pixel_and_one_only_the_cross(times, reached):
    made, x = layer(), torch.randn(1, 8, 5, 6, requires_grad=True)
    y = x
    for _ in range(times):
        y = made(y)
    (slope,) = torch.autograd.grad(y[0, :, 1, 2].sum(), x)
    touched = slope[0].abs().sum(0) > 0
    cross = torch.zeros(5, 6, dtype=torch.bool)
    cross[1], cross[:, 2] = True, True
    assert touched[cross].all()
    assert touched[~cross].all() if reached else not touched[~cross].any()


def narrow_head(recurrence):
    torch.manual_seed(0)
    return CrissCrossHead(12, 3, out_channels=8, inner_channels=8, recurrence=recurrence).eval()


def test_affinity_is_the_row_of_the_attention_matrix_and_of_its_products():
    head, x = narrow_head(2), torch.randn(1, 12, 4, 5)
    torch.nn.init.constant_(head.attention.gamma, 0.5)
    first, second = head.affinity(x, 2, 1)
    inner = head.reduce(x)

    def matrix(y):
        ones = torch.eye(20).view(1, 20, 4, 5)
        return head.attention._attend(y, ones)[0].flatten(1).t()  # row: query, column: where it takes from

    one, two = matrix(inner), matrix(head.attention(inner))
    query = 2 * 5 + 1
    torch.testing.assert_close(first.flatten(), one[query])
    torch.testing.assert_close(second.flatten(), (two @ one)[query])


def test_affinity_maps_sum_to_one_and_the_first_is_a_cross():
    model = CCNet(3, DilatedResNet((1, 1, 1, 1), width=4), recurrence=2).train()
    maps = model.affinity(torch.randn(2, 3, 33, 41), row=8, column=40)
    assert [tuple(m.shape) for m in maps] == [(2, 5, 6), (2, 5, 6)]
    for found in maps:
        assert (found >= 0).all()
        torch.testing.assert_close(found.sum((1, 2)), torch.ones(2))
    off = maps[0].clone()
    off[:, 1], off[:, :, 5] = 0, 0
    assert not off.any()
    assert (maps[1] > 0).all()
    assert all(module.training for module in model.modules())


def test_affinity_leaves_frozen_layers_frozen():
    model = CCNet(3, DilatedResNet((1, 1, 1, 1), width=4)).train()
    model.backbone.eval()
    model.affinity(torch.randn(1, 3, 17, 17), 0, 0)
    assert model.training
    assert not model.backbone.training


def test_a_picture_of_an_affinity_marks_the_query_and_lights_what_it_took():
    Image = pytest.importorskip("PIL.Image")
    affinity = torch.zeros(3, 3)
    affinity[0, 2] = 1.0
    picture = affinity_picture(affinity, Image.new("L", (33, 17), 128), row=16, column=0)
    assert picture.size == (33, 17)
    assert picture.mode == "RGB"
    assert picture.getpixel((0, 16)) == (0, 255, 255)
    assert min(picture.getpixel((32, 0))) > 150
    assert picture.getpixel((5, 8)) == (64, 64, 64)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: CrissCrossAttention(8, axes=4), "axes is 4"),
        (lambda: CrissCrossAttention(8, qk_dim=0), "qk_dim are 8 and 0"),
        (lambda: CrissCrossHead(8, 3, recurrence=-1), "recurrence is -1"),
        (lambda: narrow_head(1).affinity(torch.randn(1, 12, 4, 5), 4, 0), r"query is \(4, 0\)"),
        (lambda: affinity_picture(torch.zeros(1, 3, 3), None, 0, 0), r"affinity is \(1, 3, 3\)"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        make()
    assert "\n" not in str(caught.value)
