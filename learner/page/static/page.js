// The page: which view of which run is shown, asked for again and again, and what is said when nobody answers.

import { CompareView } from "./compare.js";
import { clock, duration, h, mark, say } from "./dom.js";
import { NowView } from "./now.js";
import { PromptView, PromptsView } from "./prompts.js";

const LOOK_SECONDS = 2, FULL_EVERY = 3, ANSWER_SECONDS = 15, OLD_SECONDS = 10;
const VIEWS = { now: NowView, prompts: PromptsView, prompt: PromptView, compare: CompareView };
const parts = Object.fromEntries(["runs", "views", "fresh", "alarm", "main", "skip"].map((id) => [id, document.getElementById(id)]));

let runs = [];
let shown = null;
let answered = null;
let timer = null;
let round = 0;
let turn = 0;

class Refused extends Error {}

async function asked(path, words) {
  const answer = await fetch(`/api/${path}?${new URLSearchParams(words)}`, { signal: AbortSignal.timeout(1000 * ANSWER_SECONDS), cache: "no-store" });
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Refused((await answer.text()).trim() || `answer ${answer.status}`);
  return answer.json();
}

function wordsOf(hash) {
  const words = Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
  if (!(words.view in VIEWS)) words.view = "now";
  if (!runs.some(({ name }) => name === words.run)) words.run = runs[0].name;
  return words;
}

function link(words, changed) {
  const all = { ...words, ...changed };
  return `#${new URLSearchParams(Object.entries(all).filter(([, value]) => value !== null && value !== undefined && value !== ""))}`;
}

// What a view may ask of the page around it.
function contextOf(words) {
  return {
    words,
    ask: (path, more = {}) => asked(path, { run: words.run, ...more }),
    address: (path, more) => `/api/${path}?${new URLSearchParams({ run: words.run, ...more })}`,
    link: (changed) => link(words, changed),
    go: (changed) => { location.hash = link(words, changed); },
    seen: (now) => { document.title = `${now.health.state} · ${now.status.step ?? 0} · ${now.name}`; },
    pages: (nav, page, size, total, name = "prompts") => {
      const last = Math.max(0, Math.ceil(total / size) - 1), text = `${page} ${last} ${total}`;
      if (nav.dataset.text === text) return;
      nav.dataset.text = text;
      nav.hidden = last === 0;
      const to = (label, target, is_there) => h("a", is_there ? { href: link(words, { page: target || null }) } : { "aria-disabled": "true" }, label);
      nav.replaceChildren(to(name === "visits" ? "← newer" : "← back", page - 1, page > 0), h("span", {}, `${page * size + 1} to ${Math.min(total, (page + 1) * size)} of ${total}`), to(name === "visits" ? "older →" : "on →", page + 1, page < last));
    },
  };
}

function show() {
  const words = wordsOf(location.hash), text = link(words, {});
  if (shown?.text === text) return;
  const is_first = shown === null;
  shown = { text, view: new VIEWS[words.view](contextOf(words)), words };
  parts.main.replaceChildren(shown.view.element);
  parts.runs.value = words.run;
  const views = [["now", "Now"], ["prompts", "Prompts"], ...(runs.length > 1 ? [["compare", "Compare"]] : [])];
  parts.views.replaceChildren(...views.map(([view, name]) => h("a", {
    href: link({ run: words.run }, { view }), "aria-current": view === words.view || (view === "prompts" && words.view === "prompt") ? "page" : null,
  }, name)));
  if (!is_first) { window.scrollTo(0, 0); parts.main.focus({ preventScroll: true }); }
  round = 0;
  mark(parts.main, "data-round", null);
  look();
}

async function look() {
  clearTimeout(timer);
  turn += 1;
  const mine = turn, { view } = shown;
  try {
    await view.refresh(round % FULL_EVERY === 0);
    round += 1;
    if (mine === turn) mark(parts.main, "data-round", round);
    answered = Date.now();
    if (mine === turn) alarm(null);
  } catch (error) {
    // What is shown stays, so that the last numbers can be read.
    alarm(error instanceof Refused ? error.message : `The server does not answer${answered ? ` since ${clock(answered / 1000).slice(11)}: what is shown is of then` : ""}. It is asked again every ${LOOK_SECONDS} s.`);
    if (!(error instanceof Refused || error instanceof TypeError || error.name === "TimeoutError")) console.error(error);
  }
  // Whoever has looked later goes on; a page that nobody sees asks for nothing.
  if (mine === turn && !document.hidden) timer = setTimeout(look, 1000 * LOOK_SECONDS);
}

function alarm(text) {
  parts.alarm.hidden = text === null;
  say(parts.alarm, text ?? "");
  mark(document.body, "class", text === null ? null : "stale");
}

function tick() {
  const age = answered === null ? null : (Date.now() - answered) / 1000;
  say(parts.fresh, age === null ? "" : age < OLD_SECONDS ? "live" : `${duration(age)} old`);
  mark(parts.fresh, "data-old", age !== null && age >= OLD_SECONDS ? "" : null);
}

async function start() {
  try {
    runs = await asked("runs", {});
  } catch (error) {
    alarm(error instanceof Refused ? error.message : "The server does not answer. It is asked again every 2 s.");
    setTimeout(start, 1000 * LOOK_SECONDS);
    return;
  }
  parts.runs.replaceChildren(...runs.map(({ name }) => h("option", { value: name }, name)));
  parts.runs.disabled = runs.length === 1;
  parts.runs.addEventListener("change", () => { location.hash = link(shown.words, { run: parts.runs.value, id: null, page: null, view: shown.words.view === "prompt" ? "prompts" : shown.words.view }); });
  window.addEventListener("hashchange", show);
  document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else look(); });
  parts.skip.addEventListener("click", () => parts.main.focus());
  setInterval(tick, 1000);
  show();
}

start();
