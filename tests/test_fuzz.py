"""Whatever a user passes: a result, or an error of stimg's own, with everything as it was.

300 cases in the normal run; `pytest -m nightly tests/test_fuzz.py` draws over 10,000.
"""

from __future__ import annotations

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fuzzing import JUNK, attempt, damaged, slides
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import stimg


def cases(normal: int, nightly: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("examples", [normal, pytest.param(nightly, marks=pytest.mark.nightly)])


def drawn(examples: int, **strategies):
    """Run a function on so many examples, the same ones in every normal run."""

    def decorate(function):
        checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
        options = {"deadline": None, "database": None, "suppress_health_check": checks, "print_blob": True}
        return settings(max_examples=examples, derandomize=examples < 1000, **options)(given(**strategies)(function))

    return decorate


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Names drawn as paths, such as of checkpoints, are written here and not where pytest was started."""
    monkeypatch.chdir(tmp_path)


@cases(100, 4000)
def test_slides(examples, trained):
    """Strange slides through the whole way from lattice to pictures."""

    finished = 0

    @drawn(
        examples,
        slide=slides(),
        library=st.sampled_from([None] * 4 + ["section"] * 3 + ["none"]),
        platform=st.sampled_from(["auto"] * 4 + ["visium", "square", "free", "xenium"]),
        scale=st.sampled_from(["counts"] * 3 + ["log"]),
        method=st.sampled_from(["mixture", "kmeans", "leiden"]),
        number=st.sampled_from([1, 2, 5]),
    )
    def run(slide, library, platform, scale, method, number):
        nonlocal finished
        library = None if library == "section" and library not in slide.obs else library
        if not attempt(lambda: stimg.pp.to_lattice(slide, platform, library_key=library), slide):
            return
        attempt(lambda: stimg.pp.select_genes(slide, 20, scale=scale), slide)
        attempt(lambda: stimg.pp.to_patches(slide, size=4, n_channels=8)[0], slide)
        if not attempt(lambda: stimg.tl.embed(slide, trained, scale=scale), slide):
            return
        assert slide.obsm["X_stimg"].shape == (slide.n_obs, trained.config.dim)
        assert np.isfinite(slide.obsm["X_stimg"]).all()
        attempt(lambda: stimg.tl.reconstruct(slide, trained, scale=scale), slide)
        if attempt(lambda: stimg.tl.domains(slide, number, method=method), slide):
            assert slide.obs["stimg_domain"].cat.categories.size == number
            attempt(lambda: stimg.pl.domains(slide), slide)
            plt.close("all")
            named = {"reference": slide, "label_key": "stimg_domain", "scale": scale, "min_confidence": 0}
            if attempt(lambda: stimg.tl.annotate(slide, trained, **named), slide):
                assert set(slide.obs["stimg_label"]) <= set(slide.obs["stimg_domain"])
            finished += 1

    run()
    assert finished > examples // 10  # not the first checks alone


@pytest.fixture(scope="module")
def ready(trained):
    slide = stimg.datasets.synthetic("visium", n_obs=120, n_genes=60)
    with stimg.settings.override(progress=False):
        stimg.pp.to_lattice(slide)
        stimg.pp.select_genes(slide, 40)
        stimg.tl.embed(slide, trained)
        stimg.tl.domains(slide, 3)
        stimg.tl.reconstruct(slide, trained, hidden=np.arange(120) % 7 == 0)
        stimg.tl.rank_channels(slide, trained, "domain")
    return slide


@pytest.fixture(scope="module")
def histology():
    slide = stimg.datasets.synthetic_histology(n_rows=5, n_cols=5, n_genes=6, seed=0)
    stimg.pp.to_lattice(slide, platform="st")
    with stimg.settings.override(progress=False):
        patches = stimg.pp.to_image_patches(slide, size=64)
        config = stimg.nn.DenseConfig(dim=8, n_programs=2)
        dense = stimg.tl.train_expression(patches, config=config, max_epochs=1, max_steps=1, device="cpu")
        pairs = stimg.tl.align(patches, stimg.nn.AlignConfig(dim=4, hidden=4), max_epochs=1, crop_size=64, device="cpu")
        stimg.tl.predict_expression(slide, dense, device="cpu")
        stimg.tl.embed_pairs(slide, pairs, device="cpu")
    return slide, patches, dense, pairs


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return stimg.datasets.synthetic_1k4m(tmp_path_factory.mktemp("collection"), n_slides=2)


def calls(slide, trained, histology, collection):
    """Calls that work, of the functions whose arguments are replaced by junk one at a time."""
    patches = stimg.pp.to_patches(slide, size=8, n_channels=8)
    config = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8)
    once = {"max_epochs": 1, "max_steps": 1, "device": "cpu"}
    embedding, spatial = slide.obsm["X_stimg"], slide.obsm["spatial"]
    labels = slide.obs["stimg_domain"].to_numpy()
    predicted = slide.obsm["stimg"].to_numpy()
    true = np.log1p(slide[:, slide.obsm["stimg"].columns].X.toarray())
    hidden = np.arange(slide.n_obs) % 7 == 0
    image, crops, dense, pairs = histology
    gene = image.var_names[0]
    return {
        stimg.pp.to_lattice: {"adata": slide},
        stimg.pp.select_genes: {"adata": slide, "n_genes": 20},
        stimg.pp.to_patches: {"slides": slide, "size": 8, "n_channels": 8},
        stimg.pp.to_image_patches: {"slides": image, "size": 64},
        stimg.pp.image_grid: {
            "image": image.uns["spatial"]["histology"]["images"]["hires"],
            "genes": [gene],
            "image_mpp": 2.0,
        },
        stimg.tl.pretrain: {"patches": patches, "config": config, **once},
        stimg.tl.embed: {"adata": slide, "model": trained},
        stimg.tl.domains: {"adata": slide, "n_domains": 3, "method": "kmeans"},
        stimg.tl.annotate: {"adata": slide, "model": trained, "reference": slide, "label_key": "domain"},
        stimg.tl.rank_channels: {"adata": slide, "model": trained, "key": "domain", "groups": ["layer1"]},
        stimg.tl.reconstruct: {"adata": slide, "model": trained},
        stimg.tl.align: {"patches": crops, "config": pairs.config, "crop_size": 64, **once},
        stimg.tl.train_expression: {"patches": crops, "config": dense.config, **once},
        stimg.tl.predict_expression: {"adata": image, "model": dense, "device": "cpu"},
        stimg.tl.embed_pairs: {"adata": image, "model": pairs, "device": "cpu"},
        stimg.tl.retrieve: {"slides": image, "query": image},
        stimg.tl.retrieve_expression: {"adata": image, "reference": image, "genes": [gene]},
        stimg.pl.domains: {"adata": slide},
        stimg.pl.rank_channels: {"adata": slide},
        stimg.pl.reconstruction: {"adata": slide, "genes": [slide.obsm["stimg"].columns[0]]},
        stimg.pl.expression_map: {"adata": image, "genes": [gene]},
        stimg.pl.gene_correlation: {"correlations": stimg.metrics.gene_correlations(true, predicted)},
        stimg.pl.patches: {"patches": patches},
        stimg.pl.history: {"model": trained},
        stimg.metrics.domain_scores: {"labels_true": labels, "labels_pred": labels, "coordinates": spatial},
        stimg.metrics.probe: {"embedding": embedding, "labels": labels, "protocol": "random", "n_folds": 2},
        stimg.metrics.transfer_probe: {
            "emb_train": embedding,
            "labels_train": labels,
            "emb_test": embedding,
            "labels_test": labels,
        },
        stimg.metrics.retrieval_recall: {"images": embedding, "genes": embedding},
        stimg.metrics.embedding_scores: {"embedding": embedding, "labels": labels},
        stimg.metrics.reconstruction_scores: {"true": true, "predicted": predicted, "hidden": hidden},
        stimg.metrics.gene_correlations: {"true": true, "predicted": predicted},
        stimg.metrics.expression_scores: {"true": true, "predicted": predicted},
        stimg.metrics.smooth_expression: {"values": true, "lattice": slide.obsm["lattice"]},
        stimg.metrics.hide_regions: {"lattice": slide.obsm["lattice"], "size": 2},
        stimg.metrics.interpolate_hidden: {"expression": true, "positions": spatial, "hidden": hidden},
        stimg.models.load: {"source": "stimg-tiny"},
        stimg.models.card: {"source": "stimg-tiny"},
        stimg.datasets.synthetic: {"platform": "visium", "n_obs": 50, "n_genes": 20},
        stimg.datasets.synthetic_histology: {"n_rows": 3, "n_cols": 3, "n_genes": 6},
        stimg.datasets.stimage_1k4m: {"root": collection},
        stimg.datasets.hest: {"root": collection},
        stimg.datasets.dlpfc: {"slice": "151673"},
        stimg.datasets.her2st: {"section": "A1"},
    }


@cases(120, 5000)
def test_arguments(examples, ready, trained, histology, collection):
    """One junk argument in a call that works otherwise."""
    working = calls(ready, trained, histology, collection)
    given_slides = (ready, histology[0])

    @drawn(examples, function=st.sampled_from(list(working)), which=st.integers(0, 100), junk=JUNK)
    def run(function, which, junk):
        names = [name for name in inspect.signature(function).parameters if name not in FREE]
        name = names[which % len(names)]
        copies = [slide.copy() for slide in given_slides]
        arguments = working[function] | {name: junk}
        for original, copy in zip(given_slides, copies, strict=True):
            arguments = {key: copy if value is original else value for key, value in arguments.items()}
        attempt(lambda: function(**arguments), *copies)
        plt.close("all")

    run()


# Passed on to Lightning, matplotlib or dask, whose errors they are.
FREE = {"callbacks", "trainer_kwargs", "ax", "num_workers", "client", "max_time"}


@cases(40, 1000)
def test_weights_files(examples, trained, tmp_path):
    path = tmp_path / "model.safetensors"
    trained.save(path)
    data = path.read_bytes()

    @drawn(examples, kind=st.sampled_from(DAMAGE), place=st.floats(0, 0.999), seed=st.integers(0, 2**32 - 1))
    def run(kind, place, seed):
        path.write_bytes(damaged(data, kind, place, np.random.default_rng(seed)))
        assert not attempt(lambda: stimg.models.load(path))

    run()


DAMAGE = ("cut", "flip", "noise", "doubled", "lost")


@cases(24, 1000)
def test_image_files(examples, tmp_path):
    import tifffile

    slide = stimg.datasets.synthetic_histology(n_rows=4, n_cols=4, n_genes=6, seed=0)
    stimg.pp.to_lattice(slide, platform="st")
    (library,) = slide.uns["spatial"]
    pixels = slide.uns["spatial"][library]["images"]["hires"]
    for name in ("image.png", "image.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    tiles = {"tile": (64, 64), "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "image.tif", pixels, compression="zlib", **tiles)
    tifffile.imwrite(tmp_path / "slide.svs", pixels, compression="jpeg", description="Aperio|MPP = 2", **tiles)
    tifffile.imwrite(tmp_path / "white.tif", 255 - pixels[..., 1], photometric="miniswhite", tile=(64, 64))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    @drawn(
        examples,
        name=st.sampled_from(sorted(files)),
        kind=st.sampled_from(DAMAGE),
        place=st.floats(0, 0.999),
        seed=st.integers(0, 2**32 - 1),
    )
    def run(name, kind, place, seed):
        path = tmp_path / name
        path.write_bytes(damaged(files[name], kind, place, np.random.default_rng(seed)))
        attempt(lambda: stimg.pp.to_image_patches(slide, images=path, size=64)[0], slide)

    run()
