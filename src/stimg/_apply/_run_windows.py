"""Apply a trained network to a whole slide: run it on overlapping windows, and average."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stimg._input._threads import threads_apart
from stimg._slide._windows import crop, window_starts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch
    from distributed import Client

    from stimg._slide._slide import Slide
    from stimg.models import Model

Readout = Literal["encoder", "decoder"]
Batch = tuple["torch.Tensor", tuple[Any, ...]]  # the sites of a batch of windows, and what its task is given
VALUES_A_BATCH = 2**20
VALUES_ON_CPU = 2**18  # fits the caches: a tenth faster than four times as many


def check_stride(model: Model, stride: int | None) -> None:
    """Refuse windows that are further apart than they are wide, since they would leave sites out."""
    size = int(model.card["size"])
    if stride is not None and model.card["unit"] != "slide" and stride > size:
        msg = f"Expected `stride` to be at most {size}, the width of the model's windows in sites, found {stride}."
        raise ValueError(msg)


def run_windows(
    model: Model,
    slide: Slide,
    tokens: np.ndarray,
    *,
    readout: Readout = "encoder",
    visible: np.ndarray | None = None,
    stride: int | None = None,
    symmetric: bool = True,
    batch_size: int | None = None,
    device: str = "cpu",
    client: Client | None = None,
) -> np.ndarray:
    """Return the states of a slide's sites, averaged over overlapping windows with more weight on their centres.

    They are float32 (n_sites, d): of the `"encoder"` for the sites that are `visible` to it, bool (n_sites,), all by
    default; or of the `"decoder"`, from which genes are predicted, for hidden sites too. `stride` is the number of
    sites between windows, and `symmetric` averages over the symmetries of the lattice. By default a batch is small on
    the CPU, and elsewhere keeps activations near 100 MB. A dask `client` runs batches on its cluster; they are added up
    in the same order.
    """
    import torch

    shown = torch.ones(slide.n_sites, dtype=torch.bool) if visible is None else torch.from_numpy(visible)
    table = torch.from_numpy(tokens)
    layout: dict[str, Any] = {"stride": stride, "symmetric": symmetric, "batch_size": batch_size}
    layout["values"] = VALUES_ON_CPU if device == "cpu" and client is None else VALUES_A_BATCH

    def batches() -> Iterator[Batch]:
        for sites, places in window_batches(model, slide, **layout):
            index = sites.clamp(min=0)
            yield sites, (table[index], places, sites >= 0, shown[index], readout, device)

    total = torch.zeros(slide.n_sites, model.config.dim)
    weights = torch.zeros(slide.n_sites)
    try:
        for sites, states in _results(_window_states, model.network, batches(), client, device):
            present = sites >= 0
            flat, share = sites[present], centre_weights(sites)[present]
            total.index_add_(0, flat, states[present] * share[:, None])
            weights.index_add_(0, flat, share)
    finally:
        model.network.cpu()
    return (total / weights[:, None]).numpy()


def token_gradients(
    model: Model,
    slide: Slide,
    tokens: np.ndarray,
    targets: np.ndarray,
    *,
    readout: Readout = "encoder",
    stride: int | None = None,
    symmetric: bool = True,
    batch_size: int | None = None,
    device: str = "cpu",
) -> np.ndarray:
    """Return how the states of `run_windows`, each times its target and added up, change with the sites' tokens.

    Targets are float32 (n_targets, n_sites, d), and so are the gradients. The average over windows is linear, so that
    each batch goes back through the network by itself, once for every target.
    """
    import torch

    layout: dict[str, Any] = {"stride": stride, "symmetric": symmetric, "batch_size": batch_size}
    layout["values"] = VALUES_ON_CPU if device == "cpu" else VALUES_A_BATCH
    with torch.inference_mode(False):
        table, wanted = torch.from_numpy(tokens), torch.from_numpy(targets)
        weights = torch.zeros(slide.n_sites)
        for sites, _ in window_batches(model, slide, **layout):
            weights.index_add_(0, sites[sites >= 0], centre_weights(sites)[sites >= 0])

        def batches() -> Iterator[Batch]:
            for sites, places in window_batches(model, slide, **layout):
                index, present = sites.clamp(min=0), sites >= 0
                share = (centre_weights(sites) / weights[index]).masked_fill(~present, 0)
                yield sites, (table[index], places, present, wanted[:, index] * share[..., None], readout, device)

        total = torch.zeros_like(wanted)
        try:
            for sites, gradients in _results(_window_gradients, model.network, batches(), None, device):
                total.index_add_(1, sites[sites >= 0], gradients[:, sites >= 0])
        finally:
            model.network.cpu()
    return total.numpy()


def window_batches(
    model: Model, slide: Slide, *, stride: int | None, symmetric: bool, batch_size: int | None, values: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the sites, int64 (batch, sites), -1 for none, and their positions in the windows that cover a slide.

    By default a batch has about as many `values` of states.
    """
    import torch

    unit, size = model.card["unit"], int(model.card["size"])
    if unit == "slide":
        size = max(slide.grid.shape)
    stride = usual_stride(size, symmetric=symmetric) if stride is None else stride
    batch_size = batch_size or max(1, values // (size**2 * model.config.dim))
    for turned in slide.symmetries() if symmetric and size > 1 else (slide,):
        corners = turned.sites if size == 1 else window_starts(turned.grid, size, stride)
        places = torch.from_numpy(turned.positions())
        windows = np.stack([crop(turned.grid, corner, size).ravel() for corner in corners])
        fullest = np.argsort(-(windows >= 0).sum(1), kind="stable")  # a batch costs what its fullest window does
        for start in range(0, len(windows), batch_size):
            sites = torch.from_numpy(windows[fullest[start : start + batch_size]]).long()
            yield sites, places[sites.clamp(min=0)]


def _results(
    run: Callable[..., torch.Tensor], network: Any, batches: Iterable[Batch], client: Client | None, device: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each batch's sites and results in order, computed on a GPU, on several CPU threads, or on a cluster.

    Every task on a cluster holds what it needs or depends on a task that does, so that the scheduler can repeat what a
    lost worker had computed.
    """
    if client is not None:
        remote = client.submit(_keep, network.without_genes(), pure=False)
        submit = partial(client.submit, _run_on_worker, run, remote, pure=False)
        yield from _ahead(submit, batches, 2 * max(sum(client.nthreads().values()), 1))
    elif device == "cpu":
        with threads_apart() as number, ThreadPoolExecutor(number) as pool:
            yield from _ahead(lambda *args: pool.submit(run, network, *args), batches, 2 * number)
    else:
        network.to(device)
        for sites, arguments in batches:
            yield sites, run(network, *arguments)


def _ahead(
    submit: Callable[..., Any], batches: Iterable[Batch], most: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield results in order while up to `most` further batches are computed."""
    running: deque[tuple[torch.Tensor, Any]] = deque()
    for sites, arguments in batches:
        running.append((sites, submit(*arguments)))
        if len(running) > most:
            first, future = running.popleft()
            yield first, future.result()
    while running:
        first, future = running.popleft()
        yield first, future.result()


def _keep(network: Any) -> Any:
    return network


def _run_on_worker(run: Callable[..., torch.Tensor], network: Any, *arguments: Any) -> torch.Tensor:
    """Run one batch in a worker."""
    return run(network.to(arguments[-1]), *arguments)


def usual_stride(size: int, *, symmetric: bool) -> int:
    """Return half a window; or three quarters if flips shift the windows anyway (as good, in half the time)."""
    return max(1, size * 3 // 4 if symmetric else size // 2)


def _window_states(
    network: Any,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    present: torch.Tensor,
    shown: torch.Tensor,
    readout: Readout,
    device: str,
) -> torch.Tensor:
    """Return the states (batch, sites, dim) of a batch of windows, with positions relative to each one's corner."""
    import torch

    with torch.inference_mode():
        tokens, positions, present, shown = (part.to(device) for part in (tokens, positions, present, shown))
        return _forward(network, tokens, positions, present, shown, readout).float().cpu()


def _window_gradients(
    network: Any,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    present: torch.Tensor,
    targets: torch.Tensor,
    readout: Readout,
    device: str,
) -> torch.Tensor:
    """Return the gradients (targets, batch, sites, dim) of a batch's states times each target, by its tokens."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        tokens, positions, present, targets = (part.to(device) for part in (tokens, positions, present, targets))
        tokens = tokens.detach().requires_grad_()
        states = _forward(network, tokens, positions, present, present, readout)
        last = len(targets) - 1  # only the tokens' gradients are computed, and none is left at the network's weights
        found = [
            torch.autograd.grad(states, tokens, target.to(states.dtype), retain_graph=number < last)[0]
            for number, target in enumerate(targets)
        ]
        return torch.stack(found).float().cpu()


def _forward(
    network: Any,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    present: torch.Tensor,
    shown: torch.Tensor,
    readout: Readout,
) -> torch.Tensor:
    positions = positions - positions.masked_fill(~present[..., None], np.inf).amin(1, keepdim=True)
    visible = present & shown
    states = network.encode(tokens, positions, visible)
    return network.decode(states, positions, present, visible) if readout == "decoder" else states


def centre_weights(sites: torch.Tensor) -> torch.Tensor:
    """Return separable triangular weights of the sites of square windows, float32 like `sites`, positive everywhere."""
    import torch

    size = math.isqrt(sites.shape[1])
    ramp = 1 - np.abs(2 * np.arange(size) + 1 - size) / (size + 1)
    return torch.from_numpy(np.outer(ramp, ramp).ravel().astype(np.float32)).expand_as(sites)
