"""Drivers of BAKE's parity vectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.errors import unknown_name
from repertory.parity import Case, Driver
from repertory.systems.bake import model as networks
from repertory.systems.bake.authors import from_authors
from repertory.systems.bake.losses import BAKELoss, affinity, propagate, soft_targets
from repertory.training.outputs import features_and_logits

# the authors' names, in lower case and without punctuation
ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "cifarresnet18": networks.cifar_resnet18,
    "cifarresnet34": networks.cifar_resnet34,
    "cifardensenet121": networks.cifar_densenet121,
    "resnet18": networks.resnet18,
    "densenet121": networks.densenet121,
    "resnet50": networks.resnet50,
    "resnet101": networks.resnet101,
    "resnet152": networks.resnet152,
    "resnext101": networks.resnext101_32x4d,
    "resnext152": networks.resnext152_32x4d,
    "resnest50": networks.resnest50,
    "resnest101": networks.resnest101,
    "mobilenetv2": networks.mobilenetv2,
    "efficientnetb0": networks.efficientnet_b0,
    "effnetb0": networks.efficientnet_b0,
    "effnet": networks.efficientnet_b0,
}


class _Both(nn.Module):
    """Features and logits of one forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = features_and_logits(self.model, x)
        return outputs.features, outputs.logits


def loss(case: Case) -> dict[str, Tensor]:
    """The ensemble, step by step, both loss terms and their gradients."""
    temperature, omega, weight = (case.config[name] for name in ("temp", "omega", "lambda_"))
    features, logits, labels = (case.input(role) for role in ("features", "logits", "labels"))
    spread = affinity(features)
    ce = F.cross_entropy(logits, labels)
    kd = BAKELoss(temperature, omega)(features, logits)
    scalars = {"ce": ce, "kd": kd, "total": ce + weight * kd}
    outputs = {
        "affinity": spread,
        "propagation": propagate(spread, torch.eye(len(spread), dtype=spread.dtype), omega),
        "soft_targets": soft_targets(features, logits, temperature, omega),
        **scalars,
    }
    for name, scalar in scalars.items():
        outputs |= case.gradients(scalar, prefix=f"{name}.grad:")
    return outputs


def cifar_classifier(case: Case) -> dict[str, Tensor]:
    """Evaluation outputs, and the cross entropy and gradients of one training step, modes in the order listed."""
    model, run = _bind(case)
    outputs: dict[str, Tensor] = {}
    for mode in case.config["modes"]:
        model.train(mode == "train")
        features, logits = run(case.input("x"))
        if mode == "eval":
            outputs |= {"features_eval": features, "logits_eval": logits}
        else:
            ce = F.cross_entropy(logits, case.input("labels"))
            bake = BAKELoss(case.config["temp"], case.config["omega"], case.config["lambda_"])
            outputs |= {"train_ce": ce, **case.gradients(ce + bake(features, logits))}
    return outputs


def imagenet_classifier(case: Case) -> dict[str, Tensor]:
    """Pooled features and logits; pictures are fed in the authors' channel order, which is the network's."""
    model, run = _bind(case)
    model.train(case.config.get("mode", "eval") == "train")
    features, logits = run(case.input("x"))
    return {"features": features, "logits": logits}


def _bind(case: Case) -> tuple[nn.Module, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """The network of ``config.arch``, and one forward of it on the authors' tensors."""
    name = re.sub("[^a-z0-9]", "", case.config["arch"].lower())
    name = name.removesuffix("32x4d")
    if name not in ARCHITECTURES:
        raise unknown_name("architecture", case.config["arch"], ARCHITECTURES)
    with torch.device("meta"):
        model = _Both(ARCHITECTURES[name](num_classes=case.config["num_classes"]))
    model.to_empty(device="cpu").to(case.dtype)
    run = case.bind(model, lambda state: {f"model.{key}": value for key, value in from_authors(state).items()})
    return model, run


DRIVERS: dict[str, Driver] = {
    "loss": loss,
    "cifar_classifier": cifar_classifier,
    "imagenet_classifier": imagenet_classifier,
}
