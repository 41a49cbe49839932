"""Every paper that a docstring cites is on the page of papers, and no key there is without a use."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_lists_the_keys_that_docstrings_cite() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "src").rglob("*.py")]
    cited = {key for text in sources for key in re.findall(r":cite:p:`([^`]+)`", text)}
    page = (REPOSITORY / "docs" / "papers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\*\*\[`([^`]+)`\]\*\*", page)) == cited
