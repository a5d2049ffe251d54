"""Spatial transcriptomics slides as images: pretraining, embeddings and tissue domains.

Submodules load on first use; importing `stimg` imports neither torch nor the scverse packages.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import lazy_loader

from stimg._settings import settings

if TYPE_CHECKING:
    from stimg import datasets, metrics, models, nn, pl, pp, tl

__version__ = "0.1.0"

logging.getLogger("stimg").addHandler(logging.NullHandler())

_submodules = ["datasets", "metrics", "models", "nn", "pl", "pp", "tl"]
__getattr__, _lazy_dir, _ = lazy_loader.attach(__name__, submodules=_submodules)

__all__ = ["__version__", "datasets", "metrics", "models", "nn", "pl", "pp", "settings", "tl"]


def __dir__() -> list[str]:
    return sorted({*__all__, *_lazy_dir()})
