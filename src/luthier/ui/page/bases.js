// The base model, and which of those at hand fits this machine, before any weights are fetched or read.
import { Browse } from "./browse.js";
import { Parts, usePlans } from "./planned.js";
import { bytes, get, html, Problem, t, time, Typed, useEffect, useState } from "./lib.js";

const ABOUT = {
  builtin: () => t("3.3 million parameters, offline, to try things with"),
  smollm2: () => t("135 million parameters, English, from PyPI"),
};

export function BaseStep({ recipe }) {
  const now = recipe.settings["model.path"] || "builtin";
  const [found, set] = useState([]), [error, fail] = useState(null), [asked, ask] = useState([]);
  useEffect(() => { get("/api/bases").then(set, fail); }, []);
  const take = (value) => recipe.change({ "model.path": value });
  const rows = found.some(({ path }) => path === now) ? found : [{ path: now, bytes: null, fetch: false }, ...found];
  // What would have to be downloaded is planned when it is chosen: its size is read from its file.
  const plans = usePlans(recipe, [now, ...rows.filter(({ path, fetch }) => path !== now && (!fetch || asked.includes(path))).map(({ path }) => path)]);
  const name = (path) => (path.length > 30 ? path.split(/[/\\]/).slice(-2).join("/") : path);
  return html`<h2>${t("The model to begin from")}</h2>
    <${Problem} error=${error} />
    ${!recipe.settings["data.path"] && html`<p class="note">${t("Choose data first: step 2.")} ${t("Then each model here says what it needs on this machine.")}</p>`}
    <div class="wide" tabindex="0"><table class="bases"><thead><tr><th>${t("model")}</th><th class="n">${t("file")}</th><th class="n">${t("memory needed")}</th><th class="n">${t("time of the run")}</th><th>${t("on this machine")}</th></tr></thead>
      <tbody>${rows.map(({ path, bytes: size, fetch }) => html`<${Base} key=${path} name=${name(path)} path=${path} size=${size} fetch=${fetch && path !== now} chosen=${path === now} plan=${plans[path]} ready=${recipe.settings["data.path"]} take=${take} ask=${() => ask([...asked, path])} />`)}</tbody></table></div>
    <label class="row">${t("hub id, folder or GGUF file")} <${Typed} value=${now === "builtin" ? "" : now} placeholder="Qwen/Qwen2.5-0.5B-Instruct" take=${(text) => take(text.trim() || null)} /></label>
    <details><summary>${t("models where Luthier runs")}</summary><${Browse} take=${take} models=${true} /></details>
    <label class="row">${t("precision of its weights")} <select value=${recipe.settings["model.quantize"] || "none"} onChange=${(event) => recipe.change({ "model.quantize": event.target.value === "none" ? null : event.target.value })}>
      ${["none", "int8", "nf4", "fp4"].map((name) => html`<option value=${name}>${{ none: t("as it is stored"), int8: t("8 bit"), nf4: t("4 bit (nf4)"), fp4: t("4 bit (fp4)") }[name]}</option>`)}</select></label>
    <h3>${t("What {0} needs", name(now))}</h3><${Parts} recipe=${recipe} ...${plans[now]} />`;
}

/** A row of the table; `plan` is { found } or { error }, or nothing while it is not known. */
function Base({ name, path, size, fetch, chosen, plan, ready, take, ask }) {
  const needed = plan?.found?.plan, room = plan?.found?.room;
  return html`<tr>
    <td><button type="button" aria-pressed=${chosen} title=${path} onClick=${() => take(path)}><bdi>${name}</bdi></button> ${ABOUT[path] && html`<div class="where">${ABOUT[path]()}</div>`}</td>
    <td class="n">${bytes(size)}</td>
    <td class="n">${needed ? t("{0} of {1}", bytes(needed.bytes), bytes(room.free)) : "–"}</td>
    <td class="n">${needed ? time(needed.seconds) : "–"}</td>
    <td>${needed ? html`<b class=${plan.found.fits ? "good" : "bad"}>${plan.found.fits ? t("fits") : t("does not fit")}</b>`
      : plan ? html`<span class="bad">${plan.error ? plan.error.message : t("cannot be planned")}</span>`
      : fetch ? html`<button type="button" disabled=${!ready} onClick=${ask}>${t("download and see")}</button>`
      : html`<span class="soft">${ready ? t("planning…") : "–"}</span>`}</td></tr>`;
}
