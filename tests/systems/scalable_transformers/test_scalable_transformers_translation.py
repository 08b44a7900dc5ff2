"""The translation model: its crops, what padding and order mean to it, and the extracted sub-model."""

import pytest
import torch
from translation_cases import LIMIT, WORDS, model

from repertory.systems.scalable_transformers.crops import Crop
from repertory.systems.scalable_transformers.translation_model import sinusoids

SOURCE = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]])
TARGET = torch.tensor([[1, 4, 5], [1, 7, 0]])
CROPS = [Crop(), Crop(2, 1), Crop(1, 2)]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_an_extracted_model_is_contiguous_and_gives_the_output_of_the_crop(norm_first, crop):
    whole = model(norm_first=norm_first)
    part = whole.extract(None if crop.heads is None else 8 * crop.heads, crop.depth)
    with torch.no_grad():
        torch.testing.assert_close(part(SOURCE, TARGET), whole(SOURCE, TARGET, crop), rtol=0, atol=1e-6)
    assert all(tensor.is_contiguous() for tensor in (*part.parameters(), *part.buffers()))
    heads, depth = crop.heads or 3, crop.depth or 2
    width = 8 * heads
    layer = 12 * width**2 + 13 * width  # attention 4 (C^2 + C), feed-forward 8 C^2 + 5 C, two norms 4 C
    cross = 4 * (width**2 + width) + 2 * width
    final = 4 * width if norm_first else 0
    assert sum(p.numel() for p in part.parameters()) == WORDS * width + depth * (2 * layer + cross) + final


def test_the_vocabulary_is_cropped_on_its_channels_alone():
    whole = model()
    assert whole(SOURCE, TARGET, Crop(1)).shape == (2, 3, WORDS)
    whole(SOURCE, TARGET, Crop(1)).square().sum().backward()
    assert whole.embedding.weight.grad[:, :8].any(1).all()
    assert not whole.embedding.weight.grad[:, 8:].any()
    assert not whole.decoder[0].cross.query.weight.grad[8:].any()
    assert not whole.encoder[1].mlp.fc1.weight.grad[32:].any()


def test_words_after_a_place_and_padding_do_not_change_it():
    whole = model()
    with torch.no_grad():
        logits = whole(SOURCE, TARGET)
        torch.testing.assert_close(whole(SOURCE, TARGET[:, :2]), logits[:, :2])
        torch.testing.assert_close(whole(SOURCE[1:, :3], TARGET[1:]), logits[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_keys_and_values_that_are_kept_give_the_logits_of_the_whole_sentence(crop):
    whole, past, steps = model(norm_first=True), None, []
    with torch.no_grad():
        context, mask = whole.encode(SOURCE, crop)
        for place in range(TARGET.shape[1]):
            logits, past = whole.step(TARGET[:, place : place + 1], place, past, context, mask)
            steps.append(logits)
        torch.testing.assert_close(torch.cat(steps, 1), whole(SOURCE, TARGET, crop), rtol=1e-5, atol=1e-6)
    assert past[0][0].shape == (2, crop.heads or 3, 3, 8)


def test_hypotheses_beside_each_other_are_those_of_sentences_of_their_own():
    whole, heads = model(), torch.tensor([[1, 1], [1, 1]])
    with torch.no_grad():
        context, mask = whole.encode(SOURCE)
        _, past = whole.step(heads, 0, None, context, mask)
        together, _ = whole.step(torch.tensor([[4, 5], [6, 7]]), 1, past, context, mask)
        rows = torch.tensor([[1, 4], [1, 5], [1, 6], [1, 7]])
        apart = whole(SOURCE.repeat_interleave(2, 0), rows)[:, -1]
    torch.testing.assert_close(together.flatten(0, 1), apart, rtol=1e-5, atol=1e-6)


def test_positions_are_sines_and_cosines_in_turn():
    table = sinusoids(50, 8)
    assert table[0].tolist() == [0, 1] * 4
    torch.testing.assert_close(table[:, 0], torch.arange(50.0).sin())
    torch.testing.assert_close(table[:, 3], (torch.arange(50.0) / 10).cos())


def test_bad_sizes_sentences_and_tokens_are_named():
    whole = model()
    for call, words in (
        (lambda: model(mlp_ratio=2.5), "mlp_ratio is 2.5"),
        (lambda: model(embed_dim=25, num_heads=5), "embed_dim is 25; it must be even"),
        (lambda: model(num_heads=5), "embed_dim is 24; it must be a multiple of num_heads, which is 5"),
        (lambda: whole(SOURCE, TARGET, Crop(4)), "heads is 4; it must be from 1 to 3"),
        (lambda: whole(SOURCE, TARGET, Crop(depth=3)), "depth is 3; it must be from 1 to 2"),
        (lambda: whole(SOURCE, TARGET, Crop(resolution=32)), "resolution is 32; sentences have none"),
        (lambda: whole.extract(width=12), "width is 12; it must be a multiple of 8"),
        (lambda: whole(torch.full((1, 3), WORDS), TARGET[:1]), f"token {WORDS} is not of the model's vocabulary"),
        (lambda: whole(SOURCE, torch.full((2, LIMIT + 1), 3)), f"T at most {LIMIT}"),
        (lambda: whole.embed(torch.full((1, 2), 3), 8, LIMIT - 1), f"{LIMIT + 1} tokens; the limit .* is {LIMIT}"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_crops_compile_without_a_graph_break():
    whole = model(depth=1)
    compiled = torch.compile(whole, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(SOURCE, TARGET, Crop(2)), whole(SOURCE, TARGET, Crop(2)))
