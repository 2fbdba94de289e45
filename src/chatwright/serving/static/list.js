// The list of conversations: by day, searched, renamed, deleted. On a narrow screen it is a drawer.

import { call } from "./api.js";
import { ask, made, toast } from "./page.js";
import { t } from "./words.js";

const DAY = 24 * 60 * 60 * 1000;
const narrow = matchMedia("(max-width: 52rem)");

export class List {
  #box = document.getElementById("conversations");
  #search = document.getElementById("search");
  #bar = document.getElementById("sidebar");
  #found = null; // until the server has told
  #more = false;
  #current = null;
  #meant = null; // the conversation whose menu is open

  /** `onChange` is told of the title of a conversation that was renamed, or null when it was deleted. */
  constructor(onChange) {
    let waiting;
    this.#search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.load(), 150);
    });
    this.#box.addEventListener("click", ({ target }) => {
      const id = target.closest("li")?.dataset.id;
      this.#meant = this.#found.find((one) => one.id === id) ?? this.#meant;
      if (target.closest("[data-do=older]")) this.load(this.#found.length);
    });
    document.getElementById("conversation-menu").addEventListener("click", ({ target }) => {
      const what = target.closest("button")?.dataset.do;
      if (what) this.#change(what, this.#meant, onChange).catch((error) => toast(error.message));
    });
    narrow.addEventListener("change", () => this.drawer(false));
    this.drawer(false);
    this.load();
  }

  /** The conversation that is shown. */
  set current(id) {
    this.#current = id;
    this.#draw();
  }

  async load(offset = 0) {
    const query = this.#search.value.trim();
    try {
      const { conversations, more } = await call("GET", `/api/conversations?${new URLSearchParams({ query, offset })}`);
      if (query !== this.#search.value.trim()) return; // more was typed since
      this.#found = [...(this.#found ?? []).slice(0, offset), ...conversations];
      this.#more = more;
      this.#draw();
    } catch (error) {
      toast(error.message);
    }
  }

  /** Open or close the drawer; on a wide screen the list is always there. */
  drawer(open) {
    const was = document.body.classList.contains("drawer");
    document.body.classList.toggle("drawer", open && narrow.matches);
    this.#bar.inert = narrow.matches && !open;
    document.getElementById("main").inert = narrow.matches && open;
    if (open) this.#bar.querySelector("[data-do=close-list]").focus();
    else if (was) document.querySelector("[data-do=open-list]").focus();
  }

  async #change(what, { id, title }, onChange) {
    const dialog = document.getElementById(what);
    if (what === "rename") {
      const box = dialog.querySelector("input");
      box.value = title;
      queueMicrotask(() => box.select());
      if ((await ask(dialog)) !== "yes" || !box.value.trim()) return;
      title = box.value.trim();
      await call("PATCH", `/api/conversations/${id}`, { title });
    } else {
      dialog.querySelector(".which").textContent = title;
      if ((await ask(dialog)) !== "yes") return;
      await call("DELETE", `/api/conversations/${id}`);
      title = null;
    }
    onChange(id, title);
    await this.load();
    if (title === null) this.#box.focus();
  }

  #draw() {
    if (!this.#found) return;
    const parts = [];
    let group = null;
    for (const { id, title, updated } of this.#found) {
      const when = age(updated);
      if (when !== group) {
        group = when;
        parts.push(Object.assign(document.createElement("h2"), { textContent: t(when) }), document.createElement("ul"));
      }
      const item = made("conversation-item");
      item.dataset.id = id;
      const link = Object.assign(item.querySelector("a"), { href: `/c/${id}`, textContent: title });
      if (id === this.#current) link.setAttribute("aria-current", "page");
      item.querySelector("button").setAttribute("aria-label", t("Change {title}", { title }));
      parts.at(-1).append(item);
    }
    if (!parts.length) {
      const nothing = this.#search.value ? t("Nothing found.") : t("Your conversations will be here.");
      parts.push(Object.assign(document.createElement("p"), { className: "small", textContent: nothing }));
    }
    if (this.#more) {
      const older = Object.assign(document.createElement("button"), { type: "button", className: "link", textContent: t("Older ones") });
      older.dataset.do = "older";
      parts.push(older);
    }
    // Who was at a conversation stays there.
    const at = document.activeElement?.closest?.("#conversations li")?.dataset.id;
    this.#box.replaceChildren(...parts);
    if (at) this.#box.querySelector(`li[data-id="${at}"] a`)?.focus();
  }
}

/** When it was, as people say it. */
function age(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  const days = Math.ceil((today - new Date(time)) / DAY);
  return days <= 0 ? "Today" : days === 1 ? "Yesterday" : days <= 7 ? "The last seven days" : "Before";
}
