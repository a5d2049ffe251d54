"""From an H&E image to a dense expression map."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stimg.nn._config import Limits, Recipe
from stimg.nn._encoder import ChannelNorm, ConvEncoder
from stimg.nn._stain import StainStatistics

Aggregation = Literal["sum", "mean"]
Likelihood = Literal["gaussian", "negative_binomial"]
COARSEST_STRIDE = 32
STAIN_BOUND = 3.0  # standard deviations of a slide's spots


@dataclass(frozen=True)
class DenseConfig(Recipe):
    """Sizes of the dense network and its training settings.

    Parameters
    ----------
    dim
        Channels of the dense map before the gene head, a multiple of 4.
    aggregation
        How the map is read inside a spot: its `"mean"` over the spot's area, or its `"sum"` in units of the training
        spots' area, as in PixNet.
    likelihood
        Loss of a spot: the mean squared error of standardised log-normalised expression (`"gaussian"`, as in PixNet),
        or the negative log likelihood of its counts, given its total, under a `"negative_binomial"` distribution with
        one dispersion per gene.
    pearson_loss
        Weight of one minus the correlation over the batch, relative to that loss (PixNet: 0.5).
    n_programs
        Number of principal gene programs of the training spots with which the gene head starts; 0 for a random head.
    group_sizes
        Radii in pitches, drawn with equal probability: training is on groups of spots within that radius, whose counts
        are summed, or at 0 on single spots.
    dropout
        Share of the map's channels that is hidden at each training step.
    colour_jitter
        Standard deviation of random changes of each channel's optical density.
    learning_rate, weight_decay, warmup
        AdamW with linear warm-up over a share `warmup` of the steps, then cosine decay.
    batch_size
        Crops per step.
    """

    _limits: ClassVar[Limits] = Recipe._limits | {"dropout": (0, 1), "n_programs": (0, inf)}

    dim: int = 64
    aggregation: Aggregation = "mean"
    likelihood: Likelihood = "gaussian"
    pearson_loss: float = 0.5
    n_programs: int = 32
    group_sizes: tuple[float, ...] = (0.0, 1.1)
    dropout: float = 0.2
    colour_jitter: float = 0.1
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    batch_size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.group_sizes or not all(0 <= size < inf for size in self.group_sizes):
            msg = f"Expected `group_sizes` to hold at least one radius, each of at least 0, found {self.group_sizes}."
            raise ValueError(msg)
        if self.dim % FusionBlock.heads:
            msg = f"Expected `dim` to be a multiple of {FusionBlock.heads}, found {self.dim}."
            raise ValueError(msg)
        if self.n_programs > self.dim:
            msg = f"Expected `n_programs` of at most `dim`={self.dim}, found {self.n_programs}."
            raise ValueError(msg)

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "group_sizes": tuple(values.get("group_sizes", cls.group_sizes))}


class FusionBlock(nn.Module):
    """Refine the encoder's map of a level and mix it with that of the coarser level by attention between the two.

    After PixNet's separable attention fusion (arXiv 2503.01347): depthwise convolution with SiLU, norm and residual;
    queries, keys and values by 1 x 1 convolutions. Here each pixel attends, with several heads, to its two sources (the
    feature of its own level and that of the coarser one) instead of to all pixels, so that windows have no seams and
    the time is proportional to the area.
    """

    heads = 4

    def __init__(self, skip_channels: int, dim: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(skip_channels, dim, 1)
        self.refine = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = ChannelNorm(dim)
        self.sources = nn.ModuleList([ChannelNorm(dim), ChannelNorm(dim)])
        self.query = nn.Conv2d(2 * dim, dim, 1)
        self.key_values = nn.ModuleList([nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(dim, 2 * dim, 1)])
        self.leave = nn.Conv2d(dim, dim, 1)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """Mix (n, skip_channels, h, w) with (n, dim, h, w)."""
        skip = self.enter(skip)
        skip = skip + self.norm(F.silu(self.refine(skip)))
        sources = [norm(x) for norm, x in zip(self.sources, (skip, below), strict=True)]
        query = self.query(torch.cat(sources, 1)).unflatten(1, (self.heads, -1))
        pairs = [layer(x).chunk(2, 1) for layer, x in zip(self.key_values, sources, strict=True)]
        keys = torch.stack([key.unflatten(1, (self.heads, -1)) for key, _ in pairs])
        values = torch.stack([value.unflatten(1, (self.heads, -1)) for _, value in pairs])
        scores = (query * keys).sum(3, keepdim=True) * keys.shape[3] ** -0.5
        mixed = (scores.softmax(0) * values).sum(0).flatten(1, 2)
        return skip + below + self.leave(mixed)


class Upsample(nn.Module):
    """Double the resolution, by depth-to-space in the deep levels and bilinearly in the shallow ones (as in PixNet)."""

    def __init__(self, dim: int, *, deep: bool) -> None:
        super().__init__()
        self.deep = deep
        self.mix = nn.Conv2d(dim, 4 * dim if deep else dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge (n, dim, h, w) to (n, dim, 2 h, 2 w)."""
        if self.deep:
            return F.pixel_shuffle(self.mix(x), 2)
        return F.interpolate(self.mix(x), scale_factor=2, mode="bilinear", align_corners=False)


class DenseNetwork(nn.Module):
    """Encoder pyramid, decoder to a map at a quarter of the image's resolution, and a gene-indexed head.

    The map's channels are those of the decoder and `StainStatistics`. The head is linear, so that a spot's expression
    is the head applied to the mean of the map's channels over the spot; gene maps are made only on request.

    Parameters
    ----------
    config
        Sizes.
    n_genes
        Rows of the gene head.
    encoder
        `ConvEncoder`, or another module with `channels`, `strides` and a pyramid.
    """

    stain_weight: Tensor
    gene_mean: Tensor
    gene_sd: Tensor

    def __init__(self, config: DenseConfig, n_genes: int, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = ConvEncoder() if encoder is None else encoder
        dim = config.dim
        channels: Any = self.encoder.channels
        strides: Any = self.encoder.strides
        self.levels = (4, 8, 16, 32)
        self.taken = [min(range(len(channels)), key=lambda i: abs(strides[i] - level)) for level in self.levels]
        self.bottom = nn.Conv2d(channels[self.taken[-1]], dim, 1)
        self.fusions = nn.ModuleList([FusionBlock(channels[i], dim) for i in self.taken[:-1]])
        self.upsamples = nn.ModuleList([Upsample(dim, deep=level >= 2) for level in range(1, len(self.levels))])
        self.norm = ChannelNorm(dim)
        self.hidden = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1))
        self.stain = StainStatistics()
        self.dropout = nn.Dropout1d(config.dropout)
        self.head = nn.Linear(dim, n_genes)
        nn.init.normal_(self.head.weight, std=dim**-0.5)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("stain_weight", torch.zeros(n_genes, self.stain.channels))
        self.register_buffer("gene_mean", torch.zeros(n_genes))
        self.register_buffer("gene_sd", torch.ones(n_genes))

    def start_from_programs(self, mean: Tensor, sd: Tensor, programs: Tensor) -> None:
        """Set the genes' mean and deviation (n_genes,), and the first columns of the head to programs (n, n_genes)."""
        self.gene_mean.copy_(mean)
        self.gene_sd.copy_(sd)
        if len(programs):
            with torch.no_grad():
                self.head.weight.zero_()
                self.head.weight[:, : len(programs)] = programs.T

    def start_from_stain(self, weight: Tensor, bias: Tensor) -> None:
        """Set the regression on stain statistics (n_genes, n_statistics), which stays fixed, and its bias (n_genes,).

        The decoder starts from zero, so that training begins with the regression and adds to it.
        """
        self.stain_weight.copy_(weight)
        with torch.no_grad():
            self.head.bias.copy_(bias)
            for parameter in self.hidden[-1].parameters():
                parameter.zero_()

    def _weights(self, genes: Tensor | slice = slice(None)) -> Tensor:
        """Return the weights of the map's channels (n_genes, dim + stain statistics)."""
        return torch.cat([self.head.weight[genes], self.stain_weight[genes]], 1)

    def features(self, images: Tensor, slide: Tensor) -> Tensor:
        """Return the channels of the dense map, float32 (n, dim + stain statistics, height / 4, width / 4).

        `images` (n, 3, height, width) are uint8, or float in [0, 1], with sides that are multiples of 32. `slide`,
        float32 (n, 2, n_statistics), is the mean and deviation of the stain statistics over the spots of each slide.
        """
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return torch.cat([self.decode(images), self.statistics(images, slide)], 1)

    def statistics(self, images: Tensor, slide: Tensor) -> Tensor:
        """Return stain statistics of images in [0, 1], standardised within each image's slide and bounded.

        A single pixel can differ from the slide's mean far more than any whole spot does, but expression does not grow
        in proportion: bounded statistics make a regression that was learned on spots sharper on small areas.
        """
        mean, sd = slide[..., None, None].unbind(1)
        return STAIN_BOUND * torch.tanh((self.stain(images) - mean) / (sd * STAIN_BOUND))

    def decode(self, images: Tensor) -> Tensor:
        """Return the learned channels (n, dim, height / 4, width / 4) of images in [0, 1]."""
        pyramid = self.encoder(images)
        height, width = images.shape[-2:]

        def level(i: int) -> Tensor:
            size = (height // self.levels[i], width // self.levels[i])
            found = pyramid[self.taken[i]]
            same = found.shape[-2:] == size
            return found if same else F.interpolate(found, size, mode="bilinear", align_corners=False)

        x = self.bottom(level(len(self.levels) - 1))
        for i in reversed(range(len(self.levels) - 1)):
            x = self.fusions[i](level(i), self.upsamples[i](x))
        return self.hidden(self.norm(x))

    def read(self, features: Tensor, footprints: Tensor) -> Tensor:
        """Return standardised expression of shapes, float32 (n_shapes, n_genes), from features (n, channels, h, w).

        `footprints`, sparse (n_shapes, n * h * w), are the weights of the map's pixels in each shape. Rows that sum to
        one give the mean; areas divided by the area of a training spot give the sum.
        """
        inside = torch.sparse.mm(footprints, features.movedim(1, -1).flatten(0, 2))
        total = torch.sparse.sum(footprints, 1).to_dense().unsqueeze(1)
        learned, stain = inside.split([self.config.dim, self.stain.channels], 1)
        inside = torch.cat([self.dropout(learned.unsqueeze(2)).squeeze(2), stain], 1)
        return F.linear(inside, self._weights()) + total * self.head.bias

    def expression(self, standardised: Tensor, genes: Tensor | slice = slice(None)) -> Tensor:
        """Return log-normalised expression (n, n_genes) from standardised values of these genes."""
        return standardised * self.gene_sd[genes] + self.gene_mean[genes]

    def gene_map(self, features: Tensor, genes: Tensor) -> Tensor:
        """Return dense log-normalised maps of some genes, float32 (n, len(genes), h, w)."""
        maps = torch.einsum("ndhw,gd->nghw", features, self._weights(genes))
        maps = maps + self.head.bias[genes, None, None]
        return maps * self.gene_sd[genes, None, None] + self.gene_mean[genes, None, None]
