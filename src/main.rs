//! The program: everything is in [`tinylm::cli`]. Here is only what must be settled before the first
//! thread starts.

fn main() -> std::process::ExitCode {
    #[cfg(unix)]
    if tinylm::kinds::command::guard::is_guard() {
        return tinylm::kinds::command::guard::main();
    }
    keep_memory();
    leave_threads_to_us();
    tinylm::cli::main()
}

/// Memory that was touched once is kept rather than given back and touched anew: first touch is what
/// training on a CPU otherwise spends half of its time on (measured: 2,160 -> 4,820 tokens/s).
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only stores numbers, and no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Parts of a batch run side by side on a stage's own threads. candle's pools below them, one of
/// which spins, would fight for the same cores (measured: 700 -> 2,160 tokens/s without them).
fn leave_threads_to_us() {
    // SAFETY: no other thread runs yet.
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", "1");
        std::env::set_var("CANDLE_NUM_THREADS", "1");
    }
}

/// Runs before the standard library does, which opens `/dev/null` where there is no standard output.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn look_for_stdout() {
        // SAFETY: it only asks whether the descriptor is open.
        if unsafe { libc::fcntl(1, libc::F_GETFD) } == -1 {
            tinylm::report::stdout::note_closed();
        }
    }
    look_for_stdout
};
