// Fields of a recipe, made from the same classes as YAML, the command line and help.
import { html, t, Typed } from "./lib.js";

const shown = (value) => (value === null || value === undefined ? "" : Array.isArray(value) || typeof value === "object" ? JSON.stringify(value) : String(value));

/** What was typed, as YAML would read it. */
export const typed = (text, kind) => {
  const bare = text.trim();
  if (bare === "") return null;
  if (kind === "string") return bare;
  if (bare === "true" || bare === "false") return bare === "true";
  if (/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(bare)) return Number(bare);
  if (/^[[{]/.test(bare)) { try { return JSON.parse(bare); } catch { /* the server says what is wrong */ } }
  return bare;
};

export function Field({ recipe, block, field }) {
  const key = `${block}.${field.key}`, now = recipe.settings[key];
  const own = shown(now) !== shown(field.default) && now !== undefined && !(now === null && ["auto", "none"].includes(field.default));
  const change = (value) => recipe.change({ [key]: value });
  const choices = field.kind === "boolean" ? [true, false] : field.choices;
  return html`<label class="field"><span><b>${key}</b> ${t(field.help)}</span>
    ${choices.length > 0
      ? html`<select value=${own ? shown(now) : ""} onChange=${(event) => change(typed(event.target.value, field.kind))}>
          <option value="">${shown(field.default) || "–"}</option>${choices.filter((choice) => shown(choice) !== shown(field.default)).map((choice) => html`<option value=${shown(choice)}>${shown(choice)}</option>`)}</select>`
      : html`<${Typed} value=${own ? shown(now) : ""} placeholder=${shown(field.default)} take=${(text) => change(typed(text, field.kind))} />`}
  </label>`;
}

/** The method, by its name. */
export function Choose({ recipe, form }) {
  const now = recipe.settings["method.name"] || "lora", methods = form?.families.method || [];
  const found = methods.find(({ name }) => name === now);
  const branches = [...new Set(methods.map((method) => method.family))];
  return html`<label class="row">${t("method")} <select aria-label=${t("method")} value=${now} onChange=${(event) => recipe.change({ method: event.target.value })}>
      ${branches.map((branch) => html`<optgroup label=${t(branch)}>${methods.filter(({ family }) => family === branch).map(({ name }) => html`<option value=${name}>${name}</option>`)}</optgroup>`)}
      ${form && html`<optgroup label=${t("also called")}>${form.presets.map((name) => html`<option value=${name}>${name}</option>`)}</optgroup>`}
    </select></label>
    ${found && html`<p>${t(found.help)} ${found.paper && html`<span class="soft">arXiv ${found.paper}</span>`}</p>`}`;
}

export function MethodFields({ recipe, form }) {
  const found = form?.families.method.find(({ name }) => name === recipe.settings["method.name"]);
  if (!found || found.fields.length === 0) return null;
  return html`<h3>${t("Settings of {0}", found.name)}</h3><div class="fields">${found.fields.map((field) => html`<${Field} key=${field.key} recipe=${recipe} block="method" field=${field} />`)}</div>`;
}
