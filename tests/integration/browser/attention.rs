//! The attention view.

use serde_json::json;

use super::driver::key;
use super::{Browser, DESKTOP, INJECTION, PHONE, Served};

fn open(browser: &Browser, served: &Served) {
    browser.goto(&format!("{}/attention", served.url));
    browser.wait("a model to choose", |browser| browser.value("#asked select") == "p:chat");
}

fn ask(browser: &Browser, text: &str) {
    browser.script("document.querySelector('#asked .field > textarea').value = arguments[0]", &[text.into()]);
    browser.click("#asked [type=submit]");
}

#[test]
fn heads_are_chosen_and_tokens_say_what_they_attend_to() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let served = Served::start(&["--model", "p:chat"]);
    open(&browser, &served);
    ask(&browser, INJECTION);
    browser.wait_for("#counted", "2 layers, 4 heads");
    let shown = browser.texts(".token > span:first-child").concat();
    assert_eq!(shown, format!("<bos>{}", INJECTION.replace(' ', "␣")));
    browser.click(".map[data-layer='1'][data-head='2']");
    browser.wait_for(".large h2", "Layer 1, head 2");
    browser.press(key::UP);
    browser.wait_for(".large h2", "Layer 0, head 2");
    browser.click(".token:nth-child(3)");
    browser.wait_for(".readout", "(token 2) attends to");
    browser.click(".large .segments button:nth-child(2)");
    browser.wait_for(".readout", "(token 2) is attended to by");
    // The first token attends to itself only.
    let corner =
        "return document.querySelector('.map canvas').getContext('2d').getImageData(0, 0, 2, 1).data[3]";
    assert_eq!(browser.script(corner, &[]), json!(255));
    assert_eq!(browser.count(".bars li"), 10);
    browser.screenshots("attention");
    for size in [DESKTOP, PHONE] {
        browser.resize(size);
        browser.assert_fits();
    }
    browser.assert_clean();
}

#[test]
fn turns_of_a_chat_are_read_and_what_is_too_long_is_told() {
    let Some(browser) = Browser::open(PHONE) else { return };
    let served = Served::start(&["--model", "p:chat"]);
    open(&browser, &served);
    browser.click("#asked .segments button:nth-child(2)");
    browser.script("document.querySelector('.turn textarea').value = 'Hello!'", &[]);
    browser.click("#asked [type=submit]");
    browser.wait_for(".token:nth-child(2)", "<user>");
    browser.wait_for(".token:last-child", "<assistant>");
    // Learned by heart: the answer begins with `Hello!`.
    let next = browser.text(".bars code");
    assert!("Hello!".starts_with(&next), "{next}");
    browser.assert_fits();
    browser.click("#asked .segments button:nth-child(1)");
    ask(&browser, &"word ".repeat(200));
    browser.wait_for("[role=alert]", "the model holds 96");
    assert!(browser.shows(".bars"), "the last result stays");
    browser.assert_clean_but(&["400"]);
}
