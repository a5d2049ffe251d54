"""Torch data sets: windows of expression, crops of H&E, single spots."""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_image_patches": ["ImagePatchDataset"],
        "_patches": ["PatchDataset"],
    },
)

if TYPE_CHECKING:
    from stimg._data._image_patches import ImagePatchDataset as ImagePatchDataset
    from stimg._data._patches import PatchDataset as PatchDataset
