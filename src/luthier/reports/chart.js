// Curves, drawn by uPlot: as the page and the reports show them. A canvas is mute, so a sentence and a table go with it.
const SERIES = ["--blue", "--bad", "--good", "--warn", "--violet", "--teal", "--pink", "--gray"];
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const hue = (number) => color(SERIES[number % SERIES.length]) || color("--ink");

const short = (value) => {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size < 1e-3 ? value.toExponential(0).replace("e-0", "e-") : String(+value.toPrecision(3));
};

/**
 * Draw curves into an element, and return { update, destroy }.
 * lines: [{ label, points: [[x, y], ...], faint?, dots?, number? }]; options: { log, height, x, y, lang }.
 */
export function draw(place, lines, options) {
  const data = () => (lines.length ? uPlot.join(lines.map(({ points }) => [points.map(([x]) => x), points.map(([, y]) => y)])) : [[]]);
  const ink = color("--soft"), grid = { stroke: color("--line"), width: 1 };
  const font = "12px system-ui, sans-serif";
  const positive = lines.every(({ points }) => points.every(([, y]) => y > 0));
  const made = new uPlot({
    width: place.clientWidth || 320,
    height: options.height || 280,
    cursor: { drag: { x: true, y: false, setScale: true }, sync: options.sync ? { key: options.sync } : undefined, points: { size: 6 } },
    legend: { show: lines.length > 0, live: true },
    scales: { x: { time: false }, y: { distr: options.log && positive ? 3 : 1 } },
    axes: [
      { stroke: ink, grid, ticks: grid, font, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))), label: options.x, labelFont: font, labelSize: 22 },
      { stroke: ink, grid, ticks: grid, font, size: 56, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) },
    ],
    series: [
      { label: options.x || "" },
      ...lines.map((line, place) => ({
        label: line.label,
        stroke: line.faint ? `${hue(line.number ?? place)}55` : hue(line.number ?? place),
        width: line.faint ? 1 : 2,
        dash: DASHES[Math.floor((line.number ?? place) / SERIES.length) % DASHES.length],
        points: { show: Boolean(line.dots), size: 6 },
        spanGaps: true,
        value: (_, value) => (value === null || value === undefined ? "–" : short(value)),
      })),
    ],
  }, data(), place);
  const canvas = place.querySelector(".u-wrap");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", options.title || "");
  const resize = new ResizeObserver(() => made.setSize({ width: place.clientWidth, height: options.height || 280 }));
  resize.observe(place);
  return {
    update(next) {
      lines = next;
      const { min, max } = made.scales.x, [first, last] = [made.data[0][0], made.data[0].at(-1)];
      const whole = min == null || first === undefined || (min <= first && max >= last);
      made.setData(data(), whole);  // a part that was enlarged stays as it is
    },
    whole() { made.setData(made.data, true); },
    destroy() { resize.disconnect(); made.destroy(); },
  };
}
