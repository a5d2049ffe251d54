"""STimage-1K4M in miniature."""

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import dask
import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData
from PIL import Image

import stimg
from stimg.datasets import stimage_1k4m
from stimg.datasets._stimage_tables import read_wide_counts

ST, VISIUM = "Human_Synthetic_0000_ST", "Human_Synthetic_0001_Visium"


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return stimg.datasets.synthetic_1k4m(tmp_path_factory.mktemp("copy") / "1k4m", n_slides=4, n_rows=4, n_genes=12)


@pytest.fixture
def root(miniature, tmp_path):
    return shutil.copytree(miniature, tmp_path / "1k4m")


@pytest.fixture(autouse=True)
def _cache(tmp_path):
    with stimg.settings.override(cachedir=tmp_path / "cache", progress=False):
        yield


def test_catalogue_and_filters(miniature):
    everything = stimage_1k4m(root=miniature)
    assert len(everything) == 4
    expected = ["technology", "species", "tissue", "study", "title", "cancer", "spots", "genes", "annotated", "licence"]
    assert set(everything.catalogue.columns) == set(expected)
    assert everything.filter(technology="visium").names == [VISIUM, "Human_Synthetic_0003_Visium"]
    assert stimage_1k4m(root=miniature, tissue=["Breast", "skin"]).catalogue["tissue"].isin(["breast", "skin"]).all()
    assert stimage_1k4m(root=miniature, annotated=True).names == [ST, "Human_Synthetic_0003_Visium"]
    assert stimage_1k4m(VISIUM, root=miniature).names == [VISIUM]
    assert everything.filter(study="10000001", cancer=True).names == ["Human_Synthetic_0002_ST"]
    assert "4 slides (2 ST, 2 Visium)" in repr(everything)
    assert len(everything) == 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slides": "Human_Synthetic_000_ST"}, KeyError, "Did you mean .*Human_Synthetic_0000_ST"),
        ({"tissue": "brest"}, ValueError, "Did you mean 'breast'"),
        ({"technology": "Xenium"}, ValueError, "Known are"),
        ({"tissue": "skin", "annotated": True}, ValueError, "all conditions"),
        ({"tissue": [1, 2]}, TypeError, "`tissue` to be a string or a list of strings"),
        ({"slides": 3}, TypeError, "`slides` to be a string or a list of strings"),
        ({"annotated": "yes"}, ValueError, "`annotated` to be True or False"),
        ({"study": 34650042}, ValueError, "`study` to be a string"),
    ],
)
def test_unknown_values(miniature, options, error, message):
    with pytest.raises(error, match=message):
        stimage_1k4m(root=miniature, **options)


def test_a_slide(miniature):
    collection = stimage_1k4m(root=miniature)
    slide = collection[ST]
    truth = stimg.datasets.synthetic_histology(n_rows=4, n_cols=4, n_genes=12, seed=0)
    assert np.array_equal(slide.X.toarray(), truth.X.toarray())
    assert list(slide.var_names) == list(truth.var_names)
    assert np.allclose(slide.obsm["spatial"], truth.obsm["spatial"])
    assert np.array_equal(slide.obs["array_row"], truth.obs["array_row"])
    assert np.array_equal(slide.obs["array_col"], truth.obs["array_col"])
    assert slide.obs["domain"].isna().sum() == 1
    entry = slide.uns["spatial"][ST]
    assert entry["scalefactors"]["spot_diameter_fullres"] == pytest.approx(50)
    assert entry["scalefactors"]["microns_per_pixel"] == pytest.approx(2.0)
    assert "MIT" in entry["metadata"]["licence"]
    visium = collection[1]
    assert "array_row" not in visium.obs
    assert "domain" not in visium.obs
    assert visium.uns["spatial"][VISIUM]["scalefactors"]["microns_per_pixel"] == pytest.approx(55 / 50)


@pytest.mark.parametrize("number", [0, 1, 2])  # a PNG, a JPEG and a TIFF, all called .png
def test_images_open_whatever_they_are(miniature, number):
    slide = stimage_1k4m(root=miniature)[number]
    patches = stimg.pp.to_image_patches(slide, size=160)
    assert patches[0]["image"].float().std() > 10


def test_the_cache_is_used_and_follows_the_files(root, monkeypatch):
    collection = stimage_1k4m(root=root)
    first = collection[ST]
    monkeypatch.setattr("stimg.datasets._stimage_tables.read_wide_counts", None)
    second = collection[ST]
    assert (first.X != second.X).nnz == 0
    assert first.uns["spatial"][ST]["metadata"] == second.uns["spatial"][ST]["metadata"]
    assert "stimg_source" not in second.uns
    monkeypatch.undo()
    path = root / "ST" / "gene_exp" / f"{ST}_count.csv"
    table = pd.read_csv(path, index_col=0)
    (table + 1).to_csv(path)
    assert (collection[ST].X.toarray() == first.X.toarray() + 1).all()


def test_a_slide_as_spatialdata(miniature):
    sdata = stimage_1k4m(root=miniature).to_spatialdata(ST)
    assert len(sdata.shapes[ST]) == 16
    plain = stimage_1k4m(root=miniature)[ST]
    sdata["table"].obs["array_row"] = plain.obs["array_row"].to_numpy()
    assert stimg.pp.to_image_patches(sdata, size=160, image_mpp=2.0)[0]["image"].float().std() > 10


@pytest.mark.parametrize("number", [0, 1, 2])  # a PNG, a JPEG and a TIFF
def test_spatialdata_holds_the_image_of_every_format(root, number):
    collection = stimage_1k4m(root=root)
    sdata = collection.to_spatialdata(collection.names[number])
    (image,) = sdata.images.values()
    finest = image["scale0"]["image"]
    path = collection[number].uns["spatial"][collection.names[number]]["metadata"]["source_image_path"]
    with Image.open(path) as expected:
        assert np.array_equal(finest.transpose("y", "x", "c").to_numpy(), np.asarray(expected.convert("RGB")))
    assert dask.is_dask_collection(finest.data)


def test_several_files_are_iterated(miniature):
    assert [slide.n_obs for slide in stimage_1k4m(root=miniature)] == [16] * 4


def test_wrong_root(tmp_path):
    with pytest.raises(FileNotFoundError, match="`root`"):
        stimage_1k4m(root=tmp_path)


def test_missing_image(root):
    (root / "ST" / "image" / f"{ST}.png").unlink()
    collection = stimage_1k4m(root=root)
    with pytest.raises(FileNotFoundError, match="image"):
        collection[ST]
    assert "source_image_path" not in collection.read(ST, image=False).uns["spatial"][ST]["metadata"]


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_words(path):
    path.write_text(path.read_text().rstrip()[:-1] + "many\n")


def damage_empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_half, damage_words, damage_empty])
def test_damaged_counts(root, damage):
    damage(root / "ST" / "gene_exp" / f"{ST}_count.csv")
    with pytest.raises(OSError, match="_count.csv"):
        stimage_1k4m(root=root)[ST]


@pytest.mark.parametrize(
    "text", ["", ",yaxis,xaxis\na,1,2\n", ",yaxis,xaxis,r\na,1,2,none\n", ",yaxis,xaxis,r\na,1,2,0\n"]
)
def test_damaged_coordinates(root, text):
    (root / "ST" / "coord" / f"{ST}_coord.csv").write_text(text)
    with pytest.raises(OSError, match="_coord.csv"):
        stimage_1k4m(root=root)[ST]


def test_files_that_do_not_fit(root):
    path = root / "ST" / "coord" / f"{ST}_coord.csv"
    places = pd.read_csv(path, index_col=0)
    places.iloc[:-2].to_csv(path)
    with pytest.warns(UserWarning, match="14 with both"):
        slide = stimage_1k4m(root=root)[ST]
    assert slide.n_obs == 14
    places.rename(index=lambda name: name.replace("0000", "0001")).to_csv(path)
    with pytest.raises(ValueError, match="do not belong together"):
        stimage_1k4m(root=root)[ST]


def test_duplicated_spots(root):
    path = root / "ST" / "coord" / f"{ST}_coord.csv"
    places = pd.read_csv(path, index_col=0)
    pd.concat([places, places.iloc[:1]]).to_csv(path)
    with pytest.raises(ValueError, match="more than once"):
        stimage_1k4m(root=root)[ST]


def test_many_blocks_of_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("stimg.datasets._stimage_tables.BLOCK_BYTES", 4096)
    values = np.random.default_rng(0).poisson(0.3, (200, 50))
    frame = pd.DataFrame(values, index=[f"s{i}" for i in range(200)], columns=["A", "A", *map(str, range(48))])
    frame.to_csv(tmp_path / "wide.csv")
    counts, spots, genes = read_wide_counts(tmp_path / "wide.csv")
    assert np.array_equal(counts.toarray(), values)
    assert list(spots[:2]) == ["s0", "s1"]
    assert list(genes[:3]) == ["A", "A", "0"]


class Hub(SimpleHTTPRequestHandler):
    """The miniature as the hub serves it; the first answer for a table of counts breaks off."""

    broken: set
    asked: list

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.endswith("STimage-1K4M"):
            return self.answer(b'{"sha": "abc123"}')
        if "/tree/abc123/annotation" in self.path:
            names = sorted(path.name for path in (self.root / "annotation").iterdir())
            return self.answer(str([{"path": f"annotation/{name}"} for name in names]).replace("'", '"').encode())
        path = self.root / self.path.split("/resolve/abc123/")[-1]
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-"))
        cut = len(content) // 2 if "gene_exp" in self.path and path.name not in self.broken else len(content)
        self.broken.add(path.name)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:cut])

    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(miniature, monkeypatch):
    handler = type("Handler", (Hub,), {"broken": set(), "asked": [], "root": miniature})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("stimg.datasets._stimage_source.HUB", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


def test_downloads_go_on_where_they_stopped(hub, miniature):
    collection = stimage_1k4m(tissue="breast")
    assert collection.names == [ST, "Human_Synthetic_0003_Visium"]
    with pytest.raises(ConnectionError, match="continues where it stopped"):
        collection.download(n_jobs=2)
    for _ in range(3):
        try:
            collection.download(n_jobs=2)
            break
        except ConnectionError:
            continue
    known = len(hub.asked)
    assert (collection[ST].X != stimage_1k4m(root=miniature)[ST].X).nnz == 0
    assert collection[ST].obs["domain"].notna().any()
    assert len(hub.asked) == known
    assert "_0002_" not in " ".join(hub.asked)


def test_a_changed_file_in_the_cache(hub):
    collection = stimage_1k4m(slides=ST)
    for _ in range(2):
        try:
            collection.read(ST)
        except ConnectionError:
            continue
    path = collection.source.path(f"ST/coord/{ST}_coord.csv", ST)
    path.write_text(path.read_text() + "x,1,1,1\n")
    with pytest.raises(OSError, match="sha256"):
        collection.read(ST)


def test_offline(monkeypatch):
    monkeypatch.setattr("stimg.datasets._stimage_source.HUB", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="`root`"):
        stimage_1k4m()


def test_the_miniature_needs_an_empty_folder(miniature):
    with pytest.raises(FileExistsError, match="root"):
        stimg.datasets.synthetic_1k4m(miniature)


@pytest.fixture
def hest_root(tmp_path):
    root = tmp_path / "hest"
    for name in ("st", "wsis", "metadata"):
        (root / name).mkdir(parents=True)
    slide = stimg.datasets.synthetic_histology(n_rows=4, n_cols=4, n_genes=12)
    pixels = slide.uns.pop("spatial")["histology"]["images"]["hires"]
    del slide.uns["stimg_truth"]
    slide.write_h5ad(root / "st" / "TENX1.h5ad")
    tifffile.imwrite(root / "wsis" / "TENX1.tif", pixels)
    text = '{"st_technology": "Spatial Transcriptomics", "species": "Homo sapiens", "organ": "Breast",'
    (root / "metadata" / "TENX1.json").write_text(text + '"disease_state": "Cancer", "pixel_size_um_estimated": 2.0}')
    return root


def test_hest(hest_root):
    collection = stimg.datasets.hest(hest_root, tissue="breast", species="human", technology="ST")
    slide = collection["TENX1"]
    assert isinstance(slide, AnnData)
    assert slide.uns["spatial"]["TENX1"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(50)
    assert len(stimg.pp.to_image_patches(slide, size=160)) > 0
    sdata = collection.to_spatialdata("TENX1")
    pixels = sdata.images["TENX1_image"]["scale0"]["image"].transpose("y", "x", "c").to_numpy()
    assert np.array_equal(pixels, tifffile.imread(hest_root / "wsis" / "TENX1.tif"))


def test_hest_that_is_none(hest_root, tmp_path):
    with pytest.raises(FileNotFoundError, match="`root`"):
        stimg.datasets.hest(tmp_path / "cache")
    (hest_root / "wsis" / "TENX1.tif").unlink()
    with pytest.raises(FileNotFoundError, match="TENX1.tif"):
        stimg.datasets.hest(hest_root)["TENX1"]
    (hest_root / "metadata" / "TENX1.json").write_text("{}")
    with pytest.raises(OSError, match="metadata"):
        stimg.datasets.hest(hest_root)
