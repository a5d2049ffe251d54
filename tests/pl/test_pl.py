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


def test_domains_never_draws_the_image_of_another_section(slide):
    slide.obs["section"] = np.where(np.arange(slide.n_obs) < 100, "a", "b")
    name = next(iter(slide.uns["spatial"]))
    assert len(stimg.pl.domains(slide, library_key="section", library="b").images) == 0
    slide.uns["spatial"]["b"] = {
        "images": {"hires": np.zeros((4, 6, 3))},
        "scalefactors": {"tissue_hires_scalef": 0.5},
    }
    assert len(stimg.pl.domains(slide).images) == 0
    ax = stimg.pl.domains(slide, library_key="section", library="b")
    assert ax.images[0].get_extent() == [0, 12, 8, 0]
    assert len(stimg.pl.domains(slide, library_key="section", library="a").images) == 0
    del slide.uns["spatial"]["b"]
    slide.obs["section"] = name
    assert len(stimg.pl.domains(slide, library_key="section").images) == 1


def test_domains_sizes_spots_in_units_of_the_coordinates_drawn(slide):
    slide.obsm["small"] = slide.obsm["spatial"] / 100
    full, small = (stimg.pl.domains(slide, spatial_key=key) for key in ("spatial", "small"))
    np.testing.assert_allclose(spots(small)._widths, spots(full)._widths / 100, rtol=0.01)
    assert [type(a).__name__ for a in full.artists] == ["ScaleBar"]
    assert not small.artists
    assert (2 * spots(stimg.pl.domains(slide, size=7.0))._widths == 7).all()


def test_domains_refuses_what_it_cannot_draw(slide):
    slide.obs["number"] = np.linspace(0, 1, slide.n_obs)
    for arguments, message in (
        ({"key": "number"}, "Expected categories"),
        ({"size": 0}, "`size`"),
        ({"library": "a"}, "`library_key`"),
    ):
        with pytest.raises(ValueError, match=message):
            stimg.pl.domains(slide, **arguments)
    with pytest.raises(KeyError, match="confidence"):
        stimg.pl.domains(slide, "domain", confidence=True)


def test_patches_draws_windows_and_genes(make_slide):
    patches = stimg.pp.to_patches(make_slide(), size=8, n_channels=16)
    axes = stimg.pl.patches(patches, n=3)
    assert axes.shape == (1, 4)
    assert len(axes[0, 0].patches) == 3
    slide = patches.slides[0]
    top = slide.expression.toarray()[:, np.argmax(slide.weights)]
    np.testing.assert_allclose(spots(axes[0, 0]).get_array(), top)
    _, row, col = patches.window(0)
    first = slide.grid[row : row + 8, col : col + 8]
    np.testing.assert_allclose(spots(axes[0, 1]).get_array(), top[first[first >= 0]])
    genes = [str(gene) for gene in slide.genes[:2]]
    axes = stimg.pl.patches(patches, indices=[1], genes=genes)
    assert axes.shape == (2, 2)
    for panels, column in zip(axes, slide.expression.toarray().T, strict=False):
        np.testing.assert_allclose(spots(panels[0]).get_array(), column)
        assert spots(panels[0]).get_clim() == spots(panels[1]).get_clim()


@pytest.mark.parametrize("platform", ["visium", "square"])
def test_patches_outlines_hold_exactly_the_sites_of_their_window(make_slide, platform):
    patches = stimg.pp.to_patches(make_slide(platform), size=5, n_channels=16)
    axes = stimg.pl.patches(patches, indices=range(len(patches)))
    slide = patches.slides[0]
    for i, outline in enumerate(axes[0, 0].patches):
        _, row, col = patches.window(i)
        inside = (slide.sites >= (row, col)).all(1) & (slide.sites < (row + 5, col + 5)).all(1)
        box = outline.get_bbox()
        x, y = slide.positions()[inside].T
        assert (x > box.x0).all()
        assert (x < box.x1).all()
        assert (y > box.y0).all()
        assert (y < box.y1).all()
        assert axes[0, 0].get_xlim()[0] < box.x0 < box.x1 < axes[0, 0].get_xlim()[1]
        assert axes[0, 0].get_ylim()[1] < box.y0 < box.y1 < axes[0, 0].get_ylim()[0]
        assert box.width == pytest.approx(5.5 if platform == "visium" else 5)
        assert len(spots(axes[0, i + 1]).get_offsets()) == inside.sum()


def test_patches_of_one_part_do_not_show_the_other(make_slide):
    whole = stimg.pp.to_patches(make_slide(), size=4, stride=2, n_channels=16)
    train, held = whole.split(0.3)
    axes = stimg.pl.patches(train, indices=range(len(train)))
    hidden = whole.slides[0].positions()[held.grids[0][held.grids[0] >= 0]]
    hidden = {tuple(place) for place in hidden.round(3).tolist()}
    drawn = {tuple(place) for ax in axes[0, 1:] for place in spots(ax).get_offsets().round(3).tolist()}
    assert drawn
    assert not hidden & drawn


def test_patches_refuses_what_it_cannot_draw(make_slide):
    patches = stimg.pp.to_patches([make_slide(), make_slide(seed=1)], size=8, n_channels=16)
    last = len(patches) - 1
    for arguments, error, message in (
        ({"genes": "none"}, KeyError, "not among"),
        ({"genes": []}, ValueError, "`genes`"),
        ({"indices": [10**6]}, IndexError, "`indices`"),
        ({"indices": []}, ValueError, "`indices`"),
        ({"indices": [0, last]}, ValueError, "one slide"),
        ({"n": 0}, ValueError, "`n`"),
    ):
        with pytest.raises(error, match=message):
            stimg.pl.patches(patches, **arguments)


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
        np.testing.assert_allclose(predicted.get_array(), slide.obsm["stimg"][gene])
        assert gene in row[0].get_title()
    assert stimg.pl.reconstruction(slide, n_genes=1).shape == (1, 2)


def test_reconstruction_takes_the_genes_that_vary_most(slide):
    first, second = slide.obsm["stimg"].var(0).nlargest(2).index
    axes = stimg.pl.reconstruction(slide, n_genes=2)
    assert [row[0].get_title() for row in axes] == [f"{first}, measured", f"{second}, measured"]
    slide.obsm["stimg"][first] = np.nan
    assert stimg.pl.reconstruction(slide, n_genes=1)[0, 0].get_title() == f"{second}, measured"


def test_reconstruction_of_one_section_and_bad_input(slide):
    slide.obs["section"] = np.where(np.arange(slide.n_obs) < 100, "a", "b")
    axes = stimg.pl.reconstruction(slide, slide.obsm["stimg"].columns[0], library_key="section", library="a")
    assert len(spots(axes[0, 1]).get_offsets()) == 100
    with pytest.raises(KeyError, match="`genes`"):
        stimg.pl.reconstruction(slide, ["none"])
    with pytest.raises(ValueError, match="at least one gene"):
        stimg.pl.reconstruction(slide, [])
    unknown = next(gene for gene in slide.var_names if gene not in slide.obsm["stimg"])
    with pytest.raises(KeyError, match="without a prediction"):
        stimg.pl.reconstruction(slide, unknown)
    slide.uns["stimg"] = {"lattice": slide.uns["stimg"]["lattice"]}
    with pytest.raises(KeyError, match=r"stimg\.tl\.reconstruct"):
        stimg.pl.reconstruction(slide)


def test_history_draws_both_losses(trained):
    ax = stimg.pl.history(trained)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), trained.history["train_loss"])
    assert ax.get_xlabel() == "epoch"
    with pytest.raises(ValueError, match="history"):
        stimg.pl.history(trained.history.iloc[:0])
    with pytest.raises(KeyError, match="val_loss"):
        stimg.pl.history(trained.history[["epoch", "train_loss"]])
    with pytest.raises(TypeError, match="found int"):
        stimg.pl.history(3)


def test_missing_keys_say_what_to_run(make_slide):
    slide = make_slide()
    with pytest.raises(KeyError, match=r"stimg\.tl\.domains"):
        stimg.pl.domains(slide)
    with pytest.raises(KeyError, match=r"stimg\.tl\.reconstruct"):
        stimg.pl.reconstruction(slide)
