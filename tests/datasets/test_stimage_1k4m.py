"""STimage-1K4M in miniature."""

import json
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import anndata
import dask
import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData
from PIL import Image

import stimg
from stimg.datasets import stimage_1k4m
from stimg.datasets._stimage_tables import array_positions, read_coordinates, read_wide_counts, scale_factors

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
    factors = visium.uns["spatial"][VISIUM]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(1.0)  # 100 um over the pitch of 100 pixels
    assert factors["spot_diameter_fullres"] == pytest.approx(55)


@pytest.mark.parametrize(
    ("change", "mpp", "diameter_um"),
    [
        (lambda places: places, 2.0, 100),
        (lambda places: places.assign(r=places["r"] * 1.15), 2.0, 100),
        (lambda places: places * 0.5, 4.0, 100),
        (lambda places: places.assign(r=places["r"] * 1.467), None, None),  # 110 um spots at a pitch of 150
        (lambda places: places.assign(r=1.0), None, None),
    ],
)
def test_the_scale_comes_from_the_pitch_of_the_array(root, change, mpp, diameter_um):
    path = root / "ST" / "coord" / f"{ST}_coord.csv"
    places = pd.read_csv(path, index_col=0)
    change(places).to_csv(path)
    if mpp is None:
        with pytest.warns(UserWarning, match="usual array of 'ST'.*Pass `image_mpp` and `diameter_um`"):
            factors = stimage_1k4m(root=root)[ST].uns["spatial"][ST]["scalefactors"]
        assert set(factors) == {"spot_diameter_fullres"}
        with pytest.raises(ValueError, match="image_mpp"):
            stimg.pp.to_image_patches(stimage_1k4m(root=root)[ST])
        return
    factors = stimage_1k4m(root=root)[ST].uns["spatial"][ST]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(mpp)
    assert factors["spot_diameter_um"] == diameter_um
    assert factors["spot_diameter_fullres"] == pytest.approx(diameter_um / mpp)


@pytest.mark.parametrize(("share", "known"), [(0.55, True), (0.65, True), (0.704, True), (0.3, False), (1.0, False)])
def test_visium_is_measured_by_its_pitch_whatever_its_radii(share, known):
    hexagon = stimg.datasets.synthetic("visium", n_obs=200, n_genes=10).obsm["spatial"]  # 20 pixels between neighbours
    places = pd.DataFrame({"xaxis": hexagon[:, 0], "yaxis": hexagon[:, 1], "r": share * 20 / 2})
    if not known:
        with pytest.warns(UserWarning, match="usual array"):
            assert set(scale_factors(places, "Visium", None, None, "x")) == {"spot_diameter_fullres"}
        return
    factors = scale_factors(places, "Visium", None, None, "x")
    assert factors["microns_per_pixel"] == pytest.approx(5)
    assert factors["spot_diameter_fullres"] == pytest.approx(11)


@pytest.mark.parametrize("technology", ["ST", "Xenium"])
def test_other_arrays_have_no_known_scale(technology):
    """Such as the hexagonal arrays of legacy ST with 2,000 spots."""
    slide = stimg.datasets.synthetic("hex", n_obs=200, n_genes=10)
    array = slide.obs[["array_row", "array_col"]].to_numpy()
    places = pd.DataFrame({"xaxis": slide.obsm["spatial"][:, 0], "yaxis": slide.obsm["spatial"][:, 1], "r": 5.0})
    with pytest.warns(UserWarning, match="usual array"):
        assert set(scale_factors(places, technology, array, None, "x")) == {"spot_diameter_fullres"}


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("technology", ["ST", "Visium"])
def test_spots_at_one_place_have_no_known_scale(technology, n):
    places = pd.DataFrame({"xaxis": [3.0] * n, "yaxis": [4.0] * n, "r": 5.0})
    with pytest.warns(UserWarning, match="usual array"):
        assert set(scale_factors(places, technology, None, None, "x")) == {"spot_diameter_fullres"}


def test_bins_are_as_wide_as_their_names_say():
    rows, cols = (part.ravel() for part in np.mgrid[:10, :10])
    names = np.array([f"x_s_016um_{r:05d}_{c:05d}-1" for r, c in zip(rows, cols, strict=True)])
    array, bin_um = array_positions(names, "VisiumHD")
    places = pd.DataFrame({"xaxis": cols * 58.4, "yaxis": rows * 58.4, "r": 29.2})
    factors = scale_factors(places, "VisiumHD", array, bin_um, "x")
    assert factors["spot_diameter_um"] == 16
    assert factors["microns_per_pixel"] == pytest.approx(16 / 58.4)


@pytest.mark.real
def test_a_real_slide(real_cases_dir):
    """A1 of her2st: the pitch along the array is 218.3 pixels, and r a quarter of it."""
    (path,) = (real_cases_dir / "images").glob("*_ST_A1_coord.csv")
    places = read_coordinates(path)
    array, _ = array_positions(places.index.to_numpy(), "ST")
    factors = scale_factors(places, "ST", array, None, "A1")
    assert factors["microns_per_pixel"] == pytest.approx(200 / 218.35, rel=1e-4)
    assert factors["spot_diameter_fullres"] == pytest.approx(2 * places["r"].median(), rel=0.01)


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


def test_a_damaged_cache_is_made_anew(miniature):
    collection = stimage_1k4m(root=miniature)
    first = collection[ST]
    (path,) = (stimg.settings.cachedir / "datasets").rglob("*.h5ad")
    whole = bytearray(path.read_bytes())
    for damaged in (whole[: len(whole) // 2], bytes(whole[:-1]) + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        assert (collection[ST].X != first.X).nnz == 0
        assert path.stat().st_size == len(whole)


def rename(root, old, new):
    """Give a slide another name in the table of slides."""
    (table,) = (root / "meta").glob("meta_all_gene*.csv")
    meta = pd.read_csv(table, dtype=str)
    meta.replace({old: new}).to_csv(table, index=False)


HOSTILE = ["../../../mine", "..", "/mine", "a/../../../../mine", "..\\mine", "~", "", ".", "C:mine"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_of_slides_writes_nowhere_else(root, tmp_path, name):
    mine = tmp_path / "mine.h5ad"
    mine.write_bytes(b"years of work")
    for part, end in (("coord", "_coord.csv"), ("gene_exp", "_count.csv"), ("image", ".png")):
        wanted = tmp_path / "mine"
        shutil.copy(root / "ST" / part / f"{ST}{end}", wanted.with_name(f"mine{end}"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rename(root, ST, name)
    before |= {path: path.read_bytes() for path in (root / "meta").iterdir()}
    collection = stimage_1k4m(root=root)
    with pytest.raises(KeyError if name == "" else ValueError, match="No slide nan|not the name of a file"):
        collection[0]
    with pytest.raises((ValueError, KeyError)):
        collection.download()
    assert collection[1].n_obs == 16  # the others can be read
    shutil.rmtree(stimg.settings.cachedir)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("technology", ["..", "/", "../ST", "ST/.."])
def test_a_hostile_technology_reads_nowhere_else(root, technology):
    rename(root, "ST", technology)
    collection = stimage_1k4m(root=root)
    with pytest.raises(ValueError, match="Expected the name of a file in"):
        collection[ST]


def test_a_slide_twice_in_the_table(root):
    rename(root, "Human_Synthetic_0002_ST", ST)
    collection = stimage_1k4m(root=root)
    with pytest.raises(ValueError, match="the name of several slides"):
        collection[ST]
    assert collection[VISIUM].n_obs == 16


def test_a_slide_behind_a_symbolic_link(root, tmp_path):
    """As in the cache of the hub's own client, whose snapshots are links to files elsewhere."""
    path = root / "ST" / "coord" / f"{ST}_coord.csv"
    path.symlink_to(shutil.move(path, tmp_path / "blob"))
    assert stimage_1k4m(root=root)[ST].n_obs == 16


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
    before = path.read_text()
    path.write_text(before + "x,1,1,1\n")
    assert collection.read(ST).n_obs == 16
    assert path.read_text() == before


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


STAINED = np.random.default_rng(0).integers((130, 60, 120), (220, 150, 200), (60, 60, 3)).astype(np.uint8)
STAINED = STAINED.repeat(20, 0).repeat(20, 1)
HD, VISIUM_100 = {"technology": "Visium HD"}, {"technology": "Visium", "pitch_um": 100}


def hest_slide(root, *, technology="Spatial Transcriptomics", pitch_um=200.0, mpp=2.0, stored_um=None, **metadata):
    """Rewrite the slide: an array with this pitch, its spots as stored in the file, and other metadata."""
    path = root / "st" / "TENX1.h5ad"
    slide = anndata.read_h5ad(path)
    slide.obsm["spatial"] = slide.obsm["spatial"] * pitch_um / 200 * 2 / mpp
    factors = {} if stored_um is None else {"spot_diameter_fullres": stored_um / mpp}
    slide.uns["spatial"] = {"ST": {"images": {}, "scalefactors": factors}}
    slide.write_h5ad(path)
    stated = {"st_technology": technology, "species": "Homo sapiens", "organ": "Skin", "pixel_size_um_estimated": mpp}
    (root / "metadata" / "TENX1.json").write_text(json.dumps(stated | metadata))


@pytest.mark.parametrize(
    ("told", "diameter_um", "logged"),
    [
        # Bins of Visium HD pooled to 128 um; the metadata are about the bins before.
        (
            {"technology": "Visium HD", "pitch_um": 128, "stored_um": 128, "spot_diameter": 2, "inter_spot_dist": 2},
            128,
            True,
        ),
        ({"technology": "Visium HD", "pitch_um": 128, "spot_diameter": 2, "inter_spot_dist": 2}, 128, True),
        ({"technology": "Visium HD", "pitch_um": 8}, 8, False),
        # Arrays of squamous cell carcinoma and of the mouse brain atlas.
        ({"pitch_um": 110, "stored_um": 150, "spot_diameter": 150, "inter_spot_dist": 110}, 150, True),
        ({"pitch_um": 150, "spot_diameter": 110, "inter_spot_dist": 150}, 110, True),
        ({"pitch_um": 200, "stored_um": 50, "spot_diameter": 50, "inter_spot_dist": 200}, 50, True),
        ({"pitch_um": 200, "stored_um": 100, "spot_diameter": 100, "inter_spot_dist": 200, "mpp": 0.7}, 100, False),
        ({"pitch_um": 200, "spot_diameter": None, "inter_spot_dist": None}, 100, False),
        (
            {"technology": "Visium", "pitch_um": 100, "stored_um": 55, "spot_diameter": 55, "inter_spot_dist": 100},
            55,
            False,
        ),
        ({"technology": "Visium", "pitch_um": 100}, 55, False),
        ({"technology": "Xenium", "pitch_um": 100, "stored_um": 55, "spot_diameter": float("nan")}, 55, False),
    ],
)
def test_hest_keeps_what_is_stored(hest_root, told, diameter_um, logged, caplog):
    hest_slide(hest_root, **told)
    slide = stimg.datasets.hest(hest_root)["TENX1"]
    factors, mpp = slide.uns["spatial"]["TENX1"]["scalefactors"], told.get("mpp", 2.0)
    assert factors["microns_per_pixel"] == mpp
    assert factors["spot_diameter_fullres"] * mpp == pytest.approx(diameter_um)
    assert ("not usual for" in caplog.text) == logged
    patches = stimg.pp.to_image_patches(slide, STAINED, mpp=mpp)
    assert patches.slides[0].diameter_um == pytest.approx(diameter_um)


def test_a_platform_does_not_overwrite_the_scale_that_is_stated(hest_root):
    hest_slide(hest_root, pitch_um=150, stored_um=110)
    slide = stimg.datasets.hest(hest_root)["TENX1"]
    with pytest.warns(UserWarning, match="The pitch of 'st' is 200 um, but `microns_per_pixel`.* makes it 150 um"):
        stimg.pp.to_lattice(slide, "st")
    lattice = slide.uns["stimg"]["lattice"]
    assert lattice["pitch_um"] == pytest.approx(150)
    assert lattice["um_per_unit"] == pytest.approx([2.0])
    patches = stimg.pp.to_image_patches(slide, STAINED)
    assert patches.slides[0].diameter_um == pytest.approx(110)


def test_hest_of_a_slide_without_a_scale(hest_root):
    hest_slide(hest_root, pixel_size_um_estimated=None)
    factors = stimg.datasets.hest(hest_root)["TENX1"].uns["spatial"]["TENX1"]["scalefactors"]
    assert "microns_per_pixel" not in factors


def test_hest_that_is_none(hest_root, tmp_path):
    with pytest.raises(FileNotFoundError, match="`root`"):
        stimg.datasets.hest(tmp_path / "cache")
    (hest_root / "wsis" / "TENX1.tif").unlink()
    with pytest.raises(FileNotFoundError, match="TENX1.tif"):
        stimg.datasets.hest(hest_root)["TENX1"]
    (hest_root / "metadata" / "TENX1.json").write_text("{}")
    with pytest.raises(OSError, match="metadata"):
        stimg.datasets.hest(hest_root)
