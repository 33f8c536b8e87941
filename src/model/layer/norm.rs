//! LayerNorm and RMSNorm with a model's parameters.

use super::Pass;
use crate::kernel::norm::{self, Gradients, Kind};
use crate::model::config::Norm;
use crate::model::layout::NormLayout;
use crate::model::ordered::Turns;

impl Pass<'_> {
    fn norm(&self, layout: &NormLayout) -> norm::Norm<'_> {
        let of =
            |range: &Option<std::ops::Range<usize>>| range.clone().map(|range| &self.model.weights[range]);
        let kind = match self.config().norm {
            Norm::LayerNorm => Kind::Layer,
            Norm::RmsNorm => Kind::Rms,
        };
        let eps = self.config().norm_eps as f32;
        // As the rows that blocks are multiplied with are rounded: so that llama.cpp writes the same text.
        let as_ggml = self.model.is_quantized();
        norm::Norm { kind, eps, weight: of(&layout.weight), bias: of(&layout.bias), as_ggml }
    }
}

/// `y = norm(x)`, `x, y: [N, C]`; keeps `stats: [N, 2]`.
pub fn forward(pass: &Pass, layout: &NormLayout, x: &[f32], y: &mut [f32], stats: &mut [f32]) {
    norm::forward(pass.team, pass.norm(layout), pass.config().d_model, x, y, stats);
}

/// What [`forward`] gave, from its stats.
pub fn recompute(pass: &Pass, layout: &NormLayout, x: &[f32], stats: &[f32], y: &mut [f32]) {
    norm::recompute(pass.team, pass.norm(layout), pass.config().d_model, x, stats, y);
}

/// Accumulates dL/dx into `dx: [N, C]`, and the gradients of the parameters that are trained.
pub fn backward(
    pass: &Pass,
    layout: &NormLayout,
    x: &[f32],
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    turns: &mut Turns,
) {
    let (norm, c) = (pass.norm(layout), pass.config().d_model);
    if ![&layout.weight, &layout.bias].into_iter().flatten().any(|range| turns.is_trained(range)) {
        let none = Gradients { weight: None, bias: None };
        return norm::backward(pass.team, norm, c, x, stats, dy, dx, none);
    }
    turns.add([layout.weight.as_ref(), layout.bias.as_ref()], |[weight, bias]| {
        norm::backward(pass.team, norm, c, x, stats, dy, dx, Gradients { weight, bias });
    });
}
