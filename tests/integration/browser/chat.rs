//! The chat page.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::driver::{NARROW, key};
use super::served::{ANSWERS, Served, trained, untrained};
use super::{Browser, DESKTOP, INJECTION, PHONE};

/// The last answer's text, and what stands under it.
const ANSWER: &str = ".message.assistant:last-child .content";
const META: &str = ".message.assistant:last-child .meta";

/// The chat page of `served`, with answers that are always the most probable ones.
fn opened(browser: &Browser, served: &Served) {
    opened_with(browser, served, "p:chat");
    set(browser, "temperature", "0");
}

fn opened_with(browser: &Browser, served: &Served, model: &str) {
    browser.goto(&format!("{}/", served.url));
    browser.wait_for(".welcome h2", &format!("Talk to {model}"));
}

fn set(browser: &Browser, param: &str, value: &str) {
    let input = "const input = document.getElementById(arguments[0]); input.value = arguments[1]; \
         input.dispatchEvent(new Event('input'))";
    browser.script(input, &[format!("param-{param}").into(), value.into()]);
}

/// Sends a message by keys alone.
fn say(browser: &Browser, text: &str) {
    browser.keys("#message", &format!("{text}{}", key::ENTER));
}

fn ask(browser: &Browser, question: &str, answer: &str) {
    say(browser, question);
    browser.wait_for(ANSWER, answer);
    browser.wait_for(META, "complete");
}

#[test]
fn without_a_model_the_page_says_how_to_get_one() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let served = Served::on(Arc::new(untrained()), &[]);
    browser.goto(&format!("{}/", served.url));
    browser.wait_for(".empty", "No pipeline has trained a model yet.");
    browser.screenshots("chat-empty");
    browser.assert_clean();
}

#[test]
fn an_answer_streams_can_be_stopped_and_asked_for_again() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let served = Served::start(&[]);
    opened(&browser, &served);
    browser.screenshots("chat-welcome");
    browser.assert_accessible();
    ask(&browser, ANSWERS[0].0, ANSWERS[0].1);
    assert!(browser.text(META).contains("tokens/s"), "{}", browser.text(META));

    set(&browser, "max_tokens", "4096");
    // The page is watched from within: a small model may say thousands of tokens while a test asks once.
    browser.script(STOP_ONCE_GROWN, &[]);
    say(&browser, "Count.");
    browser.wait_for(META, "stopped");
    let lengths: Vec<usize> =
        serde_json::from_value(browser.script("return window.lengths", &[])).expect("numbers");
    assert!(
        lengths.is_sorted() && lengths.iter().collect::<BTreeSet<_>>().len() > 2,
        "it did not grow: {lengths:?}"
    );
    let stopped = browser.text(ANSWER);
    assert!(stopped.starts_with("one two three one two three"), "{stopped}");

    set(&browser, "max_tokens", "7");
    browser.click(".message.assistant:last-child [aria-label='Another answer']");
    browser.wait_for(META, "cut off at max tokens · 7 tokens");
    let whole = browser.text(ANSWER).len() * 4096 / 7;
    assert!(stopped.len() < whole, "it was not stopped: {} characters of {whole}", stopped.len());
    assert_eq!(browser.text(".message.assistant:last-child .branches"), "2/2");
    browser.click(".message.assistant:last-child [aria-label='Previous branch']");
    assert_eq!(browser.text(ANSWER), stopped);
    browser.assert_clean();
}

/// Notes how long the answer is each time it grows, and presses Escape when it was seen to grow twice: a small model
/// may say some thousand characters between two events of its stream.
const STOP_ONCE_GROWN: &str = "
    window.lengths = [];
    const watch = new MutationObserver(() => {
      const answer = document.querySelector('.message.assistant:last-child .content[aria-busy=true]');
      if (!answer) return;
      window.lengths.push(answer.textContent.length);
      if (new Set(window.lengths).size < 3) return;
      watch.disconnect();
      document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }));
    });
    watch.observe(document.getElementById('thread'), { childList: true, subtree: true, characterData: true });";

#[test]
fn an_edited_message_is_a_branch_and_nothing_needs_a_pointer() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let served = Served::start(&[]);
    opened(&browser, &served);
    ask(&browser, "Hello!", ANSWERS[0].1);
    set(&browser, "max_tokens", "20");
    // Up edits the last message, Escape leaves it, Shift+Enter makes a new line.
    browser.press(key::UP);
    browser.press(key::ESCAPE);
    browser.wait("the editor is left", |browser| browser.count(".editor") == 0);
    browser.press(key::UP);
    browser.keys(
        ".editor textarea",
        &format!("{s}{e}{r}Count.", s = key::SHIFT, e = key::ENTER, r = key::RELEASE),
    );
    assert_eq!(browser.value(".editor textarea"), "Hello!\nCount.");
    browser.press(key::ENTER);
    browser.wait_for(".message.user .content", "Hello!\nCount.");
    browser.wait_for(META, "tokens/s");
    assert_eq!(browser.text(".message.user .branches"), "2/2");
    browser.screenshots("chat-branches");
    browser.assert_accessible();

    let switch = |to: &str| {
        browser.script(
            "document.querySelector(arguments[0]).focus()",
            &[format!(".message.user [aria-label='{to}']").into()],
        );
        browser.press(key::ENTER);
    };
    switch("Previous branch");
    browser.wait_for(".message.user .branches", "1/2");
    assert_eq!((browser.text(".message.user .content").as_str(), browser.text(ANSWER).as_str()), ANSWERS[0]);
    // The focus stays at the switch.
    switch("Next branch");
    browser.wait_for(".message.user .branches", "2/2");
    assert_eq!(browser.script("return document.activeElement.dataset.key", &[]), "next-first");

    // What was there is there after a reload.
    browser.reload();
    browser.wait_for(".message.user .branches", "2/2");
    browser.assert_clean();
}

#[test]
fn settings_show_their_defaults_refuse_what_is_out_of_range_and_are_reset() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let served = Served::start(&[]);
    opened_with(&browser, &served, "p:chat");
    assert_eq!(browser.value("#param-top_k"), "40");
    set(&browser, "top_p", "1.5");
    browser.wait_for("#param-top_p-wrong", "expected a number from 0.01 to 1");
    set(&browser, "top_p", "0.5");
    set(&browser, "seed", "7");
    set(&browser, "stop", "can I\n\\n");
    say(&browser, "Hello!");
    browser.wait_for(META, "complete");
    assert_eq!(browser.text(ANSWER), "Hello! How ", "the stop text is not part of the answer");
    let kept: Value = serde_json::from_str(&exported(&browser)).expect("JSON");
    let settings = &kept["conversations"][0]["settings"];
    assert_eq!(
        (&settings["top_p"], &settings["seed"], &settings["stop"]),
        (&json!(0.5), &json!(7), &json!(["can I", "\n"]))
    );
    assert_eq!(kept["conversations"][0]["messages"][1]["seed"], 7);
    browser.click("#reset-all");
    assert_eq!(
        (browser.value("#param-top_p"), browser.value("#param-stop")),
        ("0.95".to_string(), String::new())
    );
    browser.assert_clean();
}

fn exported(browser: &Browser) -> String {
    browser.click("#export-all");
    browser.downloaded()
}

fn import(browser: &Browser, served: &Served, file: &str, text: &str) {
    served.project.write(file, text);
    browser.keys("#import-file", &served.project.path(file).display().to_string());
}

#[test]
fn conversations_leave_and_come_back_as_json_and_what_is_wrong_with_them_is_said() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let served = Served::start(&[]);
    opened(&browser, &served);
    ask(&browser, "Hello!", ANSWERS[0].1);
    browser.click("#new-chat");
    ask(&browser, "Hello!", ANSWERS[0].1);
    rename(&browser, "Second");
    let text = exported(&browser);
    let file: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(file["conversations"].as_array().map(Vec::len), Some(2));

    import(&browser, &served, "same.json", &text);
    browser.wait_for(".toast", "0 of 2 conversations imported; 2 were here already");
    delete(&browser);
    assert_eq!(browser.count(".conversation-list .open"), 1);
    import(&browser, &served, "whole.json", &text);
    browser.wait_for(".toast", "1 of 2 conversations imported; 1 was here already");
    browser.wait_for(".conversation-list .current", "Second");
    assert_eq!(browser.text(ANSWER), ANSWERS[0].1);

    for (name, path, value, said) in WRONG {
        let mut wrong = file.clone();
        *wrong.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) =
            serde_json::from_str(value).expect("JSON");
        import(&browser, &served, name, &wrong.to_string());
        browser.wait_for(".side .notice", said);
        browser.click(".side .notice button");
    }
    import(&browser, &served, "broken.json", &text[..40]);
    browser.wait_for(".side .notice", "broken.json was not imported. The file is no JSON");
    assert_eq!(browser.count(".conversation-list .open"), 2, "nothing of a file with an error is taken");

    // What is kept is checked as what is imported.
    browser.script("localStorage.setItem('tinylm.chat.broken', '{\"id\": 1}')", &[]);
    browser.reload();
    browser.wait_for(
        ".side .notice",
        "kept here does not read. the conversation.id is 1: expected 24 hexadecimal",
    );
    browser.click(".side .notice button:nth-of-type(2)");
    browser.reload();
    browser.wait_for(".conversation-list .current", "Second");
    assert_eq!(browser.count(".side .notice"), 0);
    browser.assert_clean();
}

/// Files with one value changed: the name, where, to what, what is said.
const WRONG: [(&str, &str, &str, &str); 7] = [
    ("format.json", "/format", "\"other\"", "format is \"other\": expected \"tinylm.conversations\""),
    ("version.json", "/version", "2", "version is 2: expected 1"),
    (
        "role.json",
        "/conversations/0/messages/1/role",
        "\"robot\"",
        "conversations[0].messages[1].role is \"robot\": expected \"user\" or \"assistant\"",
    ),
    (
        "parent.json",
        "/conversations/0/messages/1/parent",
        "1",
        "conversations[0].messages[1].parent is 1: expected the number of a message before it, or null",
    ),
    (
        "leaf.json",
        "/conversations/1/leaf",
        "2",
        "conversations[1].leaf is 2: expected a message's number below 2",
    ),
    (
        "settings.json",
        "/conversations/0/settings",
        "{\"__proto__\": 1}",
        "conversations[0].settings has \"__proto__\": expected only `temperature`",
    ),
    ("content.json", "/conversations/0/messages/0/content", "{}", "messages[0].content is {}: expected text"),
];

/// Chooses an entry of the menu of the conversation that is shown.
fn choose(browser: &Browser, entry: usize) {
    browser.click(".conversation-list .current [aria-haspopup]");
    browser.click(&format!(".menu > :nth-child({entry})"));
}

fn rename(browser: &Browser, title: &str) {
    choose(browser, 1);
    browser.script("document.querySelector('dialog input').value = ''", &[]);
    browser.keys("dialog input", &format!("{title}{}", key::ENTER));
    browser.wait_for(".conversation-list .current", title);
}

fn delete(browser: &Browser) {
    let before = browser.count(".conversation-list .open");
    choose(browser, 3);
    browser.click("dialog .danger");
    browser.wait("one less", |browser| browser.count(".conversation-list .open") + 1 == before);
}

#[test]
fn what_is_text_stays_text() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let name = "\"'></script><script>owned()</script>";
    let served = Served::start(&["--model", &format!("{name}=p:chat")]);
    opened_with(&browser, &served, name);
    set(&browser, "temperature", "0");
    browser.keys("#system", INJECTION);
    say(&browser, INJECTION);
    browser.wait_for(".message.user .content", INJECTION);
    browser.wait_for(META, "token");
    rename(&browser, INJECTION);
    browser.click("#new-chat");
    ask(&browser, ANSWERS[1].0, ANSWERS[1].1);
    browser.screenshots("chat-text");

    let mut file: Value = serde_json::from_str(&exported(&browser)).expect("JSON");
    for conversation in file["conversations"].as_array_mut().expect("conversations") {
        conversation["id"] = "0123456789abcdef01234567".into();
        for field in ["title", "system", "model"] {
            conversation[field] = INJECTION.into();
        }
        conversation["messages"][1]["content"] = INJECTION.into();
        conversation["messages"][1]["finish"] = "error".into();
        conversation["messages"][1]["error"] = INJECTION.into();
    }
    import(&browser, &served, "injected.json", &file.to_string());
    browser.wait_for("#model", INJECTION);
    browser.wait_for(".message .notice", INJECTION);
    for path in ["/conversations/0/id", "/conversations/0/messages/0/role", "/format"] {
        let mut wrong = file.clone();
        *wrong.pointer_mut(path).expect("it is there") = INJECTION.into();
        import(&browser, &served, "<img src=x onerror=window.owned=1>.json", &wrong.to_string());
        browser.wait_for(".side .notice", "<img src=x onerror=window.owned=1>.json was not imported.");
        browser.wait_for(".side .notice", &serde_json::to_string(INJECTION).expect("JSON")[..50]);
        browser.click(".side .notice button");
    }
    browser.assert_clean();
}

#[test]
fn an_error_is_shown_in_place_and_a_retry_answers() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let served = Served::start(&[]);
    opened(&browser, &served);
    let port = served.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let project = served.project.clone();
    drop(served);
    say(&browser, "Hello!");
    browser.wait_for(".message.assistant .notice", "The server does not answer.");
    let served = Served::at(port, project, &[]);
    browser.click(".message.assistant .notice button");
    browser.wait_for(ANSWER, ANSWERS[0].1);
    browser.wait_for(META, "complete");
    assert_eq!(browser.count(".message"), 2, "the same answer, no branch");

    // A model that is not served, of a conversation from elsewhere.
    let mut file: Value = serde_json::from_str(&exported(&browser)).expect("JSON");
    file["conversations"][0]["model"] = "gone:chat".into();
    import(&browser, &served, "gone.json", &file.to_string());
    browser.wait_for("#model", "gone:chat (not served)");
    say(&browser, "Hello!");
    browser.wait_for(".message.assistant:last-child .notice", "gone:chat");
    browser.screenshots("chat-error");
    let asked = browser.requests().iter().filter(|url| url.ends_with("/v1/chat/completions")).count();
    assert_eq!(asked, 3);
    browser.assert_clean_but(&["net::ERR_CONNECTION_REFUSED", "404"]);
}

#[test]
fn a_token_is_asked_for_once_for_the_tab() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let project = trained();
    project.write("token", "correct-horse-battery-staple\n");
    let served = Served::on(project, &["--token-file", "token"]);
    browser.goto(&format!("{}/", served.url));
    browser.wait_for("dialog", "This server asks for a token.");
    browser.keys("dialog input", &format!("wrong{}", key::ENTER));
    browser.wait_for("dialog", "The server does not accept this token.");
    browser.screenshots("chat-token");
    browser.keys("dialog input", &format!("correct-horse-battery-staple{}", key::ENTER));
    browser.wait_for(".welcome h2", "Talk to p:chat");
    browser.reload();
    browser.wait_for(".welcome h2", "Talk to p:chat");
    assert_eq!(browser.count("dialog"), 0);
    say(&browser, "Hello!");
    browser.wait_for(META, "tokens/s");
    browser.assert_clean_but(&["401"]);
}

#[test]
fn a_phone_shows_all_of_it() {
    let Some(browser) = Browser::open(PHONE) else { return };
    let served = Served::start(&[]);
    opened_with(&browser, &served, "p:chat");
    assert_fits_when_narrow(&browser);
    say(&browser, &format!("Hello! {}", "Averylongwordthatdoesnotendandmustbreak".repeat(5)));
    browser.wait_for(META, "tokens/s");
    assert_fits_when_narrow(&browser);
    browser.assert_accessible();
    for (side, within) in [("settings", "#param-temperature"), ("conversations", "#new-chat")] {
        assert!(!browser.shows(within), "{side} is closed at first");
        browser.click(&format!("[aria-controls={side}]"));
        browser.wait("the drawer opens", |browser| browser.shows(within));
        assert_fits_when_narrow(&browser);
        browser.assert_accessible();
        browser.screenshots_here(&format!("chat-{side}"));
        browser.press(key::ESCAPE);
        browser.wait("the drawer closes", |browser| !browser.shows(within));
    }
    browser.assert_clean();
}

fn assert_fits_when_narrow(browser: &Browser) {
    browser.resize(NARROW);
    browser.assert_fits();
    browser.resize(PHONE);
}
