// The view of one run as it is now: state, who waits, curves, fleet, events.

import { Chart, linesOf } from "./charts.js";
import { bytes, clock, count, digits, duration, h, keyed, mark, percent, say } from "./dom.js";

const CHARTS = [
  { title: "Reward", hint: "mean reward of a step's responses", domain: [0, 1], lines: [{ key: "reward", tone: 1 }] },
  { title: "RUR", hint: "responses with a non-zero advantage", kind: "share", domain: [0, 1], lines: [{ key: "rur", tone: 1 }] },
  { title: "TCR", hint: "tokens whose loss the clip bound changed", kind: "share", lines: [{ key: "tcr", tone: 1 }] },
  { title: "Lag", hint: "optimizer steps between sampling and training", lines: [{ key: "lag_mean", tone: 1 }] },
  { title: "Entropy", hint: "nats per token", lines: [{ key: "entropy", tone: 1 }] },
  { title: "Response length", hint: "tokens", lines: [{ key: "response_length", tone: 1 }] },
  { title: "Tokens per second", hint: "response tokens of all actors, and all tokens of the learner", lines: [
    { key: "actor_tokens_per_second", label: "generated", tone: 1 }, { key: "tokens_per_second", label: "trained", tone: 2 }] },
  { title: "Seconds of a step", hint: "of the learner: it trains, or waits for its groups", stacked: true, lines: [
    { key: "step_seconds", label: "trains", tone: 1 }, { key: "wait_seconds", label: "waits", tone: 2 }] },
];
const WORDS = {
  starting: "the learner is starting", training: "steps are trained", waiting: "", degraded: "", finished: "", stopped: "", dead: "", silent: "",
};
const OUTCOMES = [["groups_duplicate", "duplicate"], ["groups_superseded", "superseded"], ["groups_invalid", "invalid"], ["groups_too_old", "too old"],
  ["leases_again", "leases again"], ["leases_stalled", "stalled"], ["leases_handed_over", "handed over"], ["lease_failures", "failed"]];

export class NowView {
  constructor(context) {
    this.context = context;
    this.state = new StateCard();
    this.waits = new WaitsCard();
    this.facts = new FactsCard();
    this.charts = CHARTS.map((options) => ({ chart: new Chart(options), options }));
    this.last = new Chart({ title: "Held-out accuracy", hint: "on problems that are not trained on, with 95 % intervals", kind: "share", domain: [0, 1], dots: true });
    this.norm = new Chart({ title: "Gradient norm", hint: "before clipping", lines: [] });
    this.fleet = new Fleet();
    this.events = new Events();
    this.element = h("div", { class: "now" },
      h("div", { class: "band" }, this.state.element, this.waits.element, this.facts.element),
      h("section", { "aria-labelledby": "curves" }, h("h2", { id: "curves" }, "Curves"),
        h("div", { class: "charts" }, this.charts[0].chart.element, this.last.element, this.charts.slice(1).map(({ chart }) => chart.element), this.norm.element)),
      h("div", { class: "split" }, this.fleet.element, this.events.element));
    this.norm.element.hidden = true;
    this.revision = null;
  }

  async refresh(is_full) {
    const now = await this.context.ask("now");
    this.context.seen(now);
    this.state.update(now);
    this.waits.update(now);
    this.facts.update(now);
    this.fleet.update(now);
    if (is_full && now.revision !== this.revision) {
      this.draw(await this.context.ask("curves"));
    }
    if (is_full) this.events.update(await this.context.ask("events"));
  }

  draw(curves) {
    this.revision = curves.revision;
    const is_raw = curves.num_steps <= curves.steps.length;
    for (const { chart, options } of this.charts) chart.update({ lines: linesOf(curves, options.lines), marks: curves.marks, is_raw });
    this.norm.update({ lines: linesOf(curves, [{ key: "grad_norm", tone: 1 }]), marks: curves.marks, is_raw });
    const sets = Object.entries(curves.accuracy);
    this.last.update({ marks: curves.marks, lines: sets.map(([label, points], place) => ({
      label, tone: place + 1, steps: points.map(({ step }) => step), mean: points.map(({ mean }) => mean), low: points.map(({ low }) => low), high: points.map(({ high }) => high) })) });
    this.last.element.hidden = sets.length === 0;
    this.norm.element.hidden = sets.length > 0;
  }
}

class StateCard {
  constructor() {
    this.pill = h("strong", { class: "pill" });
    this.why = h("p", { class: "why" });
    this.step = h("span", { class: "big", id: "step" });
    this.of = h("span", { class: "of" });
    this.bar = h("progress", { max: 1, value: 0, "aria-label": "steps trained" });
    this.pace = h("p", { class: "soft" });
    this.element = h("section", { class: "card state", "aria-label": "State" },
      h("p", { class: "row", "aria-live": "polite" }, this.pill, this.why), h("p", { class: "row base" }, this.step, this.of), this.bar, this.pace);
  }

  update({ health, status, served_at }) {
    say(this.pill, health.state);
    mark(this.pill, "data-state", health.state);
    say(this.why, health.why || WORDS[health.state] || "");
    say(this.step, count(status.step ?? 0));
    say(this.of, status.max_steps ? `of ${count(status.max_steps)} steps` : "steps");
    mark(this.bar, "hidden", status.max_steps ? null : "");
    if (status.max_steps) { this.bar.max = status.max_steps; this.bar.value = status.step ?? 0; }
    const parts = [];
    if (health.is_live) {
      if (status.eta_seconds !== null && !status.is_finished) parts.push(`${duration(status.eta_seconds)} to go`);
      if (status.seconds_per_step) parts.push(`a step each ${duration(status.seconds_per_step)}`);
      if (status.last_step_at) parts.push(`the last one ${duration(Math.max(0, served_at - status.last_step_at))} ago`);
    } else if (status.written_at) parts.push(`ended ${clock(status.written_at)}`);
    say(this.pace, parts.join(" · "));
  }
}

class WaitsCard {
  constructor() {
    this.trains = h("span", { class: "trains" });
    this.waits = h("span", { class: "waits" });
    this.bar = h("div", { class: "balance", role: "img" }, this.trains, this.waits);
    this.key = h("p", { class: "key" });
    this.advice = h("p");
    this.late = h("p", { class: "late" });
    this.element = h("section", { class: "card", "aria-label": "Who waits" }, h("h2", {}, "Who waits"), this.bar, this.key, this.advice, this.late);
  }

  update({ health, status, balance }) {
    const whole = balance ? balance.step + balance.wait : 0, share = whole ? balance.wait / whole : 0;
    this.bar.hidden = !whole;
    this.trains.style.flexGrow = 1 - share;
    this.waits.style.flexGrow = share;
    const said = whole ? `The learner trains ${percent(1 - share)} and waits ${percent(share)} of the time` : "No step is trained yet";
    mark(this.bar, "aria-label", said);
    say(this.key, whole ? `${said}, over the newest steps.` : `${said}.`);
    say(this.advice, status.advice ?? "");
    const late = health.is_live && status.waiting_for?.seconds >= 3 ? status.waiting_for : null;
    this.late.hidden = !late;
    if (late) {
      const whom = late.holder ? ` for lease ${late.position} of ${late.holder}: ${duration(late.lease_seconds)} old, ${count(late.tokens)} tokens so far` : " for a group that nobody holds";
      say(this.late, `The next batch has waited ${duration(late.seconds)}${whom}.`);
    }
  }
}

class FactsCard {
  constructor() {
    this.list = h("dl", { class: "facts" });
    this.element = h("section", { class: "card", "aria-label": "Facts" }, h("h2", {}, "So far"), this.list);
  }

  update({ status, fleet, served_at, health, settings_set }) {
    const rows = [
      ["groups counted", count(status.groups_counted)],
      ["responses", count(status.generated_responses)],
      ["tokens generated", count(status.generated_tokens)],
      ["weights version", count(status.weights_version)],
      [health.is_live ? "actors" : "actors at the end", count(fleet.length)],
      ["in flight", status.response_capacity ? `${count(status.responses_in_flight)} of ${count(status.response_capacity)}` : count(status.responses_in_flight)],
      ["steps unsaved", count(status.unsaved_steps)],
      ["disk free", bytes(status.disk_free_bytes)],
      ["started", status.started_at ? `${duration(Math.max(0, served_at - status.started_at))} ago` : "–"],
      ["starts", count(status.incarnation)],
      ["trainer restarts", count(status.trainer_restarts)],
      ["quarantined", count(status.prompts_quarantined ?? 0)],
      ...settings_set.map(({ name, value, from_step }) => [`${name}, set from step ${count(from_step)} on`, value === null ? "none" : String(value)]),
    ];
    keyed(this.list, rows, ([name]) => name, ([name]) => h("div", {}, h("dt", {}, name), h("dd", { "data-fact": name })), (row, [, value]) => say(row.lastElementChild, value));
  }
}

const COLUMNS = ["actor", "does", "version", "tokens/s", "leases", "oldest", "in flight", "idle", "groups", "failures", "heard"];

class Fleet {
  constructor() {
    this.body = h("tbody");
    this.count = h("span", { class: "soft" });
    this.outcomes = h("p", { class: "soft outcomes" });
    this.none = h("p", { class: "nothing" }, "No actor is connected.");
    this.table = h("table", { class: "cards" },
      h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col", class: name === "actor" || name === "does" ? null : "right" }, name)))), this.body);
    this.element = h("section", { class: "card", id: "fleet", "aria-labelledby": "fleet-title" },
      h("h2", { id: "fleet-title" }, "Fleet ", this.count), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": "fleet-title" }, this.table, this.none), this.outcomes);
  }

  update({ fleet, health, outcomes, evaluators }) {
    const of = health.is_live ? "slowest first; tokens/s of one response" : "as it was at the end";
    say(this.count, fleet.length ? `${count(fleet.length)} ${fleet.length === 1 ? "actor" : "actors"}, ${of}` : "");
    this.table.hidden = !fleet.length;
    this.none.hidden = fleet.length > 0;
    keyed(this.body, fleet, (actor) => actor.actor, makeRow, (row, actor) => fillRow(row, actor, health.is_live));
    const parts = OUTCOMES.filter(([key]) => outcomes[`total_${key}`]).map(([key, name]) => `${name} ${count(outcomes[`total_${key}`])}`);
    if (evaluators.length) parts.push(`evaluators ${evaluators.map((one) => one.session).join(", ")}`);
    say(this.outcomes, parts.length ? `Of all groups and leases since the start: ${parts.join(" · ")}` : "");
  }
}

function makeRow() {
  const row = h("tr", {}, h("th", { scope: "row" }, h("span", { class: "name" }), h("small"), h("span", { class: "notes" })));
  for (const name of COLUMNS.slice(1)) row.append(h("td", { "data-label": name, class: name === "does" ? null : "right" }));
  return row;
}

function fillRow(row, actor, is_live) {
  const [name, host, notes] = row.firstElementChild.children;
  say(name, actor.actor);
  say(host, actor.actor.startsWith(actor.host) ? "" : actor.host);
  keyed(notes, actor.notes, (note) => note, (note) => h("span", { class: "note" }, note), () => {});
  const idle = actor.idle_share;
  const values = [
    actor.activity, `${count(actor.weights_version)}${actor.behind ? ` (−${actor.behind})` : ""}`, digits(actor.tokens_per_second), count(actor.leases),
    actor.oldest_lease_seconds ? duration(actor.oldest_lease_seconds) : "–",
    actor.response_capacity ? `${actor.responses_in_flight}/${actor.response_capacity}` : count(actor.responses_in_flight),
    idle === null ? "–" : percent(Math.round(100 * idle) / 100), count(actor.groups_accepted), count(actor.failures), is_live ? `${duration(actor.heard_seconds_ago)} ago` : "–",
  ];
  values.forEach((value, place) => say(row.children[place + 1], value));
  mark(row, "class", actor.notes.length ? "odd" : null);
  mark(row.children[9], "class", actor.failures ? "right bad" : "right");
}

const ICONS = { start: "▶", evaluation: "◎", quarantine: "⊘", state: "●", joined: "+", left: "−", restart: "↻" };

class Events {
  constructor() {
    this.list = h("ol", { class: "events" });
    this.since = h("p", { class: "soft" });
    this.element = h("section", { class: "card", id: "events", "aria-labelledby": "events-title" }, h("h2", { id: "events-title" }, "Events"),
      h("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-labelledby": "events-title" }, this.list), this.since);
  }

  update({ events, since, problem }) {
    keyed(this.list, events, (event) => `${event.at} ${event.step} ${event.kind} ${event.text}`, (event) => h("li", { "data-kind": event.kind },
      h("span", { class: "icon", "aria-hidden": "true" }, ICONS[event.kind] ?? "·"),
      h("p", {}, h("span", { class: "what" }, event.kind), event.text.replace(new RegExp(`^(${event.kind})?\\s*`), " ")),
      h("p", { class: "soft when" }, [event.at ? clock(event.at) : null, event.step === null ? null : `step ${count(event.step)}`].filter(Boolean).join(" · "))), () => {});
    say(this.since, problem || (since ? `Actors that join and leave, and changes of state, are noted since ${clock(since)}, when this server began to look.` : ""));
  }
}
