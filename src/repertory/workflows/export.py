"""Models for other runtimes, held to what they compute here."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repertory.checkpoints import describe
from repertory.errors import MissingExtraError
from repertory.files import Replacement

TOLERANCE = 1e-4
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
METADATA = "repertory"


def export(model: Any, format: str, path: Path | None, folder: Path, batch: int = 2) -> Path:
    """Write ``model`` as ``format`` to ``path`` (in ``folder`` when None); see :meth:`repertory.Run.export`.

    Free sizes are tried first, then a free number of images alone. Each try is checked at other numbers of images (and
    sizes) against the model itself, to 1e-4 absolute and relative.
    """
    if format not in SUFFIXES:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(SUFFIXES)}")
    if batch < 2:
        raise ValueError(f"batch is {batch}; it must be 2 or more, for a single image is traced as a constant")
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "export", "export to ONNX")
    path = path or folder / f"model{SUFFIXES[format]}"
    write = _write_onnx if format == "onnx" else _write_torch_export
    model = copy.deepcopy(model).cpu().eval()
    height, width = model.preprocessing.size
    channels = 1 if model.preprocessing.channels == "L" else 3
    problem = ""
    for sizes_free in (True, False):
        probes = [_pictures(1, channels, height, width), _pictures(batch + 1, channels, height, width)]
        example = _pictures(batch, channels, height, width)
        if sizes_free:  # a trace at the model's own size may take a last map of one pixel for a constant
            probes.append(example)
            example = _pictures(batch, channels, *_other_size(height, width))
            probes.append(example)
        try:
            with _quiet():
                program = _traced(model, example, sizes_free)
                with Replacement(path) as partial:
                    run = write(program, partial, describe(model) | {"sizes_free": sizes_free})
                    _check(model, run, probes)
        except Exception as error:  # tracing fails in many ways; the next try asks for less
            problem = (str(error).splitlines() or [type(error).__name__])[0]
        else:
            return path
    raise ValueError(f"the model cannot be exported as {format}: {problem}")


def _pictures(batch: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def _other_size(height: int, width: int) -> tuple[int, int]:
    """A larger size of the same divisibility, up to 32, so that strides and patches fit as they did."""
    step = [math.gcd(side, 32) for side in (height, width)]
    return height + max(step[0], 4), width + 2 * max(step[1], 4)


def _traced(model: nn.Module, example: Tensor, sizes_free: bool) -> torch.export.ExportedProgram:
    free = torch.export.Dim.DYNAMIC
    shape = {0: free, 2: free, 3: free} if sizes_free else {0: free}
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=(shape,), strict=False)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, description: dict[str, Any]) -> Callable:
    import onnxruntime

    exported = torch.onnx.export(
        program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False, optimize=True
    )
    assert exported is not None
    exported.model.metadata_props[METADATA] = json.dumps(description, default=str)
    exported.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def _write_torch_export(program: torch.export.ExportedProgram, path: Path, description: dict[str, Any]) -> Callable:
    buffer = io.BytesIO()
    text = json.dumps(description, default=str)
    torch.export.save(program, buffer, extra_files={f"{METADATA}.json": text})
    path.write_bytes(buffer.getvalue())
    buffer.seek(0)
    return torch.export.load(buffer).module()


def _check(model: nn.Module, run: Callable[[Tensor], Tensor], probes: list[Tensor]) -> None:
    for images in probes:
        with torch.no_grad():
            expected, given = model(images), run(images)
        if not torch.allclose(given, expected, rtol=TOLERANCE, atol=TOLERANCE):
            worst = float((given - expected).abs().max())
            raise ValueError(f"logits of images {tuple(images.shape)} differ by {worst:.1e}, more than {TOLERANCE}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notices."""
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
