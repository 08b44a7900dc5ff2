"""Driver of the search space's parity vectors: a published point of the space, decoded, built and run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from repertory.parity import Case, Driver
from repertory.systems.fnas.authors import from_authors
from repertory.systems.fnas.model import MobileNetwork
from repertory.systems.fnas.space import Architecture, Block

STATISTICS = ("running_mean", "running_var")


def search_space(case: Case) -> dict[str, Tensor]:
    """Logits of the network whose blocks are listed in ``config``."""
    config = case.config
    stem, stride = config["stem"] if isinstance(config["stem"], list) else (config["stem"], 2)
    blocks = tuple(Block(**block) for block in config["blocks"])
    architecture = Architecture(blocks, stem, stride, config["head"], config.get("act", "relu"))
    images = case.input("x")
    with torch.device("meta"):
        model = MobileNetwork(architecture, config["classes"], images.shape[1], bn_eps=config.get("bn_eps", 1e-5))
    model.to_empty(device="cpu").to(case.dtype).train(config.get("mode", "eval") == "train")
    converted = from_authors if config.get("names", "timm") == "timm" else lambda state: _in_order(model, state)
    features = None

    def keep(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal features
        features = inputs[0]

    model.classifier.register_forward_pre_hook(keep)
    logits = case.bind(model, converted)(images)
    assert features is not None
    return {"logits": logits, "features": features, **case.gradients(logits.sum())}


def _in_order(model: MobileNetwork, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``state`` under our names, both in the order in which a network applies them."""
    learned = [name for name, _ in model.named_parameters()]
    statistics = [name for name, _ in model.named_buffers() if name.endswith(STATISTICS)]
    theirs = [name for name in state if not name.endswith(STATISTICS)]
    measured = [name for name in state if name.endswith(STATISTICS)]
    pairs = [*zip(learned, theirs, strict=True), *zip(statistics, measured, strict=True)]
    return {ours: state[name] for ours, name in pairs}


DRIVERS: dict[str, Driver] = {"search_space": search_space}
