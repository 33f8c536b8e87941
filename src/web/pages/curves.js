/** Curves of trainings as the API gives them, `{stage, columns, rows}`, as series of a chart. */

const LABELS = {
  loss: "Loss",
  learning_rate: "Learning rate",
  grad_norm: "Norm of the gradient",
  tokens_per_s: "Tokens per second",
};

export function figureLabel(name) {
  return LABELS[name] ?? name.replaceAll("_", " ");
}

/** The figures to choose from. Loss and validation loss are drawn in one chart. */
export function figureNames(all) {
  const names = new Set(all.flatMap(({ columns }) => columns.slice(1)));
  names.delete("val_loss");
  return [...Object.keys(LABELS).filter((name) => names.has(name)), ...[...names].filter((name) => !(name in LABELS)).sort()];
}

/** The series of a figure, a colour for each of the curves. */
export function curveSeries(all, figure, names = all.map(({ stage }) => stage)) {
  const wanted = figure === "loss" ? ["loss", "val_loss"] : [figure];
  return all.flatMap((curves, i) =>
    wanted.flatMap((name) => {
      const column = curves.columns.indexOf(name);
      const points = column < 0 ? [] : curves.rows.map((row) => [row[0], row[column]]);
      const present = points.filter(([, y]) => y !== null).length;
      if (present === 0) return [];
      const validation = name === "val_loss";
      const what = figure !== "loss" ? names[i] : `${names[i]}${names[i] ? " " : ""}${validation ? "validation" : "train"}`;
      // What is measured at few of the steps is drawn through.
      const sparse = present < points.length / 2;
      return [{ name: what || figureLabel(figure), color: (i % 6) + 1, dashed: validation, sparse, points }];
    }),
  );
}
