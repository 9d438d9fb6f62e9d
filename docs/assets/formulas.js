// Formulas are in the page as TeX between \( \) and \[ \]; KaTeX, served from this site, sets them.
document.querySelectorAll(".arithmatex").forEach((place) => {
  const source = place.textContent.trim();
  const display = source.startsWith("\\[");
  let formula = source.slice(2, -2);
  const next = place.nextSibling;
  if (!display && next && next.nodeType === Node.TEXT_NODE) {
    // What ends a sentence or a clause stays on the line of the formula before it.
    const mark = next.data.match(/^[.,;:]/);
    if (mark) {
      formula += mark[0] === "," ? "{,}" : mark[0] === ":" ? "{:}" : mark[0] === ";" ? "{;}" : ".";
      next.data = next.data.slice(1);
    }
  }
  katex.render(formula, place, { displayMode: display, throwOnError: false });
});
