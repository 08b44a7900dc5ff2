"""Filtering picture files: one, or a folder of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repertory.data.pictures import HDR_EXTENSIONS, PICTURE_EXTENSIONS, list_pictures, read_picture, write_picture
from repertory.errors import unknown_name
from repertory.systems.pyramid_texture_filtering.applications import APPLICATIONS
from repertory.systems.pyramid_texture_filtering.filter import as_picture, as_tensor, pyramid_texture_filter


def filter_path(
    input: Path | str,
    output: Path | str,
    *,
    sigma_s: float = 5.0,
    sigma_r: float | None = None,
    levels: int = 11,
    scale: float = 0.8,
    application: str | None = None,
    backend: str = "auto",
    device: str = "cpu",
    compare: bool = False,
    progress: bool | Callable[[int, int], None] = False,
) -> list[Path]:
    """Filter a picture, or every picture of a folder and below, by Pyramid Texture Filtering.

    Args:
        input: a picture (any ending of :data:`repertory.data.pictures.PICTURE_EXTENSIONS`) or a folder of them.
        output: the file to write, or the folder (where ``input`` is one, or where it has no ending of a picture);
            made where it is not there. Names and sub-folders are those of the input.
        sigma_s: spatial size of what is smoothed, pixels.
        sigma_r: range in [0, 1]; a high dynamic range input is divided by its greatest value for plain smoothing. None
            means the default of the application, 0.05 for plain smoothing.
        levels: pyramid levels, full size included.
        scale: size ratio of neighbouring levels.
        application: ``detail``, ``abstraction``, ``tonemap``, ``dehalftone``, ``enhance`` or None for plain smoothing.
        backend: path of the bilateral filter: ``auto``, ``reference``, ``eager``, ``compiled``, ``triton``.
        device: where to compute.
        compare: also write ``NAME-compare.ENDING``, input and result side by side.
        progress: True shows a bar; a function is called with (done, total) pictures.

    Returns:
        The files written, in order.

    Raises:
        FileNotFoundError: where ``input`` is not there.
        ValueError: naming the picture and what is wrong; a folder with no picture; an unknown application.
        OSError: where the output cannot be written.
    """
    if application is not None and application not in APPLICATIONS:
        raise unknown_name("application", application, APPLICATIONS)
    source, target = Path(input), Path(output)
    jobs = _jobs(source, target, application)
    settings = {"sigma_s": sigma_s, "levels": levels, "scale": scale, "backend": backend}
    if sigma_r is not None:
        settings["sigma_r"] = sigma_r
    report, close = _reporter(progress)
    written = []
    try:
        report(0, len(jobs))
        for done, (origin, place) in enumerate(jobs, 1):
            written += _filter_file(origin, place, application, settings, device, compare)
            report(done, len(jobs))
    finally:
        close()
    return written


def _jobs(source: Path, target: Path, application: str | None) -> list[tuple[Path, Path]]:
    if not source.exists():
        raise FileNotFoundError(f"input {source} is not there")
    if source.is_dir():
        if target.is_file():
            raise ValueError(f"output {target} is a file, but the input {source} is a folder; name a folder")
        jobs = [(origin, target / origin.relative_to(source)) for origin in list_pictures(source)]
        own = target.resolve()  # results of an earlier run inside the input folder are no input
        jobs = [job for job in jobs if own == source.resolve() or own not in job[0].resolve().parents]
    else:
        if source.suffix.lower() not in PICTURE_EXTENSIONS:
            endings = ", ".join(sorted(PICTURE_EXTENSIONS))
            raise ValueError(f"input {source} is no picture: its ending must be one of {endings}")
        file = target.suffix.lower() in PICTURE_EXTENSIONS and not target.is_dir()
        jobs = [(source, target if file else target / source.name)]
        if file:
            return _distinct(jobs)
    if application == "tonemap":  # what is mapped for display is no longer radiance
        jobs = [(a, b.with_suffix(".png") if b.suffix.lower() in HDR_EXTENSIONS else b) for a, b in jobs]
    return _distinct(jobs)


def _distinct(jobs: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    for origin, place in jobs:
        if origin.resolve() == place.resolve():
            raise ValueError(f"output {place} is the input itself; name another file or folder")
    return jobs


def _reporter(progress: bool | Callable[[int, int], None]) -> tuple[Callable[[int, int], None], Callable[[], None]]:
    if callable(progress):
        return progress, lambda: None
    if not progress:
        return lambda done, total: None, lambda: None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(TextColumn("filtering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
    task = bar.add_task("filtering", total=None)
    bar.start()
    return lambda done, total: bar.update(task, completed=done, total=total), bar.stop


def _filter_file(
    origin: Path, place: Path, application: str | None, settings: dict[str, Any], device: str, compare: bool
) -> list[Path]:
    picture = read_picture(origin)
    try:
        result = _filter_picture(picture, application, settings, device)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{origin}: {error}") from None
    write_picture(place, result)
    if not compare:
        return [place]
    beside = place.with_name(f"{place.stem}-compare{place.suffix}")
    write_picture(beside, _side_by_side(picture, result))
    return [place, beside]


def _filter_picture(picture: np.ndarray, application: str | None, settings: dict[str, Any], device: str) -> np.ndarray:
    tensor, alpha = as_tensor(picture, device)
    peak = float(tensor.max())
    wide = peak > 1
    if wide and application not in (None, "tonemap"):
        raise ValueError(f"values reach {peak:g}; {application} wants them in [0, 1] (tonemap brings them there)")
    with torch.no_grad():
        if application == "tonemap" and picture.dtype.kind == "u":
            tensor = tensor**2.2  # stored for display; the mapping wants radiance
        if application is not None:
            result = APPLICATIONS[application](tensor, **settings)
        else:
            result = pyramid_texture_filter(tensor / peak if wide else tensor, **settings) * (peak if wide else 1)
    return as_picture(result, picture, alpha)


def _side_by_side(picture: np.ndarray, result: np.ndarray) -> np.ndarray:
    if picture.dtype != result.dtype:
        picture = picture.astype(result.dtype)
    return np.concatenate([picture, result], axis=1)
