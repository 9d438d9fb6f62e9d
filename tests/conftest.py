"""Property tests: no deadline (the first call of a torch function is slow), and the same examples in every run."""

from hypothesis import settings

settings.register_profile("lossary", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("lossary")
