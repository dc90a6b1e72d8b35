// A small circuit simulated here: sliders for its angles, bars for the chances, an expectation value and its slopes. Bit q of an index
// is qubit q, as in Python; widgets/circuit.py brings the circuits, and a test holds states and slopes equal to the library's.

const CIRCUIT_SHIFTED = ["rx", "ry", "rz", "p", "rzz"]; // gates whose slope is half the difference of two values, a quarter turn to each side
const CIRCUIT_CELL = 46; // px of a column of the diagram
const CIRCUIT_ROW = 42;

/** The matrix of a one-qubit gate as [re, im] of its four entries, row by row. */
function circuitMatrix(name, angle) {
  const [c, s, half] = [Math.cos(angle / 2), Math.sin(angle / 2), Math.SQRT1_2];
  const phase = (turn) => [1, 0, 0, 0, 0, 0, Math.cos(turn), Math.sin(turn)];
  const matrices = {
    h: () => [half, 0, half, 0, half, 0, -half, 0],
    x: () => [0, 0, 1, 0, 1, 0, 0, 0],
    y: () => [0, 0, 0, -1, 0, 1, 0, 0],
    z: () => [1, 0, 0, 0, 0, 0, -1, 0],
    s: () => [1, 0, 0, 0, 0, 0, 0, 1],
    sdg: () => [1, 0, 0, 0, 0, 0, 0, -1],
    t: () => [1, 0, 0, 0, 0, 0, half, half],
    tdg: () => [1, 0, 0, 0, 0, 0, half, -half],
    rx: () => [c, 0, 0, -s, 0, -s, c, 0],
    ry: () => [c, 0, -s, 0, s, 0, c, 0],
    rz: () => [c, -s, 0, 0, 0, 0, c, s],
    p: () => phase(angle),
  };
  if (!matrices[name]) throw new Error(`there is no gate named ${name}`);
  return matrices[name]();
}

/** One gate applied to a state [re, im], in place. */
function circuitApply(state, name, qubits, angle) {
  const [re, im] = state;
  const bits = qubits.map((q) => 1 << q);
  const swapped = (i, j) => {
    [re[i], re[j]] = [re[j], re[i]];
    [im[i], im[j]] = [im[j], im[i]];
  };
  const turned = (i, c, s) => {
    [re[i], im[i]] = [c * re[i] - s * im[i], c * im[i] + s * re[i]];
  };
  for (let i = 0; i < re.length; i++) {
    const on = bits.map((bit) => Boolean(i & bit));
    if (name === "cx") {
      if (on[0] && !on[1]) swapped(i, i | bits[1]);
    } else if (name === "swap") {
      if (on[0] && !on[1]) swapped(i, (i & ~bits[0]) | bits[1]);
    } else if (name === "cz") {
      if (on[0] && on[1]) turned(i, -1, 0);
    } else if (name === "rzz") {
      turned(i, Math.cos(angle / 2), on[0] === on[1] ? -Math.sin(angle / 2) : Math.sin(angle / 2));
    } else if (!on[0]) {
      const j = i | bits[0];
      const m = circuitMatrix(name, angle);
      const [a, b, x, y] = [re[i], im[i], re[j], im[j]];
      re[i] = m[0] * a - m[1] * b + m[2] * x - m[3] * y;
      im[i] = m[0] * b + m[1] * a + m[2] * y + m[3] * x;
      re[j] = m[4] * a - m[5] * b + m[6] * x - m[7] * y;
      im[j] = m[4] * b + m[5] * a + m[6] * y + m[7] * x;
    }
  }
}

/** A gate's angle in radians, for parameters in units of pi. */
function circuitAngle(gate, values) {
  return gate.angle.reduce((sum, a) => sum + a.constant + a.terms.reduce((part, [name, slope]) => part + slope * Math.PI * values[name], 0), 0);
}

/** The state [re, im] after all gates; `moved` adds an angle to the gate of that number. */
function circuitRun(table, values, moved = -1, by = 0) {
  const size = 1 << table.qubits;
  const state = [new Array(size).fill(0), new Array(size).fill(0)];
  state[0][0] = 1;
  table.gates.forEach((gate, k) => circuitApply(state, gate.name, gate.qubits, circuitAngle(gate, values) + (k === moved ? by : 0)));
  return state;
}

/** The chance of each outcome. */
const circuitChances = ([re, im]) => re.map((a, i) => a * a + im[i] * im[i]);

/** The expectation of a label of Z and I: its rightmost letter is qubit 0. */
function circuitExpectation(state, label) {
  const mask = parseInt([...label].map((letter) => (letter === "Z" ? 1 : 0)).join(""), 2);
  const odd = (i) => [...(i & mask).toString(2)].filter((bit) => bit === "1").length % 2;
  return circuitChances(state).reduce((sum, chance, i) => sum + (odd(i) ? -chance : chance), 0);
}

/** The slope of the expectation by each parameter, per radian, by the parameter-shift rule. */
function circuitSlopes(table, values, label) {
  const found = Object.fromEntries(Object.keys(table.start).map((name) => [name, 0]));
  table.gates.forEach((gate, k) => {
    if (!CIRCUIT_SHIFTED.includes(gate.name)) return;
    const terms = gate.angle[0].terms;
    if (!terms.length) return;
    const [above, below] = [1, -1].map((side) => circuitExpectation(circuitRun(table, values, k, (side * Math.PI) / 2), label));
    for (const [name, slope] of terms) found[name] += (slope * (above - below)) / 2;
  });
  return found;
}

/** A state whose values all exist: the first circuit, its start and its first observable where one doesn't. */
function circuitState(tables, state) {
  const table = tables.circuits.find((each) => each.name === state.circuit) ?? tables.circuits[0];
  const known = (name) => typeof state[name] === "number" && Math.abs(state[name]) <= 1;
  const angles = Object.fromEntries(Object.entries(table.start).map(([name, value]) => [name, known(name) ? state[name] : value]));
  return { table, angles, observable: table.observables.includes(state.observable) ? state.observable : table.observables[0] };
}

const circuitOutcome = (table, index) => index.toString(2).padStart(table.qubits, "0");
const circuitNumber = (x) => (Math.abs(x) < 5e-5 ? "0" : x.toFixed(4).replace("-", "−"));
const circuitTurn = (turn) => (turn === 0 ? "0" : `${String(turn).replace("-", "−")} π`);

/** The diagram: a wire for each qubit, gates in columns as early as they may stand; "aria-hidden", for the caption says it in words. */
function circuitDiagram(table) {
  const free = new Array(table.qubits).fill(0);
  const placed = table.gates.map((gate) => {
    const between = gate.qubits.length > 1 ? Array.from({ length: Math.max(...gate.qubits) - Math.min(...gate.qubits) + 1 }, (_, k) => Math.min(...gate.qubits) + k) : gate.qubits;
    const column = Math.max(...between.map((q) => free[q]));
    for (const q of between) free[q] = column + 1;
    return { gate, column };
  });
  const columns = Math.max(...free, 1);
  const [wide, high] = [34 + columns * CIRCUIT_CELL, table.qubits * CIRCUIT_ROW];
  const x = (column) => 30 + (column + 0.5) * CIRCUIT_CELL;
  const y = (q) => (q + 0.5) * CIRCUIT_ROW;
  const picture = svg("svg", { viewBox: `0 0 ${wide} ${high}`, style: `max-width:${wide}px`, class: "kpt-circuit-picture", "aria-hidden": "true" });
  for (let q = 0; q < table.qubits; q++) {
    picture.append(svg("line", { x1: 26, x2: wide, y1: y(q), y2: y(q), class: "kpt-line" }), svg("text", { x: 2, y: y(q) + 4 }, `q${q}`));
  }
  for (const { gate, column } of placed) picture.append(...circuitGate(gate, x(column), y));
  return picture;
}

function circuitGate(gate, x, y) {
  const [first, second] = gate.qubits;
  const dot = (q) => svg("circle", { cx: x, cy: y(q), r: 4.5, class: "kpt-circuit-dot" });
  const joined = second === undefined ? [] : [svg("line", { x1: x, x2: x, y1: y(first), y2: y(second), class: "kpt-circuit-wire" })];
  if (gate.name === "cx") {
    const plus = `M${x - 9} ${y(second)}h18M${x} ${y(second) - 9}v18`;
    return [...joined, dot(first), svg("circle", { cx: x, cy: y(second), r: 9, class: "kpt-circuit-target" }), svg("path", { d: plus, class: "kpt-circuit-wire" })];
  }
  if (gate.name === "cz") return [...joined, dot(first), dot(second)];
  if (gate.name === "swap") {
    const cross = (q) => svg("path", { d: `M${x - 6} ${y(q) - 6}l12 12m0 -12l-12 12`, class: "kpt-circuit-wire" });
    return [...joined, cross(first), cross(second)];
  }
  const names = gate.angle.flatMap((a) => a.terms.map(([name]) => name));
  return [
    ...joined,
    ...gate.qubits.flatMap((q) => [
      svg("rect", { x: x - 20, y: y(q) - 17, width: 40, height: 34, rx: 3, class: "kpt-circuit-box" }),
      svg("text", { x, y: y(q) + (names.length ? -2 : 4), "text-anchor": "middle" }, gate.name.toUpperCase()),
      ...(names.length ? [svg("text", { x, y: y(q) + 11, "text-anchor": "middle", class: "kpt-tick" }, names.join("+").slice(0, 6))] : []),
    ]),
  ];
}

/** A bar in a table: its length is the share of the cell, its number stands beside it. */
const circuitBar = (share) => node("div", { class: "kpt-circuit-bar", "aria-hidden": "true" }, node("div", { style: `width:${(100 * share).toFixed(2)}%` }));

/** Chances of all outcomes, as bars with their numbers. */
function circuitBars(table, chances) {
  const row = (chance, i) => node("tr", {}, node("th", { scope: "row" }, circuitOutcome(table, i)), node("td", { class: "kpt-circuit-wide" }, circuitBar(chance)), node("td", { class: "kpt-circuit-number" }, circuitNumber(chance)));
  const head = node("tr", {}, node("th", { scope: "col" }, "outcome"), node("td"), node("th", { scope: "col" }, "chance"));
  return node("table", { class: "kpt-circuit-bars" }, node("caption", {}, "Chance of each outcome; the rightmost digit is qubit 0"), node("thead", {}, head), node("tbody", {}, ...chances.map(row)));
}

/** Slopes of the expectation by each angle. */
function circuitSlopeTable(angles, slopes, label) {
  const body = Object.entries(slopes).map(([name, slope]) => node("tr", {}, node("th", { scope: "row" }, name), node("td", {}, circuitTurn(angles[name])), node("td", {}, circuitNumber(slope))));
  const head = node("tr", {}, node("th", { scope: "col" }, "angle"), node("th", { scope: "col" }, "value"), node("th", { scope: "col" }, `slope of ${label} per radian`));
  return node("table", { class: "kpt-casts" }, node("caption", {}, "Gradient, from two shifted runs for each angle"), node("thead", {}, head), node("tbody", {}, ...body));
}

/** The outcome in a sentence. */
function circuitSentence(table, chances, value, label) {
  const most = chances.indexOf(Math.max(...chances));
  return `The expectation of ${label} is ${circuitNumber(value)}, between −1 and 1. The likeliest outcome is ${circuitOutcome(table, most)}, with chance ${circuitNumber(chances[most])}. Computed exactly on ${counted(table.qubits, "qubit")}: no device, no noise.`;
}

function circuitControls(tables, { table, angles, observable }, change) {
  const always = true;
  const names = tables.circuits.map((each) => each.name);
  const dial = ([name, value]) => {
    const stops = [...new Set([...tables.turns, value])].sort((a, b) => a - b);
    return { key: `${table.name} ${name}`, kind: "slider", label: `${name}`, options: stops.map((turn) => ({ value: turn, label: circuitTurn(turn) })), value, always, pick: (turn) => change({ [name]: turn }) };
  };
  return [
    { key: "circuit", kind: "select", label: "circuit", options: names, value: table.name, always, pick: (v) => change({ circuit: v }) },
    { key: "observable", kind: "select", label: "observable", options: table.observables, value: observable, always, pick: (v) => change({ observable: v }) },
    ...Object.entries(angles).map(dial),
  ];
}

/** The circuit view in `root`. */
function circuit(root, data, state = {}, onState = () => {}, sharing = null) {
  let tables = data;
  let chosen = { ...state };
  const controls = board("kpt-circuit-controls");
  const diagram = node("div", { class: "kpt-circuit-stage" });
  const told = node("p", { class: "kpt-formula", role: "status" });
  const facts = node("div", { class: "kpt-circuit-facts" });
  const view = node("div", {}, diagram, controls.element, told, facts, shareRow(sharing, () => plain(circuitState(tables, chosen))));
  root.append(view);

  const plain = ({ table, angles, observable }) => ({ circuit: table.name, observable, ...angles });

  function change(patch) {
    chosen = plain(circuitState(tables, { ...plain(circuitState(tables, chosen)), ...patch }));
    draw();
    onState({ ...chosen });
  }

  function draw() {
    const full = circuitState(tables, chosen);
    const { table, angles, observable } = full;
    const found = circuitRun(table, angles);
    const chances = circuitChances(found);
    controls.show(circuitControls(tables, full, change));
    diagram.replaceChildren(circuitDiagram(table));
    told.textContent = circuitSentence(table, chances, circuitExpectation(found, observable), observable);
    facts.replaceChildren(circuitBars(table, chances), circuitSlopeTable(angles, circuitSlopes(table, angles, observable), observable));
  }

  draw();
  return {
    update(newData, newState) {
      tables = newData ?? tables;
      chosen = { ...newState };
      draw();
    },
    remove: () => view.remove(),
  };
}
