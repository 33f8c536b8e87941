// Runs before the first paint, so that a chosen theme does not appear as the other one for a moment. Not a module:
// modules run later.
try {
  const theme = localStorage.getItem("tinylm.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off: the system's theme.
}
