// One token in its text, and the best tokens of a head.

async function tokenView(state) {
  const run = runOf(state);
  const row = run.row(state.kind, state.head);
  const [layer, head] = state.head.split(".").map(Number);
  const name = headName(layer, head);
  if (row < 0) return missingHead(state, run, name);
  const tokens = await run.tokens(state.kind, row);
  const best = (await run.best(state.kind))[row];
  const [prompt, pos] = state.token.split(".").map(Number);
  const quantity = state.quantity in tokens.values ? state.quantity : "self_repair";
  const texts = await run.pieces_of();
  const known = texts.has(prompt) && pos >= 0 && pos < run.positions;
  const listed = best.find((each) => each.prompt === prompt && each.pos === pos);
  const heading = [
    el("h1", {}, "Tokens of ", el("a", { href: address(state, { view: "head" }) }, name), " ", el("span", { class: "faint" }, `of ${run.model} on ${run.corpus}`)),
    el("p", { class: "lead" }, `Every token is shaded by ${QUANTITIES[quantity].label} when ${name} is ablated (${state.kind}), at the place from which the next token is predicted.`),
    stepper(state, run),
  ];
  const list = await bestCard(state, run, row, best, name);
  if (!known && !listed) {
    return [...heading, emptyCard("Not on this page", `Prompt ${prompt}, position ${pos} is not among the ${run.prompts.length} prompts that the page holds.`), list];
  }
  const around = await run.around(state.kind, prompt, pos);
  const values = known
    ? Object.fromEntries(Object.entries(tokens.values).map(([of, all]) => [of, all[run.prompts.indexOf(prompt) * run.positions + pos]]))
    : listed;
  const top = known ? Boolean(tokens.top[run.prompts.indexOf(prompt) * run.positions + pos]) : true;
  const given = { state, run, row, name, prompt, pos, quantity, tokens, around, values, top, known };
  return [
    ...heading,
    el(
      "div",
      { class: "grid text" },
      el("div", { class: "column" }, textCard(given), known && allHeadsCard(given)),
      el("div", { class: "column" }, tokenCard(given), tokenPartsCard(given)),
    ),
    list,
  ].filter(Boolean);
}

function textCard({ state, run, name, prompt, pos, quantity, tokens, around, values, known }) {
  const of = known ? tokens.values[quantity] : null;
  const at = run.prompts.indexOf(prompt) * run.positions;
  const middle = quantity === "scale_ratio" ? 1 : 0;
  const range = sizeOf([...tokens.values[quantity]].map((value) => value - middle), 0.995);
  const valueOf = (place) => (known ? of[at + place] : place === pos ? values[quantity] : NaN);
  const isTop = (place) => (known ? Boolean(tokens.top[at + place]) : place === pos);
  const place = (to) => address(state, { token: `${prompt}.${to}` });
  const words = around.pieces.map((piece, index) => {
    const here = around.first + index;
    const value = here < run.positions ? valueOf(here) : NaN;
    const style = shade(value, range, middle);
    const kind = ["token", here === pos && "here", here === pos + 1 && "correct", isTop(here) && here < run.positions && "best", Array.isArray(piece) && "part"];
    const next = around.pieces[index + 1];
    const telling = [
      `position ${here}: ${spoken(piece)}`,
      Number.isFinite(value) && `${QUANTITIES[quantity].label} ${number(value)}`,
      next !== undefined && `next ${spoken(next)}`,
      here === pos + 1 && "the correct token of the one that is shown",
      isTop(here) && here < run.positions && "a top token",
    ];
    const openable = known && here < run.positions;
    return el(
      openable ? "a" : "span",
      {
        class: kind.filter(Boolean).join(" "),
        href: openable ? place(here) : null,
        tabindex: openable ? (here === pos ? 0 : -1) : null,
        "aria-current": here === pos ? "true" : null,
        "aria-label": openable ? telling.filter(Boolean).join("; ") : null,
        title: telling.filter(Boolean).join("\n"),
        "data-pos": here,
        style: style ?? {},
      },
      shown(piece),
    );
  });
  const text = el("div", { class: "prompt", role: "group", "aria-label": `Text of prompt ${prompt}; arrow keys walk through its tokens, Enter shows one` }, words);
  walkText(text);
  const rows = words.map((_, index) => {
    const here = around.first + index;
    const known_ = (quantity_) => (here < run.positions ? (known ? tokens.values[quantity_][at + here] : here === pos ? values[quantity_] : null) : null);
    return {
      prompt,
      pos: here,
      token: Array.isArray(around.pieces[index]) ? `<${around.pieces[index][0]}>` : around.pieces[index],
      top: here < run.positions && isTop(here),
      ...Object.fromEntries(run.quantities(state.kind).map((quantity_) => [quantity_, known_(quantity_)])),
    };
  });
  const index = run.prompts.indexOf(prompt);
  const step = (by, sign) => {
    const other = run.prompts[index + by];
    return known && other !== undefined
      ? el("a", { class: "button", href: address(state, { token: `${other}.${Math.min(pos, run.positions - 1)}` }) }, sign(`prompt ${other}`))
      : el("span", { class: "button off" }, by < 0 ? "first prompt" : "last prompt");
  };
  return el(
    "section",
    { class: "card" },
    el(
      "div",
      { class: "cardhead" },
      el("h2", {}, `Prompt ${prompt}`),
      saveButtons({
        name: fileOf(run, name, `prompt_${prompt}_${quantity}`),
        what: `text of prompt ${prompt}`,
        picture: async () => painted(text, colours().ground),
        columns: ["prompt", "pos", "token", "top", ...run.quantities(state.kind)],
        rows: () => rows,
      }),
    ),
    el(
      "div",
      { class: "row" },
      step(-1, (other) => `← ${other}`),
      known && promptChoice(state, run, prompt, pos),
      step(1, (other) => `${other} →`),
    ),
    legend(range, quantity, middle),
    text,
    el(
      "p",
      { class: "note keys" },
      el("span", { class: "token here sample" }, "predicts from here"),
      " ",
      el("span", { class: "token correct sample" }, "correct token"),
      " ",
      el("span", { class: "token best sample" }, "top token of the head"),
      " ",
      known ? (run.whole ? "" : `The page holds a sample of ${run.prompts.length} prompts of ${count(run.settings.n_prompts)}.`) : "This prompt is not in the page's sample: only the text around the token is here.",
    ),
  );
}

function promptChoice(state, run, prompt, pos) {
  return el(
    "label",
    { class: "field inline" },
    el("span", {}, "Prompt"),
    el(
      "select",
      { name: "prompt", onchange: (event) => go(state, { token: `${event.target.value}.${pos}` }) },
      run.prompts.map((other) => el("option", { value: other, selected: other === prompt }, String(other))),
    ),
  );
}

// One stop for the tabulator; arrows go from token to token, and from line to line.
function walkText(text) {
  text.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow") || event.altKey || event.ctrlKey || event.metaKey) return;
    const links = [...text.querySelectorAll("a.token")];
    const at = links.indexOf(document.activeElement);
    if (at < 0) return;
    event.preventDefault();
    const box = links[at].getBoundingClientRect();
    let to = at + { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (Number.isNaN(to)) {
      const down = event.key === "ArrowDown";
      const boxes = links.map((link) => link.getBoundingClientRect());
      const lines = boxes.map((other) => other.top).filter((top) => (down ? top > box.top + 4 : top < box.top - 4));
      const line = down ? Math.min(...lines) : Math.max(...lines);
      const near = boxes.map((other, index) => [Math.abs(other.top - line) < 4 ? Math.abs(other.left - box.left) : Infinity, index]);
      const best = near.reduce((one, other) => (other[0] < one[0] ? other : one), [Infinity, at]);
      to = best[1];
    }
    const link = links[Math.max(0, Math.min(links.length - 1, to))];
    links.forEach((other) => other.setAttribute("tabindex", other === link ? 0 : -1));
    link.focus();
  });
}

function tokenCard({ state, run, name, prompt, pos, around, values, top }) {
  const [token, correct] = [around.pieces[pos - around.first], around.pieces[pos - around.first + 1]];
  const names = run.quantities(state.kind).slice().sort((a, b) => order(a) - order(b));
  const rows = names.map((quantity) => ({ quantity, value: values[quantity] }));
  const shownTable = table({
    caption: `Values of ${name} on this token`,
    columns: [
      { key: "quantity", label: "quantity", text: true, show: ({ quantity }) => el("a", { href: address(state, { quantity }), title: QUANTITIES[quantity].description }, QUANTITIES[quantity].label) },
      { key: "value", label: "value" },
    ],
    rows,
    current: (row) => row.quantity === state.quantity,
  });
  return el(
    "section",
    { class: "card" },
    el("div", { class: "cardhead" }, el("h2", {}, `Position ${pos}`), saveButtons({ name: fileOf(run, name, `token_${prompt}.${pos}`), what: `values of prompt ${prompt}, position ${pos}`, picture: async () => painted(shownTable, colours().ground), columns: ["quantity", "value"], rows: () => rows })),
    el("p", { class: "pair" }, el("code", {}, label(token)), el("span", { "aria-label": "is followed by" }, " → "), el("code", { class: "correct" }, label(correct)), top && el("span", { class: "badge" }, "top token")),
    shownTable,
    el("p", { class: "note" }, `In logits, but for the scale; in steps of ${run.step}. A single token has no interval.${run.counts(pos) ? "" : " No statistic counts this position."}`),
  );
}

const ORDER = ["direct_effect", "ablated_direct_effect", "logit_change", "self_repair", ...PARTS];
const order = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);

function tokenPartsCard({ state, run, name, prompt, pos, values }) {
  const names = ORDER.filter((part) => Number.isFinite(values[part]));
  const rows = names.map((part) => barRow(QUANTITIES[part].label, values, part, colourOf(part)));
  const what = `Effects and parts of ${name} on prompt ${prompt}, position ${pos}`;
  return chartCard({
    title: "Effects and parts",
    level: 2,
    name: fileOf(run, name, `token_${prompt}.${pos}_parts`),
    what,
    chart: "bars",
    rows,
    columns: ["label", "value"],
    height: 26 * rows.length + 50,
    given: { value: "logits", reach: ofBars(rows) },
    tabled: { caption: what, columns: barColumns("logits"), rows },
  });
}

// All heads at this token: each head's values are unpacked for it, so it is made when it is asked for.
function allHeadsCard({ state, run, prompt, pos, quantity }) {
  const box = el("section", { class: "card" });
  const make = el(
    "button",
    {
      type: "button",
      class: "button fit",
      onclick: async () => {
        make.disabled = true;
        make.textContent = "Reading…";
        const { heads } = run.kinds[state.kind];
        const rows = [];
        for (let row = 0; row < heads.length; row += 1) {
          const { values } = await run.tokens(state.kind, row);
          rows.push({ layer: heads[row][0], head: heads[row][1], [quantity]: values[quantity][run.prompts.indexOf(prompt) * run.positions + pos] });
        }
        const middle = quantity === "scale_ratio" ? 1 : 0;
        const card = headMap({
          title: `All heads on this token: ${QUANTITIES[quantity].label}`,
          level: 2,
          note: "Each head ablated alone, on this token. Open a cell to shade the text by that head.",
          name: fileOf(run, `prompt_${prompt}.${pos}`, `heads_${quantity}`),
          what: `${withUnit(quantity)} of every head on prompt ${prompt}, position ${pos}`,
          rows: rows.filter((row) => Number.isFinite(row[quantity])),
          of: (row) => row[quantity],
          told: (row) => number(row[quantity]),
          valueTitle: withUnit(quantity),
          range: sizeOf(rows.map((row) => row[quantity] - middle), 0.99),
          middle,
          columns: ["layer", "head", quantity],
          current: state.head,
          pick: (row) => go(state, { head: row.key }),
          links: (row) => address(state, { head: row.key }),
        });
        box.replaceWith(card);
        await card.ready();
        card.querySelector(".chart").focus();
      },
    },
    "Show all heads on this token",
  );
  box.append(el("h2", {}, "All heads on this token"), make);
  return box;
}

const SORTS = { rank: "direct effect, largest first", self_repair: "self-repair, largest first", least: "self-repair, least first" };

async function bestCard(state, run, row, best, name) {
  const parts = PARTS.filter((part) => run.quantities(state.kind).includes(part));
  const names = ["direct_effect", "logit_change", "self_repair", ...parts];
  const [by, down] = state.sort === "rank" ? ["rank", false] : [state.sort.replace(/^-/, ""), !state.sort.startsWith("-")];
  const sorted = [...best].sort((a, b) => (down ? b[by] - a[by] : a[by] - b[by]) || a.rank - b.rank);
  const rows = [];
  for (const each of sorted) rows.push({ ...each, around: await run.around(state.kind, each.prompt, each.pos) });
  const columns = [
    { key: "rank", label: "no.", show: (each) => String(each.rank) },
    { key: "text", label: "in its text", text: true, sorts: false, show: (each) => inContext(state, each) },
    ...names.map((quantity) => ({ key: quantity, label: QUANTITIES[quantity].label.replace("self-repair from", "from") })),
  ];
  const title = `Its ${best.length} best tokens in their text`;
  const shownTable = table({
    caption: `Best tokens of ${name}`,
    columns,
    rows,
    sorted: { by, down },
    onsort: (key) => go(state, { sort: key === "rank" ? "rank" : state.sort === key ? `-${key}` : key }),
    current: (each) => state.view === "token" && `${each.prompt}.${each.pos}` === state.token,
  });
  const plain = (piece) => (Array.isArray(piece) ? "" : piece);
  const saved = rows.map((each) => ({
    ...each,
    token: plain(each.around.pieces[each.pos - each.around.first]),
    correct_token: plain(each.around.pieces[each.pos - each.around.first + 1]),
  }));
  return el(
    "section",
    { class: "card best" },
    el(
      "div",
      { class: "cardhead" },
      el("h2", {}, title),
      saveButtons({ name: fileOf(run, name, "best_tokens"), what: title, picture: async () => painted(shownTable, colours().ground), columns: ["rank", "prompt", "pos", "token", "correct_token", ...run.quantities(state.kind)], rows: () => saved }),
    ),
    el("p", { class: "note" }, `Of all ${count(run.settings.n_tokens)} tokens, those with the head's largest direct effects; in logits. The headings sort.`),
    shownTable,
  );
}

const BEFORE = 12;
const AFTER = 4;

function inContext(state, { prompt, pos, around }) {
  const at = pos - around.first;
  const text = (pieces) => pieces.map(shown).join("").replace(/[↵\n]+/g, "↵ ");
  const { pieces } = around;
  const before = text(pieces.slice(Math.max(0, at - BEFORE), at));
  return el(
    "a",
    { class: "context", href: address(state, { view: "token", token: `${prompt}.${pos}` }) },
    el("span", { class: "faint" }, `${at > BEFORE || around.first ? "…" : ""}${before}`),
    el("span", { class: "here" }, shown(pieces[at])),
    el("span", { class: "correct" }, shown(pieces[at + 1])),
    el("span", { class: "faint" }, `${text(pieces.slice(at + 2, at + 2 + AFTER))}…`),
  );
}
