// The frame of the page: its parts, the language, the theme, and which part is shown.
import { choose, get, go, html, language, paint, render, speak, t, theme, useEffect, useLook, useState, wanted } from "./lib.js";
import { Compare } from "./compare.js";
import { New } from "./new.js";
import { Queue } from "./queue.js";
import { Run } from "./run.js";
import { Runs } from "./runs.js";

const PARTS = [["new", () => t("New run"), New], ["runs", () => t("Runs"), Runs], ["queue", () => t("Queue"), Queue], ["compare", () => t("Compare"), Compare], ["run", null, Run]];

const place = () => {
  const [name, ...rest] = decodeURIComponent(location.hash.replace(/^#\/?/, "")).split("/");
  return { name: PARTS.some(([each]) => each === name) ? name : "runs", id: rest.join("/") };
};

function App() {
  useLook();
  const [at, move] = useState(place());
  const [about, setAbout] = useState(null);
  useEffect(() => {
    const listener = () => { move(place()); scrollTo(0, 0); };
    addEventListener("hashchange", listener);
    get("/api/about").then(setAbout, () => {});
    return () => removeEventListener("hashchange", listener);
  }, []);
  const [, , Part] = PARTS.find(([name]) => name === at.name);
  useEffect(() => { document.title = at.id ? `${at.id} · Luthier` : "Luthier"; }, [at.id]);
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>${t("to the content")}</a>
    <header class="top">
      <a class="brand" href="#/runs">Luthier</a>
      <nav aria-label=${t("parts of the page")}>
        ${PARTS.filter(([, label]) => label).map(([name, label]) => html`<a href="#/${name}" aria-current=${name === at.name ? "page" : undefined}>${label()}</a>`)}
      </nav>
      <span class="tools">
        <${Theme} />
        <button type="button" lang=${language() === "zh" ? "en" : "zh-CN"} onClick=${() => choose(language() === "zh" ? "en" : "zh")}>${language() === "zh" ? "English" : "中文"}</button>
      </span>
    </header>
    <main id="main" tabindex="-1"><${Part} id=${at.id} key=${at.name === "new" ? at.name : at.name + at.id} about=${about} /></main>
    <footer class="soft">${about && html`<span title=${about.folder}>${t("runs in {0}", about.folder)} · Luthier ${about.version}</span>`}</footer>`;
}

function Theme() {
  const names = { auto: t("theme: as the system"), light: t("theme: light"), dark: t("theme: dark") };
  return html`<select aria-label=${t("theme")} value=${theme()} onChange=${(event) => paint(event.target.value)}>
    ${Object.entries(names).map(([name, label]) => html`<option value=${name}>${label}</option>`)}
  </select>`;
}

await speak(wanted()).catch(() => { document.documentElement.lang = "en"; });
if (!location.hash) go("#/runs");
render(html`<${App} />`, document.body);
