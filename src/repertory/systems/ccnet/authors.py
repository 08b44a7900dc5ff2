"""From the names of the authors' checkpoints to ours, and their in-place batch norm to the ordinary one.

InPlace-ABN scales by |weight| + eps and not by weight; negative weights occur. The scale is folded here, once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

EPS = 1e-5  # of InPlace-ABN
_STATISTIC = ".running_mean"
# the head's own names, at any depth of the network
_NAMES = (
    (r"(^|\.)conva\.0\.", r"\1reduce.conv."),
    (r"(^|\.)conva\.1\.", r"\1reduce.norm."),
    (r"(^|\.)convb\.0\.", r"\1refine.conv."),
    (r"(^|\.)convb\.1\.", r"\1refine.norm."),
    (r"(^|\.)bottleneck\.0\.", r"\1fuse.conv."),
    (r"(^|\.)bottleneck\.1\.", r"\1fuse.norm."),
    (r"(^|\.)bottleneck\.3\.", r"\1classifier."),
    (r"(^|\.)cca\.", r"\1attention."),
    (r"(^|\.)(query|key|value)_conv\.", r"\1\2."),
    (r"^dsn\.0\.", "aux_head.fuse.conv."),
    (r"^dsn\.1\.", "aux_head.fuse.norm."),
    (r"^dsn\.3\.", "aux_head.classifier."),
    (r"^(conv[123]|bn[123]|layer\d)\.", r"backbone.\1."),
)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of the authors' network, head or attention layer under our names; scales of batch norm folded."""
    norms = {name.removesuffix(_STATISTIC) for name in state_dict if name.endswith(_STATISTIC)}
    scales = {f"{norm}.weight" for norm in norms}
    return {
        _rename(name): value.abs() + EPS if name in scales else value
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")  # old checkpoints lack the counters
    }


def _rename(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name
