"""A network that predicts expression from H&E, with all that is needed to use it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stimg.models._trained_model import ImageModel
from stimg.nn import DenseConfig, DenseNetwork

if TYPE_CHECKING:
    from torch import nn


@dataclass(repr=False)
class ExpressionModel(ImageModel):
    """A network from H&E to dense expression, and its card.

    Returned by :func:`stimg.tl.train_expression` and :meth:`ExpressionModel.load`.

    Attributes
    ----------
    network
        The `stimg.nn.DenseNetwork`, in evaluation mode on the CPU.
    genes
        Predicted genes, shape (n_genes,).
    card
        What the model was trained on and how: name, encoder, micrometres per pixel (`mpp`), spot diameter in
        micrometres, slides, number of spots, target sum, stain normalisation, licence, versions, seed.
    history
        One row per epoch: `epoch`, `train_loss`, `val_loss`, `lr`, `seconds`.
    """

    kind: ClassVar[str] = "expression"

    network: DenseNetwork

    @classmethod
    def _build(cls, content: dict[str, Any], encoder: nn.Module | None) -> DenseNetwork:
        return DenseNetwork(DenseConfig.from_dict(content["config"]), len(content["genes"]), encoder)

    def __repr__(self) -> str:
        return self._image_summary(f"{self.card['mpp']:g} um per pixel")
