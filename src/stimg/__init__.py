"""Spatial transcriptomics slides as images: pretraining, embeddings and tissue domains.

Submodules load on first use; importing `stimg` imports neither torch nor the scverse packages.
"""

from __future__ import annotations

import logging

import lazy_loader

from stimg._settings import settings as settings

__version__ = "0.1.0"

logging.getLogger("stimg").addHandler(logging.NullHandler())

__getattr__, __dir__, _lazy = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_lazy, "__version__"]
