"""Encoded images and recordings as arrays."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from lossary.core.errors import UserError


def decode_images(images: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    """Decode images of one size, such as the column ``image`` of ``cifar10``.

    Needs Pillow. Decode the rows that you need: all of CIFAR-10 takes some seconds and 184 MB.

    Args:
        images: PNG or JPEG bytes, all of the same width, height and number of channels.

    Returns:
        uint8, ``(N, height, width, 3)`` for colour and ``(N, height, width)`` for grey images and masks.

    Raises:
        UserError: Pillow is not installed.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from lossary.datasets import decode_images
        >>> red = io.BytesIO()
        >>> Image.new("RGB", (3, 2), "red").save(red, "png")
        >>> decode_images([red.getvalue()]).shape
        (1, 2, 3, 3)
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("Images need Pillow: pip install pillow.") from error

    return np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in images])


def decode_audio(recordings: Iterable[bytes]) -> list[npt.NDArray[np.int16]]:
    """Decode recordings, such as the column ``wav`` of ``spoken_digits`` (8,000 samples a second).

    Args:
        recordings: Bytes of WAV files with one channel of 16-bit samples.

    Returns:
        For each recording its samples, int16, ``(number of samples,)``.

    Raises:
        ValueError: A recording has several channels or samples of another width.
    """
    return [_samples(recording) for recording in recordings]


def _samples(recording: bytes) -> npt.NDArray[np.int16]:
    with wave.open(io.BytesIO(recording)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise ValueError(
                f"wanted one channel of 2-byte samples, got {file.getnchannels()} of {file.getsampwidth()}-byte samples"
            )
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
