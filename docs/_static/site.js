// What pages do when they are open: mount the views, draw the figures in the reader's theme, let the keyboard reach what scrolls.
(function () {
  "use strict";

  const DARK = matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 560; // px: below this, figures get smaller type

  // A page opened as a file may not fetch the others, from which Sphinx's search takes its excerpts.
  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

  function dark() {
    const chosen = document.body.dataset.theme || "auto";
    return chosen === "dark" || (chosen !== "light" && DARK.matches);
  }

  function read(box) {
    return JSON.parse(box.querySelector(':scope > script[type="application/json"]').textContent);
  }

  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Site");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "This page");

  // ---- views

  for (const box of document.querySelectorAll(".kpt-view")) {
    const data = (window.kptData || {})[box.dataset.columns];
    const state = read(box);
    if (data && window.kptLab) {
      window.kptLab.mount(box, box.dataset.view, data, state);
      box.style.minHeight = "";
    } else {
      const said = document.createElement("p");
      said.className = "site-noscript";
      said.textContent = "This view could not be drawn: a file of this site is missing. Build it again with make site.";
      box.append(said);
    }
  }

  // ---- figures

  /** The same with the other theme's colours, wherever a colour stands in it. */
  function recoloured(value, swap) {
    if (typeof value === "string") {
      return value
        .replace(/#[0-9a-f]{6}\b/gi, (hex) => swap.hex[hex.toLowerCase()] || hex)
        .replace(/rgba\(\d+, ?\d+, ?\d+, ?/g, (start) => swap.rgba[start.replaceAll(" ", "")] || start);
    }
    if (Array.isArray(value)) return typeof value[0] === "number" && typeof value.at(-1) === "number" ? value : value.map((item) => recoloured(item, swap));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, key === "bdata" ? item : recoloured(item, swap)]));
    }
    return value;
  }

  function swapFor(isDark) {
    const hex = {};
    const rgba = {};
    const numbers = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16)).join(",");
    for (const [light, night] of Object.entries(window.kptLook.swap)) {
      const [from, to] = isDark ? [light, night] : [night, light];
      hex[from] = to;
      rgba[`rgba(${numbers(from)},`] = `rgba(${numbers(to)},`;
    }
    return { hex, rgba };
  }

  function draw(figure) {
    const box = figure.querySelector(".site-plot-box");
    const { data, layout } = recoloured(read(figure), swapFor(dark()));
    const narrow = box.clientWidth < NARROW;
    const font = narrow ? { ...layout.font, size: 10.5 } : layout.font;
    const template = window.kptLook.templates[dark() ? "dark" : "light"];
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
    const drawn = { ...layout, font, template, dragmode: narrow ? false : "zoom" };
    return window.Plotly.react(box, data, drawn, config).then(() => name(figure, box));
  }

  /** A drawing is one image for a screen reader; its points stand in the table below it. */
  function name(figure, box) {
    for (const svg of box.querySelectorAll("svg.main-svg")) svg.setAttribute("aria-hidden", "true");
    for (const link of box.querySelectorAll(".modebar-btn")) {
      link.setAttribute("role", "button");
      if (!link.getAttribute("aria-label")) link.setAttribute("aria-label", link.dataset.title || "Tool of the figure");
    }
    figure.dataset.drawn = "yes";
  }

  async function drawAll() {
    for (const figure of document.querySelectorAll(".site-plot")) {
      await draw(figure);
      await new Promise((done) => setTimeout(done)); // let the reader scroll in between
    }
    reach();
  }

  // ---- what scrolls sideways can be focused, so that the arrow keys move it

  function reach() {
    for (const box of document.querySelectorAll(".table-wrapper, .highlight pre, .site-scroll, .output pre")) {
      if (box.scrollWidth > box.clientWidth + 1) {
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", box.tagName === "PRE" ? "Code or its output, scrolls sideways" : "Table or figure, scrolls sideways");
      } else {
        for (const attribute of ["tabindex", "role", "aria-label"]) box.removeAttribute(attribute);
      }
    }
  }

  /** Plotly takes a while to start: it may once the views have had a frame to show themselves in. */
  function fetchPlotly(then) {
    const named = document.querySelector("script[data-later]");
    if (!named || !window.kptLook) return;
    const script = document.createElement("script");
    script.src = named.src;
    script.onload = then;
    requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => document.head.append(script))));
  }

  addEventListener("DOMContentLoaded", () => {
    reach();
    fetchPlotly(showFigures);
  });
  addEventListener("resize", reach);

  function showFigures() {
    drawAll();
    let shown = dark();
    const follow = () => {
      if (dark() !== shown) {
        shown = dark();
        drawAll();
      }
    };
    new MutationObserver(follow).observe(document.body, { attributes: true, attributeFilter: ["data-theme"] });
    DARK.addEventListener("change", follow);
  }
})();
