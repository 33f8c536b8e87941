//! Threads that work on one thing together, many times a millisecond.
//!
//! Where threads have nothing larger of their own to do (see `model::executor`), all share each small loop: a
//! token that is generated is some hundred of them. Handing a loop to a general thread pool costs 5 to
//! 20 µs; here the threads of a [`Team`] spin for a short while between loops, so it costs less than 1. Who
//! does which task is decided at run time, which is why a task must write only what is its own: then the
//! bytes don't depend on it.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

use super::dtype::Dtype;
use super::simd::Isa;

/// How often a thread looks for work before it sleeps: some 50 µs.
const SPINS: usize = 4_000;

/// Threads that share loops, and the kind of CPU they run on.
pub struct Team {
    pub isa: Isa,
    /// Of its matrix products.
    pub dtype: Dtype,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    scratch: std::sync::Mutex<super::Buffer>,
}

/// What a loop runs: the body, by task.
type Body = dyn Fn(usize) + Sync;

struct Shared {
    /// Who may post a loop; a second one that wants to does its loop alone.
    busy: AtomicBool,
    /// The loop's number in the upper half, the next task in the lower.
    next: AtomicU64,
    tasks: AtomicUsize,
    body: UnsafeCell<Option<*const Body>>,
    done: AtomicUsize,
    failed: AtomicBool,
    sleeping: AtomicUsize,
    /// Threads of other teams that help for a while.
    guests: AtomicUsize,
    stop: AtomicBool,
}

// SAFETY: `body` is written only while no task is left, before `next` is released, and read only after
// a task was taken, which keeps the loop open.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

const TASK: u64 = 0xffff_ffff;

impl Shared {
    /// Does tasks of the loop that is open until none is left; false if there was none.
    fn help(&self) -> bool {
        let mut any = false;
        loop {
            let now = self.next.load(Ordering::Acquire);
            let task = (now & TASK) as usize;
            if task >= self.tasks.load(Ordering::Acquire) {
                return any;
            }
            // Fails when the loop has changed since, for its number has.
            if self.next.compare_exchange_weak(now, now + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            any = true;
            // SAFETY: the loop can't end before this task is counted as done.
            let body = unsafe { &*(*self.body.get()).expect("an open loop has a body") };
            if catch_unwind(AssertUnwindSafe(|| body(task))).is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    fn work(&self) {
        let mut spins = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.help() {
                spins = 0;
            } else if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.sleeping.fetch_add(1, Ordering::SeqCst);
                // A loop posted before `sleeping` was raised would not wake this thread: look again.
                let open =
                    (self.next.load(Ordering::SeqCst) & TASK) < self.tasks.load(Ordering::SeqCst) as u64;
                if !open && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.sleeping.fetch_sub(1, Ordering::SeqCst);
                spins = 0;
            }
        }
    }
}

impl Team {
    /// A team of `threads`, the caller among them, on the fastest code that this machine runs.
    pub fn new(threads: usize) -> Self {
        Self::with(threads, Isa::best())
    }

    pub fn with(threads: usize, isa: Isa) -> Self {
        let shared = Arc::new(Shared {
            busy: AtomicBool::new(false),
            next: AtomicU64::new(0),
            tasks: AtomicUsize::new(0),
            body: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            guests: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let spawn = |i: usize| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("kernel-{i}"));
            // Where no thread can be had, the team is smaller; the bytes are the same.
            thread.spawn(move || shared.work()).ok()
        };
        let workers: Vec<JoinHandle<()>> = (1..threads).filter_map(spawn).collect();
        let handles = workers.iter().map(|w| w.thread().clone()).collect();
        Team {
            isa,
            dtype: Dtype::F32,
            shared,
            workers,
            handles,
            scratch: std::sync::Mutex::new(super::Buffer::new(0)),
        }
    }

    /// The same team, with products in `dtype`.
    pub fn in_dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Those that there are now, guests among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1 + self.shared.guests.load(Ordering::Relaxed)
    }

    /// Does tasks of this team, which the calling thread is none of, until `done` says so.
    pub fn visit(&self, done: impl Fn() -> bool) {
        self.shared.guests.fetch_add(1, Ordering::Relaxed);
        let mut spins = 0usize;
        while !done() {
            spins = if self.shared.help() { 0 } else { spins + 1 };
            if spins > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        self.shared.guests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Memory of `len` numbers for the length of a call, kept for the next. It holds anything.
    pub(super) fn with_scratch<R>(&self, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
        match self.scratch.try_lock() {
            Ok(mut scratch) => {
                if scratch.len() < len {
                    *scratch = super::Buffer::new(len);
                }
                f(&mut scratch[..len])
            }
            // Somebody else's product is on its way.
            Err(_) => f(&mut super::Buffer::new(len)),
        }
    }

    /// Calls `body` with every number below `tasks`, side by side, and returns when all are done.
    ///
    /// # Panics
    /// When `body` does.
    pub fn each(&self, tasks: usize, body: impl Fn(usize) + Sync) {
        let shared = &*self.shared;
        if tasks < 2 || self.threads() == 1 || shared.busy.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(body);
            return;
        }
        let erased: &(dyn Fn(usize) + Sync) = &body;
        // SAFETY: the reference is used until the last task is done, which is waited for below.
        let pointer = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const Body>(erased) };
        // No task is open: nobody reads the body now.
        unsafe { *shared.body.get() = Some(pointer) };
        shared.done.store(0, Ordering::Relaxed);
        let number = (shared.next.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        // First the number with no task open, so that nobody takes an old count for this loop's.
        shared.tasks.store(0, Ordering::SeqCst);
        shared.next.store(number, Ordering::SeqCst);
        shared.tasks.store(tasks, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.handles.iter().for_each(Thread::unpark);
        }
        shared.help();
        let mut spins = 0usize;
        while shared.done.load(Ordering::Acquire) < tasks {
            spins += 1;
            // Somebody's thread was taken off its core: let it have this one.
            if spins > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let failed = shared.failed.swap(false, Ordering::Relaxed);
        shared.busy.store(false, Ordering::Release);
        assert!(!failed, "a task of a shared loop panicked");
    }

    /// [`Team::each`] over ranges of `0..n`, each but the last a multiple of `grain` long.
    pub fn ranges(&self, n: usize, grain: usize, body: impl Fn(std::ops::Range<usize>) + Sync) {
        // A few ranges a thread: whoever was held up does fewer.
        let len = n.div_ceil(4 * self.threads()).next_multiple_of(grain.max(1)).max(1);
        self.each(n.div_ceil(len), |i| body(i * len..((i + 1) * len).min(n)));
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches what its tasks do; there is nothing left to tell.
            let _ = worker.join();
        }
    }
}

/// A slice that the tasks of one loop write side by side, each its own part.
pub struct Parts<'a, T = f32> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: whoever takes parts promises that they don't overlap.
unsafe impl<T: Send> Send for Parts<'_, T> {}
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<T> Clone for Parts<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub fn new(all: &'a mut [T]) -> Self {
        Parts { start: all.as_mut_ptr(), len: all.len(), life: std::marker::PhantomData }
    }

    /// # Safety
    /// No two tasks may hold overlapping ranges at one time.
    ///
    /// # Panics
    /// When the range is not within the slice.
    #[allow(clippy::mut_from_ref)] // that is what it is for
    pub unsafe fn take(&self, range: std::ops::Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// Without the first `skip`.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn from(&self, skip: usize) -> Self {
        assert!(skip <= self.len, "{skip} of {}", self.len);
        Parts { start: self.start.wrapping_add(skip), len: self.len - skip, life: self.life }
    }

    pub(super) fn pointer(&self) -> *mut T {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_whatever_the_threads() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads);
            for tasks in [0, 1, 2, 3, 64, 1000] {
                for _ in 0..50 {
                    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    team.each(tasks, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn sleepers_are_woken_and_loops_nest() {
        let team = Team::new(3);
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(3));
            let sum = AtomicUsize::new(0);
            team.each(7, |i| {
                team.each(3, |j| {
                    sum.fetch_add(i * j, Ordering::Relaxed);
                })
            });
            assert_eq!(sum.into_inner(), 21 * 3);
        }
    }

    #[test]
    fn a_guest_does_tasks_of_a_team_of_one() {
        let team = Team::new(1);
        let (over, threads) = (AtomicBool::new(false), std::sync::Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            scope.spawn(|| team.visit(|| over.load(Ordering::Acquire)));
            while team.threads() == 1 {
                std::thread::yield_now();
            }
            // Two tasks that wait for each other: no thread could do both.
            let met = AtomicUsize::new(0);
            team.each(2, |_| {
                met.fetch_add(1, Ordering::AcqRel);
                while met.load(Ordering::Acquire) < 2 {
                    std::thread::yield_now();
                }
                threads.lock().unwrap().push(std::thread::current().id());
            });
            over.store(true, Ordering::Release);
        });
        let threads = threads.into_inner().unwrap();
        assert!(threads.len() == 2 && threads[0] != threads[1]);
        assert_eq!(team.threads(), 1);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| team.each(8, |i| assert!(i != 5))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        team.each(4, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 6);
    }
}
