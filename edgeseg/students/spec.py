"""What the frozen specs of all student families have in common."""

from dataclasses import asdict
from typing import Any, ClassVar, Self

N_OUTPUTS = 4
"""Layers of the layer-wise loss. nnU-Net at 192 px has five decoder outputs and gives the lowest weight 0."""


class Spec:
    """A frozen dataclass with a constant `family`.

    Attributes:
        recurrent: the network takes clips [B, T, C, H, W], a frame after the other.
    """

    recurrent: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON gives them back."""
        return {k: list(v) if isinstance(v, tuple) else v
                for k, v in asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """TypeError for a field that it does not have."""
        return cls(**{k: v for k, v in values.items() if k != "family"})
