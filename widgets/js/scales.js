// What every figure is drawn with: scales with ticks, SVG elements, symbols, the hatching of UNCLEAR, and the tooltip.

const SVG = "http://www.w3.org/2000/svg";
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"];
const DASHES = ["", "7 4", "1.5 3", "7 3 1.5 3", "12 4", "12 3 1.5 3"];
const FONT = '"Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif';
let ruler = null; // a canvas's context that measures text
const PALETTE = 6; // colours --kpt-c0 to --kpt-c5 in the stylesheet

/** How the technique of style index i is drawn; -1 is eager. {color, dash, symbol}; color is a CSS variable. */
function styleOf(i) {
  if (i < 0) return { color: "var(--kpt-eager)", dash: "", symbol: "circle" };
  return {
    color: `var(--kpt-c${i % PALETTE})`,
    dash: DASHES[(i + 1 + Math.floor(i / PALETTE)) % DASHES.length],
    symbol: SYMBOLS[(i + 1) % SYMBOLS.length],
  };
}

/** An SVG element; attributes that are null are left out, children are nodes or text. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

/** Values 1, 2 or 5 times a power of ten that lie in [low, high], about `count` of them. */
function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1)
    ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

/** Ticks of a logarithmic axis: the densest of a few patterns with at most `count`, linear ones where the span is short. */
function logTicks(low, high, count) {
  if (high / low < 4) return linearTicks(low, high, Math.min(count, 6)).filter((t) => t > 0);
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const within = (t) => t >= low * 0.9999 && t <= high * 1.0001;
  for (const mantissas of [[1, 1.5, 2, 3, 5, 7], [1, 2, 3, 5], [1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let p = first; p <= last; p += 1) ticks.push(...mantissas.map((m) => Number((m * 10 ** p).toPrecision(3))));
    if (ticks.filter(within).length <= count) return ticks.filter(within);
  }
  const every = Math.ceil((last - first + 1) / count);
  const ticks = [];
  for (let p = first; p <= last; p += every) ticks.push(10 ** p);
  return ticks.filter(within);
}

/** Linear scale from [low, high] to pixels [from, to]: {at(value), back(pixel), ticks(count), domain, range}. */
function linearScale(low, high, from, to) {
  const span = high - low || 1;
  return {
    kind: "linear",
    domain: [low, high],
    range: [from, to],
    at: (value) => from + ((value - low) / span) * (to - from),
    back: (pixel) => low + ((pixel - from) / (to - from)) * span,
    ticks: (count = 6) => linearTicks(low, high, count),
  };
}

/** Logarithmic scale; low must be positive. */
function logScale(low, high, from, to) {
  const [a, b] = [Math.log(low), Math.log(high)];
  const span = b - a || 1;
  return {
    kind: "log",
    domain: [low, high],
    range: [from, to],
    at: (value) => from + ((Math.log(value) - a) / span) * (to - from),
    back: (pixel) => Math.exp(a + ((pixel - from) / (to - from)) * span),
    ticks: (count = 6) => logTicks(low, high, count),
  };
}

/** Category scale: at(value) is the middle of its slot, `slot` the slot's width in pixels. */
function categoryScale(categories, from, to) {
  const slot = (to - from) / Math.max(categories.length, 1);
  const index = new Map(categories.map((c, i) => [c, i]));
  return {
    kind: "category",
    domain: categories,
    range: [from, to],
    slot: Math.abs(slot),
    at: (value) => from + ((index.get(value) ?? 0) + 0.5) * slot,
    back: (pixel) => categories[Math.min(Math.max(Math.floor((pixel - from) / slot), 0), categories.length - 1)],
    ticks: () => categories,
  };
}

/** The scale that an axis {kind, categories} of a spec asks for. */
function scaleFor(axis, low, high, from, to) {
  if (axis.kind === "category") return categoryScale(axis.categories, from, to);
  return axis.kind === "log" ? logScale(low, high, from, to) : linearScale(low, high, from, to);
}

/** Path data of a symbol of radius r at (x, y), with numbers to a tenth of a pixel. */
function symbolPath(symbol, x, y, r) {
  const n = (value) => Math.round(value * 10) / 10;
  const polygon = (...corners) => `M${corners.map(([dx, dy]) => `${n(x + dx * r)} ${n(y + dy * r)}`).join("L")}Z`;
  switch (symbol) {
    case "square":
      return `M${n(x - 0.88 * r)} ${n(y - 0.88 * r)}h${n(1.76 * r)}v${n(1.76 * r)}h${n(-1.76 * r)}Z`;
    case "diamond":
      return polygon([0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]);
    case "triangle-up":
      return polygon([0, -1.2], [1.1, 0.85], [-1.1, 0.85]);
    case "triangle-down":
      return polygon([0, 1.2], [1.1, -0.85], [-1.1, -0.85]);
    case "cross": {
      const [a, b] = [0.4, 1.15];
      return polygon(
        [-a, -b],
        [a, -b],
        [a, -a],
        [b, -a],
        [b, a],
        [a, a],
        [a, b],
        [-a, b],
        [-a, a],
        [-b, a],
        [-b, -a],
        [-a, -a],
      );
    }
    case "x": {
      const [a, b] = [0.57, 1.1];
      return polygon(
        [0, -a],
        [b - a, -b],
        [b, a - b],
        [a, 0],
        [b, b - a],
        [b - a, b],
        [0, a],
        [a - b, b],
        [-b, b - a],
        [-a, 0],
        [-b, a - b],
        [a - b, -b],
      );
    }
    case "star": {
      const corners = Array.from({ length: 10 }, (_, k) => {
        const [reach, angle] = [k % 2 ? 0.55 : 1.35, (Math.PI * k) / 5];
        return [reach * Math.sin(angle), -reach * Math.cos(angle)];
      });
      return polygon(...corners);
    }
    default:
      return `M${n(x - r)} ${n(y)}a${n(r)} ${n(r)} 0 1 0 ${n(2 * r)} 0a${n(r)} ${n(r)} 0 1 0 ${n(-2 * r)} 0Z`;
  }
}

/** A pattern of diagonal lines for fill="url(#id)": how UNCLEAR looks everywhere. */
function hatching(id, color, period = 4, paper = "var(--kpt-paper)") {
  return svg(
    "pattern",
    { id, patternUnits: "userSpaceOnUse", width: period, height: period, patternTransform: "rotate(45)" },
    svg("rect", { width: period, height: period, fill: paper }),
    svg("line", { x1: period / 2, y1: 0, x2: period / 2, y2: period, stroke: color, "stroke-width": period * 0.34 }),
  );
}

/** Width of a text in pixels in the figures' font, measured without touching the page's layout. */
function textWidth(text, size = 12) {
  ruler ??= document.createElement("canvas").getContext("2d");
  if (!ruler) return 0.56 * size * String(text).length;
  ruler.font = `${size}px ${FONT}`;
  return ruler.measureText(String(text)).width;
}

/** Words in lines of at most `width` pixels. */
function wrapped(text, width, size = 12) {
  const lines = [];
  for (const word of String(text).split(/\s+/)) {
    const joined = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && textWidth(joined, size) <= width) lines[lines.length - 1] = joined;
    else lines.push(word);
  }
  return lines;
}

/** A box of text lines over `parent` (which must be positioned): show(lines, x, y) beside a point, hide(). */
function tooltip(parent) {
  const box = document.createElement("div");
  box.className = "kpt-tooltip";
  box.hidden = true;
  box.setAttribute("aria-hidden", "true"); // what it says is read out by the live region
  parent.append(box);
  return {
    element: box,
    show(lines, x, y) {
      box.replaceChildren(
        ...lines.map((line, i) => {
          const part = document.createElement(i ? "div" : "strong");
          part.textContent = line;
          return part;
        }),
      );
      box.hidden = false;
      const [width, height] = [box.offsetWidth, box.offsetHeight];
      const left = x + 14 + width <= parent.clientWidth ? x + 14 : x - 14 - width;
      box.style.left = `${Math.max(0, Math.min(left, parent.clientWidth - width))}px`;
      box.style.top = `${Math.max(0, Math.min(y - height / 2, parent.clientHeight - height))}px`;
    },
    hide() {
      box.hidden = true;
    },
  };
}
