"""What holds for all tests."""


def pytest_ignore_collect(collection_path, config):
    """With ``-m gpu``, collect only files that hold such tests: others may import packages that the machine lacks."""
    if config.option.markexpr != "gpu" or collection_path.suffix != ".py" or collection_path.name == "conftest.py":
        return None
    return "mark.gpu" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items):
    """Tests that fork and train come first: torch refuses that once anything has started threads of autograd."""
    items.sort(key=lambda item: not item.path.name.endswith("resume.py"))  # the sort is stable
