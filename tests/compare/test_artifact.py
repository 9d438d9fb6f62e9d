"""best/: predicts in a fresh process what it predicted here, and refuses what is damaged, missing or unasked for."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from safetensors.numpy import load_file, save_file

from lossary.compare.artifact import (
    MANIFEST,
    MODEL,
    PREPROCESS,
    _digest,
    _write_manifest,
    calibrate_file,
    load_best,
    predict_file,
)
from lossary.compare.results import Comparison
from lossary.core.errors import UserError
from tests.compare.conftest import small_frame


@pytest.fixture
def data(tmp_path: Path) -> Path:
    small_frame(40, seed=1).drop(columns="label").to_csv(tmp_path / "new.csv", index=False)
    return tmp_path / "new.csv"


def test_a_fresh_process_predicts_the_same(best: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    command = [sys.executable, "-m", "lossary", "predict", str(best), str(data), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "40 predictions" in done.stdout
    predictions = pd.read_csv(out)
    assert list(predictions.columns) == ["label", "probability no", "probability perhaps", "probability yes"]
    loaded = load_best(best)
    frame = small_frame(40, seed=1)
    assert list(predictions["label"]) == list(loaded.predict(frame))
    np.testing.assert_allclose(predictions.iloc[:, 1:], loaded.predict_proba(frame), rtol=1e-12)
    np.testing.assert_allclose(predictions.iloc[:, 1:].sum(axis=1), 1)


def test_it_learned_something_and_uses_its_decision_rule(best: Path) -> None:
    frame = small_frame(600, seed=2)
    loaded = load_best(best)
    assert (loaded.predict(frame) == frame["label"]).mean() > 0.5
    assert loaded.rule.offsets  # F1 is decided by a tuned rule


def test_columns_in_any_order_more_or_less(best: Path) -> None:
    frame = small_frame(20, seed=3)
    loaded = load_best(best)
    shuffled = frame[frame.columns[::-1]].assign(extra=1)
    np.testing.assert_array_equal(loaded.predict_proba(shuffled), loaded.predict_proba(frame))
    assert loaded.conform(shuffled)[1] == ["Ignored columns that the model does not know: 'extra'."]
    with pytest.raises(UserError, match=r"lack 2 columns .*'b', 'colour'"):
        loaded.predict(frame.drop(columns=["b", "colour"]))


def test_new_words_and_gaps_are_taken_and_nonsense_is_not(best: Path) -> None:
    frame = small_frame(5, seed=4)
    loaded = load_best(best)
    frame["colour"] = ["red", "mauve", None, "?", "blue"]
    frame.loc[0, "a"] = np.nan
    assert np.isfinite(loaded.predict_proba(frame)).all()
    with pytest.raises(UserError, match="'a' holds 'many'"):
        loaded.predict(frame.astype({"a": object}).assign(a="many"))


def test_no_rows(best: Path, tmp_path: Path) -> None:
    small_frame(3).iloc[:0].to_csv(tmp_path / "none.csv", index=False)
    frame = small_frame(3).iloc[:0]
    assert load_best(best).predict_proba(frame).shape == (0, 3)


def test_nothing_is_overwritten_unasked(best: Path, data: Path, tmp_path: Path) -> None:
    loaded, out = load_best(best), tmp_path / "mine.csv"
    out.write_text("mine")
    with pytest.raises(UserError, match="not overwritten"):
        predict_file(loaded, data, out)
    assert out.read_text() == "mine"
    with pytest.raises(UserError, match="Choose another -o"):
        predict_file(loaded, data, data, force=True)
    predict_file(loaded, data, out, force=True)
    assert len(pd.read_csv(out)) == 40
    assert not list(tmp_path.glob(".*.part"))
    with pytest.raises(UserError, match="no folder"):
        predict_file(loaded, data, tmp_path / "nowhere" / "p.csv")


def test_calibrate(best: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.csv"
    small_frame(200, seed=5).to_csv(labelled, index=False)
    before = load_best(best)
    (note,) = calibrate_file(before, labelled)
    after = load_best(best)
    losses = [
        float(word.rstrip(",")) for word in note.split() if word.replace(".", "").rstrip(",").isdigit() and "." in word
    ]
    assert losses[1] <= losses[0]
    assert after.calibrators != before.calibrators
    assert len(after.manifest["earlier_calibrators"]) == 1
    assert after.manifest["earlier_calibrators"][0]["calibrators"] == before.manifest["calibrators"]


def test_calibrate_refuses(best: Path, tmp_path: Path) -> None:
    loaded, labelled = load_best(best), tmp_path / "labelled.csv"
    frame = small_frame(100, seed=5)
    frame.assign(label=frame["label"].replace("yes", "jein")).to_csv(labelled, index=False)
    with pytest.raises(UserError, match="jein"):
        calibrate_file(loaded, labelled)
    frame.drop(columns="label").to_csv(labelled, index=False)
    with pytest.raises(UserError, match="lacks the target 'label'"):
        calibrate_file(loaded, labelled)
    frame.head(10).to_csv(labelled, index=False)
    with pytest.raises(UserError, match="10 labelled rows; wanted 20"):
        calibrate_file(loaded, labelled)
    assert load_best(best).calibrators == loaded.calibrators


def test_a_learned_link_is_saved_and_restored(linked: Path, data: Path, tmp_path: Path) -> None:
    manifest = json.loads((linked / MANIFEST).read_text())
    assert manifest["link"] == "legendre"
    weights = load_file(linked / MODEL)
    assert {"0.link.blocks.0.raw_potential", "2.link.blocks.1.icnn.norms.3.log_scale"} <= set(weights)
    assert weights["0.model.head.weight"].shape[0] == 2  # the link makes three classes of two scores
    loaded = load_best(linked)
    for inner, logits in enumerate(loaded.logits(small_frame())):
        trained = np.load(linked.parent / f"{inner}.npz")
        np.testing.assert_allclose(logits[trained["rows"]], trained["logits"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=1e-5)
    predict_file(loaded, data, tmp_path / "predictions.csv")
    written = pd.read_csv(tmp_path / "predictions.csv").iloc[:, 1:]
    calibrated = [
        c.log_probabilities(z) for c, z in zip(loaded.calibrators, loaded.logits(pd.read_csv(data)), strict=True)
    ]
    np.testing.assert_allclose(written, np.exp(calibrated).mean(0), rtol=1e-9)


class TestTampering:
    @pytest.mark.parametrize("name", [MODEL, PREPROCESS, MANIFEST])
    def test_damage_is_found(self, best: Path, name: str) -> None:
        content = (best / name).read_bytes()
        for damaged in (content[: len(content) // 2], _flipped(content), b""):
            (best / name).write_bytes(damaged)
            with pytest.raises(UserError, match="damaged"):
                load_best(best)
        (best / name).unlink()
        with pytest.raises(UserError, match=f"lacks {name}"):
            load_best(best)

    @pytest.mark.parametrize("name", [MODEL, PREPROCESS])
    def test_a_file_of_another_folder_is_found(self, best: Path, name: str) -> None:
        content = (best / name).read_bytes()
        (best / name).write_bytes(content + b"\0")
        with pytest.raises(UserError, match="from another folder"):
            load_best(best)

    def test_a_forged_preprocessor_runs_nothing(self, best: Path) -> None:
        """Checksums can be forged with the file; the fixed list of types still holds."""
        skops.io.dump([_Evil()], best / PREPROCESS)
        _Evil.ran = False  # making the file ran it; loading must not
        _rewrite(best)
        with pytest.raises(UserError, match="_Evil"):
            load_best(best)
        assert not _Evil.ran

    def test_a_forged_type_in_the_schema_runs_nothing(self, best: Path) -> None:
        source = zipfile.ZipFile(best / PREPROCESS)
        schema = source.read("schema.json").decode()
        forged = schema.replace('"SoftScaler"', '"system"').replace("lossary.compare.preprocess", "os")
        assert forged != schema
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as target:
            for item in source.namelist():
                target.writestr(item, forged if item == "schema.json" else source.read(item))
        (best / PREPROCESS).write_bytes(buffer.getvalue())
        _rewrite(best)
        with pytest.raises(UserError, match="cannot be loaded"):
            load_best(best)

    def test_user_code_only_runs_if_it_is_named(self, best: Path) -> None:
        _rewrite(best, model="my.module:network")
        with pytest.raises(UserError, match=r"--model my\.module:network"):
            load_best(best)
        with pytest.raises(UserError, match=r"--model my\.module:network"):
            load_best(best, model="my.module:other")

    def test_mixed_up_manifests_are_found(self, best: Path) -> None:
        manifest = json.loads((best / MANIFEST).read_text())
        _rewrite(best, columns=manifest["columns"][::-1])
        with pytest.raises(UserError, match="other columns"):
            load_best(best)
        _rewrite(best, columns=manifest["columns"], members=2)
        with pytest.raises(UserError, match="2 members"):
            load_best(best)
        _rewrite(best, members=manifest["members"], format=99)
        with pytest.raises(UserError, match="format 99"):
            load_best(best)

    def test_a_link_that_does_not_fit_its_weights_is_found(self, linked: Path, best: Path, tmp_path: Path) -> None:
        _rewrite(best, link="legendre")  # of a model without one
        with pytest.raises(UserError, match=r"link 'legendre', model\.safetensors holds other weights"):
            load_best(best)
        folder = Path(shutil.copytree(linked, tmp_path / "linked"))
        for link, message in ((None, "holds other weights"), ("os.system", r"this version of Lossary has \['leg")):
            _rewrite(folder, link=link)
            with pytest.raises(UserError, match=message):
                load_best(folder)
        _rewrite(folder, link="legendre")
        weights = load_file(folder / MODEL)
        del weights["0.link.blocks.0.raw_potential"]
        save_file(weights, folder / MODEL)
        with pytest.raises(UserError, match="damaged"):
            load_best(folder)
        _rewrite(folder)
        with pytest.raises(UserError, match="holds other weights"):
            load_best(folder)

    def test_an_edit_by_hand_is_found(self, best: Path) -> None:
        text = (best / MANIFEST).read_text()
        (best / MANIFEST).write_text(text.replace('"perhaps"', '"maybe"'))
        with pytest.raises(UserError, match="does not match its digest"):
            load_best(best)


def test_manifest_says_what_it_is(finished: Comparison) -> None:
    assert finished.out is not None
    manifest = json.loads((finished.out / "best" / MANIFEST).read_text())
    digest = manifest.pop("digest")
    assert digest == _digest(manifest)
    assert manifest["classes"] == ["no", "perhaps", "yes"]
    assert {column["name"]: column["kind"] for column in manifest["columns"]}["when"] == "date"
    assert manifest["members"] == 3
    assert manifest["data"] == finished.table.fingerprint


class _Evil:
    ran = False

    def __setstate__(self, state: object) -> None:
        _Evil.ran = True

    def __reduce__(self) -> tuple[object, tuple[()]]:
        _Evil.ran = True
        return (_Evil, ())


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _rewrite(best: Path, **changes: object) -> None:
    """Change the manifest as somebody would who knows how checksums are made."""
    manifest = json.loads((best / MANIFEST).read_text())
    kept = {name: value for name, value in manifest.items() if name not in ("sha256", "digest")}
    _write_manifest(best, kept | changes)
