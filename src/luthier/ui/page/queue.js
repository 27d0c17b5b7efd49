// What the page has started: runs that wait for each other, exports, servers.
import { get, html, post, Problem, remove, t, useEvery, useState, when } from "./lib.js";

const KINDS = { train: () => t("training"), compare: () => t("comparison"), export: () => t("export"), serve: () => t("server"), evaluate: () => t("evaluation") };
const STATES = { waiting: () => t("waiting"), running: () => t("running"), done: () => t("finished"), failed: () => t("failed"), stopped: () => t("stopped") };
const LOOK = { waiting: "stopped", running: "running", done: "finished", failed: "killed", stopped: "stopped" };

export function useJobs() {
  const [found, set] = useState({ version: -1, jobs: [] }), [error, fail] = useState(null), [turn, next] = useState(0);
  useEvery(1.5, async () => {
    try {
      const working = found.jobs.some(({ state }) => state === "running");
      const now = await get("/api/jobs", { since: working ? -1 : found.version });
      fail(null);
      if (now.jobs) set(now);
    } catch (wrong) { fail(wrong); }
  }, [turn]);
  return [found.jobs, error, () => { set({ ...found, version: -1 }); next((count) => count + 1); }];
}

export function Queue() {
  const [jobs, error, again] = useJobs(), [wrong, fail] = useState(null);
  const act = (action) => action.then(again, fail);
  return html`<h1>${t("Queue")}</h1><p class="soft">${t("Trainings and comparisons follow one another; what is running goes on when this page or its server ends.")}</p>
    <${Problem} error=${error || wrong} />
    ${jobs.length === 0 && html`<p>${t("Nothing was started here yet.")}</p>`}
    ${jobs.map((job) => html`<article class="job" key=${job.id}>
      <h2>${KINDS[job.kind]?.() || job.kind}: ${job.kind === "train" ? html`<a href=${`#/run/${encodeURI(job.target)}`}><bdi>${job.target}</bdi></a>` : html`<bdi>${job.target}</bdi>`} <span class=${`state ${LOOK[job.state]}`}>${STATES[job.state]()}</span></h2>
      <p class="tools">${(job.state === "waiting" || job.state === "running") && html`<button type="button" onClick=${() => act(post("/api/job/stop", { id: job.id }))}>${job.state === "running" ? t("stop (a run is saved)") : t("take out of the queue")}</button>`}
        ${job.state === "waiting" && html`<button type="button" onClick=${() => act(post("/api/job/first", { id: job.id }))}>${t("next")}</button>`}
        ${!["waiting", "running"].includes(job.state) && html`<button type="button" onClick=${() => act(remove("/api/job", { id: job.id }))}>${t("remove from this list")}</button>`}
        <span class="soft">${when(job.started || job.place)}</span></p>
      <details open=${job.state === "failed"}><summary>${t("command and output")}</summary><pre>$ ${job.command}</pre><pre class="output">${job.output}</pre></details>
    </article>`)}`;
}
