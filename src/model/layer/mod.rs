//! The layers: what each keeps of a forward pass, and its forward and backward side by side.
//!
//! A layer reads its parameters from the model by their layout, works on the rows of a [`Pass`], and adds
//! its gradients through [`Turns`]. All memory is the caller's: [`Activations`](super::block::Activations)
//! are kept for the backward pass, a [`Workspace`](super::workspace::Workspace) holds the rest.

pub mod adapter;
pub mod attention;
pub mod embed;
pub mod head;
pub mod mlp;
pub mod norm;

use std::ops::Range;

use super::decode::PackedWeights;
use super::layout::LinearLayout;
use super::ordered::Turns;
use super::{Config, Transformer};
use crate::kernel::linear::{self, Linear};
use crate::kernel::matmul::View;
use crate::kernel::weight::Weight;
use crate::kernel::{Dropout, Team, dropout};

/// Rows on their way through the model: what all layers read.
pub struct Pass<'a> {
    pub team: &'a Team,
    pub model: &'a Transformer,
    /// Rows, `N`.
    pub rows: usize,
    /// Rows of the batch before these, and
    pub first_row: usize,
    /// sequences before these: both decide what dropout drops.
    pub first_sequence: usize,
    pub dropout: DropoutSites,
    /// Whether activations are kept for a backward pass.
    pub keep: bool,
    /// Linear layers that are packed.
    pub packed: Option<&'a PackedWeights>,
    /// Sees what linear layers read.
    pub watch: Option<&'a Watch<'a>>,
}

/// Is given a team, where the weights of a linear layer lie, how many rows it reads, and these, `[N, in]`.
pub type Watch<'a> = dyn Fn(&Team, &Range<usize>, usize, View) + Sync + 'a;

impl<'a> Pass<'a> {
    pub fn config(&self) -> &'a Config {
        &self.model.config
    }

    /// `to += dropout(from)`, both `[N, C]`.
    pub fn add_dropped(&self, site: usize, from: &[f32], to: &mut [f32]) {
        self.apply(self.dropout.at(site), from, to, true);
    }

    /// `to = dropout(from)`, both `[N, C]`.
    pub fn dropped(&self, site: usize, from: &[f32], to: &mut [f32]) {
        self.apply(self.dropout.at(site), from, to, false);
    }

    /// `to = from`, both `[N, C]`.
    pub fn copy(&self, from: &[f32], to: &mut [f32]) {
        self.apply(Dropout::NONE, from, to, false);
    }

    /// `to += from`, both `[N, C]`.
    pub fn add(&self, from: &[f32], to: &mut [f32]) {
        self.apply(Dropout::NONE, from, to, true);
    }

    fn apply(&self, dropout: Dropout, from: &[f32], to: &mut [f32], add: bool) {
        dropout::apply(self.team, dropout, self.config().d_model, self.first_row, from, to, add);
    }

    pub fn linear(&self, layout: &LinearLayout) -> Linear<'a> {
        let bias = layout.bias.clone().map(|bias| &self.model.weights[bias]);
        let weight = match (self.model.weight(&layout.weight), self.packed) {
            (Weight::F32(all), Some(packed)) => Weight::Packed { all, packed: packed.of(layout) },
            (weight, _) => weight,
        };
        Linear { weight, bias, out: layout.out }
    }

    /// Accumulates the gradients of a linear layer's own parameters, given its input and dL/d(output).
    fn weights_backward(&self, layout: &LinearLayout, x: View, dy: View, turns: &mut Turns) {
        turns.add([Some(&layout.weight), layout.bias.as_ref()], |[weight, bias]| {
            let weight = weight.expect("a linear layer has a weight");
            linear::weights(self.team, self.rows, x, dy, layout.out, weight, bias);
        });
    }
}

/// Where activations are dropped: the embedding is site 0; block i has sites 3i + 1 (attention weights), 3i + 2
/// and 3i + 3 (what its sublayers add); after those of all blocks, each linear layer with adapters has one for
/// what they read.
#[derive(Clone, Copy)]
pub struct DropoutSites {
    pub p: f64,
    /// Of what adapters read.
    pub adapters: f64,
    /// Of this step.
    pub key: u64,
}

impl DropoutSites {
    pub const NONE: DropoutSites = DropoutSites { p: 0.0, adapters: 0.0, key: 0 };

    /// Those of a model that is trained.
    pub fn of(model: &Transformer, key: u64) -> Self {
        DropoutSites {
            p: model.config.dropout,
            adapters: model.lora.as_ref().map_or(0.0, |lora| lora.dropout),
            key,
        }
    }

    pub fn at(self, site: usize) -> Dropout {
        super::dropout_at(self.p, self.key, site)
    }
}
