// The page's language. English text is its own key; chinese.json, which the templates use too, has the Chinese.

import chinese from "./chinese.json" with { type: "json" };

const words = document.documentElement.lang.startsWith("zh") ? chinese : {};

/** The text in the page's language; `{name}` in it is replaced by `values.name`. */
export function t(text, values = {}) {
  return (words[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
