// Charts of the page: chart.js of the reports draws them, and here they get words, and their values as a table.
import { html, language, number, t, theme, useEffect, useRef, useState } from "./lib.js";

const VALUES = 12;
const words = (hint) => ({ log: t("log axis"), whole: t("show all"), hint });

/** lines and marks as `luthierChart.curves` takes them; `log` is whether the chart begins with a logarithmic axis. */
export function Plot({ title, lines, marks = [], height = 260, log = false, choice = true, sync }) {
  const place = useRef(null), chart = useRef(null);
  const shape = JSON.stringify([lines.map(({ points, ...line }) => line), theme(), language()]);
  const says = lines
    .filter(({ thin, points }) => !thin && points.length)
    .map(({ label, points }) => t("{0}: {1} at step {2}, {3} at step {4}", label, number(points[0][1]), points[0][0], number(points.at(-1)[1]), points.at(-1)[0]))
    .join("; ");
  useEffect(() => {
    chart.current = luthierChart.curves(place.current, { title, says, words: words(), lines, marks, x: t("step"), height, log, choice, sync });
    return () => chart.current.destroy();
  }, [shape]);
  useEffect(() => chart.current?.update(lines, marks), [lines, JSON.stringify(marks)]);
  return html`<figure class="plot">
    <div ref=${place}></div>
    <details><summary>${t("values as a table")}</summary><${Values} lines=${lines.filter(({ thin }) => !thin)} /></details>
  </figure>`;
}

/** Scores against costs; `spec` as `luthierChart.front` takes it, but for its words. */
export function Front({ spec }) {
  const place = useRef(null);
  useEffect(() => {
    const chart = luthierChart.front(place.current, { ...spec, words: words(t("Point at a method for its values; drag over a part to enlarge it.")) });
    return chart.destroy;
  }, [spec, theme(), language()]);
  return html`<figure class="plot"><div ref=${place}></div></figure>`;
}

const Values = ({ lines }) => html`<div class="wide" tabindex="0"><table>
  <thead><tr><th>${t("step")}</th>${lines.map(({ label }) => html`<th class="n">${label}</th>`)}</tr></thead>
  <tbody>${rows(lines).map(([step, ...values]) => html`<tr><td>${step}</td>${values.map((value) => html`<td class="n">${number(value)}</td>`)}</tr>`)}</tbody>
</table></div>`;

/** A few steps of the first curve, with the last value that each curve had by then. */
function rows(lines) {
  if (!lines.length || !lines[0].points.length) return [];
  const steps = lines[0].points.map(([step]) => step);
  const every = Math.max(1, Math.ceil(steps.length / VALUES));
  const chosen = steps.filter((_, place) => place % every === 0 || place === steps.length - 1);
  return chosen.map((step) => [step, ...lines.map(({ points }) => points.filter(([at]) => at <= step).at(-1)?.[1])]);
}

/** The small curve beside a run. */
export function Spark({ values }) {
  if (!values || values.length < 2) return null;
  const logs = values.every((value) => value > 0) ? values.map(Math.log) : values;
  const low = Math.min(...logs), high = Math.max(...logs), span = high - low || 1;
  const points = logs.map((value, place) => `${(90 * place) / (logs.length - 1)},${22 - (20 * (value - low)) / span}`);
  return html`<svg class="spark" viewBox="0 0 90 24" width="90" height="24" aria-hidden="true"><polyline points=${points.join(" ")} /></svg>`;
}
