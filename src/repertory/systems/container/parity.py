"""Drivers of CONTAINER's parity vectors."""

from __future__ import annotations

from torch import Tensor, nn

from repertory.parity import Case, Driver
from repertory.systems.container.authors import from_authors
from repertory.systems.container.model import Block, Container, convolution_block, mixed_block


class _Stages(nn.Module):
    """The network with the map of each stage beside its logits."""

    def __init__(self, model: Container) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.model.forward_pyramid(x)
        outputs = {f"stage{index}": taken for index, taken in enumerate(maps, start=1)}
        return outputs | {"out": self.model.forward_head(self.model.norm(maps[-1]))}


def classifier(case: Case) -> dict[str, Tensor]:
    """Logits and stage maps of CONTAINER-LIGHT in the sizes of ``config``; only its last stage has heads."""
    config = case.config
    count = len(config["depth"])
    model = Container(
        config["num_classes"],
        case.state["patch_embed1.proj.weight"].shape[1],
        embed_dims=config["embed_dim"],
        depths=config["depth"],
        affinities=("local",) * (count - 1) + ("dynamic+local",),
        num_heads=(1,) * (count - 1) + (config["num_heads"],),
        mlp_ratios=config["mlp_ratio"],
        patch_sizes=config["patch_size"],
    )
    model.to(case.dtype).train(config.get("mode", "eval") == "train")
    run = case.bind(_Stages(model), lambda state: {f"model.{k}": v for k, v in from_authors(state).items()})
    outputs = run(case.input("x"))
    return outputs | case.gradients(_objective(case, outputs["out"]))


def _block(case: Case, model: Block) -> dict[str, Tensor]:
    model.to(case.dtype).train(case.config.get("mode", "eval") == "train")
    out = case.bind(model, from_authors)(case.input("x"))
    return {"out": out} | case.gradients(_objective(case, out))


def _objective(case: Case, out: Tensor) -> Tensor:
    """What gradients are of: the sum of ``out``, weighted by ``grad_out`` where that is fed."""
    weighted = "grad_out" in case.inputs or "grad_out" in (case.config.get("input_roles") or {})
    return (out * case.input("grad_out")).sum() if weighted else out.sum()


def convolution(case: Case) -> dict[str, Tensor]:
    """A block of stages 1-3 alone."""
    return _block(case, convolution_block(case.config["dim"], case.config["mlp_ratio"]))


def mixed(case: Case) -> dict[str, Tensor]:
    """A block of stage 4 alone."""
    config = case.config
    return _block(case, mixed_block(config["dim"], config["num_heads"], config["mlp_ratio"]))


DRIVERS: dict[str, Driver] = {
    "classifier": classifier,
    "convolution_block": convolution,
    "mixed_block": mixed,
    "mixed_block_grad": mixed,
}
