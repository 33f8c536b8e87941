//! Gradients that micro-batches add up in a fixed order, whichever threads compute them.
//!
//! Floating-point sums depend on their order. All micro-batches add to the same tensors in the same
//! sequence, and the k-th addition of a micro-batch waits for the k-th of the micro-batch before it. So the
//! bytes are the same for any number of threads. A thread that has to wait, or has no micro-batch left,
//! works on loops of another's micro-batch meanwhile.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Layout;
use super::layout::LinearLayout;
use crate::kernel::{Team, loss};

/// Locks whatever happened to the thread that held it before: that panic is reported elsewhere.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The gradient of a batch, to which its micro-batches add in their order.
pub struct OrderedGradient<'a> {
    /// A tensor each, by where it begins; the output projection by blocks of ids.
    tensors: Vec<(usize, Mutex<&'a mut [f32]>)>,
    layout: &'a Layout,
    /// Additions that each micro-batch has made.
    made: Vec<AtomicUsize>,
    failed: AtomicBool,
}

impl<'a> OrderedGradient<'a> {
    /// `gradient` is laid out like the trained parameters; the others have none.
    pub fn new(layout: &'a Layout, c: usize, gradient: &'a mut [f32], micro_batches: usize) -> Self {
        let (mut tensors, mut rest) = (Vec::new(), gradient);
        for p in layout.parameters.iter().filter(|p| layout.is_trained(&p.range)) {
            let (own, behind) = rest.split_at_mut(p.range.len());
            rest = behind;
            let len = if p.range == layout.head {
                loss::BLOCK * c
            } else if Some(&p.range) == layout.head_bias.as_ref() {
                loss::BLOCK
            } else {
                own.len()
            };
            let starts = p.range.clone().step_by(len);
            tensors.extend(starts.zip(own.chunks_mut(len).map(Mutex::new)));
        }
        let made = (0..micro_batches).map(|_| AtomicUsize::new(0)).collect();
        OrderedGradient { tensors, layout, made, failed: AtomicBool::new(false) }
    }

    pub fn turns<'b>(&'b self, micro_batch: &'b MicroBatch<'b>) -> Turns<'b, 'a> {
        Turns { gradient: self, micro_batch, next: 0 }
    }
}

/// The additions of one micro-batch.
pub struct Turns<'b, 'a> {
    gradient: &'b OrderedGradient<'a>,
    micro_batch: &'b MicroBatch<'b>,
    next: usize,
}

/// How often a micro-batch looks for its turn before it works on loops of the one before: some 10 µs.
const SPINS: usize = 1000;

impl<'b, 'a> Turns<'b, 'a> {
    /// Whether a parameter is trained: of the others no gradient is computed.
    pub fn is_trained(&self, range: &Range<usize>) -> bool {
        self.gradient.layout.is_trained(range)
    }

    /// Whether something of a linear layer is trained.
    pub fn trains(&self, linear: &LinearLayout) -> bool {
        linear.adapters.is_some() || self.is_trained(&linear.weight)
    }

    /// Adds to some tensors, each given by its range, of which some may be absent or not trained. Without any it
    /// does nothing.
    pub fn add<const N: usize>(
        &mut self,
        tensors: [Option<&Range<usize>>; N],
        add: impl FnOnce([Option<&mut [f32]>; N]),
    ) {
        let tensors = tensors.map(|range| range.filter(|range| self.is_trained(range)));
        if tensors.iter().all(Option::is_none) {
            return;
        }
        self.wait(0);
        let mut guards = tensors.map(|range| range.map(|range| self.tensor(range.start)));
        add(guards.each_mut().map(|guard| guard.as_mut().map(|guard| &mut ***guard)));
        drop(guards);
        self.done();
    }

    /// Returns when the next addition, or the one `ahead` of it, is this micro-batch's to make.
    ///
    /// # Panics
    /// When another micro-batch did, for which this one would wait forever.
    pub fn wait(&self, ahead: usize) {
        let Some(before) = self.micro_batch.index.checked_sub(1) else { return };
        let failed = || self.gradient.failed.load(Ordering::Relaxed);
        let come = || self.gradient.made[before].load(Ordering::Acquire) > self.next + ahead;
        // Mostly it has come, or will at once.
        let mut spins = 0;
        while !come() {
            assert!(!failed(), "another micro-batch panicked");
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                self.micro_batch.all.help(before, || come() || failed());
            }
        }
    }

    /// The tensor, or block of the output projection, that begins there.
    pub fn tensor(&self, start: usize) -> MutexGuard<'b, &'a mut [f32]> {
        let all = &self.gradient.tensors;
        let i = all.binary_search_by_key(&start, |tensor| tensor.0).expect("where a tensor begins");
        // Its turn has come, so no other thread holds it.
        lock(&all[i].1)
    }

    /// This addition is made.
    pub fn done(&mut self) {
        self.next += 1;
        self.gradient.made[self.micro_batch.index].store(self.next, Ordering::Release);
    }
}

impl Drop for Turns<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.gradient.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// Marks a micro-batch that no thread works on, not yet or not any more.
const NOBODY: usize = usize::MAX;

/// The threads of a team, divided, and which part works on which micro-batch.
#[derive(Clone, Copy)]
pub struct SubTeams<'a> {
    pub teams: &'a [Team],
    /// By micro-batch: the index of its team, or [`NOBODY`].
    owners: &'a [AtomicUsize],
}

impl SubTeams<'_> {
    /// Works on loops of a micro-batch until it is done or `enough` says so.
    pub fn help(&self, micro_batch: usize, enough: impl Fn() -> bool) {
        let owner = || self.owners[micro_batch].load(Ordering::Acquire);
        if let Some(team) = self.teams.get(owner()) {
            team.visit(|| enough() || owner() == NOBODY);
        }
    }
}

/// A micro-batch while it is computed.
pub struct MicroBatch<'a> {
    pub index: usize,
    pub team: &'a Team,
    all: SubTeams<'a>,
}

/// Also when it ends in a panic.
impl Drop for MicroBatch<'_> {
    fn drop(&mut self) {
        if let Some(owner) = self.all.owners.get(self.index) {
            owner.store(NOBODY, Ordering::Release);
        }
    }
}

/// The sum of what `compute` gives for each of `count` micro-batches, in their order. Each of `workspaces`
/// is used by one part of the team, `teams`; micro-batches begin in their order.
pub fn side_by_side<W: Send>(
    team: &Team,
    teams: &[Team],
    workspaces: &mut [Mutex<W>],
    count: usize,
    compute: impl Fn(&mut W, &MicroBatch) -> f64 + Sync,
) -> f64 {
    if let [one] = workspaces {
        let workspace = one.get_mut().unwrap_or_else(PoisonError::into_inner);
        let all = SubTeams { teams: &[], owners: &[] };
        return (0..count).map(|index| compute(workspace, &MicroBatch { index, team, all })).sum();
    }
    let owners: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(NOBODY)).collect();
    let (next, sums) = (AtomicUsize::new(0), Mutex::new(vec![0.0; count]));
    let (workspaces, all) = (&*workspaces, SubTeams { teams, owners: &owners });
    team.each(workspaces.len(), |i| {
        let mut workspace = lock(&workspaces[i]);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            owners[index].store(i, Ordering::Release);
            let sum = compute(&mut workspace, &MicroBatch { index, team: &all.teams[i], all });
            lock(&sums)[index] = sum;
        }
        (0..count).for_each(|index| all.help(index, || false));
    });
    lock(&sums).iter().sum()
}
