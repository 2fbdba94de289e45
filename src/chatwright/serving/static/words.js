// The page's language. English text is its own key; chinese.json, which the templates use too, has the Chinese.

const page = document.documentElement;
const words = page.lang.startsWith("zh") ? await (await fetch("/static/chinese.json")).json() : {};

/** The text in the page's language; `{name}` in it is replaced by `values.name`. */
export function t(text, values = {}) {
  return (words[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
