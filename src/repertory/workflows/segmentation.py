"""Pictures segmented by a run: class indices and coloured overlays of files and folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from repertory.data.folder import images_below
from repertory.data.images import normalize
from repertory.data.overlays import overlaid, write_indices
from repertory.data.reading import read_image
from repertory.data.segmentation import pascal_palette
from repertory.files import Replacement
from repertory.training.inference import Inference
from repertory.training.reporting import reporting

INDICES, OVERLAYS = "indices", "overlays"


def segment_pictures(
    model: Any,
    places: Iterable[str | Path],
    out: Path,
    inference: Inference,
    opacity: float = 0.6,
    progress: Callable[[int, int], None] | bool | None = None,
) -> list[dict[str, Any]]:
    """Write the class indices and an overlay of every picture; see :meth:`repertory.Run.segment`."""
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; it must be between 0 and 1")
    if out.is_file():
        raise FileExistsError(f"out {out} is a file; it must be a folder, or not exist")
    jobs = _jobs([Path(place).expanduser() for place in places], out)
    palette = palette_of(model)
    rows: list[dict[str, Any]] = []
    with reporting(progress, "segmenting") as report:
        report(0, len(jobs))
        for origin, name in jobs:
            image = read_image(origin, model.preprocessing.channels)
            found = _indices(model, image, inference, origin)
            files = out / INDICES / name, out / OVERLAYS / name
            write_indices(files[0], found, palette)
            _write_png(files[1], overlaid(_as_bytes(image), found, palette, opacity))
            shares = np.bincount(found.reshape(-1), minlength=len(palette)) / found.size
            rows.append({"image": str(origin), INDICES: str(files[0]), "overlay": str(files[1]), "shares": shares})
            report(len(rows), len(jobs))
    names = class_names(model)
    for row in rows:
        largest = sorted(zip(names, row["shares"].tolist()), key=lambda pair: -pair[1])
        row["shares"] = {name: share for name, share in largest if share}
    return rows


def class_names(model: Any) -> tuple[str, ...]:
    """Names of the classes of ``model``; their numbers where it has no names."""
    names = getattr(model, "class_names", None)
    return tuple(names) if names else tuple(str(label) for label in range(model.num_classes))


def palette_of(model: Any) -> np.ndarray:
    """Colours (classes, 3) uint8 of the data that ``model`` was trained on, else those of Pascal VOC."""
    known = getattr(model, "palette", None)
    return np.asarray(known, np.uint8) if known else pascal_palette(len(class_names(model)))


def _indices(model: nn.Module, image: Tensor, inference: Inference, origin: Path) -> np.ndarray:
    """The likeliest class of each pixel of ``image`` (C, H, W)."""
    settings: Any = model.preprocessing
    like = next(model.parameters())
    try:
        with torch.inference_mode():
            scores = inference(model, normalize(image, settings)[None].to(like))
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the model does not take the picture {origin} of {tuple(image.shape[1:])} pixels: {reason} "
            "(inference 'resized' or 'sliding' shows it pictures of its own size)"
        ) from error
    return scores.argmax(1)[0].cpu().numpy()


def _as_bytes(image: Tensor) -> np.ndarray:
    """A picture (C, H, W), uint8 or float in [0, 1], as (H, W, 3) uint8."""
    values = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
    return values.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _write_png(path: Path, picture: np.ndarray) -> None:
    with Replacement(path) as partial:
        Image.fromarray(picture).save(partial, "PNG")


def _jobs(places: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each picture, and the name of its files below the folders of results: as below the folder it was found in."""
    found: dict[Path, Path] = {}
    for place in places:
        if place.is_dir():
            own = out.resolve()  # results of an earlier run inside the folder are no input
            below = [path for path in images_below(place) if own not in path.resolve().parents]
            if not below:
                raise ValueError(f"the folder {place} holds no image")
            found |= {path: path.relative_to(place) for path in below}
        elif place.is_file():
            found[place] = Path(place.name)
        else:
            raise FileNotFoundError(f"no picture or folder at {place}")
    if not found:
        raise ValueError("images is empty; it must name a picture or a folder")
    return _distinct(found)


def _distinct(found: Mapping[Path, Path]) -> list[tuple[Path, Path]]:
    """Names that end in .png, with the picture's own ending before it where two pictures differ in that alone."""
    stems = [name.with_suffix("") for name in found.values()]
    named = [
        (origin, name.with_name(f"{name.name if stems.count(name.with_suffix('')) > 1 else name.stem}.png"))
        for origin, name in found.items()
    ]
    seen: dict[Path, Path] = {}
    for origin, name in named:
        if name in seen:
            raise ValueError(f"{seen[name]} and {origin} would both be written to {name}; segment their folders apart")
        seen[name] = origin
    return named
