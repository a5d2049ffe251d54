from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
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
