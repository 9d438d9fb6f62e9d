"""Real data by name: one call per data set, and the same data on every machine.

:func:`load` gives the data as a DataFrame. Sets that scikit-learn bundles need no network. The others are read from
the folder named in the environment variable ``LOSSARY_DATA`` or, if that is not set, downloaded once from their public
homes at a pinned commit and cached. Either way they are compared with a known checksum before they are read.
``LOSSARY_MIRROR`` names another server to download from.
"""

from __future__ import annotations

from lossary.datasets.catalogue import Dataset as Dataset
from lossary.datasets.catalogue import describe as describe
from lossary.datasets.catalogue import load as load
from lossary.datasets.catalogue import names as names
from lossary.datasets.catalogue import path as path
from lossary.datasets.encoder import encode_sentences as encode_sentences
from lossary.datasets.media import decode_audio as decode_audio
from lossary.datasets.media import decode_images as decode_images
from lossary.datasets.registry import Entry as Entry

__all__ = ["Dataset", "Entry", "decode_audio", "decode_images", "describe", "encode_sentences", "load", "names", "path"]
