// Base against tuned model, row by row: what got better and worse, what is wrong, and which words differ.
import { fileName, get, html, number, Problem, t, useEffect, useState } from "./lib.js";

const COUNT = 25;
const KINDS = [["all", () => t("all")], ["worse", () => t("got worse")], ["better", () => t("got better")], ["wrong", () => t("wrong now")]];

export function Evaluation({ id, result }) {
  const [kind, choose] = useState("all"), [search, setSearch] = useState(""), [order, setOrder] = useState("file"), [start, move] = useState(0);
  const [found, set] = useState(null), [error, fail] = useState(null);
  useEffect(() => {
    let open = true;
    const timer = setTimeout(() => get("/api/run/predictions", { id, kind, search, order, start, count: COUNT }).then((next) => { if (open) { set(next); fail(null); } }, (wrong) => open && fail(wrong)), search ? 250 : 0);
    return () => { open = false; clearTimeout(timer); };
  }, [id, kind, search, order, start]);
  const filter = (value) => { choose(value); move(0); };
  return html`
    <${Forgetting} result=${result} />
    ${found?.confusion?.length > 0 && html`<h3>${t("Which labels are taken for which")}</h3><div class="pair">${found.confusion.map((each) => html`<${Confusion} ...${each} />`)}</div>`}
    <h3>${t("Held-out rows")}</h3>
    <div class="tools" role="group" aria-label=${t("which rows")}>${KINDS.map(([name, label]) => html`<button type="button" aria-pressed=${kind === name} onClick=${() => filter(name)}>${label()} ${found && `(${found.counts[name]})`}</button>`)}
      <input type="search" aria-label=${t("search in texts and answers")} placeholder=${t("search in texts and answers")} value=${search} onInput=${(event) => { setSearch(event.target.value); move(0); }} />
      <label>${t("order")} <select value=${order} onChange=${(event) => { setOrder(event.target.value); move(0); }}><option value="file">${t("as in the data")}</option><option value="loss">${t("highest loss first")}</option><option value="change">${t("largest change first")}</option></select></label></div>
    <${Problem} error=${error} />
    ${found && html`<div class="wide" tabindex="0"><table class="data"><thead><tr><th>${t("row")}</th><th>${t("wanted")}</th><th>${t("base")}</th><th>${t("tuned")}</th><th class="n">${t("loss")}</th></tr></thead>
      <tbody>${found.rows.map((row) => html`<tr class=${row.kind}><td><div class="text" tabindex="0"><bdi>${row.text}</bdi></div><div class="where"><bdi>${fileName(row.where)}</bdi>${row.cut && ` · ${t("shortened")}`}</div></td>
        <td><div class="text" tabindex="0"><bdi>${row.answer}</bdi></div></td>${sides(row).map(([side, marked]) => html`<td class=${row[side].right === false ? "bad" : row[side].right ? "good" : ""}><div class="text" tabindex="0"><bdi>${marked}</bdi></div>${row[side].label && html`<div class="where">${t("taken for {0}", row[side].label)}</div>`}${row[side].right !== null && html`<div class="where">${row[side].right ? t("right") : t("wrong")}</div>`}</td>`)}
        <td class="n">${number(row.base.loss)} → ${number(row.tuned.loss)}</td></tr>`)}</tbody></table></div>
      ${found.rows.length === 0 && html`<p class="soft">${t("No such rows.")}</p>`}
      ${found.total > COUNT && html`<p class="tools"><button type="button" disabled=${start === 0} onClick=${() => move(start - COUNT)}>${t("before")}</button><span>${t("{0} to {1} of {2}", start + 1, Math.min(found.total, start + COUNT), found.total)}</span><button type="button" disabled=${start + COUNT >= found.total} onClick=${() => move(start + COUNT)}>${t("after")}</button></p>`}`}`;
}

const Forgetting = ({ result }) => Object.keys(result?.forgetting || {}).length > 0 && html`<h3>${t("What was forgotten")}</h3>
  <p class="soft">${t("Bits per byte on general texts: higher is worse.")}</p>
  <div class="wide" tabindex="0"><table><thead><tr><th>${t("texts")}</th><th class="n">${t("base")}</th><th class="n">${t("tuned")}</th><th class="n">${t("difference")}</th></tr></thead><tbody>
  ${Object.entries(result.forgetting).map(([name, each]) => html`<tr><td>${t(name)}</td><td class="n">${number(each.base)}</td><td class="n">${number(each.tuned)}</td><td class=${`n ${each.difference.verdict === "worse" ? "bad" : each.difference.verdict === "better" ? "good" : ""}`}>${each.difference.value > 0 ? "+" : ""}${number(each.difference.value)}<div class="ci">${t("{0} to {1}", number(each.difference.low), number(each.difference.high))}</div></td></tr>`)}</tbody></table></div>`;

const Confusion = ({ side, labels, rows, most, left_out: left }) => html`<div class="wide" tabindex="0"><table class="confusion"><caption>${side === "base" ? t("base") : t("tuned")}</caption><thead><tr><th>${t("is / taken for")}</th>${labels.map((label) => html`<th><bdi>${label}</bdi></th>`)}</tr></thead>
  <tbody>${rows.map((row, place) => html`<tr><th><bdi>${labels[place]}</bdi></th>${row.map((count, other) => html`<td class="n" style=${{ background: count ? `color-mix(in srgb, var(${place === other ? "--good" : "--bad"}) ${Math.round(8 + (60 * count) / most)}%, transparent)` : "none" }}>${count || ""}</td>`)}</tr>`)}</tbody></table>${left > 0 && html`<p class="soft">${t("and {0} more labels", left)}</p>`}</div>`;

/** Both answers with the words marked that only one of them has. */
function sides(row) {
  const seen = (text) => text.replace(/^(\s*\n)+/, "↵ ");  // one mark for the empty lines before an answer
  const [before, after] = difference(seen(row.base.said), seen(row.tuned.said));
  return [["base", before], ["tuned", after]];
}

const WORD = /[\u2e80-\u9fff\uac00-\ud7af]|[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu;

/** The longest common subsequence of words; unmarked where little is common or the texts are long. */
export function difference(before, after) {
  const [a, b] = [before.match(WORD) || [], after.match(WORD) || []];
  if (before === after || a.length * b.length > 250_000) return [before, after];
  const table = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) for (let j = b.length - 1; j >= 0; j -= 1) table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  if (table[0][0] < 0.3 * Math.max(a.length, b.length)) return [before, after];
  const [left, right] = [[], []];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { left.push(a[i]); right.push(b[j]); i += 1; j += 1; }
    else if (j >= b.length || (i < a.length && table[i + 1][j] >= table[i][j + 1])) { left.push(html`<del>${a[i]}</del>`); i += 1; }
    else { right.push(html`<ins>${b[j]}</ins>`); j += 1; }
  }
  return [left, right];
}
