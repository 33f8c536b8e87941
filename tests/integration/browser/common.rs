//! What all pages share: common.js.

use std::sync::Arc;

use serde_json::{Value, json};

use super::served::{Served, untrained};
use super::{Browser, DESKTOP, INJECTION};

/// A browser at a page of a server without models.
fn opened(browser: &Browser) -> Served {
    let served = Served::on(Arc::new(untrained()), &[]);
    browser.goto(&format!("{}/", served.url));
    served
}

#[test]
fn events_are_the_same_however_their_bytes_arrive() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let _served = opened(&browser);
    let script = r#"
        const { events } = await import("/static/common.js");
        const text = "\uFEFF: a comment\r\ndata: one\ndata:two\r\n\r\nid: 7\nevent: last\ndata\n\n"
          + "data: \u00FC\u{1F600}\r\rretry: 5\n\ndata: end\r\r";
        const bytes = new TextEncoder().encode(text);
        async function read(chunks) {
          window.fetch = async () => new Response(new ReadableStream({
            start(stream) {
              for (const chunk of chunks) stream.enqueue(chunk);
              stream.close();
            },
          }));
          const all = [];
          for await (const { event, data, id } of events("/x-events")) all.push([event, data, id]);
          return JSON.stringify(all);
        }
        const found = new Set([await read(Array.from(bytes, (byte) => Uint8Array.of(byte)))]);
        for (let at = 0; at <= bytes.length; at += 1) found.add(await read([bytes.slice(0, at), bytes.slice(at)]));
        return Array.from(found, (one) => JSON.parse(one));
    "#;
    let expected = json!([
        ["message", "one\ntwo", null],
        ["last", "", "7"],
        ["message", "\u{FC}\u{1F600}", null],
        ["message", "end", null],
    ]);
    assert_eq!(browser.script(&format!("return (async () => {{ {script} }})()"), &[]), json!([expected]));
    browser.assert_clean();
}

#[test]
fn text_makes_text_and_addresses_stay_here() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let _served = opened(&browser);
    let script = r#"
        const { el, svg } = await import("/static/common.js");
        const text = arguments[0];
        const node = document.body.appendChild(el("p", { title: text, class: text }, text, [svg("text", {}, text)]));
        const refused = [];
        for (const href of ["javascript:owned()", "//elsewhere.test/", "https://elsewhere.test/", " javascript:owned()"]) {
          try {
            el("a", { href });
          } catch {
            refused.push(href);
          }
        }
        return [node.textContent === text + text, node.children.length, node.title === text, refused.length];
    "#;
    let run = format!(
        "return (async (...arguments_) => {{ {} }})(arguments[0])",
        script.replace("arguments[0]", "arguments_[0]")
    );
    assert_eq!(browser.script(&run, &[INJECTION.into()]), json!([true, 1, true, 4]));
    browser.assert_clean();
}

#[test]
fn numbers_are_written_as_the_command_line_does() {
    let Some(browser) = Browser::open(DESKTOP) else { return };
    let _served = opened(&browser);
    let script = "return import('/static/common.js').then(({ format }) => [
        format.bytes(512), format.bytes(1536), format.bytes(2 ** 30), format.count(1251456),
        format.seconds(0.85), format.seconds(12.34), format.seconds(245), format.seconds(7380),
        format.number(0), format.number(-0.5), format.number(12345.6), format.number(0.0000123456), format.number(NaN),
        format.percent(0.4213), format.digest('blake3:0123456789abcdef')])";
    let found: Vec<Value> = serde_json::from_value(browser.script(script, &[])).expect("a list");
    let expected = [
        "512 B",
        "1.5 KiB",
        "1.0 GiB",
        "1,251,456",
        "850 ms",
        "12.3 s",
        "4 min 05 s",
        "2 h 03 min",
        "0",
        "\u{2212}0.5",
        "12346",
        "1.235e-5",
        "NaN",
        "42.1 %",
        "0123456789ab",
    ];
    assert_eq!(found, expected);
    browser.assert_clean();
}
