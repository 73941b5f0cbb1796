// Prompts: a list with the pass rates of their visits, and one prompt's visits side by side.

import { count, digits, h, keyed, mark, percent, say, svg } from "./dom.js";

const ORDERS = [["hardest", "lowest pass rate"], ["easiest", "highest pass rate"], ["visits", "most visits"], ["quarantined", "quarantined"]];

// Bins as in learner/reports/pass_rates.py.
function bin(rate) {
  if (rate <= 0) return 0;
  if (rate >= 1) return 5;
  return rate <= 0.25 ? 1 : rate <= 0.5 ? 2 : rate <= 0.75 ? 3 : 4;
}

function cells(rates) {
  const said = rates.length ? `pass rates of the newest ${rates.length} visits: ${rates.map((rate) => percent(rate)).join(", ")}` : "no visit is counted";
  return h("span", { class: "cells", role: "img", "aria-label": said, title: said }, rates.map((rate) => h("i", { class: `rate-${bin(rate)}` })));
}

export class PromptsView {
  constructor(context) {
    this.context = context;
    const { order = "hardest", search = "" } = context.words;
    this.search = h("input", { type: "search", id: "search", value: search, placeholder: "id or words of the problem", maxlength: 200, autocomplete: "off" });
    this.order = h("select", { id: "order" }, ORDERS.map(([name, text]) => h("option", { value: name, selected: name === order }, text)));
    this.total = h("p", { class: "soft", role: "status", id: "total" });
    this.body = h("tbody");
    this.none = h("p", { class: "nothing", hidden: true });
    this.pager = h("nav", { class: "pager", "aria-label": "Pages" });
    this.rates = new Rates();
    const form = h("form", { class: "tools", role: "search", onsubmit: (event) => { event.preventDefault(); this.go(); } },
      h("label", {}, "Search ", this.search), h("label", {}, "Order ", this.order), h("button", {}, "Show"));
    this.order.addEventListener("change", () => this.go());
    this.element = h("div", {}, this.rates.element, h("section", { class: "card", "aria-labelledby": "prompts-title" },
      h("h2", { id: "prompts-title" }, "Prompts"), form, this.total,
      h("table", { class: "cards prompts" }, h("thead", {}, h("tr", {}, ["prompt", "problem", "reference", "visits", "pass rate", "newest visits"].map((name) => h("th", { scope: "col" }, name)))), this.body),
      this.none, this.pager));
  }

  go() { this.context.go({ view: "prompts", order: this.order.value, search: this.search.value.trim() || null, page: null }); }

  async refresh(is_full) {
    this.context.seen(await this.context.ask("now"));
    if (!is_full) return;
    const { order = "hardest", search = "", page = 0 } = this.context.words;
    const found = await this.context.ask("prompts", { order, search, page });
    say(this.total, order === "quarantined" ? `${count(found.total)} quarantined` : `${count(found.total)} prompts${search ? " found" : " with counted visits"}`);
    keyed(this.body, found.rows, (row) => row.prompt_id, (row) => this.row(row), fill);
    this.none.hidden = found.rows.length > 0;
    say(this.none, order === "quarantined" ? "No prompt is quarantined." : search ? "No prompt has this in its id or problem." : "No group has been counted yet.");
    this.context.pages(this.pager, found.page, found.page_size, found.total);
    this.rates.update(await this.context.ask("pass_rates"));
  }

  row({ prompt_id }) {
    return h("tr", {}, h("th", { scope: "row" }, h("a", { href: this.context.link({ view: "prompt", id: prompt_id, page: null }) }, prompt_id.slice(0, 10))),
      h("td", { class: "problem" }, h("div", { dir: "auto" })), h("td", { "data-label": "reference", dir: "auto" }), h("td", { "data-label": "visits", class: "right" }),
      h("td", { "data-label": "pass rate", class: "right" }), h("td", { "data-label": "newest visits" }));
  }
}

function fill(row, prompt) {
  const [, problem, reference, visits, rate, newest] = row.children;
  say(problem.firstElementChild, prompt.quarantine ? `${prompt.problem} — quarantined: ${prompt.quarantine}` : prompt.problem);
  say(reference, prompt.reference);
  say(visits, count(prompt.visits));
  const last = prompt.pass_rates.length ? prompt.mean : null;
  say(rate, last === null ? "–" : percent(Math.round(1000 * last) / 1000));
  const text = prompt.pass_rates.join(" ");
  if (newest.dataset.rates !== text) {
    newest.dataset.rates = text;
    newest.replaceChildren(cells(prompt.pass_rates));
  }
}

// Shares of pass rates over the run, stacked.
class Rates {
  constructor() {
    this.svg = svg("svg", { class: "rates", viewBox: "0 0 400 100", preserveAspectRatio: "none", role: "img" });
    this.key = h("p", { class: "key legend" });
    this.note = h("p", { class: "soft" });
    this.element = h("section", { class: "card", "aria-labelledby": "rates-title" }, h("h2", { id: "rates-title" }, "Pass rates of groups over the run"), this.svg, this.key, this.note);
  }

  update({ bins, shares, groups, last_position }) {
    const text = JSON.stringify(shares);
    if (text === this.text) return;
    this.text = text;
    this.element.hidden = !shares.length;
    if (!shares.length) return;
    const width = 400 / shares.length;
    this.svg.replaceChildren(...shares.flatMap((row, column) => {
      let below = 0;
      return row.map((share, place) => {
        const part = svg("rect", { class: `rate-${place}`, x: column * width, y: 100 * (1 - below - share), width: width + 0.2, height: 100 * share });
        below += share;
        return part;
      });
    }));
    const last = shares.at(-1);
    mark(this.svg, "aria-label", `of the newest groups: ${bins.map((name, place) => `${name} ${percent(last[place])}`).join(", ")}`);
    this.key.replaceChildren(...bins.map((name, place) => h("span", {}, h("i", { class: `swatch rate-${place}` }), `${name} `, h("b", {}, percent(Math.round(100 * last[place]) / 100)))));
    say(this.note, `From the first to the newest of ${count(last_position + 1)} places in the order, by ${count(groups)} groups evenly spread; the figures are of the newest stretch.`);
  }
}

export class PromptView {
  constructor(context) {
    this.context = context;
    this.title = h("h1");
    this.banner = h("p", { class: "late", hidden: true });
    this.problem = h("p", { class: "text", dir: "auto", id: "problem" });
    this.reference = h("p");
    this.rates = h("p", { class: "soft rates-line" });
    this.visits = h("div", { class: "visits", tabindex: 0, role: "region", "aria-label": "Visits, the newest first" });
    this.pager = h("nav", { class: "pager", "aria-label": "Pages" });
    this.element = h("div", {}, h("section", { class: "card" }, h("p", {}, h("a", { href: context.link({ view: "prompts", id: null, page: null }) }, "← Prompts")),
      this.title, this.banner, this.problem, this.reference, this.rates), this.visits, this.pager);
  }

  async refresh(is_full) {
    this.context.seen(await this.context.ask("now"));
    if (!is_full) return;
    const { id, page = 0 } = this.context.words;
    const found = await this.context.ask("prompt", { id, page });
    const text = JSON.stringify(found);
    if (text === this.text) return;
    this.text = text;
    say(this.title, `Prompt ${found.prompt_id.slice(0, 16)}`);
    mark(this.title, "title", found.prompt_id);
    this.banner.hidden = !found.quarantine;
    say(this.banner, `Quarantined: ${found.quarantine ?? ""}; \`dcpo release\` lifts it.`);
    say(this.problem, found.problem ?? "(an older learner did not keep the problem)");
    this.reference.replaceChildren("Reference ", h("b", { dir: "auto" }, found.reference ?? "–"), ` · ${count(found.num_visits)} ${found.num_visits === 1 ? "visit" : "visits"}`);
    this.rates.replaceChildren("Pass rate by visit ", cells(found.pass_rates.slice(-80)));
    keyed(this.visits, found.visits, (visit) => `${visit.visit} ${visit.state} ${visit.step} ${visit.responses.length}`, (visit) => this.visit(visit), () => {});
    this.context.pages(this.pager, found.page, found.page_size, found.num_visits, "visits");
  }

  visit(visit) {
    const right = visit.responses.filter((response) => response.correct).length;
    const lags = visit.lags === null ? null : visit.lags[0] === visit.lags[1] ? `lag ${visit.lags[0]}` : `lag ${visit.lags[0]} to ${visit.lags[1]}`;
    const where = [visit.step === null ? visit.state : `step ${count(visit.step)}`, lags, visit.responses.length ? `mean so far ${digits(visit.prompt_stats.mean)}` : null];
    return h("article", { class: "visit card" }, h("header", {}, h("h2", {}, `Visit ${visit.visit}`),
      visit.responses.length ? h("span", { class: `score rate-${bin(right / visit.responses.length)}` }, `${right} of ${visit.responses.length} right`) : h("span", { class: "soft" }, "not answered yet"),
      h("p", { class: "soft" }, where.filter(Boolean).join(" · "))),
    visit.arrays_deleted ? h("p", { class: "soft" }, "The texts are deleted: every checkpoint that is kept contains this step.") : null,
    visit.responses.map((response, index) => this.response(visit, response, index)));
  }

  response(visit, response, index) {
    const meta = [`reward ${digits(response.reward)}`, `advantage ${response.advantage > 0 ? "+" : response.advantage < 0 ? "−" : ""}${digits(Math.abs(response.advantage))}`,
      response.num_tokens === null ? null : `${count(response.num_tokens)} tokens${response.finish_reason === "length" ? ", cut off" : ""}`,
      response.segments === null ? null : `weights ${response.segments.map((segment) => segment.weights_version).join(", ")}`];
    const text = response.text === null ? null : h("p", { class: "text response-text", dir: "auto" }, response.text || "(empty)");
    const long = (response.text ?? "").length > 280 || (response.text ?? "").split("\n").length > 6;
    if (text && long) text.classList.add("folded");
    const fold = text && long ? h("button", { class: "plain", "aria-expanded": "false", onclick: (event) => {
      const is_open = !text.classList.toggle("folded");
      mark(event.target, "aria-expanded", String(is_open));
      say(event.target, is_open ? "less" : "more");
    } }, "more") : null;
    const whole = response.is_cut ? h("a", { href: this.context.address("response", { position: visit.position, index }), target: "_blank", rel: "noopener" }, "whole text") : null;
    return h("section", { class: `response ${response.correct ? "right-answer" : "wrong-answer"}` },
      h("p", { class: "verdict" }, h("b", {}, `${response.correct ? "✓ right" : "✗ wrong"}`), response.reason ? ` ${response.reason}` : "", response.answer === null ? null : h("span", { class: "answer", dir: "auto" }, response.answer)),
      text, h("p", { class: "soft meta" }, meta.filter(Boolean).join(" · "), fold ? [" ", fold] : null, whole ? [" ", whole] : null));
  }
}
