// The layers of a figure: layout, axes, legend, bands, curves with their intervals, symbols. One path for each series and layer, so
// that ten thousand points are a few dozen elements.

const INK = "var(--kpt-ink)";
const MUTED = "var(--kpt-muted)";
const DENSE = 1500; // points from which symbols are small, whiskers faint and curves left out
const px = (value) => Math.round(value * 10) / 10;

/** Text at (x, y). */
function label(text, x, y, attributes = {}) {
  return svg("text", { x: px(x), y: px(y), fill: INK, "font-size": 12, ...attributes }, String(text));
}

/** Lines of wrapped text below one another from y; returns [elements, height]. */
function paragraph(texts, x, y, width, size, attributes = {}) {
  const room = attributes["font-weight"] ? 0.9 * width : width; // texts are measured in the regular weight
  const lines = texts.flatMap((text) => wrapped(text, room, size));
  const step = Math.round(size * 1.36);
  return [
    lines.map((line, i) => label(line, x, y + size + i * step, { "font-size": size, ...attributes })),
    lines.length * step,
  ];
}

/** Axis line, tick marks and labels below `area` for x; labels that would touch are left out. */
function xAxis(area, scale, axis, ticks = scale.ticks(Math.max(3, Math.floor(area.width / 75)))) {
  const write = axis.format ?? ((value) => (scale.kind === "category" ? String(value) : quantity(value, axis.unit ?? "1")));
  const parts = [svg("line", { x1: area.left, x2: area.left + area.width, y1: area.bottom, y2: area.bottom, stroke: MUTED })];
  let free = -Infinity;
  for (const tick of ticks) {
    const x = scale.at(tick);
    let text = write(tick);
    if (scale.kind === "category") text = shortened(text, scale.slot - 6);
    const half = textWidth(text) / 2;
    parts.push(svg("line", { x1: px(x), x2: px(x), y1: area.bottom, y2: area.bottom + 4, stroke: MUTED }));
    if (x - half < free) continue;
    free = x + half + 7;
    parts.push(label(text, x, area.bottom + 18, { "text-anchor": "middle" }));
  }
  parts.push(
    label(axis.label ?? "", area.left + area.width / 2, area.bottom + 38, { "text-anchor": "middle", "font-size": 13 }),
  );
  return parts;
}

/** Text cut with an ellipsis to a width in pixels. */
function shortened(text, width) {
  let cut = String(text);
  if (textWidth(cut) <= width) return cut;
  while (cut.length > 1 && textWidth(`${cut}…`) > width) cut = cut.slice(0, -1);
  return `${cut}…`;
}

/** Grid, tick labels and the name (above the axis, horizontal) for y. */
function yAxis(area, scale, axis, ticks) {
  const write = axis.format ?? ((value) => quantity(value, axis.unit ?? "1"));
  const parts = ticks.map((tick) => {
    const y = px(scale.at(tick));
    return [
      svg("line", { x1: area.left, x2: area.left + area.width, y1: y, y2: y, stroke: "var(--kpt-grid)" }),
      label(write(tick), area.left - 7, y + 4, { "text-anchor": "end" }),
    ];
  });
  parts.push(label(axis.label ?? "", area.outer ?? 0, area.top - 9, { "font-size": 13 }));
  return parts.flat();
}

/** Ticks of a y axis for a height, and the room that their labels take. */
function yTicks(scale, axis, height) {
  const write = axis.format ?? ((value) => quantity(value, axis.unit ?? "1"));
  const ticks = scale.ticks(Math.max(3, Math.floor(height / 38)));
  return { ticks, room: Math.ceil(Math.max(24, ...ticks.map((t) => textWidth(write(t))))) + 12 };
}

/** [low, high] of the values that an axis must show, with a margin; lines and intervals count within `reach` times the values. */
function extent(axis, values, extras) {
  const log = axis.kind === "log";
  const good = values.filter((v) => Number.isFinite(v) && (!log || v > 0));
  if (!good.length) return log ? [0.5, 2] : [0, 1];
  let low = Math.min(...bounded(good, Math.min));
  let high = Math.max(...bounded(good, Math.max));
  const reach = axis.reach ?? 3;
  const [least, most] = low > 0 ? [low / reach, high * reach] : [low - reach * (high - low), high + reach * (high - low)];
  for (const v of extras) {
    if (Number.isFinite(v) && v >= least && v <= most) {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
  }
  if (axis.include !== undefined) [low, high] = [Math.min(low, axis.include), Math.max(high, axis.include)];
  if (log) {
    const room = Math.max((high / low) ** 0.05, axis.tight ? 1.02 : 1.04);
    return [low / room, high * room];
  }
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  return [axis.zero && low >= 0 ? 0 : low - room, high + room];
}

/** [the least or the greatest], in chunks: spreading ten thousand arguments at once can overflow the stack. */
function bounded(values, pick) {
  const found = [];
  for (let i = 0; i < values.length; i += 8192) found.push(pick(...values.slice(i, i + 8192)));
  return found;
}

/** Entries of the legend flowing over rows from y; returns [elements, height]. Each entry: {name, draw(x, y) -> elements}. */
function legend(entries, left, top, width) {
  const parts = [];
  let [x, row] = [left, 0];
  for (const entry of entries) {
    const room = Math.min(40 + textWidth(entry.name), width);
    if (x > left && x + room > left + width) [x, row] = [left, row + 1];
    const y = top + 10 + row * 20;
    parts.push(...entry.draw(x, y), label(shortened(entry.name, width - 36), x + 32, y + 4));
    x += room + 14;
  }
  return [parts, entries.length ? (row + 1) * 20 + 4 : 0];
}

/** What the legend says of the series, lines, bands and marks of a spec. */
function legendEntries(spec, ids) {
  const entries = spec.series
    .filter((s) => s.points.length && !s.unlisted)
    .map((s) => {
      const style = styleOf(s.style);
      return {
        name: s.name,
        draw: (x, y) => [
          svg(
            "g",
            { opacity: isPale(s) ? PALE : null },
            svg("path", {
              d: `M${x} ${px(y)}h26`,
              stroke: style.color,
              "stroke-width": 2,
              "stroke-dasharray": style.dash || null,
            }),
            svg("path", { d: symbolPath(style.symbol, x + 13, y, 5), fill: style.color }),
          ),
        ],
      };
    });
  for (const line of spec.lines ?? []) {
    if (line.name && line.points.length)
      entries.push({ name: line.name, draw: (x, y) => [svg("line", { x1: x, x2: x + 26, y1: y, y2: y, ...lineLook(line) })] });
  }
  for (const band of spec.bands ?? []) {
    if (band.name)
      entries.push({
        name: band.name,
        draw: (x, y) => [svg("rect", { x, y: y - 6, width: 26, height: 12, ...bandLook(band) })],
      });
  }
  const some = (test) => spec.series.some((s) => s.points.some(test));
  const grey = (x, y, extra) => [svg("path", { d: symbolPath("circle", x + 13, y, 5), fill: MUTED }), ...extra];
  if (some((p) => p.hatched)) {
    const shape = { d: symbolPath("circle", 0, 0, 5.5), fill: `url(#${ids}-muted)`, stroke: MUTED, "stroke-width": 1.6 };
    entries.push({
      name: spec.hatchedName ?? "UNCLEAR",
      draw: (x, y) => [svg("path", { ...shape, transform: `translate(${x + 13} ${y})` })],
    });
  }
  if (some((p) => p.mark === "stale")) {
    entries.push({
      name: "stale: the code has changed since",
      draw: (x, y) => grey(x, y, [svg("path", { d: markPath("stale", x + 13, y, 5), ...MARK })]),
    });
  }
  if (some((p) => p.mark === "elsewhere")) {
    entries.push({
      name: "another environment than now",
      draw: (x, y) => grey(x, y, [svg("path", { d: markPath("elsewhere", x + 13, y, 5), ...MARK })]),
    });
  }
  return entries;
}

const MARK = { fill: "none", stroke: INK, "stroke-width": 1.2 };

/** A ring (stale) or four corners (another environment) around a symbol of radius r. */
function markPath(mark, x, y, r) {
  const d = r + 4;
  if (mark === "stale") return symbolPath("circle", x, y, d);
  return [
    [-1, -1],
    [1, -1],
    [1, 1],
    [-1, 1],
  ]
    .map(([h, v]) => `M${px(x + h * d)} ${px(y + v * (d - 4))}v${4 * v}h${-4 * h}`)
    .join("");
}

function lineLook(line) {
  return { stroke: line.color ?? INK, "stroke-width": line.width ?? 1.6, "stroke-dasharray": line.dash || null, fill: "none" };
}

function bandLook(band) {
  if (band.kind === "floor")
    return {
      fill: "var(--kpt-floor)",
      "fill-opacity": 0.35,
      stroke: "var(--kpt-floor)",
      "stroke-width": 0.8,
      "stroke-dasharray": "2 2",
    };
  return { fill: "var(--kpt-same)", "fill-opacity": 0.75 };
}

/** Bands: {from, to} over the whole width, or {points: [[x, low, high], ...]} along x. */
function drawBands(area, scales, bands) {
  return (bands ?? []).map((band) => {
    const d = band.points
      ? areaPath(
          band.points.map(([x, low, high]) => ({ x: scales.x.at(x), low: scales.y.at(low), high: scales.y.at(high) })),
          area,
          scales.x,
        )
      : `M${area.left} ${px(scales.y.at(band.to))}h${area.width}V${px(scales.y.at(band.from))}h${-area.width}Z`;
    return svg("path", { d, ...bandLook(band) });
  });
}

/** The area between low and high along x; a single position, or a category, becomes a block. */
function areaPath(points, area, scale) {
  const half = scale.kind === "category" ? scale.slot * 0.46 : points.length === 1 ? 18 : 0;
  if (half)
    return points.map((p) => `M${px(p.x - half)} ${px(p.low)}h${px(2 * half)}V${px(p.high)}h${px(-2 * half)}Z`).join("");
  return `M${points.map((p) => `${px(p.x)} ${px(p.high)}`).join("L")}L${[...points]
    .reverse()
    .map((p) => `${px(p.x)} ${px(p.low)}`)
    .join("L")}Z`;
}

/** Lines: [[x, y], ...] joined; points `apart`, a single one, or categories as short strokes; `at` is a value across the panel. */
function drawLines(area, scales, lines) {
  return (lines ?? []).map((line) => {
    if (line.at !== undefined)
      return svg("path", { d: `M${area.left} ${px(scales.y.at(line.at))}h${area.width}`, ...lineLook(line) });
    const at = line.points.map(([x, y]) => [scales.x.at(x), scales.y.at(y)]);
    const strokes = line.apart || scales.x.kind === "category" || at.length === 1;
    const half = scales.x.kind === "category" ? scales.x.slot * 0.46 : line.apart ? 10 : 18;
    const d = strokes
      ? at.map(([x, y]) => `M${px(x - half)} ${px(y)}h${px(2 * half)}`).join("")
      : at.length
        ? `M${at.map(([x, y]) => `${px(x)} ${px(y)}`).join("L")}`
        : "";
    return svg("path", { d, ...lineLook(line) });
  });
}

/** Curve, interval and symbols of one series whose points carry pixels (px, py, plow, phigh). */
function drawSeries(series, radius, dense, ids, area) {
  const { color, dash, symbol } = styleOf(series.style);
  const parts = [];
  const points = series.points;
  const pale = isPale(series);
  const spread = points.filter((p) => p.plow !== null);
  if (series.connected && points.length > 1) {
    const shape = runs(points, (p) => p.plow !== null && !p.endless).map((run) =>
      areaPath(
        run.map((p) => ({ x: p.px, low: p.plow, high: p.phigh })),
        area,
        { kind: "linear" },
      ),
    );
    parts.push(svg("path", { d: shape.join(""), fill: color, "fill-opacity": 0.16 }));
    parts.push(
      svg("path", {
        d: `M${points.map((p) => `${px(p.px)} ${px(p.py)}`).join("L")}`,
        fill: "none",
        stroke: color,
        "stroke-width": 2,
        "stroke-dasharray": dash || null,
        "stroke-linejoin": "round",
      }),
    );
  }
  if (spread.length)
    parts.push(
      svg("path", {
        d: spread.map((p) => whisker(p, dense, area)).join(""),
        fill: "none",
        stroke: color,
        "stroke-width": dense ? 0.7 : 1.4,
        "stroke-opacity": dense ? 0.35 : 1,
      }),
    );
  for (const [hatched, faded] of [
    [false, true],
    [true, true],
    [false, false],
    [true, false],
  ]) {
    const some = points.filter((p) => Boolean(p.hatched) === hatched && Boolean(p.faded) === faded);
    if (!some.length) continue;
    const fill = hatched ? (dense ? "var(--kpt-paper)" : `url(#${ids}-${series.style})`) : color;
    const d = some.map((p) => symbolPath(symbol, p.px, p.py, hatched ? radius + 0.6 : radius)).join("");
    parts.push(
      svg("path", {
        d,
        fill,
        stroke: color,
        "stroke-width": hatched ? (dense ? 1 : 1.6) : 0.6,
        opacity: faded && !pale ? PALE : dense ? 0.8 : null,
      }),
    );
  }
  for (const mark of ["stale", "elsewhere"]) {
    const some = points.filter((p) => p.mark === mark);
    if (some.length)
      parts.push(
        svg("path", {
          d: some.map((p) => markPath(mark, p.px, p.py, radius)).join(""),
          ...MARK,
          "stroke-opacity": dense ? 0.5 : 1,
        }),
      );
  }
  return pale ? [svg("g", { opacity: PALE }, parts)] : parts;
}

const PALE = 0.4; // opacity of what stands behind the rest
const isPale = (series) => series.points.length > 0 && series.points.every((p) => p.faded);

/** Neighbours that pass a test, in groups of two or more. */
function runs(points, test) {
  const found = [];
  let run = [];
  for (const p of [...points, null]) {
    if (p && test(p)) run.push(p);
    else {
      if (run.length > 1) found.push(run);
      run = [];
    }
  }
  return found;
}

const ENDLESS = 20; // px of the arrow that stands for an end that nothing bounds

/** A whisker with caps; short arrows where the interval has no end, arrows at the edge where it leaves the panel. */
function whisker(p, dense, area) {
  if (dense) return p.endless ? "" : `M${px(p.px)} ${px(p.plow)}V${px(p.phigh)}`;
  const top = p.phigh === null ? p.py - ENDLESS : Math.max(p.phigh, area.top);
  const low = p.endless && p.plow > area.bottom ? p.py + ENDLESS : Math.min(p.plow, area.bottom);
  const upper = p.phigh === null || p.phigh < area.top ? `m-4 6l4 -6l4 6` : `m-4 0h8`;
  const lower = p.plow > area.bottom ? `M${px(p.px - 4)} ${px(low - 6)}l4 6l4 -6` : `M${px(p.px - 4)} ${px(low)}h8`;
  return `M${px(p.px)} ${px(low)}V${px(top)}${upper}${lower}`;
}
