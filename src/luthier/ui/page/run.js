// A run, live or finished: its curves as they grow, its scores, its report, its recipe.
import { Deployment } from "./deployment.js";
import { Evaluation } from "./evaluation.js";
import { Plot } from "./plot.js";
import { bytes, fileName, get, html, metric, number, post, Problem, score, t, time, useEffect, useEvery, useMemo, useRef, useState } from "./lib.js";
import { stateWord } from "./runs.js";

const CHARTS = [
  ["validation_loss", () => t("held-out loss"), false],
  ["lr", () => t("learning rate"), false],
  ["grad_norm", () => t("gradient norm"), true],
  ["tokens_per_second", () => t("tokens per second"), false],
  ["memory", () => t("memory of the process, bytes"), false],
  ["device_memory", () => t("memory of the device, bytes"), false],
];
const MOST = 4000;  // live points of a curve before the server reduces the whole of it again

const TABS = [["", () => t("training")], ["evaluation", () => t("evaluation")], ["deployment", () => t("deployment")]];

export function Run({ id: given }) {
  const tab = TABS.find(([name]) => name && given.endsWith(`/${name}`))?.[0] || "", id = tab ? given.slice(0, -tab.length - 1) : given;
  const [whole, setWhole] = useState(null), [error, fail] = useState(null);
  const [curves, setCurves] = useState({}), [state, setState] = useState(null), [last, setLast] = useState(null);
  const [lost, setLost] = useState(false);
  const source = useRef(null), [turn, again] = useState(0);
  useEffect(() => {
    let open = true;
    const load = async () => {
      const [run, found] = await Promise.all([get("/api/run", { id }), get("/api/run/curves", { id })]);
      if (!open) return;
      setWhole(run); setState(run.state); setCurves(found.curves);
      listen(found.lines);
    };
    const listen = (start) => {
      source.current?.close();
      const events = new EventSource(`/api/run/events?id=${encodeURIComponent(id)}&start=${start}`);
      source.current = events;
      events.onopen = () => setLost(false);
      events.onerror = () => setLost(events.readyState !== EventSource.OPEN);
      events.addEventListener("lines", (event) => add(JSON.parse(event.data)));
      events.addEventListener("again", () => { begin(); });
      events.addEventListener("state", (event) => {
        const now = JSON.parse(event.data);
        setState((before) => ({ ...before, ...now }));
        if (now.state !== "running") { events.close(); setLost(false); get("/api/run", { id }).then((run) => open && setWhole(run), () => {}); }
      });
    };
    const add = (lines) => {
      setLast((before) => lines.findLast((line) => "loss" in line) || before);
      setCurves((before) => {
        const next = { ...before };
        for (const line of lines) for (const name of ["loss", ...CHARTS.map(([name]) => name)]) {
          if (Number.isFinite(line[name])) next[name] = [...(next[name] || []), [line.step, line[name]]];
        }
        if ((next.loss || []).length > MOST) get("/api/run/curves", { id }).then((found) => open && setCurves(found.curves), () => {});
        return next;
      });
    };
    let timer;
    const begin = () => load().then(() => fail(null), (wrong) => {
      if (!open) return;
      fail(wrong);
      if (wrong.status === 404) timer = setTimeout(begin, 1500);  // its folder comes with its first step
    });
    begin();
    return () => { open = false; clearTimeout(timer); source.current?.close(); };
  }, [id, turn]);
  useEvery(3, async () => {
    if (!state || state.state === "running" || state.state === "finished") return;
    const now = await get("/api/run", { id }).catch(() => null);
    if (now && now.state.state !== state.state) again((count) => count + 1);  // it was resumed
  }, [id, state?.state]);
  const loss = useMemo(() => [
    { label: t("each step"), points: curves.loss || [], thin: true, color: "raw" },
    { label: t("smoothed"), points: curves.smooth || [], color: "blue" },
    ...(curves.validation_loss ? [{ label: t("held out"), points: curves.validation_loss, dots: true, color: "orange" }] : []),
  ], [curves]);
  const kept = whole?.result?.kept_step, best = (curves.validation_loss || []).reduce((a, b) => (a && a[1] <= b[1] ? a : b), null)?.[0];
  const marks = kept || best ? [{ x: kept || best, color: "green", text: kept ? t("weights kept: step {0}", kept) : t("lowest held-out loss so far: step {0}", best) }] : [];
  if (!whole) return html`<p><a href="#/runs">${t("all runs")}</a></p><h1><bdi>${id}</bdi></h1>
    ${error?.status === 404 ? html`<p role="status">${t("There is no such run yet: it is waiting in the queue, or loading its base.")} <a href="#/queue">${t("Queue")}</a></p>` : html`<${Problem} error=${error} />`}`;
  const left = state.steps && state.step && state.seconds ? (state.seconds / state.step) * (state.steps - state.step) : null;
  return html`
    <p><a href="#/runs">${t("all runs")}</a></p>
    <h1><bdi>${id}</bdi></h1>
    <p><span class=${`state ${state.state}`}>${stateWord(state.state)}</span> ${state.method} · <bdi title=${state.model}>${fileName(state.model)}</bdi> · <bdi title=${state.data}>${fileName(state.data)}</bdi></p>
    <${Actions} id=${id} state=${state} />
    ${state.state === "finished" && html`<nav class="tabs" aria-label=${t("parts of the run")}>${TABS.map(([name, label]) => html`<a href=${`#/run/${encodeURI(id)}${name && `/${name}`}`} aria-current=${name === tab ? "page" : undefined}>${label()}</a>`)}</nav>`}
    ${tab === "evaluation" && whole.result ? html`<${Scores} result=${whole.result} /><${Evaluation} id=${id} result=${whole.result} />` : tab === "deployment" ? html`<${Deployment} id=${id} />` : html`
    ${lost && state.state === "running" && html`<p class="note" role="status">${t("the connection is lost; trying again")}</p>`}
    <${Cards} state=${state} last=${last} left=${left} whole=${whole} />
    <${Plot} title=${t("loss")} lines=${loss} marks=${marks} log=${true} height=${320} sync="run" />
    <div class="charts">${CHARTS.filter(([name]) => curves[name]?.length > 1 && name !== "validation_loss").map(([name, label, log]) => html`<${Plot} key=${name} title=${label()} lines=${[{ label: label(), points: curves[name] }]} log=${log} height=${180} sync="run" />`)}</div>
    <${Samples} id=${id} measured=${(curves.validation_loss || []).length} />
    ${whole.result && html`<${Scores} result=${whole.result} />`}
    ${whole.files.includes("report.html") && html`<h2>${t("Report")}</h2><iframe class="report" title=${t("report of the run")} sandbox="allow-scripts" src=${`/api/run/file?id=${encodeURIComponent(id)}&name=report.html`}></iframe>`}
    <details><summary>${t("recipe")}</summary><pre>${whole.recipe}</pre></details>`}`;
}

/** Stop saves what was trained; a stopped or killed run goes on from its last checkpoint. */
function Actions({ id, state }) {
  const [error, fail] = useState(null), [said, say] = useState("");
  const act = (path, text) => post(path, { id }).then(() => { fail(null); say(text); }, fail);
  return html`<p class="tools">
    ${state.state === "running" && html`<button type="button" onClick=${() => act("/api/run/stop", t("asked to stop: it saves first"))}>${t("stop and save")}</button>`}
    ${["stopped", "killed"].includes(state.state) && html`<button type="button" class="main" onClick=${() => act("/api/run/resume", t("in the queue"))}>${t("resume")}</button>`}
    <span role="status">${said}</span></p><${Problem} error=${error} />`;
}

const Cards = ({ state, last, left, whole }) => html`<div class="cards">
  ${[
    [t("step"), state.steps ? `${state.step} / ${state.steps}` : state.step],
    [t("loss"), number(last?.loss ?? state.loss)],
    [t("held-out loss"), number(state.held_out_loss)],
    [t("tokens per second"), number(last?.tokens_per_second ?? whole.result?.tokens_per_second)],
    [t("memory"), bytes(last?.memory ?? whole.result?.memory?.measured)],
    [state.state === "running" ? t("time left") : t("training time"), time(state.state === "running" ? left : state.seconds)],
  ].map(([label, value]) => html`<div class="card"><b>${value}</b><span>${label}</span></div>`)}</div>`;

const Scores = ({ result }) => html`<h2>${t("Base and tuned model")}</h2>
  <div class="wide" tabindex="0"><table><thead><tr><th>${t("metric")}</th><th class="n">${t("base")}</th><th class="n">${t("tuned")}</th><th class="n">${t("difference")}</th></tr></thead>
  <tbody>${Object.entries(result.tuned || {}).map(([name, tuned]) => html`<tr><td>${metric(name)}</td>
    <td class="n"><${Interval} name=${name} score=${result.base?.[name]} /></td><td class="n"><${Interval} name=${name} score=${tuned} /></td>
    <td class=${`n ${{ better: "good", worse: "bad" }[result.difference?.[name]?.verdict] || ""}`}><${Interval} name=${name} score=${result.difference?.[name]} /></td></tr>`)}</tbody></table></div>`;

const Interval = ({ name, score: found }) => found && html`${score(name, found.value)} <div class="ci">${found.low !== null && found.low !== undefined ? t("{0} to {1}", score(name, found.low), score(name, found.high)) : ""}</div>`;

/** What the model answered to a few held-out prompts at each evaluation: one sees it learn. */
function Samples({ id, measured }) {
  const [lines, set] = useState([]), [at, move] = useState(null);
  useEffect(() => {
    const timer = setTimeout(() => get("/api/run/samples", { id }).then(set, () => {}), 800);  // they come after the loss
    return () => clearTimeout(timer);
  }, [id, measured]);
  const steps = [...new Set(lines.map(({ step }) => step))];
  if (!steps.length) return null;
  const place = at === null ? steps.length - 1 : Math.min(at, steps.length - 1);
  return html`<h2>${t("What it says")}</h2>
    <label class="row">${t("after step {0}", steps[place])} <input type="range" min="0" max=${steps.length - 1} value=${place} disabled=${steps.length < 2} onInput=${(event) => move(Number(event.target.value))} /></label>
    <div class="wide" tabindex="0"><table><thead><tr><th>${t("prompt")}</th><th>${t("wanted")}</th><th>${t("answer")}</th></tr></thead><tbody>
    ${lines.filter(({ step }) => step === steps[place]).map((line) => html`<tr>${[line.prompt, line.answer, line.said].map((text) => html`<td><div class="text" tabindex="0"><bdi>${text}</bdi></div></td>`)}</tr>`)}</tbody></table></div>`;
}
