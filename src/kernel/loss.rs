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

/// The output projection: logits = `x · tokensᵀ`, and its gradients' places.
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

    /// The sum over `targets` of `-ln p(target)` in nats, none of which is [`IGNORE`].
    ///
    /// With `gradients`, the first of which are `dtokens` and the second `dx: [N, C]`, adds to the one and
    /// writes the other.
    pub fn loss(
        &mut self,
        team: &Team,
        x: &[f32],
        targets: &[u32],
        mut gradients: Option<(&mut [f32], &mut [f32])>,
    ) -> f64 {
        let (c, v) = (self.c, self.vocabulary());
        let mut nats = 0.0;
        for (i, targets) in targets.chunks(CHUNK).enumerate() {
            let n = targets.len();
            let rows = i * CHUNK * c..(i * CHUNK + n) * c;
            let logits = &mut self.logits[..n * v];
            self::logits(team, self.tokens, c, &x[rows.clone()], logits);
            nats += rows_of(team, logits, targets, v, gradients.is_some());
            if let Some((dtokens, dx)) = &mut gradients {
                let (dlogits, tokens) = (View::new(logits, v), View::new(self.tokens, c));
                matmul(team, (n, c, v), dlogits, tokens, Start::Zero, &mut dx[rows.clone()], c);
                let x = View::new(&x[rows], c);
                matmul(team, (v, c, n), dlogits.t(), x, Start::Add, dtokens, c);
            }
        }
        nats
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
