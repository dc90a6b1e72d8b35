// Columns (kpt_lab/columns.py) -> cells and rows as objects, and numbers as readers see them. Nothing here computes a statistic:
// every value, interval and verdict comes from Python.

const PREFIXES = { "-12": "p", "-9": "n", "-6": "µ", "-3": "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P" };
const PREFIXED = new Set(["s", "B", "J", "W", "FLOP", "FLOP/s", "B/s", "FLOP/J"]);

/** Significant digits, without trailing zeros where they are 3 or fewer, or an exponent where a reader can do without: 1.5, 1230, 3.2e-5. */
function digits(value, figures = 3) {
  const plain = value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6);
  if (plain && figures > 3 && Math.abs(value) < 10 ** figures) return value.toPrecision(figures); // ends of an interval: 1.040
  return plain ? Number(value.toPrecision(figures)).toString() : value.toExponential(figures - 2).replace("e+", "e");
}

/** A number with its unit: "120 µs", "1.2 GB", "3.2e-5"; "unbounded" for Infinity and "none" for null. */
function quantity(value, unit = "1", figures = 3) {
  if (value === null || value === undefined) return "none";
  if (!Number.isFinite(value)) return "unbounded";
  if (!PREFIXED.has(unit) || value === 0) return digits(value, figures) + (unit === "1" || unit === "" ? "" : ` ${unit}`);
  const rounded = Number(value.toPrecision(figures)); // 999.9e-6 is 1 ms, not 1000 µs
  const power = Math.min(Math.max(3 * Math.floor(Math.log10(Math.abs(rounded)) / 3 + 1e-9), -12), 15);
  return `${digits(rounded / 10 ** power, figures)} ${PREFIXES[power]}${unit}`;
}

/** A speedup: "1.52x"; "unbounded" for Infinity and "none" for null. */
function ratio(value, figures = 3) {
  if (value === null || value === undefined) return "none";
  return Number.isFinite(value) ? `${digits(value, figures)}x` : "unbounded";
}

/** "1.52x [1.48x, 1.55x]", or the value alone where there is no interval. `show(number, figures)` writes one number. */
function withInterval(value, low, high, show) {
  if (low === null || low === undefined || (low === high && low === value)) return show(value, 3);
  if (low === 0 && (high === null || high === undefined)) return `${show(value, 3)} [unbounded]`; // too few blocks for any end
  const figures = figuresOf(value, low, high);
  return `${show(value, figures)} [${show(low, figures)}, ${high === null || high === undefined ? "unbounded" : show(high, figures)}]`;
}

/** Significant digits with which an interval's ends differ from its value: 3, or up to 5 (what the columns carry). */
function figuresOf(value, low, high) {
  const width = Math.abs((high ?? value) - low) / Math.abs(value);
  return width > 0 ? Math.min(Math.max(Math.ceil(1.3 - Math.log10(width)), 3), 5) : 3;
}

/** A status or a metric's name for readers: "out of memory", "energy with memory". */
const spaced = (name) => String(name).replace(/[_.]/g, " ");

/** "4 rows", or "1 row". */
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : noun.endsWith("s") ? "es" : "s"}`;

/** Columns -> {cells, rows, workloads, techniques, ...}: plain objects with every index resolved to what it names. */
function decode(data) {
  if (!data || data.schema !== 1) {
    throw new Error(
      data ? `These columns have schema ${data.schema}; this page reads schema 1.` : "There are no columns to show.",
    );
  }
  const text = (i) => (i === undefined || i === null || i < 0 ? "" : data.texts[i]);
  const cells = decodedCells(data, text);
  const table = {
    title: data.title || "",
    workloads: data.workloads,
    techniques: data.techniques,
    dtypes: data.dtypes,
    targets: data.targets,
    params: data.params,
    metrics: data.metrics,
    overs: data.overs,
    ceilings: data.ceilings || [],
    styles: styleIndices(data.techniques),
    cells,
    rows: decodedRows(data, text, cells),
  };
  return table;
}

/** label -> index of its colour, dash and symbol in order of appearance; eager is grey (-1). As kpt_lab/look.py has it. */
function styleIndices(labels) {
  let next = 0;
  return Object.fromEntries(labels.map((label) => [label, label === "eager" ? -1 : next++]));
}

/** Entry i of a column; a column whose entries are all the same comes as that entry alone. */
const entry = (column, i) => (Array.isArray(column) ? column[i] : column);

function decodedCells(data, text) {
  const columns = data.cells;
  const names = data.params.filter((name) => columns.params[name] !== undefined);
  return columns.workload.map((workload, i) => {
    const params = {};
    for (const name of names) {
      const value = entry(columns.params[name], i);
      if (value !== null && value !== undefined) params[name] = value;
    }
    return {
      index: i,
      workload: data.workloads[workload],
      dtype: data.dtypes[entry(columns.dtype, i)],
      target: data.targets[entry(columns.target, i)] ?? "",
      ceiling: data.ceilings?.[entry(columns.ceiling, i)] ?? null,
      environment: data.environments[entry(columns.environment, i)] ?? { text: "", device: "", elsewhere: "" },
      params,
      bound: entry(columns.bound, i),
      boundSource: text(entry(columns.bound_source, i)),
      copy: entry(columns.copy, i),
      floorLow: entry(columns.floor_low, i),
      floorHigh: entry(columns.floor_high, i),
      flops: entry(columns.flops, i),
      arithmetic: text(entry(columns.arithmetic, i)),
      bytes: entry(columns.bytes, i),
      at: entry(columns.at, i),
      cache: text(entry(columns.cache, i)),
      command: text(entry(columns.command, i)),
      predicted: predictions(columns.predicted, i, text),
    };
  });
}

/** {over: {value, text}} of what the bound predicts for each baseline. */
function predictions(columns, i, text) {
  const found = {};
  for (const [over, column] of Object.entries(columns || {})) {
    const value = entry(column.value, i);
    if (value !== null && value !== undefined)
      found[over] = { value, text: text(entry(column.text, i)), copy: entry(column.copy, i) ?? null };
  }
  return found;
}

function decodedRows(data, text, cells) {
  const columns = data.rows;
  const metrics = Object.entries(columns.metrics || {});
  const ratios = Object.entries(columns.ratios || {});
  return columns.cell.map((cell, i) => {
    const row = {
      index: i,
      cell: cells[cell],
      technique: data.techniques[entry(columns.technique, i)],
      status: data.statuses[entry(columns.status, i)],
      advice: text(entry(columns.advice, i)),
      processes: entry(columns.processes, i),
      blocks: entry(columns.blocks, i),
      contract: text(entry(columns.contract, i)),
      stale: text(entry(columns.stale, i)),
      unknown: text(entry(columns.unknown, i)),
      baseline: Boolean(entry(columns.baseline, i)),
      metrics: {},
      ratios: {},
      predicted: predictions(columns.predicted, i, text),
    };
    for (const [name, column] of metrics) {
      const value = entry(column.value, i);
      if (value === null) continue;
      const provenance = data.provenances[entry(column.provenance, i)] ?? "";
      row.metrics[name] = {
        value,
        low: entry(column.low, i),
        high: entry(column.high, i),
        provenance,
        unit: data.metrics[name].unit,
      };
    }
    for (const [over, column] of ratios) {
      row.ratios[over] = {
        value: entry(column.value, i),
        low: entry(column.low, i),
        high: entry(column.high, i),
        verdict: data.verdicts[entry(column.verdict, i)] ?? "",
        over: data.techniques[entry(column.over, i)] ?? "",
        reason: text(entry(column.reason, i)),
      };
    }
    return row;
  });
}
