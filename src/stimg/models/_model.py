"""A pretrained masked autoencoder with all that is needed to use it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stimg.models._content import PATCH_CARD, Rules
from stimg.models._trained_model import TrainedModel
from stimg.nn import Config, GeneMAE

if TYPE_CHECKING:
    from torch import nn


@dataclass(repr=False)
class Model(TrainedModel):
    """A pretrained masked autoencoder and its card.

    Returned by :func:`stimg.tl.pretrain` and :meth:`Model.load`.

    Attributes
    ----------
    network
        The `stimg.nn.GeneMAE`, in evaluation mode on the CPU.
    genes
        Vocabulary, shape (n_genes,): the names of the genes, in the order of the network's tables.
    card
        What the model was trained on and how: name, slides, number of sites, lattice kinds, patch size, unit, scale
        and target sum of the expression, licence, versions, seed.
    history
        One row per epoch: `epoch`, `train_loss`, `val_loss`, `lr`, `seconds`.
    """

    kind: ClassVar[str] = "patches"
    card_rules: ClassVar[Rules] = PATCH_CARD

    network: GeneMAE

    @classmethod
    def _build(cls, content: dict[str, Any], encoder: nn.Module | None) -> GeneMAE:
        labels, groups = (content["card"].get(name, []) for name in ("labels", "label_groups"))
        return GeneMAE(Config.from_dict(content["config"]), len(content["genes"]), len(labels), len(groups))

    def __repr__(self) -> str:
        card = self.card
        return self._summary(
            f"embedding of {self.config.dim} dimensions",
            f"{card['n_sites']:,} sites, unit {card['unit']}, patches of {card['size']} x {card['size']}",
            values=f"{card['scale']}, target sum {card['target_sum']:g}, {self.config.scaling}",
        )
