// Tables that change in place: rows and cells stay where they are, so that focus and reading do.

// What an object from the server says under a name that people chose, `constructor` too.
export const own = (object, name) => (object && Object.hasOwn(object, name) ? object[name] : undefined);

// rows: [{key, current, cells}]; a cell is a text or {text, class, head, title, button, progress}.
export function fill(table, rows) {
  const body = table.tBodies[0];
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  rows.forEach((wanted, place) => {
    let row = known.get(String(wanted.key));
    known.delete(String(wanted.key));
    if (!row) {
      row = document.createElement("tr");
      row.dataset.key = wanted.key;
    }
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null);
    if (wanted.current) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
    wanted.cells.forEach((cell, column) => write(row, column, typeof cell === "object" && cell ? cell : { text: cell }));
    while (row.cells.length > wanted.cells.length) row.deleteCell(-1);
  });
  for (const row of known.values()) row.remove();
}

function write(row, column, wanted) {
  const cell = row.cells[column] ?? row.appendChild(made(wanted));
  const className = wanted.class ?? "";
  if (cell.className !== className) cell.className = className;
  if (wanted.title && cell.title !== wanted.title) cell.title = wanted.title;
  const text = String(wanted.text ?? "");
  if (wanted.button) {
    cell.firstChild.onclick = wanted.button;
    if (cell.firstChild.textContent !== text) cell.firstChild.textContent = text;
  } else if (wanted.progress) {
    const [bar, words] = cell.children;
    [bar.value, bar.max] = [wanted.progress.value, Math.max(1, wanted.progress.max)];
    if (words.textContent !== text) words.textContent = text;
  } else if (cell.textContent !== text + (wanted.sub ?? "")) {
    cell.textContent = text;
    if (wanted.sub) cell.append(element("sub", { text: wanted.sub }));
  }
}

function made(wanted) {
  const cell = document.createElement(wanted.head ? "th" : "td");
  if (wanted.head) cell.scope = "row";
  if (wanted.button) cell.append(element("button", { className: "name", type: "button" }));
  if (wanted.progress) {
    cell.append(element("progress", { ariaLabel: wanted.progress.label }), element("span", {}));
  }
  return cell;
}

export function element(name, { text = "", ...properties }, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
}

export function facts(list, pairs) {
  list.replaceChildren(
    ...pairs.map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: String(value) }))),
  );
}

const SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈";

// widths: as `show --bits --json` prints them.
export function heatMap(table, widths) {
  const clients = widths?.clients ?? [];
  const layers = widths?.layers ?? [];
  const heads = ["Client", "Tier", "Mean", ...layers].map((text) => element("th", { text, scope: "col" }));
  table.tHead.replaceChildren(element("tr", {}, ...(clients.length ? heads : [])));
  fill(
    table,
    clients.map((client) => ({
      key: client.name,
      cells: [
        { text: client.name, head: true },
        client.tier,
        client.planned_average == null ? "·" : client.planned_average.toFixed(2),
        ...layers.map((layer) => width(client, layer)),
      ],
    })),
  );
}

function width(client, layer) {
  const planned = own(client.planned, layer);
  if (planned == null) return { text: "·", title: "full precision, or not in this client's model" };
  const sent = own(client.sent, layer);
  const dropped = sent != null && sent < planned;
  const title = dropped ? `${planned} bits planned, ${sent} sent` : `${planned} bits`;
  return { text: planned, sub: dropped ? SUBSCRIPTS[sent] : "", class: `w${Math.min(8, planned)}`, title };
}
