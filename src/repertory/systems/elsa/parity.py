"""Drivers of ELSA's parity vectors."""

from __future__ import annotations

from torch import Tensor, nn

from repertory.ops.sliding_window import sliding_window_sum
from repertory.parity import Case, Driver
from repertory.systems.elsa.authors import from_authors
from repertory.systems.elsa.model import ELSASwin, HadamardAttention

LAYER = ("dim", "num_heads", "kernel_size", "group_width", "lam", "gamma", "qk_scale", "qkv_bias", "dilation")
CLASSIFIER = (
    "num_classes",
    "embed_dim",
    "depths",
    "num_heads",
    "group_width",
    "lam",
    "gamma",
    "qk_scale",
    "mlp_ratio",
    "qkv_bias",
    "patch_size",
)


class _Stages(nn.Module):
    """The network with its intermediate tokens (B, H * W, C), each stage's after the downsampler that follows it."""

    def __init__(self, model: ELSASwin) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        model = self.model
        x = model.pos_drop(model.patch_embed(x))
        outputs = {"patch_embed": x.flatten(1, 2)}
        for index, stage in enumerate(model.stages):
            x = stage(x)
            last = index + 1 == len(model.stages)
            after = x if last else model.stages.get_submodule(f"{index + 1}.downsample")(x)
            outputs[f"layers{index}"] = after.flatten(1, 2)
        features = model.norm(x).permute(0, 3, 1, 2)
        return outputs | {
            "out": model.forward_head(features),
            "features": model.forward_head(features, pre_logits=True),
        }


def classifier(case: Case) -> dict[str, Tensor]:
    """Logits and tokens of a network of the sizes in ``config``."""
    config = case.config
    sizes = config["img_size"] if isinstance(config["img_size"], list) else [config["img_size"]]
    smallest = min(sizes) // (config["patch_size"] * 2 ** (len(config["depths"]) - 1))
    model = ELSASwin(
        window_size=min(config["window_size"], smallest),  # the authors' tables shrink with the map
        kernel_size=config["elsa_kernel"],
        **{name: config[name] for name in CLASSIFIER if name in config},
    )
    model.to(case.dtype).train(config.get("mode", "eval") == "train")
    run = case.bind(_Stages(model), lambda state: {f"model.{k}": v for k, v in from_authors(state).items()})
    outputs = run(case.input("x"))
    return outputs | case.gradients(outputs["out"].sum())


def _layer(case: Case) -> Tensor:
    _only_stride_1(case)
    model = HadamardAttention(**{name: case.config[name] for name in LAYER})
    model.to(case.dtype).train(case.config.get("mode", "eval") == "train")
    return case.bind(model, from_authors)(case.input("x"))


def layer(case: Case) -> dict[str, Tensor]:
    """The attention layer on (B, H, W, C)."""
    out = _layer(case)
    return {"out": out} | case.gradients(out.sum())


def layer_grad(case: Case) -> dict[str, Tensor]:
    """The same, and its gradients against ``grad_out``."""
    out = _layer(case)
    return {"out": out} | case.gradients((out * case.input("grad_out")).sum())


def operator(case: Case) -> dict[str, Tensor]:
    """The operator alone, and its gradients against ``grad_out``; every batch entry, one head, has its own ghosts."""
    _only_stride_1(case)
    config, features, weights = case.config, case.input("features"), case.input("h_attn")
    mul, add = (case.input(role).flatten(0, 1) for role in ("ghost_mul", "ghost_add"))
    out = sliding_window_sum(
        features.flatten(0, 1)[None],  # entries as heads of one image, which own the ghosts of their channels
        weights[None],
        mul ** config["lam"] if config["lam"] else None,
        add * config["gamma"] if config["gamma"] else None,
        dilation=config["dilation"],
    ).reshape(features.shape)
    return {"out": out} | case.gradients((out * case.input("grad_out")).sum())


def _only_stride_1(case: Case) -> None:
    if case.config["stride"] != 1:
        raise ValueError(
            f"stride is {case.config['stride']}; ELSA is defined for 1, at which its output fits the input"
        )


DRIVERS: dict[str, Driver] = {
    "classifier": classifier,
    "layer": layer,
    "layer_grad": layer_grad,
    "operator": operator,
}
