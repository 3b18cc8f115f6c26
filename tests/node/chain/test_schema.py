"""The database's keys: distinct, ordered as the tables are walked, and damage in values is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.codec import encode
from consensus.state import Changes
from node.chain import schema
from node.chain.schema import StorageError, Tip

ID, OTHER, ADDRESS = bytes(range(32)), bytes(32), bytes(20)
HEIGHTS = st.integers(0, 2**63 - 1)
ORDINALS = st.integers(0, 2**32 - 1)


def test_every_table_has_its_own_prefix_and_its_line_in_the_description() -> None:
    prefixes = [
        value
        for name, value in vars(schema).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, bytes) and len(value) == 1
    ]
    assert len(set(prefixes)) == len(prefixes) == 17
    assert schema.__doc__ is not None
    described = {line[4] for line in schema.__doc__.splitlines() if line.startswith("    ") and line[5:8] == " ‖ "}
    assert described == {prefix.decode() for prefix in prefixes}


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (schema.header(ID), schema.HEADER),
        (schema.body(ID), schema.BODY),
        (schema.refused(ID), schema.REFUSED),
        (schema.main(7), schema.MAIN),
        (schema.outcome(ID), schema.OUTCOME),
        (schema.undo(ID), schema.UNDO),
        (schema.strips(ID, OTHER), schema.STRIPS),
        (schema.transaction(ID), schema.TRANSACTION),
        (schema.job_event(ID, 7, 1), schema.JOB_EVENT),
        (schema.packet_event(ID, 7, 1), schema.PACKET_EVENT),
        (schema.movement(ADDRESS, 7, 1), schema.MOVEMENT),
        (schema.tensor_until(ID), schema.TENSOR_UNTIL),
        (schema.tensor_expiry(7, ID), schema.TENSOR_EXPIRY),
    ],
)
def test_keys_stand_in_their_tables(key: bytes, prefix: bytes) -> None:
    assert key.startswith(prefix)


@given(HEIGHTS, ORDINALS, HEIGHTS, ORDINALS)
def test_keys_sort_by_height_and_ordinal(height: int, ordinal: int, later: int, number: int) -> None:
    order = (height, ordinal) < (later, number)
    assert (schema.job_event(ID, height, ordinal) < schema.job_event(ID, later, number)) == order
    assert (schema.packet_event(ID, height, ordinal) < schema.packet_event(ID, later, number)) == order
    assert (schema.movement(ADDRESS, height, ordinal) < schema.movement(ADDRESS, later, number)) == order
    assert (schema.main(height) < schema.main(later)) == (height < later)


@given(HEIGHTS)
def test_tensor_expiries_are_read_back(height: int) -> None:
    assert schema.unpack_tensor_expiry(schema.tensor_expiry(height, ID)) == (height, ID)


@pytest.mark.parametrize("part", [b"", bytes(31), bytes(33)])
def test_a_part_of_another_length_is_a_programmers_error(part: bytes) -> None:
    with pytest.raises(AssertionError):
        schema.header(part)


def test_undo_data_tells_a_deleted_key_from_an_empty_value() -> None:
    changes: Changes = {b"a": b"", b"b": None, b"#\x01": bytes(70)}
    assert schema.decode_changes(schema.encode_changes(changes)) == changes


def test_values_are_read_back() -> None:
    tip = Tip(ID, 7, OTHER)
    assert schema.decode(Tip, encode(tip)) == tip


@pytest.mark.parametrize("data", [b"", b"\x93", encode(Tip(ID, 7, OTHER))[:-1], encode([ID[:31], 7, OTHER]), b"\xff"])
def test_a_damaged_value_is_a_storage_error(data: bytes) -> None:
    with pytest.raises(StorageError, match="a stored Tip cannot be read"):
        schema.decode(Tip, data)


def test_damaged_heights_and_keys_are_storage_errors() -> None:
    with pytest.raises(StorageError, match="height has 7 bytes"):
        schema.unpack_height(bytes(7))
    with pytest.raises(StorageError, match="key of 40 bytes"):
        schema.unpack_tensor_expiry(bytes(40))
