"""Packing small archives, laid out as GitHub lays them out."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lossary.datasets import decode_images, packing


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as writer:
        for name, content in members.items():
            writer.writestr(f"repository-0123abc/{name}", content)
    return path


def png(pixels: np.ndarray) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "png")
    return memory.getvalue()


def test_cifar10(tmp_path: Path) -> None:
    members = {
        "train/truck/0001.jpg": b"t1",
        "train/airplane/0002.jpg": b"a2",
        "train/airplane/0001.jpg": b"a1",
        "test/cat/0001.jpg": b"c1",
        "README.md": b"",
    }
    archive = write_archive(tmp_path / "archive.zip", members)
    packing.pack_cifar10("train", archive, tmp_path / "train.parquet")
    packing.pack_cifar10("test", archive, tmp_path / "test.parquet")
    train = pd.read_parquet(tmp_path / "train.parquet")
    assert train.to_dict("list") == {"image": [b"a1", b"a2", b"t1"], "label": [0, 0, 9]}
    assert pd.read_parquet(tmp_path / "test.parquet").to_dict("list") == {"image": [b"c1"], "label": [3]}


def test_spoken_digits(tmp_path: Path) -> None:
    members = {"recordings/7_jo_10.wav": b"x", "recordings/0_jo_2.wav": b"y", "utils/7_jo_1.wav": b"z"}
    packing.pack_spoken_digits(write_archive(tmp_path / "archive.zip", members), tmp_path / "packed.parquet")
    assert pd.read_parquet(tmp_path / "packed.parquet").to_dict("list") == {
        "wav": [b"y", b"x"],
        "digit": [0, 7],
        "speaker": ["jo", "jo"],
        "take": [2, 10],
    }


def test_topomortar_keeps_the_centre_and_every_third_test_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (300, 280, 3), dtype=np.uint8)
    mask = rng.integers(0, 256, (300, 280), dtype=np.uint8)
    members = {f"dataset/train/{kind}/001.png": png(mask) for kind in ("accurate", "noisy", "pseudo")}
    members["dataset/train/images/001.png"] = png(colour)
    for number in ("071", "072", "073", "074"):
        members[f"dataset/test/images/{number}.png"] = png(colour)
        members[f"dataset/test/accurate/{number}.png"] = png(mask)
    packing.pack_topomortar(write_archive(tmp_path / "archive.zip", members), tmp_path / "packed.parquet")

    frame = pd.read_parquet(tmp_path / "packed.parquet")
    assert frame["split"].tolist() == ["train", "test", "test"]
    assert frame["id"].tolist() == ["001", "071", "074"]
    assert frame["noisy"].notna().tolist() == frame["pseudo"].notna().tolist() == [True, False, False]
    assert np.array_equal(decode_images(frame["image"])[1], colour[22:278, 12:268])
    assert np.array_equal(decode_images(frame["accurate"])[2], mask[22:278, 12:268])


def test_topomortar_groups(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "archive.zip", {"dataset/dataset_types.txt": b"ID,group\n001,indistr\n"})
    packing.pack_topomortar_groups(archive, tmp_path / "types.txt")
    assert (tmp_path / "types.txt").read_bytes() == b"ID,group\n001,indistr"


def test_loss_curves(tmp_path: Path) -> None:
    members = {
        "loss_curve_repo/csv_25/wsd.csv": b"step,lr,loss\r\n1,0.5,4.0\r\n",
        "loss_curve_repo/csv_100/cosine.csv": b"step,lr,loss\r\n1,0.1,3.0\r\n2,0.2,2.0\r\n",
    }
    packing.pack_loss_curves(write_archive(tmp_path / "archive.zip", members), tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_bytes() == (
        b"params_millions,schedule,step,lr,loss\n100,cosine,1,0.1,3.0\n100,cosine,2,0.2,2.0\n25,wsd,1,0.5,4.0\n"
    )


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_table_digest_sees_values_not_encoding(tmp_path: Path, compression: str) -> None:
    frame = pd.DataFrame({"image": [b"ab", b"c"], "label": [1, 2]})
    frame.to_parquet(tmp_path / "one.parquet")
    frame.to_parquet(tmp_path / "two.parquet", compression=compression, row_group_size=1)
    digest = packing.table_digest(tmp_path / "one.parquet")
    assert packing.table_digest(tmp_path / "two.parquet") == digest
    changes = {
        "a value": frame.assign(label=[1, 3]),
        "where one value ends": frame.assign(image=[b"a", b"bc"]),
        "the order of rows": frame.iloc[::-1],
        "a column's name": frame.rename(columns={"label": "class"}),
        "a missing value": frame.assign(image=[b"ab", None]),
    }
    for change, changed in changes.items():
        changed.to_parquet(tmp_path / "changed.parquet", index=False)
        assert packing.table_digest(tmp_path / "changed.parquet") != digest, change


def test_pixel_digest_sees_pixels_not_compression(tmp_path: Path) -> None:
    def digest(image: Image.Image, **options: int) -> str:
        memory = io.BytesIO()
        image.save(memory, "png", **options)
        pd.DataFrame({"image": [memory.getvalue(), None]}).to_parquet(tmp_path / "images.parquet")
        return packing.pixel_digest(tmp_path / "images.parquet")

    image = Image.linear_gradient("L")
    changed = image.copy()
    changed.putpixel((3, 4), 255)
    assert digest(image, compress_level=0) == digest(image, compress_level=9)
    assert digest(changed) != digest(image)
    reshaped = Image.frombytes("L", (128, 512), image.tobytes())
    assert digest(reshaped) != digest(image)
