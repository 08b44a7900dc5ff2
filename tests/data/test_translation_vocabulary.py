"""Byte pairs give every text back, and pairs become tokens within a limit."""

import logging

import pytest

from repertory.data.translation import SentencePairs
from repertory.data.translation_vocabulary import BEGIN, END, PADDING, BytePairs, TokenLists, encode_pairs

pytest.importorskip("tokenizers", reason="pip install 'repertory[text]'")

TEXTS = ["the house is green", "das Haus ist grün", "the garden", "der Garten", "  two  blanks ", "日本語 %(count)d €"]


def vocabulary(size=300):
    return BytePairs.train(TEXTS[:4], size)


def test_every_text_is_given_back_whatever_it_holds():
    pairs = vocabulary()
    assert len(pairs) <= 300
    assert pairs.decode(pairs.encode(TEXTS)) == TEXTS
    assert all(tokens[-1] == END and not {PADDING, BEGIN} & set(tokens) for tokens in pairs.encode(TEXTS))
    assert len(pairs.encode(["the house"])[0]) < len("the house")


def test_marks_in_a_sentence_are_text():
    pairs = vocabulary()
    tokens = pairs.encode(["say </s> and <pad>"])[0]
    assert tokens.count(END) == 1
    assert PADDING not in tokens
    assert pairs.decode([tokens]) == ["say </s> and <pad>"]


def test_decoding_stops_at_the_end_mark():
    pairs = vocabulary()
    tokens = pairs.encode(["the house"])[0]
    assert pairs.decode([[*tokens, *pairs.encode(["garden"])[0]]]) == ["the house"]


def test_what_is_saved_is_loaded_and_training_is_a_function_of_the_text(tmp_path):
    pairs = vocabulary()
    pairs.save(tmp_path / "bpe.json")
    assert BytePairs.load(tmp_path / "bpe.json").to_json() == pairs.to_json() == vocabulary().to_json()
    (tmp_path / "broken.json").write_text("{")
    for name, error in (("absent.json", FileNotFoundError), ("broken.json", ValueError)):
        with pytest.raises(error, match=name):
            BytePairs.load(tmp_path / name)
    with pytest.raises(ValueError, match="size is 100; it must be at least 259"):
        vocabulary(100)


def test_sentences_over_the_limit_are_refused_or_left_out(caplog):
    pairs, sentences = vocabulary(), SentencePairs(("the house", "x" * 50, ""), ("das Haus", "y", "leer"))
    with pytest.raises(ValueError, match="pair 1 has a sentence of 51 tokens; the limit is 20"):
        encode_pairs(sentences, pairs, 20)
    with caplog.at_level(logging.WARNING):
        encoded = encode_pairs(sentences, pairs, 20, too_long="skip", chunk=2)
    assert "1 of 3 pairs are left out" in caplog.text
    assert len(encoded) == 1
    assert encoded.vocabulary == len(pairs)
    assert pairs.decode([encoded.target[0].tolist()]) == ["das Haus"]
    with pytest.raises(ValueError, match="pairs has no pair of at most 3 tokens"):
        encode_pairs(SentencePairs(("",), ("",)), pairs, 3)
    with pytest.raises(ValueError, match="too_long is 'cut'"):
        encode_pairs(sentences, pairs, 20, too_long="cut")


def test_lists_of_tokens_are_kept_in_two_arrays():
    lists = TokenLists.of([[1, 2], [3], [4, 5, 6]])
    assert [one.tolist() for one in lists] == [[1, 2], [3], [4, 5, 6]]
    assert lists.lengths.tolist() == [2, 1, 3]
    assert [one.tolist() for one in lists[1:]] == [[3], [4, 5, 6]]
    assert len(TokenLists.of([])) == 0
