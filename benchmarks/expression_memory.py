"""Memory and time of predicting a slide of 20,000 x 20,000 pixels.

    python benchmarks/expression_memory.py [--side 20000]

The image (synthetic histology, repeated) is made at 0.5 um a pixel as a tiled pyramidal TIFF: 10 mm of tissue on each
side. (A JPEG of that size is refused, with the advice to save it as a tiled TIFF, since it cannot be read in parts.)
The model (250 genes, bundled encoder) reads at 2 um a pixel. In a process of its own: a grid of spots of 100 um over
all tissue (`stimg.pp.image_grid`), prediction of all genes for every spot, and the dense map of four genes at 8 um,
written to disk (`map_path`). Peak memory is that of the whole process, Python and its libraries included; of it the
first row is what importing and loading the model take.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

import stimg

MPP = 0.5
ENLARGE = 4  # the synthetic image has 2 um a pixel


def make_files(folder: Path, side: int) -> None:
    """Write the model, the pyramid and the JPEG."""
    import numpy as np
    import tifffile

    slide = stimg.datasets.synthetic_histology(n_genes=250)
    stimg.pp.to_lattice(slide, platform="st")
    patches = stimg.pp.to_image_patches(slide)
    stimg.tl.train_expression(patches, max_steps=2, val_fraction=0).save(folder / "model.safetensors")
    unit = slide.uns["spatial"]["histology"]["images"]["hires"]
    repeats = -(-side // (ENLARGE * len(unit)))
    levels = [np.tile(unit, (repeats, repeats, 1))]
    level = np.kron(levels[0], np.ones((ENLARGE, ENLARGE, 1), dtype=np.uint8))[:side, :side]
    options = {"tile": (512, 512), "photometric": "rgb", "compression": "zlib", "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(folder / "slide.tiff", bigtiff=True) as writer:
        for i in range(4):
            part = np.ascontiguousarray(level[:: 2**i, :: 2**i])
            per_cm = 1e4 / (MPP * 2**i)
            extra = {"subifds": 3} if i == 0 else {"subfiletype": 1}
            writer.write(part, resolution=(per_cm, per_cm), **options, **extra)


def predict(folder: Path, name: str) -> None:
    """Predict one file and print seconds, megabytes, spots and pixels of the map."""
    model = stimg.models.ExpressionModel.load(folder / "model.safetensors")
    n_spots = n_pixels = 0
    started = time.perf_counter()
    if name != "nothing":
        grid = stimg.pp.image_grid(folder / name, model.genes, image_mpp=MPP)
        where = folder / f"{name}.zarr"
        stimg.tl.predict_expression(grid, model, dense=list(model.genes[:4]), map_path=where, symmetric=False)
        import zarr

        n_spots, n_pixels = grid.n_obs, zarr.open_array(where, mode="r").size // 4
    seconds = time.perf_counter() - started
    # The high-water mark of this program alone; `resource.ru_maxrss` begins with that of the parent process.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(seconds, peak, n_spots, n_pixels)


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/expression_memory.md"))
    args = parser.parse_args()
    if args.one:
        predict(Path(args.one[0]), args.one[1])
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name), args.side)
        for source in ("nothing", "slide.tiff"):
            command = [sys.executable, __file__, "--one", name, source]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds, megabytes, spots, pixels = map(float, done.stdout.split()[-4:])
            rows.append({"image": source, "seconds": seconds, "peak MB": megabytes, "spots": spots, "map": pixels})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).round(0).astype({"spots": int, "map": int})
    command = f"python benchmarks/expression_memory.py --side {args.side}"
    text = f"# Memory of prediction from H&E\n\n`{command}` (stimg {stimg.__version__})\n\n"
    args.out.write_text(text + __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
