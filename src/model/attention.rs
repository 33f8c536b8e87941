//! Who attends to whom: the weights of every layer and head for a text, from the forward pass that training does,
//! and what the model expects next.

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::executor::{Executor, Sequences, forward, pass_of};
use super::layer::DropoutSites;
use super::ordered::lock;
use super::{Config, Model, Transformer, block, nan};
use crate::base::{Error, Invalid, Result};
use crate::kernel::loss::{logits, soften, top_k};
use crate::kernel::{IGNORE, Team};

/// One layer, one head, or all; they are numbered from 0, as in the names of tensors.
#[derive(Debug, Clone, Copy, Default)]
pub struct Which {
    pub layer: Option<usize>,
    pub head: Option<usize>,
}

impl Which {
    /// # Errors
    /// The param that names a layer or head that the model doesn't have.
    pub fn validate(self, config: &Config) -> Result<(), Invalid> {
        let wanted = [("layer", self.layer, config.n_layer), ("head", self.head, config.n_head)];
        for (param, wanted, count) in wanted {
            if let Some(wanted) = wanted.filter(|wanted| *wanted >= count) {
                let why = format!("is {wanted}: the model's are 0 to {}", count - 1);
                return Err(Invalid::new(param, why));
            }
        }
        Ok(())
    }

    /// How many maps these are.
    pub fn maps(self, config: &Config) -> usize {
        let count = |wanted: Option<usize>, all: usize| if wanted.is_some() { 1 } else { all };
        count(self.layer, config.n_layer) * count(self.head, config.n_head)
    }

    fn has(wanted: Option<usize>, i: usize) -> bool {
        wanted.is_none_or(|wanted| wanted == i)
    }
}

/// The weights of one head, `[T, T]`: row i says how much of each token's value goes into what the head gives for
/// token i. A row sums to 1, and is 0 for tokens behind i.
#[derive(Debug, Clone, Copy)]
pub struct Map<'a> {
    /// `T`
    pub tokens: usize,
    pub weights: &'a [f32],
}

/// What the queries of a head look at, as means over all but the first, which sees only itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pattern {
    /// The weight of the token before.
    pub previous: f64,
    /// The weight of the first token.
    pub first: f64,
    /// The weight of the token itself.
    pub itself: f64,
    /// `-Σ w log2 w`, in bits.
    pub entropy: f64,
}

impl<'a> Map<'a> {
    /// The rows, one a query.
    pub fn rows(self) -> std::slice::ChunksExact<'a, f32> {
        self.weights.chunks_exact(self.tokens)
    }

    /// None where there is but one token.
    pub fn pattern(self) -> Option<Pattern> {
        let mean = |of: &dyn Fn(usize, &[f32]) -> f64| {
            let sum: f64 = self.rows().enumerate().skip(1).map(|(i, row)| of(i, row)).sum();
            sum / (self.tokens - 1) as f64
        };
        let bits = |row: &[f32]| -> f64 {
            let terms = row.iter().filter(|w| **w > 0.0).map(|w| f64::from(*w));
            -terms.map(|w| w * libm::log2(w)).sum::<f64>()
        };
        (self.tokens > 1).then(|| Pattern {
            previous: mean(&|i, row| f64::from(row[i - 1])),
            first: mean(&|_, row| f64::from(row[0])),
            itself: mean(&|i, row| f64::from(row[i])),
            entropy: mean(&|_, row| bits(row)),
        })
    }
}

/// The entropy of a [`Pattern`] that looks at all tokens alike: the largest that there is.
pub fn uniform_entropy(tokens: usize) -> f64 {
    (2..=tokens).map(|seen| libm::log2(seen as f64)).sum::<f64>() / tokens.saturating_sub(1).max(1) as f64
}

/// Calls `each` with layer, head and weights of a forward pass over `ids`, in their order; gives the `top` most
/// probable next ids with their probabilities, the most probable first.
///
/// # Errors
/// When there are no ids, more than the model holds, or one beyond its vocabulary; when `which` names what is not
/// there; when the model gives NaN.
pub fn each_map(
    model: &Transformer,
    ids: &[u32],
    which: Which,
    top: usize,
    threads: usize,
    each: &mut dyn FnMut(usize, usize, Map),
) -> Result<Vec<(u32, f32)>> {
    let (config, t) = (&model.config, ids.len());
    validate(config, ids)?;
    which.validate(config).map_err(Error::invalid)?;
    // As for training: each layer keeps what its weights are computed from.
    let mut executor = Executor::training(config, Team::new(threads).in_dtype(model.products()));
    executor.prepare(1, t);
    let targets = vec![IGNORE; t];
    let all = Sequences::new(ids, &targets, t);
    let pass = pass_of(&executor.team, model, all, 0, DropoutSites::NONE, true);
    let mut workspace = lock(&executor.workspaces[0]);
    forward(&pass, &mut workspace, all);
    let mut weights = vec![0.0; config.n_head * t * t];
    for layer in (0..config.n_layer).filter(|layer| Which::has(which.layer, *layer)) {
        let workspace = &mut *workspace;
        block::attention_weights(
            &pass,
            layer,
            &workspace.kept[layer],
            t,
            &mut workspace.scratch,
            &mut weights,
        );
        if weights.iter().any(|weight| weight.is_nan()) {
            return Err(nan(&format!("attention weights of layer {layer}")));
        }
        for (head, weights) in weights.chunks_exact(t * t).enumerate() {
            if Which::has(which.head, head) {
                each(layer, head, Map { tokens: t, weights });
            }
        }
    }
    let c = config.d_model;
    next(&executor.team, model, &workspace.scratch.a[(t - 1) * c..t * c], top)
}

/// The most probable ids at a place, given the last norm's output there, `[C]`.
fn next(team: &Team, model: &Transformer, x: &[f32], top: usize) -> Result<Vec<(u32, f32)>> {
    let v = model.config.vocab_size;
    let mut row = vec![0.0; v];
    logits(team, model.output(), x, &mut row);
    if row.iter().any(|logit| logit.is_nan()) {
        return Err(nan("logits"));
    }
    soften(team, &mut row, v, 1.0);
    let k = top.min(v);
    let (mut ids, mut probabilities) = (vec![0; k], vec![0.0; k]);
    top_k(team, &row, v, 1, k, &mut ids, &mut probabilities);
    Ok(ids.into_iter().zip(probabilities).collect())
}

/// Whether a text can be looked at.
///
/// # Errors
/// When it has no ids, more than the model holds, or one beyond its vocabulary.
pub fn validate(config: &Config, ids: &[u32]) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::input("the text is empty").help("write a text of at least one token"));
    }
    if ids.len() > config.seq_len {
        let what = format!("the text has {} tokens, the model holds {}", ids.len(), config.seq_len);
        return Err(Error::input(what).help("shorten the text: its tokens attend to each other in one pass"));
    }
    config.validate_ids(ids)
}

/// A text with its tokens' attention, to be shown.
#[derive(Debug, Serialize)]
pub struct View {
    pub tokens: Vec<Token>,
    /// The only layer that is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// The only head that is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<usize>,
    /// By layer and head, rows of weights as [`Map`]'s.
    pub layers: Vec<Vec<Rows>>,
    /// The most probable next tokens, the most probable first.
    pub next: Vec<Next>,
}

/// A token, and its text to be looked at (see [`Tokenizer::shown`](crate::tokenizer::Tokenizer::shown)).
#[derive(Debug, Serialize)]
pub struct Token {
    pub id: u32,
    pub token: String,
}

#[derive(Debug, Serialize)]
pub struct Next {
    pub id: u32,
    pub token: String,
    /// Its probability.
    pub p: f32,
}

/// [`Map`], owned; as JSON a list of rows.
#[derive(Debug)]
pub struct Rows {
    tokens: usize,
    weights: Vec<f32>,
}

impl Rows {
    /// # Panics
    /// When there are not `tokens` rows of `tokens` weights.
    pub fn new(tokens: usize, weights: Vec<f32>) -> Self {
        assert_eq!(weights.len(), tokens * tokens, "a weight for each pair of tokens");
        Rows { tokens, weights }
    }

    pub fn map(&self) -> Map<'_> {
        Map { tokens: self.tokens, weights: &self.weights }
    }
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut rows = serializer.serialize_seq(Some(self.tokens))?;
        self.map().rows().try_for_each(|row| rows.serialize_element(row))?;
        rows.end()
    }
}

/// The attention of `ids` in the layers and heads of `which`, and the `top` most probable next tokens.
///
/// # Errors
/// As [`each_map`].
pub fn attention(model: &Model, ids: &[u32], which: Which, top: usize, threads: usize) -> Result<View> {
    let mut layers: Vec<Vec<Rows>> = Vec::new();
    let mut last = None;
    let next = each_map(&model.transformer, ids, which, top, threads, &mut |layer, _, map| {
        if last.replace(layer) != Some(layer) {
            layers.push(Vec::new());
        }
        let rows = Rows::new(map.tokens, map.weights.to_vec());
        layers.last_mut().expect("a layer was begun").push(rows);
    })?;
    let shown = |id: u32| model.tokenizer.shown(id);
    Ok(View {
        tokens: ids.iter().map(|id| Token { id: *id, token: shown(*id) }).collect(),
        layer: which.layer,
        head: which.head,
        layers,
        next: next.into_iter().map(|(id, p)| Next { id, token: shown(id), p }).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{architectures, batch, model};
    use super::super::{Cache, Decoder, Reading};
    use super::*;
    use crate::kernel::{BlockType, Dtype};

    fn maps(model: &Transformer, ids: &[u32]) -> Vec<Vec<f32>> {
        let mut found = Vec::new();
        let keep = &mut |_, _, map: Map| found.push(map.weights.to_vec());
        each_map(model, ids, Which::default(), 1, 2, keep).unwrap();
        found
    }

    /// A quantized twin, one in bf16, and each architecture.
    fn models() -> Vec<(&'static str, Transformer)> {
        let mut all: Vec<_> =
            architectures().iter().map(|(name, config)| (*name, model(config, 3))).collect();
        let config =
            Config { d_model: 64, d_head: 16, n_head: 4, n_kv_head: 2, d_ff: 96, ..all[0].1.config.clone() };
        all.push(("Q8_0", model(&config, 4).rounded_to(BlockType::Q8_0).unwrap()));
        all.push(("bf16", model(&config, 4).in_dtype(Dtype::Bf16)));
        all.push(("bf16_tile", model(&config, 4).in_dtype(Dtype::Bf16Tile)));
        all
    }

    #[test]
    fn rows_are_distributions_over_what_came_before() {
        for (name, gpt) in models() {
            let t = 67;
            let (ids, _) = batch(&gpt.config, 1, 5);
            let found = maps(&gpt, &ids[..t]);
            assert_eq!(found.len(), gpt.config.n_layer * gpt.config.n_head, "{name}");
            for (i, row) in found.iter().flat_map(|map| map.chunks_exact(t).enumerate()) {
                let sum: f64 = row.iter().map(|w| f64::from(*w)).sum();
                assert!((sum - 1.0).abs() < 1e-5, "{name}: row {i} sums to {sum}");
                assert!(row[i + 1..].iter().all(|w| *w == 0.0), "{name}: row {i} looks ahead");
            }
        }
    }

    /// A text's first tokens attend as if there were no others, and what comes next is what decoding says.
    #[test]
    fn it_is_the_pass_that_decoding_does() {
        for (name, gpt) in models() {
            let (ids, _) = batch(&gpt.config, 1, 6);
            let (long, short) = (maps(&gpt, &ids[..40]), maps(&gpt, &ids[..9]));
            for (long, short) in long.iter().zip(&short) {
                let begin: Vec<f32> =
                    long.chunks_exact(40).take(9).flat_map(|row| &row[..9]).copied().collect();
                assert_eq!(begin, *short, "{name}");
            }
            let next = each_map(&gpt, &ids[..9], Which::default(), 3, 1, &mut |_, _, _| {}).unwrap();
            let mut cache = Cache::default();
            let mut decoder = Decoder::new(&gpt, Team::new(1));
            let row = decoder.read(&mut [Reading { cache: &mut cache, ids: &ids[..9] }]).unwrap();
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            assert!(next.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{name}: {next:?}");
            for (id, p) in next {
                let expected = f64::from(row[id as usize]).exp() / sum;
                assert!((f64::from(p) - expected).abs() < 1e-5, "{name}: {id} {p} {expected}");
            }
        }
    }

    #[test]
    fn patterns_are_means_over_queries() {
        let weights = [1.0, 0.0, 0.0, 0.25, 0.75, 0.0, 0.5, 0.25, 0.25];
        let map = Map { tokens: 3, weights: &weights };
        let found = map.pattern().unwrap();
        assert_eq!([found.previous, found.first, found.itself], [0.25, 0.375, 0.5]);
        assert!((found.entropy - (0.811278 + 1.5) / 2.0).abs() < 1e-6, "{found:?}");
        assert_eq!(Map { tokens: 1, weights: &[1.0] }.pattern(), None);
        assert!((uniform_entropy(3) - (1.0 + 1.584963) / 2.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let (_, gpt) = models().remove(0);
        let error = |ids: &[u32], which| {
            let found = each_map(&gpt, ids, which, 1, 1, &mut |_, _, _| panic!("it was computed"));
            found.unwrap_err().to_string()
        };
        assert!(error(&[], Which::default()).contains("empty"));
        let long = error(&[1; 151], Which::default());
        assert!(long.contains("151 tokens, the model holds 150"), "{long}");
        assert!(error(&[77], Which::default()).contains("token 77"));
        let layer = error(&[1], Which { layer: Some(2), head: None });
        assert!(layer.contains("`layer` is 2: the model's are 0 to 1"), "{layer}");
        let head = error(&[1], Which { layer: None, head: Some(3) });
        assert!(head.contains("`head` is 3: the model's are 0 to 2"), "{head}");
    }

    #[test]
    fn nan_is_told() {
        let (_, mut gpt) = models().remove(0);
        let qkv = gpt.layout.blocks[1].qkv.weight.start;
        gpt.weights[qkv] = f32::NAN;
        let found = each_map(&gpt, &[1, 2], Which::default(), 1, 1, &mut |_, _, _| {});
        assert!(found.unwrap_err().to_string().contains("attention weights of layer 1 are NaN"));
    }
}
