(() => {
  "use strict";
  const root = document.documentElement;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);

  function show(text, event) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const x = event.clientX + 14 + box.width > innerWidth ? event.clientX - box.width - 14 : event.clientX + 14;
    const y = event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 16;
    tip.style.left = Math.max(x, 4) + "px";
    tip.style.top = Math.max(y, 4) + "px";
  }

  function about(row) {
    const [index, level, , , mbps, measured, buffer, stall, qoe, waited, fallback] = row;
    const lines = [`chunk ${index}: level ${level}, ${mbps} Mbit/s`, `measured ${measured} Mbit/s`, `buffer ${buffer} s`];
    if (stall > 0) lines.push(`stalled ${stall} s`);
    lines.push(index ? `QoE ${qoe}`.replace("-", "\u2212") : "start-up, not rated");
    if (waited !== undefined) lines.push(`decision ${waited} ms${fallback ? ", fallback" : ""}`);
    return lines.join("\n");
  }

  const parsed = new WeakMap();
  function point(svg, event) {
    if (!parsed.has(svg)) parsed.set(svg, { rows: JSON.parse(svg.dataset.chunks), axis: svg.dataset.x.split(",").map(Number) });
    const { rows, axis: [left, right, end] } = parsed.get(svg);
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const cursor = svg.querySelector(".cursor");
    const now = (x - left) / (right - left) * end;
    const row = now < 0 ? undefined : rows.find((r) => now < r[3]);
    cursor.setAttribute("d", row ? `M${x} 20V238` : "");
    return row ? about(row) : "";
  }

  let last = null;
  document.addEventListener("pointermove", (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const svg = target && target.closest("svg.timeline[data-chunks]");
    if (last && last !== svg) last.querySelector(".cursor").setAttribute("d", "");
    last = svg;
    const own = target && target.closest("[data-tip]");
    const text = [svg ? point(svg, event) : "", own ? own.dataset.tip : ""].filter(Boolean).join("\n");
    if (text) show(text, event); else tip.hidden = true;
  });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  const hidden = new Set();
  const rule = document.createElement("style");
  document.head.append(rule);
  for (const button of document.querySelectorAll("button[data-toggle]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const which = button.dataset.toggle;
      if (!hidden.delete(which)) hidden.add(which);
      button.setAttribute("aria-pressed", String(!hidden.has(which)));
      rule.textContent = [...hidden].map((p) => `[data-p="${p}"]{display:none}`).join("");
    });
  }

  const theme = document.querySelector(".theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
})();
