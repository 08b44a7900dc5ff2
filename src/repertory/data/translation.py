"""Sentence pairs to translate from and to: the catalogues that Django ships, and the files of WMT14.

``load_translation("django-en-de")`` gives a :class:`ParallelText`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from repertory.data.translation_catalogues import django_pairs
from repertory.data.translation_files import TextLines, joined
from repertory.errors import unknown_name


@dataclass(frozen=True)
class SentencePairs:
    """Sentences of two languages, equally many: ``source[i]`` means what ``target[i]`` means."""

    source: Sequence[str]
    target: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise ValueError(f"source has {len(self.source)} sentences, target {len(self.target)}; they must be pairs")

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self.source, self.target)


@dataclass(frozen=True)
class ParallelText:
    """Pairs to train on, to choose by and to report on; ``split`` says in words how they were parted.

    ``languages`` are the codes (source, target). Where no part is kept for the report alone, ``test`` is ``val``.
    """

    name: str
    languages: tuple[str, str]
    train: SentencePairs
    val: SentencePairs
    test: SentencePairs
    split: str


def django_text(target: str, root: Path | None = None, val_fraction: float = 0.1) -> ParallelText:
    """English and ``target`` (``de``, ``fr``, …): the messages of Django's own catalogues, some hundred short pairs.

    ``val_fraction`` of them validate, chosen by a hash of the English, so that they stay the same from one version of
    Django to another. ``root`` is a folder with a Django to read, the installed one where there is none.

    Raises:
        MissingExtraError: where Django or Babel, which reads catalogues, is not installed.
        FileNotFoundError: where there are no catalogues of that language.
        ValueError: for a fraction that leaves one of the parts empty.
    """
    pairs = django_pairs(target, root)
    kept = round(val_fraction * len(pairs))
    if not 0 < kept < len(pairs):
        raise ValueError(f"val_fraction is {val_fraction}; of {len(pairs)} pairs it must leave some in each part")
    parts = [SentencePairs(*map(tuple, zip(*part))) for part in (pairs[kept:], pairs[:kept])]
    split = f"{val_fraction:g} of the messages held out, by a hash of the English"
    return ParallelText(f"django-en-{target}", ("en", target), parts[0], parts[1], parts[1], split)


WMT14_CORPORA = {  # stems of the training files of the shared task, which its own archives hold
    "de": ("europarl-v7.de-en", "commoncrawl.de-en", "news-commentary-v9.de-en"),
    "fr": (
        "europarl-v7.fr-en",
        "commoncrawl.fr-en",
        "undoc.2000.fr-en",
        "news-commentary-v9.fr-en",
        "giga-fren.release2.fixed",
    ),
}


def wmt14_text(target: str, root: Path | None = None) -> ParallelText:
    """WMT14 English to German or French from plain text files in ``root``, a sentence a line.

    Training: ``train.en`` and ``train.de`` (or ``.fr``), or else the corpora of the shared task that are there
    (``europarl-v7.de-en.en``, ``commoncrawl.de-en.en``, …). Validation is ``newstest2013.*``, the test
    ``newstest2014.*``. Lines are read from disk when they are asked for.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing, is damaged, or has other lines than its partner.
    """
    if root is None:
        raise FileNotFoundError(f"wmt14-en-{target} is not bundled: give root=, the folder with its text files")
    root = Path(root)
    stems = ["train"] if (root / "train.en").is_file() or (root / f"train.{target}").is_file() else []
    stems = stems or [stem for stem in WMT14_CORPORA[target] if (root / f"{stem}.en").is_file()]
    if not stems:
        known = ", ".join(f"{stem}.en" for stem in ("train", *WMT14_CORPORA[target]))
        raise FileNotFoundError(f"no training text in {root}: none of {known} is there")
    train, val, test = (_pairs(root, part, target) for part in (stems, ["newstest2013"], ["newstest2014"]))
    return ParallelText(f"wmt14-en-{target}", ("en", target), train, val, test, "newstest2013 and newstest2014")


def _pairs(root: Path, stems: Sequence[str], target: str) -> SentencePairs:
    """The pairs of several files, one after another."""
    sides: tuple[list[TextLines], list[TextLines]] = ([], [])
    for stem in stems:
        files = [TextLines(root / f"{stem}.{language}") for language in ("en", target)]
        if len(files[0]) != len(files[1]):
            raise ValueError(
                f"{files[0].path} has {len(files[0])} lines and {files[1].path} {len(files[1])}; they must be as many"
            )
        for side, file in zip(sides, files):
            side.append(file)
    return SentencePairs(joined(sides[0]), joined(sides[1]))


TEXTS: dict[str, Callable[[Path | None], ParallelText]] = {
    "django-en-de": lambda root: django_text("de", root),
    "django-en-fr": lambda root: django_text("fr", root),
    "wmt14-en-de": lambda root: wmt14_text("de", root),
    "wmt14-en-fr": lambda root: wmt14_text("fr", root),
}


def load_translation(name: str, root: str | PathLike[str] | None = None) -> ParallelText:
    """The pairs called ``name``: ``django-en-de``, ``django-en-fr``, ``wmt14-en-de`` or ``wmt14-en-fr``.

    ``root`` is the folder that they are in; WMT14 needs it. Errors as of :func:`django_text` and :func:`wmt14_text`,
    and ``ValueError`` for another name.
    """
    if name not in TEXTS:
        raise unknown_name("parallel text", name, TEXTS)
    return TEXTS[name](Path(root) if root is not None else None)
