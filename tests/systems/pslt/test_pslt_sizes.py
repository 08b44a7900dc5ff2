"""Any input size: windows and masks are those of the map at hand, and a forward leaves nothing behind."""

import copy

import pytest
import torch

from repertory.systems.pslt import PSLT, LadderBlock
from repertory.systems.pslt.model import APART, PatchMerging, Windows

NARROW = {"embed_dim": 6, "conv_depths": (1, 1), "depths": (2, 1), "num_heads": (2, 4)}


def published_mask(height, width, window, shift):
    """The masks of the paper's code for maps that windows divide: nine regions, numbered row by row."""
    if shift < 0:
        slices = (slice(0, -window), slice(-window, shift), slice(shift, None))
    else:
        slices = (slice(0, shift), slice(shift, window), slice(window, None))
    region = torch.zeros(height, width)
    for row in range(3):
        for column in range(3):
            region[slices[row], slices[column]] = 3 * row + column
    region = region.unfold(0, window, window).unfold(1, window, window).reshape(-1, window**2)
    return (region[:, :, None] != region[:, None, :]) * APART


@pytest.mark.parametrize("size", [(14, 14), (14, 28), (21, 14)])
@pytest.mark.parametrize("shift", [-3, 3])
def test_masks_are_those_of_the_published_regions(size, shift):
    assert torch.equal(Windows(*size, 7, [shift]).cuts[shift].mask, published_mask(*size, 7, shift))


def test_the_two_shifts_have_different_masks():
    cuts = Windows(14, 14, 7, [-3, 3]).cuts
    assert not torch.equal(cuts[-3].mask, cuts[3].mask)


@pytest.mark.parametrize("size", [(14, 14), (9, 16), (1, 20), (3, 5), (7, 7)])
@pytest.mark.parametrize("shift", [-3, 0, 3])
def test_cutting_and_joining_gives_the_map_back(size, shift):
    x, windows = torch.randn(2, *size, 4), Windows(*size, 7, [shift])
    assert torch.equal(windows.join(windows.cut(x, shift), shift), x)


def test_windows_are_rolled_by_their_shift():
    x = torch.arange(14.0 * 14).view(1, 14, 14, 1)
    for shift in (-3, 3):
        first = Windows(14, 14, 7, [shift]).cut(x, shift)[0].view(7, 7)
        assert torch.equal(first, x.roll((shift, shift), (1, 2))[0, :7, :7, 0])


def test_a_map_no_wider_than_a_window_is_neither_shifted_nor_masked():
    windows = Windows(7, 20, 7, [0, -3, 3])
    assert all(cut.mask is None for cut in windows.cuts.values())
    assert (windows.size, windows.count, windows.padding) == (7, 3, (0, 1))
    assert Windows(4, 20, 7, [3]).size == 4


def test_a_small_map_takes_the_middle_of_the_table_of_biases():
    block, table = LadderBlock(12, 2, window_size=7), torch.randn(13, 13, 2)
    small = LadderBlock(12, 2, window_size=4)
    for branch, narrow in zip(block.branches, small.branches, strict=True):
        branch.attn.bias_table.data = table.reshape(-1, 2)
        narrow.attn.bias_table.data = table[3:10, 3:10].reshape(-1, 2)
    same = {name: tensor for name, tensor in block.state_dict().items() if "bias_table" not in name}
    small.load_state_dict(same, strict=False)
    x = torch.randn(1, 4, 4, 12)
    torch.testing.assert_close(block.eval()(x), small.eval()(x))


def test_padding_is_zeros_that_are_attended_to():
    """As the authors' detector does: keys of the padding have the bias of their projection and the value zero."""
    block = LadderBlock(12, 2, shifts=(0,), gate=False, mix=False).eval()
    x = torch.randn(1, 10, 14, 12)
    branch = block.branches[0]
    padded = torch.nn.functional.pad(branch.norm1(x), (0, 0, 0, 0, 0, 4))
    windows = Windows(14, 14, 7, [0])
    attended = windows.join(branch.attn(windows.cut(padded, 0), None, windows, 0), 0)[:, :10]
    out = x + attended
    out = out + branch.ffn(branch.norm2(out).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), 2 * out)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 40), (113, 225), (256, 128)])
def test_any_size_works(size):
    model = PSLT(5, **NARROW).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 5)
    sides = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]
    assert [tuple(m.shape[-2:]) for m in model.forward_pyramid(torch.randn(1, 3, *size))] == sides


def test_an_odd_map_is_merged_as_if_padded_with_zeros():
    merging, x = PatchMerging(3).eval(), torch.randn(1, 3, 5, 7)
    torch.testing.assert_close(merging(x), merging(torch.nn.functional.pad(x, (0, 1, 0, 1))))


def test_a_small_image_changes_no_later_result():
    model = PSLT(5, **NARROW).eval()
    large, before = torch.randn(1, 3, 224, 224), copy.deepcopy(model)
    expected = model(large)
    model(torch.randn(1, 3, 64, 64))
    assert torch.equal(model(large), expected)
    assert list(model.state_dict()) == list(before.state_dict())
    for module, old in zip(model.modules(), before.modules(), strict=True):
        plain = {
            name: value for name, value in vars(module).items() if isinstance(value, (int, float, str, tuple, list))
        }
        assert plain == {name: getattr(old, name) for name in plain}


def test_nothing_in_the_state_depends_on_an_input_size():
    state = PSLT(5, **NARROW).state_dict()
    assert not [name for name in state if "mask" in name or "index" in name]


def test_an_image_in_a_batch_is_treated_as_alone():
    model = PSLT(5, **NARROW).eval()
    images = torch.randn(3, 3, 230, 230)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-4)


def test_an_empty_batch_gives_no_logits():
    model = PSLT(5, **NARROW).eval()
    with torch.no_grad():
        assert model(torch.zeros(0, 3, 64, 64)).shape == (0, 5)
