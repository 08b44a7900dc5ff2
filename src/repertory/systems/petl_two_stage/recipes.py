"""How the related method's code (showlab/SCT, arXiv 2309.08513) trains on VTAB-1k; this paper's recipe is not known.

There: AdamW, batches of 64, 100 epochs, a learning rate that rises for 10 epochs from 1e-6 and falls along a cosine to
1e-5, drop path 0.1, label smoothing 0.1 but for structured tasks, images brought to 224 x 224 without regard to their
shape. It reports the best of every tenth epoch on the test set; nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BATCH_SIZE, EPOCHS, WARMUP_EPOCHS, DROP_PATH = 64, 100, 10, 0.1


@dataclass(frozen=True)
class Recipe:
    """One task's settings in the related method's code: learning rate, weight decay and label smoothing."""

    lr: float
    weight_decay: float
    label_smoothing: float = 0.1


RELATED_RECIPES: Mapping[str, Recipe] = {
    "cifar100": Recipe(0.013, 1.0),
    "caltech101": Recipe(0.006, 0.35),
    "dtd": Recipe(0.0032, 0.04),
    "oxford_flowers102": Recipe(0.05, 0.11),
    "oxford_iiit_pet": Recipe(0.0007, 0.8),
    "svhn": Recipe(0.075, 0.03),
    "sun397": Recipe(0.0017, 0.01),
    "patch_camelyon": Recipe(0.0072, 0.002),
    "eurosat": Recipe(0.06, 0.001),
    "resisc45": Recipe(0.01, 0.01),
    "diabetic_retinopathy": Recipe(0.004, 0.0003),
    "clevr_count": Recipe(0.0033, 0.01, 0.0),
    "clevr_dist": Recipe(0.0018, 0.005, 0.0),
    "dmlab": Recipe(0.009, 0.1, 0.0),
    "kitti": Recipe(0.0072, 0.0001, 0.0),
    "dsprites_loc": Recipe(0.003, 0.001, 0.0),
    "dsprites_ori": Recipe(0.01, 0.05, 0.0),
    "smallnorb_azi": Recipe(0.0062, 0.005, 0.0),
    "smallnorb_ele": Recipe(0.0011, 0.0005, 0.0),
}
