from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from sklearn.decomposition import PCA

import stimg
from stimg._apply._shared import shared_components


@pytest.fixture
def pair(make_slide, trained):
    slides = [make_slide(), make_slide(seed=1)]
    stimg.tl.embed(slides, trained)
    return slides


def test_sections_of_one_call_get_an_embedding_that_is_comparable(pair, make_slide, trained):
    for slide in pair:
        joint = slide.obsm["X_stimg_joint"]
        assert joint.dtype == np.float32 and joint.shape == (300, 50)
        assert np.allclose(joint.mean(0), 0, atol=1e-4)  # sections have one centre, whatever their depth
    one, other = (slide.uns["stimg"]["embed"]["embedded_together"] for slide in pair)
    assert one == other != ""
    alone = make_slide()
    stimg.tl.embed(alone, trained)
    assert np.array_equal(alone.obsm["X_stimg"], pair[0].obsm["X_stimg"])
    assert np.array_equal(alone.obsm["X_stimg_slide"], pair[0].obsm["X_stimg_slide"])
    again = [make_slide(), make_slide(seed=1)]
    stimg.tl.embed(again, trained)
    assert np.array_equal(again[1].obsm["X_stimg_joint"], pair[1].obsm["X_stimg_joint"])


def test_sections_of_one_object_are_embedded_as_those_of_a_list(pair, trained):
    joined = ad.concat(pair, label="section", index_unique="-")
    stimg.pp.to_lattice(joined, library_key="section")
    stimg.tl.embed(joined, trained)
    assert np.allclose(joined.obsm["X_stimg_joint"][:300], pair[0].obsm["X_stimg_joint"], atol=1e-3)
    stimg.tl.domains(joined, 4)
    assert joined.uns["stimg"]["domains"]["use_rep"] == "X_stimg_joint"


def test_a_section_alone_has_none_and_an_old_one_goes(pair, trained):
    stimg.tl.embed(pair[0], trained)
    assert "X_stimg_joint" not in pair[0].obsm
    assert pair[0].uns["stimg"]["embed"]["embedded_together"] == ""


def test_shared_components_are_those_of_the_shared_genes(pair, trained):
    from stimg._apply._tokens import match_slides

    pair[1] = pair[1][:, 5:].copy()
    matched = [match_slides(slide, trained, layer=None, scale=None, lattice_key="lattice")[0][0] for slide in pair]
    found = shared_components(trained, matched)
    shared = pair[1].var_names[pair[1].var_names.isin(trained.genes)]
    values = []
    for slide, (section, _) in zip(pair, matched, strict=True):
        columns = slide.var_names.get_indexer(shared)
        values.append(section.standardise(section.expression.toarray()[:, columns], columns))
    exact = PCA(20, svd_solver="full").fit(np.concatenate(values))
    for own, (part, near), (section, _) in zip(values, found, matched, strict=True):
        assert part.shape == (section.n_sites, 80)
        scores = own @ exact.components_.T
        assert np.allclose(np.abs(part[:, :3]), np.abs(scores[:, :3]), atol=0.1)
        away = np.linalg.norm(section.positions() - section.positions()[7], axis=1)
        assert np.allclose(part[7, 20:23], part[(away > 0.5) & (away <= 1.5), :3].mean(0), atol=1e-5)
        assert np.allclose(near[7, :3], part[away <= 2.3, :3].mean(0), atol=1e-5)


def test_domains_of_sections_take_what_is_comparable(pair, make_slide, trained):
    stimg.tl.domains(pair, 5)
    assert all(slide.uns["stimg"]["domains"]["use_rep"] == "X_stimg_joint" for slide in pair)
    scores = [stimg.metrics.domain_scores(slide.obs["domain"], slide.obs["stimg_domain"])["ari"] for slide in pair]
    assert min(scores) > 0.5  # 0.02 by this network alone
    stimg.tl.domains([pair[0][:200].copy(), pair[1]], 3)  # a part of the rows is as comparable
    other = make_slide(seed=2)
    stimg.tl.embed(other, trained)
    stimg.tl.domains([pair[0], other], 3)
    assert pair[0].uns["stimg"]["domains"]["use_rep"] == "X_stimg"
    stimg.tl.domains(pair[0], 3)
    assert pair[0].uns["stimg"]["domains"]["use_rep"] == "X_stimg_slide"


def test_joint_embeddings_of_several_calls_are_refused(pair, make_slide, trained):
    others = [make_slide(seed=2), make_slide(seed=3)]
    stimg.tl.embed(others, trained)
    with pytest.raises(ValueError, match="Embed them together"):
        stimg.tl.domains([pair[0], others[0]], 3, use_rep="X_stimg_joint")
    joined = ad.concat([pair[0], others[0]], label="section", index_unique="-", uns_merge="first")
    with pytest.raises(ValueError, match="Embed them together"):
        stimg.tl.domains(joined, 3, use_rep="X_stimg_joint", library_key="section")
    assert "stimg_domain" not in joined.obs


def test_sections_with_hardly_any_common_genes_have_no_joint_embedding(make_slide, trained):
    known = list(trained.genes)
    halves = [make_slide()[:, known[:21]].copy(), make_slide(seed=1)[:, known[19:]].copy()]
    stimg.tl.embed(halves, trained)
    assert all("X_stimg_joint" not in half.obsm for half in halves)
    stimg.tl.domains(halves, 3)
    assert halves[0].uns["stimg"]["domains"]["use_rep"] == "X_stimg"
