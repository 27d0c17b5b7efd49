// Comparisons of methods: score against cost with the Pareto front, and the table behind it.
import { bytes, get, html, number, Problem, score, t, time, useEffect, useGet, useMemo, useRef, useState } from "./lib.js";

const COSTS = [["trainable", () => t("trained parameters"), number], ["seconds", () => t("training time"), time], ["memory", () => t("memory"), bytes], ["adapter_bytes", () => t("file"), bytes]];

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
    <p class="soft"><bdi>${body.model}</bdi> · <bdi>${body.data}</bdi> · ${t("{0} steps each, {1} tokens", number(body.steps), number(body.tokens))} · ${t("seeds {0}", body.seeds.join(", "))}</p>
    ${best && html`<p class="says">${t("{0} has the best score: {1} {2} on {3} rows.", best.arm, body.metric, score(body.metric, best.score.value), number(body.examples))}</p>`}
    <label class="row">${t("cost")} <select value=${cost} onChange=${(event) => choose(event.target.value)}>${COSTS.map(([name, label]) => html`<option value=${name}>${label()}</option>`)}</select></label>
    <${Front} rows=${rows.filter(({ arm }) => !hidden.includes(arm))} cost=${cost} body=${body} />
    <div class="wide" tabindex="0"><table class="data"><thead><tr><th>${t("shown")}</th>${head("arm", t("method"), false)}${head("score", body.metric)}<th>${t("against the best")}</th>${COSTS.map(([name, label]) => head(name, label()))}${head("forgetting", t("forgetting"))}</tr></thead>
      <tbody>${shown.map((row) => html`<tr><td><input type="checkbox" aria-label=${t("show {0}", row.arm)} checked=${!hidden.includes(row.arm)} onChange=${() => hide(hidden.includes(row.arm) ? hidden.filter((each) => each !== row.arm) : [...hidden, row.arm])} /></td>
        <td><b>${row.arm}</b><div class="where">${t("rate {0}", number(row.lr))}</div></td><td class="n">${score(body.metric, row.score.value)}<div class="ci">${t("{0} to {1}", score(body.metric, row.score.low), score(body.metric, row.score.high))}</div></td>
        <td class=${{ better: "good", worse: "bad" }[row.against?.best?.verdict] || ""}>${row.against?.best ? ({ better: t("better"), worse: t("worse") }[row.against.best.verdict] || t("no real difference")) : row.arm === body.best ? t("the best") : "–"}</td>
        ${COSTS.map(([name, , show]) => html`<td class="n">${show(row[name])}</td>`)}<td class="n">${number(row.forgetting?.value)}</td></tr>`)}</tbody></table></div>
    ${body.rows.some(({ status }) => status !== "done") && html`<h2>${t("Did not run")}</h2><ul>${body.rows.filter(({ status }) => status !== "done").map((row) => html`<li><b>${row.arm}</b>: ${row.reason}</li>`)}</ul>`}`;
}

const WIDE = 900, HIGH = 380, LEFT = 60, BOTTOM = 46;

/** Score against cost: whoever wants more has to pay more along the line. */
function Front({ rows, cost, body }) {
  const place = useRef(null), [width, setWidth] = useState(WIDE), [over, point] = useState(null);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.max(300, entry.contentRect.width)));
    watch.observe(place.current);
    return () => watch.disconnect();
  }, []);
  const points = rows.filter((row) => row[cost] > 0);
  const [name, label, show] = COSTS.find(([each]) => each === cost);
  if (!points.length) return html`<div ref=${place}><p class="soft">${t("Nothing to show.")}</p></div>`;
  const logs = points.map((row) => Math.log10(row[cost]));
  const x0 = Math.min(...logs) - 0.15, x1 = Math.max(...logs) + 0.15;
  const ends = points.flatMap(({ score: { value, low, high } }) => [value, low ?? value, high ?? value]);
  const room = (Math.max(...ends) - Math.min(...ends) || 1) * 0.08, y0 = Math.min(...ends) - room, y1 = Math.max(...ends) + room;
  const x = (row) => LEFT + ((Math.log10(row[cost]) - x0) / (x1 - x0)) * (width - LEFT - 20), y = (value) => HIGH - BOTTOM - ((value - y0) / (y1 - y0)) * (HIGH - BOTTOM - 14);
  const better = (a, b) => (body.higher_is_better ? a > b : a < b);
  const front = [...points].sort((a, b) => a[cost] - b[cost]).reduce((kept, row) => (kept.length === 0 || better(row.score.value, kept.at(-1).score.value) ? [...kept, row] : kept), []);
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  return html`<div ref=${place} class="front"><svg role="img" aria-label=${t("{0} against {1}; on the front: {2}", body.metric, label(), front.map(({ arm }) => arm).join(", "))} width=${width} height=${HIGH} viewBox=${`0 0 ${width} ${HIGH}`}>
    ${ticks.map((part) => { const at = y0 + part * (y1 - y0); return html`<line x1=${LEFT} x2=${width - 20} y1=${y(at)} y2=${y(at)} class="grid" /><text x=${LEFT - 8} y=${y(at) + 4} text-anchor="end">${score(body.metric, at)}</text>`; })}
    ${ticks.map((part) => { const at = 10 ** (x0 + part * (x1 - x0)); return html`<text x=${LEFT + part * (width - LEFT - 20)} y=${HIGH - 24} text-anchor="middle">${show(at)}</text>`; })}
    <text x=${(width + LEFT) / 2} y=${HIGH - 6} text-anchor="middle">${label()}</text>
    <polyline class="line" points=${front.map((row) => `${x(row)},${y(row.score.value)}`).join(" ")} />
    ${points.map((row) => html`<g class=${front.includes(row) ? "on" : ""} onPointerEnter=${() => point(row)} onPointerLeave=${() => point(null)}>
      <line x1=${x(row)} x2=${x(row)} y1=${y(row.score.low ?? row.score.value)} y2=${y(row.score.high ?? row.score.value)} class="whisker" /><circle cx=${x(row)} cy=${y(row.score.value)} r="6" /><text x=${x(row) + 9} y=${y(row.score.value) - 7}>${row.arm}</text></g>`)}
  </svg><p class="values" role="status">${over ? t("{0}: {1} ({2} to {3}), {4} {5}", over.arm, score(body.metric, over.score.value), score(body.metric, over.score.low), score(body.metric, over.score.high), label(), show(over[name])) : t("Point at a method for its values.")}</p></div>`;
}
