"""What holds for all tests."""

import sys

import pytest


def pytest_ignore_collect(collection_path, config):
    """With ``-m gpu``, collect only files that hold such tests: others may import packages that the machine lacks."""
    if config.option.markexpr != "gpu" or collection_path.suffix != ".py" or collection_path.name == "conftest.py":
        return None
    return "mark.gpu" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items):
    """Tests that fork and train come first: torch refuses that once anything has started threads of autograd."""
    items.sort(key=lambda item: not item.path.name.endswith("resume.py"))  # the sort is stable


@pytest.fixture(autouse=True)
def _compiled_afresh(request):
    """What an earlier test compiled at other sizes would make the compiler try symbolic sizes, which takes minutes."""
    if "compile" in request.node.name and "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
