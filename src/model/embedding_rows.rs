//! Another vocabulary for a model: its body is kept, rows of its embedding are kept, moved or begun anew.

use super::{Config, Parameter, Role, Transformer};
use crate::base::Rng;

/// The standard deviation of what tells new rows apart.
const NOISE: f64 = 0.002;

impl Transformer {
    /// The same body for a vocabulary of as many tokens as there are `rows`: a row of the embedding, and of
    /// an output projection of its own, is the old one that is named, or where none is, the mean of the old
    /// ones and a little noise from `seed` (Hewitt, 2021).
    ///
    /// # Panics
    /// When there is no row of that number, or the model is quantized.
    pub fn with_rows(&self, rows: &[Option<usize>], seed: u64) -> Self {
        assert!(!self.is_quantized(), "a model whose rows move must be `dequantized`");
        let mut new = Self::zeros(&Config { vocab_size: rows.len(), ..self.config.clone() });
        for (from, to) in self.layout.parameters.iter().zip(&new.layout.parameters) {
            let (old, new) = (&self.weights[from.range.clone()], &mut new.weights[to.range.clone()]);
            match self.has_a_row_each_token(from) {
                true => move_rows(old, new, rows, Rng::new(seed, &format!("init/extended/{}", from.name))),
                false => new.copy_from_slice(old),
            }
        }
        new
    }

    /// The same body for a vocabulary of `vocab_size` tokens, its embedding, and an output projection of its
    /// own, begun anew.
    ///
    /// # Panics
    /// When the model is quantized.
    pub fn with_new_embedding(&self, vocab_size: usize, seed: u64) -> Self {
        assert!(!self.is_quantized(), "a model whose rows move must be `dequantized`");
        let mut new = Self::fresh(&Config { vocab_size, ..self.config.clone() }, seed);
        for (from, to) in self.layout.parameters.iter().zip(&new.layout.parameters) {
            if !self.has_a_row_each_token(from) {
                new.weights[to.range.clone()].copy_from_slice(&self.weights[from.range.clone()]);
            }
        }
        new
    }

    /// Whether it is the embedding, the output projection or its bias.
    fn has_a_row_each_token(&self, parameter: &Parameter) -> bool {
        matches!(parameter.role, Role::Embedding | Role::Head)
            || self.layout.head_bias.as_ref() == Some(&parameter.range)
    }
}

fn move_rows(old: &[f32], new: &mut [f32], rows: &[Option<usize>], mut rng: Rng) {
    let width = new.len() / rows.len();
    let tokens = old.len() / width;
    let mean = |i| old.iter().skip(i).step_by(width).sum::<f32>() / tokens as f32;
    let mean: Vec<f32> = (0..width).map(mean).collect();
    for (row, from) in new.chunks_mut(width).zip(rows) {
        match from {
            Some(from) => row.copy_from_slice(&old[from * width..(from + 1) * width]),
            None => row.iter_mut().zip(&mean).for_each(|(x, mean)| *x = mean + (NOISE * rng.normal()) as f32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gpt2;

    /// With an output projection of its own and a bias: three tensors have a row each token.
    fn model() -> Transformer {
        let config = Config { d_ff: 8, tied: false, head_bias: true, ..gpt2(5, 4, 1, 2, 6) };
        let mut model = Transformer::fresh(&config, 1);
        model.weights.iter_mut().enumerate().for_each(|(i, w)| *w += i as f32);
        model
    }

    fn row<'a>(model: &'a Transformer, name: &str, row: usize) -> &'a [f32] {
        let p = model.parameters().iter().find(|p| p.name == name).unwrap();
        let width = p.range.len() / p.shape[0];
        &model.weights[p.range.clone()][row * width..(row + 1) * width]
    }

    const TABLES: [&str; 3] = ["transformer.wte.weight", "lm_head.weight", "lm_head.bias"];

    fn assert_same_body(old: &Transformer, new: &Transformer) {
        for (a, b) in old.parameters().iter().zip(new.parameters()) {
            if !TABLES.contains(&a.name.as_str()) {
                assert!(old.weights[a.range.clone()] == new.weights[b.range.clone()], "{}", a.name);
            }
        }
    }

    #[test]
    fn rows_move_with_their_tokens_and_the_body_stays() {
        let old = model();
        let rows = [Some(3), None, Some(0), Some(4), None, None, Some(1)];
        let new = old.with_rows(&rows, 7);
        assert_eq!(new.config.vocab_size, 7);
        assert_same_body(&old, &new);
        for name in TABLES {
            for (i, from) in rows.iter().enumerate() {
                match from {
                    Some(from) => assert_eq!(row(&new, name, i), row(&old, name, *from), "{name}"),
                    None => {
                        let mean = (0..5).map(|j| row(&old, name, j)[0]).sum::<f32>() / 5.0;
                        assert!((row(&new, name, i)[0] - mean).abs() < 0.02, "{name}: near the mean");
                    }
                }
            }
            assert_ne!(row(&new, name, 1), row(&new, name, 4), "{name}: new rows can be told apart");
        }
    }

    #[test]
    fn a_new_embedding_is_a_fresh_one_on_the_same_body() {
        let old = model();
        let new = old.with_new_embedding(9, 3);
        let fresh = Transformer::fresh(&Config { vocab_size: 9, ..old.config.clone() }, 3);
        assert_same_body(&old, &new);
        for name in TABLES {
            (0..9).for_each(|i| assert_eq!(row(&new, name, i), row(&fresh, name, i), "{name}"));
        }
    }
}
