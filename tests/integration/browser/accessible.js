// The body of a function that gives what is too faint to read and which controls have no name.

const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });

/** Red, green, blue and alpha, 0 to 1, of any CSS colour, in sRGB. */
function channels(color) {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  return Array.from(context.getImageData(0, 0, 1, 1).data, (value) => value / 255);
}

function over([r, g, b, a], below) {
  return [r, g, b].map((value, at) => value * a + below[at] * (1 - a));
}

/** What is behind an element's text: the backgrounds of it and of all around it, without pictures. */
function behind(element) {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(channels(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, layer) => over(layer, below), [1, 1, 1]);
}

/** Relative luminance, as WCAG 2 defines it. */
function luminance(color) {
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = color.map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(one, other) {
  const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}

/** Elements that are seen and can be used. */
function active(selector) {
  const inactive = ":disabled, [aria-disabled='true'], [inert], .visually-hidden, svg, noscript, option, optgroup";
  const seen = { opacityProperty: true, visibilityProperty: true };
  return Array.from(document.body.querySelectorAll(selector)).filter((one) => one.checkVisibility(seen) && !one.closest(inactive));
}

function saysText(element) {
  return Array.from(element.childNodes).some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim() !== "");
}

const problems = [];
for (const element of active("*").filter(saysText)) {
  const style = getComputedStyle(element);
  const background = behind(element);
  const ratio = contrast(over(channels(style.color), background), background);
  const size = Number.parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  if (ratio < (large ? 3 : 4.5)) problems.push(`${element.outerHTML.slice(0, 120)}: contrast ${ratio.toFixed(2)}`);
}
for (const control of active("button, a[href], input, select, textarea")) {
  const labels = Array.from(control.labels ?? [], (label) => label.textContent);
  const names = [control.getAttribute("aria-label"), control.title, ...labels];
  const own = control.matches("button, a") ? control.textContent : "";
  if (![...names, own].some((name) => name?.trim())) problems.push(`${control.outerHTML.slice(0, 120)}: no name`);
}
return problems;
