use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::*;
use crate::base::{Files, Quiet};
use crate::corpus::held_out::{HeldOut, is_unseen};
use crate::eval;
use crate::kernel::matmul::{Start, matmul};
use crate::kernel::Team;
use crate::model::{Executor, Model, Role, Sequences, Transformer};
use crate::tokenizer::{Inputs, Special, Text, Tokenizer};

fn files(folder: &Path) -> Files {
    crate::stage::harness::artifact("model", folder).unwrap().as_files()
}

fn open(folder: &Path) -> Model {
    let tokenizer = Tokenizer::load(&folder.join("tokenizer.json")).unwrap();
    Model::open(&files(folder), tokenizer).unwrap()
}

fn grams(model: &Transformer, ids: &[u32]) -> BTreeMap<usize, Gram> {
    let t = model.config.seq_len;
    let mut executor = Executor::forward_only(&model.config, Team::new(2));
    let team = Team::new(2);
    let all = Mutex::new(BTreeMap::<usize, Gram>::new());
    let ids = &ids[..ids.len() / t * t];
    executor.inputs(model, Sequences::new(ids, ids, t), &|range, rows, x| {
        let k = if *range == model.layout.head {
            model.config.d_model
        } else {
            model.parameters().iter().find(|p| p.range == *range).unwrap().shape[0]
        };
        let mut sum = vec![0.0; k * k];
        matmul(&team, (k, k, rows), x.t(), x, Start::Zero, &mut sum, k);
        let mut all = all.lock().unwrap();
        let gram = all.entry(range.start).or_insert_with(|| Gram { k, sums: vec![0.0; k * k], rows: 0 });
        gram.sums.iter_mut().zip(&sum).for_each(|(a, b)| *a += f64::from(*b));
        gram.rows += rows;
    });
    all.into_inner().unwrap()
}

/// rows [n, k] and their places
fn rows(model: &Transformer, p: &crate::model::Parameter) -> (usize, Vec<usize>) {
    let [a, b] = p.shape[..] else { panic!() };
    let s = p.range.start;
    match p.role {
        Role::Matrix => (a, (0..b).flat_map(|j| (0..a).map(move |i| s + i * b + j)).collect()),
        _ => (b, (s..s + a * b).collect()),
    }
}

#[test]
#[ignore]
fn measure() {
    let folder = PathBuf::from(std::env::var("MODEL").unwrap());
    let docs = PathBuf::from(std::env::var("DOCS").unwrap());
    let chats = std::env::var("CHATS").is_ok();
    let calibration: usize = std::env::var("CAL").unwrap_or("65536".into()).parse().unwrap();
    let max_tokens: u64 = std::env::var("TOKENS").unwrap_or("50000".into()).parse().unwrap();
    let held_out = HeldOut::load(&folder.join("held_out.json")).unwrap();
    let inputs = if chats {
        Inputs { documents: vec![], conversations: vec![docs] }
    } else {
        Inputs { documents: vec![docs], conversations: vec![] }
    };
    let base = open(&folder);
    // Calibration ids
    let mut ids = Vec::new();
    for text in inputs.texts().unwrap() {
        let text = text.unwrap();
        match &text {
            Text::Document(d) if !is_unseen(&held_out.documents, &d.id) => {
                ids.push(base.tokenizer.require(Special::Bos).unwrap());
                ids.extend(base.tokenizer.encode(&d.text).unwrap());
                ids.push(base.tokenizer.require(Special::Eos).unwrap());
            }
            Text::Conversation(c) if !is_unseen(&held_out.conversations, &c.id) => {
                ids.extend(crate::tokenizer::chat::render(&base.tokenizer, &c.messages).unwrap().ids);
            }
            _ => {}
        }
    }
    // spread
    let t = base.transformer.config.seq_len;
    let windows = ids.len() / t;
    let n = (calibration / t).min(windows);
    let ids: Vec<u32> = (0..n).flat_map(|i| ids[i * windows / n * t..][..t].to_vec()).collect();
    let texts = eval::Texts { split: inputs, validation: Inputs::default() };
    let options = eval::Options {
        scored: eval::Scored::Validation,
        held_out,
        validation_fraction: 0.0,
        max_tokens,
        completions: 0,
    };
    let score = |model: &Model| {
        let r = eval::evaluate(model, &texts, &options, &Quiet).unwrap();
        let s = r.documents.or(r.chats).unwrap();
        (s.bits_per_byte, s.loss, s.tokens)
    };
    let (f32_bits, f32_loss, tokens) = score(&base);
    eprintln!("f32 {f32_bits:.5} bpb, loss {f32_loss:.5}, {tokens} tokens; {} calibration", ids.len());
    let begun = std::time::Instant::now();
    let found = grams(&base.transformer, &ids);
    eprintln!("grams {:.1} s", begun.elapsed().as_secs_f64());
    let damping: f64 = std::env::var("DAMP").unwrap_or("0.01".into()).parse().unwrap();
    let head_damping: f64 = std::env::var("HEAD_DAMP").unwrap_or("0.01".into()).parse().unwrap();
    let methods = std::env::var("METHODS").unwrap_or("rtn,search,imp,gptq".into());
    let types = std::env::var("TYPES").unwrap_or("q8_0,q4_0,q4_1,q4_k,q5_0".into());
    for ty in types.split(',') {
        let ty = BlockType::of_name(ty).unwrap();
        for method in methods.split(',') {
            let begun = std::time::Instant::now();
            let mut model = open(&folder);
            let parameters = model.transformer.parameters().to_vec();
            let mut now = found.iter().map(|(k, v)| (*k, v)).collect::<BTreeMap<_, _>>();
            let sequential = method.contains("seq");
            let mut fresh: BTreeMap<usize, Gram>;
            let mut bytes_of = 0;
            for p in parameters.iter().filter(|p| p.shape.len() == 2 && p.role != Role::Position) {
                if sequential && p.role == Role::Matrix {
                    fresh = grams(&model.transformer, &ids);
                    now = fresh.iter().map(|(k, v)| (*k, v)).collect();
                }
                let (k, places) = rows(&model.transformer, p);
                let ty = ty.for_rows_of(k);
                let numbers: Vec<f32> = places.iter().map(|i| model.transformer.weights[*i]).collect();
                let gram = now.get(&p.range.start);
                let is_head = p.role != Role::Matrix;
                let damping = if is_head { head_damping } else { damping };
                let bytes = match (ty.is_quantized(), gram) {
                    (true, Some(gram)) if method != "rtn" => {
                        let h = gram.hessian(damping).unwrap();
                        let diagonal: Vec<f64> = (0..k).map(|i| h.h[i * k + i]).collect();
                        match method {
                            "search" => search_rows(ty, &numbers, k, None),
                            "imp" => search_rows(ty, &numbers, k, Some(&diagonal)),
                            "headimp" if is_head => search_rows(ty, &numbers, k, Some(&diagonal)),
                            _ if method.contains("headsearch") && is_head => search_rows(ty, &numbers, k, None),
                            _ => {
                                let weights = if method.contains("w0") { 0 } else if method.contains("w1") { 1 } else { 2 };
                                let sweeps = if method.contains("cd") { 8 } else { 0 };
                                gptq_rows(ty, &numbers, &h, Options { weights, gptq: !method.contains("nogptq"), sweeps })
                            }
                        }
                    }
                    (true, _) if method != "rtn" => search_rows(ty, &numbers, k, None),
                    _ => ty.encode(&numbers).unwrap(),
                };
                bytes_of += bytes.len();
                let mut back = vec![0.0; numbers.len()];
                ty.decode(&bytes, &mut back);
                places.iter().zip(back).for_each(|(i, x)| model.transformer.weights[*i] = x);
            }
            let took = begun.elapsed().as_secs_f64();
            let (bits, loss, _) = score(&model);
            eprintln!(
                "{:5} {method:20} {bits:.5} bpb  {:+.3} %  loss {loss:.5} {:+.3} %  {bytes_of} bytes {took:.1} s",
                ty.name(),
                100.0 * (bits / f32_bits - 1.0),
                100.0 * (loss / f32_loss - 1.0),
            );
        }
    }
}
