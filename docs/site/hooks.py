"""Lists decision records and the pages of Python modules in the menu, which mkdocs cannot configure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

API = Path(__file__).resolve().parent.parent / "reference" / "api"
RECORDS = Path(__file__).resolve().parent.parent / "decisions"


def on_config(config: Any) -> Any:
    listed = [{_title(path): f"decisions/{path.name}"} for path in sorted(RECORDS.glob("0*.md"))]
    modules = [{path.stem: f"reference/api/{path.name}"} for path in sorted(API.glob("*.md"))]
    (reference,) = (section["Reference"] for section in config["nav"] if "Reference" in section)
    reference[:] = [
        {"Python": ["reference/api.md", *modules]} if "Python" in item else item for item in reference
    ]
    config["nav"].append({"Decisions": ["decisions/README.md", *listed]})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri != "decisions/README.md":
        return markdown
    lines = [f"- [{_title(path)}]({path.name})" for path in sorted(RECORDS.glob("0*.md"))]
    return markdown + "\n\n" + "\n".join(lines) + "\n"


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
