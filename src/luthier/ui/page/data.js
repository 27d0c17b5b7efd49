// Data: choose it, and see what a run would learn from it before it learns.
import { Browse } from "./browse.js";
import { typed } from "./fields.js";
import { fileName, get, html, language, post, Problem, t, Typed, useEffect, useRef, useState, whole, Wrong } from "./lib.js";

const MOST = 2 ** 31, COUNT = 20;

export function DataStep({ recipe, form }) {
  const path = recipe.settings["data.path"] || "";
  const take = (value) => recipe.change({ "data.path": value });
  const [error, fail] = useState(null), [sent, setSent] = useState(null), [over, setOver] = useState(false);
  const input = useRef(null);
  const drop = async (files) => {
    fail(null);
    if (!files[0]) return;
    if (files[0].size > MOST) { fail(new Wrong(413, { message: t("the file has more than 2 GB"), fix: t("choose it below by its path on this machine") })); return; }
    try { take((await upload(files[0], setSent)).path); } catch (wrong) { fail(wrong); }
    setSent(null);
  };
  return html`<h2>${t("The rows to learn from")}</h2>
    <div class=${`drop ${over ? "over" : ""}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${(event) => { event.preventDefault(); setOver(false); drop(event.dataTransfer.files); }}>
      <p>${t("Drop a file here: JSON, JSON lines, CSV, Parquet, Arrow or text, up to 2 GB.")}</p>
      <input ref=${input} type="file" class="hidden" aria-label=${t("a data file")} onChange=${(event) => drop(event.target.files)} />
      <button type="button" onClick=${() => input.current.click()}>${t("choose a file of this computer")}</button>
      ${sent !== null && html`<progress value=${sent} max="1" aria-label=${t("sent")}></progress>`}
    </div>
    <${Problem} error=${error} />
    <p class="tools">${(form?.data || []).map((name) => html`<button type="button" onClick=${() => take(`builtin:${name}`)}>builtin:${name}</button>`)}</p>
    <label class="row">${t("path or hub id")} <${Typed} value=${path} take=${(text) => take(text.trim() || null)} /></label>
    <details><summary>${t("files where Luthier runs")}</summary><${Browse} take=${take} /></details>
    ${path && html`<${Check} recipe=${recipe} />`}`;
}

/** Send a file as it is, with the share that has arrived. */
const upload = (file, progress) => new Promise((resolve, reject) => {
  const request = new XMLHttpRequest();
  request.open("POST", `/api/upload?name=${encodeURIComponent(file.name)}`);
  request.setRequestHeader("accept-language", language());
  request.upload.onprogress = (event) => progress(event.loaded / event.total);
  request.onload = () => {
    let found = {};
    try { found = JSON.parse(request.responseText); } catch { /* plain text */ }
    if (request.status === 200) resolve(found);
    else reject(new Wrong(request.status, found.error || { message: request.responseText }));
  };
  request.onerror = () => reject(new Wrong(0, { message: t("the file did not arrive") }));
  request.send(file);
});

/** Of the recipe only what decides about the rows: a change of the rate reads nothing again. */
const part = ({ settings }) => JSON.stringify(Object.entries(settings).filter(([key]) => /^(data\.|task|model\.path|train\.max_length)/.test(key)));

function Check({ recipe }) {
  const key = part(recipe);
  const [found, set] = useState(null), [error, fail] = useState(null), [stage, setStage] = useState("");
  useEffect(() => {
    if (recipe.problems.length) return undefined;
    let open = true;
    set(null); fail(null);
    const timer = setInterval(() => get("/api/bench").then(({ stage }) => open && setStage(stage), () => {}), 700);
    post("/api/check", {}, { text: recipe.text }).then((next) => open && set(next), (wrong) => open && fail(wrong)).finally(() => clearInterval(timer));
    return () => { open = false; clearInterval(timer); };
  }, [key]);
  if (error) return html`<${Problem} error=${error} />`;
  if (!found) return html`<p class="soft" role="status">${t("reading the data…")} ${stage}</p>`;
  return html`<${Found} found=${found} recipe=${recipe} />`;
}

function Found({ found, recipe }) {
  const { account } = found, sides = ["train", "validation", "test"].filter((side) => account[side].source);
  const stops = found.findings.filter(({ level }) => level === "stop"), others = found.findings.filter(({ level }) => level !== "stop");
  const sum = (name) => ["train", "validation", "test"].reduce((all, side) => all + (account[side][name] || 0), 0);
  return html`
    ${stops.length > 0 ? html`<div class="problem" role="alert"><b>${t("Train would stop")}</b>${stops.map(({ text }) => html`<p>${text}</p><${Fixes} text=${text} recipe=${recipe} />`)}</div>` : html`<p class="verdict"><b class="good">${t("Train would run")}</b> ${t("Format {0}: {1}.", account.format.name, account.format_why)} ${t("Task {0}.", account.task.name)}</p>`}
    <div class="cards">${[[sum("read"), t("rows read")], [sum("kept"), t("kept")], [found.refusals.length, t("refused")], [found.lengths.p50, t("tokens of a row, median")], [found.lengths.max, t("tokens of the longest row")], [found.exact_rows, t("rows that are there twice")]].map(([value, label]) => html`<div class="card"><b>${whole(value)}</b><span>${label}</span></div>`)}</div>
    <div class="wide" tabindex="0"><table><thead><tr><th>${t("part")}</th><th>${t("source")}</th><th class="n">${t("read")}</th><th class="n">${t("refused")}</th><th class="n">${t("kept")}</th><th class="n">${t("tokens")}</th><th class="n">${t("learned")}</th></tr></thead>
      <tbody>${sides.map((side) => html`<tr><td>${t(side)}</td><td><bdi>${account[side].source}</bdi></td>${["read", "refused", "kept", "tokens", "learned"].map((name) => html`<td class="n">${whole(account[side][name])}</td>`)}</tr>`)}</tbody></table></div>
    ${others.length > 0 && html`<h3>${t("Findings")}</h3><ul class="findings">${others.map(({ level, text, places }) => html`<li class=${level === "warn" ? "warn" : ""}><b>${level === "warn" ? t("warning") : t("note")}</b> ${text}
      ${places.length > 0 && html`<details><summary>${t("where")}</summary><ul>${places.map((place) => html`<li><bdi>${place}</bdi></li>`)}</ul></details>`}</li>`)}</ul>`}
    <h3>${t("What is learned")}</h3>
    <${Rows} recipe=${recipe} sides=${sides} />
    ${found.refusals.length > 0 && html`<h3>${t("Refused rows")}</h3><${Refused} place=${found.place} />`}
    ${Object.entries(found.labels || {}).filter(([, counts]) => Object.keys(counts).length).map(([side, counts]) => html`<h3>${t("Labels, {0}", t(side))}</h3><${Bars} counts=${counts} />`)}
    ${found.limits.length > 0 && html`<details><summary>${t("what train.max_length would cut")}</summary><table><tbody>${found.limits.map((limit) => html`<tr><td class="n">${whole(limit.max_length)}</td><td class="n">${t("{0} rows over it", whole(limit.rows))}</td><td class="n">${(100 * limit.share).toFixed(1)} %</td></tr>`)}</tbody></table></details>`}
    <${Pairs} title=${t("The same text twice")} pairs=${found.exact} /><${Pairs} title=${t("Nearly the same")} pairs=${found.near} /><${Pairs} title=${t("Held out and in training")} pairs=${found.overlap} /><${Pairs} title=${t("One prompt, more than one answer")} pairs=${found.conflicts} />`;
}

/** A button for each setting that a message names as a way out. */
const Fixes = ({ text, recipe }) => html`<p class="tools">${[...new Set(text.match(/\b(data|train)\.\w+=\w+/g))].map((setting) => {
  const [key, value] = setting.split("=");
  return html`<button type="button" onClick=${() => recipe.change({ [key]: typed(value) })}>${t("set {0}", setting)}</button>`;
})}</p>`;

const Bars = ({ counts }) => {
  const entries = Object.entries(counts).sort(([, a], [, b]) => b - a), most = entries[0]?.[1] || 1;
  return html`<div class="bars">${entries.slice(0, 30).map(([name, count]) => html`<div><bdi>${name}</bdi><meter min="0" max=${most} value=${count}></meter><span>${whole(count)}</span></div>`)}${entries.length > 30 && html`<p class="soft">${t("and {0} more", entries.length - 30)}</p>`}</div>`;
};

const Pairs = ({ title, pairs }) => pairs.length > 0 && html`<details><summary>${title} (${pairs.length})</summary><ul>${pairs.map(({ a, b, text }) => html`<li><span class="where"><bdi>${b}</bdi> = <bdi>${a}</bdi></span><br /><bdi>${text}</bdi></li>`)}</ul></details>`;

/** A page of anything that has many: load(start) gives { total, rows }. */
function Pages({ load, show, count, inputs }) {
  const [start, move] = useState(0), [found, set] = useState(null), [error, fail] = useState(null);
  useEffect(() => { let open = true; load(start).then((next) => { if (open) { set(next); fail(null); } }, (wrong) => open && fail(wrong)); return () => { open = false; }; }, [start, ...inputs]);
  if (error) return html`<${Problem} error=${error} />`;
  if (!found) return html`<p class="soft" role="status">${t("one moment…")}</p>`;
  const last = Math.max(0, Math.floor((found.total - 1) / count) * count);
  return html`${show(found.rows)}
    ${found.total > count && html`<p class="tools"><button type="button" disabled=${start === 0} onClick=${() => move(Math.max(0, start - count))}>${t("before")}</button>
      <label>${t("from row")} <${Typed} type="number" min="1" max=${found.total} value=${start + 1} take=${(text) => move(Math.min(last, Math.max(0, Number(text) - 1)))} /></label> <span>${t("to {0} of {1}", whole(Math.min(found.total, start + count)), whole(found.total))}</span>
      <button type="button" disabled=${start >= last} onClick=${() => move(start + count)}>${t("after")}</button></p>`}`;
}

function Rows({ recipe, sides }) {
  const [side, choose] = useState("train");
  const load = (start) => post("/api/rows", {}, { text: recipe.text, side, start, count: COUNT });
  return html`<p class="legend"><span class="t-learned">${t("learned")}</span> <span class="t-end">${t("learned, ends the answer")}</span> <span class="t-plain">${t("read, not learned")}</span> <span class="t-special">${t("special, not learned")}</span>
      <select aria-label=${t("part")} value=${side} onChange=${(event) => choose(event.target.value)}>${sides.map((name) => html`<option value=${name}>${t(name)}</option>`)}</select></p>
    <${Pages} key=${side} load=${load} count=${COUNT} inputs=${[part(recipe)]} show=${(rows) => rows.map((row) => html`<div class="masked"><p class="where"><bdi title=${row.where}>${fileName(row.where)}</bdi>: ${row.label ? t("{0} tokens, learned is the label {1}", row.tokens, row.label) : t("{0} tokens, {1} learned", row.tokens, row.learned)}</p>
      <div class="mask" dir="auto">${row.pieces.map(([text, kind]) => html`<span class=${`t-${kind}`}>${text.replaceAll("\n", "↵\n")}</span>`)}</div></div>`)} />`;
}

const Refused = ({ place }) => html`<${Pages} load=${(start) => get("/api/check/refused", { place, start, count: 50 })} count=${50} inputs=${[place]} show=${(rows) => html`<div class="wide" tabindex="0"><table><thead><tr><th>${t("row")}</th><th>${t("reason")}</th><th>${t("content")}</th></tr></thead><tbody>
  ${rows.map((row) => html`<tr><td><bdi title=${row.where}>${fileName(row.where)}</bdi></td><td>${row.reason}</td><td><div class="text" tabindex="0"><bdi>${typeof row.row === "string" ? row.row : JSON.stringify(row.row)}</bdi></div></td></tr>`)}</tbody></table></div>`} />`;
