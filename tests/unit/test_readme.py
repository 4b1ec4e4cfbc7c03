"""What the README states about settings and links is so."""

import re
from pathlib import Path

from somatize_worker.settings import table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_setting_is_in_the_table_as_it_is() -> None:
    rows = re.findall(r"^\| `(SOMA_\w+)` \| (.*?) \| (.*) \|$", README, flags=re.MULTILINE)
    assert rows == [(name, default if default not in ("", "()") else "–", text) for name, default, text in table()]


def test_links_to_files_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
