"""Scores of whole pictures: windows cover them, scales and mirror images are averaged."""

import pytest
import torch
from torch import nn

from repertory.training.inference import Inference, multi_scale, sliding_window, whole_image


class Pointwise(nn.Module):
    """Logits of a pixel from that pixel alone."""

    def forward(self, x):
        return torch.stack([x.sum(1), x[:, 0] * 2], 1)


class Centred(nn.Module):
    """Logits that tell where in the picture shown a pixel lies, and how large that is."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, x):
        self.shown.append(tuple(x.shape))
        places = torch.arange(x.shape[3], dtype=x.dtype).expand(len(x), x.shape[2], -1)
        return torch.stack([places, torch.full_like(places, x.shape[3])], 1)


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (5, 40), (3, 3), (16, 15)])
@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.9])
def test_windows_of_a_pointwise_model_give_what_the_whole_picture_gives(size, overlap):
    images = torch.randn(2, 3, *size)
    given = sliding_window(Pointwise(), images, (8, 10), overlap, batch_size=3)
    torch.testing.assert_close(given, whole_image(Pointwise(), images))


def test_windows_have_one_size_and_their_logits_are_averaged_where_they_overlap():
    model = Centred()
    given = sliding_window(model, torch.zeros(1, 3, 4, 10), (4, 6), 1 / 3, batch_size=1)
    assert set(model.shown) == {(1, 3, 4, 6)}
    assert len(model.shown) == 2
    first, second = torch.arange(10.0), torch.arange(10.0) - 4
    expected = torch.cat([first[:4], (first[4:6] + second[4:6]) / 2, second[6:]])
    assert torch.equal(given[0, 0], expected.expand(4, -1))


def test_a_picture_smaller_than_the_window_is_padded_with_the_mean_colour():
    model = Centred()
    assert sliding_window(model, torch.zeros(1, 3, 3, 5), (8, 8)).shape == (1, 2, 3, 5)
    assert model.shown == [(1, 3, 8, 8)]


def test_the_mirror_image_is_scored_and_turned_back():
    given = multi_scale(Centred(), torch.zeros(1, 3, 2, 5), mirror=True)
    assert torch.equal(given[0, 0], torch.full((2, 5), 2.0))


def test_scores_of_all_scales_are_averaged_at_the_pictures_size():
    model = Centred()
    given = multi_scale(model, torch.zeros(1, 3, 6, 8), scales=(0.5, 1.0, 2.0))
    assert model.shown == [(1, 3, 3, 4), (1, 3, 6, 8), (1, 3, 12, 16)]
    torch.testing.assert_close(given[0, 1], torch.full((6, 8), (4 + 8 + 16) / 3))


def test_scales_and_mirror_leave_a_constant_picture_alone():
    images = torch.full((1, 3, 9, 7), 0.3)
    given = Inference(window=(4, 4), scales=(0.75, 1.5), mirror=True)(Pointwise(), images)
    torch.testing.assert_close(given, Pointwise()(images))


def test_a_resized_picture_has_the_models_size_on_its_shorter_side():
    model = Centred()
    inference = Inference.of("resized", (12, 16), 0.0, (1.0, 2.0), False)
    assert inference(model, torch.zeros(1, 3, 6, 9)).shape == (1, 2, 6, 9)
    assert model.shown == [(1, 3, 12, 18), (1, 3, 24, 36)]
    assert Inference.of("sliding", (12, 16), 0.0, (1.0,), False).window == (12, 16)


def test_coarse_logits_are_enlarged_and_dictionaries_opened():
    class Coarse(nn.Module):
        def forward(self, x):
            return {"out": Pointwise()(x[..., ::2, ::2])}

    assert whole_image(Coarse(), torch.zeros(1, 3, 7, 9)).shape == (1, 2, 7, 9)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: sliding_window(Pointwise(), x, (4, 4), 1.0), "overlap is 1.0; it must be at least 0 and below 1"),
        (lambda x: sliding_window(Pointwise(), x, (0, 4)), r"window is \(0, 4\); its height and width must be 1"),
        (lambda x: multi_scale(Pointwise(), x, scales=(-1,)), r"scales is \(-1,\)"),
        (lambda x: whole_image(nn.Flatten(), x), r"Flatten gives shape \(1, 48\); a segmentor gives logits"),
        (lambda x: Inference.of("tiled", (4, 4), 0, (1,), False), "inference is 'tiled'; it must be one of whole"),
    ],
)
def test_inference_that_cannot_be_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(torch.zeros(1, 3, 4, 4))
