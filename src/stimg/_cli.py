"""The command line: `python -m stimg demo` or `stimg demo`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from stimg import __version__, _keys
from stimg._cluster._colours import MOST_DOMAINS
from stimg._files import written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from stimg.models import Model

logger = logging.getLogger("stimg")

OUTPUTS = {
    "slide": "embedded.h5ad",
    "domains": "domains.png",
    "reconstruction": "reconstruction.png",
    "model": "model.safetensors",
}
LABELS = "domain"
AUTO = "auto"
MOST_DIGITS = 9


class UserError(Exception):
    """A mistake that the user of the command line can correct."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv`, without the program's name; by default on the arguments of this process.

    Returns the exit code: 0 for success, 2 for a mistake in the arguments or in a file given, 1 for any other failure,
    130 after an interruption. No error shows a traceback, unless `$STIMG_VERBOSITY` is "debug".
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as after `| head`
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())  # Python writes what is left when it ends
        return 1


def _run(argv: Sequence[str] | None) -> int:
    """Parse the arguments, and show whatever goes wrong as one line."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
                warnings.simplefilter("ignore", category)  # these warnings are meant for developers
            warnings.showwarning = lambda message, *_: _complain(args, f"warning: {message}")
            _demo(args)
    except KeyboardInterrupt:
        _complain(args, "interrupted")
        return 130
    except BrokenPipeError:
        raise
    except Exception as e:
        logger.debug("Where the error comes from", exc_info=True)
        mistake = isinstance(e, UserError)
        _complain(args, f"error: {_message(e) if mistake else f'{_message(e)} ({type(e).__name__})'}")
        return 2 if mistake else 1
    return 0


def _complain(args: argparse.Namespace, text: str) -> None:
    print(f"stimg {args.command}: {' '.join(text.split())}", file=sys.stderr)


def _message(error: Exception) -> str:
    """Return the words of an error; `str` of a `KeyError` puts them in quotes."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stimg", description="Spatial transcriptomics slides as images.")
    parser.add_argument("--version", action="version", version=f"stimg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train on one slide, embed it, find its domains and plot them",
        description="Train a tiny model on one slide for a minute (or use given weights), embed the slide, find its "
        "domains, denoise its expression, and write the results and figures. Without --slide, it makes a slide.",
    )
    demo.add_argument("--out", type=_path, default=Path("stimg-demo"), metavar="DIR", help="folder for the results")
    demo.add_argument("--force", action="store_true", help="overwrite results that are in that folder")
    demo.add_argument("--slide", type=_path, metavar="FILE", help="an AnnData .h5ad or .zarr, or a SpatialData .zarr")
    demo.add_argument("--table-key", metavar="NAME", help="table of a SpatialData that has more than one")
    demo.add_argument("--layer", metavar="NAME", help="layer with the expression; by default X")
    demo.add_argument("--scale", choices=("counts", "log"), default="counts", help="raw counts (default), or log scale")
    n_domains = f"number of domains, or 'auto'; by default as many as there are in obs['{LABELS}'], otherwise 'auto'"
    demo.add_argument("--n-domains", type=_number_or_auto, metavar="K", help=n_domains)
    weights = "weights to use instead of training: stimg-tiny, or a .safetensors file"
    demo.add_argument("--model", metavar="NAME", help=weights)
    demo.add_argument("--max-epochs", type=_number, default=20, metavar="N", help="epochs of training (default 20)")
    demo.add_argument("--max-seconds", type=_number, default=60, metavar="S", help="limit of training (default 60)")
    demo.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of everything random (default 0)")
    return parser


def _number(text: str, low: int = 1) -> int:
    if not text.strip().isdecimal() or len(text.strip()) > MOST_DIGITS or int(text) < low:
        msg = f"expected a number of at least {low} with at most {MOST_DIGITS} digits, got {text[:50]!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _seed(text: str) -> int:
    return _number(text, 0)


def _number_or_auto(text: str) -> int | str:
    if text != AUTO and _number(text) > MOST_DOMAINS:
        msg = f"expected at most {MOST_DOMAINS}, which is as many as can be drawn, got {text}"
        raise argparse.ArgumentTypeError(msg)
    return text if text == AUTO else _number(text)


def _path(text: str) -> Path:
    if not text.strip():
        msg = "expected a path, got an empty text"
        raise argparse.ArgumentTypeError(msg)
    return Path(os.path.expanduser(text))  # `--out=~/folder` reaches us as it is


@contextmanager
def _errors_of_the_user(
    prefix: str = "", kinds: tuple[type[Exception], ...] = (KeyError, OSError, TypeError, ValueError)
) -> Iterator[None]:
    """Show what stimg raises for a slide or for weights that it cannot use as a mistake of the user."""
    try:
        yield
    except BrokenPipeError:
        raise
    except kinds as e:
        raise UserError(f"{prefix}{_message(e)}") from e


def _demo(args: argparse.Namespace) -> None:
    with ExitStack() as stack:
        with _errors_of_the_user():
            _check_slide(args.slide)
            paths = _claim_outputs(args, stack)
            import matplotlib

            from stimg import models

            model = None if args.model is None else models.load(args.model)
            matplotlib.use("Agg")  # figures go to files, even if there is a display
            slide, origin = _read_slide(args)
            _say("slide", f"{origin}: {slide.n_obs:,} observations x {slide.n_vars:,} genes")
            _prepare(slide, args)
            if model is None:
                model = _train(slide, args)
            _analyse(slide, model, args)
        model.save(paths["model"])
        _plot(slide, paths)
        slide.write_h5ad(paths["slide"])
    _say_next(args.out)


def _check_slide(path: Path | None) -> None:
    if path is not None and path.suffix not in (".h5ad", ".zarr"):
        msg = f"expected a slide that ends in .h5ad or .zarr, got {str(path)!r}. Write it with `adata.write_h5ad`."
        raise UserError(msg)
    if path is not None and not (path.is_file() or path.is_dir()):
        msg = f"no slide at {str(path)!r}. Check the path given with --slide."
        raise UserError(msg)


def _claim_outputs(args: argparse.Namespace, stack: ExitStack) -> dict[str, Path]:
    """Make the folder, and return where to write each result until the stack puts them all in their places.

    Before anything that takes time, this finds out whether the results can be written, and would overwrite anything.
    """
    paths = {key: args.out / name for key, name in OUTPUTS.items()}
    there = [path for path in paths.values() if os.path.lexists(path)]
    if args.slide is not None and any(path.exists() and path.samefile(args.slide) for path in there):
        msg = f"the result would overwrite the slide {str(args.slide)!r}. Give another folder with --out DIR."
        raise UserError(msg)
    if folders := [path for path in there if path.is_dir()]:
        msg = f"{str(folders[0])!r} is a folder. Give another folder for the results with --out DIR."
        raise UserError(msg)
    if there and not args.force:
        msg = f"{str(there[0])!r} exists. Overwrite with --force, or give another folder with --out DIR."
        raise UserError(msg)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        return {key: stack.enter_context(written_whole(path, overwrite=args.force)) for key, path in paths.items()}
    except OSError as e:
        msg = f"cannot write into the folder {str(args.out)!r} ({e.strerror or e}). Give another one with --out DIR."
        raise UserError(msg) from e


def _read_slide(args: argparse.Namespace) -> tuple[AnnData, str]:
    """Return the slide as an AnnData and say where it comes from."""
    import anndata

    path = args.slide
    if path is None:
        from stimg import datasets

        return datasets.synthetic("visium", n_obs=1500, seed=args.seed), "synthetic layered tissue"
    with _errors_of_the_user(f"cannot read {str(path)!r} as a slide: ", (Exception,)):  # readers raise all kinds
        slide = anndata.read_h5ad(path) if path.suffix == ".h5ad" else _read_zarr(path, args.table_key)
    return slide, path.name


def _read_zarr(path: Path, table_key: str | None) -> AnnData:
    """Read an AnnData store, or the table of a SpatialData store with its lattice."""
    import anndata
    import zarr

    attributes = dict(zarr.open_group(path, mode="r").attrs)
    if attributes.get("encoding-type") == "anndata":
        return anndata.read_zarr(path)
    if "spatialdata_attrs" not in attributes:
        msg = "neither an AnnData nor a SpatialData store. Write it with `adata.write_zarr` or `sdata.write`."
        raise ValueError(msg)
    import spatialdata

    from stimg import pp
    from stimg._input._tables import resolve_table

    slide = spatialdata.read_zarr(path)
    table = resolve_table(slide, table_key)
    if _keys.LATTICE not in table.obsm:
        pp.to_lattice(slide, table_key=table_key)
    return table


def _prepare(slide: AnnData, args: argparse.Namespace) -> None:
    from stimg import pp
    from stimg._input._records import read_record

    if not (_keys.LATTICE in slide.obsm and read_record(slide, _keys.STEP_LATTICE)):
        pp.to_lattice(slide)
    lattice = read_record(slide, _keys.STEP_LATTICE)
    _say("lattice", f"{lattice['kind']} ({lattice['platform']})")
    pp.select_genes(slide, n_genes=min(2000, slide.n_vars), layer=args.layer, scale=args.scale)


def _train(slide: AnnData, args: argparse.Namespace) -> Model:
    from lightning.pytorch.callbacks import LambdaCallback

    from stimg import pp, tl

    patches = pp.to_patches(slide, size=16, n_channels=512, rng=args.seed)
    _say("patches", f"{len(patches):,} windows of 16 x 16 sites")
    limits = {"max_epochs": args.max_epochs, "max_time": timedelta(seconds=args.max_seconds)}
    interrupts: list[BaseException] = []
    watch = LambdaCallback(on_exception=lambda _trainer, _module, error: interrupts.append(error))
    model = tl.pretrain(patches, config="tiny", rng=args.seed, callbacks=[watch], **limits)
    if interrupts:  # `pretrain` returns the model so far, but here nobody waits for its results
        raise KeyboardInterrupt
    losses, seconds = model.history["train_loss"].to_numpy(), model.history["seconds"].sum()
    _say("training", f"{len(losses)} epochs in {seconds:.0f} s, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return model


def _analyse(slide: AnnData, model: Model, args: argparse.Namespace) -> None:
    from stimg import metrics, tl

    labels = slide.obs[LABELS] if LABELS in slide.obs and 0 < slide.obs[LABELS].nunique() <= MOST_DOMAINS else None
    n_domains = args.n_domains
    if n_domains is None:
        n_domains = AUTO if labels is None else labels.nunique()
    tl.embed(slide, model, layer=args.layer, scale=args.scale)
    _say("embedding", f"{slide.obsm[_keys.EMBEDDING].shape[1]} numbers per observation, in .obsm[{_keys.EMBEDDING!r}]")
    tl.domains(slide, n_domains, rng=args.seed)
    found = slide.obs[_keys.DOMAIN]
    _say("domains", f"{found.nunique()}, in .obs[{_keys.DOMAIN!r}]")
    if labels is not None:
        scores = metrics.domain_scores(labels, found)
        _say("agreement", f"ARI {scores['ari']:.2f} with .obs[{LABELS!r}] (1 is perfect, 0 is chance)")
    tl.reconstruct(slide, model, layer=args.layer, scale=args.scale)
    n_genes = slide.obsm[_keys.RECONSTRUCTION].shape[1]
    _say("denoised", f"expression of {n_genes:,} genes, in .obsm[{_keys.RECONSTRUCTION!r}]")


def _plot(slide: AnnData, paths: dict[str, Path]) -> None:
    import matplotlib.pyplot as plt
    import numpy as np

    from stimg import pl

    for name, drawn in (("domains", pl.domains(slide)), ("reconstruction", pl.reconstruction(slide))):
        figure = np.ravel(np.asarray(drawn, dtype=object))[0].figure
        figure.savefig(paths[name], dpi=150, bbox_inches="tight")
        plt.close(figure)


def _say(what: str, text: str) -> None:
    print(f"{what:<10} {text}", flush=True)


def _say_next(out: Path) -> None:
    print(f"\nWritten to {out}: {', '.join(OUTPUTS.values())}.\nGo on in Python:\n")
    print(f"    import scanpy as sc, stimg; adata = sc.read_h5ad({str(out / OUTPUTS['slide'])!r})")
    print(f"    sc.pp.neighbors(adata, use_rep={_keys.EMBEDDING!r}); sc.tl.umap(adata)")
    print(f"    sc.pl.umap(adata, color={_keys.DOMAIN!r})")
