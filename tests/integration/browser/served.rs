//! A project with a trained chat model, and `tinylm serve` on it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde_json::json;

use crate::project::Project;

/// Learned by heart in a second or two. `Count.` is answered without an end: the answer is longer than the 96 tokens that
/// the model holds, so that it never learns how it ends.
const PIPELINE: &str = "
name: p
seed: 1
stages:
  docs: { kind: ingest, inputs: { files: data/text.txt } }
  chats: { kind: ingest_chat, inputs: { files: data/chats.jsonl } }
  tokenizer:
    kind: train_tokenizer
    inputs: { docs: docs, chats: chats }
    params: { algorithm: byte_bpe, vocab_size: 300 }
  shards: { kind: shard, inputs: { docs: docs, tokenizer: tokenizer } }
  base:
    kind: pretrain
    inputs: { shards: shards, tokenizer: tokenizer }
    params: { preset: modern-1.5m, vocab_size: 300, d_model: 64, n_layer: 2, n_head: 4, seq_len: 96, steps: 2 }
  chat:
    kind: finetune
    inputs: { model: base, tokenizer: tokenizer, chats: chats }
    params:
      steps: 135
      batch_size: 4
      optimizer: muon
      learning_rate: 0.005
      muon_learning_rate: 0.01
      validation_fraction: 0
";

/// What the model learns to answer; the second is what a page must not execute.
pub const ANSWERS: [(&str, &str); 2] = [
    ("Hello!", "Hello! How can I help you?"),
    ("Markup, please.", "<img src=x onerror=\"window.owned=1\"></script><script>window.owned=1</script>"),
];

/// A running server; it ends with this value.
pub struct Served {
    pub project: Arc<Project>,
    /// `http://127.0.0.1:PORT`
    pub url: String,
    process: Child,
}

impl Served {
    /// On the project that all tests of this file share, trained by the first of them.
    pub fn start(args: &[&str]) -> Self {
        Self::on(trained(), args)
    }

    /// On a project of the test's own.
    pub fn on(project: Arc<Project>, args: &[&str]) -> Self {
        Self::at(0, project, args)
    }

    /// At a port; 0 for any that is free.
    pub fn at(port: u16, project: Arc<Project>, args: &[&str]) -> Self {
        let mut command = project.command(&[&["serve", "--port", &port.to_string()], args].concat());
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (sender, lines) = channel();
        read_lines(process.stdout.take().expect("piped"), sender.clone());
        read_lines(process.stderr.take().expect("piped"), sender);
        Served { url: address(&lines), project, process }
    }
}

/// A project whose pipeline never ran.
pub fn untrained() -> Project {
    Project::new(PIPELINE)
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads on to the end, so that the server never waits for a full pipe.
pub fn read_lines(from: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(|line| line.ok()) {
            let _ = to.send(line);
        }
    });
}

fn address(lines: &Receiver<String>) -> String {
    let mut said = Vec::new();
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(30)) {
        if let Some(at) = line.find("http://") {
            return line[at..].split_whitespace().next().expect("a word").trim_end_matches('/').to_string();
        }
        said.push(line);
    }
    panic!("the server does not say where it listens:\n{}", said.join("\n"));
}

/// The project, as long as a test uses it.
pub fn trained() -> Arc<Project> {
    static SHARED: Mutex<Weak<Project>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(project) = shared.upgrade() {
        return project;
    }
    let project = Arc::new(train());
    *shared = Arc::downgrade(&project);
    project
}

fn train() -> Project {
    let project = untrained();
    let counted = ["one two three"; 60].join(" ");
    let chats = ANSWERS.into_iter().chain([("Count.", counted.as_str())]).map(|(question, answer)| {
        let messages = [("user", question), ("assistant", answer)]
            .map(|(role, content)| json!({ "role": role, "content": content }));
        format!("{}\n", json!({ "messages": messages }))
    });
    project.write("data/chats.jsonl", chats.collect::<String>());
    let sentence = "This is a small text that is read before anything is said. ";
    project.write("data/text.txt", format!("{}\n\n{}\n", sentence.repeat(20), "One two three. ".repeat(40)));
    project.run(&[]);
    project
}
