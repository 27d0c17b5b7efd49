// Charts that a reader can use, drawn by uPlot: in reports, which hold this file inline, and on the page of `luthier ui`.
// It is a classic script with one global, because modules inside a file that was mailed cannot import one another.
const luthierChart = (() => {
  "use strict";
  const SERIES = ["blue", "orange", "green", "violet", "olive", "teal"], DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
  const FONT = "12px system-ui, sans-serif", NAME = 24;
  const STEPS = Array.from({ length: 30 }, (_, n) => [1, 2, 5][n % 3] * 10 ** Math.floor(n / 3));
  const AROUND = [[1, 0], [1, -1], [1, 1], [-1, 0], [-1, -1], [-1, 1]];

  const make = (tag, parent, more = {}) => {
    const made = Object.assign(document.createElement(tag), more);
    parent?.append(made);
    return made;
  };
  /** A color of look.css as a canvas takes it: for the theme that the reader has now. */
  const color = (name) => {
    const probe = make("i", document.body);
    probe.style.color = `var(--${name})`;
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  /** A value beside an axis, in three digits. */
  const short = (value) => {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
    return size < 1e-3 ? Number(value.toPrecision(3)).toExponential() : String(+value.toPrecision(3));
  };
  /** A value at the cursor, in four digits. */
  const exact = (value) => (value && !(Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6) ? short(value) : Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 10 }));

  /** Paint on the plot's canvas, in pixels of the page and inside of the axes; `at` gives the place of two values. */
  const paint = (plot, how) => {
    const { ctx, bbox } = plot, dense = uPlot.pxRatio;
    const box = { left: bbox.left / dense, top: bbox.top / dense, width: bbox.width / dense, height: bbox.height / dense };
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.scale(dense, dense);
    Object.assign(ctx, { font: FONT, textAlign: "left", textBaseline: "middle" });
    const line = (points, stroke, width, dash = []) => {
      Object.assign(ctx, { strokeStyle: stroke, lineWidth: width });
      ctx.setLineDash(dash);
      ctx.beginPath();
      points.forEach(([x, y]) => ctx.lineTo(x, y));
      ctx.stroke();
    };
    how({ ctx, box, line, at: (x, y) => [box.left + plot.valToPos(x, "x"), box.top + plot.valToPos(y, "y")] });
    ctx.restore();
  };

  /**
   * A chart with its buttons in `place`, as { draw, plot, destroy }. `build(log, note)` gives { data, positive, ...options }:
   * what uPlot draws, whether there is a logarithm, and uPlot's options beside those that all charts have. `note` is
   * the line below the chart, which begins with the hint.
   */
  const chart = (place, { title, says, words, height = 300, log = false, choice = true, sync, x, formats = [short, short] }, build) => {
    const caption = make("div", place, { className: "caption" }), stage = make("div");
    make("span", caption, { textContent: title });
    const tools = make("span", caption, { className: "tools" });
    const button = (textContent, onclick) => make("button", tools, { type: "button", textContent, onclick });
    place.append(stage);
    const note = make("output", words.hint ? place : null, { className: "values", textContent: words.hint });
    let plot;
    const all = () => (sync ? uPlot.sync(sync).plots : [plot]), ends = () => [plot.data[0][0], plot.data[0].at(-1)];
    const whole = () => all().forEach((each) => each.setData(each.data, true));
    const isWhole = () => !plot || plot.scales.x.min == null || !plot.data[0].length || (plot.scales.x.min <= ends()[0] && plot.scales.x.max >= ends()[1]);
    const zoom = (min, max) => {
      if (min <= ends()[0] && max >= ends()[1]) return whole();
      if (plot.data[0].filter((each) => each >= min && each <= max).length < 2) return;
      all().forEach((each) => each.setScale("x", { min: Math.max(min, ends()[0]), max: Math.min(max, ends()[1]) }));
    };
    const draw = () => {
      const kept = isWhole() ? null : { min: plot.scales.x.min, max: plot.scales.x.max };
      plot?.destroy();
      const { data, positive, scales, cursor, ...options } = build(log, note), ink = color("soft"), grid = { stroke: color("line"), width: 1 };
      const axis = (format) => ({ stroke: ink, grid, ticks: grid, font: FONT, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))) });
      axisButton.hidden = !(choice && positive);
      axisButton.setAttribute("aria-pressed", log);
      plot = new uPlot({
        width: place.clientWidth || 320, height, ...options,
        scales: { ...scales, x: { time: false, ...scales.x } },
        cursor: { sync: sync && { key: sync }, ...cursor },
        axes: [{ ...axis(formats[0]), label: x, labelFont: FONT, labelSize: 20, size: 30, ...options.axis }, { ...axis(formats[1]), size: 56 }],
      }, data, stage);
      if (kept) plot.setScale("x", kept);
      reachable(plot);
    };
    const axisButton = button(words.log, () => { log = !log; draw(); });
    button(words.whole, whole);
    /** Keys and fingers do what a mouse does; a canvas is mute, so a sentence goes with it. */
    const reachable = ({ root, over }) => {
      const wrap = root.querySelector(".u-wrap"), legend = root.querySelector(".u-legend");
      wrap.tabIndex = 0;
      wrap.setAttribute("role", "img");
      wrap.setAttribute("aria-label", `${title}. ${says}`);
      wrap.onfocus = () => legend?.setAttribute("aria-live", "polite");
      wrap.onblur = () => legend?.removeAttribute("aria-live");
      wrap.onkeydown = (event) => {
        const [xs, ys] = plot.data, { min, max } = plot.scales.x, at = plot.cursor.idxs?.[0], middle = xs[at] ?? (min + max) / 2;
        const move = (by) => {
          const next = Math.max(0, Math.min(xs.length - 1, (at ?? (by > 0 ? -1 : xs.length)) + by));
          plot.setCursor({ left: plot.valToPos(xs[next], "x"), top: plot.valToPos(ys[next] ?? plot.scales.y.max, "y") }, true, true);
        };
        const act = { ArrowRight: () => move(1), ArrowLeft: () => move(-1), "+": () => zoom(middle - (max - min) / 4, middle + (max - min) / 4), "-": () => zoom(middle - (max - min), middle + (max - min)), Escape: whole }[event.key];
        if (!act) return;
        event.preventDefault();
        act();
      };
      over.onpointermove = (event) => { if (event.pointerType === "touch") plot.setCursor({ left: event.offsetX, top: event.offsetY }, true, true); };
    };
    draw();
    const resize = new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height }));
    resize.observe(place);
    return { draw, isWhole, plot: () => plot, destroy() { resize.disconnect(); plot.destroy(); place.replaceChildren(); } };
  };

  /**
   * Curves over the steps, as { update, destroy }. spec: { title, says, words: { log, whole, hint? }, lines, marks?, x,
   * height?, log?, choice?, sync? }; a line is { label, points: [[step, value], ...], color? or number?, thin?, dots? },
   * a mark { x, text, color }, such as the best step. A name in the legend hides its line.
   */
  const curves = (place, spec) => {
    let { lines, marks = [] } = spec;
    const positive = () => lines.every(({ points }) => points.every(([, value]) => value > 0));
    const data = () => (lines.length ? uPlot.join(lines.map(({ points }) => [points.map(([step]) => step), points.map(([, value]) => value)])) : [[]]);
    const mark = (plot) => paint(plot, ({ ctx, box, line }) => marks.forEach(({ x, text, color: name }) => {
      const left = box.left + plot.valToPos(x, "x"), right = left + 6 + ctx.measureText(text).width > box.left + box.width;
      line([[left, box.top], [left, box.top + box.height]], color(name), 1.5, [5, 4]);
      Object.assign(ctx, { fillStyle: color(name), textAlign: right ? "right" : "left" });
      ctx.fillText(text, left + (right ? -6 : 6), box.top + 9);
    }));
    const made = chart(place, spec, (log) => ({
      data: data(),
      positive: positive(),
      scales: { y: { distr: log && positive() ? 3 : 1 } },
      cursor: { drag: { x: true, y: false }, points: { size: 6 } },
      axis: { incrs: STEPS },
      hooks: { draw: [mark] },
      legend: { show: lines.length > 0 },
      series: [
        { label: spec.x, value: (_, step) => (step == null ? "–" : step.toLocaleString("en")) },
        ...lines.map(({ label, thin, dots, color: name, number }, place) => ({
          label: make("button", null, { type: "button", className: "sort", textContent: label }),
          stroke: color(name ?? SERIES[(number ?? place) % SERIES.length]),
          width: thin ? 1 : 2,
          dash: name ? [] : DASHES[Math.floor((number ?? place) / SERIES.length) % DASHES.length],
          points: { show: Boolean(dots), size: 6, fill: color("paper") },
          spanGaps: true,
          value: (plot, value, _, at) => (value == null ? "–" : exact(value) + (at === plot.cursor.idx ? "" : ` (${spec.x} ${plot.data[0][at]})`)),
        })),
      ],
    }));
    return {
      update(next, marked = []) {
        const before = positive();
        [lines, marks] = [next, marked];
        if (before !== positive()) made.draw();
        else made.plot().setData(data(), made.isWhole());  // a part that was enlarged stays as it is
      },
      destroy: made.destroy,
    };
  };

  /**
   * Scores against costs with the line of those that are best for their cost, as { destroy }. spec: as for `curves`, with
   * points: [{ name, x, y, low, high, front }] in place of lines, base: { value, label } or null, and how both
   * axes write a value as `formats`.
   */
  const front = (place, spec) => {
    const { base } = spec, points = [...spec.points].sort((a, b) => a.x - b.x), costs = points.map(({ x }) => x), [least, most] = [costs[0], costs.at(-1)];
    const [showCost, showScore] = spec.formats || [exact, exact];
    const nearest = (plot) => {
      const far = ({ x, y }) => Math.hypot(plot.valToPos(x, "x") - plot.cursor.left, plot.valToPos(y, "y") - plot.cursor.top);
      return points.reduce((best, each, place) => (far(each) < far(points[best]) ? place : best), 0);
    };
    const draw = (plot) => paint(plot, ({ ctx, box, line, at }) => {
      const [gray, ink] = [color("raw"), color("ink")], hues = [color("blue"), color("orange")];
      const taken = points.map(({ x, y }) => { const [left, top] = at(x, y); return [left - 5, top - 5, left + 5, top + 5]; });
      if (base) {
        const [left, top] = at(plot.scales.x.min, base.value);
        line([[left, top], [left + box.width, top]], color("soft"), 1.5, [2, 3]);
        ctx.fillStyle = color("soft");
        ctx.fillText(base.label, left + 6, top - 9);
        taken.push([left, top - 16, left + 6 + ctx.measureText(base.label).width, top]);
      }
      points.forEach(({ x, low, high }) => line([at(x, low), at(x, high)], gray, 1.2));
      const best = points.filter(({ front }) => front).map(({ x, y }) => at(x, y));
      line(best, hues[1], 1.5);
      const spots = points.map(({ x, y }) => at(x, y));
      spots.forEach(([x, y], place) => {
        ctx.fillStyle = hues[Number(points[place].front)];
        ctx.beginPath();
        ctx.arc(x, y, 4.5, 0, 2 * Math.PI);
        ctx.fill();
      });
      const crossed = best.slice(1).flatMap(([x, y], place) => Array.from({ length: 80 }, (_, n) => [best[place][0] + ((x - best[place][0]) * n) / 80, best[place][1] + ((y - best[place][1]) * n) / 80]));
      /** Where a name stands beside its point: on no other, and better not on the line; undefined where there is no room. */
      const place = ([x, y], width, free) => {
        for (const distance of [9, 20, 34, 50]) for (const [right, down] of AROUND) {
          const left = right > 0 ? x + distance : x - distance - width, middle = y + down * distance;
          const own = [left, middle - 7, left + width, middle + 7], covers = ([a, b]) => own[0] < a && a < own[2] && own[1] < b && b < own[3];
          if (own[0] < box.left || own[2] > box.left + box.width || own[1] < box.top || own[3] > box.top + box.height) continue;
          if (taken.some((other) => own[0] < other[2] && other[0] < own[2] && own[1] < other[3] && other[1] < own[3])) continue;
          if (!free || !crossed.some(covers)) return { own, end: right > 0 ? left : left + width, distance };
        }
      };
      spots.forEach((spot, number) => {
        const { name } = points[number], text = name.length > NAME ? `${name.slice(0, NAME)}…` : name, { width } = ctx.measureText(text);
        const found = place(spot, width, true) || place(spot, width, false);
        if (!found) return;  // the cursor has it
        const [left, top] = found.own;
        taken.push(found.own);
        if (found.distance > 20) line([spot, [found.end, top + 7]], gray, 0.7);
        Object.assign(ctx, { fillStyle: ink, strokeStyle: color("paper"), lineWidth: 3, lineJoin: "round" });
        ctx.setLineDash([]);
        ctx.strokeText(text, left, top + 7);
        ctx.fillText(text, left, top + 7);
      });
    });
    const tell = (plot, note) => {
      const point = points[plot.cursor.idxs?.[1]];
      note.textContent = point ? `${point.name}: ${showScore(point.y)} (${showScore(point.low)} – ${showScore(point.high)}); ${spec.x}: ${showCost(point.x)}` : spec.words.hint;
    };
    const hidden = () => ({ paths: () => null, points: { show: false } });
    return chart(place, spec, (log, note) => ({
      data: [costs, ...["y", "low", "high"].map((key) => points.map((each) => each[key])), ...(base ? [costs.map(() => base.value)] : [])],
      positive: least > 0,
      scales: { x: { distr: log && least > 0 ? 3 : 1, range: (_, min, max) => (min > least || max < most ? [min, max] : room(least, most, log && least > 0)) } },
      cursor: {
        x: false, y: false, drag: { x: true, y: true, uni: 20 },
        points: { size: 13, width: 2, stroke: color("ink"), fill: "transparent" },
        dataIdx: (plot, series) => (series > 1 ? null : nearest(plot)),
      },
      hooks: { draw: [draw], setCursor: [(plot) => tell(plot, note)] },
      legend: { show: false },
      series: [{}, ...Array.from({ length: base ? 4 : 3 }, hidden)],
    }));
  };

  /** The ends of an axis of costs, with room for names beside the first and the last point. */
  const room = (low, high, log) => {
    if (log) {  // ends with one digit: uPlot counts the marks from them
      const more = Math.max((high / low) ** 0.12, 1.3), unit = (value) => 10 ** Math.floor(Math.log10(value));
      const [first, last] = [low / more, high * more];
      return [Math.floor(first / unit(first)) * unit(first), Math.ceil(last / unit(last)) * unit(last)];
    }
    const more = (high - low) * 0.12 || Math.abs(high) * 0.3 || 1;
    return [low >= 0 ? Math.max(0, low - more) : low - more, high + more];
  };

  return { curves, front };
})();
