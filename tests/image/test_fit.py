"""Whether spots lie on the tissue as they are, or would if turned or moved."""

import warnings

import numpy as np
import pytest

import stimg
from stimg._image._fit import check_fit
from stimg._image._place import ImageSource, place_on_image
from stimg._image._slide_image import SlideImage

MPP, PITCH = 8.0, 100.0


def slide(shape=(300, 380)):
    """A lopsided section, and the spots of an array that lie on it."""
    row, col = np.mgrid[: shape[0], : shape[1]]
    mask = (((row - 120) / 90) ** 2 + ((col - 150) / 120) ** 2 < 1) | (np.hypot(row - 190, col - 230) < 60)
    grid = np.stack(np.meshgrid(*[np.arange(PITCH, n * MPP, PITCH) for n in shape], indexing="ij"), -1).reshape(-1, 2)
    return image_of(mask), grid[mask[tuple((grid / MPP).astype(int).T)]]


def image_of(mask):
    image = SlideImage([np.zeros((*mask.shape, 3), np.uint8)], MPP)
    image.__dict__["tissue"] = (np.ascontiguousarray(mask), MPP)
    return image


@pytest.fixture
def placed():
    return slide()


def test_the_right_place_passes(placed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_fit(*placed, "x")


TURNS = {
    "with x and y exchanged": lambda m: m.T,
    "flipped top to bottom": lambda m: m[::-1],
    "flipped left to right": lambda m: m[:, ::-1],
    "turned by 180 degrees": lambda m: m[::-1, ::-1],
    "turned by 90 degrees anticlockwise": np.rot90,
    "turned by 90 degrees clockwise": lambda m: np.rot90(m, -1),
    "with x and y exchanged and then turned by 180 degrees": lambda m: m[::-1, ::-1].T,
}


@pytest.mark.parametrize("words", TURNS)
def test_a_turned_image_is_refused_with_the_turn_that_fits(placed, words):
    image, centres = placed
    turned = image_of(TURNS[words](image.tissue[0]))
    with pytest.raises(ValueError, match=f"fit better {words}: (99|100)% lie on tissue, against"):
        check_fit(turned, centres, "x")


def test_spots_flipped_about_their_own_middle(placed):
    image, centres = placed
    with pytest.raises(ValueError, match="flipped left to right"):
        check_fit(image, centres * [1, -1] + [0, (centres.max(0) + centres.min(0))[1]], "x")


def test_a_shift_by_two_pitches(placed):
    image, centres = placed
    with pytest.raises(ValueError, match="moved by 200 um up and 200 um left"):
        check_fit(image, centres + 2 * PITCH, "x")
    with pytest.warns(UserWarning, match="moved by 100 um up:"):
        check_fit(image, centres + [PITCH, 0], "x")


def test_tissue_everywhere_tells_nothing(placed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_fit(image_of(np.ones((300, 380), dtype=bool)), placed[1], "x")


def test_half_of_a_section_raises_no_alarm(placed):
    image, centres = placed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for half in (centres[:, 0] < 1000, centres[:, 0] > 1000, centres[:, 1] < 1200, centres[:, 1] > 1200):
            check_fit(image, centres[half], "x")


def test_many_cells_are_quick(placed):
    image, _ = placed
    rng = np.random.default_rng(0)
    cells = rng.random((100_000, 2)) * np.array(image.shape) * MPP
    cells = cells[image.tissue[0][tuple((cells / MPP).astype(int).T)]]
    check_fit(image, cells, "x")
    with pytest.raises(ValueError, match="flipped top to bottom"):
        check_fit(image_of(image.tissue[0][::-1]), cells, "x")


def test_an_image_without_tissue(placed):
    with pytest.raises(ValueError, match="No tissue found"):
        check_fit(image_of(np.zeros((300, 380), dtype=bool)), placed[1], "x")


def test_spots_on_glass_count_only_if_the_table_does_not_know_them():
    adata = stimg.datasets.synthetic_histology(n_rows=12, n_cols=12, n_genes=4)
    image = adata.uns["spatial"]["histology"]["images"]["hires"]
    x, y = adata.obsm["spatial"].T
    on = (x + y) < 900
    row, col = np.mgrid[: image.shape[0], : image.shape[1]]
    image[row + col > 980] = (232, 218, 230)
    source = ImageSource(image, 2.0, None, None, None, None, None)
    with pytest.raises(ValueError, match="lie on tissue"):
        place_on_image(adata, source, mpp=2.0)
    adata.obs["in_tissue"] = on.astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(place_on_image(adata, source, mpp=2.0).centres) == adata.n_obs


@pytest.mark.real
@pytest.mark.slow
def test_real_sections_pass_and_all_turns_do_not(real_sections):
    caught = 0
    for name, image, centres, pitch_um in real_sections:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_fit(image, centres, name)
        mask, mpp = image.tissue
        wrong = [(turn(mask), centres) for turn in TURNS.values()]
        wrong += [(mask, centres + 2 * pitch_um * np.array(way)) for way in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        for turned, spots in wrong:
            other = SlideImage([np.zeros((*turned.shape, 3), np.uint8)], mpp)
            other.__dict__["tissue"] = (np.ascontiguousarray(turned), mpp)
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                try:
                    check_fit(other, spots, name)
                    caught += len(found)
                except ValueError:
                    caught += 1
    assert caught == 14 * 11
