"""The documentation is true: its Python runs, its commands parse, its links lead somewhere, every card has a page."""

import argparse
import contextlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from repertory import catalog, cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = sorted([*DOCS.glob("*.md"), *DOCS.glob("api/*.md"), *DOCS.glob("notes/*.md")])
PAGES = [*WRITTEN, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
SNIPPETS = sorted(DOCS.glob("snippets/*.py"))
FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.M | re.S)


def name(path):
    return str(path.relative_to(ROOT))


def fences(text, language):
    """(line of the page, code) of each fence of ``language``, also of those that stand indented in a tab."""
    for found in FENCE.finditer(text):
        indent, marked, code = found.groups()
        if marked == language:
            yield text.count("\n", 0, found.start()) + 1, re.sub(rf"^{indent}", "", code, flags=re.M)


def commands(text):
    """Every ``repertory`` command line of the console fences, without its comment."""
    for _, code in fences(text, "console"):
        joined = code.replace("\\\n", " ")
        for line in re.findall(r"^\$ (.*)$", joined, re.M):
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["repertory"]:
                    yield words[1:]


def parse(words):
    """Parse a command line as the program would, and write what ``> FILE`` asks for; raises where it would refuse."""
    if ">" in words:
        place = words.index(">")
        with Path(words[place + 1]).open("w") as file, contextlib.redirect_stdout(file):
            return parse(words[:place])
    if "--print_config" in words:
        with pytest.raises(SystemExit) as ended:
            cli._train_parser(cli._task(words)).parse_args([cli._underscored(word) for word in words[1:]])
        assert not ended.value.code
        return None
    if words[0] == "train":
        parser = cli._train_parser(cli._task(words))
        return parser.parse_args([cli._underscored(word) for word in words[1:]])
    return cli._parser().parse_args(words)


def subparsers():
    parser = cli._parser()
    return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices


def options(command):
    parser = cli._train_parser() if command == "train" else subparsers()[command]
    return {option.replace("_", "-") for action in parser._actions for option in action.option_strings}


def hooks():
    spec = importlib.util.spec_from_file_location("documentation_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(fences(page.read_text(encoding="utf-8"), "python"))], ids=name
)
def test_python_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in fences(page.read_text(encoding="utf-8"), "python"):
        # Blank lines in front make a traceback name the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=name)
def test_snippet_runs_alone(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet.read_text(encoding="utf-8"), str(snippet), "exec"), {"__name__": "__main__"})


def test_every_system_that_stands_has_a_snippet_and_notes():
    standing = [slug for slug in catalog.cards() if catalog.status(slug).status != "planned"]
    missing = [
        f"docs/{kind}"
        for slug in standing
        for kind in (f"snippets/{slug}.py", f"notes/{slug}.md")
        if not (DOCS / kind).is_file()
    ]
    assert not missing


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page.read_text(encoding="utf-8")))], ids=name)
def test_command_lines_on_a_page_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"repertory {shlex.join(words)}: {error}")


@pytest.mark.parametrize(
    "words", [["list", "--feild", "pose"], ["train", "--model", "resnet18", "--data", "x", "--bogus", "1"]]
)
def test_a_wrong_option_would_be_noticed(words):
    with pytest.raises(Exception, match=r"feild|bogus"):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_named_in_the_text_exist(page):
    for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        words = code.split()
        if words[0] != "repertory" or len(words) < 2 or words[1].startswith("-"):
            continue
        if words[1] in subparsers():
            unknown = {word for word in words[2:] if word.startswith("--")} - options(words[1])
            assert not unknown, f"`{code}`"
        else:
            assert words[1].isupper(), f"`{code}` names no command"


def anchors(text):
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page):
    generated = {f"systems/{slug}.md" for slug in catalog.cards()} | {"systems/index.md"}
    base = DOCS / "systems" if page.parent.name == "notes" else page.parent  # notes are shown on a system's page
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", text):
        found = Path(os.path.normpath(base / target)) if target else page
        if found.is_relative_to(DOCS) and found.relative_to(DOCS).as_posix() in generated:
            continue
        assert found.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), f"{target}#{anchor} does not exist"


@pytest.mark.parametrize("slug", list(catalog.cards()))
def test_every_card_has_a_page(slug):
    card, page = catalog.card(slug), hooks().page(catalog.card(slug))
    assert page.startswith(f"# {slug}\n")
    assert card.title in page
    assert card.purpose in page
    assert all(part.name in page for part in card.parts)


def test_the_page_of_a_reading_says_so_in_its_first_line():
    page_of = hooks().page
    readings = [slug for slug in catalog.cards() if "reading" in catalog.status(slug).status]
    for slug in readings:
        first = page_of(catalog.card(slug)).split("\n", 1)[1].strip().splitlines()[0]
        assert "reading" in first


def test_published_figures_stand_on_pages_at_parity_only():
    page_of = hooks().page
    for slug, card in catalog.cards().items():
        proved = catalog.status(slug).status in ("parity", "parity_with_readings")
        assert ("## Published figures" in page_of(card)) == (proved and bool(card.published))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs MkDocs: pip install 'repertory[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "systems" / "bake.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial", "segmentation"])
def test_the_tutorial_runs_as_it_is_written(page, tmp_path):
    """Every command of a tutorial in its order, in an empty folder, those that are not ours too."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    lines = [
        line
        for _, code in fences(text, "console")
        for line in re.findall(r"^\$ (.*)$", code.replace("\\\n", " "), re.M)
    ]
    lines = [line for line in lines if "photos/" not in line and "streets/" not in line]  # the reader's own pictures
    assert len(lines) > 5
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in lines:
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
