"""What builds the pages of the site that nobody writes: papers, families, gallery and reference.

``hooks.py`` is what MkDocs calls. ``shelf.py`` gathers cards, evidence and public names, ``pages.py`` makes Markdown of
them, ``docstrings.py`` turns docstrings into Markdown, ``curves.py`` draws from objectives' code, ``charts.py`` draws
lines, ``calls.py`` completes a card's call so that it runs.
"""
