from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from stimg._cluster import _colours


@pytest.mark.parametrize("colour", _colours.PALETTE)
@pytest.mark.parametrize("lightness", [15, 50, 90])
def test_a_shade_has_the_lightness_asked_for(colour, lightness):
    found = _colours.shade(colour, lightness)
    luminance = float(_colours.LUMINANCE @ _colours._linear(found))
    assert 116 * np.cbrt(luminance) - 16 == pytest.approx(lightness, abs=0.6)


def test_grey_is_mid_grey_and_text_is_white_on_dark():
    assert _colours.shade("#000000", 53.585) == "#808080"
    assert _colours.shade("#ffffff", 53.585) == "#808080"
    assert _colours.is_dark("#0000ff")
    assert not _colours.is_dark("#F0E442")


def test_unused_colours_are_none_of_those_in_use():
    used = [*_colours.PALETTE[:3], "black", _colours.PALETTE[5].lower()]
    found = _colours.unused_colours(4, used)
    assert found == [_colours.PALETTE[i] for i in (3, 4, 6, 7)]
    many = _colours.unused_colours(20, used)
    assert len(set(many)) == 20
    assert not {to_hex(colour) for colour in many} & {to_hex(colour) for colour in used}
