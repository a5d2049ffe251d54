"""Sections that lie over one another are refused by name, and nothing else is."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stimg
from stimg._input._sections import check_one_section

FOLDER = Path(os.environ.get("STIMG_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data")
REAL = sorted(FOLDER.glob("*/*.h5ad")) if FOLDER.is_dir() else []
real = [pytest.mark.real, pytest.mark.skipif(not REAL, reason=f"no real slides in {FOLDER}: set STIMG_DATA_DIR")]


def joined(label="library_id", platform="free", count=2, n_obs=200):
    slides = [stimg.datasets.synthetic(platform, n_obs=n_obs, n_genes=20, seed=seed) for seed in range(count)]
    return ad.concat(slides, label=label, keys=[f"s{i}" for i in range(count)], index_unique="-")


def shuffled(table):
    return table[np.random.default_rng(0).permutation(table.n_obs)].copy()


def laid(table, **kwargs):
    return stimg.pp.to_lattice(table, copy=True, **kwargs).uns["stimg"]["lattice"]


NAMES = [
    *("library_id", "sample", "sample_id", "SampleID", "slide", "Slice_ID", "section", "brain_section_label", "fov"),
    *("FOV", "fov_name", "batch", "region", "core", "tma_core", "puck", "orig.ident", "donor", "Animal_ID", "roi1"),
]


@pytest.mark.parametrize(
    ("platform", "name"), [*(("free", name) for name in NAMES), ("visium", "batch"), ("st", "fov")]
)
def test_the_column_is_named_and_the_cure_works(platform, name):
    both = joined(name, platform)
    with pytest.raises(ValueError, match=rf"obs\['{name}'\].*library_key='{name}'"):
        laid(both)
    assert list(laid(both, library_key=name)["libraries"]) == ["s0", "s1"]


@pytest.mark.parametrize("name", ["library_id", "fov", "puck"])
def test_in_any_order_and_without_array_positions(name):
    both = joined(name, "visium")
    del both.obs["array_row"], both.obs["array_col"]
    for table in (both, shuffled(both)):
        with pytest.raises(ValueError, match=f"library_key='{name}'"):
            laid(table)
    assert laid(both, library_key=name)["kind"] == "hex"
    with pytest.raises(ValueError, match=f"library_key='{name}'"):
        laid(shuffled(joined(name)))


@pytest.mark.parametrize("n_obs", [12, 20, 50])
def test_few_observations(n_obs):
    with pytest.raises(ValueError, match="library_key='library_id'"):
        laid(joined("library_id", "free", 3, n_obs))


def test_part_of_a_section_lies_over_another():
    both = joined("fov")
    both.obsm["spatial"][200:, 0] += np.ptp(both.obsm["spatial"][:200, 0]) * 0.5
    with pytest.raises(ValueError, match="library_key='fov'"):
        laid(both)


def test_several_columns_together():
    four = joined("four", "free", 4, 150)
    del four.obs["four"]
    four.obs["donor"], four.obs["section"] = np.repeat(["d", "e"], 300), np.tile(np.repeat(["1", "2"], 150), 2)
    with pytest.raises(ValueError, match=r"'section'\]` and `adata.obs\['donor'\].*obs\['library'\] = ") as caught:
        laid(four)
    exec(str(caught.value).split("Run `")[1].split("`")[0], {"adata": four})
    assert len(laid(four, library_key="library")["libraries"]) == 4
    with pytest.raises(ValueError, match=r"obs\['section'\].*obs\['donor'\].astype\(str\) \+"):
        laid(four, library_key="donor")
    four.obs["sample_id"] = four.obs.pop("library")
    with pytest.raises(ValueError, match=r"^`adata.obs\['sample_id'\]` tells.*library_key='sample_id'"):
        laid(four)


def cells(n_side=18, seed=0):
    """Points that keep apart, as cells do."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(n_side), np.arange(n_side)), -1).reshape(-1, 2)
    return 10 * grid + rng.normal(0, 1.5, (len(grid), 2))


def table_of(places, **columns):
    obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(len(places))])
    return ad.AnnData(np.ones((len(places), 1), np.float32), obs=obs, obsm={"spatial": places})


@pytest.mark.parametrize("name", ["GSM", "source_file", "mouse_type"])
def test_a_name_that_says_nothing_is_enough_if_the_points_leave_no_doubt(name):
    both = table_of(np.concatenate([cells(seed=0), cells(seed=1) + 3]), **{name: np.repeat(["a", "b"], 324)})
    with pytest.raises(ValueError, match=f"library_key='{name}'"):
        laid(both)
    assert len(laid(both, library_key=name)["libraries"]) == 2


def test_sorted_rows_of_one_section():
    kind, row = np.sort(np.random.default_rng(0).choice(["a", "b", "c"], 324)), np.repeat(np.arange(18), 18)
    laid(table_of(cells()[np.random.default_rng(1).permutation(324)], annotation=kind, something=kind))
    laid(table_of(cells(), row=row, something=row))
    grid = np.stack(np.meshgrid(np.arange(18.0), np.arange(18.0)), -1).reshape(-1, 2)
    laid(table_of(grid, something=row))


def square_of(values, n_obs=400):
    """Random points, and the column that `values` makes of their places in the unit square."""
    rng = np.random.default_rng(1)
    places = rng.uniform(0, 1, (n_obs, 2))
    table = ad.AnnData(np.ones((n_obs, 1), np.float32), obs=values(places, rng).set_axis(map(str, range(n_obs))))
    table.obsm["spatial"] = places * 1000
    return table


SOUND = {
    "FOVs in coordinates of the slide": lambda xy, _: pd.DataFrame({"fov": (xy * 4).astype(int) @ [10, 1]}),
    "anatomical regions": lambda xy, _: pd.DataFrame({"region": np.where(((xy - 0.5) ** 2).sum(1) < 0.1, "a", "b")}),
    "pooled cells": lambda xy, rng: pd.DataFrame({"batch": rng.choice(["a", "b"], len(xy))}),
    "pooled samples": lambda xy, rng: pd.DataFrame({"sample_id": rng.choice(["a", "b"], len(xy))}),
    "cell types": lambda xy, rng: pd.DataFrame({"cell_type": rng.choice(["a", "b"], len(xy)), "x": "y"}),
    "one value": lambda xy, _: pd.DataFrame({"library_id": ["a"] * len(xy)}),
    "an identifier for each": lambda xy, _: pd.DataFrame({"sample": np.arange(len(xy))}),
    "sections side by side": lambda xy, _: pd.DataFrame({"library_id": np.where(xy[:, 0] < 0.4, "a", "b")}),
    "words within words": lambda xy, rng: pd.DataFrame({"score": rng.integers(0, 2, len(xy)), "steroid": "a"}),
    "in a mask or not": lambda xy, rng: pd.DataFrame({"tissue_mask": np.sort(rng.integers(0, 2, len(xy)))}),
    "cluster of samples": lambda xy, rng: pd.DataFrame({"sample_cluster": rng.integers(0, 2, len(xy))}),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_one_section(name):
    assert len(laid(square_of(SOUND[name]))["libraries"]) == 1


def test_labels_of_spots_on_one_array(slide_hex):
    slide_hex.obs["library_id"] = np.random.default_rng(0).choice(["a", "b"], slide_hex.n_obs)
    assert laid(slide_hex)["kind"] == "hex"


def test_a_column_with_one_value_says_that_all_is_one_section():
    table = square_of(lambda xy, rng: pd.DataFrame({"library_id": rng.choice(["a", "b"], len(xy))}))
    with pytest.raises(ValueError, match="a column with a single value"):
        laid(table)
    table.obs["all"] = "one"
    assert list(laid(table, library_key="all")["libraries"]) == ["one"]


def test_other_coordinates_of_the_whole_slide_are_offered():
    both = joined("fov")
    both.obsm["X_umap"] = both.obsm["spatial"] + np.repeat([0, 9000], 200)[:, None]
    both.obsm["spatial_fov"] = both.obsm["X_umap"]
    with pytest.raises(ValueError, match="or pass `spatial_key='spatial_fov'`"):
        laid(both)
    assert len(laid(both, spatial_key="spatial_fov")["libraries"]) == 1


@pytest.mark.parametrize("order", [lambda table: table, shuffled])
@pytest.mark.parametrize("spread", [0, 2])
def test_serial_sections_in_a_third_coordinate(order, spread):
    three = joined("three", "free", 3)
    depth = np.repeat([0.0, 100, 200], 200) + np.random.default_rng(0).normal(0, 1, 600) * spread
    three.obsm["spatial"] = np.column_stack([three.obsm["spatial"], depth])
    del three.obs["three"]
    table = order(three)
    with pytest.raises(ValueError, match=r"obsm\['spatial'\]\[:, 2\].*library_key='z'") as caught:
        laid(table)
    exec(str(caught.value).split("Run `")[1].split("`")[0], {"adata": table, "numpy": np})
    assert len(laid(table, library_key="z")["libraries"]) == 3


def test_serial_sections_in_a_column_of_depth():
    three = joined("three", "free", 3)
    three.obs = pd.DataFrame({"Bregma": np.repeat([-0.04, 0.01, 0.06], 200)}, index=three.obs_names)
    with pytest.raises(ValueError, match="library_key='Bregma'"):
        laid(shuffled(three))


@pytest.mark.parametrize("depth", [lambda rng, n: rng.uniform(0, 10, n), lambda rng, n: 1.5 * rng.integers(0, 7, n)])
def test_the_depth_of_one_section_is_said_and_not_used(slide_free, depth, caplog):
    plain = laid(slide_free)
    z = depth(np.random.default_rng(0), slide_free.n_obs)
    slide_free.obsm["spatial"] = np.column_stack([slide_free.obsm["spatial"], z])
    with caplog.at_level(logging.INFO, logger="stimg"):
        assert laid(slide_free)["pitch"] == plain["pitch"]
    assert "[:, 2]" in caplog.text


def test_images_of_several_sections():
    entry = {"images": {"hires": np.ones((4, 4, 3))}, "scalefactors": {"tissue_hires_scalef": 1.0}}
    both = joined("what")
    both.uns["spatial"] = {"s0": entry, "s1": entry}
    with pytest.raises(ValueError, match=r"obs\['what'\].*library_key='what'"):
        laid(both)  # its values are the names of the images
    laid(both[both.obs["what"] == "s0"].copy())
    del both.obs["what"]
    with pytest.raises(ValueError, match=r"images of 2 sections \(\['s0', 's1'\]\), but no column"):
        laid(both)


def test_slides_joined_without_a_label():
    both = joined("what")
    both.obs = pd.DataFrame(index=[name.split("-")[0] for name in both.obs_names])
    with pytest.raises(ValueError, match=r"repetition of `adata.obs_names`.*anndata.concat\(slides, label='section'"):
        laid(both)


def test_array_positions_that_a_column_tells_apart():
    """Few positions are shared, so that sections hardly lie over one another; the column is named all the same."""
    both = joined("what", "visium")
    both.obs["array_row"] += np.where(both.obs["what"] == "s1", 14, 0)
    both.obs["batch"] = both.obs.pop("what")
    with pytest.raises(ValueError, match="library_key='batch'"):
        laid(both)


@pytest.mark.parametrize("name", ["library_id", "batch"])
def test_steps_without_a_lattice_do_not_mix_sections(name):
    both = joined(name)
    both.obsm["X"] = np.random.default_rng(0).normal(size=(both.n_obs, 5))
    steps = (
        lambda **key: stimg.tl.domains(both, 3, use_rep="X", refine=True, **key),
        lambda **key: stimg.pp.select_genes(both, 10, method="moran", **key),
        lambda **key: stimg.pl.domains(both, "domain", **key, **({"library": "s0"} if key else {})),
    )
    for step in steps:
        with pytest.raises(ValueError, match=rf"obs\['{name}'\]` tells sections apart"):
            step()
        step(library_key=name)
    stimg.tl.domains(both, 3, use_rep="X")  # uses no coordinates


def test_regions_of_a_spatialdata_table():
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.transformations import Identity, set_transformation

    both = joined("part")
    both.obs["part"] = both.obs["part"].astype("category")
    both.obs["spot"] = np.tile(np.arange(200), 2)
    shapes = {
        name: spatialdata.models.ShapesModel.parse(both.obsm["spatial"][rows], geometry=0, radius=5.0)
        for name, rows in (("s0", slice(200)), ("s1", slice(200, 400)))
    }
    del both.obsm["spatial"]
    table = spatialdata.models.TableModel.parse(both, region=["s0", "s1"], region_key="part", instance_key="spot")
    sdata = spatialdata.SpatialData(shapes=shapes, tables={"table": table})
    with pytest.raises(ValueError, match=r"obs\['part'\].*library_key='part'"):
        stimg.pp.to_lattice(sdata)
    assert "spatial" not in table.obsm
    for name in ("s0", "s1"):
        set_transformation(shapes[name], {name: Identity()}, set_all=True)
    with pytest.raises(ValueError, match=r"no coordinate system in common.*library_key='part'"):
        stimg.pp.to_lattice(sdata)
    stimg.pp.to_lattice(sdata, library_key="part")
    assert list(table.uns["stimg"]["lattice"]["libraries"]) == ["s0", "s1"]


@pytest.mark.parametrize("sample", [1, 2])
def test_cosmx_as_squidpy_reads_it(real_cases_dir, sample):
    """Two FOVs of a real slide, with coordinates that start anew in each; the table as `squidpy.read.nanostring`'s."""
    folder = real_cases_dir / "cosmx_lung" / f"sample_{sample}"
    molecules = pd.read_csv(folder / "tx_file.csv").query("cell_ID > 0")
    fovs = pd.read_csv(folder / "fov_positions_file.csv").sort_values("x_global_px")
    number = np.searchsorted(fovs["x_global_px"], molecules["x_global_px"], side="right") - 1
    corner = fovs[["x_global_px", "y_global_px"]].to_numpy()[number]
    molecules = molecules.assign(fov=fovs["fov"].astype(str).to_numpy()[number])
    molecules[["x", "y"]] = molecules[["x_global_px", "y_global_px"]].to_numpy() - corner
    cells = molecules.groupby(["cell_ID", "fov"])
    counts = cells["target"].value_counts().unstack(fill_value=0)
    index = [f"{cell}_{fov}" for cell, fov in counts.index]
    obs = pd.DataFrame({"fov": pd.Categorical(counts.index.get_level_values("fov"))}, index=index)
    table = ad.AnnData(counts.to_numpy(np.float32), obs=obs)
    centres = cells[["x", "y", "x_global_px", "y_global_px"]].mean().loc[counts.index].to_numpy()
    table.obsm["spatial"], table.obsm["spatial_fov"] = centres[:, :2], centres[:, 2:]
    scale = {"tissue_hires_scalef": 1, "spot_diameter_fullres": 1}
    table.uns["spatial"] = {fov: {"images": {}, "scalefactors": scale} for fov in obs["fov"].cat.categories}
    with pytest.raises(ValueError, match=r"obs\['fov'\].*library_key='fov'`; or pass `spatial_key='spatial_fov'`"):
        laid(table, platform="cosmx")
    assert len(laid(table, platform="cosmx", library_key="fov")["libraries"]) == 2
    assert len(laid(table, platform="cosmx", spatial_key="spatial_fov")["libraries"]) == 1


def read(path):
    backed = ad.read_h5ad(path, backed="r")
    uns = {"spatial": dict(backed.uns["spatial"])} if "spatial" in backed.uns else {}
    table = ad.AnnData(np.ones((backed.n_obs, 1), np.float32), obs=backed.obs.copy(), uns=uns)
    table.obsm["spatial"] = np.asarray(backed.obsm["spatial"], dtype=np.float64)
    backed.file.close()
    return table


def check(table, column=None):
    if column is not None:
        table.obs = pd.DataFrame(column, index=table.obs_names)
        table.uns = {}
    check_one_section(table, table.obsm["spatial"])


@pytest.mark.parametrize("path", [pytest.param(p, marks=real, id=f"{p.parent.name}/{p.stem}") for p in REAL])
def test_real_slides(path):
    """Tiles of each slide are sections side by side; the slide turned about its middle lies over itself."""
    table = read(path)
    check(table)
    unit = (table.obsm["spatial"] - table.obsm["spatial"].min(0)) / np.ptp(table.obsm["spatial"], axis=0).max()
    rng = np.random.default_rng(0)
    for count in (2, 3, 8):
        tiles = (unit * count * 0.999).astype(int) @ [100, 1]
        for name in ("fov", "batch"):
            check(table, {name: tiles})
    check(table, {"batch": rng.choice(["a", "b"], table.n_obs)})
    over = ad.AnnData(np.ones((2 * table.n_obs, 1), np.float32))
    over.obsm["spatial"] = np.concatenate([unit, 0.98 * unit.max(0) - unit + 0.013])
    label = np.repeat(["a", "b"], table.n_obs)
    for name in ("fov", "batch"):
        with pytest.raises(ValueError, match=f"library_key='{name}'"):
            check(over, {name: label})
    order = rng.permutation(over.n_obs)
    with pytest.raises(ValueError, match="library_key='fov'"):
        check(over[order].copy(), {"fov": label[order]})
