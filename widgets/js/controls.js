// Labelled controls that work by keyboard in a page and in JupyterLab, where a cell's command mode takes the arrow keys, Space
// and Enter for itself: each control handles its keys and lets none of them bubble further.
//
// select, checks, slider and button return {element, set(...)}; set changes what is shown without calling onChange.
// Options and stops are values, or {value, label, disabled} where what is read differs from what is meant.

let controlCount = 0;

/** A unique id, so that several views in a page don't share labels. */
function controlId() {
  controlCount += 1;
  return `kpt-${controlCount}-${Math.random().toString(36).slice(2, 8)}`;
}

/** An HTML element. Attributes that are null or false are left out, `on...` ones are listeners; children are nodes or text. */
function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** {value, label, disabled} of an option that may be a bare value. */
function choice(option) {
  if (option !== null && typeof option === "object" && "value" in option) {
    return { value: option.value, label: String(option.label ?? option.value), disabled: Boolean(option.disabled) };
  }
  return { value: option, label: option === null || option === undefined ? "none" : String(option), disabled: false };
}

/** Keep a key from JupyterLab's shortcuts and from the page. */
function taken(event) {
  event.preventDefault();
  event.stopPropagation();
}

const modified = (event) => event.ctrlKey || event.metaKey || event.altKey;

/** The index that a key moves to among `count` steps from `from`, or null where the key means nothing here. */
function stepped(key, from, count) {
  const page = Math.max(2, Math.round(count / 10));
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: page, PageDown: -page, Home: -count, End: count };
  return key in steps ? Math.min(Math.max(from + steps[key], 0), count - 1) : null;
}

/** One value out of a list. onChange(value). */
function select(label, options, value, onChange) {
  const id = controlId();
  let choices = [];
  const box = node("select", { id, onchange: () => onChange(choices[box.selectedIndex].value), onkeydown: keys });

  function keys(event) {
    if (event.key === "Tab" || modified(event)) return;
    event.stopPropagation(); // letters select by name, and in command mode "d d" would delete the cell
    const last = choices.length - 1;
    const [wanted, way] = { ArrowDown: [box.selectedIndex + 1, 1], ArrowUp: [box.selectedIndex - 1, -1], Home: [0, 1], End: [last, -1] }[event.key] ?? [];
    if (way === undefined) return;
    event.preventDefault();
    const next = nearest(wanted, way);
    if (next === null || next === box.selectedIndex) return;
    box.selectedIndex = next;
    box.dispatchEvent(new Event("change", { bubbles: true }));
  }

  function nearest(from, way) {
    for (let i = from; i >= 0 && i < choices.length; i += way) if (!choices[i].disabled) return i;
    return null;
  }

  function set(chosen, wanted) {
    if (wanted) {
      const fresh = wanted.map(choice);
      if (JSON.stringify(fresh) !== JSON.stringify(choices)) {
        choices = fresh;
        box.replaceChildren(...choices.map((c, i) => node("option", { value: i, disabled: c.disabled }, c.label)));
      }
    }
    box.selectedIndex = choices.findIndex((c) => c.value === chosen);
    box.disabled = choices.length === 0;
  }

  set(value, options);
  return { element: node("div", { class: "kpt-control kpt-select" }, node("label", { for: id }, label), box), set };
}

/** Any number of values out of a list. onChange(values), in the list's order. */
function checks(label, options, chosen, onChange) {
  let choices = [];
  let boxes = [];
  const list = node("div", { class: "kpt-checks-list" });
  const report = () => onChange(choices.filter((_, i) => boxes[i].checked).map((c) => c.value));

  function press(event) {
    if (event.key === "Tab" || modified(event)) return;
    event.stopPropagation();
    if (event.key !== " ") return;
    event.preventDefault();
    if (event.type === "keydown" && !event.repeat) event.target.click();
  }

  function item(option) {
    const id = controlId();
    const box = node("input", { type: "checkbox", id, disabled: option.disabled, onchange: report, onkeydown: press, onkeyup: press });
    boxes.push(box);
    return node("span", { class: "kpt-check" }, box, node("label", { for: id }, option.label));
  }

  function set(values, wanted) {
    if (wanted) {
      const fresh = wanted.map(choice);
      if (JSON.stringify(fresh) !== JSON.stringify(choices)) {
        choices = fresh;
        boxes = [];
        list.replaceChildren(...choices.map(item));
      }
    }
    boxes.forEach((box, i) => {
      box.checked = values.includes(choices[i].value);
    });
  }

  set(chosen, options);
  return { element: node("fieldset", { class: "kpt-control kpt-checks" }, node("legend", {}, label), list), set };
}

/** A slider over a list of stops, with the value of the present one beside it. onChange(value) at each step. */
function slider(label, stops, value, onChange) {
  const id = controlId();
  let choices = [];
  const shown = node("output", { for: id });
  const range = node("input", { type: "range", id, min: 0, step: 1, oninput: moved, onkeydown: keys });

  function tell() {
    const text = choices.length ? choices[Number(range.value)].label : "none";
    shown.textContent = text;
    range.setAttribute("aria-valuetext", text);
  }

  function moved() {
    tell();
    onChange(choices[Number(range.value)].value);
  }

  function keys(event) {
    if (modified(event)) return;
    const to = stepped(event.key, Number(range.value), choices.length);
    if (to === null) return;
    taken(event);
    if (to === Number(range.value)) return;
    range.value = String(to);
    range.dispatchEvent(new Event("input", { bubbles: true }));
  }

  function set(chosen, wanted) {
    if (wanted) {
      choices = wanted.map(choice);
      range.max = String(Math.max(choices.length - 1, 0));
    }
    range.disabled = choices.length < 2;
    range.value = String(Math.max(choices.findIndex((c) => c.value === chosen), 0));
    tell();
  }

  set(value, stops);
  return { element: node("div", { class: "kpt-control kpt-slider" }, node("label", { for: id }, label), range, shown), set };
}

/** A button. set(label, disabled). */
function button(label, onClick) {
  const element = node("button", { type: "button", class: "kpt-control kpt-button", onclick: () => onClick(), onkeydown: press, onkeyup: press }, label);

  function press(event) {
    if ((event.key !== "Enter" && event.key !== " ") || modified(event)) return;
    taken(event);
    if (event.type === "keydown" && !event.repeat) element.click();
  }

  return {
    element,
    set(text, disabled = false) {
      element.textContent = text;
      element.disabled = disabled;
    },
  };
}

/**
 * A view of sliders over one picture, in `root`: its controls, a sentence, a legend, the picture as wide as the page allows, a
 * table and a source. `name` is its part of the class names; `parts` makes each from the data and the whole state.
 */
function dials(root, name, parts, data, state, onState, sharing) {
  let table = data;
  let chosen = { ...state };
  const controls = board(`kpt-${name}-controls`);
  const told = node("p", { class: "kpt-formula", role: "status" });
  const keys = node("p", { class: "kpt-bit-legend" });
  const stage = node("div", { class: `kpt-${name}-stage` });
  const facts = node("div", { class: "kpt-map-place" });
  const source = node("p", { class: "kpt-source" });
  const view = node("div", {}, controls.element, told, keys, stage, facts, source, shareRow(sharing, () => chosen));
  root.append(view);

  function change(patch) {
    chosen = { ...parts.state(table, chosen), ...patch };
    draw();
    onState({ ...chosen });
  }

  function draw() {
    const full = parts.state(table, chosen);
    controls.show(parts.controls(table, full, change));
    told.textContent = parts.sentence(table, full);
    keys.replaceChildren(...parts.legend(table, full));
    stage.replaceChildren(parts.picture(table, full, Math.max(Math.floor(stage.clientWidth), 240)));
    facts.replaceChildren(parts.table(table, full));
    source.textContent = parts.source(table);
  }

  let wide = 0;
  const watcher = new ResizeObserver(() => {
    if (Math.floor(stage.clientWidth) === wide) return;
    wide = Math.floor(stage.clientWidth);
    draw();
  });
  draw();
  watcher.observe(stage);
  return {
    update(newData, newState) {
      table = newData ?? table;
      chosen = { ...newState };
      draw();
    },
    remove() {
      watcher.disconnect();
      view.remove();
    },
  };
}
