//! Checkpoints of llama2.c (<https://github.com/karpathy/llama2.c>): Llama's parts in one file of f32 numbers, as
//! `export.py` writes them and `run.c` reads them.
//!
//! Version 0 is a header of 7 little-endian int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size,
//! which is negative where the output projection is not the embedding, seq_len) and the tensors, each for all
//! layers together. Version 1 begins with `0x616b3432` and the version, has the same 7 numbers and a byte that
//! says whether the output is the embedding, and its tensors begin at byte 256. Matrices are `[out, in]`, rotary
//! pairs lie side by side. Rotary base and epsilon are not in the file: they are always 10,000 and 1e-5.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::container::{difference, tokenizer_beside};
use super::{Container, ExportOptions, Imported, Outgoing, Stored, numbers};
use crate::base::{Error, Files, Result, files, fs};
use crate::kernel::BlockType;
use crate::model::{Config, Layout, Role, Transformer, llama};
use crate::tokenizer;
use crate::tokenizer::train::Algorithm;

pub struct Llama2C;

/// The file that is written; `tokenizer.bin` lies beside it.
pub const LLAMA2C_FILE: &str = "model.bin";

/// What a file of version 1 or later begins with: "ak42" as one number.
const MAGIC: u32 = 0x616b_3432;

/// Where the tensors of version 1 begin.
const BODY_OF_VERSION_1: u64 = 256;

/// Rotary angles are kept for each position: no more than 64 MB of them for a length that a file claims.
const MAX_ANGLES: usize = 1 << 24;

/// llama2.c's name, the end of ours, and which of the matrices that lie side by side in ours.
type Row = (&'static str, &'static str, usize);

/// In the order of version 0; the tables of rotary angles stand before the last.
const VERSION_0: [Row; 12] = [
    ("token_embedding_table", ".wte.weight", 0),
    ("rms_att_weight", ".ln_1.weight", 0),
    ("wq", ".attn.c_attn.weight", 0),
    ("wk", ".attn.c_attn.weight", 1),
    ("wv", ".attn.c_attn.weight", 2),
    ("wo", ".attn.c_proj.weight", 0),
    ("rms_ffn_weight", ".ln_2.weight", 0),
    ("w1", ".mlp.c_fc.weight", 0),
    ("w2", ".mlp.c_proj.weight", 0),
    ("w3", ".mlp.c_fc.weight", 1),
    ("rms_final_weight", ".ln_f.weight", 0),
    ("wcls", "lm_head.weight", 0),
];

/// Which of [`VERSION_0`] stand where in version 1.
const VERSION_1: [usize; 12] = [1, 6, 10, 0, 2, 3, 4, 5, 7, 8, 9, 11];

/// What the beginning of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    version: u32,
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    vocab_size: usize,
    seq_len: usize,
    tied: bool,
}

impl Container for Llama2C {
    fn name(&self) -> &'static str {
        "llama2c"
    }

    fn summary(&self) -> &'static str {
        "llama2.c: a checkpoint such as `stories15M.bin` (f32), `tokenizer.bin` beside it"
    }

    fn recognizes(&self, files: &Files) -> bool {
        find(files).is_some()
    }

    fn read(&self, files: &Files) -> Result<Imported> {
        let path = match find(files).or_else(|| files.only()).or_else(|| files.find(LLAMA2C_FILE)) {
            Some(path) => path,
            None => {
                let what = format!("`{}` has no checkpoint of llama2.c", files.label);
                return Err(Error::input(what).help("its header gives the size of the file, to the byte"));
            }
        };
        let transformer = read(path)?;
        let tokenizer = tokenizer_beside("llama2c", files)?;
        if let Some(tokenizer) = &tokenizer {
            transformer.config.fits(tokenizer)?;
        }
        Ok(Imported { transformer, tokenizer, blocks: None })
    }

    fn refuses(&self, config: &Config, options: &ExportOptions) -> Option<String> {
        if let Some(ty) = options.dtype.filter(|ty| *ty != BlockType::F32) {
            return Some(format!("llama2.c's file holds numbers of f32, not of {}", ty.name()));
        }
        let computed = Config { tied: config.tied, ..config_of(&header_of(config)) };
        let reason = difference(config, &computed)?;
        Some(format!("llama2.c computes Llama's parts with fixed numbers: {reason}"))
    }

    fn refuses_tokenizer(&self, algorithm: Algorithm) -> Option<String> {
        tokenizer::format::format("llama2c").ok()?.refuses(algorithm)
    }

    fn write(&self, out: &Outgoing, into: &Path) -> Result<()> {
        let config = &out.model.transformer.config;
        if let Some(why) = self.refuses(config, out.options) {
            return Err(Error::input(why));
        }
        let (tokens, rows) = (out.model.tokenizer.vocab_size(), config.vocab_size);
        if tokens != rows {
            let what = format!("the tokenizer has {tokens} tokens, the model {rows} rows of its embedding");
            return Err(Error::input(what).help("llama2.c reads as many tokens as the embedding has rows"));
        }
        out.with_numbers(|transformer| write(transformer, &into.join(LLAMA2C_FILE)))?;
        tokenizer::format::format("llama2c")?.write(&out.model.tokenizer, into)
    }
}

/// The file whose header gives its size, or that says that it is of a later version.
fn find(files: &Files) -> Option<&Path> {
    let is_one = |path: &Path| {
        let head = files::head(path, 4);
        head == MAGIC.to_le_bytes() || header(path).is_ok()
    };
    files.all.iter().map(|(_, path)| path.as_path()).find(|path| is_one(path))
}

/// Reads the header and compares the file's size with it.
fn header(path: &Path) -> Result<Header> {
    let name = path.display();
    let head = files::head(path, BODY_OF_VERSION_1 as usize);
    let word =
        |i: usize| head.get(4 * i..4 * i + 4).map(|b| i32::from_le_bytes(b.try_into().expect("4 bytes")));
    let version = match word(0) {
        Some(first) if first as u32 == MAGIC => word(1).unwrap_or(0) as u32,
        _ => 0,
    };
    if version > 1 {
        return Err(refused_version(path, version));
    }
    let is_cut = || Error::input(format!("`{name}` ends within the header of a llama2.c checkpoint"));
    let first = if version == 1 { 2 } else { 0 };
    let mut sizes = [0i32; 7];
    for (i, size) in sizes.iter_mut().enumerate() {
        *size = word(first + i).ok_or_else(is_cut)?;
    }
    let tied = match version {
        1 => *head.get(36).ok_or_else(is_cut)? != 0,
        _ => sizes[5] > 0,
    };
    let header = Header::of(path, version, sizes, tied)?;
    let (found, expected) = (u128::from(fs::size(path)?), header.bytes());
    if found != expected {
        let what = format!("`{name}` has {found} bytes, but its header stands for {expected}: {header}");
        return Err(Error::input(what).help("is it whole, and a checkpoint of llama2.c?"));
    }
    Ok(header)
}

fn refused_version(path: &Path, version: u32) -> Error {
    let what = match version {
        2 => "of llama2.c's version 2 (int8)",
        _ => "of a version of llama2.c that is not known",
    };
    Error::input(format!("`{}` is {what}: version {version}, expected 0 or 1", path.display()))
        .help("write it once more with llama2.c's `export.py --version 1`, and quantize it here")
}

impl Header {
    fn of(path: &Path, version: u32, sizes: [i32; 7], tied: bool) -> Result<Self> {
        const NAMES: [&str; 7] =
            ["dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"];
        let name = path.display();
        let odd = |i: usize, why: &str| {
            let what = format!("`{name}`: `{}` of the header is {}: {why}", NAMES[i], sizes[i]);
            Error::input(what).help("is it a checkpoint of llama2.c?")
        };
        // Only the size of the vocabulary may be negative, and in version 0 alone.
        let is_odd =
            |i: usize, n: i32| n == 0 || n < 0 && (i != 5 || version > 0) || n.unsigned_abs() > 1 << 24;
        if let Some(i) = (0..7).find(|i| is_odd(*i, sizes[*i])) {
            return Err(odd(i, "no size of a model"));
        }
        let [dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len] =
            sizes.map(|n| n.unsigned_abs() as usize);
        if !dim.is_multiple_of(n_heads) || !(dim / n_heads).is_multiple_of(2) {
            return Err(odd(3, &format!("these heads do not divide a `dim` of {dim} into even parts")));
        }
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(odd(4, &format!("it does not divide the {n_heads} heads")));
        }
        if seq_len.saturating_mul(dim / n_heads) > MAX_ANGLES {
            return Err(odd(6, "longer than what is computed"));
        }
        Ok(Header { version, dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, tied })
    }

    /// Of the whole file. The sizes are below 2^25, so that no product overflows.
    fn bytes(&self) -> u128 {
        let [d, f, l, v, t] =
            [self.dim, self.hidden_dim, self.n_layers, self.vocab_size, self.seq_len].map(|n| n as u128);
        let d_head = d / self.n_heads as u128;
        let kv = d_head * self.n_kv_heads as u128;
        let layer = 2 * d + 2 * d * d + 2 * d * kv + 3 * d * f;
        let heads = if self.tied { v * d } else { 2 * v * d };
        let body = 4 * (heads + l * layer + d);
        match self.version {
            0 => 28 + body + 4 * t * d_head,
            _ => u128::from(BODY_OF_VERSION_1) + body,
        }
    }
}

impl std::fmt::Display for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Header { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, .. } = self;
        write!(f, "dim {dim}, hidden_dim {hidden_dim}, n_layers {n_layers}, n_heads {n_heads}, ")?;
        write!(f, "n_kv_heads {n_kv_heads}, vocab_size {vocab_size}, seq_len {seq_len}")
    }
}

fn config_of(header: &Header) -> Config {
    let Header { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, tied, .. } = *header;
    Config {
        n_kv_head: n_kv_heads,
        d_ff: hidden_dim,
        tied,
        ..llama(vocab_size, dim, n_layers, n_heads, seq_len)
    }
}

/// The header of version 0 that is nearest to `config`.
fn header_of(config: &Config) -> Header {
    Header {
        version: 0,
        dim: config.d_model,
        hidden_dim: config.d_ff,
        n_layers: config.n_layer,
        n_heads: config.n_head,
        n_kv_heads: config.n_kv_head,
        vocab_size: config.vocab_size,
        seq_len: config.seq_len,
        tied: config.tied,
    }
}

/// A part of the file behind its header.
enum Part {
    Tensor(Stored),
    /// Cosines, then sines of rotary angles, `[T, D/2]` each, which `run.c` passes over.
    Angles,
}

/// What stands in the file, in its order.
fn parts(version: u32, config: &Config, layout: &Layout) -> Vec<Part> {
    let mut parts = Vec::new();
    let order = if version == 0 { std::array::from_fn(|i| i) } else { VERSION_1 };
    for row in order {
        if version == 0 && row == 11 {
            parts.push(Part::Angles);
        }
        parts.extend(of_all_layers(VERSION_0[row], config, layout).map(Part::Tensor));
    }
    parts
}

fn of_all_layers<'a>(
    (name, end, side): Row,
    config: &'a Config,
    layout: &'a Layout,
) -> impl Iterator<Item = Stored> + 'a {
    let ours = layout.parameters.iter().enumerate().filter(move |(_, p)| p.name.ends_with(end));
    ours.enumerate().map(move |(layer, (i, p))| match p.role {
        Role::Matrix => {
            let stored = Stored::part(p, i, format!("{name}[{layer}]"), p.columns[side].clone());
            let rotated = matches!(name, "wq" | "wk");
            Stored { interleaved: rotated.then_some(config.d_head), ..stored }
        }
        _ => Stored::whole(p, i, format!("{name}[{layer}]")),
    })
}

fn read(path: &Path) -> Result<Transformer> {
    let header = header(path)?;
    let config = config_of(&header);
    config.validate().map_err(|e| Error::input(format!("`{}`: `{}` {}", path.display(), e.param, e.why)))?;
    let mut transformer = Transformer::zeros(&config);
    let mut file = BufReader::new(fs::open(path)?);
    let io = |e| Error::io("read", path, &e);
    file.seek(SeekFrom::Start(if header.version == 0 { 28 } else { BODY_OF_VERSION_1 })).map_err(io)?;
    for part in parts(header.version, &config, &transformer.layout) {
        match part {
            Part::Angles => file.seek_relative((4 * config.seq_len * config.d_head) as i64).map_err(io)?,
            Part::Tensor(stored) => {
                let mut bytes = vec![0; 4 * stored.shape.iter().product::<usize>()];
                file.read_exact(&mut bytes).map_err(io)?;
                numbers::expect_finite(&path.display().to_string(), &stored.name, numbers::f32s(&bytes))?;
                transformer.put(&stored, BlockType::F32, &bytes);
            }
        }
    }
    Ok(transformer)
}

pub(super) fn write(transformer: &Transformer, path: &Path) -> Result<()> {
    let (config, layout) = (&transformer.config, &transformer.layout);
    let h = header_of(config);
    let vocab_size = if h.tied { h.vocab_size as i32 } else { -(h.vocab_size as i32) };
    let sizes = [h.dim, h.hidden_dim, h.n_layers, h.n_heads, h.n_kv_heads].map(|n| n as i32);
    let mut file = BufWriter::new(fs::create(path)?);
    let io = |e| Error::io("write", path, &e);
    for n in sizes.into_iter().chain([vocab_size, h.seq_len as i32]) {
        file.write_all(&n.to_le_bytes()).map_err(io)?;
    }
    for part in parts(0, config, layout) {
        match part {
            Part::Angles => write_angles(config, &mut file).map_err(io)?,
            Part::Tensor(stored) => {
                let all = stored.places(layout).map(|place| transformer.weights[place]);
                all.map(f32::to_le_bytes).try_for_each(|bytes| file.write_all(&bytes)).map_err(io)?;
            }
        }
    }
    file.flush().map_err(io)
}

/// The angle of the i-th pair at position t is `t 10000^(-2i/D)`.
fn write_angles(config: &Config, file: &mut BufWriter<File>) -> std::io::Result<()> {
    for function in [libm::cos, libm::sin] {
        for t in 0..config.seq_len {
            for i in 0..config.d_head / 2 {
                let frequency = libm::pow(config.rope_base, -2.0 * i as f64 / config.d_head as f64);
                file.write_all(&(function(t as f64 * frequency) as f32).to_le_bytes())?;
            }
        }
    }
    Ok(())
}
