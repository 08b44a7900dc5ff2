"""Files are replaced whole or not at all."""

import pytest

from repertory.files import Replacement


def test_content_replaces_what_stood_there_and_folders_are_made(tmp_path):
    path = tmp_path / "new" / "note.txt"
    for text in ("first", "second"):
        with Replacement(path) as partial:
            partial.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_an_error_within_leaves_the_old_content_and_nothing_beside_it(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(TypeError, match="must be str"), Replacement(path) as partial, partial.open("w") as file:
        file.writelines(["half", 0])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError), Replacement(tmp_path / "taken") as partial:
        partial.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
