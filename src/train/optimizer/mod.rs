//! From a gradient to better weights: parameter groups, each with a rule, a rate and a decay of its own;
//! clipping by the norm of all of them.
//!
//! A rule is a file: its state and its update, over the parameters that it was given.

mod adamw;
mod muon;
mod sgd;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::tensors::{Tensor, named};
use crate::kernel::adamw::squares;
use crate::kernel::{Buffer, Team};
use crate::model::{Parameter, Role, Transformer};

/// Which rule makes an update of a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    #[default]
    AdamW,
    /// Orthogonalized momentum for the hidden matrices (Jordan et al., 2024), AdamW for all else.
    Muon,
    /// Stochastic gradient descent.
    Sgd,
}

/// Which parameters decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Tensors of two dimensions: neither norms nor biases.
    #[default]
    Matrices,
    All,
}

/// How gradients become updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub algorithm: Algorithm,
    /// The peak of the schedule. Rates of groups keep their ratio to it.
    pub learning_rate: f64,
    /// Of token embeddings, learned positions, and an output projection of its own.
    pub embedding_learning_rate: f64,
    /// Of norms, biases and scalars.
    pub vector_learning_rate: f64,
    /// Of matrices that Muon updates.
    pub muon_learning_rate: f64,
    /// Decoupled: each weight loses this share, times the learning rate.
    pub weight_decay: f64,
    /// The same of matrices that Muon updates.
    pub muon_weight_decay: f64,
    pub decay: Decay,
    /// Of Muon and SGD.
    pub momentum: f64,
    /// AdamW's decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW's decay of the mean of their squares.
    pub beta2: f64,
    /// AdamW's addition to the divisor.
    pub eps: f64,
    /// The gradient's global norm is scaled down to this; 0 leaves it.
    pub clip: f64,
}

impl Options {
    /// The defaults of an algorithm, one rate for all groups but Muon's.
    pub fn new(algorithm: Algorithm, learning_rate: f64) -> Self {
        let (weight_decay, momentum) = match algorithm {
            Algorithm::AdamW => (0.1, 0.0),
            Algorithm::Muon => (0.0, 0.95),
            Algorithm::Sgd => (0.0, 0.0),
        };
        Options {
            algorithm,
            learning_rate,
            embedding_learning_rate: learning_rate,
            vector_learning_rate: learning_rate,
            muon_learning_rate: 0.02,
            weight_decay,
            muon_weight_decay: 0.05,
            decay: Decay::Matrices,
            momentum,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            clip: 1.0,
        }
    }
}

/// A parameter group: neighbouring parameters that are treated alike.
#[derive(Debug, Clone, PartialEq)]
struct Group {
    /// Among weights and gradients.
    range: Range<usize>,
    /// Its learning rate over that of the schedule.
    ratio: f64,
    weight_decay: f64,
}

/// Numbers of all groups.
fn numbers(groups: &[Group]) -> usize {
    groups.iter().map(|group| group.range.len()).sum()
}

/// Each group with its place in a state that holds the groups end to end.
fn end_to_end(groups: &[Group]) -> impl Iterator<Item = (Range<usize>, &Group)> {
    groups.iter().scan(0, |end, group| {
        *end += group.range.len();
        Some((*end - group.range.len()..*end, group))
    })
}

/// One step.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Multiplies the gradient: what makes a mean of a sum, and clipping.
    scale: f64,
    /// The schedule's learning rate.
    rate: f64,
}

/// A rule, its state, and the parameters that it updates.
trait Rule: Send {
    /// Updates its parameters; sets their gradient to 0.
    fn update(&mut self, team: &Team, step: Step, weights: &mut [f32], gradient: &mut [f32]);

    /// What it keeps from step to step, by name, each laid out as its parameters end to end.
    fn moments(&mut self) -> Vec<(&'static str, &mut Buffer)>;

    /// Single numbers that it keeps from step to step, by name.
    fn numbers(&mut self) -> Vec<(&'static str, &mut f64)> {
        Vec::new()
    }
}

/// A rule, and the parameters that it updates, in the order of its state.
struct Part {
    parameters: Vec<Parameter>,
    rule: Box<dyn Rule>,
}

impl Part {
    fn new(parameters: &[&Parameter], rule: impl Rule + 'static) -> Self {
        Part { parameters: parameters.iter().copied().cloned().collect(), rule: Box::new(rule) }
    }
}

/// A gradient, and what makes an update of it.
pub struct Optimizer {
    /// Laid out like [`Transformer::trained`], as are the weights that it updates.
    pub gradient: Buffer,
    parts: Vec<Part>,
    clip: f64,
}

impl Optimizer {
    pub fn new(transformer: &Transformer, options: &Options) -> Self {
        let parameters = transformer.trained_parameters();
        let all: Vec<&Parameter> = parameters.iter().collect();
        let parts = match options.algorithm {
            Algorithm::AdamW => vec![Part::new(&all, adamw::AdamW::new(groups(&all, options), options))],
            Algorithm::Sgd => vec![Part::new(&all, sgd::Sgd::new(groups(&all, options), options))],
            Algorithm::Muon => {
                let (hidden, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| p.role == Role::Matrix);
                vec![
                    Part::new(&hidden, muon::Muon::new(&hidden, options)),
                    Part::new(&rest, adamw::AdamW::new(groups(&rest, options), options)),
                ]
            }
        };
        Optimizer { gradient: Buffer::new(transformer.trained().len()), parts, clip: options.clip }
    }

    /// The norm of the mean gradient, where `gradient` is a sum over `targets`.
    pub fn norm(&self, team: &Team, targets: u64) -> f64 {
        squares(team, &self.gradient).sqrt() / targets.max(1) as f64
    }

    /// Applies the gradient, a sum over `targets` whose mean has this `norm`, at the schedule's learning
    /// `rate`, and clears it.
    pub fn update(&mut self, team: &Team, weights: &mut [f32], rate: f64, targets: u64, norm: f64) {
        let mean = 1.0 / targets.max(1) as f64;
        let scale = if self.clip > 0.0 && norm > self.clip { mean * self.clip / norm } else { mean };
        for part in &mut self.parts {
            part.rule.update(team, Step { scale, rate }, weights, &mut self.gradient);
        }
    }

    /// All tensors that it keeps from step to step, named `adamw.first/` and the parameter's name.
    pub fn tensors(&mut self) -> Vec<Tensor<'_>> {
        let mut tensors = Vec::new();
        for Part { parameters, rule } in &mut self.parts {
            for (name, values) in rule.moments() {
                tensors.extend(named(&format!("{name}/"), parameters, values));
            }
        }
        tensors
    }

    /// All single numbers that it keeps from step to step, by name.
    pub fn numbers(&mut self) -> Vec<(&'static str, &mut f64)> {
        self.parts.iter_mut().flat_map(|part| part.rule.numbers()).collect()
    }
}

/// The groups of `parameters`, in their order.
fn groups(parameters: &[&Parameter], options: &Options) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for p in parameters {
        let rate = match p.role {
            Role::Embedding | Role::Position | Role::Head => options.embedding_learning_rate,
            Role::Vector | Role::Scalar => options.vector_learning_rate,
            Role::Matrix => options.learning_rate,
        };
        let decays = options.decay == Decay::All || p.shape.len() > 1;
        let group = Group {
            range: p.range.clone(),
            ratio: rate / options.learning_rate,
            weight_decay: if decays { options.weight_decay } else { 0.0 },
        };
        match groups.last_mut() {
            Some(last)
                if last.range.end == p.range.start
                    && *last == (Group { range: last.range.clone(), ..group }) =>
            {
                last.range.end = p.range.end;
            }
            _ => groups.push(group),
        }
    }
    groups
}

#[cfg(test)]
mod tests;
