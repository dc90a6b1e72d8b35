// The energy of a spiking layer beside the standard one, modelled: the formulas of kpt_lab/frontier/spiking/layer.py and energy.py
// over constants that come from there; a test holds both equal. The sliders move what the answer depends on.

const ENERGY_GAINS = [1, 100]; // drawn as lines
const ENERGY_NAMES = ["arithmetic alone", "with data movement"];
const ENERGY_HEIGHT = 300;

/** What one pass of the layer counts, for so many spikes a synapse. */
function layerCounts({ width, timesteps, code }, spikes) {
  const macs = width * width;
  const own = width * timesteps;
  return { spikes: spikes * width, synaptic: spikes * macs, integrated: code === "first_spike" ? own : 0, neuron_steps: own, macs, read: 2 * macs, written: width };
}

/** [standard, spiking] joules of one pass; moved: with the movement of data. */
function layerJoules(table, state, spikes, moved) {
  const counts = layerCounts(state, spikes);
  const [standard, spiking] = [table.arithmetic[state.standard], table.arithmetic[state.spiking]];
  const compute = [counts.macs * (standard.multiply + standard.add), counts.synaptic * spiking.add];
  if (!moved) return compute;
  const access = (bits) => (table.access[state.memory] * bits) / 64;
  const own = access(table.state_bits);
  const update = spiking.add + 2 * own;
  const additions = counts.synaptic * (spiking.add + (access(spiking.bits) + 2 * own) / state.reuse);
  const steps = counts.integrated * (update + own) + counts.neuron_steps * update;
  return [compute[0] + (counts.read / state.reuse + counts.written) * access(standard.bits), additions + steps + counts.spikes * 2 * own];
}

/** How many times less the spiking layer needs. */
function layerGain(table, state, spikes, moved) {
  const [standard, spiking] = layerJoules(table, state, spikes, moved);
  return spiking ? standard / spiking : Infinity;
}

/** The spikes a synapse at which the gain is this; NaN where not even a silent layer reaches it. */
function spikesFor(table, state, gain, moved) {
  const [standard, silent] = layerJoules(table, state, 0, moved);
  const needed = (standard / gain - silent) / (layerJoules(table, state, 1, moved)[1] - silent);
  return needed >= 0 ? needed : NaN;
}

/** The most spikes a synapse that the code can say in a window. */
const mostSpikes = ({ code, timesteps }) => (code === "count" ? timesteps : 1);

/** A state whose values all exist: those of the table's start where one doesn't. */
function energyState(table, state) {
  const full = { ...table.start, ...state };
  const known = { code: table.codes, standard: Object.keys(table.arithmetic), spiking: Object.keys(table.arithmetic), memory: Object.keys(table.access) };
  for (const [key, values] of Object.entries(known)) if (!values.includes(full[key])) full[key] = table.start[key];
  for (const [key, stops] of Object.entries(table.stops)) {
    const asked = Number(full[key]);
    full[key] = stops.includes(asked) ? asked : asked > 0 ? stops.reduce((best, s) => (Math.abs(Math.log(s / asked)) < Math.abs(Math.log(best / asked)) ? s : best)) : table.start[key];
  }
  return full;
}

/** "at most 0.0511 spikes a synapse", or why there is no such number. */
function spikesWords(table, state, gain, moved) {
  const needed = spikesFor(table, state, gain, moved);
  if (Number.isNaN(needed)) return "never: thresholds and steps alone cost more";
  if (needed >= mostSpikes(state)) return "always: even at the most spikes";
  return `at most ${digits(needed)} spikes a synapse`;
}

/** The outcome in sentences. */
function energySentence(table, state) {
  const most = mostSpikes(state);
  if (state.spikes > most) return `No such trains: in this code a line carries at most ${counted(most, "spike")} in a window. Move a slider.`;
  const [alone, moved] = [false, true].map((m) => layerGain(table, state, state.spikes, m));
  const words = (gain) => (gain >= 1 ? `${ratio(gain)} less energy` : `${ratio(1 / gain)} more energy`);
  const parts = [`At ${digits(state.spikes)} spikes a synapse the spiking layer needs ${words(alone)} by arithmetic alone, and ${words(moved)} with data movement. Modelled.`];
  if (state.standard !== state.spiking) parts.push(`The sides compute in different numbers (${state.standard} and ${state.spiking}): part of this is the numbers' doing, not the spikes'.`);
  return parts.join(" ");
}

/** The table of both models side by side. */
function energyTable(table, state) {
  const possible = state.spikes <= mostSpikes(state);
  const rows = [
    ["standard layer", (m) => quantity(layerJoules(table, state, state.spikes, m)[0], "J")],
    ["spiking layer", (m) => (possible ? quantity(layerJoules(table, state, state.spikes, m)[1], "J") : "no such trains")],
    ["times less energy", (m) => (possible ? ratio(layerGain(table, state, state.spikes, m)) : "no such trains")],
    ...ENERGY_GAINS.map((gain) => [`${gain}x less energy`, (m) => spikesWords(table, state, gain, m)]),
  ];
  const head = node("tr", {}, node("td"), ...ENERGY_NAMES.map((name) => node("th", { scope: "col" }, name)));
  const body = rows.map(([name, write]) => node("tr", {}, node("th", { scope: "row" }, name), ...[false, true].map((m) => node("td", {}, write(m)))));
  return node("table", { class: "kpt-casts" }, node("caption", {}, "Joules of one pass of the layer, modelled"), node("thead", {}, head), node("tbody", {}, ...body));
}

/** Marks of runs that were modelled as these curves are. */
function energyMarks(table, state) {
  const same = (mark) => state.standard === mark.arithmetic && state.spiking === mark.arithmetic;
  return state.memory === "8KB" && state.reuse === 1 ? table.marks.filter(same) : [];
}

/** Gain over spikes a synapse, both axes logarithmic: a curve for each model, the present place, and marks of runs. */
function energyPicture(table, state, wide) {
  const stops = table.stops.spikes;
  const shown = stops.filter((s) => s <= mostSpikes(state));
  const area = { left: 44, top: 26, width: Math.max(wide - 54, 180), bottom: ENERGY_HEIGHT - 46, outer: 0 };
  const x = logScale(stops[0], stops.at(-1), area.left, area.left + area.width);
  const marks = energyMarks(table, state);
  const values = [false, true].flatMap((m) => shown.map((s) => layerGain(table, state, s, m)));
  const [low, high] = extent({ kind: "log" }, [...values, ...marks.flatMap((m) => [m.compute, m.with_memory]), ...ENERGY_GAINS], []);
  const y = logScale(low, high, area.bottom, area.top);
  const picture = svg("svg", { width: wide, height: ENERGY_HEIGHT, class: "kpt-energy-picture", "aria-hidden": "true" });
  const whole = (s) => Number.isInteger(Math.round(1e6 * Math.log10(s)) / 1e6);
  const tens = Array.from({ length: 30 }, (_, k) => 10 ** (k - 15)).filter((t) => t >= low && t <= high);
  picture.append(...yAxis(area, y, { label: "times less energy", format: (v) => `${digits(v)}x` }, tens));
  picture.append(...xAxis(area, x, { label: "spikes a synapse and inference", format: (v) => digits(v) }, stops.filter(whole)));
  for (const gain of ENERGY_GAINS) {
    picture.append(svg("line", { x1: area.left, x2: area.left + area.width, y1: px(y.at(gain)), y2: px(y.at(gain)), class: "kpt-energy-line" }));
  }
  const here = px(x.at(state.spikes));
  picture.append(svg("line", { x1: here, x2: here, y1: area.top, y2: area.bottom, class: "kpt-number-line" }));
  ENERGY_NAMES.forEach((name, k) => {
    const style = styleOf(k);
    const at = (s) => `${px(x.at(s))} ${px(y.at(layerGain(table, state, s, k === 1)))}`;
    picture.append(svg("path", { d: `M${shown.map(at).join("L")}`, fill: "none", stroke: style.color, "stroke-width": 2, "stroke-dasharray": style.dash || null }));
    const runs = marks.map((m) => symbolPath(style.symbol, x.at(m.spikes), y.at(k ? m.with_memory : m.compute), 4));
    if (runs.length) picture.append(svg("path", { d: runs.join(""), fill: "none", stroke: style.color, "stroke-width": 1.6 }));
    if (state.spikes > mostSpikes(state)) return;
    picture.append(svg("circle", { cx: here, cy: px(y.at(layerGain(table, state, state.spikes, k === 1))), r: 6, fill: style.color, stroke: "var(--kpt-paper)", "stroke-width": 2 }));
  });
  return picture;
}

/** What the lines and symbols of the picture mean. */
function energyLegend(table, state) {
  const entries = ENERGY_NAMES.map((name, k) => {
    const style = styleOf(k);
    const line = svg("svg", { width: 26, height: 12, "aria-hidden": "true" }, svg("path", { d: "M0 6h26", stroke: style.color, "stroke-width": 2, "stroke-dasharray": style.dash || null }));
    return node("span", { class: "kpt-key" }, line, name);
  });
  const marks = energyMarks(table, state);
  if (marks.length) entries.push(node("span", { class: "kpt-key" }, `hollow symbols: ${[...new Set(marks.map((m) => m.label))].join("; ")}, counted in runs`));
  return entries;
}

function energyControls(table, full, change) {
  const always = true;
  const names = Object.keys(table.arithmetic);
  const pick = (key) => (value) => change({ [key]: value });
  const dial = (key, label, word = digits) => ({ key, kind: "slider", label, options: table.stops[key].map((value) => ({ value, label: word(value) })), value: full[key], always, pick: pick(key) });
  const list = (key, label, options) => ({ key, kind: "select", label, options, value: full[key], always, pick: pick(key) });
  const codes = table.codes.map((value) => ({ value, label: { count: "number of spikes", first_spike: "time of one spike" }[value] ?? value }));
  return [
    list("standard", "standard network computes in", names),
    list("spiking", "spiking network computes in", names),
    list("memory", "weights and membranes lie in", Object.keys(table.access)),
    list("code", "code", codes),
    dial("spikes", "spikes a synapse and inference"),
    dial("reuse", "operations that one access to memory serves"),
    dial("timesteps", "steps in a window"),
    dial("width", "lines into the layer, and neurons in it", String),
  ];
}

/** The energy view in `root`. */
function energy(root, data, state = {}, onState = () => {}, sharing = null) {
  const parts = {
    state: energyState,
    controls: energyControls,
    sentence: energySentence,
    legend: energyLegend,
    picture: energyPicture,
    table: energyTable,
    source: (table) => `Energies of operations: ${table.source}. No chip was measured.`,
  };
  return dials(root, "energy", parts, data, state, onState, sharing);
}
