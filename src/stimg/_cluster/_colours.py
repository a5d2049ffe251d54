"""Colours of domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData

# The colours of Okabe and Ito, and the muted ones of Paul Tol, can be told apart with any colour vision.
PALETTE = (
    "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #F0E442 #882255 #117733 #999933 #332288 #44AA99 #AA4499 #661100"
).split()
UNLABELLED = "#BBBBBB"
MOST_DOMAINS = 100  # that are drawn


def domain_colours(n_domains: int) -> list[str]:
    """Return one colour per domain, from scanpy's larger palettes if there are more domains than colours here."""
    if n_domains <= len(PALETTE):
        return list(PALETTE[:n_domains])
    from scanpy.plotting import palettes

    larger = palettes.default_28 if n_domains <= len(palettes.default_28) else palettes.default_102
    return [larger[i % len(larger)] for i in range(n_domains)]


def colours_of(table: AnnData, key: str, count: int) -> list[str]:
    """Return the colours recorded for the key if there are enough, else those of `tl.domains`."""
    recorded = [str(colour) for colour in table.uns.get(f"{key}_colors", [])]
    return recorded if len(recorded) >= count else domain_colours(count)
