"""The papers point at what is there: links, anchors, files, modules and names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_house import PACKAGES, ROOT, modules

FOLDERS = (*PACKAGES, "benchmarks", "docs", "tests")
PAPERS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*")
_DOTTED = re.compile(rf"(?:{'|'.join((*PACKAGES, 'benchmarks'))})(?:\.\w+)+")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _anchors(paper: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    prose = _FENCE.sub("", paper.read_text())
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _missing(text: str) -> Iterator[str]:
    """What stands in backticks, looks like a path or a name of ours, and is not there."""
    for code in _CODE.findall(text):
        if found := _PATH.match(code):
            path = found[0]
            if "NNNN" not in path and not any(ROOT.glob(path.rstrip("/"))):
                yield path
        elif (found := _DOTTED.match(code)) and not _resolves(found[0]):
            yield found[0]


def _resolves(dotted: str) -> bool:
    """Whether it is a module, or an attribute of one."""
    parts = dotted.split(".")
    depth = 1
    while depth < len(parts) and find_spec(".".join(parts[: depth + 1])):
        depth += 1
        if not hasattr(import_module(".".join(parts[:depth])), "__path__"):
            break
    thing: object = import_module(".".join(parts[:depth]))
    for part in parts[depth:]:
        # A field of a struct or a dataclass may have no default, and an annotation alone is no attribute.
        if not hasattr(thing, part):
            return part in getattr(thing, "__annotations__", {})
        thing = getattr(thing, part)
    return True


@pytest.mark.parametrize("paper", PAPERS, ids=_name)
def test_links_lead_somewhere(paper: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", paper.read_text())):
        if not re.match(r"[a-z]+:", link):
            file, _, anchor = link.partition("#")
            target = (paper.parent / file).resolve() if file else paper
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("paper", PAPERS, ids=_name)
def test_names_in_backticks_are_there(paper: Path) -> None:
    assert not list(_missing(_FENCE.sub("", paper.read_text())))


@pytest.mark.parametrize("path", modules(), ids=_name)
def test_names_in_docstrings_and_comments_are_there(path: Path) -> None:
    assert not list(_missing(path.read_text()))


@pytest.mark.parametrize("paper", PAPERS, ids=_name)
def test_examples_import_what_is_there(paper: Path) -> None:
    for language, code in _FENCE.findall(paper.read_text()):
        if language == "python":
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                    assert all(_resolves(f"{node.module}.{alias.name}") for alias in node.names)


def test_each_attack_of_the_security_page_names_tests_that_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 20
    assert [name for name in sorted(named) if f"def {name}(" not in sources] == []
