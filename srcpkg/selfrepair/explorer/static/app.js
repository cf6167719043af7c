// The page: its controls, and the view that the address names.

const MAKERS = { overview, head: headView, token: tokenView };
const media = matchMedia("(prefers-color-scheme: dark)");
let asked = null;
try {
  asked = localStorage.getItem("selfrepair-theme");
} catch {
  // Pages from disk may have no memory.
}

function setTheme() {
  theme = asked ?? (media.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  const other = theme === "dark" ? "light" : "dark";
  const button = document.getElementById("theme");
  button.textContent = other === "dark" ? "Dark" : "Light";
  button.setAttribute("aria-label", `Use ${other} colours`);
  button.onclick = () => {
    asked = other;
    try {
      localStorage.setItem("selfrepair-theme", other);
    } catch {
      // As above.
    }
    setTheme();
    render();
  };
}

async function withDefaults(state) {
  const run = runOf(state);
  if (state.head === undefined || !/^\d+\.\d+$/.test(state.head)) {
    const { heads } = await run.tables(state.kind);
    const strongest = heads.filter((row) => row.selection === "top" && row.self_repair !== null).sort((a, b) => b.self_repair - a.self_repair)[0] ?? heads[0];
    state.head = `${strongest.layer}.${strongest.head}`;
  }
  if (state.view === "token" && !/^\d+\.\d+$/.test(state.token ?? "")) {
    const row = run.row(state.kind, state.head);
    const first = row < 0 ? undefined : (await run.best(state.kind))[row][0];
    state.token = first ? `${first.prompt}.${first.pos}` : `${run.prompts[0]}.0`;
  }
  return state;
}

function controls(state) {
  const run = runOf(state);
  const has = state.view === "token" ? run.quantities(state.kind) : DATA.measured;
  const known = state.view === "overview" ? has : has.filter((name) => name in QUANTITIES);
  const runs = Object.fromEntries(RUNS.map(({ id, model, corpus }) => [id, `${model} on ${corpus}`]));
  const fields = [
    RUNS.length > 1 && state.view !== "overview" && pick(state, "run", "Model and text", runs, { head: undefined, token: undefined, kind: undefined }),
    pick(state, "quantity", "Quantity", Object.fromEntries(known.map((name) => [name, withUnit(name)]))),
    pick(state, "kind", "Ablation", Object.fromEntries(kindsOf(state, run).map((kind) => [kind, kind]))),
    state.view !== "token" && pick(state, "selection", "Mean over", { top: "top tokens", all: "all tokens" }),
  ];
  return fields.filter(Boolean);
}

const kindsOf = (state, run) => (state.view === "overview" ? [...new Set(RUNS.flatMap((each) => Object.keys(each.kinds)))] : Object.keys(run.kinds));

function pick(state, name, title, options, also = {}) {
  return el(
    "label",
    { class: "field" },
    el("span", {}, title),
    el(
      "select",
      { name, onchange: (event) => go(state, { ...also, [name]: event.target.value }) },
      Object.entries(options).map(([value, text]) => el("option", { value, selected: state[name] === value }, text)),
    ),
  );
}

let turn = 0;
let last = null;

async function render() {
  turn += 1;
  const mine = turn;
  const state = await withDefaults(fromAddress());
  const main = document.getElementById("main");
  main.setAttribute("aria-busy", "true");
  const made = (await MAKERS[state.view](state)).flat().filter(Boolean);
  if (mine !== turn) return; // another view was asked for meanwhile
  const focused = keptFocus();
  document.getElementById("views").replaceChildren(
    ...Object.entries(VIEWS).map(([view, title]) => el("a", { href: address(state, { view }), "aria-current": view === state.view ? "page" : null }, title)),
  );
  document.getElementById("controls").replaceChildren(...controls(state));
  forgetCharts();
  main.replaceChildren(...made);
  document.title = `${document.querySelector("h1").textContent} – explorer of self-repair`;
  const moved = last === null || last.view !== state.view || last.head !== state.head;
  if (last !== null && moved) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
    say(document.querySelector("h1").textContent);
  } else if (focused) focused();
  last = state;
  for (const card of main.querySelectorAll(".card")) if (card.ready && mine === turn) await card.ready();
  if (mine === turn) main.removeAttribute("aria-busy");
}

// What brings the focus back to the control or token that had it, after the view is made anew.
function keptFocus() {
  const active = document.activeElement;
  const selector = active?.name ? `[name="${active.name}"]` : active?.closest?.(".prompt") ? ".token.here:not(.sample)" : null;
  const caption = active?.closest?.(".scroll")?.getAttribute("aria-label");
  const heading = active?.classList?.contains("sort") ? active.title : null;
  if (heading) return () => [...document.querySelectorAll(".scroll")].find((box) => box.getAttribute("aria-label") === caption)?.querySelector(`[title="${heading}"]`)?.focus({ preventScroll: true });
  return selector ? () => document.querySelector(selector)?.focus({ preventScroll: true }) : null;
}

document.getElementById("skip").addEventListener("click", () => {
  const main = document.getElementById("main");
  main.focus();
  main.scrollIntoView();
});
addEventListener("hashchange", render);
media.addEventListener("change", () => {
  setTheme();
  render();
});
document.getElementById("made").textContent = `Made by selfrepair ${DATA.version} of ${RUNS.map(({ id }) => id).join(", ")}. Published values: Rushing & Nanda 2024.`;
setTheme();
render();
