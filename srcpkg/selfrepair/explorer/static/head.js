// One head: its numbers, its tokens, what repairs it, and what was measured of chosen heads alone.

async function headView(state) {
  const run = runOf(state);
  const row = run.row(state.kind, state.head);
  const [layer, head] = state.head.split(".").map(Number);
  const name = headName(layer, head);
  if (row < 0) return missingHead(state, run, name);
  const tables = await run.tables(state.kind);
  const of = (selection) => tables.heads.find((each) => each.layer === layer && each.head === head && each.selection === selection);
  const tokens = await run.tokens(state.kind, row);
  const best = (await run.best(state.kind))[row];
  const chosen = run.chosen.some(([l, h]) => l === layer && h === head);
  const given = { state, run, row, layer, head, name, tables, of, tokens, chosen };
  return [
    el("h1", {}, name, " ", el("span", { class: "faint" }, `of ${run.model} on ${run.corpus}`)),
    el("p", { class: "lead" }, `Head ${head} of layer ${layer}, ${state.kind} ablation. ${chosen ? "One of the heads that were looked at one by one." : "Not one of the heads that were looked at one by one: neurons and donors were measured for those alone."}`),
    stepper(state, run),
    el("div", { class: "grid numbers" }, numbersCard(given), partsCard(given)),
    el("div", { class: "grid two" }, await tokensCard(given), repairersCard(given)),
    await bestCard(state, run, row, best, name),
    el("div", { class: "grid two" }, scalesCard(given), reinforcementCard(given)),
    el("div", { class: "grid two" }, ...neuronCards(given), donorsCard(given)),
  ];
}

function missingHead(state, run, name) {
  const { heads } = run.kinds[state.kind];
  return [
    el("h1", {}, name),
    el("p", { class: "lead" }, `${name} was not ablated by ${state.kind} ablation. What was:`),
    el("ul", {}, heads.slice(0, 40).map(([layer, head]) => el("li", {}, el("a", { href: address(state, { head: `${layer}.${head}` }) }, headName(layer, head))))),
    el("p", {}, el("a", { href: address(state, { kind: run.mainKind }) }, `Show ${name} under ${run.mainKind} ablation`)),
  ];
}

function stepper(state, run) {
  const { heads } = run.kinds[state.kind];
  const at = run.row(state.kind, state.head);
  const to = (step, text) => {
    const other = heads[at + step];
    return other
      ? el("a", { class: "button", href: address(state, { head: other.join("."), token: undefined }) }, text(headName(...other)))
      : el("span", { class: "button off" }, step < 0 ? "first head" : "last head");
  };
  return el(
    "div",
    { class: "row" },
    to(-1, (text) => `← ${text}`),
    headChoice(state, run),
    to(1, (text) => `${text} →`),
    el("a", { class: "button", href: address(state, { view: "overview" }) }, "All heads"),
  );
}

function headChoice(state, run) {
  return el(
    "label",
    { class: "field inline" },
    el("span", {}, "Head"),
    el(
      "select",
      { name: "head", onchange: (event) => go(state, { head: event.target.value, token: undefined }) },
      run.kinds[state.kind].heads.map(([layer, head]) =>
        el("option", { value: `${layer}.${head}`, selected: `${layer}.${head}` === state.head }, headName(layer, head)),
      ),
    ),
  );
}

const fileOf = (run, name, what) => `self-repair_${run.model}_${run.corpus}_${name}_${what}`;

function numbersCard({ state, run, name, of }) {
  const [top, all] = [of("top"), of("all")];
  const names = DATA.measured.filter((quantity) => quantity in top);
  const rows = names.map((quantity) => ({
    quantity,
    unit: QUANTITIES[quantity].unit,
    ...Object.fromEntries(
      [["top", top], ["all", all]].flatMap(([selection, values]) =>
        ["", "_low", "_high"].map((end) => [`${selection}${end}`, values ? values[quantity + end] : null]),
      ),
    ),
  }));
  const columns = [
    { key: "quantity", label: "quantity", text: true, show: ({ quantity }) => el("a", { href: address(state, { quantity }), title: QUANTITIES[quantity].description }, QUANTITIES[quantity].label) },
    { key: "top", label: `top tokens (${count(top.n_tokens)})`, show: (row) => valueCell(row, "top") },
    all && { key: "all", label: `all tokens (${count(all.n_tokens)})`, show: (row) => valueCell(row, "all") },
  ].filter(Boolean);
  const shownTable = table({ caption: `Numbers of ${name}`, columns, rows, current: (row) => row.quantity === state.quantity });
  return el(
    "section",
    { class: "card" },
    el("div", { class: "cardhead" }, el("h2", {}, "Its numbers"), saveButtons({ name: fileOf(run, name, "numbers"), what: `numbers of ${name}`, picture: async () => painted(shownTable, colours().ground), columns: ["quantity", "unit", "top", "top_low", "top_high", "all", "all_low", "all_high"], rows: () => rows })),
    el("p", { class: "note" }, `Means over tokens with 95% bootstrap intervals over prompts, in logits; fractions are pure numbers. Top tokens: the ${topShare(run.settings)} with its largest direct effects.`),
    shownTable,
  );
}

const barRow = (label_, row, name, colour, more = {}) => ({
  label: label_,
  value: row[name],
  low: row[`${name}_low`] ?? null,
  high: row[`${name}_high`] ?? null,
  colour,
  told: withInterval(row, name),
  ...more,
});

const barColumns = (title) => [
  { key: "label", label: "what", text: true, show: (row) => row.label },
  { key: "value", label: title, show: (row) => row.told },
];

function partsCard({ state, run, name, of }) {
  const values = of(state.selection) ?? of("top");
  const names = ["direct_effect", "ablated_direct_effect", "logit_change", "self_repair", ...PARTS].filter((part) => part in values);
  const rows = names.map((part) => barRow(QUANTITIES[part].label, values, part, colourOf(part)));
  const what = `Effects and parts of ${name}, ${values.selection} tokens`;
  return chartCard({
    title: "Effects, and what self-repair is made of",
    level: 2,
    note: "The parts add up to self-repair, which is the logit change less the change of the direct effect. Lines: 95% intervals.",
    name: fileOf(run, name, "parts"),
    what,
    chart: "bars",
    rows,
    columns: ["label", "value", "low", "high"],
    height: 34 * rows.length + 50,
    given: { value: "logits", reach: ofBars(rows) },
    tabled: { caption: what, columns: barColumns("logits"), rows },
  });
}

function walkDots(rows) {
  const orders = { x: [...rows].sort((a, b) => a.x - b.x), y: [...rows].sort((a, b) => a.y - b.y) };
  orders.x.forEach((row, at) => (row.atX = at));
  orders.y.forEach((row, at) => (row.atY = at));
  const steps = { ArrowLeft: ["x", "atX", -1], ArrowRight: ["x", "atX", 1], ArrowUp: ["y", "atY", 1], ArrowDown: ["y", "atY", -1] };
  return (row, key) => {
    if (!row) return orders.x[orders.x.length - 1];
    const [axis, place, step] = steps[key];
    return orders[axis][row[place] + step];
  };
}

const fromPosition = ({ settings: { first_position: first } }) => (first > 0 ? `, from position ${first} on` : "");

async function tokensCard({ state, run, row, name, tokens, of }) {
  const texts = await run.pieces_of();
  const y = state.scatter in tokens.values ? state.scatter : DEFAULTS.scatter;
  const rows = [];
  const { positions } = run;
  tokens.values.direct_effect.forEach((x, place) => {
    const [at, pos] = [Math.floor(place / positions), place % positions];
    const value = tokens.values[y][place];
    if (!run.counts(pos) || !Number.isFinite(x) || !Number.isFinite(value)) return;
    const prompt = run.prompts[at];
    const pieces = texts.get(prompt);
    rows.push({
      key: `${prompt}.${pos}`,
      prompt,
      pos,
      x,
      y: value,
      group: tokens.top[place] ? "top tokens" : "other tokens",
      token: label(pieces[pos]),
      correct: label(pieces[pos + 1]),
      place: `${prompt}, ${pos}`,
      saved: { prompt, pos, token: pieces[pos], correct_token: pieces[pos + 1], top: Boolean(tokens.top[place]), direct_effect: x, [y]: value },
    });
  });
  rows.sort((a, b) => (a.group < b.group ? -1 : a.group > b.group ? 1 : 0));
  const [low, high] = reach(rows.map((each) => each.x));
  const slope = { logit_change: -1, self_repair: 1 }[y];
  const told = { logit_change: "y = −x: nothing is repaired", self_repair: "y = x: all is repaired" }[y];
  const line = slope
    ? [[low, null], [0.55 * high, told], [high, null]].map(([x, text]) => ({ x, y: slope * x, label: text }))
    : [{ x: low, y: 0, label: null }, { x: high, y: 0, label: null }];
  const names = run.quantities(state.kind).filter((quantity) => quantity !== "direct_effect");
  const what = `${QUANTITIES[y].label} against direct effect of ${name}, a dot a token`;
  const card = chartCard({
    title: "Its tokens",
    level: 2,
    note: `A dot is a token: ${count(rows.length)} of ${run.whole ? "all " : `a sample of ${run.prompts.length} prompts of `}${count(run.settings.n_prompts)}${run.whole ? " prompts" : ""}${fromPosition(run)}. Open one to read it in its text.`,
    name: fileOf(run, name, `tokens_${y}`),
    what,
    chart: "tokens",
    rows,
    line,
    canvas: true,
    columns: rows.length ? Object.keys(rows[0].saved) : [],
    height: 380,
    given: {
      x: withUnit("direct_effect"),
      y: withUnit(y),
      colour: colourOf(y),
      reach_x: reach([low, high]),
      reach_y: reach(rows.map((each) => each.y)),
    },
    told: (each) => `${spoken(each.token)}, next ${spoken(each.correct)}, prompt ${each.prompt}, position ${each.pos}: direct effect ${number(each.x)}, ${QUANTITIES[y].label} ${number(each.y)}`,
    next: walkDots(rows),
    pick: (each) => go(state, { view: "token", token: each.key }),
    tabled: {
      summary: "Top tokens as a table",
      caption: `Top tokens of ${name} on the page`,
      columns: [
        { key: "place", label: "prompt, position", show: (each) => el("a", { href: address(state, { view: "token", token: each.key }) }, each.place) },
        { key: "token", label: "token", text: true, show: (each) => el("code", {}, each.token) },
        { key: "correct", label: "correct next", text: true, show: (each) => el("code", {}, each.correct) },
        { key: "x", label: withUnit("direct_effect") },
        { key: "y", label: withUnit(y) },
      ],
      rows: rows.filter((each) => each.group === "top tokens").sort((a, b) => b.x - a.x),
    },
  });
  card.querySelector(".cardhead").after(
    el("div", { class: "row" }, choice(state, "scatter", "Against direct effect", Object.fromEntries(names.map((quantity) => [quantity, QUANTITIES[quantity].label])))),
  );
  return card;
}

function repairersCard({ state, run, layer, head, name, tables, of }) {
  const whole = of("top");
  const single = tables.repairers
    .filter((each) => each.layer === layer && each.head === head)
    .map((each) => {
      const mlp = each.by === "mlp";
      const title = mlp ? `MLP of layer ${each.by_layer}` : headName(each.by_layer, each.by_head);
      const target = mlp ? null : `${each.by_layer}.${each.by_head}`;
      return barRow(title, each, "repair", colourOf(mlp ? "self_repair_from_mlps" : "self_repair_from_heads"), { target });
    });
  const norms = ["self_repair_from_layernorm", "self_repair_from_postnorms"]
    .filter((part) => part in whole)
    .map((part) => barRow(part.endsWith("layernorm") ? "final norm" : "post-norms", whole, part, colourOf(part), { target: null }));
  const rows = [...single, ...norms].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const what = `What repairs ${name}: means over its top tokens`;
  return chartCard({
    title: "What repairs it",
    level: 2,
    note: `Change of a component's direct effect when ${name} is ablated, mean over its top tokens with 95% intervals: the ${single.length} components of largest size, chosen on the same tokens, so that they are likely too large; and the norm. All together: self-repair, ${withInterval(whole, "self_repair")} logits.`,
    name: fileOf(run, name, "repairers"),
    what,
    chart: "bars",
    rows,
    columns: ["label", "value", "low", "high"],
    height: 24 * rows.length + 60,
    given: { value: "repair (logits)", reach: ofBars(rows) },
    tabled: {
      caption: what,
      columns: [
        { key: "label", label: "what", text: true, show: (each) => (each.target && run.row(state.kind, each.target) >= 0 ? el("a", { href: address(state, { head: each.target }) }, each.label) : each.label) },
        { key: "value", label: "repair (logits)", show: (each) => each.told },
      ],
      rows,
    },
  });
}

function scalesCard({ run, layer, head, name, tables, tokens }) {
  const known = (value, place) => run.countsPlace(place) && Number.isFinite(value);
  const ratios = tokens.values.scale_ratio;
  const groups = {
    "all tokens": ratios.filter(known),
    "top tokens": ratios.filter((value, place) => known(value, place) && tokens.top[place]),
  };
  const sorted = Float64Array.from(groups["all tokens"]).sort();
  const [low, high] = [0.005, 0.995].map((share) => sorted[Math.floor(share * (sorted.length - 1))]);
  const reachOf = Math.max(Math.abs(low - 1), Math.abs(high - 1), 0.005);
  const bins = 30;
  const size = (2 * reachOf) / bins;
  const rows = Object.entries(groups).flatMap(([group, values]) => {
    const counts = new Array(bins).fill(0);
    for (const value of values) counts[Math.max(0, Math.min(bins - 1, Math.floor((value - 1 + reachOf) / size)))] += 1;
    return counts.map((each, at) => {
      const from = 1 - reachOf + at * size;
      return { group, low: from, high: from + size, share: each / (values.length || 1), n: each, bin: `${at ? number(from) : "below"} to ${at < bins - 1 ? number(from + size) : "above"}` };
    });
  });
  const measured = (tables.layernorm_scale_ratio ?? []).filter((each) => each.layer === layer && each.head === head);
  const told = measured.map((each) => `${each.selection} tokens: ratio ${withInterval(each, "mean_ratio")} on average, above 1 on ${percent(each.share_above_1)} of them (${percent(each.share_above_1_low)} to ${percent(each.share_above_1_high)})`);
  const what = `Clean over ablated scale of the final norm for ${name}`;
  return chartCard({
    title: "Scale of the final norm",
    level: 2,
    note: `Clean scale over ablated scale. Above 1 the scale has shrunk, and what is left counts for more. ${told.length ? `${told.join(". ")}.` : "Means with intervals are in the tables of the chosen heads alone."} The outermost bins hold all beyond.`,
    name: fileOf(run, name, "scale_ratio"),
    what,
    chart: "scales",
    rows,
    line: [{ x: 1 }],
    columns: ["group", "low", "high", "n", "share"],
    height: 240,
    given: { reach: [1 - reachOf, 1 + reachOf], x: "clean / ablated scale", colour: colourOf("self_repair_from_layernorm") },
    tabled: {
      caption: what,
      columns: [
        { key: "bin", label: "clean / ablated scale", show: (each) => each.bin },
        { key: "group", label: "of", text: true, show: (each) => each.group },
        { key: "share", label: "share", show: (each) => percent(each.share) },
      ],
      rows,
    },
  });
}

function emptyCard(title, text) {
  return el("section", { class: "card" }, el("h2", {}, title), el("p", { class: "note" }, text));
}

function reinforcementCard({ state, run, layer, head, name, tables }) {
  const of = (tables.self_reinforcement ?? []).filter((each) => each.layer === layer && each.head === head);
  const title = "Its own output added to its input";
  if (!of.length || of[0].scale === undefined || of[0].scale === null) {
    const note = (tables.self_reinforcement ?? [])[0]?.note;
    return emptyCard(title, note ?? (state.kind === run.mainKind ? "Not measured for this head." : `Measured once, without any ablation: see ${run.mainKind} ablation.`));
  }
  const added = { own: "own output", random: "random direction", other: "another head's output" };
  const rows = of.flatMap((each) =>
    Object.entries(added)
      .filter(([from]) => Number.isFinite(each[`direct_effect_with_${from}`]))
      .map(([from, text]) => {
        const column = `direct_effect_with_${from}`;
        return { scale: each.scale, added: text, value: each[column], low: each[`${column}_low`], high: each[`${column}_high`], told: withInterval(each, column) };
      }),
  );
  const what = `Direct effect of ${name} when outputs are added to its input`;
  const labels = of.map((each) => `${each.scale} times: ${each.label}`).join(", ");
  return chartCard({
    title,
    level: 2,
    note: `Its direct effect at its top tokens, with 95% intervals; dashed: without anything added, ${withInterval(of[0], "direct_effect")} logits. ${labels}.`,
    name: fileOf(run, name, "reinforcement"),
    what,
    chart: "reinforcement",
    rows,
    line: [{ y: of[0].direct_effect }],
    columns: ["scale", "added", "value", "low", "high"],
    height: 240,
    given: {
      scales: of.map((each) => each.scale),
      reach: reach(rows.flatMap((each) => [each.value, each.low, each.high])),
      ends: [0, Math.max(...of.map((each) => each.scale)) * 1.04],
    },
    tabled: {
      caption: what,
      columns: [
        { key: "scale", label: "times", show: (each) => String(each.scale) },
        { key: "added", label: "what", text: true, show: (each) => each.added },
        { key: "value", label: "direct effect (logits)", show: (each) => each.told },
      ],
      rows,
    },
  });
}

const QUADRANTS = {
  anti_erasure: "erases less",
  negative_to_positive: "turns from erasing to writing",
  more_positive: "writes more",
  no_repair: "no neuron repairs",
};

function neuronCards({ state, run, layer, head, name, tables }) {
  const mine = (each) => each.layer === layer && each.head === head;
  const title = run.neuron_layer === null ? "Neurons" : `Neurons of the MLP of layer ${run.neuron_layer}`;
  const quadrants = (tables.erasure_quadrants ?? []).filter(mine);
  const noted = [...quadrants, ...(tables.erasure_quadrants ?? [])].find((each) => each.note);
  if (noted) return [emptyCard(title, noted.note)];
  if (!quadrants.length) return [emptyCard(title, "Measured for the chosen heads alone, under the main kind of ablation.")];
  const leaders = quadrants.map((each) => barRow(QUADRANTS[each.quadrant] ?? each.quadrant, each, "token_share", colourOf("self_repair_from_mlps")));
  const frequent = (tables.neuron_consistency ?? [])
    .filter((each) => mine(each) && each.top === 1)
    .slice(0, 8)
    .map((each) => barRow(`neuron ${each.neuron}`, each, "token_share", colours().pale));
  const rows = [...leaders, ...frequent];
  const what = `Neurons that repair ${name} most, shares of its top tokens`;
  const first = (tables.neuron_concentration ?? []).find((each) => mine(each) && each.neurons === 1);
  const share = first ? ` The MLP repairs ${withInterval(first, "mlp_repair")} logits on average; the neuron that changes most carries ${percent(first.share_of_change)} of all change (${percent(first.share_of_change_low)} to ${percent(first.share_of_change_high)}).` : "";
  return [
    chartCard({
      title,
      level: 2,
      note: `On each top token one neuron repairs most. Coloured: what it does, as shares of tokens; grey: which it is.${share}`,
      name: fileOf(run, name, "neurons"),
      what,
      chart: "bars",
      rows,
      columns: ["label", "value", "low", "high"],
      height: 22 * rows.length + 60,
      given: { value: "share of top tokens", reach: ofBars(rows) },
      tabled: { caption: what, columns: barColumns("share of top tokens"), rows },
    }),
  ];
}

function donorsCard({ state, run, layer, head, name, tables }) {
  const title = "How much is the donors' doing";
  const donors = (tables.donor_noise ?? []).find((each) => each.layer === layer && each.head === head);
  const spread = (tables.token_spread ?? []).find((each) => each.layer === layer && each.head === head);
  if (!donors && !spread) return emptyCard(title, "Measured for the chosen heads alone, under the main kind of ablation.");
  const rows = [
    donors && { what: "variance over donors (logits²)", row: donors, of: "donor_variance" },
    donors && { what: "variance over tokens (logits²)", row: donors, of: "token_variance" },
    donors && { what: "donors' share of the spread", row: donors, of: "donor_share" },
    donors && { what: `the same of a mean over ${donors.n_donors} donors`, row: donors, of: "averaged_donor_share" },
    donors && { what: "mean self-repair over tokens and donors (logits)", row: donors, of: "mean" },
    spread && { what: "share of top tokens with self-repair below zero", row: spread, of: "broken" },
    spread && { what: "share of top tokens whose logit rises", row: spread, of: "overcorrected" },
    spread && { what: "self-repair of the middle token (logits)", row: spread, of: "self_repair_q50" },
  ].filter(Boolean);
  const saved = rows.map(({ what, row, of }) => ({ what, value: row[of], low: row[`${of}_low`], high: row[`${of}_high`] }));
  const shownTable = table({
    caption: `Spread of self-repair of ${name}`,
    columns: [
      { key: "what", label: "what", text: true, show: (each) => each.what },
      { key: "value", label: "value", show: ({ row, of }) => valueCell(row, of) },
    ],
    rows,
  });
  return el(
    "section",
    { class: "card" },
    el("div", { class: "cardhead" }, el("h2", {}, title), saveButtons({ name: fileOf(run, name, "spread"), what: `spread of ${name}`, picture: async () => painted(shownTable, colours().ground), columns: ["what", "value", "low", "high"], rows: () => saved })),
    el("p", { class: "note" }, "How self-repair is spread over top tokens, and how much of that the donor prompts make."),
    shownTable,
  );
}
