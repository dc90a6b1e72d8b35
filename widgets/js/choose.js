// What map, roofline and reveal share: choosing cells by what they have in common, boards of controls, and facts in words.

/** What tells cells apart, in the order in which a reader chooses: {key, label, of(cell)}. */
function facetsOf(table) {
  const plain = [
    ["workload", "workload", (cell) => cell.workload],
    ["target", "target", (cell) => cell.target],
    ["dtype", "data type", (cell) => cell.dtype],
    ["environment", "machine", (cell) => cell.environment.text],
    ["cache", "cache", (cell) => cell.cache],
  ].map(([key, label, of]) => ({ key, label, of }));
  const params = table.params.map((name) => ({ key: name, label: name, param: true, of: (cell) => cell.params[name] }));
  return [...plain, ...params];
}

/** The different values of a facet among cells: numbers by size, the rest in order of appearance; cells without it don't count. */
function valuesOf(cells, facet) {
  const found = [...new Set(cells.map(facet.of))].filter((v) => v !== null && v !== undefined && v !== "");
  return found.every((v) => typeof v === "number") ? found.sort((a, b) => a - b) : found;
}

/** The most frequent value; the first among equals. */
function commonest(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].reduce((best, each) => (each[1] > best[1] ? each : best), [undefined, 0])[0];
}

/** Cells that share one value of each facet: the state's where it exists, else the commonest. Also the choices that were made. */
function narrowed(cells, wanted, state) {
  const chosen = [];
  for (const facet of wanted) {
    const options = valuesOf(cells, facet);
    if (!options.length) continue;
    const value = options.includes(state[facet.key]) ? state[facet.key] : commonest(cells.map(facet.of).filter((v) => options.includes(v)));
    chosen.push({ facet, options, value });
    cells = cells.filter((cell) => facet.of(cell) === value);
  }
  return { cells, chosen };
}

/** The control of a narrowed facet, as a board takes it: a slider where the values are numbers. */
function facetControl({ facet, options, value }, change) {
  const kind = options.every((v) => typeof v === "number") ? "slider" : "select";
  return { key: `facet ${facet.key}`, kind, label: facet.label, options, value, pick: (v) => change({ [facet.key]: v }) };
}

/** "data type float32, rows 128": what a reader can't change here because there is only one. */
function conditions(chosen) {
  return chosen.filter((c) => c.options.length === 1).map((c) => (["environment", "workload"].includes(c.facet.key) ? c.options[0] : `${c.facet.label} ${c.options[0]}`).replace(/\.$/, ""));
}

/** A row of controls that keeps those that stay, and their focus, when the choices change. */
function board(className) {
  const element = node("div", { class: `kpt-controls ${className}` });
  const made = new Map();

  function show(wanted) {
    const specs = wanted.filter((spec) => spec.always || spec.options.length > 1);
    for (const spec of specs) {
      const id = `${spec.kind} ${spec.key}`;
      const known = made.get(id);
      if (known) {
        known.pick = spec.pick;
        known.control.set(spec.value, spec.options);
      } else {
        const entry = { pick: spec.pick };
        entry.control = { select, slider, checks }[spec.kind](spec.label, spec.options, spec.value, (v) => entry.pick(v));
        made.set(id, entry);
      }
    }
    const elements = specs.map((spec) => made.get(`${spec.kind} ${spec.key}`).control.element);
    for (const child of [...element.children]) if (!elements.includes(child)) child.remove();
    elements.forEach((each, i) => {
      if (element.children[i] !== each) element.insertBefore(each, element.children[i] ?? null); // one that stays keeps its focus
    });
  }

  return { element, show };
}

/** "1.52x [1.50x, 1.54x] FASTER". */
function ratioWords(found) {
  return withInterval(found.value, found.low, found.high, ratio) + (found.verdict ? ` ${found.verdict}` : "");
}

/** "12.3 µs [12.1 µs, 12.5 µs]" for a metric of a row. */
function metricWords(found) {
  return withInterval(found.value, found.low, found.high, (v, figures) => quantity(v, found.unit, figures));
}

/** "rows 128, cols 4096" of a cell. */
function placeWords(cell) {
  return Object.entries(cell.params)
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");
}

/** The columns decoded: {...table, byCell: rows of each cell, facets, baselines: techniques that are one somewhere}. */
function indexed(data) {
  const table = decode(data);
  const byCell = new Map(table.cells.map((cell) => [cell, []]));
  for (const row of table.rows) byCell.get(row.cell).push(row);
  return { ...table, byCell, facets: facetsOf(table), baselines: new Set(table.rows.filter((row) => row.baseline).map((row) => row.technique)) };
}

function rowOf(table, cell, technique) {
  return table.byCell.get(cell).find((row) => row.technique === technique);
}

function hasRatio(row, over) {
  const value = row?.ratios[over]?.value;
  return value !== null && value !== undefined;
}

/** The least time that the hardware allows: the technique's own where it uses other arithmetic than its cell, or null. */
const boundOf = (cell, row) => row?.metrics.bound?.value ?? cell.bound ?? null;

/** Why a technique has no ratio in a cell: short, for where there is little room, and in a sentence. */
function absence(row, found) {
  if (!row) return ["not measured", "This technique was not measured here."];
  if (row.status !== "ok") return [spaced(row.status), row.advice || `Its status is ${row.status}.`];
  return [row.baseline ? "the baseline" : "not comparable", found?.reason || "There is no ok result to compare it with."];
}

const share = (part) => `${(100 * part).toPrecision(3).replace(/\.?0+$/, "")}%`;

/** A definition list of [term, text or node]. */
function factList(facts) {
  return node("dl", {}, facts.map(([term, text]) => [node("dt", {}, term), node("dd", {}, text)]).flat());
}

/** The row of buttons under a view: the one that copies it as a link or a call, where there is one. */
function shareRow(sharing, state) {
  return sharing ? node("div", { class: "kpt-actions" }, copyButton(sharing.name, () => sharing.text(state())).element) : null;
}

/** A list out of a state, where a page's address may have made a single text of it; null where it names none. */
function listed(value) {
  return value === undefined || value === null ? null : [value].flat();
}
