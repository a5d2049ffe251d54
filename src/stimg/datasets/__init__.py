"""Synthetic slides, and public ones by name."""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_collection": ["Collection"],
        "_dlpfc": ["dlpfc"],
        "_her2st": ["her2st"],
        "_hest": ["hest"],
        "_stimage_1k4m": ["stimage_1k4m"],
        "_synthetic": ["synthetic"],
        "_synthetic_1k4m": ["synthetic_1k4m"],
        "_synthetic_histology": ["synthetic_histology"],
    },
)

if TYPE_CHECKING:
    from stimg.datasets._collection import Collection as Collection
    from stimg.datasets._dlpfc import dlpfc as dlpfc
    from stimg.datasets._her2st import her2st as her2st
    from stimg.datasets._hest import hest as hest
    from stimg.datasets._stimage_1k4m import stimage_1k4m as stimage_1k4m
    from stimg.datasets._synthetic import synthetic as synthetic
    from stimg.datasets._synthetic_1k4m import synthetic_1k4m as synthetic_1k4m
    from stimg.datasets._synthetic_histology import synthetic_histology as synthetic_histology
