// Predict, then reveal: the reader says what speedup they expect; only then are the measured one, its interval and what models
// say put beside it. Nothing of the answer is in the page before.

const PER_OCTAVE = 16; // steps of the slider: about 4% each
const FAR_BOUND = 10; // speedups from which the bound says more about launches than about the kernel
const NEAR = 0.1; // a guess counts as right within the interval, or this close to the measured ratio

/** All questions: rows with a measured ratio over another technique, as {cell, row, found}. */
function questionsOf(table, over) {
  const asked = (row) => hasRatio(row, over) && row.ratios[over].over !== row.technique && row.status === "ok";
  return table.rows.filter(asked).map((row) => ({ cell: row.cell, row, found: row.ratios[over] }));
}

/** The slider's stops: from 0.25x to 8x, or as far as any answer goes, so that the ends tell nothing about this one. */
function guessStops(questions) {
  const logs = questions.map((q) => Math.log2(q.found.value)).filter(Number.isFinite);
  const low = Math.min(-2, Math.floor(Math.min(0, ...logs)));
  const high = Math.max(3, Math.ceil(Math.max(0, ...logs)));
  return Array.from({ length: (high - low) * PER_OCTAVE + 1 }, (_, i) => {
    const value = 2 ** (low + i / PER_OCTAVE);
    return { value: Number(value.toPrecision(6)), label: ratio(value) };
  });
}

/** What the models say before any measurement: {limit, limitText, predicted, copy}; values are null where unknown. */
function modelled({ cell, row }, over) {
  const [most, own] = [cell.predicted?.[over], row.predicted?.[over]];
  return { limit: most?.value ?? null, limitText: most?.text ?? "", predicted: own?.value ?? null, predictedText: own?.text ?? "", copy: most?.copy ?? null };
}

/** Whether a guess lies in the interval, or near the measured value. */
function isRight(guess, found) {
  const inside = found.low !== null && guess >= found.low && guess <= (found.high ?? Infinity) && found.verdict !== "UNCLEAR";
  return inside || Math.abs(guess / found.value - 1) <= NEAR;
}

/** Everything that the view asks for a state. */
function revealPlan(table, state) {
  const overs = table.overs.filter((over) => questionsOf(table, over).length);
  const over = overs.includes(state.over) ? state.over : overs[0];
  const every = over ? questionsOf(table, over) : [];
  const cells = [...new Set(every.map((q) => q.cell))];
  const { cells: left, chosen } = narrowed(cells, table.facets, state);
  const here = every.filter((q) => left.includes(q.cell));
  const techniques = table.techniques.filter((t) => here.some((q) => q.row.technique === t));
  const technique = techniques.includes(state.technique) ? state.technique : (techniques.find((t) => !here.find((q) => q.row.technique === t).row.baseline) ?? techniques[0]);
  const question = here.find((q) => q.row.technique === technique) ?? null;
  return { overs, over, every, chosen, techniques, technique, question, stops: guessStops(every) };
}

/** The state's keys that lead to a question. */
function pathTo(table, question) {
  const named = table.facets.map((facet) => [facet.key, facet.of(question.cell)]);
  return { ...Object.fromEntries(named.filter(([, value]) => value !== null && value !== undefined)), technique: question.row.technique };
}

/** What is shown beside each other once it is revealed: {name, value, low, high, kind}. */
function revealMarks(question, over, guess) {
  const { found } = question;
  const model = modelled(question, over);
  return [
    { name: "you", kind: "guess", value: guess },
    { name: "measured", kind: "measured", value: found.value, low: found.low, high: found.high },
    { name: "modelled", kind: "model", value: model.predicted },
    { name: "modelled, at most", kind: "bound", value: model.limit },
    { name: "a copy of the bytes", kind: "copy", value: model.copy },
  ].filter((mark) => mark.value !== null);
}

/** The outcome in sentences. */
function revealSentence(question, over, guess) {
  const { found, row } = question;
  const { limit, limitText, predicted, predictedText, copy } = modelled(question, over);
  const parts = [`You expected ${ratio(guess)}; ${row.metrics.time?.provenance || "measured"} ${ratioWords(found)} over ${found.over}.`];
  parts.push(isRight(guess, found) ? "Your guess counts as right." : `Your guess was ${guess > found.value ? "too high" : "too low"}.`);
  if (found.verdict === "UNCLEAR") parts.push("The measurement itself is unclear.");
  if (predicted !== null) parts.push(`The model says ${ratio(predicted)}: ${predictedText}.`);
  if (limit !== null) parts.push(`The bound allows at most ${ratio(limit)}${limitText.replace(/^At most this/, "")}.`);
  if (limit > FAR_BOUND) parts.push("The bound leaves out what it costs to launch a kernel, which is most of so small a call.");
  if (copy !== null) parts.push(`A copy of the same bytes was ${ratio(copy)} as fast as ${found.over}.`);
  return parts.join(" ");
}

/** Predict-then-reveal in `root`. */
function reveal(root, data, state = {}, onState = () => {}, sharing = null) {
  let table = indexed(data);
  let chosen = { ...state };
  let plan = null;
  const guesses = new Map(); // row index and baseline -> the guess that was revealed
  let guess = typeof state.guess === "number" && state.guess > 0 ? state.guess : 1;
  const controls = board("kpt-reveal-controls");
  const question = node("p", { class: "kpt-reveal-question" });
  const expectation = slider("the speedup you expect", [1], 1, (value) => {
    guess = value;
  });
  const press = button("Reveal", pressed);
  const score = node("p", { class: "kpt-reveal-score", role: "status" });
  const answer = node("div", { class: "kpt-reveal-answer", "aria-live": "polite" });
  const ask = node("div", { class: "kpt-reveal-ask" }, expectation.element, press.element);
  const view = node("div", {}, controls.element, question, ask, answer, score, shareRow(sharing, () => chosen));
  root.append(view);

  const keyOf = (q) => `${q.row.index} ${plan.over}`;

  function change(patch) {
    chosen = { ...chosen, ...patch };
    draw();
    onState({ ...chosen });
  }

  function pressed() {
    if (!plan.question) return;
    if (!guesses.has(keyOf(plan.question))) {
      guesses.set(keyOf(plan.question), { guess, right: isRight(guess, plan.question.found) });
      draw();
      return;
    }
    const start = plan.every.indexOf(plan.question);
    const later = [...plan.every.slice(start + 1), ...plan.every.slice(0, start + 1)];
    const next = later.find((q) => !guesses.has(keyOf(q))) ?? later[0];
    guess = 1;
    change({ ...pathTo(table, next), over: plan.over });
  }

  function draw() {
    plan = revealPlan(table, chosen);
    controls.show(revealControls(plan, change));
    const asked = plan.question;
    const known = asked && guesses.get(keyOf(asked));
    expectation.set(stopNear(plan.stops, known ? known.guess : guess), plan.stops);
    expectation.element.querySelector("input").disabled = Boolean(known) || !asked;
    press.set(known ? "Another question" : "Reveal", !asked);
    question.textContent = asked ? questionWords(plan) : "No measured speedup is here to be guessed.";
    answer.replaceChildren(...(known ? revealed(table, plan.over, asked, known.guess, plan.stops) : []));
    const right = [...guesses.values()].filter((g) => g.right).length;
    score.textContent = guesses.size ? `Right so far: ${right} of ${guesses.size} (in the interval, or within ${share(NEAR)}).` : "";
  }

  draw();
  return {
    update(newData, newState) {
      if (newData) {
        table = indexed(newData);
        guesses.clear(); // row numbers mean other rows now
      }
      chosen = { ...newState };
      draw();
    },
    remove: () => view.remove(),
  };
}

/** The stop's value that is nearest to a guess: the range may have changed since. */
function stopNear(stops, guess) {
  return stops.reduce((best, s) => (Math.abs(Math.log(s.value / guess)) < Math.abs(Math.log(best.value / guess)) ? s : best)).value;
}

function questionWords({ question, over }) {
  const { cell, row, found } = question;
  const place = [cell.workload, placeWords(cell), cell.dtype, cell.environment.device].filter(Boolean).join(", ");
  const baseline = over === "best baseline" ? `the best baseline, ${found.over}` : over;
  return `How many times as fast as ${baseline} is ${row.technique}? ${place}.`;
}

function revealControls(plan, change) {
  return [
    ...plan.chosen.slice(0, 1).map((c) => facetControl(c, change)),
    { key: "technique", kind: "select", label: "technique", options: plan.techniques, value: plan.technique, pick: (v) => change({ technique: v }) },
    { key: "over", kind: "select", label: "over", options: plan.overs, value: plan.over, pick: (v) => change({ over: v }) },
    ...plan.chosen.slice(1).map((c) => facetControl(c, change)),
  ];
}

/** The axis with all marks, the sentence and the facts. */
function revealed(table, over, question, guess, stops) {
  return [
    revealAxis(revealMarks(question, over, guess), stops),
    node("p", { class: "kpt-reveal-sentence" }, revealSentence(question, over, guess)),
    node("details", {}, node("summary", { onkeydown: own, onkeyup: own }, "How it was measured"), factList(cardFacts({ over, overs: table.overs, metric: "speedup" }, question.row))),
  ];

  function own(event) {
    if (event.key === "Enter" || event.key === " ") event.stopPropagation();
  }
}

/** One logarithmic axis in percent of the width, so that it fits any: a line for each mark, 1x across all. */
function revealAxis(marks, stops) {
  const values = marks.filter((m) => m.kind !== "bound").flatMap((m) => [m.value, m.low, m.high]).filter((v) => v > 0 && Number.isFinite(v));
  const low = Math.min(stops[0].value, ...values);
  const high = Math.max(stops.at(-1).value, ...values);
  const [left, right] = [2, 98];
  const scale = logScale(low, high, left, right);
  const at = (value) => `${Math.min(Math.max(scale.at(value), left), right).toFixed(2)}%`;
  const tall = 34 * marks.length;
  const ticks = [...new Set([low, ...Array.from({ length: 21 }, (_, i) => 2 ** (i - 10)), high])].filter((t) => t >= low && t <= high && Number.isInteger(Math.log2(t)));
  const some = ticks.filter((t) => Math.log2(t) % Math.ceil(ticks.length / 8) === 0);
  const picture = svg("svg", { class: "kpt-reveal-axis", width: "100%", height: tall + 26, "aria-hidden": "true" });
  for (const tick of some) {
    picture.append(svg("line", { x1: at(tick), x2: at(tick), y1: 0, y2: tall, class: tick === 1 ? "kpt-reveal-one" : "kpt-reveal-tick" }));
    picture.append(svg("text", { x: at(tick), y: tall + 18, "text-anchor": "middle" }, ratio(tick)));
  }
  marks.forEach((mark, k) => {
    const y = 34 * k + 22;
    const group = svg("g", { class: `kpt-reveal-${mark.kind}` });
    if (mark.low !== null && mark.low !== undefined) {
      const from = mark.low > 0 ? mark.low : low;
      group.append(svg("line", { x1: at(from), x2: at(mark.high ?? high), y1: y, y2: y, class: "kpt-reveal-interval" }));
    }
    const beyond = mark.value > high; // a bound far away must not squeeze the rest
    if (mark.kind === "bound" || mark.kind === "copy") group.append(svg("line", { x1: at(mark.value), x2: at(mark.value), y1: y - 9, y2: y + 9, class: "kpt-reveal-interval" }));
    else group.append(svg("circle", { cx: at(mark.value), cy: y, r: 6 }));
    const side = scale.at(mark.value) > 60 ? "end" : "start";
    group.append(svg("text", { x: at(mark.value), y: y - 10, dx: side === "end" ? -10 : 10, dy: 14, "text-anchor": side }, `${mark.name} ${ratio(mark.value)}${beyond ? " →" : ""}`));
    picture.append(group);
  });
  return picture;
}
