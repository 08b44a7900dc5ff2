"""Training any model with any compatible methods on bundled data or a folder of pictures, into a run folder."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from repertory import __version__, catalog
from repertory.checkpoints import WEIGHTS, write_weights
from repertory.data.composites import are_composites
from repertory.data.images import ImageData
from repertory.data.loading import load, with_channels
from repertory.data.preprocessing import Preprocessing
from repertory.data.segmentation import SegmentationData
from repertory.errors import unknown_name
from repertory.files import Replacement
from repertory.training.method import Method
from repertory.training.settings import FitSettings, SegmentationSettings
from repertory.workflows.run import CLASSES, CONFIG, Run

Data = ImageData | SegmentationData
MethodLike = str | tuple[str, Mapping[str, Any]] | Method
# What a run consists of; nothing else in the folder is ever removed.
RUN_FILES = (CONFIG, CLASSES, "metrics.csv", WEIGHTS)
RUN_FOLDERS = ("checkpoints", "tensorboard")


def train(
    model: str | nn.Module,
    *,
    data: str | Path | Data,
    task: str | None = None,
    root: str | Path | None = None,
    methods: Sequence[MethodLike] = (),
    settings: FitSettings | None = None,
    model_args: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    reset_head: bool | None = None,
    image_size: int | None = None,
    val_fraction: float = 0.2,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | bool | None = None,
    **options: Any,
) -> Run:
    """Train ``model`` and return the run.

    Args:
        model: name of a model of ours or timm's, or a module (left as it is; a copy is trained). For segmentation a
            backbone becomes a segmentor, see :func:`repertory.create_model`.
        data: name, folder (a text with ``/``, or a ``Path``), :class:`~repertory.data.ImageData` or
            :class:`~repertory.data.segmentation.SegmentationData`; see :func:`repertory.data.load`.
        task: ``classification`` or ``segmentation``, to be sure of what the data say.
        root: where the files of a published data set lie.
        methods: names, (name, settings) or :class:`~repertory.training.Method` objects, acted on in this order.
        settings: how to train, :class:`~repertory.training.SegmentationSettings` for segmentation; ``options`` change
            single values of it (``epochs=3``).
        model_args: settings for the model's builder; ``num_classes`` follows from the data.
        checkpoint: weights to begin with, as for :func:`repertory.create_model`.
        reset_head: make the classifier anew where that of ``checkpoint`` has other classes, or refuse; when absent
            that of a classifier is made anew, and that of a segmentor, often a good part of it, is not.
        image_size: side of the square images, in place of the model's own size (or of 32 for bundled thumbnails and of
            64 for composites, where a model without ``checkpoint`` takes that).
        val_fraction: share of each class held out where the data have no split of their own.
        out: folder of the run; ``runs/<model>-<methods>-<seed>`` when absent.
        resume: go on with the run in ``out`` (begin it where there is none).
        overwrite: replace the run in ``out``; other files in the folder stay.
        progress: called with (images done, images in all); True and False force or forbid the progress bar.
        options: values of the settings by name.

    Raises:
        ValueError, TypeError, FileNotFoundError: bad input, in one sentence, before anything is written.
        FileExistsError: where ``out`` holds a run and neither ``resume`` nor ``overwrite`` is given.
        KeyboardInterrupt, SystemExit: after SIGINT and SIGTERM; the step was finished and the run can be resumed.
    """
    loaded = load_data(data, root, val_fraction, image_size)
    kind = _checked_task(task, loaded)
    settings = _settings(settings, options, kind)
    acting = [_method(method) for method in methods]
    from repertory.training.engine import check_claims, fit

    check_claims([method for _, _, method in acting])
    name = model if isinstance(model, str) else type(model).__name__
    folder = _folder(out, name, [label for label, _, _ in acting], settings.seed)
    config = {
        "task": kind if kind != "classification" else None,
        "model": name,
        "model_args": dict(model_args or {}),
        "checkpoint": str(checkpoint) if checkpoint is not None else None,
        "image_size": image_size,
        "method": [label for label, _, _ in acting],
        **{label: given for label, given, _ in acting if given},
        "data": _absolute(data) if isinstance(data, (str, Path)) else loaded.name,
        "root": _absolute(Path(root)) if root is not None else None,
        "val_fraction": val_fraction,
        **dataclasses.asdict(settings),
    }
    config = {key: value for key, value in config.items() if value not in (None, {})}
    _check_existing(folder, config, resume, overwrite)
    anew = reset_head if reset_head is not None else kind == "classification"
    built = _build(model, loaded, model_args or {}, checkpoint, anew, settings.seed)
    bundled = isinstance(data, str) and "/" not in data and root is None
    small = _least_size(loaded) if bundled and checkpoint is None else None
    loaded = _fitted(built, name, loaded, image_size, small)
    if _first_process():
        _prepare(folder, config, loaded.classes, overwrite)
    result = fit(
        built,
        loaded,
        [method for _, _, method in acting],
        out=folder,
        settings=settings,
        resume=resume,
        progress=progress,
    )
    if result.interrupted is not None:
        _end(result.interrupted, result.steps, folder)
    trained = catalog.dress(result.model, built)
    changes = [_changing(given, *named) for given, named in zip(methods, acting, strict=True)]
    trained.prepared_by = [*getattr(built, "prepared_by", ()), *itertools.chain(*changes)]
    if _first_process():
        write_weights(trained, folder / WEIGHTS)
    return Run(folder, trained, config, dict(result.metrics))


def load_data(data: str | Path | Data, root: str | Path | None, val_fraction: float, image_size: int | None) -> Data:
    """The data set meant by ``data``; composites are drawn at the size that is asked for."""
    if not isinstance(data, (str, Path)):
        return data
    size = image_size if are_composites(data) else None
    return load(data, root=root, size=size, val_fraction=val_fraction)


def _checked_task(task: str | None, data: Data) -> str:
    """The task of ``data``; ValueError where another is asked for."""
    if task is not None and task not in catalog.TASKS:
        raise unknown_name("task", task, catalog.TASKS)
    if task not in (None, data.task):
        raise ValueError(
            f"task is {task!r}, but {data.name} is data for {data.task}: give task={data.task!r} (--task {data.task})"
        )
    return data.task


def _settings(settings: FitSettings | None, options: Mapping[str, Any], task: str) -> FitSettings:
    if task == "segmentation":
        settings = SegmentationSettings.of(settings) if settings is not None else SegmentationSettings()
    settings = settings or FitSettings()
    known = {field.name for field in dataclasses.fields(settings)}
    for option in options:
        if option not in known:
            raise unknown_name("setting of train", option, known)
    return dataclasses.replace(settings, **options)


def _method(given: MethodLike) -> tuple[str, dict[str, Any], Method]:
    """Name, settings as far as they are known, and the method itself."""
    if isinstance(given, Method):
        return given.name, {}, given
    name, settings = (given, {}) if isinstance(given, str) else given
    return name, dict(settings), catalog.create_method(name, **settings)


def _absolute(data: str | Path) -> str:
    """A folder in a form that holds from any working directory; a bundled name as it is."""
    is_folder = isinstance(data, Path) or "/" in data
    return str(Path(data).expanduser().resolve()) if is_folder else str(data)


def _folder(out: str | Path | None, model: str, methods: Sequence[str], seed: int) -> Path:
    if out is not None:
        return Path(out).expanduser()
    label = "-".join([model, *(methods or ["plain"]), str(seed)])
    return Path("runs") / re.sub(r"[^\w.+-]", "_", label)


def _check_existing(folder: Path, config: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Refuse to mix two runs; ``FileExistsError`` or ``ValueError`` says what to do."""
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other: go on with the run, or replace it")
    if folder.is_file():
        raise FileExistsError(f"out {folder} is a file; it must be a folder, or not exist")
    began = folder / CONFIG
    if not began.is_file() or overwrite or not _first_process():
        return
    if not resume:
        raise FileExistsError(
            f"{folder} holds a run already: resume=True (--resume) goes on with it, overwrite=True (--overwrite) "
            "replaces it, out= (--out) names another folder"
        )
    from repertory.training.keeper import FREE_ON_RESUME

    before = yaml.safe_load(began.read_text(encoding="utf-8"))
    now = yaml.safe_load(_yaml(config))
    differing = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in dict.fromkeys([*before, *now])
        if key not in FREE_ON_RESUME and before.get(key) != now.get(key)
    ]
    if differing:
        raise ValueError(f"the run in {folder} cannot be resumed with another configuration: {'; '.join(differing)}")


def _prepare(folder: Path, config: Mapping[str, Any], classes: Sequence[str], overwrite: bool) -> None:
    """Make the folder and write what is known before training."""
    if overwrite:
        for file in RUN_FILES:
            (folder / file).unlink(missing_ok=True)
        for part in RUN_FOLDERS:
            shutil.rmtree(folder / part, ignore_errors=True)
    header = f"# repertory {__version__}, torch {torch.__version__}, python {sys.version.split()[0]}\n"
    with Replacement(folder / CONFIG) as partial:
        partial.write_text(header + _yaml(config), encoding="utf-8")
    with Replacement(folder / CLASSES) as partial:
        partial.write_text(json.dumps(list(classes), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _yaml(config: Mapping[str, Any]) -> str:
    """Plain values as YAML; tuples become lists, other objects their text."""
    return yaml.safe_dump(json.loads(json.dumps(dict(config), default=str)), sort_keys=False, allow_unicode=True)


def _build(
    model: str | nn.Module,
    data: Data,
    model_args: Mapping[str, Any],
    checkpoint: str | Path | None,
    reset_head: bool,
    seed: int,
) -> nn.Module:
    """A copy of the module, or the model of that name with as many classes and channels as the data have."""
    if not isinstance(model, str):
        if model_args or checkpoint is not None:
            raise ValueError("model_args and checkpoint are for a model given by name; a module is trained as it is")
        return copy.deepcopy(model)
    given = {"num_classes": len(data.classes), **model_args}
    if given["num_classes"] != len(data.classes):
        raise ValueError(
            f"model_args.num_classes is {given['num_classes']}, but {data.name} has {len(data.classes)} classes"
        )
    if checkpoint is None and data.preprocessing.channels == "L":
        given.setdefault("in_chans", 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return catalog.create_model(model, checkpoint=checkpoint, reset_head=reset_head, task=data.task, **given)


def _bind(model: Any, data: Data, image_size: int | None) -> Data:
    """``data`` as ``model`` wants them; what that is travels on with the model."""
    preprocessing = getattr(model, "preprocessing", None)
    if not isinstance(preprocessing, Preprocessing):
        channels = {1: "L", 3: "RGB"}.get(_input_channels(model) or 0, data.preprocessing.channels)
        preprocessing = data.preprocessing
        if {channels, preprocessing.channels} in ({"L", "RGB"}, {"L", "BGR"}):
            preprocessing = with_channels(preprocessing, channels)
    if image_size is not None:
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}; it must be 1 or more pixels")
        preprocessing = dataclasses.replace(preprocessing, size=(image_size, image_size))
    if isinstance(data, SegmentationData):
        preprocessing = dataclasses.replace(preprocessing, crop=1.0)
        model.palette = data.palette.tolist()
    model.preprocessing, model.class_names = preprocessing, data.classes
    return data.with_preprocessing(preprocessing)


def _least_size(data: Data) -> int | None:
    """The side at which a network learns bundled thumbnails from scratch; at its own size they would be all blur."""
    side = max(data.preprocessing.size)
    if data.task == "segmentation":
        return side
    return max(32, side) if side < 64 else None


def _fitted(model: Any, name: str, data: Data, image_size: int | None, small: int | None) -> Data:
    """``data`` bound to ``model`` and tried: at ``image_size``, else at the ``small`` size if the model takes it."""
    if image_size is None and small is not None:
        own = getattr(model, "preprocessing", None)
        bound = _bind(model, data, small)
        try:
            _try_out(model, name, bound)
        except ValueError:  # a model of one fixed size
            model.preprocessing = own
        else:
            return bound
    bound = _bind(model, data, image_size)
    _try_out(model, name, bound)
    return bound


def _input_channels(model: nn.Module) -> int | None:
    """Channels that the first convolution takes, or None."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), None)


def _try_out(model: nn.Module, name: str, data: Data) -> None:
    """One image through the model, so that what does not fit is said before training and not in the middle of it."""
    image = data.val[0][0][None]
    wanted = (1, len(data.classes), *(image.shape[2:] if data.task == "segmentation" else ()))
    parameter = next(model.parameters(), None)
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(image if parameter is None else image.to(parameter))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the model {name} does not take images of {tuple(image.shape[1:])} (channels, height, width): {reason}"
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != wanted:
        gave = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        needed = ", ".join(str(side) for side in ("images", *wanted[1:]))
        raise ValueError(f"the model {name} gives {gave}; {data.name} needs logits ({needed}), one for each class")


def _changing(given: MethodLike, label: str, settings: Mapping[str, Any], method: Method) -> list[dict[str, Any]]:
    """How to name ``method`` to whoever loads the weights, if it changes networks; an object's settings are unknown."""
    if not method.changes_networks():
        return []
    return [{"name": label, "settings": None if isinstance(given, Method) else dict(settings)}]


def _end(number: int, steps: int, folder: Path) -> None:
    """End as the signal asks, now that the step is done and saved."""
    message = f"interrupted after step {steps}; resume=True (--resume) goes on with the run in {folder}"
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    print(f"repertory: {message}", file=sys.stderr)
    raise SystemExit(128 + number)


@cache
def _first_process() -> bool:
    """Whether this process writes the run's files, of those that an outside starter may have started."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0
