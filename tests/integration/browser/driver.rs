//! A small client of the WebDriver protocol (<https://www.w3.org/TR/webdriver2/>) and of what chromedriver adds to it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::served::read_lines;

/// Of the window, in CSS pixels.
#[derive(Clone, Copy)]
pub struct Size {
    name: &'static str,
    width: u32,
    height: u32,
    touch: bool,
}

pub const DESKTOP: Size = Size { name: "desktop", width: 1280, height: 900, touch: false };
pub const PHONE: Size = Size { name: "phone", width: 390, height: 844, touch: true };
/// As narrow as pages are made for.
pub const NARROW: Size = Size { name: "narrow", width: 360, height: 740, touch: true };

/// Keys without a character, for [`Browser::keys`] and [`Browser::press`].
pub mod key {
    pub const ENTER: &str = "\u{E007}";
    pub const SHIFT: &str = "\u{E008}";
    pub const ESCAPE: &str = "\u{E00C}";
    pub const END: &str = "\u{E010}";
    pub const UP: &str = "\u{E013}";
    /// Lets go of keys like `SHIFT`.
    pub const RELEASE: &str = "\u{E000}";
}

/// How long a page may take until it shows what a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A window of a browser of its own, with nothing stored from before; it closes with this value.
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    /// `http://127.0.0.1:PORT/session/ID`
    session: String,
    size: Size,
    /// Where it is, as `http://127.0.0.1:PORT`.
    origin: RefCell<String>,
    downloads: tempfile::TempDir,
    console: RefCell<Vec<String>>,
    requests: RefCell<Vec<String>>,
}

impl Browser {
    /// `None` where there is no chromedriver, which is said.
    pub fn open(size: Size) -> Option<Self> {
        let program = std::env::var("CHROMEDRIVER").unwrap_or_else(|_| "chromedriver".to_string());
        let spawned = Command::new(&program)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(driver) = spawned else {
            let test = std::thread::current().name().unwrap_or("a test").to_string();
            // Past the test harness, which keeps what a passed test prints to itself.
            let why = format!("`{program}` does not start; Debian has it in the package chromium-driver");
            writeln!(std::io::stderr(), "SKIPPED {test}: {why}").expect("written");
            return None;
        };
        Some(Self::begin(driver, size))
    }

    fn begin(mut driver: Child, size: Size) -> Self {
        let (sender, lines) = channel();
        read_lines(driver.stdout.take().expect("piped"), sender);
        let port: u16 = std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok())
            .find_map(|line| {
                line.split_once("on port ")?.1.trim_end_matches('.').parse().ok().filter(|p| *p > 0)
            })
            .expect("chromedriver says its port");
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        let agent = config.timeout_global(Some(Duration::from_secs(120))).build().new_agent();
        let downloads = tempfile::tempdir().expect("a temporary folder");
        let mut browser = Browser {
            driver,
            agent,
            session: format!("http://127.0.0.1:{port}/session"),
            size,
            origin: RefCell::default(),
            downloads,
            console: RefCell::default(),
            requests: RefCell::default(),
        };
        let begun = browser.command("", &json!({ "capabilities": { "alwaysMatch": capabilities(size) } }));
        write!(browser.session, "/{}", begun["sessionId"].as_str().expect("a session"))
            .expect("a string grows");
        let folder = browser.downloads.path().display().to_string();
        browser.cdp("Browser.setDownloadBehavior", &json!({ "behavior": "allow", "downloadPath": folder }));
        browser.resize(size);
        browser.dark(false);
        browser
    }

    /// The value of a WebDriver command.
    fn command(&self, path: &str, body: &Value) -> Value {
        self.try_command(path, body).unwrap_or_else(|error| panic!("{path} {body}: {error}"))
    }

    fn try_command(&self, path: &str, body: &Value) -> Result<Value, String> {
        let request = self.agent.post(format!("{}{path}", self.session));
        let sent = request.header("Content-Type", "application/json").send(body.to_string());
        let text = sent.and_then(|mut response| response.body_mut().read_to_string());
        let answer: Value = serde_json::from_str(&text.expect("chromedriver answers")).expect("JSON");
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
            None => Ok(answer["value"].clone()),
        }
    }

    /// A command of Chromium's own protocol.
    pub fn cdp(&self, command: &str, params: &Value) -> Value {
        self.command("/goog/cdp/execute", &json!({ "cmd": command, "params": params }))
    }

    pub fn resize(&self, size: Size) {
        let Size { width, height, touch, .. } = size;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch });
        self.cdp("Emulation.setDeviceMetricsOverride", &metrics);
        self.cdp("Emulation.setTouchEmulationEnabled", &json!({ "enabled": touch }));
        if !self.origin.borrow().is_empty() {
            let frames = "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => \
                 done(innerWidth))))";
            self.wait("the window to have its size", |browser| browser.script(frames, &[]) == json!(width));
        }
    }

    /// Has the system prefer a dark theme, or a light one. Nothing moves in either.
    pub fn dark(&self, dark: bool) {
        let features = [
            ("prefers-color-scheme", if dark { "dark" } else { "light" }),
            ("prefers-reduced-motion", "reduce"),
        ];
        let features = features.map(|(name, value)| json!({ "name": name, "value": value }));
        self.cdp("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    pub fn goto(&self, url: &str) {
        let origin = url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
        self.origin.replace(origin);
        self.command("/url", &json!({ "url": url }));
    }

    pub fn reload(&self) {
        self.command("/refresh", &json!({}));
    }

    /// What the body of a function gives, run in the page; `arguments` are its arguments.
    pub fn script(&self, body: &str, arguments: &[Value]) -> Value {
        self.command("/execute/sync", &json!({ "script": body, "args": arguments }))
    }

    /// The element that `selector` finds first; waits until there is one.
    fn element(&self, selector: &str) -> String {
        let query = json!({ "using": "css selector", "value": selector });
        let found = self.until(|| self.try_command("/element", &query).ok());
        let found = found.unwrap_or_else(|| panic!("there is no `{selector}` in:\n{}", self.state()));
        found.as_object().and_then(|o| o.values().next()?.as_str()).expect("an element").to_string()
    }

    /// Acts on an element, which the page may be about to replace or to show.
    fn act(&self, selector: &str, action: &str, body: &Value) {
        let done = self.until(|| {
            let path = format!("/element/{}/{action}", self.element(selector));
            self.try_command(&path, body).ok()
        });
        assert!(done.is_some(), "{action} of `{selector}` is not possible in:\n{}", self.state());
    }

    pub fn click(&self, selector: &str) {
        self.act(selector, "click", &json!({}));
    }

    /// Types into an element.
    pub fn keys(&self, selector: &str, text: &str) {
        self.act(selector, "value", &json!({ "text": text }));
    }

    /// Presses a key wherever the focus is.
    pub fn press(&self, key: &str) {
        let presses = ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key }));
        self.command(
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keys", "actions": presses }] }),
        );
    }

    /// The text of every element that `selector` finds, as it is in the document.
    pub fn texts(&self, selector: &str) -> Vec<String> {
        let found = self.script(
            "return Array.from(document.querySelectorAll(arguments[0]), (one) => one.textContent)",
            &[selector.into()],
        );
        serde_json::from_value(found).expect("texts")
    }

    /// The text of the first.
    pub fn text(&self, selector: &str) -> String {
        self.texts(selector).into_iter().next().unwrap_or_default()
    }

    pub fn count(&self, selector: &str) -> usize {
        self.texts(selector).len()
    }

    /// Whether the first element that `selector` finds is seen.
    pub fn shows(&self, selector: &str) -> bool {
        let script = "return document.querySelector(arguments[0])?.checkVisibility() ?? false";
        self.script(script, &[selector.into()]) == json!(true)
    }

    /// The value of the first control that `selector` finds.
    pub fn value(&self, selector: &str) -> String {
        let found = self.script("return document.querySelector(arguments[0]).value", &[selector.into()]);
        found.as_str().expect("a text").to_string()
    }

    /// Waits until `condition` holds.
    pub fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let held = self.until(|| condition(self).then_some(()));
        assert!(held.is_some(), "{what}: not within {PATIENCE:?}; the page:\n{}", self.state());
    }

    /// Waits until the first element that `selector` finds has `text` in its text.
    pub fn wait_for(&self, selector: &str, text: &str) {
        self.wait(&format!("`{selector}` with {text:?}"), |browser| {
            browser.texts(selector).iter().any(|found| found.contains(text))
        });
    }

    fn until<T>(&self, attempt: impl Fn() -> Option<T>) -> Option<T> {
        let begun = Instant::now();
        loop {
            match attempt() {
                Some(value) => return Some(value),
                None if begun.elapsed() > PATIENCE => return None,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The text of the only file that was downloaded; the file is gone then.
    pub fn downloaded(&self) -> String {
        // While it is written it has another name, or nothing in it.
        let whole = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let hidden = name.starts_with('.') || name.ends_with(".crdownload");
            !hidden && std::fs::metadata(path).is_ok_and(|file| file.len() > 0)
        };
        let file = self.until(|| {
            let mut files =
                std::fs::read_dir(self.downloads.path()).ok()?.filter_map(|file| Some(file.ok()?.path()));
            files.find(|path| whole(path))
        });
        let file = file.unwrap_or_else(|| panic!("nothing is downloaded; the page:\n{}", self.state()));
        let text = std::fs::read_to_string(&file).expect("read");
        std::fs::remove_file(&file).expect("removed");
        text
    }

    /// What a failed test tells of the page.
    fn state(&self) -> String {
        self.read_logs();
        let shown = self
            .try_command("/execute/sync", &json!({ "script": "return document.body.innerText", "args": [] }));
        format!("{}\nconsole: {:#?}", shown.unwrap_or_default().as_str().unwrap_or(""), self.console.borrow())
    }

    // -- what must not happen --

    fn read_logs(&self) {
        let log = |kind: &str| {
            self.command("/se/log", &json!({ "type": kind })).as_array().cloned().unwrap_or_default()
        };
        for entry in log("browser") {
            self.console.borrow_mut().push(entry["message"].as_str().unwrap_or("").to_string());
        }
        for entry in log("performance") {
            let event: Value = serde_json::from_str(entry["message"].as_str().expect("text")).expect("JSON");
            if event["message"]["method"] == "Network.requestWillBeSent" {
                let url = &event["message"]["params"]["request"]["url"];
                self.requests.borrow_mut().push(url.as_str().expect("an address").to_string());
            }
        }
    }

    /// All addresses that the page has asked for.
    pub fn requests(&self) -> Vec<String> {
        self.read_logs();
        self.requests.borrow().clone()
    }

    /// That the console is empty, that no request left the server, and that nothing was executed that came as text.
    pub fn assert_clean(&self) {
        self.assert_clean_but(&[]);
    }

    /// The same, where requests were refused or failed, such as by `["429", "net::ERR_CONNECTION_REFUSED"]`: browsers
    /// write that to the console.
    pub fn assert_clean_but(&self, failures: &[&str]) {
        let requests = self.requests();
        let origin = self.origin.borrow().clone();
        let expected = |line: &String| {
            line.split_once("Failed to load resource: ")
                .is_some_and(|(_, why)| failures.iter().any(|f| why.contains(f)))
        };
        let console: Vec<String> =
            self.console.borrow().iter().filter(|line| !expected(line)).cloned().collect();
        assert!(console.is_empty(), "the console has {console:#?}");
        let inside = |url: &String| {
            url.starts_with(&format!("{origin}/")) || url.starts_with("blob:") || url.starts_with("data:")
        };
        let outside: Vec<_> = requests.iter().filter(|url| !inside(url)).collect();
        assert!(outside.is_empty(), "requests beyond {origin}: {outside:?}");
        assert!(requests.iter().all(|url| *url != format!("{origin}/x")), "an injected image was asked for");
        assert_eq!(
            self.script("return window.owned ?? null", &[]),
            Value::Null,
            "injected script was executed"
        );
    }

    /// That nothing is wider than the window, and that all links of the header are seen.
    pub fn assert_fits(&self) {
        let script = "const wide = Array.from(document.body.querySelectorAll('*')).filter((one) => \
             one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1 \
             && !one.closest('.scroll, .tabs, .visually-hidden, .toasts')); \
             const links = document.querySelector('.header nav'); \
             if (links.scrollWidth > links.clientWidth) wide.push(links); \
             return [document.documentElement.scrollWidth > innerWidth, wide.slice(0, 5).map((one) => \
             one.outerHTML.slice(0, 120))]";
        let found = self.script(script, &[]);
        assert_eq!(found, json!([false, []]), "wider than the window");
    }

    /// That all text has a contrast of 4.5 with what is behind it (3 where it is large: WCAG 2, 1.4.3), light and dark,
    /// and that every control has a name.
    pub fn assert_accessible(&self) {
        for dark in [false, true] {
            self.dark(dark);
            let found = self.script(include_str!("accessible.js"), &[]);
            assert_eq!(
                found,
                json!([]),
                "too faint or without a name, {}",
                if dark { "dark" } else { "light" }
            );
        }
        self.dark(false);
    }

    /// Writes what is shown into the folder `$TINYLM_SCREENSHOTS`, if it is set: as `NAME-desktop-light.png` and so
    /// on, in both sizes and both themes.
    pub fn screenshots(&self, name: &str) {
        for size in [DESKTOP, PHONE] {
            self.resize(size);
            self.screenshots_at(name, size);
        }
        self.resize(self.size);
    }

    /// The same in the size that the window has, for what closes when it changes.
    pub fn screenshots_here(&self, name: &str) {
        self.screenshots_at(name, self.size);
    }

    fn screenshots_at(&self, name: &str, size: Size) {
        let Some(folder) = std::env::var_os("TINYLM_SCREENSHOTS") else { return };
        std::fs::create_dir_all(&folder).expect("created");
        for (theme, dark) in [("light", false), ("dark", true)] {
            self.dark(dark);
            let file = Path::new(&folder).join(format!("{name}-{}-{theme}.png", size.name));
            std::fs::write(file, self.screenshot()).expect("written");
        }
        self.dark(false);
    }

    /// A PNG of the window.
    fn screenshot(&self) -> Vec<u8> {
        // Two frames later it is laid out for the size and the theme.
        std::thread::sleep(Duration::from_millis(100));
        let taken = self.cdp("Page.captureScreenshot", &json!({ "format": "png" }));
        decode_base64(taken["data"].as_str().expect("a picture"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn capabilities(size: Size) -> Value {
    let window = format!("--window-size={},{}", size.width, size.height);
    // Names of other hosts lead nowhere: a page that needs one fails here as it does without a network.
    let mut args = vec![
        "--headless=new",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        &window,
    ];
    if is_root() {
        args.push("--no-sandbox");
    }
    let mut options = json!({ "args": args });
    if let Ok(binary) = std::env::var("CHROMIUM") {
        options["binary"] = binary.into();
    }
    let logs = json!({ "browser": "ALL", "performance": "ALL" });
    json!({ "goog:chromeOptions": options, "goog:loggingPrefs": logs, "unhandledPromptBehavior": "ignore" })
}

/// Chromium refuses to run as root within its sandbox.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// RFC 4648, as far as pictures need it: no line breaks, padding at the end.
fn decode_base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let decode = |four: &[u8]| {
        let bits =
            four.iter().fold(0u32, |bits, c| bits << 6 | u32::from(digit(*c))) << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    text.trim_end_matches('=').as_bytes().chunks(4).flat_map(decode).collect()
}

#[test]
fn base64_is_decoded() {
    for (text, bytes) in
        [("", &b""[..]), ("Zg==", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo"), ("+/8=", b"\xFB\xFF")]
    {
        assert_eq!(decode_base64(text), bytes);
    }
}
