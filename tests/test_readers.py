"""The lines of `docs/read_your_data.md`, run as they stand there on small files of every platform.

Layouts are written by `layouts`; real files are those of `real_cases_dir`.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import geopandas
import h5py
import layouts
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import shapely
import spatialdata
from anndata import AnnData
from scipy import sparse
from spatialdata_io import cosmx, merscope, stereoseq, visium, visium_hd, xenium

import stimg
from stimg._slide._geometry import site_positions

PAGE = Path(__file__).parents[1] / "docs" / "read_your_data.md"

pytestmark = pytest.mark.filterwarnings("ignore")  # of readers; those of stimg are asserted on


@dataclass
class Result:
    """What lines of the page left behind."""

    slide: Any
    table: AnnData
    warnings: list[str] = field(default_factory=list)  # of stimg

    @property
    def lattice(self) -> dict[str, Any]:
        return self.table.uns["stimg"]["lattice"]


BLOCKS = {
    "visium, squidpy": ("Visium", "sq.read.visium"),
    "visium, spatialdata": ("Visium", "spatialdata_io.visium"),
    "visium hd, spatialdata": ("Visium HD", "bin_size=8"),
    "visium hd, cells": ("Visium HD", "load_segmentations_only=True"),
    "visium hd, scanpy": ("Visium HD", "sc.read_10x_h5"),
    "xenium, spatialdata": ("Xenium", "spatialdata_io.xenium"),
    "xenium, scanpy": ("Xenium", "sc.read_10x_h5"),
    "cosmx, squidpy": ("CosMx", 'spatial_key="spatial_fov"'),
    "cosmx, spatialdata": ("CosMx", "spatialdata_io.cosmx"),
    "cosmx, one lattice per field of view": ("CosMx", 'library_key="fov"'),
    "merscope, spatialdata": ("MERSCOPE", "spatialdata_io.merscope"),
    "merscope, squidpy": ("MERSCOPE", "sq.read.vizgen"),
    "slide-seq": ("Slide-seq", "bead_locations"),
    "stereo-seq, stereopy": ("Stereo-seq", "bin50.h5ad"),
    "stereo-seq, spatialdata": ("Stereo-seq", "bin50_table"),
    "stereo-seq, cells": ("Stereo-seq", "cells_table"),
    "cellxgene": ("CELLxGENE", "cellxgene.h5ad"),
    "transcripts of cells": ("Only transcripts", "Lung_tx_file.csv"),
    "transcripts in bins": ("Only transcripts", "detected_transcripts.csv"),
}  # heading of the page, and what only this block under it has


def blocks_under(heading: str) -> list[str]:
    text = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert text is not None, f"no heading {heading!r}"
    return re.findall(r"```python\n(.*?)```", text[1], flags=re.DOTALL)


def lines(name: str) -> str:
    """Return a block of code of the page."""
    heading, part = BLOCKS[name]
    found = [block for block in blocks_under(heading) if part in block]
    assert len(found) == 1, f"{len(found)} blocks under {heading!r} have {part!r}"
    return found[0]


def run(code: str) -> Result:
    if "squidpy" in code:
        pytest.importorskip("squidpy")
    names: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(code, str(PAGE), "exec"), names)
    ours = [one for one in caught if one.filename == str(PAGE) and "stimg." in code.splitlines()[one.lineno - 1]]
    slide, key = names["slide"], re.search(r'table_key="(\w+)"', code)
    table = slide if isinstance(slide, AnnData) else slide.tables[key[1] if key else "table"]
    return Result(slide, table, [str(one.message) for one in ours])


def to_domains(slide: Any) -> None:
    stimg.pp.to_lattice(slide)
    stimg.tl.embed(slide)
    stimg.tl.domains(slide, n_domains=4)


def test_every_block_of_the_page_is_run():
    page = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert sorted(map(lines, BLOCKS)) == sorted(page)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(result: Result, places: np.ndarray, counts: Any, **expected: Any) -> None:
    """Check domains, the lattice's record, every observation's place, and that counts are those of the files."""
    table, info = result.table, result.lattice
    assert result.warnings == []
    assert table.obs["stimg_domain"].nunique() == 7
    assert table.obs["stimg_domain"].notna().all()
    assert np.isfinite(table.obsm["X_stimg"]).all()
    found = {name: info[name] for name in expected}
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, rel=1e-3, nan_ok=True) if not isinstance(value, str) else value)
    if info["kind"] != "free":
        assert len(np.unique(table.obsm["lattice"], axis=0)) == table.n_obs
    on_lattice = site_positions(table.obsm["lattice"], info["kind"], int(info["parity"][0]))
    back = np.column_stack([on_lattice, np.ones(table.n_obs)]) @ info["affine"][0]
    furthest = 0.51 if info["kind"] == "free" else 0.05
    assert np.abs(back - places).max() <= furthest * info["pitch"] + 0.5  # some files have whole pixels
    known = [name for name in table.var_names if not name.startswith("NegPrb")]
    assert (sparse.csr_matrix(table[:, known].X) != sparse.csr_matrix(counts)).nnz == 0


# Visium


@pytest.mark.parametrize("reader", ["squidpy", "spatialdata"])
@pytest.mark.parametrize("version", [1, 2])
def test_visium(here, version, reader):
    slide = layouts.make_slide("visium")
    tissue = layouts.write_visium(here / "outs", slide, version)
    result = run(lines(f"visium, {reader}"))
    check(result, slide.obsm["spatial"][tissue], slide.X[tissue], kind="hex", platform="visium", pitch=20, pitch_um=100)


@pytest.mark.real
@pytest.mark.parametrize("reader", ["squidpy", "spatialdata"])
def test_visium_of_real_files(here, real_cases_dir, reader):
    (here / "outs").symlink_to(real_cases_dir / "seurat_visium" / "visium")
    result = run(lines(f"visium, {reader}"))
    assert result.table.shape == (2695, 100)
    assert "Only 36 of the slide's 100 genes" in result.warnings.pop()
    check(
        result, result.table.obsm["spatial"], result.table.X, kind="hex", platform="visium", pitch=137.97, pitch_um=100
    )


def test_visium_stays_whole_on_disk(here):
    layouts.write_visium(here / "outs", layouts.make_slide("visium"), 2)
    result = run(lines("visium, spatialdata"))
    result.slide.write(here / "slide.zarr")
    again = spatialdata.read_zarr(here / "slide.zarr")
    stimg.tl.domains(again, n_domains=7, key_added="again")
    assert (again["table"].obs["again"] == result.table.obs["stimg_domain"]).all()


def test_visium_of_two_sections(here):
    sq = pytest.importorskip("squidpy")
    layouts.write_visium(here / "outs", layouts.make_slide("visium"), 2)
    slides = {name: sq.read.visium("outs", library_id=name) for name in ("left", "right")}
    both = ad.concat(slides, label="section", index_unique="-", uns_merge="unique")
    with pytest.raises(ValueError, match="library_key"):
        stimg.pp.to_lattice(both)
    stimg.pp.to_lattice(both, library_key="section")
    np.testing.assert_allclose(both.uns["stimg"]["lattice"]["um_per_unit"], 5, rtol=1e-3)
    np.testing.assert_array_equal(both.obsm["lattice"][:160], both.obsm["lattice"][160:])
    assert set(both.uns["spatial"]) == {"left", "right"}


def test_visium_with_two_genes_of_one_name(here):
    slide = layouts.make_slide("visium")
    slide.var_names = [slide.var_names[1], *slide.var_names[1:]]
    layouts.write_visium(here / "outs", slide, 2)
    code = lines("visium, squidpy")
    with pytest.raises(ValueError, match="adata.var_names_make_unique()"):
        run(code.replace("slide.var_names_make_unique()\n", ""))
    assert run(code).table.n_vars == slide.n_vars


def test_visium_with_spots_on_glass(here):
    sq = pytest.importorskip("squidpy")
    layouts.write_visium(here / "outs", layouts.make_slide("visium"), 2)
    slide = sq.read.visium("outs", counts_file="raw_feature_bc_matrix.h5")
    with pytest.warns(UserWarning, match="in_tissue"):
        to_domains(slide)


def test_visium_whose_positions_were_not_read(here):
    sq = pytest.importorskip("squidpy")
    layouts.write_visium(here / "outs", layouts.make_slide("visium"), 2)
    with pytest.raises(KeyError, match="read"):
        stimg.pp.to_lattice(sq.read.visium("outs", load_images=False))


def test_visium_by_the_path_of_its_folder(here):
    with pytest.raises(TypeError, match="read"):
        stimg.pp.to_lattice("outs")


def test_visium_called_visium_hd(here):
    layouts.write_visium(here / "outs", layouts.make_slide("visium"), 2)
    with pytest.raises(ValueError, match="visium"):
        stimg.pp.to_lattice(visium("outs", dataset_id="x"), "visium_hd")


# Visium HD


@pytest.fixture
def hd(here) -> dict[int, AnnData]:
    slides = {um: layouts.make_slide("visium_hd", n_obs=n) for um, n in ((8, 200), (16, 150))}
    layouts.write_visium_hd(here / "outs", slides)
    return slides


@pytest.mark.parametrize("reader", ["spatialdata", "scanpy"])
def test_visium_hd(hd, reader):
    result = run(lines(f"visium hd, {reader}"))
    array = hd[8].obs[["array_col", "array_row"]].to_numpy()
    expected = {"kind": "square", "platform": "visium_hd", "pitch": 8 / layouts.MPP, "pitch_um": 8}
    check(result, array * 8 / layouts.MPP, hd[8].X, **expected)


def test_visium_hd_by_cells(hd, here):
    cells = layouts.make_slide("free")
    layouts.write_segmented_cells(here / "outs", cells)
    result = run(lines("visium hd, cells"))
    check(result, cells.obsm["spatial"], cells.X, kind="free", platform="free", um_per_unit=layouts.MPP)


def test_visium_hd_of_all_sizes_asks_for_one(hd):
    sdata = visium_hd("outs", dataset_id="x", load_segmentations_only=False)
    with pytest.raises(ValueError, match=r"table_key.*square_008um.*square_016um"):
        stimg.pp.to_lattice(sdata, "visium_hd")
    with pytest.raises(KeyError, match=r"square_002um.*Available.*square_008um"):
        stimg.pp.to_lattice(sdata, "visium_hd", table_key="square_002um")
    with pytest.raises(ValueError, match="hexagonal"):
        stimg.pp.to_lattice(sdata, "visium", table_key="square_008um")


def test_visium_hd_cells_called_bins(hd, here):
    layouts.write_segmented_cells(here / "outs", layouts.make_slide("free"))
    sdata = visium_hd("outs", dataset_id="x", load_segmentations_only=True)
    with pytest.raises(ValueError, match="platform='free'"):
        stimg.pp.to_lattice(sdata, "visium_hd", table_key="cell_segmentations")


@pytest.mark.real
def test_visium_hd_of_real_files(here, real_cases_dir):
    """Of the 2,695 barcodes in Seurat's files, 642 have a place among the bins of 16 um."""
    (here / "outs").symlink_to(real_cases_dir / "seurat_visium" / "visium_hd")
    code = lines("visium hd, scanpy").replace("square_008um", "square_016um")
    code = code.replace("slide.obsm", 'slide = slide[slide.obs["array_row"].notna()].copy()\nslide.obsm', 1)
    result = run(code)
    assert result.table.shape == (642, 100)
    assert "Only 36 of the slide's 100 genes" in result.warnings.pop()
    assert "306 of 642 observations lie beside the tissue" in result.warnings.pop()
    expected = {"kind": "square", "pitch": 58.43, "pitch_um": 16, "um_per_unit": 0.2738}
    check(result, result.table.obsm["spatial"], result.table.X, **expected)


@pytest.mark.real
def test_visium_hd_with_barcodes_that_have_no_place(here, real_cases_dir):
    (here / "outs").symlink_to(real_cases_dir / "seurat_visium" / "visium_hd")
    with pytest.raises(ValueError, match=r"2,?053.*barcode"):
        run(lines("visium hd, scanpy").replace("square_008um", "square_016um"))


@pytest.mark.real
def test_visium_hd_whose_scale_contradicts_its_bins(here, real_cases_dir):
    """Seurat's bins of 8 um have the places of bins of 16 um."""
    (here / "outs").symlink_to(real_cases_dir / "seurat_visium" / "visium_hd")
    try:
        said = " ".join(run(lines("visium hd, scanpy").split("stimg.tl")[0]).warnings)
    except ValueError as error:
        said = str(error)
    assert "microns_per_pixel" in said


# Xenium


@pytest.mark.parametrize("reader", ["spatialdata", "scanpy"])
def test_xenium(here, reader):
    slide = layouts.make_slide("xenium")
    layouts.write_xenium(here / "outs", slide)
    result = run(lines(f"xenium, {reader}"))
    check(result, slide.obsm["spatial"], slide.X, kind="free", platform="xenium", um_per_unit=1, library_key="")


def test_xenium_without_its_name(here):
    """The unit is unknown, or right."""
    layouts.write_xenium(here / "outs", layouts.make_slide("xenium"))
    sdata = xenium("outs", transcripts=False, morphology_mip=False, morphology_focus=False)
    stimg.pp.to_lattice(sdata)
    info = sdata["table"].uns["stimg"]["lattice"]
    assert np.isnan(info["pitch_um"]) or info["pitch_um"] == pytest.approx(info["pitch"])


def test_xenium_without_places(here):
    layouts.write_xenium(here / "outs", layouts.make_slide("xenium"))
    with pytest.raises(KeyError, match="spatial"):
        stimg.pp.to_lattice(sc.read_10x_h5("outs/cell_feature_matrix.h5"), "xenium")


# CosMx


@pytest.mark.parametrize(("reader", "key"), [("squidpy", "spatial_fov"), ("spatialdata", "global")])
def test_cosmx(here, reader, key):
    slide = layouts.make_slide("cosmx")
    layouts.write_cosmx(here / "flat", slide)
    result = run(lines(f"cosmx, {reader}"))
    x, y = slide.obsm["spatial"].T
    expected = {"kind": "free", "platform": "cosmx", "um_per_unit": 0.12, "spatial_key": key, "library_key": ""}
    check(result, np.column_stack([x, y - y.min()]), slide.X, **expected)


def test_cosmx_by_field_of_view(here):
    slide = layouts.make_slide("cosmx")
    layouts.write_cosmx(here / "flat", slide)
    result = run(lines("cosmx, one lattice per field of view"))
    assert result.warnings == []
    assert sorted(result.lattice["libraries"]) == ["1", "2"]
    np.testing.assert_allclose(result.lattice["um_per_unit"], 0.12)
    assert result.table.obs["stimg_domain"].nunique() == 7


@pytest.mark.parametrize("reader", ["squidpy", "spatialdata_io"])
def test_cosmx_in_local_coordinates(here, reader):
    layouts.write_cosmx(here / "flat", layouts.make_slide("cosmx"))
    if reader == "squidpy":
        sq = pytest.importorskip("squidpy")
        files = {"counts_file": "Lung_exprMat_file.csv", "meta_file": "Lung_metadata_file.csv"}
        slide = sq.read.nanostring("flat", **files)
    else:
        slide = cosmx("flat", transcripts=False)
    with pytest.raises(ValueError, match="fov"):
        stimg.pp.to_lattice(slide, "cosmx")


# MERSCOPE


@pytest.mark.parametrize("reader", ["spatialdata", "squidpy"])
def test_merscope(here, reader):
    slide = layouts.make_slide("merfish")
    layouts.write_merscope(here / "region_0", slide)
    result = run(lines(f"merscope, {reader}"))
    check(result, slide.obsm["spatial"], slide.X, kind="free", platform="merfish", um_per_unit=1, library_key="")


def test_merscope_without_its_table(here):
    layouts.write_merscope(here / "region_0", layouts.make_slide("merfish"))
    sdata = merscope("region_0", transcripts=False, mosaic_images=False, cells_table=False)
    with pytest.raises(ValueError, match="no table"):
        stimg.pp.to_lattice(sdata, "merfish")


def test_merfish_of_serial_sections():
    """As `squidpy.datasets.merfish` has them: one object, the depth of each section in a column."""
    slide = layouts.make_slide("merfish")
    sections = ad.concat([slide, slide], index_unique="-")
    sections.obs["Bregma"] = np.repeat([-9.0, -4.0], slide.n_obs)
    sections.obsm["spatial3d"] = np.column_stack([sections.obsm["spatial"], sections.obs["Bregma"]])
    with pytest.raises(ValueError, match="Bregma"):
        stimg.pp.to_lattice(sections, "merfish")


# Slide-seq


def test_slide_seq(here):
    slide = layouts.make_slide("slide_seq")
    layouts.write_slide_seq(here / "puck", slide)
    result = run(lines("slide-seq"))
    check(result, slide.obsm["spatial"], slide.X, kind="free", platform="slide_seq", pitch_um=np.nan)


# Stereo-seq


def test_stereo_seq_of_stereopy(here):
    slide = layouts.make_slide("stereo_seq")
    layouts.write_stereopy(here / "bin50.h5ad", slide)
    result = run(lines("stereo-seq, stereopy"))
    places = slide.obs[["array_col", "array_row"]].to_numpy() * 50 + 7000
    check(result, places, slide.X, kind="square", platform="stereo_seq", pitch=50, pitch_um=25)


@pytest.fixture
def saw(here) -> tuple[AnnData, AnnData]:
    slide, cells = layouts.make_slide("stereo_seq"), layouts.make_slide("free", n_obs=150)
    layouts.write_saw(here / "saw", slide, cells)
    return slide, cells


def test_stereo_seq_of_saw(saw):
    result, slide = run(lines("stereo-seq, spatialdata")), saw[0]
    places = slide.obs[["array_col", "array_row"]].to_numpy() * 50 + 7000
    row_of = {tuple(place): row for row, place in enumerate(places)}
    rows = [row_of[tuple(place)] for place in np.rint(result.table.obsm["spatial"]).astype(int)]
    counts = slide[rows, result.table.var_names].X
    check(result, places[rows], counts, kind="square", platform="stereo_seq", pitch=50, pitch_um=25)


def test_stereo_seq_by_cells(saw):
    result, cells = run(lines("stereo-seq, cells")), saw[1]
    check(result, cells.obsm["spatial"], cells.X, kind="free", platform="free", um_per_unit=0.5)


def test_stereo_seq_cells_called_bins(saw):
    with pytest.raises(ValueError, match="platform='free'"):
        stimg.pp.to_lattice(stereoseq("saw"), "stereo_seq", table_key="cells_table")


# CELLxGENE


def test_cellxgene(here):
    slide = layouts.make_slide("visium")
    tissue = layouts.write_cellxgene(here / "cellxgene.h5ad", slide)
    result = run(lines("cellxgene"))
    expected = {"kind": "hex", "platform": "visium", "pitch": 20, "pitch_um": 100}
    check(result, slide.obsm["spatial"][tissue], slide.X[tissue], **expected)


def test_cellxgene_with_its_image(here):
    layouts.write_cellxgene(here / "cellxgene.h5ad", layouts.make_slide("visium"))
    assert len(stimg.pl.domains(run(lines("cellxgene")).slide).images) == 1


def test_cellxgene_named_by_ensembl_ids(here):
    layouts.write_cellxgene(here / "cellxgene.h5ad", layouts.make_slide("visium"))
    slide = sc.read_h5ad("cellxgene.h5ad").raw.to_adata()
    slide = slide[slide.obs["in_tissue"] == 1].copy()
    to_domains(slide)
    assert slide.uns["stimg"]["embed"]["n_genes_shared"] == slide.n_vars
    assert slide.var_names[0].startswith("ENSG")


def test_cellxgene_with_counts_in_raw(here):
    layouts.write_cellxgene(here / "cellxgene.h5ad", layouts.make_slide("visium"))
    with pytest.raises(ValueError, match=r"\.raw"):
        to_domains(sc.read_h5ad("cellxgene.h5ad"))


# Only transcripts


@pytest.mark.real
@pytest.mark.parametrize(("sample", "n_cells"), [(1, 85), (2, 96)])
def test_transcripts_of_real_cosmx(here, real_cases_dir, sample, n_cells):
    (here / "flat").mkdir()
    (here / "flat" / "Lung_tx_file.csv").symlink_to(real_cases_dir / "cosmx_lung" / f"sample_{sample}" / "tx_file.csv")
    code = lines("transcripts of cells").replace("n_domains=7", "n_domains=3")
    result = run(code.replace("0.12", "0.18"))
    transcripts = pd.read_csv("flat/Lung_tx_file.csv").query("cell_ID > 0 and not target.str.startswith('NegPrb')")
    assert result.warnings == []
    assert (result.table.n_obs, result.table.X.sum()) == (n_cells, len(transcripts))
    assert 11 < result.lattice["pitch_um"] < 14  # between neighbouring cells of a lung
    assert result.table.obs["stimg_domain"].nunique() == 3


@pytest.mark.real
def test_transcripts_of_real_merscope(here, real_cases_dir):
    (here / "region_0").symlink_to(real_cases_dir / "merscope_ovary")
    code = lines("transcripts in bins").replace("n_domains=7", "n_domains=3")
    result = run(code)
    transcripts = pd.read_csv("region_0/detected_transcripts.csv").query("not gene.str.startswith('Blank')")
    assert "18 of 65 sites have less than a tenth" in result.warnings.pop()
    assert result.warnings == []
    assert result.table.X.sum() == len(transcripts)
    assert (result.lattice["kind"], result.lattice["pitch_um"]) == ("square", pytest.approx(10))
    assert result.table.obs["stimg_domain"].nunique() == 3


@pytest.mark.real
def test_cells_of_real_merscope(here, real_cases_dir):
    """Cells outlined by MERSCOPE's first software, which kept outlines in HDF5."""
    folder = real_cases_dir / "merscope_ovary"
    with h5py.File(folder / "cell_boundaries" / "feature_data_1753.hdf5") as file:
        outlines = {
            cell: shapely.Polygon(one["zIndex_3/p_0/coordinates"][0]) for cell, one in file["featuredata"].items()
        }
    cells = geopandas.GeoDataFrame(geometry=list(outlines.values()), index=pd.Index(outlines, name="cell"))
    found = pd.read_csv(folder / "detected_transcripts.csv")
    found = geopandas.GeoDataFrame(found, geometry=geopandas.points_from_xy(found["global_x"], found["global_y"]))
    found = found[~found["gene"].str.startswith("Blank")].sjoin(cells)
    slide = AnnData(pd.crosstab(found["cell"], found["gene"]))
    centres = cells.loc[slide.obs_names].centroid
    slide.obsm["spatial"] = np.column_stack([centres.x, centres.y])
    stimg.pp.to_lattice(slide, "merfish", um_per_unit=1)
    stimg.tl.embed(slide)
    stimg.tl.domains(slide, n_domains=3)
    assert slide.shape == (24, 412)
    assert 10 < slide.uns["stimg"]["lattice"]["pitch_um"] < 20
