//! Markup where only names are expected: of a model, in an address.

use super::served::Served;
use super::{Browser, DESKTOP};

/// A name that a user may give a model, or that came with it.
const NAME: &str = "<script>window.owned++</script><img src=x>";

/// The same in an address.
const ADDRESS: &str = "%3Cimg%20src%3Dx%20onerror%3Dwindow.owned%3D1%3E";

#[test]
fn names_of_models_and_parts_of_addresses_are_text() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    // What stands before the first `=` is the name.
    let name = NAME.replace('=', ":");
    let served = Served::start(&["--model", &format!("{name}=p:chat")]);
    browser.goto(&format!("{}/attention", served.url));
    browser.wait("the model's name", |browser| browser.value("#asked select") == name);
    browser.click("#asked [type=submit]");
    browser.wait_for("#counted", "2 layers");
    browser.goto(&format!("{}/", served.url));
    browser.wait_for("option", &name);
    for page in ["runs", "artifacts", "pipelines"] {
        browser.goto(&format!("{}/{page}/{ADDRESS}", served.url));
        browser.wait("an answer", |browser| !browser.text("body").trim().is_empty());
    }
    browser.goto(&format!("{}/compare?a={ADDRESS}&b={ADDRESS}", served.url));
    browser.wait("an answer", |browser| !browser.text("main").trim().is_empty());
    browser.assert_clean_but(&["400", "404"]);
}
