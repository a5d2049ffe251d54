from ._image_patches import ImagePatchDataset as ImagePatchDataset
from ._patches import PatchDataset as PatchDataset
