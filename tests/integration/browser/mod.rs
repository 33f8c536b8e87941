//! The pages in a real browser: Chromium, headless, driven by chromedriver (Debian: `chromium chromium-driver`).
//!
//! A test begins with `let Some(browser) = Browser::open(DESKTOP) else { return };`, which says that it is skipped
//! where there is no chromedriver, and ends with `browser.assert_clean()`: no message in the console, no request that
//! leaves the server, nothing executed that came as text. With `TINYLM_SCREENSHOTS=FOLDER`, [`Browser::screenshots`]
//! writes what the pages look like.

mod attention;
mod chat;
mod common;
mod dashboard;
mod driver;
mod injection;
mod served;

use driver::{Browser, DESKTOP, PHONE};
use served::Served;

/// What is text everywhere. Executed, it would set `window.owned`, or ask the server for `/x`.
const INJECTION: &str = "<img src=x onerror=\"window.owned=1\"></script><script>window.owned=1</script>\"'><svg onload=window.owned=1>";
