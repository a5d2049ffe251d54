"""One small object with everything that a user can set once for a session."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_LEVELS: Final = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
DEVICES: Final = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _default_cachedir(environ: Mapping[str, str]) -> Path:
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(base) / "stimg"
    try:
        return Path("~/.cache").expanduser() / "stimg"
    except RuntimeError:  # a user without a home folder, as in some containers
        return Path(tempfile.gettempdir()) / "stimg"


class Settings:
    """Session-wide settings of stimg.

    They are read from the environment when stimg is imported. Change them by assignment
    (`stimg.settings.device = "cpu"`) or, for the length of a `with` block, by :meth:`override`.

    Parameters
    ----------
    environ
        Environment variables; by default `os.environ`.

    Raises
    ------
    ValueError
        A value or an environment variable is not allowed. Nothing is changed then. When stimg is imported, such a
        variable causes a warning instead, and the default is used.

    Notes
    -----
    ============= ======================== ==================================== =======
    attribute     environment variable     values                               default
    ============= ======================== ==================================== =======
    `verbosity`   `STIMG_VERBOSITY`        error, warning, info, debug          info
    `device`      `STIMG_DEVICE`           auto, cpu, cuda, cuda:N, mps         auto
    `cachedir`    `STIMG_CACHE_DIR`        a folder, made when first needed     the user's cache folder
    `progress`    `STIMG_PROGRESS`         yes or no                            yes
    ============= ======================== ==================================== =======

    `verbosity` is the level of the logger `"stimg"`. stimg installs no handler of its own: where log lines go is up to
    the application.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self.verbosity = environ.get("STIMG_VERBOSITY", "info")
        self.device = environ.get("STIMG_DEVICE", "auto")
        self.cachedir = environ.get("STIMG_CACHE_DIR") or _default_cachedir(environ)
        self.progress = environ.get("STIMG_PROGRESS", "yes")

    @property
    def verbosity(self) -> str:
        """Lowest level of log lines that are passed on, one of error, warning, info and debug."""
        return self._verbosity

    @verbosity.setter
    def verbosity(self, value: str) -> None:
        level = str(value).strip().lower()
        if level not in _LEVELS:
            msg = f"`verbosity` (or $STIMG_VERBOSITY) must be one of {list(_LEVELS)}, got {value!r}."
            raise ValueError(msg)
        self._verbosity = level
        logging.getLogger("stimg").setLevel(_LEVELS[level])

    @property
    def device(self) -> str:
        """Device of every function, training included, whose `device` is "auto"; "auto" is the fastest one present."""
        return self._device

    @device.setter
    def device(self, value: str) -> None:
        device = str(value).strip().lower()
        if not DEVICES.fullmatch(device):
            msg = f"`device` (or $STIMG_DEVICE) must be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps', got {value!r}."
            raise ValueError(msg)
        self._device = device

    @property
    def cachedir(self) -> Path:
        """Folder for downloaded slides and weights."""
        return self._cachedir

    @cachedir.setter
    def cachedir(self, value: str | os.PathLike[str]) -> None:
        try:
            path = Path(value or None).expanduser().absolute()  # type: ignore[arg-type]
        except (TypeError, RuntimeError) as e:  # not a path, or the home folder of an unknown user
            msg = f"`cachedir` (or $STIMG_CACHE_DIR) must be the path of a folder, got {value!r}."
            raise ValueError(msg) from e
        if path.exists() and not path.is_dir():
            msg = f"`cachedir` (or $STIMG_CACHE_DIR) must be a folder, got the file {str(path)!r}."
            raise ValueError(msg)
        self._cachedir = path

    @property
    def progress(self) -> bool:
        """Whether progress bars are shown."""
        return self._progress

    @progress.setter
    def progress(self, value: bool | str) -> None:
        text = str(value).strip().lower()
        if text not in _TRUE | _FALSE:
            msg = f"`progress` (or $STIMG_PROGRESS) must be yes or no (1 or 0, true or false), got {value!r}."
            raise ValueError(msg)
        self._progress = text in _TRUE

    @contextmanager
    def override(self, **values: Any) -> Iterator[Settings]:
        """Change settings inside a `with` block, given by name.

        Yields
        ------
        The settings themselves.

        Raises
        ------
        AttributeError
            There is no setting with that name.
        ValueError
            A value is not allowed. Earlier values are restored in both cases.
        """
        if unknown := [name for name in values if name not in self._names]:
            msg = f"Unknown settings {unknown}. Available: {list(self._names)}."
            raise AttributeError(msg)
        before = {name: getattr(self, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    _names: Final = ("verbosity", "device", "cachedir", "progress")
    __slots__ = ("_cachedir", "_device", "_progress", "_verbosity")

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={getattr(self, name)!r}' for name in self._names)})"


def _of_session() -> Settings:
    """Read the environment. A variable that cannot be used causes a warning and is ignored: stimg can be imported."""
    environ = dict(os.environ)
    for name in [name for name in environ if name.startswith("STIMG_")]:
        try:
            Settings({name: environ[name]})
        except ValueError as error:
            warnings.warn(f"{error} The default is used.", UserWarning, stacklevel=2)
            del environ[name]
    return Settings(environ)


settings: Final = _of_session()
