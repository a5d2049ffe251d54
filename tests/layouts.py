"""Small slides written to files as each platform's software lays them out, and as the readers' own code expects them.

Readers: squidpy 1.8, spatialdata-io 0.7, scanpy 1.11. Genes are those of the bundled weights, so that slides can be
embedded.
"""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tifffile
import zarr
from anndata import AnnData
from PIL import Image
from scipy import sparse
from shapely import MultiPolygon, Point, to_geojson

import stimg

MPP = 0.5
FACTORS = {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.03}


def make_slide(platform: str, n_obs: int = 200, n_genes: int = 240) -> AnnData:
    """Return a synthetic slide with genes of the bundled weights, and a made-up Ensembl id for each."""
    slide = stimg.datasets.synthetic(platform, n_obs=n_obs, n_genes=n_genes, n_domains=4, seed=0)
    del slide.uns["spatial"]
    known = pd.Index(stimg.models.load("stimg-tiny").genes)
    human = known[known.str.fullmatch("[A-Z][A-Z0-9]+")]
    slide.var_names = human[np.linspace(0, len(human) - 1, n_genes).astype(int)]
    slide.var["gene_ids"] = [f"ENSG{900_000 + i:011d}" for i in range(n_genes)]
    return slide


def write_10x_h5(path: Path, slide: AnnData, controls: tuple[str, ...] = ()) -> None:
    """Write counts as Cell Ranger 3 and later do, followed by a row for each control probe."""
    counts = sparse.vstack([sparse.csr_matrix(slide.X).T, np.ones((len(controls), slide.n_obs))], format="csc")
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array(["my_slide"], "S")
        file.attrs["chemistry_description"], file.attrs["software_version"] = "Spatial 3' v1", "spaceranger-3.1.2"
        matrix = file.create_group("matrix")
        matrix["barcodes"] = slide.obs_names.to_numpy().astype("S")
        matrix["data"], matrix["shape"] = counts.data.astype(np.int32), np.array(counts.shape, np.int32)
        matrix["indices"], matrix["indptr"] = counts.indices.astype(np.int64), counts.indptr.astype(np.int64)
        features = matrix.create_group("features")
        features["id"] = np.array([*slide.var["gene_ids"], *controls], "S")
        features["name"] = np.array([*slide.var_names, *controls], "S")
        kinds = ["Gene Expression"] * slide.n_vars + ["Negative Control Probe"] * len(controls)
        features["feature_type"] = np.array(kinds, "S")
        features["genome"] = np.array(["GRCh38"] * len(kinds), "S")


def _write_images(folder: Path, side: float) -> None:
    for name in ("hires", "lowres"):
        pixels = int(side * FACTORS[f"tissue_{name}_scalef"]) + 1
        Image.fromarray(np.full((pixels, pixels, 3), 200, np.uint8)).save(folder / f"tissue_{name}_image.png")


def _put_rim_on_glass(slide: AnnData) -> np.ndarray:
    """Leave the outermost fifth of the spots all but empty, and return which spots lie on tissue."""
    radius = np.linalg.norm(slide.obsm["spatial"] - slide.obsm["spatial"].mean(0), axis=1)
    tissue = radius < np.quantile(radius, 0.8)
    spilled = sparse.csr_matrix(
        (np.ones((~tissue).sum()), (np.flatnonzero(~tissue), np.arange((~tissue).sum()))), slide.shape
    )
    slide.X = sparse.csr_matrix(sparse.diags(tissue.astype(float)) @ slide.X + spilled)
    return tissue


def write_visium(outs: Path, slide: AnnData, version: int) -> np.ndarray:
    """Write spots of Visium as this version of Space Ranger does; return which of them lie on tissue."""
    (outs / "spatial").mkdir(parents=True)
    slide.obs_names = [f"{''.join('ACGT'[i // 4**k % 4] for k in range(16))}-1" for i in range(slide.n_obs)]
    tissue = _put_rim_on_glass(slide)
    x, y = slide.obsm["spatial"].T
    write_10x_h5(outs / "raw_feature_bc_matrix.h5", slide)
    write_10x_h5(outs / "filtered_feature_bc_matrix.h5", slide[tissue])
    places = pd.DataFrame({"barcode": slide.obs_names, "in_tissue": tissue.astype(int)})
    places["array_row"], places["array_col"] = slide.obs["array_row"].to_numpy(), slide.obs["array_col"].to_numpy()
    places["pxl_row_in_fullres"], places["pxl_col_in_fullres"] = np.rint(y).astype(int), np.rint(x).astype(int)
    name = "tissue_positions_list.csv" if version == 1 else "tissue_positions.csv"
    places.to_csv(outs / "spatial" / name, header=version > 1, index=False)
    factors = FACTORS | {"spot_diameter_fullres": 65.0, "fiducial_diameter_fullres": 105.0}
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    _write_images(outs / "spatial", max(x.max(), y.max()))
    return tissue


def write_visium_hd(outs: Path, slides: dict[int, AnnData]) -> None:
    """Write slides of bins, one for each size in micrometres, where Space Ranger 3 and 4 put them."""
    for um, slide in slides.items():
        folder = outs / "binned_outputs" / f"square_{um:03d}um"
        (folder / "spatial").mkdir(parents=True)
        array = slide.obs[["array_row", "array_col"]].to_numpy()
        slide.obs_names = [f"s_{um:03d}um_{row:05d}_{col:05d}-1" for row, col in array]
        write_10x_h5(folder / "filtered_feature_bc_matrix.h5", slide)
        pixels = array * um / MPP
        places = {"barcode": slide.obs_names, "in_tissue": 1, "array_row": array[:, 0], "array_col": array[:, 1]}
        places |= {"pxl_row_in_fullres": pixels[:, 0], "pxl_col_in_fullres": pixels[:, 1]}
        pd.DataFrame(places).to_parquet(folder / "spatial" / "tissue_positions.parquet")
        factors = FACTORS | {"spot_diameter_fullres": um / MPP, "bin_size_um": float(um), "microns_per_pixel": MPP}
        (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        _write_images(folder / "spatial", pixels.max())
    write_feature_slice(outs)


def write_feature_slice(outs: Path) -> None:
    with h5py.File(outs / "feature_slice.h5", "w") as file:
        layout = json.dumps({"file_format": "1.0"})
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": layout, "transform_matrices": {}})


def write_segmented_cells(outs: Path, slide: AnnData) -> None:
    """Write the cells that Space Ranger 4 finds on a slide of Visium HD."""
    folder = outs / "segmented_outputs"
    (folder / "spatial").mkdir(parents=True)
    slide.obs_names = [f"cellid_{i + 1:09d}-1" for i in range(slide.n_obs)]
    write_10x_h5(folder / "filtered_feature_cell_matrix.h5", slide)
    cells = [
        {"type": "Feature", "properties": {"cell_id": i + 1}, "geometry": json.loads(to_geojson(cell))}
        for i, cell in enumerate(_outlines(slide, 10))
    ]
    collection = {"type": "FeatureCollection", "features": cells}
    (folder / "cell_segmentations.geojson").write_text(json.dumps(collection))
    factors = FACTORS | {"microns_per_pixel": MPP}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))


def _outlines(slide: AnnData, radius: float) -> list:
    return [Point(*place).buffer(radius, quad_segs=3) for place in slide.obsm["spatial"]]


def write_xenium(outs: Path, slide: AnnData) -> None:
    """Write the files of Xenium Onboard Analysis 3 that hold cells; coordinates are micrometres."""
    outs.mkdir(parents=True)
    n = slide.n_obs
    ids = np.column_stack([np.arange(1, n + 1, dtype=np.uint32), np.ones(n, np.uint32)])
    letters = dict(zip("0123456789abcdef", "abcdefghijklmnop", strict=True))
    slide.obs_names = ["".join(letters[digit] for digit in f"{i:08x}") + "-1" for i in ids[:, 0]]
    write_10x_h5(outs / "cell_feature_matrix.h5", slide, controls=("NegControlProbe_00042", "NegControlProbe_00041"))
    specs = {"analysis_sw_version": "xenium-3.1.0.4", "pixel_size": 0.2125, "region_name": "slide"}
    (outs / "experiment.xenium").write_text(json.dumps(specs))
    x, y = slide.obsm["spatial"].T
    cells = pd.DataFrame({"cell_id": slide.obs_names, "x_centroid": x, "y_centroid": y})
    cells["transcript_counts"] = np.asarray(slide.X.sum(1)).ravel().astype(int)
    cells["cell_area"], cells["nucleus_area"], cells["segmentation_method"] = 80.0, 30.0, "Segmented by nucleus"
    cells.to_parquet(outs / "cells.parquet", index=False)
    for name, radius in (("cell", 5), ("nucleus", 3)):
        corners = [np.array(outline.exterior.coords) for outline in _outlines(slide, radius)]
        which = np.repeat(np.arange(n), [len(one) for one in corners])
        vertices = {"cell_id": slide.obs_names.to_numpy()[which], "label_id": (which + 1).astype(np.uint32)}
        vertices |= dict(zip(("vertex_x", "vertex_y"), np.concatenate(corners).T.astype(np.float32), strict=True))
        pd.DataFrame(vertices).to_parquet(outs / f"{name}_boundaries.parquet", index=False)
    with zarr.storage.ZipStore(outs / "cells.zarr.zip", mode="w") as store:
        root = zarr.group(store=store, zarr_format=2)
        root.create_array("cell_id", data=ids)
        summary = np.column_stack([x, y, np.full(n, 80.0), x, y, np.full(n, 30.0), np.zeros(n), np.ones(n)])
        names = ["cell_centroid_x", "cell_centroid_y", "cell_area", "nucleus_centroid_x", "nucleus_centroid_y"]
        names += ["nucleus_area", "z_level", "nucleus_count"]
        root.create_array("cell_summary", data=summary).attrs["column_names"] = names
        labels = np.zeros((64, 64), np.uint32)
        for mask in ("0", "1"):
            root.create_array(f"masks/{mask}", data=labels)
            root.create_array(f"polygon_sets/{mask}/cell_index", data=np.arange(n, dtype=np.uint32))


def write_cosmx(folder: Path, slide: AnnData) -> None:
    """Write flat files of CosMx: two fields of view, of which the coordinates are local, at 0.12 um per pixel."""
    x, y = slide.obsm["spatial"].T
    fov = np.where(x < np.median(x), 1, 2)
    table = pd.DataFrame(slide.X.toarray().astype(int), columns=slide.var_names).assign(NegPrb3=0, NegPrb5=1)
    cells = pd.DataFrame({"fov": fov, "cell_ID": pd.Series(fov).groupby(fov).cumcount() + 1})
    outside = pd.DataFrame(1, index=[0, 1], columns=table.columns)  # transcripts outside cells: cell 0 of each FOV
    counts = pd.concat([pd.DataFrame({"fov": [1, 2], "cell_ID": 0}).join(outside), cells.join(table)])
    folder.mkdir(parents=True)
    counts.to_csv(folder / "Lung_exprMat_file.csv", index=False)
    corner = np.where(fov == 1, x.min(), np.median(x))
    cells["Area"], cells["AspectRatio"] = 4000, 0.9
    cells["CenterX_local_px"], cells["CenterY_local_px"] = np.rint(x - corner), np.rint(y - y.min())
    cells["CenterX_global_px"], cells["CenterY_global_px"] = (
        cells["CenterX_local_px"] + corner,
        cells["CenterY_local_px"],
    )
    cells.to_csv(folder / "Lung_metadata_file.csv", index=False)
    positions = pd.DataFrame({"fov": [1, 2], "x_global_px": [x.min(), np.median(x)], "y_global_px": 0.0})
    positions.to_csv(folder / "Lung_fov_positions_file.csv", index=False)
    for name, shape in (("CellComposite/CellComposite", (32, 32, 3)), ("CellLabels/CellLabels", (32, 32))):
        for number in (1, 2):
            path = folder / f"{name}_F{number:03d}.{'jpg' if len(shape) == 3 else 'tif'}"
            path.parent.mkdir(exist_ok=True)
            pixels = np.zeros(shape, np.uint8 if len(shape) == 3 else np.uint16)
            Image.fromarray(pixels).save(path) if len(shape) == 3 else tifffile.imwrite(path, pixels)


def write_merscope(folder: Path, slide: AnnData) -> None:
    """Write what Vizgen's software writes about cells; coordinates are micrometres."""
    import geopandas

    (folder / "images").mkdir(parents=True)
    slide.obs_names = [str(1_000_000_000_000 + i) for i in range(slide.n_obs)]
    counts = pd.DataFrame(slide.X.toarray().astype(int), index=slide.obs_names, columns=slide.var_names)
    counts.assign(**{"Blank-1": 0, "Blank-2": 1}).rename_axis("cell").to_csv(folder / "cell_by_gene.csv")
    x, y = slide.obsm["spatial"].T
    cells = pd.DataFrame({"fov": 0, "volume": 500.0, "center_x": x, "center_y": y}, index=slide.obs_names)
    cells.rename_axis("EntityID").to_csv(folder / "cell_metadata.csv")
    np.savetxt(folder / "images" / "micron_to_mosaic_pixel_transform.csv", np.diag([9.26, 9.26, 1.0]))
    outlines = [MultiPolygon([outline]) for outline in _outlines(slide, 5)]
    boundaries = {"EntityID": slide.obs_names.astype(np.int64), "ZIndex": 0, "Geometry": outlines}
    geopandas.GeoDataFrame(boundaries, geometry="Geometry").to_parquet(folder / "cell_boundaries.parquet")


def write_slide_seq(folder: Path, slide: AnnData) -> None:
    """Write the two files of a puck of Slide-seqV2."""
    folder.mkdir(parents=True)
    counts = pd.DataFrame(slide.X.T.toarray().astype(int), index=slide.var_names, columns=slide.obs_names)
    counts.rename_axis("GENE").to_csv(folder / "Puck_200115_08.digital_expression.txt.gz", sep="\t")
    places = pd.DataFrame(slide.obsm["spatial"], index=slide.obs_names, columns=["xcoord", "ycoord"])
    places.rename_axis("barcode").to_csv(folder / "Puck_200115_08_bead_locations.csv")


def write_stereopy(path: Path, slide: AnnData, bin_size: int = 50) -> None:
    """Write bins as `stereopy.io.stereo_to_anndata(flavor="scanpy")` does; coordinates count DNA nanoballs."""
    table = AnnData(slide.X, obs=pd.DataFrame(index=slide.obs_names), var=slide.var[[]])
    table.obsm["spatial"] = slide.obs[["array_col", "array_row"]].to_numpy() * bin_size + 7000
    table.obs["x"], table.obs["y"] = table.obsm["spatial"].T
    table.obs["orig.ident"] = pd.Categorical(["sample"] * table.n_obs)
    table.uns |= {"bin_type": "bins", "bin_size": bin_size, "resolution": 500, "merged": False}
    table.uns["sn"] = pd.DataFrame({"batch": ["-1"], "sn": ["SS200000135TL_D1"]})
    table.write_h5ad(path)


def write_saw(folder: Path, slide: AnnData, cells: AnnData, bin_size: int = 50) -> None:
    """Write the results of SAW 6 and 7 (bins of one size, and cells), as `spatialdata_io.stereoseq` reads them."""
    name = "SS200000135TL_D1"
    for part in ("02.count", "03.register", "04.tissuecut", "041.cellcut", "051.cellcluster"):
        (folder / part).mkdir(parents=True)
    places = slide.obs[["array_col", "array_row"]].to_numpy() * bin_size + 7000
    by_gene = sparse.csc_matrix(slide.X)
    n_bins = np.diff(by_gene.indptr)
    genes = np.zeros(slide.n_vars, [("gene", "S32"), ("offset", "<u4"), ("count", "<u4")])
    genes["gene"], genes["offset"], genes["count"] = (
        slide.var_names.to_numpy().astype("S32"),
        by_gene.indptr[:-1],
        n_bins,
    )
    expression = np.zeros(by_gene.nnz, [("x", "<i4"), ("y", "<i4"), ("count", "<u2")])
    expression["x"], expression["y"], expression["count"] = *places[by_gene.indices].T, by_gene.data
    for path in (f"02.count/{name}.raw.gef", f"04.tissuecut/{name}.tissuecut.gef"):
        with h5py.File(folder / path, "w") as file:
            file[f"geneExp/bin{bin_size}/gene"] = genes
            file[f"geneExp/bin{bin_size}/expression"] = expression
            file[f"geneExp/bin{bin_size}/expression"].attrs["resolution"] = np.array([500], np.uint32)
    n, n_genes = cells.shape
    fields = "id x y offset geneCount expCount dnbCount area cellTypeID clusterID".split()
    cell = np.zeros(n, [(field, "<i4") for field in fields])
    cell["id"], cell["area"] = np.arange(n), 400
    cell["x"], cell["y"] = np.rint(cells.obsm["spatial"]).astype(int).T
    gene = np.zeros(n_genes, [("geneName", "S32"), *((field, "<u4") for field in ("offset", "cellCount", "expCount"))])
    gene = np.array([(*row, 0) for row in gene.tolist()], [*gene.dtype.descr, ("maxMIDcount", "<u4")])
    gene["geneName"] = cells.var_names.to_numpy().astype("S32")
    border = np.full((n, 32, 2), 32767, np.int16)
    border[:, :4] = [[-9, -9], [9, -9], [9, 9], [-9, 9]]
    nnz = cells.X.nnz
    with h5py.File(folder / "041.cellcut" / f"{name}.cellbin.gef", "w") as file:
        inside = file.create_group("cellBin")
        inside["cell"], inside["gene"], inside["cellBorder"] = cell, gene, border
        inside["cellExon"], inside["geneExon"] = np.zeros(n, np.uint16), np.zeros(n_genes, np.uint32)
        inside["cellExp"] = np.zeros(nnz, [("geneID", "<u4"), ("count", "<u2")])
        inside["geneExp"] = np.zeros(nnz, [("cellID", "<u4"), ("count", "<u2")])
        inside["cellExpExon"], inside["geneExpExon"] = np.zeros(nnz, np.uint16), np.zeros(nnz, np.uint16)
        inside["blockIndex"], inside["blockSize"] = np.zeros(2, np.uint32), np.array([256, 256, 1, 1], np.uint32)
        inside["cellTypeList"] = np.array(["default"], "S32")
    table = AnnData(cells.X, obs=pd.DataFrame(index=[str(i) for i in range(n)]), var=cells.var[[]])
    table.write_h5ad(folder / "051.cellcluster" / f"{name}.cell.cluster.h5ad")


def write_cellxgene(path: Path, slide: AnnData) -> np.ndarray:
    """Write a Visium section as CELLxGENE Discover keeps it (schema 7); return which spots lie on tissue.

    It has all spots of the array, with log-normalised values in `.X` and counts in `.raw`.
    """
    tissue = _put_rim_on_glass(slide)
    raw = AnnData(sparse.csr_matrix(slide.X, dtype=np.float32), obs=pd.DataFrame(index=slide.obs_names))
    raw.var_names = slide.var["gene_ids"].to_numpy()
    raw.var["feature_name"] = pd.Categorical(slide.var_names)
    raw.var["feature_biotype"] = pd.Categorical(["gene"] * slide.n_vars)
    table = raw.copy()
    totals = np.maximum(np.asarray(raw.X.sum(1)), 1)
    table.X = sparse.csr_matrix(raw.X.multiply(1e4 / totals)).log1p()
    table.var["feature_is_filtered"] = False
    table.raw = raw
    for key in ("array_row", "array_col"):
        table.obs[key] = slide.obs[key].to_numpy()
    table.obs["in_tissue"] = tissue.astype(int)
    table.obs["is_primary_data"] = True
    for key, value in (("donor_id", "D1"), ("assay", "Visium Spatial Gene Expression V1"), ("suspension_type", "na")):
        table.obs[key] = pd.Categorical([value] * table.n_obs)
    table.obsm["spatial"] = slide.obsm["spatial"]
    side = int(slide.obsm["spatial"].max() * 0.1) + 1
    images = {"hires": np.full((side, side, 3), 200, np.uint8)}
    factors = {"spot_diameter_fullres": 65.0, "tissue_hires_scalef": 0.1}
    table.uns |= {"schema_version": "7.0.0", "title": "a section", "organism_ontology_term_id": "NCBITaxon:9606"}
    table.uns["spatial"] = {"is_single": np.bool_(True), "my_slide": {"images": images, "scalefactors": factors}}
    table.write_h5ad(path)
    return tissue
