// Where a run answers: exports with their proof, a server, and a conversation with several models side by side.
import { Field } from "./fields.js";
import { useJobs } from "./queue.js";
import { bytes, get, html, language, number, post, Problem, t, useEffect, useRef, useState } from "./lib.js";

export function Deployment({ id }) {
  return html`<${Exports} id=${id} /><${Chat} ids=${[id]} />`;
}

function Exports({ id }) {
  const [form, setForm] = useState(null), [to, choose] = useState("merged"), [settings, set] = useState({});
  const [made, setMade] = useState([]), [error, fail] = useState(null);
  const [jobs, , again] = useJobs();
  const own = jobs.filter((job) => job.kind === "export" && job.target === id), working = own.some(({ state }) => state === "running");
  useEffect(() => { get("/api/form").then(setForm, fail); }, []);
  useEffect(() => { get("/api/run/exports", { id }).then(setMade, fail); }, [id, working]);
  const found = form?.families.export.find(({ name }) => name === to);
  const recipe = { settings, change: (changes) => set((before) => Object.fromEntries(Object.entries({ ...before, ...changes }).filter(([, value]) => value !== null))) };
  const start = () => post("/api/run/export", { id }, { to, settings: Object.fromEntries(Object.entries(settings).map(([key, value]) => [key.split(".")[1], value])) }).then(again, fail);
  return html`<h2>${t("Exports")}</h2><${Problem} error=${error} />
    ${made.map((each) => html`<article class="job"><h3>${each.form} <span class="soft">${bytes(each.bytes)}</span></h3><p class="where"><bdi>${each.path}</bdi></p><${Proof} parity=${each.parity || []} />
      ${(each.use || []).length > 0 && html`<details><summary>${t("how to use it")}</summary><pre>${each.use.join("\n")}</pre></details>`}</article>`)}
    <label class="row">${t("form")} <select value=${to} onChange=${(event) => { choose(event.target.value); set({}); }}>${(form?.families.export || []).map(({ name }) => html`<option value=${name}>${name}</option>`)}</select> <span class="soft">${found && t(found.help)}</span></label>
    ${found && html`<div class="fields">${found.fields.map((field) => html`<${Field} key=${to + field.key} recipe=${recipe} block=${to} field=${field} />`)}</div>`}
    <p class="tools"><button type="button" class="main" disabled=${working} onClick=${start}>${t("export, and prove that it answers as the run")}</button>${working && html`<span role="status" class="soft">${t("exporting…")}</span>`}</p>
    ${own.filter(({ state }) => state === "failed").slice(0, 1).map((job) => html`<pre class="output">${job.output}</pre>`)}`;
}

const Proof = ({ parity }) => parity.length > 0 && html`<div class="wide" tabindex="0"><table><thead><tr><th>${t("compared with")}</th><th class="n">${t("prompts")}</th><th class="n">${t("largest difference")}</th><th class="n">${t("same answers")}</th></tr></thead><tbody>
  ${parity.map((each) => html`<tr><td>${each.against}</td><td class="n">${each.prompts}</td><td class="n">${number(each.largest)}</td><td class="n">${Math.round(100 * each.same_answers)} %</td></tr>`)}</tbody></table></div>`;

/** Start a server over runs and talk to its models, side by side. */
export function Chat({ ids }) {
  const [jobs, error, again] = useJobs(), [wrong, fail] = useState(null);
  const [beside, setBeside] = useState([]), [others, choose] = useState([]);
  useEffect(() => {
    Promise.all([get("/api/runs"), ...ids.map((id) => get("/api/run/exports", { id }))]).then(([{ runs }, ...made]) => setBeside([
      ...made.flatMap((each, place) => each.map(({ form }) => `${ids[place]}/exports/${form}`)),
      ...(runs || []).filter(({ state, id }) => state === "finished" && !ids.includes(id)).map(({ id }) => id),
    ]), fail);
  }, [jobs.map(({ id, state }) => id + state).join()]);
  const wanted = [...new Set([...ids, ...others])].sort().join(", ");
  const job = jobs.find((each) => each.kind === "serve" && each.state === "running" && each.target.split(", ").sort().join(", ") === wanted);
  const last = jobs.find((each) => each.kind === "serve" && each.target.split(", ").sort().join(", ") === wanted);
  const start = () => post("/api/serve", {}, { runs: wanted.split(", ") }).then(again, fail);
  return html`<h2>${t("Talk to it")}</h2><${Problem} error=${error || wrong} />
    ${!job && html`<p>${t("A server answers on this machine over OpenAI's API: the base, this run, and what you choose beside them.")}</p>
      <details><summary>${t("beside its exports and other runs")}</summary>${beside.map((id) => html`<label class="row"><input type="checkbox" checked=${others.includes(id)} onChange=${() => choose(others.includes(id) ? others.filter((each) => each !== id) : [...others, id])} /><bdi>${id}</bdi></label>`)}</details>
      <p class="tools"><button type="button" class="main" onClick=${start}>${t("start the server")}</button></p>
      ${last?.state === "failed" && html`<pre class="output">${last.output}</pre>`}`}
    ${job && html`<p class="tools"><button type="button" onClick=${() => post("/api/job/stop", { id: job.id }).then(again, fail)}>${t("stop the server")}</button></p><${Talk} job=${job.id} />`}`;
}

function Talk({ job }) {
  const [server, set] = useState(null), [shown, show] = useState(null), [error, fail] = useState(null);
  const [text, setText] = useState(""), [turns, setTurns] = useState([]), [warmth, setWarmth] = useState(0), [busy, work] = useState(false);
  const stop = useRef(null);
  useEffect(() => {
    let open = true;
    const ask = () => get("/api/serve/models", { job }).then((found) => {
      if (!open) return;
      set(found);
      if (found.ready) show((before) => before || found.models.slice(0, 3)); else setTimeout(ask, 1000);
    }, fail);
    ask();
    return () => { open = false; stop.current?.abort(); };
  }, [job]);
  if (!server?.ready) return html`<${Problem} error=${error} /><p class="soft" role="status">${t("loading the models…")}</p>`;
  const say = async () => {
    const asked = text.trim();
    if (!asked || busy) return;
    setText(""); work(true); fail(null);
    const place = turns.length;
    setTurns([...turns, { asked, answers: {} }]);
    stop.current = new AbortController();
    const add = (model, part) => setTurns((all) => all.map((turn, number) => (number === place ? { ...turn, answers: { ...turn.answers, [model]: (turn.answers[model] || "") + part } } : turn)));
    await Promise.all(shown.map(async (model) => {
      const messages = [...turns.flatMap((turn) => [{ role: "user", content: turn.asked }, { role: "assistant", content: turn.answers[model] || "" }]), { role: "user", content: asked }];
      try { await stream({ job, model, messages, temperature: warmth, max_tokens: 256 }, (part) => add(model, part), stop.current.signal); }
      catch (wrong) { if (wrong.name !== "AbortError") fail(wrong); }
    }));
    work(false);
  };
  return html`<p class="soft">${t("also at {0}", server.address)}</p>
    <p class="tools" role="group" aria-label=${t("models that answer")}>${server.models.map((model) => html`<label><input type="checkbox" checked=${shown.includes(model)} onChange=${() => show(shown.includes(model) ? shown.filter((each) => each !== model) : [...shown, model])} /> <bdi>${model}</bdi></label>`)}
      <label>${t("temperature")} <input type="number" min="0" max="2" step="0.1" value=${warmth} onChange=${(event) => setWarmth(Number(event.target.value))} /></label>
      <button type="button" onClick=${() => setTurns([])}>${t("new conversation")}</button></p>
    <div class="talk" aria-live="polite">${turns.map((turn) => html`<p class="asked"><bdi>${turn.asked}</bdi></p><div class="answers">${shown.map((model) => html`<div><span class="where"><bdi>${model}</bdi></span><div class="answer" dir="auto">${turn.answers[model] ?? "…"}</div></div>`)}</div>`)}</div>
    <${Problem} error=${error} />
    <form class="row" onSubmit=${(event) => { event.preventDefault(); say(); }}><input aria-label=${t("message")} placeholder=${t("message")} value=${text} onInput=${(event) => setText(event.target.value)} />
      ${busy ? html`<button type="button" onClick=${() => stop.current.abort()}>${t("stop")}</button>` : html`<button type="submit" class="main" disabled=${!shown.length}>${t("send")}</button>`}</form>`;
}

/** The parts of an answer as they come. */
async function stream(body, add, signal) {
  const response = await fetch("/api/chat", { method: "POST", headers: { "content-type": "application/json", "accept-language": language() }, body: JSON.stringify(body), signal });
  if (!response.ok) {
    const found = (await response.json()).error || {};
    throw Object.assign(new Error(found.message), { fix: found.fix });
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const part = JSON.parse(line.slice(6));
      if (part.error) throw new Error(part.error.message);
      const content = part.choices?.[0]?.delta?.content;
      if (content) add(content);
    }
  }
}
