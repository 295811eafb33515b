// Figures as people read them.

export function bytes(count) {
  if (!count) return "0";
  const step = Math.min(4, Math.floor(Math.log2(Math.max(1, count)) / 10));
  const value = count / 2 ** (10 * step);
  return `${step && value < 100 ? value.toFixed(1) : Math.round(value)} ${["B", "KB", "MB", "GB", "TB"][step]}`;
}

export function seconds(value) {
  if (value == null) return "";
  if (value >= 172800) return `${Math.round(value / 86400)} days`;
  if (value >= 7200) return `${(value / 3600).toFixed(1)} h`;
  if (value >= 120) return `${(value / 60).toFixed(1)} min`;
  return `${value < 10 ? value.toFixed(2) : value.toFixed(0)} s`;
}

export function time(stamp) {
  return stamp ? new Date(stamp * 1000).toLocaleString() : "";
}

export function figure(metric, value) {
  if (value == null) return "";
  return /accuracy|f1|recall|precision/.test(metric) ? `${(100 * value).toFixed(1)} %` : Number(value).toPrecision(4);
}

export function percent(part) {
  return `${(100 * part).toFixed(1)} %`;
}
