//! What models give to a student: the likeliest ids of every position, and their probabilities.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::Transformer;
use super::executor::{Executor, Sequences, forward, pass_of, sequences_of, split};
use super::layer::DropoutSites;
use super::ordered::{self, lock};
use super::workspace::Workspace;
use crate::kernel::Team;
use crate::kernel::loss::{self, CHUNK};

/// The `k` likeliest ids of every position, whether its target counts or not, and their probabilities under
/// `softmax(logits / temperature)`, or under the mean of several teachers' distributions: `[N, k]` each, the
/// likeliest first, and of equals the lower id. They are what [`Soft`](super::Soft) takes.
///
/// Beyond the teachers' workspaces it needs memory for rows of logits: [`CHUNK`] rows a thread, and twice as
/// many for several teachers. The first teacher's executor keeps it, and its threads compute.
///
/// # Panics
/// As [`Executor::loss`]; when an output has another size or there are no `k` ids; when there are no teachers, or
/// they have vocabularies of different sizes.
pub fn mean_top_k(
    teachers: &mut [(&mut Executor, &Transformer)],
    all: Sequences,
    temperature: f32,
    k: usize,
    ids: &mut [u32],
    probabilities: &mut [f32],
) {
    let v = vocabulary(teachers);
    assert!(k > 0 && k <= v, "{k} of {v} ids");
    assert_eq!([ids.len(), probabilities.len()], [all.ids.len() * k; 2], "k ids a row");
    let some = sequences_of(teachers[0].0.team(), all.length);
    let rows = some * all.length;
    let outputs = ids.chunks_mut(rows * k).zip(probabilities.chunks_mut(rows * k)).map(Mutex::new);
    let parts: Vec<_> = split(all, some).zip(outputs).collect();
    let prepare = |(executor, _): &mut (&mut Executor, &Transformer)| {
        executor.check(all);
        executor.prepare(parts.len(), all.length)
    };
    let count = teachers.iter_mut().map(prepare).min().expect("a teacher");
    let models = teachers.len();
    let (team, teams, mut threads) = on_threads(teachers, count, models.min(2) * rows.min(CHUNK) * v);
    ordered::side_by_side(team, teams, &mut threads, parts.len(), |thread, micro_batch| {
        let ((first, part), outputs) = &parts[micro_batch.index];
        thread.forward(micro_batch.team, *part, *first);
        let (ids, probabilities) = &mut *lock(outputs);
        let chunks = ids.chunks_mut(CHUNK * k).zip(probabilities.chunks_mut(CHUNK * k));
        for (i, (ids, probabilities)) in chunks.enumerate() {
            let rows = i * CHUNK..i * CHUNK + ids.len() / k;
            let sums = thread.distributions(micro_batch.team, rows, temperature);
            loss::top_k(micro_batch.team, sums, v, models, k, ids, probabilities);
        }
        0.0
    });
}

/// The size of the teachers' vocabulary.
fn vocabulary(teachers: &[(&mut Executor, &Transformer)]) -> usize {
    let v = teachers[0].1.config.vocab_size;
    assert!(teachers.iter().all(|(_, model)| model.config.vocab_size == v), "one vocabulary of {v} ids");
    v
}

/// What one thread, or several that share micro-batches, computes with.
struct Thread<'a> {
    models: Vec<(&'a mut Workspace, &'a Transformer)>,
    /// Rows of logits; for several teachers, as many again.
    logits: &'a mut [f32],
}

/// The teachers on `count` threads, with so many `logits` each, and the team of those threads, whole and divided.
fn on_threads<'a>(
    teachers: &'a mut [(&mut Executor, &Transformer)],
    count: usize,
    logits: usize,
) -> (&'a Team, &'a [Team], Vec<Mutex<Thread<'a>>>) {
    teachers[0].0.reserve_logits(count * logits);
    let mut models: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    let mut first = None;
    for (executor, model) in teachers {
        let Executor { team, teams, workspaces, logits, .. } = &mut **executor;
        for (models, workspace) in models.iter_mut().zip(workspaces) {
            models.push((workspace.get_mut().unwrap_or_else(PoisonError::into_inner), *model));
        }
        first.get_or_insert((&*team, &**teams, logits));
    }
    let (team, teams, buffer) = first.expect("a teacher");
    let threads = models.into_iter().zip(buffer.chunks_mut(logits));
    (team, teams, threads.map(|(models, logits)| Mutex::new(Thread { models, logits })).collect())
}

impl Thread<'_> {
    /// Some sequences through all models; `first` is the number of the first.
    fn forward(&mut self, team: &Team, part: Sequences, first: usize) {
        for (workspace, model) in &mut self.models {
            let pass = pass_of(team, model, part, first, DropoutSites::NONE, false);
            forward(&pass, workspace, part);
        }
    }

    /// Of some rows of the last forward pass, `softmax(logits / temperature)` summed over the models, `[rows, V]`.
    fn distributions(&mut self, team: &Team, rows: Range<usize>, temperature: f32) -> &[f32] {
        let v = self.models[0].1.config.vocab_size;
        let (sums, other) = self.logits.split_at_mut(rows.len() * v);
        for (i, (workspace, model)) in self.models.iter().enumerate() {
            let c = model.config.d_model;
            let x = &workspace.scratch.a[rows.start * c..rows.end * c];
            let logits = if i == 0 { &mut *sums } else { &mut other[..rows.len() * v] };
            loss::logits(team, model.output(), x, logits);
            loss::soften(team, logits, v, temperature);
            if i > 0 {
                loss::add_distributions(team, &other[..rows.len() * v], sums);
            }
        }
        sums
    }
}
