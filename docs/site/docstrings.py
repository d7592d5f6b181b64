"""Rewriting of docstrings for the site: roles of reStructuredText (``:class:`X```) as code, examples as a section."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """Turn roles and ``::`` before an indented block into Markdown, and "Example" into the section "Examples"."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of every module, class, function and attribute."""
        if obj.docstring is not None:
            text = re.sub(r":(?:class|meth|func|attr|mod|data):`~?([^`]+)`", r"`\1`", obj.docstring.value)
            text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
