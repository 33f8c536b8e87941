//! AdamW (Loshchilov and Hutter, 2019): clipping, moments, decoupled decay and the update in passes over
//! flat buffers that are made once.

use super::Options;
use crate::base::Result;
use crate::model::{Parameter, math};

const EPSILON: f64 = 1e-8;

/// The optimizer's state. All buffers are laid out like [`super::flat`].
pub struct AdamW {
    pub gradient: Vec<f32>,
    pub weights: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    /// (length, decays): matrices decay, norms and biases do not.
    spans: Vec<(usize, bool)>,
    step: i32,
    beta1: f64,
    beta2: f64,
    decay: f64,
    clip: f64,
}

impl AdamW {
    /// # Errors
    /// When candle fails.
    pub fn new(parameters: &[Parameter], options: &Options) -> Result<Self> {
        let weights = super::flat(parameters)?;
        let zeros = vec![0.0; weights.len()];
        Ok(AdamW {
            gradient: zeros.clone(),
            first: zeros.clone(),
            second: zeros,
            weights,
            spans: parameters.iter().map(|p| (p.var.elem_count(), p.var.dims().len() > 1)).collect(),
            step: 0,
            beta1: options.beta1,
            beta2: options.beta2,
            decay: options.weight_decay,
            clip: options.clip,
        })
    }

    /// Applies the gradient, a sum over `targets`, and clears it; gives the norm of its mean before
    /// clipping.
    ///
    /// # Errors
    /// When candle fails.
    pub fn update(&mut self, parameters: &[Parameter], rate: f64, targets: u64) -> Result<f64> {
        let mean = 1.0 / targets.max(1) as f64;
        let squares: f64 = self.gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
        let norm = squares.sqrt() * mean;
        let scale = if self.clip > 0.0 && norm > self.clip { mean * self.clip / norm } else { mean };
        self.step += 1;
        let correct1 = 1.0 - self.beta1.powi(self.step);
        let correct2 = 1.0 - self.beta2.powi(self.step);
        let (b1, b2) = (self.beta1 as f32, self.beta2 as f32);
        let step_size = (rate / correct1) as f32;
        let root = (1.0 / correct2.sqrt()) as f32;
        let mut start = 0;
        for (len, decays) in &self.spans {
            let keep = if *decays { (1.0 - rate * self.decay) as f32 } else { 1.0 };
            let span = start..start + len;
            start += len;
            let moments = self.first[span.clone()].iter_mut().zip(&mut self.second[span.clone()]);
            let pairs = self.weights[span.clone()].iter_mut().zip(&mut self.gradient[span]);
            for ((m, v), (w, g)) in moments.zip(pairs) {
                let gradient = *g * scale as f32;
                *g = 0.0;
                *m = b1 * *m + (1.0 - b1) * gradient;
                *v = b2 * *v + (1.0 - b2) * gradient * gradient;
                *w = *w * keep - step_size * *m / (v.sqrt() * root + EPSILON as f32);
            }
        }
        put(parameters, &self.weights)?;
        Ok(norm)
    }
}

/// Copies flat weights into the parameters.
pub fn put(parameters: &[Parameter], weights: &[f32]) -> Result<()> {
    let mut start = 0;
    for p in parameters {
        let n = p.var.elem_count();
        let part = candle_core::Tensor::from_slice(&weights[start..start + n], p.var.shape(), p.var.device());
        part.and_then(|t| p.var.set(&t)).map_err(math)?;
        start += n;
    }
    Ok(())
}
