"""Cells fit together: no gaps between neighbours, no overlaps, and holes stay holes."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from scipy.spatial import cKDTree

from stimg._slide._cells import nearest_cells, site_cells
from stimg._slide._geometry import site_positions

TURN = np.array([[0.8, 0.6], [-0.6, 0.8]]) * 37.3
SIZES = {"hex": np.sqrt(0.75), "square": 1.0}  # of one cell, for a pitch of one


def grid(n_rows, n_cols):
    return np.stack(np.mgrid[:n_rows, :n_cols], axis=-1).reshape(-1, 2)


def points_of(sites, kind, parity=0):
    return site_positions(sites, kind, parity) @ TURN + [1e4, -500]


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("kind", ["hex", "square"])
def test_sites_become_cells_around_their_points(kind, parity):
    sites = grid(7, 9)
    points = points_of(sites, kind, parity)
    cells = site_cells(sites, kind, parity, points)
    np.testing.assert_allclose(shapely.area(cells.polygons), SIZES[kind] * 37.3**2)
    centres = shapely.get_coordinates(shapely.centroid(cells.polygons))
    np.testing.assert_allclose(centres, points[cells.first])
    whole = cells.merge(np.ones(63, dtype=bool))
    assert whole.geom_type == "Polygon"
    assert len(whole.interiors) == 0
    assert whole.area == pytest.approx(63 * SIZES[kind] * 37.3**2)


@pytest.mark.parametrize("kind", ["hex", "square"])
def test_parts_have_no_slivers_and_a_hole_stays_a_hole(kind):
    sites = grid(20, 20)
    middle = (np.abs(sites - 10) <= 1).all(1)
    sites = sites[~middle]
    cells = site_cells(sites, kind, 0, points_of(sites, kind))
    labels = np.random.default_rng(0).integers(3, size=len(sites))[cells.first]
    parts = [cells.merge(labels == label) for label in range(3)]
    whole = cells.merge(np.ones(len(sites), dtype=bool))
    one = SIZES[kind] * 37.3**2
    np.testing.assert_allclose([part.area for part in parts], np.bincount(labels) * one)
    assert all(part.is_valid for part in parts)
    assert max(parts[i].intersection(parts[j]).area for i in range(3) for j in range(i)) < 1e-9 * one
    assert len(whole.interiors) == 1
    assert shapely.Polygon(whole.interiors[0]).area == pytest.approx(9 * one)


def test_a_site_is_one_cell_and_the_first_observation_counts():
    sites = np.concatenate([grid(3, 3), [[1, 1]]])
    cells = site_cells(sites, "square", 0, points_of(sites, "square"))
    assert len(cells.polygons) == 9
    assert 9 not in cells.first


def test_points_that_are_not_on_the_lattice_are_refused():
    sites = grid(6, 6)
    points = points_of(sites, "hex")
    with pytest.raises(ValueError, match="pitches from their sites"):
        site_cells(sites, "hex", 0, points[np.random.default_rng(0).permutation(36)])
    points[7] += 30  # a single spot may be further away
    assert len(site_cells(sites, "hex", 0, points).polygons) == 36
    with pytest.raises(ValueError, match="not in a line"):
        site_cells(sites[:6], "hex", 0, points[:6])


@pytest.fixture
def free():
    """Random points around a round hole, in other coordinates."""
    points = np.random.default_rng(0).uniform(0, 30, (900, 2))
    points = points[np.linalg.norm(points - 15, axis=1) > 5]
    return points * 200 + 1e5


def test_every_place_belongs_to_the_nearest_point(free):
    cells = nearest_cells(free)
    assert np.sort(cells.first).tolist() == list(range(len(free)))
    assert shapely.contains(cells.polygons, shapely.points(free[cells.first])).all()
    labels = np.random.default_rng(1).integers(4, size=len(free))
    parts = [cells.merge(labels[cells.first] == label) for label in range(4)]
    assert sum(part.area for part in parts) == pytest.approx(cells.tissue.area)
    assert max(parts[i].intersection(parts[j]).area for i in range(4) for j in range(i)) < 1e-6
    tried = np.random.default_rng(2).uniform(free.min(0), free.max(0), (500, 2))
    near = cKDTree(free).query(tried)[1]
    for place, nearest in zip(shapely.points(tried), near, strict=True):
        assert parts[labels[nearest]].contains(place) == cells.tissue.contains(place)


def test_a_hole_of_free_points_stays_and_chance_gaps_close(free):
    whole = nearest_cells(free).merge(np.ones(len(free), dtype=bool))
    assert whole.geom_type == "Polygon"
    *small, hole = sorted(map(shapely.Polygon, whole.interiors), key=lambda ring: ring.area)
    assert hole.contains(shapely.Point(15 * 200 + 1e5, 15 * 200 + 1e5))
    assert hole.area == pytest.approx(np.pi * 1000**2, rel=0.25)
    assert sum(ring.area for ring in small) < 0.02 * whole.area


def test_lone_and_coinciding_points_have_cells():
    square = grid(4, 4).astype(float)
    cells = nearest_cells(np.concatenate([square, square[:3], [[50.0, 1.0]]]))
    assert sorted(cells.first.tolist()) == [*range(16), 19]
    lone = cells.merge(cells.first == 19)
    assert lone.area == pytest.approx(np.pi / 4, rel=0.15)
    np.testing.assert_allclose(shapely.get_coordinates(lone.centroid), [[50, 1]])
    alone = nearest_cells(np.array([[3.0, 4.0]]))
    assert alone.merge(np.array([True])).area == pytest.approx(np.pi / 4, rel=0.15)
    line = nearest_cells(np.column_stack([np.arange(5.0), np.zeros(5)]))
    assert line.merge(np.ones(5, dtype=bool)).geom_type == "Polygon"
