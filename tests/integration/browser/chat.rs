//! The chat page.

use std::sync::Arc;

use super::served::{Served, untrained};
use super::{Browser, DESKTOP};

#[test]
fn without_a_model_the_page_says_how_to_get_one() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let served = Served::on(Arc::new(untrained()), &[]);
    browser.goto(&format!("{}/", served.url));
    browser.wait_for(".empty", "No pipeline has trained a model yet.");
    browser.screenshots("chat-empty");
    browser.assert_clean();
}
