from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stimg.nn import Config, draw_hidden

CONFIG = Config(site_ratio=0.4, gene_ratio=0.5)


def draw(mask, batch=64, size=16, channels=20, seed=0, present=None, **changes):
    present = torch.ones(batch, size**2, dtype=torch.bool) if present is None else present
    channel_mask = torch.ones(len(present), channels, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    return draw_hidden(present, channel_mask, replace(CONFIG, mask=mask, **changes), generator)


@pytest.mark.parametrize(("mask", "share"), [("genes", 0.5), ("sites", 0.4), ("regions", 0.4), ("mixture", 0.7)])
def test_share_hidden_is_as_asked(mask, share):
    assert draw(mask).float().mean().item() == pytest.approx(share, abs=0.03)


def test_genes_are_hidden_inside_spots_and_sites_whole():
    assert not draw("genes").all(-1).any()
    for mask in ("sites", "regions"):
        hidden = draw(mask)
        assert torch.equal(hidden.all(-1), hidden.any(-1))


def test_regions_are_squares():
    hidden = draw("regions", batch=200).all(-1).view(-1, 16, 16)
    inside = hidden[:, 1:-1, 1:-1]
    alone = inside & ~(hidden[:, :-2, 1:-1] | hidden[:, 2:, 1:-1] | hidden[:, 1:-1, :-2] | hidden[:, 1:-1, 2:])
    assert not alone.any()


def test_empty_sites_and_padding_are_never_hidden():
    present = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    hidden = draw("mixture", present=present)
    assert not hidden[~present].any()
    channel_mask = torch.arange(20)[None].expand(16, -1) < 12
    hidden = draw_hidden(present, channel_mask, CONFIG, torch.Generator().manual_seed(0))
    assert not hidden[..., 12:].any()


def test_some_site_always_stays_visible():
    present = torch.zeros(500, 16, dtype=torch.bool)
    present[:, 5] = True
    hidden = draw("sites", present=present, site_ratio=0.9)
    assert not hidden.all(-1).any()


@pytest.mark.parametrize("mask", ["genes", "mixture"])
def test_something_stays_visible_of_few_channels(mask):
    present = torch.rand(500, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    channel_mask = torch.tensor([[True, True, False]]).expand(500, -1)
    config = replace(CONFIG, mask=mask, gene_ratio=0.8)
    hidden = draw_hidden(present, channel_mask, config, torch.Generator().manual_seed(1))
    real = present[..., None] & channel_mask[:, None]
    shown = (real & ~hidden).flatten(1).any(1)
    assert torch.equal(shown, present.any(1))
    assert not hidden[~real].any()


def test_same_seed_same_mask():
    assert torch.equal(draw("mixture", seed=3), draw("mixture", seed=3))
    assert not torch.equal(draw("mixture", seed=3), draw("mixture", seed=4))
