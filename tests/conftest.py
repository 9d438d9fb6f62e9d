"""Property tests: no deadline (the first call of a torch function is slow), and the same examples in every run."""

import pytest
from hypothesis import settings

NO_CHROMIUM = "no Chromium found: the browser tests of the site did not run"

settings.register_profile("lossary", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("lossary")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what could not run."""
    if any(NO_CHROMIUM in str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(NO_CHROMIUM)
