"""What all trained models have in common: a network, its genes, a card, one file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd
import torch

from stimg._input._checks import checked
from stimg.models._content import ANY_CARD, HISTORY_COLUMNS, IMAGE_CARD, Rules, check_content
from stimg.models._weights_file import FOREIGN_TENSORS, read_content, read_tensors, readable, write_weights
from stimg.nn import ForeignEncoder, get_encoder
from stimg.nn._encoder import BUNDLED_ENCODER

if TYPE_CHECKING:
    from collections.abc import Sequence, Sized
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn


@dataclass(repr=False)
class TrainedModel(ABC):
    """A trained network in evaluation mode on the CPU, its genes, its card and its history."""

    kind: ClassVar[str]
    card_rules: ClassVar[Rules] = ANY_CARD

    network: Any
    genes: np.ndarray
    card: dict[str, Any]
    history: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=HISTORY_COLUMNS))
    sha256: str = ""
    """Hash of the file that the model was loaded from or last saved to; empty if it was never saved."""

    @classmethod
    @abstractmethod
    def _build(cls, content: dict[str, Any], encoder: nn.Module | None) -> nn.Module:
        """Make the network that a file's metadata describes; `encoder` is `None` for a model without one."""

    @property
    def config(self) -> Any:
        """Sizes and recipe of the network."""
        return self.network.config

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.network.parameters())

    def _summary(self, network: str, amount: str, **more: str) -> str:
        """Return lines on size, genes and training, and those that a subclass adds."""
        slides = self.card["slides"]
        lines = {
            "genes": f"{len(self.genes):,} ({_first(self.genes)})",
            "trained": f"{_counted(slides, 'slide')} ({_first(slides)}), {amount}",
            **more,
        }
        if len(self.history):
            loss = self.history["train_loss"].iloc[-1]
            lines["history"] = f"{_counted(self.history, 'epoch')}, training loss {loss:.4f}"
        size = f"{self.n_parameters / 1e6:.2f} M parameters"
        title = f"stimg {type(self).__name__} {self.card['name']!r}: {size}, {network}"
        return "\n".join([title, *(f"  {name:<10}{line}" for name, line in lines.items())])

    @checked
    def save(self, path: str | Path, *, overwrite: bool = False, half: bool = False) -> None:
        """Write weights, configuration, genes, card and history to one `.safetensors` file.

        The file appears whole or not at all: it is written beside its place, flushed, and renamed. A symbolic link
        stays, and the file it points to is replaced; a file that is replaced keeps its mode. Frozen weights of an
        encoder that does not come with stimg are left out.

        Parameters
        ----------
        path
            The file; its folder must exist.
        overwrite
            Replace an existing file.
        half
            Store numbers as float16, in a file of half the size. They are read as float32; embeddings differ by less
            than one percent.

        Raises
        ------
        FileExistsError
            The file exists and `overwrite` is false.
        NotADirectoryError, IsADirectoryError
            The folder does not exist, or `path` is a folder itself.
        PermissionError, OSError
            The folder cannot be written to, or the disk is full.
        ValueError
            Weights are not finite (or not in float16, with `half`), or an entry of the card is not as in `load`.
        """
        content = {
            "config": self.network.config.to_dict(),
            "genes": self.genes.tolist(),
            "card": self.card,
            "history": json.loads(self.history.to_json(orient="records")),
        }
        try:
            check_content(json.loads(json.dumps(content)), self.card_rules)
        except (TypeError, ValueError) as error:
            msg = f"Cannot save the model, since it could not be loaded again: {error}."
            raise ValueError(msg) from error
        tensors = _own_tensors(self.network)
        self.sha256 = write_weights(path, self.kind, content, tensors, overwrite=overwrite, half=half)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Self:
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
            The file is damaged, has an absurd entry, is not a stimg model, has a newer format, or holds a model of
            another kind.
        """
        return cls._read(path)

    @classmethod
    def _read(cls, path: str | Path, encoder: Any = None) -> Self:
        content, names = read_content(path, cls.kind)
        with readable(path):
            genes = cls._check_content(content)
        tuned = any(name.startswith(FOREIGN_TENSORS) for name in names)
        encoder = _find_encoder(path, content["card"].get("encoder"), encoder, tuned=tuned)
        with readable(path):
            with torch.device("meta"):  # take no memory before the sizes are known to be those in the file
                sketch = cls._build(content, encoder)
            expected = {name: tuple(tensor.shape) for name, tensor in _own_tensors(sketch).items()}
            history = pd.DataFrame(content["history"], columns=HISTORY_COLUMNS).astype({"val_loss": float})
        tensors, digest = read_tensors(path, expected)
        with torch.random.fork_rng(devices=[]):
            network = cls._build(content, encoder)
        network.load_state_dict(tensors, strict=False, assign=True)  # the names were compared above
        return cls(network.eval(), genes, content["card"], history, digest)

    @classmethod
    def _check_content(cls, content: dict[str, Any]) -> np.ndarray:
        """Refuse metadata with missing or absurd entries; return the genes."""
        return check_content(content, cls.card_rules)


@dataclass(repr=False)
class ImageModel(TrainedModel):
    """A trained network that reads H&E, and its card."""

    card_rules: ClassVar[Rules] = IMAGE_CARD

    def _image_summary(self, images: str) -> str:
        amount = f"{self.card['n_spots']:,} spots of {self.card['diameter_um']:g} um"
        return self._summary(f"encoder {self.card['encoder']!r}", amount, images=images)

    @classmethod
    @checked
    def load(cls, path: str | Path, *, encoder: Any = None) -> Self:
        """Read a model that :meth:`save` wrote. No pickle is read and no code is run.

        Parameters
        ----------
        path
            A `.safetensors` file.
        encoder
            The encoder that the model was trained with, if it is not the bundled one: what was passed as `encoder` to
            the training function.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is damaged or holds a model of another kind, or `encoder` is missing or does not fit.
        """
        return cls._read(path, encoder)


def _counted(things: Sized, word: str) -> str:
    return f"{len(things)} {word}" + ("" if len(things) == 1 else "s")


def _first(names: Sequence[str] | np.ndarray) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _find_encoder(path: str | Path, name: str | None, encoder: Any, *, tuned: bool) -> nn.Module | None:
    """Return a model's encoder: `None`, the bundled one by its name, or the one that was passed."""
    if name is None:
        return None
    if name != BUNDLED_ENCODER and encoder is None:
        msg = f"{str(path)!r} was trained with encoder {name!r}, which is not in the file. Pass it as `encoder`."
        raise ValueError(msg)
    return get_encoder(name if encoder is None else encoder, tuned=tuned)


def _own_tensors(network: Any) -> dict[str, Tensor]:
    """Return the network's tensors without those of a frozen foreign encoder."""
    frozen = isinstance(network.encoder, ForeignEncoder) and not network.encoder.tuned
    state = network.state_dict()
    return {name: tensor for name, tensor in state.items() if not (frozen and name.startswith(FOREIGN_TENSORS))}
