// What every page has: language and colours, dialogs, copying.

const root = document.documentElement;

for (const select of document.querySelectorAll("select[data-cookie]")) {
  select.addEventListener("change", () => {
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `${select.dataset.cookie}=${select.value}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
    if (select.dataset.cookie === "language") location.reload();
    else if (select.value) root.dataset.theme = select.value;
    else delete root.dataset.theme;
  });
}

// Drafts are for who wrote them.
document.querySelector('form[action="/sign-out"]')?.addEventListener("submit", () => sessionStorage.clear());

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button");
  if (button?.dataset.do === "cancel") button.closest("dialog").close("");
  if (button?.dataset.copies) {
    await copy(document.getElementById(button.dataset.copies).textContent);
    done(button);
  }
  // A choice closes the menu that it stands in.
  if (button && !button.hasAttribute("popovertarget")) button.closest("[popover]")?.hidePopover();
});

/** Put text on the clipboard; `navigator.clipboard` is not there on plain http. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}

/** Show on a button that it has done its work. */
export function done(button) {
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1500);
}

/** Open a dialog; the button that closed it, "" for none. */
export function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** A copy of a `<template>`'s one element. */
export function made(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

let hiding;

/** Say something for a few seconds. */
export function toast(text) {
  const box = document.getElementById("toast");
  box.textContent = text;
  box.classList.add("shown");
  clearTimeout(hiding);
  hiding = setTimeout(() => box.classList.remove("shown"), 6000);
}

/** The day of a moment, as the page's language writes it. */
export function day(time) {
  return new Date(time).toLocaleDateString(root.lang, { dateStyle: "medium" });
}
