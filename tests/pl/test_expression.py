"""Figures of expression predicted from H&E."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

import stimg


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def slide():
    """A slide with a prediction and a dense map, as `predict_expression` leaves them."""
    slide = stimg.datasets.synthetic_histology(n_rows=4, n_cols=5, n_genes=4)
    stimg.pp.to_lattice(slide, platform="st")
    values = np.random.default_rng(0).random(slide.shape).astype(np.float32)
    slide.obsm["stimg_image"] = pd.DataFrame(values[:, :3], slide.obs_names, slide.var_names[:3])
    slide.uns["stimg"]["predict_expression"] = {"target_sum": 1e4, "unit": "log1p(counts per 10,000)"}
    return slide


def test_panels_of_a_gene_share_a_scale(slide):
    axes = stimg.pl.expression_map(slide, ["Gene0", "Gene1"])
    assert axes.shape == (2, 3)
    for panels, gene in zip(axes, ("Gene0", "Gene1"), strict=True):
        measured, predicted = (ax.collections[0] for ax in panels[1:])
        assert measured.get_clim() == predicted.get_clim()
        assert np.allclose(predicted.get_array(), slide.obsm["stimg_image"][gene])
        assert gene in panels[1].get_title()
    assert len(axes[0, 0].images) == 1


def test_the_map_lies_where_its_transform_says(slide):
    transform = np.array([[4.0, 0, 40.0], [0, 4.0, 80.0], [0, 0, 1]])
    dense = {"genes": np.array(["Gene1"]), "map": np.ones((1, 30, 20), np.float32), "transform": transform}
    slide.uns["stimg"]["expression_map"] = dense
    axes = stimg.pl.expression_map(slide, ["Gene0", "Gene1"])
    assert axes.shape == (2, 4)
    assert not axes[0, 3].images
    assert axes[1, 3].images[0].get_extent() == [40, 120, 200, 80]
    dense["tissue"] = np.arange(600).reshape(30, 20) % 2 == 0
    drawn = stimg.pl.expression_map(slide, "Gene1")[0, 3].images[0].get_array()
    np.testing.assert_array_equal(np.isfinite(np.ma.filled(drawn, np.nan)), dense["tissue"])


def test_an_image_can_be_given(slide):
    slide.uns["spatial"]["histology"]["images"] = {}
    assert not stimg.pl.expression_map(slide, "Gene0")[0, 0].images
    image = np.zeros((50, 60, 3), np.uint8)
    drawn = stimg.pl.expression_map(slide, "Gene0", image=image, image_scale=0.1)[0, 0].images[0]
    assert drawn.get_extent() == [0, 600, 500, 0]


def test_an_image_known_by_its_path_is_drawn(slide, tmp_path):
    entry = slide.uns["spatial"]["histology"]
    pixels = entry["images"].pop("hires")
    wide = np.kron(pixels, np.ones((1, 5, 1), np.uint8))
    Image.fromarray(wide).save(tmp_path / "biopsy.png")
    entry["metadata"] = {"source_image_path": str(tmp_path / "biopsy.png")}
    drawn = stimg.pl.expression_map(slide, "Gene0")[0, 0].images[0]
    assert wide.shape[1] > 2000 >= drawn.get_array().shape[1]
    assert np.allclose(drawn.get_extent(), [0, wide.shape[1], wide.shape[0], 0], atol=2)
    assert np.abs(drawn.get_array().mean() - pixels.mean()) < 1
    entry["metadata"]["source_image_path"] = str(tmp_path / "gone.png")
    assert not stimg.pl.expression_map(slide, "Gene0")[0, 0].images


def test_a_slide_without_counts_has_no_measured_panel(slide):
    for empty in (sparse.csr_matrix(slide.shape, dtype=np.float32), None):
        slide.X = empty
        axes = stimg.pl.expression_map(slide, "Gene0")
        assert [ax.get_title() for ax in axes[0]] == ["H&E", "Gene0, predicted"]
        values = slide.obsm["stimg_image"]["Gene0"]
        assert np.allclose(axes[0, 1].collections[0].get_array(), values)


def test_only_the_section_asked_for_is_drawn(slide):
    other = slide.copy()
    other.obsm["stimg_image"] += 5
    both = ad.concat({"a": slide, "b": other}, label="section", index_unique="-")
    stimg.pp.to_lattice(both, "st", library_key="section")
    both.uns["stimg"]["predict_expression"] = slide.uns["stimg"]["predict_expression"]
    both.uns["spatial"] = {"b": slide.uns["spatial"]["histology"]}
    for name, part, n_images in (("a", slide, 0), ("b", other, 1)):
        axes = stimg.pl.expression_map(both, "Gene1", library_id=name)
        found = axes[0, 2].collections[0]
        assert np.allclose(found.get_offsets(), part.obsm["spatial"])
        assert np.allclose(found.get_array(), part.obsm["stimg_image"]["Gene1"])
        assert len(axes[0, 0].images) == n_images
    for wrong in (None, "c"):
        with pytest.raises(ValueError, match="library_id"):
            stimg.pl.expression_map(both, "Gene1", library_id=wrong)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"genes": "Unheard"}, KeyError, "Unheard"),
        ({"genes": []}, ValueError, "genes"),
        ({"genes": "Gene3"}, KeyError, "without a prediction"),
        ({"genes": "Gene0", "key": "absent"}, KeyError, "predict_expression"),
        ({"genes": "Gene0", "measured_layer": "scaled"}, ValueError, "NaN"),
    ],
)
def test_bad_input_of_maps(slide, options, error, message):
    slide.layers["scaled"] = np.full(slide.shape, np.nan)
    with pytest.raises(error, match=message):
        stimg.pl.expression_map(slide, **options)
    assert not plt.get_fignums()


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    true = rng.random((40, 30))
    true[:, 4] = 1
    guess = true + rng.normal(0, np.linspace(0.1, 3, 30), (40, 30))
    return stimg.metrics.gene_correlations(true, guess, genes=[f"Gene{i}" for i in range(30)])


def test_genes_are_ranked_and_the_extremes_named(table):
    ax = stimg.pl.gene_correlation(table, n_labels=3)
    points = ax.collections[0].get_offsets()
    assert len(points) == 29
    assert (np.diff(points[:, 1]) <= 0).all()
    ordered = table["pearson"].dropna().sort_values(ascending=False).index
    assert {text.get_text() for text in ax.texts} == {*ordered[:3], *ordered[-3:]}
    assert "1 constant" in ax.get_xlabel()
    low, high = ax.get_ylim()
    assert low < points[:, 1].min() and points[:, 1].max() < high


def test_bad_input_of_ranks(table):
    with pytest.raises(TypeError, match="gene_correlations"):
        stimg.pl.gene_correlation([0.1])
    with pytest.raises(KeyError, match="pearson"):
        stimg.pl.gene_correlation(pd.DataFrame({"x": [1]}))
    with pytest.raises(ValueError, match="n_labels"):
        stimg.pl.gene_correlation(table, n_labels=-1)
    with pytest.raises(ValueError, match="correlation"):
        stimg.pl.gene_correlation(table.assign(pearson=np.nan))
