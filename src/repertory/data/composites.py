"""Real handwritten digits over real photographs, offline, with every ground truth that dense prediction asks for.

Each picture is a function of (seed, part, index): a region of one of scikit-image's photographs, and digits of random
scale, rotation, colour and place over it, the later before the earlier. Training and validation share neither digit
images nor photographs. Classes are the background (0) and the digits 0 to 9 (1 to 10). Beside the class mask a scene
knows its instances, their hidden parts, order, boxes, points and image labels, so that the same pictures serve weak
supervision, few-shot learning and detection.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repertory.data.preprocessing import Preprocessing
from repertory.data.segmentation import IGNORE_INDEX, SegmentationData, SegmentationSet
from repertory.errors import unknown_name

CLASSES = ("background", *(str(digit) for digit in range(10)))
PARTS = ("train", "val")
PHOTOGRAPHS = {
    "train": (
        "astronaut",
        "brick",
        "camera",
        "cell",
        "coffee",
        "grass",
        "hubble_deep_field",
        "immunohistochemistry",
        "stereo_motorcycle",
    ),
    "val": ("chelsea", "coins", "gravel", "moon", "retina", "rocket"),
}
SOURCES = ("mnist5k", "digits")
SUPERVISION = ("points", "scribbles", "boxes")
_MOST_CACHED = 2**29  # bytes of pictures and masks that a set keeps
_TRIES = 6  # places tried for a digit before it is left out
_SCENE_DRAWS, _OBJECT_DRAWS = 9, 13 + 2 * _TRIES


@dataclass(frozen=True)
class Recipe:
    """How scenes are made.

    Args:
        size: height and width in pixels, 16 or more.
        objects: least and greatest number of digits asked for; one that would hide another too much is left out.
        scale: least and greatest side of a digit image (its ink takes about 0.7 of it), as a share of the shorter side.
        rotation: greatest rotation either way, degrees; from 90 on, 6 and 9 cannot be told apart.
        min_visible: least share of a digit's pixels that others leave visible.
        digits: the digits that occur, each 0 to 9: choose some for few-shot learning.
        source: ``mnist5k`` (28 x 28 pixels) or ``digits`` (scikit-learn's, 8 x 8).
    """

    size: tuple[int, int] = (64, 64)
    objects: tuple[int, int] = (1, 3)
    scale: tuple[float, float] = (0.4, 0.8)
    rotation: float = 30.0
    min_visible: float = 0.4
    digits: tuple[int, ...] = tuple(range(10))
    source: str = "mnist5k"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 16:
            raise ValueError(f"size is {self.size}; it must be (height, width) of 16 pixels or more")
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"objects is {self.objects}; it must be (least, greatest) with 0 <= least <= greatest")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; it must be (least, greatest) with 0 < least <= greatest <= 1")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is {self.rotation}; it must be 0 to 180 degrees")
        if not 0 < self.min_visible <= 1:
            raise ValueError(f"min_visible is {self.min_visible}; it must be above 0 and at most 1")
        if not self.digits or not set(self.digits) <= set(range(10)) or len(set(self.digits)) < len(self.digits):
            raise ValueError(f"digits is {self.digits}; it must be one or more different numbers of 0 to 9")
        if self.source not in SOURCES:
            raise unknown_name("source of digits", self.source, SOURCES)


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture and all that is true of it; its N digits are listed from the back to the front.

    ``image`` (3, H, W) uint8; ``labels`` (N,) int64, classes 1 to 10; ``amodal`` (N, H, W) bool, a digit's pixels
    hidden ones included; ``identities`` (N,) int64, which digit image of the part it is; ``photograph``, its name.
    """

    image: Tensor
    labels: Tensor
    amodal: Tensor
    identities: Tensor
    photograph: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def instances(self) -> Tensor:
        """The visible pixels of each digit, (N, H, W) bool, no pixel in two."""
        in_front = self.amodal.flip(0).cumsum(0).flip(0) - self.amodal.long()
        return self.amodal & (in_front == 0)

    @property
    def mask(self) -> Tensor:
        """The class of each pixel, (H, W) int64."""
        return (self.instances * self.labels.view(-1, 1, 1)).sum(0)

    @property
    def visible(self) -> Tensor:
        """The share of each digit that is visible, (N,) float32."""
        return self.instances.flatten(1).sum(1) / self.amodal.flatten(1).sum(1)

    @property
    def boxes(self) -> Tensor:
        """The box of each digit's visible pixels, (N, 4) float32: x0, y0, x1, y1 in pixels, x1 and y1 just outside."""
        sides = []
        for axis in (1, 2):  # over rows: columns that are taken; over columns: rows
            taken = self.instances.any(axis).long()
            sides.append((taken.argmax(1), taken.shape[1] - taken.flip(1).argmax(1)))
        (x0, x1), (y0, y1) = sides
        return torch.stack([x0, y0, x1, y1], 1).float()

    @property
    def centres(self) -> Tensor:
        """The middle of each box, (N, 2) float32: x, y in pixels; it may lie off the stroke."""
        boxes = self.boxes
        return (boxes[:, :2] + boxes[:, 2:]) / 2

    @property
    def points(self) -> Tensor:
        """A pixel on each digit, (N, 2) int64: x, y of the visible one that is nearest to their mean."""
        found = torch.zeros(len(self), 2, dtype=torch.int64)
        for place, instance in enumerate(self.instances):
            pixels = instance.nonzero().float()
            nearest = (pixels - pixels.mean(0)).square().sum(1).argmin()
            found[place] = pixels[nearest].flip(0).long()
        return found

    @property
    def image_labels(self) -> Tensor:
        """Which classes the picture shows, (11,) bool; the background is always there."""
        found = torch.zeros(len(CLASSES), dtype=torch.bool)
        found[0] = True
        found[self.labels] = True
        return found

    def weak_mask(self, kind: str, ignore_index: int = IGNORE_INDEX) -> Tensor:
        """A mask (H, W) int64 that a cheap annotation would give; pixels it says nothing of hold ``ignore_index``.

        Args:
            kind: ``points`` labels the pixel :attr:`points` of each digit; ``scribbles`` the middle line of each digit
                and, for the background, of what lies a twentieth of the shorter side from any; ``boxes`` everything: a
                pixel has the class of the smallest box over it, or is background ("Bbox-Rect" of Papandreou et al.,
                arXiv 1502.02734).
            ignore_index: what marks the other pixels.
        """
        if kind not in SUPERVISION:
            raise unknown_name("kind of supervision", kind, SUPERVISION)
        if kind == "boxes":
            return self._box_mask()
        weak = torch.full(self.image.shape[1:], ignore_index)
        if kind == "points":
            x, y = self.points.unbind(1)
            weak[y, x] = self.labels
            return weak
        from scipy.ndimage import distance_transform_edt
        from skimage.morphology import skeletonize

        far = distance_transform_edt((self.mask == 0).numpy()) > min(weak.shape) / 20
        weak[torch.from_numpy(skeletonize(far))] = 0
        for label, instance in zip(self.labels, self.instances):
            weak[torch.from_numpy(skeletonize(instance.numpy()))] = label
        return weak

    def _box_mask(self) -> Tensor:
        found = torch.zeros(self.image.shape[1:], dtype=torch.int64)
        boxes = self.boxes.long()
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        for place in area.argsort(descending=True).tolist():
            x0, y0, x1, y1 = boxes[place].tolist()
            found[y0:y1, x0:x1] = self.labels[place]
        return found


@dataclass(frozen=True)
class Episode:
    """A few-shot task: ``classes`` to tell apart, ``support`` and ``query`` items, ``shots`` and ``queries`` a class.

    Items are indices into the set, listed class by class; no item is on both sides or listed twice.
    """

    classes: tuple[int, ...]
    support: tuple[tuple[int, ...], ...]
    query: tuple[tuple[int, ...], ...]


@dataclass
class _Store:
    """Pictures and masks drawn so far, shared by all sets of one recipe, part, seed and length."""

    images: Tensor
    masks: Tensor
    drawn: Tensor = field(repr=False)


class CompositeSet(SegmentationSet):
    """``count`` scenes of ``part``, item i always the same for a ``seed``; see :class:`Recipe` for what can be chosen.

    Items are drawn when asked for; pictures and masks are kept where they all take less than 512 MiB.
    """

    def __init__(
        self,
        part: str = "train",
        count: int = 2000,
        seed: int = 0,
        recipe: Recipe | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
        if count < 1:
            raise ValueError(f"count is {count}; it must be 1 or more")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}; it must be 0 to 2**63 - 1")
        self.part, self.count, self.seed, self.recipe = part, count, seed, recipe or Recipe()
        super().__init__(CLASSES, preprocessing or Preprocessing(size=self.recipe.size, crop=1.0))
        height, width = self.recipe.size
        self._store = _store(part, count, seed, self.recipe) if 4 * count * height * width < _MOST_CACHED else None

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Item ``index`` with all that is true of it, drawn anew."""
        self._check(index)
        return draw(self.part, self.seed, index, self.recipe)

    def raw(self, index: int) -> tuple[Tensor, Tensor]:
        """The picture (3, H, W) uint8 and its mask (H, W) int64."""
        self._check(index)
        store = self._store
        if store is None:
            scene = self.scene(index)
            return scene.image, scene.mask
        if not store.drawn[index]:
            scene = self.scene(index)
            store.images[index], store.masks[index], store.drawn[index] = scene.image, scene.mask, True
        return store.images[index].clone(), store.masks[index].long()

    def _check(self, index: int) -> None:
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} is out of range: the set has {self.count} items")

    def image_labels(self) -> Tensor:
        """Which classes each item shows, (count, 11) bool; draws what is not drawn yet."""
        found = torch.zeros(self.count, len(CLASSES), dtype=torch.bool)
        for index in range(self.count):
            found[index, self.raw(index)[1].unique()] = True
        found[:, 0] = True
        return found

    def episode(self, index: int, ways: int = 5, shots: int = 1, queries: int = 5) -> Episode:
        """Few-shot task ``index``: ``ways`` classes and, for each, ``shots`` and ``queries`` items that show it.

        Raises:
            ValueError: where the set has fewer classes, or too few items of one.
        """
        digits = self.recipe.digits
        for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        if ways > len(digits):
            raise ValueError(f"ways is {ways}; the set has {len(digits)} digits")
        shown, taken = self.image_labels(), torch.zeros(self.count, dtype=torch.bool)
        order = np.argsort(_uniform(self.seed, index, 2 + PARTS.index(self.part), 10 + self.count), kind="stable")
        classes = [digits[place] + 1 for place in order[order < len(digits)][:ways]]
        ranked = torch.from_numpy(order[order >= 10] - 10)
        support, query = [], []
        for label in classes:
            free = ranked[shown[ranked, label] & ~taken[ranked]][: shots + queries]
            if len(free) < shots + queries:
                raise ValueError(
                    f"shots is {shots} and queries {queries}; the set has only {len(free)} items left that show the "
                    f"class {CLASSES[label]!r}"
                )
            taken[free] = True
            support.append(tuple(free[:shots].tolist()))
            query.append(tuple(free[shots:].tolist()))
        return Episode(tuple(classes), tuple(support), tuple(query))


def composites(
    size: int | Sequence[int] = 64, train: int = 2000, val: int = 400, seed: int = 0, recipe: Recipe | None = None
) -> SegmentationData:
    """Digits over photographs as a data set: ``train`` and ``val`` scenes of ``size`` pixels, drawn by ``seed``.

    Args:
        size: side of the square pictures, or (height, width).
        train: number of scenes to train on.
        val: number of scenes to validate on.
        seed: what all is drawn by.
        recipe: how scenes are made; its ``size`` is replaced.
    """
    height, width = (size, size) if isinstance(size, int) else size
    recipe = replace(recipe or Recipe(), size=(int(height), int(width)))
    parts = [CompositeSet(part, count, seed, recipe) for part, count in (("train", train), ("val", val))]
    return SegmentationData(
        "composites", parts[0], parts[1], CLASSES, split="other digit images over other photographs"
    )


def are_composites(name: object) -> bool:
    """Whether ``name`` names this data set: ``composites``, or ``composites:01`` with the digits that occur."""
    return isinstance(name, str) and name.partition(":")[0] == "composites"


def composites_named(name: str, size: int | Sequence[int] = 64) -> SegmentationData:
    """:func:`composites` with the digits that stand after the colon in ``name``; all ten where none does."""
    _, colon, digits = name.partition(":")
    if not colon:
        return composites(size)
    if not digits.isdecimal() or len(set(digits)) != len(digits):
        raise ValueError(f"data is {name!r}; after the colon there must be different digits, as in composites:01")
    return composites(size, recipe=Recipe(digits=tuple(int(digit) for digit in digits)))


@lru_cache(maxsize=8)
def _store(part: str, count: int, seed: int, recipe: Recipe) -> _Store:
    images = torch.zeros(count, 3, *recipe.size, dtype=torch.uint8)
    return _Store(images, torch.zeros_like(images[:, 0]), torch.zeros(count, dtype=torch.bool))


def draw(part: str, seed: int, index: int, recipe: Recipe) -> Scene:
    """Scene ``index`` of ``seed``: equal arguments, equal pixels."""
    least, greatest = recipe.objects
    uniform = _uniform(seed, index, PARTS.index(part), _SCENE_DRAWS + greatest * _OBJECT_DRAWS)
    photograph, canvas = _background(part, uniform, recipe.size)
    count = least + int(uniform[7] * (greatest - least + 1))
    images, members = _digits(recipe.source, part)
    labels: list[int] = []
    identities: list[int] = []
    amodal = np.zeros((greatest, *recipe.size), bool)
    for number in range(count):
        start = _SCENE_DRAWS + number * _OBJECT_DRAWS
        draws = uniform[start : start + _OBJECT_DRAWS]
        digit = recipe.digits[int(draws[0] * len(recipe.digits))]
        identity = int(members[digit][int(draws[1] * len(members[digit]))])
        ink = _ink(images[identity], draws, recipe)
        place = _place(ink, draws[13:].reshape(_TRIES, 2), amodal[: len(labels)], recipe)
        if place is None:
            continue
        window = slice(place[0], place[0] + ink.shape[0]), slice(place[1], place[1] + ink.shape[1])
        _paint(canvas[window], ink, draws[4:13].reshape(3, 3))
        amodal[len(labels)][window] = ink >= 0.5
        labels.append(digit + 1)
        identities.append(identity)
    return Scene(
        torch.from_numpy(np.ascontiguousarray(np.rint(canvas).astype(np.uint8).transpose(2, 0, 1))),
        torch.tensor(labels, dtype=torch.int64),
        torch.from_numpy(amodal[: len(labels)].copy()),
        torch.tensor(identities, dtype=torch.int64),
        photograph,
    )


def _uniform(seed: int, index: int, stream: int, count: int) -> np.ndarray:
    """Numbers in [0, 1) of (seed, index, stream): Philox's counter, whose raw words numpy promises not to change."""
    words = np.random.Philox(key=np.array([seed, 4 * index + stream], np.uint64)).random_raw(count)
    return (words >> np.uint64(11)) * 2.0**-53


@cache
def _photograph(name: str) -> tuple[Image.Image, ...]:
    """The photograph in colour, and halved as long as its shorter side keeps 64 pixels."""
    from skimage import data

    loaded = getattr(data, name)()
    pixels = loaded[0] if isinstance(loaded, tuple) else loaded  # the motorcycle is a stereo pair with disparity
    levels = [Image.fromarray(pixels).convert("RGB")]
    while min(levels[-1].size) >= 128:
        levels.append(levels[-1].reduce(2))
    return tuple(levels)


def _background(part: str, uniform: np.ndarray, size: tuple[int, int]) -> tuple[str, np.ndarray]:
    """A region of a photograph, perhaps mirrored, its channels dimmed at random: (H, W, 3) float32 of 0 to 255."""
    height, width = size
    names = PHOTOGRAPHS[part]
    name = names[int(uniform[0] * len(names))]
    levels = _photograph(name)
    fit = min(levels[0].width / width, levels[0].height / height)  # the largest region is fit times the size
    zoom = fit ** (1 - uniform[1]) if fit > 1 else fit
    level = max((k for k in range(len(levels)) if zoom >= 2**k), default=0)
    photograph = levels[level]
    across, down = (min(side * zoom / 2**level, most) for side, most in zip((width, height), photograph.size))
    left, top = uniform[2] * (photograph.width - across), uniform[3] * (photograph.height - down)
    box = (left, top, left + across, top + down)
    region = np.asarray(photograph.resize((width, height), Image.Resampling.BILINEAR, box), np.float32)
    if uniform[8] < 0.5:
        region = region[:, ::-1]
    return name, region * (0.5 + 0.5 * uniform[4:7]).astype(np.float32)


@cache
def _digits(source: str, part: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """The part's digit images (N, side, side), and which of them show each digit."""
    from repertory.data.bundled import BUNDLED

    found = getattr(BUNDLED[source](None, 0.2), part)
    targets = np.array(found.targets)
    return found.images[:, 0].numpy(), [np.flatnonzero(targets == digit) for digit in range(10)]


def _ink(digit: np.ndarray, draws: np.ndarray, recipe: Recipe) -> np.ndarray:
    """How much ink covers each pixel, (h, w) float32 of 0 to 1, scaled, rotated and cut to what there is."""
    least, greatest = recipe.scale
    side = max(8, round((least + (greatest - least) * draws[2]) * min(recipe.size)))
    angle = (2 * draws[3] - 1) * recipe.rotation
    image = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    turned = np.asarray(image.rotate(angle, Image.Resampling.BICUBIC, expand=True), np.float32)
    # The strokes of small digits lose contrast: bring the darkest fifth to full ink.
    levels = np.sort(turned[turned > 25])
    ink = np.minimum(turned / levels[len(levels) * 4 // 5], 1)
    rows, columns = (np.flatnonzero((ink >= 0.5).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = recipe.size
    top, left = (max(0, (have - most) // 2) for have, most in zip(ink.shape, recipe.size))
    return ink[top : top + height, left : left + width]


def _place(ink: np.ndarray, tries: np.ndarray, amodal: np.ndarray, recipe: Recipe) -> tuple[int, int] | None:
    """Top and left of the first try that leaves enough of every digit behind visible, or None."""
    height, width = recipe.size
    places = [(int(d * (height - ink.shape[0] + 1)), int(r * (width - ink.shape[1] + 1))) for d, r in tries]
    if not len(amodal):
        return places[0]
    covered = ink >= 0.5
    areas = amodal.sum((1, 2))
    in_front = np.zeros(recipe.size, bool)
    visible = np.zeros_like(amodal)
    for number in reversed(range(len(amodal))):
        visible[number] = amodal[number] & ~in_front
        in_front |= amodal[number]
    for top, left in places:
        window = visible[:, top : top + ink.shape[0], left : left + ink.shape[1]]
        left_over = visible.sum((1, 2)) - (window & covered).sum((1, 2))
        if (left_over >= recipe.min_visible * areas).all():
            return top, left
    return None


def _paint(canvas: np.ndarray, ink: np.ndarray, draws: np.ndarray) -> None:
    """Lay ``ink`` over ``canvas`` (h, w, 3), of three random colours in the one farthest from what lies under it."""
    colours = np.array([colorsys.hsv_to_rgb(h, 0.2 + 0.8 * s, 0.2 + 0.8 * v) for h, s, v in draws]) * 255
    under = canvas[ink >= 0.5].mean(0)
    colour = colours[np.square(colours - under).sum(1).argmax()].astype(np.float32)
    canvas += ink[..., None] * (colour - canvas)
