//! What training leaves behind to look at: `metrics.jsonl`, the same as `metrics.parquet`, and
//! `samples.jsonl`. Nothing here depends on the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, UInt64Array};
use serde::{Deserialize, Deserializer, Serialize};

use crate::base::{Error, Result, fs};
use crate::corpus::parquet_io;

/// One logged step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    pub step: u64,
    /// Seen so far, without padding.
    pub tokens: u64,
    /// Mean since the last row, nats a target; NaN without a target.
    #[serde(deserialize_with = "nan_if_null")]
    pub loss: f64,
    pub val_loss: Option<f64>,
    pub learning_rate: f64,
    /// Of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// What the objective reports of a validation, by name: further columns.
    #[serde(flatten, deserialize_with = "further")]
    pub further: BTreeMap<String, f64>,
}

impl Metric {
    /// What there is beside the step and its tokens, by name.
    pub fn figures(&self) -> Vec<(&str, f64)> {
        let own = [("loss", self.loss), ("learning_rate", self.learning_rate), ("grad_norm", self.grad_norm)];
        let validation = self.val_loss.map(|loss| ("val_loss", loss));
        let further = self.further.iter().map(|(name, value)| (name.as_str(), *value));
        own.into_iter().chain(validation).chain(further).collect()
    }
}

/// What the model said along the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub step: u64,
    pub prompt: String,
    pub text: String,
}

/// JSON has no NaN: it is written as null.
fn nan_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn further<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let all: BTreeMap<String, Option<f64>> = BTreeMap::deserialize(deserializer)?;
    Ok(all.into_iter().map(|(name, x)| (name, x.unwrap_or(f64::NAN))).collect())
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    pub rows: Vec<Metric>,
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Writes the three files.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        fs::write(&folder.join("metrics.jsonl"), &json_lines(&self.rows)?)?;
        fs::write(&folder.join("samples.jsonl"), &json_lines(&self.samples)?)?;
        self.save_parquet(&folder.join("metrics.parquet"))
    }

    fn save_parquet(&self, path: &Path) -> Result<()> {
        let whole = |f: fn(&Metric) -> u64| {
            Arc::new(UInt64Array::from_iter_values(self.rows.iter().map(f))) as ArrayRef
        };
        let real = |f: fn(&Metric) -> Option<f64>| {
            Arc::new(self.rows.iter().map(f).collect::<Float64Array>()) as ArrayRef
        };
        let mut columns = vec![
            ("step", whole(|m| m.step)),
            ("tokens", whole(|m| m.tokens)),
            ("loss", real(|m| Some(m.loss))),
            ("val_loss", real(|m| m.val_loss)),
            ("learning_rate", real(|m| Some(m.learning_rate))),
            ("grad_norm", real(|m| Some(m.grad_norm))),
        ];
        let further: BTreeSet<&str> =
            self.rows.iter().flat_map(|m| m.further.keys().map(String::as_str)).collect();
        columns.extend(further.into_iter().map(|name| {
            let values = self.rows.iter().map(|m| m.further.get(name).copied());
            (name, Arc::new(values.collect::<Float64Array>()) as ArrayRef)
        }));
        let batch = RecordBatch::try_from_iter(columns)
            .map_err(|e| Error::bug(format!("metrics do not fit their schema: {e}")))?;
        let mut writer = parquet_io::writer(path, batch.schema(), Vec::new())?;
        writer.write(&batch).map_err(|e| parquet_io::unwritable(path, &e))?;
        writer.close().map(drop).map_err(|e| parquet_io::unwritable(path, &e))
    }
}

/// One JSON object a line.
pub fn json_lines<T: Serialize>(rows: &[T]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut out, row).map_err(|e| Error::bug(format!("a line of JSON: {e}")))?;
        out.push(b'\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a state holds of the metrics is what they were.
    #[test]
    fn rows_read_back_to_the_bit_from_json() {
        let row = |loss, val_loss, further: &[(&str, f64)]| Metric {
            step: u64::MAX,
            tokens: 7,
            loss,
            val_loss,
            learning_rate: 0.1 + 0.2,
            grad_norm: f64::MIN_POSITIVE / 3.0,
            further: further.iter().map(|(name, x)| (name.to_string(), *x)).collect(),
        };
        let rows = vec![
            row(1.0 / 3.0, Some(2.0 / 3.0), &[("accuracy", 0.1), ("margin", f64::NAN)]),
            row(f64::NAN, None, &[]),
        ];
        let metrics = Metrics { rows, samples: Vec::new() };
        let json = serde_json::to_string(&metrics).unwrap();
        let back: Metrics = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), json);
        assert_eq!(back.rows[0].loss.to_bits(), (1.0f64 / 3.0).to_bits());
        assert_eq!(back.rows[0].learning_rate.to_bits(), (0.1f64 + 0.2).to_bits());
        assert_eq!(back.rows[0].grad_norm.to_bits(), metrics.rows[0].grad_norm.to_bits());
        assert_eq!(back.rows[0].further["accuracy"], 0.1);
        assert!(back.rows[0].further["margin"].is_nan() && back.rows[1].loss.is_nan());
    }
}
