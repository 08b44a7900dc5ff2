"""Drivers of DilateFormer's parity vectors."""

from __future__ import annotations

from torch import Tensor, nn

from repertory.ops import dilated_attention
from repertory.parity import Case, Driver
from repertory.systems.dilateformer.authors import from_authors
from repertory.systems.dilateformer.model import DilateFormer, MultiScaleDilatedAttention

SETTINGS = (
    "num_classes",
    "embed_dim",
    "depths",
    "num_heads",
    "dilate_attention",
    "kernel_size",
    "dilation",
    "mlp_ratio",
)


class _Stages(nn.Module):
    """The network with its intermediate maps, each stage's after the downsampler that follows it."""

    def __init__(self, model: DilateFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        model = self.model
        outputs = {"patch_embed": model.patch_embed(x)}
        x = outputs["patch_embed"]
        for index, stage in enumerate(model.stages):
            x = stage(x)
            last = index + 1 == len(model.stages)
            outputs[f"stage{index}"] = x if last else model.stages.get_submodule(f"{index + 1}.downsample")(x)
        outputs["out"] = model.forward_head(model.last_map(x))
        return outputs


def classifier(case: Case) -> dict[str, Tensor]:
    """Logits and stage maps of a network of the sizes in ``config``."""
    model = DilateFormer(qkv_bias=case.config["qkv_bias"], **{name: case.config[name] for name in SETTINGS})
    model.to(case.dtype).train(case.config.get("mode", "eval") == "train")
    run = case.bind(_Stages(model), lambda state: {f"model.{k}": v for k, v in from_authors(state).items()})
    outputs = run(case.input("x"))
    return outputs | case.gradients(outputs["out"].sum())


def layer(case: Case) -> dict[str, Tensor]:
    """The attention layer on (B, H, W, C)."""
    config = case.config
    model = MultiScaleDilatedAttention(
        config["dim"], config["num_heads"], config["kernel_size"], config["dilation"], config["qkv_bias"]
    )
    model.to(case.dtype).train(config.get("mode", "eval") == "train")
    out = case.bind(model, from_authors)(case.input("x"))
    return {"out": out} | case.gradients(out.sum())


def operator(case: Case) -> dict[str, Tensor]:
    """The operator alone, and its gradients against ``grad_out``."""
    query, key, value = (case.input(role) for role in ("q", "k", "v"))
    head_dim = case.config["head_dim"]
    # the operator's scale is head_dim**-0.5; another one in the vector is a factor of the queries
    factor = case.config["scale"] * head_dim**0.5
    out = dilated_attention(
        query * factor, key, value, case.config["kernel_size"], case.config["dilation"], query.shape[1] // head_dim
    )
    return {"out": out} | case.gradients((out * case.input("grad_out")).sum())


DRIVERS: dict[str, Driver] = {"classifier": classifier, "layer": layer, "operator": operator}
