"""From verified files to one DataFrame, by kind of file; and the sets that scikit-learn bundles."""

from __future__ import annotations

import re
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossary.core.optional import optional

if TYPE_CHECKING:
    import pandas as pd

# The columns of the CoNLL-U format, https://universaldependencies.org/format.html
_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """Read a CSV file as ``pandas.read_csv`` does with these options; ``?`` is a missing value."""
    import pandas as pd

    frame: pd.DataFrame = pd.read_csv(path, na_values="?", **options)
    return frame


def read_atomic(path: Path) -> pd.DataFrame:
    """Read RecBole's atomic format: tab-separated, with headings ``name:type``."""
    import csv

    import pandas as pd

    frame = pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, dtype={"zip_code:token": str})
    return frame.rename(columns=lambda heading: heading.partition(":")[0])


def read_speeches(path: Path) -> pd.DataFrame:
    """Read a play, one row a speech: ``speaker``, ``speech``."""
    import pandas as pd

    parts = re.split(r"\n{2,}", path.read_text(encoding="utf-8").strip())
    speeches = (part.partition("\n") for part in parts)
    rows = [(speaker.removesuffix(":"), speech) for speaker, _, speech in speeches]
    return pd.DataFrame(rows, columns=["speaker", "speech"])


def read_reviews(path: Path) -> pd.DataFrame:
    """Read the archive of film reviews: ``id`` (its hundreds are the published fold), ``text``, ``sentiment``."""
    import pandas as pd

    rows = []
    with tarfile.open(path) as archive:
        for member in archive:
            folder, _, rest = member.name.partition("/")
            content = archive.extractfile(member)
            if folder == "txt_sentoken" and content is not None:
                sentiment, _, name = rest.partition("/")
                rows.append((name.removesuffix(".txt"), content.read().decode("latin-1"), sentiment))
    return pd.DataFrame(rows, columns=["id", "text", "sentiment"]).sort_values(["sentiment", "id"], ignore_index=True)


def read_trees(*paths: Path) -> pd.DataFrame:
    """Read CoNLL-U files, one row a line: ``split``, ``sentence`` (its id), and the ten columns of the format.

    ``id`` and ``head`` stay text: ``3-4`` is a token of several words, ``8.1`` a word that is not written.
    """
    import pandas as pd

    rows = []
    for path in paths:
        split, sentence = path.stem.rpartition("-")[2], ""
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.startswith("# sent_id = "):
                sentence = line.removeprefix("# sent_id = ")
            elif line and not line.startswith("#"):
                rows.append((split, sentence, *line.split("\t")))
    return pd.DataFrame(rows, columns=["split", "sentence", *_CONLLU])


def read_cranfield(path: Path) -> pd.DataFrame:
    """Read the abstracts: ``docno``, ``title``, ``author``, ``bib``, ``text``; line breaks become spaces."""
    import pandas as pd

    # The file is a sequence of <doc> elements: give it the root that XML wants.
    root = ElementTree.fromstring(f"<docs>{path.read_text(encoding='utf-8')}</docs>")
    frame = pd.DataFrame([{field.tag: _words(field) for field in document} for document in root])
    return frame.astype({"docno": int})


def read_cranfield_queries(path: Path) -> pd.DataFrame:
    """Read the queries: ``query`` (1 to 225, as in the relevance judgements), ``number`` (as printed), ``text``."""
    import pandas as pd

    root = ElementTree.fromstring(path.read_bytes())
    rows = [
        (place, int(_words(query.find("num"))), _words(query.find("title")))
        for place, query in enumerate(root, start=1)
    ]
    return pd.DataFrame(rows, columns=["query", "number", "text"])


def read_cranfield_relevance(path: Path) -> pd.DataFrame:
    """Read the judgements: ``query``, ``docno``, ``relevance``."""
    import pandas as pd

    return pd.read_csv(path, sep=r"\s+", names=["query", "iteration", "docno", "relevance"]).drop(columns="iteration")


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a parquet file."""
    import pandas as pd

    return pd.read_parquet(path)


def read_cifar10(train: Path, test: Path) -> pd.DataFrame:
    """Read both parts: ``split``, ``image`` (JPEG bytes), ``label``."""
    import pandas as pd

    parts = {"train": read_parquet(train), "test": read_parquet(test)}
    return pd.concat(parts, names=["split"]).reset_index("split").reset_index(drop=True)


def read_topomortar(images: Path, groups: Path) -> pd.DataFrame:
    """Read images and masks (PNG bytes), with ``group``: how an image differs from those trained on."""
    import pandas as pd

    table = pd.read_csv(groups, dtype=str).rename(columns={"ID": "id"})
    return read_parquet(images).merge(table, on="id", how="left", validate="one_to_one")


def read_gguf(path: Path) -> pd.DataFrame:
    """Read what a GGUF file holds, one row a tensor: ``tensor``, ``shape`` (of rows first), ``type``."""
    import pandas as pd

    reader = optional("gguf", needed_by="Reading a GGUF file").GGUFReader(path)
    rows = [(each.name, tuple(map(int, reversed(each.shape))), each.tensor_type.name) for each in reader.tensors]
    return pd.DataFrame(rows, columns=["tensor", "shape", "type"])


def bundled(name: str) -> pd.DataFrame:
    """A set that scikit-learn bundles, with the names of its classes for labels (digits: 0 to 9)."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    frame: pd.DataFrame = bunch.frame
    if name != "digits":
        frame["target"] = frame["target"].map(dict(enumerate(map(str, bunch.target_names))))
    return frame


def digits_8() -> pd.DataFrame:
    """Digits with the target ``is_8``."""
    frame = bundled("digits")
    return frame.drop(columns="target").assign(is_8=(frame["target"] == 8).astype(int))


def digits_labels() -> pd.DataFrame:
    """Digits with three yes/no targets."""
    frame = bundled("digits")
    digit = frame["target"]
    labels = {"even": digit % 2 == 0, "prime": digit.isin([2, 3, 5, 7]), "loop": digit.isin([0, 6, 8, 9])}
    return frame.drop(columns="target").assign(**{name: label.astype(int) for name, label in labels.items()})


def _words(element: ElementTree.Element | None) -> str:
    text = "" if element is None else element.text or ""
    return " ".join(text.split())
