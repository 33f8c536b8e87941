//! A linear layer with its low-rank adapters, where it has some.

use super::Pass;
use crate::kernel::lora::{self, Adapters, Back, Dropped};
use crate::kernel::matmul::View;
use crate::kernel::{Buffer, linear};
use crate::model::dropout_at;
use crate::model::layout::{AdapterLayout, LinearLayout};
use crate::model::ordered::Turns;

/// What a layer's adapters keep for the backward pass: `alpha/rank · dropout(x) · A`, `[N, parts · rank]`. Made
/// when it is first needed: most models have no adapters.
pub struct Hidden(Buffer);

impl Hidden {
    pub fn new() -> Self {
        Hidden(Buffer::new(0))
    }
}

/// What holds nothing longer than a layer, made when it is first needed.
pub struct Scratch {
    /// The layer's input as adapters see it, or the gradient of that, `[N, in]`.
    input: Buffer,
    /// The gradient of `dropout(x) · A`, `[N, parts · rank]`.
    dhidden: Buffer,
}

impl Scratch {
    pub fn new() -> Self {
        Scratch { input: Buffer::new(0), dhidden: Buffer::new(0) }
    }
}

/// The first `len` numbers, of which there are so many afterwards.
fn at_least(buffer: &mut Buffer, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        *buffer = Buffer::new(len);
    }
    &mut buffer[..len]
}

impl<'a> Pass<'a> {
    /// `y: [N, out]` of `x: [N, in]`; rows of y begin every `stride`.
    pub fn linear_forward(
        &self,
        layout: &LinearLayout,
        x: View,
        kept: &mut Hidden,
        scratch: &mut Scratch,
        y: &mut [f32],
        stride: usize,
    ) {
        if let Some(watch) = self.watch {
            watch(self.team, &layout.weight, self.rows, x);
        }
        linear::forward(self.team, self.linear(layout), x, y, stride);
        let Some((adapters, dropped)) = self.adapters(layout) else { return };
        let hidden = at_least(&mut kept.0, self.rows * adapters.width());
        let scratch = self.dropped_input(adapters, dropped, &mut scratch.input);
        lora::forward(self.team, adapters, dropped, x, hidden, scratch, y, stride);
    }

    /// What the backward pass of a linear layer begins with, given dL/d(output).
    pub fn begin_linear_backward(&self, layout: &LinearLayout, dy: View, scratch: &mut Scratch) {
        let Some((adapters, _)) = self.adapters(layout) else { return };
        lora::hidden(self.team, adapters, dy, at_least(&mut scratch.dhidden, self.rows * adapters.width()));
    }

    /// Accumulates the gradients of what is trained of a linear layer, given its input and dL/d(output).
    pub fn linear_backward(
        &self,
        layout: &LinearLayout,
        x: View,
        dy: View,
        kept: &Hidden,
        scratch: &mut Scratch,
        turns: &mut Turns,
    ) {
        self.weights_backward(layout, x, dy, turns);
        let (Some((adapters, dropped)), Some(layout)) = (self.adapters(layout), &layout.adapters) else {
            return;
        };
        let len = self.rows * adapters.width();
        let input = self.dropped_input(adapters, dropped, &mut scratch.input);
        let back = Back { x, hidden: &kept.0[..len], dhidden: &scratch.dhidden[..len], dy };
        turns.add([Some(&layout.a), Some(&layout.b)], |[a, b]| {
            let (a, b) = (a.expect("adapters are trained"), b.expect("adapters are trained"));
            lora::weights(self.team, adapters, dropped, back, input, a, b);
        });
    }

    /// dL/d(input) of a linear layer, given dL/d(output); rows of dx begin every `stride`.
    pub fn linear_input(
        &self,
        layout: &LinearLayout,
        dy: View,
        dx: &mut [f32],
        stride: usize,
        scratch: &mut Scratch,
    ) {
        linear::input(self.team, self.linear(layout), dy, dx, stride);
        let Some((adapters, dropped)) = self.adapters(layout) else { return };
        let dhidden = &scratch.dhidden[..self.rows * adapters.width()];
        let input = self.dropped_input(adapters, dropped, &mut scratch.input);
        lora::input(self.team, adapters, dropped, dhidden, input, dx, stride);
    }

    fn adapters<'b>(&self, layout: &'b LinearLayout) -> Option<(Adapters<'b>, Dropped)>
    where
        'a: 'b,
    {
        let (lora, layout) = (self.model.lora.as_ref()?, layout.adapters.as_ref()?);
        let AdapterLayout { a, b, parts, site, .. } = layout;
        let weights = &self.model.weights;
        let adapters = Adapters {
            a: &weights[a.clone()],
            b: &weights[b.clone()],
            rank: lora.rank,
            scale: lora.scale(),
            parts,
        };
        let dropout = dropout_at(self.dropout.adapters, self.dropout.key, *site);
        Some((adapters, Dropped { dropout, first_row: self.first_row }))
    }

    /// A buffer for the input of adapters, which is needed where something is dropped.
    fn dropped_input<'s>(
        &self,
        adapters: Adapters,
        dropped: Dropped,
        buffer: &'s mut Buffer,
    ) -> &'s mut [f32] {
        at_least(buffer, if dropped.dropout.is_none() { 0 } else { self.rows * adapters.input() })
    }
}
