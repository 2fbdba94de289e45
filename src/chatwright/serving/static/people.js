// Others' accounts, for owners and admins: invitations, roles, lost passwords, closing and opening.

import { call } from "./api.js";
import { day, made, toast } from "./page.js";
import { t } from "./words.js";

const byId = (id) => document.getElementById(id);
const option = (role) => new Option(t(role), role);
// One change after the other: what is shown last, and has the focus, is what was done last.
let changes = Promise.resolve();

async function show() {
  const { people, may } = await call("GET", "/api/people");
  byId("accounts").replaceChildren(...people.map((person) => line(person, may)));
}

function line(person, may) {
  const { id, name, role, active, created } = person;
  const item = made("account-line");
  const [select, reset, close] = item.querySelectorAll("select, button");
  const mine = may.includes(role);
  item.dataset.name = name;
  item.querySelector("strong").textContent = name;
  item.querySelector(".small").textContent = active ? t("since {day}", { day: day(created) }) : t("closed");
  select.append(...(mine ? may : [role]).map(option));
  select.value = role;
  select.disabled = close.disabled = !mine;
  reset.disabled = !mine || !active;
  select.setAttribute("aria-label", t("Role of {name}", { name }));
  reset.setAttribute("aria-label", t("New password for {name}", { name }));
  close.textContent = active ? t("Close") : t("Open again");
  close.setAttribute("aria-label", active ? t("Close the account of {name}", { name }) : t("Open the account of {name} again", { name }));
  const make = async (what, at) => {
    try {
      await call("PATCH", `/api/people/${id}`, what);
    } catch (error) {
      toast(error.message);
    }
    await show();
    byId("accounts").querySelector(`[data-name="${CSS.escape(name)}"] ${at}`).focus();
  };
  const change = (what, at) => {
    changes = changes.then(() => make(what, at)).catch((error) => toast(error.message));
  };
  select.addEventListener("change", () => change({ role: select.value }, "select"));
  close.addEventListener("click", () => change({ active: !active }, "[data-do=close]"));
  reset.addEventListener("click", async () => {
    try {
      const { link } = await call("POST", `/api/people/${id}/reset`);
      byId("reset-link").textContent = new URL(link, location.href);
      byId("reset").querySelector("p").textContent = t("Send this link to {name} alone; it is not shown again.", { name });
      byId("reset").hidden = false;
    } catch (error) {
      toast(error.message);
    }
  });
  return item;
}

byId("invite").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const { link } = await call("POST", "/api/invitations", { role: event.target.elements.role.value });
    byId("link").textContent = new URL(link, location.href);
    byId("once").hidden = false;
  } catch (error) {
    toast(error.message);
  }
});

await show().catch((error) => toast(error.message));
