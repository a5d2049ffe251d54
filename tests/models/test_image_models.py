from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from hostile import hostile
from torch import nn

from stimg.models import AlignmentModel, ExpressionModel
from stimg.models._alignment_model import spatial_card
from stimg.nn import AlignConfig, AlignNetwork, DenseConfig, DenseNetwork, get_encoder

CARD = {
    "name": "mine",
    "encoder": "Pyramid",
    "mpp": 2.0,
    "size": 64,
    "diameter_um": 55.0,
    "slides": ["one"],
    "n_spots": 9,
    "target_sum": 1e4,
    "stain_normalise": False,
}


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 16, 16)

    def forward(self, images):
        return self.layer(images)


@pytest.mark.parametrize("tuned", [False, True])
def test_foreign_encoders_are_passed_again(trained, tmp_path, tuned):
    encoder = Pyramid()
    network = DenseNetwork(DenseConfig(dim=16, n_programs=0), len(trained.genes), get_encoder(encoder, tuned=tuned))
    model = ExpressionModel(network.eval(), trained.genes, CARD)
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="Pass it as `encoder`"):
        ExpressionModel.load(tmp_path / "model.safetensors")
    loaded = ExpressionModel.load(tmp_path / "model.safetensors", encoder=Pyramid() if tuned else encoder)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.network.decode(images), network.decode(images))
    loaded.save(tmp_path / "again.safetensors")
    assert loaded.sha256 == model.sha256


def test_summaries_count_in_words(trained):
    network = DenseNetwork(DenseConfig(dim=16, n_programs=0), 2)
    history = pd.DataFrame({"epoch": [0], "train_loss": [0.5]})
    text = repr(ExpressionModel(network, trained.genes[:2], CARD, history))
    assert "1 slide (one), 9 spots of 55 um" in text
    assert "1 epoch, training loss 0.5000" in text
    assert text.count("...") == 0


def test_the_vocabulary_of_a_tuned_model_is_kept_whatever_its_card_says(trained, tmp_path):
    base = replace(trained, card=trained.card | {"genes": "union of the slides", "sha256": "of something else"})
    config = AlignConfig(dim=8, gene_encoder="tuned", spatial=base.config, n_spatial_genes=len(base.genes))
    card = CARD | {"encoder": None, "spatial": spatial_card(base)}
    assert card["spatial"]["sha256"] == base.sha256
    model = AlignmentModel(AlignNetwork(config, 3), trained.genes[:3], card)
    model.save(tmp_path / "model.safetensors")
    found = AlignmentModel.load(tmp_path / "model.safetensors").spatial
    assert found.genes.tolist() == base.genes.tolist()
    assert found.card["slides"] == base.card["slides"]


def test_loading_draws_nothing_from_the_user(trained, tmp_path):
    trained.save(tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    type(trained).load(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def files(trained, tmp_path):
    """Return the files of an expression model and of an alignment with a tuned spatial model."""
    genes, card = trained.genes[:3], CARD | {"encoder": "stimg-conv"}
    expression = ExpressionModel(DenseNetwork(DenseConfig(dim=16, n_programs=0), 3), genes, card)
    config = AlignConfig(dim=8, gene_encoder="tuned", spatial=trained.config, n_spatial_genes=len(trained.genes))
    card = CARD | {"encoder": None, "spatial": spatial_card(trained)}
    alignment = AlignmentModel(AlignNetwork(config, 3), genes, card)
    paths = {}
    for model in (expression, alignment):
        paths[type(model)] = tmp_path / f"{model.kind}.safetensors"
        model.save(paths[type(model)])
    return paths


@pytest.mark.parametrize("kind", [ExpressionModel, AlignmentModel])
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"card": {"mpp": 0}}, "'mpp'"),
        ({"card": {"mpp": float("nan")}}, "'mpp'"),
        ({"card": {"mpp": "2"}}, "'mpp'"),
        ({"card": {"mpp": 1e-300}}, "'mpp'"),
        ({"card": {"diameter_um": -55.0}}, "'diameter_um'"),
        ({"card": {"diameter_um": 1e300}}, "'diameter_um'"),
        ({"card": {"stain_normalise": "yes"}}, "'stain_normalise'"),
        ({"card": {"stain_normalise": None}}, "'stain_normalise'"),
        ({"card": {"n_spots": 0}}, "'n_spots'"),
        ({"card": {"encoder": 3}}, "'encoder'"),
        ({"card": {"encoder": "uni"}}, "Pass it as `encoder`"),
        ({"card": {"size": 30_000}}, "30000 as 'size'"),
        ({"config": {"dim": 30}}, "`dim`|do not fit"),
        ({"config": {"dropout": 1.0}}, "`dropout`"),
        ({"kind": "patches"}, "Expected weights"),
    ],
    ids=str,
)
def test_absurd_fields_are_named(files, kind, changes, found):
    hostile(files[kind], **changes)
    with pytest.raises(ValueError, match=found):
        kind.load(files[kind])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"group_sizes": []}, "`group_sizes`"),
        ({"group_sizes": "many"}, "damaged"),
        ({"group_sizes": [-1.0]}, "`group_sizes`"),
        ({"group_sizes": None}, "damaged"),
    ],
    ids=str,
)
def test_absurd_groups_are_named(files, changes, found):
    hostile(files[ExpressionModel], config=changes)
    with pytest.raises(ValueError, match=found):
        ExpressionModel.load(files[ExpressionModel])


@pytest.mark.parametrize(
    ("spatial", "found"),
    [
        (3, "'spatial'"),
        ({"genes": ["A", "A"]}, "gene twice"),
        ({"genes": ["A"]}, "'genes"),
        ({"genes": None}, "'genes'"),
        ({"size": 30_000}, "30000 as 'size'"),
        ({"unit": "cell"}, "'unit'"),
        ({"genes_per_slide": 0}, "'genes_per_slide'"),
    ],
    ids=str,
)
def test_absurd_fields_of_the_tuned_model_are_named(files, trained, spatial, found):
    path = files[AlignmentModel]
    hostile(path, card={"spatial": spatial_card(trained) | spatial if isinstance(spatial, dict) else spatial})
    with pytest.raises(ValueError, match=found):
        AlignmentModel.load(path)
    hostile(path, card={"spatial": {}})
    with pytest.raises(ValueError, match="'genes'"):
        AlignmentModel.load(path)
