// The explorer's sentences, and what it shows as rows: for the table under the figure and for the CSV file.

const CACHED = "; this work may stay in a cache"; // what kpt_lab/columns.py adds to a bound that a cache can beat

/** "bfloat16 · rows 4096 · NVIDIA H100 · recorded 2026-11-22 · measured in one process: exploratory". */
function conditionWords(plan, shown) {
  const fixed = plan.chosen.filter((c) => (c.facet.param || c.facet.key === "dtype") && c.value !== undefined);
  const facts = fixed.map(({ facet, value }) =>
    value === EVERY_VALUE ? `all values of ${facet.label}` : facet.param ? `${facet.label} ${value}` : String(value),
  );
  const devices = [...new Set(plan.cells.map(deviceWords))];
  const days = [...new Set(plan.cells.map((cell) => cell.at).filter(Boolean))].sort();
  if (days.length) facts.push(`recorded ${days[0]}${days.length > 1 ? ` to ${days.at(-1)}` : ""}`);
  const kinds = [
    ...new Set(shown.map((row) => row.metrics[plan.metric]?.provenance ?? row.metrics.time?.provenance).filter(Boolean)),
  ];
  const counts = shown.map((row) => row.processes).filter(Boolean);
  const [least, most] = counts.length
    ? [Math.min(...bounded(counts, Math.min)), Math.max(...bounded(counts, Math.max))]
    : [0, 0];
  const runs = !most
    ? ""
    : most === 1
      ? " in one process: exploratory"
      : ` in ${least === most ? most : `${least} to ${most}`} processes`;
  return [devices.join(" and "), ...facts, `${kinds.join("; ")}${runs}`].filter(Boolean).join("  ·  ");
}

/** Sentences under the figure: what intervals are, which baseline was best where, where the bound comes from. */
function explorerNotes(plan, shown) {
  const notes = [];
  const several = shown.some((row) => row.processes > 1);
  if (shown.some((row) => exploredValue(plan, row).low !== null)) {
    notes.push(
      several
        ? `Shading and whiskers: the span of the medians of several processes${shown.some((row) => row.processes === 1) ? "; where there is one process, its own interval, exploratory" : ""}.`
        : "Shading and whiskers: intervals of the median within one process; restarts, which move times further, are not covered.",
    );
  }
  if (shown.some((row) => exploredValue(plan, row).high === Infinity))
    notes.push(
      shown.length > DENSE
        ? "Open symbols are UNCLEAR; intervals without an upper end, for want of blocks, have no whisker here."
        : "An arrow up: the interval has no upper end, for want of blocks.",
    );
  if (plan.metric === "speedup" && plan.over !== BEST_BASELINE)
    notes.push(`Over ${plan.over}; the headline is the speedup over the best baseline.`);
  if (plan.metric === "speedup" && plan.over === BEST_BASELINE) {
    const best = [...new Set(shown.map((row) => row.ratios[plan.over].over))].filter(Boolean);
    notes.push(
      best.length === 1
        ? `The best baseline is ${best[0]} throughout.`
        : `The best baseline is chosen at each place among ${best.join(", ")}.`,
    );
  }
  const far = plan.front ? [...new Set(plan.cells.filter((cell) => !plan.front.has(cell.target)).map(deviceWords))] : [];
  if (far.length)
    notes.push(`Faded: recorded on ${far.join(" and ")}${plan.metric === "speedup" ? ", each over its own baseline" : ""}.`);
  return explorerLines(plan).some((line) => line.name === BOUND_LINE && line.points.length)
    ? [...notes, ...boundNotes(plan)]
    : notes;
}

/** Where the bound comes from, in one or two sentences. */
function boundNotes(plan) {
  const textOf = (cell) =>
    plan.metric === "speedup" ? cell.predicted[plan.over]?.text : plan.metric === "time" ? cell.boundSource : "";
  const texts = [...new Set(plan.cells.map(textOf).filter(Boolean))];
  const [bare, ...others] = [...new Set(texts.map((text) => text.split(CACHED)[0]))];
  if (!bare) return [];
  if (others.length) return ["The bound's source differs from point to point: see a point's card."];
  const cached = texts.some((text) => text !== bare) ? " Where the work may stay in a cache, the bound can be beaten." : "";
  return [`Bound: ${bare}.${cached}`];
}

function emptyWords(plan) {
  const where = plan.chosen
    .filter((c) => c.options.length > 1 && c.value !== EVERY_VALUE)
    .map((c) => `${c.facet.label} ${c.value}`);
  if (!plan.table.rows.length) return "There are no results yet.";
  if (!plan.techniques.length) return "No technique is chosen: tick one above.";
  return `There is nothing to show${where.length ? ` at ${where.join(", ")}` : ""}. Choose another value, or “all values”.`;
}

/** Head and rows of the shown points for "Data as a table". */
function pointRows(plan, shown) {
  const params = plan.table.params.filter((name) => shown.some((row) => row.cell.params[name] !== undefined));
  const speedup = plan.metric === "speedup";
  const write = speedup ? ratio : (v, figures) => quantity(v, plan.table.metrics[plan.metric].unit, figures);
  const head = [
    "technique",
    ...params,
    speedup ? `speedup over ${overName(plan.over)}` : metricName(plan.metric),
    "low",
    "high",
    ...(speedup ? ["verdict"] : []),
    "processes",
  ];
  const rows = shown.map((row) => {
    const { value, low, high } = exploredValue(plan, row);
    const figures = low === null || low === undefined ? 3 : figuresOf(value, low, high === Infinity ? null : high);
    const ends = [low, high].map((v) => (v === null || v === undefined ? "" : write(v, figures)));
    return [
      row.technique,
      ...params.map((name) => row.cell.params[name] ?? ""),
      write(value, figures),
      ...ends,
      ...(speedup ? [row.ratios[plan.over].verdict] : []),
      row.processes,
    ];
  });
  return { head, rows };
}

/** All that is recorded of the chosen rows, those without a value too, for the CSV file. */
function csvRows(plan) {
  const { params, metrics, overs } = plan.table;
  const units = Object.entries(metrics);
  const head = [
    "workload",
    "technique",
    "dtype",
    "target",
    "device",
    ...params,
    "status",
    "advice",
    "contract",
    "processes",
    "blocks",
    "recorded",
    "stale",
  ];
  for (const [name, { unit }] of units)
    head.push(...["", " low", " high"].map((end) => `${name}${end} (${unit})`), `${name} provenance`);
  for (const over of overs)
    head.push(...["", " low", " high", " verdict", " baseline", " reason"].map((end) => `speedup over ${over}${end}`));
  head.push("environment", "command");
  const body = plan.rows.map((row) => {
    const { cell } = row;
    const line = [
      cell.workload,
      row.technique,
      cell.dtype,
      cell.target,
      cell.environment.device,
      ...params.map((p) => cell.params[p]),
    ];
    line.push(row.status, row.advice, row.contract, row.processes, row.blocks, cell.at, row.stale);
    for (const [name] of units) {
      const m = row.metrics[name];
      line.push(m?.value, m?.low, m?.high, m?.provenance);
    }
    for (const over of overs) {
      const r = row.ratios[over];
      line.push(r?.value, r?.low, r?.high, r?.verdict, r?.over, r?.reason);
    }
    line.push(cell.environment.text, cell.command);
    return line;
  });
  return [head, ...body];
}
