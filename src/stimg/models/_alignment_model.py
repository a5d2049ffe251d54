"""Two aligned encoders, of H&E and of expression, with all that is needed to use them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from stimg.models._content import PATCH_CARD, TUNED_CARD, check_card, check_vocabulary
from stimg.models._model import Model
from stimg.models._trained_model import ImageModel
from stimg.nn import AlignConfig, AlignNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn


@dataclass(repr=False)
class AlignmentModel(ImageModel):
    """Encoders of H&E and of expression into one space, and their card.

    Returned by :func:`stimg.tl.align` and :meth:`AlignmentModel.load`.

    Attributes
    ----------
    network
        The `stimg.nn.AlignNetwork`, in evaluation mode on the CPU.
    genes
        Genes that the model reads, shape (n_genes,); not used if `gene_encoder` is `"embedding"` or `"tuned"`.
    card
        What the model was trained on and how: name, encoder, micrometres per pixel (`mpp`), side of the crops in
        pixels (`size`), slides, number of spots, target sum, stain normalisation, licence, versions, seed; with
        `gene_encoder="tuned"` also the card and vocabulary of the spatial model that was tuned (`spatial`).
    history
        One row per epoch: `epoch`, `train_loss`, `val_loss`, `lr`, `seconds`.
    """

    kind: ClassVar[str] = "alignment"

    network: AlignNetwork

    @classmethod
    def _build(cls, content: dict[str, Any], encoder: nn.Module | None) -> AlignNetwork:
        return AlignNetwork(AlignConfig.from_dict(content["config"]), len(content["genes"]), encoder)

    @property
    def spatial(self) -> Model:
        """The tuned spatial model, if `gene_encoder` is `"tuned"`."""
        card = dict(self.card["spatial"])
        return Model(self.network.spatial, np.array(card.pop("genes"), dtype=str), card)

    @classmethod
    def _check_content(cls, content: dict[str, Any]) -> np.ndarray:
        genes = super()._check_content(content)
        config, card = content["config"], content["card"]
        if isinstance(config, dict) and config.get("gene_encoder") == "tuned":
            check_card(card, TUNED_CARD, len(genes))
            spatial = check_vocabulary(card["spatial"]["genes"])
            check_card(card["spatial"], PATCH_CARD, len(spatial))
            if len(spatial) != config.get("n_spatial_genes"):
                msg = "its spatial model has another number of 'genes' than its configuration says"
                raise ValueError(msg)
        return genes

    def __repr__(self) -> str:
        size, mpp = self.card["size"], self.card["mpp"]
        return self._image_summary(f"crops of {size} pixels at {mpp:g} um, in {self.config.dim} dimensions")

    def encode_signature(self, signature: Sequence[str] | Mapping[str, float]) -> np.ndarray:
        """Embed a gene signature, so that :func:`stimg.tl.retrieve` finds the images that match it.

        Parameters
        ----------
        signature
            Genes that are high (two standard deviations above a slide's mean), or a mapping from genes to standard
            deviations above or below it.

        Returns
        -------
        ndarray
            float32 (dim,), a unit vector.

        Raises
        ------
        KeyError
            The model knows none of the genes.
        ValueError
            The model reads a spatial embedding instead of genes.
        """
        if self.config.gene_encoder in ("embedding", "tuned"):
            msg = "This model reads a spatial embedding instead of genes, so it cannot embed a signature."
            raise ValueError(msg)
        values = dict.fromkeys(signature, 2.0) if not hasattr(signature, "items") else dict(signature.items())
        index = {gene: i for i, gene in enumerate(self.genes)}
        if not index.keys() & values.keys():
            msg = f"None of {list(values)[:5]} is among the model's {len(self.genes)} genes ({self.genes[0]}, ...)."
            raise KeyError(msg)
        row = torch.zeros(1, 2, len(self.genes))
        for gene in index.keys() & values.keys():
            row[0, :, index[gene]] = values[gene]
        with torch.no_grad():
            return self.network.encode_genes(row.flatten(1))[0].numpy()


def spatial_card(base: Model) -> dict[str, Any]:
    """Return what an alignment's card keeps of its tuned spatial model: its card, vocabulary and the file's hash."""
    own = {"genes": base.genes.tolist(), "sha256": base.sha256}
    return own | {name: value for name, value in base.card.items() if name not in own}
