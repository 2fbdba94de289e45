"""What a model or a person has written, as HTML that cannot do anything.

Markdown becomes HTML by markdown-it, which shows tags in the text as text; nh3 then keeps only what is on the lists
below, whatever the first should have let through. Pictures are shown as their description: a picture's address would
make the browser tell a stranger what is being read.
"""

import re

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml

TAGS = {
    *("p", "br", "hr", "blockquote", "pre", "code", "ul", "ol", "li", "a", "em", "strong", "s"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES: dict[str, set[str]] = {"*": set(), "a": {"href"}, "code": {"class"}, "ol": {"start"}}
SCHEMES = {"http", "https", "mailto"}
LANGUAGE = re.compile(r"language-[\w+#.-]{1,32}", re.ASCII)

parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
parser.add_render_rule("image", lambda _, tokens, place, *__: escapeHtml(tokens[place].content))


def to_html(text: str) -> str:
    """Markdown as safe HTML; code blocks are ``<pre><code class="language-x">``."""
    return nh3.clean(
        parser.render(text),
        tags=TAGS,
        attributes=ATTRIBUTES,
        attribute_filter=_attribute,
        url_schemes=SCHEMES,
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def _attribute(tag: str, name: str, value: str) -> str | None:
    return value if (tag, name) != ("code", "class") or LANGUAGE.fullmatch(value) else None
