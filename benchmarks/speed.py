"""Seconds and memory of embedding and of training on a 3,600-spot Visium slide, beside the bare network.

    STIMG_DATA_DIR=../shared/data python benchmarks/speed.py [--out benchmarks/results/speed.md]

Runs in a process of its own so that peak memory is that of embedding. "Bare network" passes the same windows, already
in memory as tensors, of the slide and its flips, through the encoder and the decoder's blocks: what `tl.embed` reads
out. The rest of `tl.embed` is reading the slide, the tokens, gathering and averaging, and the slide's own components;
the weights are in memory. Both run in turn, and the share is the median of that of each turn. It is also that of 50,000
synthetic bins, where what a slide costs once is spread over more windows. "Bare loop" takes the same optimiser steps
(masks, forward, backward, clipping, AdamW) on batches that are in memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning import Callback
from torch.utils.data import DataLoader

import stimg
from stimg._apply._components import local_components
from stimg._apply._run_windows import VALUES_ON_CPU, usual_stride
from stimg._apply._tokens import match_slides, site_tokens
from stimg._slide._windows import crop, window_starts

REPEATS = 15
STEPS, WARM_UP = 60, 10
MANY = 50_000


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def embedding_seconds(model: stimg.models.Model, section, repeats: int) -> pd.DataFrame:
    """Seconds of `tl.embed` and of encoder and decoder on all windows, gathered beforehand; in turn, a row a repeat."""
    matched, _ = match_slides(section, model, layer=None, scale=None, lattice_key="lattice")
    slide, vocabulary = matched[0]
    tokens, size = torch.from_numpy(site_tokens(model, slide, vocabulary)), model.card["size"]
    batch = max(1, VALUES_ON_CPU // (size**2 * model.config.dim))
    batches, rows = [], []
    for turned in slide.symmetries():
        positions = torch.from_numpy(turned.positions())
        corners = window_starts(turned.grid, size, usual_stride(size, symmetric=True))
        sites = torch.from_numpy(np.stack([crop(turned.grid, c, size).ravel() for c in corners])).long()
        batches += [(tokens[s.clamp(min=0)], positions[s.clamp(min=0)], s >= 0) for s in sites.split(batch)]
    for _ in range(repeats):
        started = time.perf_counter()
        stimg.tl.embed(section, model, device="cpu")
        between = time.perf_counter()
        with torch.inference_mode():
            for values, places, present in batches:
                encoded = model.network.encode(values, places, present)
                model.network.decode(encoded, places, present, present)
        rows.append({"embed": between - started, "bare": time.perf_counter() - between})
    return pd.DataFrame(rows)


def component_seconds(model: stimg.models.Model, section) -> float:
    """Median time of the slide's own components, each time of a slide read anew, as `tl.embed` does."""
    times = []
    for _ in range(REPEATS):
        slides = [slide for slide, _ in match_slides(section, model, layer=None, scale=None, lattice_key="lattice")[0]]
        started = time.perf_counter()
        local_components(slides)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


class StepClock(Callback):
    """Time at the end of every training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.times.append(time.perf_counter())


def training_seconds(patches: stimg.pp.PatchDataset) -> tuple[float, float]:
    """Median seconds of a step of `tl.pretrain`, and of a bare loop on batches in memory."""
    from stimg.nn import draw_hidden

    clock = StepClock()
    model = stimg.tl.pretrain(patches, "tiny", max_steps=STEPS, val_fraction=0, device="cpu", callbacks=[clock])
    ours = float(np.median(np.diff(clock.times[WARM_UP:])))
    network, config = model.network.train(), model.config
    loader = DataLoader(patches.with_scaling(config.scaling), config.batch_size, shuffle=True)
    batches = [batch for batch, _ in zip(loader, range(WARM_UP), strict=False)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    times = []
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        hidden = draw_hidden(batch["present"], batch["channel_mask"], config, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(batch, hidden).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter())
    return ours, float(np.median(np.diff(times[WARM_UP:])))


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.md"))
    args = parser.parse_args()
    section = stimg.datasets.dlpfc("151673")
    stimg.pp.to_lattice(section)
    stimg.pp.select_genes(section, n_genes=2000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.safetensors"
        stimg.tl.pretrain(stimg.pp.to_patches(section), "tiny", max_epochs=1, max_steps=2, val_fraction=0).save(path)
        before = peak_mb()
        reading = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            model = stimg.models.load(path)
            reading.append(time.perf_counter() - started)
    stimg.tl.embed(section, model, device="cpu")
    peak = peak_mb()
    one, components = embedding_seconds(model, section, REPEATS), component_seconds(model, section)
    step, bare_step = training_seconds(stimg.pp.to_patches(section))
    many = stimg.datasets.synthetic("visium_hd", n_obs=MANY, n_genes=2000, depth=250)
    known = stimg.models.load("stimg-tiny")
    many.var_names = known.genes[: many.n_vars]
    stimg.pp.to_lattice(many)
    large = embedding_seconds(known, many, 1)
    table = pd.DataFrame(
        [
            {"what": "reading the weights from a file, median s", "value": np.median(reading)},
            {"what": "tl.embed, median s", "value": one["embed"].median()},
            {"what": "of it the slide's own components, median s", "value": components},
            {"what": "bare network, median s", "value": one["bare"].median()},
            {"what": "share of the bare network's throughput, median", "value": (one["bare"] / one["embed"]).median()},
            {"what": "lowest and", "value": (one["bare"] / one["embed"]).min()},
            {"what": "highest of the repeats", "value": (one["bare"] / one["embed"]).max()},
            {"what": f"tl.embed of {MANY:,} synthetic bins, s", "value": large["embed"].median()},
            {"what": f"bare network on {MANY:,} bins, s", "value": large["bare"].median()},
            {
                "what": f"share of the bare network's throughput, {MANY:,} bins",
                "value": (large["bare"] / large["embed"]).median(),
            },
            {"what": "step of tl.pretrain, median s", "value": step},
            {"what": "step of the bare loop, median s", "value": bare_step},
            {"what": "training, share of the bare loop's throughput", "value": bare_step / step},
            {"what": "peak MB of the whole process", "value": peak},
            {"what": "of it reached before the first embedding (training included), MB", "value": before},
        ]
    )
    text = f"# Speed of embedding and training, {section.n_obs:,} spots, {torch.get_num_threads()} threads\n\n"
    text += f"`python benchmarks/speed.py` (stimg {stimg.__version__}, torch {torch.__version__})\n\n"
    args.out.write_text(text + table.round(3).to_markdown(index=False) + "\n")
    print(table)


if __name__ == "__main__":
    main()
