"""The site, built once for all workers of a test run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site as ``mkdocs build --strict`` makes it."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    shared = tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent
    folder, log = shared / "site", shared / "site.log"
    with FileLock(shared / "site.lock"):
        if not log.exists():
            command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
            environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
            build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            log.write_text(build.stdout + build.stderr)
            if build.returncode:
                shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        pytest.fail(f"mkdocs build --strict failed:\n{log.read_text()}", pytrace=False)
    return folder
