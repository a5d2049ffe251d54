"""Colours of domains and of other categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._input._checks import check_obs_key

if TYPE_CHECKING:
    from anndata import AnnData

# The colours of Okabe and Ito, and the muted ones of Paul Tol, can be told apart with any colour vision.
PALETTE = (
    "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #F0E442 #882255 #117733 #999933 #332288 #44AA99 #AA4499 #661100"
).split()
UNLABELLED = "#BBBBBB"
MOST_DOMAINS = 100  # that are drawn
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green and blue
DARKEST, LIGHTEST = 22.0, 90.0


@dataclass(frozen=True)
class Categories:
    """A column of categories as it is drawn."""

    codes: np.ndarray  # of every observation, int (n_obs,), -1 if it has none
    names: list[str]
    colours: list[str]  # one per name


def domain_colours(n_domains: int) -> list[str]:
    """Return one colour per domain, from scanpy's larger palettes if there are more domains than colours here."""
    if n_domains <= len(PALETTE):
        return list(PALETTE[:n_domains])
    from scanpy.plotting import palettes

    larger = palettes.default_28 if n_domains <= len(palettes.default_28) else palettes.default_102
    return [larger[i % len(larger)] for i in range(n_domains)]


def read_categories(table: AnnData, key: str, *, argument: str = "key", advice: str = "") -> Categories:
    """Return a column of `.obs` with its colours: those in `.uns`, if there are enough, else those of `tl.domains`.

    A missing column is a `KeyError`, a gene, decimal numbers or more than 100 categories a `ValueError`.
    """
    drawn = f'scanpy, `sc.pl.embedding(adata, "{_keys.SPATIAL}", color={key!r})`, or squidpy'
    if key not in table.obs and key in table.var_names:
        msg = f"Expected a column of categories in `{argument}`, found the gene {key!r}. Draw genes with {drawn}."
        raise ValueError(msg)
    check_obs_key(table, key, argument=argument, advice=advice)
    column = table.obs[key]
    if column.dtype.kind == "f" or column.nunique() > MOST_DOMAINS:
        found = column.dtype if column.dtype.kind == "f" else f"{column.nunique():,} different values"
        msg = f"Expected categories in `adata.obs[{key!r}]`, found {found}. Draw numbers with {drawn}."
        raise ValueError(msg)
    labels = pd.Categorical(column)
    recorded = [str(colour) for colour in table.uns.get(f"{key}_colors", [])]
    names = [str(name) for name in labels.categories]
    return Categories(labels.codes, names, recorded if len(recorded) >= len(names) else domain_colours(len(names)))


def unused_colours(count: int, used: list[str]) -> list[str]:
    """Return `count` further colours of the palette that `domain_colours` would take, which are not among `used`."""
    from matplotlib.colors import to_hex

    taken = {to_hex(colour) for colour in used}
    for n_domains in (len(PALETTE), MOST_DOMAINS):
        free = [colour for colour in domain_colours(n_domains) if to_hex(colour) not in taken]
        if len(free) >= count:
            break
    return [free[i % len(free)] for i in range(count)]


def shade(colour: str, lightness: float) -> str:
    """Return a colour mixed with white or black so that it has this lightness (L* of CIELAB, 0 to 100).

    Differences in lightness are seen with any colour vision, and the hue stays.
    """
    from matplotlib.colors import to_hex

    linear = _linear(colour)
    wanted, now = ((lightness + 16) / 116) ** 3, float(LUMINANCE @ linear)
    linear = linear * wanted / now if wanted <= now else linear + (wanted - now) / (1 - now) * (1 - linear)
    found = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = np.clip(found, 0, 1).tolist()
    return to_hex((red, green, blue))


def is_dark(colour: str) -> bool:
    """Tell whether white is easier to read on a colour than black (WCAG 2, contrast ratio)."""
    return float(LUMINANCE @ _linear(colour)) < 0.179


def _linear(colour: str) -> np.ndarray:
    """Return linear red, green and blue of an sRGB colour, 0 to 1."""
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
