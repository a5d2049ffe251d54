"""Configurations: a network's sizes and the recipe that trains it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

MaskKind = Literal["genes", "sites", "regions", "mixture"]
Scaling = Literal["zscore", "log"]
TokenKind = Literal["bound", "additive"]
Limits = dict[str, tuple[float, float]]
SMALLEST_RATIO = 1e-6
LARGEST = sys.float_info.max
MOST_LAYERS = 1000


@dataclass(frozen=True)
class Recipe:
    """What all configurations share: checks of their fields, and conversion to JSON and back.

    Each subclass declares `learning_rate`, `weight_decay`, `warmup` and `batch_size` after its own fields, because
    files keep that order.
    """

    _limits: ClassVar[Limits] = {"warmup": (0, 1)}
    """Lowest value and upper bound (excluded) of a field; by default, integers start at 1 and other numbers at 0."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal:
                right, wanted = value in get_args(kind), f"one of {get_args(kind)}"
            elif kind in (int, float):
                low, end = self._limits.get(name, (int(kind is int), inf))
                right = isinstance(value, int | kind) and not isinstance(value, bool) and low <= value < end
                right = right and (kind is int or value <= LARGEST)  # an integer may be too large for a float
                limits = f"of at least {low}" if end == inf else f"in [{low}, {end})"
                wanted = f"{'an integer' if kind is int else 'a finite number'} {limits}"
            else:
                continue
            if not right:
                msg = f"Expected `{name}` to be {wanted}, found {value!r}."
                raise ValueError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary (JSON-serialisable)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a configuration from the result of `to_dict`; unknown fields are an error."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            msg = f"Unknown configuration fields {sorted(unknown)}. Expected some of {sorted(known)}."
            raise ValueError(msg)
        return cls(**cls._from_json(values))

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Restore the types that JSON lacks."""
        return values


@dataclass(frozen=True)
class Config(Recipe):
    """Sizes of the masked autoencoder and its training settings.

    Parameters
    ----------
    dim
        Width of a token.
    encoder_layers, decoder_layers
        Number of transformer blocks.
    heads
        Number of attention heads; `dim / heads` must be a multiple of 4 (rotary positions on two axes).
    mlp_ratio
        Width of a block's hidden layer relative to `dim`.
    token
        A site's token is the sum over channels of value x gene embedding (`"bound"`), or of value embedding + gene
        embedding (`"additive"`), as in the paper.
    scaling
        Expression that the network sees and predicts: `"zscore"`, each gene standardised within its slide, or
        `"log"`.
    mask
        What is hidden in training: `"genes"` inside each spot, single `"sites"`, square `"regions"`, or `"mixture"`:
        regions, and genes inside the remaining spots.
    site_ratio, gene_ratio
        Hidden share of the sites (sites, regions, mixture) and of a spot's channels (genes, mixture).
    n_programs
        Number of principal gene programs of the training slides with which the gene tables start and in which the
        error is measured; 0 for random tables.
    program_loss
        Weight of the error in gene programs, relative to that of single genes.
    label_loss
        Weight of the cross-entropy of expert labels, if the patches have any.
    anchor_loss
        Weight of the squared distance to the states of the network that training starts from, if there is one.
    learning_rate, weight_decay, warmup
        AdamW with linear warm-up over a share `warmup` of the steps, then cosine decay.
    batch_size
        Windows per step.
    """

    _limits: ClassVar[Limits] = Recipe._limits | {
        "site_ratio": (SMALLEST_RATIO, 1),
        "gene_ratio": (SMALLEST_RATIO, 1),
        "n_programs": (0, inf),
        "encoder_layers": (1, MOST_LAYERS + 1),
        "decoder_layers": (1, MOST_LAYERS + 1),
    }

    dim: int = 128
    encoder_layers: int = 4
    decoder_layers: int = 1
    heads: int = 4
    mlp_ratio: float = 2.0
    token: TokenKind = "bound"
    scaling: Scaling = "zscore"
    mask: MaskKind = "mixture"
    site_ratio: float = 0.4
    gene_ratio: float = 0.5
    n_programs: int = 32
    program_loss: float = 1.0
    label_loss: float = 1.0
    anchor_loss: float = 1.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % (4 * self.heads):
            msg = f"Expected `dim` to be a multiple of 4 x `heads`, found dim={self.dim}, heads={self.heads}."
            raise ValueError(msg)
        if self.n_programs > self.dim:
            msg = f"Expected `n_programs` of at most `dim`={self.dim}, found {self.n_programs}."
            raise ValueError(msg)
        if self.program_loss and not self.n_programs:
            msg = "Expected `n_programs` above 0 for a `program_loss`, found 0."
            raise ValueError(msg)


CONFIGS: dict[str, Config] = {
    "tiny": Config(),
    "small": Config(dim=256, encoder_layers=6, decoder_layers=2, heads=8, mlp_ratio=4.0, learning_rate=5e-4),
    "base": Config(dim=512, encoder_layers=8, decoder_layers=2, heads=8, mlp_ratio=4.0, learning_rate=3e-4),
    "paper": Config(
        dim=256,
        encoder_layers=6,
        decoder_layers=2,
        heads=8,
        mlp_ratio=4.0,
        token="additive",
        scaling="log",
        mask="genes",
        gene_ratio=0.5,
        n_programs=0,
        program_loss=0.0,
        learning_rate=2e-4,
        batch_size=32,
    ),
}


def get_config(config: str | Config) -> Config:
    """Return the configuration with that name in `CONFIGS`; a `Config` is returned as it is."""
    if isinstance(config, Config):
        return config
    if config not in CONFIGS:
        msg = f"Unknown `config` {config!r}. Expected one of {sorted(CONFIGS)} or a `stimg.nn.Config`."
        raise ValueError(msg)
    return CONFIGS[config]
