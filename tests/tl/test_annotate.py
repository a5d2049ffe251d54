"""`stimg.tl.annotate`: right names where there is ground for them, and `"unknown"` elsewhere."""

from __future__ import annotations

import logging
from dataclasses import replace

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import fingerprint

import stimg
from stimg._apply._names import Names, Regression, Section, same_tissue

CONFIG = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8)
LAYERS = [f"layer{i}" for i in range(1, 6)]


def section(seed=0, platform="visium", *, n_obs=400):
    slide = stimg.datasets.synthetic(platform, n_obs=n_obs, n_genes=150, seed=seed)
    stimg.pp.to_lattice(slide)
    stimg.pp.select_genes(slide, n_genes=100)
    return slide


def foreign(slide):
    """Return the slide with the names of its genes exchanged."""
    other = slide.copy()
    other.var_names = np.random.default_rng(0).permutation(other.var_names)
    return other


def train(slides, *, config=CONFIG, label_key="domain", steps=4, groups=None, **options):
    patches = stimg.pp.to_patches(slides, size=8, n_channels=24, label_key=label_key, groups=groups)
    return stimg.tl.pretrain(patches, config, max_steps=steps, device="cpu", rng=0, **options)


@pytest.fixture(scope="module")
def labelled():
    return section(seed=0)


@pytest.fixture(scope="module")
def model(labelled):
    with stimg.settings.override(progress=False):
        return train(labelled)


@pytest.fixture(scope="module")
def tissues(labelled):
    """Return a model of two tissues with equal labels: that of the slides, and one of other genes."""
    with stimg.settings.override(progress=False):
        return train([labelled, foreign(labelled)], groups=["liver", "brain"])


@pytest.fixture
def slide():
    return section(seed=1)


def names(slide, key="stimg_label"):
    return slide.obs[key].astype(str).to_numpy()


def share_right(slide, key="stimg_label"):
    """Return the share of named observations, and of these, of right ones."""
    found, truth = names(slide, key), names(slide, "domain")
    named = found != "unknown"
    return named.mean(), (found == truth)[named].mean()


def test_another_section_gets_its_names_from_the_model(slide, model):
    stimg.tl.annotate(slide, model)
    named, right = share_right(slide)
    assert named > 0.7
    assert right > 0.93
    assert slide.obs["stimg_label"].cat.categories.tolist() == [*LAYERS, "unknown"]
    confidence = slide.obs["stimg_label_confidence"]
    assert confidence.dtype == np.float32
    assert confidence.between(0, 1).all()
    assert ((confidence > 0.5) == (names(slide) != "unknown")).all()
    colours = list(slide.uns["stimg_label_colors"])
    assert len(set(colours)) == 6
    assert colours[-1] == "#BBBBBB"
    record = slide.uns["stimg"]["annotate"]
    assert record == slide.uns["stimg"]["stimg_label"]
    assert record["sections"] == ["slide"]
    assert record["tissue"] == [""]
    assert record["similarity"][0] > 0.9
    assert record["named"] == [named]
    assert record["model"] == "stimg"


def test_an_annotated_slide_gives_its_names(slide, labelled, model, trained):
    stimg.tl.annotate(slide, model, key_added="kept")
    stimg.tl.annotate(slide, model, reference=labelled, label_key="domain")
    assert np.mean(names(slide) == names(slide, "kept")) > 0.8  # a reference also shares components
    stimg.tl.annotate(slide, trained, reference=[labelled], label_key="domain")  # a model without labels
    assert share_right(slide)[1] > 0.85
    assert slide.uns["stimg"]["annotate"]["label_key"] == "domain"


@pytest.mark.parametrize("way", ["model", "reference"])
def test_a_foreign_slide_stays_unknown_with_a_warning(slide, labelled, model, way, caplog):
    other = foreign(slide)
    arguments = {"reference": labelled, "label_key": "domain"} if way == "reference" else {}
    caplog.set_level(logging.INFO, "stimg")
    with pytest.warns(UserWarning, match=r"Section 'slide': .* correlates only .* stay 'unknown'.*`reference`"):
        stimg.tl.annotate(other, model, **arguments)
    assert set(names(other)) == {"unknown"}
    assert other.obs["stimg_label"].cat.categories.tolist() == ["unknown"]
    assert list(other.uns["stimg_label_colors"]) == ["#BBBBBB"]
    assert other.obs["stimg_label_confidence"].max() <= 0.5
    assert other.uns["stimg"]["annotate"]["named"] == [0.0]
    assert "'slide': not named (similarity" in caplog.text
    with pytest.warns(UserWarning, match="Its names are guesses"):
        stimg.tl.annotate(other, model, min_confidence=0, **arguments)
    assert "unknown" not in set(names(other))


def test_a_higher_threshold_names_fewer(slide, model):
    shares = []
    for number in (0, 0.3, 0.6, 0.8):
        stimg.tl.annotate(slide, model, min_confidence=number)
        shares.append(share_right(slide))
    named, right = np.transpose(shares)
    assert named[0] == 1
    assert (np.diff(named) < 0).all()
    assert (np.diff(right) > 0).all()
    stimg.tl.annotate(slide, model, min_confidence=0.999)
    assert set(names(slide)) == {"unknown"}


def test_each_section_gets_the_names_of_its_own_tissue(slide, tissues):
    assert tissues.card["label_groups"] == ["brain", "liver"]
    other = foreign(slide)
    stimg.tl.annotate([slide, other], tissues)
    every = [f"{tissue}/{layer}" for tissue in ("brain", "liver") for layer in LAYERS]
    for one, tissue in ((slide, "liver"), (other, "brain")):
        assert one.obs["stimg_label"].cat.categories.tolist() == [*every, "unknown"]
        named = names(one) != "unknown"
        assert named.mean() > 0.6
        assert (names(one) == tissue + "/" + one.obs["domain"].astype(str))[named].mean() > 0.9
        assert one.uns["stimg"]["annotate"]["tissue"] == [tissue]
    assert list(slide.uns["stimg_label_colors"]) == list(other.uns["stimg_label_colors"])
    stimg.tl.annotate(slide, tissues)  # one tissue alone
    assert slide.obs["stimg_label"].cat.categories.tolist() == [*LAYERS, "unknown"]


def test_labels_restrict_the_tissues(slide, tissues, caplog):
    caplog.set_level(logging.INFO, "stimg")
    stimg.tl.annotate(slide, tissues, labels="liver")
    assert share_right(slide)[1] > 0.9
    assert "named as" not in caplog.text
    assert "to 'liver')" in caplog.text
    with pytest.warns(UserWarning, match=r"that of 'brain'"):
        stimg.tl.annotate(slide, tissues, labels=["brain"])
    assert set(names(slide)) == {"unknown"}
    stimg.tl.annotate(slide, tissues, labels=("brain", "liver"))
    assert slide.uns["stimg"]["annotate"]["tissue"] == ["liver"]


def test_a_foreign_section_adds_no_labels_to_the_others(slide, tissues, model):
    strange = foreign(foreign(slide))
    with pytest.warns(UserWarning, match=r"'slide' of slide 1: "):
        stimg.tl.annotate([slide, strange], tissues)
    for one in (slide, strange):
        assert one.obs["stimg_label"].cat.categories.tolist() == [*LAYERS, "unknown"]
    assert set(names(strange)) == {"unknown"}
    with pytest.warns(UserWarning, match=r"'slide' of slide 0 \(and 1 more\)"):
        stimg.tl.annotate([strange, foreign(slide)], model)


def test_sections_lists_copies_and_views_are_named_alike(slide, labelled, model):
    other = section(seed=2)
    singly = stimg.tl.annotate([slide, other], model, copy=True)
    assert "stimg_label" not in slide.obs
    joined = ad.concat({"a": slide, "b": other}, label="section", index_unique="-")
    stimg.pp.to_lattice(joined, library_key="section")
    stimg.tl.annotate(joined, model)
    assert names(joined).tolist() == [*names(singly[0]), *names(singly[1])]
    record = joined.uns["stimg"]["annotate"]
    assert record["sections"] == ["a", "b"]
    assert len(set(record["similarity"])) == 2
    both = stimg.tl.annotate(slide, model, reference=joined, label_key="domain", copy=True)
    assert share_right(both)[1] > 0.9
    (copied,) = stimg.tl.annotate([slide], model, copy=True)
    assert (names(copied) == names(singly[0])).all()
    view = slide[:, slide.var_names[::-1]]
    stimg.tl.annotate(view, model)
    assert (names(view) == names(singly[0])).mean() > 0.99
    assert "stimg_label" not in slide.obs


def test_spatialdata_and_expression_elsewhere(slide, labelled, model, tmp_path):
    import spatialdata

    right = stimg.tl.annotate(slide, model, copy=True)
    sdata = spatialdata.SpatialData(tables={"spots": slide.copy()})
    known = spatialdata.SpatialData(tables={"spots": labelled.copy()})
    stimg.tl.annotate(sdata, model, reference=known, label_key="domain", table_key="spots")
    other = stimg.tl.annotate(slide, model, reference=labelled, label_key="domain", copy=True)
    assert (names(sdata["spots"]) == names(other)).all()
    copied = stimg.tl.annotate(sdata, model, key_added="again", copy=True)
    assert (names(copied["spots"], "again") == names(right)).all()
    assert "again" not in sdata["spots"].obs
    lazy = slide.copy()
    lazy.X = da.from_array(lazy.X, chunks=(70, -1))
    slide.write_h5ad(tmp_path / "slide.h5ad")
    backed = ad.read_h5ad(tmp_path / "slide.h5ad", backed="r")
    for one in (lazy, backed):
        with stimg.settings.override(cachedir=tmp_path / "cache"):
            stimg.tl.annotate(one, model)
        assert (names(one) == names(right)).all()
    backed.file.close()


def test_what_is_written_survives_h5ad_and_is_drawn(slide, tissues, tmp_path):
    import matplotlib.pyplot as plt

    stimg.tl.annotate([slide, foreign(slide)], tissues, key_added="tissue")
    slide.write_h5ad(tmp_path / "slide.h5ad")
    back = ad.read_h5ad(tmp_path / "slide.h5ad")
    assert (names(back, "tissue") == names(slide, "tissue")).all()
    record, written = back.uns["stimg"]["tissue"], slide.uns["stimg"]["tissue"]
    assert set(record) == set(written)
    assert record["written_by"] == "annotate"
    assert list(record["tissue"]) == ["liver"]
    np.testing.assert_allclose(record["similarity"], written["similarity"])
    assert stimg.pl.domains(back, "tissue") is not None
    plt.close("all")


def test_observations_of_one_site_have_one_name(model, labelled):
    cells = section(seed=3, platform="free", n_obs=900)
    stimg.tl.annotate(cells, model, min_confidence=0)
    sites = pd.Series(list(map(tuple, cells.obsm["lattice"])))
    assert sites.duplicated().any()
    assert (pd.Series(names(cells)).groupby(sites).nunique() == 1).all()
    assert cells.obs["stimg_label_confidence"].groupby(sites.to_numpy()).nunique().eq(1).all()
    assert share_right(cells)[1] > 0.8
    stimg.tl.annotate(labelled, model, reference=cells, label_key="domain", min_confidence=0, copy=True)


def test_two_labels(slide, labelled, model):
    for one in (slide, labelled := labelled.copy()):
        one.obs["half"] = np.where(one.obs["domain"].isin(LAYERS[:2]), "upper", "lower")
    stimg.tl.annotate(slide, model, reference=labelled, label_key="half", min_confidence=0)
    assert (names(slide) == names(slide, "half")).mean() > 0.8
    swapped = labelled.obs["half"].map({"upper": "a", "lower": "b"})
    labelled.obs["swapped"] = swapped  # the other order of the two
    stimg.tl.annotate(slide, model, reference=labelled, label_key="swapped", min_confidence=0, key_added="ab")
    assert (pd.Series(names(slide, "ab")).map({"a": "upper", "b": "lower"}) == names(slide)).mean() > 0.995


@pytest.mark.parametrize("kind", ["categories", "integers", "booleans", "text"])
def test_labels_of_any_kind_with_missing_ones(slide, labelled, model, kind):
    labelled = labelled.copy()
    codes = labelled.obs["domain"].cat.codes.to_numpy()
    missing = np.arange(labelled.n_obs) % 4 == 0
    if kind == "categories":
        order = [*LAYERS[::-1], "not there", "Unknown"]
        column = pd.Series(names(labelled, "domain"), labelled.obs_names).mask(missing)
        column.iloc[1:20] = "Unknown"
        column, expected = pd.Categorical(column, categories=order), LAYERS[::-1]
    elif kind == "integers":
        column, expected = codes + 9, ["9", "10", "11", "12", "13"]
    elif kind == "booleans":
        column, expected = codes > 1, ["False", "True"]
    else:
        column, expected = np.where(missing, "unknown", names(labelled, "domain")).astype(object), LAYERS
        column[::8], column[4::8] = "", None
    labelled.obs["mine"] = column
    stimg.tl.annotate(slide, model, reference=labelled, label_key="mine", min_confidence=0)
    assert slide.obs["stimg_label"].cat.categories.tolist() == [*expected, "unknown"]
    truth = slide.obs["domain"].cat.codes.to_numpy()
    if kind == "categories":
        truth = 4 - truth
    elif kind == "booleans":
        truth = (truth > 1).astype(int)
    assert (slide.obs["stimg_label"].cat.codes.to_numpy() == truth).mean() > 0.75


def test_a_slide_that_is_labelled_in_part_names_the_rest(slide, model):
    slide.obs["some"] = slide.obs["domain"].astype(object).where(np.arange(slide.n_obs) % 5 == 0)
    before = slide.obs["some"].copy()
    stimg.tl.annotate(slide, model, reference=slide, label_key="some", min_confidence=0)
    assert share_right(slide)[1] > 0.9
    assert slide.obs["some"].equals(before)


def test_same_result_twice_and_torch_is_left_alone(slide, labelled, model):
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model.network.zero_grad()
    torch.manual_seed(7)
    np.random.seed(7)
    expected, drawn = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
    first = stimg.tl.annotate(slide, model, copy=True)
    stimg.tl.annotate(slide, model, reference=labelled, label_key="domain", key_added="other")
    second = stimg.tl.annotate(slide, model, copy=True)
    assert (names(first) == names(second)).all()
    assert (first.obs["stimg_label_confidence"] == second.obs["stimg_label_confidence"]).all()
    assert torch.equal(torch.get_rng_state(), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], drawn)
    assert torch.is_grad_enabled()
    assert not model.network.training
    assert all(one.grad is None for one in model.network.parameters())
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"label_key": "none"}, KeyError, r"'none' \(`label_key`\) not found in `adata.obs`"),
        ({"label_key": None}, ValueError, r"`label_key`, the column .*'domain'"),
        ({"label_key": "one"}, ValueError, r"at least two labels in `reference.obs\['one'\]`, found \['a'\]"),
        ({"label_key": "empty"}, ValueError, "only missing values"),
        ({"label_key": "depth"}, ValueError, r"`label_key`\), found float64"),
        ({"label_key": 3}, ValueError, "`label_key`"),
        ({"labels": "liver"}, ValueError, "either `labels` of the model or a `reference`"),
        ({"reference": None}, ValueError, "Expected a `reference` with `label_key`='domain'"),
        ({"reference": None, "label_key": None, "labels": "liver"}, ValueError, "`labels` to be left out"),
        ({"reference": None, "label_key": None, "labels": []}, ValueError, "`labels`"),
        ({"reference": None, "label_key": None, "labels": 3}, TypeError, "`labels`"),
        ({"reference": []}, ValueError, "`reference`, found an empty list"),
        ({"reference": "slide.h5ad"}, TypeError, "read_h5ad"),
        ({"reference": {"a": 1}}, TypeError, "found dict"),
        ({"model": "none.safetensors"}, FileNotFoundError, "none.safetensors"),
        ({"model": 3}, TypeError, "`model`"),
        ({"min_confidence": 1}, ValueError, "`min_confidence`"),
        ({"min_confidence": -0.1}, ValueError, "`min_confidence`"),
        ({"min_confidence": np.nan}, ValueError, "`min_confidence`"),
        ({"min_confidence": False}, ValueError, "`min_confidence`"),
        ({"min_confidence": "high"}, ValueError, "`min_confidence`"),
        ({"stride": 9}, ValueError, "`stride`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"key_added": "embed"}, ValueError, "`key_added`"),
        ({"layer": "none"}, KeyError, "none"),
        ({"lattice_key": "none"}, KeyError, "to_lattice"),
        ({"device": "tpu"}, ValueError, "`device`"),
        ({"copy": 1}, ValueError, "`copy`"),
    ],
)
def test_bad_arguments_change_nothing(slide, labelled, model, arguments, error, message):
    labelled = labelled.copy()
    labelled.obs["one"] = np.where(np.arange(labelled.n_obs) % 2, "a", "unknown")
    labelled.obs["empty"] = pd.Categorical([None] * labelled.n_obs, categories=["a", "b"])
    labelled.obs["depth"] = np.linspace(0, 1, labelled.n_obs)
    before = fingerprint(slide), fingerprint(labelled)
    with pytest.raises(error, match=message):
        stimg.tl.annotate(slide, **({"model": model, "reference": labelled, "label_key": "domain"} | arguments))
    assert (fingerprint(slide), fingerprint(labelled)) == before


def test_slides_that_cannot_be_compared_change_nothing(slide, labelled, model, trained, tissues):
    other, raw, few = slide.copy(), slide.copy(), labelled.copy()
    del raw.obsm["lattice"]
    few.var_names = [*few.var_names[:15], *(f"OTHER{i}" for i in range(few.n_vars - 15))]
    before = [fingerprint(one) for one in (slide, other, raw, few)]
    given = {"reference": labelled, "label_key": "domain"}
    for adata, arguments, error, message in (
        ([slide, slide], {}, ValueError, "`adata`, found one of them twice"),
        ([], {}, ValueError, "`adata`, found an empty list"),
        ([slide, raw], {}, KeyError, "to_lattice"),
        ([slide, other], given | {"reference": raw}, KeyError, "to_lattice"),
        ([slide, other], given | {"reference": [few, few]}, ValueError, "`reference`, found one of them twice"),
        ([slide, other], given | {"reference": few}, ValueError, r"at least 20 .* found (none|\d+) among"),
        ([slide, few], {}, ValueError, "at least 20"),
        (slide, {"model": trained}, ValueError, r"'stimg', which was trained without labels.*`reference`"),
        (slide, {"model": tissues, "labels": ["liver", "heart"]}, ValueError, r"among \['brain', 'liver'\]"),
    ):
        with pytest.raises(error, match=message):
            stimg.tl.annotate(adata, **({"model": model} | arguments))
    assert [fingerprint(one) for one in (slide, other, raw, few)] == before


@pytest.mark.parametrize("unit", ["spot", "slide"])
def test_models_of_other_units_know_names_too(slide, labelled, unit):
    stimg.tl.annotate(slide, train(labelled, unit=unit, steps=2), min_confidence=0)
    assert share_right(slide)[1] > 0.75


def test_few_genes_in_common_are_no_ground():
    """By chance, the means of a few genes may well correlate."""
    rising = np.arange(200, dtype=np.float32)
    known = Names("liver", ["a", "b"], *(Regression(np.zeros((2, 4)), np.zeros(2)),) * 2, rising, rising)
    whole = Section(None, np.arange(200), rising)
    assert known.similarity(whole) == pytest.approx(1)
    assert known.similarity(replace(whole, mean=np.where(rising < 20, rising, np.nan))) == pytest.approx(1)
    assert known.similarity(replace(whole, mean=np.where(rising < 19, rising, np.nan))) == 0
    assert known.similarity(replace(whole, mean=np.zeros(200))) == 0
    panel = replace(known, mean=np.where(rising < 12, rising, np.nan))
    assert panel.similarity(replace(whole, mean=np.where(rising < 6, rising, np.nan))) == pytest.approx(1)
    assert same_tissue(0.7) == 0.5
    assert same_tissue(-1) < 1e-8
    assert same_tissue(1) > 0.97


def test_a_part_of_a_tissue_keeps_its_names(model, labelled):
    """Z-scores within a part would spread all names over it; by the labelled sections, each keeps its own."""
    whole = section(seed=5, n_obs=800)
    for part in (["layer1", "layer2"], ["layer5"]):
        slide = whole[whole.obs["domain"].isin(part)].copy()
        stimg.pp.to_lattice(slide)
        for options in ({}, {"reference": labelled, "label_key": "domain"}):
            stimg.tl.annotate(slide, model, **options)
            certain = names(slide) != "unknown"
            assert certain.mean() > 0.2
            assert (
                np.mean(names(slide)[certain] == slide.obs["domain"].astype(str).to_numpy()[certain]) > 0.65
            )  # 0.4 of one layer by z-scores alone


def test_expert_labels_are_not_overwritten(slide, model, labelled):
    with pytest.raises(ValueError, match="`key_added`"):
        stimg.tl.annotate(labelled, model, reference=slide, label_key="domain", key_added="domain")
    assert labelled.obs["domain"].nunique() == 5
