// Requests to this server, and to no other.

import { t } from "./words.js";

const csrf = document.querySelector("meta[name=csrf]").content;

/** An id as the server wants it (RFC 9562, version 4); `crypto.randomUUID` is not there on plain http. */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** What the server answers to a request; `body` is a Blob or becomes JSON. Throws an Error that a person can read. */
async function request(method, path, body) {
  const headers = { "X-CSRF-Token": csrf };
  if (body !== undefined && !(body instanceof Blob)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, { method, headers, body });
  } catch {
    throw new Error(t("The server cannot be reached."));
  }
  if (response.ok) return response;
  if (response.status === 401) throw new Error(t("You are signed out. Load the page again to sign in; nothing is lost."));
  const told = await response.json().catch(() => null);
  throw new Error(t(told?.error?.message ?? "The server has a problem ({status}).", { status: response.status }));
}

/** As `request`, read as JSON; null when the answer is empty. */
export async function call(method, path, body) {
  const text = await (await request(method, path, body)).text();
  return text ? JSON.parse(text) : null;
}

/** The server-sent events with which a POST is answered. */
export async function* events(path, body) {
  const response = await request("POST", path, body);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(() => {
        throw new Error(t("The connection was lost."));
      });
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) yield JSON.parse(block.slice("data: ".length));
    }
  } finally {
    reader.cancel();
  }
}
