/** Panels beside the content: columns where there is room, else drawers over it. Whether a column is hidden is
 *  remembered; a drawer is closed at first, and whatever it covers cannot be reached until it is closed. */

import { button, el, find, storage } from "/static/common.js";

/** `panels`: by name, an element with that id, how wide the window must be for a column (`room`), its `label`, and its
 *  toggle's `icon`. `around` gets the class `with-NAME` where there is a column. */
export class Sides {
  constructor(around, panels) {
    this.around = around;
    this.drawer = null;
    this.backdrop = el("div", { class: "backdrop", hidden: true, onclick: () => this.close(true) });
    around.append(this.backdrop);
    this.panels = new Map(Object.entries(panels).map(([name, panel]) => [name, this.#panel(name, panel)]));
  }

  #panel(name, { room, label, icon }) {
    const wide = window.matchMedia(`(min-width: ${room})`);
    wide.addEventListener("change", () => this.close());
    const attrs = { icon, only: true, class: "quiet", "aria-controls": name, onclick: () => this.#switch(name) };
    return { node: find(`#${name}`), wide, label, toggle: button(label, attrs), key: `tinylm.hide.${name}` };
  }

  /** The button that opens and closes a panel. */
  toggle(name) {
    return this.panels.get(name).toggle;
  }

  /** A panel's title with a way to close it, seen in drawers. */
  head(name) {
    const { label } = this.panels.get(name);
    const attrs = { icon: "close", only: true, class: "quiet compact close", onclick: () => this.close(true) };
    return el("div", { class: "side-head" }, el("h2", {}, label), button(`Close ${label.toLowerCase()}`, attrs));
  }

  #switch(name) {
    const { node, wide, key } = this.panels.get(name);
    if (wide.matches) storage.set(key, isHidden(key) ? null : "yes");
    else this.drawer = this.drawer === name ? null : name;
    this.show();
    if (this.drawer) node.querySelector("button, textarea")?.focus();
  }

  /** Closes the drawer, if one is open; `back` to the button that opened it. */
  close(back = false) {
    const was = this.drawer;
    this.drawer = null;
    this.show();
    if (back && was) this.toggle(was).focus();
  }

  show() {
    for (const [name, { node, wide, toggle, key }] of this.panels) {
      const column = wide.matches && !isHidden(key);
      node.hidden = !column && this.drawer !== name;
      node.classList.toggle("drawer", !wide.matches);
      this.around.classList.toggle(`with-${name}`, column);
      toggle.setAttribute("aria-expanded", String(!node.hidden));
    }
    this.backdrop.hidden = this.drawer === null;
    for (const node of [find(".talk"), find(".header")]) node.inert = this.drawer !== null;
  }
}

function isHidden(key) {
  return storage.get(key) === "yes";
}
