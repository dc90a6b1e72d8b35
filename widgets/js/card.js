// The words of a point (its tooltip and what a screen reader says) and its card: all that is known of one result.

const VERDICT_WORDS = {
  FASTER: "FASTER: the whole interval lies above 1x",
  SLOWER: "SLOWER: the whole interval lies below 1x",
  SAME: "SAME: the whole interval lies within 2% of 1x",
  UNCLEAR: "UNCLEAR: the interval reaches from slower to faster",
};
const CONTRACT_WORDS = {
  same: "same: within the data type's error of a float64 reference",
  lossy: "lossy: within tolerance of the technique's own definition; it differs from the original",
  random: "random: equal in distribution",
};

/** "one process (exploratory), 111 blocks". */
function processWords(row) {
  const processes = row.processes === 1 ? "one process (exploratory)" : counted(row.processes, "process");
  return row.blocks ? `${processes}, ${counted(row.blocks, "block")}` : processes;
}

/** "softmax.forward, bfloat16, rows 4096, cols 8192". */
const cellWords = (cell) => [cell.workload, cell.dtype, placeWords(cell)].filter(Boolean).join(", ");

const deviceWords = (cell) => cell.environment.device || cell.target || "this machine";

/** Lines in words of what a point shows: technique, conditions, value, verdict, processes, device, age. */
function pointWords(plan, row) {
  const { cell } = row;
  const lines = [row.technique, cellWords(cell)];
  const provenance = row.metrics[plan.metric]?.provenance ?? row.metrics.time?.provenance ?? "";
  if (plan.metric === "speedup") {
    const found = row.ratios[plan.over];
    lines.push(
      found.over === row.technique ? "1x: it is the baseline here" : `${ratioWords(found)} over ${found.over || plan.over}`,
    );
    if (row.metrics.time) lines.push(`median ${metricWords(row.metrics.time)}`);
  } else {
    lines.push(`${metricName(plan.metric)} ${metricWords(row.metrics[plan.metric])}`);
  }
  lines.push([provenance, processWords(row)].filter(Boolean).join(", "), `on ${deviceWords(cell)}`);
  if (row.stale) lines.push("stale: the code has changed since");
  if (cell.environment.elsewhere) lines.push(`another environment: ${cell.environment.elsewhere}`);
  return lines.join("\n");
}

/** Terms and descriptions of the card, [term, text or node]. */
function cardFacts(plan, row) {
  const { cell } = row;
  const facts = [
    ["conditions", cellWords(cell)],
    ["device", deviceWords(cell)],
  ];
  if (row.status !== "ok") facts.push(["status", spaced(row.status)], ["why", row.advice || "No reason was recorded."]);
  facts.push(...speedupFacts(plan, row), ...timeFacts(plan, row));
  for (const [name, found] of Object.entries(row.metrics)) {
    if (name !== "time" && name !== "bound") facts.push([metricName(name), `${metricWords(found)}, ${found.provenance}`]);
  }
  facts.push(["contract", CONTRACT_WORDS[row.contract] ?? row.contract]);
  if (row.processes) facts.push(["runs", processWords(row)]);
  facts.push(["arithmetic", [cell.arithmetic, cell.cache && `cache ${cell.cache}`].filter(Boolean).join(", ")]);
  facts.push(["environment", cell.environment.text], ["elsewhere", cell.environment.elsewhere], ["recorded", cell.at]);
  facts.push(["stale", row.stale], ["source", row.unknown], ["reproduce", commandNode(cell.command)]);
  return facts.filter(([, text]) => text);
}

/** One line for each baseline, the chosen one first with its verdict in words. */
function speedupFacts(plan, row) {
  if (row.status !== "ok") return [];
  const overs = [plan.over, ...plan.overs.filter((over) => over !== plan.over)].filter(Boolean);
  const facts = [];
  for (const over of overs) {
    const found = row.ratios[over];
    if (!found) continue;
    const term = `over ${overName(over)}`;
    if (found.over === row.technique) facts.push([term, "it is the baseline here"]);
    else if (!hasRatio(row, over)) facts.push([term, found.reason]);
    else {
      const named = over === BEST_BASELINE && found.over ? `, which is ${found.over}` : "";
      const value = withInterval(found.value, found.low, found.high, ratio) + named;
      facts.push([term, [value, VERDICT_WORDS[found.verdict], found.reason].filter(Boolean).join(". ")]);
    }
  }
  const predicted = row.predicted[plan.over] ?? row.cell.predicted[plan.over];
  if (predicted && row.ratios[plan.over]?.over !== row.technique) {
    facts.push(["predicted", `${ratio(predicted.value)}: ${predicted.text.charAt(0).toLowerCase()}${predicted.text.slice(1)}`]);
  }
  const { floorLow, floorHigh } = row.cell;
  if (floorLow !== null && floorHigh !== null) {
    const figures = figuresOf(1, floorLow, floorHigh);
    facts.push(["noise floor", `eager against its twin: ${ratio(floorLow, figures)} to ${ratio(floorHigh, figures)}`]);
  }
  return facts;
}

/** Time, the bound with the share of it that is reached, and the copy of the same bytes. */
function timeFacts(plan, row) {
  const { cell } = row;
  const { time } = row.metrics;
  const bound = boundOf(cell, row);
  const facts = [];
  if (time) facts.push(["time of a call", `median ${metricWords(time)}, ${time.provenance}`]);
  if (bound) {
    const reached = time ? `, of which ${share(bound / time.value)} is reached` : "";
    facts.push(["bound", `${quantity(bound, "s")}${reached}${cell.boundSource ? ` (${cell.boundSource})` : ""}`]);
  }
  const ahead = cell.predicted[plan.over]?.copy;
  if (cell.copy)
    facts.push([
      "copy of the bytes",
      quantity(cell.copy, "s") + (ahead ? `, ${ratio(ahead)} over ${overName(plan.over)}` : ""),
    ]);
  return facts;
}

function commandNode(command) {
  return command
    ? node(
        "div",
        { class: "kpt-command" },
        node(
          "code",
          {},
          command.split(" ").flatMap((word, i) => [i ? " " : "", node("span", {}, word)]),
        ),
        copyButton("Copy command", () => command).element,
      )
    : null;
}

/** The card of a row. onClose is called by its button and by Escape. */
function pointCard(plan, row, onClose) {
  const card = node(
    "section",
    { class: "kpt-card", tabindex: -1, "aria-label": `${row.technique}, ${cellWords(row.cell)}` },
    button("Close", onClose).element,
    node("p", { class: "kpt-heading" }, row.technique),
    factList(cardFacts(plan, row)),
  );
  card.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    taken(event);
    onClose();
  });
  return card;
}
