// Which neuron spikes when, and the output so far: the spikes of a simulation that Python ran (widgets/raster.py), up to a step.
// Populations of neurons take turns, one window of T steps each; the output neurons listen in the last.

const RASTER_ROWS = 8; // neurons of a population that are drawn where all windows are shown
const RASTER_MS = 10_000; // how long a whole play takes
const RASTER_TICK = 40; // ms
const RASTER_DOTS = { every: { pitch: 2.6, dot: 2.2, gap: 5 }, one: { pitch: 7, dot: 5, gap: 22 } };

/** A state whose values all exist: the first network and input, the last step where it names none. */
function rasterState(table, state) {
  const network = table.networks.find((n) => n.name === state.network) ?? table.networks[0];
  const end = network.windows * network.timesteps;
  const whole = (value, most, otherwise) => (Number.isInteger(value) && value >= 0 && value <= most ? value : otherwise);
  const show = table.shows.includes(state.show) ? state.show : table.shows[0];
  return { network: network.name, input: whole(state.input, table.inputs.length - 1, 0), step: whole(state.step, end, end), show };
}

/** What a state speaks of: {network, run, end, step, window, input}; window is that of the last step that has passed. */
function rasterPlace(table, full) {
  const network = table.networks.find((n) => n.name === full.network);
  const window = Math.floor(Math.max(full.step - 1, 0) / network.timesteps);
  return { network, run: network.runs[full.input], end: network.windows * network.timesteps, step: full.step, window, input: table.inputs[full.input] };
}

/** The numbers of a line. */
const numbersOf = (line) => line.split(" ").filter(Boolean).map(Number);

/** The spikes of population p as {row, at, sign}: `at` is the number of steps that have passed when it is sent. */
function rasterSpikes({ network, run }, p) {
  const [T, { window }] = [network.timesteps, network.populations[p]];
  return numbersOf(run.events[p]).map((event) => {
    const place = Math.abs(event) - 1;
    return { row: Math.floor(place / T), at: window * T + (place % T) + 1, sign: Math.sign(event) };
  });
}

/** How many spikes population p, all its neurons, has sent by a step. */
function rasterSent({ network, run }, p, step) {
  const passed = step - network.populations[p].window * network.timesteps;
  return numbersOf(run.sent[p]).slice(0, Math.max(passed, 0)).reduce((sum, count) => sum + count, 0);
}

/** The membranes of the output neurons at a step, or null before the last window's first step. */
function rasterOutput({ network, run }, step) {
  const passed = step - (network.windows - 1) * network.timesteps;
  return passed > 0 ? numbersOf(run.readout[passed - 1]) : null;
}

/** The first of the largest. */
const largestOf = (values) => values.reduce((best, v, k) => (v > values[best] ? k : best), 0);

/** Where the run stands, in sentences. */
function rasterSentence(table, place) {
  const { network, run, step, end, window, input } = place;
  const total = (at) => network.populations.reduce((sum, _, p) => sum + rasterSent(place, p, at), 0);
  const output = rasterOutput(place, step);
  const parts = [`Step ${step} of ${end}, window ${window + 1} of ${network.windows}: ${total(step).toLocaleString("en")} of ${total(end).toLocaleString("en")} spikes sent.`];
  if (!output) parts.push("Nothing has reached the output neurons yet.");
  else {
    const answer = table.classes[largestOf(output)];
    const since = (network.windows - 1) * network.timesteps + run.settled;
    const truth = step < end || input.label === null ? "" : input.label === answer ? ", which is its label" : `; its label is ${input.label}`;
    parts.push(`${step < end ? `The output so far says ${answer}` : `The answer is ${answer}${truth}`}.`);
    parts.push(step >= since ? `It has not changed since step ${since}.` : "It will still change.");
  }
  return parts.join(" ");
}

/** Rows of the picture: for each population that is drawn {p, top, rows: [kept row, y]}, and the height. */
function rasterLayout(place, every) {
  const { pitch, gap } = every ? RASTER_DOTS.every : RASTER_DOTS.one;
  let y = every ? 8 : 4;
  const drawn = [];
  place.network.populations.forEach((population, p) => {
    if (!every && population.window !== place.window) return;
    const kept = population.neurons.length;
    const count = every ? Math.min(RASTER_ROWS, kept) : kept;
    const top = every ? y : y + 16;
    const rows = new Map(Array.from({ length: count }, (_, k) => [Math.round((k * (kept - 1)) / Math.max(count - 1, 1)), top + k * pitch]));
    drawn.push({ p, top, bottom: top + (count - 1) * pitch, rows });
    y = top + (count - 1) * pitch + gap;
  });
  return { drawn, height: y + 6 };
}

/** Neurons by time: dots for spikes of 1, dashes for those of -1, those to come pale, and the present step across. */
function rasterPicture(table, full, place, wide) {
  const every = full.show === table.shows[0];
  const T = place.network.timesteps;
  const [from, to] = every ? [0, place.end] : [place.window * T, (place.window + 1) * T];
  const { drawn, height } = rasterLayout(place, every);
  const area = { left: 14, top: 0, width: wide - 28, bottom: height };
  const x = linearScale(from, to, area.left, area.left + area.width);
  const { dot } = every ? RASTER_DOTS.every : RASTER_DOTS.one;
  const picture = svg("svg", { width: wide, height: height + 44, class: "kpt-raster-picture", "aria-hidden": "true" });
  for (let w = 1; every && w < place.network.windows; w += 1) picture.append(svg("line", { x1: px(x.at(w * T)), x2: px(x.at(w * T)), y1: 0, y2: height, stroke: "var(--kpt-grid)" }));
  const paths = { "1 past": "", "1 later": "", "-1 past": "", "-1 later": "" };
  for (const { p, rows } of drawn) {
    for (const { row, at, sign } of rasterSpikes(place, p)) {
      if (!rows.has(row)) continue;
      const middle = x.at(at - 0.5);
      paths[`${sign} ${at <= place.step ? "past" : "later"}`] += sign > 0 ? `M${px(middle)} ${px(rows.get(row))}h0` : `M${px(middle - dot)} ${px(rows.get(row))}h${2 * dot}`;
    }
  }
  for (const [kind, d] of Object.entries(paths)) {
    const [sign, when] = kind.split(" ");
    if (d) picture.append(svg("path", { d, class: `kpt-spike kpt-spike-${sign === "1" ? "up" : "down"} kpt-spike-${when}`, "stroke-width": sign === "1" ? dot * 1.25 : Math.max(dot / 2.5, 1) }));
  }
  for (const { p, top, bottom } of drawn) {
    const { name, window, size } = place.network.populations[p];
    const right = every && window > place.network.windows / 2;
    const at = !every ? area.left : x.at(right ? window * T : (window + 1) * T) + (right ? -4 : 4);
    const words = every ? name : `${name}: ${place.network.populations[p].neurons.length} of ${counted(size, "neuron")}`;
    picture.append(label(words, at, every ? (top + bottom) / 2 + 4 : top - 8, { "text-anchor": right ? "end" : "start", "font-size": every ? 10.5 : 12, class: "kpt-raster-name" }));
  }
  const now = px(x.at(place.step));
  picture.append(svg("line", { x1: now, x2: now, y1: 0, y2: height, class: "kpt-raster-now" }));
  picture.append(...xAxis({ ...area, bottom: height }, x, { label: "step", format: (v) => String(v) }));
  return { picture, back: (pixel) => Math.min(Math.max(Math.round(x.back(pixel)), from), to) };
}

/** The output neurons' membranes as bars, one row for each class; the widths fit the whole last window. */
function rasterBars(table, place) {
  const output = rasterOutput(place, place.step);
  const every = place.run.readout.flatMap(numbersOf);
  const [low, high] = [Math.min(0, ...every), Math.max(0, ...every)];
  const at = (value) => (100 * (value - low)) / (high - low || 1);
  const best = output ? largestOf(output) : -1;
  const body = table.classes.map((name, k) => {
    const value = output ? output[k] : 0;
    const style = `left:${Math.min(at(value), at(0)).toFixed(2)}%;width:${Math.abs(at(value) - at(0)).toFixed(2)}%`;
    const bar = node("span", { class: "kpt-bar-room" }, node("span", { class: "kpt-bar", style }));
    return node("tr", k === best ? { class: "kpt-bar-best" } : {}, node("th", { scope: "row" }, name), node("td", {}, bar), node("td", { class: "kpt-bar-value" }, output ? value.toFixed(2) : "–"));
  });
  const head = node("tr", {}, node("th", { scope: "col" }, "class"), node("th", { scope: "col" }, "membrane so far"), node("td"));
  return node("table", { class: "kpt-bars" }, node("caption", {}, "Output neurons"), node("thead", {}, head), node("tbody", {}, ...body));
}

/** The input as a small picture of squares, or its label alone. */
function rasterInput({ input }) {
  const words = input.label === null ? "the input" : `the input, labelled ${input.label}`;
  if (!input.picture.length) return node("p", {}, words);
  const lines = input.picture.map(numbersOf);
  const [high, wide] = [lines.length, lines[0].length];
  const squares = lines.flatMap((line, y) => line.map((grey, x) => svg("rect", { x, y, width: 1.02, height: 1.02, fill: `rgb(${255 - grey},${255 - grey},${255 - grey})` })));
  return svg("svg", { viewBox: `0 0 ${wide} ${high}`, width: 72, height: (72 * high) / wide, class: "kpt-raster-input", role: "img", "aria-label": words }, squares);
}

/** What each population has sent so far. */
function rasterTable(place) {
  const head = ["population", "window", "neurons", "spikes so far", "spikes in all"].map((name) => node("th", { scope: "col" }, name));
  const line = ({ name, window, size }, p) => {
    const cells = [window + 1, size, rasterSent(place, p, place.step), rasterSent(place, p, place.end)];
    return node("tr", {}, node("th", { scope: "row" }, name), ...cells.map((cell) => node("td", {}, cell.toLocaleString("en"))));
  };
  return node("table", {}, node("thead", {}, node("tr", {}, ...head)), node("tbody", {}, ...place.network.populations.map(line)));
}

function rasterControls(table, full, change) {
  const networks = table.networks.map(({ name, timesteps }) => ({ value: name, label: `${name}, T ${timesteps}` }));
  const inputs = table.inputs.map(({ label }, value) => ({ value, label: label === null ? `input ${value}` : `${value}, labelled ${label}` }));
  return [
    { key: "network", kind: "select", label: "network", options: networks, value: full.network, always: true, pick: (v) => change({ network: v, step: null }) },
    { key: "input", kind: "select", label: "input", options: inputs, value: full.input, always: true, pick: (v) => change({ input: v }) },
    { key: "show", kind: "select", label: "show", options: table.shows, value: full.show, always: true, pick: (v) => change({ show: v }) },
  ];
}

/** The raster view in `root`. */
function raster(root, data, state = {}, onState = () => {}, sharing = null) {
  let table = data;
  let chosen = { ...state };
  let timer = null;
  let back = null;
  let wide = 0;
  let stops = "";
  const controls = board("kpt-raster-controls");
  const scrubber = slider("step", [0], 0, (step) => change({ step }));
  const press = button("Play", () => (timer ? pause() : play()));
  const told = node("p", { class: "kpt-formula", role: "status" });
  const spoken = [told, scrubber.element.querySelector("output")];
  const picture = node("div", { class: "kpt-raster-place" });
  const stage = node("div", { class: "kpt-raster-stage", onclick: pointed });
  const bars = node("div", { class: "kpt-raster-bars" });
  const keys = node("p", { class: "kpt-source" }, "Dots are spikes of 1, dashes spikes of -1; pale ones are still to come. Rows are neurons, evenly spaced over their population. Simulated: no neuromorphic hardware was used.");
  const list = node("details", { ontoggle: fill }, node("summary", { onkeydown: own, onkeyup: own }, "Spikes by population"));
  const transport = node("div", { class: "kpt-raster-transport" }, press.element, scrubber.element);
  const side = node("div", { class: "kpt-raster-side" }, picture, bars);
  const view = node("div", {}, controls.element, transport, told, node("div", { class: "kpt-raster-both" }, stage, side), keys, list, shareRow(sharing, () => chosen));
  root.append(view);

  const present = () => rasterState(table, chosen);

  function own(event) {
    if (event.key === "Enter" || event.key === " ") event.stopPropagation();
  }

  function change(patch) {
    pause();
    chosen = rasterState(table, { ...present(), ...patch });
    draw();
    onState({ ...chosen });
  }

  function pointed(event) {
    change({ step: back(event.clientX - stage.getBoundingClientRect().left) });
  }

  function play() {
    const { end, network } = rasterPlace(table, present());
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches; // then window by window
    const stride = still ? network.timesteps : Math.max(1, Math.round((end * RASTER_TICK) / RASTER_MS));
    if (present().step >= end) chosen = { ...present(), step: 0 };
    press.set("Pause");
    for (const each of spoken) each.setAttribute("aria-live", "off"); // or every step would be read out
    timer = setInterval(() => {
      chosen = { ...present(), step: Math.min(present().step + stride, end) };
      if (chosen.step >= end) change({});
      else draw();
    }, still ? 700 : RASTER_TICK);
    draw();
  }

  function pause() {
    if (!timer) return;
    clearInterval(timer);
    timer = null;
    press.set("Play");
    for (const each of spoken) each.removeAttribute("aria-live");
    onState({ ...present() });
  }

  function fill() {
    if (list.open) list.replaceChildren(list.firstElementChild, node("div", { class: "kpt-map-place", tabindex: 0, role: "region", "aria-label": "Spikes by population" }, rasterTable(rasterPlace(table, present()))));
  }

  function draw() {
    const full = present();
    const place = rasterPlace(table, full);
    controls.show(rasterControls(table, full, change));
    const steps = `${place.end} ${place.network.timesteps}`;
    const options = Array.from({ length: place.end + 1 }, (_, value) => ({ value, label: `${value} of ${place.end}` }));
    scrubber.set(full.step, stops === steps ? undefined : options);
    stops = steps;
    told.textContent = rasterSentence(table, place);
    const made = rasterPicture(table, full, place, Math.max(Math.floor(stage.clientWidth), 240));
    back = made.back;
    stage.replaceChildren(made.picture);
    picture.replaceChildren(rasterInput(place));
    bars.replaceChildren(rasterBars(table, place));
    fill();
  }

  const watcher = new ResizeObserver(() => {
    if (Math.floor(stage.clientWidth) === wide) return;
    wide = Math.floor(stage.clientWidth);
    draw();
  });
  draw();
  watcher.observe(stage);
  return {
    update(newData, newState) {
      pause();
      table = newData ?? table;
      chosen = { ...newState };
      stops = "";
      draw();
    },
    remove() {
      pause();
      watcher.disconnect();
      view.remove();
    },
  };
}
