"""PatchErasing: whole patches of every image erased, for a batch at once and on its device.

Zhou et al., "Effective Vision Transformer Training: A Data-Centric Perspective", arXiv 2209.15006. That patches are
erased is from the abstract; how many, which and with what is inferred.
"""

from __future__ import annotations

import torch
from torch import Tensor

FILLS = ("mean", "noise")


def erase_patches(
    images: Tensor, rate: float | Tensor, patch_size: int | tuple[int, int] = 16, fill: str = "mean"
) -> Tensor:
    """Copies of normalised ``images`` (B, C, H, W) with round(``rate`` G) of their G patches erased.

    Patches are drawn uniformly without replacement, for every image its own, from torch's generator of the device.
    Erase after normalisation: only then is zero the mean colour.

    Args:
        images: what the network would be given.
        rate: share of the patches to erase, for all images or for each (B,); at least 0, and at least one patch must
            stay.
        patch_size: side of a patch in pixels, or (height, width): the network's own, or what it stands for there.
        fill: "mean" (zeros) or "noise" (a normal draw for each pixel).

    Raises:
        ValueError: for images of another shape or that patches do not fill, a single rate out of range (rates on the
            device are not looked at, so that nothing waits for it), or an unknown fill.
    """
    if fill not in FILLS:
        raise ValueError(f"fill is {fill!r}; it must be one of {', '.join(FILLS)}")
    count, rows, columns = grid_of(images, patch_size)
    patches = rows * columns
    keys = torch.rand(count, patches, device=images.device)
    if isinstance(rate, Tensor):
        erased = (rate * patches).round().clamp(0, patches - 1)
        mask = keys.argsort(1).argsort(1) < erased[:, None]  # the rank of a patch among those of its image
    else:
        mask = torch.zeros(count, patches, dtype=torch.bool, device=images.device)
        chosen = keys.topk(patches_erased(rate, patches), dim=1, sorted=False).indices
        mask.scatter_(1, chosen, True)
    height, width = images.shape[2] // rows, images.shape[3] // columns
    cut = images.reshape(count, images.shape[1], rows, height, columns, width)
    covered = mask.view(count, 1, rows, 1, columns, 1)
    if fill == "mean":
        return cut.masked_fill(covered, 0).view(images.shape)
    return torch.where(covered, torch.randn_like(cut), cut).view(images.shape)


def patches_erased(rate: float, patches: int) -> int:
    """round(``rate`` ``patches``); ValueError for a rate outside [0, 1), or where no patch would be left."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}; it must be at least 0 and below 1")
    erased = round(rate * patches)
    if erased >= patches:
        raise ValueError(
            f"rate is {rate}: of {patches} patches none would be left; take a lower rate or smaller patches"
        )
    return erased


def grid_of(images: Tensor, patch_size: int | tuple[int, int]) -> tuple[int, int, int]:
    """Images, rows and columns of patches; ValueError where patches of ``patch_size`` do not fill the images."""
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; they must be (B, C, H, W)")
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    if height < 1 or width < 1 or images.shape[2] % height or images.shape[3] % width:
        raise ValueError(
            f"patch_size is {height} x {width}, which does not divide images of {images.shape[2]} x {images.shape[3]}"
        )
    return images.shape[0], images.shape[2] // height, images.shape[3] // width
