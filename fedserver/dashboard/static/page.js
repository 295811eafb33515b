// The live page: asks for the record when something happens, and shows it.

import * as charts from "./charts.js";
import { bytes, figure, percent, seconds, time } from "./format.js";
import { element, facts, fill, heatMap, own } from "./tables.js";

const LEAST_PAUSE = 1000; // ms between two looks at the record
const LONGEST_PAUSE = 10000; // clients that leave make no event
const MOST_EVENTS = 200;
const NEWEST_ROUNDS = 60;
const GOOD = new Set(["running", "finished"]);
const BAD = new Set(["failed", "paused"]);

const $ = (id) => document.getElementById(id);
const state = { runs: [], clients: [], run: null, record: null, rounds: null, dense: 0, series: null, metric: null, wanted: null, mapped: "", looked: 0 };

async function ask(path) {
  const reply = await fetch(`/api/${path}`);
  if (reply.status === 401) location.assign("/login");
  const found = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(found.error), { code: found.code });
  return found;
}

// --- what is known of the chosen run -----------------------------------------------------------

function choose(id) {
  Object.assign(state, { run: id, record: null, rounds: null, series: null, metric: null, mapped: "" });
  charts.clear();
  history.replaceState(null, "", `#${id}`);
  $("widths-round").value = "";
  return look();
}

function append(known, found) {
  if (!known) return found;
  for (const [name, values] of Object.entries(found)) known[name].push(...values);
  return known;
}

async function lookAtRun(id) {
  const after = state.rounds?.id.at(-1) ?? 0;
  const [record, found] = await Promise.all([ask(`runs/${id}`), ask(`runs/${id}/rounds?after=${after}`)]);
  if (state.run !== id) return;
  state.record = record;
  state.dense = found.dense_bytes;
  if (!state.rounds || found.rounds.id[0] > after) state.rounds = append(state.rounds, found.rounds);
  chooseMetric();
  await Promise.all([lookAtFigures(id), lookAtWidths(id)]);
}

function chooseMetric() {
  const known = new Set();
  state.rounds.metrics.forEach((metrics, place) => {
    for (const name of Object.keys(metrics)) {
      if (!/^held_out_|_bytes$/.test(name)) known.add(`${state.rounds.kind[place]}:${name}`);
    }
  });
  const names = [...known].sort();
  const usual = names.find((name) => name === "evaluate:accuracy") ?? names.find((name) => name.includes("accuracy")) ?? names[0] ?? null;
  const wanted = names.includes(state.wanted) ? state.wanted : usual;
  if (state.metric !== wanted) Object.assign(state, { metric: wanted, series: null });
  const shown = [...$("metric").options].map((option) => option.value);
  if (shown.join() !== names.join()) {
    $("metric").replaceChildren(...names.map((name) => new Option(name.replace(":", ": "), name)));
  }
  if (state.metric) $("metric").value = state.metric;
}

async function lookAtFigures(id) {
  if (!state.metric) return;
  const metric = state.metric;
  const [kind, name] = metric.split(/:(.*)/s);
  const after = state.series?.id.at(-1) ?? 0;
  const found = await ask(`runs/${id}/series?kind=${kind}&metric=${encodeURIComponent(name)}&after=${after}`);
  if (state.run !== id || state.metric !== metric) return;
  if (!state.series) state.series = found;
  else if (found.id[0] > (state.series.id.at(-1) ?? 0)) addFigures(state.series, found);
}

function addFigures(known, found) {
  const before = known.id.length;
  known.id.push(...found.id);
  known.round.push(...found.round);
  const names = new Set([...Object.keys(known.clients), ...Object.keys(found.clients)]);
  known.clients = Object.fromEntries([...names].map((client) => {
    const old = own(known.clients, client) ?? Array(before).fill(null);
    return [client, old.concat(own(found.clients, client) ?? Array(found.id.length).fill(null))];
  }));
}

async function lookAtWidths(id) {
  const wanted = Number($("widths-round").value) || 0;
  const { round, current } = state.record;
  const key = `${id} ${wanted || round}`;
  if (state.mapped === key && round) return;
  state.mapped = key;
  let found = { clients: [], reason: "No training round has been opened yet." };
  if (round || current?.kind === "train") {
    found = await ask(`runs/${id}/widths?round=${wanted}`).catch((error) => ({ clients: [], reason: error.message }));
  }
  if (state.run !== id) return;
  heatMap($("widths"), found);
  $("widths-none").textContent = found.reason || `Round ${found.round} (${found.status}); · is full precision, 6₄ is 6 bits planned and 4 sent.`;
}

// --- showing it --------------------------------------------------------------------------------

function showRuns() {
  $("no-runs").hidden = state.runs.length > 0;
  $("runs").hidden = state.runs.length === 0;
  fill($("runs"), state.runs.map((run) => ({
    key: run.id,
    current: run.id === state.run,
    cells: [
      { text: run.name, head: true, title: run.id, button: () => choose(run.id) },
      { text: run.status, class: `state ${tone(run.status)}`, title: run.reason },
      { text: `${run.round} of ${run.rounds}`, progress: { value: run.round, max: run.rounds, label: `rounds of ${run.name}` } },
      { text: bytes(run.bytes_up), class: "number" },
      { text: bytes(run.bytes_down), class: "number" },
      time(run.submitted),
    ],
  })));
}

function tone(status) {
  if (GOOD.has(status)) return "good";
  return BAD.has(status) ? "bad" : status === "stopped" ? "warn" : "";
}

function showRun() {
  const { record, rounds } = state;
  $("run").hidden = !record;
  if (!record) return;
  $("run-heading").textContent = `Run ${record.name}`;
  document.title = `${record.name} ${record.round}/${record.rounds} ${record.status} - Motley`;
  $("reason").textContent = record.reason;
  const tail = record.privacy ? [["Private", Object.entries(record.privacy).map(([tier, p]) => `${tier} ε ${p.epsilon}`).join(", ")]] : [];
  facts($("facts"), [
    ["Status", record.status], ["Rounds", `${record.round} of ${record.rounds}`], ["Method", record.algorithm],
    ["Workload", record.workload], ["Clients", record.clients.length], ["Local steps", record.local_steps],
    ["Models taken home", `${record.finish_done} of ${record.finish_done + record.finish_waiting}`],
    ["Id", record.id], ...tail,
  ]);
  showFigures();
  showTimeline(record, rounds);
  showTraffic(rounds);
}

function showFigures() {
  const series = state.series ?? { id: [], round: [], clients: {} };
  const metric = state.metric?.split(/:(.*)/s)[1] ?? "";
  $("accuracy-heading").textContent = `${metric ? metric[0].toUpperCase() + metric.slice(1).replaceAll("_", " ") : "Accuracy"} by client and tier`;
  $("accuracy-none").hidden = series.id.length > 0;
  const tiers = new Map();
  for (const member of state.record.clients) {
    if (own(series.clients, member.name)) tiers.set(member.tier, [...(tiers.get(member.tier) ?? []), member.name]);
  }
  charts.figures(series, tiers, heldOut(series, metric), metric);
  fill($("tiers"), [...tiers].map(([tier, clients]) => {
    const newest = clients.map((name) => series.clients[name].findLast((value) => value != null)).filter((value) => value != null);
    const mean = newest.reduce((a, b) => a + b, 0) / newest.length;
    const number = (value) => ({ text: figure(metric, value), class: "number" });
    return { key: tier, cells: [{ text: tier || "none", head: true }, { text: clients.length, class: "number" }, number(mean), number(Math.min(...newest)), number(Math.max(...newest))] };
  }));
}

function heldOut(series, metric) {
  const known = new Map(state.rounds.id.map((id, place) => [id, own(state.rounds.metrics[place], `held_out_${metric}`)]));
  const values = series.id.map((id) => known.get(id) ?? null);
  return values.some((value) => value != null) ? values : null;
}

function showTimeline(record, rounds) {
  const current = record.current;
  $("now").textContent = current
    ? `Round ${current.round} (${current.kind}${current.attempt ? `, attempt ${current.attempt + 1}` : ""}) is ${current.status}: ${current.arrived} of ${current.goal} came, ${seconds(current.seconds_left)} left.`
    : rounds.id.length ? "" : "No round has ended yet.";
  charts.timeline(rounds);
  const newest = rounds.id.map((_, place) => place).slice(-NEWEST_ROUNDS).reverse();
  const number = (text) => ({ text, class: "number" });
  fill($("rounds"), newest.map((p) => ({
    key: rounds.id[p],
    cells: [
      { text: rounds.round[p], head: true, class: "number" }, rounds.kind[p],
      { text: rounds.status[p], class: `state ${rounds.status[p] === "closed" ? "good" : "bad"}`, title: rounds.reason[p] },
      number(rounds.updates[p]), number(seconds(rounds.open[p])), number(seconds(rounds.collect[p])),
      number(seconds(rounds.fold[p])), number(bytes(rounds.bytes_up[p])), number(bytes(rounds.bytes_down[p])),
    ],
  })));
}

function sums(values) {
  let total = 0;
  return values.map((value) => (total += value));
}

function showTraffic(rounds) {
  const sent = sums(rounds.bytes_up.map((up, p) => up + rounds.bytes_down[p]));
  const dense = sums(rounds.uploads.map((up, p) => (up + rounds.downloads[p]) * state.dense));
  const [all, whole] = [sent.at(-1) ?? 0, dense.at(-1) ?? 0];
  const up = sums(rounds.bytes_up).at(-1) ?? 0;
  const wholeUp = sums(rounds.uploads).at(-1) * state.dense || 0;
  facts($("saved"), [
    ["Travelled", bytes(all)], ["In full precision", whole ? bytes(whole) : "no global model"],
    ["Saved", whole ? `${bytes(Math.max(0, whole - all))} (${percent(1 - all / whole)})` : "-"],
    ["Of uploads", wholeUp ? percent(1 - up / wholeUp) : "-"],
  ]);
  charts.traffic(rounds, sent, dense);
}

function showClients() {
  const members = new Map((state.record?.clients ?? []).map((member) => [member.name, member]));
  const tasks = state.record?.current?.clients ?? {};
  const [kind, metric] = state.metric?.split(/:(.*)/s) ?? ["", ""];
  $("no-clients").hidden = state.clients.length > 0;
  $("clients").hidden = state.clients.length === 0;
  fill($("clients"), state.clients.map((client) => {
    const member = members.get(client.name);
    const number = (text) => ({ text, class: "number" });
    return {
      key: client.name,
      cells: [
        { text: client.name, head: true }, presence(client), member?.tier || client.tier || "-",
        { text: part(member, own(tasks, client.name)), title: member?.reason ?? "" },
        number(figure(metric, own(member?.metrics[kind], metric))), number(member?.counted ?? ""),
        number(member ? bytes(member.bytes_up) : ""), number(member ? bytes(member.bytes_down) : ""),
        [`${client.cores || "?"} cores`, client.architecture, client.accelerator].filter(Boolean).join(", "),
        number(client.memory_bytes ? bytes(client.memory_bytes) : ""),
        number(client.download_bytes_per_second ? `${bytes(client.download_bytes_per_second)}/s / ${bytes(client.upload_bytes_per_second)}/s` : ""),
        client.software,
      ],
    };
  }));
}

function presence(client) {
  if (client.revoked) return { text: "shut out", class: "state bad", title: client.revoked };
  if (client.set_aside) return { text: "put aside", class: "state bad", title: client.set_aside };
  if (client.here) return { text: client.task ? "working" : "here", class: "state good" };
  if (client.last_seen_seconds == null) return { text: "never here", class: "state" };
  return { text: `away for ${seconds(client.last_seen_seconds)}`, class: "state warn" };
}

function part(member, task) {
  if (!member) return "not a member";
  if (member.reason) return `out: ${member.reason.slice(0, 60)}`;
  return member.finished ? "finished" : task ?? "member";
}

// --- looking again -----------------------------------------------------------------------------

let looking = null;
let again = false; // something was chosen while the page was looking

async function look() {
  again = looking !== null;
  looking ??= lookNow().finally(() => { looking = null; });
  await looking;
  if (again) await look();
}

async function lookNow() {
  try {
    [state.runs, state.clients] = await Promise.all([ask("runs"), ask("clients")]);
    if (!state.runs.some((run) => run.id === state.run)) {
      const wanted = state.runs.find((run) => run.id === location.hash.slice(1));
      const active = state.runs.find((run) => ["running", "waiting", "preparing"].includes(run.status));
      Object.assign(state, { run: (wanted ?? active ?? state.runs[0])?.id ?? null, record: null, rounds: null, series: null, mapped: "" });
    }
    for (let asked = null; state.run && asked !== state.run;) {
      asked = state.run;
      await lookAtRun(asked);
    }
    showRuns();
    showRun();
    showClients();
    document.body.dataset.shown = state.run ?? "nothing";
    performance.clearMarks("shown");
    performance.mark("shown");
  } catch (error) {
    tell(`The server does not answer: ${error.message}`);
  }
  state.looked = Date.now();
}

let due = 0;

function lookSoon() {
  if (due || document.hidden) return;
  due = setTimeout(() => { due = 0; look(); }, Math.max(0, state.looked + LEAST_PAUSE - Date.now()));
}

function tell(text) {
  if ($("link").textContent !== text) $("link").textContent = text;
}

// --- events ------------------------------------------------------------------------------------

let pending = [];

function showEvents() {
  if ($("pause").ariaPressed === "true") return;
  $("events").prepend(...pending.reverse().map(line));
  pending = [];
  while ($("events").children.length > MOST_EVENTS) $("events").lastChild.remove();
}

function line(event) {
  const when = new Date(event.time);
  const words = Object.entries(event.fields).map(([name, value]) => `${name}=${value}`).join("  ");
  return element("li", { className: event.level },
    element("time", { dateTime: event.time, text: when.toLocaleTimeString() }),
    element("b", { text: event.event }), element("span", { text: words }));
}

function follow() {
  const source = new EventSource("/api/events");
  source.onopen = () => { tell("live"); lookSoon(); };
  source.onerror = () => tell("the connection is gone; trying again");
  source.onmessage = (message) => {
    if (!pending.length) requestAnimationFrame(showEvents);
    pending = [...pending, JSON.parse(message.data)].slice(-MOST_EVENTS);
    lookSoon();
  };
}

$("pause").addEventListener("click", () => {
  const paused = $("pause").ariaPressed !== "true";
  $("pause").ariaPressed = String(paused);
  $("pause").textContent = paused ? "Go on" : "Pause";
  showEvents();
});
$("metric").addEventListener("change", () => { state.wanted = $("metric").value; look(); });
$("widths-round").addEventListener("change", look);
document.addEventListener("visibilitychange", lookSoon);
addEventListener("resize", charts.resize);
addEventListener("hashchange", () => {
  const wanted = location.hash.slice(1);
  if (wanted !== state.run && state.runs.some((run) => run.id === wanted)) choose(wanted);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { charts.clear(); if (state.record) showRun(); });
setInterval(lookSoon, LONGEST_PAUSE);
await look();
follow();
