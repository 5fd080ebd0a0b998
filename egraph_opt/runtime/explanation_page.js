"use strict";
const parts = [...document.querySelectorAll(".part")];
const tabs = [...document.querySelectorAll(".tab")];

function zoom(svg, factor) {
  const width = Number(svg.dataset.width), height = Number(svg.dataset.height);
  svg.setAttribute("width", width * factor);
  svg.setAttribute("height", height * factor);
  svg.dataset.factor = factor;
}

function fit(svg) {
  const canvas = svg.parentElement;
  zoom(svg, Math.min(1, canvas.clientWidth / svg.dataset.width, canvas.clientHeight / svg.dataset.height));
}

// Wide graphs shrink to their pane, but not beyond what can be read; long ones scroll.
function settle(svg) {
  zoom(svg, Math.max(0.55, Math.min(1, (svg.parentElement.clientWidth - 4) / svg.dataset.width)));
}

function choose(part, chain, from) {
  for (const section of part.querySelectorAll(".chain[data-chain]")) section.hidden = section.dataset.chain !== chain;
  for (const button of part.querySelectorAll("aside button")) button.classList.toggle("on", button.dataset.chain === chain);
  for (const svg of part.querySelectorAll("svg")) {
    svg.classList.add("chosen");
    let first = null;
    for (const node of svg.querySelectorAll("g.node")) {
      const on = node.dataset.chains.split(" ").includes(chain);
      node.classList.toggle("on", on);
      first = first || (on ? node : null);
    }
    if (first && !svg.contains(from)) {
      const canvas = svg.parentElement, box = first.getBoundingClientRect(), pane = canvas.getBoundingClientRect();
      canvas.scrollTop += box.top - pane.top - pane.height / 3;
      canvas.scrollLeft += box.left + box.width / 2 - pane.left - pane.width / 2;
    }
  }
}

function show(number) {
  parts.forEach((part, n) => { part.hidden = n !== number; });
  tabs.forEach((tab, n) => tab.classList.toggle("on", n === number));
  const part = parts[number];
  if (!part || part.dataset.shown) return;
  part.dataset.shown = "yes";
  part.querySelectorAll("svg").forEach(settle);
  const wanted = document.body.dataset.node;
  const node = wanted && [...part.querySelectorAll("g.node")].find((g) => g.dataset.name === wanted);
  const step = wanted && part.querySelector(`aside button[title="${CSS.escape(wanted)}"]`);
  const first = part.querySelector("aside button");
  if (node && node.dataset.chains) choose(part, node.dataset.chains.split(" ")[0], null);
  else if (step || first) choose(part, (step || first).dataset.chain, null);
}

document.addEventListener("click", (event) => {
  const target = event.target;
  const tab = target.closest(".tab"), node = target.closest("g[role=button]");
  const row = target.closest("aside button"), size = target.closest("[data-zoom]");
  if (tab) show(Number(tab.dataset.part));
  if (node) choose(node.closest(".part"), node.dataset.chains.split(" ")[0], node);
  if (row) choose(row.closest(".part"), row.dataset.chain, row);
  if (size) {
    const svg = size.closest("figure").querySelector("svg"), now = Number(svg.dataset.factor || 1);
    if (size.dataset.zoom === "fit") fit(svg);
    else zoom(svg, Math.min(3, Math.max(0.1, now * (size.dataset.zoom === "in" ? 1.25 : 0.8))));
  }
});

document.addEventListener("keydown", (event) => {
  const node = event.target.closest && event.target.closest("g[role=button]");
  if (node && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    choose(node.closest(".part"), node.dataset.chains.split(" ")[0], node);
  }
});

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

show(Number(document.body.dataset.start));
