// Columns (kpt_lab/columns.py) -> cells and rows as objects, and numbers as readers see them. Nothing here computes a statistic:
// every value, interval and verdict comes from Python.

const PREFIXES = { "-12": "p", "-9": "n", "-6": "µ", "-3": "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P" };
const PREFIXED = new Set(["s", "B", "J", "W", "FLOP", "FLOP/s", "B/s", "FLOP/J"]);

/** Three significant digits without a trailing zero or an exponent where a reader can do without: 1.5, 1230, 3.2e-5. */
function digits(value) {
  const text = Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6 ? Number(value.toPrecision(3)).toString() : value.toExponential(1);
  return text.replace("e+", "e");
}

/** A number with its unit: "120 µs", "1.2 GB", "3.2e-5"; "unbounded" for Infinity and "none" for null. */
function quantity(value, unit = "1") {
  if (value === null || value === undefined) return "none";
  if (!Number.isFinite(value)) return "unbounded";
  if (!PREFIXED.has(unit) || value === 0) return digits(value) + (unit === "1" || unit === "" ? "" : ` ${unit}`);
  const rounded = Number(value.toPrecision(3)); // 999.9e-6 is 1 ms, not 1000 µs
  const power = Math.min(Math.max(3 * Math.floor(Math.log10(Math.abs(rounded)) / 3 + 1e-9), -12), 15);
  return `${digits(rounded / 10 ** power)} ${PREFIXES[power]}${unit}`;
}

/** A speedup: "1.52x"; "unbounded" for Infinity and "none" for null. */
function ratio(value) {
  if (value === null || value === undefined) return "none";
  return Number.isFinite(value) ? `${digits(value)}x` : "unbounded";
}

/** "1.52x [1.48x, 1.55x]", or the value alone where there is no interval. `show` writes one number. */
function withInterval(value, low, high, show) {
  if (low === null || low === undefined || (low === high && low === value)) return show(value);
  return `${show(value)} [${show(low)}, ${high === null || high === undefined ? "unbounded" : show(high)}]`;
}

/** A status or a metric's name for readers: "out of memory", "energy with memory". */
const spaced = (name) => String(name).replace(/[_.]/g, " ");

/** "4 rows", or "1 row". */
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : noun.endsWith("s") ? "es" : "s"}`;

/** Columns -> {cells, rows, workloads, techniques, ...}: plain objects with every index resolved to what it names. */
function decode(data) {
  if (!data || data.schema !== 1) {
    throw new Error(data ? `These columns have schema ${data.schema}; this page reads schema 1.` : "There are no columns to show.");
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

function decodedCells(data, text) {
  const columns = data.cells;
  return columns.workload.map((workload, i) => {
    const params = {};
    for (const name of data.params) {
      const value = columns.params[name]?.[i];
      if (value !== null && value !== undefined) params[name] = value;
    }
    return {
      index: i,
      workload: data.workloads[workload],
      dtype: data.dtypes[columns.dtype[i]],
      target: data.targets[columns.target[i]],
      environment: data.environments[columns.environment[i]] ?? { text: "", device: "", elsewhere: "" },
      params,
      bound: columns.bound[i],
      boundSource: text(columns.bound_source[i]),
      copy: columns.copy[i],
      floorLow: columns.floor_low[i],
      floorHigh: columns.floor_high[i],
      flops: columns.flops[i],
      arithmetic: text(columns.arithmetic[i]),
      bytes: columns.bytes[i],
      at: columns.at[i],
      cache: text(columns.cache[i]),
      command: text(columns.command[i]),
    };
  });
}

function decodedRows(data, text, cells) {
  const columns = data.rows;
  const metrics = Object.entries(columns.metrics || {});
  const ratios = Object.entries(columns.ratios || {});
  return columns.cell.map((cell, i) => {
    const row = {
      index: i,
      cell: cells[cell],
      technique: data.techniques[columns.technique[i]],
      status: data.statuses[columns.status[i]],
      advice: text(columns.advice[i]),
      processes: columns.processes[i],
      blocks: columns.blocks[i],
      contract: text(columns.contract[i]),
      stale: text(columns.stale[i]),
      baseline: Boolean(columns.baseline[i]),
      metrics: {},
      ratios: {},
    };
    for (const [name, column] of metrics) {
      const value = column.value[i];
      if (value === null) continue;
      const provenance = data.provenances[column.provenance[i]] ?? "";
      row.metrics[name] = { value, low: column.low[i], high: column.high[i], provenance, unit: data.metrics[name].unit };
    }
    for (const [over, column] of ratios) {
      const value = column.value[i];
      row.ratios[over] = {
        value,
        low: column.low[i],
        high: column.high[i],
        verdict: data.verdicts[column.verdict[i]] ?? "",
        over: data.techniques[column.over[i]] ?? "",
        reason: text(column.reason[i]),
      };
    }
    return row;
  });
}
