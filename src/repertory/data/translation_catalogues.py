"""Message catalogues as sentence pairs: what a program says in English, and its translators' words for it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from repertory.errors import MissingExtraError


def django_pairs(language: str, root: Path | None = None) -> list[tuple[str, str]]:
    """(English, ``language``) of every message that Django's catalogues translate, in an order that a hash gives.

    Django is found but not imported, so it needs no settings. Of a message with a plural both forms are taken; of one
    that stands in several catalogues the first translation in the order of their paths. White space is single blanks.

    Raises:
        MissingExtraError: where Django or Babel is not installed.
        FileNotFoundError: where ``root`` has no catalogues of the language.
        ValueError: naming a catalogue that is damaged.
    """
    root = _django() if root is None else root
    found = sorted(root.glob(f"**/locale/{language}/LC_MESSAGES/*.mo"))
    if not found:
        raise FileNotFoundError(f"no catalogues of the language {language!r} in {root}: no locale/{language} folder")
    pairs: dict[str, str] = {}
    for path in found:
        for source, target in read_catalogue(path):
            pairs.setdefault(source, target)
    return sorted(pairs.items(), key=lambda pair: hashlib.blake2b(pair[0].encode(), digest_size=8).digest())


def read_catalogue(path: Path) -> Iterator[tuple[str, str]]:
    """(message, translation) of a compiled gettext catalogue (``.mo``), which holds no fuzzy or obsolete message.

    Compiled ones are read since some of Django's sources have more plural forms than they announce.

    Raises:
        MissingExtraError: where Babel is not installed.
        FileNotFoundError, ValueError: naming the file that is missing or damaged.
    """
    try:
        from babel.messages.mofile import read_mo
    except ImportError:
        raise MissingExtraError("Babel", "text", "reading message catalogues") from None
    if not path.is_file():
        raise FileNotFoundError(f"no message catalogue at {path}")
    try:
        with path.open("rb") as file:
            catalogue = read_mo(file)
    except (OSError, struct.error, UnicodeDecodeError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is no whole message catalogue: {error}") from None
    for message in catalogue:
        if not message.id:
            continue
        sources = message.id if isinstance(message.id, (tuple, list)) else (message.id,)
        targets = message.string if isinstance(message.string, (tuple, list)) else (message.string,)
        # English has two forms; a language with more has its own for "one" first and for "many" last.
        for source, target in zip(sources, (targets[0], targets[-1])):
            source, target = " ".join(source.split()), " ".join((target or "").split())
            if source and target:
                yield source, target


def _django() -> Path:
    """The folder of the installed Django, which is not imported."""
    found = find_spec("django")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("Django", "text", "its message catalogues")
    return Path(found.submodule_search_locations[0])
