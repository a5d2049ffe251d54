"""The network from images to dense expression."""

import numpy as np
import pytest
import torch
from torch import nn

from stimg._image._footprints import as_tensor, disk_footprints
from stimg.nn import DenseConfig, DenseNetwork

CONFIG = DenseConfig(dim=16, n_programs=4)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    found = DenseNetwork(CONFIG, n_genes=7).eval()
    found.gene_mean.copy_(torch.arange(7.0))
    found.gene_sd.copy_(torch.arange(1.0, 8.0))
    return found


@pytest.fixture(scope="module")
def slide():
    mean, sd = torch.linspace(-1, 1, 36), torch.linspace(0.5, 2, 36)
    return torch.stack([torch.stack([mean, sd]), torch.stack([mean + 1, sd])])


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_spot_is_the_mean_of_the_dense_map_over_its_disk(network, images, slide):
    with torch.no_grad():
        features = network.features(images, slide)
        maps = network.gene_map(features, torch.arange(7)).numpy()
    assert maps.shape == (2, 7, 16, 24)
    centres, radius = np.array([[5.2, 7.7], [9.0, 15.1]]), 3.3
    areas = disk_footprints(centres + [[16, 0], [16, 0]], radius, (32, 24))  # in the second image
    weights = areas.multiply(1 / areas.sum(1)[:, None]).tocsr()
    with torch.no_grad():
        found = network.expression(network.read(features, as_tensor(weights))).numpy()
    fine = 60
    for spot, centre in enumerate(centres):
        y, x = (np.arange(16 * fine) + 0.5) / fine, (np.arange(24 * fine) + 0.5) / fine
        hit = ((y[:, None] - centre[0]) ** 2 + (x[None] - centre[1]) ** 2 < radius**2).astype(float)
        inside = hit.reshape(16, fine, 24, fine).mean((1, 3))
        expected = (maps[1] * inside).sum((1, 2)) / inside.sum()
        assert np.allclose(found[spot], expected, rtol=2e-3, atol=2e-3)


def test_sums_grow_with_the_area_and_means_do_not(network, images, slide):
    with torch.no_grad():
        features = network.features(images[:1], slide[:1])
        small, large = (disk_footprints(np.array([[8.0, 12.0]]), r, (16, 24)) for r in (2.0, 4.0))
        bias = network.read(torch.zeros_like(features), as_tensor(small / (np.pi * 4)))
        twice = network.read(torch.zeros_like(features), as_tensor(large / (np.pi * 4)))
    assert torch.allclose(4 * bias, twice, atol=1e-5)


def test_gradients_reach_every_parameter(images, slide):
    network = DenseNetwork(CONFIG, n_genes=7)
    weights = as_tensor(disk_footprints(np.array([[6.0, 6.0], [20.0, 9.0]]), 4.0, (32, 24)))
    network.read(network.features(images, slide), weights).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_an_image_does_not_depend_on_the_others_of_its_batch(network, images, slide):
    with torch.no_grad():
        assert torch.allclose(network.features(images, slide)[:1], network.features(images[:1], slide[:1]), atol=1e-5)


def test_programs_start_the_head():
    network = DenseNetwork(CONFIG, n_genes=7)
    programs = torch.randn(4, 7)
    network.start_from_programs(torch.zeros(7), torch.ones(7), programs)
    assert torch.equal(network.head.weight[:, :4], programs.T)
    assert not network.head.weight[:, 4:].any()


class Pyramid(nn.Module):
    channels, strides = (8, 12), (8, 32)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 8, 8), nn.Conv2d(3, 12, 32, 32)])

    def forward(self, images):
        return [layer(images) for layer in self.layers]


def test_any_pyramid_fits(images, slide):
    network = DenseNetwork(CONFIG, 7, Pyramid())
    assert network.features(images, slide).shape == (2, 16 + network.stain.channels, 16, 24)


def test_training_begins_with_the_regression_on_stain(images, slide):
    network = DenseNetwork(CONFIG, n_genes=7)
    weight, bias = torch.randn(7, network.stain.channels), torch.randn(7)
    network.start_from_stain(weight, bias)
    with torch.no_grad():
        found = network.gene_map(network.features(images, slide), torch.arange(7))
        standard = (network.stain(images / 255) - slide[:, 0, :, None, None]) / slide[:, 1, :, None, None]
        expected = torch.einsum("nchw,gc->nghw", 3 * torch.tanh(standard / 3), weight) + bias[:, None, None]
    assert torch.allclose(found, expected, atol=1e-4)


def test_stain_statistics_are_bounded(images, slide):
    network = DenseNetwork(CONFIG, 7)
    far = torch.stack([slide[:, 0], slide[:, 1] * 1e-6], 1)
    found = network.statistics(images.float() / 255, far)
    assert found.abs().max() <= 3
    assert found.std() > 1


def test_stain_statistics_are_means_deviations_and_changes_of_optical_density(images):
    stain = DenseNetwork(CONFIG, 7).stain
    values = images / 255
    found = stain(values)[0]
    assert found.shape == (stain.channels, 16, 24)
    density = -np.log(np.clip(values[0].numpy(), 1 / 255, 1))
    block = density[1, 20:32, 40:52]
    assert found[1, 6, 11] == pytest.approx(block.mean(), abs=1e-4)
    assert found[4, 6, 11] == pytest.approx(block.std(), abs=1e-4)
    padded = np.pad(density[2], 1, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    changes = np.abs(density[2] - np.nanmean(windows, axis=(2, 3)))
    assert found[23, 8, 11] == pytest.approx(changes.mean(), abs=1e-4)  # the widest window covers the whole image


@pytest.mark.parametrize(
    "wrong",
    [
        {"aggregation": "max"},
        {"likelihood": "poisson"},
        {"group_sizes": ()},
        {"group_sizes": (-1.0,)},
        {"dropout": 1.0},
        {"n_programs": 99},
    ],
)
def test_bad_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DenseConfig(**wrong)


def test_settings_survive_their_dictionary():
    config = DenseConfig(dim=32, group_sizes=(0.0, 2.0))
    assert DenseConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="colour"):
        DenseConfig.from_dict({"colour": 1})
