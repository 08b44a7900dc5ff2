"""Drivers of PSLT's parity vectors."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from torch import Tensor, nn

from repertory.parity import Case, Driver
from repertory.systems.pslt.authors import block_from_authors, from_authors
from repertory.systems.pslt.model import PSLT, InvertedBottleneck, LadderBlock, LadderStage

TABLE = "attn.relative_position_bias_table"


def _window(state: Mapping[str, Tensor], stage: str) -> int:
    """The side of the windows of ``stage``: its tables hold (2 side - 1)^2 biases."""
    table = next(value for name, value in state.items() if name.startswith(stage) and name.endswith(TABLE))
    return (isqrt(table.shape[0]) + 1) // 2


class _Outputs(nn.Module):
    """The network with its intermediate maps, each ladder stage's as tokens after the merging that follows it."""

    def __init__(self, model: PSLT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        model = self.model
        stages = list(model.stages.children())
        outputs = {"patch_embed": model.enter(x)}
        x, bottlenecks, ladders = outputs["patch_embed"], 0, 0
        for stage in stages:
            if not isinstance(stage, LadderStage):
                for block in stage.blocks:  # type: ignore[union-attr]
                    x = block(x)
                    outputs[f"conv_layers{bottlenecks}"] = x
                    bottlenecks += 1
                continue
            if not ladders:
                outputs[f"conv_layers{bottlenecks}"] = stage.downsample(x)  # type: ignore[operator]
            x = stage(x)
            following = stages[stages.index(stage) + 1 :]
            merged = following[0].downsample(x) if following else x  # type: ignore[operator]
            outputs[f"layers{ladders}"] = merged.flatten(2).transpose(1, 2)
            ladders += 1
        outputs["out"] = model.forward_head(model.last_map(x))
        return outputs


def classifier(case: Case) -> dict[str, Tensor]:
    """Logits and intermediate maps of a network of the sizes in ``config``."""
    config = case.config
    model = PSLT(
        config["num_classes"],
        case.inputs["x"].shape[1],
        config["embed_dim"],
        config["conv_depths"],
        config["depths"],
        config["num_heads"],
        [_window(case.state, f"layers.{stage}.") for stage in range(len(config["depths"]))],
        len(config["window_size"]),
        "progressive" if config["multi_shift"] else "alternating",
        config["input_v"],
        config["has_se"],
        config["pointwise"],
        drop_path=0.0,
    )
    model.to(case.dtype).train(config.get("mode", "eval") == "train")
    run = case.bind(_Outputs(model), lambda state: {f"model.{k}": v for k, v in from_authors(state).items()})
    outputs = run(case.input("x"))
    return outputs | case.gradients(_scalar(case, outputs["out"]))


def block(case: Case) -> dict[str, Tensor]:
    """One ladder block on tokens (B, H W, C), and its gradients where they are wanted."""
    config = case.config
    size = _window(case.state, "")
    shifts = [0, -(config["window_size"][1] // 2), config["window_size"][2] // 2]
    model = LadderBlock(
        config["dim"],
        config["num_heads"],
        size,
        shifts if config["multi_shift"] and size > max(shifts) else [0] * len(shifts),
        config["input_v"],
        config["has_se"],
        config["pointwise"],
    )
    model.to(case.dtype).train(config.get("mode", "eval") == "train")
    tokens = case.input("x")
    out = case.bind(model, block_from_authors)(tokens.unflatten(1, tuple(config["input_resolution"]))).flatten(1, 2)
    return {"out": out} | case.gradients(_scalar(case, out))


def mv2_block(case: Case) -> dict[str, Tensor]:
    """One bottleneck of the early stages on a map."""
    config = case.config
    model = InvertedBottleneck(config["inp"], config["oup"], config["stride"], config["expansion"])
    model.to(case.dtype).train(config.get("mode", "eval") == "train")
    out = case.bind(model, block_from_authors)(case.input("x"))
    return {"out": out} | case.gradients(_scalar(case, out))


def _scalar(case: Case, out: Tensor) -> Tensor:
    """What is differentiated: the output against ``grad_out``, where that is an input."""
    return (out * case.input("grad_out")).sum() if "grad_out" in case.inputs else out.sum()


DRIVERS: dict[str, Driver] = {"classifier": classifier, "block": block, "block_grad": block, "mv2_block": mv2_block}
