// Memory and time of the recipe on this machine, known before any weights are there.
import { bytes, html, post, Problem, t, time, useEffect, useState, whole } from "./lib.js";

/** Plans by the base's path: { found } or { error }. One after another, and again when more than the base changes. */
export function usePlans(recipe, paths) {
  const { "model.path": own, ...others } = recipe.settings, key = JSON.stringify(others);
  const [made, set] = useState({ key, plans: {} });
  const ready = recipe.problems.length === 0 && recipe.settings["data.path"];
  const plans = made.key === key ? made.plans : {}, next = ready ? paths.find((path) => !(path in plans)) : undefined;
  useEffect(() => {
    if (next === undefined) return undefined;
    let open = true;
    const keep = (plan) => open && set((before) => ({ key, plans: { ...(before.key === key ? before.plans : {}), [next]: plan } }));
    const timer = setTimeout(() => post("/api/plan", {}, { text: recipe.text, changes: { "model.path": next } }).then((found) => keep({ found }), (error) => keep({ error })), Object.keys(plans).length ? 0 : 600);
    return () => { open = false; clearTimeout(timer); };
  }, [key, next]);
  return plans;
}

/** The plan of the recipe's own base. */
export function Plan({ recipe }) {
  const now = recipe.settings["model.path"] || "builtin";
  return html`<${Parts} recipe=${recipe} ...${usePlans(recipe, [now])[now]} />`;
}

/** Whether the recipe fits, how long it takes, and what its memory is for. */
export function Parts({ recipe, found, error }) {
  if (!recipe.settings["data.path"]) return html`<p class="note">${t("Choose data first: step 2.")}</p>`;
  if (error) return html`<${Problem} error=${error} />`;
  if (recipe.problems.length > 0) return html`<p class="note">${t("The recipe has mistakes.")}</p>`;
  if (!found) return html`<p class="soft" role="status">${t("planning memory and time…")}</p>`;
  const { plan, room } = found;
  if (!plan) return html`<p class="note">${t("This base cannot be planned.")}</p>`;
  const parts = Object.entries(plan.parts || {}).filter(([, size]) => size > 0);
  return html`<p><b class=${found.fits ? "good" : "bad"}>${found.fits ? t("It fits: {0} of {1} that are free.", bytes(plan.bytes), bytes(room.free)) : t("It does not fit: {0} are needed, {1} are free.", bytes(plan.bytes), bytes(room.free))}</b> ${t("{0} steps, about {1}.", whole(found.steps), time(plan.seconds))}</p>
    <div class="parts" role="img" aria-label=${parts.map(([name, size]) => `${t(name)} ${bytes(size)}`).join(", ")}>${parts.map(([name, size], place) => html`<span class=${`hue${place % 8}`} style=${{ flexGrow: size }} title=${`${t(name)}: ${bytes(size)}`}></span>`)}</div>
    <ul class="legend">${parts.map(([name, size], place) => html`<li><i class=${`hue${place % 8}`}></i>${t(name)} ${bytes(size)}</li>`)}</ul>
    ${found.alternatives.length > 0 && html`<details><summary>${t("what else would need")}</summary><ul>${found.alternatives.map((other) => html`<li><code>${other.change}</code>: ${bytes(other.bytes)}, ${time(other.seconds)}${other.fits ? "" : `, ${t("does not fit")}`}</li>`)}</ul></details>`}`;
}
