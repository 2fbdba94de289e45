"""The pages as people meet them: a real Chromium on a running server with the tiny assistant.

Screenshots of every page are in pytest's temporary folder (``pytest --basetemp DIR`` chooses it).
"""

import io
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright
from sqlalchemy import select
from tests.conftest import picture
from tests.serving.clients import PASSWORD, Running

from chatwright.feedback import accounts, conversations
from chatwright.feedback.conversations import Content, Origin
from chatwright.feedback.database import Database
from chatwright.feedback.tables import Conversation, Evaluation, Message, User
from chatwright.generation.engine import Engine
from chatwright.serving.language import CHINESE, STATIC

CHROMIUM = Path("/usr/bin/chromium")
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
ORIGIN = Origin("tiny", "a" * 64, {"temperature": 1.0}, "stop", 3, 2)

expect.set_options(timeout=30_000)

if not CHROMIUM.exists():
    pytest.skip(f"THE PAGES ARE NOT TESTED: there is no {CHROMIUM}; apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium) -> Iterator[Callable[..., Page]]:
    """Opens a page of a server in a browser of its own. When the test ends, no request may have gone elsewhere and
    nothing may stand in the console, where a browser tells what a policy has forbidden, but what is ``excused``."""
    contexts, wrong = [], []

    def visited(
        running: Running, path: str = "/", person: str = "", role: str = "user", excused: str = "^$", **settings
    ) -> Page:
        context = chromium.new_context(**{"viewport": DESKTOP, "locale": "en-GB", **settings})
        contexts.append(context)

        def only_here(route) -> None:
            if route.request.url.startswith(running.url):
                return route.continue_()
            wrong.append(route.request.url)
            route.abort()

        def told(message) -> None:
            if message.type in ("error", "warning") and not re.search(excused, message.text):
                wrong.append(message.text)

        context.route("**/*", only_here)
        context.on("console", told)
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        if person:
            token = running.person(person, role).cookies["chatwright"]
            context.add_cookies([{"name": "chatwright", "value": token, "url": running.url}])
        page = context.new_page()
        page.goto(running.url + path)
        return page

    yield visited
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def slowly(assistant) -> None:
    """The assistant takes its time, and after some words so much that it can be stopped on any machine."""
    said = itertools.count()
    assistant.register_forward_pre_hook(lambda *_: time.sleep(0.02 if next(said) < 30 else 0.5))


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").and_(page.locator("textarea")).fill(text)
    page.keyboard.press("Enter")


def answer(page: Page, number: int = -1) -> Locator:
    """An answer that has ended."""
    found = page.locator("article.assistant").nth(number)
    expect(found).to_have_attribute("aria-busy", "false")
    expect(page.locator("#send")).to_be_visible()
    return found


def last(page: Page, role: str) -> Locator:
    return page.locator(f"article.{role}").last


def person(database: Database, name: str) -> UUID:
    with database.reading() as session:
        return session.scalars(select(User.id).where(User.name == name)).one()


def rows(database: Database, table: type) -> list:
    with database.reading() as session:
        return list(session.scalars(select(table).order_by(table.created_at)).unique())


def talk(running: Running, name: str, *turns: str, title: str = "A talk") -> str:
    """The path of a conversation that is there already."""
    with running.database.writing(person(running.database, name)) as session:
        conversation, parent = conversations.create(session, uuid4(), title).id, None
        for number, words in enumerate(turns):
            role, origin = ("assistant", ORIGIN) if number % 2 else ("user", None)
            content = [Content("text", words)]
            parent = conversations.add(session, conversation, uuid4(), parent, role, content, origin).id
    return f"/c/{conversation}"


# ---- chatting


def test_the_first_owner_joins_and_stops_an_answer(start, database, assistant, renderer, visit, slowly, endless):
    secret = accounts.first_owner_link(database)
    running = start(Engine(assistant, renderer, batch_size=4))
    page = visit(running, f"/join/{secret}")
    page.get_by_label("Name").fill("Ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Make my account").click()
    expect(page.get_by_text("What would you like to know?")).to_be_visible()

    say(page, "How many <b>dogs</b>\nare there?")
    writing = page.locator("article.writing .body > *").first
    writing.wait_for()
    soon = last(page, "assistant").locator(".body").inner_text()
    page.wait_for_function("text => document.querySelector('article.writing .body').innerText != text", arg=soon)
    page.keyboard.press("Escape")
    expect(answer(page).locator(".ended")).to_have_text("Stopped.")
    assert last(page, "user").locator("p").first.inner_text() == "How many <b>dogs</b>\nare there?"
    expect(page.locator("#said")).to_contain_text("tiny says:")

    asked, answered = rows(database, Message)
    assert (answered.parent_id, answered.finish_reason) == (asked.id, "cancelled")
    assert page.url == f"{running.url}/c/{asked.conversation_id}"
    expect(page.locator("#conversations [aria-current]")).to_have_text("How many <b>dogs</b> are there?")
    shown = last(page, "assistant").locator(".body").inner_html()
    page.reload()
    assert answer(page).locator(".body").inner_html() == shown


def test_an_answer_can_be_stopped_before_the_server_has_begun_it(running, visit, slowly, endless):
    page = visit(running, person="ada")

    def late(route: Route) -> None:
        time.sleep(0.5)
        route.continue_()

    page.route("**/answers", late)
    say(page, "dog")
    page.locator("article.writing").wait_for()
    page.keyboard.press("Escape")
    expect(answer(page).locator(".ended")).to_have_text("Stopped.")


def test_an_edit_and_another_answer_are_branches_to_go_back_to(running, visit):
    page = visit(running, person="ada")
    say(page, "dog")
    answer(page)
    first = page.locator("article.user")
    first.get_by_role("button", name="Edit and send again").click()
    box = page.get_by_label("Edit your message")
    expect(box).to_have_value("dog")
    box.fill("pear")
    box.press("Enter")
    expect(first.locator(".which")).to_have_text("2 / 2")
    expect(first.locator(".body")).to_have_text("pear")
    answer(page).get_by_role("button", name="Another answer").click()
    expect(last(page, "assistant").locator(".which")).to_have_text("2 / 2")
    answer(page)

    first.get_by_role("button", name="The version before").click()
    expect(first.locator(".body")).to_have_text("dog")
    expect(last(page, "assistant").locator(".branches")).to_be_hidden()
    first.get_by_role("button", name="The version after").click()
    expect(first.locator(".body")).to_have_text("pear")
    last(page, "assistant").get_by_role("button", name="The version before").click()
    expect(last(page, "assistant").locator(".which")).to_have_text("1 / 2")

    say(page, "apple")
    answer(page, 1)
    stored = rows(running.database, Message)
    words = {message.id: message.content[0].text for message in stored if message.role == "user"}
    parents = {words[m.id]: m.parent_id for m in stored if m.role == "user"}
    pear = next(key for key, text in words.items() if text == "pear")
    answers = [message.id for message in stored if message.parent_id == pear]
    assert (parents["dog"], parents["pear"], parents["apple"]) == (None, None, answers[0])
    assert len(answers) == 2

    # Who comes back finds the branch that was written in last.
    first.get_by_role("button", name="The version before").click()
    say(page, "fruit")
    answer(page, 1)
    page.reload()
    expect(page.locator("article.user .body")).to_have_text(["dog", "fruit"])


def test_pictures_are_chosen_pasted_dropped_and_removed(running, visit):
    page = visit(running, person="ada")
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png(1)})
    for event in ("paste", "drop"):
        page.evaluate(
            """([event, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], `${event}.png`, {type: "image/png"}));
                const all = {bubbles: true, cancelable: true};
                document.getElementById("text").dispatchEvent(event == "paste"
                    ? new ClipboardEvent("paste", {clipboardData: data, ...all})
                    : new DragEvent("drop", {dataTransfer: data, ...all}));
            }""",
            [event, [*png(len(event))]],
        )
    shown = page.locator("#pictures li:not(.uploading) img")
    expect(shown).to_have_count(3)
    page.get_by_role("button", name="Remove this picture").first.click()
    expect(shown).to_have_count(2)
    page.reload()  # what is not sent yet is not lost
    expect(shown).to_have_count(2)
    say(page, "What is in the picture?")
    answer(page)
    assert page.evaluate("[...document.querySelectorAll('article.user img')].map(image => image.naturalWidth)") == [
        32,
        32,
    ]
    asked = rows(running.database, Message)[0]
    assert [part.type for part in asked.content] == ["image", "image", "text"]
    page.locator("article.user .thumbnails button").first.click()
    expect(page.get_by_role("dialog", name="Picture").locator("img")).to_be_visible()


def test_what_cannot_be_sent_is_kept_and_sent_again_once(running, visit):
    page = visit(running, person="ada", excused="net::ERR")
    page.locator("#text").fill("a draft")
    page.reload()
    expect(page.locator("#text")).to_have_value("a draft")
    page.context.set_offline(True)
    page.keyboard.press("Enter")
    unsent = page.get_by_role("alert").filter(has_text="Not sent. The server cannot be reached.")
    expect(unsent).to_be_visible()
    page.get_by_role("button", name="Edit and send again").click()
    expect(page.locator("#text")).to_have_value("a draft")
    expect(unsent).to_have_count(0)
    page.keyboard.press("Enter")
    expect(unsent).to_be_visible()
    page.context.set_offline(False)
    page.reload()
    page.get_by_role("button", name="Send again", exact=True).click()
    answer(page)

    # The server has got this one, but its word of that is lost.
    lost = []

    def lose(route) -> None:
        if route.request.method == "PUT" and not lost:
            lost.append(route.fetch())
            return route.abort()
        route.fallback()

    page.context.route("**/messages/*", lose)
    say(page, "another")
    page.get_by_role("button", name="Send again", exact=True).click()
    answer(page, 1)
    roles = [message.role for message in rows(running.database, Message)]
    assert roles == ["user", "assistant"] * 2


# ---- judging


def test_thumbs_and_corrections_are_kept(running, visit):
    page = visit(running, person="ada")
    path = talk(running, "ada", "What is 2 + 2?", "5")
    page.goto(running.url + path)
    good, bad = (page.get_by_role("button", name=f"A {word} answer") for word in ("good", "bad"))
    good.click()
    expect(good).to_have_attribute("aria-pressed", "true")
    bad.click()
    expect(good).to_have_attribute("aria-pressed", "false")
    page.get_by_label("Not true").check(force=True)
    page.get_by_label("Anything else?").fill("it is four")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Thank you.")).to_be_visible()
    page.get_by_role("button", name="What should it have said?").click()
    box = page.get_by_label("The better answer")
    expect(box).to_have_value("5")
    box.fill("4")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    correction = page.get_by_role("complementary", name="Your correction")
    expect(correction).to_contain_text("4")

    thumb, corrected = rows(running.database, Evaluation)
    assert (thumb.good, thumb.reasons, thumb.comment) == (False, ["wrong"], "it is four")
    assert corrected.text == "4"
    page.reload()
    expect(bad).to_have_attribute("aria-pressed", "true")
    expect(correction).to_contain_text("4")
    bad.click()
    expect(bad).to_have_attribute("aria-pressed", "false")
    assert [one.kind for one in rows(running.database, Evaluation)] == ["correction"]


def test_the_better_of_two_answers_is_kept_and_gone_on_with(start, assistant, renderer, visit):
    running = start(Engine(assistant, renderer, batch_size=4), compare_every=1)
    page = visit(running, person="ada")
    say(page, "dog")
    page.get_by_role("button", name="B is better").click()
    expect(page.locator(".comparison")).to_have_count(0)
    expect(last(page, "assistant").locator(".which")).to_have_text("2 / 2")
    (judged,) = rows(running.database, Evaluation)
    assert judged.verdict == "second"
    say(page, "and a pear?")
    page.get_by_role("button", name="Both bad").click()
    expect(page.locator(".comparison")).to_have_count(0)
    assert [one.verdict for one in rows(running.database, Evaluation)] == ["second", "neither"]
    followed = next(message for message in rows(running.database, Message) if message.content[0].text == "and a pear?")
    assert followed.parent_id == judged.other_id


# ---- the list of conversations


def test_conversations_are_searched_renamed_and_deleted(running, visit):
    page = visit(running, person="ada")
    talk(running, "ada", "What is a pear?", "A fruit.", title="Pears")
    talk(running, "ada", "狗在哪里？", "在左边。", title="狗")
    page.reload()
    titles = page.locator("#conversations a")
    expect(titles).to_have_text(["狗", "Pears"])
    search = page.get_by_role("searchbox", name="Search conversations")
    search.fill("fruit")
    expect(titles).to_have_text(["Pears"])
    titles.first.click()
    expect(answer(page)).to_contain_text("A fruit.")

    page.get_by_role("button", name="Change Pears").click()
    page.get_by_role("button", name="Rename").click()
    title = page.get_by_role("dialog").get_by_label("Title")
    expect(title).to_be_focused()
    title.fill("Fruit")
    title.press("Enter")
    expect(titles).to_have_text(["Fruit"])
    expect(page.get_by_role("heading", level=1)).to_have_text("Fruit")
    page.get_by_role("button", name="Change Fruit").click()
    page.get_by_role("button", name="Delete").click()
    page.keyboard.press("Escape")
    expect(titles).to_have_text(["Fruit"])
    page.get_by_role("button", name="Change Fruit").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("Nothing found.")).to_be_visible()
    expect(page).to_have_url(f"{running.url}/")
    search.fill("")
    expect(titles).to_have_text(["狗"])
    assert [one.title for one in rows(running.database, Conversation)] == ["狗"]


# ---- how the page looks and is used


def test_language_and_colours_are_switched_and_remembered(running, visit):
    page = visit(running, "/sign-in", locale="zh-CN", color_scheme="dark")
    expect(page.get_by_role("heading")).to_have_text("登录")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(20, 23, 27)"
    with page.expect_navigation():
        page.get_by_label("语言").select_option("en")
    expect(page.get_by_role("heading")).to_have_text("Sign in")
    page.get_by_label("Colours").select_option("light")
    assert page.evaluate(background) == "rgb(251, 251, 250)"
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    assert page.evaluate(background) == "rgb(251, 251, 250)"


def test_every_text_of_the_pages_is_there_in_chinese():
    templates = "".join(path.read_text() for path in (STATIC.parent / "templates").glob("*.html"))
    scripts = "".join(path.read_text() for path in STATIC.glob("*.js"))
    texts = {*re.findall(r'"([^"]+)" \| t\b', templates), *re.findall(r'\bt\("([^"]+)"', scripts)}
    assert len(texts) > 100
    assert texts <= {*CHINESE}


def test_on_a_phone_the_list_is_a_drawer(running, visit):
    page = visit(running, person="ada", viewport=PHONE, has_touch=True)
    talk(running, "ada", "What is a pear?", "A fruit.", title="Pears")
    page.reload()
    pears = page.get_by_role("link", name="Pears")
    expect(pears).not_to_be_visible()
    page.get_by_role("button", name="Conversations").click()
    expect(pears).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(pears).not_to_be_visible()
    expect(page.get_by_role("button", name="Conversations")).to_be_focused()
    page.get_by_role("button", name="Conversations").click()
    pears.click()
    expect(pears).not_to_be_visible()
    expect(answer(page)).to_contain_text("A fruit.")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_keyboard_is_enough(running, visit, slowly, endless):
    running.person("ada")
    page = visit(running, "/sign-in")
    keys = page.keyboard
    # A page takes its first focus when it is drawn, which on a busy machine comes after it has loaded.
    expect(page.get_by_label("Name")).to_be_focused()
    keys.type("ada")
    keys.press("Tab")
    keys.type(PASSWORD)
    keys.press("Enter")
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    expect(page.locator("#text")).to_be_focused()
    skip = page.get_by_role("link", name="Skip to writing")
    skip.focus()
    expect(skip).to_be_in_viewport()
    keys.press("Enter")
    expect(page.locator("#text")).to_be_focused()
    keys.type("dog")
    keys.press("Shift+Enter")
    keys.type("pear")
    keys.press("Enter")
    page.locator("article.writing").wait_for()
    keys.press("Escape")
    expect(answer(page).locator(".ended")).to_have_text("Stopped.")
    assert rows(running.database, Message)[0].content[0].text == "dog\npear"
    # Backwards from where one writes: the actions of the last answer, of which the last is "another answer".
    keys.press("Shift+Tab")
    expect(page.get_by_role("button", name="Another answer")).to_be_focused()
    keys.press("Shift+Tab")
    keys.press("Enter")
    expect(page.get_by_label("The better answer")).to_be_focused()
    keys.press("Escape")
    expect(last(page, "assistant").get_by_role("button", name="What should it have said?")).to_be_focused()


HOSTILE = """<script>window.hit = 1</script><img src=x onerror="window.hit = 2"><svg onload="window.hit = 3">
[link](javascript:window.hit=4) ![spy](http://evil.example/pixel.png)
<iframe srcdoc="<script>parent.hit=5</script>"></iframe>
<style>body { display: none }</style><form action="http://evil.example"><button data-do="delete">x</button></form>
</div></article><base href="http://evil.example/">

```html" onmouseover="window.hit=6
<script>window.hit = 7</script>
```
"""


def test_what_a_hostile_model_says_does_nothing(running, visit):
    page = visit(running, person="ada")
    page.goto(running.url + talk(running, "ada", HOSTILE, HOSTILE, title="<img src=x onerror=window.hit=8>"))
    said = answer(page)
    expect(said.locator(".body")).to_contain_text("window.hit = 1")
    said.locator("pre").hover()
    elements = "script, img, svg:not(.icon), iframe, style, form, base, a[href^=javascript]"
    expect(page.locator(".assistant .body").locator(elements)).to_have_count(0)
    said.get_by_text("Copy", exact=True).click()
    assert page.evaluate("window.hit") is None
    expect(page.get_by_role("heading", level=1)).to_have_text("<img src=x onerror=window.hit=8>")


# ---- accounts


def test_settings_and_people(running, visit):
    page = visit(running, "/settings", "ada", excused="409")
    page.get_by_role("switch").check()
    expect(page.get_by_text("Saved.")).to_be_visible()
    page.get_by_label("Name of the new key").fill("notebook")
    page.get_by_role("button", name="Make a key").click()
    key = page.locator("#key")
    expect(key).to_contain_text("cw-")
    ada = person(running.database, "ada")
    assert accounts.whose_key(running.database, key.inner_text()) == ada
    page.get_by_role("button", name="Revoke notebook").click()
    expect(page.locator("#keys")).to_be_hidden()
    assert accounts.whose_key(running.database, key.text_content()) is None
    page.get_by_label("The old password").fill(PASSWORD)
    page.get_by_label("The new password").fill("another password")
    page.get_by_role("button", name="Change the password").click()
    expect(page.get_by_text("Your password is changed.")).to_be_visible()
    expect(page.get_by_role("switch")).to_be_checked()

    owner = visit(running, "/people", "boss", role="owner")
    owner.get_by_role("button", name="Make a link").click()
    expect(owner.locator("#link")).to_contain_text("/join/")
    page.goto(owner.locator("#link").inner_text())
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Make my account").click()
    expect(page.get_by_role("alert").first).to_contain_text("the name ada is taken")
    owner.get_by_role("button", name="New password for ada").click()
    expect(owner.get_by_text("Send this link to ada alone")).to_be_visible()
    page.goto(owner.locator("#reset-link").inner_text())
    page.get_by_label("The new password").fill("short")
    page.get_by_role("button", name="Set the password").click()
    page.get_by_label("The new password").fill("a third password")
    page.get_by_role("button", name="Set the password").click()
    expect(page.get_by_text("What would you like to know?")).to_be_visible()
    held: list[Route] = []
    course: list[str] = []
    owner.route("**/api/people/*", lambda route: held.append(route), times=1)
    owner.on("request", lambda request: course.append("asked") if request.method == "PATCH" else None)
    owner.on("requestfinished", lambda request: course.append("answered") if request.method == "PATCH" else None)
    owner.get_by_label("Role of ada").select_option("annotator")
    owner.get_by_role("button", name="Close the account of ada").click()
    held.pop().continue_()
    expect(owner.get_by_role("button", name="Open the account of ada again")).to_be_focused()
    assert course == ["asked", "answered"] * 2, "the first is shown before the second is made"
    with running.database.reading() as session:
        kept = session.get(User, ada)
        assert (kept.role, kept.active, kept.consent) == ("annotator", False, True)

    leaver = visit(running, "/settings", "leaver")
    leaver.get_by_role("button", name="Delete my account").click()
    sure = leaver.get_by_role("dialog").get_by_role("button", name="Delete")
    expect(sure).to_be_disabled()
    leaver.get_by_label("Your name, leaver").fill("leaver")
    sure.click()
    expect(leaver).to_have_url(f"{running.url}/sign-in")
    assert [user.name for user in rows(running.database, User)] == ["owner", "ada", "boss"]


# ---- every page, seen


SAID = """There are **three dogs**; the largest is the brown one on the left. 图片里还有一个红苹果。

1. A brown dog, left
2. A white dog, in the middle

```python
from collections import Counter

print(Counter(["dog", "apple", "dog", "dog"])["dog"])  # 3
```

| name | where |
|---|---|
| dog | left |
| 狗 | 中间 |
"""


# What our own words say on a page; what people and the model have written is left out.
WORDS = """() => [...document.querySelectorAll("body *")]
    .filter(one => one.checkVisibility())
    .filter(one => !one.closest(".prose, .user .body, #said, #title, #conversations a, .who, .once code"))
    .flatMap(one => [
        ...[...one.childNodes].filter(node => node.nodeType == 3).map(node => node.data),
        ...["aria-label", "title", "placeholder", "alt"].map(name => one.getAttribute(name) ?? ""),
    ]).join(" ")"""
LATIN = {"Chatwright", "English", "Enter", "Shift", "API", "OpenAI", "JSON", "Esc", "tiny", "ada", "boss", "owner"}


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
def test_every_page_is_accessible(start, assistant, renderer, visit, language, tmp_path_factory):
    folder = tmp_path_factory.mktemp("screenshots", numbered=False) if language == "en-GB" else None
    folder = folder or tmp_path_factory.getbasetemp() / "screenshots"
    running = start(Engine(assistant, renderer, batch_size=4), compare_every=3)
    page = visit(running, "/", "ada", role="owner", excused="404", locale=language, reduced_motion="reduce")
    path = talk(running, "ada", "How many dogs are there? And which one is the largest?", SAID, title="三只狗")
    talk(running, "ada", "图片里有什么？", "一个苹果。", title="图片里的苹果")
    boss = running.person("boss", "owner")
    secret = boss.post("/api/invitations", json={"role": "user"}).json()["link"]
    visitor = visit(running, secret, locale=language)

    def look(page: Page, name: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for width, size in (("desktop", DESKTOP), ("phone", PHONE)):
                page.set_viewport_size(size)
                page.screenshot(path=folder / f"{name}-{width}-{scheme}-{language[:2]}.png")
                if (scheme, width, language) in (("light", "desktop", "en-GB"), ("dark", "phone", "zh-CN")):
                    if language == "zh-CN":
                        assert not {*re.findall("[A-Za-z]{2,}", page.evaluate(WORDS))} - LATIN, name
                    page.evaluate(AXE)
                    found = page.evaluate("axe.run().then(result => result.violations)")
                    assert not found, f"{name}: {json.dumps(found, indent=1)}"
        page.set_viewport_size(DESKTOP)

    look(visitor, "join")
    visitor.goto(running.url + boss.post(f"/api/people/{boss.person}/reset").json()["link"])
    look(visitor, "reset")
    visitor.goto(f"{running.url}/sign-in")
    look(visitor, "sign-in")
    page.reload()
    page.locator("#conversations a").first.wait_for()
    look(page, "new")
    page.goto(running.url + path)
    answer(page).locator("[data-do=bad]").click()
    page.locator(".why").wait_for()
    look(page, "chat")
    answer(page).locator("[data-do=correct]").click()
    look(page, "correction")
    page.keyboard.press("Escape")
    page.locator("#account").click()
    look(page, "menu")
    page.keyboard.press("Escape")
    say_in(page, "dog")
    page.locator(".verdict button").first.wait_for()
    look(page, "comparison")
    for name in ("settings", "people", "nothing"):
        page.goto(f"{running.url}/{name}" if name != "nothing" else f"{running.url}/c/{uuid4()}")
        page.wait_for_load_state("networkidle")
        if name == "people":
            page.locator("#accounts [data-do=reset]").first.click()
            page.locator("#reset").wait_for()
        look(page, name)
    page.goto(running.url)
    page.set_viewport_size(PHONE)
    page.locator("[data-do=open-list]").click()
    page.locator("#conversations a").first.wait_for()
    page.screenshot(path=folder / f"drawer-phone-dark-{language[:2]}.png")


def say_in(page: Page, text: str) -> None:
    """As `say`, whatever the language."""
    page.locator("#text").fill(text)
    page.keyboard.press("Enter")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()
