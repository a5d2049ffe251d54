"""Put trained weights into the package, as float16, with what was measured on their card.

    python benchmarks/pretrain/bundle.py benchmarks/weights/tiny-all.safetensors stimg-tiny --judged stimg

The figures are those of the weights `--judged` in `benchmarks/results/pretrained.json`: trained in the same way, but
without the slides that they are judged on.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path

from stimg.models import Model

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "src" / "stimg" / "models"
KEPT = ("ari", "nmi", "accuracy", "blocked k-NN")


def main() -> None:
    """Write the weights and their entry in the registry."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("name")
    parser.add_argument("--judged", required=True)
    args = parser.parse_args()
    rows = json.loads((HERE.parent / "results" / "pretrained.json").read_text())
    quality = {row["slide"]: {key: row[key] for key in KEPT} for row in rows if row["method"] == args.judged}
    entries = {entry["file"]: entry for entry in tomllib.loads((HERE / "slides.toml").read_text())["slide"]}
    model = Model.load(args.weights)
    labelled = sorted(file for file in model.card["slides"] if entries[file].get("labels"))
    model.card |= {
        "name": args.name,
        "tissues": sorted({entries[file]["tissue"] for file in model.card["slides"]}),
        "slides_with_labels": labelled,
        "genes": "symbols; mouse genes by their one-to-one human orthologs (Ensembl)",
        "pitch": "40 to 200 micrometres between spots, or the median distance between cells",
        "licence": "BSD-3-Clause, as stimg; training slides: those of their publishers, some none stated",
        "measured": {
            "what": "domains without training on the slide, by weights trained in the same way without these slides",
            "slides": quality,
        },
    }
    file = PACKAGE / f"{args.name}.safetensors"
    model.save(file, overwrite=True, half=True)
    registry = PACKAGE / "weights.json"
    known = json.loads(registry.read_text())
    parts = (
        f"{model.n_parameters / 1e6:.1f} M parameters, {len(model.genes):,} genes, {len(model.card['slides'])} slides"
    )
    known[args.name] = {"file": file.name, "sha256": model.sha256, "description": f"{parts}, human and mouse"}
    registry.write_text(json.dumps(known, indent=2) + "\n")
    print(known[args.name], f"{file.stat().st_size / 2**20:.1f} MiB", quality["mean"])


if __name__ == "__main__":
    main()
