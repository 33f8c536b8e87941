//! Markup where only names are expected: of a model, in an address.

use super::served::Served;
use super::{Browser, DESKTOP};

/// A name that a user may give a model: what stands before `=`, without a colon.
const NAME: &str = "<script>window.owned++</script><svg/onload>";

/// The same in an address.
const ADDRESS: &str = "%3Cimg%20src%3Dx%20onerror%3Dwindow.owned%3D1%3E";

#[test]
fn names_of_models_and_parts_of_addresses_are_text() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let served = Served::start(&["--model", &format!("{NAME}=p:chat")]);
    browser.goto(&format!("{}/attention", served.url));
    browser.wait("the model's name", |browser| browser.value("#asked select") == NAME);
    browser.click("#asked [type=submit]");
    browser.wait_for("#counted", "2 layers");
    browser.goto(&format!("{}/", served.url));
    browser.wait_for("option", NAME);
    for page in ["runs", "artifacts", "pipelines"] {
        browser.goto(&format!("{}/{page}/{ADDRESS}", served.url));
        browser.wait("an answer", |browser| !browser.text("body").trim().is_empty());
    }
    browser.goto(&format!("{}/compare?a={ADDRESS}&b={ADDRESS}", served.url));
    browser.wait("an answer", |browser| !browser.text("main").trim().is_empty());
    browser.assert_clean_but(&["400", "404"]);
}
