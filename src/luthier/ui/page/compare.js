// Comparisons of methods: score against cost with the Pareto front, and the table behind it.
import { bytes, html, language, number, Problem, score, t, time, useGet, useMemo, useState, whole } from "./lib.js";
import { Front } from "./plot.js";

const COSTS = [["trainable", () => t("trained parameters"), whole], ["seconds", () => t("training time"), time], ["memory", () => t("memory"), bytes], ["adapter_bytes", () => t("file"), bytes]];

export function Compare({ id }) {
  return id ? html`<${One} id=${id} />` : html`<${List} />`;
}

function List() {
  const [found, error] = useGet("/api/comparisons", {}, []);
  return html`<h1>${t("Comparisons")}</h1><${Problem} error=${error} />
    ${found && (found.length ? html`<ul>${found.map((each) => html`<li><a href=${`#/compare/${encodeURI(each.id)}`}><bdi>${each.id}</bdi></a> <span class="soft"><bdi>${each.model}</bdi>, <bdi>${each.data}</bdi>, ${each.finished}</span></li>`)}</ul>` : html`<p>${t("No comparison is finished here. Step 5 of a new run starts one.")}</p>`)}`;
}

function One({ id }) {
  const [body, error] = useGet("/api/comparison", { id }, [id]);
  const [cost, choose] = useState("trainable"), [by, sort] = useState(["score", -1]), [hidden, hide] = useState([]);
  const rows = useMemo(() => (body?.rows || []).filter(({ status }) => status === "done"), [body]);
  if (!body) return html`<p><a href="#/compare">${t("all comparisons")}</a></p><h1><bdi>${id}</bdi></h1><${Problem} error=${error} />`;
  const value = (row, name) => (name === "score" ? row.score.value : name === "arm" ? row.arm : name === "forgetting" ? row.forgetting?.value ?? Infinity : row[name]);
  const shown = [...rows].sort((a, b) => { const [x, y] = [value(a, by[0]), value(b, by[0])]; return by[1] * (x < y ? -1 : x > y ? 1 : 0); });
  const head = (name, label, right = true) => html`<th class=${right ? "n" : ""} aria-sort=${by[0] === name ? (by[1] > 0 ? "ascending" : "descending") : "none"}><button type="button" class="sort" onClick=${() => sort([name, by[0] === name ? -by[1] : 1])}>${label}</button></th>`;
  const best = rows.find(({ arm }) => arm === body.best);
  return html`<p><a href="#/compare">${t("all comparisons")}</a></p><h1><bdi>${id}</bdi></h1>
    <p class="soft"><bdi>${body.model}</bdi> · <bdi>${body.data}</bdi> · ${t("{0} steps each, {1} tokens", whole(body.steps), whole(body.tokens))} · ${t("seeds {0}", body.seeds.join(", "))}</p>
    ${best && html`<p class="says">${t("{0} has the best score: {1} {2} on {3} rows.", best.arm, body.metric, score(body.metric, best.score.value), whole(body.examples))}</p>`}
    <label class="row">${t("cost")} <select value=${cost} onChange=${(event) => choose(event.target.value)}>${COSTS.map(([name, label]) => html`<option value=${name}>${label()}</option>`)}</select></label>
    <${ScoreByCost} rows=${rows.filter(({ arm }) => !hidden.includes(arm))} cost=${cost} body=${body} />
    <div class="wide" tabindex="0"><table class="data"><thead><tr><th>${t("shown")}</th>${head("arm", t("method"), false)}${head("score", body.metric)}<th>${t("against the best")}</th>${COSTS.map(([name, label]) => head(name, label()))}${head("forgetting", t("forgetting"))}</tr></thead>
      <tbody>${shown.map((row) => html`<tr><td><input type="checkbox" aria-label=${t("show {0}", row.arm)} checked=${!hidden.includes(row.arm)} onChange=${() => hide(hidden.includes(row.arm) ? hidden.filter((each) => each !== row.arm) : [...hidden, row.arm])} /></td>
        <td><b>${row.arm}</b><div class="where">${t("rate {0}", number(row.lr))}</div></td><td class="n">${score(body.metric, row.score.value)}<div class="ci">${t("{0} to {1}", score(body.metric, row.score.low), score(body.metric, row.score.high))}</div></td>
        <td class=${{ better: "good", worse: "bad" }[row.against?.best?.verdict] || ""}>${row.against?.best ? ({ better: t("better"), worse: t("worse") }[row.against.best.verdict] || t("no real difference")) : row.arm === body.best ? t("the best") : "–"}</td>
        ${COSTS.map(([name, , show]) => html`<td class="n">${show(row[name])}</td>`)}<td class="n">${number(row.forgetting?.value)}</td></tr>`)}</tbody></table></div>
    ${body.rows.some(({ status }) => status !== "done") && html`<h2>${t("Did not run")}</h2><ul>${body.rows.filter(({ status }) => status !== "done").map((row) => html`<li><b>${row.arm}</b>: ${row.reason}</li>`)}</ul>`}`;
}

/** Score against cost: whoever wants more has to pay more along the line. */
function ScoreByCost({ rows, cost, body }) {
  const [name, label, show] = COSTS.find(([each]) => each === cost), { metric } = body;
  const points = rows.filter((row) => row[name] > 0).sort((a, b) => a[name] - b[name]);
  const better = (a, b) => (body.higher_is_better ? a > b : a < b);
  const front = points.reduce((kept, row) => (kept.length === 0 || better(row.score.value, kept.at(-1).score.value) ? [...kept, row] : kept), []);
  const spec = useMemo(() => ({
    title: metric, x: label(), log: true, height: 380, formats: [show, (value) => score(metric, value)],
    says: t("{0} against {1}; on the front: {2}", metric, label(), front.map(({ arm }) => arm).join(", ")),
    base: body.base && { value: body.base.value, label: t("untouched base") },
    points: points.map((row) => ({ name: row.arm, x: row[name], y: row.score.value, low: row.score.low ?? row.score.value, high: row.score.high ?? row.score.value, front: front.includes(row) })),
  }), [points.map(({ arm }) => arm).join("\n"), cost, body, language()]);
  return points.length ? html`<${Front} spec=${spec} />` : html`<p class="soft">${t("Nothing to show.")}</p>`;
}
