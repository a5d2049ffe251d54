from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_info

import stimg
from stimg._apply._components import local_components, neighbour_means
from stimg._apply._tokens import match_slides


def test_embedding_is_written_deterministic_and_invariant_to_row_order(make_slide, trained):
    slide = make_slide()
    stimg.tl.embed(slide, trained)
    first = slide.obsm["X_stimg"]
    assert first.shape == (300, 32)
    assert first.dtype == np.float32
    assert slide.uns["stimg"]["embed"]["n_genes_shared"] == 40
    stimg.tl.embed(slide, trained, key_added="again", batch_size=1)
    np.testing.assert_allclose(slide.obsm["again"], first, rtol=1e-4, atol=1e-5)
    stimg.tl.embed(slide, trained)
    np.testing.assert_array_equal(slide.obsm["X_stimg"], first)
    order = np.random.default_rng(0).permutation(slide.n_obs)
    shuffled = make_slide()[order].copy()
    stimg.tl.embed(shuffled, trained)
    np.testing.assert_allclose(shuffled.obsm["X_stimg"], first[order], rtol=1e-4, atol=1e-5)


def test_a_saved_model_gives_the_same_embedding(make_slide, trained, tmp_path):
    slide = make_slide()
    trained.save(tmp_path / "m.safetensors")
    stimg.tl.embed(slide, trained)
    expected = slide.obsm["X_stimg"]
    stimg.tl.embed(slide, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(slide.obsm["X_stimg"], expected)
    assert len(slide.uns["stimg"]["embed"]["sha256"]) == 64


def test_a_model_with_the_paper_s_tokens_embeds(make_slide):
    slide = make_slide()
    config = replace(stimg.nn.get_config("paper"), dim=32, encoder_layers=1, decoder_layers=1, heads=2)
    model = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8, n_channels=24), config, max_steps=2)
    stimg.tl.embed(slide, model)
    assert np.isfinite(slide.obsm["X_stimg"]).all()
    assert slide.obsm["X_stimg"].std() > 0


def test_cells_on_one_site_share_their_row(make_slide, trained):
    cells = make_slide("free")
    stimg.tl.embed(cells, trained)
    lattice, inverse = np.unique(cells.obsm["lattice"], axis=0, return_inverse=True)
    shared = np.flatnonzero(np.bincount(inverse.ravel()) > 1)[0]
    rows = cells.obsm["X_stimg"][inverse.ravel() == shared]
    assert (rows == rows[0]).all()


def test_expression_may_be_dense_csc_or_integer(make_slide, trained):
    slide = make_slide()
    stimg.tl.embed(slide, trained)
    for convert in (lambda x: x.toarray(), lambda x: x.tocsc(), lambda x: x.astype(np.int32)):
        other = make_slide()
        other.X = convert(other.X)
        before = other.X.copy()
        stimg.tl.embed(other, trained)
        np.testing.assert_allclose(other.obsm["X_stimg"], slide.obsm["X_stimg"], rtol=1e-4, atol=1e-5)
        assert type(other.X) is type(before)
        assert (other.X != before).sum() == 0


def test_log_values_give_the_same_embedding(make_slide, trained):
    import scanpy as sc

    slide, logged = make_slide(), make_slide()
    stimg.tl.embed(slide, trained)
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    stimg.tl.embed(logged, trained, scale="log")
    np.testing.assert_allclose(logged.obsm["X_stimg"], slide.obsm["X_stimg"], rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="scale='log'"):
        stimg.tl.embed(logged, trained, scale="counts")


def test_libraries_are_embedded_one_by_one(make_slide, trained):
    import anndata

    parts = [stimg.datasets.synthetic(n_obs=300, n_genes=60, seed=s) for s in (0, 1)]
    joined = anndata.concat(parts, label="section", keys=["a", "b"], index_unique="-")
    stimg.pp.to_lattice(joined, library_key="section")
    stimg.tl.embed(joined, trained)
    stimg.pp.to_lattice(parts[1])
    stimg.tl.embed(parts[1], trained)
    np.testing.assert_allclose(joined.obsm["X_stimg"][300:], parts[1].obsm["X_stimg"], rtol=1e-4, atol=1e-5)


def test_copies_and_views(make_slide, trained):
    slide = make_slide()
    result = stimg.tl.embed(slide, trained, copy=True)
    assert "X_stimg" in result.obsm
    assert "X_stimg" not in slide.obsm
    view = slide[:200]
    stimg.tl.embed(view, trained)
    assert "X_stimg" in view.obsm
    assert "X_stimg" not in slide.obsm


def test_of_more_genes_than_in_training_the_most_variable_are_shown(make_slide, trained):
    slide = make_slide()
    few = stimg.models.Model(trained.network, trained.genes, {**trained.card, "genes_per_slide": 20})
    stimg.tl.embed(slide, few)
    array = stimg.pp.to_patches(slide, size=8, n_channels=40).slides[0]
    kept = array.genes[np.argsort(-array.std)[:20]]
    fewer = slide[:, slide.var_names.isin(kept)].copy()
    counts = slide.X.toarray()
    logged = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    fewer.layers["log"] = logged[:, slide.var_names.isin(kept)]
    stimg.tl.embed(fewer, few, layer="log", scale="log", key_added="fewer")
    np.testing.assert_allclose(fewer.obsm["fewer"], slide.obsm["X_stimg"], atol=1e-3)


def test_bad_input_is_refused_and_leaves_the_slide_alone(make_slide, trained):
    slide = make_slide()
    keys = (list(slide.obsm), list(slide.uns["stimg"]))
    for changes, error, message in (
        ({"model": 3}, TypeError, "`model`"),
        ({"model": "none.safetensors"}, FileNotFoundError, "No weights file"),
        ({"layer": "none", "scale": "counts"}, KeyError, "`layer`"),
        ({"scale": "raw"}, ValueError, "`scale`"),
        ({"stride": 0}, ValueError, "`stride`"),
        ({"readout": "middle"}, ValueError, "`readout`"),
        ({"device": "tpu"}, ValueError, "`device`"),
        ({"lattice_key": "grid"}, KeyError, "to_lattice"),
    ):
        with pytest.raises(error, match=message):
            stimg.tl.embed(slide, **({"model": trained} | changes))
    assert (list(slide.obsm), list(slide.uns["stimg"])) == keys
    slide.X.data[0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        stimg.tl.embed(slide, trained)
    slide.X.data[0] = -1
    with pytest.raises(ValueError, match="negative"):
        stimg.tl.embed(slide, trained)
    slide.var_names = ["GENE00000"] * slide.n_vars
    with pytest.raises(ValueError, match="var_names_make_unique"):
        stimg.tl.embed(slide, trained)


@pytest.mark.parametrize("platform", ["visium", "square", "free"])
def test_a_turned_slide_gets_the_same_embedding(make_slide, trained, platform):
    slide = make_slide(platform)
    stimg.tl.embed(slide, trained)
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    half = turn @ turn
    for change in (half, np.diag([-1.0, 1.0])) if platform == "visium" else (turn, half, half @ turn):
        turned = make_slide(platform)
        del turned.obsm["lattice"], turned.uns["stimg"]["lattice"]
        turned.obs = turned.obs.drop(columns=["array_row", "array_col"], errors="ignore")
        turned.obsm["spatial"] = turned.obsm["spatial"] @ change
        stimg.pp.to_lattice(turned)
        stimg.tl.embed(turned, trained)
        for key in ("X_stimg", "X_stimg_slide"):
            error = np.abs(turned.obsm[key] - slide.obsm[key]).max() / np.abs(slide.obsm[key]).max()
            assert error < 1e-3, (key, change)


def test_without_symmetries_the_embedding_depends_on_how_the_slide_lies(make_slide, trained):
    slide, turned = make_slide("square"), make_slide("square")
    turned.obs["array_col"] = turned.obs["array_col"].max() - turned.obs["array_col"]
    stimg.pp.to_lattice(turned)
    for each in (slide, turned):
        stimg.tl.embed(each, trained, symmetric=False)
    assert np.abs(turned.obsm["X_stimg"] - slide.obsm["X_stimg"]).max() > 1e-2


def test_the_slides_own_expression_is_joined(make_slide, trained):
    slide = make_slide()
    stimg.tl.embed(slide, trained)
    joined = slide.obsm["X_stimg_slide"]
    assert joined.shape == (300, 32 + 30)
    assert joined.dtype == np.float32
    np.testing.assert_allclose([joined[:, :32].var(0).sum(), joined[:, 32:].var(0).sum()], 1, rtol=1e-4)
    np.testing.assert_allclose(np.corrcoef(joined[:, 0], slide.obsm["X_stimg"][:, 0])[0, 1], 1, rtol=1e-4)


def test_slides_in_several_threads_limit_those_of_blas_one_after_another(make_slide, trained, monkeypatch):
    matched, _ = match_slides(make_slide(), trained, layer=None, scale=None, lattice_key="lattice")
    inside, most = [], []
    fit = PCA.fit

    def watched(self, values):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return fit(self, values)

    monkeypatch.setattr(PCA, "fit", watched)
    before = [(part["filepath"], part["num_threads"]) for part in threadpool_info()]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: local_components([matched[0][0]]), range(4)))
    assert max(most) == 1
    assert [(part["filepath"], part["num_threads"]) for part in threadpool_info()] == before


def test_genes_that_the_model_does_not_know_are_in_the_joined_part_alone(make_slide, trained):
    slide, other = make_slide(), make_slide()
    unknown = np.flatnonzero(~slide.var_names.isin(trained.genes))
    counts = other.X.toarray()
    counts[:100, unknown] = 50
    other.X = sparse.csr_matrix(counts)
    for each in (slide, other):
        each.layers["log"] = np.log1p(each.X)  # totals must not change
        stimg.tl.embed(each, trained, layer="log", scale="log")
    np.testing.assert_array_equal(other.obsm["X_stimg"], slide.obsm["X_stimg"])
    assert np.abs(other.obsm["X_stimg_slide"][:, 32] - slide.obsm["X_stimg_slide"][:, 32]).max() > 0.1


def test_own_components_are_the_principal_components(make_slide, trained):
    slide = make_slide()
    matched, _ = match_slides(slide, trained, layer=None, scale=None, lattice_key="lattice")
    section = matched[0][0]
    [found] = local_components([section])
    values = section.standardise(section.expression.toarray(), np.arange(60))
    exact = neighbour_means(section) @ PCA(30, svd_solver="full").fit(values).transform(values)
    along = np.linalg.svd(np.linalg.qr(found - found.mean(0))[0].T @ np.linalg.qr(exact - exact.mean(0))[0])[1]
    assert along[:10].min() > 0.999


def test_a_slide_of_one_spot_is_embedded(make_slide, trained):
    slide = make_slide()[:1].copy()
    stimg.tl.embed(slide, trained)
    assert np.isfinite(slide.obsm["X_stimg_slide"]).all()
