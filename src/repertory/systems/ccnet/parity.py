"""Drivers of CCNet's parity vectors."""

from __future__ import annotations

from torch import Tensor, nn

from repertory.parity import Case, Driver
from repertory.systems.ccnet.authors import from_authors
from repertory.systems.ccnet.losses import DeepSupervisionLoss
from repertory.systems.ccnet.model import CCNet, CrissCrossAttention, CrissCrossHead, DilatedResNet
from repertory.systems.ccnet.released import ReleasedAttention3d


class _StrideEight(nn.Module):
    """Main and auxiliary logits as the authors give them: not resized, in either mode."""

    def __init__(self, model: CCNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before, last = self.model.forward_features(x)
        assert self.model.aux_head is not None
        return self.model.head(last), self.model.aux_head(before)


def _ready(model: nn.Module, case: Case) -> nn.Module:
    return model.to(case.dtype).train(case.config.get("mode", "eval") == "train")


def _loss(case: Case, out: Tensor) -> Tensor:
    """What gradients are taken of: the output's sum, weighted where the vector gives weights."""
    return (out * case.input("grad_out")).sum() if "grad_out" in case.inputs else out.sum()


def attention(case: Case) -> dict[str, Tensor]:
    """The attention layer, once and twice."""
    layer = _ready(CrissCrossAttention(case.config["in_dim"], case.config["qk_dim"]), case)
    return _applied(layer, case)


def attention_3d(case: Case) -> dict[str, Tensor]:
    """The layer over three axes as it was released."""
    layer = _ready(ReleasedAttention3d(case.config["in_dim"], case.config["qk_dim"]), case)
    return _applied(layer, case)


def _applied(layer: nn.Module, case: Case) -> dict[str, Tensor]:
    run = case.bind(layer, from_authors)
    out = run(case.input("x"))
    return {"out": out, "out_twice": run(out)} | case.gradients(_loss(case, out))


def head(case: Case) -> dict[str, Tensor]:
    """The head alone."""
    config = case.config
    model = CrissCrossHead(
        config["in_channels"], config["num_classes"], config["out_channels"], recurrence=config["recurrence"]
    )
    out = case.bind(_ready(model, case), from_authors)(case.input("x"))
    return {"out": out} | case.gradients(_loss(case, out))


def segmentor(case: Case) -> dict[str, Tensor]:
    """Main and auxiliary logits of the network on a ResNet of ``layers``."""
    config = case.config
    model = CCNet(config["num_classes"], DilatedResNet(config["layers"]), recurrence=config["recurrence"])
    run = case.bind(
        _ready(_StrideEight(model), case), lambda state: {f"model.{k}": v for k, v in from_authors(state).items()}
    )
    out, out_dsn = run(case.input("x"))
    return {"out": out, "out_dsn": out_dsn} | case.gradients(_loss(case, out))


def loss(case: Case) -> dict[str, Tensor]:
    """The criterion on main and auxiliary logits."""
    config, mining = case.config, {}
    if config["criterion"] == "ohem_dsn":
        mining = {
            "threshold": config["thresh"],
            "min_kept": config["min_kept"],
            "factor": config["ohem_factor"],
        }
    elif config["criterion"] != "dsn":
        raise ValueError(f"criterion is {config['criterion']!r}; it must be 'dsn' or 'ohem_dsn'")
    criterion = DeepSupervisionLoss(config["aux_weight"], config["ignore_label"], **mining)
    value = criterion(case.input("logits"), case.input("target"), [case.input("logits_dsn")])
    return {"loss": value} | case.gradients(value)


DRIVERS: dict[str, Driver] = {
    "attention": attention,
    "attention_3d": attention_3d,
    "head": head,
    "segmentor": segmentor,
    "loss": loss,
}
