"""A trained model with what belongs to it: evaluated, applied to pictures, exported."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from torch import nn

from repertory import catalog
from repertory.checkpoints import Weights, adopt, fit_weights, read_weights
from repertory.data.composites import are_composites
from repertory.data.folder import images_below, load_whole_folder
from repertory.data.images import ImageData, ImageSet, prepare
from repertory.data.loading import load
from repertory.data.preprocessing import Preprocessing
from repertory.data.reading import read_image
from repertory.data.segmentation import SegmentationData, SegmentationSet
from repertory.files import Replacement

if TYPE_CHECKING:
    from repertory.training.inference import Inference

CONFIG = "config.yaml"
CLASSES = "classes.json"
VALIDATION = "val_"


class Run:
    """A model that was trained here, or weights and a model's name.

    ``path`` is the run's folder (that of the file for bare weights), ``model`` the model in evaluation mode, ``config``
    what ``config.yaml`` holds, ``metrics`` the last figures on the validation data.
    """

    def __init__(
        self, path: Path, model: nn.Module, config: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        self.path, self.config, self.metrics = Path(path), dict(config), dict(metrics or {})
        self.model: Any = model.eval()
        if not isinstance(getattr(model, "preprocessing", None), Preprocessing):
            raise ValueError(f"the model of {path} does not say how it wants its pictures: set model.preprocessing")

    @classmethod
    def open(cls, path: str | Path, model: str | nn.Module | None = None) -> Run:
        """The run in the folder ``path``, or the weights in the file ``path``.

        Args:
            path: run folder, folder that ``save_pretrained`` wrote, or checkpoint of ours or of the authors.
            model: name of the model where ``path`` does not say it, or a module that takes the weights.

        Raises:
            FileNotFoundError: where there is nothing, or a run that has no weights yet.
            ValueError: where the model is not known, or the weights are another's.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"no run folder or checkpoint at {path}")
        folder = path if path.is_dir() else path.parent
        if path.is_file() and folder.name == "checkpoints":
            folder = folder.parent
        config: dict[str, Any] = {}
        if (folder / CONFIG).is_file():
            config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) or {}
        weights = read_weights(path)
        return cls(folder, _model(weights, model, config), config, _last_metrics(folder / "metrics.csv"))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where the model has no names."""
        names = getattr(self.model, "class_names", None)
        return tuple(names) if names else ()

    @property
    def task(self) -> str:
        """What the model is for: ``classification`` or ``segmentation``."""
        entry = getattr(self.model, "catalogue_entry", None) or {}
        given = self.config.get("task") or entry.get("settings", {}).get("task")
        return str(given or catalog.model_task(entry.get("name", "")))

    def evaluate(
        self,
        data: str | Path | ImageData | SegmentationData | None = None,
        batch_size: int | None = None,
        *,
        root: str | Path | None = None,
        inference: Inference | None = None,
        per_class: bool = False,
        progress: Callable[[int, int], None] | bool | None = False,
    ) -> dict[str, float]:
        """Figures on validation data, fractions and nats.

        Of a classifier top-1 accuracy and error, cross entropy and calibration error; of a segmentor mean intersection
        over union, pixel and mean accuracy over all pixels, and cross entropy.

        Args:
            data: name (its validation part), folder, or data set; the run's own validation data when absent.
                Of a folder ``CLASS/*`` that the run was not trained on, every picture counts.
            batch_size: images at a time; 128, or 8 of a segmentor, when absent.
            root: where the files of a published data set lie.
            inference: how a segmentor scores pictures; as in its training when absent, see :meth:`inference`.
            per_class: also give ``iou NAME`` of every class of a segmentor.
            progress: of a segmentor, called with (images done, images in all); True and False force or forbid a bar.

        Raises:
            ValueError: where the data have a class that the model does not know, or the run does not name its data.
        """
        if self.task == "segmentation":
            return self._evaluate_segmentation(data, root, batch_size or 8, inference, per_class, progress)
        if inference is not None or per_class:
            raise ValueError("inference and per_class are for segmentors; the model is a classifier")
        from repertory.training.evaluation import evaluate

        dataset = self._evaluation_data(data, root)
        if not isinstance(dataset, ImageSet):
            raise ValueError("the data have masks, which a classifier does not predict")
        if self.classes:
            dataset = dataset.with_classes(self.classes)
        with _BestDevice(self.model) as model:
            return evaluate(model, dataset.with_preprocessing(model.preprocessing), batch_size=batch_size or 128)

    def _evaluate_segmentation(
        self,
        data: Any,
        root: str | Path | None,
        batch_size: int,
        inference: Inference | None,
        per_class: bool,
        progress: Callable[[int, int], None] | bool | None,
    ) -> dict[str, float]:
        from repertory.training.reporting import reporting
        from repertory.training.segmentation import evaluate_segmentation

        dataset = self._evaluation_data(data, root)
        if not isinstance(dataset, SegmentationSet):
            raise ValueError("the data have no masks, against which a segmentor could be evaluated")
        if self.classes and dataset.classes != self.classes:
            raise ValueError(
                f"the data have the classes {_some(dataset.classes)}; the model was trained on {_some(self.classes)}"
            )
        with _BestDevice(self.model) as model, reporting(progress, "evaluating") as report:
            return evaluate_segmentation(
                model,
                dataset.with_preprocessing(model.preprocessing),
                inference=inference or self.inference(),
                batch_size=batch_size,
                per_class=per_class,
                report=report,
            )

    def inference(
        self,
        name: str | None = None,
        overlap: float | None = None,
        scales: Sequence[float] | None = None,
        mirror: bool | None = None,
    ) -> Inference:
        """How a segmentor scores pictures: as its training said, but for what is given.

        Args:
            name: ``whole``, ``resized`` or ``sliding``, see :class:`~repertory.training.SegmentationSettings`.
            overlap: share of a sliding window that the next one covers again.
            scales: factors of a picture's size whose scores are averaged.
            mirror: average the scores of the mirrored picture too.
        """
        from repertory.training.inference import Inference
        from repertory.training.settings import SegmentationSettings

        given = {"inference": name, "overlap": overlap, "scales": scales, "mirror": mirror}
        own = {key: self.config[key] for key in given if key in self.config}
        chosen = SegmentationSettings(**own | {key: value for key, value in given.items() if value is not None})
        size = self.model.preprocessing.size
        return Inference.of(chosen.inference, size, chosen.overlap, chosen.scales, chosen.mirror)

    def _evaluation_data(self, data: Any, root: str | Path | None) -> ImageSet | SegmentationSet:
        own, fraction = self.config.get("data"), self.config.get("val_fraction", 0.2)
        size = self.config.get("image_size")
        if data is None:
            if own is None:
                raise ValueError(f"{self.path} does not name the data it was trained on: give data")
            place = root if root is not None else self.config.get("root")
            return load(own, root=place, size=size if are_composites(own) else None, val_fraction=fraction).val
        if isinstance(data, (ImageData, SegmentationData)):
            return data.val
        if self.task == "segmentation":
            return load(data, root=root, size=size if are_composites(data) else None, val_fraction=fraction).val
        is_folder = isinstance(data, Path) or "/" in data
        if is_folder and (own is None or str(Path(data).expanduser().resolve()) != own):
            return load_whole_folder(Path(data).expanduser(), self.model.preprocessing)
        return load(data, root=root, val_fraction=fraction).val

    def segment(
        self,
        images: str | Path | Iterable[str | Path],
        out: str | Path,
        *,
        inference: Inference | None = None,
        opacity: float = 0.6,
        progress: Callable[[int, int], None] | bool | None = False,
    ) -> list[dict[str, Any]]:
        """Write the class of every pixel of pictures, at the pictures' own size.

        ``out/indices/NAME.png`` holds class indices (with the palette of the data, so that viewers colour them), and
        ``out/overlays/NAME.png`` those colours over the picture; names are those below the folder that was given.

        Args:
            images: a file, a folder (searched to its depths), or several of them.
            out: folder to write to; what it holds of the same names is replaced.
            inference: how pictures are scored; as in training when absent, see :meth:`inference`.
            opacity: of the colours in the overlays, 0 to 1.
            progress: called with (pictures done, pictures in all); True and False force or forbid a bar.

        Returns:
            A row a picture: ``image``, ``indices``, ``overlay`` (paths), ``shares`` (class name: share of the pixels).

        Raises:
            FileNotFoundError: where a file or folder does not exist.
            ValueError: for a classifier, a folder without pictures, or a damaged picture (named).
        """
        if self.task != "segmentation":
            raise ValueError(f"the model of {self.path} is a classifier: use predict")
        from repertory.workflows.segmentation import segment_pictures

        places = [images] if isinstance(images, (str, Path)) else images
        with _BestDevice(self.model) as model:
            target = Path(out).expanduser()
            return segment_pictures(model, places, target, inference or self.inference(), opacity, progress)

    def predict(
        self,
        images: str | Path | Iterable[str | Path],
        top_k: int = 5,
        out: str | Path | None = None,
        batch_size: int = 32,
    ) -> list[dict[str, Any]]:
        """The likeliest classes of pictures: rows ``{"image": path, "top": [(class name, probability), …]}``.

        Args:
            images: a file, a folder (searched to its depths), or several of them.
            top_k: classes a picture, all of them where there are fewer.
            out: CSV file to write: ``image, class_1, probability_1, …``.
            batch_size: images at a time.

        Raises:
            FileNotFoundError: where a file or folder does not exist.
            ValueError: for a folder without pictures, or a damaged picture (named).
        """
        if self.task == "segmentation":
            raise ValueError(f"the model of {self.path} is a segmentor: use segment")
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be 1 or more")
        paths = _pictures([images] if isinstance(images, (str, Path)) else images)
        rows: list[dict[str, Any]] = []
        with _BestDevice(self.model) as model, torch.inference_mode():
            like = next(model.parameters())
            for first in range(0, len(paths), batch_size):
                part = paths[first : first + batch_size]
                pictures = [prepare(read_image(p, model.preprocessing.channels), model.preprocessing) for p in part]
                probabilities = model(torch.stack(pictures).to(like)).float().softmax(1)
                top = probabilities.topk(min(top_k, probabilities.shape[1]), dim=1)
                for path, values, places in zip(part, top.values.tolist(), top.indices.tolist()):
                    rows.append({"image": str(path), "top": [(self._class(i), p) for i, p in zip(places, values)]})
        if out is not None:
            _write_rows(Path(out).expanduser(), rows)
        return rows

    def _class(self, label: int) -> str:
        return self.classes[label] if self.classes else str(label)

    def export(
        self, format: Literal["onnx", "torch_export"] = "onnx", path: str | Path | None = None, batch: int = 2
    ) -> Path:
        """Write the model for another runtime and return the file; what it computes is checked first.

        The number of images is free, and their size where the mathematics allows. Preprocessing and class names are
        inside: ONNX metadata ``repertory``, or the extra file ``repertory.json`` of a torch export.

        Args:
            format: ``onnx`` or ``torch_export``.
            path: file to write; ``model.onnx`` or ``model.pt2`` in the run's folder when absent.
            batch: images in the example that is traced.

        Raises:
            ValueError: for another format, or a model that cannot be exported.
            MissingExtraError: where the packages for ONNX are not installed.
        """
        from repertory.workflows.export import export

        return export(self.model, format, Path(path).expanduser() if path is not None else None, self.path, batch)


def _model(weights: Weights, model: str | nn.Module | None, config: Mapping[str, Any]) -> nn.Module:
    """The model that takes ``weights``: the one given, or the one they or the configuration name."""
    if isinstance(model, nn.Module):
        fit_weights(model, weights, None)
        adopt(model, weights.description)
        return model
    name = model or weights.description.get("model")
    args: dict[str, Any] = {}
    if weights.description.get("model") is None and config.get("task") is not None:
        args["task"] = config["task"]
    if weights.description.get("model") is None:
        named = config.get("model")
        name = model or (named if named in catalog.list_models() or _is_timm(named) else None)
        if name is None and named is not None:
            raise ValueError(
                f"{weights.source} was trained on a module, {named}: give model=, a module built as it was"
            )
        if name is not None and name == named:
            args |= config.get("model_args", {})
        classes = weights.description.get("classes")
        if classes:
            args.setdefault("num_classes", len(classes))
        channels = (weights.description.get("preprocessing") or {}).get("channels")
        if channels == "L":
            args.setdefault("in_chans", 1)
        weights = _with_methods(weights, config)
    if name is None:
        raise ValueError(f"{weights.source} does not say which model it holds: give model (--model), its name")
    return catalog.create_model(name, checkpoint=weights, **args)


def _with_methods(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """``weights`` of a checkpoint of training, described with those methods of its run that change networks."""
    prepared = [
        {"name": name, "settings": dict(config.get(name, {}))}
        for name in config.get("method", ())
        if name in catalog.list_methods() and catalog.method_class(name).changes_networks()
    ]
    return replace(weights, description={**weights.description, "prepared": prepared})


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _is_timm(name: Any) -> bool:
    import timm

    return isinstance(name, str) and timm.is_model(name)


def _last_metrics(path: Path) -> dict[str, float]:
    """The last evaluation in ``metrics.csv``, its names without prefix; empty where there is none."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            {k.removeprefix(VALIDATION): float(v) for k, v in row.items() if k and k.startswith(VALIDATION) and v}
            for row in csv.DictReader(file)
        ]
    return next((row for row in reversed(rows) if row), {})


def _pictures(places: Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for place in map(Path, places):
        place = place.expanduser()
        if place.is_dir():
            below = images_below(place)
            if not below:
                raise ValueError(f"the folder {place} holds no image")
            found += below
        elif place.is_file():
            found.append(place)
        else:
            raise FileNotFoundError(f"no picture or folder at {place}")
    if not found:
        raise ValueError("images is empty; it must name a picture or a folder")
    return found


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    count = len(rows[0]["top"])
    header = ["image", *(f"{what}_{rank}" for rank in range(1, count + 1) for what in ("class", "probability"))]
    with Replacement(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            cells = (cell for name, probability in row["top"] for cell in (name, f"{probability:.6f}"))
            writer.writerow([row["image"], *cells])


class _BestDevice:
    """``with _BestDevice(model) as model``: on the GPU inside where there is one, afterwards where it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        parameter = next(model.parameters(), None)
        self.home = parameter.device if parameter is not None else torch.device("cpu")

    def __enter__(self) -> Any:
        return self.model.to("cuda") if torch.cuda.is_available() else self.model

    def __exit__(self, *_: object) -> None:
        self.model.to(self.home)
