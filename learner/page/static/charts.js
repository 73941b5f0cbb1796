// Charts as inline SVG: a line for each series, drawn anew in place when its numbers or its width change.

import { digits, h, mark, percent, say, svg } from "./dom.js";

const HEIGHT = 168, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 24;
const FORMATS = { share: percent, number: digits };

// A round step of about a third of the span.
function ticks(low, high) {
  const raw = (high - low) / 3, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((times) => times * size).find((one) => one >= raw * 0.999);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) found.push(Math.abs(tick) < step * 1e-6 ? 0 : tick);
  return { found, step };
}

function smoothed(values) {
  const window = Math.max(1, Math.round(values.length / 40)), result = [];
  let sum = 0, number = 0;
  for (let place = 0; place < values.length; place += 1) {
    if (values[place] !== null) { sum += values[place]; number += 1; }
    const gone = place - window;
    if (gone >= 0 && values[gone] !== null) { sum -= values[gone]; number -= 1; }
    result.push(number ? sum / number : null);
  }
  return result;
}

// Where a few values are far above all others, an axis that leaves them out: they shall not press the rest flat.
function bounded(lines, high, is_stacked) {
  const means = is_stacked ? lines[0].mean.map((_, place) => lines.reduce((sum, line) => sum + (line.mean[place] ?? 0), 0)) : lines.flatMap((line) => line.mean);
  const values = means.filter((value) => value !== null).sort((a, b) => a - b);
  const usual = values[Math.floor(0.98 * (values.length - 1))] ?? high;
  return values.length >= 50 && usual > 0 && high > 3 * usual ? 1.5 * usual : high;
}

let number = 0;

export class Chart {
  // series: [{key, label, tone}]; kind: "share" or "number"; domain: fixed bounds, else from 0 to what is there.
  constructor({ title, hint, kind = "number", domain = null, stacked = false, dots = false }) {
    Object.assign(this, { title, kind, domain, stacked, dots, data: null, at: null });
    this.readout = h("span", { class: "readout" });
    const clip = `plot-${(number += 1)}`;
    this.clip = svg("rect", { x: LEFT, y: 0, height: HEIGHT - BOTTOM + 2 });
    this.frame = svg("g");
    this.plot = svg("g", { "clip-path": `url(#${clip})` });
    this.cursor = svg("g", { class: "cursor" });
    this.svg = svg("svg", { height: HEIGHT, tabindex: 0, role: "img", class: "plot" }, svg("clipPath", { id: clip }, this.clip), this.frame, this.plot, this.cursor);
    this.empty = h("p", { class: "nothing", hidden: true }, "nothing yet");
    this.element = h("figure", { class: "chart card" },
      h("figcaption", {}, h("span", { class: "chart-title", title: hint }, title), this.readout),
      h("div", { class: "plot-box" }, this.svg, this.empty));
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.choose(null));
    this.svg.addEventListener("blur", () => this.choose(null));
    this.svg.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.draw()).observe(this.svg.parentElement);
  }

  // data: {steps, lines: [{label, tone, mean, low, high, steps}], marks: [{step, text}], is_raw}
  update(data) {
    const text = JSON.stringify(data);
    if (text === this.text) return;
    this.text = text;
    this.data = data;
    this.draw();
  }

  get format() { return FORMATS[this.kind]; }

  draw() {
    const width = this.svg.parentElement.clientWidth, data = this.data;
    if (!width || !data) return;
    const lines = data.lines.filter((line) => line.mean.some((value) => value !== null));
    this.lines = lines;
    mark(this.svg, "hidden", lines.length ? null : "");
    this.empty.hidden = lines.length > 0;
    if (!lines.length) { say(this.readout, ""); return; }
    mark(this.svg, "width", width);
    mark(this.svg, "viewBox", `0 0 ${width} ${HEIGHT}`);
    this.scale(width, lines);
    mark(this.clip, "width", width - LEFT);
    this.frame.replaceChildren(...this.axes(width), ...this.marks(data.marks ?? []));
    const parts = [];
    if (this.stacked) parts.push(...this.areas(lines));
    else for (const line of lines) parts.push(...this.line(line));
    this.plot.replaceChildren(...parts);
    this.tell();
  }

  scale(width, lines) {
    const steps = lines.flatMap((line) => [line.steps[0], line.steps.at(-1)]);
    let [first, last] = [Math.min(...steps), Math.max(...steps)];
    if (first === last) { first -= 1; last += 1; }
    let low = 0, high = 0;
    if (this.stacked) high = Math.max(...lines[0].mean.map((_, place) => lines.reduce((sum, line) => sum + (line.mean[place] ?? 0), 0)));
    else for (const line of lines) {
      const values = [...(line.low ?? line.mean), ...(line.high ?? line.mean)].filter((value) => value !== null);
      low = Math.min(low, ...values);
      high = Math.max(high, ...values);
    }
    if (this.domain && low >= this.domain[0] && high <= this.domain[1]) [low, high] = this.domain;
    const highest = high;
    if (!this.domain || high !== this.domain[1]) high = bounded(lines, high, this.stacked);
    this.beyond = high < highest ? highest : null;
    if (low === high) high = low + 1;
    const { found, step } = ticks(low, high);
    if (!this.domain || high !== this.domain[1]) high = Math.max(high, Math.ceil(high / step - 1e-9) * step);
    this.yTicks = found.at(-1) < high - step * 1e-6 && found.at(-1) + step <= high + step * 1e-6 ? [...found, found.at(-1) + step] : found;
    this.x = (value) => LEFT + ((value - first) / (last - first)) * (width - LEFT - RIGHT);
    this.y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    Object.assign(this, { first, last, low, high });
  }

  axes(width) {
    const parts = this.yTicks.flatMap((tick) => [
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: this.y(tick), y2: this.y(tick) }),
      svg("text", { class: "tick", x: LEFT - 8, y: this.y(tick) + 4, "text-anchor": "end" }, this.format(tick)),
    ]);
    const { found, step } = ticks(this.first, this.last);
    for (const tick of found) {
      if (step < 1 && tick % 1) continue;
      const x = this.x(tick);
      const anchor = x > width - 30 ? "end" : x < LEFT + 10 ? "start" : "middle";
      parts.push(svg("text", { class: "tick", x, y: HEIGHT - 6, "text-anchor": anchor }, digits(tick, 5)));
    }
    if (this.beyond) parts.push(svg("text", { class: "tick", x: width - RIGHT, y: TOP + 12, "text-anchor": "end" }, `↑ up to ${this.format(this.beyond)}`));
    return parts;
  }

  marks(marks) {
    return marks.filter(({ step }) => step >= this.first && step <= this.last).map(({ step, text }) =>
      svg("line", { class: "mark", x1: this.x(step), x2: this.x(step), y1: TOP, y2: HEIGHT - BOTTOM }, svg("title", {}, text)));
  }

  path(steps, values) {
    let path = "", is_on = false;
    values.forEach((value, place) => {
      if (value === null) { is_on = false; return; }
      path += `${is_on ? "L" : "M"}${this.x(steps[place]).toFixed(1)} ${this.y(value).toFixed(1)}`;
      is_on = true;
    });
    return path;
  }

  band(steps, low, high) {
    const there = steps.map((_, place) => place).filter((place) => low[place] !== null);
    const to = (place, value) => `${this.x(steps[place]).toFixed(1)} ${this.y(value).toFixed(1)}`;
    return `M${there.map((place) => to(place, high[place])).join("L")}L${there.reverse().map((place) => to(place, low[place])).join("L")}Z`;
  }

  line({ tone, steps, mean, low, high }) {
    if (this.dots) {
      const bars = mean.map((value, place) => svg("g", { class: `tone-${tone}` },
        low && svg("line", { class: "interval", x1: this.x(steps[place]), x2: this.x(steps[place]), y1: this.y(low[place]), y2: this.y(high[place]) }),
        svg("circle", { class: "dot", cx: this.x(steps[place]), cy: this.y(value), r: 3.2 })));
      return [svg("path", { class: `line tone-${tone}`, d: this.path(steps, mean) }), ...bars];
    }
    if (low && !this.data.is_raw) {
      return [svg("path", { class: `band tone-${tone}`, d: this.band(steps, low, high) }), svg("path", { class: `line tone-${tone}`, d: this.path(steps, mean) })];
    }
    return [svg("path", { class: `raw tone-${tone}`, d: this.path(steps, mean) }), svg("path", { class: `line tone-${tone}`, d: this.path(steps, smoothed(mean)) })];
  }

  areas(lines) {
    let below = lines[0].mean.map(() => 0);
    return lines.map((line) => {
      const above = below.map((value, place) => value + (line.mean[place] ?? 0));
      const part = svg("path", { class: `area tone-${line.tone}`, d: this.band(line.steps, below, above) });
      below = above;
      return part;
    });
  }

  // ---- what a reader points at

  get steps() { return this.lines.reduce((longest, line) => (line.steps.length > longest.length ? line.steps : longest), []); }

  point(event) {
    if (!this.lines?.length) return;
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const distance = (place) => Math.abs(this.x(this.steps[place]) - x);
    this.choose(this.steps.reduce((best, _, place) => (distance(place) < distance(best) ? place : best), 0));
  }

  press(event) {
    if (!this.lines?.length) return;
    const last = this.steps.length - 1, at = this.at ?? last;
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: last };
    if (event.key === "Escape") this.choose(null);
    else if (event.key in moves) this.choose(Math.min(last, Math.max(0, moves[event.key])));
    else return;
    event.preventDefault();
  }

  choose(at) {
    if (at === this.at) return;
    this.at = at;
    this.tell();
  }

  tell() {
    const step = this.at === null ? null : this.steps[Math.min(this.at, this.steps.length - 1)];
    const values = this.lines.map((line) => {
      let place = line.mean.length - 1;
      if (step !== null) place = line.steps.findLastIndex((one) => one <= step);
      else while (place > 0 && line.mean[place] === null) place -= 1;
      return { line, place, value: place < 0 ? null : line.mean[place] };
    });
    const several = this.lines.length > 1;
    const parts = values.map(({ line, value }) => h("span", { class: several ? `value tone-${line.tone}` : "value" },
      several ? h("i", { class: "swatch" }) : null, several ? `${line.label} ` : "", h("b", {}, this.format(value))));
    const where = step === null ? null : h("span", { class: "where" }, `step ${digits(step, 7)}`);
    this.readout.replaceChildren(...[where, ...parts].filter(Boolean));
    mark(this.svg, "aria-label", `${this.title}${step === null ? "" : ` at step ${step}`}: ${values.map(({ line, value }) => `${several ? `${line.label} ` : ""}${this.format(value)}`).join(", ")}. Arrow keys move through the steps.`);
    if (step === null) { this.cursor.replaceChildren(); return; }
    const x = this.x(step);
    const dots = this.stacked ? [] : values.filter(({ value }) => value !== null).map(({ line, place, value }) =>
      svg("circle", { class: `dot tone-${line.tone}`, cx: this.x(line.steps[place]), cy: this.y(value), r: 3.5 }));
    this.cursor.replaceChildren(svg("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }), ...dots);
  }
}

// The lines of some keys of a run's curves, as `Chart.update` takes them.
export function linesOf(curves, keys) {
  return keys.filter(({ key }) => curves.series[key]).map(({ key, label, tone }) => ({ label, tone, steps: curves.steps, ...curves.series[key] }));
}
