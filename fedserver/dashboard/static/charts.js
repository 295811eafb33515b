// Charts on uPlot. Each is an image to a screen reader, described by the table beside it.

import { bytes } from "./format.js";

const TIERS = ["#2f7ed8", "#d9702b", "#2f9e63", "#a35bc0", "#b8901c", "#cf4a78", "#2c97ab", "#7d858f"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const PHASES = { open: "#8f98a3", collect: "#2f7ed8", fold: "#2f9e63", abandoned: "#cf4a3a" };
const HEIGHT = 240;
const drawn = new Map();

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function axis(extra) {
  const [stroke, grid] = [style("--quiet"), style("--grid")];
  return { stroke, font: "12px system-ui, 'DejaVu Sans', sans-serif", grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, ...extra };
}

// Draws `data` anew where the series are the same, else makes the chart anew.
function draw(id, data, series, axes, label, scales = {}) {
  const box = document.getElementById(id);
  box.hidden = data[0].length === 0;
  box.setAttribute("aria-label", label);
  if (box.hidden) return;
  const shape = JSON.stringify([series.map((s) => [s.label, s.stroke]), style("--quiet")]);
  const before = drawn.get(id);
  if (before?.shape === shape) {
    before.chart.setData(data);
    return;
  }
  before?.chart.destroy();
  const chart = new uPlot(
    {
      width: Math.max(200, box.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      cursor: { drag: { x: true, y: false }, points: { show: false } },
      scales: { x: { time: false }, ...scales },
      axes: axes.map(axis),
      series: [{}, ...series],
    },
    data,
    box,
  );
  drawn.set(id, { chart, shape });
}

export function resize() {
  for (const [id, { chart }] of drawn) {
    const width = document.getElementById(id).clientWidth;
    if (width && width !== chart.width) chart.setSize({ width, height: HEIGHT });
  }
}

export function clear() {
  for (const { chart } of drawn.values()) chart.destroy();
  drawn.clear();
}

function legend(id, entries) {
  const items = entries.map(([text, colour, dash]) => {
    const item = document.createElement("li");
    const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const shape = { x1: 0, x2: "100%", y1: "50%", y2: "50%", stroke: colour, "stroke-width": 4, "stroke-dasharray": dash?.join(" ") || "none" };
    for (const [name, value] of Object.entries(shape)) line.setAttribute(name, value);
    picture.setAttribute("aria-hidden", "true");
    picture.append(line);
    item.append(picture, text);
    return item;
  });
  document.getElementById(id).replaceChildren(...items);
}

// series: from /series; tiers: name -> [client]; heldOut: the server's own figures by round, or null.
export function figures(series, tiers, heldOut, metric) {
  const names = [...tiers.keys()];
  const colour = (tier) => TIERS[names.indexOf(tier) % TIERS.length];
  const dash = (tier) => DASHES[Math.floor(names.indexOf(tier) / TIERS.length + names.indexOf(tier)) % DASHES.length];
  const data = [series.round];
  const lines = [];
  for (const [tier, clients] of tiers) {
    for (const client of clients) {
      data.push(series.clients[client]);
      lines.push({ label: client, stroke: `${colour(tier)}${clients.length > 20 ? "30" : "70"}`, width: 1, spanGaps: true, points: { show: series.round.length === 1 } });
    }
  }
  for (const [tier, clients] of tiers) {
    data.push(means(series, clients));
    lines.push({ label: `${tier} mean`, stroke: colour(tier), width: 2.5, dash: dash(tier), spanGaps: true, points: { show: series.round.length === 1 } });
  }
  const entries = names.map((tier) => [`${tier}: mean, and thin each client`, colour(tier), dash(tier)]);
  if (heldOut) {
    data.push(heldOut);
    lines.push({ label: "held out", stroke: style("--text"), width: 1.5, dash: [3, 3], spanGaps: true, points: { show: series.round.length === 1 } });
    entries.push(["global model on held-out data", style("--text"), [3, 3]]);
  }
  legend("accuracy-legend", series.round.length ? entries : []);
  draw("accuracy-chart", data, lines, [{ label: "round", labelSize: 20, size: 34 }, { size: 56 }], `${metric} over rounds, by client and tier`);
}

function means(series, clients) {
  return series.round.map((_, place) => {
    const known = clients.map((client) => series.clients[client][place]).filter((value) => value != null);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  });
}

// rounds: the columns of /rounds.
export function timeline(rounds) {
  const places = rounds.id.map((_, place) => place);
  const counted = (place) => (rounds.status[place] === "closed" ? 1 : 0);
  const total = (place) => rounds.open[place] + rounds.collect[place] + rounds.fold[place];
  const data = [
    places,
    places.map((p) => (counted(p) ? null : Math.max(total(p), 0.01))),
    places.map((p) => (counted(p) ? total(p) : null)),
    places.map((p) => (counted(p) ? rounds.open[p] + rounds.collect[p] : null)),
    places.map((p) => (counted(p) ? rounds.open[p] : null)),
  ];
  const bars = uPlot.paths.bars({ size: [0.75, 40] });
  // The highest first: each bar covers the foot of the one before.
  const series = ["abandoned", "fold", "collect", "open"].map((label) => ({ label, stroke: PHASES[label], fill: PHASES[label], width: 0, paths: bars, points: { show: false } }));
  const names = (_, splits) => splits.map((place) => (Number.isInteger(place) ? `${rounds.round[place] ?? ""}` : ""));
  legend("rounds-legend", places.length ? [["plan and encode", PHASES.open], ["collect", PHASES.collect], ["fold", PHASES.fold], ...(rounds.status.includes("abandoned") ? [["abandoned", PHASES.abandoned]] : [])] : []);
  const range = (_, low, high) => [Math.min(low, 0) - 0.6, high + 0.6];
  draw("rounds-chart", data, series, [{ label: "round", labelSize: 20, size: 34, values: names }, { size: 56, values: (_, v) => v.map((s) => `${s} s`) }], "seconds of each round by phase", { x: { time: false, range }, y: { range: (_, low, high) => [0, high * 1.05 || 1] } });
}

// sent, dense: running sums in bytes.
export function traffic(rounds, sent, dense) {
  const series = [
    { label: "full precision", stroke: PHASES.open, dash: [6, 4], width: 2 },
    { label: "travelled", stroke: PHASES.collect, fill: `${PHASES.collect}28`, width: 2 },
  ].map((line) => ({ ...line, points: { show: rounds.id.length === 1 } }));
  legend("bytes-legend", rounds.id.length ? [["would travel in full precision", PHASES.open, [6, 4]], ["travelled", PHASES.collect]] : []);
  const names = (_, splits) => splits.map((place) => (Number.isInteger(place) ? `${rounds.round[place] ?? ""}` : ""));
  draw("bytes-chart", [rounds.id.map((_, place) => place), dense, sent], series, [{ label: "round", labelSize: 20, size: 34, values: names }, { size: 70, values: (_, v) => v.map(bytes) }], "payload bytes so far, against full precision");
}
