"""Seconds and peak memory from file to domains as slides grow, beside other methods on the same files.

    python benchmarks/scale.py [--sizes 1000 10000 100000 1000000] [--folder /tmp/stimg-scale] [--threads 2]
                               [--peers peers/bin/python --peer-sizes 1000 10000 --limit 1200]

Slides are `stimg.datasets.synthetic("visium_hd", path=...)` with 18,000 genes and 200 non-zeros an observation, rows in
random order; they are made once. Their genes are called by names that `stimg-tiny` knows. Every size, and every peer,
is a process of its own that reads the file: stimg backed, peers into memory, as they need it. Peak memory is the
resident set's, including what is mapped of the files. Peers come from `benchmarks/peers/`, up to embedding and own
labels; one that takes longer than `--limit` seconds, or is killed for want of memory, is not run on larger slides.

With $STIMG_DATA_DIR also a real Visium slide (dlpfc/151673, 3,639 spots), from starting Python to domains.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
STEPS = ("lattice", "selection", "embed", "domains")
N_GENES, DEPTH, N_DOMAINS = 18_000, 220, 5
VISIUM = "dlpfc/151673"
PEERS = ("GraphST", "SpaGCN", "BANKSY 0.2", "CellCharter")


def run_one(path: Path) -> None:
    """Run every step on one file in this process; print seconds and peak memory of each as JSON."""
    started = time.perf_counter()
    import anndata

    import stimg

    synthetic = path.parts[-2:] != tuple((VISIUM + ".h5ad").split("/"))
    slide = anndata.read_h5ad(path, backed="r" if synthetic else None)
    if synthetic:
        known = stimg.models.load("stimg-tiny").genes[: slide.n_vars].tolist()
        slide.var_names = known + [f"unknown{i}" for i in range(slide.n_vars - len(known))]
    found = {"n_obs": slide.n_obs}
    calls = {
        "lattice": lambda: stimg.pp.to_lattice(slide),
        "selection": lambda: stimg.pp.select_genes(slide),
        "embed": lambda: stimg.tl.embed(slide),
        "domains": lambda: stimg.tl.domains(slide, slide.obs["domain"].nunique()),
    }
    for step, call in calls.items():
        before = time.perf_counter()
        call()
        found[step] = time.perf_counter() - before
        found[f"{step} GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    truth, labels = slide.obs["domain"], slide.obs["stimg_domain"]
    known = truth.notna().to_numpy()
    scores = stimg.metrics.domain_scores(truth[known].to_numpy(), labels[known].to_numpy())
    print(json.dumps({**found, "ARI": scores["ari"], "total": time.perf_counter() - started}))


def start(command: list[str], threads: int, limit: float | None = None, **environment: str) -> tuple[str, float]:
    """Run a process; return its output, or why there is none, and its seconds."""
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), "STIMG_PROGRESS": "no"} | environment
    before = time.perf_counter()
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"error: stopped after {limit:.0f} s", time.perf_counter() - before
    seconds = time.perf_counter() - before
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1][:120] if done.stderr.strip() else ""
        return f"error: {'killed (memory)' if done.returncode == -9 else reason}", seconds
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "", seconds


def run_peer(python: str, method: str, folder: Path, name: str, threads: int, limit: float) -> dict:
    """Run a peer on one file; seconds are those of the method alone, total those of the process."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.npz"
        command = [python, str(HERE / "peers" / "run.py"), "--one", method, name, "0", str(out)]
        memory = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
        printed, total = start(command, threads, limit, STIMG_DATA_DIR=str(folder), **memory)
        if not out.exists():
            return {"method": method, "error": printed.removeprefix("error: "), "total": total}
        with np.load(out) as found:
            return {"method": method, "seconds": float(found["seconds"]), "GB": float(found["peak_mb"]) / 1024} | {
                "total": total
            }


def slope(sizes: list[float], values: list[float]) -> float:
    """Slope on log-log axes, over sizes of 10,000 and more."""
    large = np.array(sizes) >= 1e4
    if large.sum() < 2:
        return float("nan")
    return float(np.polyfit(np.log(np.array(sizes)[large]), np.log(np.array(values)[large]), 1)[0])


def draw(rows: list[dict], peers: list[dict], path: Path) -> None:
    """Seconds and memory over size, on log-log axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    sizes = [row["n_obs"] for row in rows]
    axes[0].plot(sizes, [sum(row[step] for step in STEPS) for row in rows], "o-", color="#0072B2", label="stimg")
    axes[1].plot(sizes, [row["domains GB"] for row in rows], "o-", color="#0072B2", label="stimg")
    colours = dict(zip(PEERS, ("#D55E00", "#009E73", "#CC79A7", "#E69F00"), strict=True))
    for method in PEERS:
        mine = [peer for peer in peers if peer["method"] == method and "seconds" in peer and peer["n_obs"] >= 1000]
        mine = [peer for peer in mine if peer["slide"] != VISIUM]
        if mine:
            where = [peer["n_obs"] for peer in mine]
            label = f"{method} (no more than {max(where):,})"
            axes[0].plot(where, [peer["seconds"] for peer in mine], "s--", color=colours[method], label=label)
            axes[1].plot(where, [peer["GB"] for peer in mine], "s--", color=colours[method], label=method)
    for ax, name in zip(axes, ("seconds", "peak memory, GB"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="observations", ylabel=name)
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].set_yticks([0.5, 1, 2, 5, 10, 20], labels=["0.5", "1", "2", "5", "10", "20"])
    axes[1].minorticks_off()
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Make the slides, run everything, write JSON, figure and table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=lambda text: int(float(text)), nargs="+", default=[1000, 10**4, 10**5, 10**6])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "stimg-scale")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", help="python of the peers' environment")
    parser.add_argument("--peer-sizes", type=lambda text: int(float(text)), nargs="+", default=[1000, 10**4])
    parser.add_argument("--methods", nargs="+", default=PEERS)
    parser.add_argument(
        "--update",
        action="store_true",
        help="keep the results that are not run again: of peers without --peers, of stimg with it",
    )
    parser.add_argument("--limit", type=float, default=1200)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scale")
    parser.add_argument("--one", type=Path)
    args = parser.parse_args()
    if args.one:
        run_one(args.one)
        return
    import torch

    import stimg

    args.folder.mkdir(parents=True, exist_ok=True)
    for size in sorted({*args.sizes, *(args.peer_sizes if args.peers else [])}):
        if not (args.folder / f"{size}.h5ad").exists():
            path = args.folder / f"{size}.h5ad"
            stimg.datasets.synthetic("visium_hd", n_obs=size, n_genes=N_GENES, depth=DEPTH, path=path).file.close()
    real = Path(os.environ["STIMG_DATA_DIR"]) if "STIMG_DATA_DIR" in os.environ else None
    content: dict = {"peers": []}
    if args.update:
        content = json.loads(args.out.with_suffix(".json").read_text())
    if not (args.update and args.peers):
        files = [args.folder / f"{size}.h5ad" for size in args.sizes] + ([real / f"{VISIUM}.h5ad"] if real else [])
        content["stimg"] = [run_stimg(path, real, args.threads) for path in files]
        content["about"] = f"{args.threads} threads, stimg {stimg.__version__}, torch {torch.__version__}"
    methods = args.methods if args.peers else []
    content["peers"] = [peer for peer in content["peers"] if peer["method"] not in methods]
    for method in methods:
        jobs = [(args.folder, str(size), size, "synthetic") for size in args.peer_sizes]
        for folder, name, size, slide in ([(real, VISIUM, 3639, VISIUM)] if real else []) + jobs:
            found = run_peer(args.peers, method, folder, name, args.threads, args.limit)
            content["peers"].append({**found, "n_obs": size, "slide": slide})
            print(content["peers"][-1], flush=True)
            if "error" in found and slide == "synthetic":
                break
    write(content, args.out)


def run_stimg(path: Path, real: Path | None, threads: int) -> dict:
    """Run stimg on one file in a process of its own."""
    printed, total = start([sys.executable, __file__, "--one", str(path)], threads)
    if printed.startswith("error"):
        raise SystemExit(f"{path}: {printed}")
    slide = VISIUM if real and path.is_relative_to(real) else "synthetic"
    found = {**json.loads(printed), "slide": slide, "process": total}
    print(found, flush=True)
    return found


def write(content: dict, out: Path) -> None:
    """Write JSON, figure and table."""
    rows, peers = content["stimg"], content["peers"]
    grown = [row for row in rows if row["slide"] == "synthetic"]
    sizes = [row["n_obs"] for row in grown]
    content["slopes"] = {step: slope(sizes, [row[step] for row in grown]) for step in STEPS}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    draw(grown, peers, out.with_suffix(".png"))
    table = pd.DataFrame(
        [
            {
                "observations": f"{row['n_obs']:,}{' (Visium)' if row['slide'] == VISIUM else ''}",
                **{f"{step}, s": round(row[step], 1) for step in STEPS},
                "embed, ms an observation": round(1000 * row["embed"] / row["n_obs"], 3),
                "whole process, s": round(row["process"], 1),
                "peak GB to embed": round(row["embed GB"], 2),
                "peak GB to domains": round(row["domains GB"], 2),
                "ARI": round(row["ARI"], 3),
            }
            for row in rows
        ]
    )
    text = f"# Scale\n\n`python benchmarks/scale.py` ({content['about']}), {N_GENES:,} genes; Visium: {VISIUM}\n\n"
    text += table.to_markdown(index=False) + "\n\nSlope on log-log axes from 10,000 observations: "
    text += ", ".join(f"{step} {value:.2f}" for step, value in content["slopes"].items()) + "\n"
    if peers:
        frame = pd.DataFrame(peers).reindex(columns=["method", "slide", "n_obs", "seconds", "total", "GB", "error"])
        text += "\nOther methods; `seconds` to the embedding, `total` of the process with own labels.\n\n"
        text += frame.round(2).fillna("").to_markdown(index=False) + "\n"
    text += "\nFigure: seconds of stimg are from file to domains, of the others from data in memory to embedding.\n"
    text += "On more observations than the legend says, a method ran out of memory or was stopped.\n"
    text += f"\n![Seconds and memory over observations]({out.name}.png)\n"
    out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
