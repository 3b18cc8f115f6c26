"""The house: who may import whom, how large a room may be, and that every door is described."""

from __future__ import annotations

import ast
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("consensus", "vm", "api", "worker", "wallet", "node", "devnet", "tilework")

ALLOWED = {
    "consensus": {"consensus"},
    "vm": {"vm", "consensus"},
    "api": {"api", "consensus"},
    "worker": {"worker", "consensus"},
    "wallet": {"wallet", "api", "worker", "consensus"},
    "node": {"node", "vm", "api", "worker", "consensus"},
    "devnet": {"devnet", "node", "wallet", "api", "worker", "vm", "consensus"},
    "tilework": {"tilework", "devnet", "node", "wallet", "api", "worker", "vm", "consensus"},
}

LONG_FOR_A_REASON = {
    # numba's cache looks at one file: an instruction edited in another one would run stale.
    "consensus/work/kernel.py": 700,
}

FORBIDDEN_IN_CONSENSUS = {"asyncio", "logging", "time", "random", "socket", "pathlib", "io", "subprocess", "aiohttp"}


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots & set(PACKAGES) <= ALLOWED[package]


@pytest.mark.parametrize("path", sorted((ROOT / "consensus").rglob("*.py")), ids=lambda path: path.name)
def test_consensus_has_no_clock_no_randomness_and_no_io(path: Path) -> None:
    forbidden = FORBIDDEN_IN_CONSENSUS
    assert not {name.split(".")[0] for name in imported(path)} & forbidden


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_small(path: Path) -> None:
    limit = LONG_FOR_A_REASON.get(str(path.relative_to(ROOT)), 600)
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_bare_create_task_is_banned() -> None:
    """A service owns its tasks and its shutdown: tasks start in a TaskGroup, or in the one set that is cancelled."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = node.value.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                assert name not in {"create_task", "ensure_future"} or _is_group(called), f"{path}:{node.lineno}"


def _is_group(called: ast.expr) -> bool:
    return isinstance(called, ast.Attribute) and "group" in ast.unparse(called.value)


def test_every_package_is_installed() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("*/**/__init__.py")}
    assert {name for name in found if name.split(".")[0] in PACKAGES} == set(setup["options"]["packages"].split())
