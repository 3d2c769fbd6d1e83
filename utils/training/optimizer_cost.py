"""What SOAP costs beside Adam, counted on the shapes of a model's weights (utils/training/soap.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.training.optimization import make_soap
from utils.training.soap import BASIS_EVERY, STATISTICS_EVERY, as_matrices, axes_of

if TYPE_CHECKING:
    from models.base import SliceCompressionModel

BYTES = 4  # of a float32
RENEWAL = 2 + 8 / 3 + 2  # n^3 of a basis: statistics times basis, QR with its Q, the turn from the old to the new one


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes of state; floating-point operations a step, on average over steps."""

    parameters: int
    adam_bytes: int
    soap_bytes: int
    rotations: float
    statistics: float
    renewals: float

    @property
    def operations(self) -> float:
        """All of a step but what Adam does too."""
        return self.rotations + self.statistics + self.renewals


def soap_cost(model: SliceCompressionModel) -> OptimizerCost:
    """Count for all weights of a model that `make_soap` rotates."""
    rotated = square = cubic = parameters = 0
    for group in make_soap(model, 1e-3).param_groups:
        parameters += sum(p.numel() for p in group["params"])
        for p in group["params"] if group["rotated"] else []:
            matrices = as_matrices(p.detach())
            sides = [matrices.shape[axis] for axis, due in axes_of(matrices, group) if due]
            rotated += 2 * matrices.numel() * sum(sides)
            square, cubic = square + sum(n**2 for n in sides), cubic + sum(n**3 for n in sides)
    adam = 2 * BYTES * parameters
    return OptimizerCost(
        parameters=parameters,
        adam_bytes=adam,
        soap_bytes=adam + 2 * BYTES * square,
        rotations=2 * rotated,
        statistics=rotated / STATISTICS_EVERY,
        renewals=(RENEWAL * cubic + rotated) / BASIS_EVERY,
    )
