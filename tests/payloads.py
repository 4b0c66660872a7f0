"""Words that try to be more than words, and what a page that holds them must not have."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)//",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "[click](javascript:alert(1))",
    "![x](https://example.invalid/pixel.png)",
    "<https://example.invalid>",
    "```\n<script>alert(1)</script>\n```",
    "| a | b |\n| --- | --- |\n# heading",
    "{{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe \u2066x",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "nul \x00 lone \ud800 end",
    "]]> --> </style></title>",
    "&lt;b&gt; &#60;b&#62;",
    "a*b*c _d_ `e` ~~f~~ $g$",
    "javascript:alert(1)//",
    "&#106;avascript:alert(1) <a href=&#x6A;avascript:alert(1)>x</a>",
    "<style>*{display:none}</style><base href=//example.invalid>",
    "--></text></svg><foreignObject><iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "\ud83d half a pair \udc00\udbff",
    "\u2028\u2029\u0085 lines; \u200fright\u200e \u061c\u202d",
    "[x]: javascript:alert(1)\n\n[x] ![x][x]",
    "\n---\n# Verdict: confirmed\n- [ ] task",
    "${alert(1)} `${1}` \\u003cscript\\u003e \\",
    "x" * 5_000,
    "",
]
ALLOWED_TAGS = {
    *(
        "html",
        "head",
        "meta",
        "link",
        "title",
        "style",
        "body",
        "header",
        "main",
        "section",
        "article",
        "nav",
        "footer",
    ),
    *("h1", "h2", "h3", "h4", "p", "b", "i", "span", "code", "pre", "a", "ol", "li", "dl", "dt", "dd", "div"),
    *("em", "strong", "ul", "blockquote", "br", "hr"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary"),
    *("svg", "g", "path", "rect", "line", "circle", "text", "defs", "pattern", "clippath", "image"),
    *("data", "time"),
}


class Seen(HTMLParser):
    """Every tag, attribute and text of a page."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.elements = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.elements.append((tag, attrs))
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def assert_harmless(html, scripts=0):
    """No element, attribute or address that we do not set; `scripts` of ours, run by the policy's hash."""
    seen = Seen(html)
    controls = {"script", "noscript", "label", "input", "output", "button", "select", "option"}
    ours = controls if scripts else set()
    assert set(seen.tags) <= ALLOWED_TAGS | ours
    running = [attrs for tag, attrs in seen.elements if tag == "script" and "type" not in dict(attrs)]
    assert len(running) == scripts
    assert html.count("script-src 'sha256-") == scripts
    assert not [name for _, name, _ in seen.attributes if name.startswith("on")]
    links = [
        (tag, value)
        for tag, name, value in seen.attributes
        if name in ("href", "src", "xlink:href", "action", "data")
    ]
    assert all(
        re.fullmatch(r"data:,|#(experiment|section)-[\w.-]+|#main|#needs", link)
        or re.fullmatch(r"data:image/png;base64,[\w+/=\s]+", link)
        or (tag == "a" and link == "https://example.invalid")  # a link of a description waits for a click
        for tag, link in links
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)
    assert "default-src 'none'" in html


def rendered(markdown):
    """The page that a Markdown reader that lets HTML pass would show."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    reader.validateLink = lambda url: True
    return reader.render(markdown)


def assert_harmless_markdown(markdown):
    seen = Seen(rendered(markdown))
    assert not set(seen.tags) & {"script", "svg", "iframe", "object", "form"}
    assert not [name for _, name, _ in seen.attributes if name.startswith("on")]
    links = [(tag, value) for tag, name, value in seen.attributes if name in ("href", "src")]
    assert all(
        re.fullmatch(r"\w+_files/\d{3}-[a-z0-9-]+\.png", link)
        or (tag == "a" and link == "https://example.invalid")
        for tag, link in links
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", markdown)
