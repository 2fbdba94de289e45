// Where a message is written: text and pictures. What is written outlives a reload.

import { call } from "./api.js";
import { made, toast } from "./page.js";
import { t } from "./words.js";

export class Composer {
  #form = document.getElementById("composer");
  #text = document.getElementById("text");
  #list = document.getElementById("pictures");
  #file = document.getElementById("file");
  #pictures = []; // {name, url, file}: file is the server's name of it, once it is there
  #key = "draft:new";

  constructor(onSend) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      const most = Number(document.body.dataset.characters);
      if (this.#text.value.length > most) toast(t("The text is longer than {most} characters; shorten it.", { most }));
      else if (this.ready) onSend();
    });
    this.#text.addEventListener("input", () => this.#changed());
    this.#text.addEventListener("keydown", (event) => {
      // While an input method composes, Enter chooses its characters.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    this.#list.addEventListener("click", ({ target }) => {
      const item = target.closest("[data-do=remove]")?.closest("li");
      if (!item) return;
      this.#remove(this.#pictures[[...this.#list.children].indexOf(item)]);
      this.focus();
    });
    if (this.#file) this.#takePictures();
    this.#draw();
  }

  get ready() {
    const there = this.#text.value.trim() || this.#pictures.length;
    return Boolean(there) && this.#pictures.every((picture) => picture.file) && !this.#form.hasAttribute("aria-busy");
  }

  /** What is written, as parts of a message. */
  get content() {
    const text = this.#text.value.trim();
    const pictures = this.#pictures.map(({ file }) => ({ type: "image", file }));
    return text ? [...pictures, { type: "text", text }] : pictures;
  }

  /** While an answer is written no other message can be sent. */
  set busy(busy) {
    this.#form.toggleAttribute("aria-busy", busy);
    this.#changed();
  }

  focus() {
    this.#text.focus({ preventScroll: true });
  }

  clear() {
    this.#text.value = "";
    this.#pictures = [];
    this.#changed();
  }

  /** Show the draft that belongs to a conversation. */
  open(key) {
    this.#key = `draft:${key}`;
    const { text = "", pictures = [] } = JSON.parse(sessionStorage.getItem(this.#key) ?? "{}");
    this.#show(text, pictures);
    this.#draw();
  }

  /** Write a message's content anew. */
  fill(content) {
    this.#show(content.map((part) => part.text ?? "").join(""), content.map((part) => part.file).filter(Boolean));
    this.#changed();
  }

  #show(text, files) {
    this.#text.value = text;
    this.#pictures = files.map((file) => ({ file, url: `/api/files/${file}` }));
  }

  /** Let the draft belong to a conversation that has got another name. */
  move(key) {
    sessionStorage.removeItem(this.#key);
    this.#key = `draft:${key}`;
    this.#changed();
  }

  #changed() {
    const pictures = this.#pictures.map(({ file }) => file).filter(Boolean);
    const text = this.#text.value;
    if (text || pictures.length) sessionStorage.setItem(this.#key, JSON.stringify({ text, pictures }));
    else sessionStorage.removeItem(this.#key);
    this.#draw();
  }

  #draw() {
    this.#text.style.height = "auto";
    this.#text.style.height = `${this.#text.scrollHeight}px`;
    document.getElementById("send").disabled = !this.ready;
    this.#list.hidden = !this.#pictures.length;
    this.#list.replaceChildren(
      ...this.#pictures.map(({ name, url, file }) => {
        const item = made("picture-item");
        item.classList.toggle("uploading", !file);
        Object.assign(item.querySelector("img"), { src: url, alt: name ?? t("Picture") });
        return item;
      }),
    );
  }

  // ---- pictures: chosen, pasted or dropped

  #takePictures() {
    this.#file.addEventListener("change", () => {
      this.#add(this.#file.files);
      this.#file.value = "";
    });
    this.#text.addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.#add(event.clipboardData.files);
    });
    const page = document.body;
    page.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      page.classList.add("dropping");
    });
    page.addEventListener("dragleave", (event) => event.relatedTarget || page.classList.remove("dropping"));
    page.addEventListener("drop", (event) => {
      page.classList.remove("dropping");
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      this.#add(event.dataTransfer.files);
    });
  }

  choose() {
    this.#file.click();
  }

  #add(files) {
    this.focus();
    for (const file of files) {
      if (file.type.startsWith("image/")) this.#upload(file);
      else toast(t("{name} is not a picture.", { name: file.name }));
    }
  }

  async #upload(file) {
    const picture = { name: file.name, url: URL.createObjectURL(file) };
    this.#pictures.push(picture);
    this.#draw();
    try {
      picture.file = (await call("POST", "/api/files", file)).file;
      this.#changed();
    } catch (error) {
      this.#remove(picture);
      toast(`${file.name}: ${error.message}`);
    }
  }

  #remove(picture) {
    this.#pictures = this.#pictures.filter((other) => other !== picture);
    this.#changed();
  }
}
