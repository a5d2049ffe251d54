"""Lay slides on lattices, weigh genes, crop patches of expression and of H&E."""

from typing import TYPE_CHECKING, Any

import lazy_loader as _lazy

_functions, _, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_image_grid": ["image_grid"],
        "_select_genes": ["select_genes"],
        "_to_image_patches": ["to_image_patches"],
        "_to_lattice": ["to_lattice"],
        "_to_patches": ["to_patches"],
    },
)
_CLASSES = ("ImagePatchDataset", "PatchDataset")
__all__ = sorted([*_CLASSES, *__all__])

if TYPE_CHECKING:
    from stimg._data import ImagePatchDataset as ImagePatchDataset
    from stimg._data import PatchDataset as PatchDataset
    from stimg.pp._image_grid import image_grid as image_grid
    from stimg.pp._select_genes import select_genes as select_genes
    from stimg.pp._to_image_patches import to_image_patches as to_image_patches
    from stimg.pp._to_lattice import to_lattice as to_lattice
    from stimg.pp._to_patches import to_patches as to_patches


def __getattr__(name: str) -> Any:
    if name in _CLASSES:  # what the functions return is made of torch, and lives with the other data sets
        from stimg import _data

        return getattr(_data, name)
    return _functions(name)


def __dir__() -> list[str]:
    return __all__
