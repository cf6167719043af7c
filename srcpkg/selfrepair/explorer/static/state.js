// What is shown stands in the address after "#", so that a link, back and forward lead to it.

const DEFAULTS = { quantity: "self_repair", selection: "top", show: "value", range: "shared", sort: "rank", scatter: "logit_change" };
const VIEWS = { overview: "Overview", head: "Head", token: "Token" };
// What each view's address names.
const NAMED = {
  overview: ["run", "kind", "quantity", "selection", "show", "range", "models"],
  head: ["run", "kind", "quantity", "selection", "head", "scatter", "sort"],
  token: ["run", "kind", "quantity", "selection", "head", "token", "sort"],
};

function fromAddress() {
  const [view, query] = location.hash.slice(1).split("?");
  const given = Object.fromEntries(new URLSearchParams(query ?? ""));
  const state = { ...DEFAULTS, ...given, view: view in VIEWS ? view : "overview" };
  state.run = (RUNS.find(({ id }) => id === state.run) ?? RUNS[0]).id;
  const run = runOf(state);
  if (!(state.kind in run.kinds)) state.kind = run.mainKind;
  if (!DATA.measured.includes(state.quantity) && state.quantity !== "scale_ratio") state.quantity = DEFAULTS.quantity;
  if (!["top", "all"].includes(state.selection)) state.selection = DEFAULTS.selection;
  return state;
}

const runOf = (state) => RUNS.find(({ id }) => id === state.run);

function address(state, changes = {}) {
  const wanted = { ...state, ...changes };
  const usual = { ...DEFAULTS, run: RUNS[0].id, kind: runOf(wanted)?.mainKind };
  const named = NAMED[wanted.view].filter((name) => wanted[name] !== undefined && wanted[name] !== usual[name]);
  const query = named.map((name) => `${name}=${encodeURIComponent(wanted[name]).replaceAll("%2F", "/").replaceAll("%2C", ",")}`);
  return `#${wanted.view}${query.length ? `?${query.join("&")}` : ""}`;
}

function go(state, changes) {
  location.hash = address(state, changes);
}

// The same without a step of its own in the history.
function settle(state, changes) {
  Object.assign(state, changes);
  history.replaceState(null, "", address(state));
}
