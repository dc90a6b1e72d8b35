// Bits against optical power: the formulas of kpt_lab/frontier/photonic/noise.py over constants that come from there; a test holds
// both equal. All of it is a closed form of shot noise and of a receiver's Johnson noise.

const BITS_HEIGHT = 300;

/** Electrons of Johnson noise in one reading. */
function bitsElectrons(table, { resistance, rate }) {
  return resistance === null ? 0 : (1e6 * Math.sqrt((2 * table.boltzmann * table.temperature) / (resistance * rate))) / table.charge;
}

/** Detected photons a multiply at so many W a wavelength. */
function bitsDetected(table, { channels, rate, loss }, power) {
  return ((1e18 * power) / rate / table.photon / 2 / channels) * 10 ** (-loss / 10);
}

/** Effective bits of so many detected photons a multiply. */
function bitsOf(table, state, detected) {
  const extra = bitsElectrons(table, state) ** 2 / (state.channels * detected);
  return (10 * Math.log10(((16 / 9) * detected) / (1 + extra)) - 1.76) / 6.02;
}

/** Detected photons a multiply that the bits asked for need. */
function bitsPhotons(table, state) {
  const quiet = (9 / 16) * 10 ** ((6.02 * state.bits + 1.76) / 10);
  return quiet / 2 + Math.sqrt(quiet ** 2 / 4 + (quiet * bitsElectrons(table, state) ** 2) / state.channels);
}

/** {detected, bits, needed, power, light}: what `answer` in Python gives. */
function bitsAnswer(table, state) {
  const detected = bitsDetected(table, state, state.power);
  const needed = bitsPhotons(table, state);
  return { detected, bits: bitsOf(table, state, detected), needed, power: (state.power * needed) / detected, light: state.power / state.rate / state.channels };
}

/** A state whose values are all stops: the nearest one, or that of the start where nothing sensible is asked. */
function bitsState(table, state) {
  const away = (key, stop, asked) => Math.abs(key === "loss" ? stop - asked : Math.log(stop / asked));
  const full = { ...table.start, ...state };
  for (const [key, stops] of Object.entries(table.stops)) {
    const asked = full[key] === null || full[key] === "null" ? null : Number(full[key]);
    if (stops.includes(asked)) full[key] = asked;
    else if (!(asked > 0)) full[key] = table.start[key];
    else full[key] = stops.filter((s) => s !== null).reduce((best, s) => (away(key, s, asked) < away(key, best, asked) ? s : best));
  }
  return full;
}

const photonsWords = (photons) => `${digits(photons)} photon${Number(photons.toPrecision(3)) === 1 ? "" : "s"}`;

/** The outcome in sentences. */
function bitsSentence(table, state) {
  const found = bitsAnswer(table, state);
  const noisy = state.resistance === null ? "shot noise alone" : "shot noise with the receiver's own";
  const less = found.bits < 0 ? "less than one bit: the noise is larger than the signal" : `${digits(found.bits)} effective bits`;
  const first = `${quantity(state.power, "W")} on each of ${state.channels} wavelengths gives ${photonsWords(found.detected)} detected a multiply; ${noisy} leaves ${less}.`;
  const more = found.needed / found.detected;
  const second = more > 1 ? `${state.bits} bits need ${photonsWords(found.needed)}: ${ratio(more)} the light.` : `${state.bits} bits need ${photonsWords(found.needed)}, which is there.`;
  return `${first} ${second}`;
}

/** The same as a table: at the present power, and at the power that the bits asked for need. */
function bitsTable(table, state) {
  const there = bitsAnswer(table, state);
  const needed = bitsAnswer(table, { ...state, power: there.power });
  const rows = [
    ["effective bits", (f) => (f.bits < 0 ? "below 0" : digits(f.bits))],
    ["detected photons a multiply", (f) => digits(f.detected)],
    ["light on each wavelength", (f) => quantity(f === there ? state.power : there.power, "W")],
    ["light on all wavelengths", (f) => quantity(state.channels * (f === there ? state.power : there.power), "W")],
    ["light launched for a multiply", (f) => quantity(f.light, "J")],
  ];
  const head = node("tr", {}, node("td"), ...["at this power", `for ${state.bits} bits`].map((name) => node("th", { scope: "col" }, name)));
  const body = rows.map(([name, write]) => node("tr", {}, node("th", { scope: "row" }, name), ...[there, needed].map((f) => node("td", {}, write(f)))));
  return node("table", { class: "kpt-casts" }, node("caption", {}, "Closed form: light only, without converters, heaters and memory"), node("thead", {}, head), node("tbody", {}, ...body));
}

/** The curves of a state, each with its name: with the receiver's noise there are two. */
function bitsCurves(state) {
  const curves = [["shot noise alone", { ...state, resistance: null }]];
  return state.resistance === null ? curves : [...curves, [`with a load of ${digits(state.resistance)} ohm`, state]];
}

/** Bits over power: a curve for each noise, the bits asked for, the power that they need, and the present point. */
function bitsPicture(table, state, wide) {
  const powers = table.stops.power;
  const area = { left: 34, top: 26, width: Math.max(wide - 48, 180), bottom: BITS_HEIGHT - 46, outer: 0 };
  const x = logScale(powers[0], powers.at(-1), area.left, area.left + area.width);
  const at = (which, power) => Math.max(bitsOf(table, which, bitsDetected(table, which, power)), 0);
  const curves = bitsCurves(state);
  const top = Math.max(state.bits + 1, ...curves.map(([, which]) => at(which, powers.at(-1))));
  const y = linearScale(0, top, area.bottom, area.top);
  const picture = svg("svg", { width: wide, height: BITS_HEIGHT, class: "kpt-bits-picture", "aria-hidden": "true" });
  const tens = powers.filter((p) => Math.abs(Math.log10(p) - Math.round(Math.log10(p))) < 1e-9);
  picture.append(...yAxis(area, y, { label: "effective bits", format: (v) => digits(v) }, y.ticks(6)));
  picture.append(...xAxis(area, x, { label: "optical power on each wavelength", format: (v) => quantity(v, "W") }, tens));
  const asked = px(y.at(state.bits));
  picture.append(svg("line", { x1: area.left, x2: area.left + area.width, y1: asked, y2: asked, class: "kpt-bits-asked" }));
  picture.append(label(`${state.bits} bits asked for`, area.left + 6, asked - 5, { class: "kpt-bits-word" }));
  curves.forEach(([, which], k) => {
    const style = styleOf(k);
    const path = powers.map((p) => `${px(x.at(p))} ${px(y.at(at(which, p)))}`).join("L");
    picture.append(svg("path", { d: `M${path}`, fill: "none", stroke: style.color, "stroke-width": 2, "stroke-dasharray": style.dash || null }));
  });
  const found = bitsAnswer(table, state);
  if (found.power >= powers[0] && found.power <= powers.at(-1)) {
    const need = px(x.at(found.power));
    picture.append(svg("line", { x1: need, x2: need, y1: asked, y2: area.bottom, class: "kpt-bits-asked" }));
  }
  const here = px(x.at(state.power));
  picture.append(svg("line", { x1: here, x2: here, y1: area.top, y2: area.bottom, class: "kpt-number-line" }));
  picture.append(svg("circle", { cx: here, cy: px(y.at(Math.max(found.bits, 0))), r: 6, fill: styleOf(curves.length - 1).color, class: "kpt-lands" }));
  return picture;
}

/** What the lines mean. */
function bitsLegend(state) {
  const entries = bitsCurves(state).map(([name], k) => {
    const style = styleOf(k);
    const line = svg("svg", { width: 26, height: 12, "aria-hidden": "true" }, svg("path", { d: "M0 6h26", stroke: style.color, "stroke-width": 2, "stroke-dasharray": style.dash || null }));
    return node("span", { class: "kpt-key" }, line, name);
  });
  return [...entries, node("span", { class: "kpt-key" }, "thin lines: the bits asked for, and the power that they need")];
}

function bitsControls(table, full, change) {
  const words = {
    power: (v) => quantity(v, "W"),
    channels: String,
    rate: (v) => `${v.toExponential().replace("e+", "e")}/s`,
    resistance: (v) => (v === null ? "none: shot noise alone" : `load of ${digits(v)} ohm`),
    loss: (v) => `${v} dB`,
    bits: String,
  };
  const names = {
    power: "optical power on each wavelength",
    channels: "channels: wavelengths, and receivers",
    rate: "vectors a second",
    resistance: "detector noise",
    loss: "light lost on the way",
    bits: "bits asked for",
  };
  const dial = (key) => ({ key, kind: "slider", label: names[key], options: table.stops[key].map((value) => ({ value, label: words[key](value) })), value: full[key], always: true, pick: (value) => change({ [key]: value }) });
  return Object.keys(names).map(dial);
}

/** The bits view in `root`. */
function bits(root, data, state = {}, onState = () => {}, sharing = null) {
  const parts = {
    state: bitsState,
    controls: bitsControls,
    sentence: bitsSentence,
    legend: (table, full) => bitsLegend(full),
    picture: bitsPicture,
    table: bitsTable,
    source: (table) => `Noise: ${table.sources.join("; ")}. Inputs uniform on [0, 1], weights on [-1, 1]. No device was measured.`,
  };
  return dials(root, "bits", parts, data, state, onState, sharing);
}
