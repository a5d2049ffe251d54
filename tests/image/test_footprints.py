"""Areas of pixels inside shapes."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg._image._footprints import disk_footprints, polygon_footprints

SHAPE = (12, 15)
# GEOS loses parts of polygons with subnormal coordinates.
place = st.tuples(st.floats(-4, 16, allow_subnormal=False), st.floats(-4, 19, allow_subnormal=False))
size = st.floats(0.05, 9)


def brute_force(inside, n=200):
    """Share of n x n points of each pixel inside a shape."""
    y = (np.arange(SHAPE[0] * n) + 0.5) / n
    x = (np.arange(SHAPE[1] * n) + 0.5) / n
    hit = inside(y[:, None], x[None])
    return hit.reshape(SHAPE[0], n, SHAPE[1], n).mean((1, 3))


@pytest.mark.parametrize(("centre", "radius"), [((5.3, 7.9), 3.2), ((0.2, 14.6), 4.0), ((6, 6), 0.3), ((4.5, 4.5), 5)])
def test_disk_matches_brute_force(centre, radius):
    found = disk_footprints(np.array([centre]), radius, SHAPE).toarray().reshape(SHAPE)
    expected = brute_force(lambda y, x: (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2)
    assert np.abs(found - expected).max() < 5e-3
    assert found.sum() == pytest.approx(expected.sum(), rel=2e-3)


@settings(deadline=None, max_examples=60)
@given(place, size)
def test_disk_is_the_limit_of_polygons(centre, radius):
    disk = disk_footprints(np.array([centre]), radius, SHAPE).toarray()
    circle = shapely.Point(centre[1], centre[0]).buffer(radius, quad_segs=512)
    polygon = polygon_footprints([circle], SHAPE).toarray()
    assert np.abs(disk - polygon).max() < 1e-4
    assert (disk >= 0).all() and (disk <= 1).all()


def test_whole_disks_have_their_area_and_each_its_own_radius():
    centres = np.array([[6.1, 5.2], [6.0, 8.0], [5.5, 7.5]])
    radii = np.array([0.4, 2.0, 5.3])
    areas = disk_footprints(centres, radii, SHAPE).sum(1)
    assert np.allclose(areas, np.pi * radii**2, rtol=1e-9)


def test_outside_of_the_grid_is_empty():
    assert disk_footprints(np.array([[-9.0, 3.0], [3.0, 40.0]]), 2.0, SHAPE).nnz == 0
    assert disk_footprints(np.empty((0, 2)), 2.0, SHAPE).shape == (0, 180)


def test_a_cell_with_a_hole():
    ring = shapely.Point(7, 6).buffer(4).difference(shapely.Point(7, 6).buffer(2))
    found = polygon_footprints([ring], SHAPE)
    assert found.sum() == pytest.approx(ring.area)
    assert found.toarray().reshape(SHAPE)[6, 7] == 0
