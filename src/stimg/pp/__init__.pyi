from ._image_grid import image_grid as image_grid
from ._select_genes import select_genes as select_genes
from ._to_image_patches import ImagePatchDataset as ImagePatchDataset
from ._to_image_patches import to_image_patches as to_image_patches
from ._to_lattice import to_lattice as to_lattice
from ._to_patches import PatchDataset as PatchDataset
from ._to_patches import to_patches as to_patches
