"""A pretrained network with everything that is needed to use it again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from stimg.nn import Config, GeneMAE

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
METADATA_KEY = "stimg"
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
        path = Path(path)
        if not path.parent.is_dir():
            msg = f"Expected `path` in an existing folder, found {str(path)!r}. Create {str(path.parent)!r} first."
            raise NotADirectoryError(msg)
        if path.exists() and not overwrite:
            msg = f"{str(path)!r} exists. Choose another `path` or pass `overwrite=True`."
            raise FileExistsError(msg)
        if not os.access(path.parent, os.W_OK):
            msg = f"The folder {str(path.parent)!r} can not be written to. Choose another `path`."
            raise PermissionError(msg)
        content = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "genes": self.genes.tolist(),
            "card": self.card,
            "history": json.loads(self.history.to_json(orient="records")),
        }
        dtype = torch.float16 if half else torch.float32
        tensors = {name: tensor.to(dtype).contiguous() for name, tensor in self.network.state_dict().items()}
        data = serialise(tensors, metadata={METADATA_KEY: json.dumps(content)})
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).chmod(0o644)  # temporary files are for their owner alone
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        self.sha256 = hashlib.sha256(data).hexdigest()

    @classmethod
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
        path = Path(path)
        if not path.is_file():
            msg = f"No weights file at {str(path)!r}. Give the path of a file that `Model.save` wrote."
            raise FileNotFoundError(msg)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                content = _parse_metadata(path, metadata)
                config = Config.from_dict(content["config"])
                genes = np.asarray(content["genes"], dtype=str)
                if len(np.unique(genes)) < len(genes):
                    msg = f"The vocabulary of {str(path)!r} has a gene twice. The file is damaged."
                    raise ValueError(msg)
                with torch.device("meta"):
                    network = GeneMAE(config, len(genes), len(content["card"].get("labels", [])))
                expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
                _check_tensors(path, expected, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})
                tensors = {name: file.get_tensor(name).float() for name in expected}
        except SafetensorError as error:
            msg = f"{str(path)!r} is truncated or is no safetensors file ({error}). Copy or download it again."
            raise ValueError(msg) from error
        network.load_state_dict(tensors, assign=True)
        history = pd.DataFrame(content["history"], columns=HISTORY_COLUMNS).astype({"val_loss": float})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(network.eval(), genes, content["card"], history, digest)


def _parse_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Decode and check the model's own entry of the file's metadata."""
    if METADATA_KEY not in metadata:
        msg = f"{str(path)!r} is a safetensors file but no stimg model: its metadata has no {METADATA_KEY!r} entry."
        raise ValueError(msg)
    try:
        content = json.loads(metadata[METADATA_KEY])
        version = int(content["format"])
    except (ValueError, KeyError, TypeError) as error:
        msg = f"The {METADATA_KEY!r} metadata of {str(path)!r} can not be read ({error}). The file is damaged."
        raise ValueError(msg) from error
    if version > FORMAT:
        msg = f"{str(path)!r} has format {version}, this stimg reads up to {FORMAT}. Update stimg."
        raise ValueError(msg)
    if missing := {"config", "genes", "card", "history"} - set(content):
        msg = f"The metadata of {str(path)!r} lacks {sorted(missing)}. The file is damaged."
        raise ValueError(msg)
    if not isinstance(content["card"], dict) or not isinstance(content["card"].get("labels", []), list):
        msg = f"The card of {str(path)!r} can not be read. The file is damaged."
        raise ValueError(msg)
    return content


def _check_tensors(path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Compare names and shapes before anything is read."""
    if expected == found:
        return
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    msg = (
        f"The tensors of {str(path)!r} do not fit its configuration: missing {sorted(set(expected) - set(found))[:3]}, "
        f"unexpected {sorted(set(found) - set(expected))[:3]}, wrong shape {wrong[:3]}. The file is damaged."
    )
    raise ValueError(msg)
