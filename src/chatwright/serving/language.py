"""The languages of the pages.

English text is its own key. ``static/chinese.json`` has the Chinese for the templates and for the browser's modules;
what is not in it stays English.
"""

import json
from pathlib import Path

from fastapi import Request
from jinja2 import pass_context
from jinja2.runtime import Context

STATIC = Path(__file__).parent / "static"
CHINESE: dict[str, str] = json.loads((STATIC / "chinese.json").read_text(encoding="utf-8"))
LANGUAGES = ("en", "zh")
THEMES = ("light", "dark")


def look(request: Request) -> dict[str, str]:
    """The ``language`` and ``theme`` of a page: what was chosen on a page before, else the browser's language and the
    system's colours (an empty theme)."""
    chosen, theme = request.cookies.get("language", ""), request.cookies.get("theme", "")
    return {
        "language": chosen if chosen in LANGUAGES else preferred(request.headers.get("accept-language", "")),
        "theme": theme if theme in THEMES else "",
    }


def preferred(accepted: str) -> str:
    """The language of ours that an Accept-Language header prefers (RFC 9110, 12.5.4); English if there is none."""
    best, found = 0.0, "en"
    for one in accepted.split(","):
        name, _, quality = one.replace(" ", "").partition(";q=")
        language = name.lower().split("-")[0]
        try:
            weight = float(quality or 1)
        except ValueError:
            continue
        if language in LANGUAGES and weight > best:
            best, found = weight, language
    return found


@pass_context
def translated(context: Context, text: str, **values: object) -> str:
    """The template filter ``t``: text in the page's language; ``{name}`` in it is replaced by ``values``."""
    if context.get("language") == "zh":
        text = CHINESE.get(text, text)
    return text.format_map(values) if values else text
