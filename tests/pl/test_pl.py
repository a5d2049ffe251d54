from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

import stimg

mpl.use("Agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def spots(ax):
    return next(c for c in ax.collections if isinstance(c, EllipseCollection))


@pytest.fixture
def slide(make_slide, trained):
    slide = make_slide()
    stimg.tl.embed(slide, trained)
    stimg.tl.domains(slide, 3)
    stimg.tl.reconstruct(slide, trained)
    return slide


def test_domains_draws_every_observation_in_its_colour(slide):
    ax = stimg.pl.domains(slide)
    drawn = spots(ax)
    np.testing.assert_allclose(drawn.get_offsets(), slide.obsm["spatial"])
    colours = mpl.colors.to_rgba_array(slide.uns["stimg_domain_colors"])
    np.testing.assert_allclose(drawn.get_facecolors(), colours[slide.obs["stimg_domain"].cat.codes])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["1", "2", "3"]
    assert "stimg_domain" in ax.get_title()
    assert len(ax.images) == 1
    assert ax.yaxis_inverted()
    assert len(stimg.pl.domains(slide, image=False).images) == 0


def test_domains_takes_axes_labels_and_confidence(slide):
    _, ax = plt.subplots()
    slide.obs.loc[slide.obs_names[:5], "domain"] = np.nan
    assert stimg.pl.domains(slide, "domain", ax=ax, title="experts") is ax
    assert ax.get_title() == "experts"
    assert ax.get_legend().get_texts()[-1].get_text() == "unlabelled"
    faded = spots(stimg.pl.domains(slide, confidence=True))
    assert np.ptp(faded.get_facecolors()[:, 3]) > 0


def test_domains_of_one_section(slide):
    slide.obs["section"] = np.where(np.arange(slide.n_obs) < 100, "a", "b")
    with pytest.raises(ValueError, match="several sections"):
        stimg.pl.domains(slide, library_key="section")
    with pytest.raises(ValueError, match="No section 'c'"):
        stimg.pl.domains(slide, library_key="section", library="c")
    assert len(spots(stimg.pl.domains(slide, library_key="section", library="a")).get_offsets()) == 100


def test_patches_draws_windows_and_one_gene(make_slide):
    patches = stimg.pp.to_patches(make_slide(), size=8, n_channels=16)
    axes = stimg.pl.patches(patches, n=3)
    assert len(axes) == 4
    assert len(axes[0].patches) == 3
    slide = patches.slides[0]
    top = slide.expression.toarray()[:, np.argmax(slide.weights)]
    np.testing.assert_allclose(spots(axes[0]).get_array(), top)
    _, row, col = patches.window(0)
    first = slide.grid[row : row + 8, col : col + 8]
    np.testing.assert_allclose(spots(axes[1]).get_array(), top[first[first >= 0]])
    with pytest.raises(KeyError, match="not among"):
        stimg.pl.patches(patches, gene="none")
    with pytest.raises(IndexError, match="`indices`"):
        stimg.pl.patches(patches, indices=[10**6])


def test_reconstruction_shares_one_scale_a_gene(slide):
    genes = list(slide.var_names[slide.var["stimg_weight"] > 0][:2])
    axes = stimg.pl.reconstruction(slide, genes)
    assert axes.shape == (2, 2)
    for row, gene in zip(axes, genes, strict=True):
        measured, predicted = spots(row[0]), spots(row[1])
        assert measured.get_clim() == predicted.get_clim()
        counts = slide.X.toarray()
        logged = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
        np.testing.assert_allclose(measured.get_array(), logged[:, slide.var_names.get_loc(gene)], rtol=1e-4)
        np.testing.assert_allclose(predicted.get_array(), slide.layers["stimg"][:, slide.var_names.get_loc(gene)])
        assert gene in row[0].get_title()
    assert stimg.pl.reconstruction(slide, n_genes=1).shape == (1, 2)


def test_history_draws_both_losses(trained):
    ax = stimg.pl.history(trained)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), trained.history["train_loss"])
    assert ax.get_xlabel() == "epoch"
    with pytest.raises(ValueError, match="history"):
        stimg.pl.history(trained.history.iloc[:0])


def test_missing_keys_say_what_to_run(make_slide):
    slide = make_slide()
    with pytest.raises(KeyError, match=r"stimg\.tl\.domains"):
        stimg.pl.domains(slide)
    with pytest.raises(KeyError, match=r"stimg\.tl\.reconstruct"):
        stimg.pl.reconstruction(slide)
