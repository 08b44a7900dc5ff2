"""The experiment: real textures laid over the regions of real photographs, so that the structure is known.

Nothing is trained and no arm has parameters. Structure is a bundled photograph reduced to the mean colours of its
regions; texture is a crop of a photograph of brick, grass or gravel without its own slow shading. What is left of the
texture, and what is lost of the structure, is one number: the distance to the known structure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, uniform_filter
from torch import Tensor

from repertory.evidence import Arm, ArmResult, Context, Experiment, Scale
from repertory.ops.bilateral import joint_bilateral
from repertory.ops.gaussian import gaussian_blur
from repertory.systems.pyramid_texture_filtering.filter import pyramid_texture_filter

SIGMA_S, SIGMA_R, HALF_WIDTH = 5.0, 0.05, 11
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
TEXTURES = ("brick", "grass", "gravel")


def composite(seed: int, index: int, size: tuple[int, int], amplitude: float) -> tuple[np.ndarray, np.ndarray]:
    """(textured picture, its structure), both (H, W, 3) float64; ``seed`` and ``index`` choose photographs and crops.

    ``amplitude`` is the standard deviation of the texture.
    """
    from skimage import data, segmentation

    random = np.random.default_rng([seed, index])
    photograph = getattr(data, PHOTOGRAPHS[random.integers(len(PHOTOGRAPHS))])() / 255.0
    crop = _crop(photograph, (2 * size[0], 2 * size[1]), random)[::2, ::2]
    regions = segmentation.felzenszwalb(gaussian_filter(crop, (1, 1, 0)), scale=200, sigma=0.8, min_size=150)
    structure = np.empty_like(crop)
    for region in np.unique(regions):
        structure[regions == region] = crop[regions == region].mean(0)
    structure = 0.2 + 0.6 * structure  # leave room for the texture
    pattern = getattr(data, TEXTURES[random.integers(len(TEXTURES))])() / 255.0
    # Halved by means of four pixels, so that a texture's period is a few pixels.
    halved = pattern.reshape(256, 2, 256, 2).mean((1, 3))
    texture = _crop(halved - gaussian_filter(halved, 4), size, random)
    texture = texture / texture.std() * amplitude
    return (structure + texture[..., None]).clip(0, 1), structure


def _crop(picture: np.ndarray, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    size = (min(size[0], picture.shape[0]), min(size[1], picture.shape[1]))
    top, left = (int(random.integers(have - want + 1)) for have, want in zip(picture.shape, size, strict=False))
    return picture[top : top + size[0], left : left + size[1]]


def guided_filter(image: Tensor, radius: int = 11, epsilon: float = SIGMA_R**2) -> Tensor:
    """The self-guided filter of He et al. 2010, a channel at a time; (B, C, H, W)."""
    values = image.numpy()

    def mean(x: np.ndarray) -> np.ndarray:
        return uniform_filter(x, (1, 1, 2 * radius + 1, 2 * radius + 1), mode="reflect")

    average = mean(values)
    variance = mean(values * values) - average**2
    slope = variance / (variance + epsilon)
    return torch.from_numpy(mean(slope) * values + mean((1 - slope) * average))


def rolling_guidance(image: Tensor, sigma: float = SIGMA_S, iterations: int = 4) -> Tensor:
    """The rolling guidance filter of Zhang et al. 2014: blur, then joint bilateral filters guided by the last."""
    guide = gaussian_blur(image, 2 * int(np.ceil(2 * sigma)) + 1, sigma)
    for _ in range(iterations):
        guide = joint_bilateral(image, guide, HALF_WIDTH, sigma, SIGMA_R, backend="eager")
    return guide


def _ptf(image: Tensor, **settings: float) -> Tensor:
    return pyramid_texture_filter(image, SIGMA_S, SIGMA_R, backend="eager", **settings)  # type: ignore[arg-type]


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "ptf": _ptf,
    "bilateral": lambda image: joint_bilateral(image, image, HALF_WIDTH, SIGMA_S, SIGMA_R, backend="eager"),
    "guided": guided_filter,
    "rolling": rolling_guidance,
    "no_laplacian": lambda image: _ptf(image, add_laplacian=False),
    "no_last": lambda image: _ptf(image, last=False),
    "coarse": lambda image: _ptf(image, levels=4, scale=0.5),
}


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
    """Filter ``scale.images`` composites and measure the distance of each result to its structure."""
    size, amplitude = (scale.settings["height"], scale.settings["width"]), scale.settings["amplitude"]
    errors, edges, before = [], [], []
    pictures: dict[str, np.ndarray] = {}
    for index in range(scale.images):
        textured, structure = composite(seed, index, size, amplitude)
        batch = torch.from_numpy(textured.transpose(2, 0, 1)[None]).contiguous()
        result = FILTERS[arm.name](batch)[0].numpy().transpose(1, 2, 0)
        difference = (result - structure) ** 2
        step = np.abs(np.diff(structure, axis=1, prepend=structure[:, :1])).max(2) > 0.05
        edge = uniform_filter(step.astype(float), 5) > 0
        errors.append(np.sqrt(difference.mean()))
        edges.append(np.sqrt(difference[edge].mean()) if edge.any() else errors[-1])
        before.append(np.sqrt(((textured - structure) ** 2).mean()))
        if index == 0:
            pictures = {
                "textured input": _bytes(textured),
                "known structure": _bytes(structure),
                arm.label: _bytes(result),
            }
        context.progress(index + 1, scale.images)
    metrics = {
        "structure_error": float(np.mean(errors)),
        "structure_error_at_edges": float(np.mean(edges)),
        "structure_error_of_input": float(np.mean(before)),
    }
    settings = {"sigma_s": SIGMA_S, "sigma_r": SIGMA_R, "amplitude": amplitude, "size": list(size)}
    return ArmResult(metrics, images=scale.images, settings=settings, pictures=pictures)


EXPERIMENT = Experiment(
    system="pyramid_texture_filtering",
    question="Does the filter remove real textures from known structure better than one bilateral filter?",
    metric="structure_error",
    unit="RMS error",
    higher_is_better=False,
    baseline="bilateral",
    method="ptf",
    arms=(
        Arm("bilateral", "bilateral filter"),
        Arm("ptf", "pyramid texture filtering"),
        Arm("guided", "guided filter"),
        Arm("rolling", "rolling guidance filter"),
        Arm("no_laplacian", "without the Laplacian levels", {"add_laplacian": False}),
        Arm("no_last", "without the last bilateral filter", {"last": False}),
        Arm("coarse", "4 levels at scale 0.5", {"levels": 4, "scale": 0.5}),
    ),
    scales={
        "smoke": Scale(3, 2, {"height": 96, "width": 128, "amplitude": 0.1}),
        "small": Scale(10, 8, {"height": 144, "width": 192, "amplitude": 0.1}),
    },
    run=run,
    data="photographs of scikit-image: regions of one, textures of another; errors are of [0, 1]",
)
