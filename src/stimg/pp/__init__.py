"""Lay slides on lattices, weigh genes, crop patches of expression and of H&E."""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_image_grid": ["image_grid"],
        "_image_patch_dataset": ["ImagePatchDataset"],
        "_patch_dataset": ["PatchDataset"],
        "_select_genes": ["select_genes"],
        "_to_image_patches": ["to_image_patches"],
        "_to_lattice": ["to_lattice"],
        "_to_patches": ["to_patches"],
    },
)

if TYPE_CHECKING:
    from stimg.pp._image_grid import image_grid as image_grid
    from stimg.pp._image_patch_dataset import ImagePatchDataset as ImagePatchDataset
    from stimg.pp._patch_dataset import PatchDataset as PatchDataset
    from stimg.pp._select_genes import select_genes as select_genes
    from stimg.pp._to_image_patches import to_image_patches as to_image_patches
    from stimg.pp._to_lattice import to_lattice as to_lattice
    from stimg.pp._to_patches import to_patches as to_patches
