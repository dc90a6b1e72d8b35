// What the explorer shows for a state: a pure function of the table and the state, without the page.

const EVERY_VALUE = "all";
const BEST_BASELINE = "best baseline";
const NAMES = {
  time: "time of a call",
  wall_time: "wall time of a call",
  error: "error against float64",
  "memory.peak": "peak memory",
  "memory.held": "memory held",
};
const BOUND_LINE = "hardware bound";
const SPLIT = ["target", "environment", "cache"]; // each of these that is shown has series of its own
const WIDE = 8; // values that span more than this factor get a logarithmic axis

const metricName = (metric) => NAMES[metric] ?? spaced(metric);
const overName = (over) => (over === BEST_BASELINE ? "the best baseline" : over);

/** Cells with one value of a facet, or all of them; the state's where it exists, else the commonest. {value, options, cells}. */
function exploredFacet(cells, facet, state) {
  const options = valuesOf(cells, facet);
  const wanted = String(state[facet.key] ?? "");
  const known = options.find((v) => String(v) === wanted);
  const value =
    known ??
    (wanted === EVERY_VALUE && options.length > 1
      ? EVERY_VALUE
      : commonest(cells.map(facet.of).filter((v) => options.includes(v))));
  const kept = value === EVERY_VALUE || !options.length ? cells : cells.filter((cell) => facet.of(cell) === value);
  return { facet, options, value, cells: kept };
}

/** Everything that the explorer shows: choices with their options, the shown rows, what is missing, and the points' metric. */
function explorerPlan(table, state) {
  const known = facetsOf(table);
  let cells = table.cells;
  const chosen = [];
  for (const facet of known.filter((f) => !f.param)) {
    const choice = exploredFacet(cells, facet, state);
    cells = choice.cells;
    if (choice.options.length) chosen.push(choice);
  }
  const params = known.filter((f) => f.param).map((facet) => ({ facet, options: valuesOf(cells, facet) }));
  const varying = params.filter((p) => p.options.length > 1);
  const longest = varying.reduce((best, p) => (best && best.options.length >= p.options.length ? best : p), null);
  const axes = [...varying.map((p) => p.facet.key), "technique"];
  const x = axes.includes(state.x) ? state.x : (longest?.facet.key ?? "technique");
  for (const { facet } of params) {
    if (facet.key === x) continue;
    const choice = exploredFacet(cells, facet, state);
    if (choice.options.length) {
      cells = choice.cells;
      chosen.push({ ...choice, options: params.find((p) => p.facet === facet).options });
    }
  }
  const inside = new Set(cells);
  const everything = table.rows.filter((row) => inside.has(row.cell));
  const held = new Set(everything.map((row) => row.technique));
  const offered = table.techniques.filter((t) => held.has(t));
  const wanted = Array.isArray(state.techniques) ? new Set(state.techniques) : null;
  const techniques = wanted ? offered.filter((t) => wanted.has(t)) : offered;
  const picked = new Set(techniques);
  const rows = everything.filter((row) => picked.has(row.technique));
  const metrics = Object.keys(table.metrics).filter((m) => everything.some((row) => row.metrics[m]));
  const overs = table.overs.filter((over) => everything.some((row) => hasRatio(row, over)));
  const metric = metrics.includes(state.y) || !overs.length ? (metrics.includes(state.y) ? state.y : metrics[0]) : "speedup";
  const over = overs.includes(state.over) ? state.over : overs[0];
  const targets = new Set(cells.map((cell) => cell.target));
  const near = Array.isArray(state.front) ? state.front.filter((target) => targets.has(target)) : [];
  const front = near.length && near.length < targets.size ? new Set(near) : null; // the other devices are faded
  return { table, front, chosen, axes, x, cells, everything, offered, techniques, rows, metrics, metric, overs, over };
}

/** What a row shows under the plan's metric: {value, low, high, hatched}, or null. high may be Infinity. */
function exploredValue(plan, row) {
  if (plan.metric !== "speedup") {
    const found = row.status === "ok" ? row.metrics[plan.metric] : null;
    return found ? { ...found, hatched: found.provenance !== "measured" } : null;
  }
  if (!hasRatio(row, plan.over)) return null;
  const found = row.ratios[plan.over];
  const spread = found.low !== null || found.high !== null;
  const kind = row.metrics.time?.provenance ?? "measured";
  return {
    value: found.value,
    low: spread ? (found.low ?? 0) : null,
    high: spread ? (found.high ?? Infinity) : null,
    hatched: found.verdict === "UNCLEAR" || kind !== "measured",
  };
}

/** Which of the shown devices, machines and caches a cell is of, in words; "" where only one is shown. */
function explorerPlace(plan) {
  const every = plan.chosen.filter((c) => SPLIT.includes(c.facet.key) && c.value === EVERY_VALUE && c.options.length > 1);
  const whole = (cell) => every.map((c) => c.facet.of(cell)).join(", ");
  const found = new Set(plan.cells.map(whole));
  if (plan.x === "technique" || found.size < 2) return () => "";
  return new Set(plan.cells.map((cell) => cell.target)).size === found.size ? (cell) => cell.target : whole;
}

/** Series of the figure: one for each technique, on each device where several are shown; what is the baseline throughout is none. */
function explorerSeries(plan) {
  const place = explorerPlace(plan);
  const places = [...new Set(plan.cells.map(place))];
  const groups = new Map(
    plan.techniques.flatMap((name) => places.map((where) => [`${name}\n${where}`, { name, where, points: [] }])),
  );
  for (const row of plan.rows) {
    const shown = exploredValue(plan, row);
    if (!shown || shown.value === undefined || !(plan.axis.kind !== "log" || exploredX(plan, row) > 0)) continue;
    const x = exploredX(plan, row);
    if (x === null || x === undefined) continue;
    groups.get(`${row.technique}\n${place(row.cell)}`).points.push({
      x,
      y: shown.value,
      low: shown.low,
      high: shown.high,
      hatched: shown.hatched,
      faded: Boolean(plan.front) && !plan.front.has(row.cell.target),
      mark: row.stale ? "stale" : row.cell.environment.elsewhere ? "elsewhere" : null,
      key: row.index,
      label: () => pointWords(plan, row),
    });
  }
  const isBaseline = (row) => plan.metric === "speedup" && row.ratios[plan.over].over === row.technique;
  return [...groups.values()]
    .filter(({ points }) => points.some((p) => !isBaseline(plan.table.rows[p.key])))
    .map(({ name, where, points }) => ({ name: where ? `${name}, ${where}` : name, style: plan.table.styles[name], points }));
}

const exploredX = (plan, row) => (plan.x === "technique" ? row.technique : row.cell.params[plan.x]);

/** The x axis: a parameter's numbers, on a logarithmic scale where they span much, or categories. */
function explorerAxis(plan) {
  if (plan.x === "technique") return { kind: "category", label: "", categories: plan.techniques };
  const values = [...new Set(plan.rows.map((row) => row.cell.params[plan.x]).filter((v) => v !== undefined))];
  if (!values.length || values.some((v) => typeof v !== "number"))
    return { kind: "category", label: plan.x, categories: values.map(String).length ? values : [""] };
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return {
    kind: low > 0 && high / low >= WIDE ? "log" : "linear",
    label: plan.x,
    format: (v) => String(Number(v.toPrecision(6))),
  };
}

/** The y axis of a metric, logarithmic where the values span much. */
function explorerValueAxis(plan, series) {
  const values = series.flatMap((s) => s.points.map((p) => p.y));
  const [low, high] = [Math.min(...bounded(values, Math.min)), Math.max(...bounded(values, Math.max))];
  const wide = low > 0 && high / low > 4;
  if (plan.metric === "speedup") {
    return {
      kind: wide ? "log" : "linear",
      label: `speedup over ${overName(plan.over)}`,
      format: ratio,
      include: 1,
      reach: wide ? 2.5 : 1.6,
    };
  }
  const unit = plan.table.metrics[plan.metric].unit;
  return { kind: wide ? "log" : "linear", label: metricName(plan.metric), unit, zero: true, reach: 12 };
}

/** Whether neighbours along x may differ in what is not on the axis, so that no line may join them; places have series of their own. */
const scattered = (plan) => plan.chosen.some((c) => c.value === EVERY_VALUE && !SPLIT.includes(c.facet.key));

/** One value for each x of the cells shown: [[x, value]] sorted, or none where two cells at one x differ. */
function alongX(plan, of) {
  const found = new Map();
  for (const cell of plan.x === "technique" ? [] : plan.cells) {
    if (plan.front && !plan.front.has(cell.target)) continue;
    const value = of(cell);
    const x = cell.params[plan.x];
    if (value === null || value === undefined || x === undefined) continue;
    if (found.has(x)) return [];
    found.set(x, value);
  }
  return [...found].sort((a, b) => (typeof a[0] === "number" ? a[0] - b[0] : 0));
}

/** Lines of the hardware's bound and of a copy of the same bytes; where technique is the axis, across the panel. */
function explorerLines(plan) {
  const across = (of) =>
    plan.x === "technique" && plan.cells.length === 1
      ? plan.techniques.map((t) => [t, of(plan.cells[0])]).filter(([, v]) => v !== null && v !== undefined)
      : alongX(plan, of);
  const bound = { speedup: (cell) => cell.predicted[plan.over]?.value, time: (cell) => cell.bound }[plan.metric];
  const copy = { speedup: (cell) => cell.predicted[plan.over]?.copy, time: (cell) => cell.copy }[plan.metric];
  if (!bound) return [];
  const apart = scattered(plan);
  return [
    { name: BOUND_LINE, points: across(bound), dash: apart ? "" : "9 3", apart },
    { name: "copy of the same bytes", points: across(copy), dash: "2 3", color: MUTED, apart },
  ];
}

/** The SAME region and the noise floor of the cells, beside a speedup. */
function explorerBands(plan) {
  if (plan.metric !== "speedup") return [];
  const bands = [{ name: "SAME: within 2%", kind: "same", from: 0.98, to: 1.02 }];
  const floor = alongX(plan, (cell) =>
    cell.floorLow !== null && cell.floorHigh !== null ? [cell.floorLow, cell.floorHigh] : null,
  );
  if (floor.length && !scattered(plan))
    bands.push({
      name: "noise floor: eager against its twin",
      kind: "floor",
      points: floor.map(([x, [low, high]]) => [x, low, high]),
    });
  return bands;
}

/** What isn't in the figure and why: [{status, why, rows}], most frequent first. */
function explorerMissing(plan) {
  const groups = new Map();
  for (const row of plan.rows) {
    if (exploredValue(plan, row)) continue;
    const found = plan.metric === "speedup" ? row.ratios[plan.over]?.reason : "";
    const why =
      row.status !== "ok"
        ? row.advice || found || "No reason was recorded."
        : found || `No ${metricName(plan.metric)} was recorded.`;
    const status = row.status !== "ok" ? spaced(row.status) : plan.metric === "speedup" ? "no ratio" : "not recorded";
    const key = JSON.stringify([status, why]);
    if (!groups.has(key)) groups.set(key, { status, why, rows: [] });
    groups.get(key).rows.push(row);
  }
  return [...groups.values()].sort((a, b) => b.rows.length - a.rows.length);
}
