//! A model to go on from, for the tokens of another tokenizer.

use serde::{Deserialize, Serialize};

use crate::base::{Error, Result};
use crate::model::{Config, Model, Transformer};
use crate::tokenizer::Tokenizer;

/// What becomes of a model's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Embedding {
    /// It is kept: the tokens are the same.
    #[default]
    Same,
    /// Rows of tokens that both vocabularies have are kept, by their text; others begin at the mean.
    Match,
    /// It begins anew, and only the body is kept.
    New,
}

/// Where a training begins.
pub struct WarmStart {
    pub transformer: Transformer,
    /// Tokens of the tokenizer whose row was kept.
    pub kept: usize,
}

/// The weights of `model` for the tokens of `tokenizer`, with room for `vocab_size` or as many as there are.
///
/// # Errors
/// Where the embedding is to stay the same and the tokens are not, or there are more than there is room for.
pub fn warm_start(
    model: Model,
    tokenizer: &Tokenizer,
    embedding: Embedding,
    vocab_size: Option<usize>,
    seed: u64,
) -> Result<WarmStart> {
    let tokens = tokenizer.vocab_size();
    let room = vocab_size.unwrap_or(tokens);
    let config = Config { vocab_size: room, ..model.transformer.config.clone() };
    config.fits(tokenizer).map_err(|e| e.help(format!("set `vocab_size: {tokens}`")))?;
    match embedding {
        Embedding::Same => {
            same_tokens(&model.tokenizer, tokenizer)?;
            Ok(WarmStart { transformer: model.transformer, kept: tokens })
        }
        Embedding::Match => {
            let mut rows = matching_rows(&model, tokenizer);
            let kept = rows.iter().flatten().count();
            rows.resize(room, None);
            Ok(WarmStart { transformer: model.transformer.with_rows(&rows, seed), kept })
        }
        Embedding::New => {
            Ok(WarmStart { transformer: model.transformer.with_new_embedding(room, seed), kept: 0 })
        }
    }
}

/// For each token the model's row of the same text.
fn matching_rows(model: &Model, tokenizer: &Tokenizer) -> Vec<Option<usize>> {
    let row = |id| {
        let row = model.tokenizer.id(&tokenizer.token(id)?)? as usize;
        (row < model.transformer.config.vocab_size).then_some(row)
    };
    (0..tokenizer.vocab_size() as u32).map(row).collect()
}

fn same_tokens(model: &Tokenizer, tokenizer: &Tokenizer) -> Result<()> {
    let help = "connect the tokenizer that the model was trained with; or set `embedding: match`, which keeps \
                the rows of tokens that both have, or `embedding: new`, which keeps the body alone";
    let tokens = model.vocab_size().max(tokenizer.vocab_size()) as u32;
    if let Some(id) = (0..tokens).find(|id| model.token(*id) != tokenizer.token(*id)) {
        let shown = |token: Option<String>| token.map_or("nothing".to_string(), |token| format!("`{token}`"));
        let what = format!(
            "token {id} is {} for the model and {} for the tokenizer",
            shown(model.token(id)),
            shown(tokenizer.token(id))
        );
        return Err(Error::input(what).help(help));
    }
    // The special tokens, too.
    model.is_part_of(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gpt2;

    fn tokenizer(name: &str) -> Tokenizer {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/");
        Tokenizer::load(&std::path::Path::new(folder).join(name)).unwrap()
    }

    fn model(name: &str) -> Model {
        let tokenizer = tokenizer(name);
        let config = Config { d_ff: 8, ..gpt2(tokenizer.vocab_size() + 3, 4, 1, 2, 6) };
        Model { transformer: Transformer::fresh(&config, 1), tokenizer }
    }

    fn embedding(transformer: &Transformer, id: usize) -> &[f32] {
        &transformer.weights[transformer.layout.tokens.clone()][4 * id..4 * id + 4]
    }

    #[test]
    fn the_same_tokens_keep_every_weight() {
        let old = model("byte_bpe.json");
        let weights = old.transformer.weights.to_vec();
        let start = warm_start(old, &tokenizer("byte_bpe.json"), Embedding::Same, None, 2).unwrap();
        assert!(start.transformer.weights[..] == weights[..]);
    }

    #[test]
    fn other_tokens_are_refused_by_the_first_that_differs() {
        let error =
            warm_start(model("byte_bpe.json"), &tokenizer("wordpiece.json"), Embedding::Same, None, 2);
        let error = error.err().unwrap();
        let (mine, its) = (tokenizer("byte_bpe.json"), tokenizer("wordpiece.json"));
        let id = (0..).find(|id| mine.token(*id) != its.token(*id)).unwrap();
        let (mine, its) = (mine.token(id).unwrap(), its.token(id).unwrap());
        let said = format!("token {id} is `{mine}` for the model and `{its}` for the tokenizer");
        assert!(error.message().contains(&said), "{error}");
        assert!(format!("{error:?}").contains("embedding: match"), "{error:?}");
    }

    #[test]
    fn rows_follow_their_tokens_text() {
        let (old, new) = (model("byte_bpe.json"), tokenizer("wordpiece.json"));
        let rows: Vec<Option<u32>> =
            (0..new.vocab_size() as u32).map(|id| old.tokenizer.id(&new.token(id).unwrap())).collect();
        let table: Vec<f32> = old.transformer.weights[old.transformer.layout.tokens.clone()].to_vec();
        let room = new.vocab_size() + 10;
        let start = warm_start(old, &new, Embedding::Match, Some(room), 2).unwrap();
        assert_eq!(start.transformer.config.vocab_size, room);
        assert!(start.kept > 20 && start.kept < new.vocab_size(), "{} kept", start.kept);
        assert_eq!(start.kept, rows.iter().flatten().count());
        for (id, row) in rows.iter().enumerate() {
            if let Some(row) = row {
                let row = *row as usize;
                assert_eq!(embedding(&start.transformer, id), &table[4 * row..4 * row + 4]);
            }
        }
    }
}
