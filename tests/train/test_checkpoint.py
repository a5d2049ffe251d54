"""Checkpoints: whose they are, and files that are none, for all three trainings."""

from __future__ import annotations

import io
import pickle
import shutil
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

import stimg
from stimg._train._checkpoint import ENTRY, MARK, read_checkpoint
from stimg._train._fingerprint import differences, digest

SMALL = stimg.nn.Config(dim=16, encoder_layers=1, heads=2, n_programs=4)
LOOKS = stimg.nn.AlignConfig(dim=8, hidden=16, dropout=0.3, batch_size=16)
DENSE = stimg.nn.DenseConfig(dim=8, n_programs=4, batch_size=2, dropout=0.2)


def spots(seed=0):
    slide = stimg.datasets.synthetic("visium", n_obs=300, n_genes=60, seed=seed)
    stimg.pp.to_lattice(slide)
    stimg.pp.select_genes(slide, n_genes=40)
    return stimg.pp.to_patches(slide, size=8, n_channels=24)


def images(seed=0, **changes):
    slide = stimg.datasets.synthetic_histology(n_rows=5, n_cols=5, n_genes=12, seed=seed)
    stimg.pp.to_lattice(slide, platform="st")
    return stimg.pp.to_image_patches(slide, **({"mpp": 8, "size": 64, "n_genes": 8} | changes))


def pretrain(patches=None, config=SMALL, **arguments):
    return stimg.tl.pretrain(spots() if patches is None else patches, config, **({"max_epochs": 3} | arguments))


def train_expression(patches=None, config=DENSE, **arguments):
    patches = images() if patches is None else patches
    return stimg.tl.train_expression(patches, config, **({"max_epochs": 3} | arguments))


def align(patches=None, config=LOOKS, **arguments):
    patches = images() if patches is None else patches
    return stimg.tl.align(patches, config, **({"max_epochs": 3, "crop_size": 64} | arguments))


TRAININGS = [pretrain, train_expression, align]


class Interrupt(lightning.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the checkpoint of a pretraining that was interrupted after its first epoch; do not change it."""
    folder = tmp_path_factory.mktemp("run")
    with stimg.settings.override(progress=False, device="cpu"):
        pretrain(checkpoint_dir=folder, callbacks=[Interrupt(1)])
    return folder / "last.ckpt"


@pytest.fixture
def copied(checkpoint, tmp_path):
    return Path(shutil.copy(checkpoint, tmp_path / "last.ckpt"))


@pytest.mark.parametrize("train", [pretrain, align, pytest.param(train_expression, marks=pytest.mark.slow)])
def test_a_resumed_training_is_one_without_a_break(train, tmp_path):
    whole = train()
    train(checkpoint_dir=tmp_path, callbacks=[Interrupt(1)])
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    resumed = train(checkpoint_dir=tmp_path, resume=tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    assert len(resumed.history) == 3
    again = train(resume=tmp_path / "last.ckpt")  # at its end
    assert torch.equal(next(again.network.parameters()), next(resumed.network.parameters()))


@pytest.mark.parametrize("train", TRAININGS)
def test_a_folder_with_a_checkpoint_is_refused(train, copied, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.fit", None)
    with pytest.raises(FileExistsError, match=r"earlier run. Pass `resume=.*last\.ckpt"):
        train(checkpoint_dir=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(copied, other / "epoch=7.ckpt")
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(FileExistsError, match="earlier run"):
        train(checkpoint_dir=other, resume=tmp_path / "a.ckpt")
    with pytest.raises(NotADirectoryError, match="`checkpoint_dir`"):
        train(checkpoint_dir=tmp_path / "a.ckpt")


@pytest.mark.parametrize("train", TRAININGS)
def test_checkpoints_of_other_trainings_are_refused(train, checkpoint):
    if train is not pretrain:
        with pytest.raises(ValueError, match="of another run. What differs"):
            train(resume=checkpoint)


@pytest.mark.parametrize("train", [train_expression, align])
def test_other_images_and_encoders_are_refused(train, tmp_path):
    train(max_epochs=1, checkpoint_dir=tmp_path)
    last = tmp_path / "last.ckpt"
    same = images()
    for patches, found in (
        (images(seed=1), r"counts of slide 0 \(slide0\).*image of slide 0"),
        (images(mpp=9), r"patches\.mpp \(8\.0 in the checkpoint, 9\.0 now\)"),
        (images(stain_normalise=False), r"patches\.stain_normalise"),
    ):
        with pytest.raises(ValueError, match=found):
            train(patches, resume=last)
    picture = same.slides[0].image.levels[0].copy()
    picture[:, :, 0] //= 2
    other = replace(same.slides[0], image=replace_image(same.slides[0].image, picture))
    with pytest.raises(ValueError, match=r"differs: image of slide 0 \(slide0\)\. Pass"):
        train(replace(same, slides=[other]), resume=last)
    encoder = torch.nn.Conv2d(3, 4, 16, 16)
    with pytest.raises(ValueError, match="encoder .*Conv2d"):
        train(resume=last, encoder=encoder)


def replace_image(image, picture):
    return type(image)([picture], image.mpp, image.name)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda: {"rng": 1}, r"seed \(`rng`\) \(\d+ in the checkpoint, \d+ now\)"),
        (
            lambda: {"config": replace(SMALL, mask="genes")},
            r"Config\.mask \('mixture' in .*, 'genes' now\)",
        ),
        (lambda: {"config": replace(SMALL, learning_rate=1e-4)}, r"Config\.learning_rate"),
        (lambda: {"val_fraction": 0.3}, r"val_fraction \(0\.1 in the checkpoint, 0\.3 now\)"),
        (lambda: {"unit": "spot"}, r"patches\.size"),
        (lambda: {"patches": spots(seed=1)}, r"expressed genes of slide 0 \(slide0\).*expression of slide 0"),
    ],
)
def test_what_differs_is_named(checkpoint, change, found):
    with pytest.raises(ValueError, match=f"of another run. What differs: .*{found}"):
        pretrain(resume=checkpoint, **change())


def test_one_changed_count_is_another_slide_and_the_last_digit_is_not(checkpoint):
    patches = spots()
    slide = patches.slides[0]
    for factor, refused in ((1 + 1e-7, False), (1.02, True)):
        expression = slide.expression.copy()
        expression.data[7] *= factor
        other = replace(patches, slides=[replace(slide, expression=expression)])
        if refused:
            with pytest.raises(ValueError, match=r"differs: expression of slide 0 \(slide0\)\. Pass"):
                pretrain(other, resume=checkpoint)
        else:
            pretrain(other, resume=checkpoint)
    named = replace(patches, slides=[replace(slide, name="other")])
    with pytest.raises(ValueError, match="name of slide 0 .'slide0' in the checkpoint, 'other' now"):
        pretrain(named, resume=checkpoint)


def test_limits_and_processes_may_change(checkpoint):
    model = pretrain(resume=checkpoint, max_epochs=4, max_time="00:00:10:00", num_workers=0, early_stopping=9)
    assert len(model.history) == 4


def test_another_version_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr("stimg._train._fingerprint.__version__", "99.0")
    with pytest.raises(ValueError, match=r"stimg version \(.* in the checkpoint, '99\.0' now\)"):
        pretrain(resume=checkpoint)


def test_a_run_with_any_seed_goes_on_with_that_of_its_checkpoint(tmp_path):
    pretrain(rng=None, checkpoint_dir=tmp_path, callbacks=[Interrupt(1)])
    model = pretrain(rng=None, resume=tmp_path / "last.ckpt")
    assert model.card["seed"] == read_checkpoint(tmp_path / "last.ckpt")[ENTRY]["seed (`rng`)"]


def test_any_flipped_byte_is_found(copied):
    data = bytearray(copied.read_bytes())
    for place in np.random.default_rng(0).integers(0, len(data), 40).tolist() + [0, len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 4
        copied.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged|is not a checkpoint"):
            read_checkpoint(copied)
    copied.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    with pytest.raises(ValueError, match="last.ckpt.*checksum does not match. Pass another one"):
        pretrain(resume=copied)


def saved(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize("train", TRAININGS)
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda _: b"", "is empty"),
        (lambda _: b"epoch 3, loss 0.1\n", "is not a checkpoint"),
        (lambda _: saved({"state_dict": {}, "epoch": 3}), "another package or version"),
        (lambda data: data[:-200], "is damaged: it has been cut short|another package or version"),
        (lambda data: data[: len(data) // 2], "is damaged: it has been cut short"),
        (lambda data: data[:3], "is damaged: it has been cut short"),
        (lambda data: data[: data.index(MARK)], "another package or version wrote it, or its end is missing"),
    ],
    ids=["empty", "text", "foreign", "200 bytes short", "half", "3 bytes", "no mark"],
)
def test_files_that_are_no_checkpoints(train, checkpoint, tmp_path, content, found):
    path = tmp_path / "some.ckpt"
    path.write_bytes(content(checkpoint.read_bytes()))
    with pytest.raises(ValueError, match=f"some.ckpt.*({found})"):
        train(resume=path)


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    import hashlib

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    for body in (saved({ENTRY: {}, "state_dict": Payload()}), pickle.dumps(Payload())):
        path = tmp_path / "hostile.ckpt"
        path.write_bytes(body + MARK + hashlib.sha256(body).hexdigest().encode())
        with pytest.raises(ValueError, match="hostile.ckpt.*cannot be read"):
            pretrain(resume=path)
    assert not (tmp_path / "owned").exists()


def test_two_runs_that_start_together_do_not_write_into_one_folder(tmp_path):
    class Other(lightning.Callback):
        def on_train_start(self, *_):
            (tmp_path / "last.ckpt").write_bytes(b"of another run")

    with pytest.raises(FileExistsError, match="another process"):
        pretrain(checkpoint_dir=tmp_path, callbacks=[Other()])
    assert (tmp_path / "last.ckpt").read_bytes() == b"of another run"


@pytest.mark.parametrize("train", TRAININGS)
@pytest.mark.parametrize("limit", [0, timedelta(0), "00:00:00:00", {"seconds": 0}])
def test_no_time_is_refused(train, limit, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.fit", None)
    with pytest.raises(ValueError, match="`max_time` to be a positive time"):
        train(max_time=limit)


@pytest.mark.parametrize("train", TRAININGS)
def test_too_little_time_returns_no_untrained_model(train):
    with pytest.raises(ValueError, match="before one step. Allow more time"):
        train(max_time=timedelta(microseconds=1))


@pytest.mark.parametrize("train", TRAININGS)
def test_an_interrupt_in_the_first_epoch_returns_no_untrained_model(train):
    with pytest.raises(KeyboardInterrupt, match="Interrupted before one epoch ended"):
        train(callbacks=[Interrupt(0)])


def test_hashes_do_not_depend_on_the_width_of_numbers():
    values = np.arange(10)
    assert digest(values) == digest(values.astype(np.int32))
    assert digest(values) != digest(values[::-1])
    assert digest(values) != digest(values.reshape(2, 5))
    assert digest(np.array(["a", "b"])) != digest(np.array(["a", "c"]))


def test_differences_are_of_both_sides():
    one = {"a": 1, "b": torch.zeros(2)}
    assert differences(one, {"a": 1, "b": torch.zeros(2) + 1e-9}) == []
    assert differences(one, {"a": 2}) == ["a (1 in the checkpoint, 2 now)", "b"]
    assert differences({}, {"a": 2}) == ["a ('none' in the checkpoint, 2 now)"]


def test_a_folder_may_be_moved_before_a_run_goes_on(tmp_path):
    pretrain(checkpoint_dir=tmp_path / "here", callbacks=[Interrupt(1)])
    (tmp_path / "here").rename(tmp_path / "there")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrain(resume=tmp_path / "there" / "last.ckpt", checkpoint_dir=tmp_path / "there")
    assert [one.name for one in (tmp_path / "there").iterdir()] == ["last.ckpt"]
