"""Drivers of ReSTE's parity vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.errors import unknown_name
from repertory.parity import Case, Driver
from repertory.systems.reste import cifar, model
from repertory.systems.reste.authors import from_authors
from repertory.systems.reste.estimators import RectifiedSTE, binary_sign, power_function
from repertory.systems.reste.indicators import distance
from repertory.systems.reste.layers import BinaryConv2d, set_estimator

CIFAR: Mapping[str, Callable[..., nn.Module]] = {
    "resnet20_1w1a": cifar.cifar_resnet20,
    "resnet20_bireal_1w1a": cifar.cifar_resnet20_bireal,
    "resnet18_1w1a": cifar.cifar_resnet18,
    "vgg_small_1w1a": cifar.vgg_small,
    "resnet20": cifar.cifar_resnet20_real,
    "resnet18": cifar.cifar_resnet18_real,
    "vgg_small": cifar.vgg_small_real,
}
IMAGENET: Mapping[str, Callable[..., nn.Module]] = {
    "resnet18_1w1a": model.resnet18,
    "resnet34_1w1a": model.resnet34,
    "resnet18": model.resnet18_real,
}


def estimator(case: Case) -> dict[str, Tensor]:
    """Signs, their gradients, the power function and its distance from sign, at each power."""
    x, g = case.input("x"), case.input("g")
    outputs: dict[str, Tensor] = {}
    for power in case.config["o"]:
        o = f"{power:g}"
        signs = binary_sign(x, RectifiedSTE(power, case.config["t"], case.config["m"]))
        outputs |= {
            f"forward_o{o}": signs,
            **case.gradients((g * signs).sum(), prefix=f"forward_o{o}.grad:"),
            f"power_o{o}": power_function(x, power),
            f"estimating_error_o{o}": distance(x, power),
        }
    return outputs


def convolution(case: Case) -> dict[str, Tensor]:
    """One binary layer and its gradients against ``g``."""
    config = case.config
    sizes = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
    layer = BinaryConv2d(
        **{name: config[name] for name in sizes if name in config}, real_activations=config.get("a32", False)
    )
    _with_estimators(layer, config)
    out = case.bind(layer.to(case.dtype), from_authors)(case.input("x"))
    return {"out": out} | case.gradients((case.input("g") * out).sum())


def classifier(networks: Mapping[str, Callable[..., nn.Module]]) -> Driver:
    """The driver of networks by the authors' names: modes in the order listed."""

    def run(case: Case) -> dict[str, Tensor]:
        """Logits in evaluation; loss and gradients of one forward in training."""
        config = case.config
        if config["model"] not in networks:
            raise unknown_name("model", config["model"], networks)
        binary = config["model"].endswith("_1w1a")
        settings = {"real_activations": config.get("a32", False)} if binary else {}
        with torch.device("meta"):
            network = networks[config["model"]](num_classes=config["num_classes"], **settings)
        network.to_empty(device="cpu").to(case.dtype)
        if binary:
            _with_estimators(network, config)
        bound = case.bind(network, from_authors)
        outputs: dict[str, Tensor] = {}
        for mode in config["modes"]:
            network.train(mode == "train")
            logits = bound(case.input("x"))
            if mode == "eval":
                outputs["logits_eval"] = logits
            else:
                loss = F.cross_entropy(logits, case.input("y"))
                outputs |= {"train_loss": loss, **case.gradients(loss)}
        return outputs

    return run


def _with_estimators(network: nn.Module, config: Mapping[str, Any]) -> None:
    weights = RectifiedSTE(config["o"], config["t"], config["m"])
    set_estimator(network, weights, RectifiedSTE(config["o_a"], config["t_a"], config["m"]))


DRIVERS: dict[str, Driver] = {
    "estimator": estimator,
    "convolution": convolution,
    "cifar_classifier": classifier(CIFAR),
    "imagenet_classifier": classifier(IMAGENET),
}
