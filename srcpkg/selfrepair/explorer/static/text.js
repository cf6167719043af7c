// Elements, numbers and tokens as text. Nothing is ever parsed as HTML: what a text holds stays text.

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const MINUS = "−";

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? MINUS : "") + text;
}

const count = (value) => value.toLocaleString("en-GB");
// As many digits as the config has: 2.5%, not 3%.
const topShare = ({ top_fraction: fraction }) => `${Number((100 * fraction).toPrecision(6))}%`;
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${number(100 * value, digits)}%`);

function interval(row, name, digits = 3) {
  const [low, high] = [row[`${name}_low`], row[`${name}_high`]];
  return low === null || low === undefined ? "" : `${number(low, digits)} to ${number(high, digits)}`;
}

function withInterval(row, name, digits = 3) {
  const of = interval(row, name, digits);
  return number(row[name], digits) + (of ? ` (${of})` : "");
}

const ENDS = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u00a0\u2000-\u200a\u202f\u205f\u3000\ufffd]/gu;
const code = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

// What a token adds to its text, as it is shown in the text: what cannot be seen is named.
function shown(piece) {
  if (Array.isArray(piece)) return `⟨${piece[0]}⟩`;
  if (/^ +$/.test(piece)) return "·".repeat(piece.length);
  return piece.replace(ENDS, (letter) => ({ "\n": "↵\n", "\r": "␍", "\t": "⇥\t" })[letter] ?? `⟨${code(letter)}⟩`);
}

// The same on a line of its own, where a blank at an end would be lost.
function label(piece) {
  if (Array.isArray(piece)) return `⟨${piece[0]}⟩`;
  return piece.replace(/ /g, "·").replace(ENDS, (letter) => ({ "\n": "↵", "\r": "␍", "\t": "⇥" })[letter] ?? `⟨${code(letter)}⟩`);
}

// How a token is told to who hears the page.
function spoken(piece) {
  if (Array.isArray(piece)) return `part of a character, bytes ${piece[0]}`;
  if (!piece.trim()) return piece.includes("\n") ? "new line" : "blank";
  return piece.trim();
}

function say(text) {
  document.getElementById("said").textContent = text;
}

// A table; where `sorted` is given, its headings sort it.
function table({ caption, columns, rows, sorted, onsort, current, unseen = true }) {
  const head = columns.map((column) => {
    const on = sorted && sorted.by === column.key;
    const direction = on ? (sorted.down ? "descending" : "ascending") : "none";
    const sortable = onsort && column.sorts !== false;
    const arrow = on ? (sorted.down ? " ↓" : " ↑") : "";
    return el(
      "th",
      { scope: "col", class: column.text ? "text" : null, "aria-sort": sortable ? direction : null },
      sortable
        ? el("button", { type: "button", class: "sort", onclick: () => onsort(column.key), title: `Sort by ${column.label}` }, column.label + arrow)
        : column.label,
    );
  });
  const body = rows.map((row) =>
    el(
      "tr",
      { "aria-current": current && current(row) ? "true" : null },
      columns.map((column, at) => {
        const content = column.show ? column.show(row) : number(row[column.key], column.digits);
        const first = at === 0 && column.heads !== false;
        return el(first ? "th" : "td", { scope: first ? "row" : null, class: column.text ? "text" : null, "data-label": column.label }, content);
      }),
    ),
  );
  const hidden = unseen ? "unseen" : null;
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: hidden }, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)),
  );
}
