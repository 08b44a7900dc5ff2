"""How a model wants its pictures; the description travels with the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """Input description of a model.

    ``size`` (height, width) in pixels; the shorter side is first resized to ``size / crop`` by ``interpolation``
    (``bilinear``, ``bicubic``, ``nearest``), then the centre is cropped; values in [0, 1] are normalised by ``mean``
    and ``std`` in the order of ``channels`` (``RGB``, ``BGR`` or ``L`` for one grey channel).
    """

    size: tuple[int, int] = (224, 224)
    interpolation: str = "bilinear"
    crop: float = 0.875
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: str = "RGB"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written beside weights."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_dict`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)
