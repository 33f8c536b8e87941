//! Cross-entropy with the output projection: logits are made for some rows at a time, turned into their
//! gradient where they lie, and used up, so that `[N, V]` numbers never exist.

use super::math::exp;
pub use super::matmul::THIN;
use super::matmul::{Start, View, matmul};
use super::simd::{F, LANES, simd};
use super::team::{Parts, Team};

/// A target that does not count: padding, or a token nobody is to learn to say.
pub const IGNORE: u32 = u32::MAX;

/// Rows of logits that are there at a time.
pub const CHUNK: usize = 256;

/// The output projection: logits = `x · tokensᵀ`, of up to [`CHUNK`] rows at a time.
pub struct Head<'a> {
    /// `[V, C]`
    pub tokens: &'a [f32],
    /// Width, `C`.
    pub c: usize,
    /// Scratch of `CHUNK · V` numbers, or N · V where there are fewer rows.
    pub logits: &'a mut [f32],
}

impl Head<'_> {
    fn vocabulary(&self) -> usize {
        self.tokens.len() / self.c
    }

    /// The sum over `targets` of `-ln p(target)` in nats, none of which is [`IGNORE`], of `x: [N, C]`. With
    /// `gradient` the logits become theirs, for [`Head::input`] and [`Head::weights`].
    pub fn loss(&mut self, team: &Team, x: &[f32], targets: &[u32], gradient: bool) -> f64 {
        let v = self.vocabulary();
        let logits = &mut self.logits[..targets.len() * v];
        self::logits(team, self.tokens, self.c, x, logits);
        rows_of(team, logits, targets, v, gradient)
    }

    /// `dx = dlogits · tokens`.
    pub fn input(&self, team: &Team, dx: &mut [f32]) {
        let (c, v) = (self.c, self.vocabulary());
        let (dlogits, tokens) = (View::new(self.logits, v), View::new(self.tokens, c));
        matmul(team, (dx.len() / c, c, v), dlogits, tokens, Start::Zero, dx, c);
    }

    /// `dtokens += dlogitsᵀ · x`.
    pub fn weights(&self, team: &Team, x: &[f32], dtokens: &mut [f32]) {
        let (c, v) = (self.c, self.vocabulary());
        let (dlogits, shape) = (View::new(self.logits, v).t(), (v, c, x.len() / c));
        matmul(team, shape, dlogits, View::new(x, c), Start::Add, dtokens, c);
    }
}

/// `logits: [N, V]` of `x: [N, C]`.
pub fn logits(team: &Team, tokens: &[f32], c: usize, x: &[f32], logits: &mut [f32]) {
    let (n, v) = (x.len() / c, tokens.len() / c);
    matmul(team, (n, v, c), View::new(x, c), View::new(tokens, c).t(), Start::Zero, logits, v);
}

/// Nats of the rows; each becomes `softmax - onehot(target)` where gradients are wanted.
fn rows_of(team: &Team, logits: &mut [f32], targets: &[u32], v: usize, gradient: bool) -> f64 {
    let mut nats = [0f64; CHUNK];
    let (logits, each) = (Parts::new(logits), Parts::new(&mut nats));
    team.ranges(targets.len(), 4, |rows| {
        for i in rows {
            // SAFETY: each row has one task.
            let (row, own) = unsafe { (logits.take(i * v..(i + 1) * v), each.take(i..i + 1)) };
            own[0] = cross_entropy(team.isa, row, targets[i], gradient);
        }
    });
    nats[..targets.len()].iter().sum()
}

simd! {
    /// `ln Σ e^x - x[target]`.
    fn cross_entropy<S>(row: &mut [f32], target: u32, gradient: bool) -> f64 {
        let mut greatest = F::<S>::splat(f32::NEG_INFINITY);
        for x in row.chunks(LANES) {
            greatest = greatest.max(F::load_some(x, f32::NEG_INFINITY));
        }
        let greatest = greatest.greatest();
        let own = row[target as usize];
        let mut sum = F::<S>::splat(0.0);
        for x in row.chunks_mut(LANES) {
            exp(F::<S>::load_some(x, 0.0) - F::splat(greatest)).store_some(x);
            sum = sum + F::load_some(x, 0.0);
        }
        let sum = sum.sum();
        if gradient {
            let inverse = F::<S>::splat(1.0 / sum);
            for x in row.chunks_mut(LANES) {
                (F::load_some(x, 0.0) * inverse).store_some(x);
            }
            row[target as usize] -= 1.0;
        }
        libm::log(f64::from(sum)) + f64::from(greatest) - f64::from(own)
    }
}
