// Choose a file or a folder among those that the page may see.
import { bytes, fileName, get, html, Problem, t, useEffect, useState } from "./lib.js";

/** take(path) is called with what was chosen; `models` shows folders of models and GGUF files, else data files. */
export function Browse({ take, models = false }) {
  const [folder, move] = useState(""), [found, set] = useState(null), [error, fail] = useState(null);
  useEffect(() => { get("/api/files", { folder }).then((next) => { set(next); fail(null); }, fail); }, [folder]);
  const files = (found?.files || []).filter(({ path }) => path.endsWith(".gguf") === models);
  return html`<div class="browse"><${Problem} error=${error} />
    ${found && html`<p class="where"><bdi>${found.folder || t("folders of this page")}</bdi></p>
      <ul>
        ${found.folder && html`<li><button type="button" onClick=${() => move(found.up || "")}>${t("up")}</button></li>`}
        ${models && found.model && html`<li><button type="button" class="main" onClick=${() => take(found.folder)}>${t("take this model")}</button></li>`}
        ${found.folders.map((path) => html`<li><button type="button" onClick=${() => move(path)}><bdi>${folder ? fileName(path) : path}</bdi>/</button></li>`)}
        ${files.map(({ path, bytes: size }) => html`<li><button type="button" onClick=${() => take(path)}><bdi>${fileName(path)}</bdi></button> <span class="soft">${bytes(size)}</span></li>`)}
      </ul>
      ${files.length + found.folders.length === 0 && html`<p class="soft">${t("Nothing to choose here.")}</p>`}`}
  </div>`;
}
