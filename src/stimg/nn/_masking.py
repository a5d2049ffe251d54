"""The entries of a batch of patches that are hidden from the encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from stimg.nn._config import Config

REGION_SIDES = (2, 4)


def draw_hidden(
    present: Tensor, channel_mask: Tensor, config: Config, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the entries that training hides.

    Parameters
    ----------
    present
        bool, shape (batch, sites): the site holds an observation. `sites` is a square number (a square window).
    channel_mask
        bool, shape (batch, channels): the channel is a gene, not padding.
    config
        For its `mask`, `site_ratio` and `gene_ratio`.
    generator
        Source of randomness, on the CPU, so that every device hides the same entries.

    Returns
    -------
    Tensor
        bool, shape (batch, sites, channels). A site whose channels are all hidden is not shown to the encoder. At
        least one site of every window stays visible: if chance hides all of them, the first site outside the hidden
        regions is shown whole.
    """
    real = present[..., None] & channel_mask[:, None, :]
    open_sites, hidden = present, torch.zeros_like(real)
    if config.mask != "genes":
        closed = _draw_sites(present, config.site_ratio, 1 if config.mask == "sites" else None, generator)
        open_sites, hidden = present & ~closed, real & closed[..., None]
    if config.mask in ("genes", "mixture"):
        noise = torch.rand(real.shape, generator=generator).to(present.device)
        hidden |= real & (noise < config.gene_ratio)
    blind = ~(real & ~hidden).flatten(1).any(1)
    hidden[blind, open_sites.int().argmax(1)[blind]] = False
    return hidden


def _draw_sites(present: Tensor, ratio: float, side: int | None, generator: torch.Generator | None) -> Tensor:
    """Hide about `ratio` of a window's sites in squares of `side` sites (`None`: drawn per window)."""
    batch, sites = present.shape
    size = round(sites**0.5)
    sides = [s for s in ((side,) if side else REGION_SIDES) if s == 1 or 2 * s <= size] or [1]
    choice = torch.randint(len(sides), (batch,), generator=generator)
    hidden = torch.zeros(batch, size, size, dtype=torch.bool)
    for k, length in enumerate(sides):
        blocks = -(-size // length) + 1
        noise = torch.rand(batch, blocks, blocks, generator=generator)
        mask = (noise < ratio).repeat_interleave(length, 1).repeat_interleave(length, 2)
        shift = torch.randint(length, (2,), generator=generator).tolist()
        mask = mask[:, shift[0] : shift[0] + size, shift[1] : shift[1] + size]
        hidden[choice == k] = mask[choice == k]
    flat = hidden.reshape(batch, sites).to(present.device)
    return flat & (present & ~flat).any(1, keepdim=True)
