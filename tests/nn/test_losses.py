import numpy as np
import torch
from scipy import stats

from stimg.nn._losses import contrastive_loss, negative_binomial_loss, uncorrelated


def test_the_loss_is_that_of_clip():
    generator = torch.Generator().manual_seed(0)
    images, genes = torch.nn.functional.normalize(torch.randn(2, 5, 4, generator=generator), dim=2)
    scores = 10 * images @ genes.T
    rows = -torch.log_softmax(scores, 1).diagonal().mean()
    columns = -torch.log_softmax(scores, 0).diagonal().mean()
    nothing = torch.zeros(5, 5, dtype=torch.bool)
    found = contrastive_loss(images, genes, torch.tensor(10.0), nothing)
    assert torch.isclose(found, (rows + columns) / 2)
    alike = nothing.clone()
    alike[0, 1] = alike[1, 0] = True
    assert contrastive_loss(images, genes, torch.tensor(10.0), alike) < found
    everything = contrastive_loss(images, genes, torch.tensor(10.0), ~nothing)
    assert torch.isclose(everything, torch.tensor(0.0))


def test_one_minus_pearson():
    rng = np.random.default_rng(0)
    predicted, truth = rng.normal(size=(2, 20, 5)).astype(np.float32)
    pearson = np.mean([np.corrcoef(predicted[:, g], truth[:, g])[0, 1] for g in range(5)])
    assert np.isclose(uncorrelated(torch.from_numpy(predicted), torch.from_numpy(truth)), 1 - pearson, atol=1e-5)


def test_genes_that_were_not_measured_are_left_out():
    rng = np.random.default_rng(0)
    predicted, truth = torch.from_numpy(rng.normal(size=(2, 20, 5)).astype(np.float32))
    expected = uncorrelated(predicted[:, :3], truth[:, :3])
    truth[:, 3:] = torch.nan
    predicted.requires_grad_()
    found = uncorrelated(predicted, truth)
    assert torch.isclose(found, expected)
    found.backward()
    assert torch.isfinite(predicted.grad).all()
    assert not predicted.grad[:, 3:].any()


def test_likelihood_of_counts():
    means, counts = np.array([[0.5, 3.0], [20.0, 1.0]]), np.array([[0, 5], [18, 1]])
    dispersion = np.array([0.5, 2.0])
    found = negative_binomial_loss(*(torch.tensor(x, dtype=torch.float64) for x in (means, counts, dispersion)))
    size = 1 / dispersion
    assert np.allclose(found, -stats.nbinom.logpmf(counts, size, size / (size + means)))
