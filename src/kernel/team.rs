//! A thread pool for short parallel loops, many a millisecond.
//!
//! Where threads can't work on separate sequences (see `model::executor`), they share each loop of a kernel:
//! generating one token takes some hundred loops. Handing a loop to a general thread pool costs 5 to 20 µs;
//! the threads of a [`Team`] spin for a short while between loops, so it costs less than 1; then they yield their core
//! to other threads of the process, such as a server's, and at last they sleep. Which thread runs
//! which task is decided at run time, so a task must write only its own part of the output: then the bytes
//! don't depend on the threads.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

use super::dtype::Dtype;
use super::simd::Isa;

/// Iterations of a loop that waits for work or for others, before it yields to other threads: some 3 µs.
const SPINS: usize = 250;

/// How often a thread that waits for work yields before it sleeps: some 50 µs.
const YIELDS: usize = 100;

/// Waits a little, the `i`th time.
fn wait(i: usize) {
    if i < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// Threads that share loops, and the instructions and dtype of the kernels that they run.
pub struct Team {
    pub isa: Isa,
    /// Of matrix products.
    pub dtype: Dtype,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    scratch: std::sync::Mutex<super::Buffer>,
    /// Matrix tiles are simulated, so that tests run the code for them on a CPU that has none.
    #[cfg(test)]
    simulates_tiles: bool,
}

/// The body of a loop; its argument is the task.
type Body = dyn Fn(usize) + Sync;

struct Shared {
    /// Whether a loop is running; who wants to start another meanwhile runs it alone.
    busy: AtomicBool,
    /// The loop's number in the upper 32 bits, the next task in the lower.
    next: AtomicU64,
    tasks: AtomicUsize,
    body: UnsafeCell<Option<*const Body>>,
    done: AtomicUsize,
    failed: AtomicBool,
    sleeping: AtomicUsize,
    /// Threads in [`Team::visit`].
    visitors: AtomicUsize,
    stop: AtomicBool,
}

// SAFETY: `body` is written only while no loop is running, before `next` is stored with release order, and
// read only after a task was taken, before which the loop can't end.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

const TASK: u64 = 0xffff_ffff;

impl Shared {
    /// Runs tasks of the current loop until none is left; false if there was none.
    fn help(&self) -> bool {
        let mut any = false;
        loop {
            let now = self.next.load(Ordering::Acquire);
            let task = (now & TASK) as usize;
            if task >= self.tasks.load(Ordering::Acquire) {
                return any;
            }
            // Fails if another loop has begun meanwhile, for it has another number.
            if self.next.compare_exchange_weak(now, now + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            any = true;
            // SAFETY: the loop can't end before this task is counted as done.
            let body = unsafe { &*(*self.body.get()).expect("a loop has a body") };
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
            } else if spins < SPINS + YIELDS {
                wait(spins);
                spins += 1;
            } else {
                self.sleeping.fetch_add(1, Ordering::SeqCst);
                // A loop that began before `sleeping` was raised does not wake this thread: check again.
                let work =
                    (self.next.load(Ordering::SeqCst) & TASK) < self.tasks.load(Ordering::SeqCst) as u64;
                if !work && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.sleeping.fetch_sub(1, Ordering::SeqCst);
                spins = 0;
            }
        }
    }
}

impl Team {
    /// A team of `threads`, the caller among them, with the fastest instructions of this machine.
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
            visitors: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let spawn = |i: usize| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("kernel-{i}"));
            // If the system refuses a thread, the team is smaller; the bytes are the same.
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
            #[cfg(test)]
            simulates_tiles: false,
        }
    }

    /// The same team, with matrix products in `dtype`.
    pub fn in_dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// The same team, in `bf16_tile`, with matrix tiles, which are simulated where the CPU has none.
    ///
    /// # Panics
    /// Where the CPU can't pack their numbers.
    #[cfg(test)]
    pub fn simulating_tiles(mut self) -> Self {
        assert!(self.isa.has_pairs(), "no AVX512-BF16 here");
        self.simulates_tiles = true;
        self.in_dtype(Dtype::Bf16Tile)
    }

    /// Whether products take matrix tiles even if the CPU has none: only in tests.
    pub(super) fn simulates_tiles(&self) -> bool {
        #[cfg(test)]
        return self.simulates_tiles;
        #[cfg(not(test))]
        false
    }

    /// How many there are now, with those of other teams that [`Team::visit`].
    pub fn threads(&self) -> usize {
        self.workers.len() + 1 + self.shared.visitors.load(Ordering::Relaxed)
    }

    /// Runs tasks of this team on a thread that is not one of it, until `done` is true.
    pub fn visit(&self, done: impl Fn() -> bool) {
        self.shared.visitors.fetch_add(1, Ordering::Relaxed);
        let mut spins = 0usize;
        while !done() {
            spins = if self.shared.help() { 0 } else { spins + 1 };
            wait(spins);
        }
        self.shared.visitors.fetch_sub(1, Ordering::Relaxed);
    }

    /// Calls `f` with memory of `len` arbitrary numbers, which is kept for the next call.
    pub(super) fn with_scratch<R>(&self, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
        match self.scratch.try_lock() {
            Ok(mut scratch) => {
                if scratch.len() < len {
                    *scratch = super::Buffer::new(len);
                }
                f(&mut scratch[..len])
            }
            // Another thread's call is using it.
            Err(_) => f(&mut super::Buffer::new(len)),
        }
    }

    /// Calls `body` with every number below `tasks`, in parallel, and returns when all are done.
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
        // SAFETY: the reference is used until the last task is done, and this function waits for that.
        let pointer = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const Body>(erased) };
        // No loop is running: no thread reads the body now.
        unsafe { *shared.body.get() = Some(pointer) };
        shared.done.store(0, Ordering::Relaxed);
        let number = (shared.next.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        // The count of tasks is 0 while the number changes, so that no thread combines the new number with
        // the old count.
        shared.tasks.store(0, Ordering::SeqCst);
        shared.next.store(number, Ordering::SeqCst);
        shared.tasks.store(tasks, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.handles.iter().for_each(Thread::unpark);
        }
        shared.help();
        let mut spins = 0usize;
        while shared.done.load(Ordering::Acquire) < tasks {
            // The system may have preempted a thread of this loop: give it this core.
            wait(spins);
            spins += 1;
        }
        let failed = shared.failed.swap(false, Ordering::Relaxed);
        shared.busy.store(false, Ordering::Release);
        assert!(!failed, "a task of a shared loop panicked");
    }

    /// [`Team::each`] over ranges of `0..n`, each but the last a multiple of `grain` long.
    pub fn ranges(&self, n: usize, grain: usize, body: impl Fn(std::ops::Range<usize>) + Sync) {
        // Several ranges a thread, so that a thread that was preempted does fewer.
        let len = n.div_ceil(4 * self.threads()).next_multiple_of(grain.max(1)).max(1);
        self.each(n.div_ceil(len), |i| body(i * len..((i + 1) * len).min(n)));
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // Panics of tasks were caught and reported by `each`.
            let _ = worker.join();
        }
    }
}

/// A mutable slice shared by the tasks of one loop, each of which writes its own part.
pub struct Parts<'a, T = f32> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: callers of `take` promise that the parts don't overlap.
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

    /// Of a slice that is only read.
    ///
    /// # Safety
    /// Nothing may be taken or written.
    pub(super) unsafe fn reading(all: &'a [T]) -> Self {
        Parts { start: all.as_ptr().cast_mut(), len: all.len(), life: std::marker::PhantomData }
    }

    /// # Safety
    /// No two tasks may hold overlapping ranges at one time.
    ///
    /// # Panics
    /// When the range is not within the slice.
    #[allow(clippy::mut_from_ref)] // the caller promises what the borrow checker can't see
    pub unsafe fn take(&self, range: std::ops::Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// Without the first `skip` elements.
    ///
    /// # Panics
    /// When there are fewer.
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
    fn a_visiting_thread_runs_tasks_of_a_team_of_one() {
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
