// Draws every figure in the colours of the page, light or dark, and in light ones on paper.
const { figures, theme, dark } = JSON.parse(document.getElementById("data").textContent);
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const PAPER_WIDTH = 660;

function inColours(value, exchange) {
  if (typeof value === "string") return exchange[value] ?? value;
  if (Array.isArray(value)) return value.map((item) => inColours(item, exchange));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inColours(item, exchange)]));
}

function draw(printing) {
  document.documentElement.classList.toggle("printing", printing);
  const exchange = prefersDark.matches && !printing ? dark : {};
  for (const [id, figure] of Object.entries(figures)) {
    const place = document.getElementById(id);
    const { data, layout } = inColours(figure, exchange);
    layout.template = inColours(theme, exchange);
    if (printing) layout.width = Math.min(place.clientWidth, PAPER_WIDTH);
    Plotly.react(place, data, layout, { displayModeBar: false, responsive: true, scrollZoom: false });
  }
}

draw(false);
prefersDark.addEventListener("change", () => draw(false));
addEventListener("beforeprint", () => draw(true));
addEventListener("afterprint", () => draw(false));
