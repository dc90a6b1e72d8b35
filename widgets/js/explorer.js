// The explorer: choose workload, axis, metric, baseline, techniques and the other parameters' values; see the recorded results with
// their intervals, open one, and take the figure, the data or the view along.

const MOST_MISSING = 8; // groups listed under the figure
const MOST_PLACES = 3; // conditions named for a group

/** Mount the explorer in root. onState(state) after each choice; share: {name, text(state)} for the button that copies the view. */
function explorer(root, data, state = {}, onState = () => {}, share = null) {
  let [table, plan, chart, open, figureButtons] = [indexed(data), null, null, null, []];
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
    for (const each of figureButtons) each.disabled = empty;
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
    const saves = {
      "Save SVG": () => download(`${name()}.svg`, "image/svg+xml", svgText(chart.svg())),
      "Save PNG": async () => download(`${name()}.png`, "image/png", await pngOf(chart.svg())),
      "Save data (CSV)": () => download(`${name()}.csv`, "text/csv", csv(csvRows(plan))),
    };
    const buttons = Object.entries(saves).map(([text, save]) => button(text, save).element);
    figureButtons = buttons.slice(0, 2);
    if (share) buttons.unshift(copyButton(share.name, () => share.text(sharedState(plan))).element);
    return node("div", { class: "kpt-actions" }, buttons);
  }

  return {
    update(newData, newState = {}) {
      if (newData !== data) {
        const held = table.rows[open];
        table = indexed(newData);
        data = newData;
        const same = (row) =>
          row.technique === held.technique &&
          row.cell.target === held.cell.target &&
          cellWords(row.cell) === cellWords(held.cell);
        open = held ? table.rows.findIndex(same) : null; // an open card stays open while results come in
      }
      state = newState;
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
  const shown = series.flatMap((s) => s.points.map((p) => plan.table.rows[p.key]));
  if (scattered(plan)) for (const s of series) s.connected = false;
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
  if (plan.front) state.front = [...plan.front];
  return state;
}
