"""Recipes: what they refuse, and their way to JSON and back."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from stimg.nn import CONFIGS, AlignConfig, Config, DenseConfig

EVERY = (Config, DenseConfig, AlignConfig)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    ("name", "wrong", "wanted"),
    [
        ("learning_rate", -1e-3, "of at least 0"),
        ("learning_rate", np.inf, "of at least 0"),
        ("weight_decay", np.nan, "of at least 0"),
        ("warmup", 1.0, r"in \[0, 1\)"),
        ("batch_size", 0, "an integer of at least"),
        ("batch_size", 8.0, "an integer of at least"),
        ("dim", "wide", "an integer of at least 1"),
        ("dim", True, "an integer of at least 1"),
    ],
)
def test_settings_of_all_recipes_are_checked(kind, name, wrong, wanted):
    with pytest.raises(ValueError, match=f"Expected `{name}` to be .*{wanted}"):
        kind(**{name: wrong})


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        (Config, "mask", "squares"),
        (Config, "scaling", None),
        (Config, "token", "Bound"),
        (Config, "encoder_layers", 0),
        (Config, "heads", 0),
        (Config, "gene_ratio", 0.0),
        (Config, "label_loss", -1.0),
        (DenseConfig, "likelihood", "poisson"),
        (DenseConfig, "dim", 30),
        (DenseConfig, "group_sizes", (np.nan,)),
        (AlignConfig, "gene_encoder", "tree"),
        (AlignConfig, "hidden", 0),
        (AlignConfig, "colour_jitter", -0.1),
    ],
)
def test_settings_of_one_recipe_are_checked(kind, name, wrong):
    with pytest.raises(ValueError, match=f"Expected `{name}`"):
        kind(**{name: wrong})


def test_allowed_words_are_listed():
    with pytest.raises(ValueError, match="'genes', 'sites', 'regions', 'mixture'"):
        Config(mask="squares")


@pytest.mark.parametrize("config", [*CONFIGS.values(), DenseConfig(), AlignConfig(spatial=CONFIGS["small"])])
def test_recipes_survive_their_file(config):
    written = json.dumps(config.to_dict())
    assert list(json.loads(written)) == [field.name for field in fields(config)]
    assert type(config).from_dict(json.loads(written)) == config
    assert replace(config, learning_rate=0.0).learning_rate == 0


@pytest.mark.parametrize("kind", EVERY)
def test_unknown_fields_are_named(kind):
    assert kind.from_dict({}) == kind()
    with pytest.raises(ValueError, match=r"Unknown configuration fields \['colour'\]"):
        kind.from_dict({"colour": 1})
