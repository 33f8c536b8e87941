//! The store under stress: several processes, kills, damage, other file systems, locks that lie.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::project::{Project, stage, statuses};

/// `n` stages, every second of which reads the one before it. Each says in a file outside of the
/// project that it runs, and takes its time, so that processes meet.
fn many(n: usize, counter: &Path) -> String {
    let mut text = String::from("stages:\n");
    let counter = counter.display();
    for i in 0..n {
        let input = if i % 2 == 0 { "data/a.txt".to_string() } else { format!("s{}", i - 1) };
        let command =
            format!("echo s{i} >> {counter}; sleep 0.01; (cat ${{inputs.a}}; echo {i}) > ${{outputs.b}}");
        text += &format!("  s{i}: {{ kind: command, inputs: {{ a: {input} }}, outputs: {{ b: file }}, ");
        text += &format!("params: {{ command: [sh, -c, '{command}'] }} }}\n");
    }
    text
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// Exit code, stdout and stderr.
fn end(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whatever lies in the project that no finished run leaves.
fn strays(p: &Project) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let parent = folder.file_name().unwrap_or_default();
            if name.starts_with('.') || parent == "tmp" || parent == "locks" {
                found.push(path.clone());
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                walk(&path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(&p.path("."), &mut found);
    found
}

fn outputs(summary: &Value) -> Vec<Value> {
    summary["stages"].as_array().expect("stages").iter().map(|s| s["outputs"].clone()).collect()
}

#[test]
fn six_processes_do_each_action_once() {
    const STAGES: usize = 40;
    let outside = tempfile::tempdir().unwrap();
    let counter = outside.path().join("ran");
    let mut expected: Vec<String> = (0..STAGES).map(|i| format!("s{i}")).collect();
    expected.sort();
    let mut waited = 0;
    for round in 0..10 {
        let p = Project::new(&many(STAGES, &counter));
        p.write("data/a.txt", "one\n");
        let children: Vec<Child> =
            (0..6).map(|_| start(&mut p.command(&["run", "p", "--jobs", "2", "--format", "json"]))).collect();
        let ended: Vec<_> = children.into_iter().map(end).collect();
        let summary = |out: &str| serde_json::from_str(out.lines().last().unwrap()).unwrap();
        let first: Value = summary(&ended[0].1);
        for (code, out, err) in &ended {
            assert_eq!(*code, Some(0), "round {round}: {err}\n{out}");
            assert_eq!(outputs(&summary(out)), outputs(&first), "round {round}");
            waited += out.matches("which is making the same").count();
        }
        let mut ran: Vec<String> =
            std::fs::read_to_string(&counter).unwrap().lines().map(str::to_string).collect();
        ran.sort();
        assert_eq!(ran, expected, "round {round}");
        std::fs::remove_file(&counter).unwrap();
        assert_eq!(p.read("artifacts/p/s39/b/b"), "one\n38\n39\n");
        assert_eq!(strays(&p), Vec::<PathBuf>::new(), "round {round}");
        assert_eq!(std::fs::read_dir(p.path("artifacts/runs")).unwrap().count(), 6);
    }
    assert!(waited > 0, "no process ever met another");
}

/// `a` begins, says so, and goes on when told; `b` is free of it.
const SLOW: &str = "
stages:
  a: { kind: command, outputs: { t: file }, params: { command: [sh, -c, 'echo a >> DIR/ran; while [ ! -e DIR/go ]; do sleep 0.02; done; echo done > ${outputs.t}'] } }
  b: { kind: command, outputs: { t: file }, params: { command: [sh, -c, 'echo b > ${outputs.t}'] } }
";

fn slow(signs: &Path) -> Project {
    Project::new(&SLOW.replace("DIR", &signs.display().to_string()))
}

#[test]
fn a_process_says_for_whom_it_waits_and_takes_over_from_one_that_was_killed() {
    let signs = tempfile::tempdir().unwrap();
    let p = slow(signs.path());
    let ran = || std::fs::read_to_string(signs.path().join("ran")).unwrap_or_default();
    let mut first = start(&mut p.command(&["run", "p", "a"]));
    wait_until("the first", || ran() == "a\n");
    let second = start(&mut p.command(&["run", "p", "a"]));
    // Meanwhile others go on.
    assert_eq!(statuses(&p.run(&["b"])), ["b=ran"]);
    first.kill().unwrap();
    let pid = first.id();
    first.wait().unwrap();
    wait_until("the second to take over", || ran() == "a\na\n");
    std::fs::write(signs.path().join("go"), "").unwrap();
    let (code, _, err) = end(second);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains(&format!("(process {pid} on ")) && err.contains("waits for run "), "{err}");
    assert_eq!(p.read("artifacts/p/a/t/t"), "done\n");
    p.run(&["a"]);
    assert_eq!(strays(&p), Vec::<PathBuf>::new());
}

#[cfg(target_os = "linux")]
fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("a process")) == 0
}

/// The program in a PID namespace of its own, or why that cannot be had here.
#[cfg(target_os = "linux")]
fn contained(p: &Project, args: &[&str]) -> Result<Command, String> {
    let flags: &[&str] = if is_root() {
        &["-pf", "--mount-proc", "--kill-child"]
    } else {
        &["-Urpf", "--mount-proc", "--kill-child"]
    };
    let tried = Command::new("unshare").args(flags).arg("true").output().map_err(|e| e.to_string())?;
    if !tried.status.success() {
        return Err(String::from_utf8_lossy(&tried.stderr).trim().to_string());
    }
    let mut command = Command::new("unshare");
    command.args(flags).arg(env!("CARGO_BIN_EXE_tinylm")).args(args).current_dir(p.path("."));
    Ok(command)
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_in_another_container_is_alive() {
    let signs = tempfile::tempdir().unwrap();
    let p = slow(signs.path());
    let command = |stages: &[&str]| contained(&p, &[&["run", "p"], stages].concat());
    let mut first = match command(&["a"]) {
        Ok(command) => command,
        Err(why) => return println!("skipped: no PID namespaces here ({why})"),
    };
    let ran = || std::fs::read_to_string(signs.path().join("ran")).unwrap_or_default();
    let first = start(&mut first);
    wait_until("the first", || ran() == "a\n");
    // Sweeps what it takes for dead; both are process 1 of their container.
    let (code, _, err) = end(start(&mut command(&["b"]).unwrap()));
    assert_eq!(code, Some(0), "{err}");
    let second = start(&mut command(&["a"]).unwrap());
    std::thread::sleep(Duration::from_millis(200));
    std::fs::write(signs.path().join("go"), "").unwrap();
    for child in [first, second] {
        let (code, _, err) = end(child);
        assert_eq!(code, Some(0), "{err}");
    }
    assert_eq!(ran(), "a\n");
    assert_eq!(p.read("artifacts/p/a/t/t"), "done\n");
    assert_eq!(strays(&p), Vec::<PathBuf>::new());
}

#[test]
fn kills_at_any_moment_lose_nothing_and_leave_nothing() {
    let outside = tempfile::tempdir().unwrap();
    let text = many(12, &outside.path().join("ran"));
    let whole = Project::new(&text);
    whole.write("data/a.txt", "one\n");
    let begun = Instant::now();
    let expected = outputs(&whole.run(&["--jobs", "2"]));
    let took = begun.elapsed();
    let p = Project::new(&text);
    p.write("data/a.txt", "one\n");
    for kill in 0..10 {
        let mut child = start(&mut p.command(&["run", "p", "--jobs", "2"]));
        // Of a run from the beginning, another tenth each time.
        std::thread::sleep(took * kill / 10);
        child.kill().unwrap();
        child.wait().unwrap();
        if kill % 3 == 2 {
            assert_eq!(outputs(&p.run(&["--jobs", "2"])), expected, "after kill {kill}");
            assert_eq!(strays(&p), Vec::<PathBuf>::new(), "after kill {kill}");
            std::fs::remove_dir_all(p.path("artifacts")).unwrap();
        }
    }
    assert_eq!(outputs(&p.run(&["--jobs", "2"])), expected);
    assert_eq!(strays(&p), Vec::<PathBuf>::new());
    assert_eq!(p.read("pipelines/p.lock"), whole.read("pipelines/p.lock"));
}

#[test]
fn what_killed_runs_left_goes_with_the_next() {
    let p = copies();
    for stray in
        ["artifacts/store/tmp/view-aBc/view/x", "artifacts/store/tmp/.tmpXyZ", "pipelines/.p.lock.new"]
    {
        p.write(stray, "half");
    }
    p.write("artifacts/.view-host-0123-7-89abcdef/x", "half");
    p.write("artifacts/store/locks/0123", "run r (process 1 on x)");
    p.run(&[]);
    assert_eq!(strays(&p), Vec::<PathBuf>::new());
}

/// Two sources and two stages that know nothing of each other, side by side in every listing.
fn copies() -> Project {
    let p = Project::new(
        "stages:
  a: { kind: command, inputs: { t: data/a.txt }, outputs: { o: file }, params: { command: [cp, '${inputs.t}', '${outputs.o}'] } }
  b: { kind: command, inputs: { t: data/b.txt }, outputs: { o: file }, params: { command: [cp, '${inputs.t}', '${outputs.o}'] } }
  c: { kind: command, inputs: { t: a }, outputs: { o: file }, params: { command: [sh, -c, 'tr a-z A-Z < ${inputs.t} > ${outputs.o}'] } }
",
    );
    p.write("data/a.txt", "one\n");
    p.write("data/b.txt", "two\n");
    p
}

/// On Linux two folders are exchanged in one step, so that a reader always finds one of them whole.
#[cfg(target_os = "linux")]
#[test]
fn a_reader_of_the_view_never_finds_nothing() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let p = copies();
    p.run(&[]);
    let shown = p.path("artifacts/p/c/o/o");
    let over = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !over.load(Ordering::Relaxed) {
                let text = std::fs::read_to_string(&shown).expect("the view is there");
                assert!(["ONE\n", "OTHER\n"].contains(&text.as_str()), "{text}");
                reads += 1;
            }
            reads
        });
        for round in 0..10 {
            p.write("data/a.txt", ["other\n", "one\n"][round % 2]);
            let all = [&["run", "p"][..], &["run", "p", "c"]].map(|args| start(&mut p.command(args)));
            for (code, _, err) in all.map(end) {
                assert_eq!(code, Some(0), "{err}");
            }
        }
        over.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(reads > 100, "{reads}");
    assert_eq!(p.read("artifacts/p/c/o/o"), "ONE\n");
}

#[cfg(target_os = "linux")]
#[test]
fn store_and_view_may_lie_on_different_file_systems() {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    let memory = Path::new("/dev/shm");
    // One of the two is elsewhere: the whole store, or the view of one pipeline.
    for moved in ["store", "p"] {
        let p = copies();
        if device(memory).is_none() || device(memory) == device(&p.path("data")) {
            return println!("skipped: there is no second file system at /dev/shm");
        }
        let elsewhere = tempfile::tempdir_in(memory).unwrap();
        std::fs::create_dir(p.path("artifacts")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), p.path("artifacts").join(moved)).unwrap();
        assert_eq!(statuses(&p.run(&[])), ["a=ran", "b=ran", "c=ran"]);
        let inode = || std::fs::metadata(p.path("artifacts/p/c/o/o")).unwrap().ino();
        let before = inode();
        assert_eq!(p.read("artifacts/p/c/o/o"), "ONE\n");
        // Copies, since links do not reach there; they are not made again.
        assert_eq!(statuses(&p.run(&[])), ["a=cached", "b=cached", "c=cached"]);
        assert_eq!(inode(), before, "{moved}");
        p.write("data/a.txt", "three\n");
        assert_eq!(statuses(&p.run(&[])), ["a=ran", "b=cached", "c=ran"]);
        assert_eq!(p.read("artifacts/p/c/o/o"), "THREE\n");
        assert_eq!(strays(&p), Vec::<PathBuf>::new());
        assert_eq!(std::fs::read_dir(elsewhere.path().join("tmp")).map_or(0, Iterator::count), 0);
    }
}

#[test]
fn the_lock_holds_for_what_is_cached_too() {
    let p = copies();
    p.run(&[]);
    p.run(&["--locked"]);
    let lock = p.read("pipelines/p.lock");
    let digest = |name: &str| stage(&p.run(&[]), name)["outputs"]["o"].as_str().unwrap().to_string();
    let (b, c) = (digest("b"), digest("c"));
    // A forged lock, and one of a machine on which other bytes came out.
    p.write("pipelines/p.lock", lock.replace(&c, &b));
    let (code, summary) = p.try_run(&["--locked"]);
    assert_eq!(code, 1);
    assert_eq!(statuses(&summary), ["a=cached", "b=cached", "c=failed"]);
    let error = stage(&summary, "c")["error"].as_str().unwrap();
    assert!(error.contains("the lock promises") && error.contains("`--force c`"), "{error}");
    // A port that the lock has and the stage does not give.
    p.write(
        "pipelines/p.lock",
        lock.replace(&format!("\"o\": \"{c}\""), &format!("\"o\": \"{c}\"\n      \"z\": \"{b}\"")),
    );
    let (code, summary) = p.try_run(&["--locked"]);
    assert!(code == 1 && stage(&summary, "c")["error"].as_str().unwrap().contains("output `z` is nothing"));
}

#[test]
fn a_lock_that_does_not_read_stops_every_run_that_would_lose_its_stages() {
    let p = copies();
    p.run(&[]);
    let lock = p.read("pipelines/p.lock");
    let marks = format!("<<<<<<< HEAD\n{lock}=======\n>>>>>>> other\n");
    let later = lock.replace("version: 1", "version: 9");
    let unknown = lock.replacen("    key:", "    salt: 1\n    key:", 1);
    for (text, says) in
        [(&marks, "unresolved merge conflict"), (&later, "has version 9"), (&unknown, "unknown key `salt`")]
    {
        p.write("pipelines/p.lock", text);
        for args in [&["run", "p", "b"][..], &["run", "p"], &["run", "p", "--locked"]] {
            let ran = p.tinylm(args);
            assert!(ran.code == 2 && ran.stderr.contains(says), "{args:?}: {}", ran.stderr);
            assert!(ran.stderr.contains("pipelines/p.lock:"), "{}", ran.stderr);
        }
        assert_eq!(p.read("pipelines/p.lock"), *text);
    }
    // A part of the pipeline leaves the rest of a lock that reads.
    p.write("pipelines/p.lock", &lock);
    p.write("data/b.txt", "other\n");
    p.run(&["b"]);
    let now = p.read("pipelines/p.lock");
    assert!(now != lock && now.contains("\"a\":") && now.contains("\"c\":"), "{now}");
}

#[test]
fn branches_that_change_different_stages_merge() {
    let p = copies();
    let lock = |a: &str, b: &str| {
        p.write("data/a.txt", a);
        p.write("data/b.txt", b);
        p.run(&[]);
        p.read("pipelines/p.lock")
    };
    let (base, ours, theirs) = (lock("one\n", "two\n"), lock("eins\n", "two\n"), lock("one\n", "zwei\n"));
    let both = lock("eins\n", "zwei\n");
    for (name, text) in [("base", &base), ("ours", &ours), ("theirs", &theirs)] {
        p.write(name, text);
    }
    let git = |args: &[&str]| Command::new("git").args(args).current_dir(p.path(".")).output();
    let merged = match git(&["merge-file", "-p", "ours", "base", "theirs"]) {
        Ok(merged) => merged,
        Err(e) => return println!("skipped: no git here ({e})"),
    };
    assert_eq!(merged.status.code(), Some(0), "{}", String::from_utf8_lossy(&merged.stdout));
    assert_eq!(String::from_utf8(merged.stdout).unwrap(), both);
    p.run(&["--locked"]);
}

#[test]
fn a_blob_that_changes_under_a_stage_is_found_before_commit() {
    let p = Project::new("");
    let store = p.path("artifacts/store/objects");
    // Whatever way it found to the blob itself; the size stays the same.
    let text = "
stages:
  a: { kind: command, inputs: { t: data/a.txt }, outputs: { o: file }, params: { command: [cp, '${inputs.t}', '${outputs.o}'] } }
  b: { kind: command, inputs: { t: a }, outputs: { o: file }, params: { command: [sh, -c, 'HARM cp ${inputs.t} ${outputs.o}'] } }
";
    let harm = format!(
        "for f in {}/*/*; do if grep -q precious $f; then chmod u+w $f; printf PRECIOUS > $f; fi; done;",
        store.display()
    );
    p.write("data/a.txt", "precious");
    p.write("pipelines/p.yaml", text.replace("HARM", &harm));
    for args in [&["--paranoid"][..], &[]] {
        let (code, summary) = p.try_run(args);
        assert_eq!((code, statuses(&summary)), (1, vec!["a=ran".to_string(), "b=failed".into()]));
        let error = stage(&summary, "b")["error"].as_str().unwrap();
        assert!(error.contains("the store was changed while the stage read it: `o` of `a`"), "{error}");
        let kept: Vec<_> = std::fs::read_dir(p.path("artifacts/store/quarantine")).unwrap().collect();
        let kept = kept.last().unwrap().as_ref().unwrap().path();
        assert_eq!(std::fs::read_to_string(kept).unwrap(), "PRECIOUS");
    }
    // Nothing was kept of it, and what made the blob runs again.
    let harmless = text.replace("HARM", "");
    p.write("pipelines/p.yaml", harmless);
    let summary = p.run(&[]);
    assert_eq!(statuses(&summary), ["a=ran", "b=ran"]);
    assert_eq!(stage(&summary, "a")["reason"]["code"], "output_missing");
    assert_eq!(p.read("artifacts/p/b/o/o"), "precious");
}

#[test]
fn other_bytes_of_the_same_size_and_mtime_are_another_source() {
    let p = copies();
    let old = std::time::SystemTime::now() - Duration::from_secs(100);
    let write = |text: &str| {
        p.write("data/a.txt", text);
        let file = std::fs::File::options().write(true).open(p.path("data/a.txt")).unwrap();
        file.set_modified(old).unwrap();
    };
    write("one\n");
    std::thread::sleep(Duration::from_millis(50));
    p.run(&[]);
    assert_eq!(statuses(&p.run(&[])), ["a=cached", "b=cached", "c=cached"]);
    write("eno\n");
    // Without ctime only those who read every byte notice.
    let args: &[&str] = if cfg!(unix) { &[] } else { &["--paranoid"] };
    assert_eq!(statuses(&p.run(args)), ["a=ran", "b=cached", "c=ran"]);
    assert_eq!(p.read("artifacts/p/c/o/o"), "ENO\n");
}

#[test]
fn the_log_of_a_failure_stays_whatever_else_fails() {
    let p = Project::new("");
    let lock = p.path("pipelines/p.lock");
    let text = "
stages:
  good: { kind: command, outputs: { o: file }, params: { command: [sh, -c, 'echo x > ${outputs.o}'] } }
  bad: { kind: command, inputs: { t: good }, outputs: { o: file }, params: { command: [sh, -c, 'mkdir -p LOCK/x; echo evidence; exit 3'] } }
"
    .replace("LOCK", &lock.display().to_string());
    p.write("pipelines/p.yaml", text);
    let (code, summary) = p.try_run(&[]);
    assert_eq!((code, statuses(&summary)), (1, vec!["good=ran".to_string(), "bad=failed".into()]));
    assert!(summary["error"].as_str().unwrap().contains("p.lock"), "{summary}");
    let folder = format!("artifacts/runs/{}", summary["run"].as_str().unwrap());
    assert!(p.read(&format!("{folder}/bad.log")).contains("evidence"));
    assert!(p.read(&format!("{folder}/summary.json")).contains("p.lock"));
    // Also when all stages were well: the exit code says that not all is.
    std::fs::remove_dir_all(&lock).unwrap();
    p.write("pipelines/p.yaml", p.read("pipelines/p.yaml").replace("exit 3", "echo y > ${outputs.o}"));
    let ran = p.tinylm(&["run", "p"]);
    assert!(ran.code == 1 && ran.stderr.contains("error: cannot"), "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn a_damaged_record_is_said_and_made_anew() {
    let p = copies();
    p.run(&[]);
    let keys = p.plan(&[]);
    let record = |name: &str| {
        let key = stage(&keys, name)["key"].as_str().unwrap().trim_start_matches("blake3:").to_string();
        format!("artifacts/store/actions/{key}.json")
    };
    let whole = p.read(&record("b"));
    p.write(&record("a"), &whole[..whole.len() / 2]);
    p.write(&record("b"), p.read(&record("c")));
    let plan = p.plan(&[]);
    for name in ["a", "b"] {
        assert_eq!(stage(&plan, name)["reason"]["code"], "record_damaged", "{plan}");
        let ran = p.tinylm(&["inspect", &format!("p:{name}")]);
        assert!(ran.code == 1 && ran.stderr.contains("is damaged"), "{}", ran.stderr);
    }
    assert_eq!(statuses(&p.run(&[])), ["a=ran", "b=ran", "c=cached"]);
    // Neither did a stage never run whose list of actions does not read.
    p.write("artifacts/store/history/p/a.json", "[");
    let ran = p.tinylm(&["inspect", "p:a"]);
    assert!(ran.code == 1 && ran.stderr.contains("is damaged"), "{}", ran.stderr);
    p.write("data/a.txt", "changed\n");
    assert_eq!(stage(&p.plan(&[]), "a")["reason"]["code"], "record_damaged");
    assert_eq!(statuses(&p.run(&[])), ["a=ran", "b=cached", "c=ran"]);
    p.write("data/a.txt", "changed again\n");
    assert_eq!(stage(&p.plan(&[]), "a")["reason"]["code"], "input");
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_only_store_serves_a_run_with_nothing_to_do() {
    let p = copies();
    p.run(&[]);
    let flags = if is_root() { "-m" } else { "-rm" };
    let run = |args: &str| {
        let script = format!(
            "mount --bind . . && mount -o remount,ro,bind . && cd . && cd \"$PWD\" && exec {} {args}",
            env!("CARGO_BIN_EXE_tinylm")
        );
        end(start(Command::new("unshare").args([flags, "sh", "-c", &script]).current_dir(p.path("."))))
    };
    let (code, out, err) = run("run p");
    if err.contains("mount") || err.contains("unshare") {
        return println!("skipped: nothing can be mounted read-only here ({err})");
    }
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("3 cached") && err.contains("this run is not recorded"), "{out}{err}");
    let (code, _, err) = run("run p --force b");
    assert!(code == Some(1) && err.contains("Read-only file system"), "{err}");
}
