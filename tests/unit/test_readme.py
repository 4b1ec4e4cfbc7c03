"""What the README states about settings is so, and links lead somewhere."""

import re
from pathlib import Path

import pytest

from somatize_worker.settings import table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_setting_is_in_the_table_as_it_is() -> None:
    rows = re.findall(r"^\| `(SOMA_\w+)` \| (.*?) \| (.*) \|$", README, flags=re.MULTILINE)
    assert rows == [(name, default or "–", text) for name, default, text in table()]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
