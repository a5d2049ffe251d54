"""Reading STimage-1K4M's layout: seconds and memory.

    python benchmarks/collection.py

One Visium slide of the collection's median size (2,261 spots) with 33,000 genes, 8 % of the counts not zero, as dense
CSV; read from CSV, and again from the cache. And `stimg.pp.to_patches` of a miniature collection of 5 and of 50 slides
(64 spots, 2,000 genes): memory of the process's own (RssAnon, without pages of files that the system may drop) after
all slides are prepared and 200 patches were cropped. Each in a process of its own; peak is its high-water mark with
Python and libraries.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import stimg

SPOTS, GENES, SHARE = 2261, 33_000, 0.08
NAME = "Human_Synthetic_0001_Visium"


def memory(field: str) -> float:
    """Megabytes of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def one(job: str, folder: Path) -> None:
    """Do one job and print seconds, peak and own megabytes, and a count."""
    started = time.perf_counter()
    if job.startswith("read"):
        slide = stimg.datasets.stimage_1k4m(root=folder / "large").read(NAME)
        number = slide.X.nnz
    elif job == "nothing":
        number = 0
    else:
        collection = stimg.datasets.stimage_1k4m(root=folder / "many")
        collection = collection.filter(collection.names[: int(job.split()[0])])
        patches = stimg.pp.to_patches(collection, size=4, n_channels=128)
        order = np.random.default_rng(0).permutation(len(patches))[:200]
        number = sum(int(patches[int(i)]["present"].sum()) for i in order)
    print(time.perf_counter() - started, memory("VmHWM"), memory("RssAnon"), number)


def large_slide(root: Path) -> None:
    """Write a miniature whose Visium slide is of real size."""
    stimg.datasets.synthetic_1k4m(root, n_slides=2, n_rows=4)
    rng = np.random.default_rng(0)
    header = "," + ",".join(f"GENE{i}" for i in range(GENES)) + "\n"
    names = [f"{NAME}_{i:016d}-1" for i in range(SPOTS)]
    with (root / "Visium" / "gene_exp" / f"{NAME}_count.csv").open("w") as file:
        file.write(header)
        for name in names:
            counts = np.where(rng.random(GENES) < SHARE, 1 + rng.poisson(2, GENES), 0)
            file.write(f"{name},{','.join(map(str, counts))}\n")
    places = pd.DataFrame({"yaxis": np.arange(SPOTS), "xaxis": np.arange(SPOTS) % 50, "r": 50.0}, index=names)
    places.to_csv(root / "Visium" / "coord" / f"{NAME}_coord.csv")


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/collection.md"))
    args = parser.parse_args()
    if args.one:
        with stimg.settings.override(cachedir=Path(args.one[1]) / "cache", progress=False, verbosity="error"):
            one(args.one[0], Path(args.one[1]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        large_slide(Path(name) / "large")
        stimg.datasets.synthetic_1k4m(Path(name) / "many", n_slides=50, n_rows=8, n_genes=2000)
        for job in ("nothing", "read from CSV", "read from the cache", "5 slides", "50 slides"):
            command = [sys.executable, __file__, "--one", job, name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds, peak, own, _ = map(float, done.stdout.split()[-4:])
            rows.append({"job": job, "seconds": seconds, "peak MB": round(peak), "own MB": round(own)})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).round(2)
    text = f"# Reading a collection\n\n`python benchmarks/collection.py` (stimg {stimg.__version__})\n\n"
    args.out.write_text(text + __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
