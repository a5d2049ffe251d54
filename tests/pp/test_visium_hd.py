"""Bins of Visium HD as `spatialdata_io.visium_hd` reads them from the files of Space Ranger."""

from __future__ import annotations

import layouts
import numpy as np
import pytest

import stimg


@pytest.mark.filterwarnings("ignore")
def test_bins_of_two_sizes_from_space_ranger_to_domains(tmp_path, trained):
    from spatialdata_io import visium_hd

    slides = {um: stimg.datasets.synthetic("visium_hd", n_obs=n, n_genes=60, seed=0) for um, n in ((8, 400), (2, 900))}
    for slide in slides.values():
        slide.var["gene_ids"] = slide.var_names
    layouts.write_visium_hd(tmp_path, slides)
    sdata = visium_hd(tmp_path, dataset_id="mouse", load_segmentations_only=False)
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
        np.testing.assert_allclose(info["pitch"], um / layouts.MPP)
    with pytest.raises(ValueError, match="table_key"):
        stimg.tl.embed(sdata, trained)
