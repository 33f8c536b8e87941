//! The curves of trainings: figures by step, from the metrics of an artifact, or from the events of a run while
//! there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::json;

use super::super::{ApiError, Shared, blocking, json};
use super::asked::Named;
use super::{records, runs};
use crate::base::{Error, Result, fs, units};
use crate::report::runs::{Folder, Point, Run, StageRecord};
use crate::store::Store;
use crate::train::Metric;

/// The file of an artifact that has a training's figures.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Points of a curve at most; of more, every second, third, … is left out.
const POINTS: usize = 2000;
/// The largest file of metrics that is read.
const LARGEST: u64 = 256 << 20;

/// The curves of one training: a table with a row for each step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curves {
    /// The stage; empty of a file.
    pub stage: String,
    /// `step` and the figures.
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Option<f64>>>,
    /// How many rows there are; more than are given where they are many.
    pub total: usize,
    /// Why the metrics of the artifact do not read, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// The curves of all trainings of a run.
pub async fn of_run(State(app): State<Shared>, Named(id): Named<String>) -> Result<Response, ApiError> {
    let folder = runs::find(&app, id).await?;
    let found = blocking(move || read(&folder, &folder.read(), &records(&app)));
    found.await.map(|stages| json(&json!({ "stages": stages })))
}

/// The curves of the trainings of a run, in the order of its stages.
///
/// # Errors
/// When its events cannot be read.
pub fn read(folder: &Folder, run: &Run, store: &Store) -> Result<Vec<Curves>> {
    let mut told = folder.curves()?;
    let of_stage = |stage: &StageRecord| {
        let told = told.remove(&stage.stage).unwrap_or_default();
        let (points, damage) = match of_artifact(stage, store) {
            Some(Ok(points)) => (with_speed(points, &told), None),
            Some(Err(e)) => (told, Some(e.message().to_string())),
            None => (told, None),
        };
        let curves = Curves { stage: stage.stage.clone(), damage, ..Curves::new(points) };
        (curves.total > 0 || curves.damage.is_some()).then_some(curves)
    };
    Ok(run.stages.iter().filter_map(of_stage).collect())
}

/// The metrics among the outputs of a stage; `None` where it has none.
fn of_artifact(stage: &StageRecord, store: &Store) -> Option<Result<Vec<Point>>> {
    stage.outputs.values().find_map(|digest| {
        let artifact = store.artifact(&stage.stage, digest).ok()?;
        artifact.find(METRICS_FILE).map(points)
    })
}

/// The tokens per second, which no artifact has, as the run measured them.
fn with_speed(mut points: Vec<Point>, told: &[Point]) -> Vec<Point> {
    const SPEED: &str = "tokens_per_s";
    let speeds: BTreeMap<u64, Option<f64>> =
        told.iter().filter_map(|point| Some((point.step, *point.figures.get(SPEED)?))).collect();
    for point in &mut points {
        if let Some(speed) = speeds.get(&point.step) {
            point.figures.insert(SPEED.into(), *speed);
        }
    }
    points
}

/// The points of a file of metrics.
///
/// # Errors
/// When it does not read: names the line.
pub fn points(path: &Path) -> Result<Vec<Point>> {
    if fs::size(path)? > LARGEST {
        return Err(Error::input(format!("these metrics are larger than {}", units::bytes(LARGEST))));
    }
    let bytes = fs::read(path)?;
    let lines =
        bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    let point = |(i, line): (usize, &[u8])| {
        let metric: Metric = serde_json::from_slice(line)
            .map_err(|e| Error::input(format!("line {} of these metrics does not read", i + 1)).cause(e))?;
        let finite = |x: f64| x.is_finite().then_some(x);
        let figures = metric.figures().into_iter().map(|(name, x)| (name.to_string(), finite(x)));
        Ok(Point { step: metric.step, figures: figures.collect() })
    };
    lines.map(point).collect()
}

/// Those of the known figures that come first.
const ORDER: [&str; 5] = ["loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_s"];

impl Curves {
    pub fn new(mut points: Vec<Point>) -> Self {
        // A stage that was tried twice in one run told the first steps twice: the later ones count.
        points.reverse();
        points.sort_by_key(|point| point.step);
        points.dedup_by_key(|point| point.step);
        let names: BTreeSet<&str> =
            points.iter().flat_map(|p| p.figures.keys().map(String::as_str)).collect();
        let known = ORDER.into_iter().filter(|name| names.contains(name));
        let further = names.iter().copied().filter(|name| !ORDER.contains(name));
        let columns: Vec<String> = known.chain(further).map(str::to_string).collect();
        let row = |point: &Point| {
            let figures = columns.iter().map(|name| point.figures.get(name).copied().flatten());
            std::iter::once(Some(point.step as f64)).chain(figures).collect()
        };
        let rows = thinned(&points).map(row).collect();
        let columns = std::iter::once("step".to_string()).chain(columns).collect();
        Curves { stage: String::new(), columns, rows, total: points.len(), damage: None }
    }
}

/// At most about [`POINTS`] of the points, evenly, with all validations and the last one.
fn thinned(points: &[Point]) -> impl Iterator<Item = &Point> {
    let every = points.len().div_ceil(POINTS).max(1);
    let validations = points.iter().filter(|p| p.figures.contains_key("val_loss")).count();
    let keep = move |(i, point): &(usize, &Point)| {
        i % every == 0
            || i + 1 == points.len()
            || validations <= POINTS && point.figures.contains_key("val_loss")
    };
    points.iter().enumerate().filter(keep).map(|(_, point)| point)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, figures: &[(&str, f64)]) -> Point {
        let figures = figures.iter().map(|(name, x)| (name.to_string(), Some(*x))).collect();
        Point { step, figures }
    }

    #[test]
    fn a_table_has_the_known_figures_first_and_the_later_of_two_rows_of_a_step() {
        let told = [(10, 5.0), (20, 4.0), (10, 6.0)].map(|(step, loss)| point(step, &[("loss", loss)]));
        let mut points = told.to_vec();
        points.push(point(30, &[("accuracy", 0.5), ("val_loss", 3.0)]));
        let curves = Curves::new(points);
        assert_eq!(curves.columns, ["step", "loss", "val_loss", "accuracy"]);
        let first = |row: &Vec<Option<f64>>| (row[0].unwrap(), row[1]);
        let rows: Vec<_> = curves.rows.iter().map(first).collect();
        assert_eq!(rows, [(10.0, Some(6.0)), (20.0, Some(4.0)), (30.0, None)]);
    }

    #[test]
    fn long_curves_are_thinned_and_keep_their_validations_and_their_end() {
        let figures = |step| match step {
            777 => vec![("loss", 1.0), ("val_loss", 2.0)],
            _ => vec![("loss", 1.0)],
        };
        let points: Vec<Point> = (0..10_001).map(|step| point(step, &figures(step))).collect();
        let curves = Curves::new(points);
        assert_eq!(curves.total, 10_001);
        assert!(curves.rows.len() <= POINTS + 2, "{}", curves.rows.len());
        assert_eq!(curves.rows.last().unwrap()[0], Some(10_000.0));
        assert!(curves.rows.iter().any(|row| row[2] == Some(2.0)));
    }

    #[test]
    fn metrics_with_no_numbers_in_them_read_and_damaged_ones_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let row = r#"{"step":1,"tokens":2,"loss":null,"val_loss":null,"learning_rate":0.1,"grad_norm":1.0}"#;
        fs::write(&path, format!("{row}\n").as_bytes()).unwrap();
        assert_eq!(points(&path).unwrap()[0].figures["loss"], None);
        fs::write(&path, format!("{row}\n{{\"step\":").as_bytes()).unwrap();
        assert!(points(&path).unwrap_err().message().contains("line 2"));
    }
}
