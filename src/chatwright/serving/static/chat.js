// The chat page: brings together the list, the conversation that is shown, and where one writes.

import { call, uuid } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { List } from "./list.js";
import { ask, copy, done, made, toast } from "./page.js";
import { textOf, View } from "./view.js";
import { t } from "./words.js";

const byId = (id) => document.getElementById(id);
const scroller = byId("scroller");
const writing = new Map(); // conversations in which an answer is being written, also where another one is shown
let compare = document.body.dataset.compare === "1"; // whether the server wants the next answer twice
let conversation, view;
let atEnd = true;

const composer = new Composer(() => {
  // Who writes on without a verdict goes on with the answer that comes first.
  const pair = conversation.path().at(-1);
  if (Array.isArray(pair)) conversation.settle({ id: pair[0].parent }, pair[0].id);
  const content = composer.content;
  composer.clear();
  send({ id: uuid(), parent: conversation.last, role: "user", content });
});

const list = new List((id, title) => {
  if (id !== conversation.id) return;
  if (title === null) go("/");
  else show(Object.assign(conversation, { title }));
});

// ---- which conversation is shown

async function route() {
  const path = location.pathname;
  let found = Conversation.fresh();
  try {
    const id = path.match(/^\/c\/([\w-]+)$/)?.[1] ?? found.id;
    if (writing.has(id)) found = writing.get(id);
    else if (path !== "/") found = await Conversation.load(id);
  } catch (error) {
    toast(error.message);
    history.replaceState(null, "", "/");
  }
  if (path === location.pathname || found.key === "new") show(found); // unless another one was chosen since
}

function go(path) {
  history.pushState(null, "", path);
  route();
}

function show(shown) {
  if (shown !== conversation) {
    conversation = shown;
    view = new View(byId("messages"), conversation);
    byId("messages").replaceChildren();
    composer.open(conversation.key);
    atEnd = true;
    listen(conversation);
    if (matchMedia("(hover: hover)").matches) composer.focus();
  }
  byId("title").textContent = conversation.title || t("New chat");
  document.title = `${conversation.title || t("New chat")} · Chatwright`;
  list.current = conversation.id;
  draw();
}

function draw() {
  view.draw();
  const busy = conversation.busy;
  composer.busy = busy;
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("welcome").hidden = conversation.messages.size > 0;
}

const heard = new WeakSet();

function listen(to) {
  if (heard.has(to)) return;
  heard.add(to);
  to.addEventListener("change", () => to === conversation && draw());
  to.addEventListener("ended", ({ detail: { answer, compare: next } }) => {
    compare = next;
    if (to === conversation) byId("said").textContent = t("{model} says: {text}", { model: answer.model, text: textOf(answer) });
  });
  to.addEventListener("saved", () => {
    if (to === conversation && location.pathname === "/") {
      history.replaceState(null, "", `/c/${to.id}`);
      composer.move(to.key);
      show(to);
    }
    list.load();
  });
}

/** Keep a conversation at hand while something is under way in it. */
async function during(work) {
  const own = conversation;
  atEnd = true;
  writing.set(own.id, own);
  try {
    await work(own);
  } finally {
    if (!own.busy) writing.delete(own.id);
  }
}

const send = (message) => during((own) => own.send(message, compare));

// ---- what can be done with a message

const actions = {
  "open-list": () => list.drawer(true),
  "close-list": () => list.drawer(false),
  latest: () => scroller.scrollTo({ top: scroller.scrollHeight }),
  attach: () => composer.choose(),
  stop: () => conversation.stop(),

  resend: (message) => (message.state ? send(message) : during((own) => own.answer(message))),
  retry: (answer) => during((own) => own.answer(own.messages.get(answer.parent), answer.ids)),
  again: (answer) => during((own) => own.answer(own.messages.get(answer.parent))),
  before: (message) => step(message, -1),
  after: (message) => step(message, 1),

  async copy(message, button) {
    await copy(textOf(message));
    done(button);
  },
  async "copy-code"(_, button) {
    await copy(button.closest(".code").querySelector("code").textContent);
    done(button);
  },
  enlarge(_, button) {
    byId("picture").querySelector("img").src = button.querySelector("img").src;
    ask(byId("picture"));
  },

  edit(message, button) {
    const article = button.closest("article");
    if (message.state) {
      conversation.drop(message);
      composer.fill(message.content);
      return composer.focus();
    }
    const form = made("message-edit");
    const box = form.querySelector("textarea");
    box.value = textOf(message);
    article.classList.add("editing");
    article.querySelector(".body").after(form);
    box.focus();
    box.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") actions["leave-edit"](message, form);
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      form.requestSubmit();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = box.value.trim();
      const pictures = message.content.filter((part) => part.type === "image").map(({ type, file }) => ({ type, file }));
      if ((!text && !pictures.length) || conversation.busy) return;
      actions["leave-edit"](message, form);
      composer.focus();
      const content = text ? [...pictures, { type: "text", text }] : pictures;
      send({ id: uuid(), parent: message.parent ?? null, role: "user", content });
    });
  },
  "leave-edit"(_, inside) {
    const article = inside.closest("article");
    article.classList.remove("editing");
    article.querySelector("form").remove();
    article.querySelector("[data-do=edit]").focus();
  },

  good: (answer, button) => thumb(answer, button, true),
  bad: (answer, button) => thumb(answer, button, false),
  "leave-why"(_, button) {
    leave(button.closest("article"));
  },
  async correct(answer) {
    const dialog = byId("correction");
    const box = dialog.querySelector("textarea");
    const before = answer.evaluations.correction;
    box.value = before?.text ?? textOf(answer);
    box.setSelectionRange(0, 0);
    dialog.querySelector("[value=remove]").hidden = !before;
    const chosen = await ask(dialog);
    const text = box.value.trim();
    if (chosen === "yes" && text) {
      await call("PUT", `/api/messages/${answer.id}/correction`, { text });
      answer.evaluations.correction = { text };
    } else if (chosen === "remove") {
      await call("DELETE", `/api/messages/${answer.id}/correction`);
      answer.evaluations.correction = null;
    }
    draw();
  },
  judge: (prompt, button) => conversation.judge(prompt, button.value),
  skip: (prompt) => conversation.settle(prompt, conversation.pairs.get(prompt.id)[0]),
};

function step(message, by) {
  const branches = conversation.branches(message);
  atEnd = false;
  conversation.choose(branches[branches.indexOf(message) + by]);
  draw();
  // The arrow that was pressed is now in another message, at the same place.
  const article = byId("messages").querySelector(`[data-id="${branches[branches.indexOf(message) + by].id}"]`);
  article.querySelector(`[data-do=${by < 0 ? "before" : "after"}]:enabled, .branches :enabled`)?.focus();
}

/** A thumb counts at once; why can be said afterwards. Pressed again, it is taken back. */
async function thumb(answer, button, good) {
  const article = button.closest("article");
  const path = `/api/messages/${answer.id}/thumb`;
  leave(article);
  if (answer.evaluations.thumb?.good === good) {
    await call("DELETE", path);
    answer.evaluations.thumb = null;
    return draw();
  }
  answer.evaluations.thumb = { good, reasons: [], comment: "" };
  await call("PUT", path, answer.evaluations.thumb);
  draw();
  const form = made(good ? "why-good" : "why-bad");
  article.querySelector(".feedback").append(form);
  article.querySelector(".feedback").hidden = false;
  form.scrollIntoView({ block: "nearest" });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const data = new FormData(form);
    const said = { good, reasons: data.getAll("reason"), comment: data.get("comment").trim() };
    try {
      await call("PUT", path, said);
      answer.evaluations.thumb = said;
      leave(article);
      toast(t("Thank you."));
    } catch (error) {
      toast(error.message);
    }
  });
}

function leave(article) {
  const box = article.querySelector(".feedback");
  if (box.contains(document.activeElement)) article.querySelector("[aria-pressed=true]")?.focus();
  box.replaceChildren();
  box.hidden = true;
}

// ---- what people do

document.addEventListener("click", async (event) => {
  const { target } = event;
  const button = target.closest("[data-do]");
  if (button?.dataset.do in actions) {
    const message = conversation.messages.get(button.closest("[data-id]")?.dataset.id);
    try {
      await actions[button.dataset.do](message, button);
    } catch (error) {
      toast(error.message);
    }
    return;
  }
  const link = target.closest('a[href="/"], a[href^="/c/"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  list.drawer(false);
  go(link.getAttribute("href"));
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open], :popover-open")) return;
  if (document.body.classList.contains("drawer")) list.drawer(false);
  else if (conversation?.writing.length) actions.stop().catch((error) => toast(error.message));
});

scroller.addEventListener("scroll", () => {
  atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;
  byId("latest").hidden = atEnd;
});
// Who is at the end stays there, whatever grows.
const stay = new ResizeObserver(() => atEnd && scroller.scrollTo({ top: scroller.scrollHeight }));
stay.observe(scroller);
stay.observe(byId("messages"));
addEventListener("popstate", route);
await route();
