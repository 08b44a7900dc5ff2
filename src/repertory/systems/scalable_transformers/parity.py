"""Drivers of the parity vectors of the vision supernet."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from repertory.parity import Case, Driver
from repertory.systems.scalable_transformers.authors import from_authors
from repertory.systems.scalable_transformers.crops import Crop
from repertory.systems.scalable_transformers.losses import distillation_loss
from repertory.systems.scalable_transformers.model import ScalableViT

SIZES = ("embed_dim", "depth", "num_heads", "num_classes", "mlp_ratio", "qkv_bias", "img_size", "qkv_crop")
OUTPUT = re.compile(r"(?:logits|features)_r(\d+)_h(\d+)_d(\d+)")


class _Both(nn.Module):
    """Logits (B, K) and class token (B, C) of a crop, in one pass."""

    def __init__(self, model: ScalableViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, crop: Crop) -> tuple[Tensor, Tensor]:
        tokens = self.model.forward_features(x, crop)
        return self.model.forward_head(tokens), self.model.forward_head(tokens, pre_logits=True)


def supernet(case: Case) -> dict[str, Tensor]:
    """Logits and features of every crop that is named, the three losses of a training step, and their gradients."""
    config = case.config
    model = ScalableViT(
        in_chans=case.input("x").shape[1],
        patch_size=config["patch"],
        eps=config["ln_eps"],
        **{name: config[name] for name in SIZES},
    )
    model.to(case.dtype).train(config.get("mode", "eval") == "train")
    run = case.bind(_Both(model), lambda state: {f"model.{k}": v for k, v in from_authors(state).items()})
    named = {tuple(map(int, found.groups())) for name in case.outputs if (found := OUTPUT.fullmatch(name))}
    named |= {tuple(sizes) for sizes in (*config["configs"], *(config.get("loss_configs") or {}).values())}
    outputs: dict[str, Tensor] = {}
    logits: dict[tuple[int, ...], Tensor] = {}
    for resolution, heads, depth in sorted(named):
        place = f"r{resolution}_h{heads}_d{depth}"
        logits[resolution, heads, depth], features = run(case.input("x"), Crop(heads, depth, resolution))
        outputs |= {f"logits_{place}": logits[resolution, heads, depth], f"features_{place}": features}
    if not config.get("loss_configs"):
        return outputs
    runs = {name: logits[tuple(sizes)] for name, sizes in config["loss_configs"].items()}
    losses = {"loss_max_ce": F.cross_entropy(runs.pop("max"), case.input("targets"))}
    teacher = logits[tuple(config["loss_configs"]["max"])]
    for name, student in runs.items():
        losses[f"loss_kl_{name}"] = distillation_loss(student, teacher, config["temperature"])
    total = sum(losses.values())
    assert isinstance(total, Tensor)
    return outputs | losses | {"loss_total": total} | case.gradients(total)


DRIVERS: dict[str, Driver] = {"supernet": supernet}
