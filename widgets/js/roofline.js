// The roofline: what each technique attained, in FLOP/s, against the work per byte of its cell, under the roofs of chosen targets.
// A rate is the cell's work over the measured time: derived, and labelled so.

const EVERY = "all";
const ROOFLINE_NAMES = ["workload", "target", "dtype"];

/** Cells that agree with what the state names; a facet that it doesn't name (or calls "all") stays open. */
function filtered(cells, wanted, state) {
  const chosen = [];
  for (const facet of wanted) {
    const options = valuesOf(cells, facet);
    const value = options.includes(state[facet.key]) ? state[facet.key] : EVERY;
    chosen.push({ facet, options, value });
    if (value !== EVERY) cells = cells.filter((cell) => facet.of(cell) === value);
  }
  return { cells, chosen };
}

/** What a technique attained in a cell: {x: FLOP per byte, y, low, high: FLOP/s}, or why it can't be said. */
function attained(cell, row) {
  const time = row.metrics.time;
  if (!time) return { why: row.status === "ok" ? "it has no time" : `${spaced(row.status)}${row.advice ? `: ${row.advice}` : ""}` };
  if (!cell.flops || !cell.bytes) return { why: "its workload states no cost in FLOP and bytes" };
  const rate = (seconds) => (seconds ? cell.flops / seconds : null);
  return { x: cell.flops / cell.bytes, y: rate(time.value), low: rate(time.high), high: rate(time.low) };
}

/** The roofs of the chosen ceilings over [low, high] FLOP per byte: one line for each arithmetic type that the cells use. */
function roofs(ceilings, kinds, low, high) {
  return ceilings.filter((c) => c.bandwidth).flatMap((ceiling) => {
    const known = Object.keys(ceiling.peaks);
    const used = known.filter((kind) => kinds.includes(kind));
    if (!known.length) return [roof(ceiling, "", low, high)];
    return (used.length ? used : known.slice(0, 1)).map((kind) => roof(ceiling, kind, low, high));
  });
}

/** One roof: the slope of the bandwidth up to the peak of an arithmetic type, or all the way where no peak is known. */
function roof(ceiling, kind, low, high) {
  const peak = kind ? ceiling.peaks[kind] : Infinity;
  const ridge = peak / ceiling.bandwidth;
  const xs = [low, ridge, high].filter((x) => x >= low && x <= high);
  return { name: `${ceiling.name}, ${kind || "bandwidth only"}`, ceiling, kind, ridge, points: xs.map((x) => [x, Math.min(peak, ceiling.bandwidth * x)]) };
}

/** Everything that the roofline shows for a state. */
function rooflinePlan(table, state) {
  const known = table.facets.filter((f) => f.param || f.key === "environment" || ROOFLINE_NAMES.includes(f.key));
  const { cells, chosen } = filtered(table.cells, known, state);
  const rows = cells.flatMap((cell) => table.byCell.get(cell));
  const present = new Set(rows.map((row) => row.technique));
  const techniques = table.techniques.filter((t) => present.has(t));
  const picked = listed(state.techniques) ? techniques.filter((t) => listed(state.techniques).includes(t)) : techniques;
  const named = table.ceilings.map((c) => c.name);
  const own = named.filter((name) => table.cells.some((cell) => cell.ceiling?.name === name));
  const wanted = listed(state.roofs) ? named.filter((name) => listed(state.roofs).includes(name)) : own.length ? own : named;
  const ceilings = table.ceilings.filter((c) => wanted.includes(c.name));
  const spots = [];
  const left = new Map(); // why -> techniques left out
  for (const row of rows.filter((r) => picked.includes(r.technique))) {
    const spot = attained(row.cell, row);
    if (spot.why) left.set(spot.why, [...(left.get(spot.why) ?? []), row.technique]);
    else spots.push({ ...spot, row });
  }
  const kinds = [...new Set(cells.map((cell) => cell.arithmetic).filter(Boolean))].flatMap((text) => text.split(/\W+/));
  const edges = spots.map((s) => s.x).concat(roofs(ceilings, kinds, 0, Infinity).map((r) => r.ridge)).filter(Number.isFinite);
  const [low, high] = edges.length ? [Math.min(...edges) / 3, Math.max(...edges) * 3] : [0.1, 1000];
  return { chosen, techniques, picked, named, wanted, ceilings, spots, left, reach: [low, high], roofs: roofs(ceilings, kinds, low, high) };
}

/** A spot in words: technique, place, rate, intensity, share of the bound. */
function spotWords(spot) {
  const { row } = spot;
  const bound = boundOf(row.cell, row);
  const rate = withInterval(spot.y, spot.low, spot.high, (v) => quantity(v, "FLOP/s"));
  const parts = [`${row.technique}, ${[row.cell.workload, placeWords(row.cell), row.cell.dtype].join(", ")}`, `${rate} (derived from the ${row.metrics.time.provenance} time)`];
  parts.push(`${digits(spot.x)} FLOP per byte`);
  if (bound) parts.push(`${share(bound / row.metrics.time.value)} of the bound`);
  return parts;
}

/** The rates of each roof and where they come from. */
function roofSources(plan) {
  return plan.ceilings.map((ceiling) => {
    const kinds = [...new Set(plan.roofs.filter((r) => r.ceiling === ceiling).map((r) => r.kind).filter(Boolean))];
    const peaks = kinds.map((kind) => `${kind} ${quantity(ceiling.peaks[kind], "FLOP/s")}`);
    const rates = ceiling.bandwidth ? [`bandwidth ${quantity(ceiling.bandwidth, "B/s")}`, ...peaks].join(", ") : "its bandwidth is not known, so it has no roof";
    return [`${ceiling.text || ceiling.name}`, `${rates}. ${ceiling.provenance}: ${ceiling.source}`];
  });
}

/** The roofline in `root`. */
function roofline(root, data, state = {}, onState = () => {}, sharing = null) {
  let table = indexed(data);
  let chosen = { ...state };
  let plan = null;
  const controls = board("kpt-roofline-controls");
  const under = node("p", { class: "kpt-note" });
  const details = node("div", { class: "kpt-roofline-details", "aria-live": "polite" });
  const sources = node("div", { class: "kpt-roofline-sources" });
  let figure = null;
  const view = node("div", {}, controls.element);
  root.append(view);

  function change(patch) {
    chosen = { ...chosen, ...patch };
    draw();
    onState({ ...chosen });
  }

  function pick(key) {
    const spot = plan.spots.find((s) => String(s.row.index) === String(key));
    if (!spot) return;
    const rate = withInterval(spot.y, spot.low, spot.high, (v) => quantity(v, "FLOP/s"));
    const derived = [
      ["attained", `${rate}, derived: ${quantity(spot.row.cell.flops, "FLOP")} over the ${spot.row.metrics.time.provenance} time`],
      ["intensity", `${digits(spot.x)} FLOP per byte: ${quantity(spot.row.cell.flops, "FLOP")} and ${quantity(spot.row.cell.bytes, "B")}, as the workload states them`],
    ];
    const card = pointCard({ over: table.overs[0], overs: table.overs, metric: "time" }, spot.row, close);
    card.append(factList(derived));
    details.replaceChildren(card);
    card.focus();

    function close() {
      details.replaceChildren();
      figure.focusPoint(key);
    }
  }

  function draw() {
    plan = rooflinePlan(table, chosen);
    controls.show(rooflineControls(plan, change));
    const spec = rooflineSpec(table, plan, pick);
    if (figure) figure.update(spec);
    else {
      figure = plot(spec);
      view.append(under, figure.element, details, sources, shareRow(sharing, () => chosen) ?? "");
    }
    const only = plan.chosen.filter((c) => c.options.length === 1 && c.facet.key !== "target");
    const reasons = [...plan.left].map(([why, techniques]) => `Not shown: ${[...new Set(techniques)].join(", ")}: ${why.replace(/\.$/, "")}.`);
    figure.element.hidden = !plan.spots.length;
    const none = plan.spots.length ? "" : "Nothing here has both a time and a stated cost.";
    under.textContent = [none, only.length ? `${conditions(only).join("; ")}.` : "", "Rates are derived: the cell's work over the time.", ...reasons].filter(Boolean).join(" ");
    details.replaceChildren();
    sources.replaceChildren(factList(roofSources(plan)));
  }

  draw();
  return {
    update(newData, newState) {
      if (newData) table = indexed(newData);
      chosen = { ...newState };
      draw();
    },
    remove() {
      figure.remove?.();
      view.remove();
    },
  };
}

function rooflineControls(plan, change) {
  const open = plan.chosen.map(({ facet, options, value }) => ({
    key: `facet ${facet.key}`,
    kind: options.every((v) => typeof v === "number") ? "slider" : "select",
    label: facet.label,
    options: options.length > 1 ? [EVERY, ...options] : options,
    value,
    pick: (v) => change({ [facet.key]: v }),
  }));
  return [
    ...open,
    { key: "roofs", kind: "checks", label: "roofs", options: plan.named, value: plan.wanted, always: plan.named.length > 0, pick: (v) => change({ roofs: v }) },
    { key: "techniques", kind: "checks", label: "techniques", options: plan.techniques, value: plan.picked, pick: (v) => change({ techniques: v }) },
  ];
}

function rooflineSpec(table, plan, onPick) {
  const series = plan.picked.map((technique) => ({
    name: technique,
    style: table.styles[technique],
    connected: false,
    points: plan.spots
      .filter((s) => s.row.technique === technique)
      .map((s) => ({ x: s.x, y: s.y, low: s.low, high: s.high, key: String(s.row.index), label: () => spotWords(s).join("\n"), mark: s.row.stale ? "stale" : undefined })),
  }));
  return {
    title: "Attained rates under the roofs",
    description: "FLOP per second, derived from the time, against FLOP per byte; lines are what each target allows.",
    x: { label: "arithmetic intensity (FLOP per byte)", kind: "log", unit: "1", ticks: plan.roofs.length ? logTicks(...plan.reach, 9) : undefined },
    y: { label: "attained, derived from the time", kind: "log", unit: "FLOP/s", reach: 1e9 },
    series: series.filter((s) => s.points.length),
    lines: plan.roofs.map((roof, i) => ({ name: `roof of ${roof.name}`, points: roof.points, dash: DASHES[i % DASHES.length], wide: true })),
    table: () => rooflineTable(plan),
    onPick,
  };
}

function rooflineTable(plan) {
  const head = ["technique", "workload", "where", "FLOP per byte", "FLOP/s", "low", "high", "of the bound"];
  const part = ({ row }) => boundOf(row.cell, row) && share(boundOf(row.cell, row) / row.metrics.time.value);
  const rows = plan.spots.map((s) => [s.row.technique, s.row.cell.workload, placeWords(s.row.cell), digits(s.x), ...[s.y, s.low, s.high].map((v) => quantity(v, "FLOP/s")), part(s)]);
  return { head, rows };
}
