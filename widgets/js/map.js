// The break-even map: two parameters as axes, the speedup of one technique over one baseline as colour. It is an HTML grid, so that
// screen readers find its rows and columns; contour and hatching are drawn by the style sheet.

const SCALE_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 5, 10, 20, 50, 100];
const NOTHING = ["not measured", "Nothing was measured here."];
const MANY_COLUMNS = 16; // from here on squares stand closer
const SHADES = 7; // colours of the diverging scale, --kpt-d0 to --kpt-d6 in the style sheet

/** Where a ratio stands on a scale that reaches from 2^-reach to 2^reach, from 0 to 1. */
function onScale(value, reach) {
  return Math.min(Math.max(0.5 + Math.log2(value) / (2 * reach), 0), 1);
}

/** The ticks of the scale; the nearest to 1x go first where their texts would touch. */
function scaleTicks(reach) {
  let ticks = SCALE_TICKS.filter((t) => Math.abs(Math.log2(t)) <= reach + 1e-9);
  for (const tick of [1.1, 0.9, 1.25, 0.8, 1.5, 0.67, 2, 0.5]) {
    if (ticks.some((t) => t !== tick && Math.abs(Math.log2(tick / t)) < reach / 4)) ticks = ticks.filter((t) => t !== tick);
  }
  return ticks;
}

/** The CSS colour of a ratio: a mixture of two neighbours of the scale, so that the theme stays in the style sheet's hands. */
function scaleColor(value, reach) {
  const at = onScale(value, reach) * (SHADES - 1);
  const below = Math.min(Math.floor(at), SHADES - 2);
  return `color-mix(in srgb, var(--kpt-d${below + 1}) ${(100 * (at - below)).toFixed(1)}%, var(--kpt-d${below}))`;
}

/** The class for text on a ratio's colour: where black and white change places in one theme or the other (contrast at least 4.5). */
function scaleText(value, reach) {
  const far = onScale(value, reach) * 2 - 1;
  if (far > 0.763 || far < -0.811) return "kpt-far";
  return Math.abs(far) > 0.505 ? "kpt-half" : "kpt-near";
}

/** Whether a parameter that varies is told by another one: in square layers out_features by in_features, which are one width. */
function follows(cells, facet, other) {
  if (facet === other || !facet.param || !other.param) return false;
  const [own, pairs] = [new Set(cells.map(facet.of)), new Set(cells.map((c) => JSON.stringify([facet.of(c), other.of(c)])))];
  return own.size > 1 && own.size === pairs.size && new Set(cells.map(other.of)).size === pairs.size;
}

/** What may be an axis of these cells, the default x and y first: parameters, and dtype or target where they vary. */
function axesOf(table, cells, asked) {
  const known = table.facets.filter((f) => f.param || f.key === "dtype" || f.key === "target");
  const own = known.filter((f, i) => asked.includes(f.key) || !known.slice(0, i).some((other) => follows(cells, f, other)));
  const counts = own.map((facet) => ({ facet, count: valuesOf(cells, facet).length }));
  const useful = counts.filter(({ facet, count }) => count > 1 || (facet.param && count));
  const order = (a, b) => Number(b.facet.param ?? false) * (b.count > 1) - Number(a.facet.param ?? false) * (a.count > 1) || b.count - a.count;
  return [...useful].reverse().sort(order).map(({ facet }) => facet);
}

/** Everything that the map shows for a state: a pure function of both. */
function mapPlan(table, state) {
  const known = table.facets;
  const [workload] = known;
  const first = narrowed(table.cells, [workload], state);
  const axes = axesOf(table, first.cells, [state.x, state.y]);
  const x = axes.find((f) => f.key === state.x) ?? axes.find((f) => f.key !== state.y);
  const y = axes.find((f) => f.key === state.y && f !== x) ?? axes.find((f) => f !== x);
  const told = (f) => [x, y].some((axis) => axis && (f === axis || follows(first.cells, f, axis)));
  const rest = narrowed(first.cells, known.filter((f) => f !== workload && !told(f)), state);
  const present = new Set(rest.cells.flatMap((cell) => table.byCell.get(cell).map((row) => row.technique)));
  const techniques = table.techniques.filter((t) => present.has(t));
  const own = techniques.filter((t) => !table.baselines.has(t));
  const formed = (technique, over) => rest.cells.filter((cell) => hasRatio(rowOf(table, cell, technique), over)).length;
  const overs = table.overs.filter((over) => techniques.some((t) => formed(t, over)));
  const over = overs.includes(state.over) ? state.over : (overs[0] ?? table.overs[0]);
  const most = [...own, ...techniques].reduce((best, t) => (formed(t, over) > formed(best, over) ? t : best), own[0] ?? techniques[0]);
  const technique = techniques.includes(state.technique) ? state.technique : most;
  const grid = gridOf(table, rest.cells, x, y, technique, over);
  return { chosen: [...first.chosen, ...rest.chosen], axes, x, y, techniques, technique, overs, over, ...grid };
}

/** Columns, rows (upwards) and squares {cell, row, found} of the map, and whether any is stale; the newest of several cells in one place. */
function gridOf(table, cells, x, y, technique, over) {
  const at = (facet, cell) => (facet ? facet.of(cell) : "");
  const columns = x ? valuesOf(cells, x) : [""];
  const lines = y ? valuesOf(cells, y) : [""];
  const squares = new Map();
  let older = 0;
  for (const cell of cells) {
    const key = JSON.stringify([at(x, cell), at(y, cell)]);
    const before = squares.get(key);
    if (before) older += 1;
    if (before && String(before.cell.at) >= String(cell.at)) continue;
    const row = rowOf(table, cell, technique);
    squares.set(key, { cell, row, found: hasRatio(row, over) ? row.ratios[over] : null });
  }
  const square = (i, j) => squares.get(JSON.stringify([columns[i], lines[j]]));
  const values = [...squares.values()].filter((s) => s.found).map((s) => Math.abs(Math.log2(s.found.value)));
  const stale = [...squares.values()].some((s) => s.found && s.row.stale);
  return { columns, lines, square, older, stale, shown: values.length, reach: Math.max(0.1, ...values) };
}

/** Whether the 1x contour runs between two squares. */
function crosses(one, other) {
  return Boolean(one?.found && other?.found) && one.found.value >= 1 !== other.found.value >= 1;
}

/** The break-even map in `root`. */
function breakeven(root, data, state = {}, onState = () => {}, sharing = null) {
  let table = indexed(data);
  let chosen = { ...state };
  let plan = null;
  let at = [0, 0]; // column and row of the square that has or would get the focus
  const controls = board("kpt-map-controls");
  const heading = node("h3");
  const under = node("p", { class: "kpt-note" });
  const place = node("div", { class: "kpt-map-place" });
  const words = node("p", { class: "kpt-map-words" });
  const details = node("div", { class: "kpt-map-details", "aria-live": "polite" });
  const view = node("div", {}, controls.element, heading, under, place, words, details, shareRow(sharing, () => chosen));
  root.append(view);

  function change(patch) {
    chosen = { ...chosen, ...patch };
    draw();
    onState({ ...chosen });
  }

  function draw() {
    plan = mapPlan(table, chosen);
    controls.show(mapControls(plan, change));
    const over = plan.over === "best baseline" ? "the best baseline" : plan.over;
    heading.textContent = plan.technique ? `Speedup of ${plan.technique} over ${over}` : "Nothing was measured here";
    under.textContent = [...conditions(plan.chosen), plan.older ? `older results left out: ${plan.older}` : ""].filter(Boolean).join("; ");
    at = [Math.min(at[0], plan.columns.length - 1), Math.min(at[1], plan.lines.length - 1)];
    const focused = place.contains(document.activeElement);
    place.replaceChildren(mapGrid(plan, heading.textContent, { say, move, open, close }), plan.shown ? scaleLegend(plan) : "");
    thinNames(place);
    words.textContent = "Point at a square, or move with the arrow keys; Enter shows details.";
    details.replaceChildren();
    mark(focused);
  }

  function squareAt([i, j]) {
    return place.querySelector(`td[data-at="${i} ${j}"]`);
  }

  function mark(focus) {
    for (const each of place.querySelectorAll("td[tabindex='0']")) each.tabIndex = -1;
    const square = squareAt(at);
    square.tabIndex = 0;
    if (focus) square.focus();
  }

  function say(text) {
    words.textContent = text;
  }

  function move(to, focus = true) {
    at = [Math.min(Math.max(to[0], 0), plan.columns.length - 1), Math.min(Math.max(to[1], 0), plan.lines.length - 1)];
    mark(focus);
  }

  function open([i, j]) {
    move([i, j]);
    for (const each of place.querySelectorAll("[aria-selected]")) each.removeAttribute("aria-selected");
    squareAt([i, j]).setAttribute("aria-selected", "true");
    const square = plan.square(i, j);
    details.replaceChildren(square?.row ? pointCard({ ...plan, metric: "speedup" }, square.row, close) : node("p", {}, mapWords(plan, i, j)));
  }

  function close() {
    details.replaceChildren();
    place.querySelector("[aria-selected]")?.removeAttribute("aria-selected");
    squareAt(at).focus();
  }

  draw();
  const watcher = new ResizeObserver(() => thinNames(place));
  watcher.observe(place);
  return {
    update(newData, newState) {
      if (newData) table = indexed(newData);
      chosen = { ...newState };
      draw();
    },
    remove() {
      watcher.disconnect();
      view.remove();
    },
  };
}

function mapControls(plan, change) {
  const named = (facet) => ({ value: facet.key, label: facet.label });
  const swap = (key, other) => (value) => change({ x: plan.x.key, y: plan.y?.key, ...(value === plan[other]?.key ? { [other]: plan[key].key } : {}), [key]: value });
  return [
    ...plan.chosen.slice(0, 1).map((c) => facetControl(c, change)),
    { key: "technique", kind: "select", label: "technique", options: plan.techniques, value: plan.technique, pick: (v) => change({ technique: v }) },
    { key: "over", kind: "select", label: "over", options: plan.overs, value: plan.over, pick: (v) => change({ over: v }) },
    { key: "x", kind: "select", label: "across", options: plan.axes.map(named), value: plan.x?.key, pick: swap("x", "y") },
    { key: "y", kind: "select", label: "upwards", options: plan.axes.map(named), value: plan.y?.key, pick: swap("y", "x") },
    ...plan.chosen.slice(1).map((c) => facetControl(c, change)),
  ];
}

/** The table of squares, the largest y first; `on` has say(text), move([i, j]), open([i, j]), close(). */
function mapGrid(plan, label, on) {
  const body = plan.lines.map((line, j) => {
    const squares = plan.columns.map((column, i) => mapSquare(plan, i, j, on));
    return node("tr", {}, plan.y ? node("th", { scope: "row" }, short(line)) : null, squares);
  });
  const top = node("tr", {}, plan.y ? node("td", { class: "kpt-map-corner" }) : null, plan.columns.map((c) => node("th", { scope: "col", "aria-label": String(c) }, node("span", {}, short(c)))));
  const names = [plan.y ? node("span", { class: "kpt-map-y" }, `${plan.y.label} ↑`) : null, node("span", { class: "kpt-map-x" }, plan.x ? `${plan.x.label} →` : "")];
  const grid = node("table", { class: plan.columns.length > MANY_COLUMNS ? "kpt-map kpt-dense" : "kpt-map", role: "grid", "aria-label": label }, node("tbody", {}, body.reverse()), node("tfoot", {}, top));
  return node("figure", { class: "kpt-map-figure" }, names[0], grid, names[1]);
}

/** Leave out the names of columns that would touch their neighbours at the present width. */
function thinNames(table) {
  const names = [...table.querySelectorAll("th[scope='col']")];
  if (!names.length) return;
  const widest = Math.max(...names.map((name) => textWidth(name.textContent))) + 8;
  const every = Math.max(1, Math.ceil(widest / Math.max(names[0].clientWidth, 1)));
  names.forEach((name, i) => {
    name.firstChild.style.visibility = i % every ? "hidden" : "";
  });
}

/** A number or name for an axis, where there is little room: 16384 -> "16384", 1048576 -> "1.05M". */
function short(value) {
  return typeof value === "number" && Math.abs(value) >= 1e5 ? quantity(value, "B").replace(/ (.?)B$/, "$1") : String(value);
}

/** A square in words: where, the ratio with its interval and verdict, or why there is none. */
function mapWords(plan, i, j) {
  const square = plan.square(i, j);
  const where = [plan.x && `${plan.x.label} ${plan.columns[i]}`, plan.y && `${plan.y.label} ${plan.lines[j]}`].filter(Boolean).join(", ");
  if (square?.found?.over === plan.technique) return `${where}: 1x, ${plan.technique} is the baseline here`;
  const since = square?.row?.stale ? "; stale: the code has changed since" : "";
  if (square?.found) return `${where}: ${ratioWords(square.found)} over ${square.found.over || plan.over}${since}`;
  const [brief, why] = square ? absence(square.row, square.row?.ratios[plan.over]) : NOTHING;
  return `${where}: ${brief}. ${why}`;
}

function mapSquare(plan, i, j, on) {
  const square = plan.square(i, j);
  const text = mapWords(plan, i, j);
  const [brief] = square?.found ? [ratio(square.found.value) + (square.row.stale ? "*" : "")] : square ? absence(square.row, square.row?.ratios[plan.over]) : NOTHING;
  const classes = ["kpt-square"];
  if (square?.found) {
    classes.push(scaleText(square.found.value, plan.reach));
    if (square.found.verdict === "UNCLEAR") classes.push("kpt-hatched");
    if (crosses(square, plan.square(i + 1, j))) classes.push("kpt-edge-right");
    if (crosses(square, plan.square(i, j + 1))) classes.push("kpt-edge-top");
  } else classes.push("kpt-absent");
  const keys = { ArrowRight: [i + 1, j], ArrowLeft: [i - 1, j], ArrowUp: [i, j + 1], ArrowDown: [i, j - 1], Home: [0, j], End: [plan.columns.length - 1, j] };
  const cell = node(
    "td",
    {
      class: classes.join(" "),
      role: "gridcell",
      tabindex: -1,
      "data-at": `${i} ${j}`,
      "aria-label": text,
      onmouseenter: () => on.say(text),
      onfocus: () => on.say(text),
      onclick: () => on.open([i, j]),
      onkeydown: (event) => {
        if (modified(event) || event.key === "Tab") return;
        event.stopPropagation();
        if (event.key in keys) on.move(keys[event.key]);
        else if (event.key === "Enter" || event.key === " ") on.open([i, j]);
        else if (event.key === "Escape") on.close();
        else return;
        event.preventDefault();
      },
    },
    node("div", { class: "kpt-square-room" }, node("span", {}, brief)),
  );
  if (square?.found) cell.style.setProperty("--kpt-square", scaleColor(square.found.value, plan.reach));
  return cell;
}

/** The colours with their ticks, and what hatching, the thick line and the asterisk mean. */
function scaleLegend({ reach, stale }) {
  const ticks = scaleTicks(reach).map((tick) => {
    const mark = node("span", { class: "kpt-scale-tick" }, ratio(tick));
    mark.style.left = `${(100 * onScale(tick, reach)).toFixed(2)}%`;
    return mark;
  });
  return node(
    "div",
    { class: "kpt-map-legend", "aria-hidden": "true" },
    node("div", { class: "kpt-scale" }, node("div", { class: "kpt-scale-bar" }), ticks),
    node("span", { class: "kpt-key" }, node("span", { class: "kpt-key-line" }), "break-even, 1x"),
    node("span", { class: "kpt-key" }, node("span", { class: "kpt-key-hatch" }), "UNCLEAR"),
    stale ? node("span", { class: "kpt-key" }, "* stale: the code has changed since") : null,
  );
}
