//! What a teacher gives of each row: the likeliest ids with their probabilities, and one bucket for all others.

/// A teacher's distributions, of which the likeliest ids are known and of the others the probability of all
/// together.
///
/// With the share s and the temperature T, the loss of a row is
/// `(1 - s) · cross-entropy(target) + s · T² · KL(teacher ‖ student)`, where the teacher's probabilities are
/// those of its logits divided by T, and so are the student's (Hinton, Vinyals and Dean, "Distilling the
/// Knowledge in a Neural Network", 2015: T² keeps the gradient's size as T changes).
#[derive(Debug, Clone, Copy)]
pub struct Soft<'a> {
    /// Ids a row.
    pub k: usize,
    /// `[N, k]`, none of them twice in a row.
    pub ids: &'a [u32],
    /// `[N, k]`, of these ids at that temperature; the others share `1 - Σ`.
    pub probabilities: &'a [f32],
    /// T
    pub temperature: f32,
    /// s
    pub share: f32,
}

impl<'a> Soft<'a> {
    /// Of some rows.
    pub fn part(self, rows: std::ops::Range<usize>) -> Self {
        let of = rows.start * self.k..rows.end * self.k;
        Soft { ids: &self.ids[of.clone()], probabilities: &self.probabilities[of], ..self }
    }
}
