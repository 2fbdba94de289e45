// How messages look: each is an element, made once from its template and brought up to date when it changes.

import { made } from "./page.js";
import { t } from "./words.js";

const ENDINGS = {
  length: "Cut off: it reached the greatest length.",
  cancelled: "Stopped.",
};

/** Make `parent` hold these nodes, leaving those that are in place untouched: they keep focus and selection. */
function place(parent, nodes) {
  nodes.forEach((node, i) => {
    if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] ?? null);
  });
  while (parent.children.length > nodes.length) parent.lastElementChild.remove();
}

/** The text of a message as its writer wrote it. */
export function textOf(message) {
  return message.content.map((part) => part.text ?? "").join("");
}

export class View {
  #shown = new Map(); // from a message's id to its element

  constructor(box, conversation) {
    Object.assign(this, { box, conversation });
  }

  /** Show the conversation as it is now. */
  draw() {
    const nodes = this.conversation.path().map((step) => (Array.isArray(step) ? this.#pair(step) : this.element(step)));
    place(this.box, nodes);
  }

  /** The element of a message, up to date. */
  element(message) {
    if (!this.#shown.has(message.id)) {
      const element = made(`message-${message.role}`);
      element.dataset.id = message.id;
      this.#shown.set(message.id, element);
    }
    const element = this.#shown.get(message.id);
    const find = (selector) => element.querySelector(selector);
    if (message.role === "user") this.#user(message, find);
    else this.#assistant(message, element, find);

    const branches = this.conversation.branches(message);
    find(".branches").hidden = branches.length < 2;
    const at = branches.indexOf(message);
    find(".which").textContent = `${at + 1} / ${branches.length}`;
    find("[data-do=before]").disabled = at === 0;
    find("[data-do=after]").disabled = at === branches.length - 1;
    find(".actions").classList.toggle("busy", this.conversation.busy);
    return element;
  }

  #user(message, find) {
    if (!find(".body").hasChildNodes()) find(".body").append(...said(message.content));
    const unanswered = !message.state && !this.conversation.chosen.has(message.id) && !this.conversation.busy;
    const trouble = find(".trouble");
    trouble.hidden = message.state !== "unsent" && !unanswered;
    trouble.querySelector("span").textContent = unanswered ? t("Not answered yet.") : `${t("Not sent.")} ${message.error ?? ""}`;
    trouble.querySelector("button").textContent = unanswered ? t("Ask for an answer") : t("Send again");
  }

  #assistant(message, element, find) {
    const writing = message.state === "writing";
    element.classList.toggle("writing", writing);
    element.setAttribute("aria-busy", writing);
    fill(find(".body"), message.content, writing);
    find(".ended").textContent = t(ENDINGS[message.finish_reason] ?? "");
    find(".ended").hidden = Boolean(message.state) || !(message.finish_reason in ENDINGS);
    find(".trouble").hidden = message.state !== "failed";
    find(".trouble span").textContent = message.error ?? "";
    find(".actions").classList.toggle("unsaved", Boolean(message.state));

    const { thumb, correction } = message.evaluations;
    find("[data-do=good]").setAttribute("aria-pressed", thumb?.good === true);
    find("[data-do=bad]").setAttribute("aria-pressed", thumb?.good === false);
    find("aside").hidden = !correction;
    find("aside .text").textContent = correction?.text ?? "";
  }

  /** Two answers side by side and the question which is better. */
  #pair(answers) {
    const key = answers.map((answer) => answer.id).join();
    if (!this.#shown.has(key)) {
      const section = made("comparison");
      section.dataset.id = answers[0].parent;
      this.#shown.set(key, section);
    }
    const section = this.#shown.get(key);
    place(section.querySelector(".pair"), answers.map((answer) => this.element(answer)));
    section.querySelector(".verdict").hidden = answers.some((answer) => answer.state);
    return section;
  }
}

/** What a user's message shows: its pictures, and its text as it was typed. */
function said(content) {
  const pictures = Object.assign(document.createElement("div"), { className: "thumbnails" });
  const text = Object.assign(document.createElement("p"), { textContent: textOf({ content }) });
  for (const { file } of content.filter((part) => part.type === "image")) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.dataset.do = "enlarge";
    button.append(Object.assign(document.createElement("img"), { src: `/api/files/${file}`, alt: t("Picture") }));
    pictures.append(button);
  }
  return [pictures, text].filter((part) => part.hasChildNodes());
}

/**
 * Fill the body of an answer with HTML that the server has made safe. Blocks that have not changed since the last time
 * stay as they are, so that text can be selected while more is written.
 */
function fill(body, content, writing) {
  const html = content.map((part) => part.html ?? "").join("");
  if (body.dataset.writing === String(writing) && body.html === html) return;
  Object.assign(body, { html });
  body.dataset.writing = writing;
  const fresh = Object.assign(document.createElement("template"), { innerHTML: html }).content;
  if (!writing) for (const code of fresh.querySelectorAll("pre > code")) frame(code);
  for (const table of fresh.querySelectorAll("table")) {
    const scroll = Object.assign(document.createElement("div"), { className: "scroll", tabIndex: 0 });
    table.replaceWith(scroll);
    scroll.append(table);
  }
  const blocks = [...fresh.children];
  place(body, blocks.map((block, i) => (body.children[i]?.isEqualNode(block) ? body.children[i] : block)));
}

/** Give a block of code a head with its language and a button that copies it. */
function frame(code) {
  const block = made("code-block");
  const pre = code.parentElement;
  block.querySelector("span").textContent = [...code.classList].find((name) => name.startsWith("language-"))?.slice(9) ?? "";
  pre.tabIndex = 0;
  pre.replaceWith(block);
  block.append(pre);
}
