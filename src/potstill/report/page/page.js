"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const phone = matchMedia("(max-width: 40rem)"), coarse = matchMedia("(pointer: coarse)").matches;
  const drawn = new Set();

  // A colour of a figure is a variable of the page's style, so that both themes have one source.
  function coloured(value, style) {
    if (typeof value === "string") {
      const found = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return found ? style.getPropertyValue(found[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((one) => coloured(one, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, style)]));
    }
    return value;
  }

  function layoutOf(figure) {
    const axis = { gridcolor: "var(--grid)", linecolor: "var(--rule)", zerolinecolor: "var(--rule)", automargin: true };
    const own = figure.layout, { legend, ...rest } = own;
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "var(--muted)" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 48, r: 14, t: own.showlegend === false ? 12 : 34, b: 40 },
      hovermode: "x unified", dragmode: coarse ? false : "zoom", uirevision: "kept", autosize: true,
      hoverlabel: { bgcolor: "var(--raised)", bordercolor: "var(--rule)", font: { color: "var(--text)" }, namelength: -1 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: "var(--text)" }, ...legend },
      ...rest, xaxis: { ...axis, ...own.xaxis }, yaxis: { ...axis, ...own.yaxis },
    };
  }

  function draw(plot) {
    const figure = figures[Number(plot.dataset.figure)], style = getComputedStyle(root);
    const config = { responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    Plotly.react(plot, coloured(figure.data, style), coloured(layoutOf(figure), style), config);
    if (drawn.has(plot)) return;
    drawn.add(plot);
    if (plot.parentElement.querySelector("select")) link(plot);
  }

  // The maps of a section show the same images in the same order: what is pointed at in one is shown in the other.
  const mapsBeside = (plot) => [...plot.closest(".grid").querySelectorAll(".plot")].filter((one) => drawn.has(one));
  function link(plot) {
    plot.on("plotly_hover", (event) => {
      const points = event.points.map((p) => ({ curveNumber: p.curveNumber, pointNumber: p.pointNumber }));
      for (const other of mapsBeside(plot)) {
        if (other !== plot && event.event) Plotly.Fx.hover(other, points);
      }
    });
    plot.on("plotly_unhover", () => {
      for (const other of mapsBeside(plot)) if (other !== plot) Plotly.Fx.unhover(other);
    });
  }

  for (const select of document.querySelectorAll("select[data-picks]")) {
    select.addEventListener("change", () => {
      for (const plot of select.closest(".grid").querySelectorAll(".plot")) {
        const chosen = Number(select.value);
        for (const trace of figures[Number(plot.dataset.figure)].data) {
          delete trace.selectedpoints;
          if (select.value !== "") trace.selectedpoints = trace.customdata.flatMap((d, i) => (d[0] === chosen ? [i] : []));
        }
        plot.parentElement.querySelector("select").value = select.value;
        if (drawn.has(plot)) draw(plot);
      }
    });
  }

  const redraw = () => drawn.forEach(draw);

  // Theme: as the system, light, dark.
  const button = document.getElementById("theme"), words = { "": "as the system", light: "light", dark: "dark" };
  const kept = () => { try { return localStorage.getItem("potstill-theme") || ""; } catch { return ""; } };
  function paint(theme, keep) {
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    button.textContent = `Theme: ${words[theme]}`;
    try { if (keep) localStorage.setItem("potstill-theme", theme); } catch { /* a browser that keeps nothing for files */ }
    redraw();
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    const order = Object.keys(words);
    paint(order[(order.indexOf(root.dataset.theme || "") + 1) % order.length], true);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  paint(kept() in words ? kept() : "", false);

  // Tabs, by the pattern of the ARIA practices: arrows move, Home and End go to the ends.
  for (const list of document.querySelectorAll('[role="tablist"]')) {
    const tabs = [...list.querySelectorAll('[role="tab"]')];
    const choose = (tab) => {
      for (const one of tabs) {
        one.setAttribute("aria-selected", String(one === tab));
        one.tabIndex = one === tab ? 0 : -1;
        document.getElementById(one.getAttribute("aria-controls")).classList.toggle("later", one !== tab);
      }
    };
    tabs.forEach((tab, place) => {
      tab.addEventListener("click", () => choose(tab));
      tab.addEventListener("keydown", (event) => {
        const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        const next = tabs[(to + tabs.length) % tabs.length];
        choose(next);
        next.focus();
      });
    });
  }

  // Pictures: the slider hides boxes of which the network is less sure, or makes masks clearer.
  for (const gallery of document.querySelectorAll(".gallery")) {
    const steer = gallery.querySelector(".steer"), slider = steer.querySelector('[type="range"]');
    const names = steer.querySelector("[data-names]"), scored = [...gallery.querySelectorAll("[data-score]")];
    steer.hidden = false;
    slider.addEventListener("input", () => {
      steer.querySelector("output").textContent = Number(slider.value).toFixed(2);
      if (slider.dataset.of === "mask") gallery.style.setProperty("--mask", slider.value);
      for (const one of scored) one.classList.toggle("low", Number(one.dataset.score) < Number(slider.value));
    });
    if (names) names.addEventListener("change", () => gallery.classList.toggle("named", names.checked));
  }

  // The section in view, in the navigation.
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const seen = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) seen.add(entry.target.id); else seen.delete(entry.target.id);
    }
    const first = [...links.keys()].find((id) => seen.has(id));
    links.forEach((a, id) => { if (id === first) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current"); });
  }, { rootMargin: "-80px 0px -55% 0px" });
  document.querySelectorAll("main section").forEach((section) => watcher.observe(section));

  // On paper: light, everything unfolded and drawn at the paper's width.
  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme || "", closed: [...document.querySelectorAll("details:not([open])")] };
    before.closed.forEach((one) => { one.open = true; });
    root.dataset.theme = "light";
    root.classList.add("printing");
    plots.forEach(draw);
  });
  addEventListener("afterprint", () => {
    if (!before) return;
    before.closed.forEach((one) => { one.open = false; });
    root.classList.remove("printing");
    paint(before.theme, false);
    before = null;
  });

  // Plots are drawn when they come near the view.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
    }
  }, { rootMargin: "300px" });

  plots.forEach((plot) => near.observe(plot));
  root.dataset.ready = "true";
})();
