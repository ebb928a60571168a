// The curves of a page, drawn by uPlot. Charts of one kind share the cursor and the zoom; runs and measures can be hidden;
// an axis can be logarithmic. What was chosen stays when the page is drawn anew, in other colours or with new data.
"use strict";

const curves = (() => {
  const HEIGHT = 190, FEW = 40;
  const DASHES = [[], [6, 4], [2, 3]];
  const hidden = new Set(), logarithmic = new Set(), zooms = {};
  let data = null, drawn = [], whole = {};

  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = place => style(`--c${place % 8}`);
  const key = chart => `${chart.kind}: ${chart.names.join(", ")}`;
  const several = () => data.runs.length > 1;

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // 0.01234, 12.34, 12,345, 1.2e-6
  const short = value => {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size !== 0 && size < 1e-4) return value.toExponential(2);
    return value.toLocaleString("en", { maximumSignificantDigits: size < 1e4 ? 4 : 7 });
  };
  const ofAxis = value => {
    if (value == null) return "";
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
    return size !== 0 && size < 1e-3 ? value.toExponential(0) : String(+value.toPrecision(6));
  };

  const steps = series => { let at = 0; return series.x.map(more => at += more); };

  // The place of the nearest step at which a series has a value: others have theirs at other steps.
  const nearest = (values, place) => {
    for (let away = 0; away < values.length; away++) {
      if (values[place - away] != null) return place - away;
      if (values[place + away] != null) return place + away;
    }
    return place;
  };

  const lastOf = values => { for (let k = values.length; k--;) if (values[k] != null) return values[k]; return null; };

  // The steps that all charts of a kind show: those between two, or without them all that any run has.
  function zoomTo(kind, ends) {
    zooms[kind] = ends;
    const [min, max] = ends || whole[kind];
    for (const { chart, plot } of drawn) if (chart.kind === kind) plot.setScale("x", { min, max });
    for (const button of document.querySelectorAll(".whole")) button.hidden = !zooms[button.dataset.kind];
  }

  // A dashed line where unrelated views would be, and its name, if it lies in what is shown.
  function level(plot, [name, value]) {
    const { left, top, width, height } = plot.bbox, y = plot.valToPos(value, "y", true);
    if (!(y >= top && y <= top + height)) return;
    const { ctx } = plot, ratio = devicePixelRatio;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = style("--soft");
    ctx.setLineDash([3 * ratio, 4 * ratio]);
    ctx.lineWidth = ratio;
    ctx.beginPath();
    ctx.moveTo(left, y);
    ctx.lineTo(left + width, y);
    ctx.stroke();
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    ctx.textBaseline = y - top > 16 * ratio ? "bottom" : "top";
    ctx.fillText(name, left + width - 4 * ratio, y + (y - top > 16 * ratio ? -2 : 3) * ratio);
    ctx.restore();
  }

  // Two fingers zoom, one shows the values; up and down still moves the page.
  function touched(plot, kind) {
    let held = null;
    const places = event => [...event.touches].map(touch => touch.clientX - plot.over.getBoundingClientRect().left);
    const begin = event => {
      const at = places(event);
      held = at.length === 2 ? at.map(left => plot.posToVal(left, "x")) : null;
      if (held) event.preventDefault();
    };
    const move = event => {
      const [first, second] = places(event);
      if (!held) return plot.setCursor({ left: first, top: plot.over.clientHeight / 2 });
      event.preventDefault();
      const each = (held[1] - held[0]) / (second - first), from = held[0] - first * each;
      if (each > 0 && isFinite(each)) zoomTo(kind, [from, from + each * plot.over.clientWidth]);
    };
    plot.over.addEventListener("touchstart", begin, { passive: false });
    plot.over.addEventListener("touchmove", move, { passive: false });
  }

  const axis = more => ({
    stroke: style("--soft"), font: "11px system-ui, sans-serif", grid: { stroke: style("--rule"), width: 1 },
    ticks: { stroke: style("--rule"), width: 1, size: 4 }, values: (plot, found) => found.map(ofAxis), ...more,
  });

  function seriesOf(chart, table) {
    return chart.series.map((series, place) => {
      const measure = chart.names.length > 1 ? series.name : "", order = chart.names.indexOf(series.name);
      const label = several() ? [data.runs[series.run], measure].filter(Boolean).join(", ") : series.name;
      const stroke = several() ? colour(series.run) : colour(order);
      return {
        label, stroke, width: 1.5, dash: several() ? DASHES[order % DASHES.length] : [],
        show: !hidden.has(data.runs[series.run]) && !hidden.has(`${key(chart)}/${label}`),
        points: { show: series.x.length < FEW, size: 5, fill: stroke },
        value: (plot, value, at, index) => short(index == null ? lastOf(table[place + 1]) : value),
      };
    });
  }

  function plotted(chart, into, width) {
    const table = uPlot.join(chart.series.map(series => [steps(series), series.y]));
    const plot = new uPlot({
      width, height: HEIGHT, padding: [8, 8, 0, 0],
      scales: { x: { time: false, range: () => zooms[chart.kind] || whole[chart.kind] }, y: logarithmic.has(key(chart)) ? { distr: 3 } : {} },
      axes: [
        axis({ size: 26, gap: 4, space: 60 }),
        axis({ size: (_, found) => 16 + 6.2 * Math.max(2, ...(found || []).map(text => text.length)), gap: 4, space: 32 }),
      ],
      series: [
        { label: "step", value: (_, value) => value == null ? "last" : value.toLocaleString("en") },
        ...seriesOf(chart, table),
      ],
      cursor: {
        y: false, points: { size: 7 }, drag: { x: true, y: false, dist: 5, setScale: false },
        sync: { key: chart.kind, setSeries: false, filters: { pub: type => type === "mousemove" || type === "mouseleave" } },
        dataIdx: (self, at, place) => place == null || at === 0 ? place : nearest(self.data[at], place),
        bind: { dblclick: () => () => { zoomTo(chart.kind); return null; } },
      },
      hooks: {
        draw: [self => chart.lines.forEach(line => level(self, line))],
        setSelect: [self => {
          const { left, width } = self.select;
          if (!width) return;
          self.setSelect({ left: 0, width: 0 }, false);
          zoomTo(chart.kind, [left, left + width].map(place => self.posToVal(place, "x")));
        }],
        setSeries: [(self, at, { show }) => {
          if (at == null || show == null) return;
          const name = `${key(chart)}/${self.series[at].label}`;
          if (show) hidden.delete(name); else hidden.add(name);
        }],
      },
    }, table, into);
    touched(plot, chart.kind);
    return plot;
  }

  function framed(chart, width) {
    const frame = element("figure", "chart"), head = element("figcaption"), into = element("div", "plot");
    head.append(element("span", "", chart.title));
    if (chart.series.every(series => series.y.every(value => value == null || value > 0))) {
      const button = element("button", "log", "log");
      button.type = "button";
      button.title = "logarithmic axis";
      button.setAttribute("aria-pressed", logarithmic.has(key(chart)));
      button.addEventListener("click", () => {
        if (!logarithmic.delete(key(chart))) logarithmic.add(key(chart));
        draw(data);
      });
      head.append(button);
    }
    frame.append(head, into);
    return { chart, frame, into };
  }

  // Which runs are shown, in all charts at once.
  function runButtons() {
    const bar = element("div", "runs");
    data.runs.forEach((name, place) => {
      const button = element("button"), swatch = element("span", "swatch");
      button.type = "button";
      button.setAttribute("aria-pressed", !hidden.has(name));
      swatch.dataset.run = place;
      button.append(swatch, name);
      button.addEventListener("click", () => { if (!hidden.delete(name)) hidden.add(name); draw(data); });
      bar.append(button);
    });
    return bar;
  }

  function headed(chart, before) {
    const heads = [];
    if (before && before.section === chart.section && before.kind === chart.kind) return heads;
    const head = element("h3", "", chart.kind === "pre-training" ? chart.section : `${chart.section} (${chart.kind})`);
    const whole = element("button", "whole", "show all steps");
    whole.type = "button";
    whole.dataset.kind = chart.kind;
    whole.hidden = !zooms[chart.kind];
    whole.addEventListener("click", () => zoomTo(chart.kind));
    head.append(" ", whole);
    return [head, element("div", "charts")];
  }

  // {kind: [first step, last step]} of all curves; one step alone has room on both sides.
  function extents() {
    const found = {};
    for (const chart of data.charts) {
      for (const series of chart.series) {
        const at = steps(series), [from, to] = found[chart.kind] || [Infinity, -Infinity];
        found[chart.kind] = [Math.min(from, at[0]), Math.max(to, at[at.length - 1])];
      }
    }
    for (const [kind, [from, to]] of Object.entries(found)) if (from === to) found[kind] = [from - 1, to + 1];
    return found;
  }

  function draw(given) {
    data = given;
    whole = extents();
    drawn.forEach(({ plot }) => plot.destroy());
    const place = document.getElementById("charts"), frames = [];
    for (const swatch of document.querySelectorAll(".swatch")) swatch.style.setProperty("--swatch", colour(+swatch.dataset.run));
    drawn = [];
    if (!place) return;
    place.replaceChildren(...(several() ? [runButtons()] : []));
    data.charts.forEach((chart, at) => {
      place.append(...headed(chart, data.charts[at - 1]));
      frames.push(framed(chart));
      place.lastElementChild.append(frames[at].frame);
    });
    if (data.charts.length) place.append(element("p", "note", "Drag, or two fingers, to zoom all; double click for all steps."));
    for (const swatch of place.querySelectorAll(".swatch")) swatch.style.setProperty("--swatch", colour(+swatch.dataset.run));
    drawn = frames.map(({ chart, into }) => ({ chart, into, plot: plotted(chart, into, into.clientWidth) }));
  }

  function resized() {
    for (const { into, plot } of drawn) if (into.clientWidth) plot.setSize({ width: into.clientWidth, height: HEIGHT });
  }

  // The first and the last step that each chart shows.
  const shown = () => drawn.map(({ plot }) => [plot.scales.x.min, plot.scales.x.max]);

  return { draw: given => draw(given || data), resized, shown };
})();
