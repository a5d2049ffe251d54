import json

import anndata
import numpy as np
import pytest

from stimg._image._slide_image import open_image
from stimg._slide._geometry import spacing

PITCH_UM = {"her2st": 200.0, "mob_st": 200.0, "mousebrain_2k_HE": 150.0, "mouse_colon_visium": 100.0}


@pytest.fixture(scope="session")
def real_sections(real_data_dir):
    """All real sections with a large H&E: name, image, centres of the spots in micrometres, pitch."""
    found = []
    for path in sorted(real_data_dir.glob("*/*_HE.json")):
        known, pitch_um = json.loads(path.read_text()), PITCH_UM[path.parent.name]
        slide = anndata.read_h5ad(path.with_name(path.name.replace("_HE.json", ".h5ad")), backed="r")
        xy = np.asarray(slide.obsm["spatial"], dtype=float) * known["scale_vs_obsm_spatial"]
        mpp = pitch_um / spacing(xy)
        found.append((path.stem, open_image(path.with_suffix(".jpg"), mpp, path.stem), xy[:, ::-1] * mpp, pitch_um))
    assert len(found) == 14
    return found
