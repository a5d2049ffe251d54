"""Losses of training on H&E."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(images: Tensor, genes: Tensor, scale: Tensor, alike: Tensor) -> Tensor:
    """Symmetric InfoNCE: each image has to find its expression in the batch, and each expression its image.

    `images` and `genes` are unit vectors (n, dim), `scale` is one over the temperature. Pairs that are `alike`, bool
    (n, n), do not count as negatives; its diagonal is ignored.
    """
    alike = alike & ~torch.eye(len(images), dtype=torch.bool, device=images.device)
    scores = (scale * images @ genes.T).masked_fill(alike, -torch.inf)
    truth = torch.arange(len(images), device=images.device)
    return 0.5 * (F.cross_entropy(scores, truth) + F.cross_entropy(scores.T, truth))


def negative_binomial_loss(means: Tensor, counts: Tensor, dispersion: Tensor) -> Tensor:
    """Negative log likelihood of counts (n, n_genes) with these means and one dispersion per gene (n_genes,)."""
    size = 1 / dispersion
    means = means.clamp(min=1e-4)
    log_sum = torch.log(size + means)
    chance = torch.lgamma(counts + size) - torch.lgamma(size) - torch.lgamma(counts + 1)
    return -(chance + size * (torch.log(size) - log_sum) + counts * (torch.log(means) - log_sum))


def uncorrelated(predicted: Tensor, truth: Tensor) -> Tensor:
    """One minus the Pearson correlation over the batch, averaged over genes (PixNet); NaN in `truth` is left out.

    It is zero for fewer than three spots; genes that are constant in the batch do not count.
    """
    if len(truth) < 3:
        return predicted.sum() * 0
    known = torch.isfinite(truth)
    truth = torch.where(known, truth, 0.0)
    number = known.sum(0).clamp(min=1)
    centred = [known * (x - (x * known).sum(0) / number) for x in (predicted, truth)]
    product = (centred[0] * centred[1]).sum(0)
    norms = [x.square().sum(0) for x in centred]
    judged = (known.sum(0) > 2) & (norms[1] > 1e-8)
    pearson = product / (norms[0] * norms[1] + 1e-8).sqrt()
    return ((1 - pearson) * judged).sum() / judged.sum().clamp(min=1)
