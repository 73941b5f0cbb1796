// Several runs over each other: the same curve of each in one chart, where each stands, and the settings that differ.

import { Chart } from "./charts.js";
import { count, digits, h, keyed, percent, say } from "./dom.js";

const CHARTS = [
  { key: "reward", title: "Reward", domain: [0, 1] }, { key: "rur", title: "RUR", kind: "share", domain: [0, 1] }, { key: "tcr", title: "TCR", kind: "share" },
  { key: "entropy", title: "Entropy" }, { key: "response_length", title: "Response length" }, { key: "lag_mean", title: "Lag" },
  { key: "grad_norm", title: "Gradient norm" }, { key: "tokens_per_second", title: "Tokens per second, trained" },
];
const COLUMNS = [["state", (row) => row.state], ["step", (row) => `${count(row.step)}${row.max_steps ? ` of ${count(row.max_steps)}` : ""}`],
  ["reward", (row) => digits(row.figures.reward)], ["RUR", (row) => percent(row.figures.rur)], ["TCR", (row) => percent(row.figures.tcr)],
  ["entropy", (row) => digits(row.figures.entropy)], ["length", (row) => digits(row.figures.response_length)], ["lag", (row) => digits(row.figures.lag_mean)],
  ["tokens/s", (row) => digits(row.figures.tokens_per_second)], ["generated", (row) => count(row.generated_tokens)]];
const MAX_TONES = 8;
const tone = (place) => (place % MAX_TONES) + 1;

export class CompareView {
  constructor(context) {
    this.context = context;
    this.body = h("tbody");
    this.charts = CHARTS.map((options) => ({ key: options.key, chart: new Chart(options) }));
    this.accuracy = new Chart({ title: "Held-out accuracy", kind: "share", domain: [0, 1], dots: true });
    this.settings = h("tbody");
    this.heads = h("tr");
    this.none = h("p", { class: "nothing", hidden: true }, "These runs have the same settings.");
    this.element = h("div", {}, h("section", { class: "card", "aria-labelledby": "compare-title" }, h("h2", { id: "compare-title" }, "Runs ", h("span", { class: "soft" }, "figures are means over the newest tenth of the steps")),
      h("table", { class: "cards" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "run"), COLUMNS.map(([name]) => h("th", { scope: "col", class: name === "state" ? null : "right" }, name)))), this.body)),
    h("div", { class: "charts" }, this.charts[0].chart.element, this.accuracy.element, this.charts.slice(1).map(({ chart }) => chart.element)),
    h("section", { class: "card", "aria-labelledby": "settings-title" }, h("h2", { id: "settings-title" }, "Settings that differ"),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": "settings-title" }, h("table", {}, h("thead", {}, this.heads), this.settings)), this.none));
  }

  async refresh(is_full) {
    this.context.seen(await this.context.ask("now"));
    if (!is_full) return;
    const found = await this.context.ask("compare");
    keyed(this.body, found.rows, (row) => row.name, ({ name }) => h("tr", {}, h("th", { scope: "row" }, h("a", { href: this.context.link({ view: "now", run: name }) })), COLUMNS.map(([label]) => h("td", { "data-label": label, class: label === "state" ? null : "right" }))),
      (element, row) => {
        const place = found.rows.indexOf(row), link = element.firstElementChild.firstElementChild;
        if (!link.children.length) link.append(h("i", { class: `swatch tone-${tone(place)}` }), row.name);
        COLUMNS.forEach(([, value], column) => say(element.children[column + 1], value(row)));
      });
    const curves = await Promise.all(found.rows.map(({ name }) => this.context.ask("curves", { run: name })));
    const is_raw = curves.every((one) => one.num_steps <= one.steps.length);
    for (const { key, chart } of this.charts) {
      chart.update({ is_raw, lines: curves.flatMap((one, place) => (one.series[key] ? [{ label: found.rows[place].name, tone: tone(place), steps: one.steps, ...one.series[key] }] : [])) });
    }
    const sets = [...new Set(curves.flatMap((one) => Object.keys(one.accuracy)))];
    this.accuracy.element.hidden = !sets.length;
    this.accuracy.update({ lines: sets.slice(0, 1).flatMap((set) => curves.flatMap((one, place) => {
      const points = one.accuracy[set] ?? [];
      return points.length ? [{ label: `${found.rows[place].name}, ${set}`, tone: tone(place), steps: points.map(({ step }) => step), mean: points.map(({ mean }) => mean), low: points.map(({ low }) => low), high: points.map(({ high }) => high) }] : [];
    })) });
    this.heads.replaceChildren(h("th", { scope: "col" }, "setting"), ...found.rows.map(({ name }) => h("th", { scope: "col" }, name)));
    keyed(this.settings, found.settings, (row) => row.name, (row) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, row.name)), row.values.map(() => h("td", {}, h("code")))),
      (element, row) => row.values.forEach((value, place) => say(element.children[place + 1].firstElementChild, value === null ? "–" : typeof value === "string" ? value : JSON.stringify(value))));
    this.none.hidden = found.settings.length > 0;
  }
}
