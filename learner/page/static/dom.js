// Elements and numbers for people. Texts become text nodes alone: nothing that a run says is ever markup.

const SVG = "http://www.w3.org/2000/svg";

// An element: h("p", {class: "why", onclick: f}, "text", child). null and false children are left out.
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Set what has changed alone: nothing flickers, a selection of text stays.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function mark(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// Keep one child of `parent` for each item, in order; those of earlier items with the same key stay.
export function keyed(parent, items, key, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = known.get(name);
    known.delete(name);
    if (!child) {
      child = make(item);
      child.dataset.key = name;
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

const NONE = "–";
const is = (value) => typeof value === "number" && Number.isFinite(value);

// 12345 is "12,345", 12345678 "12.3 M".
export function count(value) {
  if (!is(value)) return NONE;
  if (Math.abs(value) >= 1e6) {
    return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value).replace(/([A-Z])$/, " $1");
  }
  return new Intl.NumberFormat("en", { maximumFractionDigits: 0 }).format(value);
}

export function digits(value, number = 3) {
  if (!is(value)) return NONE;
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1).replace("e-", "e−");
  if (Math.abs(value) >= 1e4) return count(value);
  return new Intl.NumberFormat("en", { maximumSignificantDigits: number }).format(value);
}

export function percent(value) {
  if (!is(value)) return NONE;
  const shown = 100 * value;
  if (shown === 0) return "0 %";
  return `${Math.abs(shown) < 1 ? digits(shown, 2) : new Intl.NumberFormat("en", { maximumFractionDigits: 1 }).format(shown)} %`;
}

// Two largest units: 7500 is "2 h 5 min".
export function duration(seconds) {
  if (!is(seconds)) return NONE;
  if (seconds < 10 && seconds % 1) return `${digits(seconds, 2)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  for (const [size, unit, below, smaller] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (whole >= size) {
      const rest = Math.floor((whole % size) / below);
      return `${Math.floor(whole / size)} ${unit}` + (rest ? ` ${rest} ${smaller}` : "");
    }
  }
}

export function bytes(value) {
  if (!is(value)) return NONE;
  for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"]]) if (value >= size) return `${digits(value / size)} ${unit}`;
  return `${count(value)} B`;
}

export function clock(seconds) {
  return new Date(1000 * seconds).toLocaleString("sv-SE").slice(0, 19);
}
