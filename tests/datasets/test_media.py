from __future__ import annotations

import io
import sys
import wave

import numpy as np
import pytest
from PIL import Image

from lossary.core.errors import UserError
from lossary.datasets import decode_audio, decode_images


def wav(samples: np.ndarray, channels: int = 1) -> bytes:
    memory = io.BytesIO()
    with wave.open(memory, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.itemsize)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return memory.getvalue()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_images_come_back_as_they_were(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    encoded = []
    for each in pixels:
        memory = io.BytesIO()
        Image.fromarray(each).save(memory, "png")
        encoded.append(memory.getvalue())
    decoded = decode_images(encoded)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels)


def test_images_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match="pip install pillow"):
        decode_images([b""])


def test_recordings_come_back_as_they_were() -> None:
    samples = [np.array([0, 1, -2, 32767, -32768], "<i2"), np.array([5], "<i2")]
    decoded = decode_audio(wav(each) for each in samples)
    assert [each.tolist() for each in decoded] == [each.tolist() for each in samples]
    assert all(each.dtype == np.int16 for each in decoded)


@pytest.mark.parametrize(
    ("recording", "got"),
    [
        (wav(np.zeros(4, "<i2"), channels=2), "2 of 2-byte"),
        (wav(np.zeros(4, "u1")), "1 of 1-byte"),
    ],
)
def test_other_recordings_are_refused(recording: bytes, got: str) -> None:
    with pytest.raises(ValueError, match=got):
        decode_audio([recording])
