//! Shared by kinds that train on token shards: what is connected to `shards`, `tokenizer` and `validation` as
//! token streams.

use std::path::PathBuf;

use super::texts::held_out_by;
use super::tokenizers;
use crate::base::{Error, Result, units};
use crate::corpus::held_out::{self, HeldOut, Split};
use crate::shard::{Shards, TokenStream};
use crate::stage::{Artifact, Context, Port};
use crate::tokenizer::Tokenizer;

pub fn ports() -> Vec<Port> {
    vec![
        Port::new("shards", "shards", "What it learns to continue."),
        Port::new("tokenizer", "tokenizer", "What the shards were encoded with.")
            .or(&["model"])
            .or_source(&["tokenizer.json", ".json"]),
        Port::new(
            "validation",
            "shards",
            "What it is validated on, all of it, instead of what `shards` holds out.",
        )
        .optional(),
    ]
}

/// The connected tokenizer, with the special tokens that the shards were made with.
pub fn tokenizer(ctx: &Context) -> Result<Tokenizer> {
    let names = tokenizers::names(ctx.input("shards")?)?;
    Tokenizer::load_with(tokenizers::path(ctx.input("tokenizer")?)?, &names)
}

/// What is connected to `shards`, which must be of `tokenizer`.
pub fn shards(ctx: &Context, tokenizer: &Tokenizer) -> Result<Shards> {
    open(ctx.input("shards")?, tokenizer)
}

fn open(artifact: &Artifact, tokenizer: &Tokenizer) -> Result<Shards> {
    let files: Vec<(String, PathBuf)> =
        artifact.files.iter().map(|f| (f.name.clone(), f.path.clone())).collect();
    let shards = Shards::open(&files)?;
    if tokenizer.has_digest(shards.tokenizer) {
        return Ok(shards);
    }
    Err(Error::input(format!(
        "the shards of `{}` were encoded with the tokenizer {}, connected is {}",
        artifact.label,
        shards.tokenizer.short(),
        tokenizer.digest().short()
    ))
    .help("connect the tokenizer that `shard` was given"))
}

/// What is trained on, and what is validated on.
pub struct Streams {
    pub train: TokenStream,
    pub validation: TokenStream,
    /// UTF-8 bytes of text for each token of `validation`, special tokens among them; 0 where there is none.
    pub bytes_per_token: f64,
}

impl Streams {
    /// `shards` and what is connected to `validation`.
    ///
    /// # Errors
    /// When shards are damaged or of another tokenizer.
    pub fn read(ctx: &Context, shards: &Shards, tokenizer: &Tokenizer) -> Result<Self> {
        let train = shards.read(Split::Train)?;
        let (validation, bytes) = match ctx.optional("validation") {
            None => (shards.read(Split::Validation)?, shards.validation_bytes),
            Some(artifact) => given(ctx, artifact, shards, tokenizer)?,
        };
        tracing::info!(
            "{} tokens to train on, {} to validate on",
            units::count(train.len() as u64),
            units::count(validation.len() as u64)
        );
        let bytes_per_token = bytes as f64 / validation.len().max(1) as f64;
        Ok(Streams { train, validation, bytes_per_token })
    }
}

/// All tokens of what was given to validate on, and the bytes of their text.
fn given(
    ctx: &Context,
    artifact: &Artifact,
    shards: &Shards,
    tokenizer: &Tokenizer,
) -> Result<(TokenStream, u64)> {
    let given = open(artifact, tokenizer)?;
    let trained = shards.ids(&[Split::Train])?;
    let both = [Split::Train, Split::Validation];
    let known = given.ids(&both)?.iter().filter(|id| trained.contains(*id)).count();
    if known > 0 {
        tracing::warn!(
            "{known} texts of `{}` are trained on, too: the validation loss is too low",
            artifact.label
        );
    }
    if shards.validation_documents > 0 {
        tracing::warn!(
            "{} texts that `{}` holds out are neither trained nor validated on: give it `validation_fraction: 0`",
            units::count(shards.validation_documents),
            ctx.input("shards")?.label
        );
    }
    let mut all = given.read(Split::Train)?;
    all.append(&given.read(Split::Validation)?);
    Ok((all, given.train_bytes + given.validation_bytes))
}

/// What this training holds out, and those of the model that it begins with.
pub fn held_out(ctx: &Context) -> Result<HeldOut> {
    let mut all = ctx.optional("model").map_or(Ok(HeldOut::default()), held_out_by)?;
    let own = HeldOut::load(ctx.input("shards")?.file(held_out::FILE_NAME)?)?;
    all.documents.extend(own.documents);
    all.conversations.extend(own.conversations);
    Ok(all)
}
