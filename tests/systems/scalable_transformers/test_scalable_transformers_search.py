"""Beam search finds what a search of everything finds, whatever is in the batch; and translations of sentences."""

import itertools

import pytest
import torch
from translation_cases import WORDS, model

from repertory.data.translation_vocabulary import BytePairs
from repertory.systems.scalable_transformers.crops import Crop
from repertory.systems.scalable_transformers.translation_model import ScalableTransformer
from repertory.systems.scalable_transformers.translation_scores import bleu, token_accuracy
from repertory.systems.scalable_transformers.translation_search import beam_search, length_penalty, translate

SOURCE = torch.tensor([[5, 6, 7, 2], [8, 2, 0, 0], [9, 10, 2, 0]])


def sharp(**settings):
    """A model that is sure enough of its words for hypotheses to differ."""
    whole = model(**settings)
    with torch.no_grad():
        whole.embedding.weight.mul_(3)
    return whole


@torch.no_grad()
def best_of_all(whole, source, words, penalty):
    """The hypothesis of at most ``words`` words with the best penalised log-probability, by trying each."""
    found = []
    for count in range(words):
        for body in itertools.product(range(3, whole.vocabulary), repeat=count):
            before, after = torch.tensor([[1, *body]]), [*body, 2]
            logs = whole(source, before)[0].log_softmax(-1)
            total = float(sum(logs[place, word] for place, word in enumerate(after)))
            found.append((total / penalty(len(after)), after))
    return max(found)[1]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_wide_enough_finds_the_best_of_all_hypotheses(alpha):
    torch.manual_seed(4)
    whole = ScalableTransformer(6, embed_dim=8, depth=1, num_heads=2, drop=0.0, max_length=4).eval()
    source = torch.tensor([[3, 4, 2, 0], [5, 5, 4, 2]])
    found = beam_search(whole, source, beam=40, penalty=length_penalty(alpha), extra=4)
    for row, tokens in zip(source, found, strict=True):
        assert tokens == best_of_all(whole, row[None, : int((row > 0).sum())], 4, length_penalty(alpha))


@pytest.mark.parametrize("crop", [Crop(), Crop(2, 1)], ids=str)
def test_one_hypothesis_is_greedy_search(crop):
    whole = sharp()
    for row, tokens in zip(SOURCE, beam_search(whole, SOURCE, crop, beam=1, extra=4), strict=True):
        source, said = row[None, : int((row > 0).sum())], [1]
        while said[-1] != 2 and len(said) <= min(source.shape[1] + 4, whole.max_length):
            with torch.no_grad():
                logits = whole(source, torch.tensor([said]), crop)[0, -1]
            logits[:2] = float("-inf")
            said.append(int(logits.argmax()))
        if said[-1] != 2:
            said[-1] = 2  # at the limit a hypothesis is ended
        assert tokens == said[1:]


def test_a_sentence_is_translated_alike_alone_and_among_others():
    whole = sharp()
    together = beam_search(whole, SOURCE, beam=3, extra=5)
    apart = [beam_search(whole, row[None, : int((row > 0).sum())], beam=3, extra=5)[0] for row in SOURCE]
    assert together == apart


def test_translations_end_within_the_limit_and_hold_no_mark():
    whole = sharp()
    for tokens, words in zip(beam_search(whole, SOURCE, beam=2, extra=1), (4, 2, 3), strict=True):
        assert len(tokens) <= words + 1
        assert tokens[-1] == 2
        assert not {0, 1, 2} & set(tokens[:-1])


def test_the_penalty_is_one_for_one_word_and_favours_long_sentences():
    assert length_penalty(0.6)(1) == 1
    assert length_penalty(1.0)(7) == 2
    assert length_penalty(0.0)(50) == 1
    with pytest.raises(ValueError, match="alpha is -1; it must be at least 0"):
        length_penalty(-1)
    with pytest.raises(ValueError, match="beam is 0; it must be at least 1"):
        beam_search(model(), SOURCE, beam=0)


def test_sentences_are_translated_in_their_order_and_empty_ones_by_nothing():
    pytest.importorskip("tokenizers", reason="pip install 'repertory[text]'")
    vocabulary = BytePairs.train(["a house", "a garden"], 270)
    whole = ScalableTransformer(len(vocabulary), embed_dim=8, depth=1, num_heads=2, max_length=16).train()
    sentences = ["a house", "", "garden a house"]
    found = translate(whole, sentences, vocabulary, beam=2, extra=2, batch_size=2)
    assert found[1] == ""
    assert found[0] == translate(whole, sentences[:1], vocabulary, beam=2, extra=2)[0]
    assert whole.training
    with pytest.raises(ValueError, match="sentence 1 has .* tokens; the limit of the model, max_length, is 16"):
        translate(whole, ["a", "x" * 40], vocabulary)
    with pytest.raises(ValueError, match=f"vocabulary has {len(vocabulary)} tokens, but the model has {WORDS}"):
        translate(model(), sentences, vocabulary)


def test_bleu_is_that_of_sacrebleu_and_accuracy_counts_no_padding():
    sacrebleu = pytest.importorskip("sacrebleu", reason="pip install 'repertory[text]'")
    hypotheses, references = ["the cat sat on the mat .", "a dog"], ["the cat sat on a mat .", "a dog"]
    assert bleu(hypotheses, references) == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert bleu(references, references) == pytest.approx(100)
    with pytest.raises(ValueError, match="hypotheses are 1 and references 2"):
        bleu(["a"], references)
    whole, before = model(), torch.tensor([[1, 4, 5]])
    with torch.no_grad():
        target = whole(SOURCE[:1], before).argmax(-1)
    target[0, 1] = 3 if int(target[0, 1]) != 3 else 4
    target[0, 2] = 0
    assert token_accuracy(whole, [(SOURCE[:1], before, target)]) == 0.5
    with pytest.raises(ValueError, match="batches hold no word"):
        token_accuracy(whole, [])
