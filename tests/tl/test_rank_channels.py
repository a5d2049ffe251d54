from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stimg
from stimg._apply import _channels
from stimg._apply._run_windows import run_windows
from stimg._apply._tokens import match_slides, shown_genes, site_tokens, token_layer
from stimg.datasets._synthetic import GENE_SEED
from stimg.models import Model

COLUMNS = ["group", "gene", "symbol", "score", "difference"]


def wide(ranked, value="score"):
    """Return a table of groups by genes."""
    return ranked.pivot_table(index="group", columns="gene", values=value, observed=True)


def is_close(found, wanted):
    wanted = wanted.to_numpy()
    np.testing.assert_allclose(found.to_numpy(), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


class Separations:
    """The distances of groups in the embedding of changed tokens, written out once more, section by section."""

    def __init__(self, table, model, codes, **windows):
        self.model, self.windows, self.n_obs = model, windows, table.n_obs
        matched, _ = match_slides(table, model, layer=None, scale=None, lattice_key="lattice")
        self.slides, self.vocabularies = zip(*matched, strict=True)
        self.tokens = [site_tokens(model, *pair) for pair in matched]
        states = self.embed(self.tokens)
        self.lines = []
        for code in np.unique(codes[codes >= 0]):
            line = states[codes == code].mean(0) - states[(codes >= 0) & (codes != code)].mean(0)
            self.lines.append((codes == code, (codes >= 0) & (codes != code), line / (line @ line)))

    def embed(self, tokens):
        states = np.empty((self.n_obs, self.model.config.dim))
        for slide, sites in zip(self.slides, tokens, strict=True):
            states[slide.obs_index] = run_windows(self.model, slide, sites, **self.windows)[slide.obs_site]
        return states

    def __call__(self, gene, factor):
        """Return the share of each distance that is left if a gene's z-scores are multiplied by a factor."""
        changed = []
        for slide, vocabulary, tokens in zip(self.slides, self.vocabularies, self.tokens, strict=True):
            shown = shown_genes(self.model, slide, vocabulary)
            weight, _, scale = token_layer(self.model, slide, vocabulary, shown)
            column = np.flatnonzero(slide.genes[shown] == gene)
            values = slide.expression[:, shown[column]].toarray()
            if self.model.config.scaling == "zscore":
                values = slide.standardise(values, shown[column])
            else:
                values = values - slide.mean[shown[column]]
            changed.append((tokens + scale * (factor - 1) * (values @ weight[column])).astype(np.float32))
        states = self.embed(changed)
        return np.array([line @ (states[group].mean(0) - states[rest].mean(0)) for group, rest, line in self.lines])


def joined_sections():
    import anndata

    parts = [stimg.datasets.synthetic(n_obs=150, n_genes=60, seed=s) for s in (0, 1)]
    joined = anndata.concat(parts, label="section", keys=["a", "b"], index_unique="-")
    stimg.pp.to_lattice(joined, library_key="section")
    return joined


def untrained(trained, **changes):
    config = replace(trained.config, n_programs=0, program_loss=0.0, **changes)
    torch.manual_seed(0)
    network = stimg.nn.GeneMAE(config, len(trained.genes)).eval()
    return Model(network, trained.genes, trained.card)


@pytest.mark.parametrize("case", ["visium", "square", "free", "sections", "encoder", "additive"])
def test_scores_are_the_derivatives_of_the_distance(make_slide, trained, case):
    slide = joined_sections() if case == "sections" else make_slide(case if case in ("square", "free") else "visium")
    model = untrained(trained, token="additive", scaling="log") if case == "additive" else trained
    readout = "encoder" if case == "encoder" else "decoder"
    found = wide(stimg.tl.rank_channels(slide, model, "domain", readout=readout))
    left = Separations(slide, model, slide.obs["domain"].cat.codes.to_numpy(), readout=readout)
    genes = found.columns[::8]
    step = 0.1
    slopes = np.column_stack([(left(gene, 1 + step) - left(gene, 1 - step)) / (2 * step) for gene in genes])
    np.testing.assert_allclose(found[genes].to_numpy(), slopes, atol=0.02 * np.abs(slopes).max())


def test_scores_agree_with_setting_each_gene_to_its_mean(make_slide, trained):
    slide = make_slide()
    found = wide(stimg.tl.rank_channels(slide, trained, "domain"))
    left = Separations(slide, trained, slide.obs["domain"].cat.codes.to_numpy(), readout="decoder")
    lost = 1 - np.column_stack([left(gene, 0) for gene in found.columns])
    for scores, losses in zip(found.to_numpy(), lost, strict=True):
        assert np.corrcoef(scores, losses)[0, 1] > 0.98
    assert np.polyfit(found.to_numpy().ravel(), lost.ravel(), 1)[0] == pytest.approx(1, abs=0.15)


def test_the_genes_of_a_domain_are_those_that_were_planted(make_slide, trained):
    slide = make_slide()
    draws = np.random.default_rng(GENE_SEED)
    draws.normal(size=60)
    owner = draws.permutation(60)[:20] % 5
    planted = pd.Series(owner, index=slide.var_names[draws.permutation(60)[:20]])
    logged = np.log1p(slide.X.toarray() / slide.X.sum(1) * 1e4)
    means = pd.DataFrame(logged, columns=slide.var_names).groupby(slide.obs["domain"].cat.codes.to_numpy()).mean()
    assert (means[planted.index].idxmax() == planted).mean() > 0.8  # the draws above are those of the slide
    ranked = stimg.tl.rank_channels(slide, trained, "domain")
    hits, found, chance = 0, 0, 0.0
    for number, (_, rows) in enumerate(ranked.groupby("group", observed=True)):
        own = planted.index[(planted == number) & planted.index.isin(rows["gene"])]
        raised = rows[rows["difference"] > 0]
        hits += raised["gene"].head(len(own)).isin(own).sum()
        found += len(own)
        chance += len(own) ** 2 / len(raised)
    assert found >= 10
    assert hits >= 3 * chance, (hits, found, chance)


def test_the_table_its_record_and_nothing_else(make_slide, trained):
    slide = make_slide()
    weights = {name: value.clone() for name, value in trained.network.state_dict().items()}
    before = (list(slide.obsm), list(slide.obs), list(slide.var))
    ranked = stimg.tl.rank_channels(slide, trained, "domain")
    assert list(ranked.columns) == COLUMNS
    assert list(ranked["group"].cat.categories) == [f"layer{i}" for i in range(1, 6)]
    assert len(ranked) == 5 * 40
    for _, rows in ranked.groupby("group", observed=True):
        assert set(rows["gene"]) == set(trained.genes)
        assert (rows["score"].diff().iloc[1:] <= 0).all()
    pd.testing.assert_frame_equal(slide.uns["stimg_rank_channels"], ranked)
    record = slide.uns["stimg"]["stimg_rank_channels"]
    assert (record["key"], record["n_genes"], record["written_by"]) == ("domain", 40, "rank_channels")
    assert (list(slide.obsm), list(slide.obs), list(slide.var)) == before
    assert all(parameter.grad is None for parameter in trained.network.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in trained.network.state_dict().items())
    pd.testing.assert_frame_equal(stimg.tl.rank_channels(slide, trained, "domain"), ranked)


def test_batches_parts_of_groups_and_modes_of_torch_do_not_matter(make_slide, trained, monkeypatch):
    slide = make_slide()
    whole = wide(stimg.tl.rank_channels(slide, trained, "domain"))
    is_close(wide(stimg.tl.rank_channels(slide, trained, "domain", batch_size=1)), whole)
    monkeypatch.setattr(_channels, "VALUES_AT_ONCE", 1)
    is_close(wide(stimg.tl.rank_channels(slide, trained, "domain")), whole)
    with torch.inference_mode():
        is_close(wide(stimg.tl.rank_channels(slide, trained, "domain", groups="layer3")), whole.loc[["layer3"]])
    some = stimg.tl.rank_channels(slide, trained, "domain", groups=["layer4", "layer2"], key_added="some")
    assert list(some["group"].unique()) == ["layer4", "layer2"]
    is_close(wide(some).loc[["layer2", "layer4"]], whole.loc[["layer2", "layer4"]])
    assert len(slide.uns["some"]) == 80


def test_the_number_of_threads_does_not_matter(make_slide, trained):
    slide, before = make_slide(), torch.get_num_threads()
    found = stimg.tl.rank_channels(slide, trained, "domain", batch_size=2)
    torch.set_num_threads(3)
    try:
        pd.testing.assert_frame_equal(stimg.tl.rank_channels(slide, trained, "domain", batch_size=2), found)
    finally:
        torch.set_num_threads(before)


def test_without_a_key_scores_are_shares_of_the_variance(make_slide, trained):
    slide = make_slide()
    ranked = stimg.tl.rank_channels(slide, trained)
    assert list(ranked.columns) == COLUMNS[:-1]
    assert list(ranked["group"].unique()) == ["all"]
    [(section, vocabulary)], _ = match_slides(slide, trained, layer=None, scale=None, lattice_key="lattice")
    tokens = site_tokens(trained, section, vocabulary)
    states = run_windows(trained, section, tokens, readout="decoder")
    centred = states - states.mean(0)
    for gene in ranked["gene"].iloc[[0, 1, -1]]:
        column = np.flatnonzero(section.genes == gene)
        values = section.standardise(section.expression[:, column].toarray(), column)
        row = trained.network.gene_in.detach().numpy()[vocabulary[column]]
        change = (0.1 * 512**0.5 / 40 * values @ row).astype(np.float32)
        up, down = (run_windows(trained, section, tokens + sign * change, readout="decoder") for sign in (1, -1))
        slope = (centred * (up - down)).sum() / 0.2 / np.square(centred).sum()
        assert ranked.loc[ranked["gene"] == gene, "score"].item() == pytest.approx(slope, rel=0.05, abs=1e-4)


def test_differences_are_those_of_the_labelled_observations(make_slide, trained):
    slide = make_slide()
    slide.obs["label"] = slide.obs["domain"].cat.remove_categories(["layer5"])
    found = wide(stimg.tl.rank_channels(slide, trained, "label"), "difference")
    counts = slide.X.toarray()
    logged = pd.DataFrame(np.log1p(counts / counts.sum(1, keepdims=True) * 1e4), columns=slide.var_names)
    scaled = ((logged - logged.mean()) / logged.std(ddof=0)).clip(upper=10)[found.columns]
    labels = slide.obs["label"].astype(object).to_numpy()
    assert list(found.index) == [f"layer{i}" for i in range(1, 5)]
    for name in found.index:
        rest = np.array([label == label and label != name for label in labels])
        wanted = scaled[labels == name].mean() - scaled[rest].mean()
        np.testing.assert_allclose(found.loc[name], wanted, atol=1e-4)


@pytest.mark.parametrize("kind", [int, str, bool])
def test_categories_may_be_numbers_words_or_switches(make_slide, trained, kind):
    slide = make_slide()
    codes = slide.obs["domain"].cat.codes.to_numpy()
    slide.obs["label"] = (codes > 2).astype(kind) if kind is bool else codes.astype(kind)
    names = {"False", "True"} if kind is bool else set("01234")
    assert set(stimg.tl.rank_channels(slide, trained, "label")["group"]) == names


def test_of_more_genes_than_in_training_only_those_that_are_shown_are_ranked(make_slide, trained):
    few = Model(trained.network, trained.genes, {**trained.card, "genes_per_slide": 20})
    slide = make_slide()
    ranked = stimg.tl.rank_channels(slide, few)
    array = stimg.pp.to_patches(slide, size=8, n_channels=40).slides[0]
    assert set(ranked["gene"]) == set(array.genes[np.argsort(-array.std)[:20]])


def test_ensembl_ids_get_their_symbols(make_slide, trained):
    from stimg._slide._genes import names_of_ids

    once = pd.Series({gene: names[0] for gene, names in names_of_ids().items() if gene.startswith("ENSG0")})
    once = once[~once.duplicated(keep=False)].iloc[:60]
    slide = make_slide()
    rename = dict(zip(slide.var_names, once, strict=True))
    model = Model(trained.network, np.array([rename[gene] for gene in trained.genes]), trained.card)
    slide.var_names = once.index
    ranked = stimg.tl.rank_channels(slide, model)
    assert set(ranked["symbol"]) == set(model.genes)
    assert (once[ranked["gene"]].to_numpy() == ranked["symbol"].to_numpy()).all()


def test_views_files_and_spatialdata(make_slide, trained, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    import anndata

    slide = make_slide()
    ranked = stimg.tl.rank_channels(slide, trained, "domain")
    slide.write_h5ad(tmp_path / "slide.h5ad")
    pd.testing.assert_frame_equal(anndata.read_h5ad(tmp_path / "slide.h5ad").uns["stimg_rank_channels"], ranked)
    backed = anndata.read_h5ad(tmp_path / "slide.h5ad", backed="r")
    is_close(wide(stimg.tl.rank_channels(backed, trained, "domain")), wide(ranked))
    backed.file.close()
    sdata = spatialdata.SpatialData(tables={"bins": make_slide()})
    is_close(wide(stimg.tl.rank_channels(sdata, trained, "domain", table_key="bins")), wide(ranked))
    assert "stimg_rank_channels" in sdata["bins"].uns
    parent = make_slide()
    view = parent[:200]
    stimg.tl.rank_channels(view, trained)
    assert "stimg_rank_channels" in view.uns
    assert "stimg_rank_channels" not in parent.uns


def test_bad_input_is_refused_and_leaves_the_slide_alone(make_slide, trained):
    slide = make_slide()
    slide.obs["depth"] = np.linspace(0, 1, slide.n_obs)
    slide.obs["name"] = slide.obs_names
    slide.obs["one"] = "tissue"
    before = (list(slide.uns), list(slide.uns["stimg"]))
    for changes, error, message in (
        ({"key": "none"}, KeyError, "'none'"),
        ({"key": "depth"}, ValueError, "float64"),
        ({"key": "name"}, ValueError, "300 different values"),
        ({"key": "one"}, ValueError, "from 2 to 100 categories"),
        ({"groups": "layer1"}, ValueError, "`key`"),
        ({"key": "domain", "groups": ["layer1", "WM"]}, ValueError, r"\['WM'\]"),
        ({"key": "domain", "groups": []}, ValueError, "found none"),
        ({"key": "domain", "groups": 3}, TypeError, "`groups`"),
        ({"model": "none.safetensors"}, FileNotFoundError, "No weights file"),
        ({"readout": "middle"}, ValueError, "`readout`"),
        ({"stride": 9}, ValueError, "`stride`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"device": "tpu"}, ValueError, "`device`"),
        ({"lattice_key": "grid"}, KeyError, "to_lattice"),
        ({"key_added": "embed"}, ValueError, "`key_added`"),
    ):
        with pytest.raises(error, match=message):
            stimg.tl.rank_channels(slide, **({"model": trained} | changes))
    assert (list(slide.uns), list(slide.uns["stimg"])) == before


def test_an_embedding_that_tells_nothing_apart_is_refused(make_slide, trained):
    blank = untrained(trained)
    with torch.no_grad():
        blank.network.decoder.norm.weight.zero_()
    for key in (None, "domain"):
        with pytest.raises(ValueError, match="the same for"):
            stimg.tl.rank_channels(make_slide(), blank, key)


def test_transposed_products_are_those_of_the_scaled_values(make_slide):
    slide = stimg.pp.to_patches(make_slide(), size=8, n_channels=24).slides[0]
    slide = replace(slide, expression=sparse.csr_array(slide.expression * np.where(np.arange(40) == 3, 0, 1)))
    genes = np.array([1, 3, 17])
    values = np.random.default_rng(0).normal(size=(slide.n_sites, 2)).astype(np.float32)
    dense = slide.expression[:, genes].toarray()
    scaled = slide.standardise(dense, genes)
    np.testing.assert_allclose(slide.project_back(values, "zscore", genes), scaled.T @ values, atol=1e-3)
    np.testing.assert_allclose(slide.project_back(values, "log", genes), (dense - dense.mean(0)).T @ values, atol=1e-3)


def test_unknown_is_no_group(make_slide, trained):
    slide = make_slide()
    names = slide.obs["domain"].astype(str).to_numpy().astype(object)
    names[:40] = "unknown"
    slide.obs["named"] = pd.Categorical(names)
    slide.obs["missing"] = pd.Categorical(np.where(names == "unknown", None, names))
    one, other = (stimg.tl.rank_channels(slide, trained, key) for key in ("named", "missing"))
    assert "unknown" not in set(one["group"])
    pd.testing.assert_frame_equal(one, other)
