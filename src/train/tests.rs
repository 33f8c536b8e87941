//! Gradients against finite differences, the same bytes on any number of threads, packing that keeps
//! roles whole.

mod resume;

use proptest::prelude::*;

use std::path::Path;

use super::*;
use crate::base::Quiet;
use crate::kernel::{Dtype, Isa, Team};
use crate::model::{Config, Executor, IGNORE, Model, Transformer, gpt2};
use crate::shard::TokenStream;
use crate::tokenizer::chat::Rendered;

fn config(dropout: f64) -> Config {
    Config { d_ff: 16, dropout, ..gpt2(13, 8, 2, 2, 8) }
}

fn adamw() -> optimizer::Options {
    optimizer::Options::new(Algorithm::AdamW, 0.01)
}

fn options(steps: u64) -> Options {
    Options {
        length: Length::Steps(steps),
        batch_size: 4,
        accumulate: 1,
        schedule: Schedule {
            kind: ScheduleKind::Cosine,
            peak: 0.01,
            floor: 0.001,
            warmup: 2,
            warmup_start: 0.0,
            decay_fraction: 0.5,
        },
        optimizer: adamw(),
        average: None,
        eval_every: 0,
        eval_rows: 8,
        patience: 0,
        sample_every: 0,
        prompts: Vec::new(),
        keep: Keep::Last,
        keep_steps: Vec::new(),
        save_every: 0,
        save_minutes: 0.0,
        dtype: Dtype::F32,
        seed: 1,
    }
}

/// One folder for all, no states.
fn places(folder: &Path) -> Places<'_> {
    Places { output: folder, scratch: folder, state: None }
}

/// The gradient of the next-token loss, dropout by `label`.
fn gradient(
    executor: &mut Executor,
    transformer: &Transformer,
    batch: &Batch,
    seed: u64,
    label: &str,
    into: &mut [f32],
) -> Loss {
    NextToken::default().gradient(executor, transformer, batch, dropout_key(seed, label), into)
}

fn evaluate(executor: &mut Executor, transformer: &Transformer, data: &dyn Data, rows: usize) -> Loss {
    super::evaluate(&mut NextToken::default(), executor, transformer, data, rows, &Quiet).unwrap()
}

fn stream(n: u32) -> TokenStream {
    let mut stream = TokenStream::new(13);
    let ids: Vec<u32> = (0..n).map(|i| (i * i + i / 3) % 13).collect();
    stream.push(&ids);
    stream
}

fn batch(n: usize) -> Batch {
    let mut batch = Batch::default();
    batch.fill(&Windows::new(&stream(200), 8, 0), 0..n);
    batch
}

fn executor_of(transformer: &Transformer, threads: usize) -> Executor {
    Executor::training(&transformer.config, Team::new(threads))
}

#[test]
fn the_gradient_is_the_slope() {
    let mut transformer = Transformer::fresh(&config(0.0), 2);
    let stream = stream(200);
    let windows = Windows::new(&stream, 8, 0);
    // Larger weights than fresh ones, so that every part of the model matters.
    transformer.weights.iter_mut().for_each(|w| *w *= 3.0);
    let mut executor = executor_of(&transformer, 1);
    let mut slope = vec![0.0; transformer.weights.len()];
    gradient(&mut executor, &transformer, &batch(3), 0, "x", &mut slope);
    for i in (0..slope.len()).step_by(37) {
        let (h, at) = (1e-2, transformer.weights[i]);
        let mut loss_at = |weight: f32| {
            transformer.weights[i] = weight;
            evaluate(&mut executor, &transformer, &windows, 3).nats
        };
        let (above, below) = (loss_at(at + h), loss_at(at - h));
        loss_at(at);
        let measured = (above - below) / f64::from(2.0 * h);
        let found = f64::from(slope[i]);
        assert!((measured - found).abs() < 2e-2 + 2e-2 * found.abs(), "{i}: {found}, measured {measured}");
    }
}

/// The weights after a few steps with dropout, on this many threads.
fn trained(threads: usize) -> Vec<f32> {
    let mut transformer = Transformer::fresh(&Config { seq_len: 300, ..config(0.2) }, 2);
    let stream = stream(5_000);
    let windows = Windows::new(&stream, 300, 0);
    let mut optimizer = Optimizer::new(&transformer, &adamw());
    let mut executor = executor_of(&transformer, threads);
    let mut batch = Batch::default();
    for step in 0..3 {
        batch.fill(&windows, step..step + 6);
        let loss =
            gradient(&mut executor, &transformer, &batch, 5, &format!("{step}"), &mut optimizer.gradient);
        let norm = optimizer.norm(executor.team(), loss.targets);
        optimizer.update(executor.team(), &mut transformer.weights, 0.01, loss.targets, norm);
    }
    transformer.weights.to_vec()
}

/// bf16 and `bf16_tile` are numerics of their own: other bits than f32 and each other, the same bits on any CPU
/// and threads, with matrix tiles (simulated where there are none) and without, and a loss as good (within 2 % of f32's,
/// which is what the last digits of 40 steps are worth).
#[test]
fn bf16_learns_what_f32_learns() {
    let learn_by = |team: Team| {
        let mut transformer = Transformer::fresh(&config(0.1), 3);
        let mut executor = Executor::training(&transformer.config, team);
        let mut optimizer = Optimizer::new(&transformer, &adamw());
        let batch = batch(8);
        let mut loss = 0.0;
        for step in 0..40 {
            let all =
                gradient(&mut executor, &transformer, &batch, 1, &format!("{step}"), &mut optimizer.gradient);
            let norm = optimizer.norm(executor.team(), all.targets);
            optimizer.update(executor.team(), &mut transformer.weights, 0.02, all.targets, norm);
            loss = all.mean();
        }
        (transformer.weights.to_vec(), loss)
    };
    let learn = |threads, isa, dtype| learn_by(Team::with(threads, isa).in_dtype(dtype));
    let (weights, plain) = learn(1, Isa::best(), Dtype::F32);
    assert!(plain < 2.3, "it learned: {plain}");
    let [pairs, tiles] = [Dtype::Bf16, Dtype::Bf16Tile].map(|dtype| {
        let (first, loss) = learn(1, Isa::best(), dtype);
        assert!((loss / plain - 1.0).abs() < 0.02, "f32 {plain}, {} {loss}", dtype.name());
        assert!(first != weights, "products of {} differ from those of f32", dtype.name());
        for isa in Isa::available() {
            assert!(learn(3, isa, dtype).0 == first, "{} on {}", dtype.name(), isa.name());
        }
        first
    });
    assert!(pairs != tiles, "sums in another order");
    if Isa::best().has_pairs() {
        assert!(learn_by(Team::new(1).simulating_tiles()).0 == tiles, "matrix tiles");
    }
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
    let mut transformer = Transformer::fresh(&config(0.0), 2);
    let batch = batch(4);
    let mut optimizer = Optimizer::new(&transformer, &adamw());
    let mut executor = executor_of(&transformer, 2);
    for _ in 0..150 {
        let loss = gradient(&mut executor, &transformer, &batch, 0, "x", &mut optimizer.gradient);
        let norm = optimizer.norm(executor.team(), loss.targets);
        optimizer.update(executor.team(), &mut transformer.weights, 0.02, loss.targets, norm);
    }
    let stream = stream(200);
    let loss = evaluate(&mut executor, &transformer, &Windows::new(&stream, 8, 0), 4).mean();
    assert!(loss < 0.2, "{loss}");
}

fn small_model() -> Model {
    let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizers/byte_bpe.json");
    let tokenizer = crate::tokenizer::Tokenizer::load(Path::new(tokenizer)).unwrap();
    let config = Config { vocab_size: tokenizer.vocab_size(), ..config(0.1) };
    Model { transformer: Transformer::fresh(&config, 1), tokenizer }
}

/// A whole run: its metrics read back, its best weights kept, its divergence refused.
#[test]
fn a_run_writes_its_metrics_and_refuses_to_save_what_diverged() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = small_model();
    let stream = stream(400);
    let windows = Windows::new(&stream, 8, 0);
    let how = Options { eval_every: 10, prompts: vec!["The".into()], keep: Keep::Best, ..options(30) };
    let outcome =
        run(&mut model, &mut NextToken::default(), &windows, &windows, &how, places(folder.path()), &Quiet)
            .unwrap();
    assert_eq!((outcome.steps, outcome.tokens), (30, 30 * 4 * 8));
    let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.iter().map(|r| r["step"].as_u64().unwrap()).collect::<Vec<_>>(), [10, 20, 30]);
    let best = rows.iter().map(|r| r["val_loss"].as_f64().unwrap()).fold(f64::INFINITY, f64::min);
    assert_eq!(outcome.val_loss, Some(best));
    let kept = evaluate(&mut executor_of(&model.transformer, 1), &model.transformer, &windows, 8).mean();
    assert!((kept - best).abs() < 1e-12, "the weights that were kept have {kept}, not {best}");
    assert!(rows[2]["loss"].as_f64().unwrap() < rows[0]["loss"].as_f64().unwrap());

    // One step too many: the loss was fine, what the update made of it is not.
    model.transformer.weights[3] = f32::MAX;
    let how = Options { keep: Keep::Last, eval_rows: 0, ..options(1) };
    let error =
        run(&mut model, &mut NextToken::default(), &windows, &windows, &how, places(folder.path()), &Quiet)
            .unwrap_err();
    assert!(error.to_string().contains("at step 1"), "{error}");
}

#[test]
fn epochs_are_as_many_steps_as_the_rows_take() {
    let steps =
        |epochs, rows| Options { length: Length::Epochs(epochs), accumulate: 2, ..options(9) }.steps(rows);
    assert_eq!([steps(1, 8), steps(3, 9), steps(2, 1)], [1, 6, 2]);
    assert_eq!(options(9).steps(1), 9);
}

/// What is validated and kept is the average, which lags behind the weights.
#[test]
fn the_average_of_the_weights_is_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let stream = stream(400);
    let windows = Windows::new(&stream, 8, 0);
    let train = |average| {
        let mut model = small_model();
        let how = Options { average, eval_every: 4, keep: Keep::Last, ..options(12) };
        let objective = &mut NextToken::default();
        let outcome =
            run(&mut model, objective, &windows, &windows, &how, places(folder.path()), &Quiet).unwrap();
        let own = evaluate(&mut executor_of(&model.transformer, 1), &model.transformer, &windows, 8).mean();
        assert!((own - outcome.val_loss.unwrap()).abs() < 1e-12, "{own} is not {outcome:?}");
        (model.transformer.weights.to_vec(), outcome.loss)
    };
    let ((plain, loss), (averaged, same_loss), (all, _)) =
        (train(None), train(Some(0.5)), train(Some(0.999)));
    assert_eq!(loss, same_loss, "what is trained does not know of the average");
    let start = small_model().transformer.weights;
    let far = |w: &[f32]| w.iter().zip(&start[..]).map(|(a, b)| (a - b).abs()).sum::<f32>();
    assert!(far(&plain) > far(&averaged) && far(&averaged) > far(&all) && far(&all) > 0.0);
}

/// Each row of the windows twice, as data whose rows are pairs of sequences.
struct Pairs<'a>(Windows<'a>);

impl Data for Pairs<'_> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn length(&self) -> usize {
        self.0.length()
    }

    fn sequences(&self) -> usize {
        2
    }

    fn fill(&self, i: usize, ids: &mut [u32], targets: &mut [u32]) -> usize {
        let (first, second) = ids.split_at_mut(self.length());
        let (of_first, of_second) = targets.split_at_mut(self.length());
        self.0.fill(i, first, of_first) + self.0.fill(i, second, of_second)
    }
}

/// Next tokens, and of each validation how many rows it had.
#[derive(Default)]
struct Counting {
    rows: Vec<usize>,
}

impl Objective for Counting {
    fn gradient(
        &mut self,
        executor: &mut Executor,
        transformer: &Transformer,
        batch: &Batch,
        key: u64,
        into: &mut [f32],
    ) -> Loss {
        NextToken::default().gradient(executor, transformer, batch, key, into)
    }

    fn loss(&mut self, executor: &mut Executor, transformer: &Transformer, batch: &Batch) -> Loss {
        self.rows.extend(&batch.rows);
        NextToken::default().loss(executor, transformer, batch)
    }

    fn report(&mut self) -> Vec<(&'static str, f64)> {
        let rows = std::mem::take(&mut self.rows);
        assert_eq!(rows, (0..rows.len()).collect::<Vec<_>>(), "each row once, in order");
        vec![("rows", rows.len() as f64), ("again", 0.5)]
    }
}

/// Rows of two sequences have twice the tokens and the same mean loss as rows of one; what the objective
/// reports comes after the other columns, in rows with a validation.
#[test]
fn rows_of_several_sequences_and_reported_figures_reach_the_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let stream = stream(400);
    let (single, pairs) = (Windows::new(&stream, 8, 0), Pairs(Windows::new(&stream, 8, 0)));
    let how = Options { eval_every: 15, ..options(20) };
    let train = |data: &dyn Data, objective: &mut dyn Objective| {
        let mut model = small_model();
        let outcome = run(&mut model, objective, data, data, &how, places(folder.path()), &Quiet).unwrap();
        let lines = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        (outcome, lines.lines().map(String::from).collect::<Vec<_>>())
    };
    let (plain, lines) = train(&single, &mut NextToken::default());
    let last = |line: &String| line.rsplit_once(',').unwrap().1.starts_with("\"grad_norm\":");
    assert!(lines.iter().all(last), "{lines:?}");
    let (paired, lines) = train(&pairs, &mut Counting::default());
    assert_eq!((plain.tokens, paired.tokens), (20 * 4 * 8, 20 * 4 * 16));
    assert!((plain.val_loss.unwrap() / paired.val_loss.unwrap() - 1.0).abs() < 0.1, "{plain:?} {paired:?}");
    let reported: Vec<bool> =
        lines.iter().map(|line| line.ends_with(r#","again":0.5,"rows":8.0}"#)).collect();
    // Steps 10, 15 and 20.
    assert_eq!(reported, [false, true, true], "{lines:?}");
    let parquet = std::fs::File::open(folder.path().join("metrics.parquet")).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(parquet).unwrap();
    let names: Vec<&str> = reader.schema().fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names[4..], ["learning_rate", "grad_norm", "again", "rows"]);
}

#[test]
fn windows_lay_end_to_end_and_an_epoch_has_each_row_once() {
    let stream = stream(50);
    let windows = Windows::new(&stream, 8, 0);
    assert_eq!(windows.rows(), 6);
    let mut batch = Batch::default();
    batch.fill(&windows, 5..6);
    assert_eq!((batch.ids.len(), batch.targets.len(), batch.tokens), (8, 8, 8));
    assert_eq!(batch.ids[1..], batch.targets[..7]);
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
    // In memory that held another batch.
    let mut row = batch(1);
    row.fill(&data, 0..1);
    assert_eq!(row.ids, [2, 4, 9, 5, 8, 0, 0, 0]);
    assert_eq!(row.targets, [IGNORE, IGNORE, IGNORE, 8, 3, IGNORE, IGNORE, IGNORE]);
    assert_eq!(row.tokens, 5);
}

const BOS: u32 = 2;
const EOS: u32 = 3;
const USER: u32 = 4;
const ASSISTANT: u32 = 5;
const SYSTEM: u32 = 6;
/// The ids behind the first of a longer opening.
const OPENING: u32 = 7;

/// A conversation as `tokenizer::chat` renders it: contents are ids from 10.
fn rendered(system: Option<usize>, turns: &[(usize, usize)], opening: usize) -> Rendered {
    let head = 1 + system.map_or(0, |len| opening + len);
    let mut r = Rendered { ids: vec![BOS], target: vec![false], begin: 1, head, ..Rendered::default() };
    let mut turn = |role: u32, len: usize| {
        let start = r.ids.len();
        let answer = role == ASSISTANT;
        r.ids.push(role);
        r.ids.extend(vec![OPENING; opening - 1]);
        r.target.resize(r.ids.len(), false);
        r.openings.push(opening);
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

/// An answer that is not learned belongs to the exchange of the next one that is, not to every piece.
#[test]
fn an_answer_of_weight_0_is_context_once() {
    let mut conversation = rendered(Some(2), &[(2, 3), (2, 4), (2, 5)], 1);
    conversation.target[conversation.turns[2].clone()].fill(false);
    let packing = pack([conversation.clone()].into_iter(), 22);
    let [first, second] = packing.rows.as_slice() else { panic!("{packing:?}") };
    assert_eq!(first.0, conversation.ids[..conversation.turns[4].end]);
    let head = &conversation.ids[..conversation.head];
    assert_eq!(second.0, [head, &conversation.ids[conversation.turns[5].start..]].concat());
    assert_eq!((packing.split, packing.cut), (1, 0));
}

/// Whoever greets, or answers twice, is learned from as well, in rows that hold all of it and in shorter ones.
#[test]
fn answers_to_nothing_are_packed_too() {
    // The assistant begins, and later speaks twice.
    let mut conversation = rendered(None, &[(3, 4), (2, 5), (3, 6)], 1);
    let without = |r: &mut Rendered, turn: usize| {
        let range = r.turns.remove(turn);
        r.openings.remove(turn);
        r.ids.drain(range.clone());
        r.target.drain(range.clone());
        for later in &mut r.turns[turn..] {
            *later = later.start - range.len()..later.end - range.len();
        }
    };
    without(&mut conversation, 4);
    without(&mut conversation, 0);
    let answers = |rows: &[(Vec<u32>, Vec<bool>)]| -> Vec<usize> {
        let all = rows.iter().flat_map(|(ids, learn)| ids.iter().zip(learn));
        let mut found = Vec::new();
        for (id, learn) in all {
            if *id == ASSISTANT {
                found.push(0);
            }
            if *learn {
                *found.last_mut().unwrap() += 1;
            }
        }
        found
    };
    for len in [40, 16, 12] {
        let packing = pack([conversation.clone()].into_iter(), len);
        assert!(packing.rows.iter().all(|(ids, _)| ids[0] == BOS && ids.len() <= len));
        assert_eq!((answers(&packing.rows), packing.cut), (vec![5, 6, 7], 0), "rows of {len}");
    }
    let packing = pack([conversation].into_iter(), 8);
    assert_eq!((answers(&packing.rows), packing.cut), (vec![5, 3, 6], 2));
}

proptest! {
    #[test]
    fn packing_keeps_roles_whole(
        conversations in proptest::collection::vec(
            (proptest::option::of(1usize..6), proptest::collection::vec((1usize..30, 1usize..30), 1..5)), 1..12),
        len in 16usize..80,
        opening in 1usize..4,
    ) {
        let all: Vec<Rendered> = conversations.iter().map(|(s, turns)| rendered(*s, turns, opening)).collect();
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
                        let behind = ids[i + 1..].iter().take_while(|id| **id == OPENING).count();
                        prop_assert_eq!(behind, opening - 1, "an opening is whole");
                    }
                    OPENING => prop_assert!(!learn[i] && (ids[i - 1] == OPENING || ids[i - 1] == role)),
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
