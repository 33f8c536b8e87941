//! Gradients against finite differences, the same bytes on any number of threads, packing that keeps
//! roles whole.

use proptest::prelude::*;

use super::*;
use crate::base::Quiet;
use crate::model::{Config, Gpt, IGNORE};
use crate::shard::TokenStream;
use crate::tokenizer::chat::Rendered;

fn config(dropout: f64) -> Config {
    Config { vocab_size: 13, d_model: 8, n_layer: 2, n_head: 2, d_ff: 16, seq_len: 8, dropout }
}

fn options(steps: u64) -> Options {
    Options {
        steps,
        batch_size: 4,
        accumulate: 1,
        schedule: Schedule { peak: 0.01, floor: 0.001, warmup: 2 },
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        clip: 1.0,
        eval_every: 0,
        eval_rows: 8,
        patience: 0,
        sample_every: 0,
        prompts: Vec::new(),
        keep: Keep::Last,
        seed: 1,
    }
}

fn stream(n: u32) -> TokenStream {
    let mut stream = TokenStream::new(13);
    let ids: Vec<u32> = (0..n).map(|i| (i * i + i / 3) % 13).collect();
    stream.push(&ids);
    stream
}

fn rows(n: usize) -> Vec<Row> {
    let stream = stream(200);
    let windows = Windows::new(&stream, 8);
    (0..n).map(|i| windows.row(i)).collect()
}

#[test]
fn the_gradient_is_the_slope() {
    let gpt = Gpt::fresh(&config(0.0), 2).unwrap();
    let rows = rows(3);
    let mut weights = flat(gpt.parameters()).unwrap();
    // Larger weights than fresh ones, so that every part of the model matters.
    weights.iter_mut().for_each(|w| *w *= 3.0);
    optimizer::put(gpt.parameters(), &weights).unwrap();
    let mut slope = vec![0.0; weights.len()];
    gradient(&gpt, &rows, 0, "x", &mut slope).unwrap();
    let loss_at = |weights: &[f32]| {
        optimizer::put(gpt.parameters(), weights).unwrap();
        evaluate(&gpt, &rows, &Quiet).unwrap().nats
    };
    for i in (0..weights.len()).step_by(37) {
        let h = 1e-2;
        let mut moved = weights.clone();
        moved[i] = weights[i] + h;
        let above = loss_at(&moved);
        moved[i] = weights[i] - h;
        let measured = (above - loss_at(&moved)) / f64::from(2.0 * h);
        let found = f64::from(slope[i]);
        assert!((measured - found).abs() < 2e-2 + 2e-2 * found.abs(), "{i}: {found}, measured {measured}");
    }
}

/// The weights after a few steps with dropout, on this many threads.
fn trained(threads: usize) -> Vec<f32> {
    let gpt = Gpt::fresh(&Config { seq_len: 300, ..config(0.2) }, 2).unwrap();
    let stream = stream(5_000);
    let windows = Windows::new(&stream, 300);
    let mut optimizer = AdamW::new(gpt.parameters(), &options(3)).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        for step in 0..3 {
            let batch: Vec<Row> = (0..6).map(|i| windows.row(i + step)).collect();
            let loss = gradient(&gpt, &batch, 5, &format!("{step}"), &mut optimizer.gradient).unwrap();
            optimizer.update(gpt.parameters(), 0.01, loss.targets).unwrap();
        }
    });
    flat(gpt.parameters()).unwrap()
}

#[test]
fn the_bytes_do_not_depend_on_threads() {
    let one = trained(1);
    for threads in [2, 3] {
        assert_eq!(one, trained(threads), "{threads} threads");
    }
}

#[test]
fn it_learns_one_batch_by_heart() {
    let gpt = Gpt::fresh(&config(0.0), 2).unwrap();
    let rows = rows(4);
    let mut optimizer = AdamW::new(gpt.parameters(), &options(1)).unwrap();
    for _ in 0..150 {
        let loss = gradient(&gpt, &rows, 0, "x", &mut optimizer.gradient).unwrap();
        optimizer.update(gpt.parameters(), 0.02, loss.targets).unwrap();
    }
    let loss = evaluate(&gpt, &rows, &Quiet).unwrap().mean();
    assert!(loss < 0.2, "{loss}");
}

#[test]
fn windows_lay_end_to_end_and_an_epoch_has_each_row_once() {
    let stream = stream(50);
    let windows = Windows::new(&stream, 8);
    assert_eq!(windows.rows(), 6);
    let row = windows.row(5);
    assert_eq!((row.ids.len(), row.targets.len(), row.tokens), (8, 8, 8));
    assert_eq!(row.ids[1..], row.targets[..7]);
    let mut order = Order::new(6, 3);
    let epochs: Vec<Vec<usize>> = (0..2).map(|_| (0..6).map(|_| order.next()).collect()).collect();
    assert_ne!(epochs[0], epochs[1]);
    for mut epoch in epochs {
        epoch.sort_unstable();
        assert_eq!(epoch, [0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn padding_is_not_learned() {
    let data =
        Packed::new(vec![(vec![2, 4, 9, 5, 8, 3], vec![false, false, false, false, true, true])], 8, 0);
    let row = data.row(0);
    assert_eq!(row.ids, [2, 4, 9, 5, 8, 0, 0, 0]);
    assert_eq!(row.targets, [IGNORE, IGNORE, IGNORE, 8, 3, IGNORE, IGNORE, IGNORE]);
    assert_eq!(row.tokens, 5);
}

const BOS: u32 = 2;
const EOS: u32 = 3;
const USER: u32 = 4;
const ASSISTANT: u32 = 5;
const SYSTEM: u32 = 6;

/// A conversation as `tokenizer::chat` renders it: contents are ids from 10.
fn rendered(system: Option<usize>, turns: &[(usize, usize)]) -> Rendered {
    let mut r = Rendered { ids: vec![BOS], target: vec![false], turns: Vec::new() };
    let mut turn = |role: u32, len: usize| {
        let start = r.ids.len();
        let answer = role == ASSISTANT;
        r.ids.push(role);
        r.target.push(false);
        r.ids.extend((0..len as u32).map(|i| 10 + i % 5));
        r.target.extend(vec![answer; len]);
        if answer {
            r.ids.push(EOS);
            r.target.push(true);
        }
        r.turns.push(start..r.ids.len());
    };
    if let Some(len) = system {
        turn(SYSTEM, len);
    }
    for (user, assistant) in turns {
        turn(USER, *user);
        turn(ASSISTANT, *assistant);
    }
    r
}

proptest! {
    #[test]
    fn packing_keeps_roles_whole(
        conversations in proptest::collection::vec(
            (proptest::option::of(1usize..6), proptest::collection::vec((1usize..30, 1usize..30), 1..5)), 1..12),
        len in 16usize..80,
    ) {
        let all: Vec<Rendered> = conversations.iter().map(|(s, turns)| rendered(*s, turns)).collect();
        let packing = pack(all.clone().into_iter(), len);
        for (ids, learn) in &packing.rows {
            prop_assert!(ids.len() <= len && ids.len() == learn.len());
            prop_assert_eq!(ids[0], BOS);
            let mut role = 0;
            for (i, id) in ids.iter().enumerate() {
                match *id {
                    BOS => role = 0,
                    USER | ASSISTANT | SYSTEM => {
                        prop_assert!(!learn[i]);
                        // An answer always has its question in front of it, in the same row.
                        prop_assert!(*id != ASSISTANT || role == USER);
                        role = *id;
                    }
                    // What is learned is what the assistant says, and all of it.
                    _ => prop_assert_eq!(learn[i], role == ASSISTANT),
                }
            }
        }
        // Nothing is lost of what fits.
        if packing.cut == 0 && packing.split == 0 {
            let packed: usize = packing.rows.iter().map(|(ids, _)| ids.len()).sum();
            prop_assert_eq!(packed, all.iter().map(|r| r.ids.len()).sum::<usize>());
        }
        // Every exchange is there, whole or shortened.
        let answers = |ids: &[u32]| ids.iter().filter(|id| **id == ASSISTANT).count();
        let packed: usize = packing.rows.iter().map(|(ids, _)| answers(ids)).sum();
        prop_assert_eq!(packed, all.iter().map(|r| answers(&r.ids)).sum::<usize>());
    }
}
