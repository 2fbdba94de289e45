// One's own account: consent, password, API keys, and leaving.

import { call } from "./api.js";
import { ask, day, made, toast } from "./page.js";
import { t } from "./words.js";

const byId = (id) => document.getElementById(id);

/** Do what a form says; what goes wrong is told. */
function onSubmit(id, work) {
  byId(id).addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    try {
      await work(Object.fromEntries(new FormData(form)));
      form.reset();
    } catch (error) {
      toast(error.message);
    }
  });
}

byId("consents").addEventListener("change", async ({ target }) => {
  try {
    await call("PUT", "/api/consent", { consent: target.checked });
    toast(t("Saved."));
  } catch (error) {
    target.checked = !target.checked;
    toast(error.message);
  }
});

onSubmit("password", async ({ old, new: fresh }) => {
  await call("PUT", "/api/password", { old, new: fresh });
  // The sign-in is another one now, and with it what shows that a page is ours.
  sessionStorage.setItem("told", t("Your password is changed."));
  location.reload();
});

onSubmit("new-key", async ({ name }) => {
  const { key } = await call("POST", "/api/keys", { name });
  byId("key").textContent = key;
  byId("once").hidden = false;
  await list();
});

async function list() {
  const { keys } = await call("GET", "/api/keys");
  const lines = keys.filter((key) => !key.revoked).map((key) => {
    const line = made("key-line");
    line.querySelector("strong").textContent = key.name;
    line.querySelector("code").textContent = `${key.prefix}…`;
    line.querySelector(".small").textContent = t("made {day}", { day: day(key.created) });
    const button = line.querySelector("button");
    button.setAttribute("aria-label", t("Revoke {name}", { name: key.name }));
    button.addEventListener("click", async () => {
      try {
        await call("DELETE", `/api/keys/${key.id}`);
        byId("once").hidden = true;
        await list();
        byId("new-key").elements.name.focus();
      } catch (error) {
        toast(error.message);
      }
    });
    return line;
  });
  byId("keys").replaceChildren(...lines);
  byId("keys").hidden = !lines.length;
}

const typed = byId("leaving").querySelector("input");
typed.addEventListener("input", () => {
  byId("leaving").querySelector("[value=yes]").disabled = typed.value.trim() !== typed.dataset.name;
});
byId("leave").addEventListener("click", async () => {
  if ((await ask(byId("leaving"))) !== "yes") return;
  try {
    await call("DELETE", "/api/account");
    sessionStorage.clear();
    location.assign("/sign-in");
  } catch (error) {
    toast(error.message);
  }
});

if (sessionStorage.getItem("told")) toast(sessionStorage.getItem("told"));
sessionStorage.removeItem("told");
await list().catch((error) => toast(error.message));
