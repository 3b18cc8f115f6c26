"""The demonstration job's real data: held-out handwritten digits and the quantised network that classifies them.

`docs/demo/train_mnist.py` made both files in `wallet/models/data/`; `docs/demo/README.md` states source and licence.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from wallet.client.matrices import Int8Matrix, Int32Matrix
from wallet.errors import ExitCode, WalletError
from wallet.models.quantised import Layer, QuantisedNetwork, Requantise

ARRAYS_NAME = "mnist_demo.npz"
MANIFEST_NAME = "mnist_demo.json"
DATA = Path(__file__).with_name("data")


class ArrayEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Type and shape of one array of the archive."""

    dtype: str
    shape: tuple[int, ...]


class LayerEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names of a layer's arrays, and how its output becomes the next layer's input; None in the last."""

    weights: str
    bias: str
    requantise: Requantise | None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the archive holds, where it came from, and how well both networks did on the held-out images.

    `float_correct` and `quantised_correct` count the images that each network classified as labelled;
    `archive_sha256` (hex) is over the archive's bytes.
    """

    title: str
    source: str
    licence: str
    made_by: str
    made_with: dict[str, str]
    training_images: int
    float_correct: int
    quantised_correct: int
    images: str
    labels: str
    layers: tuple[LayerEntry, ...]
    arrays: dict[str, ArrayEntry]
    archive_sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Demo:
    """`images`: int8 (rows, 784), pixels in 0 … 63; `labels`: uint8 (rows,), 0 … 9. No image was trained on."""

    network: QuantisedNetwork
    images: Int8Matrix
    labels: npt.NDArray[np.uint8]
    manifest: Manifest


def load_demo(directory: Path = DATA) -> Demo:
    """The committed demonstration, or one made anew in `directory`; the archive is checked against the manifest.

    Raises `WalletError` (demo-data-invalid) if a file is missing, is not what it should be, or has changed.
    """
    try:
        manifest = msgspec.json.decode((directory / MANIFEST_NAME).read_bytes(), type=Manifest)
        arrays = _read_arrays(directory / ARRAYS_NAME, manifest)
        layers = (Layer(arrays[e.weights], arrays[e.bias], e.requantise) for e in manifest.layers)
        demo = Demo(QuantisedNetwork(tuple(layers)), arrays[manifest.images], arrays[manifest.labels], manifest)
        demo.network.check_input(demo.images)
        return demo
    except (OSError, KeyError, ValueError, msgspec.MsgspecError) as error:
        fix = "install the package again, or make the data anew with docs/demo/train_mnist.py"
        raise WalletError("demo-data-invalid", f"demonstration data: {error}", fix, ExitCode.NOT_FOUND) from error


def count_correct(logits: Int32Matrix, labels: npt.NDArray[np.uint8]) -> int:
    """How many rows of `logits` (rows, classes) are largest at their label; a tie goes to the lower class."""
    return int(np.count_nonzero(logits.argmax(axis=1) == labels))


def _read_arrays(path: Path, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    data = path.read_bytes()
    # before anything is parsed: a damaged archive fails in more ways than one could list
    if hashlib.sha256(data).hexdigest() != manifest.archive_sha256:
        raise ValueError(f"{path.name} is not the archive that {MANIFEST_NAME} names")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in manifest.arrays}
    for name, entry in manifest.arrays.items():
        got = (arrays[name].dtype.name, arrays[name].shape)
        if got != (entry.dtype, entry.shape):
            raise ValueError(f"array {name!r} is {got}, the manifest says {(entry.dtype, entry.shape)}")
    return arrays
