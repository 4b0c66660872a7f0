"""A user's description, written in CommonMark, as HTML or Markdown without anything active.

Lives here: what of CommonMark may stand in a description: paragraphs, emphasis, code, lists, quotes, links to
the web. HTML and images may not: they stay visible as the characters they are. Does not live here: text from
models, logs and agents, which is never read as Markdown (`mlxterp.results.markdown.escape`).
"""

from __future__ import annotations

from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

from mlxterp.results import markdown
from mlxterp.text import visible

_TAGS = {"p", "br", "em", "strong", "code", "pre", "ul", "ol", "li", "blockquote", "a", "h3", "h4", "hr"}
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
_SCHEMES = {"http", "https", "mailto"}
_END = "The end of the description"


def as_html(text: str) -> str:
    """HTML of a few harmless elements; headings begin at h3, below those of the page."""
    tokens = _parser(html=False).parse(visible(text))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "h3" if token.tag in ("h1", "h2", "h3") else "h4"
    made = _parser(html=False).renderer.render(tokens, _parser(html=False).options, {})
    return nh3.clean(
        made, tags=_TAGS, attributes=_ATTRIBUTES, url_schemes=_SCHEMES, link_rel="noopener noreferrer"
    )


def as_markdown(text: str) -> str:
    """The text itself where a reader that lets HTML pass can do nothing with it; else every sign escaped.

    What turns the whole text into plain text: HTML, an image, a heading, a link elsewhere than to the web, a
    definition of a link, a block that is left open and would swallow what follows.
    """
    text = visible(text).strip()
    if _is_harmless(text):
        return text
    return "\n\n".join(markdown.paragraphs(part) for part in text.split("\n\n") if part.strip())


def _is_harmless(text: str) -> bool:
    env: dict[str, object] = {}
    tokens = _parser(html=True).parse(f"{text}\n\n{_END}", env)
    ends = [token.content for token in tokens[-3:] if token.level in (0, 1)]
    if env.get("references") or len(tokens) < 3 or tokens[-3].level != 0 or ends != ["", _END, ""]:
        return False
    return all(_may_stand(token) for token in _every(tokens))


def _may_stand(token: Token) -> bool:
    if token.type == "link_open":
        return str(token.attrs.get("href", "")).partition(":")[0].lower() in _SCHEMES
    return token.type not in ("html_block", "html_inline", "image", "heading_open")


def _every(tokens: list[Token]) -> list[Token]:
    return [each for token in tokens for each in (token, *_every(token.children or []))]


@lru_cache(maxsize=2)
def _parser(*, html: bool) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": html})
    if html:  # as a renderer that makes a link of any address
        parser.validateLink = lambda url: True  # type: ignore[method-assign]  # noqa: ARG005
    return parser
