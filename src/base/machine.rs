//! Resources of this machine, and this process' use of them. Never part of an artifact.

use std::sync::OnceLock;

/// Threads that can run at one time.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// A pool of one thread a core for the engine's own work (reading and hashing files), started at first use.
/// Stages have pools of their own. `None` where no thread can be started.
pub fn pool() -> Option<&'static rayon::ThreadPool> {
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    POOL.get_or_init(|| rayon::ThreadPoolBuilder::new().num_threads(threads()).build().ok()).as_ref()
}

/// Makes rayon's global pool one thread a core, for what works in parallel outside of stages. Without it
/// that pool has the one thread that `main.rs` leaves to libraries.
pub fn use_all_cores() {
    // An error means that the pool exists already.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads()).build_global();
}

/// Physical memory in bytes; `None` where it cannot be found out.
pub fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The peak resident memory of this process, in bytes.
pub fn peak_memory() -> Option<u64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let peak = getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss();
        // Kilobytes everywhere but on Apple's systems.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        u64::try_from(peak).ok().map(|p| p * unit)
    }
    #[cfg(not(unix))]
    None
}

/// The name of this host; empty where it cannot be found out.
pub fn host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        #[cfg(unix)]
        {
            let mut name = [0u8; 256];
            // SAFETY: the buffer is as long as is said; the last byte stays 0.
            let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
            let end = name.iter().position(|b| *b == 0).unwrap_or(0);
            if failed { String::new() } else { String::from_utf8_lossy(&name[..end]).into_owned() }
        }
        #[cfg(not(unix))]
        std::env::var("COMPUTERNAME").unwrap_or_default()
    })
}

/// The boot id of the kernel, the same in all containers; `None` where it cannot be found out.
pub fn boot() -> Option<&'static str> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    BOOT.get_or_init(|| read().map(|id| id.trim().replace('-', ""))).as_deref()
}
