"""Expression as people have it: stored in odd types, corrected, scaled, in another slot, or all but missing."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import stimg


def log_normalise(slide, base=None):
    sc.pp.normalize_total(slide, target_sum=1e4)
    sc.pp.log1p(slide, base=base)
    return slide


def half(slide):
    return slide.X.toarray().astype(np.float16)


def big_endian(slide):
    return slide.X.toarray().astype(">f8")


def big_endian_sparse(slide):
    matrix = slide.X.tocsr().copy()
    matrix.data = matrix.data.astype(">i4")
    return matrix


@pytest.mark.parametrize("store", [half, big_endian, big_endian_sparse])
def test_every_type_of_number_gives_the_same(make_slide, trained, store):
    slide = make_slide()
    stimg.tl.embed(slide, trained)
    other = slide.copy()
    other.X = store(slide)
    stimg.pp.select_genes(other, n_genes=40)
    stimg.tl.embed(other, trained)
    stimg.tl.reconstruct(other, trained)
    np.testing.assert_array_equal(other.obsm["X_stimg"], slide.obsm["X_stimg"])
    np.testing.assert_array_equal(other.var["stimg_weight"], slide.var["stimg_weight"])


def test_counts_that_half_precision_cannot_hold_are_refused(make_slide, trained):
    slide = make_slide()
    values = slide.X.toarray()
    values[3, 3] = np.inf  # 70,000, for instance
    slide.X = values.astype(np.float16)
    with pytest.raises(ValueError, match=r"has 1 NaN or infinite values. Store it as float32: float16 ends at 65,504"):
        stimg.tl.embed(slide, trained)


def test_corrected_counts_are_counts_with_a_warning(make_slide, trained):
    slide = make_slide()
    counts = slide.X.toarray()
    slide.obs["total"] = counts.sum(1)
    stimg.tl.embed(slide, trained)
    ambient = 0.05 * counts.mean(0) * counts.sum(1, keepdims=True) / counts.sum(1).mean()
    cleaned = slide.copy()
    cleaned.X = sparse.csr_matrix(np.maximum(counts - ambient, 0))
    for step in (stimg.pp.select_genes, lambda one: stimg.tl.embed(one, trained)):
        with pytest.warns(UserWarning, match="taken as counts, corrected or normalised"):
            step(cleaned)
    assert np.corrcoef(cleaned.obsm["X_stimg"].ravel(), slide.obsm["X_stimg"].ravel())[0, 1] > 0.95
    normalised = slide.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    with pytest.warns(UserWarning, match="taken as counts, corrected or normalised"):
        stimg.tl.embed(normalised, trained)
    np.testing.assert_allclose(normalised.obsm["X_stimg"], slide.obsm["X_stimg"], atol=1e-4)


@pytest.mark.parametrize("base", [None, 2, 10])
def test_logarithms_are_not_taken_as_counts(make_slide, trained, base):
    slide = log_normalise(make_slide(), base)
    with pytest.raises(ValueError, match="look log-normalised .* Pass `scale='log'`"):
        stimg.tl.embed(slide, trained, scale="counts")
    smooth = slide.copy()
    smooth.X = slide.X.toarray() + np.random.default_rng(0).random(slide.shape) / 10
    with pytest.raises(ValueError, match=r"non-integer values up to .*numpy\.rint"):
        stimg.tl.embed(smooth, trained, scale="counts")


SCALED = {
    "logarithms": (log_normalise, "counts", "Raw counts are in {}"),
    "z-scores": (lambda slide: sc.pp.scale(log_normalise(slide)), "counts", "negative .* Raw counts are in {}"),
    "z-scores as log": (
        lambda slide: sc.pp.scale(log_normalise(slide)),
        "log",
        "negative .* Raw counts are in {} and `scale='counts'`",
    ),
    "zeros": (lambda slide: setattr(slide, "X", slide.X * 0), "counts", "zeros only.* Raw counts are in {}"),
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("slot", ["layer", "raw"])
def test_the_error_says_where_the_counts_are(make_slide, trained, name, slot):
    change, scale, match = SCALED[name]
    slide = make_slide()
    if slot == "layer":
        slide.layers["umis"] = slide.X.copy()
        place = r"`adata.layers\['umis'\]`: pass `layer='umis'`"
    else:
        slide.raw = slide.copy()
        place = r"`adata.raw`: use `adata.raw.to_adata\(\)`"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(slide)
    for step in (stimg.tl.embed, stimg.tl.reconstruct):
        with pytest.raises(ValueError, match=match.format(place)):
            step(slide, trained, scale=scale)
    with pytest.raises(ValueError, match=match.format(place)):
        stimg.pp.select_genes(slide, scale=scale)
    if slot == "raw":
        stimg.tl.embed(slide.raw.to_adata(), trained)


def test_the_error_says_where_logarithms_are(make_slide, trained):
    """As after `adata.raw = adata; sc.pp.scale(adata)`, when counts are nowhere."""
    slide = log_normalise(make_slide())
    slide.raw = slide.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.scale(slide)
    with pytest.raises(ValueError, match=r"Log-normalised values are in `adata.raw`: use .* and `scale='log'`"):
        stimg.tl.embed(slide, trained)
    stimg.tl.embed(slide.raw.to_adata(), trained, scale="log")


def thinned(slide, share):
    rng = np.random.default_rng(0)
    slide.X = sparse.csr_matrix(rng.binomial(slide.X.toarray().astype(int), share).astype(np.float32))
    return slide


def test_sections_with_hardly_any_counts(make_slide, trained):
    with pytest.raises(ValueError, match=r"of the 40 genes that the model knows, [12]\d\d of 300 sites have none"):
        stimg.tl.embed(thinned(make_slide(), 0.0005), trained)
    with pytest.warns(UserWarning, match="half of the sites have at most [1-4]"):
        stimg.tl.embed(thinned(make_slide(), 0.02), trained)


def test_many_spots_beside_the_tissue_warn(make_slide, trained):
    """A raw matrix whose spots on glass have a twentieth of the genes."""
    slide = make_slide(n_genes=200)
    names = np.concatenate([trained.genes, slide.var_names[~slide.var_names.isin(trained.genes)]])
    model = stimg.models.Model(type(trained.network)(trained.config, len(names)).eval(), names, trained.card)
    counts = slide.X.toarray()
    glass = slide.obs["array_row"].to_numpy() > np.quantile(slide.obs["array_row"], 0.55)
    counts[glass, 10:] = 0
    slide.X = counts
    with pytest.warns(UserWarning, match=r"1\d\d of 300 sites have less than a tenth"):
        stimg.tl.embed(slide, model)


IN_TISSUE = {
    "integers": (np.array([0, 1]), "1"),
    "bool": (np.array([False, True]), "True"),
    "text": (np.array(["0", "1"], dtype=object), "'1'"),
    "words": (np.array(["False", "True"], dtype=object), "'True'"),
    "numbers": (np.array([0.0, 1.0]), "1.0"),
}


@pytest.mark.parametrize("name", IN_TISSUE)
@pytest.mark.parametrize("categories", [False, True])
def test_a_raw_matrix_warns_and_names_the_column(name, categories):
    values, shown = IN_TISSUE[name]
    slide = stimg.datasets.synthetic(n_obs=300, n_genes=60)
    slide.obs["in_tissue"] = values[(np.arange(300) >= 40).astype(int)]
    if categories:
        slide.obs["in_tissue"] = slide.obs["in_tissue"].astype("category")
    with pytest.warns(UserWarning, match=r"`adata.obs\['in_tissue'\]` says that 40 of 300 .*") as found:
        stimg.pp.to_lattice(slide)
    assert f"adata[adata.obs['in_tissue'] == {shown}].copy()" in str(found[0].message)
    stimg.pp.to_lattice(slide[slide.obs["in_tissue"] == values[1]].copy())


@pytest.mark.parametrize(("rows", "match"), [(slice(None), "300 of 300 rows. Run"), (slice(5), "5 of 300 rows. Embed")])
def test_embeddings_of_nan_are_refused_by_name(make_slide, rows, match):
    slide = make_slide()
    slide.obsm["X_other"] = np.ones((300, 4))
    slide.obsm["X_other"][rows] = np.nan
    with pytest.raises(ValueError, match=r"`adata.obsm\['X_other'\]` has NaN or infinite values in " + match):
        stimg.tl.domains(slide, 3, use_rep="X_other")


def test_genes_and_numbers_are_no_domains(make_slide):
    slide = make_slide()
    slide.obs["total"] = np.arange(300)
    slide.obs["score"] = np.linspace(0, 1, 300)
    slide.obs["barcode"] = pd.Categorical(slide.obs_names)
    with pytest.raises(ValueError, match=r"found the gene 'GENE00003'. Draw genes with scanpy, `sc.pl.embedding"):
        stimg.pl.domains(slide, "GENE00003")
    for key, found in (("total", "300 different values"), ("score", "float64"), ("barcode", "300 different values")):
        with pytest.raises(ValueError, match=rf"categories in `adata.obs\['{key}'\]`, found {found}"):
            stimg.pl.domains(slide, key)
    with pytest.raises(KeyError, match="'GENE'"):
        stimg.pl.domains(slide, "GENE")


def test_a_column_by_which_nothing_lies_on_the_tissue(slide_hex):
    slide_hex.obs["in_tissue"] = 0
    with pytest.warns(UserWarning, match="300 of 300 .* None would be left without them: correct the column"):
        stimg.pp.to_lattice(slide_hex)
