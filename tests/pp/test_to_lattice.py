from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import stimg

FOLDER = Path(os.environ.get("STIMG_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data")
REAL = sorted(FOLDER.glob("*/*.h5ad")) if FOLDER.is_dir() else []
quick = settings(max_examples=60, deadline=None)


def slide_of(coordinates=None, array=None, **obs):
    n_obs = len(array if coordinates is None else coordinates)
    table = pd.DataFrame(obs, index=[f"o{i}" for i in range(n_obs)])
    if array is not None:
        table["array_row"], table["array_col"] = np.asarray(array).T
    slide = ad.AnnData(np.ones((n_obs, 2), dtype=np.float32), obs=table)
    if coordinates is not None:
        slide.obsm["spatial"] = np.asarray(coordinates, dtype=np.float64)
    return slide


def hex_array(n_rows, n_cols, parity=0):
    rows, cols = np.mgrid[:n_rows, : 2 * n_cols].reshape(2, -1)
    keep = (rows + cols) % 2 == parity
    return np.column_stack([rows, cols])[keep]


def hex_coordinates(array, pitch=1.0):
    return np.column_stack([array[:, 1] / 2, array[:, 0] * np.sqrt(0.75)]) * pitch


def turned(coordinates, degrees):
    angle = np.deg2rad(degrees)
    return coordinates @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def quarter(coordinates):
    return np.column_stack([-coordinates[:, 1], coordinates[:, 0]])


def laid(slide, *args, **kwargs):
    result = stimg.pp.to_lattice(slide, *args, copy=True, **kwargs)
    return result.obsm["lattice"], result.uns["stimg"]["lattice"]


def mapped_back(lattice, info, library=0):
    row, col = lattice.T.astype(float)
    if info["kind"] == "hex":
        col, row = col + ((row + info["parity"][library]) % 2) / 2, row * np.sqrt(0.75)
    return np.column_stack([col, row, np.ones(len(row))]) @ info["affine"][library]


def array_back(lattice, info, library=0):
    if info["kind"] == "hex":
        shift = (lattice[:, 0] + info["parity"][library]) % 2
        index = np.column_stack([lattice[:, 0], 2 * lattice[:, 1] + shift]) + info["origin"][library]
        return index[:, ::-1] if info["transposed"][library] else index
    return info["origin"][library] + info["step"][library] * lattice


@contextlib.contextmanager
def unchanged(slide):
    before = slide.copy()
    uns = copy.deepcopy(dict(slide.uns))
    yield
    assert list(slide.obsm) == list(before.obsm)
    for key in slide.obsm:
        np.testing.assert_array_equal(slide.obsm[key], before.obsm[key])
    pd.testing.assert_frame_equal(slide.obs, before.obs)
    np.testing.assert_array_equal(slide.X, before.X)
    assert dict(slide.uns) == uns


hex_arrays = st.builds(
    lambda n_rows, n_cols, parity, start, keep: (
        hex_array(n_rows, n_cols, parity)[np.random.default_rng(keep).random(n_rows * n_cols) < 0.6] + start
    ),
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(0, 1),
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(np.array),
    st.integers(0, 10**6),
).filter(lambda array: len(array) > 3 and len(np.unique(array[:, 0])) > 1)

# Whole numbers, so that turns are exact and edges of bins are hit often.
free_coordinates = hnp.arrays(np.int64, st.tuples(st.integers(9, 60), st.just(2)), elements=st.integers(-30, 30))


@quick
@given(hex_arrays, st.integers(0, 10**6))
def test_hex_array_round_trip(array, seed):
    slide = slide_of(hex_coordinates(array, pitch=7), array)
    lattice, info = laid(slide, "visium")
    assert info["kind"] == "hex"
    assert lattice.dtype == np.int32
    assert lattice.shape == (len(array), 2)
    assert (lattice.min(0) == 0).all()
    assert len(np.unique(lattice, axis=0)) == len(array)
    np.testing.assert_array_equal(array_back(lattice, info), array)
    if np.isfinite(info["affine"]).all():
        np.testing.assert_allclose(mapped_back(lattice, info), slide.obsm["spatial"], atol=1e-8)
        assert info["pitch"] == pytest.approx(7)
    order = np.random.default_rng(seed).permutation(len(array))
    np.testing.assert_array_equal(laid(slide[order], "visium")[0], lattice[order])
    np.testing.assert_array_equal(laid(slide_of(quarter(slide.obsm["spatial"]), array), "visium")[0], lattice)


@quick
@given(hex_arrays)
def test_hex_neighbours_stay_neighbours(array):
    lattice, info = laid(slide_of(hex_coordinates(array), array), "hex")
    true = np.column_stack([lattice[:, 1] + ((lattice[:, 0] + info["parity"][0]) % 2) / 2, lattice[:, 0] * 0.75**0.5])
    gaps = np.linalg.norm(true[:, None] - true, axis=2)
    expected = hex_coordinates(array)
    np.testing.assert_allclose(gaps, np.linalg.norm(expected[:, None] - expected, axis=2), atol=1e-9)


@quick
@given(hnp.arrays(np.int64, (20, 2), elements=st.integers(0, 40), unique=False))
def test_square_array_round_trip(array):
    array = np.unique(array, axis=0)
    assume(len(array) > 2)
    slide = slide_of(array[:, ::-1] * 3.0 + 5, array)
    lattice, info = laid(slide, "st")
    np.testing.assert_array_equal(array_back(lattice, info), array)
    assert info["pitch_um"] == 200
    assert len(np.unique(lattice, axis=0)) == len(array)
    if np.isfinite(info["affine"]).all():
        np.testing.assert_allclose(mapped_back(lattice, info), slide.obsm["spatial"], atol=1e-8)


@quick
@given(free_coordinates, st.sampled_from([None, 1.0, 2.0, 2.5, 7.0]), st.integers(0, 10**6))
def test_free_coordinates(values, pitch, seed):
    coordinates = values.astype(float)
    assume(pitch is not None or len(np.unique(values, axis=0)) > 0.9 * len(values))
    slide = slide_of(coordinates)
    lattice, info = laid(slide, "free", pitch=pitch)
    # One site each, whose middle is at most half a bin away.
    assert lattice.shape == (len(values), 2)
    assert (lattice.min(0) == 0).all()
    away = np.abs(mapped_back(lattice, info) - coordinates).max(1)
    assert (away <= info["pitch"] * (0.5 + 1e-5)).all()
    order = np.random.default_rng(seed).permutation(len(values))
    np.testing.assert_array_equal(laid(slide[order], "free", pitch=pitch)[0], lattice[order])
    # Turned by 90 degrees, mirrored: the same sites in another order of rows and columns.
    size = lattice.max(0)
    again, about = laid(slide_of(quarter(coordinates)), "free", pitch=pitch)
    assert about["pitch"] == info["pitch"]
    np.testing.assert_array_equal(again, np.column_stack([lattice[:, 1], size[0] - lattice[:, 0]]))
    mirrored = laid(slide_of(coordinates * [-1, 1]), "free", pitch=pitch)[0]
    np.testing.assert_array_equal(mirrored, np.column_stack([lattice[:, 0], size[1] - lattice[:, 1]]))


def test_free_bins_of_a_grid_hold_one_observation_each():
    grid = np.stack(np.mgrid[:9, :10], -1).reshape(-1, 2)[:, ::-1] * 0.1 + 1e3
    lattice, info = laid(slide_of(grid), "free", pitch=0.1)
    assert len(np.unique(lattice, axis=0)) == 90
    np.testing.assert_allclose(mapped_back(lattice, info), grid)


def test_default_pitch_gives_one_observation_a_site_of_tissue():
    rng = np.random.default_rng(0)
    cells = rng.uniform(0, 1000, (4000, 2))
    cells = cells[np.linalg.norm(cells - 500, axis=1) > 300]
    _, info = laid(slide_of(cells))
    area = 1000**2 - np.pi * 300**2
    assert info["kind"] == info["platform"] == "free"
    assert len(cells) * info["pitch"] ** 2 / area == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("degrees", [0, 3, 30, 47, 90, 133, 180, 270])
@pytest.mark.parametrize("kind", ["hex", "square"])
def test_regular_coordinates_without_an_array_are_found(kind, degrees):
    rng = np.random.default_rng(1)
    if kind == "hex":
        plain = hex_coordinates(hex_array(40, 70))
    else:
        plain = np.stack(np.mgrid[:40, :70], -1).reshape(-1, 2).astype(float)
    plain = plain[rng.random(len(plain)) < 0.9]
    slide = slide_of(turned(plain, degrees) * 13.7 + 200 + rng.normal(0, 0.1, plain.shape))
    lattice, info = laid(slide)
    assert info["kind"] == kind
    assert info["pitch"] == pytest.approx(13.7, rel=1e-3)
    assert len(np.unique(lattice, axis=0)) == len(plain)
    assert np.abs(mapped_back(lattice, info) - slide.obsm["spatial"]).max() < 1
    # A quarter turn leaves the rows along the same spots.
    turned_lattice, about = laid(slide_of(quarter(slide.obsm["spatial"])))
    before, after = centred(lattice, info), centred(turned_lattice, about)
    if kind == "square":
        before = quarter(before)
    assert np.allclose(before, after, atol=0.01) or np.allclose(before, -after, atol=0.01)


def centred(lattice, info):
    row, col = lattice.T
    if info["kind"] == "hex":
        col, row = col + ((row + info["parity"][0]) % 2) / 2, row * np.sqrt(0.75)
    true = np.column_stack([col, row]).astype(float)
    return true - true.mean(0)


def test_large_grid_with_a_little_tilt():
    grid = np.stack(np.mgrid[:400, :300], -1).reshape(-1, 2) * 2.0
    rng = np.random.default_rng(0)
    lattice, info = laid(slide_of(turned(grid, 1.3) + rng.normal(0, 0.02, grid.shape)))
    assert info["kind"] == "square"
    assert sorted(lattice.max(0) + 1) == [300, 400]


def test_doubled_axis_is_found_from_the_coordinates():
    array = hex_array(12, 9)
    lattice, info = laid(slide_of(hex_coordinates(array), array[:, ::-1]))
    np.testing.assert_array_equal(lattice, laid(slide_of(hex_coordinates(array), array))[0])
    assert info["transposed"][0]
    np.testing.assert_array_equal(array_back(lattice, info), array[:, ::-1])


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("dtype", [np.int64, np.float64, str, "category"])
def test_visium_frames_and_dtypes(parity, dtype):
    array = hex_array(10, 8, parity)
    slide = slide_of(hex_coordinates(array, 138), array)
    for key in ("array_row", "array_col"):
        slide.obs[key] = slide.obs[key].astype(dtype)
    lattice, info = laid(slide)
    assert (info["platform"], info["kind"], info["pitch_um"]) == ("visium", "hex", 100.0)
    np.testing.assert_array_equal(np.unique(lattice, axis=0), np.stack(np.mgrid[:10, :8], -1).reshape(-1, 2))


def test_arrays_need_no_coordinates():
    lattice, info = laid(slide_of(array=hex_array(6, 5)))
    assert lattice.max() == 5
    assert np.isnan(info["pitch"])


def test_square_array_in_steps():
    array = np.stack(np.mgrid[:5, :6], -1).reshape(-1, 2) * 50 + 100
    slide = slide_of(array[:, ::-1], array)
    slide.uns["bin_size"] = 50
    lattice, info = laid(slide, "stereo_seq")
    assert lattice.max(0).tolist() == [4, 5]
    assert info["pitch_um"] == 25
    np.testing.assert_array_equal(array_back(lattice, info), array)
    assert laid(slide)[1]["kind"] == "square"


def test_hex_array_of_even_rows_only_by_name():
    array = hex_array(20, 6)
    array = array[array[:, 0] % 2 == 0]
    assert laid(slide_of(array=array), "visium")[1]["kind"] == "hex"
    assert laid(slide_of(array=array))[1]["kind"] == "square"


@pytest.mark.parametrize(
    ("platform", "kind"),
    [("visium", "hex"), ("st", "square"), ("xenium", "free"), ("slide_seq", "free"), ("free", "free")],
)
def test_named_platforms(platform, kind):
    slide = stimg.datasets.synthetic(platform, n_obs=200, n_genes=20)
    _, info = laid(slide, platform)
    assert (info["platform"], info["kind"]) == (platform, kind)
    if platform == "xenium":
        assert info["pitch_um"] == info["pitch"]
    if platform in ("slide_seq", "free"):  # whose files come in several units
        assert np.isnan(info["pitch_um"])


def test_visium_hd_bin_from_the_library_name():
    slide = stimg.datasets.synthetic("square", n_obs=100, n_genes=20)
    slide.uns["spatial"] = {"square_008um": {}}
    assert laid(slide, "visium_hd")[1]["pitch_um"] == 8


@pytest.mark.parametrize(
    ("spatial", "um"),
    [
        ({"one": {"scalefactors": {"microns_per_pixel": 0.5}}}, 0.5),
        ({"one": {"scalefactors": {"microns_per_pixel": 0.5}}, "two": {}}, np.nan),
        ({"one": None}, np.nan),
        (np.ones((3, 2)), np.nan),
    ],
)
def test_micrometres_that_the_data_state(spatial, um):
    slide = slide_of(np.random.default_rng(0).uniform(0, 100, (300, 2)))
    slide.uns["spatial"] = spatial
    info = laid(slide, "merfish")[1]
    np.testing.assert_equal(info["um_per_unit"], [um])
    np.testing.assert_allclose(info["pitch_um"], um * info["pitch"])


def test_micrometres_that_the_user_states():
    cells = slide_of(np.random.default_rng(0).uniform(0, 100, (300, 2)))
    info = laid(cells, "cosmx", um_per_unit=0.12)[1]
    np.testing.assert_allclose(info["pitch_um"], 0.12 * info["pitch"])
    visium = stimg.datasets.synthetic("visium", n_obs=100, n_genes=20)  # 5 um per pixel
    assert laid(visium, um_per_unit=5.1)[1]["um_per_unit"] == [5.1]
    with pytest.raises(ValueError, match="`um_per_unit` near 5"):
        laid(visium, um_per_unit=0.5)


def test_pitch_bins_a_platform_without_array():
    slide = slide_of(np.random.default_rng(0).uniform(0, 100, (300, 2)))
    lattice, info = laid(slide, "stereo_seq", pitch=10)
    assert info["kind"] == "free"
    assert lattice.max() == 9


def test_libraries_have_lattices_of_their_own():
    first, second = hex_array(6, 5), hex_array(4, 7, parity=1) + [10, 3]
    array = np.concatenate([first, second, [[8, 8]]])
    slide = slide_of(hex_coordinates(array), array, section=["a"] * len(first) + ["b"] * len(second) + ["c"])
    order = np.random.default_rng(0).permutation(len(array))
    slide = slide[order].copy()
    lattice, info = laid(slide, library_key="section")
    assert sorted(info["libraries"]) == ["a", "b", "c"]
    assert info["kind"] == "hex"
    for k, name in enumerate(info["libraries"]):
        rows = (slide.obs["section"] == name).to_numpy()
        assert (lattice[rows].min(0) == 0).all()
        np.testing.assert_array_equal(array_back(lattice[rows], info, k), array[order][rows])
        np.testing.assert_array_equal(lattice[rows], laid(slide[rows], "visium")[0])


def test_libraries_of_cells_share_a_pitch():
    rng = np.random.default_rng(0)
    slide = slide_of(
        np.concatenate([rng.uniform(0, 100, (200, 2)), rng.uniform(500, 640, (300, 2))]), s=[0] * 200 + [1] * 300
    )
    lattice, info = laid(slide, library_key="s")
    for k in (0, 1):
        rows = (slide.obs["s"] == k).to_numpy()
        assert (lattice[rows].min(0) == 0).all()
        away = np.abs(mapped_back(lattice[rows], info, k) - slide.obsm["spatial"][rows])
        assert away.max() <= info["pitch"] * 0.500001


def test_written_in_place_and_readable_from_disk(tmp_path, slide_hex, caplog):
    slide_hex.uns["stimg"] = {"other": {"kept": 1}}
    with caplog.at_level(logging.INFO, logger="stimg"):
        assert stimg.pp.to_lattice(slide_hex, key_added="grid") is None
    assert [record.name for record in caplog.records] == ["stimg"]
    assert "visium" in caplog.text
    assert slide_hex.uns["stimg"]["other"] == {"kept": 1}
    slide_hex.write_h5ad(tmp_path / "slide.h5ad")
    again = ad.read_h5ad(tmp_path / "slide.h5ad")
    np.testing.assert_array_equal(again.obsm["grid"], slide_hex.obsm["grid"])
    np.testing.assert_array_equal(again.uns["stimg"]["lattice"]["affine"], slide_hex.uns["stimg"]["lattice"]["affine"])


def test_copy_leaves_the_object(slide_hex):
    result = stimg.pp.to_lattice(slide_hex, copy=True)
    assert "lattice" in result.obsm
    assert "lattice" not in slide_hex.obsm
    assert "stimg" not in slide_hex.uns


def test_view_becomes_an_object_of_its_own(slide_hex):
    view = slide_hex[:150]
    stimg.pp.to_lattice(view)
    assert not view.is_view
    assert view.obsm["lattice"].shape == (150, 2)
    assert "lattice" not in slide_hex.obsm
    assert "stimg" not in slide_hex.uns


def test_duplicates_of_a_square_array_warn():
    array = np.stack(np.mgrid[:7, :7], -1).reshape(-1, 2)
    array[1] = array[0]
    with pytest.warns(UserWarning, match="1 of 49 observations"):
        lattice, _ = laid(slide_of(array[:, ::-1], array))
    np.testing.assert_array_equal(lattice[0], lattice[1])


ARRAY = hex_array(6, 6)
SQUARE = np.stack(np.mgrid[:6, :6], -1).reshape(-1, 2)
WITH_NAN = np.where(np.arange(72).reshape(36, 2) == 5, np.nan, hex_coordinates(ARRAY))
CELLS = np.random.default_rng(0).uniform(0, 100, (40, 2))
BAD = {
    "no coordinates": (slide_of(array=ARRAY)[:, :], {"platform": "free"}, KeyError, "spatial.*not found"),
    "unknown spatial key": (slide_of(CELLS), {"spatial_key": "xy"}, KeyError, "xy"),
    "NaN coordinates": (slide_of(WITH_NAN, ARRAY), {}, ValueError, "NaN.* in 1 of 36"),
    "infinite coordinates": (slide_of(np.where(CELLS > 99, np.inf, CELLS)), {}, ValueError, "infinite"),
    "one-dimensional coordinates": (slide_of(CELLS[:, :1]), {}, ValueError, "shape"),
    "NaN array": (slide_of(array=np.where(ARRAY == 5, np.nan, ARRAY)), {}, ValueError, "NaN.*array_row"),
    "fractions in array": (slide_of(array=ARRAY + 0.25), {}, ValueError, "fractions"),
    "text in array": (slide_of(array=np.full((9, 2), "x")), {}, ValueError, "text"),
    "duplicated hex": (slide_of(array=np.r_[ARRAY, ARRAY[:1]]), {}, ValueError, "1 of 37 .*library_key"),
    "duplicated square": (slide_of(array=np.r_[SQUARE, SQUARE]), {}, ValueError, "36 of 72 .*library_key"),
    "all on one place": (slide_of(np.ones((20, 2))), {}, ValueError, "pitch"),
    "unknown platform": (slide_of(CELLS), {"platform": "viseum"}, ValueError, "platform.*viseum"),
    "unknown library key": (slide_of(CELLS), {"library_key": "s"}, KeyError, "library_key"),
    "missing library": (slide_of(CELLS, s=[None, *"a" * 39]), {"library_key": "s"}, ValueError, "missing"),
    "pitch of zero": (slide_of(CELLS), {"pitch": 0}, ValueError, "pitch"),
    "pitch of NaN": (slide_of(CELLS), {"pitch": np.nan}, ValueError, "pitch"),
    "pitch for an array": (slide_of(array=ARRAY), {"pitch": 2}, ValueError, "free"),
    "tiny pitch": (slide_of(CELLS), {"pitch": 1e-6}, ValueError, "sites"),
    "far array": (slide_of(array=np.r_[SQUARE, [[10**6, 10**6]]]), {}, ValueError, "sites"),
    "square said to be hex": (slide_of(array=SQUARE), {"platform": "visium"}, ValueError, "hexagonal"),
    "cells said to be hex": (slide_of(CELLS), {"platform": "hex"}, ValueError, "regular hex"),
    "cells said to be square": (slide_of(CELLS), {"platform": "st"}, ValueError, "regular square"),
    "three cells said to be hex": (slide_of(CELLS[:3]), {"platform": "hex"}, ValueError, "regular hex"),
    "two kinds": (
        slide_of(array=np.r_[ARRAY, SQUARE], s=[*"a" * 36, *"b" * 36]),
        {"library_key": "s"},
        ValueError,
        "1 hexagonal and 1 square",
    ),
}


def rows_twice(plain, count):
    return slide_of(np.r_[plain, plain[:count]])


@pytest.mark.parametrize("kind", ["hex", "square"])
def test_a_grid_with_a_few_rows_twice_is_found(kind):
    plain = (hex_coordinates(hex_array(20, 15)) if kind == "hex" else SQUARE_GRID) * 100
    with pytest.warns(UserWarning, match="2 of 302 .* share an array position.*counts are summed"):
        lattice, info = laid(rows_twice(plain, 2))
    assert info["kind"] == kind
    assert info["n_shared"] == [2]
    assert info["pitch"] == pytest.approx(100)
    np.testing.assert_array_equal(lattice[-2:], lattice[:2])
    with pytest.raises(ValueError, match="60 of 360 .*library_key"):
        laid(rows_twice(plain, 60))


SQUARE_GRID = np.stack(np.mgrid[:20, :15], -1).reshape(-1, 2).astype(float)


def test_spots_off_their_grid_go_to_the_nearest_site():
    coordinates = SQUARE_GRID.copy()
    coordinates[[40, 200]] += 0.45
    with pytest.warns(UserWarning, match="2 of 300 .* lie off the grid"):
        lattice, info = laid(slide_of(coordinates))
    assert info["kind"] == "square"
    np.testing.assert_array_equal(np.unique(lattice, axis=0), np.unique(lattice[[40, 200] + [*range(300)]], axis=0))
    assert sorted(lattice.max(0) + 1) == [15, 20]


@pytest.mark.parametrize("jitter", [0, 0.05, 0.1])
def test_bins_of_a_square_grid_are_its_own(jitter):
    """The default pitch of points at random would be 0.886 of it, and leave every ninth row empty."""
    rng = np.random.default_rng(0)
    slide = slide_of(SQUARE_GRID * 8 + rng.uniform(-jitter, jitter, SQUARE_GRID.shape) * 8)
    lattice, info = laid(slide, "free")
    assert info["pitch"] == pytest.approx(8, rel=0.01)
    assert len(np.unique(lattice, axis=0)) > 0.95 * slide.n_obs
    assert all(len(np.unique(axis)) == axis.max() + 1 for axis in lattice.T)


def test_bins_of_a_hexagonal_grid_have_the_area_of_a_spot():
    coordinates = hex_coordinates(hex_array(20, 15), 100)
    assert laid(slide_of(coordinates), "free")[1]["pitch"] == pytest.approx(100 * 0.75**0.25)


def test_each_section_has_a_grid_of_its_own():
    parts = [hex_coordinates(hex_array(12, 10), 10), turned(hex_coordinates(hex_array(9, 12), 25), 31) + 4000]
    small = hex_coordinates(hex_array(3, 4), 10) - 900  # too small to tell
    slide = slide_of(np.concatenate([*parts, small]), section=np.repeat(["a", "b", "c"], [120, 108, 12]))
    lattice, info = laid(slide, library_key="section")
    assert info["kind"] == "hex"
    assert info["n_shared"].sum() == 0
    lengths = np.linalg.norm(info["affine"][:, :2], axis=2)
    np.testing.assert_allclose(lengths, np.repeat([[10], [25], [10]], 2, axis=1))
    for number, name in enumerate("abc"):
        rows = (slide.obs["section"] == name).to_numpy()
        np.testing.assert_allclose(mapped_back(lattice[rows], info, number), slide.obsm["spatial"][rows], atol=1e-6)


def test_sections_of_which_only_some_lie_on_a_grid():
    rng = np.random.default_rng(0)
    cells, square = rng.uniform(0, 15, (225, 2)), np.stack(np.mgrid[:15, :15], -1).reshape(-1, 2)
    slide = slide_of(np.concatenate([cells, square + 50]), section=np.repeat(["a", "b"], 225))
    with pytest.warns(UserWarning, match="1 of 2 sections lie on a regular square grid"):
        assert laid(slide, library_key="section")[1]["kind"] == "free"
    slide.obsm["spatial"][:225] = hex_coordinates(hex_array(15, 15))
    with pytest.raises(ValueError, match="1 hexagonal and 1 square"):
        laid(slide, library_key="section")


def test_sections_in_different_units_have_a_pitch_each():
    rng = np.random.default_rng(0)
    cells = [rng.uniform(0, side, (400, 2)) for side in (200, 210, 200 / 0.12)]
    slide = slide_of(np.concatenate(cells), section=np.repeat(["a", "b", "c"], 400))
    with pytest.warns(UserWarning, match="different units"):
        lattice, info = laid(slide, library_key="section")
    pitch = np.linalg.norm(info["affine"][:, 0], axis=1)
    assert pitch[2] / pitch[0] == pytest.approx(1 / 0.12, rel=0.1)
    for number in range(3):
        rows = slice(400 * number, 400 * number + 400)
        assert len(np.unique(lattice[rows], axis=0)) > 200
    stimg.pp.to_lattice(slide, library_key="section", pitch=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert laid(slide[:800], library_key="section")[1]["pitch"] == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("with_array", [True, False])
def test_all_spots_of_a_visium_array(with_array):
    array = hex_array(78, 64)
    slide = slide_of(hex_coordinates(array, 138.2) + 900, array if with_array else None, in_tissue=[0, 1] * 2496)
    with pytest.warns(UserWarning, match="2,496 of 4,992"):
        lattice, info = laid(slide)
    assert (info["platform"], info["n_obs"], info["n_shared"]) == ("visium", [4992], [0])
    np.testing.assert_array_equal(lattice.max(0) + 1, [78, 64])
    if with_array:
        np.testing.assert_array_equal(array_back(lattice, info), array)


def cores(gap):
    rng = np.random.default_rng(0)
    places = np.stack(np.mgrid[:3, :4], -1).reshape(-1, 1, 2) * gap
    cells = rng.uniform(0, 500, (12, 200, 2)) + places
    return slide_of(cells.reshape(-1, 2), tma_core=np.repeat(np.arange(12), 200))


def test_cores_far_apart():
    lattice, _ = laid(cores(50_000))
    assert len(np.unique(lattice, axis=0)) > 1200
    slide = cores(10_000_000)
    with pytest.raises(ValueError, match="sites for 2400.*library_key='tma_core'"):
        laid(slide)
    assert len(laid(slide, library_key="tma_core")[1]["libraries"]) == 12


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    slide, kwargs, error, match = BAD[name]
    with unchanged(slide), pytest.raises(error, match=match):
        stimg.pp.to_lattice(slide, **kwargs)


@pytest.mark.parametrize("n_obs", [1, 2, 3, 8])
@pytest.mark.parametrize("platform", ["auto", "free"])
def test_few_observations(n_obs, platform):
    lattice, _ = laid(slide_of(CELLS[:n_obs]), platform)
    assert lattice.shape == (n_obs, 2)
    assert laid(slide_of(array=ARRAY[:n_obs]))[0].shape == (n_obs, 2)


@pytest.fixture(scope="module")
def spatial_data():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import geopandas
        import spatialdata as sd
        from shapely.geometry import Point
    array = hex_array(8, 6)
    places = hex_coordinates(array, 10)
    ids = np.arange(100, 100 + len(array))
    circles = geopandas.GeoDataFrame({"radius": 3.0, "geometry": [Point(*p) for p in places]}, index=ids)
    table = slide_of(array=array[::-1])
    table.obs["region"] = pd.Categorical(["spots"] * len(array))
    table.obs["instance"] = ids[::-1]

    def make(**tables):
        parsed = sd.models.TableModel.parse(table.copy(), region="spots", region_key="region", instance_key="instance")
        return sd.SpatialData(
            shapes={"spots": sd.models.ShapesModel.parse(circles)}, tables={"table": parsed, **tables}
        )

    return make, places[::-1], array[::-1]


@pytest.mark.parametrize("with_array", [True, False])
@pytest.mark.parametrize("stored", [None, np.nan])
def test_spatialdata_centroids(spatial_data, with_array, stored):
    make, places, array = spatial_data
    sdata = make()
    if stored is not None:
        sdata["table"].obsm["spatial"] = np.full((len(array), 2), stored)
    if not with_array:
        del sdata["table"].obs["array_row"]
    assert stimg.pp.to_lattice(sdata) is None
    table = sdata["table"]
    np.testing.assert_allclose(table.obsm["spatial"], places)
    info = table.uns["stimg"]["lattice"]
    assert info["kind"] == "hex"
    np.testing.assert_allclose(mapped_back(table.obsm["lattice"], info), places, atol=1e-8)
    if with_array:
        np.testing.assert_array_equal(array_back(table.obsm["lattice"], info), array)


@pytest.mark.parametrize("platform", ["visium", "square"])
def test_distances_of_which_none_is_the_usual_one_are_no_grid(platform):
    x = np.array([0, 1, 100, 101, 200, 201, 300, 303, 400, 403, 500, 503])  # half of them 1, half 3
    slide = slide_of(np.column_stack([x, np.zeros(len(x))]))
    with pytest.raises(ValueError, match="regular .* grid"):
        stimg.pp.to_lattice(slide, platform)


def test_bins_lie_as_spatialdata_draws_them():
    spatialdata = pytest.importorskip("spatialdata")
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    slide = stimg.datasets.synthetic("visium_hd", n_obs=150, n_genes=10, seed=0)
    squares = [shapely.box(x - 4, y - 4, x + 4, y + 4) for x, y in slide.obsm.pop("spatial")]
    slide.obs["region"], slide.obs["bin"] = pd.Categorical(["bins"] * 150), np.arange(150)
    slide.obs["number"] = np.arange(1.0, 151.0)
    table = spatialdata.models.TableModel.parse(slide, region="bins", region_key="region", instance_key="bin")
    bins = spatialdata.models.ShapesModel.parse(geopandas.GeoDataFrame(geometry=squares))
    sdata = spatialdata.SpatialData(shapes={"bins": bins}, tables={"square_008um": table})
    stimg.pp.to_lattice(sdata, table_key="square_008um")
    image = spatialdata.rasterize_bins(sdata, "bins", "square_008um", "array_col", "array_row", value_key="number")
    lattice = sdata["square_008um"].obsm["lattice"]
    np.testing.assert_array_equal(image.values[0][tuple(lattice.T)], np.arange(1.0, 151.0))


def test_spatialdata_copy_and_tables(spatial_data):
    make, _, _ = spatial_data
    sdata = make(other=slide_of(CELLS))
    with pytest.raises(ValueError, match="table_key"):
        stimg.pp.to_lattice(sdata)
    with pytest.raises(KeyError, match="other"):
        stimg.pp.to_lattice(sdata, table_key="none")
    result = stimg.pp.to_lattice(sdata, table_key="other", copy=True)
    assert "lattice" in result["other"].obsm
    assert "lattice" not in sdata["other"].obsm
    assert "lattice" not in result["table"].obsm


def test_spatialdata_instances_that_are_not_there(spatial_data):
    make, _, _ = spatial_data
    sdata = make()
    sdata["table"].obs["instance"] += 3
    with pytest.raises(ValueError, match="3 of 48 rows"):
        stimg.pp.to_lattice(sdata)
    assert "spatial" not in sdata["table"].obsm


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason=f"no real slides in {FOLDER}: set STIMG_DATA_DIR")
@pytest.mark.parametrize("path", REAL, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_real_slides(path):
    backed = ad.read_h5ad(path, backed="r")
    array = [key for key in ("array_row", "array_col") if key in backed.obs]
    slide = slide_of(np.asarray(backed.obsm["spatial"]), backed.obs[array].to_numpy() if array else None)
    backed.file.close()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "1 of 91 observations", UserWarning)
        lattice, info = laid(slide)
    sites = len(np.unique(lattice, axis=0))
    if path.parent.name in {"dlpfc", "hcc_visium", "prostate_visium", "visium_perik"} or "visium_breast" in path.stem:
        assert info["platform"] == "visium"
    if path.parent.name.startswith("mousebrain_2k") or path.parent.name == "liver_st":  # ST 2K arrays
        assert info["platform"] == "hex"
    elif path.parent.name.endswith("_st") or path.parent.name in {"her2st", "visium_msti", "breast_st_stahl"}:
        assert info["kind"] == "square"
    if info["kind"] == "free":
        assert 1 < slide.n_obs / sites < 2
    else:
        assert slide.n_obs - sites == (path.stem == "1_CN73_E1_HE")
    if array:
        np.testing.assert_array_equal(array_back(lattice, info), slide.obs[array])
    away = np.linalg.norm(mapped_back(lattice, info) - slide.obsm["spatial"], axis=1)
    assert np.median(away) < 0.55 * info["pitch"]
    order = np.random.default_rng(0).permutation(slide.n_obs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "1 of 91 observations", UserWarning)
        np.testing.assert_array_equal(laid(slide[order])[0], lattice[order])


@pytest.mark.parametrize("platform", ["visium_hd", "st", "square", "stereo_seq"])
def test_hexagonal_array_by_the_name_of_a_square_one(slide_hex, platform):
    with pytest.raises(ValueError, match="Expected a square array, found a hexagonal one"):
        stimg.pp.to_lattice(slide_hex, platform)
    assert "lattice" not in slide_hex.obsm


def test_array_by_the_name_of_a_platform_without_one(slide_hex):
    with pytest.warns(UserWarning, match="positions on an array, which slides of 'xenium' do not have"):
        stimg.pp.to_lattice(slide_hex, "xenium")


@pytest.mark.parametrize("count", [2, 3, 7, 15])
@pytest.mark.parametrize("square", [True, False])
def test_few_spots_of_an_array_keep_their_own_bins(count, square):
    row, col = np.mgrid[:7, :7].reshape(2, -1)
    places = np.column_stack([col + (0 if square else row % 2 / 2), row * (1 if square else np.sqrt(0.75))]) * 100
    near = np.argsort(((places - places.mean(0)) ** 2).sum(1), kind="stable")[:count]
    slide = ad.AnnData(np.ones((count, 1), np.float32), obsm={"spatial": places[near]})
    stimg.pp.to_lattice(slide)
    record = slide.uns["stimg"]["lattice"]
    assert record["pitch"] == pytest.approx(100)
    assert not square or not record["n_shared"].any()


def test_a_row_of_spots_keeps_its_own_bins():
    slide = ad.AnnData(
        np.ones((30, 1), np.float32), obsm={"spatial": np.column_stack([np.arange(30.0) * 50, [7] * 30])}
    )
    stimg.pp.to_lattice(slide)
    assert slide.obsm["lattice"].tolist() == [[0, i] for i in range(30)]


def test_pieces_of_an_array_that_were_turned_are_told():
    piece = stimg.datasets.synthetic("visium", n_obs=300, n_genes=20, seed=0)
    del piece.obs["array_row"], piece.obs["array_col"]
    turned = piece.copy()
    turn = np.deg2rad(25)
    turned.obsm["spatial"] = piece.obsm["spatial"] @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    turned.obsm["spatial"] = turned.obsm["spatial"] + [2000, 0]
    both = ad.concat([piece, turned], label="what", index_unique="-")
    with pytest.warns(UserWarning, match=r"no single grid fits them.*`library_key`"):
        stimg.pp.to_lattice(both)
    stimg.pp.to_lattice(both, library_key="what")
    assert both.uns["stimg"]["lattice"]["kind"] == "hex"
    stimg.pp.to_lattice(both, "free")  # as asked for


def test_cures_of_array_positions_work():
    slide = stimg.datasets.synthetic("visium", n_obs=300, n_genes=20, seed=0)
    twice = ad.concat([slide, slide[:1]], index_unique="-")
    with pytest.raises(ValueError, match="1 of 301 .* Remove the duplicates, or pass the column"):
        stimg.pp.to_lattice(twice)
    cells = stimg.datasets.synthetic("free", n_obs=300, n_genes=20, seed=1)
    both = ad.concat([slide, cells], join="outer", label="batch", index_unique="-")
    with pytest.raises(ValueError, match=r"some have no array.*`platform='free'`"):
        stimg.pp.to_lattice(both, library_key="batch")
    stimg.pp.to_lattice(both, "free", library_key="batch")
