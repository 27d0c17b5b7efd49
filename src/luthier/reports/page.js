"use strict";
(() => {
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

  // Charts: values under the pointer, a part enlarged, and the other axis.
  const SVG = "http://www.w3.org/2000/svg";
  const ticks = (low, high, most) => {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((each) => each >= rough * 0.999), found = [];
    for (let n = Math.ceil(low / step); n * step <= high; n += 1) found.push(n * step);
    return found;
  };
  const number = (each) => Number(each.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 10 });
  for (const svg of document.querySelectorAll("svg.chart[data-chart]")) {
    const data = JSON.parse(svg.dataset.chart), [left, top, width, height] = data.box;
    if (!data.lines.length) continue;
    const tools = make("div", svg.parentNode, { class: "tools" }), told = make("output", tools, { class: "values" });
    listeners.push(() => { if (!mark.hasAttribute("d")) told.textContent = say("hint"); });
    const groups = [...svg.querySelectorAll(".ticks, .xticks, .marks, .view")];
    const first = groups.map((each) => [each.innerHTML, each.getAttribute("viewBox")]);
    const mark = svg.appendChild(document.createElementNS(SVG, "path"));
    mark.setAttribute("class", "pointer");
    const wash = svg.appendChild(document.createElementNS(SVG, "rect"));
    wash.setAttribute("class", "wash");
    svg.setAttribute("aria-label", svg.querySelector("title").textContent);
    svg.querySelector("title").remove(); // a browser would show it over the values
    svg.setAttribute("tabindex", "0");
    let shown = data.x, at = null, from = null;
    const step = (pixel) => shown[0] + ((pixel - left) / width) * (shown[1] - shown[0]);
    const pixel = (each) => left + ((each - shown[0]) / (shown[1] - shown[0])) * width;
    const place = (event) => {
      const box = svg.getBoundingClientRect();
      return ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    };
    const near = (points, wanted) =>
      points.reduce((best, each) => (Math.abs(each[0] - wanted) < Math.abs(best[0] - wanted) ? each : best));
    const tell = (wanted) => {
      const named = data.lines.filter((line) => line.points.length);
      at = near(named.map((line) => near(line.points, wanted)), wanted)[0];
      mark.setAttribute("d", `M${pixel(at)} ${top}v${height}`);
      const told_of = named.map((line) => [line.name[root.lang], near(line.points, at)]);
      const parts = told_of.map(([name, [x, y]]) => `${name} ${number(y)}` + (x === at ? "" : ` (${say("step")} ${x})`));
      told.textContent = `${say("step")} ${at.toLocaleString("en")}: ${parts.join("; ")}`;
    };
    const redraw = () => {
      groups.forEach((group, n) => {
        group.innerHTML = first[n][0];
        if (first[n][1]) group.setAttribute("viewBox", first[n][1]);
      });
      mark.removeAttribute("d");
      whole.hidden = shown === data.x;
      if (shown === data.x) return;
      const scale = width / (data.x[1] - data.x[0]), [x, w] = [(shown[0] - data.x[0]) * scale, (shown[1] - shown[0]) * scale];
      const put = (group, values, move) => {
        const like = [group.querySelector("path").cloneNode(), group.querySelector("text").cloneNode()];
        group.replaceChildren();
        for (const each of values) {
          const copies = like.map((part) => part.cloneNode());
          copies[1].textContent = number(each);
          move(copies, each);
          group.append(...copies);
        }
      };
      for (const group of groups) {
        if (group.classList.contains("marks")) group.replaceChildren();
        if (group.classList.contains("xticks")) {
          const floor = Number(group.querySelector("text").getAttribute("y")) - 17;
          put(group, ticks(...shown, 6).filter(Number.isInteger), ([line, label], each) => {
            line.setAttribute("d", `M${pixel(each)} ${floor}v4`);
            label.setAttribute("x", pixel(each));
          });
        }
        if (group.classList.contains("view")) {
          const [, y, , h] = group.getAttribute("viewBox").split(" ");
          group.setAttribute("viewBox", `${left + x} ${y} ${w} ${h}`);
        }
      }
      for (const [name, [low, high]] of Object.entries(data.y)) {
        const into = name === "log" ? Math.log : (each) => each, back = name === "log" ? Math.exp : (each) => each;
        const inside = data.lines.flatMap((line) => line.points).filter(([s]) => s >= shown[0] && s <= shown[1]);
        if (!inside.length) continue;
        const values = inside.map((each) => into(each[1])), room = (Math.max(...values) - Math.min(...values)) * 0.06 || 0.1;
        const [least, most] = [Math.min(...values) - room, Math.max(...values) + room];
        const part = svg.querySelector(`.${name}`), view = part.querySelector(".view");
        const share = (each) => (into(high) - each) / (into(high) - into(low));
        const [, , w2] = view.getAttribute("viewBox").split(" ");
        view.setAttribute("viewBox", `${left + x} ${top + share(most) * height} ${w2} ${(share(least) - share(most)) * height}`);
        put(part.querySelector(".ticks"), ticks(back(least), back(most), 6), ([line, label], each) => {
          const y = top + ((most - into(each)) / (most - least)) * height;
          line.setAttribute("d", `M${left} ${y}h${width}`);
          label.setAttribute("y", y + 4);
        });
      }
    };
    const show = (low, high) => {
      const ends = [Math.max(low, data.x[0]), Math.min(high, data.x[1])];
      shown = ends[1] - ends[0] < 2 || ends[1] - ends[0] > 0.98 * (data.x[1] - data.x[0]) ? data.x : ends;
      redraw();
    };
    if (svg.dataset.axis) {
      const other = () => (svg.dataset.axis === "log" ? "linear" : "log");
      button(tools, () => say(other()), (event) => {
        svg.dataset.axis = other();
        event.target.textContent = say(other());
      });
    }
    const whole = button(tools, () => say("whole"), () => { shown = data.x; redraw(); });
    whole.hidden = true;
    svg.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") from = place(event); });
    svg.addEventListener("pointermove", (event) => {
      tell(step(place(event)));
      const ends = [from ?? 0, place(event)].sort((a, b) => a - b);
      wash.setAttribute("x", ends[0]);
      wash.setAttribute("y", top);
      wash.setAttribute("height", height);
      wash.setAttribute("width", from === null ? 0 : ends[1] - ends[0]);
    });
    window.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const ends = [from, place(event)].sort((a, b) => a - b);
      from = null;
      wash.setAttribute("width", 0);
      if (ends[1] - ends[0] > 8) show(step(ends[0]), step(ends[1]));
    });
    svg.addEventListener("dblclick", () => { shown = data.x; redraw(); });
    svg.addEventListener("keydown", (event) => {
      const span = shown[1] - shown[0], middle = at ?? (shown[0] + shown[1]) / 2;
      const known = data.lines.flatMap((line) => line.points.map((each) => each[0])).sort((a, b) => a - b);
      const actions = {
        ArrowRight: () => tell(known.find((each) => each > (at ?? -1)) ?? at),
        ArrowLeft: () => tell(known.findLast((each) => each < (at ?? Infinity)) ?? at),
        "+": () => show(middle - span / 4, middle + span / 4),
        "-": () => show(middle - span, middle + span),
        Escape: () => { shown = data.x; redraw(); },
      };
      if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
    });
  }
  listeners.forEach((write) => write());
})();
