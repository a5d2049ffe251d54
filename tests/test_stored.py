"""Slides whose expression is not in memory: backed files, zarr and dask give what a slide in memory gives."""

from __future__ import annotations

import gc
from pathlib import Path

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pytest
import zarr
from scipy import sparse

import stimg
from stimg._input import _rows, _values
from stimg._slide._values import moments

KINDS = ("h5ad", "h5ad dense", "zarr", "zarr dense", "dask", "dask dense")


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch):
    for name in ("NONZEROS_A_BLOCK", "NONZEROS_AT_ONCE"):
        monkeypatch.setattr(_rows, name, 1000)
    monkeypatch.setattr(_rows, "DENSE_A_BLOCK", 2000)
    with stimg.settings.override(cachedir=tmp_path / "cache"):
        yield


@pytest.fixture
def store(tmp_path):
    """Return a function that gives the same slide with its expression stored elsewhere."""
    opened = []

    def make(slide: ad.AnnData, kind: str) -> ad.AnnData:
        slide = slide.copy()
        if "dense" in kind:
            slide.X = slide.X.toarray()
        if kind.startswith("h5ad"):
            slide.write_h5ad(tmp_path / "slide.h5ad")
            opened.append(ad.read_h5ad(tmp_path / "slide.h5ad", backed="r"))
            return opened[-1]
        if kind.startswith("zarr"):
            group = zarr.open_group(tmp_path / "slide.zarr", mode="w", zarr_format=2)
            ad.io.write_elem(group, "X", slide.X)
            slide.X = group["X"] if "dense" in kind else ad.io.sparse_dataset(group["X"])
            return slide
        slide.X = da.from_array(slide.X, chunks=(70, -1))
        return slide

    yield make
    for one in opened:
        one.file.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("platform", ["visium", "free"])
def test_every_step_gives_what_it_gives_in_memory(store, trained, platform, kind):
    memory = stimg.datasets.synthetic(platform, n_obs=300, n_genes=60, seed=0)
    stored = store(memory, kind)
    for slide in (memory, stored):
        stimg.pp.to_lattice(slide)
        stimg.pp.select_genes(slide, n_genes=40)
        stimg.tl.embed(slide, trained)
        stimg.tl.domains(slide, 4)
        stimg.tl.reconstruct(slide, trained)
    np.testing.assert_allclose(stored.var["stimg_weight"], memory.var["stimg_weight"], rtol=1e-5)
    for key in ("X_stimg", "X_stimg_slide"):
        np.testing.assert_allclose(stored.obsm[key], memory.obsm[key], atol=1e-4)
    assert stored.obs["stimg_domain"].tolist() == memory.obs["stimg_domain"].tolist()
    layer = stored.layers["stimg"]
    assert isinstance(layer, da.Array)
    known = list(memory.obsm["stimg"].columns)
    assert np.isnan(layer.compute()).all(0).sum() == stored.n_vars - len(known)
    np.testing.assert_allclose(stored[:, known].layers["stimg"].compute(), memory.obsm["stimg"], atol=1e-4)
    first, second = (stimg.pp.to_patches(slide, size=8, n_channels=16) for slide in (memory, stored))
    assert isinstance(second.slides[0].expression.data, np.memmap)
    for i in (0, len(first) - 1):
        for name, value in first[i].items():
            np.testing.assert_allclose(value, second[i][name], atol=1e-5)


def test_select_genes_by_moran_reads_chunks(store):
    memory = stimg.datasets.synthetic("visium", n_obs=100, n_genes=30, seed=0)
    stored = store(memory, "h5ad")
    for slide in (memory, stored):
        stimg.pp.select_genes(slide, n_genes=8, method="moran")
    np.testing.assert_allclose(stored.var["stimg_weight"], memory.var["stimg_weight"], rtol=1e-4)


def test_log_values_are_averaged_where_cells_share_a_site(store, trained):
    memory = stimg.datasets.synthetic("free", n_obs=300, n_genes=60, seed=0)
    memory.X = memory.X.log1p()
    stored = store(memory, "dask")
    for slide in (memory, stored):
        stimg.pp.to_lattice(slide)
        stimg.tl.embed(slide, trained, scale="log")
    np.testing.assert_allclose(stored.obsm["X_stimg"], memory.obsm["X_stimg"], atol=1e-4)


def test_files_go_with_their_last_use(tmp_path):
    matrix = sparse.random_array((50, 9), density=0.3, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    mapped = _rows.collect_rows([matrix[:20], matrix[20:]], 9, mapped=True)
    assert (mapped != matrix).nnz == 0
    assert len(list((tmp_path / "cache" / "expression").iterdir())) == 1
    part = mapped[3:5]
    view = mapped.data[2:]
    del mapped
    gc.collect()
    np.testing.assert_array_equal(view, matrix.data[2:])
    del view
    gc.collect()
    assert (part != matrix[3:5]).nnz == 0
    assert not list((tmp_path / "cache" / "expression").iterdir())


def test_blocks_are_the_matrix_without_a_copy():
    matrix = sparse.random_array((5000, 9), density=0.3, format="csr", rng=np.random.default_rng(0))
    rows = list(_rows.row_blocks(matrix))
    assert len(rows) > 3
    assert [part.start for part, _ in rows[1:]] == [part.stop for part, _ in rows[:-1]]
    assert all(np.shares_memory(block.data, matrix.data) for _, block in rows)
    assert (sparse.vstack([block for _, block in rows]) != matrix).nnz == 0
    mean, std = moments(block for _, block in rows)
    np.testing.assert_allclose(mean, matrix.toarray().mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, matrix.toarray().std(0), rtol=1e-5)


def test_one_row_of_many_non_zeros_is_a_block():
    matrix = sparse.csr_array(np.ones((3, 4000)))
    assert [part for part, _ in _rows.row_blocks(matrix)] == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("needs the device /dev/full")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "data").symlink_to("/dev/full")
    monkeypatch.setattr("stimg._files.tempfile.mkdtemp", lambda **_: str(folder))
    with pytest.raises(OSError, match="cachedir"):
        _rows.collect_rows([sparse.csr_array(np.eye(3))], 3, mapped=True)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "scale", "found"),
    [
        (lambda x: np.where(x == x.max(), np.nan, x), "counts", "NaN"),
        (lambda x: np.where(x == x.max(), -1, x), "counts", "negative"),
        (np.log1p, "counts", "non-integer values"),
        (lambda x: x, "log", "integers up to"),
        (lambda x: x * 1.01 + 0.1, "log", "values up to"),
    ],
)
def test_what_is_stored_is_checked_before_anything_is_changed(store, change, scale, found):
    slide = stimg.datasets.synthetic("visium", n_obs=200, n_genes=20, depth=3000)
    slide.X = sparse.csr_matrix(change(slide.X.toarray()))
    stored = store(slide, "h5ad")
    with pytest.raises(ValueError, match=found):
        stimg.pp.select_genes(stored, scale=scale)
    assert "stimg_weight" not in stored.var


def test_by_columns_is_refused(store):
    slide = stimg.datasets.synthetic("visium", n_obs=50, n_genes=20)
    slide.X = slide.X.tocsc()
    with pytest.raises(TypeError, match="by rows"):
        stimg.pp.select_genes(store(slide, "h5ad"))


def test_unknown_chunks_are_refused():
    values = da.from_array(np.ones((6, 3)), chunks=(2, -1))
    with pytest.raises(TypeError, match="compute_chunk_sizes"):
        next(_rows.checked_rows(values[values[:, 0] > 0], "counts"))


@pytest.mark.parametrize("step", ["to_lattice", "select_genes"])
def test_copies_and_views_of_backed_slides_are_refused_first(store, step):
    stored = store(stimg.datasets.synthetic("visium", n_obs=50, n_genes=20), "h5ad")
    call = getattr(stimg.pp, step)
    with pytest.raises(ValueError, match="Cannot copy an AnnData that is backed"):
        call(stored, copy=True)
    with pytest.raises(ValueError, match="view of an AnnData that is backed"):
        call(stored[:20])


def test_functions_that_need_memory_say_so(store):
    slide = stimg.datasets.synthetic("visium", n_obs=50, n_genes=20)
    for kind in ("h5ad", "dask"):
        with pytest.raises(TypeError, match="in memory"):
            _values.check_expression(store(slide, kind).X, "counts")


def test_synthetic_slides_on_disk_are_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("stimg.datasets._synthetic.VALUES_A_BLOCK", 3000)
    stored = stimg.datasets.synthetic("xenium", n_obs=200, n_genes=30, path=tmp_path / "new.h5ad")
    memory = stimg.datasets.synthetic("xenium", n_obs=200, n_genes=30)
    assert stored.isbacked
    assert (stored.to_memory().X != memory.X).nnz == 0
    assert stored.obs.equals(memory.obs)
    np.testing.assert_array_equal(stored.uns["spatial"]["synthetic"]["images"]["lowres"][:], _image(memory))
    stored.file.close()
    with h5py.File(tmp_path / "new.h5ad") as file:
        assert file["X"].attrs["encoding-type"] == "csr_matrix"
    assert [path.name for path in tmp_path.iterdir()] == ["new.h5ad"]


def _image(slide):
    return slide.uns["spatial"]["synthetic"]["images"]["lowres"]


def test_synthetic_path(tmp_path):
    with pytest.raises(ValueError, match=r"\.h5ad"):
        stimg.datasets.synthetic(path=tmp_path / "new.zarr")
    (tmp_path / "old.h5ad").touch()
    with pytest.raises(FileExistsError, match="exists"):
        stimg.datasets.synthetic(path=tmp_path / "old.h5ad")
    with pytest.raises(NotADirectoryError, match="Create"):
        stimg.datasets.synthetic(path=tmp_path / "none" / "new.h5ad")


@pytest.mark.filterwarnings("ignore")
def test_the_table_of_a_spatialdata_may_be_lazy(trained):
    import spatialdata

    memory = stimg.datasets.synthetic("visium_hd", n_obs=300, n_genes=60)
    lazy = memory.copy()
    lazy.X = da.from_array(lazy.X, chunks=(90, -1))
    sdata = spatialdata.SpatialData(tables={"square_008um": lazy, "square_016um": memory.copy()})
    for slide, key in ((memory, None), (sdata, "square_008um")):
        stimg.pp.to_lattice(slide, "visium_hd", table_key=key)
        stimg.tl.embed(slide, trained, table_key=key)
        stimg.tl.domains(slide, 3, table_key=key)
    found = sdata["square_008um"]
    assert isinstance(found.X, da.Array)
    assert found.uns["stimg"]["lattice"]["pitch_um"] == 8
    np.testing.assert_allclose(found.obsm["X_stimg"], memory.obsm["X_stimg"], atol=1e-4)
    assert found.obs["stimg_domain"].tolist() == memory.obs["stimg_domain"].tolist()


def test_a_backed_slide_with_domains_is_written_whole(store, trained, tmp_path):
    stored = store(stimg.datasets.synthetic("visium", n_obs=120, n_genes=60), "h5ad")
    stimg.pp.to_lattice(stored)
    stimg.tl.embed(stored, trained)
    stimg.tl.domains(stored, 3)
    stimg.tl.reconstruct(stored, trained)
    expected = stored.layers["stimg"].compute()
    stored.write_h5ad(tmp_path / "done.h5ad")
    back = ad.read_h5ad(tmp_path / "done.h5ad")
    assert (back.X != stored.to_memory().X).nnz == 0
    np.testing.assert_array_equal(back.layers["stimg"], expected)
    assert back.obs["stimg_domain"].equals(stored.obs["stimg_domain"])


def test_reconstructions_that_are_not_in_memory_are_drawn(store, trained):
    import matplotlib.pyplot as plt

    memory = stimg.datasets.synthetic("visium", n_obs=120, n_genes=60)
    titles = []
    for slide in (memory, store(memory, "h5ad")):
        stimg.pp.to_lattice(slide)
        stimg.tl.reconstruct(slide, trained)
        axes = stimg.pl.reconstruction(slide, n_genes=2)
        titles.append([ax.get_title() for ax in axes.ravel()])
        values = [ax.collections[0].get_array() for ax in axes.ravel()]
        if slide is memory:
            drawn = values
    for first, second in zip(drawn, values, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4)
    assert titles[0] == titles[1]
    plt.close("all")
