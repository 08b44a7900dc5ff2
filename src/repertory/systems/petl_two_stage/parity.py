"""Driver of the parity vector: the channel adapter of the related method."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from repertory.parity import Case, Driver
from repertory.systems.petl_two_stage.adapter import ChannelAdapter
from repertory.systems.petl_two_stage.channels import select_channels


def channel_adapter(case: Case) -> dict[str, Tensor]:
    """The channels with the largest scores, what the adapter makes of ``x``, and the gradients of sum(g * out)."""
    (index,) = select_channels([case.input("score").detach()], case.config["K"])
    adapter = ChannelAdapter(case.config["C"], index, case.config["scale"]).to(case.dtype)
    run = case.bind(adapter, lambda state: {**_from_related(state), "index": index})
    out = run(case.input("x"))
    return {"channel_index": index, "out": out, **case.gradients((case.input("g") * out).sum())}


def _from_related(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias, wherever in a network the related module stands."""
    return {name.rpartition(".")[2]: value for name, value in state.items()}


DRIVERS: dict[str, Driver] = {"channel_adapter": channel_adapter}
