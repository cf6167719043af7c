// All heads of all models: maps by layer and head, layers' means, and the heads in order.

const MOST = 15;

// A model that can be shown: of a run, or published with the paper.
function shelves() {
  const own = RUNS.map((run) => ({ id: run.id, run, title: run.model, about: `on ${run.corpus}` }));
  const published = Object.keys(PUBLISHED).map((model) => ({ id: model, published: model, title: DATA.names[model], about: "published" }));
  return [...own, ...published];
}

async function headsOf(shelf, state) {
  if (shelf.published) return state.selection === "top" ? PUBLISHED[shelf.published] : [];
  const kind = state.kind in shelf.run.kinds ? state.kind : null;
  if (!kind) return [];
  return (await shelf.run.tables(kind)).heads.filter((row) => row.selection === state.selection);
}

async function overview(state) {
  const { quantity, show } = state;
  const all = shelves();
  const wanted = state.models === undefined ? all.map(({ id }) => id) : state.models.split(",");
  const models = all.filter(({ id }) => wanted.includes(id));
  const width = show === "width";
  const of = (row) => (width ? row[`${quantity}_high`] - row[`${quantity}_low`] : (row[quantity] ?? NaN));
  const kept = [];
  for (const shelf of models) {
    const rows = (await headsOf(shelf, state)).filter((row) => row[quantity] !== undefined && row[quantity] !== null);
    kept.push({ shelf, rows: width ? rows.filter((row) => Number.isFinite(of(row)) && row[`${quantity}_low`] !== undefined) : rows });
  }
  const values = kept.flatMap(({ rows }) => rows.map(of));
  const together = sizeOf(values);
  const valueTitle = width ? `width of the 95% interval: ${withUnit(quantity)}` : withUnit(quantity);
  const means = Object.fromEntries(
    await Promise.all(models.filter(({ run }) => run && state.kind in run.kinds).map(async ({ id, run }) => [id, (await run.tables(state.kind)).model.find((row) => row.selection === state.selection)])),
  );
  const cards = kept.map(({ shelf, rows }) => modelCard(state, { mean: means[shelf.id], shelf, rows, of, width, valueTitle, range: state.range === "own" ? sizeOf(rows.map(of)) : together }));
  const shared = state.kind === "resample" ? "" : ` The published values are of resampling, not of ${state.kind} ablation.`;
  return [
    el("h1", {}, capital(`${QUANTITIES[quantity].label} of every head`)),
    el("p", { class: "lead" }, `${describe(quantity)} A cell is a head, by layer and head; open one for its tokens.${shared}`),
    chooser(state, all, wanted),
    el("div", { class: "grid maps" }, cards),
    ...(width ? [] : [await layersCard(state, kept)]),
    ...kept.filter(({ shelf, rows }) => shelf.run && rows.length).map(({ shelf, rows }) => rankCard(state, shelf, rows)),
  ];
}

const describe = (name) => {
  const of = QUANTITIES[name];
  const text = `${of.label}${of.unit ? `, in ${of.unit} of the correct token` : ""}: ${of.description}.`;
  return capital(text);
};

function chooser(state, all, wanted) {
  const box = ({ id, title, about }) =>
    el(
      "label",
      { class: "check" },
      el("input", {
        type: "checkbox",
        checked: wanted.includes(id),
        onchange: (event) => {
          const now = all.map((shelf) => shelf.id).filter((other) => (other === id ? event.target.checked : wanted.includes(other)));
          go(state, { models: now.length === all.length ? undefined : now.join(",") });
        },
      }),
      `${title} `,
      el("span", { class: "faint" }, about),
    );
  return el("div", { class: "row" }, [
    choice(state, "show", "Shown", { value: "value", width: "width of the interval" }),
    choice(state, "range", "Colours", { shared: "one range for all", own: "a range each" }),
    el("fieldset", {}, el("legend", {}, "Models"), el("div", { class: "checks" }, all.map(box))),
  ]);
}

function choice(state, name, title, options) {
  return el(
    "label",
    { class: "field" },
    el("span", {}, title),
    el(
      "select",
      { name, onchange: (event) => go(state, { [name]: event.target.value }) },
      Object.entries(options).map(([value, text]) => el("option", { value, selected: state[name] === value }, text)),
    ),
  );
}

function modelCard(state, { mean, shelf, rows, of, width, valueTitle, range }) {
  const { quantity } = state;
  const name = `self-repair_${shelf.id.replace("/", "_")}_${state.selection}_${quantity}${width ? "_width" : ""}`;
  if (!rows.length) {
    const why = shelf.published
      ? width || state.selection === "all"
        ? "The paper's files have means over top tokens only, without intervals."
        : "The paper's files do not have this quantity."
      : `This run has no heads with it: ${state.kind} ablation, ${state.selection === "top" ? "top" : "all"} tokens.`;
    return el("section", { class: "card" }, el("h2", {}, shelf.title, " ", el("span", { class: "faint" }, shelf.about)), el("p", { class: "note" }, why));
  }
  const columns = ["layer", "head", quantity, `${quantity}_low`, `${quantity}_high`].filter((column) => column in rows[0]);
  const told = (row) => (width ? number(of(row)) : withInterval(row, quantity));
  const open = (row) => ({ view: "head", run: shelf.id, head: `${row.layer}.${row.head}` });
  return headMap({
    title: [shelf.title, " ", el("span", { class: "faint" }, shelf.about)],
    level: 2,
    note: mapNote(shelf, rows, state, mean, range),
    name,
    what: `${valueTitle}, heads of ${nameOf(shelf)}`,
    rows,
    of,
    told,
    valueTitle,
    range,
    columns,
    pick: shelf.run && ((row) => go(state, open(row))),
    links: shelf.run && ((row) => address(state, open(row))),
  });
}

function mapNote(shelf, rows, state, mean, range) {
  const beyond = `Beyond ${number(range, 2)} colours do not change.`;
  if (shelf.published) return `${rows.length} heads, published values without intervals; they cannot be opened. ${beyond}`;
  const { settings } = shelf.run;
  const tokens = state.selection === "top" ? `means over the ${topShare(settings)} top tokens of each head` : `means over ${count(settings.n_tokens)} tokens`;
  const all = mean && Number.isFinite(mean[state.quantity]) ? ` All heads: ${withInterval(mean, state.quantity)}.` : "";
  return `${rows.length} heads, ${tokens}; ${settings.n_prompts} prompts, weights ${settings.weights}.${all} ${beyond}`;
}

// A name that no other has: a run may have a published model too, or one model on several texts. Names in a config hold no comma.
function nameOf({ id, run, title }) {
  if (!run) return `${title}, published`;
  return RUNS.filter(({ model }) => model === run.model).length > 1 ? id : title;
}

async function layersCard(state, kept) {
  const { quantity } = state;
  const rows = [];
  for (const { shelf, rows: heads } of kept) {
    const depth = Math.max(...heads.map((row) => row.layer)) || 1;
    if (shelf.run) {
      const layers = (await shelf.run.tables(state.kind)).layers.filter((row) => row.selection === state.selection);
      for (const row of layers) {
        rows.push({ model: nameOf(shelf), published: false, layer: row.layer, depth: row.relative_depth, value: row[quantity], low: row[`${quantity}_low`], high: row[`${quantity}_high`], told: withInterval(row, quantity) });
      }
    } else {
      for (let layer = 0; heads.length && layer <= depth; layer += 1) {
        const of = heads.filter((row) => row.layer === layer).map((row) => row[quantity]);
        const value = of.reduce((sum, each) => sum + each, 0) / of.length;
        rows.push({ model: nameOf(shelf), published: true, layer, depth: layer / depth, value, low: null, high: null, told: number(value) });
      }
    }
  }
  const shownRows = rows.filter((row) => Number.isFinite(row.value));
  const models = [...new Set(shownRows.map((row) => row.model))];
  const looks = models.map((title) => {
    const { run, published } = shelves().find((shelf) => nameOf(shelf) === title);
    const { run: own, published: theirs } = DATA.models[theme];
    return run ? own[run.model] : theirs[published];
  });
  const columns = ["model", "layer", "depth", "value", "low", "high"];
  return chartCard({
    title: capital(`${QUANTITIES[quantity].label} by layer`),
    level: 2,
    note: "Means over the heads of a layer, by relative depth (0: first layer, 1: last); band: 95% bootstrap interval over prompts. Published means have none.",
    name: `self-repair_layers_${state.selection}_${quantity}`,
    what: `${withUnit(quantity)} by layer`,
    chart: "layers",
    rows: shownRows,
    columns,
    height: 260 + 14 * models.length,
    given: {
      value: withUnit(quantity),
      models,
      colours: looks.map(({ colour }) => colour),
      dashes: looks.map(({ dash }) => dash),
      reach: reach(shownRows.flatMap((row) => [row.value, row.low, row.high])),
    },
    tabled: {
      caption: `${withUnit(quantity)} by layer`,
      columns: [
        { key: "model", label: "model", text: true, show: (row) => row.model },
        { key: "layer", label: "layer", show: (row) => String(row.layer) },
        { key: "told", label: withUnit(quantity), show: (row) => row.told },
      ],
      rows: shownRows,
    },
  });
}

function rankCard(state, shelf, rows) {
  const { quantity } = state;
  const parts = PARTS.filter((part) => part in rows[0]);
  const names = [...new Set([quantity, "direct_effect", "logit_change", "self_repair", ...parts])].filter((name) => name in rows[0]);
  const ordered = [...rows].sort((a, b) => b[quantity] - a[quantity]);
  const columns = [
    { key: "head", label: "head", text: true, show: (row) => el("a", { href: address(state, { view: "head", run: shelf.id, head: `${row.layer}.${row.head}` }) }, headName(row.layer, row.head)) },
    ...names.map((name) => ({ key: name, label: QUANTITIES[name].label, show: (row) => valueCell(row, name) })),
  ];
  const saved = ["layer", "head", "n_tokens", ...names.flatMap((name) => [name, `${name}_low`, `${name}_high`])];
  const title = `Heads of ${shelf.title} by ${QUANTITIES[quantity].label}`;
  const first = table({ caption: title, columns, rows: ordered.slice(0, MOST) });
  return el(
    "section",
    { class: "card" },
    el("div", { class: "cardhead" }, el("h2", {}, title), saveButtons({ name: `self-repair_heads_${shelf.id.replace("/", "_")}_${state.selection}`, what: title, picture: async () => painted(first, colours().ground), columns: saved, rows: () => ordered })),
    el("p", { class: "note" }, `The ${Math.min(MOST, ordered.length)} largest of ${ordered.length}, with 95% intervals over prompts.`),
    first,
    ordered.length > MOST && lazyTable({ summary: `All ${ordered.length} heads`, caption: `${title}, all`, columns, rows: ordered }),
  );
}

function valueCell(row, name) {
  const of = interval(row, name);
  return [number(row[name]), of && el("span", { class: "interval" }, ` ${of}`)];
}
