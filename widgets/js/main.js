// The doors: render for anywidget in JupyterLab, mount for the static site.

const VIEWS = { explorer, breakeven, roofline, reveal, formats, energy, raster, bits, circuit };
const GIVEN = { formats: [], energy: [], raster: ["networks", "inputs"], bits: [], circuit: [] }; // what a view's call is given before its keywords, where that isn't trials
const LISTS = new Set(["techniques", "roofs", "front"]); // what a state holds several of
const mounted = new Map(); // id in the page -> {view, follow(state)}

/** A view in a fresh element inside el; a view that throws leaves a sentence in its place. {update(data, state), remove()}. */
function shownView(el, name, data, state, onState, share) {
  const root = node("div", { class: `kpt-root kpt-${name}` });
  el.append(root);
  let made = null;

  function attempt(act) {
    try {
      act();
    } catch (error) {
      console.error(error);
      made = null;
      root.replaceChildren(node("p", { class: "kpt-problem", role: "alert" }, `This view can't be shown: ${error.message}`));
    }
  }

  function start(data, state) {
    if (!VIEWS[name]) throw new Error(`there is no view named ${name}; there are ${Object.keys(VIEWS).join(", ")}`);
    made = VIEWS[name](root, data, state, onState, share);
  }

  attempt(() => start(data, state));
  return {
    update: (newData, newState) => attempt(() => (made ? made.update(newData, newState) : start(newData, newState))),
    remove() {
      made?.remove();
      root.remove();
    },
  };
}

/** anywidget's door: traits view, data, state. */
function render({ model, el }) {
  const name = model.get("view");
  let own = null; // the state that this view wrote last, which needs no second drawing
  const share = { name: "Copy as Python", text: (state) => pythonCall(name, state) };
  const view = shownView(el, name, model.get("data"), model.get("state") ?? {}, keep, share);

  function keep(state) {
    own = JSON.stringify(state);
    model.set("state", state);
    model.save_changes();
  }

  const redraw = () => view.update(model.get("data"), model.get("state") ?? {});
  const follow = () => {
    const now = JSON.stringify(model.get("state"));
    if (now === own) return;
    own = now;
    redraw();
  };
  model.on("change:data", redraw);
  model.on("change:state", follow);
  return () => {
    model.off("change:data", redraw);
    model.off("change:state", follow);
    view.remove();
  };
}

/** "explorer(trials, workload='softmax.forward', rows=4096)". */
function pythonCall(name, state) {
  const literal = (value) => {
    if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
    if (value === null) return "None";
    if (typeof value === "boolean") return value ? "True" : "False";
    return typeof value === "number" ? String(value) : JSON.stringify(value);
  };
  const plain = Object.entries(state)
    .filter(([key]) => /^[A-Za-z_]\w*$/.test(key))
    .map(([key, value]) => `${key}=${literal(value)}`);
  const odd = Object.entries(state)
    .filter(([key]) => !/^[A-Za-z_]\w*$/.test(key))
    .map(([key, value]) => `${JSON.stringify(key)}: ${literal(value)}`);
  const first = GIVEN[name] ?? ["trials"];
  return `${name}(${[...first, ...plain, ...(odd.length ? [`**{${odd.join(", ")}}`] : [])].join(", ")})`;
}

/** The state of view `id` that the page's address holds, or null. */
function addressState(id, hash = location.hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  if (parts.get("view") !== id) return null;
  const state = {};
  for (const key of new Set(parts.keys())) {
    if (key === "view") continue;
    const values = parts.getAll(key).map((v) => (/^-?\d+(\.\d+)?(e[+-]?\d+)?$/.test(v) ? Number(v) : v));
    state[key] = LISTS.has(key) ? values.filter((v) => v !== "").map(String) : values[0];
  }
  return state;
}

/** The page's address with the state of view `id`. */
function addressOf(id, state) {
  const parts = new URLSearchParams({ view: id });
  for (const [key, value] of Object.entries(state)) {
    for (const one of Array.isArray(value) && value.length ? value : [value]) parts.append(key, String(one));
  }
  return `${location.href.split("#")[0]}#${parts}`;
}

/** The site's door: a view in el with its columns; the state in the page's address goes before the given one. */
function mount(el, name, data, state = {}) {
  const id = el.id || freeId(name);
  const asked = addressState(id);
  const share = { name: "Copy link", text: (chosen) => addressOf(id, chosen) };
  const view = shownView(el, name, data, { ...state, ...asked }, () => {}, share);
  if (!mounted.size) addEventListener("hashchange", followAddress);
  mounted.set(id, { el, follow: (found) => view.update(data, { ...state, ...found }) });
  if (asked) requestAnimationFrame(() => el.scrollIntoView({ block: "nearest" }));
  return {
    update: view.update,
    remove() {
      mounted.delete(id);
      view.remove();
    },
  };
}

function freeId(name) {
  let n = 1;
  while (mounted.has(`${name}-${n}`)) n += 1;
  return `${name}-${n}`;
}

function followAddress() {
  for (const [id, { follow }] of mounted) {
    const found = addressState(id);
    if (found) follow(found);
  }
}
