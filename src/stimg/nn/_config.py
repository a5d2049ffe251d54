"""Named configurations: the network's sizes and the recipe that trains it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

MaskKind = Literal["genes", "sites", "regions", "mixture"]
Scaling = Literal["zscore", "log"]
TokenKind = Literal["bound", "additive"]


@dataclass(frozen=True)
class Config:
    """Sizes of the masked autoencoder and the settings it is trained with.

    Parameters
    ----------
    dim
        Width of a token.
    encoder_layers, decoder_layers
        Number of transformer blocks.
    heads
        Attention heads; `dim / heads` must be a multiple of 4 (rotary positions on two axes).
    mlp_ratio
        Width of a block's hidden layer over `dim`.
    token
        `"bound"`: a site's token is the sum of value x gene embedding. `"additive"`: value embedding + gene
        embedding, added separately, as in the paper.
    scaling
        What the network sees and predicts: `"zscore"`, each gene standardised within its slide, or `"log"`.
    mask
        What is hidden in training: `"genes"` inside each spot, single `"sites"`, square `"regions"`, or `"mixture"`:
        regions, and genes inside the spots that stay.
    site_ratio, gene_ratio
        Share of the sites (sites, regions, mixture) and of a spot's channels (genes, mixture) that is hidden.
    n_programs
        Principal gene programs of the training slides that start the gene tables and judge the error; 0 for random
        tables.
    program_loss
        Weight of the error in gene programs beside that of single genes.
    label_loss
        Weight of the cross-entropy of expert labels, where patches have any.
    anchor_loss
        Weight of the squared distance to the states of the network that training goes on from, where there is one.
    learning_rate, weight_decay, warmup
        AdamW with linear warm-up over this share of the steps, then cosine decay.
    batch_size
        Windows a step.
    """

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
        if self.dim % (4 * self.heads):
            msg = f"Expected `dim` to be a multiple of 4 x `heads`, found dim={self.dim}, heads={self.heads}."
            raise ValueError(msg)
        if self.n_programs > self.dim:
            msg = f"Expected `n_programs` of at most `dim`={self.dim}, found {self.n_programs}."
            raise ValueError(msg)
        if self.program_loss and not self.n_programs:
            msg = "Expected `n_programs` above 0 for a `program_loss`, found 0."
            raise ValueError(msg)
        for name in ("site_ratio", "gene_ratio"):
            value = getattr(self, name)
            if not 0 < value < 1:
                msg = f"Expected `{name}` between 0 and 1 (both excluded), found {value}."
                raise ValueError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary (JSON-serialisable)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Build a configuration from `to_dict`'s result; unknown fields are an error."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            msg = f"Unknown configuration fields {sorted(unknown)}; known are {sorted(known)}."
            raise ValueError(msg)
        return cls(**values)


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
    """Resolve a name of `CONFIGS`, or pass a `Config` through."""
    if isinstance(config, Config):
        return config
    if config not in CONFIGS:
        msg = f"Unknown `config` {config!r}. Expected one of {sorted(CONFIGS)} or a `stimg.nn.Config`."
        raise ValueError(msg)
    return CONFIGS[config]
