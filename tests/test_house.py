"""The house: who may import whom, how large a room may be, and that every door is described."""

from __future__ import annotations

import ast
from collections.abc import Container
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("consensus", "vm", "api", "worker", "wallet", "node", "devnet", "tilework")

# Whom a room's modules may import, beside their own room. A module belongs to the longest name that it begins with.
_CONSENSUS = {"consensus", "consensus.work", "consensus.proofs", "consensus.rules"}
_BELOW_NODE = _CONSENSUS | {"vm", "api", "worker"}
_CHAIN = _BELOW_NODE | {"node.config", "node.genesis", "node.log", "node.chain"}
_COMPUTE = _CHAIN | {"node.compute"}
_POOL = _COMPUTE | {"node.pool"}
_RPC = _POOL | {"node.mining", "node.p2p", "node.rpc"}
_ACCOUNTS = _CONSENSUS | {"api", "worker", "wallet"}
_CLIENT = _ACCOUNTS | {"wallet.accounts", "wallet.client"}
_WALLET = _CLIENT | {"wallet.models"}
_DEVNET = _WALLET | _RPC | {"node"}
MAY_IMPORT = {
    "consensus": _CONSENSUS,
    "consensus.work": {"consensus"},
    "consensus.proofs": {"consensus", "consensus.work"},
    "consensus.rules": {"consensus", "consensus.proofs"},
    "vm": _CONSENSUS,
    "api": _CONSENSUS,
    "worker": _CONSENSUS,
    "wallet": _CONSENSUS,  # the errors that all of it raises
    "wallet.accounts": _ACCOUNTS,
    "wallet.client": _CLIENT,
    "wallet.models": _CLIENT,
    "node.config": _CONSENSUS | {"worker"},  # what an asking price looks like
    "node.genesis": _CONSENSUS | {"api", "worker"},  # text as editors write it
    "node.log": _CONSENSUS | {"node.config"},
    "node.chain": _CHAIN,
    "node.compute": _CHAIN,  # its hook hears of storage errors
    "node.pool": _COMPUTE,
    "node.mining": _POOL,
    "node.p2p": _POOL,
    "node.rpc": _RPC,  # and its methods, over it
    "node": _RPC,  # the service and what is around it
    "devnet": _DEVNET,
    "tilework": _DEVNET | {"devnet"},
}
LARGEST_ROOM = 16

LONG_FOR_A_REASON = {
    # numba's cache looks at one file: an instruction edited in another one would run stale.
    "consensus/work/kernel.py": 720,
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
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str:
    """The longest name in the table that is the module's own or above it."""
    parts = module.split(".")
    return next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in MAY_IMPORT)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    imports = {room_of(name) for name in imported(path) if name.split(".")[0] in PACKAGES}
    assert imports <= MAY_IMPORT[room] | {room}


def test_no_module_imports_itself_by_a_detour() -> None:
    paths = {module_of(path): path for path in modules()}
    assert list(TopologicalSorter({name: arrows(path, paths) for name, path in paths.items()}).static_order())


def module_of(path: Path) -> str:
    """The name under which a file is imported; a package's own is that of its `__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def arrows(path: Path, known: Container[str]) -> set[str]:
    """The modules that a file imports: of `from package import name` the module of that name, else the package."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            targets |= {name if name in known else node.module or "" for name in names}
    return {target for target in targets if target in known and target != module_of(path)}


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules()}), ids=lambda path: path.name)
def test_rooms_stay_small(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if not path.name.startswith("__")]) <= LARGEST_ROOM


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
