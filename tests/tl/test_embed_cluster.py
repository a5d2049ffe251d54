"""Embedding of several slides, here and on a dask cluster."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import stimg
from stimg._apply import _run_windows, _tokens


@pytest.fixture
def slides(make_slide):
    return [make_slide("visium"), make_slide("square", n_obs=500, seed=1), make_slide("free", seed=2)]


@pytest.fixture
def expected(slides, trained):
    return [stimg.tl.embed(slide, trained, copy=True) for slide in slides]


def agree(slides, expected):
    for found, one in zip(slides, expected, strict=True):
        for key in ("X_stimg", "X_stimg_slide"):
            np.testing.assert_allclose(found.obsm[key], one.obsm[key], atol=1e-4)


def test_a_list_is_each_of_its_slides(slides, expected, trained):
    copies = stimg.tl.embed(slides, trained, copy=True)
    assert "X_stimg" not in slides[0].obsm
    agree(copies, expected)
    assert stimg.tl.embed(slides, trained) is None
    agree(slides, expected)


def test_of_several_slides_none_is_changed_where_one_is_bad(slides, trained):
    slides[2].X[0, 0] = -1
    with pytest.raises(ValueError, match="negative"):
        stimg.tl.embed(slides, trained)
    assert all("X_stimg" not in slide.obsm for slide in slides)
    del slides[2].obsm["lattice"]
    with pytest.raises(KeyError, match="to_lattice"):
        stimg.tl.embed(slides, trained)
    with pytest.raises(ValueError, match="twice"):
        stimg.tl.embed([slides[0], slides[0]], trained)
    with pytest.raises(ValueError, match="empty list"):
        stimg.tl.embed([], trained)


def test_a_client_is_one(slides, trained):
    with pytest.raises(TypeError, match="distributed.Client.*str"):
        stimg.tl.embed(slides, trained, client="tcp://localhost:8786")


def test_light_network_gives_the_same_states(make_slide, trained):
    slide = make_slide()
    matched, _ = _tokens.match_slides(slide, trained, layer=None, scale=None, lattice_key="lattice")
    tokens = _tokens.site_tokens(trained, *matched[0])
    assert sum(p.numel() for p in trained.network.without_genes().parameters()) < sum(
        p.numel() for p in trained.network.parameters()
    )
    first = _run_windows.run_windows(trained, matched[0][0], tokens, readout="decoder")
    light = type("Light", (), {"network": trained.network.without_genes(), "card": trained.card})
    light.config = trained.config
    np.testing.assert_array_equal(_run_windows.run_windows(light, matched[0][0], tokens, readout="decoder"), first)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_gives_the_same_though_a_worker_is_killed(slides, expected, trained, tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path) as cluster,
        Client(cluster) as client,
    ):
        first = client.run(os.getpid)
        killed = []

        def kill_one(*arguments):
            if len(killed) < 1 and len(seen) > 3:
                killed.append(next(iter(first.values())))
                os.kill(killed[0], signal.SIGKILL)
            seen.append(arguments)
            return submit(*arguments, pure=False)

        seen, submit = [], client.submit
        client.submit = lambda *arguments, pure: kill_one(*arguments)
        stimg.tl.embed(slides, trained, client=client, batch_size=2)
        assert killed
        assert killed[0] not in client.run(os.getpid).values()
    agree(slides, expected)
