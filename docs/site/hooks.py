"""Lists the decision records by number in the menu, which mkdocs cannot configure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parent.parent / "decisions"


def on_config(config: Any) -> Any:
    listed = [{_title(path): f"decisions/{path.name}"} for path in sorted(RECORDS.glob("0*.md"))]
    config["nav"].append({"Decisions": ["decisions/README.md", *listed]})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri != "decisions/README.md":
        return markdown
    lines = [f"- [{_title(path)}]({path.name})" for path in sorted(RECORDS.glob("0*.md"))]
    return markdown + "\n\n" + "\n".join(lines) + "\n"


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
