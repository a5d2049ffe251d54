from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stimg


@pytest.fixture
def slide():
    obs = pd.DataFrame({"stimg_domain": list("aaaabbbbbb"), "type": list("TTTBTBBBBB")}, index=list("0123456789"))
    return anndata.AnnData(np.ones((10, 2), dtype=np.float32), obs=obs)


def test_counts_shares_and_tests_agree_with_fisher(slide):
    found = stimg.tl.enrichment(slide, "type").set_index(["domain", "cell_type"])
    row = found.loc[("a", "T")]
    assert row["n_obs"] == 3
    assert row["expected"] == pytest.approx(4 * 4 / 10)
    assert row["share"] == pytest.approx(0.75)
    assert row["share_overall"] == pytest.approx(0.4)
    assert row["log2_fold"] == pytest.approx(np.log2(3.5 / 2.1))
    right = stats.fisher_exact([[3, 1], [1, 5]], alternative="greater").pvalue
    assert row["p_value"] == pytest.approx(right)
    assert found["n_obs"].sum() == 10
    assert found["expected"].sum() == pytest.approx(10)
    np.testing.assert_allclose(found["p_adjusted"], stats.false_discovery_control(found["p_value"]))


def test_observations_without_either_label_are_left_out(slide):
    more = anndata.concat([slide, slide], index_unique="-")
    more.obs["type"] = [*slide.obs["type"], *["unknown", None] * 5]
    pd.testing.assert_frame_equal(stimg.tl.enrichment(more, "type"), stimg.tl.enrichment(slide, "type"))


def test_absent_types_are_finite(slide):
    slide.obs["type"] = ["T"] * 4 + ["B"] * 6
    found = stimg.tl.enrichment(slide, "type")
    assert np.isfinite(found.select_dtypes("number")).all(axis=None)
    assert found["p_value"].between(0, 1).all()
    assert (found.loc[found["n_obs"] == 0, "log2_fold"] < 0).all()


def test_planted_types_are_found():
    slide = stimg.datasets.synthetic(n_obs=400, n_genes=20, n_domains=4)
    rng = np.random.default_rng(0)
    slide.obs["type"] = np.array(list("ABCD"))[
        np.where(rng.random(400) < 0.6, slide.obs["domain"].cat.codes, rng.integers(4, size=400))
    ]
    found = stimg.tl.enrichment(slide, "type", "domain")
    best = found.sort_values("p_value").groupby("domain", observed=True).first()["cell_type"]
    assert best.tolist() == list("ABCD")
    assert (found["p_adjusted"] < 0.01).sum() == 4


def test_bad_input_is_refused(slide):
    slide.obs["number"] = np.linspace(0, 1, 10)
    slide.obs["other"] = ["T"] + [None] * 9
    slide.obs["rest"] = [None] + ["a"] * 9
    for arguments, error, message in (
        (("none",), KeyError, "cell_type_key"),
        (("type", "none"), KeyError, r"stimg\.tl\.domains"),
        (("number",), ValueError, "found float64"),
        (("type", "type"), ValueError, "different columns"),
        (("other", "rest"), ValueError, "found none"),
    ):
        with pytest.raises(error, match=message):
            stimg.tl.enrichment(slide, *arguments)


@pytest.mark.real
def test_layers_of_cortex_have_their_cells(real_data_dir):
    slide = anndata.read_h5ad(next((real_data_dir / "starmap_mpfc").glob("*BZ5*")))
    found = stimg.tl.enrichment(slide, "cell_type", "domain").set_index(["domain", "cell_type"])
    assert found.loc[("L2/3", "eL2/3"), "p_adjusted"] < 1e-10
    assert found.loc[("L1", "eL6-1"), "log2_fold"] < 0
