"""What models of H&E images have in common: a network, its genes, a card, one file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd
import torch

from stimg._input._checks import checked
from stimg.models._model import HISTORY_COLUMNS
from stimg.models._weights_file import (
    check_card,
    check_vocabulary,
    read_content,
    read_tensors,
    readable,
    write_weights,
)
from stimg.nn import get_encoder
from stimg.nn._encoder import BUNDLED_ENCODER

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

CARD: dict[str, type] = {
    "name": str,
    "slides": list,
    "mpp": float,
    "size": int,
    "diameter_um": float,
    "target_sum": float,
}


@dataclass
class ImageModel(ABC):
    """A network that reads H&E, and its card.

    Attributes
    ----------
    network
        The network, in evaluation mode on the CPU.
    genes
        Names of its genes, shape (n_genes,).
    card
        What it was trained on and how.
    history
        One row an epoch: `epoch`, `train_loss`, `val_loss`, `lr`, `seconds`.
    """

    kind: ClassVar[str]

    network: Any
    genes: np.ndarray
    card: dict[str, Any]
    history: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=HISTORY_COLUMNS))
    sha256: str = ""
    """Hash of the file that the model was loaded from or saved to last; empty for weights never saved."""

    @staticmethod
    @abstractmethod
    def build(config: dict[str, Any], n_genes: int, encoder: nn.Module | None) -> nn.Module:
        """Make the network of a configuration; `encoder` is `None` for a model without one."""

    @classmethod
    def check_content(cls, path: str | Path, content: dict[str, Any]) -> None:
        """Refuse a file whose card lacks something."""
        check_card(path, content["card"], CARD)

    def summary(self, images: str) -> str:
        """Lines on size, genes, images and training."""
        slides = self.card["slides"]
        n_parameters = sum(p.numel() for p in self.network.parameters())
        lines = [
            f"stimg {type(self).__name__} {self.card['name']!r}: {n_parameters / 1e6:.2f} M parameters, encoder "
            f"{self.card['encoder']!r}",
            f"  genes     {len(self.genes):,} ({', '.join(self.genes[:4])}, ...)",
            f"  images    {images}",
            f"  trained   {len(slides)} slides ({', '.join(slides[:4])}{', ...' if len(slides) > 4 else ''}), "
            f"{self.card['n_spots']:,} spots of {self.card['diameter_um']:g} um",
        ]
        return "\n".join(lines)

    @checked
    def save(self, path: str | Path, *, overwrite: bool = False, half: bool = False) -> None:
        """Write everything to one `.safetensors` file; another encoder's own frozen weights are left out.

        Parameters
        ----------
        path
            The file; its folder must exist. It appears whole or not at all.
        overwrite
            Replace an existing file.
        half
            Store numbers as float16.

        Raises
        ------
        FileExistsError
            The file exists and `overwrite` is false.
        NotADirectoryError
            The folder does not exist.
        PermissionError
            The folder can not be written to.
        """
        content = {
            "kind": self.kind,
            "config": self.network.config.to_dict(),
            "genes": self.genes.tolist(),
            "card": self.card,
            "history": json.loads(self.history.to_json(orient="records")),
        }
        self.sha256 = write_weights(path, content, own_tensors(self.network), overwrite=overwrite, half=half)

    @classmethod
    @checked
    def load(cls, path: str | Path, *, encoder: Any = None) -> Self:
        """Read a model that :meth:`save` wrote. No pickle is read and no code is run.

        Parameters
        ----------
        path
            A `.safetensors` file.
        encoder
            The encoder that the model was trained with, where it is not the bundled one, as the function that trained
            it takes it.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is damaged or of another kind, or `encoder` is missing or does not fit.
        """
        content = read_content(path, cls.kind)
        cls.check_content(path, content)
        genes = check_vocabulary(path, content)
        name = content["card"].get("encoder", BUNDLED_ENCODER)
        if name not in (None, BUNDLED_ENCODER) and encoder is None:
            msg = f"{str(path)!r} was trained with encoder {name!r}, which is not in the file. Give it as `encoder`."
            raise ValueError(msg)
        found = None if name is None else get_encoder(name if encoder is None else encoder)
        with readable(path):
            with torch.device("meta"):  # nothing is made before its size is known to be that in the file
                sketch = cls.build(content["config"], len(genes), found)
            expected = {name: tuple(tensor.shape) for name, tensor in own_tensors(sketch).items()}
            history = pd.DataFrame(content["history"], columns=HISTORY_COLUMNS).astype({"val_loss": float})
        tensors, digest = read_tensors(path, expected)
        network = cls.build(content["config"], len(genes), found)
        network.load_state_dict(tensors, strict=name in (None, BUNDLED_ENCODER), assign=True)
        return cls(network.eval(), genes, content["card"], history, digest)


def own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Tensors without those of a frozen encoder of others."""
    frozen = "encoder.network." if getattr(network.encoder, "tuned", True) is False else None
    state = network.state_dict()
    return {name: tensor for name, tensor in state.items() if not (frozen and name.startswith(frozen))}
