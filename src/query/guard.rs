//! Polars panics on some damaged files (seen: flipped bytes in the footer and in pages), on its own
//! threads. A damaged input is not a bug of this program: such a panic becomes an error, and the panic hook
//! prints nothing.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Calls of [`guarded`] in progress.
static GUARDED: AtomicUsize = AtomicUsize::new(0);
static HOOK: Once = Once::new();

thread_local! {
    static HERE: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`, or its panic message.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !is_of_polars(info) {
                usual(info);
            }
        }));
    });
    GUARDED.fetch_add(1, Ordering::SeqCst);
    let before = HERE.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    HERE.set(before);
    GUARDED.fetch_sub(1, Ordering::SeqCst);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("it gave no reason").to_string()
    })
}

/// On the guarded thread itself, or on a thread of polars while a call is in progress.
fn is_of_polars(info: &PanicHookInfo) -> bool {
    let current = thread::current();
    let theirs =
        current.name().is_some_and(|name| ["async-executor", "polars"].iter().any(|n| name.starts_with(n)));
    let there = info.location().is_some_and(|place| place.file().contains("polars"));
    HERE.get() || (GUARDED.load(Ordering::SeqCst) > 0 && (theirs || there))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(guarded(|| 1), Ok(1));
        assert_eq!(guarded(|| -> u8 { panic!("at byte {}", 3) }), Err("at byte 3".to_string()));
        assert_eq!(guarded(|| -> u8 { panic!("plain") }), Err("plain".to_string()));
    }
}
