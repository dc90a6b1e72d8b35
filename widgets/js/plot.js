// A figure in SVG that is read by pointer, by keyboard and by screen reader.
//
// plot(spec) -> {element, svg(), update(spec), focusPoint(key)}
// spec: {title, subtitle, notes: [..], description, height,
//   x: {label, kind: "log" | "linear" | "category", unit, categories, ticks, format}, y: {the same, include, zero, reach},
//   series: [{name, style, points: [{x, y, low, high, hatched, faded, mark, key, label}], connected}],
//   lines: [{name, points: [[x, y]..], dash, color} or {.., points: [], at: y} or {.., apart: true}], bands: [{name, kind: "same" | "floor", from, to} or {.., points: [[x, low, high]..]}],
//   hatchedName, table: () => {head: [..], rows: [[..]..]}, onPick(key)}
// label is text, or a function that returns it (for many points), its lines separated by \n; high may be Infinity; mark is "stale" or "elsewhere".

const TABLE_ROWS = 1000; // what "Data as a table" lists at most; the CSV holds everything

/** A figure; see the head of this file. */
function plot(spec) {
  const ids = controlId();
  const stage = node("div", { class: "kpt-plot-stage", tabindex: 0, role: "application", "aria-roledescription": "figure" });
  const live = node("div", { class: "kpt-offscreen", "aria-live": "polite" });
  const table = node(
    "details",
    { class: "kpt-plot-table", ontoggle: () => fillTable() },
    node("summary", { onkeydown: keepKey, onkeyup: keepKey }, "Data as a table"),
  );
  const element = node("div", { class: "kpt-plot" }, stage, live, table);
  let [canvas, points, current, geometry] = [null, [], null, null];
  const tip = tooltip(stage);

  function keepKey(event) {
    if (event.key === "Enter" || event.key === " ") event.stopPropagation();
  }

  function draw() {
    const width = Math.max(Math.floor(stage.clientWidth || 720), 240);
    geometry = figure(spec, width, ids);
    points = geometry.points;
    if (canvas) canvas.replaceWith(geometry.element);
    else stage.prepend(geometry.element);
    canvas = geometry.element;
    stage.setAttribute(
      "aria-label",
      `${spec.title ?? "Figure"}. ${points.length} points. Arrow keys move between points, Enter opens a point, Escape leaves it.`,
    );
    const before = current;
    const alike = (p) => p.x === before.x && spec.series[p.series].name === before.name;
    const again = before && (points.find((p) => alike(p) && p.key === before.key) ?? points.find(alike));
    current = null;
    if (again && document.activeElement === stage) show(again, false);
    else tip.hide();
  }

  function text(point) {
    return typeof point.label === "function" ? point.label() : (point.label ?? "");
  }

  function show(point, aloud) {
    current = point;
    const ring = geometry.ring;
    ring.replaceChildren();
    if (!point) return tip.hide();
    ring.append(svg("circle", { cx: px(point.px), cy: px(point.py), r: 10, fill: "none", stroke: INK, "stroke-width": 2 }));
    const lines = text(point).split("\n");
    tip.show(lines, point.px, point.py);
    if (aloud) live.textContent = lines.join(". ");
    return undefined;
  }

  function nearest(x, y, reach) {
    let [best, least] = [null, reach * reach];
    for (const p of points) {
      const distance = (p.px - x) ** 2 + (p.py - y) ** 2;
      if (distance < least) [best, least] = [p, distance];
    }
    return best;
  }

  function under(event) {
    const box = stage.getBoundingClientRect();
    return nearest(event.clientX - box.left, event.clientY - box.top, event.pointerType === "touch" ? 36 : 26);
  }

  stage.addEventListener("pointermove", (event) => {
    const found = under(event);
    if (found !== current) show(found, false);
    stage.style.cursor = found && spec.onPick ? "pointer" : "";
  });
  stage.addEventListener("pointerleave", () => show(null, false));
  stage.addEventListener("click", (event) => {
    const found = under(event);
    if (found && spec.onPick) spec.onPick(found.key);
  });
  stage.addEventListener("blur", () => show(null, false));
  stage.addEventListener("focus", () => {
    if (!current && points.length && stage.matches(":focus-visible")) show(points[0], true);
  });
  stage.addEventListener("keydown", (event) => {
    if (modified(event)) return;
    if (event.key === "Enter" || event.key === " ") {
      taken(event);
      if (current && spec.onPick) spec.onPick(current.key);
    } else if (event.key === "Escape" && current) {
      taken(event);
      show(null, false);
    } else if (["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) {
      taken(event);
      const next = neighbour(points, current, event.key);
      if (next) show(next, true);
    }
  });

  function fillTable() {
    if (!table.open) return;
    const { head, rows } = spec.table ? spec.table() : pointTable(spec);
    const line = (cells, tag) =>
      node(
        "tr",
        {},
        cells.map((c) => node(tag, tag === "th" ? { scope: "col" } : {}, c === null || c === undefined ? "" : String(c))),
      );
    const shown = rows.slice(0, TABLE_ROWS);
    const box = node(
      "div",
      { class: "kpt-plot-rows", tabindex: 0, role: "region", "aria-label": "Data as a table" },
      node(
        "table",
        {},
        node("caption", {}, spec.title ?? "Data"),
        node("thead", {}, line(head, "th")),
        node(
          "tbody",
          {},
          shown.map((r) => line(r, "td")),
        ),
      ),
    );
    const more =
      rows.length > shown.length
        ? [node("p", {}, `The first ${shown.length} of ${rows.length} rows. The CSV holds all of them.`)]
        : [];
    table.replaceChildren(table.firstElementChild, box, ...more);
  }

  const watcher = new ResizeObserver(() => {
    if (!geometry || Math.max(Math.floor(stage.clientWidth), 240) !== geometry.width) draw();
  });
  draw();
  watcher.observe(stage);

  return {
    element,
    svg: () => canvas,
    update(next) {
      spec = next;
      draw();
      fillTable();
    },
    focusPoint(key) {
      current = points.find((p) => p.key === key) ?? points[0] ?? null; // so that focusing says nothing of another point
      stage.focus();
      show(current, false);
    },
    remove: () => watcher.disconnect(),
  };
}

/** Rows of a spec's points for the table. */
function pointTable(spec) {
  const rows = spec.series.flatMap((s) =>
    s.points.map((p) => [s.name, p.x, p.y, p.low, p.high === Infinity ? "unbounded" : p.high]),
  );
  return { head: ["", spec.x.label, spec.y.label, "low", "high"], rows };
}

/** The point that an arrow key moves to: along its series, or up and down among the points at the same place. */
function neighbour(points, from, key) {
  if (!points.length) return null;
  if (!from || key === "Home") return points.reduce((a, b) => (b.px < a.px ? b : a));
  if (key === "End") return points.reduce((a, b) => (b.px > a.px ? b : a));
  const sideways = key === "ArrowRight" || key === "ArrowLeft";
  const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  let [best, least] = [null, Infinity];
  for (const p of points) {
    if (p === from) continue;
    const [dx, dy] = [p.px - from.px, p.py - from.py];
    const ahead = sideways ? dx * sign : dy * sign;
    if (ahead < (sideways ? 0.5 : 0) || (ahead === 0 && p.key <= from.key)) continue;
    if (!sideways && Math.abs(dx) > 14) continue;
    const cost = sideways ? dx * sign + Math.abs(dy) * 0.01 + (p.series === from.series ? 0 : 1e4) : ahead + Math.abs(dx) * 0.1;
    if (cost < least) [best, least] = [p, cost];
  }
  return best;
}

/** The SVG of a spec at a width: {element, points with pixels, ring, width}. */
function figure(spec, width, ids) {
  const all = spec.series.flatMap((s) => s.points);
  const dense = all.length > DENSE;
  const [low, high] = extent(
    spec.y,
    all.map((p) => p.y),
    figureExtras(spec, all),
  );
  const [lines, outside] = insideLines(spec, low, high);
  spec = { ...spec, lines, notes: [...(spec.notes ?? []), ...outside] };
  const [heading, headingHeight] = figureHeading(spec, width);
  const [key, keyHeight] = legend(legendEntries(spec, ids), 2, headingHeight + 2, width - 4);
  const height = spec.height ?? (width < 520 ? 280 : 360);
  const top = headingHeight + keyHeight + (spec.y.label ? 34 : 12);
  const area = { top, bottom: top + height, outer: 2 };
  const y = scaleFor(spec.y, low, high, area.bottom, area.top);
  const { ticks, room } = yTicks(y, spec.y, height);
  [area.left, area.width] = [room, width - room - 14];
  const x = figureScale(spec, all, area);
  placePoints(spec, { x, y }, area);
  const radius = dense ? 2.3 : all.length > 200 ? 3.6 : 5;
  const [notes, notesHeight] = paragraph(spec.notes, 2, area.bottom + 48, width - 4, 11.5, { fill: MUTED });
  const total = Math.ceil(area.bottom + 54 + notesHeight);
  const clip = `${ids}-clip`;
  const layers = [
    drawBands(area, { x, y }, spec.bands),
    drawLines(area, { x, y }, lines),
    [...spec.series].sort((a, b) => isPale(b) - isPale(a)).map((s) => drawSeries(s, radius, dense, ids, area)),
  ];
  const ring = svg("g");
  const [titleId, descId] = [`${ids}-title`, `${ids}-desc`];
  const element = svg(
    "svg",
    {
      class: "kpt-svg",
      viewBox: `0 0 ${width} ${total}`,
      width,
      height: total,
      role: "img",
      "aria-labelledby": `${titleId} ${descId}`,
      "font-family": FONT,
    },
    svg("title", { id: titleId }, spec.title ?? "Figure"),
    svg("desc", { id: descId }, [spec.subtitle, spec.description].filter(Boolean).join(". ")),
    svg(
      "defs",
      {},
      patterns(spec, ids),
      svg("clipPath", { id: clip }, svg("rect", { x: area.left, y: area.top - 1, width: area.width, height: height + 2 })),
    ),
    svg("rect", { width, height: total, fill: "var(--kpt-paper)" }),
    heading,
    key,
    yAxis(area, y, spec.y, ticks),
    svg("g", { "clip-path": `url(#${clip})` }, layers.flat(2)),
    xAxis(area, x, spec.x, xTicks(spec, x, area)),
    notes,
    ring,
  );
  return { element, points: all.filter((p) => p.py >= area.top - 1 && p.py <= area.bottom + 1), ring, width };
}

/** The lines that are seen between low and high, and a sentence for each that isn't. */
function insideLines(spec, low, high) {
  const write = spec.y.format ?? ((v) => quantity(v, spec.y.unit ?? "1"));
  const [kept, notes] = [[], []];
  for (const line of spec.lines ?? []) {
    const values = line.points.map((p) => p[1]);
    if (line.at !== undefined) values.push(line.at);
    if (!values.length) continue;
    if (values.some((v) => v >= low && v <= high)) kept.push(line);
    else {
      const ends = [...new Set([Math.min(...values), Math.max(...values)].map((v) => write(v)))];
      const where = values.every((v) => v > high) ? "above" : values.every((v) => v < low) ? "below" : "above and below";
      if (line.name) notes.push(`The ${line.name} lies ${where} what is shown, at ${ends.join(" to ")}.`);
    }
  }
  return [kept, notes];
}

/** The x scale of a figure, a little inside its area. */
function figureScale(spec, points, area) {
  if (spec.x.kind === "category") return categoryScale(spec.x.categories, area.left, area.left + area.width);
  const inset = Math.min(16, area.width / 20);
  const xs = points.map((p) => p.x).concat((spec.lines ?? []).filter((l) => l.wide).flatMap((l) => l.points.map((p) => p[0])));
  let [first, last] = xs.length ? [Math.min(...bounded(xs, Math.min)), Math.max(...bounded(xs, Math.max))] : [1, 10];
  if (first === last) [first, last] = spec.x.kind === "log" ? [first / 2, last * 2] : [first - 1, last + 1];
  return scaleFor(spec.x, first, last, area.left + inset, area.left + area.width - inset);
}

/** Title and subtitle, wrapped; [elements, height]. */
function figureHeading(spec, width) {
  const [title, titleHeight] = paragraph(spec.title ? [spec.title] : [], 2, 2, width - 4, 16, { "font-weight": 600 });
  const [under, underHeight] = paragraph(spec.subtitle ? [spec.subtitle] : [], 2, titleHeight + 4, width - 4, 12.5, {
    fill: MUTED,
  });
  return [[...title, ...under], titleHeight + underHeight + 10];
}

/** What the y axis shows if it is near: ends of intervals, lines and bands. */
function figureExtras(spec, points) {
  return [
    ...points.flatMap((p) => [p.low, p.high]),
    ...(spec.lines ?? []).flatMap((line) => line.points.map((p) => p[1])),
    ...(spec.bands ?? []).flatMap((band) => (band.points ? band.points.flatMap((p) => [p[1], p[2]]) : [band.from, band.to])),
  ];
}

/** Pixels of each point; series side by side within a category. Sorts connected series along x. */
function placePoints(spec, { x, y }, area) {
  const shared =
    x.kind === "category" &&
    spec.series.reduce((n, s) => n + new Set(s.points.map((p) => p.x)).size, 0) >
      new Set(spec.series.flatMap((s) => s.points.map((p) => p.x))).size;
  const step = shared ? Math.min(22, (x.slot * 0.8) / Math.max(spec.series.length, 1)) : 0;
  spec.series.forEach((series, i) => {
    const shift = step * (i - (spec.series.length - 1) / 2);
    if (x.kind !== "category" && series.connected !== false) series.points.sort((a, b) => a.x - b.x);
    series.connected =
      x.kind !== "category" &&
      series.connected !== false &&
      series.points.every((p, k) => !k || p.x !== series.points[k - 1].x);
    for (const p of series.points) {
      p.series = i;
      p.name = series.name;
      p.px = x.at(p.x) + shift;
      p.py = y.at(p.y);
      const none = p.low === null || p.low === undefined;
      p.plow = none ? null : spec.y.kind === "log" && p.low <= 0 ? area.bottom + 9 : y.at(p.low);
      p.endless = !none && (p.high === Infinity || p.high === null || p.high === undefined);
      p.phigh = none || p.endless ? null : y.at(p.high);
    }
  });
}

/** The values on the x axis: those of the points where they are few, else the scale's. */
function xTicks(spec, scale, area) {
  if (spec.x.ticks) return spec.x.ticks;
  const own =
    scale.kind === "category" ? [] : [...new Set(spec.series.flatMap((s) => s.points.map((p) => p.x)))].sort((a, b) => a - b);
  return own.length && own.length <= Math.max(12, area.width / 60)
    ? own
    : scale.ticks(Math.max(3, Math.floor(area.width / 75)));
}

function patterns(spec, ids) {
  const styles = [...new Set(spec.series.map((s) => s.style))];
  return [hatching(`${ids}-muted`, MUTED), ...styles.map((i) => hatching(`${ids}-${i}`, styleOf(i).color))];
}
