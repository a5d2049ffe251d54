from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stimg

COUNTS = {"control": [(50, 30, 20), (55, 25, 20), (48, 33, 19)], "treated": [(20, 30, 50), (25, 30, 45)]}


def table(counts):
    rows = [
        (f"{condition}{number}", condition, f"d{domain}", count)
        for condition, samples in counts.items()
        for number, sample in enumerate(samples)
        for domain, count in enumerate(sample)
    ]
    return pd.DataFrame(rows, columns=["sample", "condition", "domain", "n_obs"])


def test_samples_are_compared_by_centred_log_ratios():
    found = stimg.tl.compare_proportions(table(COUNTS))
    logs = {name: np.log2(np.array(counts) + 0.5) for name, counts in COUNTS.items()}
    ratios = {name: values - values.mean(1, keepdims=True) for name, values in logs.items()}
    right = stats.ttest_ind(ratios["treated"], ratios["control"], equal_var=False)
    assert found["domain"].tolist() == ["d0", "d1", "d2"]
    assert set(found["condition"]) == {"treated"}
    assert set(found["reference"]) == {"control"}
    assert found["n_samples"].tolist() == [2] * 3
    assert found["n_reference"].tolist() == [3] * 3
    np.testing.assert_allclose(found["p_value"], right.pvalue)
    np.testing.assert_allclose(found["t"], right.statistic)
    np.testing.assert_allclose(found["log2_ratio"], ratios["treated"].mean(0) - ratios["control"].mean(0))
    np.testing.assert_allclose(found["p_adjusted"], stats.false_discovery_control(right.pvalue))
    np.testing.assert_allclose(found["share"], [0.225, 0.3, 0.475])


def test_the_order_of_rows_and_absent_zeros_do_not_matter():
    rows = table({"control": [(5, 3, 0), (6, 2, 1)], "treated": [(1, 2, 3), (2, 0, 3)]})
    right = stimg.tl.compare_proportions(rows)
    mixed = rows[rows["n_obs"] > 0].sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(stimg.tl.compare_proportions(mixed), right)


def test_more_spots_of_the_same_samples_are_no_more_evidence():
    few = stimg.tl.compare_proportions(table(COUNTS))
    many = {name: [tuple(1000 * n for n in sample) for sample in samples] for name, samples in COUNTS.items()}
    found = stimg.tl.compare_proportions(table(many))
    np.testing.assert_allclose(found["p_value"], few["p_value"], rtol=0.2)


def test_one_sample_cannot_be_tested():
    counts = {"control": COUNTS["control"], "lone": [(1, 0, 9)], "treated": COUNTS["treated"]}
    with pytest.warns(UserWarning, match=r"single sample.*\['lone'\]"):
        found = stimg.tl.compare_proportions(table(counts))
    assert found.groupby(["condition", "reference"]).size().to_dict() == {
        ("lone", "control"): 3,
        ("treated", "control"): 3,
        ("treated", "lone"): 3,
    }
    tested = found[["n_samples", "n_reference"]].min(axis=1) > 1
    assert found["p_value"].notna().tolist() == tested.tolist()
    assert found["p_adjusted"].notna().tolist() == tested.tolist()
    assert np.isfinite(found["log2_ratio"]).all()


def test_samples_that_do_not_vary_have_no_p_value():
    found = stimg.tl.compare_proportions(table({"a": [(5, 5), (5, 5)], "b": [(5, 5), (5, 5)]}))
    assert found["p_value"].isna().all()
    assert (found["log2_ratio"] == 0).all()


def test_the_whole_way_from_slides():
    slides = [stimg.datasets.synthetic(n_obs=60, n_genes=20, seed=seed) for seed in range(4)]
    for number, slide in enumerate(slides):
        slide.obs["condition"] = "ab"[number // 2]
    shares = stimg.tl.domain_proportions(slides, "domain", condition_key="condition")
    found = stimg.tl.compare_proportions(shares)
    assert len(found) == 5
    assert found["n_samples"].tolist() == [2] * 5
    with pytest.raises(KeyError, match="condition_key"):
        stimg.tl.compare_proportions(stimg.tl.domain_proportions(slides, "domain"))


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="found list"):
        stimg.tl.compare_proportions([1])
    with pytest.raises(ValueError, match="two conditions"):
        stimg.tl.compare_proportions(table({"a": COUNTS["control"]}))
    with pytest.raises(ValueError, match="two conditions"):
        stimg.tl.compare_proportions(table({"a": [(3,), (4,)], "b": [(3,), (4,)]}))
