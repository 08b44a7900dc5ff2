"""Sentence pairs: the catalogues that Django ships, and text files of WMT14."""

import subprocess
import sys

import pytest

from repertory.data.translation import SentencePairs, django_text, load_translation, wmt14_text
from repertory.data.translation_catalogues import read_catalogue
from repertory.data.translation_files import JoinedLines, TextLines


def catalogues():
    pytest.importorskip("babel", reason="pip install 'repertory[text]'")
    pytest.importorskip("django", reason="pip install 'repertory[text]'")


def write_catalogue(path, messages):
    from babel.messages import Catalog
    from babel.messages.mofile import write_mo

    catalogue = Catalog(locale="de")
    for source, target in messages:
        catalogue.add(source, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_mo(file, catalogue)


@pytest.mark.parametrize(
    ("name", "known"), [("django-en-de", ("Korean", "Koreanisch")), ("django-en-fr", ("Korean", "Coréen"))]
)
def test_django_ships_pairs_that_need_neither_settings_nor_network(name, known):
    catalogues()
    text = load_translation(name)
    pairs = [*text.train, *text.val]
    assert known in pairs
    assert len(pairs) > 700
    assert len({source for source, _ in pairs}) == len(pairs)
    assert not set(text.train.source) & set(text.val.source)
    assert len(text.val) == pytest.approx(0.1 * len(pairs), abs=1)
    assert all(side == " ".join(side.split()) and side for pair in pairs for side in pair)


def test_django_is_not_imported():
    catalogues()
    code = (
        "import sys; from repertory.data.translation import load_translation; load_translation('django-en-de'); "
        "assert 'django' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_split_does_not_depend_on_other_messages(tmp_path):
    catalogues()
    messages = [(f"message {i}", f"Nachricht {i}") for i in range(40)]
    for count in (40, 30):
        path = tmp_path / str(count) / "app" / "locale" / "de" / "LC_MESSAGES" / "django.mo"
        write_catalogue(path, messages[:count])
    whole, part = (django_text("de", tmp_path / str(count), 0.5) for count in (40, 30))
    order = [*whole.val.source, *whole.train.source]
    assert [source for source in order if source in set(part.val.source) | set(part.train.source)] == [
        *part.val.source,
        *part.train.source,
    ]


def test_plurals_give_two_pairs_and_untranslated_messages_none(tmp_path):
    catalogues()
    path = tmp_path / "django.mo"
    write_catalogue(
        path,
        [(("%d hour", "%d hours"), ("%d Stunde", "%d Stunden")), ("a\n  line", "eine\nZeile"), ("empty", "")],
    )
    assert sorted(read_catalogue(path)) == [
        ("%d hour", "%d Stunde"),
        ("%d hours", "%d Stunden"),
        ("a line", "eine Zeile"),
    ]


def test_missing_and_damaged_catalogues_are_named(tmp_path):
    catalogues()
    path = tmp_path / "django.mo"
    with pytest.raises(FileNotFoundError, match="no message catalogue at .*django.mo"):
        next(read_catalogue(path))
    for content in (b"", b"\xde\x12\x04\x95" + b"\xff" * 30, b"no catalogue at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="django.mo is no whole message catalogue"):
            next(read_catalogue(path))
    with pytest.raises(FileNotFoundError, match="no catalogues of the language 'xx'"):
        django_text("xx")
    with pytest.raises(ValueError, match="val_fraction is 1.0"):
        django_text("de", val_fraction=1.0)


@pytest.mark.parametrize(("package", "wanted"), [("babel", "Babel"), ("django", "Django")])
def test_a_missing_package_is_met_by_the_command_that_installs_it(package, wanted, monkeypatch):
    catalogues()
    real = sys.meta_path[:]

    class Absent:
        @staticmethod
        def find_spec(name, *_):
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(name)
            return None

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent, *real])
    if package == "django":
        monkeypatch.setattr("repertory.data.translation_catalogues.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=rf"{wanted}, which is not installed: pip install 'repertory\[text\]'"):
        load_translation("django-en-de")


def wmt(folder, **files):
    for name, text in files.items():
        stem, language = name.rsplit("_", 1)
        (folder / f"{stem.replace('__', '.').replace('_', '-')}.{language}").write_text(text, encoding="utf-8")


def test_wmt14_is_read_from_plain_files(tmp_path):
    wmt(tmp_path, train_en="one\ntwo\n\n", train_de="eins\nzwei\n\n")
    wmt(
        tmp_path,
        newstest2013_en="three",
        newstest2013_de="drei\n",
        newstest2014_en=" f\u2028our \n",
        newstest2014_de="vier",
    )
    text = load_translation("wmt14-en-de", tmp_path)
    assert list(text.train) == [("one", "eins"), ("two", "zwei"), ("", "")]
    assert (list(text.val), list(text.test)) == ([("three", "drei")], [("f\u2028our", "vier")])
    assert text.languages == ("en", "de")


def test_corpora_of_the_shared_task_are_joined(tmp_path):
    for language in ("en", "fr"):
        for stem, lines in (
            ("europarl-v7.fr-en", 3),
            ("news-commentary-v9.fr-en", 2),
            ("newstest2013", 1),
            ("newstest2014", 1),
        ):
            (tmp_path / f"{stem}.{language}").write_text("".join(f"{stem} {language} {i}\n" for i in range(lines)))
    text = load_translation("wmt14-en-fr", tmp_path)
    assert isinstance(text.train.source, JoinedLines)
    assert text.train.target[3] == "news-commentary-v9.fr-en fr 0"
    assert text.train.source[-1] == "news-commentary-v9.fr-en en 1"
    assert text.train.source[2:4] == ["europarl-v7.fr-en en 2", "news-commentary-v9.fr-en en 0"]
    with pytest.raises(IndexError):
        text.train.source[5]


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="give root="):
        load_translation("wmt14-en-de")
    with pytest.raises(FileNotFoundError, match=r"none of train\.en, europarl-v7\.de-en\.en"):
        wmt14_text("de", tmp_path)
    wmt(tmp_path, train_en="one\ntwo\n")
    with pytest.raises(FileNotFoundError, match="no text at .*train.de"):
        wmt14_text("de", tmp_path)
    wmt(tmp_path, train_de="eins\n")
    with pytest.raises(ValueError, match=r"train\.en has 2 lines and .*train\.de 1; they must be as many"):
        wmt14_text("de", tmp_path)
    (tmp_path / "empty.en").touch()
    with pytest.raises(ValueError, match="empty.en is empty"):
        TextLines(tmp_path / "empty.en")
    (tmp_path / "latin.en").write_bytes(b"one\nna\xefve\n")
    with pytest.raises(ValueError, match="line 2 of .*latin.en is not UTF-8"):
        TextLines(tmp_path / "latin.en")[1]


def test_unknown_names_and_unpaired_sentences_are_refused():
    with pytest.raises(ValueError, match="unknown parallel text 'django-en-dee': did you mean django-en-de"):
        load_translation("django-en-dee")
    with pytest.raises(ValueError, match="source has 1 sentences, target 2"):
        SentencePairs(("a",), ("b", "c"))
