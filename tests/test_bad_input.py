"""What every step refuses: the error names the argument or key, and the user's object stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from conftest import prepared

import stimg


def state(adata):
    return (
        {key: np.asarray(value).tobytes() for key, value in adata.obsm.items()},
        list(adata.obs),
        list(adata.var),
        list(adata.layers),
        repr(adata.uns),
    )


def lay(slide, _):
    stimg.pp.to_lattice(slide)


def weigh(slide, _):
    stimg.pp.select_genes(slide)


def crop(slide, _):
    stimg.pp.to_patches(slide, size=8)


def embed(slide, trained):
    stimg.tl.embed(slide, trained)


def annotate(slide, trained):
    reference = prepared(seed=1)
    before = state(reference)
    try:
        stimg.tl.annotate([prepared(), slide], trained, reference=reference, label_key="domain")
    finally:
        assert state(reference) == before


def reconstruct(slide, trained):
    stimg.tl.reconstruct(slide, trained)


@pytest.mark.parametrize("step", [weigh, crop, embed, annotate, reconstruct])
@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN"), (-1.0, "negative"), ("log", "scale='log'")], ids=["nan", "negative", "log"]
)
def test_bad_expression(make_slide, trained, step, value, message):
    slide = make_slide()
    if value == "log":
        sc.pp.normalize_total(slide, target_sum=1e4)
        sc.pp.log1p(slide)
        slide.uns.pop("log1p")
    else:
        slide.X.data[3] = value
    before = state(slide)
    with pytest.raises(ValueError, match=message):
        step(slide, trained)
    assert state(slide) == before


@pytest.mark.parametrize("step", [weigh, crop, embed, annotate, reconstruct])
def test_duplicated_genes(make_slide, trained, step):
    slide = make_slide()
    slide.var_names = [*slide.var_names[:-1], slide.var_names[0]]
    before = state(slide)
    with pytest.raises(ValueError, match="var_names_make_unique"):
        step(slide, trained)
    assert state(slide) == before


@pytest.mark.parametrize("step", [lay, weigh, crop, embed, annotate, reconstruct])
def test_empty_slides(make_slide, trained, step):
    slide = make_slide()
    with pytest.raises(ValueError, match="observations and genes"):
        step(slide[:0].copy(), trained)


def test_all_zero_spots_and_genes_are_carried_along(make_slide, trained):
    slide = stimg.datasets.synthetic(n_obs=300, n_genes=60)
    counts = slide.X.toarray()
    counts[7] = 0
    counts[:, 5] = 0
    slide.X = counts
    stimg.pp.to_lattice(slide)
    stimg.pp.select_genes(slide, n_genes=40)
    assert slide.var["stimg_weight"].iloc[5] == 0
    model = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8, n_channels=24), trained.config, max_steps=2)
    stimg.tl.embed(slide, model)
    stimg.tl.reconstruct(slide, model)
    stimg.tl.annotate(slide, model, reference=slide, label_key="domain")
    assert np.isfinite(slide.obsm["X_stimg"]).all()
    assert slide.obs["stimg_label_confidence"].between(0, 1).all()


def test_spatialdata_goes_the_whole_way(make_slide, trained):
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import TableModel

    sdata = spatialdata.SpatialData(tables={"table": TableModel.parse(stimg.datasets.synthetic(n_obs=300, n_genes=60))})
    stimg.pp.to_lattice(sdata)
    stimg.pp.select_genes(sdata, n_genes=40)
    stimg.pp.to_patches(sdata, size=8, n_channels=16)
    stimg.tl.embed(sdata, trained)
    stimg.tl.domains(sdata, 3)
    stimg.tl.annotate(sdata, trained, reference=sdata, label_key="stimg_domain")
    assert sdata["table"].obs["stimg_domain"].nunique() == 3
    with pytest.raises(KeyError, match="table_key"):
        stimg.tl.embed(sdata, trained, table_key="none")


@pytest.mark.real
def test_real_slides_go_the_whole_way(real_data_dir, trained):
    import anndata

    slide = anndata.read_h5ad(real_data_dir / "mob_st" / "MOB_rep11.h5ad")
    stimg.pp.to_lattice(slide)
    stimg.pp.select_genes(slide, n_genes=500)
    patches = stimg.pp.to_patches(slide, size=8, n_channels=128)
    model = stimg.tl.pretrain(patches, trained.config, max_epochs=3)
    stimg.tl.embed(slide, model)
    stimg.tl.domains(slide, 5)
    scores = stimg.metrics.domain_scores(slide.obs["domain"], slide.obs["stimg_domain"])
    assert scores["ari"] > 0.1
