"""Pictures with known truth: one to five real drawings on a varied ground.

A `Scene` says what is where and how large; `Scene.image` paints it. Drawings are OpenMoji's, of the concepts in the
table below. Two things are held out from every training stage:

- a tenth of the concepts, by category: no stage ever sees their drawings, nor those that show the same thing;
- compositions: what stands together in a picture (`composition`); those that `is_heldout` picks are never painted for
  training.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import PIL.Image

from chatwright.data.sources import names, openmoji

SIDE = 64  # pixels, width and height of every picture
SMALLEST, LARGEST = 14, 56  # pixels, longer side of a drawing
GROUNDS = ("plain", "gradient", "two-tone", "noise")


@dataclass(frozen=True)
class Category:
    """A kind of thing: ``english`` with its article ("an animal", "food"), its Chinese name and measure word."""

    name: str
    english: str
    chinese: str
    measure: str


CATEGORIES = {
    category.name: category
    for category in (
        Category("animal", "an animal", "动物", "只"),
        Category("fruit", "a fruit", "水果", "个"),
        Category("food", "food", "食物", "个"),
        Category("plant", "a plant", "植物", "朵"),
        Category("vehicle", "a vehicle", "交通工具", "辆"),
        Category("clothing", "clothing", "服装", "件"),
        Category("building", "a building", "建筑", "座"),
        Category("tool", "a tool", "工具", "把"),
    )
}

# The drawing of each concept, and after it those that show the same thing or nearly so: where the concept is held out,
# these are kept from training too.
_TABLE = {
    "animal": "🐕🐶🐩🦮 🐈🐱 🐎🐴🏇🎠 🐖🐷🐽🐗 🐄🐮🐂🐃 🐇🐰 🐅🐯🐆 🐘🦣 🐪🐫 🦌🫎 🦒 🦓 🦘 🐒🐵 🐐🐏🐑 🐓🐔🦃 🦆 🐢",
    "fruit": "🍎🍏 🍐 🍊 🍋 🍌 🍉 🍇 🍓 🥑 🍈 🍒 🍑 🥭 🍍 🥥 🥝",
    "food": "🥐 🥖🍞 🥨 🧇🥞 🍔 🍕 🌭 🥪 🌮 🥚🍳🪺 🥟 🍩🥯 🍪🥮 🧁 🥧 🍭 🍦 🎂🍰",
    "plant": "🌷 🌸💮 🌹🥀 🌺 🌻🌼 💐 🌲🎄 🌴🏝 🌵 🌱 🍀☘ 🍁 🪷 🪻 🪾",
    "vehicle": "🚗🚘🚙 🚕🚖 🚌🚍🚎🚐 🏎 🚑 🚒 🚛🚚 🚜 🚲🚳🚴🚵 🏍🛵 🛴 🚂 ✈🛩🛫🛬 🚁 🚀 ⛵ 🛶🚣 🚢🛳⛴",
    "clothing": "👕 👗 👘 🧥 🧦 🧣 🧤 🎩 🧢 👒 👟👞 👠👡 👢🥾 🩱 👙 🦺 🩴 🪖⛑",
    "building": "🏠🏡🏘🏚 🏥 🏦 🏨 🏫 🏭 🏰🏯 ⛪💒 🕌 🛕 🏟 🛖 ⛺🏕 🎪 🗼 🏪",
    "tool": "🔨⚒🛠 🪓 🪚 🔧 🪛 🗜 🪜 🪝 🧲 📏📐 🖌 ✏📝 🔪🗡 🥄 🔑🗝🔐 🧹 🪣 🪏⛏",
}

# Where CLDR's name says more than the drawing, or is not what people say.
_NAMES = {
    "🐄": ("cow", "牛"), "🐓": ("rooster", "公鸡"), "🐢": ("turtle", "乌龟"), "🍎": ("apple", "苹果"),
    "🍊": ("orange", "橘子"), "🍇": ("grape", "葡萄"), "🥑": ("avocado", "牛油果"), "🍒": ("cherry", "樱桃"),
    "🍑": ("peach", "桃子"), "🥭": ("mango", "芒果"), "🥝": ("kiwi", "猕猴桃"), "🥖": ("baguette", "法棍"),
    "🥨": ("pretzel", "椒盐卷饼"), "🌮": ("taco", "卷饼"), "🥚": ("egg", "鸡蛋"), "🥧": ("pie", "馅饼"),
    "🍦": ("ice cream", "冰淇淋"), "🎂": ("cake", "蛋糕"), "🧁": ("cupcake", "纸杯蛋糕"),
    "🌲": ("pine tree", "松树"), "🍀": ("clover", "四叶草"), "🪾": ("bare tree", "枯树"),
    "🚗": ("car", "汽车"), "🚛": ("truck", "卡车"), "🛴": ("scooter", "滑板车"), "🚂": ("train", "火车"),
    "🚢": ("ship", "轮船"), "🧦": ("sock", "袜子"), "🧤": ("glove", "手套"), "👕": ("T-shirt", "T恤"),
    "🧢": ("cap", "鸭舌帽"), "👒": ("straw hat", "草帽"), "👟": ("sneaker", "跑鞋"), "👠": ("high heel", "高跟鞋"),
    "👢": ("boot", "靴子"), "🩱": ("swimsuit", "泳衣"), "🦺": ("vest", "背心"), "🩴": ("sandal", "凉鞋"),
    "🪖": ("helmet", "头盔"), "🏰": ("castle", "城堡"), "🛕": ("temple", "寺庙"), "🎪": ("circus", "马戏团"),
    "🗼": ("tower", "铁塔"), "🏪": ("store", "商店"), "🪚": ("saw", "锯子"), "🪝": ("hook", "钩子"),
    "📏": ("ruler", "尺子"), "✏": ("pencil", "铅笔"), "🔪": ("knife", "菜刀"), "🥄": ("spoon", "勺子"),
    "🪏": ("shovel", "铲子"), "🪣": ("bucket", "水桶"),
}  # fmt: skip

_MEASURES = {
    "匹": "🐎", "头": "🐖🐄🐘🐪🦌", "条": "🧣👗", "棵": "🌲🌴🌵🌱🍀🪾", "片": "🍁", "束": "💐", "架": "✈🚁🪜",
    "艘": "⛵🛶🚢", "枚": "🚀", "列": "🚂", "顶": "🎩🧢👒🪖⛺", "只": "🧦🧤👟👠👢🩴", "家": "🏥🏦🏨🏪", "所": "🏫",
    "块": "🍪🍕🧲", "根": "🥖🍭", "支": "🖌✏", "个": "🪜🪝🗜🪣🎪",
}  # fmt: skip

_IRREGULAR = {"knife": "knives", "maple leaf": "maple leaves"}


@dataclass(frozen=True)
class Concept:
    """A thing that can be drawn: its emoji character, its names, its measure word in Chinese ("只")."""

    character: str
    category: str
    english: str
    chinese: str
    measure: str
    look_alikes: tuple[str, ...]
    heldout: bool

    def name(self, language: str) -> str:
        return self.english if language == "en" else self.chinese

    @property
    def article(self) -> str:
        """ "a dog", "an apple"."""
        return ("an " if self.english[0] in "aeiou" else "a ") + self.english

    @property
    def plural(self) -> str:
        """ "dogs", "cherries"."""
        return plural(self.english)


def plural(noun: str) -> str:
    """English plural of a countable noun."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


@cache
def concepts() -> dict[str, Concept]:
    """Every concept by its English name, in the order of the table."""
    known = names.names()
    measures = {character: measure for measure, characters in _MEASURES.items() for character in characters}
    found = {}
    for category, rows in _TABLE.items():
        characters = rows.split()
        heldout = set(random.Random(f"held out {category}").sample(range(len(characters)), round(len(characters) / 10)))
        for index, row in enumerate(characters):
            character, look_alikes = row[0], tuple(row[1:])
            english, chinese = _NAMES.get(character, known[character])
            measure = measures.get(character, CATEGORIES[category].measure)
            concept = Concept(character, category, english, chinese, measure, look_alikes, index in heldout)
            found[english] = concept
    return found


def trained() -> list[Concept]:
    """The concepts whose drawings training may see."""
    return [concept for concept in concepts().values() if not concept.heldout]


def unseen() -> list[Concept]:
    """The concepts whose drawings no stage of training ever sees."""
    return [concept for concept in concepts().values() if concept.heldout]


def training_drawings() -> dict[str, Path]:
    """SVG files that training may see: all plain OpenMoji drawings but those of the held-out concepts."""
    kept_away = {character for concept in unseen() for character in (concept.character, *concept.look_alikes)}
    return {character: path for character, path in openmoji.drawings().items() if character not in kept_away}


class Drawings:
    """The drawings of the concepts as arrays, cut to what is drawn, rendered once and resized on demand."""

    def __init__(self, characters: list[str]):
        paths = openmoji.drawings()
        self._masters = {}
        for character in characters:
            image = openmoji.render(paths[character], 2 * LARGEST)
            self._masters[character] = image.crop(image.getbbox())
        self._sized: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def sized(self, character: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(colour times opacity [H, W, 3], one minus opacity [H, W, 1]), float32; ``size`` is the longer side."""
        key = (character, size)
        if key not in self._sized:
            master = self._masters[character]
            scale = size / max(master.size)
            shape = (max(2, round(master.width * scale)), max(2, round(master.height * scale)))
            pixels = np.asarray(master.resize(shape, PIL.Image.Resampling.BOX, reducing_gap=3.0), dtype=np.float32)
            opacity = pixels[..., 3:] / 255
            self._sized[key] = (pixels[..., :3] * opacity, 1 - opacity)
        return self._sized[key]


@cache
def concept_drawings() -> Drawings:
    """The drawings of all concepts, the held-out ones included (for evaluation)."""
    return Drawings([concept.character for concept in concepts().values()])


@dataclass(frozen=True)
class Thing:
    """One drawing in a picture: English name of the concept, centre and longer side in pixels."""

    name: str
    x: int
    y: int
    size: int

    @property
    def concept(self) -> Concept:
        return concepts()[self.name]


@dataclass(frozen=True)
class Ground:
    """What is behind the drawings: its kind, two RGB colours, and the seed of the noise."""

    kind: str
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    seed: int


@dataclass(frozen=True)
class Scene:
    """The truth about one picture of SIDE x SIDE pixels."""

    things: tuple[Thing, ...]
    ground: Ground

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each concept is drawn, by English name, in the order of first appearance."""
        return dict(Counter(thing.name for thing in self.things))

    def image(self) -> PIL.Image.Image:
        """Paint the scene."""
        drawings = concept_drawings()
        canvas = _paint_ground(self.ground)
        for thing in self.things:
            colour, behind = drawings.sized(thing.concept.character, thing.size)
            height, width = colour.shape[:2]
            top, left = thing.y - height // 2, thing.x - width // 2
            patch = canvas[top : top + height, left : left + width]
            patch *= behind
            patch += colour
        return PIL.Image.fromarray(canvas.astype(np.uint8))


def _paint_ground(ground: Ground) -> np.ndarray:
    """float32 [SIDE, SIDE, 3] in 0..255."""
    first, second = (np.array(colour, dtype=np.float32) for colour in (ground.first, ground.second))
    canvas = np.empty((SIDE, SIDE, 3), dtype=np.float32)
    canvas[:] = first
    ramp = np.linspace(0, 1, SIDE, dtype=np.float32)
    if ground.kind == "gradient":
        ramp = ramp if ground.seed % 2 else ramp[::-1]
        canvas += (ramp[:, None, None] if ground.seed % 3 else ramp[None, :, None]) * (second - first)
    elif ground.kind == "two-tone":
        edge = SIDE // 4 + ground.seed % (SIDE // 2)
        if ground.seed % 3:
            canvas[edge:] = second
        else:
            canvas[:, edge:] = second
    elif ground.kind == "noise":
        noise = np.random.default_rng(ground.seed).integers(-14, 15, (SIDE, SIDE, 1), dtype=np.int8)
        canvas += noise
        np.clip(canvas, 0, 255, out=canvas)
    return canvas


def composition(scene: Scene) -> list[str]:
    """What is composed with what, as keys that either side of the split owns.

    A single thing: the thing, its size class and the kind of ground. Several: each thing with its number where it
    stands more than once, and each pair of things.
    """
    if len(scene.things) == 1:
        (thing,) = scene.things
        size = "small" if thing.size < 28 else "middle" if thing.size < 42 else "large"
        return [f"{thing.name} {size} {scene.ground.kind}"]
    kinds = sorted(scene.counts)
    keys = [f"{number} {name}" for name, number in scene.counts.items() if number > 1]
    return keys + [f"{a} + {b}" for i, a in enumerate(kinds) for b in kinds[i + 1 :]]


def _owned_by_evaluation(key: str) -> bool:
    return hashlib.blake2b(key.encode(), digest_size=4).digest()[0] < 0.15 * 256


def is_heldout(scene: Scene) -> bool:
    """Whether a composition in this scene belongs to evaluation, so that training never paints it."""
    return any(_owned_by_evaluation(key) for key in composition(scene))


def compose(
    rng: random.Random, pool: Sequence[Concept], kind: str | None = None, heldout: bool | None = False
) -> Scene:
    """A random scene of concepts from ``pool``.

    Args:
        kind: "single" (one thing), "several" (2 to 5 of one concept), "pair" (two concepts, one each), "mixed" (two or
            three concepts, 2 to 5 things); None draws one of these.
        heldout: whether the composition shall belong to evaluation; None takes either.
    """
    kind = kind or rng.choice(("single", "several", "pair", "mixed"))
    while True:
        scene = _compose(rng, pool, kind)
        if scene is not None and (heldout is None or is_heldout(scene) == heldout):
            return scene


def _compose(rng: random.Random, pool: Sequence[Concept], kind: str) -> Scene | None:
    if kind == "single":
        chosen = [_pick(rng, pool)]
    elif kind == "several":
        chosen = [_pick(rng, pool)] * rng.randint(2, 5)
    elif kind == "pair":
        chosen = [_pick(rng, pool), _pick(rng, pool)]
        if chosen[0] is chosen[1]:
            return None
    else:
        some = [_pick(rng, pool) for _ in range(rng.choice((2, 2, 3)))]
        chosen = some + [rng.choice(some) for _ in range(rng.randint(max(0, 2 - len(some)), 5 - len(some)))]
        if len({concept.english for concept in chosen}) < 2:
            return None
    things = _place(rng, chosen)
    return None if things is None else Scene(things, _ground(rng))


def _pick(rng: random.Random, pool: Sequence[Concept]) -> Concept:
    return pool[int(rng.random() * len(pool))]


def _place(rng: random.Random, chosen: list[Concept]) -> tuple[Thing, ...] | None:
    """Sizes and places that hardly overlap; None when a try failed."""
    if len(chosen) == 1:
        sizes = [rng.randint(20, LARGEST)]
    elif len(chosen) == 2:
        sizes = [rng.randint(SMALLEST + 4, 40) for _ in chosen]
    else:
        sizes = [rng.randint(SMALLEST, 28 if len(chosen) == 3 else 24) for _ in chosen]
    drawings = concept_drawings()
    placed: list[tuple[int, int, int, int]] = []
    things = []
    for concept, size in sorted(zip(chosen, sizes, strict=True), key=lambda pair: -pair[1]):
        height, width = drawings.sized(concept.character, size)[0].shape[:2]
        for _ in range(12):
            left, top = rng.randint(0, SIDE - width), rng.randint(0, SIDE - height)
            box = (left, top, left + width, top + height)
            if not any(_overlap(box, other) for other in placed):
                break
        else:
            return None
        placed.append(box)
        things.append(Thing(concept.english, left + width // 2, top + height // 2, size))
    rng.shuffle(things)
    return tuple(things)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two boxes (left, top, right, bottom) share more than a rim of one pixel."""
    return a[0] < b[2] - 1 and b[0] < a[2] - 1 and a[1] < b[3] - 1 and b[1] < a[3] - 1


def _ground(rng: random.Random) -> Ground:
    return Ground(rng.choice(GROUNDS), _colour(rng), _colour(rng), rng.randrange(1 << 16))


def _colour(rng: random.Random) -> tuple[int, int, int]:
    """Light enough that black outlines stand out."""
    return (rng.randint(130, 255), rng.randint(130, 255), rng.randint(130, 255))


def relation(a: Thing, b: Thing) -> str | None:
    """Where ``a`` is seen from ``b``: "left", "right", "above", "below", or None when it is not clear."""
    return _direction(a.x - b.x, a.y - b.y, least=14)


def place(thing: Thing) -> str | None:
    """Where a thing is seen from the middle of the picture, as `relation` says it."""
    return _direction(thing.x - SIDE // 2, thing.y - SIDE // 2, least=9)


def _direction(dx: int, dy: int, least: int) -> str | None:
    """The side that lies so many pixels to the right and down; None of fewer than ``least``, or near a diagonal."""
    if max(abs(dx), abs(dy)) < 1.5 * min(abs(dx), abs(dy)) or max(abs(dx), abs(dy)) < least:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"
