"""Two encoders, of H&E and of expression, into one common space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stimg.nn._config import Config, Limits, Recipe
from stimg.nn._stain import StainStatistics
from stimg.nn._vit import GeneMAE

if TYPE_CHECKING:
    from collections.abc import Callable

GeneEncoder = Literal["linear", "mlp", "embedding", "tuned"]
N_LOOKS = 2 * StainStatistics.channels
SMALLEST_TEMPERATURE = 0.01


@dataclass(frozen=True)
class AlignConfig(Recipe):
    """Sizes of the two encoders and their training settings.

    Parameters
    ----------
    dim
        Width of the common space.
    hidden
        Width of the hidden layers.
    gene_encoder
        `"linear"`, as in the code of STimage-1K4M, or `"mlp"` with one hidden layer. `"embedding"`: one hidden layer
        on a fixed spatial embedding, such as :func:`stimg.tl.embed` writes. `"tuned"`: one hidden layer on the states
        of a pretrained spatial network, which is trained as well, except for its gene tables.
    embedding_dim
        Width of that embedding.
    spatial, n_spatial_genes
        Sizes of the tuned network and of its vocabulary; :func:`stimg.tl.align` takes them from the model in the
        patches.
    spatial_rate
        Learning rate of the tuned network relative to that of the heads.
    temperature
        Initial temperature; it is learned.
    neighbour_pitches
        Spots of one slide within this many pitches do not count as negatives of each other, since they often look alike
        and express alike.
    dropout
        Share of the inputs of both heads that is hidden at each training step.
    colour_jitter
        Standard deviation of random changes of each channel's optical density.
    learning_rate, weight_decay, warmup
        AdamW with linear warm-up over a share `warmup` of the steps, then cosine decay.
    batch_size
        Spots per step, among which each image has to find its expression.
    chunk_size
        Spots whose activations are in memory at once. Larger batches are computed chunk by chunk, and once more in the
        backward pass (gradient checkpointing), so that memory does not grow with the batch.
    """

    _limits: ClassVar[Limits] = Recipe._limits | {
        "n_spatial_genes": (0, math.inf),
        "temperature": (SMALLEST_TEMPERATURE, math.inf),
        "dropout": (0, 1),
        "batch_size": (2, math.inf),
    }

    dim: int = 64
    hidden: int = 256
    gene_encoder: GeneEncoder = "mlp"
    embedding_dim: int = 128
    spatial: Config | None = None
    n_spatial_genes: int = 0
    spatial_rate: float = 0.1
    temperature: float = 0.07
    neighbour_pitches: float = 1.6
    dropout: float = 0.3
    colour_jitter: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    batch_size: int = 256
    chunk_size: int = 64

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> dict[str, Any]:
        spatial = values.get("spatial")
        return {**values, "spatial": None if spatial is None else Config.from_dict(spatial)}


class AlignNetwork(nn.Module):
    """Encoders of H&E and of expression, after CLIP (Radford et al. 2021, arXiv 2103.00020).

    A spot's image is represented by the stain in the middle and over the whole of its crop, compared with the slide's
    other spots, and with an encoder also by the mean of each level of the crop's pyramid. Its expression is that of the
    spot and the mean of its neighbours (less noisy than single spots, and partly visible in the crop), standardised
    within the slide; or a spatial embedding; or the state that a spatial network computes from its surroundings.

    Parameters
    ----------
    config
        Sizes.
    n_genes
        Number of genes.
    encoder
        A module with `channels` and a pyramid, such as `ConvEncoder`; without one, only the stain is used.
    """

    def __init__(self, config: AlignConfig, n_genes: int, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        channels: Any = () if encoder is None else encoder.channels
        self.image_norm = nn.LayerNorm(sum(channels)) if encoder is not None else None
        self.image_head = head(sum(channels) + N_LOOKS, config)
        if config.gene_encoder == "linear":
            self.gene_head: nn.Module = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(2 * n_genes, config.dim))
        elif config.gene_encoder == "mlp":
            self.gene_head = head(2 * n_genes, config)
        elif config.gene_encoder == "embedding":
            self.gene_head = head(config.embedding_dim, config)
        elif config.spatial is not None:
            self.gene_head = head(config.spatial.dim, config)
            self.spatial = GeneMAE(config.spatial, config.n_spatial_genes)
            for name, parameter in self.spatial.named_parameters():  # tokens are made beforehand
                parameter.requires_grad_(not name.startswith(("gene_", "value_")))
        else:
            msg = "Expected `spatial`, the configuration to tune, for `gene_encoder='tuned'`, found None."
            raise ValueError(msg)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def encode_images(self, looks: Tensor, images: Tensor | None = None) -> Tensor:
        """Embed the images around spots as unit vectors, float32 (n, dim).

        `looks`, float32 (n, 2 * n_statistics), is the stain in the middle and over the whole of each crop as z-scores.
        If there is an encoder, `images` are the crops, float32 (n, 3, size, size) in [0, 1], the size a multiple of 32.
        """
        if self.encoder is None or self.image_norm is None or images is None:
            return F.normalize(self.image_head(looks), dim=1)
        pooled = self.image_norm(self._by_chunks(self._pooled, images))
        return F.normalize(self.image_head(torch.cat([pooled, looks], 1)), dim=1)

    def encode_genes(self, values: Tensor) -> Tensor:
        """Embed spots as unit vectors, float32 (n, dim).

        `values` are the expression of the spots and of their neighbours (n, 2 * n_genes), or spatial embeddings or
        states (n, d).
        """
        return F.normalize(self.gene_head(values), dim=1)

    def encode_surroundings(self, tokens: Tensor, positions: Tensor, present: Tensor) -> Tensor:
        """Return the states (n, d) that the spatial network computes for the spots in the middle of windows.

        Windows are `tokens` float32 (n, size * size, d), `positions` float32 (n, size * size, 2) in units of the pitch,
        and occupied sites `present`, bool (n, size * size); the middle site is always occupied.
        """
        return self._by_chunks(self._middle_states, tokens, positions, present)

    @property
    def scale(self) -> Tensor:
        """One over the temperature, at most 100."""
        return self.log_scale.clamp(max=-math.log(SMALLEST_TEMPERATURE)).exp()

    def _by_chunks(self, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Compute by chunks; in training, several are checkpointed, so that memory does not grow with the batch."""
        chunks = zip(*(part.split(self.config.chunk_size) for part in inputs), strict=True)
        if self.training and len(inputs[0]) > self.config.chunk_size:
            return torch.cat([checkpoint(compute, *chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([compute(*chunk) for chunk in chunks])

    def _middle_states(self, tokens: Tensor, positions: Tensor, present: Tensor) -> Tensor:
        positions = positions - positions.masked_fill(~present[..., None], torch.inf).amin(1, keepdim=True)
        states = self.spatial.decode(self.spatial.encode(tokens, positions, present), positions, present, present)
        size = math.isqrt(tokens.shape[1])
        return states[:, (size // 2) * (size + 1)]

    def _pooled(self, images: Tensor) -> Tensor:
        encoder: Any = self.encoder
        return torch.cat([level.mean((2, 3)) for level in encoder(images)], 1)


def head(n_inputs: int, config: AlignConfig) -> nn.Sequential:
    """Make the two layers that map into the common space."""
    return nn.Sequential(
        nn.Dropout(config.dropout),
        nn.Linear(n_inputs, config.hidden),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden, config.dim),
    )
