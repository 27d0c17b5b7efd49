// What every page uses: elements, words in the reader's language, requests, numbers.
import { html, render, useEffect, useMemo, useRef, useState } from "./vendor/preact-htm.module.js";

export { html, render, useEffect, useMemo, useRef, useState };

const KEPT = "luthier-language", THEME = "luthier-theme";
const listeners = new Set();
let words = {};

const kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };  // private windows
const keep = (name, value) => { try { localStorage.setItem(name, value); } catch { /* forgotten */ } };

export const language = () => document.documentElement.lang;

/** t("{0} rows", 5): the message in the reader's language, with values in its places. */
export const t = (message, ...values) =>
  (words[message] || message).replace(/\{(\d+)\}/g, (place, number) => (number in values ? values[number] : place));

export const speak = async (name) => {
  words = name === "zh" ? await get("/api/words", { lang: "zh" }) : {};
  document.documentElement.lang = name;
  listeners.forEach((listener) => listener());
};
export const choose = (name) => { keep(KEPT, name); return speak(name); };
export const wanted = () => kept(KEPT) || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

export const theme = () => kept(THEME) || "auto";
export const paint = (name) => {
  keep(THEME, name);
  document.documentElement.dataset.theme = name;
  listeners.forEach((listener) => listener());
};
document.documentElement.dataset.theme = theme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => listeners.forEach((each) => each()));

/** Draw again when the language or the theme changes. */
export const useLook = () => {
  const [, redraw] = useState(0);
  useEffect(() => {
    const listener = () => redraw((count) => count + 1);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
};

/** What is wrong, and how to fix it, as the server says it. */
export class Wrong extends Error {
  constructor(status, { message, fix = "", ...more }) {
    super(message);
    Object.assign(this, { status, fix, more });
  }
}

const send = async (method, path, query, body) => {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query || {})) if (value !== undefined) url.searchParams.set(name, value);
  const headers = { "accept-language": language() };
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Wrong(0, { message: t("the server does not answer"), fix: t("start `luthier ui` again in the terminal, and open its address") });
  }
  const text = await response.text();
  if (response.ok) return text ? JSON.parse(text) : null;
  let found = { message: text };
  try { found = JSON.parse(text).error || found; } catch { /* plain text */ }
  throw new Wrong(response.status, found);
};
export const get = (path, query) => send("GET", path, query);
export const post = (path, query, body = {}) => send("POST", path, query, body);
export const remove = (path, query) => send("DELETE", path, query);

/** [value, error, again] of a request that is repeated when one of `inputs` changes. */
export const useGet = (path, query, inputs) => {
  const [found, set] = useState([null, null]);
  const [turn, next] = useState(0);
  useEffect(() => {
    let open = true;
    if (path) get(path, query).then((value) => open && set([value, null]), (error) => open && set([null, error]));
    return () => { open = false; };
  }, [path, turn, ...inputs]);
  return [...found, () => next((count) => count + 1)];
};

/** Do something again and again while the page is looked at, and at once when one of `inputs` changes. */
export const useEvery = (seconds, action, inputs) => {
  const latest = useRef(action);
  latest.current = action;
  useEffect(() => {
    let timer, open = true;
    const turn = async () => {
      if (!document.hidden) await latest.current();
      if (open) timer = setTimeout(turn, seconds * 1000);
    };
    turn();
    return () => { open = false; clearTimeout(timer); };
  }, inputs);
};

export const go = (place) => { location.hash = place; };

/** The last part of a path of this machine; hub ids and names stay as they are. */
export const fileName = (path) => (/^([/\\]|[a-z]:)/i.test(path) ? path.split(/[/\\]/).at(-1) : path);

// Numbers, in four digits at most.
export const number = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
};
/** How many there are, to the last one. */
export const whole = (value) => (Number.isFinite(value) ? value.toLocaleString("en") : "–");
const PERCENT = new Set(["accuracy", "exact_match", "macro_f1", "mcc", "rouge_l", "rouge_1", "rouge_2", "pearson", "spearman"]);
export const score = (name, value) =>
  value === null || value === undefined ? "–" : PERCENT.has(name) ? (100 * value).toFixed(1) : number(value);
/** A metric's name, with the unit in which `score` gives it. */
export const metric = (name) => (PERCENT.has(name) ? `${name}, %` : name);
export const bytes = (count) => {
  if (!count) return "–";
  const unit = Math.min(4, Math.floor(Math.log10(count) / 3));
  return `${(count / 1000 ** unit).toFixed(unit > 1 ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
};
export const time = (seconds) => {
  if (seconds === null || seconds === undefined) return "–";
  const rounded = Math.round(seconds), hours = Math.floor(rounded / 3600), minutes = Math.floor(rounded / 60) % 60;
  if (hours) return t("{0} h {1} min", hours, minutes);
  return minutes ? t("{0} min {1} s", minutes, rounded % 60) : t("{0} s", rounded);
};
export const when = (stamp) => {
  const date = new Date(stamp * 1000);
  return date.toLocaleString(language() === "zh" ? "zh-CN" : "en", { dateStyle: "medium", timeStyle: "short" });
};

/** What went wrong, where the reader looks. */
export const Problem = ({ error }) => error && html`
  <div class="problem" role="alert"><b>${error.message}</b>${error.fix && html`<p>${t("To fix it:")} ${error.fix}</p>`}</div>`;

/** A field that keeps what is being typed when the page around it is drawn again; `take` gets it when the reader is done. */
export function Typed({ value, take, ...more }) {
  const [typing, set] = useState(null);
  const done = async (event) => {
    const text = event.target.value;
    await take(text);
    set((now) => (now === text ? null : now));  // more was typed since
  };
  return html`<input ...${more} value=${typing ?? value} onInput=${(event) => set(event.target.value)} onChange=${done} onBlur=${() => typing === String(value) && set(null)} />`;
}
