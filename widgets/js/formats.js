// 8-bit formats: the bits of a number, and where a real number lands on the lines of two formats. Everything is looked up in
// tables from Python (widgets/formats.py): a number is only compared with boundaries, never rounded here.

const NEAR_STEPS = 4; // numbers of the first format that "near the number" shows to either side
const COMB = 62; // px for the line of one format
const COMB_TOP = 30; // px above the first
const PARTS = ["sign", "exponent", "mantissa"];

/** {code, what} of a number among the boundaries of a format; what it becomes beyond the largest is `overflow`'s to say. */
function landing(format, x, overflow) {
  const beyond = (side) => format.overflow[overflow][side];
  if (Number.isNaN(x)) return { code: format.nan, what: "not a number" };
  if (!Number.isFinite(x)) return { code: beyond(x > 0 ? 1 : 0), what: "infinite" };
  if (Object.is(x, -0)) return { code: format.minus_zero, what: "exact" };
  let [passed, end] = [0, format.edges.length]; // boundaries that lie below x, or are x and belong to what is above them
  while (passed < end) {
    const middle = (passed + end) >> 1;
    const edge = format.edges[middle];
    if (x > edge || (x === edge && format.up[middle])) passed = middle + 1;
    else end = middle;
  }
  if (passed === 0 || passed > format.order.length) return { code: beyond(passed ? 1 : 0), what: "overflows" };
  const code = format.order[passed - 1];
  if (format.values[code] === x) return { code, what: "exact" };
  if (format.values[code] === 0) return { code, what: "flushed to zero" };
  return { code, what: x === format.edges[passed - 1] || x === format.edges[passed] ? "rounded, a tie" : "rounded" };
}

/** The number that a code stands for, times the scale; NaN and infinities by their kind. */
function codeValue(table, format, code, scale = 1) {
  const kind = table.kinds[format.kinds[code]];
  if (kind === "nan") return NaN;
  return kind === "infinity" ? (code & 0x80 ? -Infinity : Infinity) : format.values[code] * scale;
}

/** The bit fields of a code, as numbers. */
function fieldsOf(format, code) {
  const mantissa = code & ((1 << format.mantissa_bits) - 1);
  const exponent = (code >> format.mantissa_bits) & ((1 << format.exponent_bits) - 1);
  return { sign: code >> 7, exponent, mantissa };
}

/** Which part of a format a bit (7 is the highest) belongs to. */
const partOf = (format, bit) => (bit === 7 ? "sign" : bit >= format.mantissa_bits ? "exponent" : "mantissa");

/** What the view shows of one format: its scale, the code, and what the number becomes. */
function cast(table, format, state) {
  const at = table.amaxes.indexOf(state.amax);
  const [scale, inverse] = at < 0 ? [1, 1] : [format.scales[at], format.inverses[at]];
  const overflow = format.overflow[state.overflow] ? state.overflow : "saturate";
  const x = numberOf(state.value);
  const scaled = x * inverse;
  const found = landing(format, scaled, overflow);
  const value = codeValue(table, format, found.code, scale);
  return { format, scale, overflow, x, scaled, ...found, stored: codeValue(table, format, found.code), value };
}

/** A state's number: JSON has no NaN and no infinity, so those come as words. */
function numberOf(value) {
  const words = { nan: NaN, inf: Infinity, "-inf": -Infinity };
  return typeof value === "string" && value.trim().toLowerCase() in words ? words[value.trim().toLowerCase()] : Number(value);
}

/** A number as a state holds it, and as a reader types it. */
const wordOf = (x) => (Number.isNaN(x) ? "nan" : Number.isFinite(x) ? x : x > 0 ? "inf" : "-inf");
const raised = (power) => [...String(power)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
const trimmed = (text) => text.replace(/(\.\d*?)0+(?=e|$)/, "$1").replace(/\.(?=e|$)/, "");

/** A number for readers, at six significant digits. */
function said(x) {
  if (Number.isNaN(x)) return "NaN";
  return Number.isFinite(x) ? (Object.is(x, -0) ? "-0" : trimmed(digits(x, 6))) : wordOf(x);
}

const binary = (value, width) => value.toString(2).padStart(width, "0");

/** "exactly", "4.2% too large": how far what a number became lies from it. */
function offBy({ x, value }) {
  if (Object.is(x, value) || x === value) return "no error";
  if (!Number.isFinite(x) || !Number.isFinite(value)) return "no finite error";
  if (x === 0) return `off by ${said(value)}`;
  return `${digits(100 * Math.abs((value - x) / x), 3)}% too ${Math.abs(value) > Math.abs(x) ? "large" : "small"}`;
}

/** The value of a code, written as its bits say it. */
function formulaOf(table, format, code) {
  const { sign, exponent, mantissa } = fieldsOf(format, code);
  const kind = table.kinds[format.kinds[code]];
  const value = codeValue(table, format, code);
  if (!format.exponent_bits) return `${kind}: ${mantissa} − ${128 * sign} = ${said(value)}`;
  if (kind === "nan" || kind === "infinity") return `${kind === "nan" ? "NaN" : "infinity"}: this pattern is set aside`;
  const minus = sign ? "−" : "";
  const power = Math.max(exponent, 1) - format.bias;
  const steps = 1 << format.mantissa_bits;
  return `${kind}: ${minus}${exponent ? `(1 + ${mantissa}/${steps})` : `${mantissa}/${steps}`} × 2${raised(power)} = ${said(value)}`;
}

/** The bits of a code as switches: arrow keys move among them, Space and Enter turn one, 0 and 1 set it. onCode(code). */
function bitField(onCode) {
  let [shown, code] = [null, 0];
  const row = node("div", { class: "kpt-bit-row", role: "group", "aria-label": "bits of the code" });
  const boxes = Array.from({ length: 8 }, (_, i) => {
    const box = node("button", { type: "button", class: "kpt-bit", tabindex: i ? -1 : 0, onclick: () => turn(i), onkeydown: (e) => keys(e, i), onkeyup: hold });
    row.append(box);
    return box;
  });

  const turn = (i) => onCode(code ^ (1 << (7 - i)));

  function hold(event) {
    if (event.key === " " || event.key === "Enter") taken(event);
  }

  function keys(event, i) {
    if (modified(event) || event.key === "Tab") return;
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: 7 }[event.key];
    if (to === undefined && !["Enter", " ", "0", "1"].includes(event.key)) return;
    taken(event);
    if (to !== undefined) focus(Math.min(Math.max(to, 0), 7));
    else if (!event.repeat && (event.key.trim() === "" || event.key === "Enter" || Number(event.key) !== ((code >> (7 - i)) & 1))) turn(i);
  }

  function focus(at) {
    boxes.forEach((box, i) => box.setAttribute("tabindex", i === at ? 0 : -1));
    boxes[at].focus();
  }

  return {
    element: row,
    set(format, present) {
      [shown, code] = [format, present];
      boxes.forEach((box, i) => {
        const [bit, part] = [7 - i, partOf(shown, 7 - i)];
        const on = (code >> bit) & 1;
        box.textContent = String(on);
        box.className = `kpt-bit kpt-bit-${part}${on ? " kpt-bit-on" : ""}`;
        box.setAttribute("aria-pressed", on ? "true" : "false");
        box.setAttribute("aria-label", `bit ${bit}, ${part}`);
      });
    },
  };
}

/** A field for a number. onChange(number); what is no number is told and changes nothing. */
function numberField(name, onChange) {
  const id = controlId();
  const problem = node("span", { class: "kpt-number-problem", role: "alert" });
  const box = node("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", spellcheck: "false", onchange: read, onkeydown: keys });
  let present = "";

  function read() {
    const text = box.value.trim().replace("−", "-");
    const x = numberOf(text.replace(/^\+?(inf|infinity)$/i, "inf").replace(/^-infinity$/i, "-inf"));
    const sound = text !== "" && (!Number.isNaN(x) || /^nan$/i.test(text));
    problem.textContent = sound ? "" : `${text || "nothing"} is no number`;
    if (sound) onChange(x);
  }

  function keys(event) {
    if (event.key === "Tab" || modified(event)) return;
    event.stopPropagation(); // typing is no shortcut of JupyterLab
    if (event.key !== "Enter") return;
    event.preventDefault();
    read();
  }

  return {
    element: node("div", { class: "kpt-control kpt-number" }, node("label", { for: id }, name), box, problem),
    set(text) {
      if (text === present) return;
      present = text;
      box.value = text;
      problem.textContent = "";
    },
  };
}

/** [low, high] that the number line shows: magnitudes on the logarithmic one. */
function lineDomain(found, axis) {
  const [first] = found;
  const largest = Math.max(...found.map((c) => c.format.max * c.scale));
  if (axis === "logarithmic") return [Math.min(...found.map((c) => c.format.smallest * c.scale)) / 8, largest * 8];
  if (axis === "linear" || !Number.isFinite(first.x)) return [-1.15 * largest, 1.15 * largest];
  const { order, values } = first.format;
  const at = Math.max(order.indexOf(first.code), 0);
  const from = Math.min(Math.max(at - NEAR_STEPS, 0), order.length - 1 - 2 * NEAR_STEPS);
  const [low, high] = [values[order[from]] * first.scale, values[order[from + 2 * NEAR_STEPS]] * first.scale];
  return [low - 0.04 * (high - low), high + 0.04 * (high - low)];
}

/** The scale of the line, in percent of its width, with `place(number)`: clipped, or null where it has no place. */
function lineScale(found, axis) {
  const [low, high] = lineDomain(found, axis);
  const scale = axis === "logarithmic" ? logScale(low, high, 1, 99) : linearScale(low, high, 1, 99);
  const shown = (x) => (axis === "logarithmic" ? Math.abs(x) : x);
  return {
    ...scale,
    low,
    high,
    inside: (x) => shown(x) >= low && shown(x) <= high,
    place: (x) => (Number.isNaN(x) ? null : Math.min(Math.max(shown(x) === 0 && axis === "logarithmic" ? 0 : scale.at(shown(x)), 1), 99)),
  };
}

const percent = (at) => `${at.toFixed(3)}%`;

/** The marks of one format, what it loses at either end, and where the number lands. */
function combOf(table, found, scale, row, axis) {
  const { format, scale: factor, value } = found;
  const base = COMB_TOP + row * COMB + 40;
  const group = svg("g", { class: `kpt-comb kpt-comb-${row}` });
  const zone = (from, to, name) => {
    const [a, b] = [scale.place(from), scale.place(to)];
    if (b - a < 0.2) return;
    group.append(svg("rect", { x: percent(a), width: percent(b - a), y: base - 24, height: 24, class: "kpt-zone" }));
    if (b - a > 14) group.append(svg("text", { x: percent((a + b) / 2), y: base - 8, "text-anchor": "middle", class: "kpt-zone-name" }, name));
  };
  const [first, last] = [format.edges[0] * factor, format.edges.at(-1) * factor];
  const tiny = 0.5 * format.smallest * factor;
  if (axis === "logarithmic") zone(scale.low, tiny, "becomes 0");
  else zone(scale.low, first, "overflow");
  const side = axis === "logarithmic" && found.x < 0 ? -first : last;
  zone(side, scale.high, "overflow");
  const drawn = new Set();
  for (const code of format.order) {
    const at = format.values[code] * factor;
    if (!scale.inside(at) || (axis === "logarithmic" && found.x < 0 !== at < 0)) continue;
    const x = percent(scale.place(at));
    if (drawn.has(x)) continue; // where marks are closer than a pixel one is enough
    drawn.add(x);
    const short = table.kinds[format.kinds[code]] === "subnormal";
    group.append(svg("line", { x1: x, x2: x, y1: base - (short ? 10 : 17), y2: base, class: short ? "kpt-mark kpt-mark-subnormal" : "kpt-mark" }));
  }
  group.append(svg("line", { x1: "1%", x2: "99%", y1: base, y2: base, class: "kpt-line" }));
  group.append(svg("text", { x: "1%", y: base - 27, class: "kpt-comb-name" }, `${format.name}, ${found.what}`));
  const lands = scale.place(value);
  if (lands !== null && Number.isFinite(value)) group.append(svg("circle", { cx: percent(lands), cy: base, r: 6, class: "kpt-lands" }));
  return group;
}

/** The number line of both formats, and the number across it. */
function numberLine(table, found, axis) {
  const scale = lineScale(found, axis);
  const bottom = COMB_TOP + found.length * COMB - 8;
  const picture = svg("svg", { class: "kpt-line-picture", width: "100%", height: bottom + 40, "aria-hidden": "true" });
  found.forEach((each, row) => picture.append(combOf(table, each, scale, row, axis)));
  let free = -10;
  for (const tick of scale.ticks(6)) {
    const at = scale.place(tick);
    picture.append(svg("line", { x1: percent(at), x2: percent(at), y1: bottom, y2: bottom + 5, class: "kpt-line" }));
    if (at - free < 9 || at < 3 || at > 97) continue;
    free = at;
    picture.append(svg("text", { x: percent(at), y: bottom + 19, "text-anchor": "middle", class: "kpt-tick" }, said(tick)));
  }
  picture.append(svg("text", { x: "50%", y: bottom + 36, "text-anchor": "middle", class: "kpt-tick" }, axis === "logarithmic" ? `magnitude${found[0].x < 0 ? " of negative numbers" : ""}, logarithmic` : axis));
  const at = scale.place(found[0].x);
  if (at !== null) {
    const away = scale.inside(found[0].x) ? "" : at > 50 ? " →" : " ←";
    const anchor = at > 70 ? "end" : at < 30 ? "start" : "middle";
    picture.append(svg("line", { x1: percent(at), x2: percent(at), y1: 16, y2: bottom, class: "kpt-number-line" }));
    picture.append(svg("text", { x: percent(at), y: 12, "text-anchor": anchor, class: "kpt-number-name" }, `${said(found[0].x)}${away}`));
  }
  return { picture, scale };
}

/** The same in words, side by side. */
function castTable(table, found) {
  const rows = [
    ["code", (c) => `0x${c.code.toString(16).toUpperCase().padStart(2, "0")} = ${binary(c.code, 8)}`],
    ["scale", (c) => (c.scale === 1 ? "none" : said(c.scale))],
    ["before the cast", (c) => said(c.scaled)],
    ["what happens", (c) => c.what],
    ["stored", (c) => said(c.stored)],
    ["multiplied back", (c) => said(c.value)],
    ["error", (c) => offBy(c)],
    ["an overflow becomes", (c) => ({ saturate: "the largest number", nan: "NaN", inf: "infinity" })[c.overflow]],
    ["largest number", (c) => said(c.format.max * c.scale)],
    ["smallest above 0", (c) => said(c.format.smallest * c.scale)],
  ];
  const head = node("tr", {}, node("td"), ...found.map((c) => node("th", { scope: "col" }, c.format.name)));
  const body = rows.map(([name, write]) => node("tr", {}, node("th", { scope: "row" }, name), ...found.map((c) => node("td", {}, write(c)))));
  return node("table", { class: "kpt-casts" }, node("thead", {}, head), node("tbody", {}, ...body));
}

/** A state whose values all exist: those of the tables' start where one doesn't. */
function formatState(table, state) {
  const full = { ...table.start, ...state };
  const names = table.formats.map((f) => f.name);
  for (const key of ["format", "beside"]) if (!names.includes(full[key])) full[key] = table.start[key];
  const format = table.formats.find((f) => f.name === full.format);
  if (!format.overflow[full.overflow]) full.overflow = "saturate";
  if (!table.axes.includes(full.axis)) full.axis = table.start.axis;
  if (!table.amaxes.includes(full.amax)) full.amax = null;
  return full;
}

/** The formats view in `root`. */
function formats(root, data, state = {}, onState = () => {}, sharing = null) {
  let table = data;
  let chosen = { ...state };
  let pattern = null; // the code that the reader made of bits, where the number's own code is another: NaN's, or that of -0
  let scale = null;
  const extra = new Set(); // numbers that were no stop of the slider; they stay, so that its steps don't move
  const controls = board("kpt-formats-controls");
  const field = numberField("number", (x) => pick(x));
  const dial = slider("choose a number", [0], 0, (x) => pick(x));
  const bits = bitField(pressed);
  const legend = node("p", { class: "kpt-bit-legend" });
  const formula = node("p", { class: "kpt-formula", role: "status" });
  const stage = node("div", { class: "kpt-line-stage", onclick: pointed });
  const facts = node("div", { class: "kpt-map-place" });
  const asked = node("div", { class: "kpt-formats-number" }, field.element, dial.element);
  const view = node("div", {}, controls.element, asked, bits.element, legend, formula, stage, facts, shareRow(sharing, () => chosen));
  root.append(view);

  function change(patch) {
    pattern = null;
    chosen = { ...formatState(table, chosen), ...patch };
    draw();
    onState({ ...chosen });
  }

  const pick = (x) => change({ value: wordOf(x) });

  function pressed(code) {
    const full = formatState(table, chosen);
    const format = table.formats.find((f) => f.name === full.format);
    const before = cast(table, format, full);
    chosen = { ...full, value: wordOf(codeValue(table, format, code, before.scale)) };
    pattern = cast(table, format, chosen).code === code ? null : code;
    draw();
    onState({ ...chosen });
  }

  function pointed(event) {
    const box = stage.getBoundingClientRect();
    const x = Number(scale.back((100 * (event.clientX - box.left)) / box.width).toPrecision(4));
    const mirrored = formatState(table, chosen).axis === "logarithmic" && numberOf(chosen.value ?? 1) < 0;
    pick(mirrored ? -x : x);
  }

  function draw() {
    const full = formatState(table, chosen);
    const names = [...new Set([full.format, full.beside])];
    const found = names.map((name) => cast(table, table.formats.find((f) => f.name === name), full));
    const [own] = found;
    const code = pattern ?? own.code;
    controls.show(formatControls(table, full, change));
    field.set(said(own.x) === "NaN" ? "nan" : String(Object.is(own.x, -0) ? "-0" : wordOf(own.x)));
    if (Number.isFinite(own.x) && !table.stops.includes(own.x)) extra.add(own.x);
    const stops = [...table.stops, ...extra].sort((a, b) => a - b);
    dial.set(Number.isFinite(own.x) ? own.x + 0 : 0, stops.map((x) => ({ value: x, label: said(x) })));
    bits.set(own.format, code);
    legend.replaceChildren(...PARTS.map((part) => partWords(own.format, code, part)).filter(Boolean));
    formula.textContent = `${own.format.name} ${formulaOf(table, own.format, code)}. ${pattern === null ? found.map(sentence).join(" ") : ""}`;
    const line = numberLine(table, found, full.axis);
    scale = line.scale;
    stage.replaceChildren(line.picture);
    facts.replaceChildren(castTable(table, found));
  }

  draw();
  return {
    update(newData, newState) {
      table = newData ?? table;
      if (JSON.stringify(newState) !== JSON.stringify(chosen)) pattern = null;
      chosen = { ...newState };
      draw();
    },
    remove: () => view.remove(),
  };
}

function sentence(found) {
  return `In ${found.format.name} ${said(found.x)} becomes ${said(found.value)}: ${found.what}, ${offBy(found)}.`;
}

/** "exponent 0111 = 7": one field of the code, coloured as its bits are. */
function partWords(format, code, part) {
  const width = { sign: 1, exponent: format.exponent_bits, mantissa: format.mantissa_bits }[part];
  if (!width) return null;
  const value = fieldsOf(format, code)[part];
  return node("span", { class: `kpt-part kpt-bit-${part}` }, `${part} ${binary(value, width)} = ${value}`);
}

function formatControls(table, full, change) {
  const names = table.formats.map((f) => f.name);
  const format = table.formats.find((f) => f.name === full.format);
  const overflows = Object.keys(format.overflow).map((value) => ({ value, label: { saturate: "the largest number", nan: "NaN", inf: "infinity" }[value] }));
  const amaxes = [{ value: null, label: "no scale" }, ...table.amaxes.map((value) => ({ value, label: said(value) }))];
  const always = true;
  return [
    { key: "format", kind: "select", label: "format", options: names, value: full.format, always, pick: (v) => change({ format: v }) },
    { key: "beside", kind: "select", label: "beside it", options: names, value: full.beside, always, pick: (v) => change({ beside: v }) },
    { key: "overflow", kind: "select", label: "an overflow becomes", options: overflows, value: full.overflow, always, pick: (v) => change({ overflow: v }) },
    { key: "axis", kind: "select", label: "number line", options: table.axes, value: full.axis, always, pick: (v) => change({ axis: v }) },
    { key: "amax", kind: "slider", label: "scaled for a largest magnitude (amax) of", options: amaxes, value: full.amax, always, pick: (v) => change({ amax: v }) },
  ];
}
