// The way from a task to a run: each step shows what Luthier finds, and the recipe that results stands beside all of them.
import { Choose, Field, MethodFields } from "./fields.js";
import { DataStep } from "./data.js";
import { BaseStep } from "./bases.js";
import { Ranking } from "./ranking.js";
import { Plan } from "./planned.js";
import { get, go, html, metric, post, Problem, score, t, useEffect, useState } from "./lib.js";

const DRAFT = "luthier-draft";
export const STEPS = [
  ["task", () => t("Task")], ["data", () => t("Data")], ["base", () => t("Base model")], ["method", () => t("Method")],
  ["training", () => t("Training")], ["evaluation", () => t("Evaluation")], ["deployment", () => t("Deployment")],
];
const kept = () => { try { return localStorage.getItem(DRAFT) || ""; } catch { return ""; } };

// Outlives the steps: a change that is still on its way when the reader goes on is not lost.
const draft = { text: kept(), turn: 0, waiting: Promise.resolve() };

/** The recipe: its text, what is wrong with it, and { change(keys), type(text) }. */
function useRecipe() {
  const [found, set] = useState({ text: draft.text, problems: [], notes: [], settings: {} });
  const [error, fail] = useState(null);
  const keep = (next) => {
    draft.text = next;
    try { localStorage.setItem(DRAFT, next); } catch { /* not kept */ }
  };
  // One after another, each on the text that the one before has left: two quick changes are both there.
  const read = (changes, typed) => {
    const own = ++draft.turn, changed = Object.keys(changes).length > 0;
    if (typed !== undefined) keep(typed);
    draft.waiting = draft.waiting.then(async () => {
      if (typed !== undefined && own !== draft.turn) return;  // more was typed since
      try {
        let sent, next;
        do {  // once more if the text was typed in while it was on its way
          sent = draft.text;
          next = await post("/api/recipe", {}, { text: sent, changes });
        } while (changed && sent !== draft.text);
        if (changed) keep(next.text);
        if (changed || own === draft.turn) set({ ...next, text: draft.text });
        fail(null);
      } catch (wrong) { fail(wrong); }
    });
    return draft.waiting;
  };
  useEffect(() => { read({}); }, []);
  return { ...found, error, change: (changes) => read(changes), type: (typed) => { set({ ...found, text: typed }); return read({}, typed); } };
}

export function New({ id }) {
  const step = STEPS.some(([name]) => name === id) ? id : "task";
  const recipe = useRecipe();
  const [form, setForm] = useState(null), [problem, fail] = useState(null);
  useEffect(() => { get("/api/form").then(setForm, fail); }, []);
  const at = STEPS.findIndex(([name]) => name === step);
  const Step = PARTS[step];
  return html`
    <h1>${t("A new run")}</h1>
    <ol class="steps" aria-label=${t("steps")}>${STEPS.map(([name, label], place) => html`<li class=${place < at && (name !== "data" || recipe.settings["data.path"]) ? "done" : ""}>
      <a href=${`#/new/${name}`} aria-current=${place === at ? "step" : undefined}><span>${place + 1}</span> ${label()}</a></li>`)}</ol>
    <div class="beside">
      <section aria-label=${STEPS[at][1]()}>
        <${Problem} error=${problem} />
        <${Step} recipe=${recipe} form=${form} />
        <p class="tools onward">
          ${at > 0 && html`<button type="button" onClick=${() => go(`#/new/${STEPS[at - 1][0]}`)}>${t("back")}</button>`}
          ${at < STEPS.length - 1 && html`<button type="button" class=${step === "training" ? "" : "main"} onClick=${() => go(`#/new/${STEPS[at + 1][0]}`)}>${t("next: {0}", STEPS[at + 1][1]())}</button>`}
        </p>
      </section>
      <${Recipe} recipe=${recipe} />
    </div>`;
}

/** The recipe as YAML, which can be typed as well. */
function Recipe({ recipe }) {
  return html`<aside aria-label=${t("the recipe")}>
    <h2>${t("The recipe")}</h2>
    <textarea spellcheck="false" rows="18" aria-label=${t("recipe as YAML")} aria-invalid=${recipe.problems.length > 0} value=${recipe.text} onInput=${(event) => recipe.type(event.target.value)}></textarea>
    <${Problem} error=${recipe.error} />
    ${recipe.problems.length > 0 && html`<ul class="problem" role="alert">${recipe.problems.map((each) => html`<li>${each}</li>`)}</ul>`}
    ${recipe.notes.map((note) => html`<p class="note">${note}</p>`)}
    <p class="tools"><button type="button" onClick=${() => navigator.clipboard.writeText(recipe.text)}>${t("copy")}</button>
      <button type="button" disabled=${!recipe.command || !recipe.text.trim()} title=${recipe.command} onClick=${() => navigator.clipboard.writeText(recipe.command)}>${t("copy as a command")}</button>
      <button type="button" onClick=${() => confirm(t("Begin with an empty recipe?")) && recipe.type("")}>${t("start over")}</button></p>
  </aside>`;
}

const TASKS = [
  ["auto", () => t("As the data says"), () => t("dialogues and instructions are answered, labels are classified, plain text is continued")],
  ["chat", () => t("Answer"), () => t("instructions, dialogues, questions, summaries; also labels in words")],
  ["classify", () => t("Sort into classes"), () => t("a head on the model gives each text one of the labels")],
  ["regress", () => t("Give a number"), () => t("a head on the model gives each text a score")],
  ["complete", () => t("Continue text"), () => t("plain text, without questions and answers")],
];

function TaskStep({ recipe }) {
  const now = recipe.settings["task.name"] || "auto";
  return html`<h2>${t("What is the model to learn?")}</h2>
    <fieldset class="choices"><legend class="hidden">${t("task")}</legend>
      ${TASKS.map(([name, label, about]) => html`<label class=${name === now ? "chosen" : ""}><input type="radio" name="task" value=${name} checked=${name === now} onChange=${() => recipe.change({ task: name === "auto" ? null : name })} />
        <b>${label()}</b><span>${about()}</span></label>`)}
    </fieldset>`;
}

function MethodStep({ recipe, form }) {
  return html`<h2>${t("How to tune")}</h2>
    <${Choose} recipe=${recipe} form=${form} />
    <${Ranking} recipe=${recipe} />
    <${MethodFields} recipe=${recipe} form=${form} />`;
}

const COMMON = ["epochs", "steps", "batch_size", "lr", "max_length", "precision", "patience"];

function TrainingStep({ recipe, form }) {
  const fields = form?.blocks.train || [];
  const shown = (names) => fields.filter(({ key }) => names === null ? !COMMON.includes(key) : names.includes(key));
  return html`<h2>${t("Training")}</h2>
    <div class="fields">${shown(COMMON).map((field) => html`<${Field} key=${field.key} recipe=${recipe} block="train" field=${field} />`)}</div>
    <details><summary>${t("every other setting")}</summary>
      ${[["train", shown(null)], ["model", form?.blocks.model || []], ["data", form?.blocks.data || []], ["evaluate", form?.blocks.evaluate || []]].map(([block, each]) => html`
        <h3>${block}</h3><div class="fields">${each.map((field) => html`<${Field} key=${field.key} recipe=${recipe} block=${block} field=${field} />`)}</div>`)}
    </details>
    <h3>${t("What it will need")}</h3><${Plan} recipe=${recipe} />
    <${Start} recipe=${recipe} />`;
}

/** Name the run, and start it, queue it, compare methods, or save the recipe. */
function Start({ recipe }) {
  const [name, setName] = useState(""), [error, fail] = useState(null), [said, say] = useState(null), [busy, work] = useState(false);
  const [methods, setMethods] = useState("lora,adapter,full"), [budget, setBudget] = useState("10m"), [seeds, setSeeds] = useState(1), [tune, setTune] = useState(false);
  const method = recipe.settings["method.name"] || "lora";
  const file = (recipe.settings["data.path"] || "run").split(/[/\\:]/).at(-1).replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}_. -]+/gu, "-");
  const proposed = name || `${file.replace(/^[^\p{L}\p{N}_]+/u, "").slice(0, 50) || "run"}-${method}`;
  const act = async (path, options = {}) => {
    work(true); fail(null); say(null);
    try { return await post(path, {}, { text: recipe.text, name: proposed, options }); }
    catch (wrong) { fail(wrong); } finally { work(false); }
    return null;
  };
  const start = async () => { const job = await act("/api/recipe/train"); if (job) go(`#/run/${encodeURI(proposed)}`); };
  const compare = async () => { const job = await act("/api/recipe/compare", { methods, budget, seeds, tune }); if (job) go("#/queue"); };
  const save = async () => { const found = await act("/api/recipe/save"); if (found) say(found); };
  const ready = !busy && recipe.problems.length === 0 && recipe.settings["data.path"];
  return html`<h3>${t("Start")}</h3>
    ${!recipe.settings["data.path"] && html`<p class="note">${t("Choose data first: step 2.")}</p>`}
    <label class="row">${t("name of the run")} <input value=${name} placeholder=${proposed} onInput=${(event) => setName(event.target.value)} /></label>
    <p class="tools"><button type="button" class="main" disabled=${!ready} onClick=${start}>${t("start, or queue behind what is running")}</button>
      <button type="button" disabled=${!ready} onClick=${save}>${t("save the recipe")}</button></p>
    <details><summary>${t("compare several methods on this data instead")}</summary>
      <label class="row">${t("methods")} <input value=${methods} onInput=${(event) => setMethods(event.target.value)} /></label>
      <label class="row">${t("time for all of them")} <input value=${budget} onInput=${(event) => setBudget(event.target.value)} /></label>
      <label class="row">${t("runs of each")} <input type="number" min="1" max="100" value=${seeds} onInput=${(event) => setSeeds(Number(event.target.value))} /></label>
      <label class="row"><input type="checkbox" checked=${tune} onChange=${(event) => setTune(event.target.checked)} /> ${t("search the learning rate and size of each first")}</label>
      <button type="button" disabled=${!ready} onClick=${compare}>${t("compare")}</button></details>
    <${Problem} error=${error} />
    ${said && html`<p role="status">${t("Saved. In a terminal:")}</p><pre>${said.command}</pre>`}`;
}

function After({ part }) {
  const [found, set] = useState(null);
  useEffect(() => { get("/api/runs").then(({ runs }) => set(runs.filter((run) => run.state === "finished" && !run.comparison)), () => set([])); }, []);
  return html`<h2>${part === "evaluation" ? t("Is it better than its base?") : t("Where it will answer")}</h2>
    <p>${part === "evaluation" ? t("Each finished run shows base and tuned model on the held-out rows, what got better and worse, and what was forgotten.") : t("A finished run can be exported, with a proof that the export answers as it does, served, and talked to.")}</p>
    ${found && (found.length ? html`<ul>${found.slice(0, 12).map((run) => html`<li><a href=${`#/run/${encodeURI(run.id)}/${part}`}><bdi>${run.id}</bdi></a> <span class="soft">${run.method} · ${metric(run.metric)}: ${run.base === null ? "" : `${score(run.metric, run.base)} → `}${score(run.metric, run.tuned)}</span></li>`)}</ul>` : html`<p class="soft">${t("No run is finished yet.")}</p>`)}`;
}

const PARTS = {
  task: TaskStep,
  data: DataStep,
  base: BaseStep,
  method: MethodStep,
  training: TrainingStep,
  evaluation: () => html`<${After} part="evaluation" />`,
  deployment: () => html`<${After} part="deployment" />`,
};
