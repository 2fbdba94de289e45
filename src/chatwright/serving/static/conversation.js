// A conversation as a tree of messages, and how it grows.

import { call, events, uuid } from "./api.js";
import { t } from "./words.js";

/**
 * An edit or another answer is a new branch beside the first. Of every message `chosen` has the child that is shown.
 * Beside what the server knows, a message has a `state`: sending, unsent, writing, failed, or none when it is saved; an
 * answer has the `ids` that were asked for together.
 * It dispatches `change` with the message that changed, `ended` with an answer that is complete, and `saved` when the
 * server's list of conversations is another one.
 */
export class Conversation extends EventTarget {
  constructor({ id = uuid(), title = "", messages = null } = {}) {
    super();
    Object.assign(this, { id, title, saved: messages !== null });
    this.messages = new Map();
    this.chosen = new Map();
    this.pairs = new Map(); // from a message to the two answers to it that wait to be compared
    for (const message of messages ?? []) this.add(message);
    for (const message of this.#unsent()) if (!this.messages.has(message.id)) this.add({ ...message, state: "unsent" });
  }

  static async load(id) {
    return new Conversation(await call("GET", `/api/conversations/${id}`));
  }

  /** The conversation that was begun here and has not reached the server, or a new one. */
  static fresh() {
    const { id } = JSON.parse(sessionStorage.getItem("unsent:new") ?? "{}");
    return new Conversation({ id });
  }

  get key() {
    return this.saved ? this.id : "new";
  }

  get writing() {
    return [...this.messages.values()].filter((message) => message.state === "writing");
  }

  get busy() {
    return [...this.messages.values()].some((message) => ["sending", "writing"].includes(message.state));
  }

  // ---- the tree

  add(message) {
    this.messages.set(message.id, message);
    this.choose(message);
  }

  /** Show this message: it and all above it. */
  choose(message) {
    for (let one = message; one; one = this.messages.get(one.parent)) this.chosen.set(one.parent ?? null, one.id);
  }

  /** The messages in the place of this one, itself among them. */
  branches(message) {
    return [...this.messages.values()].filter((other) => (other.parent ?? null) === (message.parent ?? null));
  }

  /** What is shown, from the beginning: messages, and at its end maybe a pair of answers. */
  path() {
    const found = [];
    for (let id = this.chosen.get(null); id; id = this.chosen.get(id)) {
      found.push(this.messages.get(id));
      if (this.pairs.has(id)) return [...found, this.pairs.get(id).map((answer) => this.messages.get(answer))];
    }
    return found;
  }

  /** The id of the answer that the next message follows: the last one shown that the server has; null at the beginning. */
  get last() {
    return this.path().flat().findLast((message) => message.role === "assistant" && !message.state)?.id ?? null;
  }

  // ---- sending and answering

  /** Send a user's message; it stays, to be sent again with the same id, if that fails. */
  async send(message, compare) {
    message.state = "sending";
    delete message.error;
    this.messages.has(message.id) || this.add(message);
    this.#keep();
    this.#changed(message);
    try {
      if (!this.saved) {
        await call("PUT", `/api/conversations/${this.id}`, { title: "" });
        this.saved = true;
        sessionStorage.removeItem("unsent:new");
      }
      const { id, parent, content } = message;
      const kept = await call("PUT", `/api/conversations/${this.id}/messages/${id}`, { parent, content });
      this.title = kept.conversation.title;
      delete message.state;
      this.dispatchEvent(new Event("saved"));
    } catch (error) {
      Object.assign(message, { state: "unsent", error: error.message });
    }
    this.#keep();
    this.#changed(message);
    if (!message.state) await this.answer(message, compare ? [uuid(), uuid()] : [uuid()]);
  }

  /** Have a message answered once, or twice to compare; with ids from before, ask for the same answers again. */
  async answer(message, ids = [uuid()]) {
    for (const id of ids) {
      this.add({ id, parent: message.id, role: "assistant", content: [], evaluations: {}, state: "writing", ids });
    }
    if (ids.length > 1) this.pairs.set(message.id, ids);
    this.#changed(message);
    let trouble = t("The connection was lost.");
    try {
      for await (const event of events(`/api/conversations/${this.id}/answers`, { parent: message.id, answers: ids })) {
        if (event.error) throw new Error(t(event.error.message));
        const answer = this.messages.get(event.answer);
        if (event.message) {
          delete answer.state;
          Object.assign(answer, event.message);
          this.dispatchEvent(new CustomEvent("ended", { detail: { answer, compare: event.compare_next } }));
        } else {
          answer.content = [{ type: "text", text: "", html: event.html }];
          if (answer.stopping) await this.#end(answer);
        }
        this.#changed(answer);
      }
    } catch (error) {
      trouble = error.message;
    }
    for (const id of ids) {
      const answer = this.messages.get(id);
      if (answer.state === "writing") Object.assign(answer, { state: "failed", error: trouble });
    }
    // Only answers that came to their own end can be compared.
    const ended = ids.every((id) => ["stop", "length"].includes(this.messages.get(id).finish_reason));
    if (!ended) this.pairs.delete(message.id);
    this.#changed(message);
    this.dispatchEvent(new Event("saved"));
  }

  /** End what is being written; an answer that the server has not begun yet is ended with its first words. */
  async stop() {
    for (const answer of this.writing) answer.stopping = true;
    await Promise.all(this.writing.filter((answer) => answer.content.length).map((answer) => this.#end(answer)));
  }

  #end(answer) {
    return call("POST", `/api/answers/${answer.id}/stop`);
  }

  /** Judge the pair of answers to a message; the better one is gone on with. */
  async judge(message, verdict) {
    const [a, b] = this.pairs.get(message.id);
    await call("PUT", "/api/comparisons", { a, b, verdict });
    this.settle(message, verdict === "b" ? b : a);
  }

  /** Go on with one answer of a pair. */
  settle(message, id) {
    this.pairs.delete(message.id);
    this.choose(this.messages.get(id));
    this.#changed(message);
  }

  /** Forget a message that was not sent. */
  drop(message) {
    this.messages.delete(message.id);
    this.chosen.delete(message.parent ?? null);
    const before = this.branches(message).at(-1);
    if (before) this.choose(before);
    this.#keep();
    this.#changed(message);
  }

  // ---- what has not reached the server outlives a reload

  #unsent() {
    const kept = JSON.parse(sessionStorage.getItem(`unsent:${this.key}`) ?? "{}");
    return kept.id === this.id ? kept.messages : [];
  }

  #keep() {
    const messages = [...this.messages.values()].filter((message) => ["sending", "unsent"].includes(message.state));
    const key = `unsent:${this.key}`;
    if (messages.length) sessionStorage.setItem(key, JSON.stringify({ id: this.id, messages }));
    else sessionStorage.removeItem(key);
  }

  #changed(message) {
    this.dispatchEvent(new CustomEvent("change", { detail: message }));
  }
}
