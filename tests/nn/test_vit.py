from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stimg.nn import CONFIGS, Config, GeneMAE, draw_hidden, get_config

SMALL = Config(dim=32, encoder_layers=2, decoder_layers=1, heads=2, n_programs=8)


def make_batch(batch=2, size=6, channels=12, n_genes=30, seed=0):
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:size, :size]
    positions = np.stack([cols, rows], -1).reshape(1, -1, 2).repeat(batch, 0)
    return {
        "expression": torch.from_numpy(rng.normal(size=(batch, size**2, channels)).astype(np.float32)),
        "genes": torch.from_numpy(np.stack([rng.permutation(n_genes)[:channels] for _ in range(batch)])),
        "channel_mask": torch.ones(batch, channels, dtype=torch.bool),
        "present": torch.from_numpy(rng.random((batch, size**2)) < 0.8),
        "positions": torch.from_numpy(positions.astype(np.float32)),
    }


def make_network(config=SMALL, n_genes=30):
    torch.manual_seed(0)
    return GeneMAE(config, n_genes)


def run(network, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return network(batch, draw_hidden(batch["present"], batch["channel_mask"], network.config, generator))


@pytest.mark.parametrize("mask", ["genes", "sites", "regions", "mixture"])
def test_predictions_do_not_depend_on_hidden_or_empty_entries(mask):
    network = make_network(replace(SMALL, mask=mask))
    batch = make_batch()
    first = run(network, batch)
    changed = batch["expression"].clone()
    unseen = first.hidden | ~batch["present"][..., None]
    changed[unseen] = 1e3
    second = run(network, {**batch, "expression": changed})
    present = batch["present"]
    torch.testing.assert_close(second.prediction[present], first.prediction[present])
    visible = (~first.hidden & present[..., None]).nonzero()[0]
    changed = batch["expression"].clone()
    changed[tuple(visible)] += 5
    assert not torch.allclose(run(network, {**batch, "expression": changed}).prediction, first.prediction)


def test_padding_channels_change_nothing():
    network = make_network(replace(SMALL, mask="sites"))
    batch = make_batch()
    padded = {
        **batch,
        "expression": torch.cat([batch["expression"], torch.full((2, 36, 3), 7.0)], 2),
        "genes": torch.cat([batch["genes"], torch.zeros(2, 3, dtype=torch.int64)], 1),
        "channel_mask": torch.cat([batch["channel_mask"], torch.zeros(2, 3, dtype=torch.bool)], 1),
    }
    torch.testing.assert_close(run(network, padded).loss, run(network, batch).loss)


def test_gene_order_does_not_matter():
    network = make_network(replace(SMALL, mask="regions"))
    batch = make_batch()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = {**batch, "expression": batch["expression"][..., order], "genes": batch["genes"][:, order]}
    first, second = run(network, batch), run(network, shuffled)
    torch.testing.assert_close(second.loss, first.loss)
    torch.testing.assert_close(second.prediction, first.prediction[..., order])


def test_encoding_depends_on_offsets_not_on_place():
    network = make_network()
    batch = make_batch()
    tokens = torch.randn(2, 36, 32, generator=torch.Generator().manual_seed(0))
    first = network.encode(tokens, batch["positions"], batch["present"])
    moved = network.encode(tokens, batch["positions"] + 11.0, batch["present"])
    torch.testing.assert_close(moved, first, atol=1e-4, rtol=1e-4)
    stretched = network.encode(tokens, batch["positions"] * 2, batch["present"])
    assert not torch.allclose(stretched, first, atol=1e-3)


@pytest.mark.parametrize("name", ["tiny", "paper"])
def test_gradients_reach_every_parameter(name):
    config = replace(CONFIGS[name], dim=32, heads=2, encoder_layers=2, n_programs=min(8, CONFIGS[name].n_programs))
    network = make_network(replace(config, mask="mixture"))
    batch = make_batch(batch=8, channels=30)
    run(network, batch).loss.backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("token", ["bound", "additive"])
def test_overfits_one_batch(token):
    network = make_network(replace(SMALL, token=token, mask="genes", gene_ratio=0.3))
    batch = make_batch()
    hidden = draw_hidden(batch["present"], batch["channel_mask"], network.config, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    first = network(batch, hidden).loss.item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = network(batch, hidden).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


def test_programs_start_the_tables_and_judge_the_error():
    network = make_network()
    loadings = torch.linalg.qr(torch.randn(30, 10, generator=torch.Generator().manual_seed(0)))[0]
    variance = torch.linspace(9, 1, 10)
    network.start_from_programs(loadings, variance)
    network.judge_by_programs(loadings, variance)
    torch.testing.assert_close(network.gene_out[:, :10], loadings * variance.sqrt())
    torch.testing.assert_close(network.programs, loadings[:, :8])
    genes = torch.arange(30)[None]
    residual = 3 * loadings[:, 1][None, None]
    error = network.program_error(residual, genes, torch.full((1, 1, 1), 30.0))
    assert error.item() == pytest.approx(9 / (variance[1].item() + 1) / 8, rel=1e-5)


def test_labels_compete_within_their_group_alone():
    network = GeneMAE(SMALL, 30, n_labels=4)
    states = torch.randn(2, 5, SMALL.dim, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, -1, 0, -1], [2, 3, 3, -1, -1]])
    choice = torch.tensor([[True, True, False, False], [False, False, True, True]])
    error = network.label_error(states, labels, choice)
    scores = network.label_head(states)
    parts = [
        torch.nn.functional.cross_entropy(
            scores[k][labels[k] >= 0][:, choice[k]], labels[k][labels[k] >= 0] - 2 * k, reduction="sum"
        )
        for k in (0, 1)
    ]
    torch.testing.assert_close(error, sum(parts) / 6)
    assert network.label_error(states, torch.full((2, 5), -1), choice).item() == 0


def test_a_network_starts_from_another_gene_by_gene():
    old, new = GeneMAE(SMALL, 6), GeneMAE(SMALL, 4, n_labels=2)
    rows = torch.tensor([5, -1, 0, 2])
    new.start_from(old, rows)
    torch.testing.assert_close(new.gene_in[[0, 2, 3]], old.gene_in[[5, 0, 2]])
    assert not new.gene_in[1].any()
    assert not new.gene_out[1].any()
    torch.testing.assert_close(new.bridge.weight, old.bridge.weight)


def test_an_anchor_holds_the_states_that_it_gives_when_nothing_is_hidden():
    network, anchor, batch = make_network(), make_network(), make_batch()
    anchor.bridge.weight.data.mul_(2)
    hidden = draw_hidden(batch["present"], batch["channel_mask"], SMALL, torch.Generator().manual_seed(0))
    real = batch["present"][..., None] & batch["channel_mask"][:, None]
    apart = (network.states(batch, real & ~hidden) - anchor.states(batch, real))[batch["present"]].pow(2).mean()
    added = network(batch, hidden, anchor).loss - network(batch, hidden).loss
    torch.testing.assert_close(added, SMALL.anchor_loss * apart, rtol=1e-3, atol=1e-4)
    none = torch.zeros_like(hidden)
    torch.testing.assert_close(network(batch, none, network).loss, network(batch, none).loss)


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="multiple of 4 x `heads`"):
        Config(dim=30, heads=4)
    with pytest.raises(ValueError, match="site_ratio"):
        Config(site_ratio=1.0)
    with pytest.raises(ValueError, match="program_loss"):
        Config(n_programs=0)
    with pytest.raises(ValueError, match="Unknown `config` 'huge'"):
        get_config("huge")
    with pytest.raises(ValueError, match="Unknown configuration fields"):
        Config.from_dict({"width": 3})
    assert Config.from_dict(CONFIGS["paper"].to_dict()) == CONFIGS["paper"]
