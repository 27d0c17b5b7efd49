// The base model, and what it needs on this machine before any weights are fetched.
import { Browse } from "./browse.js";
import { Plan } from "./planned.js";
import { html, t } from "./lib.js";

export function BaseStep({ recipe }) {
  const now = recipe.settings["model.path"] || "builtin";
  const take = (value) => recipe.change({ "model.path": value });
  return html`<h2>${t("The model to begin from")}</h2>
    <p>${t("Now:")} <b><bdi>${now}</bdi></b></p>
    <p class="tools"><button type="button" aria-pressed=${now === "builtin"} onClick=${() => take("builtin")}>builtin</button> <span class="soft">${t("3.3 million parameters, offline, to try things with")}</span></p>
    <label class="row">${t("hub id, folder or GGUF file")} <input value=${now === "builtin" ? "" : now} placeholder="Qwen/Qwen2.5-0.5B-Instruct" onChange=${(event) => take(event.target.value.trim() || null)} /></label>
    <details><summary>${t("models where Luthier runs")}</summary><${Browse} take=${take} models=${true} /></details>
    <label class="row">${t("precision of its weights")} <select value=${recipe.settings["model.quantize"] || "none"} onChange=${(event) => recipe.change({ "model.quantize": event.target.value === "none" ? null : event.target.value })}>
      ${["none", "int8", "nf4", "fp4"].map((name) => html`<option value=${name}>${{ none: t("as it is stored"), int8: t("8 bit"), nf4: t("4 bit (nf4)"), fp4: t("4 bit (fp4)") }[name]}</option>`)}</select></label>
    <h3>${t("Does it fit this machine?")}</h3><${Plan} recipe=${recipe} />`;
}
