//! The build tool: what reruns and what does not, what is kept, what is refused.

use std::time::{Duration, Instant};

use crate::project::{Project, stage, statuses, verdicts};

/// upper -> first, upper -> count; `other` stands alone.
const CHAIN: &str = r#"
vars: { text: data/a.txt }
stages:
  upper:
    kind: command
    inputs: { text: "${vars.text}" }
    outputs: { text: file }
    params: { command: [sh, -c, "tr a-z A-Z < ${inputs.text} > ${outputs.text}"] }
  first:
    kind: command
    inputs: { text: upper }
    outputs: { line: file }
    params: { command: [sh, -c, "head -n 1 ${inputs.text} > ${outputs.line}"] }
  count:
    kind: command
    inputs: { line: first }
    outputs: { n: file }
    params: { command: [sh, -c, "wc -c < ${inputs.line} > ${outputs.n}"] }
  other:
    kind: command
    inputs: { text: data/b.txt }
    outputs: { text: file }
    params: { command: [cp, "${inputs.text}", "${outputs.text}"] }
"#;

fn chain() -> Project {
    let project = Project::new(CHAIN);
    project.write("data/a.txt", "one\ntwo\n");
    project.write("data/b.txt", "b\n");
    project
}

#[test]
fn a_second_run_does_nothing_and_neither_does_a_touch() {
    let p = chain();
    assert_eq!(statuses(&p.run(&[])), ["upper=ran", "first=ran", "count=ran", "other=ran"]);
    assert_eq!(p.read("artifacts/p/first/line/line"), "ONE\n");
    assert_eq!(statuses(&p.run(&[])), ["upper=cached", "first=cached", "count=cached", "other=cached"]);
    p.write("data/a.txt", "one\ntwo\n");
    assert_eq!(p.tinylm(&["plan", "p", "--exit-code"]).code, 0);
    p.write("data/a.txt", "two\n");
    assert_eq!(p.tinylm(&["plan", "p", "--exit-code"]).code, 3);
}

#[test]
fn a_plan_changes_nothing_on_disk_and_says_what_run_then_does() {
    let p = chain();
    let plan = p.plan(&[]);
    assert!(!p.path("artifacts").exists());
    assert_eq!(verdicts(&plan), ["upper=run", "first=pending", "count=pending", "other=run"]);
    assert_eq!(stage(&plan, "upper")["reason"]["code"], "never_ran");
    let summary = p.run(&[]);
    for name in ["upper", "other"] {
        assert_eq!(stage(&plan, name)["key"], stage(&summary, name)["key"]);
        assert_eq!(stage(&plan, name)["reason"], stage(&summary, name)["reason"]);
    }
    assert!(stage(&p.plan(&[]), "count")["key"].as_str().unwrap().starts_with("blake3:"));
}

#[test]
fn an_upstream_rerun_that_gives_the_same_bytes_stops_there() {
    let p = chain();
    p.run(&[]);
    // The second line is seen by `upper` alone.
    p.write("data/a.txt", "one\nTHREE\n");
    assert_eq!(verdicts(&p.plan(&[])), ["upper=run", "first=pending", "count=pending", "other=cached"]);
    let summary = p.run(&[]);
    assert_eq!(statuses(&summary), ["upper=ran", "first=ran", "count=cached", "other=cached"]);
    assert_eq!(stage(&summary, "upper")["reason"]["detail"], "input text: a.txt changed");
    // Back to the first content: everything was kept.
    p.write("data/a.txt", "one\ntwo\n");
    assert_eq!(statuses(&p.run(&[])), ["upper=cached", "first=cached", "count=cached", "other=cached"]);
}

#[test]
fn why_names_the_field_with_old_and_new() {
    let p = chain();
    p.run(&[]);
    p.write("pipelines/p.yaml", CHAIN.replace("head -n 1", "head -n 2"));
    let ran = p.tinylm(&["why", "p", "first", "--format", "json"]);
    let why: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&why["verdict"], &why["reason"]["code"]), (&"run".into(), &"param".into()));
    assert_eq!(why["differences"][0]["field"], "params.command");
    assert!(why["differences"][0]["new"].to_string().contains("head -n 2"));
    let summary = p.run(&[]);
    assert_eq!(why["reason"], stage(&summary, "first")["reason"]);
    // Afterwards it tells what the last change was.
    let text = p.tinylm(&["why", "p", "first"]).stdout;
    assert!(text.contains("first: cached") && text.contains("params.command"), "{text}");
}

#[test]
fn an_override_shows_in_the_plan_and_leaves_the_lock_alone() {
    let p = chain();
    p.run(&[]);
    let lock = p.read("pipelines/p.lock");
    p.write("data/c.txt", "see\n");
    let set = ["--set", "vars.text=data/c.txt"];
    assert_eq!(p.plan(&set)["overrides"][0], "vars.text=data/c.txt");
    assert_eq!(statuses(&p.run(&set)), ["upper=ran", "first=ran", "count=ran", "other=cached"]);
    assert_eq!(p.read("pipelines/p.lock"), lock);
}

#[test]
fn one_damaged_or_deleted_blob_reruns_just_its_producer() {
    let p = chain();
    p.run(&[]);
    // The view is a link to the blob or a copy of it; the blob itself is found by its content.
    let objects = || -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        for folder in std::fs::read_dir(p.path("artifacts/store/objects")).unwrap() {
            for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                if std::fs::read(&path).unwrap() == b"ONE\n" {
                    found.push(path);
                }
            }
        }
        found
    };
    let path = objects().remove(0);
    std::fs::remove_file(&path).unwrap();
    let plan = p.plan(&[]);
    assert_eq!(stage(&plan, "first")["reason"]["code"], "output_missing");
    assert_eq!(statuses(&p.run(&[])), ["upper=cached", "first=ran", "count=cached", "other=cached"]);
    // Damaged: same length, other bytes, written over a read-only file.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "0NE\n").unwrap();
    assert_eq!(stage(&p.plan(&[]), "first")["reason"]["code"], "output_damaged");
    assert_eq!(statuses(&p.run(&[])), ["upper=cached", "first=ran", "count=cached", "other=cached"]);
    assert_eq!(p.read("artifacts/p/first/line/line"), "ONE\n");
    assert_eq!(statuses(&p.run(&[])), ["upper=cached", "first=cached", "count=cached", "other=cached"]);
}

#[test]
fn a_failure_keeps_its_log_and_its_neighbours_results() {
    let broken =
        CHAIN.replace("head -n 1 ${inputs.text} >", "echo about to fail; echo the cause >&2; exit 3 >");
    let p = chain();
    p.write("pipelines/p.yaml", &broken);
    let (code, summary) = p.try_run(&["--keep-going"]);
    assert_eq!(code, 1);
    assert_eq!(statuses(&summary), ["upper=ran", "first=failed", "count=skipped", "other=ran"]);
    let error = stage(&summary, "first")["error"].as_str().unwrap();
    assert!(error.contains("exit status: 3") && error.contains("the cause"), "{error}");
    assert!(!p.path("artifacts/p/first").exists());
    let run = summary["run"].as_str().unwrap();
    let log = p.read(&format!("artifacts/runs/{run}/first.log"));
    assert!(log.contains("about to fail") && log.contains("the cause"), "{log}");
    assert!(p.path(&format!("artifacts/runs/{run}/events.jsonl")).exists());
    // Mended, only what was missing runs.
    p.write("pipelines/p.yaml", CHAIN);
    assert_eq!(statuses(&p.run(&[])), ["upper=cached", "first=ran", "count=ran", "other=cached"]);
}

#[test]
fn without_keep_going_nothing_new_starts_after_a_failure() {
    let p = chain();
    p.write("pipelines/p.yaml", CHAIN.replace("tr a-z A-Z <", "false <"));
    let (code, summary) = p.try_run(&["--jobs", "1"]);
    assert_eq!(code, 1);
    assert_eq!(statuses(&summary), ["upper=failed", "first=skipped", "count=skipped", "other=skipped"]);
    let reason = |name: &str| stage(&summary, name)["reason"].clone();
    assert_eq!(reason("first")["code"], "upstream_failed");
    assert_eq!(reason("other")["code"], "stopped_after_failure");
    assert_eq!(reason("other")["detail"], "not started after `upper` failed");
}

#[test]
fn only_the_named_stages_and_what_they_need_run() {
    let p = chain();
    assert_eq!(statuses(&p.run(&["first"])), ["upper=ran", "first=ran"]);
    let forced = p.run(&["--force", "first"]);
    assert_eq!(statuses(&forced), ["upper=cached", "first=ran", "count=ran", "other=ran"]);
    assert_eq!(stage(&forced, "first")["reason"]["code"], "forced");
}

#[test]
fn the_lock_refuses_what_changed_before_anything_runs() {
    let p = chain();
    let none = p.tinylm(&["run", "p", "--locked"]);
    assert!(none.code == 1 && none.stderr.contains("there is no lockfile"), "{}", none.stderr);
    p.run(&[]);
    std::fs::remove_dir_all(p.path("artifacts")).unwrap();
    p.run(&["--locked"]);
    p.write("data/a.txt", "changed\n");
    let ran = p.tinylm(&["run", "p", "--locked"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("source `data/a.txt` changed"), "{}", ran.stderr);
    p.write("data/a.txt", "one\ntwo\n");
    p.write("pipelines/p.yaml", CHAIN.replace("head -n 1", "head -n 2"));
    let ran = p.tinylm(&["run", "p", "--locked"]);
    assert!(ran.stderr.contains("stage `first`: its params changed"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("stage `upper`"), "{}", ran.stderr);
}

#[test]
fn what_is_not_reproduced_fails_under_the_lock() {
    let text = "
stages:
  now: { kind: command, outputs: { t: file }, params: { command: [sh, -c, 'head -c 16 /dev/urandom > ${outputs.t}'] } }
";
    let p = Project::new(text);
    p.run(&[]);
    std::fs::remove_dir_all(p.path("artifacts")).unwrap();
    let (code, summary) = p.try_run(&["--locked"]);
    assert_eq!(code, 1);
    assert!(stage(&summary, "now")["error"].as_str().unwrap().contains("the lock promises"));
}

#[test]
fn two_folders_and_any_number_of_jobs_give_the_same_digests() {
    let (a, b) = (chain(), chain());
    let (a, b) = (a.run(&["--jobs", "1"]), b.run(&["--jobs", "2"]));
    for name in ["upper", "first", "count", "other"] {
        assert_eq!(stage(&a, name)["outputs"], stage(&b, name)["outputs"]);
        assert_eq!(stage(&a, name)["key"], stage(&b, name)["key"]);
    }
}

#[test]
fn independent_stages_run_side_by_side_within_the_budget() {
    // Each waits for a sign of the other, so both must run at one time to end at all.
    let text = "
stages:
  a: { kind: command, outputs: { t: file }, params: { command: [sh, -c, 'touch DIR/a; while [ ! -e DIR/b ]; do sleep 0.05; done; echo a > ${outputs.t}'] } }
  b: { kind: command, outputs: { t: file }, params: { command: [sh, -c, 'touch DIR/b; while [ ! -e DIR/a ]; do sleep 0.05; done; echo b > ${outputs.t}'] } }
";
    let signs = tempfile::tempdir().unwrap();
    let p = Project::new(&text.replace("DIR", signs.path().to_str().unwrap()));
    assert_eq!(statuses(&p.run(&["--jobs", "2"])), ["a=ran", "b=ran"]);
    // With memory for one of them they take turns: whoever is first must not see the second.
    let alone = "
resources: { memory: 3GiB }
stages:
  a: { kind: command, resources: { memory: 2GiB }, outputs: { t: file }, params: { command: [sh, -c, 'mkdir DIR/lock && sleep 0.2 && rmdir DIR/lock && echo a > ${outputs.t}'] } }
  b: { kind: command, resources: { memory: 2GiB }, outputs: { t: file }, params: { command: [sh, -c, 'mkdir DIR/lock && sleep 0.2 && rmdir DIR/lock && echo b > ${outputs.t}'] } }
";
    let p = Project::new(&alone.replace("DIR", signs.path().to_str().unwrap()));
    assert_eq!(statuses(&p.run(&["--jobs", "2"])), ["a=ran", "b=ran"]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_cleanly_and_keeps_what_was_finished() {
    let text = CHAIN.replace("head -n 1 ${inputs.text} >", "echo begun > DIR/begun; sleep 60; echo >");
    let signs = tempfile::tempdir().unwrap();
    let p = chain();
    p.write("pipelines/p.yaml", text.replace("DIR", signs.path().to_str().unwrap()));
    let begun = Instant::now();
    let child = p
        .command(&["run", "p", "count"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while !signs.path().join("begun").exists() && begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("stopped on request"), "{stderr}");
    assert!(stderr.contains("count skipped  the run was stopped before it"), "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(50));
    assert_eq!(std::fs::read_dir(p.path("artifacts/store/tmp")).unwrap().count(), 0);
    p.write("pipelines/p.yaml", CHAIN);
    assert_eq!(statuses(&p.run(&["first"])), ["upper=cached", "first=ran"]);
}

#[test]
fn a_source_that_changes_under_a_running_stage_fails_it() {
    let text = "
stages:
  a: { kind: command, inputs: { t: data/a.txt }, outputs: { t: file }, params: { command: [sh, -c, 'echo more >> SOURCE; cp ${inputs.t} ${outputs.t}'] } }
";
    let p = Project::new("");
    p.write("data/a.txt", "one\n");
    p.write("pipelines/p.yaml", text.replace("SOURCE", p.path("data/a.txt").to_str().unwrap()));
    let (code, summary) = p.try_run(&[]);
    assert_eq!(code, 1);
    assert!(stage(&summary, "a")["error"].as_str().unwrap().contains("changed while the stage read it"));
}

#[test]
fn a_command_sees_only_what_is_declared() {
    let text = "
stages:
  env: { kind: command, outputs: { t: file }, params: { env: { WORD: hello }, command: [sh, -c, 'env | cut -d= -f1 | sort > ${outputs.t}; echo $WORD >> ${outputs.t}'] } }
";
    let p = Project::new(text);
    p.command(&["run", "p"]).env("SECRET", "x").output().unwrap();
    let seen = p.read("artifacts/p/env/t/t");
    assert_eq!(seen, "HOME\nLANG\nPATH\nPWD\nTMPDIR\nTZ\nWORD\nhello\n");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let p = Project::new(
        "stages:\n  a: { kind: command, outputs: { t: file }, params: { command: [no-such-program] } }",
    );
    let (code, summary) = p.try_run(&[]);
    let error = stage(&summary, "a")["error"].as_str().unwrap();
    assert!(code == 1 && error.contains("cannot start `no-such-program`"), "{error}");
}

#[test]
fn a_directory_source_and_a_glob_name_files_relatively() {
    let text = "
stages:
  dir: { kind: command, inputs: { d: data/many }, outputs: { t: file }, params: { command: [sh, -c, 'ls ${inputs.d} > ${outputs.t}'] } }
  glob: { kind: command, inputs: { d: 'data/many/*.txt' }, outputs: { t: file }, params: { command: [sh, -c, 'ls ${inputs.d} > ${outputs.t}'] } }
";
    let p = Project::new(text);
    for name in ["a.txt", "b.txt", "c.md", ".hidden"] {
        p.write(&format!("data/many/{name}"), name);
    }
    p.run(&[]);
    assert_eq!(p.read("artifacts/p/dir/t/t"), "a.txt\nb.txt\nc.md\n");
    assert_eq!(p.read("artifacts/p/glob/t/t"), "a.txt\nb.txt\n");
    p.write("data/many/c.md", "changed");
    assert_eq!(verdicts(&p.plan(&[])), ["dir=run", "glob=cached"]);
}

#[test]
fn a_url_is_downloaded_once_checked_and_then_a_source_like_any_other() {
    use sha2::Digest as _;
    use std::io::{Read, Write};
    let body = b"one\ntwo\n";
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in server.incoming().take(2) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), body].concat());
        }
    });
    let sha256: String = sha2::Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
    let text = |sha256: &str| {
        let source = format!("{{ url: 'http://{address}/files/a.txt', sha256: '{sha256}' }}");
        CHAIN.replace("inputs: { text: \"${vars.text}\" }", &format!("inputs: {{ text: {source} }}"))
    };
    let p = chain();
    p.write("pipelines/p.yaml", text(&sha256));
    assert_eq!(stage(&p.plan(&["upper"]), "upper")["reason"]["code"], "waits");
    assert_eq!(statuses(&p.run(&["first"])), ["upper=ran", "first=ran"]);
    assert_eq!(p.read("artifacts/p/first/line/line"), "ONE\n");
    assert_eq!(statuses(&p.run(&["first"])), ["upper=cached", "first=cached"]);
    let wrong = "0".repeat(64);
    p.write("pipelines/p.yaml", text(&wrong));
    let ran = p.tinylm(&["run", "p", "first"]);
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    assert!(ran.stderr.contains(&sha256) && ran.stderr.contains("pipelines/p.yaml:6"), "{}", ran.stderr);
}

#[test]
fn a_seed_is_the_same_number_however_it_is_given() {
    let p = Project::new(
        "stages:\n  s:\n    kind: synthesize\n    inputs: { templates: data/t.yaml }\n    params: { documents: 1, conversations: 0 }\n",
    );
    p.write("data/t.yaml", "documents:\n  - { name: a, text: 'Hello.' }\n");
    let seed = u64::MAX.to_string();
    let key = |args: &[&str]| stage(&p.plan(args), "s")["key"].clone();
    let given = key(&["--seed", &seed]);
    assert!(given.is_string() && given != key(&[]));
    assert_eq!(given, key(&["--set", &format!("seed={seed}")]));
    p.write("pipelines/p.yaml", format!("seed: {seed}\n{}", p.read("pipelines/p.yaml")));
    assert_eq!(given, key(&[]));
}
