(() => {
  "use strict";
  const root = document.documentElement, words = JSON.parse(document.body.dataset.words);
  const listeners = [];
  const say = (name) => (words[name] || name)[root.lang] || words[name].en;
  const make = (tag, parent, attributes = {}) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (parent) parent.append(made);
    return made;
  };
  const button = (parent, text, action) => {
    const made = make("button", parent, { type: "button" });
    const write = () => { made.textContent = text(); };
    listeners.push(write);
    write();
    made.addEventListener("click", action);
    return made;
  };

  // Language: as the page was made, unless the reader chose another one before.
  const choose = (name) => {
    root.lang = name;
    try { localStorage.setItem("luthier-language", name); } catch { /* private windows forget it */ }
    listeners.forEach((write) => write());
  };
  const switcher = document.querySelector(".language");
  button(switcher, () => (root.lang === "zh" ? "English" : "中文"), () => choose(root.lang === "zh" ? "en" : "zh"));
  try {
    const kept = localStorage.getItem("luthier-language");
    if (kept === "en" || kept === "zh") choose(kept);
  } catch { /* as above */ }

  // Tables: sort by a click on a heading, search, and a choice of values where a heading asks for it.
  const text = (cell) => {
    const part = cell.querySelector(`[lang=${root.lang}]`);
    return (part || cell).textContent.trim();
  };
  const value = (cell) => {
    const given = cell.dataset.v ?? cell.textContent.trim().replace(/,(?=\d{3})/g, "").split(/\s/)[0];
    return given !== "" && Number.isFinite(Number(given)) ? Number(given) : text(cell).toLowerCase();
  };
  const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  for (const table of document.querySelectorAll("table.data")) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    if (rows.length < 3) continue;
    const tools = make("div", null, { class: "tools" }), choices = new Map();
    table.closest(".wide").before(tools);
    const search = make("input", rows.length > 7 ? tools : null, { type: "search" });
    const found = make("output", null, { class: "soft" });
    const apply = () => {
      const wanted = search.value.toLowerCase();
      let kept = 0;
      for (const row of rows) {
        const fits = [...choices].every(([place, select]) => !select.value || row.cells[place].dataset.f === select.value);
        row.hidden = !(fits && row.textContent.toLowerCase().includes(wanted));
        kept += !row.hidden;
      }
      found.textContent = kept < rows.length ? `${kept} / ${rows.length}` : "";
    };
    search.addEventListener("input", apply);
    listeners.push(() => { search.placeholder = say("search"); search.setAttribute("aria-label", say("search")); });
    heads.forEach((head, place) => {
      if (head.hasAttribute("data-choose")) {
        const select = make("select", tools), values = [...new Set(rows.map((row) => row.cells[place].dataset.f))];
        const fill = () => {
          const chosen = select.value, label = text(head);
          select.setAttribute("aria-label", label);
          select.replaceChildren(new Option(`${label}: ${say("all")}`, ""));
          for (const each of values) {
            select.add(new Option(text(rows.find((row) => row.cells[place].dataset.f === each).cells[place]), each));
          }
          select.value = chosen;
        };
        listeners.push(fill);
        choices.set(place, select);
        select.addEventListener("change", apply);
      }
      if (!head.textContent.trim()) return;
      const sorter = make("button", null, { type: "button", class: "sort" });
      sorter.append(...head.childNodes);
      head.append(sorter);
      sorter.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const order = before === "descending" ? "ascending" : before === "ascending" ? "none" : "descending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1, sorted = [...rows];
        if (order !== "none") sorted.sort((a, b) => sign * compare(value(a.cells[place]), value(b.cells[place])));
        body.append(...sorted);
      });
    });
    tools.append(found);
  }

  // Charts: drawn by chart.js in place of their pictures, again in another language or theme.
  const draw = (frame) => {
    frame.querySelectorAll(".plot").forEach((each) => each.remove());
    frame.drawn?.forEach((chart) => chart.destroy());
    frame.querySelectorAll(".plot").forEach((each) => each.remove());
    const specs = JSON.parse(frame.dataset.chart, (_, each) => (each?.en !== undefined && each.zh !== undefined ? each[root.lang] : each));
    frame.drawn = specs.map((spec, place) => {
      const words = { log: say("log"), whole: say("whole"), hint: place ? "" : say(spec.kind) };
      return luthierChart[spec.kind](make("figure", frame, { class: "plot" }), { ...spec, words, sync: specs.length > 1 ? `chart-${[...frames].indexOf(frame)}` : undefined });
    });
    frame.classList.toggle("drawn", specs.length > 0);
  };
  const frames = document.querySelectorAll("[data-chart]"), redraw = () => frames.forEach(draw);
  listeners.push(redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  listeners.forEach((write) => write());
})();
