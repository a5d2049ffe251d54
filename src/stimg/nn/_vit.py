"""A vision transformer whose first and last layers are indexed by gene."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stimg.nn._config import Config

REFERENCE_CHANNELS = 512
ROTARY_BASE = 100.0
NEVER = -1e3  # bias of a label that is not learned


@dataclass
class Output:
    """What a training step needs: the loss, the predictions and which entries were hidden."""

    loss: Tensor
    prediction: Tensor
    hidden: Tensor


class Block(nn.Module):
    """Pre-norm transformer block with rotary positions on two axes."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        width = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], keys: Tensor) -> Tensor:
        """Map (batch, tokens, dim) to the same shape; `keys` (batch, 1, 1, tokens) marks what may be attended."""
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], rotation)
        mixed = F.scaled_dot_product_attention(q, k, qkv[2], attn_mask=keys)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp(self.norm2(x))


def rotary_angles(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (batch, 1, tokens, head_dim / 2) for positions (batch, tokens, 2) in units of the pitch.

    Half of the frequencies turn with x, half with y, so that attention depends on the true offset between two sites
    and not on where they lie in the window (Su et al. 2021, arXiv 2104.09864; axial form).
    """
    count = head_dim // 4
    frequencies = ROTARY_BASE ** (-torch.arange(count, device=positions.device, dtype=torch.float32) / count)
    angles = (positions[..., None] * frequencies).flatten(-2)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of channels of (..., batch, heads, tokens, head_dim) by their site's angles."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Transformer(nn.Module):
    """A stack of blocks on a set of sites with real-valued positions, and a final norm."""

    def __init__(self, config: Config, layers: int) -> None:
        super().__init__()
        self.head_dim = config.dim // config.heads
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.mlp_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Map tokens (batch, tokens, dim); only `valid` ones (batch, tokens) are used, others become zero."""
        order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(int(valid.sum(1).max()), 1)]
        index = order[..., None].expand(-1, -1, x.shape[-1])
        valid = valid.gather(1, order)
        rotation = rotary_angles(positions.gather(1, order[..., None].expand(-1, -1, 2)), self.head_dim)
        packed = x.gather(1, index)
        for block in self.blocks:
            packed = block(packed, rotation, valid[:, None, None, :])
        packed = self.norm(packed).masked_fill(~valid[..., None], 0)
        return torch.zeros_like(x, dtype=packed.dtype).scatter(1, index, packed)


class GeneMAE(nn.Module):
    r"""Masked autoencoder on patches of a slide, with gene-indexed input and output layers.

    A site's token is :math:`s \sum_g x_g W_{in}[g]` over the channels that the patch shows there, with
    :math:`s = \sqrt{512} / m` for `m` visible channels, so that `m` and the panel may vary. Only visible sites enter
    the encoder (He et al. 2022, arXiv 2111.06377); the decoder sees mask tokens in place of the hidden ones and
    predicts gene `g` as :math:`h \cdot W_{out}[g] + b_g`.

    Parameters
    ----------
    config
        Sizes and masking.
    n_genes
        Size of the vocabulary.
    n_labels
        Number of expert labels that the network also learns to predict; 0 for none.
    n_groups
        Number of groups of slides whose labels these are. For each, `label_profile` (2, n_groups, n_genes) holds mean
        and deviation of expression, -1 for genes that its slides lack. `label_weight` (2, n_labels, 2 dim) and
        `label_bias` (2, n_labels) are those of the regressions that name observations after training.
    """

    programs: Tensor
    program_variance: Tensor
    label_profile: Tensor
    label_weight: Tensor
    label_bias: Tensor

    def __init__(self, config: Config, n_genes: int, n_labels: int = 0, n_groups: int = 0) -> None:
        super().__init__()
        self.config = config
        self.n_labels = n_labels
        self.gene_in = nn.Parameter(torch.randn(n_genes, config.dim))
        self.gene_out = nn.Parameter(torch.randn(n_genes, config.dim) * config.dim**-0.5)
        self.gene_bias = nn.Parameter(torch.zeros(n_genes))
        if config.token == "additive":
            self.value_in = nn.Parameter(torch.randn(config.dim))
        self.register_buffer("programs", torch.zeros(n_genes, config.n_programs))
        self.register_buffer("program_variance", torch.ones(config.n_programs))
        self.encoder = Transformer(config, config.encoder_layers)
        self.mask_token = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.bridge = nn.Linear(config.dim, config.dim)
        self.decoder = Transformer(config, config.decoder_layers)
        if n_labels:
            self.label_head = nn.Linear(config.dim, n_labels)
        if n_groups:
            self.register_buffer("label_profile", torch.full((2, n_groups, n_genes), -1.0))
            self.register_buffer("label_weight", torch.zeros(2, n_labels, 2 * config.dim))
            self.register_buffer("label_bias", torch.full((2, n_labels), NEVER))

    def input_layer(self, genes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return weight and offset (..., dim) of `genes` (...); the offset is `None` if the token has none.

        A channel adds `value * weight + offset` to its token.
        """
        rows = self.gene_in[genes]
        return (self.value_in.expand_as(rows), rows) if self.config.token == "additive" else (rows, None)

    @staticmethod
    def token_scale(n_channels: Tensor) -> Tensor:
        """Return the factor that turns a sum over `n_channels` visible channels into a token."""
        return REFERENCE_CHANNELS**0.5 / n_channels.clamp(min=1)

    def tokens(self, expression: Tensor, genes: Tensor, shown: Tensor) -> Tensor:
        """Return tokens (batch, sites, dim) of the `shown` entries of `expression` (batch, sites, channels)."""
        weight, offset = self.input_layer(genes)
        share = shown.to(expression.dtype)
        total = (expression * share) @ weight
        if offset is not None:
            total = total + share @ offset
        return total * self.token_scale(share.sum(-1, keepdim=True))

    def encode(self, tokens: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Return the encoder's output (batch, sites, dim), zero for sites that are not `valid`."""
        return self.encoder(tokens, positions, valid)

    def decode(self, encoded: Tensor, positions: Tensor, present: Tensor, visible: Tensor) -> Tensor:
        """Return decoder states (batch, sites, dim) of present sites; those not `visible` enter as mask tokens."""
        states = torch.where(visible[..., None], self.bridge(encoded), self.mask_token.to(encoded.dtype))
        return self.decoder(states, positions, present)

    def predict(self, states: Tensor, genes: Tensor) -> Tensor:
        """Return predicted values (batch, sites, channels) of `genes` (batch, channels) from decoder states."""
        return torch.baddbmm(self.gene_bias[genes][:, None], states, self.gene_out[genes].transpose(1, 2))

    @torch.no_grad()
    def judge_by_programs(self, loadings: Tensor, variance: Tensor) -> None:
        """Set the gene programs whose error is part of the loss, as for `start_from_programs`."""
        count = min(self.programs.shape[1], loadings.shape[1])
        self.programs.zero_()[:, :count] = loadings[:, :count]
        self.program_variance.fill_(1)[:count] = variance[:count]

    @torch.no_grad()
    def start_from_programs(self, loadings: Tensor, variance: Tensor) -> None:
        """Start the gene tables from principal gene programs of the training slides.

        Their `loadings`, float32 (n_genes, k), are orthonormal columns sorted by decreasing `variance` of the scores
        along each, float32 (k,).
        """
        n_genes, dim = self.gene_in.shape
        k = min(loadings.shape[1], dim // 2)
        scale = n_genes / (REFERENCE_CHANNELS**0.5 * (variance[:k] + n_genes / REFERENCE_CHANNELS).sqrt())
        self.gene_in.mul_(0.1)
        self.gene_in[:, :k] = loadings[:, :k] * scale
        self.gene_out.mul_(0.1)
        self.gene_out[:, :k] = loadings[:, :k] * variance[:k].sqrt()

    @torch.no_grad()
    def start_from(self, other: GeneMAE, rows: Tensor) -> None:
        """Start from a trained network of the same configuration.

        `rows`, int64 (n_genes,), are the rows of all genes in the other network's tables, -1 for genes that it lacks:
        these add nothing to tokens and are predicted as their mean until training changes that. The other network's
        gene programs and labels are left out, since they belong to other slides.
        """
        mine = self.state_dict()
        known = rows >= 0
        for name, value in other.state_dict().items():
            if name in ("gene_in", "gene_out", "gene_bias"):
                mine[name].zero_()[known] = value[rows[known]]
            elif not name.startswith(("program", "label")):
                mine[name].copy_(value)

    def without_genes(self) -> GeneMAE:
        """Return a copy without the gene tables, which turns tokens into states."""
        light = GeneMAE(self.config, 0)
        light.start_from(self, torch.zeros(0, dtype=torch.int64))
        return light.eval()

    def program_error(self, residual: Tensor, genes: Tensor, count: Tensor) -> Tensor:
        """Return the mean squared error of gene program scores, from `count` (batch, sites, 1) judged entries.

        Single genes are mostly noise, which averages out along a program. Squared errors are divided by the variance of
        a score from that many genes, signal and sampling noise together. The `residual` of all other entries is zero.
        """
        share = count.clamp(min=1) / len(self.programs)
        score = residual @ self.programs[genes] / share
        error = (score.pow(2) / (self.program_variance + 1 / share)).mean(-1)
        seen = count[..., 0] > 0
        return error.masked_fill(~seen, 0).sum() / seen.sum().clamp(min=1)

    def label_error(self, states: Tensor, labels: Tensor, choice: Tensor) -> Tensor:
        """Return the cross-entropy of `labels` (batch, sites), -1 for none, among each window's `choice` of labels."""
        scores = self.label_head(states).float().masked_fill(~choice[:, None], -torch.inf)
        known = labels >= 0
        return F.cross_entropy(scores[known], labels[known], reduction="sum") / known.sum().clamp(min=1)

    def states(self, batch: dict[str, Tensor], shown: Tensor) -> Tensor:
        """Return decoder states (batch, sites, dim) at all present sites from the entries that are `shown`."""
        present, positions, visible = batch["present"], batch["positions"], shown.any(-1)
        tokens = self.tokens(batch["expression"], batch["genes"], shown)
        return self.decode(self.encode(tokens, positions, visible), positions, present, visible)

    def forward(self, batch: dict[str, Tensor], hidden: Tensor, anchor: GeneMAE | None = None) -> Output:
        """Predict the `hidden` entries (batch, sites, channels) of a batch from the rest.

        The loss is the mean squared error over hidden entries of present sites and real channels, plus, with the
        weights in the configuration, the error in gene programs, the cross-entropy of expert labels, and the squared
        distance to the states of an `anchor` from which nothing is hidden.
        """
        present, genes = batch["present"], batch["genes"]
        real = present[..., None] & batch["channel_mask"][:, None, :]
        states = self.states(batch, real & ~hidden)
        prediction = self.predict(states, genes)
        judged = hidden & real
        share = judged.float()
        residual = (prediction - batch["expression"]).float() * share
        count = share.sum(-1, keepdim=True)
        loss = residual.pow(2).sum() / count.sum().clamp(min=1)
        if self.config.program_loss:
            loss = loss + self.config.program_loss * self.program_error(residual, genes, count)
        if self.n_labels and self.config.label_loss:
            loss = loss + self.config.label_loss * self.label_error(states, batch["labels"], batch["choice"])
        if anchor is not None:
            with torch.no_grad():
                target = anchor.states(batch, real)
            loss = loss + self.config.anchor_loss * (states - target)[present].float().pow(2).mean()
        return Output(loss=loss, prediction=prediction, hidden=judged)
