"""Bins of Visium HD as `spatialdata_io.visium_hd` reads them from the files of Space Ranger."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from scipy import sparse

import stimg

MPP = 0.5


def write_space_ranger(root: Path, slides: dict[int, AnnData]) -> None:
    """Write slides of bins, one for each size in micrometres, where Space Ranger 3 puts them."""
    for um, slide in slides.items():
        folder = root / "binned_outputs" / f"square_{um:03d}um"
        (folder / "spatial").mkdir(parents=True)
        array = slide.obs[["array_row", "array_col"]].to_numpy()
        barcodes = [f"s_{um:03d}um_{row:05d}_{col:05d}-1" for row, col in array]
        counts = sparse.csc_matrix(slide.X.T)
        with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
            matrix = file.create_group("matrix")
            matrix["barcodes"] = np.array(barcodes, "S")
            matrix["data"], matrix["shape"] = counts.data.astype(np.int32), np.array(counts.shape, np.int32)
            matrix["indices"], matrix["indptr"] = counts.indices.astype(np.int64), counts.indptr.astype(np.int64)
            features = matrix.create_group("features")
            features["id"] = np.array([f"ENSG{i:011d}" for i in range(slide.n_vars)], "S")
            features["name"] = np.array(slide.var_names.tolist(), "S")
            features["feature_type"] = np.array(["Gene Expression"] * slide.n_vars, "S")
            features["genome"] = np.array(["GRCh38"] * slide.n_vars, "S")
        pixels = array * um / MPP
        places = {"barcode": barcodes, "in_tissue": 1, "array_row": array[:, 0], "array_col": array[:, 1]}
        places |= {"pxl_row_in_fullres": pixels[:, 0], "pxl_col_in_fullres": pixels[:, 1]}
        pd.DataFrame(places).to_parquet(folder / "spatial" / "tissue_positions.parquet")
        factors = {"spot_diameter_fullres": um / MPP, "bin_size_um": float(um), "microns_per_pixel": MPP}
        factors |= {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.01}
        (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        for name in ("hires", "lowres"):
            picture = Image.fromarray(np.full((16, 16, 3), 200, np.uint8))
            picture.save(folder / "spatial" / f"tissue_{name}_image.png")
    with h5py.File(root / "mouse_feature_slice.h5", "w") as file:
        layout = json.dumps({"file_format": "1.0"})
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": layout, "transform_matrices": {}})


@pytest.mark.filterwarnings("ignore")
def test_bins_of_two_sizes_from_space_ranger_to_domains(tmp_path, trained):
    from spatialdata_io import visium_hd

    slides = {um: stimg.datasets.synthetic("visium_hd", n_obs=n, n_genes=60, seed=0) for um, n in ((8, 400), (2, 900))}
    write_space_ranger(tmp_path, slides)
    sdata = visium_hd(tmp_path, load_segmentations_only=False)
    for um, slide in slides.items():
        key = f"square_{um:03d}um"
        stimg.pp.to_lattice(sdata, "visium_hd", table_key=key)
        stimg.pp.select_genes(sdata, 40, table_key=key)
        stimg.tl.embed(sdata, trained, table_key=key)
        stimg.tl.domains(sdata, 5, table_key=key)
        table = sdata[key]
        assert (table.X != slide.X).nnz == 0
        assert table.obs["stimg_domain"].nunique() == 5
        info = table.uns["stimg"]["lattice"]
        assert (info["kind"], info["pitch_um"]) == ("square", um)
        steps = table.obsm["lattice"] - slide.obs[["array_row", "array_col"]].to_numpy()
        assert (steps == steps[0]).all()
        np.testing.assert_allclose(info["pitch"], um / MPP)
    with pytest.raises(ValueError, match="table_key"):
        stimg.tl.embed(sdata, trained)
