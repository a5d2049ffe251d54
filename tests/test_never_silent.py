"""What people do to a slide between two steps: the right embedding, or an error of stimg's own; nothing in between.

The right embedding is known here: that of the slides as they were, one by one.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
from fuzzing import attempt
from hypothesis import strategies as st
from PIL import Image
from test_fuzz import cases, drawn

import stimg
from stimg._image._slide_image import open_image

CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # float16 holds three digits


def laid(seed: int, platform: str, n_obs: int) -> ad.AnnData:
    """Return a slide on its lattice, in a frame of its own."""
    slide = stimg.datasets.synthetic(platform, n_obs=n_obs, n_genes=60, seed=seed)
    slide.obsm["spatial"] = slide.obsm["spatial"] + 1000.0 * seed
    stimg.pp.to_lattice(slide)
    return slide


# Each changes joined slides (observations "a..." and "b...", column `batch`) as users and other packages do.
JOINED = {
    "nothing": lambda slide, rng: slide,
    "relaid": lambda slide, rng: relaid(slide, "batch"),
    "relaid as one": lambda slide, rng: relaid(slide, None),
    "relaid in a strange order": lambda slide, rng: relaid(slide[rng.permutation(slide.n_obs)].copy(), "batch"),
    "renamed": lambda slide, rng: renamed(relaid(slide, "batch"), {"a": "c"}),
    "column dropped": lambda slide, rng: without_column(relaid(slide, "batch")),
    "column with gaps": lambda slide, rng: with_gaps(relaid(slide, "batch")),
    "column mixed up": lambda slide, rng: mixed_up(relaid(slide, "batch"), rng),
    "half": lambda slide, rng: relaid(slide, "batch")[rng.permutation(slide.n_obs)].copy(),
    "one slide": lambda slide, rng: relaid(slide, "batch")[slide.obs["batch"] == "a"].copy(),
    "twice": lambda slide, rng: ad.concat([relaid(slide, "batch")] * 2, uns_merge="same", index_unique="-"),
}


def relaid(slide: ad.AnnData, library_key: str | None) -> ad.AnnData:
    stimg.pp.to_lattice(slide, library_key=library_key)
    return slide


def renamed(slide: ad.AnnData, names: dict[str, str]) -> ad.AnnData:
    slide.obs["batch"] = slide.obs["batch"].cat.rename_categories(names)
    return slide


def without_column(slide: ad.AnnData) -> ad.AnnData:
    del slide.obs["batch"]
    return slide


def with_gaps(slide: ad.AnnData) -> ad.AnnData:
    slide.obs["batch"] = slide.obs["batch"].where(np.arange(slide.n_obs) > 3)
    return slide


def mixed_up(slide: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
    slide.obs["batch"] = pd.Categorical(rng.permutation(slide.obs["batch"].to_numpy()))
    return slide


def agrees(found: ad.AnnData, right: pd.DataFrame) -> bool:
    """Tell whether every observation has the embedding that it has on its own slide."""
    names = found.obs_names.str.replace(r"-\d$", "", regex=True)
    return np.allclose(found.obsm["X_stimg"], right.loc[names], **CLOSE)


@cases(60, 3000)
def test_slides_joined_and_changed(examples, trained):
    worked = set()

    @drawn(
        examples,
        merge=st.sampled_from([None, "same", "unique", "first", "only"]),
        change=st.sampled_from(list(JOINED)),
        platforms=st.sampled_from([("visium", "visium"), ("free", "free"), ("square", "square"), ("visium", "free")]),
        sizes=st.sampled_from([(60, 60), (60, 90), (90, 30)]),
        seed=st.integers(0, 99),
    )
    def run(merge, change, platforms, sizes, seed):
        parts = {name: laid(seed + i, platforms[i], sizes[i]) for i, name in enumerate("ab")}
        for name, part in parts.items():
            part.obs_names = name + part.obs_names
            stimg.tl.embed(part, trained)
        right = pd.concat(pd.DataFrame(part.obsm["X_stimg"], part.obs_names) for part in parts.values())
        joined = ad.concat(parts, uns_merge=merge, label="batch")
        del joined.obsm["X_stimg"]
        kept = []
        if not attempt(lambda: kept.append(JOINED[change](joined, np.random.default_rng(seed)))):
            return
        if attempt(lambda: stimg.tl.embed(kept[0], trained), kept[0]):
            # A new lattice of free slides has one pitch for all, and may bin them anew.
            if "free" not in platforms:
                assert agrees(kept[0], right)
            worked.add(change)

    run()
    assert {"relaid", "half", "one slide"} <= worked


GRADIENT = np.linspace(90, 230, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
GREY = GRADIENT[..., 0]
# What is stored for the photometric, and the colours that it means.
STORED = {
    "rgb": lambda: (GRADIENT, GRADIENT),
    "minisblack": lambda: (GREY, np.dstack([GREY] * 3)),
    "miniswhite": lambda: (255 - GREY, np.dstack([GREY] * 3)),
    "ycbcr": lambda: (np.asarray(Image.fromarray(GRADIENT).convert("YCbCr")), GRADIENT),
    "separated": lambda: (np.dstack([255 - GRADIENT, np.zeros_like(GREY)]), GRADIENT),
    "cielab": lambda: (GRADIENT, None),
    "logluv": lambda: (GRADIENT, None),
}


@cases(60, 3000)
def test_tiff_of_any_kind(examples, tmp_path):
    """A TIFF has its colours, however it is stored, or is refused."""
    path, worked = tmp_path / "image.tif", set()

    @drawn(
        examples,
        photometric=st.sampled_from(list(STORED)),
        bits=st.sampled_from([8, 16]),
        order=st.sampled_from("<>"),
        apart=st.booleans(),
        layout=st.sampled_from([{}, {"tile": (16, 16)}, {"rowsperstrip": 5}]),
        compression=st.sampled_from([None, "zlib", "lzw", "zstd"]),
        predictor=st.booleans(),
        bigtiff=st.booleans(),
    )
    def run(photometric, bits, order, apart, layout, compression, predictor, bigtiff):
        values, right = STORED[photometric]()
        if bits == 16:
            values = values.astype(np.uint16) * 257
        options = {"planarconfig": "separate"} if apart and values.ndim == 3 else {}
        if options:
            values = values.transpose(2, 0, 1)
        options |= {"predictor": predictor} if compression else {}
        options |= {"compression": compression, "photometric": photometric, **layout}
        tifffile.imwrite(path, values, bigtiff=bigtiff, byteorder=order, **options)
        found = []
        if attempt(lambda: found.append(open_image(path, 1.0, "image").overview(1.0))):
            assert right is not None
            assert np.abs(found[0].astype(int) - right).max() <= 3
            worked.add(photometric)

    run()
    assert {"rgb", "minisblack", "miniswhite", "ycbcr"} <= worked


# Each changes one slide on its lattice in a way that leaves the right embedding as it is, if it is accepted at all.
EDITS = {
    "float16": lambda slide: with_values(slide, np.float16),
    "big-endian": lambda slide: with_values(slide, ">f4"),
    "big-endian integers": lambda slide: with_values(slide, ">i4"),
    "64 bits": lambda slide: with_values(slide, np.float64),
    "16-bit integers": lambda slide: with_values(slide, np.int16),
    "huge value": lambda slide: with_entry(slide, 1e39),
    "infinite value": lambda slide: with_entry(slide, np.inf),
    "NaN": lambda slide: with_entry(slide, np.nan),
    "negative value": lambda slide: with_entry(slide, -1),
    "big-endian coordinates": lambda slide: with_places(slide, slide.obsm["spatial"].astype(">f8")),
    "coordinates in float32": lambda slide: with_places(slide, slide.obsm["spatial"].astype(np.float32)),
    "coordinates exchanged": lambda slide: with_places(slide, slide.obsm["spatial"][:, ::-1].copy()),
    "coordinates of others": lambda slide: with_places(slide, slide.obsm["spatial"][::-1].copy()),
    "coordinates lost": lambda slide: slide.obsm.pop("spatial"),
    "site below 0": lambda slide: with_sites(slide, slide.obsm["lattice"] - 1),
    "sites moved": lambda slide: with_sites(slide, slide.obsm["lattice"] + 3),
    "sites of others": lambda slide: with_sites(slide, slide.obsm["lattice"][::-1].copy()),
    "sites exchanged": lambda slide: with_sites(slide, slide.obsm["lattice"][:, ::-1].copy()),
    "sites as numbers": lambda slide: with_sites(slide, slide.obsm["lattice"].astype(float)),
    "one site for all": lambda slide: with_sites(slide, np.zeros_like(slide.obsm["lattice"])),
    "record lost": lambda slide: slide.uns.pop("stimg"),
    "record cut": lambda slide: slide.uns["stimg"]["lattice"].pop("parity"),
    "sparse by columns": lambda slide: setattr(slide, "X", slide.X.tocsc()),
}


def with_values(slide: ad.AnnData, dtype) -> None:
    slide.X = slide.X.toarray().astype(dtype)


def with_entry(slide: ad.AnnData, value: float) -> None:
    slide.X = slide.X.astype(np.float64)
    slide.X.data[0] = value


def with_places(slide: ad.AnnData, places: np.ndarray) -> None:
    slide.obsm["spatial"] = places


def with_sites(slide: ad.AnnData, sites: np.ndarray) -> None:
    slide.obsm["lattice"] = sites


@pytest.mark.parametrize("platform", ["visium", "square", "free"])
@pytest.mark.parametrize("edit", EDITS)
def test_slide_changed_after_its_lattice(edit, platform, trained):
    slide = laid(5, platform, 80)
    right = slide.copy()
    stimg.tl.embed(right, trained)
    EDITS[edit](slide)
    if attempt(lambda: stimg.tl.embed(slide, trained), slide):
        np.testing.assert_allclose(slide.obsm["X_stimg"], right.obsm["X_stimg"], **CLOSE)
        assert edit not in MUST_FAIL
    else:
        assert edit not in MUST_WORK


@pytest.mark.parametrize("edit", EDITS)
def test_names_of_a_slide_changed_after_its_lattice(edit, trained):
    slide, known = laid(5, "visium", 80), laid(6, "visium", 200)
    given = {"model": trained, "reference": known, "label_key": "domain", "min_confidence": 0}
    right = stimg.tl.annotate(slide, copy=True, **given)
    EDITS[edit](slide)
    if attempt(lambda: stimg.tl.annotate(slide, **given), slide, known):
        assert np.allclose(slide.obs["stimg_label_confidence"], right.obs["stimg_label_confidence"], atol=0.01)
        assert (slide.obs["stimg_label"] == right.obs["stimg_label"]).mean() > 0.97
        assert edit not in MUST_FAIL
    else:
        assert edit not in MUST_WORK


MUST_WORK = {"big-endian", "big-endian integers", "64 bits", "16-bit integers", "sparse by columns"}
MUST_FAIL = {
    *("huge value", "infinite value", "NaN", "negative value", "coordinates of others"),
    *("site below 0", "sites of others", "one site for all", "record lost", "record cut"),
}
