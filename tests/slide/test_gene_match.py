"""Genes of a slide are found by whatever names it has, and how many is said."""

from __future__ import annotations

import logging

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stimg
from stimg._slide._genes import names_of_ids
from stimg.models import Model


def genes_of(species, count):
    """Return Ensembl ids and symbols that each have one name and belong to one id."""
    names = {gene: found[0] for gene, found in names_of_ids().items() if gene.startswith(species) and len(found) == 1}
    once = pd.Series(names)
    once = once[~once.duplicated(keep=False) & once.str.fullmatch(r"[A-Za-z][A-Za-z0-9]{3,}")]
    taken = once.iloc[np.linspace(0, len(once) - 1, count).astype(int)]
    return taken.index.to_numpy(), taken.to_numpy()


@pytest.fixture(scope="module", params=["ENSG0", "ENSMUSG0"], ids=["human", "mouse"])
def named(request, trained):
    """Return a slide with real symbols, a model that knows 40 of them, the ids, and the slide's embedding."""
    ids, symbols = genes_of(request.param, 60)
    slide = stimg.datasets.synthetic("visium", n_obs=300, n_genes=60, seed=0)
    stimg.pp.to_lattice(slide)
    rename = dict(zip(slide.var_names, symbols, strict=True))
    model = Model(trained.network, np.array([rename[gene] for gene in trained.genes]), trained.card)
    slide.var_names = symbols
    stimg.tl.embed(slide, model, device="cpu")
    return slide, model, ids, slide.obsm["X_stimg"]


def renamed(slide, names, **columns):
    other = slide.copy()
    other.var = pd.DataFrame(columns, index=pd.Index(np.asarray(names, dtype=str)))
    return other


@pytest.mark.parametrize(
    "change",
    [
        lambda ids, names: [f"{gene}.{i % 19 + 1}" for i, gene in enumerate(ids)],
        lambda ids, names: np.where(np.arange(len(ids)) % 2, names, ids),
        lambda ids, names: [f"{name}|{gene}" for gene, name in zip(ids, names, strict=True)],
        lambda ids, names: ["GRCh38_" + name for name in names],
        lambda ids, names: ["mm10______" + name for name in names],
        lambda ids, names: ["hg19-" + gene for gene in ids],
        lambda ids, names: [name + "_human" for name in names],
        lambda ids, names: [name + "-1" for name in names],
        lambda ids, names: [name.upper() for name in names],
        lambda ids, names: [name.lower() for name in names],
        lambda ids, names: [name.title() for name in names],
        lambda ids, names: [f" {name}" for name in names],
    ],
    ids="version half symbol|id GRCh38_ mm10___ prefixed-id _human -1 upper lower title space".split(),
)
def test_names_are_found_by_themselves(named, change):
    slide, model, ids, expected = named
    other = renamed(slide, change(ids, slide.var_names.to_numpy()))
    stimg.tl.embed(other, model)
    np.testing.assert_array_equal(other.obsm["X_stimg"], expected)
    assert other.uns["stimg"]["embed"]["n_genes_shared"] == 40


@pytest.mark.parametrize("column", ["feature_name", "anything"])
def test_a_column_of_var_is_found(named, column, caplog):
    slide, model, ids, expected = named
    numbers = [str(i) for i in range(slide.n_vars)]
    other = renamed(slide, numbers, kind=["Gene Expression"] * 60, **{column: pd.Categorical(slide.var_names)})
    with caplog.at_level(logging.INFO, "stimg"):
        stimg.tl.embed(other, model)
    np.testing.assert_array_equal(other.obsm["X_stimg"], expected)
    assert other.uns["stimg"]["embed"]["genes_from"] == column
    assert f"`adata.var['{column}']`: 40 of the slide's 60 genes (67%) are among the model's 40." in caplog.text
    other = renamed(slide, numbers, gene_ids=ids)
    stimg.tl.embed(other, model)
    np.testing.assert_array_equal(other.obsm["X_stimg"], expected)


def test_names_that_fit_are_preferred_to_columns(named):
    slide, model, ids, _ = named
    other = renamed(slide, slide.var_names, gene_ids=ids, other=np.roll(slide.var_names, 1))
    stimg.tl.embed(other, model)
    assert other.uns["stimg"]["embed"]["genes_from"] == "var_names"


def test_the_column_is_said_once(named):
    slide, model, ids, expected = named
    wrong = np.roll(slide.var_names.to_numpy(), 1)
    other = renamed(slide, wrong, symbol=slide.var_names)
    stimg.pp.select_genes(other, gene_symbols="symbol")
    patches = stimg.pp.to_patches(other, size=8, n_channels=24)
    assert patches.slides[0].genes[0] == slide.var_names[0]
    stimg.tl.embed(other, model)
    stimg.tl.reconstruct(other, model)
    np.testing.assert_array_equal(other.obsm["X_stimg"], expected)
    stimg.tl.reconstruct(slide, model)
    np.testing.assert_array_equal(other.obsm["stimg"], slide.obsm["stimg"])
    stimg.tl.embed(other, model, gene_symbols="symbol", key_added="again")
    for step in (stimg.tl.embed, stimg.tl.reconstruct):
        with pytest.raises(KeyError, match=r"'none' \(`gene_symbols`\) not found in `adata.var`"):
            step(other, model, gene_symbols="none")


def test_genes_are_asked_for_by_the_names_that_they_were_found_by(named):
    slide, model, ids, _ = named
    wanted = list(model.genes[[5, 2]])
    stimg.tl.reconstruct(slide, model, genes=wanted)
    right = slide.obsm["stimg"].to_numpy()
    for other in (renamed(slide, ids), renamed(slide, [f"g{i}" for i in range(60)], feature_name=slide.var_names)):
        stimg.tl.reconstruct(other, model, genes=wanted)
        np.testing.assert_array_equal(other.obsm["stimg"], right)
        assert list(other.obsm["stimg"].columns) == list(other.var_names[slide.var_names.get_indexer(wanted)])
        axes = stimg.pl.reconstruction(other, wanted)
        assert [ax.get_title() for ax in axes[:, 0]] == [f"{gene}, measured" for gene in wanted]
        pairs = slide.copy()
        for one in (other, pairs):
            one.obsm["X_stimg_gene"] = one.obsm["X_stimg_image"] = np.eye(300, 4, dtype=np.float32) + 0.1
        stimg.tl.retrieve_expression(other, pairs, wanted)
        assert list(other.obsm["stimg_retrieved"].columns) == list(other.obsm["stimg"].columns)
    plt.close("all")
    both_names = [wanted[0], other.var_names[slide.var_names.get_loc(wanted[0])]]
    with pytest.raises(ValueError, match="one name of each gene"):
        stimg.tl.reconstruct(other, model, genes=both_names)
    with pytest.raises(KeyError, match=r"1 of `genes` are not in .*\(\['Nothing'\]"):
        stimg.tl.reconstruct(other, model, genes=[wanted[0], "Nothing"])


def test_genes_are_asked_for_by_the_names_of_the_model(make_slide, trained):
    human, mouse = ["A1BG", "A2M", "AAAS"], ["A1bg", "A2m", "Aaas"]
    slide = make_slide()
    known = slide.var_names.get_indexer(trained.genes[:3])
    model = Model(trained.network, np.array([*human, *trained.genes[3:]]), trained.card)
    slide.var_names = pd.Series(slide.var_names).replace(dict(zip(slide.var_names[known], mouse, strict=True)))
    stimg.tl.reconstruct(slide, model, genes=list(model.genes[:4]))
    assert list(slide.obsm["stimg"].columns) == [*mouse, trained.genes[3]]
    few = slide[:, slide.var_names != mouse[0]].copy()
    assert stimg.pl.reconstruction(few, n_genes=4).shape == (3, 2)
    plt.close("all")


def test_columns_of_var_with_numbers_for_names_or_twice(named):
    slide, model, _, expected = named
    for names in ([0, 1], ["symbol", "symbol"]):
        other = renamed(slide, [f"g{i}" for i in range(60)])
        other.var = pd.DataFrame(dict(enumerate([slide.var_names, ["gene"] * 60])), index=other.var_names)
        other.var.columns = names
        for told in (None, str(names[0])):
            stimg.tl.embed(other, model, gene_symbols=told)
            np.testing.assert_array_equal(other.obsm["X_stimg"], expected)


def test_slides_with_ids_and_with_symbols_train_one_vocabulary(named):
    slide, _, ids, _ = named
    other = renamed(slide, ids)
    for one in (slide, other):
        stimg.pp.select_genes(one, genes=list(slide.var_names[:40]))
    patches = stimg.pp.to_patches([slide, other], size=8, n_channels=24)
    assert sorted(patches.genes) == sorted(slide.var_names[:40])


def test_a_model_of_ids_finds_symbols(named):
    slide, model, ids, expected = named
    of_symbol = dict(zip(slide.var_names, ids, strict=True))
    other = Model(model.network, np.array([of_symbol[gene] + ".3" for gene in model.genes]), model.card)
    stimg.tl.embed(slide, other, key_added="by_id")
    np.testing.assert_array_equal(slide.obsm["by_id"], expected)


@pytest.mark.parametrize("scale", ["counts", "log"])
def test_columns_of_one_gene_are_added(named, scale):
    """One half of the slide has symbols, the other ids, as after `concat(join="outer")`."""
    slide, model, ids, expected = named
    other = slide.copy()
    if scale == "log":
        counts = other.X.toarray()
        other.X = sparse.csr_matrix(np.log1p(counts / counts.sum(1, keepdims=True) * 1e4))
    top = np.arange(other.n_obs) < 150
    wide = np.concatenate(
        [np.where(top[:, None], other.X.toarray(), 0), np.where(top[:, None], 0, other.X.toarray())], 1
    )
    both = anndata.AnnData(sparse.csr_matrix(wide), obs=other.obs, obsm=other.obsm, uns=other.uns)
    both.var_names = [*slide.var_names, *ids]
    stimg.tl.embed(both, model, scale=scale, key_added="both")
    np.testing.assert_allclose(both.obsm["both"], expected, atol=1e-4)
    assert both.uns["stimg"]["embed"]["n_genes_shared"] == 40
    stimg.tl.reconstruct(both, model, scale=scale)
    assert len(both.obsm["stimg"].columns) == 40
    assert set(both.obsm["stimg"].columns) <= set(slide.var_names)


def test_mouse_genes_beside_human_ones_stay_apart(named):
    slide, model, _, _ = named
    mouse = ["mm10___" + name.capitalize() for name in slide.var_names]
    human = renamed(slide, ["GRCh38_" + name.upper() for name in slide.var_names])
    both = anndata.concat([human, renamed(slide, mouse)], axis=1, merge="first", uns_merge="first")
    stimg.tl.embed(both, model, key_added="both")
    assert both.uns["stimg"]["both"]["n_genes_shared"] == 40


def test_too_few_genes_in_common_are_refused_with_the_usual_causes(make_slide, trained):
    none = make_slide()
    none.var_names = [f"X{i}" for i in range(none.n_vars)]
    none.var["note"] = "gene"
    for step in (stimg.tl.embed, stimg.tl.reconstruct):
        with pytest.raises(
            ValueError,
            match=r"at least 20 of the model's 40 .* found none .* identifiers.*\['stimg_w.*"
            r"`gene_symbols`.* Species.* wrong table",
        ):
            step(none, trained)
    slide = make_slide()
    few = slide[:, np.flatnonzero(slide.var_names.isin(trained.genes))[:19]].copy()
    with pytest.raises(ValueError, match="at least 20 of the model's 40 .* found 19 among the 19 names"):
        stimg.tl.embed(few, trained)
    assert "X_stimg" not in none.obsm


def test_a_vocabulary_of_few_genes_needs_half_of_them(trained):
    from stimg._slide._gene_match import match_genes

    genes = np.array(["A1BG", "GFAP", "MBP", "PLP1", "NPY"])
    table = anndata.AnnData(np.ones((2, 4)), var=pd.DataFrame(index=["GFAP", "Mbp", "PLP1", "x"]))
    assert match_genes(table, genes, None).rows.tolist() == [1, 2, 3, -1]
    with pytest.raises(ValueError, match="at least 3 of the model's 5"):
        match_genes(table[:, [0, 1, 3]], genes, None)


def test_a_panel_that_is_known_is_no_broken_match(make_slide, trained, caplog):
    """A panel of 20 genes, all known to a model of thousands."""
    slide = make_slide()
    panel = slide[:, np.flatnonzero(slide.var_names.isin(trained.genes))[:20]].copy()
    with caplog.at_level(logging.INFO, "stimg"):
        stimg.tl.embed(panel, trained)
    assert "20 of the slide's 20 genes (100%) are among the model's 40. A small panel" in caplog.text
    assert panel.uns["stimg"]["embed"]["gene_share"] == 1.0
    assert panel.uns["stimg"]["embed"]["model_share"] == 0.5


def test_a_slide_of_which_little_is_known_warns(trained):
    slide = stimg.datasets.synthetic("visium", n_obs=300, n_genes=60, seed=0)
    stimg.pp.to_lattice(slide)
    wide = anndata.AnnData(sparse.hstack([slide.X] * 4).tocsr(), obs=slide.obs, obsm=slide.obsm, uns=slide.uns)
    wide.var_names = [*slide.var_names, *(f"X{i}" for i in range(180))]
    names = np.concatenate([trained.genes, [f"Y{i}" for i in range(200)]])
    network = type(trained.network)(trained.config, len(names))
    with pytest.warns(
        UserWarning, match=r"Only 40 of the slide's 240 genes \(17%\), by `adata.var_names`, are among the"
    ):
        stimg.tl.embed(wide, Model(network.eval(), names, trained.card))


@pytest.mark.real
@pytest.mark.parametrize("path", ["heart_st/1_CN73_E1_HE.h5ad", "mousebrain_2k_HE/MOB1.h5ad"])
def test_real_ids_give_what_symbols_give(real_data_dir, path):
    slide = anndata.read_h5ad(real_data_dir / path)
    with pytest.warns(UserWarning, match="share an array position") if "heart" in path else np.errstate():
        stimg.pp.to_lattice(slide)
    stimg.tl.embed(slide)
    for names in (slide.var["gene_ids"], "hg19_" + slide.var_names, slide.var_names.str.lower()):
        other = slide.copy()
        other.var = pd.DataFrame(index=pd.Index(names.astype(str)))
        stimg.tl.embed(other)
        assert np.corrcoef(other.obsm["X_stimg"].ravel(), slide.obsm["X_stimg"].ravel())[0, 1] > 0.9999
