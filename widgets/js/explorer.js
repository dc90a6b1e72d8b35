// The explorer: choose workload, axis, metric, baseline, techniques and the other parameters' values; see the recorded results with
// their intervals, open one, and take the figure, the data or the view along.

const MOST_MISSING = 8; // groups listed under the figure
const MOST_PLACES = 3; // conditions named for a group
const CACHED = "; this work may stay in a cache"; // what kpt_lab/columns.py adds to a bound that a cache can beat

/** Mount the explorer in root. onState(state) after each choice; share: {name, text(state)} for the button that copies the view. */
function explorer(root, data, state = {}, onState = () => {}, share = null) {
  let [table, plan, chart, open] = [indexed(data), null, null, null];
  const controls = board("kpt-explorer-controls");
  const figureBox = node("div", { class: "kpt-explorer-figure" });
  const nothing = node("p", { class: "kpt-note", role: "status" });
  const cardBox = node("div");
  const missing = node("div", { class: "kpt-lost" });
  root.replaceChildren(controls.element, figureBox, nothing, cardBox, missing, actions());
  show();

  function change(patch) {
    state = { ...state, ...patch };
    onState(state);
    close(false);
    show();
  }

  function show() {
    plan = explorerPlan(table, state);
    controls.show(explorerControls(plan, change));
    const spec = explorerSpec(plan, pick);
    const empty = !spec.series.length;
    nothing.hidden = !empty;
    nothing.textContent = empty ? emptyWords(plan) : "";
    figureBox.hidden = empty;
    if (!empty && chart) chart.update(spec);
    else if (!empty) {
      chart = plot(spec);
      figureBox.replaceChildren(chart.element);
    }
    missing.replaceChildren(...missingNodes(plan, pick));
  }

  function pick(key) {
    open = key;
    const card = pointCard(plan, table.rows[key], () => close(true));
    cardBox.replaceChildren(card);
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  function close(back) {
    cardBox.replaceChildren();
    if (back && open !== null && !figureBox.hidden) chart?.focusPoint(open);
    open = null;
  }

  function actions() {
    const name = () => `${plan.rows[0]?.cell.workload ?? "kpt-lab"}-${plan.metric}`;
    const drawn = (save) => () => {
      if (chart && !figureBox.hidden) save(chart.svg());
    };
    const buttons = [
      button(
        "Save SVG",
        drawn((element) => download(`${name()}.svg`, "image/svg+xml", svgText(element))),
      ),
      button(
        "Save PNG",
        drawn(async (element) => download(`${name()}.png`, "image/png", await pngOf(element))),
      ),
      button("Save data (CSV)", () => download(`${name()}.csv`, "text/csv", csv(csvRows(plan)))),
    ];
    if (share) buttons.unshift(copyButton(share.name, () => share.text(sharedState(plan))));
    return node(
      "div",
      { class: "kpt-actions" },
      buttons.map((b) => b.element),
    );
  }

  return {
    update(newData, newState = {}) {
      if (newData !== data) {
        table = indexed(newData);
        data = newData;
      }
      state = newState;
      close(false);
      show();
    },
    remove() {
      chart?.remove();
      root.replaceChildren();
    },
  };
}

/** The controls of a plan, as a board takes them. */
function explorerControls(plan, change) {
  const facetOf = ({ facet, options, value }) => {
    const every = { value: EVERY_VALUE, label: facet.param ? "all values" : `all: ${options.length}` };
    const numbers = facet.param && options.every((v) => typeof v === "number");
    const listed = options.length > 1 ? [...options, every] : options;
    return {
      key: `facet ${facet.key}`,
      kind: numbers ? "slider" : "select",
      label: facet.label,
      options: listed,
      value,
      pick: (v) => change({ [facet.key]: v }),
    };
  };
  const what = [
    ...(plan.overs.length ? [{ value: "speedup", label: "speedup" }] : []),
    ...plan.metrics.map((m) => ({ value: m, label: metricName(m) })),
  ];
  const overs = plan.overs.map((over) => ({ value: over, label: overName(over) }));
  const axes = plan.axes.map((name) => ({ value: name, label: name }));
  return [
    ...plan.chosen.filter((c) => !c.facet.param).map(facetOf),
    { key: "metric", kind: "select", label: "shown", options: what, value: plan.metric, pick: (v) => change({ y: v }) },
    ...(plan.metric === "speedup"
      ? [
          {
            key: "over",
            kind: "select",
            label: "speedup over",
            options: overs,
            value: plan.over,
            pick: (v) => change({ over: v }),
          },
        ]
      : []),
    { key: "x", kind: "select", label: "along", options: axes, value: plan.x, pick: (v) => change({ x: v }) },
    ...plan.chosen.filter((c) => c.facet.param).map(facetOf),
    {
      key: "techniques",
      kind: "checks",
      label: "techniques",
      options: plan.offered,
      value: plan.techniques,
      pick: (v) => change({ techniques: v }),
    },
  ];
}

/** The spec of the figure that plot draws. */
function explorerSpec(plan, onPick) {
  plan.axis = explorerAxis(plan);
  const series = explorerSeries(plan);
  const every = plan.chosen.some((c) => c.value === EVERY_VALUE);
  const shown = series.flatMap((s) => s.points.map((p) => plan.table.rows[p.key]));
  if (every) for (const s of series) s.connected = false;
  if (plan.x === "technique") plan.axis.categories = series.map((s) => s.name);
  const what = plan.metric === "speedup" ? `speedup over ${overName(plan.over)}` : metricName(plan.metric);
  const workloads = [...new Set(plan.cells.map((cell) => cell.workload))];
  const unclear = series.reduce((n, s) => n + s.points.filter((p) => p.hatched).length, 0);
  return {
    title: `${workloads.length > 2 ? "all workloads" : workloads.join(" and ")}: ${what}`,
    subtitle: conditionWords(plan, shown),
    description: `${counted(shown.length, "point")} of ${counted(series.length, "technique")}, ${unclear} of them UNCLEAR or not measured`,
    notes: explorerNotes(plan, shown),
    x: plan.axis,
    y: series.length ? explorerValueAxis(plan, series) : { kind: "linear" },
    series,
    lines: [
      ...(plan.metric === "speedup" ? [{ name: "", points: [], at: 1, color: MUTED, width: 1 }] : []),
      ...explorerLines(plan),
    ],
    bands: explorerBands(plan),
    hatchedName: shown.some((row) => (row.metrics.time?.provenance ?? "measured") !== "measured")
      ? "UNCLEAR or not measured"
      : "UNCLEAR",
    table: () => pointRows(plan, shown),
    onPick,
  };
}

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
  if (!plan.techniques.length) return "No technique is chosen: tick one above.";
  return `There is nothing to show${where.length ? ` at ${where.join(", ")}` : ""}. Choose another value, or “all values”.`;
}

/** What isn't in the figure, with its reason; its button opens the card of the first. */
function missingNodes(plan, onPick) {
  const groups = explorerMissing(plan);
  if (!groups.length) return [];
  const item = (group) => {
    const places = [...new Set(group.rows.map((row) => placeWords(row.cell)))];
    const where =
      places.length > MOST_PLACES
        ? `${places.slice(0, MOST_PLACES).join("; ")}; and ${places.length - MOST_PLACES} more`
        : places.join("; ");
    const names = [...new Set(group.rows.map((row) => row.technique))].join(", ");
    const opens = button(`${names}: ${group.status}`, () => onPick(group.rows[0].index)).element;
    opens.classList.add("kpt-link");
    return node("li", {}, opens, where ? ` at ${where}. ` : ". ", group.why);
  };
  const more =
    groups.length > MOST_MISSING
      ? [node("p", { class: "kpt-note" }, `${groups.length - MOST_MISSING} more reasons are in the data (CSV).`)]
      : [];
  return [
    node("p", { class: "kpt-heading" }, "Not in the figure"),
    node("ul", {}, groups.slice(0, MOST_MISSING).map(item)),
    ...more,
  ];
}

/** The state that reproduces a plan: only what a reader could have chosen otherwise. */
function sharedState(plan) {
  const state = {};
  for (const { facet, options, value } of plan.chosen) if (options.length > 1) state[facet.key] = value;
  if (plan.axes.length > 1) state.x = plan.x;
  state.y = plan.metric;
  if (plan.metric === "speedup") state.over = plan.over;
  if (plan.techniques.length < plan.offered.length) state.techniques = plan.techniques;
  return state;
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
