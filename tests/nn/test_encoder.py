"""Encoders of others behind one door."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stimg.nn import ConvEncoder, DenseConfig, DenseNetwork, ForeignEncoder, get_encoder

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """A patch embedding with class and register tokens before the patches."""

    patch_size = 14

    def __init__(self, prefix=5):
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Conv2d(3, 24, 14, 14)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.drop(torch.cat([tokens.new_full((len(tokens), self.prefix, 24), 99.0), tokens], 1))


class Dense:
    """The door of lazyslide-models: no module, tokens without gradients, a transform with mean and deviation."""

    patch_size = (16, 16)

    def __init__(self):
        self.seen = []
        self.model = nn.Conv2d(3, 24, 16, 16)

    def get_transform(self):
        return SimpleNamespace(transforms=[SimpleNamespace(size=224), SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)])

    @torch.inference_mode()
    def encode_image_dense(self, images):
        self.seen.append(images)
        tokens = self.model(images).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens


def test_bundled_pyramid():
    maps = ConvEncoder()(IMAGES)
    assert [m.shape[1:] for m in maps] == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (192, 2, 2)]


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_become_a_map_without_their_prefix(prefix):
    encoder = ForeignEncoder(Tokens(prefix)).eval()
    detail, found = encoder(IMAGES)
    assert found.shape == (2, 24, 5, 5)  # 64 pixels brought to 70, five patches of 14
    assert found.max() < 50
    assert detail.shape == (2, 32, 16, 16)


def test_a_frozen_encoder_stays_as_it_is():
    network = DenseNetwork(DenseConfig(dim=16, n_programs=0), 3, get_encoder(Tokens())).train()
    network.decode(IMAGES).sum().backward()
    inner = network.encoder.network
    assert not inner.training
    assert all(p.grad is None for p in inner.parameters())
    assert network.encoder.detail[0].weight.grad is not None


def test_a_tuned_encoder_learns():
    encoder = get_encoder(Tokens(), tuned=True)
    encoder(IMAGES)[1].sum().backward()
    assert encoder.network.embed.weight.grad is not None


def test_the_door_of_lazyslide_models():
    dense = Dense()
    encoder = get_encoder(dense)
    assert encoder(IMAGES)[1].shape == (2, 24, 4, 4)
    assert torch.allclose(dense.seen[-1], (IMAGES - 0.5) / 0.5)
    with pytest.raises(TypeError, match="gradients"):
        get_encoder(dense, tuned=True)


def test_what_is_no_encoder_is_refused():
    with pytest.raises(TypeError, match="`encoder`"):
        get_encoder(object())
    with pytest.raises(TypeError, match=r"\(1, 10\)"):
        get_encoder(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)))


def test_a_foundation_model_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lazyslide_models", None)
    with pytest.raises(ModuleNotFoundError, match=r"stimg\[histology\]"):
        get_encoder("uni")


def test_names_of_foundation_models(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lazyslide_models", SimpleNamespace(MODEL_REGISTRY={"uni": Dense}))
    assert isinstance(get_encoder("uni"), ForeignEncoder)
    with pytest.raises(ValueError, match="uni"):
        get_encoder("unknown")
