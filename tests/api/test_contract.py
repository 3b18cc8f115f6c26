"""The contract stands once, is strict about what it names, and lets a newer node say more."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from api import chain, errors, fields, node, params, rules, topics, work
from tests.consensus.strategies import values

ROOT = Path(__file__).parents[2]
MODULES = (chain, errors, node, params, rules, topics, work)


def structs(*modules: ModuleType) -> list[type[Struct]]:
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Struct) and value.__module__ == module.__name__
    ]


ANSWERS = structs(chain, errors, node, rules, topics, work)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.__name__)
def test_no_other_package_declares_an_answer_again(answer: type[Struct]) -> None:
    places = [
        str(path.relative_to(ROOT))
        for package in ("api", "consensus", "worker", "wallet", "node", "devnet", "tilework")
        for path in (ROOT / package).rglob("*.py")
        for statement in ast.walk(ast.parse(path.read_text()))
        if isinstance(statement, ast.ClassDef) and statement.name.lstrip("_") == answer.__name__
    ]
    assert len(places) == 1


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.__name__)
@given(data=st.data())
def test_what_a_newer_node_adds_is_passed_over(answer: type[Struct], data: st.DataObject) -> None:
    value = data.draw(values(answer))
    known: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    more = msgspec.json.encode({"added_later": [1, {"x": None}], **known})
    assert msgspec.json.decode(more, type=answer) == value


@pytest.mark.parametrize("parameters", structs(params), ids=lambda parameters: parameters.__name__)
def test_parameters_are_strict_about_names(parameters: type[Struct]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"added_later": 1}', type=parameters)


@pytest.mark.parametrize("text", ["", "0g", "ab\n", "AB", "a", "0x00", " 00"])
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, fields.Hash)
    if text:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, fields.Hex)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert("ab" * 31 + text, fields.Hash)


@pytest.mark.parametrize("number", [-1, 2**63, 1.5, "1", True, None])
def test_what_is_no_count_is_refused(number: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(number, fields.Count)
