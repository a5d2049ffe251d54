"""Seconds of `tl.embed` and `tl.domains` with the threads that BLAS and OpenMP take by themselves, and with one.

    STIMG_DATA_DIR=../shared/data python benchmarks/threads.py [--out benchmarks/results/threads.md]

Each figure is the least of several calls in a process of its own, after one call that loads everything. Both settings
run in turn, on an otherwise idle machine and beside processes that keep one core busy. "file to domains" is a whole
process: imports, reading the slide, lattice, embedding and domains, with the environment as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

SLIDE, N_DOMAINS = "dlpfc/151673", 7
TURNS, CALLS = 3, 3

CALLS_CODE = """
import json, sys, time
import anndata as ad, stimg
slide = ad.read_h5ad(sys.argv[1])
stimg.settings.progress = False
stimg.pp.to_lattice(slide)
embed, domains = stimg.tl.embed, stimg.tl.domains
steps = {"embed": lambda: embed(slide, device="cpu"), "domains": lambda: domains(slide, int(sys.argv[2]))}
found = {}
for name, step in steps.items():
    step()
    seconds = []
    for _ in range(int(sys.argv[3])):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    found[name] = min(seconds)
print(json.dumps(found))
"""
WHOLE_CODE = """
import sys
import scanpy as sc, stimg
slide = sc.read_h5ad(sys.argv[1])
stimg.settings.progress = False
stimg.pp.to_lattice(slide)
stimg.tl.embed(slide)
stimg.tl.domains(slide, n_domains=int(sys.argv[2]))
"""


def environment(threads: int | None) -> dict[str, str]:
    """This environment with so many threads, or with none named."""
    rest = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    return rest if threads is None else {**rest, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}


@contextmanager
def busy(number: int):
    """Keep so many cores busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for one in others:
            one.kill()


def main() -> None:
    """Measure and lay out the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    path = str(Path(os.environ["STIMG_DATA_DIR"]) / f"{SLIDE}.h5ad")
    rows = []
    for n_busy in (0, 1):
        for turn in range(TURNS):
            for threads in (None, 1):
                with busy(n_busy):
                    command = [sys.executable, "-c", CALLS_CODE, path, str(N_DOMAINS), str(CALLS)]
                    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True, check=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    started = time.perf_counter()
                    command = [sys.executable, "-c", WHOLE_CODE, path, str(N_DOMAINS)]
                    subprocess.run(command, env=environment(threads), capture_output=True, check=True)
                    found["file to domains"] = time.perf_counter() - started
                for step, seconds in found.items():
                    named = "unset" if threads is None else "one thread"
                    rows.append({"step": step, "busy processes": n_busy, "turn": turn, "set": named, "s": seconds})
    table = pd.DataFrame(rows).pivot_table("s", ["step", "busy processes", "turn"], "set")
    table["ratio"] = table["unset"] / table["one thread"]
    table = table.groupby(["step", "busy processes"]).median().round(2).reset_index()
    text = f"# Threads\n\n{__doc__}\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; "
    text += f"{SLIDE}, medians of {TURNS} turns, seconds.\n\n{table.to_markdown(index=False)}\n"
    print(text)
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
