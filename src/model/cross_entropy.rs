//! Cross-entropy over rows of logits as one operation, forward and backward: the sum over all targets
//! of `logsumexp(row) - row[target]`, in nats.
//!
//! candle's composition keeps three tensors of the logits' size alive; this keeps none. Its twin is
//! that composition, in the tests.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::ops::exp;

/// A target that does not count: padding, or a token nobody is to learn to say.
pub const IGNORE: u32 = u32::MAX;

/// The sum in nats over the targets that are not [`IGNORE`]; a scalar.
///
/// `logits`: `[N, V]`, f32, contiguous; `targets`: `N`, each below `V` or [`IGNORE`].
///
/// # Errors
/// When shapes or types do not fit.
pub fn cross_entropy(logits: &Tensor, targets: Vec<u32>) -> Result<Tensor> {
    logits.contiguous()?.apply_op1(CrossEntropy { targets })
}

struct CrossEntropy {
    targets: Vec<u32>,
}

/// `(max, ln sum exp(x - max))` of a row.
fn log_sum_exp(row: &[f32]) -> (f32, f32) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|x| exp(x - max)).sum();
    (max, sum.ln())
}

impl CrossEntropy {
    fn rows<'a>(&self, logits: &'a [f32], v: usize) -> impl Iterator<Item = (&'a [f32], u32)> {
        logits.chunks_exact(v).zip(self.targets.clone())
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, v) = layout.shape().dims2()?;
        let start = layout.start_offset();
        let logits = &storage.as_slice::<f32>()?[start..start + n * v];
        if n != self.targets.len() {
            candle_core::bail!("{n} rows of logits for {} targets", self.targets.len());
        }
        let mut nats = 0f64;
        for (row, target) in self.rows(logits, v).filter(|(_, t)| *t != IGNORE) {
            let (max, ln_sum) = log_sum_exp(row);
            nats += f64::from(max + ln_sum - row[target as usize]);
        }
        Ok((CpuStorage::F32(vec![nats as f32]), Shape::from(())))
    }

    /// `softmax(row) - onehot(target)`, times the gradient of the sum.
    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (n, v) = logits.dims2()?;
        let scale = grad.to_scalar::<f32>()?;
        let (storage, layout) = logits.storage_and_layout();
        let candle_core::Storage::Cpu(cpu) = &*storage else {
            candle_core::bail!("cross-entropy runs on the CPU");
        };
        let all = &cpu.as_slice::<f32>()?[layout.start_offset()..];
        let mut out = vec![0f32; n * v];
        for ((row, target), out) in self.rows(all, v).zip(out.chunks_exact_mut(v)) {
            if target == IGNORE {
                continue;
            }
            let (max, ln_sum) = log_sum_exp(row);
            for (o, x) in out.iter_mut().zip(row) {
                *o = scale * exp(x - max - ln_sum);
            }
            out[target as usize] -= scale;
        }
        Tensor::from_vec(out, (n, v), logits.device()).map(Some)
    }
}
