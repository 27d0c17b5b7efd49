// Which method to take: the ranking of `luthier choose`, with its reasons and where each comes from.
import { bytes, html, post, Problem, t, time, useState } from "./lib.js";

export function Ranking({ recipe }) {
  const [found, set] = useState(null), [error, fail] = useState(null), [busy, work] = useState(false);
  const ask = async () => {
    work(true); fail(null);
    try { set(await post("/api/choose", {}, { text: recipe.text })); } catch (wrong) { fail(wrong); }
    work(false);
  };
  const ready = recipe.problems.length === 0 && recipe.settings["data.path"];
  return html`<p class="tools"><button type="button" disabled=${busy || !ready} onClick=${ask}>${t("recommend a method for this data and machine")}</button>${busy && html`<span class="soft" role="status">${t("ranking the methods…")}</span>`}</p>
    <${Problem} error=${error} />
    ${found && html`<p class="soft">${found.question.said}</p><ol class="ranking">${found.ranked.slice(0, 8).map((one) => html`<li>
      <button type="button" aria-pressed=${recipe.settings["method.name"] === one.method} onClick=${() => recipe.change({ method: one.method })}>${one.method}</button>${" "}
      <span class="soft">${[one.memory && t("{0} of memory", bytes(one.memory)), one.seconds && time(one.seconds), t("file of {0}", bytes(one.file_bytes))].filter(Boolean).join(" · ")}</span>
      ${one.reasons.length > 0 && html`<ul>${one.reasons.map((reason) => html`<li>${reason.text} <span class="soft">${reason.cited}</span></li>`)}</ul>`}</li>`)}</ol>
      ${found.ruled_out.length > 0 && html`<details><summary>${t("what is ruled out, and why")} (${found.ruled_out.length})</summary><ul>${found.ruled_out.map((one) => html`<li><b>${one.method}</b> ${one.text} <span class="soft">${one.cited}</span></li>`)}</ul></details>`}`}`;
}
