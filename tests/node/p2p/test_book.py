"""The address book: buckets by network group, bounds, anchors, and files that cannot be trusted."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from node.p2p.book import (
    BUCKET_SIZE,
    BUCKETS,
    BUCKETS_PER_SOURCE,
    MAX_ANCHORS,
    MAX_FAILURES,
    Book,
    is_acceptable,
    network_group,
    read_book,
    write_book,
)
from node.p2p.limits import DEFAULT
from node.p2p.transport import Endpoint

NOW_MS = 1_700_000_000_000
SECRET = bytes(16)


def make(allow_private: bool = False) -> Book:
    return Book(allow_private, random.Random(1), DEFAULT, SECRET)


def public(number: int, port: int = 9000) -> Endpoint:
    """Addresses in different /16 networks."""
    return Endpoint(f"{20 + number // 200}.{number % 200}.1.1", port)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9000", Endpoint("127.0.0.1", 9000)),
        ("node.example:1", Endpoint("node.example", 1)),
        ("[2001:db8::1]:65535", Endpoint("2001:db8::1", 65535)),
    ],
)
def test_addresses_are_read_and_written(text: str, address: Endpoint) -> None:
    assert Endpoint.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:0", "host:65536", "host:x", "host:²", "::1:9000", "host:-1"]
)
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    ("host", "always", "on_devnet"),
    [
        ("8.8.8.8", True, True),
        ("2a00:1450::1", True, True),
        ("127.0.0.1", False, True),
        ("10.0.0.1", False, True),
        ("::1", False, True),
        ("0.0.0.0", False, False),
        ("224.0.0.1", False, False),
        ("255.255.255.255", False, False),
        ("node.example", False, False),
        ("8.8.8.8:1", False, False),
        ("", False, False),
    ],
)
def test_only_dialable_ip_literals_are_taken_from_strangers(host: str, always: bool, on_devnet: bool) -> None:
    assert is_acceptable(Endpoint(host, 1), allow_private=False) is always
    assert is_acceptable(Endpoint(host, 1), allow_private=True) is on_devnet


def test_groups_are_networks() -> None:
    assert network_group(Endpoint("20.1.2.3", 1)) == network_group(Endpoint("20.1.9.9", 2))
    assert network_group(Endpoint("20.1.2.3", 1)) != network_group(Endpoint("20.2.2.3", 1))
    assert network_group(Endpoint("::ffff:20.1.2.3", 1)) == network_group(Endpoint("20.1.9.9", 2))
    assert network_group(Endpoint("2a00:1450:1::1", 1)) == network_group(Endpoint("2a00:1450:2::1", 1))
    assert network_group(Endpoint("127.0.0.1", 1)) != network_group(Endpoint("127.0.0.1", 2))


def test_the_book_is_bounded() -> None:
    book = make()
    for number in range(3 * BUCKETS * BUCKET_SIZE):
        book.add(public(number), NOW_MS)
    assert BUCKETS * BUCKET_SIZE // 2 < len(book) <= BUCKETS * BUCKET_SIZE


def test_one_network_fills_few_buckets_and_pushes_out_no_good_address() -> None:
    book = make()
    good = [public(number) for number in range(40)]
    for address in good:
        book.note_answer(address, NOW_MS)
    for number in range(5000):
        book.add(Endpoint(f"66.6.{number // 250}.{number % 250}", 1), NOW_MS)
    assert len(book) <= len(good) + BUCKETS_PER_SOURCE * BUCKET_SIZE
    assert all(address in book for address in good)


def test_failures_rest_and_are_forgotten() -> None:
    book = make()
    address = public(1)
    book.add(address, NOW_MS)
    assert book.pick(NOW_MS, (), ()) == address
    book.note_failure(address, NOW_MS)
    assert book.pick(NOW_MS + 1000, (), ()) is None
    assert book.pick(NOW_MS + 3_600_000, (), ()) == address
    for _ in range(MAX_FAILURES):
        book.note_failure(address, NOW_MS)
    assert address not in book


def test_failures_noted_under_a_clock_that_was_ahead_do_not_rest_until_then() -> None:
    book = make()
    book.add(public(1), NOW_MS)
    book.note_failure(public(1), NOW_MS + 10**12)
    assert book.pick(NOW_MS, (), ()) == public(1)
    book.note_failure(public(1), NOW_MS)
    assert book.pick(NOW_MS + 1000, (), ()) is None


def test_an_address_that_answered_once_survives_more_failures() -> None:
    book = make()
    book.note_answer(public(1), NOW_MS)
    for _ in range(2 * MAX_FAILURES):
        book.note_failure(public(1), NOW_MS)
    assert public(1) in book


def test_connected_addresses_and_their_networks_are_not_picked() -> None:
    book = make()
    for number in range(3):
        book.add(public(number), NOW_MS)
    assert book.pick(NOW_MS, {public(0)}, {network_group(public(1))}) == public(2)


def test_strangers_get_addresses_that_answered() -> None:
    book = make()
    book.add(public(1), NOW_MS)
    book.note_answer(public(2), NOW_MS)
    assert book.sample(64) == [public(2)]


def test_a_book_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    book = make()
    book.add(public(1), NOW_MS)
    book.note_answer(public(2), NOW_MS)
    book.set_anchors(public(number) for number in range(10))
    write_book(book.dump(), path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = Book(False, random.Random(2), DEFAULT)
    read_book(again, path)
    assert again.dump() == book.dump()
    assert again.anchors == [public(number) for number in range(MAX_ANCHORS)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["peers.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"{}",
        b'{"version":2,"secret":"00","anchors":[],"entries":[]}',
        b"[" * 100_000,
        b'{"version":1,"secret":"","anchors":[],"entries":[{"host":' + b'{"a":' * 100_000,
        b'{"version":1,"secret":"","anchors":[],"entries":[{"hosts":' + b'{"a":' * 100_000,
    ],
)
def test_a_damaged_book_is_left_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    book = make()
    read_book(book, path)
    assert len(book) == 0
    assert path.read_bytes() == content


def test_addresses_in_a_file_are_checked_like_a_strangers(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    good, bad = public(1), Endpoint("10.0.0.1", 9000)
    entries = [{"host": host, "port": port} for host, port in (good, bad, ("x", 1), ("8.8.8.8", 0))]
    anchors = [str(bad), "nonsense", str(good)]
    path.write_bytes(msgspec.json.encode({"version": 1, "secret": "00" * 16, "anchors": anchors, "entries": entries}))
    book = make()
    read_book(book, path)
    assert (len(book), book.anchors) == (1, [good])


def test_a_book_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "peers.json.tmp").mkdir()
    write_book(make().dump(), tmp_path / "peers.json")
    assert not (tmp_path / "peers.json").exists()
