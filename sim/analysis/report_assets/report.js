"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  // Okabe and Ito; a symbol tells policies apart where colour does not.
  // On a dark page blue and black would be lost: they are lighter there.
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches && !document.documentElement.classList.contains("printing");
  const LIGHTER = { "#0072b2": "#4ba3df", "#000000": "#e8eaed", "#8c510a": "#d9a066", "#666666": "#a9b0b9" };
  const seen = (colour) => (isDark() && LIGHTER[colour.toLowerCase()]) || colour;
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
  const SHARES = new Set(["slo_attainment", "violation", "refused_share"]);
  const OUTCOME_COLOURS = { finished: "#009E73", refused: "#E69F00", evicted: "#CC79A7", failed: "#D55E00", cancelled: "#999999", unfinished: "#56B4E9" };
  const narrow = () => window.innerWidth < 640;
  const short = (path) => path.split(".").slice(-2).join(".");

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((one) => one.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        return "v" in cell.dataset ? (cell.dataset.v === "" ? NaN : Number(cell.dataset.v)) : cell.textContent;
      };
      const order = (a, b) => {
        const x = key(a), y = key(b);
        if (typeof x === "string") return x.localeCompare(y, undefined, { numeric: true });
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || 0;
        return x - y;
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => (rising ? order(a, b) : order(b, a)));
      table.tBodies[0].append(...rows);
    }));
  }

  function choices(id, values, labels) {
    byId(id).replaceChildren(...values.map((value, i) => new Option(labels ? labels[i] : value, value)));
    if (values.length < 2 && byId(`${id}-box`)) byId(`${id}-box`).hidden = true;
  }

  function layout(more) {
    const base = {
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13, color: css("--ink") },
      margin: { l: narrow() ? 45 : 60, r: 28, t: 32, b: 50 }, hovermode: "closest", autosize: true,
      legend: { orientation: "h", yanchor: "top", y: -0.34, x: 0, traceorder: "normal" }, paper_bgcolor: css("--page"), plot_bgcolor: css("--page"),
    };
    return { ...base, ...more };
  }
  // Without showSendToCloud: false there would be a button that uploads the numbers.
  const CONFIG = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  const axis = (title, more) => ({ title: { text: title }, gridcolor: css("--grid"), zerolinecolor: css("--zero"), automargin: true, ...more });
  const drawn = new Set();
  const draw = (id, traces, shape) => {
    drawn.add(id);
    Plotly.react(id, traces, layout(shape), { ...CONFIG, displayModeBar: narrow() ? false : "hover" });
  };

  // Plots have the width of the screen; on paper they would run off its edge.
  const PAPER_PX = 680;
  function redraw() {
    if (!drawn.size) return;
    metricPlot();
    outcomePlot();
    if (data.overTime.length) timePlots();
  }
  function paper(printing) {
    document.documentElement.classList.toggle("printing", printing);
    if (matchMedia("(prefers-color-scheme: dark)").matches) redraw();
    drawn.forEach((id) => Plotly.relayout(id, printing ? { autosize: false, width: PAPER_PX } : { autosize: true, width: null }));
  }
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  function errors(points) {
    const known = points.some((p) => p[1] !== null);
    return known ? { type: "data", symmetric: false, array: points.map((p) => (p[2] === null ? 0 : p[2] - p[0])), arrayminus: points.map((p) => (p[1] === null ? 0 : p[0] - p[1])), thickness: 1.3, width: 4 } : undefined;
  }

  // Names that are longer than an axis has room for lose their middle, unless two of them would then be one.
  const MOST_NAME = 28;
  function fitted(names) {
    const cut = (name) => (name.length > MOST_NAME ? `${name.slice(0, MOST_NAME - 9)}\u2026${name.slice(-8)}` : name);
    return new Set(names.map(cut)).size === new Set(names).size ? cut : (name) => name;
  }

  function metricPlot() {
    const metric = byId("metric").value, byTenant = data.intervals[metric], path = byId("path").value;
    const wanted = byId("tenant").value in byTenant ? byId("tenant").value : Object.keys(byTenant)[0];
    const format = SHARES.has(metric) ? ".1%" : ".4~g", title = data.metrics[metric];
    byId("tenant-box").hidden = !data.varied.length || data.tenants.length < 2;
    const numeric = data.varied.length && data.cases.every((one) => one.variant[path] !== "" && !Number.isNaN(Number(one.variant[path])));
    const traces = data.policies.map((policy, k) => {
      const look = { color: seen(COLOURS[k % COLOURS.length]), symbol: SYMBOLS[k % SYMBOLS.length], size: 9 };
      if (!data.varied.length) {
        const at = data.cases.findIndex((one) => one.policy === policy);
        const tenants = Object.keys(byTenant).filter((tenant) => byTenant[tenant][at][0] !== null);
        const points = tenants.map((tenant) => byTenant[tenant][at]);
        return { type: "bar", name: policy, x: tenants, y: points.map((p) => p[0]), error_y: errors(points), marker: { color: look.color }, hovertemplate: `%{x}, ${policy}: %{y:${format}}<extra></extra>` };
      }
      const cases = data.cases.map((one, i) => [one, byTenant[wanted][i]]).filter(([one, p]) => one.policy === policy && p[0] !== null);
      if (numeric) cases.sort((a, b) => Number(a[0].variant[path]) - Number(b[0].variant[path]));
      const points = cases.map(([, p]) => p);
      return {
        type: "scatter", mode: data.varied.length === 1 && numeric ? "lines+markers" : "markers", name: policy, marker: look, line: { color: look.color, width: 1.5 },
        x: cases.map(([one]) => (numeric ? Number(one.variant[path]) : one.variant[path])), y: points.map((p) => p[0]),
        error_y: points.length > 60 ? undefined : errors(points),
        text: cases.map(([one, p]) => one.label + (p[1] === null ? "" : `<br>95 % interval ${p[1]} to ${p[2]}`)),
        hovertemplate: `%{text}<br>%{y:${format}}<extra></extra>`,
      };
    });
    const y = axis(narrow() ? "" : title, { rangemode: "tozero", type: byId("log").checked ? "log" : "linear", tickformat: SHARES.has(metric) ? ".0%" : undefined });
    const xaxis = axis(data.varied.length ? short(path) : "", { type: numeric ? "linear" : "category" });
    const shape = { barmode: "group", yaxis: y, xaxis };
    const names = [...new Set(traces.flatMap((trace) => trace.x))];
    if (!numeric && names.length && (names.length > 10 || names.some((name) => name.length > MOST_NAME))) {
      // Names stand upright then: the legend goes above, where they do not reach, and the bars keep their height.
      const every = Math.ceil(names.length / (narrow() ? 18 : 60));
      const told = names.filter((_, i) => i % every === 0 || i === names.length - 1);
      Object.assign(xaxis, { tickvals: told, ticktext: told.map(fitted(names)) });
      Object.assign(shape, { height: 560, margin: { l: narrow() ? 45 : 60, r: 28, t: 70, b: 50 }, legend: { orientation: "h", yanchor: "bottom", y: 1.03, x: 0, traceorder: "normal" } });
    }
    draw("plot-metric", traces, shape);
  }

  function outcomePlot() {
    const variant = byId("variant").value;
    const chosen = data.cases.map((one, i) => [one, i]).filter(([one]) => JSON.stringify(one.variant) === variant);
    const rows = Object.keys(data.outcomes).flatMap((tenant) => chosen.map(([one, i]) => ({ tenant, policy: one.policy, counts: data.outcomes[tenant][i] }))).reverse();
    const shown = fitted(rows.map((row) => row.tenant));
    const total = rows.map((row) => row.counts.reduce((sum, n) => sum + (n || 0), 0));
    const traces = data.outcomeNames.map((name, k) => ({
      type: "bar", orientation: "h", name, marker: { color: OUTCOME_COLOURS[name] }, y: [rows.map((row) => shown(row.tenant)), rows.map((row) => row.policy)],
      x: rows.map((row, i) => (total[i] ? (row.counts[k] || 0) / total[i] : 0)), customdata: rows.map((row) => row.counts[k]),
      hovertemplate: `%{y}: ${name} %{x:.1%} (%{customdata:,.1f} requests)<extra></extra>`,
    })).filter((trace) => trace.x.some((share) => share > 0));
    draw("plot-outcomes", traces, { barmode: "stack", height: 170 + 34 * rows.length, xaxis: axis("share of offered requests", { tickformat: ".0%", range: [0, 1] }), yaxis: { automargin: true }, legend: { orientation: "h", yanchor: "top", y: -85 / (88 + 34 * rows.length), x: 0, traceorder: "normal" } });
  }

  const shading = () => ({
    shapes: data.phases.map(([x0, x1]) => ({ type: "rect", xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, fillcolor: css("--shade"), opacity: 0.06, line: { width: 0 }, layer: "below" })),
    annotations: data.phases.map(([x0, x1, text]) => ({ x: (x0 + x1) / 2, y: 1, yref: "paper", yanchor: "bottom", text, showarrow: false, font: { size: 11, color: css("--muted") } })),
  });

  function timePlots() {
    const run = data.overTime[Number(byId("run").value)];
    const traces = Object.entries(run.tenants).flatMap(([tenant, one]) => {
      const colour = seen(data.looks[tenant] || "#000000");
      const found = [];
      if (one.t.length) {
        found.push({ type: "scatter", mode: "lines+markers", name: tenant, legendgroup: tenant, x: one.t, y: one.p99, customdata: one.n, line: { color: colour, width: 2 }, marker: { size: 5 }, hovertemplate: `${tenant} P99 %{y:.3g} s of %{customdata} requests<extra></extra>` });
        found.push({ type: "scatter", mode: "lines", name: `${tenant}: median`, legendgroup: tenant, showlegend: false, x: one.t, y: one.p50, line: { color: colour, width: 1, dash: "dot" }, hovertemplate: `${tenant} median %{y:.3g} s<extra></extra>` });
      }
      if (one.refused) found.push({ type: "bar", name: `${tenant}: refused`, legendgroup: tenant, showlegend: !one.t.length, x: one.refusedT, y: one.refused, yaxis: "y2", marker: { color: colour, opacity: 0.3 }, hovertemplate: `${tenant}: %{y} refused<extra></extra>` });
      return found;
    });
    const most = Math.max(1, ...Object.values(run.tenants).flatMap((one) => one.refused || []));
    const at = axis(data.timeLabel);
    draw("plot-latency", traces, { height: 420, margin: { l: narrow() ? 45 : 60, r: narrow() ? 35 : 60, t: 32, b: 50 }, xaxis: at, yaxis: axis(narrow() ? "" : "time to first token (s)", { rangemode: "tozero" }), yaxis2: { overlaying: "y", side: "right", title: { text: narrow() ? "" : `refused per ${run.windowS} s` }, rangemode: "tozero", showgrid: false, dtick: Math.max(1, Math.ceil(most / 4)) }, barmode: "stack", ...shading() });
    const names = [["waiting", css("--muted"), "tozeroy"], ["running", css("--ink"), "none"], ["capacity_slots", css("--limit"), "none"]].filter(([name]) => name in run.pool);
    const queue = names.map(([name, color, fill]) => ({ type: "scatter", mode: "lines", name: name.replace("_", " "), x: run.pool.t, y: run.pool[name], fill, fillcolor: css("--wait"), line: { color, width: 1.6, shape: name === "capacity_slots" ? "hv" : "linear", dash: name === "capacity_slots" ? "dot" : "solid" } }));
    byId("plot-queue").hidden = !queue.length;
    if (queue.length) draw("plot-queue", queue, { height: 320, margin: { l: narrow() ? 45 : 60, r: narrow() ? 35 : 60, t: 32, b: 50 }, xaxis: at, yaxis: axis(narrow() ? "" : "sequences", { rangemode: "tozero" }), ...shading() });
  }

  async function plotly() {
    const packed = Uint8Array.from(atob(byId("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function start() {
    document.querySelectorAll("table.sortable").forEach(sortable);
    if (!data.cases.length || !Object.keys(data.metrics).length || typeof DecompressionStream === "undefined") return;
    await plotly();
    byId("plots").hidden = false;
    byId("no-plots").remove();
    choices("metric", Object.keys(data.metrics), Object.values(data.metrics));
    choices("tenant", [...data.tenants].reverse());
    choices("path", data.varied, data.varied.map(short));
    byId("path-box").hidden = data.varied.length < 2;
    const variants = [...new Set(data.cases.map((one) => JSON.stringify(one.variant)))];
    choices("variant", variants, variants.map((text) => Object.entries(JSON.parse(text)).map(([path, value]) => `${short(path)}=${value}`).join(", ")));
    for (const id of ["metric", "tenant", "path", "log"]) byId(id).addEventListener("change", metricPlot);
    byId("variant").addEventListener("change", outcomePlot);
    metricPlot();
    outcomePlot();
    if (data.overTime.length) {
      choices("run", data.overTime.map((_, i) => String(i)), data.overTime.map((one) => one.label));
      byId("run").addEventListener("change", timePlots);
      timePlots();
    } else byId("over-time").hidden = true;
    document.documentElement.dataset.ready = "plots";
  }
  start();
})();
