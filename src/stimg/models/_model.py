"""A pretrained network with everything that is needed to use it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from stimg._input._checks import checked
from stimg.models._weights_file import (
    check_card,
    check_vocabulary,
    read_content,
    read_tensors,
    readable,
    write_weights,
)
from stimg.nn import Config, GeneMAE

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

CARD: dict[str, type] = {"name": str, "slides": list, "n_sites": int, "unit": str, "size": int, "target_sum": float}
HISTORY_COLUMNS = ["epoch", "train_loss", "val_loss", "lr", "seconds"]


@dataclass
class Model:
    """A pretrained masked autoencoder and its card.

    Returned by :func:`stimg.tl.pretrain` and :meth:`Model.load`.

    Attributes
    ----------
    network
        The `stimg.nn.GeneMAE`, in evaluation mode on the CPU.
    genes
        Vocabulary, shape (n_genes,): the names of the genes, in the order of the network's tables.
    card
        What the model was trained on and how: name, slides, observations, lattice kinds, patch size, unit, scale and
        target sum of the expression, licence, versions, seed.
    history
        One row an epoch: `epoch`, `train_loss`, `val_loss`, `lr`, `seconds`.
    """

    network: GeneMAE
    genes: np.ndarray
    card: dict[str, Any]
    history: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=HISTORY_COLUMNS))
    sha256: str = ""
    """Hash of the file that the model was loaded from or saved to last; empty for weights never saved."""

    @property
    def config(self) -> Config:
        """Sizes and recipe of the network."""
        return self.network.config

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.network.parameters())

    def __repr__(self) -> str:
        lines = [
            f"stimg Model {self.card['name']!r}: {self.n_parameters / 1e6:.2f} M parameters, embedding of "
            f"{self.config.dim} dimensions",
            f"  genes     {len(self.genes):,} ({', '.join(self.genes[:4])}, ...)",
            f"  trained   {len(self.card['slides'])} slides ({', '.join(self.card['slides'][:4])}"
            f"{', ...' if len(self.card['slides']) > 4 else ''}), {self.card['n_sites']:,} sites, "
            f"unit {self.card['unit']}, patches of {self.card['size']} x {self.card['size']}",
            f"  values    {self.card['scale']}, target sum {self.card['target_sum']:g}, {self.config.scaling}",
        ]
        if len(self.history):
            last = self.history.iloc[-1]
            lines.append(f"  history   {len(self.history)} epochs, training loss {last['train_loss']:.4f}")
        return "\n".join(lines)

    @checked
    def save(self, path: str | Path, *, overwrite: bool = False, half: bool = False) -> None:
        """Write weights, configuration, vocabulary, card and history to one `.safetensors` file.

        The file appears whole or not at all: it is written beside its place, flushed, and renamed.

        Parameters
        ----------
        path
            The file; its folder must exist.
        overwrite
            Replace an existing file.
        half
            Store numbers as float16, in a file of half the size. They are read as float32; embeddings differ by
            less than one part in a hundred.

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
            "config": self.config.to_dict(),
            "genes": self.genes.tolist(),
            "card": self.card,
            "history": json.loads(self.history.to_json(orient="records")),
        }
        self.sha256 = write_weights(path, content, self.network.state_dict(), overwrite=overwrite, half=half)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Model:
        """Read a model that :meth:`save` wrote. No pickle is read and no code is run.

        Parameters
        ----------
        path
            A `.safetensors` file.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is truncated, is no stimg model, has a newer format, or its tensors do not fit its configuration.
        """
        content = read_content(path, "patches")
        check_card(path, content["card"], CARD)
        genes = check_vocabulary(path, content)
        with readable(path):
            with torch.device("meta"):
                config = Config.from_dict(content["config"])
                network = GeneMAE(config, len(genes), len(content["card"].get("labels", [])))
            expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
            history = pd.DataFrame(content["history"], columns=HISTORY_COLUMNS).astype({"val_loss": float})
        tensors, digest = read_tensors(path, expected)
        network.load_state_dict(tensors, assign=True)
        return cls(network.eval(), genes, content["card"], history, digest)
