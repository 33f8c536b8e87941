/** Line charts and histograms as SVG, drawn by hand: axes with ticks, a legend that switches series, values under
 *  the pointer or the arrow keys, a logarithmic scale. */

import { el, fill, format, svg } from "./common.js";

const MARGIN = { top: 12, right: 14, bottom: 34, left: 54 };

/** A chart of `series`: `[{name, color, dashed, points: [[x, y], …]}]`, where `color` is 1 to 6 and `y` may be null.
 *  `xLabel`, `yLabel`: what the axes show. Gives `{node, update(series, {yLabel})}`. */
export function lineChart({ series = [], xLabel, yLabel, name, height = 300 }) {
  const chart = new LineChart({ xLabel, yLabel, name, height });
  chart.update(series);
  return chart;
}

class LineChart {
  constructor({ xLabel, yLabel, name, height }) {
    Object.assign(this, { xLabel, yLabel, height, log: false, hidden: new Set(), series: [], at: null, width: 600 });
    this.plot = svg("svg", { class: "plot", role: "img", tabindex: "0", "aria-label": name });
    this.tip = el("div", { class: "tip", hidden: true });
    this.legend = el("div", { class: "legend", role: "group", "aria-label": "Series" });
    this.scale = el("input", { type: "checkbox", onchange: () => this.setLog(this.scale.checked) });
    const toggle = el("label", { class: "check small" }, this.scale, "Log scale");
    this.frame = el("div", { class: "plot-frame" }, this.plot, this.tip);
    this.node = el("div", { class: "chart stack tight" }, el("div", { class: "row" }, this.legend, el("span", { class: "push" }, toggle)), this.frame);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.move(null));
    this.plot.addEventListener("blur", () => this.move(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(([entry]) => this.resize(entry.contentRect.width)).observe(this.frame);
  }

  update(series, { yLabel = this.yLabel } = {}) {
    this.series = series;
    this.yLabel = yLabel;
    this.drawLegend();
    this.draw();
  }

  resize(width) {
    if (width < 10 || Math.abs(width - this.width) < 1) return;
    this.width = width;
    this.draw();
  }

  setLog(log) {
    this.log = log;
    this.draw();
  }

  drawLegend() {
    const item = (one) => {
      const shown = !this.hidden.has(one.name);
      const flip = () => {
        if (!this.hidden.delete(one.name)) this.hidden.add(one.name);
        this.update(this.series);
        this.legend.querySelectorAll("button")[this.series.indexOf(one)]?.focus();
      };
      const line = svg("line", { x1: 0, x2: 20, y1: 5, y2: 5, class: `line series-${one.color}${one.dashed ? " dashed" : ""}` });
      const sample = svg("svg", { class: "sample", viewBox: "0 0 20 10", "aria-hidden": "true" }, line);
      return el("button", { type: "button", class: "legend-item", "aria-pressed": String(shown), onclick: flip }, sample, one.name);
    };
    fill(this.legend, this.series.map(item));
  }

  /** The series that are shown, without what a scale cannot show. */
  shown() {
    const visible = this.series.filter((one) => !this.hidden.has(one.name));
    const fits = (y) => y !== null && y !== undefined && Number.isFinite(y) && (!this.log || y > 0);
    return visible.map((one) => ({ ...one, points: one.points.map(([x, y]) => [x, fits(y) ? y : null]) }));
  }

  draw() {
    const series = this.shown();
    const points = series.flatMap((one) => one.points).filter(([, y]) => y !== null);
    this.plot.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.plot.setAttribute("height", this.height);
    if (points.length === 0) {
      const nothing = this.series.length > 0 && this.log ? "Nothing above zero to show on a log scale" : "Nothing to show yet";
      this.axes = null;
      fill(this.plot, svg("text", { class: "axis-label", x: this.width / 2, y: this.height / 2, "text-anchor": "middle" }, nothing));
      return;
    }
    const x = linear(extent(points.map(([x]) => x)), [MARGIN.left, this.width - MARGIN.right], Math.max(2, Math.floor(this.width / 85)), { least: 1 });
    const range = [this.height - MARGIN.bottom, MARGIN.top];
    const y = this.log ? logarithmic(extent(points.map(([, y]) => y)), range) : linear(extent(points.map(([, y]) => y)), range, 5, { nice: true });
    this.axes = { x, y, series };
    this.cursor = svg("g", { class: "cursor" });
    fill(this.plot, this.drawGrid(x, y), series.map((one) => drawLine(one, x, y)), this.cursor);
    this.move(this.at);
  }

  drawGrid(x, y) {
    const { width, height } = this;
    const bottom = height - MARGIN.bottom;
    const horizontal = y.ticks.map((t) => [
      svg("line", { class: "grid-line", x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(t), y2: y.at(t) }),
      svg("text", { class: "tick", x: MARGIN.left - 8, y: y.at(t) + 4, "text-anchor": "end" }, tick(t)),
    ]);
    const vertical = x.ticks.map((t) => [
      svg("line", { class: "grid-line faint", x1: x.at(t), x2: x.at(t), y1: MARGIN.top, y2: bottom }),
      svg("text", { class: "tick", x: x.at(t), y: bottom + 16, "text-anchor": "middle" }, tick(t)),
    ]);
    // Names of figures are of any length; a letter of a label is some 7 units wide.
    const room = Math.max(8, Math.floor((width - MARGIN.left - MARGIN.right) / 8));
    const yLabel = this.yLabel.length > room ? `${this.yLabel.slice(0, room - 1)}…` : this.yLabel;
    return svg("g", { "aria-hidden": "true" }, horizontal, vertical,
      svg("text", { class: "axis-label", x: width - MARGIN.right, y: height - 2, "text-anchor": "end" }, this.xLabel),
      svg("text", { class: "axis-label", x: MARGIN.left + 6, y: MARGIN.top + 4, "text-anchor": "start" }, yLabel));
  }

  /** Every x at which some series has a point. */
  steps() {
    const all = this.axes?.series.flatMap((one) => one.points.filter(([, y]) => y !== null).map(([x]) => x)) ?? [];
    return [...new Set(all)].sort((a, b) => a - b);
  }

  point(event) {
    if (!this.axes) return;
    const box = this.plot.getBoundingClientRect();
    const wanted = this.axes.x.invert(((event.clientX - box.left) / box.width) * this.width);
    this.move(nearest(this.steps(), wanted));
  }

  key(event) {
    const steps = this.steps();
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (event.key === "Escape") return this.move(null);
    if (steps.length === 0 || (by === undefined && event.key !== "Home" && event.key !== "End")) return;
    event.preventDefault();
    const at = this.at === null ? -1 : steps.indexOf(nearest(steps, this.at));
    const to = event.key === "Home" ? 0 : event.key === "End" ? steps.length - 1 : at + by;
    this.move(steps[Math.max(0, Math.min(steps.length - 1, to))]);
  }

  /** Shows the values at `step`; null hides them. */
  move(step) {
    this.at = step;
    this.tip.hidden = step === null || !this.axes;
    if (!this.axes) return;
    fill(this.cursor);
    if (step === null) return;
    const { x, y, series } = this.axes;
    // Of a series that has no point here, as of a validation every hundred steps, the nearest one before.
    const values = series.map((one) => ({ one, point: one.points.findLast(([px, py]) => px <= step && py !== null) })).filter(({ point }) => point);
    const line = svg("line", { class: "cursor-line", x1: x.at(step), x2: x.at(step), y1: MARGIN.top, y2: this.height - MARGIN.bottom });
    fill(this.cursor, line, values.map(({ one, point }) => svg("circle", { class: `dot series-${one.color}`, cx: x.at(point[0]), cy: y.at(point[1]), r: 3.5 })));
    const rows = values.map(({ one, point }) => el("div", { class: "row fixed" },
      el("span", { class: `swatch series-${one.color}${one.dashed ? " dashed" : ""}` }), el("span", { class: "cut" }, one.name),
      el("b", { class: "number push" }, format.number(point[1], 5)), point[0] !== step && el("span", { class: "muted number" }, `at ${tick(point[0])}`)));
    fill(this.tip, el("div", { class: "muted" }, `${this.xLabel} ${format.count(step)}`), rows);
    const right = x.at(step) > this.width / 2;
    this.tip.style.setProperty("left", right ? "auto" : `${x.at(step) + 12}px`);
    this.tip.style.setProperty("right", right ? `${this.width - x.at(step) + 12}px` : "auto");
    this.plot.setAttribute("aria-description", `${this.xLabel} ${step}: ${values.map(({ one, point }) => `${one.name} ${format.number(point[1], 5)}`).join(", ")}`);
  }
}

/** The line of a series, and its points where they are few. What has no value is passed over where the rest is
 *  sparse (validations), and leaves a gap otherwise. */
function drawLine({ color, dashed, points, sparse }, x, y) {
  const kept = sparse ? points.filter(([, value]) => value !== null) : points;
  let path = "";
  let pen = false;
  for (const [px, py] of kept) {
    if (py === null) {
      pen = false;
      continue;
    }
    path += `${pen ? "L" : "M"}${x.at(px).toFixed(1)} ${y.at(py).toFixed(1)}`;
    pen = true;
  }
  const own = kept.filter(([, value]) => value !== null);
  const dots = (sparse || own.length === 1) && own.length <= 60 ? own.map(([px, py]) => svg("circle", { class: `dot series-${color}`, cx: x.at(px).toFixed(1), cy: y.at(py).toFixed(1), r: 2.5 })) : [];
  return [svg("path", { class: `line series-${color}${dashed ? " dashed" : ""}`, d: path }), dots];
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** A scale of about `count` ticks at 1, 2 or 5 times a power of ten, which are not nearer than `least`; `nice`: it
 *  begins and ends at a tick. */
function linear([low, high], [from, to], count, { nice = false, least = 0 } = {}) {
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, [1, 2, 5, 10].find((m) => m * power >= rough) * power);
  if (nice) [low, high] = [Math.floor(low / step) * step, Math.ceil(high / step) * step];
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  // Multiples, so that no error adds up: 0.3, not 0.30000000000000004.
  const ticks = Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  const at = (value) => from + ((value - low) / (high - low)) * (to - from);
  return { ticks, at, invert: (place) => low + ((place - from) / (to - from)) * (high - low) };
}

function logarithmic([low, high], [from, to]) {
  if (low === high) [low, high] = [low / 2, high * 2];
  const [a, b] = [Math.log10(low), Math.log10(high)];
  const room = Math.max((b - a) * 0.04, 0.01);
  const [start, end] = [a - room, b + room];
  const digits = end - start > 3 ? [1] : end - start > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const ticks = [];
  for (let power = Math.floor(start); power <= Math.ceil(end); power += 1) {
    for (const digit of digits) {
      const log = power + Math.log10(digit);
      if (log >= start && log <= end) ticks.push(Number((digit * 10 ** power).toPrecision(12)));
    }
  }
  return { ticks, at: (value) => from + ((Math.log10(value) - start) / (end - start)) * (to - from) };
}

function tick(value) {
  return Math.abs(value) >= 10000 ? format.short(value) : format.number(value, 4);
}

function nearest(sorted, wanted) {
  let [low, high] = [0, sorted.length - 1];
  if (high < 0) return null;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < wanted) low = middle;
    else high = middle;
  }
  return wanted - sorted[low] <= sorted[high] - wanted ? sorted[low] : sorted[high];
}

/** The histogram of a tensor, as `/api/artifacts/…?tensor=` gives it. */
export function histogram({ bins, min, max, mean, std, name }) {
  const [width, height] = [640, 200];
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Histogram of ${name}` });
  const scale = el("input", { type: "checkbox", onchange: () => draw() });
  const at = el("span", { class: "small muted number", "aria-live": "polite" });
  const [left, right, bottom] = [8, width - 8, height - 26];
  const most = Math.max(...bins, 1);
  const size = (count) => (scale.checked ? Math.log1p(count) / Math.log1p(most) : count / most);
  const edge = (i) => min + ((max - min) * i) / bins.length;
  const place = (value) => left + ((value - min) / (max - min || 1)) * (right - left);
  const bar = (count, i) => {
    const step = (right - left) / bins.length;
    const tall = count > 0 ? Math.max(1, size(count) * (bottom - 12)) : 0;
    const text = `${format.number(edge(i))} to ${format.number(edge(i + 1))}: ${format.count(count)}`;
    const say = () => (at.textContent = text);
    return svg("g", { onpointerenter: say },
      svg("rect", { class: "bar-room", x: left + i * step, y: 0, width: step, height: bottom }),
      svg("rect", { class: "bar", x: left + i * step + 0.5, y: bottom - tall, width: Math.max(0.5, step - 1), height: tall }, svg("title", {}, text)));
  };
  const label = (value, anchor) => svg("text", { class: "tick", x: place(value), y: height - 8, "text-anchor": anchor }, format.number(value));
  const draw = () => fill(plot,
    bins.map(bar),
    svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    mean !== null && svg("line", { class: "cursor-line", x1: place(mean), x2: place(mean), y1: 4, y2: bottom }),
    label(min, "start"), label(max, "end"),
    min < 0 && max > 0 && place(0) > 90 && place(0) < width - 90 && svg("text", { class: "tick", x: place(0), y: height - 8, "text-anchor": "middle" }, "0"));
  draw();
  at.textContent = std === null ? "" : `the line is the mean, ${format.number(mean)}`;
  return el("div", { class: "chart stack tight" }, plot,
    el("div", { class: "row" }, at, el("label", { class: "check small push" }, scale, "Log scale")));
}
