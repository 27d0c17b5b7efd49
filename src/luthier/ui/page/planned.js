// Memory and time of the recipe on this machine, known before any weights are there.
import { bytes, html, number, post, Problem, t, time, useEffect, useState } from "./lib.js";

export function Plan({ recipe }) {
  const [found, set] = useState(null), [error, fail] = useState(null);
  const ready = recipe.problems.length === 0 && recipe.settings["data.path"];
  useEffect(() => {
    if (!ready) return undefined;
    let open = true;
    set(null); fail(null);
    const timer = setTimeout(() => post("/api/plan", {}, { text: recipe.text }).then((next) => open && set(next), (wrong) => open && fail(wrong)), 600);
    return () => { open = false; clearTimeout(timer); };
  }, [JSON.stringify(recipe.settings)]);
  if (!recipe.settings["data.path"]) return html`<p class="note">${t("Choose data first: step 2.")}</p>`;
  if (error) return html`<${Problem} error=${error} />`;
  if (!found) return html`<p class="soft" role="status">${t("planning memory and time…")}</p>`;
  const { plan, room } = found;
  if (!plan) return html`<p class="note">${t("This base cannot be planned.")}</p>`;
  const parts = Object.entries(plan.parts || {}).filter(([, size]) => size > 0);
  return html`<p><b class=${found.fits ? "good" : "bad"}>${found.fits ? t("It fits: {0} of {1} that are free.", bytes(plan.bytes), bytes(room.free)) : t("It does not fit: {0} are needed, {1} are free.", bytes(plan.bytes), bytes(room.free))}</b> ${t("{0} steps, about {1}.", number(found.steps), time(plan.seconds))}</p>
    <div class="parts" role="img" aria-label=${parts.map(([name, size]) => `${t(name)} ${bytes(size)}`).join(", ")}>${parts.map(([name, size], place) => html`<span class=${`hue${place % 8}`} style=${{ flexGrow: size }} title=${`${t(name)}: ${bytes(size)}`}></span>`)}</div>
    <ul class="legend">${parts.map(([name, size], place) => html`<li><i class=${`hue${place % 8}`}></i>${t(name)} ${bytes(size)}</li>`)}</ul>
    ${found.alternatives.length > 0 && html`<details><summary>${t("what else would need")}</summary><ul>${found.alternatives.map((other) => html`<li><code>${other.change}</code>: ${bytes(other.bytes)}, ${time(other.seconds)}${other.fits ? "" : `, ${t("does not fit")}`}</li>`)}</ul></details>`}`;
}
