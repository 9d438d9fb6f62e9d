// Formulas are in the page as TeX between \( \) and \[ \]; KaTeX, served from this site, sets them.
document.querySelectorAll(".arithmatex").forEach((place) => {
  const source = place.textContent.trim();
  const display = source.startsWith("\\[");
  katex.render(source.slice(2, -2), place, { displayMode: display, throwOnError: false });
});
