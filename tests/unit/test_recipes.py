"""What pages may not do in their code, which other tests run."""

from conftest import REPOSITORY


def test_no_page_looks_for_shards() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        assert "glob(" not in page.read_text(encoding="utf-8"), page
