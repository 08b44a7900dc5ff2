"""The catalogue: the card of every system, and models and methods by name.

Reading cards imports no torch; building a model does.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repertory.errors import unknown_name

if TYPE_CHECKING:
    from os import PathLike

    from repertory.checkpoints import Weights
    from repertory.data.preprocessing import Preprocessing
    from repertory.training.method import Method

FIELDS = (
    "attention backbones",
    "segmentation and parsing",
    "person re-identification",
    "pose",
    "video and language",
    "medical imaging",
    "continual learning",
    "training methods",
    "3D geometry",
    "filtering",
)
SOURCES = ("code", "paper", "abstract", "third-party")
TASKS = ("classification", "segmentation")
STATUSES = ("planned", "reading", "reading_base_verified", "parity_with_readings", "parity")


@dataclass(frozen=True)
class Part:
    """One defining part of a system; its proof is vectors of ``kinds``, the exact ``test``, or none (``inferred``)."""

    name: str
    kinds: tuple[str, ...] = ()
    test: str = ""
    inferred: bool = False
    core: bool = True


@dataclass(frozen=True)
class Figure:
    """A published figure with ``unit`` and ``setting``; ``source`` is code, paper, abstract or third-party."""

    metric: str
    value: float
    unit: str
    setting: str
    source: str


@dataclass(frozen=True)
class Card:
    """What ``systems/<slug>/card.toml`` says of a system."""

    slug: str
    field: str
    task: str
    title: str
    venue: str
    year: int
    purpose: str
    training_only: str
    inference: str
    arxiv: str = ""
    doi: str = ""
    repository: str = ""
    licence: str = ""
    parts: tuple[Part, ...] = ()
    published: tuple[Figure, ...] = ()
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """What ``repertory verify --record`` derived for a system, and whether its code has changed since (``stale``)."""

    status: str = "planned"
    vectors_passed: int = 0
    vectors_total: int = 0
    inferred: tuple[str, ...] = ()
    stale: bool = False


def room(slug: str) -> Traversable:
    """The folder of the system called ``slug``."""
    return files("repertory.systems") / slug


def parse_card(text: str, slug: str) -> Card:
    """The card in ``text``; ``ValueError`` names what is wrong with it."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"card of {slug}: {error}") from None
    known = {f.name for f in fields(Card)}
    if extra := sorted(set(raw) - known):
        raise ValueError(f"card of {slug}: unknown entries {', '.join(extra)}; a card has {', '.join(sorted(known))}")
    try:
        raw["parts"] = tuple(Part(**(p | {"kinds": tuple(p.get("kinds", ()))})) for p in raw.get("parts", ()))
        raw["published"] = tuple(Figure(**figure) for figure in raw.get("published", ()))
        card = Card(**raw)
    except TypeError as error:
        raise ValueError(f"card of {slug}: {error}") from None
    problems = _problems(card, slug)
    if problems:
        raise ValueError(f"card of {slug}: {'; '.join(problems)}")
    return card


def _problems(card: Card, slug: str) -> list[str]:
    problems = []
    if card.slug != slug:
        problems.append(f"slug is {card.slug!r}, the folder is {slug!r}")
    if card.field not in FIELDS:
        problems.append(f"field {card.field!r} is none of {', '.join(FIELDS)}")
    if not 1990 <= card.year <= 2100:
        problems.append(f"year {card.year} is not a year")
    problems += [
        f"{name} is empty" for name in ("task", "title", "venue", "purpose", "inference") if not getattr(card, name)
    ]
    if not card.parts:
        problems.append("no parts: every card names what defines its system")
    for part in card.parts:
        if bool(part.kinds) + bool(part.test) + part.inferred != 1:
            problems.append(f"part {part.name!r} needs exactly one of kinds, test, inferred")
    for figure in card.published:
        if figure.source not in SOURCES:
            problems.append(
                f"figure {figure.metric!r} has source {figure.source!r}; published figures cite {', '.join(SOURCES)}"
            )
    return problems


@cache
def cards() -> Mapping[str, Card]:
    """Every card, by slug, in alphabetical order."""
    folders = sorted(
        (f for f in files("repertory.systems").iterdir() if (f / "card.toml").is_file()), key=lambda f: f.name
    )
    return {f.name: parse_card((f / "card.toml").read_text(encoding="utf-8"), f.name) for f in folders}


def card(slug: str) -> Card:
    """The card of ``slug``; ``ValueError`` with the nearest names where there is none."""
    if slug not in cards():
        raise unknown_name("system", slug, cards())
    return cards()[slug]


def entry(slug: str, reference: str) -> Any:
    """The object that ``module:name`` means in the room of ``slug``."""
    module, _, name = reference.partition(":")
    return getattr(import_module(f"repertory.systems.{slug}.{module}"), name)


def list_systems(field: str | None = None, task: str | None = None) -> list[str]:
    """Slugs of all systems, or of those in one ``field`` or for one ``task``."""
    return [c.slug for c in cards().values() if field in (None, c.field) and task in (None, c.task)]


@cache
def _named(table: str) -> Mapping[str, tuple[str, str]]:
    """Name -> (slug, reference) over the table (``models`` or ``methods``) of every card."""
    return {name: (c.slug, text) for c in cards().values() for name, text in sorted(getattr(c, table).items())}


def list_models(pattern: str = "*") -> list[str]:
    """Names of our models that match ``pattern`` (``bake_*``); timm's are in ``timm.list_models()``."""
    return sorted(fnmatch.filter(_named("models"), pattern))


def list_methods(pattern: str = "*") -> list[str]:
    """Names of our training methods that match ``pattern``."""
    return sorted(fnmatch.filter(_named("methods"), pattern))


def model_task(name: str) -> str:
    """What the model called ``name`` is for: ``segmentation`` for a segmentor of ours, else ``classification``."""
    if name not in _named("models"):
        return "classification"
    slug, reference = _named("models")[name]
    module = import_module(f"repertory.systems.{slug}.{reference.partition(':')[0]}")
    segmentor = cards()[slug].task == "semantic segmentation" and name not in getattr(module, "BACKBONES", {})
    return "segmentation" if segmentor else "classification"


def method_class(name: str) -> type[Method]:
    """The class of the method called ``name``; ``ValueError`` with the nearest names where there is none."""
    if name not in _named("methods"):
        raise unknown_name("method", name, _named("methods"))
    return entry(*_named("methods")[name])


def create_method(name: str, **settings: Any) -> Method:
    """The method called ``name``; ``ValueError`` where a setting is unknown or out of its range."""
    return _called(f"method {name}", method_class(name), settings)


def create_model(
    name: str,
    checkpoint: str | PathLike[str] | Weights | None = None,
    *,
    checkpoint_entry: str | None = None,
    reset_head: bool = False,
    task: str | None = None,
    **settings: Any,
) -> Any:
    """The model called ``name``, of ours or timm's, with the weights of ``checkpoint``.

    The model carries ``preprocessing``, ``class_names`` (None where unknown) and ``save_pretrained(folder)``.

    Args:
        name: as in :func:`list_models` or ``timm.list_models()``.
        checkpoint: the authors' file, ours (safetensors or ``.ckpt``), a run folder, or what ``save_pretrained`` wrote.
            Authors' names are converted; settings that our own files hold need not be given again.
        checkpoint_entry: name inside a training checkpoint, such as ``model_ema``; found when absent.
        reset_head: keep a new classifier where that of the checkpoint has another shape.
        task: ``segmentation`` makes a segmentor of a backbone: its maps scored by one 1x1 convolution, see
            :class:`~repertory.nn.segmentor.LinearSegmentor`; a model that is a segmentor stays as it is.
        settings: for the builder: ``num_classes``, ``in_chans``, ``drop_path_rate``, …

    Raises:
        ValueError: for an unknown name or setting (nearest suggested), or a checkpoint of another model (which keys).
        FileNotFoundError: where there is no such checkpoint.
    """
    weights = None
    if checkpoint is not None:
        from repertory.checkpoints import Weights, read_weights

        weights = checkpoint if isinstance(checkpoint, Weights) else read_weights(str(checkpoint), checkpoint_entry)
        holds = weights.description.get("model")
        if holds not in (None, name):
            raise ValueError(f"{weights.source} holds the model {holds}, not {name}")
        described = dict(weights.description.get("settings", {}))
        task = described.pop("task", task)
        settings = {**described, **settings}
    if task not in (None, *TASKS):
        raise unknown_name("task", task, TASKS)
    if task == "segmentation" and model_task(name) != task:
        model, convert = _build_segmentor(name, settings), None
        label(model, name, {**settings, "task": task})
    else:
        model, convert = _build(name, settings)
        label(model, name, settings)
    if weights is not None:
        from repertory.checkpoints import adopt, fit_weights

        model = prepared(model, weights.description.get("prepared", ()))
        fit_weights(model, weights, convert, reset_head)
        adopt(model, weights.description)
    return model


def prepared(model: Any, methods: Sequence[Mapping[str, Any]]) -> Any:
    """``model`` as ``methods``, each a ``name`` with ``settings``, changed it before it was trained; all trains again.

    ValueError for a method whose settings are not known, since it was given as an object.
    """
    for method in methods:
        if method["settings"] is None:
            raise ValueError(
                f"the network was changed by the method {method['name']} with settings that were not recorded: "
                "give model=, a module changed in the same way"
            )
        changed = create_method(method["name"], **method["settings"]).prepare_model(model)
        model = dress(changed, model).requires_grad_(True)
    if methods:
        model.prepared_by = [dict(method) for method in methods]
    return model


def dress(model: Any, like: Any) -> Any:
    """``model`` with the name, preprocessing, class names and colours of ``like``; a method may have built it anew."""
    from repertory.checkpoints import adopt

    palette, names = getattr(like, "palette", None), getattr(like, "class_names", None)
    adopt(model, {"preprocessing": like.preprocessing.to_dict(), "classes": names, "palette": palette})
    if hasattr(like, "catalogue_entry"):
        label(model, **like.catalogue_entry)
    return model


def label(model: Any, name: str, settings: Mapping[str, Any]) -> None:
    """Tell ``model`` what it was built as (what travels with its weights), and how to save itself."""
    if not hasattr(model, "class_names"):
        model.class_names = None
    model.catalogue_entry = {"name": name, "settings": dict(settings)}
    model.save_pretrained = partial(_save_pretrained, model)


def from_pretrained(place: str | PathLike[str], **hub: Any) -> Any:
    """The model that ``save_pretrained`` wrote to the folder ``place``, or to the repository ``owner/name`` of the hub.

    ``hub`` goes to huggingface-hub (``revision``, ``token``, ``local_files_only``, …). ``ValueError`` where the weights
    do not say whose they are: :func:`create_model` with a name loads those.
    """
    from repertory.checkpoints import find_pretrained

    weights = find_pretrained(place if isinstance(place, str) else Path(place), **hub)
    name = weights.description.get("model")
    if not name:
        raise ValueError(f"{weights.source} does not say which model it holds: use create_model(NAME, checkpoint=…)")
    return create_model(name, checkpoint=weights)


def _save_pretrained(model: Any, folder: str | PathLike[str], **hub: Any) -> None:
    """Write weights, preprocessing and class names to ``folder``; ``hub`` goes to huggingface-hub."""
    from repertory.checkpoints import save_pretrained

    save_pretrained(model, Path(folder), **hub)


def _build(name: str, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """A new model, and the conversion of its authors' names (None where the names are the same)."""
    if name in _named("models"):
        slug, reference = _named("models")[name]
        if settings.get("pretrained"):
            raise ValueError(
                f"no weights of {name} are distributed with repertory: give checkpoint=FILE in place of pretrained"
            )
        plain = {key: value for key, value in settings.items() if key != "pretrained"}
        model = _called(f"model {name}", entry(slug, reference), plain)
        convert = entry(slug, "authors:from_authors") if (room(slug) / "authors.py").is_file() else None
    else:
        model, convert = _build_timm(name, settings)
    preprocessing = getattr(model, "preprocessing", None)
    if preprocessing is not None and settings.get("in_chans") == 1 and preprocessing.channels != "L":
        from repertory.data.loading import with_channels

        model.preprocessing = with_channels(preprocessing, "L")
    return model, convert


def _build_timm(name: str, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise unknown_name("model", name, [*_named("models"), *timm.list_models()])
    model = _called(f"model {name}", timm.create_model, {"model_name": name, **settings})
    model.preprocessing = _timm_preprocessing(model)
    adapt = getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None)
    return model, (lambda state: adapt(dict(state), model)) if adapt else None


def _timm_preprocessing(model: Any) -> Preprocessing:
    """How timm says that ``model`` wants its pictures."""
    import timm

    from repertory.data.preprocessing import Preprocessing

    wanted = timm.data.resolve_model_data_config(model)
    channels = "L" if wanted["input_size"][0] == 1 else "RGB"
    mean, std = (
        (sum(values) / len(values),) if channels == "L" else tuple(values) for values in (wanted["mean"], wanted["std"])
    )
    interpolation = (
        wanted["interpolation"] if wanted["interpolation"] in ("nearest", "bilinear", "bicubic") else "bicubic"
    )
    size = tuple(wanted["input_size"][1:])
    return Preprocessing(size, interpolation, wanted["crop_pct"], mean, std, channels)


# What lets backbones of timm give maps of stride 8, or take pictures of any size; the first that a network knows.
_DENSE: tuple[Mapping[str, Any], ...] = (
    {"output_stride": 8},
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {},
)


def _build_segmentor(name: str, settings: Mapping[str, Any]) -> Any:
    """A backbone's maps, scored by one 1x1 convolution; at stride 8 where the backbone can be dilated so far."""
    from repertory.nn.segmentor import LinearSegmentor

    settings = dict(settings)
    classes = settings.pop("num_classes", 1000)
    if name in _named("models"):
        backbone, preprocessing = _our_maps(name, settings)
    else:
        backbone = _timm_maps(name, settings)
        preprocessing = _timm_preprocessing(backbone)
    facts: Any = backbone.feature_info
    channels_last = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")
    model: Any = LinearSegmentor(backbone, facts.channels(), facts.reduction(), classes, channels_last)
    model.preprocessing = dataclasses.replace(preprocessing, crop=1.0)
    if settings.get("in_chans") == 1 and preprocessing.channels != "L":
        from repertory.data.loading import with_channels

        model.preprocessing = with_channels(model.preprocessing, "L")
    return model


def _our_maps(name: str, settings: Mapping[str, Any]) -> tuple[Any, Preprocessing]:
    """The maps of a backbone of ours, by its room's feature description, and how it wants its pictures."""
    from timm.models import build_model_with_cfg

    slug, reference = _named("models")[name]
    module = import_module(f"repertory.systems.{slug}.{reference.partition(':')[0]}")
    if name not in getattr(module, "BACKBONES", {}):
        raise ValueError(f"{name} gives no maps that a segmentor could score: it is no backbone")
    features = {"feature_cfg": dict(module.BACKBONES[name]["feature_cfg"]), "features_only": True}
    builder, cfg = entry(slug, reference), {"num_classes": 1000, "input_size": (3, 224, 224)}
    known = {"model_cls": builder, "variant": name, "pretrained": False, "pretrained_cfg": cfg}
    return _called(f"model {name}", build_model_with_cfg, {**known, **features, **settings}), module.PREPROCESSING


def _timm_maps(name: str, settings: Mapping[str, Any]) -> Any:
    """The maps of a backbone of timm."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise unknown_name("model", name, [*_named("models"), *timm.list_models()])
    for dense in _DENSE[:-1]:
        try:
            return timm.create_model(name, features_only=True, **{**dense, **settings})
        except (TypeError, AssertionError):  # how a network says that it does not know a setting
            continue
        except RuntimeError as error:
            raise ValueError(f"{name} gives no maps that a segmentor could score: {error}") from error
    return _called(f"model {name}", timm.create_model, {"model_name": name, "features_only": True, **settings})


def _called(what: str, build: Any, settings: Mapping[str, Any]) -> Any:
    """``build(**settings)``; a setting that it does not take is a ``ValueError`` in one sentence."""
    known = signature(build).parameters
    if not any(p.kind is Parameter.VAR_KEYWORD for p in known.values()):
        for key in settings:
            if key not in known:
                raise unknown_name(f"setting of {what}", key, [k for k in known if k != "self"])
    try:
        return build(**settings)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error


def status(slug: str) -> Status:
    """The recorded status of ``slug``; ``planned`` where nothing was recorded."""
    path = room(card(slug).slug) / "status.json"
    if not path.is_file():
        return Status()
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Status(
        raw["status"],
        raw["vectors_passed"],
        raw["vectors_total"],
        tuple(raw["inferred"]),
        stale=raw["hash"] != fingerprint(slug),
    )


_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(repertory[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+(repertory[\w.]+))", re.M
)


@cache
def _module_file(name: str) -> Traversable | None:
    """The source file of the module ``repertory.…``, found without importing it."""
    root, parts = files("repertory"), name.split(".")[1:]
    if (place := root.joinpath(*parts)).is_dir():
        source = place / "__init__.py"
    else:
        source = root.joinpath(*parts[:-1], f"{parts[-1]}.py")
    return source if source.is_file() else None


@cache
def _imports(name: str) -> tuple[bytes, frozenset[str]]:
    """The source of module ``name`` and the ``repertory`` modules that it imports."""
    source = _module_file(name)
    content = source.read_bytes() if source else b""
    found = set()
    for base, names, plain in _IMPORT.findall(content.decode("utf-8")):
        found.add(base or plain)
        found |= {f"{base}.{word}" for word in re.findall(r"\w+", names) if base and _module_file(f"{base}.{word}")}
    return content, frozenset(n for n in found if _module_file(n))


def fingerprint(slug: str) -> str:
    """A hash over the room of ``slug`` and every ``repertory`` module that it imports, directly or not."""
    digest, seen = hashlib.sha256(), set()
    queue = [f"repertory.systems.{slug}.{f.name[:-3]}" for f in room(slug).iterdir() if f.name.endswith(".py")]
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += _imports(name)[1]
    for name in sorted(seen):
        digest.update(name.encode() + b"\0" + _imports(name)[0])
    folder = room(slug) / "vectors"
    proofs = sorted(folder.iterdir(), key=lambda f: f.name) if folder.is_dir() else []
    for proof in [room(slug) / "card.toml", *proofs]:
        digest.update(proof.name.encode() + b"\0" + proof.read_bytes())
    return digest.hexdigest()[:16]
