// The list of runs: filter, sort, tags, delete, and choosing several to lay their curves over each other.
import { Plot, Spark } from "./plot.js";
import { fileName, get, html, metric, number, post, Problem, remove, score, t, time, useEffect, useEvery, useMemo, useState, when } from "./lib.js";

const COLUMNS = [
  ["run", () => t("run"), (run) => run.id],
  ["state", () => t("state"), (run) => run.state],
  ["method", () => t("method"), (run) => run.method],
  ["score", () => t("score"), (run) => run.tuned ?? -Infinity],
  ["loss", () => t("loss"), (run) => run.held_out_loss ?? run.loss ?? Infinity],
  ["time", () => t("training time"), (run) => run.seconds],
  ["changed", () => t("changed"), (run) => -run.changed],
];
const STATES = { running: () => t("running"), finished: () => t("finished"), stopped: () => t("stopped"), killed: () => t("killed"), damaged: () => t("damaged") };
export const stateWord = (state) => (STATES[state] || (() => state))();

export function Runs() {
  const [found, set] = useState({ version: -1, runs: null }), [error, fail] = useState(null), [turn, again] = useState(0);
  const [search, setSearch] = useState(""), [by, setBy] = useState(["changed", 1]), [chosen, setChosen] = useState([]);
  useEvery(2, async () => {
    try {
      const next = await get("/api/runs", { since: found.version });
      fail(null);
      if (next.runs) set(next);
    } catch (wrong) { fail(wrong); }
  }, [turn]);
  const shown = useMemo(() => {
    const wanted = search.toLowerCase().split(/\s+/).filter(Boolean);
    const value = COLUMNS.find(([name]) => name === by[0])[2];
    return (found.runs || [])
      .filter((run) => wanted.every((word) => [run.id, run.state, run.method, run.model, run.data, ...run.tags].join(" ").toLowerCase().includes(word)))
      .sort((a, b) => { const [x, y] = [value(a), value(b)]; return by[1] * (x < y ? -1 : x > y ? 1 : 0); });
  }, [found, search, by]);
  const kept = chosen.filter((id) => (found.runs || []).some((run) => run.id === id));
  if (!found.runs) return html`<h1>${t("Runs")}</h1><${Problem} error=${error} />${!error && html`<p class="soft">${t("reading the runs…")}</p>`}`;
  return html`
    <h1>${t("Runs")}</h1>
    <${Problem} error=${error} />
    ${found.runs.length === 0 ? html`<p>${t("There are no runs here yet.")} <a href="#/new/task">${t("New run")}</a></p>` : html`
      <div class="tools">
        <input type="search" placeholder=${t("name, method, data or tag")} aria-label=${t("search in the runs")} value=${search} onInput=${(event) => setSearch(event.target.value)} />
        <span class="soft" role="status">${t("{0} of {1} runs", shown.length, found.runs.length)}</span>
        ${kept.length > 0 && html`<button type="button" onClick=${() => setChosen([])}>${t("choose none")}</button>`}
      </div>
      ${kept.length > 0 && html`<${Overlay} ids=${kept} runs=${found.runs} />`}
      <div class="wide" tabindex="0"><table class="data runs">
        <thead><tr><th><span class="hidden">${t("chosen")}</span></th>
          ${COLUMNS.map(([name, label]) => html`<th class=${["score", "loss", "time"].includes(name) ? "n" : ""} aria-sort=${by[0] === name ? (by[1] > 0 ? "ascending" : "descending") : "none"}>
            <button type="button" class="sort" onClick=${() => setBy([name, by[0] === name ? -by[1] : 1])}>${label()}</button></th>`)}
          <th><span class="hidden">${t("curve and actions")}</span></th></tr></thead>
        <tbody>${shown.map((run) => html`<${Row} key=${run.id} run=${run} chosen=${kept.includes(run.id)}
          choose=${() => setChosen(kept.includes(run.id) ? kept.filter((id) => id !== run.id) : [...kept, run.id])}
          changed=${() => { set({ ...found, version: -1 }); again((count) => count + 1); }} />`)}</tbody>
      </table></div>`}`;
}

function Row({ run, chosen, choose, changed }) {
  const [error, fail] = useState(null);
  const act = (action) => action.then(changed, fail);
  const erase = () => confirm(t("Move the run {0} to the bin? It stays there, in {1}, until you delete it.", run.id, ".ui/bin")) && act(remove("/api/run", { id: run.id }));
  const retag = () => {
    const text = prompt(t("Tags of {0}, with commas between them", run.id), run.tags.join(", "));
    if (text !== null) act(post("/api/run/tags", { id: run.id }, text.split(",")));
  };
  return html`<tr class=${run.state}>
    <td><input type="checkbox" aria-label=${t("choose {0}", run.id)} checked=${chosen} onChange=${choose} /></td>
    <td><a href=${`#/run/${encodeURI(run.id)}`}><bdi>${run.id}</bdi></a><div class="where"><bdi title=${run.data}>${fileName(run.data)}</bdi></div>
      ${run.tags.map((tag) => html`<span class="tag"><bdi>${tag}</bdi></span>`)}<${Problem} error=${error} /></td>
    <td><span class=${`state ${run.state}`}>${stateWord(run.state)}</span>${run.steps && run.state !== "finished" && html`<div class="where">${t("step {0} of {1}", run.step, run.steps)}</div>`}${run.why && html`<div class="where">${run.why}</div>`}</td>
    <td>${run.method}</td>
    <td class="n">${run.metric && html`${score(run.metric, run.tuned)}<div class="ci">${run.low !== undefined && run.low !== null ? t("{0} to {1}", score(run.metric, run.low), score(run.metric, run.high)) : ""}</div><div class="where">${metric(run.metric)}${run.base !== null ? ` · ${t("base {0}", score(run.metric, run.base))}` : ""}</div>`}</td>
    <td class="n">${number(run.held_out_loss ?? run.loss)}</td>
    <td class="n">${time(run.seconds)}</td>
    <td>${when(run.changed)}</td>
    <td class="actions"><${Spark} values=${run.spark} /><button type="button" onClick=${retag}>${t("tags")}</button><button type="button" onClick=${erase} disabled=${run.state === "running"}>${t("delete")}</button></td>
  </tr>`;
}

/** Loss curves of several runs over each other, and what differs in their recipes. */
function Overlay({ ids, runs }) {
  const [found, set] = useState({});
  useEffect(() => {
    for (const id of ids) {
      if (!found[id]) Promise.all([get("/api/run/curves", { id, points: 600 }), get("/api/run", { id })]).then(([curves, whole]) => set((all) => ({ ...all, [id]: { curves: curves.curves, recipe: whole.settings } })), () => {});
    }
  }, [ids.join("\n")]);
  const ready = ids.filter((id) => found[id]);
  const colors = Object.fromEntries(runs.map((run) => run.id).sort().map((id, place) => [id, place]));  // they stay when one more is chosen
  const lines = (name) => ready.filter((id) => found[id].curves[name]).map((id, place) => ({ label: id, points: found[id].curves[name], number: ids.length > 8 ? colors[id] : place, dots: name === "validation_loss" }));
  const keys = [...new Set(ready.flatMap((id) => Object.keys(found[id].recipe || {})))].filter((key) => new Set(ready.map((id) => JSON.stringify(found[id].recipe?.[key]))).size > 1);
  return html`<section class="overlay" aria-label=${t("the chosen runs")}>
    <${Plot} title=${t("training loss, smoothed")} lines=${lines("smooth")} log=${true} sync="overlay" />
    ${lines("validation_loss").length > 0 && html`<${Plot} title=${t("held-out loss")} lines=${lines("validation_loss")} sync="overlay" />`}
    ${ready.length > 1 && html`<h3>${t("What differs in their recipes")}</h3>
      ${keys.length === 0 ? html`<p class="soft">${t("Nothing but the folder.")}</p>` : html`<div class="wide" tabindex="0"><table><thead><tr><th>${t("key")}</th>${ready.map((id) => html`<th><bdi>${id}</bdi></th>`)}</tr></thead>
        <tbody>${keys.map((key) => html`<tr><td>${key}</td>${ready.map((id) => html`<td><bdi>${text(found[id].recipe?.[key])}</bdi></td>`)}</tr>`)}</tbody></table></div>`}`}
  </section>`;
}

const text = (value) => (value === undefined || value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
