"""Reading and fetching of public slides, from miniatures in the layout in which they were published."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imsave
from scipy import sparse

import stimg
from stimg._downloads import HASHES
from stimg.datasets import dlpfc, her2st
from stimg.datasets._dlpfc import SLICES
from stimg.datasets._her2st import SECTIONS

BARCODES = ["AAA-1", "CCC-1", "GGG-1"]
COUNTS = np.array([[0, 2, 1, 0], [3, 0, 0, 5], [1, 1, 0, 0]])  # spots x genes
SCALES = {"spot_diameter_fullres": 96.4, "tissue_lowres_scalef": 0.045}


@pytest.fixture
def published(tmp_path) -> dict[str, Path]:
    """Miniatures of all files of one slice and one section, by the end of their addresses."""
    folder = tmp_path / "published"
    folder.mkdir()
    files = {
        "h5/151673_filtered_feature_bc_matrix.h5": folder / "counts.h5",
        "images/151673_tissue_lowres_image.png": folder / "image.png",
        "10X/151673/tissue_positions_list.txt": folder / "positions.txt",
        "10X/151673/scalefactors_json.json": folder / "scales.json",
        "10X/barcode_level_layer_map.tsv": folder / "layers.tsv",
        "ST-cnts/A1.tsv.gz": folder / "A1.tsv.gz",
        "ST-spotfiles/A1_selection.tsv": folder / "A1_selection.tsv",
        "ST-pat/lbl/A1_labeled_coordinates.tsv": folder / "A1_labels.tsv",
    }
    matrix = sparse.csc_matrix(COUNTS.T)  # genes x spots, by spot
    with h5py.File(folder / "counts.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array(matrix.shape)
        group["barcodes"] = np.array(BARCODES, dtype="S")
        for name, values in {
            "id": ["ENSG1", "ENSG2", "ENSG3", "ENSG4"],
            "name": ["SNAP25", "MOBP", "TWIN", "TWIN"],
            "feature_type": ["Gene Expression"] * 4,
            "genome": ["GRCh38"] * 4,
        }.items():
            group[f"features/{name}"] = np.array(values, dtype="S")
    imsave(folder / "image.png", np.full((6, 5, 3), 200, dtype=np.uint8))
    positions = ["TTT-1,0,0,0,10,20", "GGG-1,1,2,4,12,24", "CCC-1,1,1,1,11,21", "AAA-1,1,0,2,10,22"]
    (folder / "positions.txt").write_text("\n".join(positions) + "\n")
    (folder / "scales.json").write_text(json.dumps(SCALES))
    (folder / "layers.tsv").write_text("AAA-1\t151507\tL6\nAAA-1\t151673\tL1\nGGG-1\t151673\tWM\n")
    table = pd.DataFrame(COUNTS, index=["10x13", "11x13", "30x30"], columns=["ERBB2", "CD74", "TTN", "KRT"])
    with gzip.open(folder / "A1.tsv.gz", "wt") as file:
        table.to_csv(file, sep="\t")
    spots = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
    spots += "11\t13\t10.9\t13.05\t2300\t2600\t1\n10\t13\t9.9\t12.95\t2100\t2590\t1\n12\t13\t12\t13\t2500\t2600\t0\n"
    (folder / "A1_selection.tsv").write_text(spots)
    labels = "Row.names\tx\ty\tpixel_x\tpixel_y\tlabel\na\t9.9\t12.95\t1\t1\tadipose tissue\nb\tNA\tNA\t1\t1\tcancer\n"
    (folder / "A1_labels.tsv").write_text(labels)
    return files


@pytest.fixture
def online(monkeypatch, tmp_path, published) -> list[str]:
    """Replace the network by the miniatures; returns the list of the addresses that were asked for."""
    asked: list[str] = []

    def get(url, partial):
        asked.append(url)
        shutil.copy(next(file for end, file in published.items() if url.endswith(end)), partial)

    monkeypatch.setattr("stimg._downloads._get", get)
    monkeypatch.delenv("STIMG_DATA_DIR", raising=False)
    with stimg.settings.override(cachedir=tmp_path / "cache"):
        yield asked


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def retrieve(url, **_):
        raise OSError("no route to host")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    monkeypatch.delenv("STIMG_DATA_DIR", raising=False)
    with stimg.settings.override(cachedir=tmp_path / "cache"):
        yield


def test_names():
    assert len(SLICES) == 12
    assert {"151507", "151510", "151669", "151672", "151673", "151676"} <= set(SLICES)
    assert len(SECTIONS) == 36
    assert {"A6", "D6", "E3", "H1"} <= set(SECTIONS)
    assert "E4" not in SECTIONS


def test_dlpfc_is_put_together(online):
    slide = dlpfc(151673)
    np.testing.assert_array_equal(slide.X.toarray(), COUNTS)
    assert list(slide.obs_names) == BARCODES
    assert slide.var_names.is_unique
    assert list(slide.var["gene_ids"]) == ["ENSG1", "ENSG2", "ENSG3", "ENSG4"]
    assert list(slide.obs["array_row"]) == [0, 1, 2]
    assert list(slide.obs["array_col"]) == [2, 1, 4]
    np.testing.assert_array_equal(slide.obsm["spatial"], [[22, 10], [21, 11], [24, 12]])
    assert list(slide.obs["domain"].astype(object).fillna("none")) == ["L1", "none", "WM"]
    library = slide.uns["spatial"]["151673"]
    assert library["scalefactors"] == SCALES
    assert library["images"]["lowres"].shape == (6, 5, 3)
    assert (library["images"]["lowres"] == 200).all()
    assert len(online) == 5
    assert all(url.startswith("https://") for url in online)


def test_her2st_is_put_together(online, tmp_path):
    section = her2st("A1")
    np.testing.assert_array_equal(section.X.toarray(), COUNTS[:2])
    assert list(section.obs_names) == ["A1_10x13", "A1_11x13"]
    assert list(section.obs["array_row"]) == [13, 13]
    assert list(section.obs["array_col"]) == [10, 11]
    np.testing.assert_array_equal(section.obsm["spatial"], [[2100, 2590], [2300, 2600]])
    assert list(section.obs["domain"].astype(object).fillna("none")) == ["adipose tissue", "none"]
    assert section.uns["spatial"]["A1"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(100)
    section.write_h5ad(tmp_path / "section.h5ad")


def test_files_are_fetched_once_and_their_hashes_recorded(online, published, tmp_path):
    dlpfc("151673")
    dlpfc("151673")
    assert len(online) == 5
    recorded = json.loads((tmp_path / "cache/datasets/dlpfc" / HASHES).read_text())
    expected = hashlib.sha256(published["10X/barcode_level_layer_map.tsv"].read_bytes()).hexdigest()
    assert recorded["barcode_level_layer_map.tsv"] == expected
    assert len(recorded) == 5


def test_a_damaged_file_is_downloaded_again(online, tmp_path, caplog):
    dlpfc("151673")
    path = tmp_path / "cache/datasets/dlpfc/barcode_level_layer_map.tsv"
    path.write_text("AAA-1\t151673\tL2\n")
    assert dlpfc("151673").obs["domain"].iloc[0] == "L1"
    assert len(online) == 6
    assert "barcode_level_layer_map.tsv does not have its sha256" in caplog.text


def test_a_new_download_must_match_too(online, published, tmp_path):
    dlpfc("151673")
    path = tmp_path / "cache/datasets/dlpfc/barcode_level_layer_map.tsv"
    path.unlink()
    published["10X/barcode_level_layer_map.tsv"].write_text("changed\t151673\tL2\n")
    with pytest.raises(OSError, match="If the publisher changed it, delete the entry 'barcode_level_layer_map.tsv'"):
        dlpfc("151673")
    assert not path.exists()


def test_spoilt_records_are_refused(online, tmp_path):
    dlpfc("151673")
    (tmp_path / "cache/datasets/dlpfc" / HASHES).write_text("{")
    with pytest.raises(OSError, match="no valid JSON"):
        dlpfc("151673")


def test_offline_says_what_to_do(offline, tmp_path):
    with pytest.raises(ConnectionError) as error:
        dlpfc("151673")
    message = str(error.value)
    for part in ("no route to host", "STIMG_DATA_DIR", "151673.h5ad", str(tmp_path / "cache"), "synthetic"):
        assert part in message


def test_a_file_put_by_hand_is_taken(offline, published, tmp_path):
    folder = tmp_path / "cache/datasets/her2st"
    folder.mkdir(parents=True)
    for end, file in published.items():
        if end.startswith("ST-"):
            shutil.copy(file, folder / Path(end).name)
    assert her2st("A1").n_obs == 2


@pytest.mark.parametrize(("load", "collection", "name"), [(dlpfc, "dlpfc", "151673"), (her2st, "her2st", "A1")])
def test_data_dir_comes_first(offline, monkeypatch, tmp_path, slide_hex, load, collection, name):
    monkeypatch.setenv("STIMG_DATA_DIR", str(tmp_path))
    with pytest.raises(ConnectionError, match=collection):
        load(name)
    (tmp_path / collection).mkdir()
    slide_hex.write_h5ad(tmp_path / collection / f"{name}.h5ad")
    loaded = load(name)
    assert isinstance(loaded, anndata.AnnData)
    assert loaded.shape == slide_hex.shape


def test_unreadable_local_file(monkeypatch, tmp_path):
    monkeypatch.setenv("STIMG_DATA_DIR", str(tmp_path))
    (tmp_path / "dlpfc").mkdir()
    (tmp_path / "dlpfc/151673.h5ad").write_bytes(b"no hdf5")
    with pytest.raises(OSError, match="is damaged"):
        dlpfc("151673")


def test_data_dir_must_exist(monkeypatch, tmp_path):
    monkeypatch.setenv("STIMG_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="STIMG_DATA_DIR"):
        her2st("A1")


@pytest.mark.parametrize(("load", "name"), [(dlpfc, "151511"), (dlpfc, "A1"), (her2st, "E4"), (her2st, 151673)])
def test_unknown_names(offline, load, name):
    with pytest.raises(ValueError, match="to be one of"):
        load(name)


@pytest.mark.real
def test_real_slides(monkeypatch, real_data_dir):
    monkeypatch.setenv("STIMG_DATA_DIR", str(real_data_dir))
    assert dlpfc("151673").obs["domain"].nunique() == 7
    assert her2st("A1").obs["domain"].notna().all()
