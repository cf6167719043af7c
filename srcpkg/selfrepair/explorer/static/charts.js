// Charts: specifications from selfrepair/explorer/charts.py, filled in, drawn, walked by keyboard, and saved.

let theme = "light";
const colours = () => DATA.colours[theme];
const colourOf = (name) => colours()[name] ?? colours().ink;

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";

function lookOf() {
  const { ink, faint, ground } = colours();
  const line = theme === "light" ? "#e3e5e8" : "#2d323b";
  return {
    background: ground,
    font: FONT,
    view: { stroke: null },
    axis: {
      labelColor: ink,
      titleColor: ink,
      domainColor: faint,
      tickColor: faint,
      gridColor: line,
      labelFontSize: 11,
      titleFontSize: 12,
      titleFontWeight: "normal",
    },
    axisBand: { grid: false },
    legend: { labelColor: ink, titleColor: ink, labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal" },
    text: { color: ink, font: FONT },
  };
}

function filled(value, given) {
  if (Array.isArray(value)) {
    const only = value.length === 1 ? filled(value[0], given) : null;
    return Array.isArray(only) ? only : value.map((inner) => filled(inner, given));
  }
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, filled(inner, given)]));
  }
  if (typeof value !== "string") return value;
  if (value.startsWith("$") && value.slice(1) in colours()) return colours()[value.slice(1)];
  const whole = value.match(/^\{(\w+)\}$/);
  if (whole && whole[1] in given) return given[whole[1]];
  return value.replace(/\{(\w+)\}/g, (match, name) => given[name] ?? match);
}

let drawn = [];
function forgetCharts() {
  drawn.forEach((view) => view.finalize());
  drawn = [];
}

// Draws a chart where `place` is; gives Vega's view of it.
async function draw(place, name, { data, given, height, width = "container", canvas = false }) {
  const spec = { ...filled(DATA.charts[name], given ?? {}), width, height, autosize: { type: "fit", contains: "padding" } };
  if (place.clientWidth < 600) fewColumns(spec, place.clientWidth < 420 ? 1 : 2);
  spec.datasets = Object.fromEntries(["rows", "line", "cursor"].map((part) => [part, data[part] ?? []]));
  const made = await vegaEmbed(place, spec, {
    mode: "vega-lite",
    actions: false,
    renderer: canvas ? "canvas" : "svg",
    config: lookOf(),
    tooltip: { theme },
  });
  drawn.push(made);
  return made.view;
}

// Legends that are as wide as the page break into columns that a phone has room for.
function fewColumns(value, columns) {
  if (value.legend?.columns) value.legend.columns = columns;
  for (const inner of Object.values(value)) if (inner && typeof inner === "object") fewColumns(inner, columns);
}

/* A card with a chart. `rows` are its data; `columns` those of its table and CSV; `told` says a row in words.
   Where `next(row, key)` gives the row that an arrow key leads to, the chart can be walked; `pick(row)` opens one. */
function chartCard(options) {
  const { title, note, name, what, chart, rows, columns, tabled, told, next, pick, level = 3, height, current, mark } = options;
  const place = el("div", { "aria-hidden": "true", class: "plot" });
  let view = null;
  let at = current ?? null;
  const frame = el("div", {
    class: "chart",
    style: { minHeight: `${height}px` },
    tabindex: next ? 0 : null,
    role: next ? "application" : "img",
    "aria-roledescription": next ? "chart" : null,
    "aria-label": `${what}.${next ? " Arrow keys walk through it, Enter opens what is reached." : ""} Its numbers are in the table below.`,
  });
  frame.append(place);
  const showCursor = () => view && view.data("cursor", at ? [at] : []).runAsync();
  if (next) {
    frame.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && at && pick) {
        event.preventDefault();
        pick(at);
      }
      if (!event.key.startsWith("Arrow") || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      at = next(at, event.key) ?? at;
      showCursor();
      if (at) say(told(at));
    });
  }
  const card = el(
    "section",
    { class: "card" },
    el(
      "div",
      { class: "cardhead" },
      el(`h${level}`, {}, title),
      saveButtons({
        name,
        what,
        picture: () => view.toSVG(),
        png: async () => (await fetchless(await view.toImageURL("png", 2))),
        columns,
        rows: () => rows.map((row) => row.saved ?? row),
      }),
    ),
    note && el("p", { class: "note" }, note),
    frame,
    tabled && lazyTable(tabled),
  );
  card.ready = async () => {
    view = await draw(place, chart, { ...options, data: { rows, line: options.line, cursor: at ? [at] : [] } });
    if (pick) view.addEventListener("click", (_, item) => item && item.datum && !mark?.(item) && rows.includes(found(item.datum)) && pick(found(item.datum)));
    return view;
  };
  const found = (datum) => rows.find((row) => row.key === datum.key);
  return card;
}

// A blob of a data address; asking for it as a resource would be a request.
function fetchless(dataAddress) {
  const bytes = Uint8Array.from(atob(dataAddress.split(",")[1]), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

// A table that is made when it is opened.
function lazyTable(options) {
  const box = el("details", {}, el("summary", {}, options.summary ?? "As a table"));
  box.addEventListener("toggle", () => {
    if (box.open && box.children.length === 1) box.append(table(options));
  });
  return box;
}

function byLayerAndHead(rows) {
  const at = new Map(rows.map((row) => [`${row.layer}.${row.head}`, row]));
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  return (row, key) => (row ? at.get(`${row.layer + step[key][0]}.${row.head + step[key][1]}`) : rows[0]);
}

/* A map of a value of every head. `of` says of a row what is shown; values beyond `range` around `middle` have the colours of
   its ends. */
function headMap({ title, note, name, what, rows, of, told, valueTitle, range, middle = 0, columns, pick, current, level, links }) {
  const shownRows = rows.map((row) => ({
    layer: row.layer,
    head: row.head,
    key: `${row.layer}.${row.head}`,
    name: headName(row.layer, row.head),
    shown: of(row),
    told: told(row),
    saved: row,
  }));
  const heads = Math.max(...rows.map((row) => row.head)) + 1;
  const tableColumns = [
    { key: "name", label: "head", text: true, show: (row) => (links ? el("a", { href: links(row) }, row.name) : row.name) },
    { key: "told", label: valueTitle, show: (row) => row.told },
  ];
  return chartCard({
    title,
    note,
    name,
    what,
    chart: "heads",
    rows: shownRows,
    columns,
    level,
    height: Math.max(150, Math.min(heads * 20, 300) + 78),
    given: { value: valueTitle, low: middle - range, high: middle + range },
    told: (row) => `${row.name}: ${row.told}`,
    next: byLayerAndHead(shownRows),
    pick: pick && ((row) => pick(row)),
    current: shownRows.find((row) => row.key === current),
    tabled: { caption: what, columns: tableColumns, rows: shownRows },
  });
}

// The size that a share of all values does not exceed: what a colour range ends at.
function sizeOf(values, share = 0.98) {
  const sizes = values.filter((value) => Number.isFinite(value)).map(Math.abs).sort((a, b) => a - b);
  if (!sizes.length) return 1;
  const size = sizes[Math.min(sizes.length - 1, Math.floor(share * sizes.length))] || sizes[sizes.length - 1] || 1;
  return Number(size.toPrecision(2));
}

// From the least to the largest of some numbers, zero among them where that is asked for.
function reach(numbers, { zero = true } = {}) {
  const known = numbers.filter((value) => value !== null && value !== undefined && Number.isFinite(value));
  let [low, high] = zero ? [0, 0] : [Infinity, -Infinity];
  for (const value of known) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (!(low <= high)) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

const ofBars = (rows) => reach(rows.flatMap((row) => [row.value, row.low, row.high]));

const capital = (text) => text[0].toUpperCase() + text.slice(1);

const mix = (one, other, share) => one.map((channel, at) => Math.round(channel + share * (other[at] - channel)));
const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
const luminance = (rgb) =>
  rgb
    .map((channel) => channel / 255)
    .map((channel) => (channel <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4))
    .reduce((sum, channel, at) => sum + channel * [0.2126, 0.7152, 0.0722][at], 0);

// Ground and ink of a token by its value; none where it has none.
function shade(value, range, middle = 0) {
  if (!Number.isFinite(value)) return null;
  const map = colours().map.map(channels);
  const place = ((Math.max(-1, Math.min(1, (value - middle) / range)) + 1) / 2) * (map.length - 1);
  const below = Math.min(Math.floor(place), map.length - 2);
  const ground = mix(map[below], map[below + 1], place - below);
  return { background: `rgb(${ground})`, color: luminance(ground) > 0.179 ? "#000000" : "#ffffff" };
}

function legend(range, name, middle = 0) {
  const stops = colours().map.join(", ");
  return el(
    "p",
    { class: "legend" },
    el("span", {}, number(middle - range, 2)),
    el("span", { class: "ramp", style: { background: `linear-gradient(to right, ${stops})` }, "aria-hidden": "true" }),
    el("span", {}, number(middle + range, 2)),
    el("span", { class: "faint" }, `${withUnit(name)}; beyond, the same as at the end`),
  );
}
